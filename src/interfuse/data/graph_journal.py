"""One writer at a time, and operations on disk as soon as they are made.

While a graph is open for writing, each operation is appended to a hidden file beside its folder and synced; ``commit`` writes
the folder anew in one step. A process that dies in between loses nothing that was said: the next writer goes on from the file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from interfuse.core.artifact import lock
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import writing_errors
from interfuse.data.graph_files import read_lines, read_meta
from interfuse.data.graph_log import Op


class Journal:
    """The operations since the last commit of a graph's folder.

    Raises:
        InterfuseError: ``output.busy`` when another writer has it, ``output.write`` when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = _file(path)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(lock(path.parent / f"{path.name}.writer"))

    def unfinished(self, digest: str) -> Iterator[Op]:
        """What an earlier writer said after the state with this digest; a torn last line is dropped from the file."""
        if not self.file.is_file():
            self._begin(digest)
            return
        with writing_errors(self.file):
            data = self.file.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                with self.file.open("r+b") as file:
                    file.truncate(len(whole))
        rows = list(read_lines(self.file, torn=True)) if whole else []
        if not rows or rows[0][1].get("after") != digest:  # of an older state: its commit was finished
            self._begin(digest)
            return
        for place, row in rows[1:]:
            try:
                yield Op.of_json(row)
            except InterfuseError as error:
                raise InterfuseError(error.code, error.what, where=place) from error

    def _begin(self, digest: str) -> None:
        from interfuse.core.safe import write_atomic

        write_atomic(self.file, _head(digest) + b"\n")

    def append(self, op: Op) -> None:
        """Writes one operation and waits until it is on the disk."""
        line = json.dumps(op.as_json(), ensure_ascii=False, sort_keys=True) + "\n"
        with writing_errors(self.file), self.file.open("ab") as file:
            start = file.tell()
            try:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(start)
                raise

    def drop(self, digest: str) -> None:
        """Forgets the operations: they stand in the folder now."""
        self._begin(digest)

    def close(self, *, keep: bool = True) -> None:
        """Gives up the right to write; ``keep`` leaves the file for the next writer."""
        if not keep:
            with contextlib.suppress(OSError):
                self.file.unlink()
        self._stack.close()


def waiting(path: Path) -> int:
    """How many operations on a graph's folder wait for their commit, whoever wrote them."""
    file = _file(path)
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    return len(lines) - 2 if len(lines) > 2 and lines[0] == _head(str(read_meta(path).get("log"))) else 0


def _head(digest: str) -> bytes:
    return json.dumps({"after": digest}).encode()


def _file(path: Path) -> Path:
    return path.parent / f".{path.name}.journal"
