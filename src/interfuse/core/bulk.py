"""Making many small objects that stay."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def bulk() -> Iterator[None]:
    """While it is open, the collector of cycles waits: it would look through everything made so far again and again. Also a decorator.

    Memory of objects outside cycles is given back as always. The collector is switched on again only by the one that switched it off.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
