"""One step in the tangent space at the normalised weighted mean, for any number of models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from interfuse.core.method import method
from interfuse.kit.merging import spherical_mean
from interfuse.kit.reductions import gram
from interfuse.merge.room import Array, Part, PerModel, Whole, from_base, per_model, weighted_sum


def _coefficients(whole: Whole, *, weight: PerModel, normalize: bool, **_: Any) -> list[float]:
    sources = whole.deltas() if whole.base is not None else whole.models
    products, weights = gram(sources), per_model(weight, len(sources), "weight")
    mean = spherical_mean(products, weights, steps=1)
    if not normalize:  # what has no direction has no weight
        mean = mean * sum(w for i, w in enumerate(weights) if products[i, i] > 0)
    found: list[float] = mean.tolist()
    return found


def _tells(weights: list[float], **_: Any) -> dict[str, Any]:
    return {"weights": weights}


@method(scope="element", arrays=True, models=(2, 1000), prepare=_coefficients, tells=_tells, temporaries=1)
def multislerp(
    part: Part,
    *,
    weight: Annotated[PerModel, Field(description="weight of each model")] = 1.0,
    normalize: Annotated[
        bool, Field(description="divide the weights by their sum; off: the norm is the weighted sum of the norms")
    ] = True,
) -> Array:
    """The spherical mean of the models, or of their task vectors when a base is given."""
    merged = weighted_sum(part.deltas() if part.base is not None else part.models, part.facts)
    return merged if part.base is None else from_base(part, merged)
