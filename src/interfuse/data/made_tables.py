"""Tables that steps make: promised before the work with their columns, read when they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint, jsonable
from interfuse.data.tables import MADE, Table, read_made


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
    """A table that a step makes.

    Attributes:
        path: the artifact's folder. expected: how many rows it may have at most, for costs that are told before.
    """

    path: Path = Path()
    expected: int = 0

    dataset = _WhenMade()  # type: ignore[assignment]
    rows = _WhenMade()  # type: ignore[assignment]

    def __len__(self) -> int:
        rows = self.rows
        return self.expected if rows is None else len(rows)

    def _read(self) -> None:
        if (self.path / MADE).is_file():
            dataset, _, _ = read_made(self.path)
            self.__dict__["dataset"], self.__dict__["rows"] = dataset, np.arange(len(dataset), dtype=np.int64)

    def values(self, role: str) -> list[Any]:
        """As :meth:`Table.values`.

        Raises:
            InterfuseError: ``input.missing`` before the step has run.
        """
        if self.rows is None:
            raise InterfuseError(
                "input.missing", "the table is not made yet", where=self.name, fix="Run the step that makes it first."
            )
        return Table.values(self, role)


def promised(name: str, path: Path, columns: Mapping[str, str], expected: int, origin: Any) -> MadeTable:
    """The table that a step will have made at a path.

    Args:
        columns: role -> name. expected: rows at most. origin: plain data that fixes the content, where no key is known.
    """
    none: Any = None
    made = {"promised": fingerprint(jsonable(origin))}
    return MadeTable(name, none, none, dict(columns), (), np.zeros(0, dtype=np.int64), made, path=path, expected=expected)  # fmt: skip


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
