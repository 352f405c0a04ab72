"""A process that reads files for another one, so that a hostile file costs its time and memory at most.

The other side sends one line of JSON per file (name, path, limits) and gets one line back with the documents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from interfuse.core.errors import InterfuseError
from interfuse.data.corpus import Document, Element, Skipped
from interfuse.data.loaders.layout import Limits


class Reader:
    """The near side: starts the process when it is first needed, and again when it had to be ended."""

    def __init__(self, limits: Limits, reader: str = "light") -> None:
        self.limits, self.reader = limits, reader
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listening: threading.Thread | None = None

    def read(self, name: str, path: Path) -> Iterator[Document | Skipped]:
        """What :func:`~interfuse.data.loaders.reading.read` gives for a file, within the limits of time and memory."""
        for row in self._rows(name, path):
            yield Skipped(**row["skipped"]) if "skipped" in row else from_row(row)

    def _rows(self, name: str, path: Path, *, size: bool = False) -> list[dict[str, Any]]:
        """The answer to a job."""
        process = self._process if self._process is not None and self._process.poll() is None else self._start()
        job = {"name": name, "path": str(path), "limits": dataclasses.asdict(self.limits), "reader": self.reader, "size": size}  # fmt: skip
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            line = self._line()
        except OSError:
            line = b""
        if line:
            rows: list[dict[str, Any]] = json.loads(line)
            return rows
        self.close()
        why = f"reading it takes more than {self.limits.seconds:g} seconds"
        if line is not None:
            why = f"its reader ended: damaged, or more than {self.limits.memory} bytes of memory"
        return [{"skipped": vars(Skipped(name, "input.limit", why))}]

    def size(self, name: str, path: Path) -> tuple[int, int] | None:
        """What :func:`~interfuse.data.loaders.sizes.text_size` says of a file, or None when it cannot be looked into."""
        (row,) = self._rows(name, path, size=True)
        return None if "skipped" in row else (int(row["documents"]), int(row["characters"]))

    def _start(self) -> subprocess.Popen[bytes]:
        keep = (
            "PATH",
            "PYTHONPATH",
            "HOME",
            "LANG",
            "LC_ALL",
            "SYSTEMROOT",
            "LD_LIBRARY_PATH",
            "VIRTUAL_ENV",
            "HF_HOME",
            "HF_HUB_OFFLINE",
            "XDG_CACHE_HOME",
            "DOCLING_ARTIFACTS_PATH",
        )
        environment = {k: v for k, v in os.environ.items() if k in keep}
        environment["HF_HUB_OFFLINE"] = "1"  # reading a file downloads nothing
        self._process = subprocess.Popen(
            [sys.executable, "-m", "interfuse.data.loaders.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**environment, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        self._lines = queue.SimpleQueue()
        self._listening = threading.Thread(target=_listen, args=(self._process.stdout, self._lines), daemon=True)
        self._listening.start()
        return self._process

    def _line(self) -> bytes | None:
        """One line, empty when the process has ended, None when the time is over."""
        try:  # starting and sending take some
            return self._lines.get(timeout=max(0.0, self.limits.seconds + 5))
        except queue.Empty:
            return None

    def close(self) -> None:
        """Ends the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # a job that nobody read
                self._process.stdin.close()
        if self._listening is not None:
            self._listening.join(1)  # longer only when something that a library started holds the pipe
        self._process = self._listening = None


def _listen(answers: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Hands on the answers of a process, then an empty line. A thread does so since no pipe can be waited for on Windows."""
    with answers:
        for line in answers:
            if line.endswith(b"\n"):  # not what is left of an answer when the process ends within it
                lines.put(line)
    lines.put(b"")


def to_row(document: Document) -> dict[str, Any]:
    """A document as plain JSON."""
    row = {k: v for k, v in vars(document).items() if v}
    row["elements"] = [
        [e.id, e.kind, e.start, e.end, e.level, e.page, e.place, e.parent, list(e.box), e.column]
        for e in document.elements
    ]
    return row


def from_row(row: dict[str, Any]) -> Document:
    """The inverse of :func:`to_row`."""
    elements = tuple(
        Element(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], tuple(e[8]), e[9]) for e in row.get("elements", ())
    )
    rest = {k: v for k, v in row.items() if k not in ("elements", "links", "data")}
    return Document(
        **rest,
        elements=elements,
        links=tuple((a, b, t) for a, b, t in row.get("links", ())),
        data=tuple(row.get("data", ())),
    )


def _limit_memory(memory: int) -> None:
    try:
        import resource

        from_start = (
            int(
                next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmData")).split()[1]
            )
            * 1024
        )
        resource.setrlimit(resource.RLIMIT_DATA, (from_start + memory, from_start + memory))
    except (ImportError, OSError, ValueError, StopIteration):
        pass  # a system without such limits: time still holds


def main() -> None:
    """The far side: reads jobs from its input until that ends."""
    from interfuse.data.loaders.reading import read

    limited = False
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    for line in sys.stdin.buffer:
        job = json.loads(line)
        limits = Limits(**job["limits"])
        if not limited:
            _limit_memory(limits.memory)
            limited = True
        rows: list[dict[str, Any]] = []
        try:
            data = Path(job["path"]).read_bytes()
            if job.get("size"):
                from interfuse.data.loaders.sizes import text_size

                documents, characters = text_size(job["name"], data, limits, job["reader"])
                rows.append({"documents": documents, "characters": characters})
            else:
                for found in read(job["name"], data, limits, reader=job.get("reader", "light")):
                    rows.append({"skipped": vars(found)} if isinstance(found, Skipped) else to_row(found))
            answer = json.dumps(rows).encode()
        except MemoryError:
            answer = json.dumps(
                [{"skipped": vars(Skipped(job["name"], "input.limit", "reading it takes too much memory"))}]
            ).encode()
        except (OSError, InterfuseError) as error:
            answer = json.dumps([{"skipped": vars(Skipped(job["name"], "input.missing", str(error)))}]).encode()
        except Exception as error:
            answer = json.dumps(
                [{"skipped": vars(Skipped(job["name"], "input.format", f"{type(error).__name__}: {error}"[:300]))}]
            ).encode()
        out.write(answer + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
