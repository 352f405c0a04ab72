"""DELLA-Merging (Deep et al. 2024): drop changes at random, small ones more often than large ones, then merge as TIES does."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.kit.merging import disjoint_mean
from interfuse.merge.room import Part, PerModel, PerModelPart, PerModelShare, per_model, shares, weighted_sum
from interfuse.merge.sparsify import kept_and_trimmed


@method(
    scope="row",
    base="required",
    per_model=("weight", "density", "epsilon"),
    temporaries=8,
    random=True,
    remarks=kept_and_trimmed,
)
def della(
    part: Part,
    *,
    density: Annotated[PerModelShare, Field(description="mean share of each task vector kept")] = 0.5,
    epsilon: Annotated[
        PerModelPart,
        Field(description="the smallest change is kept with density - epsilon, the largest with density + epsilon"),
    ] = 0.1,
    weight: Annotated[PerModel, Field(description="weight of each task vector")] = 1.0,
    scale: Annotated[float, Field(description="factor of the merged task vector (lambda)")] = 1.0,
    normalize: Annotated[bool, Field(description="divide by the weights that agree")] = True,
    elect: Annotated[bool, Field(description="elect a sign as TIES does; off: add all changes")] = True,
    rescale: Annotated[
        Literal["inverse", "l1", "none"],
        Field(
            description="kept changes are divided by their probability, or a row is scaled to its old sum of magnitudes"
        ),
    ] = "inverse",
) -> Tensor:
    """MagPrune: in each row the keep probability rises linearly with the rank of the magnitude (section 3.1)."""
    densities = per_model(density, len(part.models), "density")
    spreads = per_model(epsilon, len(part.models), "epsilon")
    randoms = [part.random(i) for i in range(len(part.models))]
    deltas = part.deltas()
    for delta, keep, spread, random in zip(deltas, densities, spreads, randoms, strict=True):
        if keep == 0:
            delta.zero_()
            continue
        if keep - spread <= 0 or keep + spread > 1 or spread < 0:
            raise InterfuseError(
                "param.value", f"density {keep} - epsilon {spread} must be above 0, their sum at most 1"
            )
        rows = delta if delta.ndim > 1 else delta.unsqueeze(0)
        width = rows.shape[-1]
        rank = torch.argsort(torch.argsort(rows.abs(), dim=-1, stable=True), dim=-1).float() / max(width - 1, 1)
        probability = (keep - spread) + rank * (2 * spread)
        mask = random.view(rows.shape) < probability
        before = rows.abs().sum(-1, keepdim=True)
        rows.mul_(mask)
        if rescale == "inverse":
            rows.div_(probability)
        elif rescale == "l1":
            after = rows.abs().sum(-1, keepdim=True)
            rows.mul_(torch.where(after > 0, before / after, 1.0))
    assert part.base is not None
    weights = per_model(weight, len(deltas), "weight")
    if elect:
        return part.base.add(disjoint_mean(deltas, weights, normalize=normalize), alpha=scale)
    return part.base.add(weighted_sum(deltas, shares(weights, normalize)), alpha=scale)
