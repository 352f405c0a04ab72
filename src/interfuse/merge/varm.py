"""VaRM of FuseChat 1 (Wan et al. 2024): weights from the squared variation of each tensor."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.kit.reductions import sums
from interfuse.merge.room import Part, Whole, weighted_sum


def _weights(whole: Whole, *, statistic: str, **_: Any) -> list[float]:
    energy = sums(whole.deltas(), lambda xs: [x.square() if statistic == "square" else x.abs() for x in xs])
    total = sum(energy)
    return [e / total for e in energy] if total > 0 else [1.0 / len(energy)] * len(energy)


def _tells(weights: list[float], *, granularity: str, **_: Any) -> dict[str, Any]:
    return {"weights": weights} if granularity == "tensor" else {}


@method(scope="element", base="required", prepare=_weights, tells=_tells, temporaries=4, per_model=())
def varm(
    part: Part,
    *,
    statistic: Annotated[
        Literal["square", "absolute"],
        Field(description="variation is the mean square or the mean magnitude of the change"),
    ] = "square",
    granularity: Annotated[
        Literal["tensor", "element"], Field(description="one weight per model and tensor, or per model and element")
    ] = "tensor",
) -> Tensor:
    """``sum_j w_j theta_j`` with ``w_j`` in proportion to the variation of model j from the base (section 3.3 of version 1)."""
    assert part.base is not None
    deltas = part.deltas()
    if granularity == "tensor":
        return part.base + weighted_sum(deltas, part.facts)
    energy = torch.stack([d.square() if statistic == "square" else d.abs() for d in deltas])
    total = energy.sum(0)
    mean = torch.stack(deltas).mean(0)
    return part.base + torch.where(total > 0, (energy * torch.stack(deltas)).sum(0) / total, mean)
