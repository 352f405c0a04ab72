"""What this process keeps of the memory it frees."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

#: freed bytes that stay with the process, and the largest block that is cut from them
KEPT = 2**30
#: the two settings in glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@functools.cache
def keep_freed() -> bool:
    """Has the C library keep up to :data:`KEPT` freed bytes, from now on; returns whether it does.

    A training step on the CPU frees what it took, every time. By default glibc gives the end of that back to the system, and taking it
    anew, page by page, may cost as much as the arithmetic on it. Nothing happens where the user has set it by environment variables
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``) or where the C library is another one.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = _in_libc("mallopt")
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, KEPT) and mallopt(M_TRIM_THRESHOLD, KEPT))


def give_back() -> bool:
    """Gives freed memory back to the system, also what lies between pieces still in use; returns whether any was.

    Of tensors of a few megabytes glibc keeps what is freed, in a heap of each thread: before work that takes much more at once, those
    heaps would stand beside it. Nothing happens where the C library is another one.
    """
    trim = _in_libc("malloc_trim")
    return trim is not None and bool(trim(0))


def _in_libc(name: str) -> Callable[..., int] | None:
    """A function of the C library, None where it has none of that name."""
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # no such function; no such library
        return None
    return found
