"""What can be done for a file while the rest of it is still being computed: its bytes sent to the disk, and its SHA-256.

The blocks of a file are written in nearly their order. One thread reads the complete beginning back and hashes it, another asks the
system to store what has been written, so that little is left to do when the last block is there.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Mapping

_SPAN = 1 << 23  # bytes hashed at a time: few calls that need the interpreter
_FLUSH = 1 << 27  # bytes written before the disk is asked to store them
#: Files of fewer bytes in all are done so fast that threads do not pay.
LEAST = 1 << 26


class WriteBehind:
    """Follows the writing of some files.

    Args:
        files: name -> (descriptor, the header as it will be, size in bytes), in the order in which they are written.
    """

    def __init__(self, files: Mapping[str, tuple[int, bytes, int]]) -> None:
        self._files = dict(files)
        self._upto = {name: len(header) for name, (_, header, _) in files.items()}
        self._later: dict[str, dict[int, int]] = {name: {} for name in files}
        self._unsent: dict[str, int] = dict.fromkeys(files, 0)
        self._digests: dict[str, str] = {}
        self._changed = threading.Condition()
        self._stop = self._last = False
        self._error: OSError | None = None
        self._threads = [threading.Thread(target=self._hash, daemon=True)]
        if sys.platform == "linux":
            self._threads.append(threading.Thread(target=self._send, daemon=True))
        for thread in self._threads:
            thread.start()

    def wrote(self, name: str, start: int, stop: int) -> None:
        """Bytes ``start`` to ``stop`` of a file are in place; safe to call from several threads."""
        with self._changed:
            later = self._later[name]
            later[start] = stop
            before = self._upto[name]
            while self._upto[name] in later:
                self._upto[name] = later.pop(self._upto[name])
            self._unsent[name] += stop - start
            whole = self._upto[name] == self._files[name][2]
            ahead = self._upto[name] // _SPAN > before // _SPAN
            if ahead or whole or self._unsent[name] >= _FLUSH:
                self._changed.notify_all()

    def finish(self) -> dict[str, str]:
        """Waits for the hashes; every byte must have been written.

        Returns:
            name -> SHA-256 of the whole file with its final header; without the files that could not be read back.

        Raises:
            OSError: the disk refused what was sent to it earlier.
        """
        with self._changed:
            self._last = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return self._digests

    def cancel(self) -> None:
        """Ends the threads without a result."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _hash(self) -> None:
        view = memoryview(bytearray(_SPAN))
        for name, (fd, header, size) in self._files.items():
            digest, done = hashlib.sha256(header), len(header)
            while done < size:
                with self._changed:
                    while self._upto[name] < min(done + _SPAN, size) and not (self._stop or self._last):
                        self._changed.wait()
                    ready = min(self._upto[name], done + _SPAN)
                    if self._stop or (self._last and ready <= done):
                        return
                part = view[: ready - done]
                try:
                    if not _read(fd, part, done):
                        return
                except OSError:
                    return  # hashed later by whoever needs it
                digest.update(part)
                done = ready
            self._digests[name] = digest.hexdigest()

    def _send(self) -> None:
        while True:
            with self._changed:
                while not (self._stop or self._last) and max(self._unsent.values(), default=0) < _FLUSH:
                    self._changed.wait()
                if self._stop or self._last:
                    return
                name = max(self._unsent, key=lambda n: self._unsent[n])
                self._unsent[name] = 0
            try:
                os.fdatasync(self._files[name][0])
            except OSError as error:  # the system tells it once: it must not get lost
                self._error = error
                return


def _read(fd: int, view: memoryview, offset: int) -> bool:
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            return False
        done += got
    return True
