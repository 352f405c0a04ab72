"""SCE of FuseChat 2 (Wan et al. 2024): select where models differ, weigh by energy, erase minority signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.kit.merging import Computed, disjoint_mean
from interfuse.kit.reductions import Threshold, blocks, magnitude_thresholds
from interfuse.merge.room import Part, Whole


def _variance(deltas: list[Tensor]) -> Tensor:
    """The variance over models of each element, float32."""
    if len(deltas) == 2:  # a quarter of the squared distance
        return (deltas[0] - deltas[1]).mul_(0.5).square_()
    numbers = [delta.double() for delta in deltas]
    mean = numbers[0].clone()
    for number in numbers[1:]:
        mean.add_(number)
    mean.div_(len(numbers))
    total = numbers[0].sub_(mean).square_()
    for number in numbers[1:]:
        total.add_(number.sub_(mean).square_())
    return total.div_(len(numbers)).float()


def _noted(owns: Sequence[Mapping[str, Any]], same: bool) -> list[str]:
    """What the report says of models that do not differ."""
    if not same or all(own["select_topk"] == 1 for own in owns):
        return []
    degenerate = owns[0]["degenerate"]
    kept = "every element is kept" if degenerate == "keep" else "nothing is selected, the result is the base"
    return [f"all models are the same, so that no variance tells elements apart: {kept} (degenerate: {degenerate})"]


def _facts(whole: Whole, *, select_topk: float, degenerate: str, **_: Any) -> tuple[Threshold | None, list[float]]:
    deltas = whole.deltas()
    selected: Threshold | None = None
    if select_topk < 1:
        spread = Computed(deltas, _variance)
        positive = sum(int(np.count_nonzero(values[0].numpy() > 0)) for _, values in blocks([spread]))
        # where every variance is 0 the models agree, and there is nothing to choose between
        if positive or degenerate == "pivot":
            selected = magnitude_thresholds([spread], int(select_topk * positive))[0]
    energy = torch.zeros(len(deltas), dtype=torch.float64)
    for start, values in blocks(deltas):
        mask = selected.trim_(_variance(values), start).sign_() if selected is not None else None
        for i, value in enumerate(values):
            if mask is not None:
                value.mul_(mask)
            energy[i] += value.double().square_().sum()
    total = float(energy.sum())
    return selected, (energy / total).tolist() if total > 0 else [1.0 / len(deltas)] * len(deltas)


def _tells(facts: tuple[Threshold | None, list[float]], **_: Any) -> dict[str, Any]:
    return {"weights": facts[1]}


@method(scope="element", base="required", prepare=_facts, tells=_tells, temporaries=8, per_model=(), remarks=_noted)
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
    degenerate: Annotated[
        Literal["keep", "pivot"],
        Field(
            description="a tensor whose elements all have variance 0: keep them all, or none, which leaves the base (as the authors' code)"
        ),
    ] = "keep",
) -> Tensor:
    """``theta_0 + sum_j eta_j E_j delta_j / sum_j eta_j E_j`` over the selected elements (section 3.3)."""
    selected, eta = part.facts
    deltas = part.deltas()
    if selected is not None and select_scope == "deltas":
        mask = selected.trim_(_variance(deltas), part.start).sign_()
        deltas = [d.mul_(mask) for d in deltas]
    assert part.base is not None
    return part.base + disjoint_mean(deltas, eta, ballots=[1.0] * len(deltas))
