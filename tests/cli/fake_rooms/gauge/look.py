"""Looks."""

from interfuse.core.method import method


@method()
def look(of: list[object]) -> None:
    return None
