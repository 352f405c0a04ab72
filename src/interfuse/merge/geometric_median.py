"""The geometric median of checkpoints by Weiszfeld's iteration (1937): the mean that one outlier cannot drag away."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from interfuse.core.method import method
from interfuse.kit.merging import median_weights
from interfuse.kit.reductions import Difference, gram
from interfuse.merge.room import Array, Part, PerModel, Whole, per_model, weighted_sum


def _coefficients(whole: Whole, *, weight: PerModel, steps: int) -> list[float]:
    centred = [Difference(m, whole.models[0]) for m in whole.models]
    found: list[float] = median_weights(gram(centred), per_model(weight, len(centred), "weight"), steps=steps).tolist()
    return found


def _tells(weights: list[float], **_: Any) -> dict[str, Any]:
    return {"weights": weights}


@method(scope="element", arrays=True, base="none", prepare=_coefficients, tells=_tells, temporaries=0)
def geometric_median(
    part: Part,
    *,
    weight: Annotated[PerModel, Field(description="weight of each model, at least 0")] = 1.0,
    steps: Annotated[int, Field(ge=1, description="largest number of iterations")] = 200,
) -> Array:
    """The point of least weighted sum of distances to the models, for each tensor."""
    return weighted_sum(part.models, part.facts)
