"""Task arithmetic (Ilharco et al. 2023): add what each fine-tuning changed to the base."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from interfuse.core.method import method
from interfuse.merge.room import Array, Part, PerModel, from_base, per_model, shares, weighted_sum


def _coefficients(count: int, *, weight: PerModel, scale: float, normalize: bool) -> list[float]:
    return [scale * share for share in shares(per_model(weight, count, "weight"), normalize)]


@method(scope="element", arrays=True, base="required", temporaries=0, adds=_coefficients)
def task_arithmetic(
    part: Part,
    *,
    weight: Annotated[PerModel, Field(description="weight of each task vector; negative weights unlearn")] = 1.0,
    scale: Annotated[float, Field(description="factor of the summed task vectors (lambda)")] = 1.0,
    normalize: Annotated[bool, Field(description="divide the weights by their sum")] = False,
) -> Array:
    """``theta_0 + lambda * sum_i w_i (theta_i - theta_0)`` (section 2)."""
    weights = per_model(weight, len(part.models), "weight")
    return from_base(part, weighted_sum(part.deltas(), shares(weights, normalize)), scale)
