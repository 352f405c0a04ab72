"""Twin-Merging without its router (Lu et al. 2024): shared knowledge plus the compressed exclusive knowledge of each model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.kit.counter_random import tensor_key
from interfuse.kit.decompose import How, leading_triplets
from interfuse.merge.room import Part, PerModel, per_model, weighted_sum


@method(scope="tensor", base="optional", per_model=("weight", "exclusive_weight"), temporaries=8)
def twin(
    part: Part,
    *,
    density: Annotated[
        float, Field(gt=0, le=1, description="share of the singular triplets of exclusive knowledge kept")
    ] = 0.2,
    weight: Annotated[PerModel, Field(description="weight of each model in the shared model")] = 1.0,
    exclusive_weight: Annotated[
        PerModel | None, Field(description="weight of each exclusive part; equal, together 1, when left out")
    ] = None,
    svd: Annotated[
        How,
        Field(
            description="how the leading triplets are found; gram (by the Gram matrix) and randomised (Halko et al. 2011) are faster and nearly exact"
        ),
    ] = "exact",
) -> Tensor:
    """``theta_* + sum_i w_i SVD_r(theta_i - theta_*)``: theta_* the weighted mean, r = floor(density * min dimension)."""
    models = part.models
    count = len(models)
    shares = per_model(weight, count, "weight")
    exclusive = per_model(1.0 / count if exclusive_weight is None else exclusive_weight, count, "exclusive_weight")
    shared = weighted_sum([m.clone() for m in models], [w / sum(shares) for w in shares])
    merged = shared.clone()
    for i, (model, share) in enumerate(zip(models, exclusive, strict=True)):
        change = model - shared
        if change.ndim == 2 and density < 1:
            rank = int(density * min(part.shape))
            u, s, v = leading_triplets(change, rank, svd, tensor_key(part.seed, part.labels[i], part.name))
            change = ((u * s) @ v).float()
        merged.add_(change, alpha=share)
    return merged
