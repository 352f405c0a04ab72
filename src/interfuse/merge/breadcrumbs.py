"""Model Breadcrumbs (Davari and Belilovsky 2024): drop the largest and the smallest changes of every layer, then add."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.kit.merging import disjoint_mean
from interfuse.kit.reductions import Threshold, magnitude_thresholds
from interfuse.merge.room import Part, PerModel, PerModelPart, PerModelShare, Whole, per_model, shares, weighted_sum


def _bounds(whole: Whole, *, density: PerModel, gamma: PerModel, **_: Any) -> list[tuple[Threshold, Threshold]]:
    count, found = len(whole.models), []
    for delta, share, top in zip(
        whole.deltas(), per_model(density, count, "density"), per_model(gamma, count, "gamma"), strict=True
    ):
        if share + top > 1 + 1e-12 or share <= 0 or top < 0:
            raise InterfuseError("param.value", f"density {share} + gamma {top} is more than 1, or one is out of range",
                                 fix="density is the share kept, gamma the share of largest changes dropped.")  # fmt: skip
        size = 1
        for n in whole.shape:
            size *= n
        outliers = int(top * size)
        kept = min(max(1, int(share * size)), size - outliers)
        found.append((magnitude_thresholds([delta], outliers)[0], magnitude_thresholds([delta], outliers + kept)[0]))
    return found


@method(scope="element", base="required", prepare=_bounds, per_model=("weight", "density", "gamma"), temporaries=4)
def breadcrumbs(
    part: Part,
    *,
    density: Annotated[PerModelShare, Field(description="share of each task vector kept")] = 0.9,
    gamma: Annotated[PerModelPart, Field(description="share of the largest changes dropped")] = 0.01,
    weight: Annotated[PerModel, Field(description="weight of each task vector")] = 1.0,
    scale: Annotated[float, Field(description="factor of the summed task vectors (lambda)")] = 1.0,
    normalize: Annotated[bool, Field(description="divide the weights by their sum")] = False,
    elect: Annotated[bool, Field(description="elect a sign as TIES does and add the changes that agree")] = False,
) -> Tensor:
    """``theta_0 + lambda * sum_i w_i m_i delta_i``: m_i leaves out the top gamma and all but density of the rest (section 3)."""
    deltas = part.deltas()
    for delta, (outliers, kept) in zip(deltas, part.facts, strict=True):
        delta.masked_fill_(outliers.mask(delta, part.start), 0.0)
        kept.trim_(delta, part.start)
    weights = per_model(weight, len(deltas), "weight")
    assert part.base is not None
    if elect:
        return part.base.add(disjoint_mean(deltas, weights, normalize=normalize), alpha=scale)
    return part.base.add(weighted_sum(deltas, shares(weights, normalize)), alpha=scale)
