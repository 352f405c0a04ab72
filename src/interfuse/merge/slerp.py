"""Spherical interpolation between two checkpoints (Shoemake 1985), tensor by tensor."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field

from interfuse.core.method import method
from interfuse.kit.merging import slerp_weights
from interfuse.kit.reductions import gram
from interfuse.merge.room import Array, Part, Whole, weighted_sum


def _angles(whole: Whole, **_: Any) -> tuple[float, float, float]:
    products = gram(whole.models)
    return float(products[0, 1]), math.sqrt(products[0, 0]), math.sqrt(products[1, 1])


def _tells(facts: tuple[float, float, float], *, t: float) -> dict[str, Any]:
    return {"weights": list(slerp_weights(*facts, t))}


@method(
    scope="element", arrays=True, base="none", models=(2, 2), ordered=True, prepare=_angles, tells=_tells, temporaries=0
)
def slerp(
    part: Part,
    *,
    t: Annotated[float, Field(ge=0, le=1, description="0 gives the first model, 1 the second")] = 0.5,
) -> Array:
    """``sin((1-t) W)/sin W a + sin(t W)/sin W b``, W the angle between the two tensors; plain interpolation when their cosine
    exceeds 0.9995."""
    dot, first, second = part.facts
    return weighted_sum(part.models, slerp_weights(dot, first, second, t))
