"""The one place that touches PyTorch's global generator: library code that draws from it is fenced in here."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from interfuse.core.ctx import Ctx
from interfuse.core.lazy import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")

#: the generators belong to the process: one thread at a time is behind the fence, so that two trainings beside each other draw what each draws alone
_FENCE = threading.RLock()


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Behind the fence, Python's and NumPy's global generators as they were."""
    with _FENCE:
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds PyTorch's global generators inside the block (weight initialisation, dropout) and restores them after it.

    Python's and NumPy's global generators are restored as well: loading a library may draw from them.
    """
    with _restored():  # before torch is loaded
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restores the global generators after a library was loaded that may draw from them; PyTorch's only if it is there already."""
    if "torch" in sys.modules:
        with seeded(0):
            yield
        return
    with _restored():
        yield


def generator(ctx: Ctx, name: str, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh PyTorch generator for a named purpose of a run."""
    return torch.Generator(device=device).manual_seed(ctx.seed_for(name))
