"""What follows from statements by rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from interfuse.data.statements import Statement


def infer(rules: Mapping[str, Any], statements: Iterable[Statement]) -> list[Statement]:
    """Statements that follow, each with its premises as evidence."""
    return []
