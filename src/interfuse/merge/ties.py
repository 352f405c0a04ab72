"""TIES-Merging (Yadav et al. 2023): trim small changes, elect a sign, average the changes that agree with it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.kit.merging import disjoint_mean
from interfuse.kit.reductions import Threshold
from interfuse.merge.room import Part, PerModel, PerModelShare, Whole, per_model
from interfuse.merge.sparsify import trim_thresholds


def _thresholds(whole: Whole, *, density: PerModel, **_: Any) -> list[Threshold]:
    return trim_thresholds(whole, per_model(density, len(whole.models), "density"))


@method(scope="element", base="required", prepare=_thresholds, per_model=("weight", "density"), temporaries=4)
def ties(
    part: Part,
    *,
    density: Annotated[PerModelShare, Field(description="share of each task vector kept, by magnitude")] = 0.2,
    weight: Annotated[PerModel, Field(description="weight of each task vector")] = 1.0,
    scale: Annotated[float, Field(description="factor of the merged task vector (lambda)")] = 1.0,
    normalize: Annotated[bool, Field(description="divide by the weights that agree; off: their plain sum")] = True,
) -> Tensor:
    """``theta_0 + lambda * mean of the trimmed changes with the elected sign`` (algorithm 1); trimming per tensor."""
    deltas = part.deltas()
    for delta, threshold in zip(deltas, part.facts, strict=True):
        threshold.trim_(delta, part.start)
    merged = disjoint_mean(deltas, per_model(weight, len(deltas), "weight"), normalize=normalize)
    assert part.base is not None
    return part.base.add(merged, alpha=scale)
