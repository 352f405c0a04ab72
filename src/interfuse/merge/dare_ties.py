"""DARE (Yu et al. 2024): drop most of each task vector at random and rescale the rest, then merge as TIES does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.kit.merging import disjoint_mean
from interfuse.merge.room import Part, PerModel, PerModelShare, per_model
from interfuse.merge.sparsify import drop_random, dropped, kept_and_trimmed


@method(
    scope="element",
    base="required",
    prepare=dropped,
    per_model=("weight", "density"),
    temporaries=4,
    random=True,
    remarks=kept_and_trimmed,
)
def dare_ties(
    part: Part,
    *,
    density: Annotated[PerModelShare, Field(description="share of each task vector kept, at random")] = 0.5,
    weight: Annotated[PerModel, Field(description="weight of each task vector")] = 1.0,
    scale: Annotated[float, Field(description="factor of the merged task vector (lambda)")] = 1.0,
    normalize: Annotated[bool, Field(description="divide by the weights that agree")] = True,
    rescale: Annotated[
        Literal["inverse", "l1", "none"],
        Field(description="kept changes are divided by the density, or scaled to the old sum of magnitudes, or left"),
    ] = "inverse",
) -> Tensor:
    """Equations 3 and 4 for every model, then the sign election of TIES. The mask of an element depends on the seed, the
    model and the tensor alone: not on order, blocks, threads or machine."""
    deltas = drop_random(part, per_model(density, len(part.models), "density"))
    weights = per_model(weight, len(deltas), "weight")
    assert part.base is not None
    return part.base.add(disjoint_mean(deltas, weights, normalize=normalize), alpha=scale)
