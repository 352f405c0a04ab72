"""Weight averaging: model soups (Wortsman et al. 2022), federated averaging, and every weighted mean of checkpoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from interfuse.core.method import method
from interfuse.merge.room import Array, Part, PerModel, per_model, shares, weighted_sum


def _coefficients(count: int, *, weight: PerModel, normalize: bool) -> list[float]:
    return shares(per_model(weight, count, "weight"), normalize)


@method(scope="element", arrays=True, base="none", temporaries=0, adds=_coefficients)
def linear(
    part: Part,
    *,
    weight: Annotated[PerModel, Field(description="weight of each model")] = 1.0,
    normalize: Annotated[bool, Field(description="divide the weights by their sum")] = True,
) -> Array:
    """``sum_i w_i theta_i``, with weights that sum to 1 when ``normalize``.

    Raises:
        InterfuseError: ``param.value`` when the weights sum to 0 and shall be normalised.
    """
    return weighted_sum(part.models, _coefficients(len(part.models), weight=weight, normalize=normalize))
