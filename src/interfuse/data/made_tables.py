"""Tables that steps make: promised before the work with their columns, read when they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint, jsonable
from interfuse.data.tables import MADE, Table, read_file, read_made


class _WhenMade:
    """A field of a promised table: None until the step has run, then what its file says."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, table: Any, owner: type) -> Any:
        if table is None:
            return self
        if table.__dict__[self.name] is None:
            table._read()
        return table.__dict__[self.name]

    def __set__(self, table: Any, value: Any) -> None:
        table.__dict__[self.name] = value


@dataclass(frozen=True)
class MadeTable(Table):
    """A table that a step makes, or keeps in a file beside what it makes.

    Attributes:
        path: the artifact's folder. expected: how many rows it may have at most, for costs that are told before.
        file: where in the folder the rows are, in a format of :func:`~interfuse.data.tables.read_file`.
    """

    path: Path = Path()
    expected: int = 0
    file: str = MADE

    dataset = _WhenMade()
    rows = _WhenMade()

    def __len__(self) -> int:
        return len(self.__dict__["rows"]) if self.there() else self.expected

    def there(self) -> bool:
        """Whether the step has made it."""
        if self.__dict__["rows"] is None:
            self._read()
        return self.__dict__["rows"] is not None

    def _read(self) -> None:
        place = self.path / self.file
        if place.is_file():
            dataset = read_made(self.path)[0] if self.file == MADE else _rows_of(place, list(self.columns.values()))
            self.__dict__["dataset"], self.__dict__["rows"] = dataset, np.arange(len(dataset), dtype=np.int64)

    def values(self, role: str) -> list[Any]:
        """As :meth:`Table.values`.

        Raises:
            InterfuseError: ``input.missing`` before the step has run.
        """
        if not self.there():
            raise InterfuseError(
                "input.missing", "the table is not made yet", where=self.name, fix="Run the step that makes it first."
            )
        return Table.values(self, role)


def _rows_of(file: Path, columns: Sequence[str]) -> Any:
    """A file without a row is an empty table, which only who wants rows refuses."""
    from datasets import Dataset

    return read_file(file) if file.stat().st_size else Dataset.from_dict({c: [] for c in columns})


def promised(
    name: str, path: Path, columns: Mapping[str, str], expected: int, origin: Any, file: str = MADE
) -> MadeTable:
    """The table that a step will have made at a path, or kept in a file there.

    Args:
        columns: role -> name. expected: rows at most. origin: plain data that fixes the content, where no key is known.
        file: where in the folder its rows will be.
    """
    none: Any = None
    made = {"promised": fingerprint(jsonable(origin))}
    return MadeTable(name, none, none, dict(columns), (), np.zeros(0, dtype=np.int64), made, path=path, expected=expected, file=file)  # fmt: skip


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of plain values as the table of an artifact; all have the same keys.

    Raises:
        InterfuseError: ``input.empty`` when there are none.
    """
    import pyarrow
    import pyarrow.parquet

    if not rows:
        raise InterfuseError("input.empty", "a table of no rows is not written", where=folder.name)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(r) for r in rows]), folder / MADE)
