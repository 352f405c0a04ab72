"""Tables that steps keep beside their result: promised before the work with their columns, read when their file is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint, jsonable
from interfuse.data.tables import Table, read_file


class _WhenThere:
    """A field of a promised table: None until its file is there, then what the file says."""

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
class KeptTable(Table):
    """A table that lies in a file of a step's folder, in a format of :func:`~interfuse.data.tables.read_file`.

    Attributes:
        file: its path. expected: how many rows it may have at most, for costs that are told before.
    """

    file: Path = Path()
    expected: int = 0

    dataset = _WhenThere()
    rows = _WhenThere()

    def __len__(self) -> int:
        return len(self.__dict__["rows"]) if self.there() else self.expected

    def there(self) -> bool:
        """Whether the file is there."""
        if self.__dict__["rows"] is None:
            self._read()
        return self.__dict__["rows"] is not None

    def _read(self) -> None:
        from datasets import Dataset

        if self.file.is_file():  # one without a row is an empty table, which only who wants rows refuses
            empty: dict[str, list[Any]] = {str(c): [] for c in self.columns.values()}
            dataset = read_file(self.file) if self.file.stat().st_size else Dataset.from_dict(empty)
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


def kept_table(name: str, file: Path, columns: Mapping[str, str], expected: int, origin: Any) -> KeptTable:
    """The table that a step will have kept in a file.

    Args:
        columns: role -> name. expected: rows at most. origin: plain data that fixes the content.
    """
    none: Any = None
    fixed = {"promised": fingerprint(jsonable(origin))}
    return KeptTable(name, none, none, dict(columns), (), np.zeros(0, dtype=np.int64), fixed, file=file, expected=expected)  # fmt: skip
