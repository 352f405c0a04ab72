"""What methods tell of each tensor: the weights and factors they have computed from it, for ``merge.json`` and ``merge explain``."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from interfuse.core.safe import writing_errors
from interfuse.kit.streaming import Job


def as_given(told: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """What a method tells, with lists for the models in the order the models were given in, and nine digits of every number.

    Args:
        told: name -> a number, or one per model as the method saw them. order: the place of each of those as given.
    """
    found: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, list | tuple):
            numbers = [0.0] * len(order)
            for place, number in zip(order, value, strict=True):
                numbers[place] = float(f"{number:.9g}")
            found[name] = numbers
        else:
            found[name] = float(f"{value:.9g}")
    return found


class Told:
    """Keeps what is told line by line in a file, so that a merge that goes on tells of what was done before too.

    Args:
        path: the file, beside the journal. known: the tensors that were done before; what the file says of others is forgotten.
    """

    def __init__(self, path: Path, known: Collection[str]) -> None:
        self.found: dict[str, Mapping[str, Any]] = {}
        self._lock = threading.Lock()
        with writing_errors(path):
            for line in path.read_bytes().splitlines() if path.is_file() else ():
                try:
                    name, told = json.loads(line)
                except ValueError:
                    break  # torn: what follows is told again
                if name in known:
                    self.found[name] = told
            self._file = path.open("w", encoding="utf-8")
            self._path = path
            for name, told in self.found.items():
                self._write(name, told)

    def __enter__(self) -> Told:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __call__(self, name: str, told: Mapping[str, Any]) -> None:
        """Notes what is told of a tensor; called from any thread, before the tensor is done."""
        with self._lock, writing_errors(self._path):
            self.found[name] = told
            self._write(name, told)

    def complete(self, jobs: Sequence[Job]) -> None:
        """Prepares the tensors again of which a kill has lost what was told."""
        for job in jobs:
            if job.prepare is not None and job.name not in self.found:
                job.prepare(job.sources)

    def _write(self, name: str, told: Mapping[str, Any]) -> None:
        self._file.write(json.dumps([name, told]) + "\n")
        self._file.flush()
