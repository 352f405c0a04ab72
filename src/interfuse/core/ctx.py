"""The context of a run: seed, device, dtype, cache, budget, log. It is passed, never global."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from interfuse.core.errors import InterfuseError


class Bar(Protocol):
    """Something that shows progress; ``advance`` is called with units done since the last call."""

    def advance(self, amount: float = 1.0, note: str = "") -> None: ...


class _Silent:
    def advance(self, amount: float = 1.0, note: str = "") -> None:
        pass


@contextlib.contextmanager
def _no_progress(label: str, total: float, unit: str) -> Iterator[Bar]:
    yield _Silent()


@dataclass
class Budget:
    """What a run may spend. None means no limit. Spending past it raises ``budget.spent`` before the work."""

    calls: float | None = None
    tokens: float | None = None
    seconds: float | None = None
    spent: dict[str, float] = field(default_factory=dict)

    def spend(self, **amounts: float) -> None:
        for kind, amount in amounts.items():
            limit = getattr(self, kind)
            total = self.spent.get(kind, 0.0) + amount
            if limit is not None and total > limit:
                raise InterfuseError(
                    "budget.spent",
                    f"{total:g} {kind} would be spent, the budget is {limit:g}",
                    fix="Raise the budget, or take fewer items; what is paid for is kept.",
                )
            self.spent[kind] = total


@dataclass(frozen=True)
class Ctx:
    """What a method may use besides its inputs.

    Attributes:
        seed: the one number all randomness comes from.
        device: ``auto``, ``cpu``, ``cuda``, ``mps`` or an exact device name.
        dtype: the floating type models compute in: ``float32``, ``bfloat16``, ``float16`` or ``float64``.
        cache: a folder for results that can be made again (teacher caches, statistics).
        scratch: a folder for the state of unfinished work, so that it can be resumed; None: nothing is kept.
        budget: what may be spent.
        log: called with one line of text per event.
        bar: opens a progress bar ``bar(label, total, unit)``.
    """

    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    cache: Path = Path("~/.cache/interfuse")
    scratch: Path | None = None
    budget: Budget = field(default_factory=Budget)
    log: Callable[[str], None] = field(default=lambda line: None)
    bar: Callable[[str, float, str], contextlib.AbstractContextManager[Bar]] = _no_progress

    def seed_for(self, name: str) -> int:
        """A 63-bit seed for a named purpose; the same seed and name give the same number on every machine."""
        digest = hashlib.blake2b(f"{self.seed}\0{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def rng(self, name: str) -> np.random.Generator:
        """A fresh NumPy generator for a named purpose (Philox, counter-based)."""
        return np.random.Generator(np.random.Philox(self.seed_for(name)))

    def with_(self, **changes: Any) -> Ctx:
        """A copy with some fields changed."""
        return replace(self, **changes)
