"""What can be done for a file while the rest of it is still being computed: its bytes sent to the disk, and its digest.

The blocks of a file are written in nearly their order. Each is hashed when those before it have been (a block that comes early is held
until then, a few are), and a thread asks the system to store what has been written, so that little is left to do when the
last block is there.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import xxhash

#: bytes of early blocks that are held for a file; others are read back when their turn comes
_HELD = 1 << 25
_SPAN = 1 << 22  # bytes read back at a time
_FLUSH = 1 << 27  # bytes written before the disk is asked to store them
#: Files of fewer bytes in all are done so fast that a thread does not pay.
LEAST = 1 << 26


@dataclass(slots=True)
class _File:
    """How far one file has come."""

    fd: int
    size: int
    upto: int  # bytes hashed
    digest: Any
    #: early blocks: first byte -> one past the last, and the bytes if they are held
    early: dict[int, tuple[int, bytes | None]] = field(default_factory=dict)
    held: int = 0
    unsent: int = 0


class WriteBehind:
    """Follows the writing of some files.

    Args:
        files: name -> (descriptor, the header as it will be, size in bytes), in the order in which they are written.
    """

    def __init__(self, files: Mapping[str, tuple[int, bytes, int]]) -> None:
        self._files = {
            name: _File(fd, size, len(header), xxhash.xxh3_128(header)) for name, (fd, header, size) in files.items()
        }
        self._changed = threading.Condition()
        self._stop = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._send, daemon=True) if sys.platform == "linux" else None
        if self._thread is not None:
            self._thread.start()

    def wrote(self, name: str, start: int, stop: int, data: memoryview | None = None) -> None:
        """Bytes ``start`` to ``stop`` of a file are in place; safe to call from several threads.

        Args:
            data: the bytes, if they are at hand.
        """
        file = self._files[name]
        with self._changed:
            if start == file.upto:
                self._hash(file, stop, data)
            elif data is not None and file.held + len(data) <= _HELD:
                file.early[start] = stop, bytes(data)
                file.held += len(data)
            else:
                file.early[start] = stop, None
            while file.upto in file.early:
                end, held = file.early.pop(file.upto)
                file.held -= len(held or b"")
                self._hash(file, end, held)
            file.unsent += stop - start
            if file.unsent >= _FLUSH:
                self._changed.notify_all()

    def finish(self) -> dict[str, str]:
        """Every byte must have been written.

        Returns:
            name -> ``xxh3:`` and the XXH3-128 of the whole file with its final header; without the files that could not be read back.

        Raises:
            OSError: the disk refused what was sent to it earlier.
        """
        self.cancel()
        if self._error is not None:
            raise self._error
        return {name: f"xxh3:{f.digest.hexdigest()}" for name, f in self._files.items() if f.upto == f.size}

    def cancel(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _hash(self, file: _File, stop: int, data: memoryview | bytes | None) -> None:
        """Adds the next bytes to the digest; without a digest where they cannot be read back."""
        if data is not None:
            file.digest.update(data)
            file.upto = stop
            return
        while file.upto < stop:
            try:
                piece = os.pread(file.fd, min(_SPAN, stop - file.upto), file.upto)
            except OSError:
                piece = b""
            file.digest.update(piece)
            file.upto = file.upto + len(piece) if piece else file.size + 1

    def _send(self) -> None:
        while True:
            with self._changed:
                while not self._stop and max((f.unsent for f in self._files.values()), default=0) < _FLUSH:
                    self._changed.wait()
                if self._stop:
                    return
                file = max(self._files.values(), key=lambda f: f.unsent)
                file.unsent = 0
            try:
                os.fdatasync(file.fd)
            except OSError as error:  # the system tells it once: it must not get lost
                self._error = error
                return
