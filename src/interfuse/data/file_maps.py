"""Reading a mapped file without its dangers: bytes that the system holds already are looked at where they are, not copied.

Looking at a mapped page that has no bytes, because the file was cut short or the disk failed, ends a process. So a range is asked
for first (``MADV_POPULATE_READ``, Linux 5.14), which answers with an error instead; where the system does not know the
request, files are read as files.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError

_POPULATE_READ = 22
_SEEN = 1 << 22  # bytes mapped before they are let go: what was read shall not count as this process's memory
_AHEAD = 1 << 23  # bytes asked from the disk at once


class FileMap:
    """The bytes of an open file; safe to read from several threads.

    Args:
        fd: the file; it stays open as long as this is used.
    """

    def __init__(self, fd: int) -> None:
        self._bytes: NDArray[np.uint8] | None = None
        self._seen = 0
        if _madvise() is not None:
            try:
                self._bytes = np.frombuffer(mmap.mmap(fd, 0, access=mmap.ACCESS_READ), dtype=np.uint8)
                self._first: int = self._bytes.ctypes.data
            except (OSError, ValueError):  # a file system without maps, an empty file
                self._bytes = None

    @property
    def usable(self) -> bool:
        """Whether there is a map to read from."""
        return self._bytes is not None

    def read(self, fd: int, start: int, stop: int, where: str = "") -> NDArray[np.uint8] | None:
        """Bytes ``start`` to ``stop``, read-only, uint8 [stop - start]; None where they must be read as a file is.

        Raises:
            InterfuseError: ``input.format`` if the file has become shorter.
        """
        madvise = _madvise()
        if self._bytes is None or madvise is None or stop > len(self._bytes):
            return None
        if os.fstat(fd).st_size < stop:
            raise InterfuseError("input.format", "the file is shorter than it says", where=where,
                                 fix="Fetch the file again and compare its checksum with the publisher's.")  # fmt: skip
        if not _at_hand(fd, start):
            os.posix_fadvise(fd, start, max(stop - start, _AHEAD), os.POSIX_FADV_WILLNEED)
        self._seen += stop - start
        if (
            self._seen > _SEEN
        ):  # another thread that still looks at its part gets the pages again, from the system's cache
            self._seen = 0
            madvise(self._first, len(self._bytes), mmap.MADV_DONTNEED)
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        if madvise(self._first + first, stop - first, _POPULATE_READ):
            return None  # reading says what is wrong
        return self._bytes[start:stop]


def _at_hand(fd: int, start: int) -> bool:
    """Whether the system has the byte in memory."""
    try:
        os.preadv(fd, [bytearray(1)], start, os.RWF_NOWAIT)
    except OSError:
        return False
    return True


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's ``madvise(address, length, advice)``, which lets other threads run; None if it cannot populate."""
    if sys.platform != "linux":
        return None
    try:
        call: Any = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.argtypes, call.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    page = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), dtype=np.uint8)
    return call if call(page.ctypes.data, page.nbytes, _POPULATE_READ) == 0 else None
