"""Arcee Fusion: take over only the changes whose importance stands out."""

from __future__ import annotations

import torch
from torch import Tensor

from interfuse.core.method import method
from interfuse.merge.room import Part


@method(scope="tensor", base="none", models=(2, 2), ordered=True, temporaries=12)
def arcee_fusion(part: Part) -> Tensor:
    """Importance ``|b - a| * KL(softmax(b) || softmax(a))`` per row; changes above ``median + 1.5 IQR`` are taken from b. In float64:
    of small changes the divergence is their square, below float32's last digit."""
    a, b = part.models
    shape = a.shape
    rows_a, rows_b = (x.double().reshape(-1, shape[-1]) if x.ndim else x.double().reshape(1, 1) for x in (a, b))
    log_a, log_b = torch.log_softmax(rows_a, dim=-1), torch.log_softmax(rows_b, dim=-1)
    divergence = (log_b.exp() * (log_b - log_a)).sum(dim=-1, keepdim=True).clamp(min=0)
    importance = ((rows_b - rows_a).abs() * divergence).reshape(-1)
    ordered = torch.sort(importance).values

    def quantile(q: float) -> Tensor:
        place = q * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    bound = quantile(0.5) + 1.5 * (quantile(0.75) - quantile(0.25))
    return torch.where((importance >= bound).reshape(shape), b, a)
