"""Twin-Merging without its router (Lu et al. 2024): shared knowledge plus the compressed exclusive knowledge of each model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.data.weights import Flat
from interfuse.kit.counter_random import tensor_key
from interfuse.kit.decompose import How, short_side, squares, times
from interfuse.kit.merging import Computed
from interfuse.merge.room import Part, PerModel, Whole, per_model, weighted_sum


def _shared(models: Sequence[Tensor], weight: PerModel) -> Tensor:
    """The weighted mean of the models."""
    weights = per_model(weight, len(models), "weight")
    return weighted_sum([m.clone() for m in models], [w / sum(weights) for w in weights])


def _own(models: Sequence[Tensor], i: int, weight: PerModel) -> Tensor:
    """What one model has beyond it."""
    return models[i] - _shared(models, weight)


def _exclusive(
    whole: Whole, *, density: float, weight: PerModel, svd: str, **_: Any
) -> list[tuple[Flat, Tensor]] | None:
    """What each model has beyond the shared one, and its leading singular vectors [k, r] along the short side."""
    if len(whole.shape) != 2 or 0 in whole.shape or density == 1:
        return None
    found: list[tuple[Flat, Tensor]] = []
    for i, label in enumerate(whole.labels):
        change = Computed(whole.models, functools.partial(_own, i=i, weight=weight))
        rank = int(density * min(whole.shape))
        found.append((change, short_side(change, svd, rank, tensor_key(whole.seed, label, whole.name))[1]))
    return found


@method(
    scope="matrix",
    base="optional",
    prepare=_exclusive,
    squares=lambda count, density, svd, **_: squares(svd) + count * density if density < 1 else 0,
    per_model=("weight", "exclusive_weight"),
    temporaries=10,
)
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
    """``theta_* + sum_i w_i SVD_r(theta_i - theta_*)``: theta_* the weighted mean, r = floor(density * min dimension). The truncation is
    ``A V_r V_r^T``, with V_r the leading singular vectors of the short side."""
    models = part.models
    count = len(models)
    exclusive = per_model(1.0 / count if exclusive_weight is None else exclusive_weight, count, "exclusive_weight")
    shared = _shared(models, weight)
    merged = shared.clone()
    for i, (model, share) in enumerate(zip(models, exclusive, strict=True)):
        if part.facts is None:
            change = model - shared
        else:
            flat, leading = part.facts[i]
            change = times(flat, [leading, leading.T], part.start, part.start + model.numel()).float()
        merged.add_(change, alpha=share)
    return merged
