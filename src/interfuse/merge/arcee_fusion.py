"""Arcee Fusion: take over only the changes whose importance stands out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.kit.reductions import kth_smallest_of
from interfuse.merge.room import Part, Whole

_PASS = 1 << 17  # numbers read at a time: at least one row


class _Facts(NamedTuple):
    """Divergence of every row, float64 [rows, 1], and the importance from which on a change is taken over."""

    divergence: Tensor
    bound: float


def _importance(a: Tensor, b: Tensor, divergence: Tensor) -> Tensor:
    """``|b - a|`` times the row's divergence, float64 [rows, columns]."""
    return (b.double() - a.double()).abs_().mul_(divergence)


def _divergence(a: Tensor, b: Tensor) -> Tensor:
    """``KL(softmax(b) || softmax(a))`` of every row, float64 [rows, 1]."""
    log_a, log_b = torch.log_softmax(a.double(), dim=-1), torch.log_softmax(b.double(), dim=-1)
    return (log_b.exp() * (log_b - log_a)).sum(dim=-1, keepdim=True).clamp(min=0)


def _rows(whole: Whole) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number of the first row and whole rows of both models, float32 [r, columns]."""
    size, columns = math.prod(whole.shape), whole.shape[-1] if whole.shape else 1
    step = max(_PASS // max(columns, 1), 1) * columns
    for start in range(0, size, max(step, 1)):
        a, b = (m.read(start, min(start + step, size)).view(-1, columns) for m in whole.models)
        for i, values in enumerate((a, b)):
            if not np.isfinite(values.numpy()).all():
                raise InterfuseError("input.nan", f"model {whole.labels[i][:12]} holds NaN or infinity")
        yield start // columns, a, b


def _facts(whole: Whole, **_: Any) -> _Facts:
    size = math.prod(whole.shape)
    if not size:
        return _Facts(torch.empty(0, 1, dtype=torch.float64), 0.0)
    divergence = torch.empty(size // (whole.shape[-1] if whole.shape else 1), 1, dtype=torch.float64)
    for first, a, b in _rows(
        whole
    ):  # into one piece of memory: many small ones would keep what is freed between them from being used
        divergence[first : first + len(a)] = _divergence(a, b)

    def importances() -> Iterator[NDArray[np.float64]]:
        for first, a, b in _rows(whole):
            yield _importance(a, b, divergence[first : first + len(a)]).view(-1).numpy()

    places = [q * (size - 1) for q in (0.25, 0.5, 0.75)]
    ranks = [rank for place in places for rank in (int(place), min(int(place) + 1, size - 1))]
    found = kth_smallest_of(importances, ranks)
    low, middle, high = (
        found[2 * i] + (place - int(place)) * (found[2 * i + 1] - found[2 * i]) for i, place in enumerate(places)
    )
    return _Facts(divergence, middle + 1.5 * (high - low))


@method(scope="row", base="none", models=(2, 2), ordered=True, prepare=_facts, temporaries=6)
def arcee_fusion(part: Part) -> Tensor:
    """Importance ``|b - a| * KL(softmax(b) || softmax(a))`` per row; changes above ``median + 1.5 IQR`` are taken from b. In float64:
    of small changes the divergence is their square, below float32's last digit."""
    facts: _Facts = part.facts
    columns = part.shape[-1] if part.shape else 1
    a, b = (m.reshape(-1, columns) for m in part.models)
    first = part.start // columns
    taken = _importance(a, b, facts.divergence[first : first + len(a)]) >= facts.bound
    return torch.where(taken, b, a).reshape(part.models[0].shape)
