"""SCE of FuseChat 2 (Wan et al. 2024): select where models differ, weigh by energy, erase minority signs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.kit.merging import Computed
from interfuse.kit.reductions import Threshold, blocks, magnitude_thresholds
from interfuse.merge.room import Part, Whole, weighted_sum


def _variance(deltas: list[Tensor]) -> Tensor:
    stacked = torch.stack(deltas).double()
    return stacked.var(dim=0, correction=0).float()


def _facts(whole: Whole, *, select_topk: float, **_: Any) -> tuple[Threshold | None, list[float]]:
    deltas = whole.deltas()
    selected: Threshold | None = None
    if select_topk < 1:
        spread = Computed(deltas, _variance)
        positive = sum(int((values[0] > 0).sum()) for _, values in blocks([spread]))
        # where every variance is 0 the models agree, and there is nothing to choose between
        selected = magnitude_thresholds([spread], int(select_topk * positive))[0] if positive else None
    energy = torch.zeros(len(deltas), dtype=torch.float64)
    for start, values in blocks(deltas):
        for i, value in enumerate(values):
            square = value.double().square()
            if selected is not None:
                square = square * selected.mask(_variance(values), start)
            energy[i] += square.sum()
    total = float(energy.sum())
    return selected, (energy / total).tolist() if total > 0 else [1.0 / len(deltas)] * len(deltas)


@method(scope="element", base="required", prepare=_facts, temporaries=8, per_model=())
def sce(
    part: Part,
    *,
    select_topk: Annotated[
        float,
        Field(gt=0, le=1, description="share kept of the elements whose variance over models is not 0; 1 keeps all"),
    ] = 0.1,
    select_scope: Annotated[
        Literal["deltas", "weights"],
        Field(description="selection masks the task vectors, or (as the FuseChat code does) only their weights"),
    ] = "deltas",
) -> Tensor:
    """``theta_0 + sum_j eta_j E_j delta_j / sum_j eta_j E_j`` over the selected elements (section 3.3)."""
    selected, eta = part.facts
    deltas = part.deltas()
    if selected is not None and select_scope == "deltas":
        mask = selected.mask(_variance(deltas), part.start)
        deltas = [d.mul_(mask) for d in deltas]
    majority = torch.stack(deltas).sum(0) >= 0
    agree = [torch.where(majority, d >= 0, d <= 0).to(d.dtype) * (d != 0) for d in deltas]
    weight = weighted_sum([a.clone() for a in agree], eta)
    total = weighted_sum([d * a for d, a in zip(deltas, agree, strict=True)], eta)
    assert part.base is not None
    return part.base + torch.where(weight > 0, total / weight, 0.0)
