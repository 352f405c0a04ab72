"""How many threads a computation should use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

#: below this many parameters, waiting for a second thread costs more than it gives
SMALL = 4_000_000


@contextlib.contextmanager
def threads_for(parameters: int) -> Iterator[None]:
    """One thread for small models, PyTorch's own choice for others; restored afterwards.

    With one thread a small model also gives the same bytes on machines with different numbers of cores.
    """
    before = torch.get_num_threads()
    if parameters < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
