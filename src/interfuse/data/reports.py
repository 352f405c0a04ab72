"""Reports: what a measurement makes. A folder with ``report.json``, ``items.parquet``, ``plots/*.csv`` and ``report.html``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import file_sha256, fingerprint, read_text

#: the largest ``report.json`` that is read, in bytes
LIMIT = 2**28


@dataclass(frozen=True)
class Report:
    """A report that may not have been written yet.

    Attributes:
        name: how other reports call it. path: its folder.
        made_by, parents, key: the step that makes it, what that step takes, and the step's key (see ``core.run``).
    """

    name: str
    path: Path | None = None
    made_by: str = ""
    parents: tuple[Any, ...] = field(default=(), repr=False)
    key: str = ""

    def fingerprint(self) -> str:
        """The key of the step that makes it, or the digest of its figures."""
        if self.key:
            return self.key
        file = self._file
        return file_sha256(file) if file is not None and file.is_file() else fingerprint({"report": self.name})

    def read(self) -> dict[str, Any]:
        """All figures: the content of ``report.json``.

        Raises:
            InterfuseError: ``input.missing`` when it has not been written, ``input.format`` when it is damaged.
        """
        if self._file is None:
            raise InterfuseError("input.missing", "the report has no folder", where=self.name)
        try:
            value = json.loads(read_text(self._file, limit=LIMIT))
        except (ValueError, RecursionError) as error:
            raise InterfuseError("input.format", "the file is not valid JSON", where=str(self._file)) from error
        if not isinstance(value, dict):
            raise InterfuseError("input.format", "the file is not a report", where=str(self._file))
        return value

    @property
    def _file(self) -> Path | None:
        return None if self.path is None else self.path / "report.json"
