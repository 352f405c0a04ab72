"""The noun of the toy room: a number in a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source


@dataclass(frozen=True)
class Number:
    path: Path
    text: str = ""
    name: str = ""
    made_by: str = ""
    parents: tuple[Any, ...] = ()
    key: str = ""

    def fingerprint(self) -> str:
        return self.key or f"text-{self.text}"


def open_number(source: Source, ctx: Ctx) -> Any:
    """A number from a file, an artifact of the toy room, or a table ``{"value": 3}``."""
    if isinstance(source.spec, Number):
        return source.spec
    if isinstance(source.spec, dict):
        return Number(Path(), str(source.spec["value"]), source.name or "table")
    path = source.folder / source.spec
    file = path / "number.txt" if path.is_dir() else path
    if not file.is_file():
        raise InterfuseError("input.missing", "there is no such number", where=str(path), fix="Write one into a file.")
    return Number(path, file.read_text().strip(), source.name or path.name)
