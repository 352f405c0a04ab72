"""Model Breadcrumbs (Davari and Belilovsky 2024): drop the largest and the smallest changes of every layer, then add."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.kit.merging import disjoint_mean
from interfuse.kit.reductions import Threshold, magnitude_thresholds
from interfuse.merge.room import Part, PerModel, PerModelPart, PerModelShare, Whole, per_model, shares, weighted_sum
from interfuse.merge.sparsify import kept_and_trimmed, l1_factors, share_of


def _bounds(
    whole: Whole, *, density: PerModel, gamma: PerModel, rescale: str, **_: Any
) -> list[tuple[Threshold, Threshold, float]]:
    count, found = len(whole.models), []
    for delta, share, top in zip(
        whole.deltas(), per_model(density, count, "density"), per_model(gamma, count, "gamma"), strict=True
    ):
        if share + top > 1 + 1e-12 or share < 0 or top < 0:
            raise InterfuseError("param.value", f"density {share} + gamma {top} is more than 1, or one is out of range",
                                 fix="density is the share kept, gamma the share of largest changes dropped.")  # fmt: skip
        size = math.prod(whole.shape)
        outliers = int(top * size)
        kept = min(share_of(size, share), size - outliers)
        found.append((magnitude_thresholds([delta], outliers)[0], magnitude_thresholds([delta], outliers + kept)[0]))
    factors = l1_factors(whole.deltas(), lambda i, values, start: _trim(values, *found[i], start), rescale)
    return [(*cuts, factor) for cuts, factor in zip(found, factors, strict=True)]


def _trim(delta: Tensor, outliers: Threshold, kept: Threshold, start: int) -> None:
    """Sets the outliers and what is not kept to zero, in place."""
    delta.masked_fill_(outliers.mask(delta, start), 0.0)
    kept.trim_(delta, start)


@method(
    scope="element",
    base="required",
    prepare=_bounds,
    per_model=("weight", "density", "gamma"),
    temporaries=4,
    remarks=kept_and_trimmed,
)
def breadcrumbs(
    part: Part,
    *,
    density: Annotated[PerModelShare, Field(description="share of each task vector kept")] = 0.9,
    gamma: Annotated[PerModelPart, Field(description="share of the largest changes dropped")] = 0.01,
    weight: Annotated[PerModel, Field(description="weight of each task vector")] = 1.0,
    scale: Annotated[float, Field(description="factor of the summed task vectors (lambda)")] = 1.0,
    normalize: Annotated[bool, Field(description="divide the weights by their sum")] = False,
    elect: Annotated[bool, Field(description="elect a sign as TIES does and add the changes that agree")] = False,
    rescale: Annotated[
        Literal["none", "l1"],
        Field(description="what is kept of a task vector is left, or scaled to its old sum of magnitudes"),
    ] = "none",
) -> Tensor:
    """``theta_0 + lambda * sum_i w_i m_i delta_i``: m_i leaves out the top gamma and all but density of the rest (section 3)."""
    deltas = part.deltas()
    for delta, (outliers, kept, factor) in zip(deltas, part.facts, strict=True):
        _trim(delta, outliers, kept, part.start)
        if factor != 1.0:
            delta *= factor
    weights = per_model(weight, len(deltas), "weight")
    assert part.base is not None
    if elect:
        return part.base.add(disjoint_mean(deltas, weights, normalize=normalize), alpha=scale)
    return part.base.add(weighted_sum(deltas, shares(weights, normalize)), alpha=scale)
