"""NuSLERP: spherical interpolation by weights, of whole tensors, rows or columns, and of task vectors when a base is given."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from interfuse.core.method import method
from interfuse.kit.merging import slerp_weights
from interfuse.kit.reductions import array_blocks, gram
from interfuse.merge.room import Array, Part, PerModel, Whole, per_model


def _places(start: int, count: int, shape: tuple[int, ...], along: str) -> NDArray[np.int64]:
    """Which vector each of consecutive elements belongs to."""
    width = math.prod(shape[1:])
    flat = np.arange(start, start + count)
    return flat // width if along == "row" else flat % width


def _coefficients(whole: Whole, *, weight: PerModel, along: str, **_: Any) -> NDArray[np.float32]:
    """What the two models are multiplied by, float32 [2, vectors]."""
    w = per_model(weight, 2, "weight")
    t = w[1] / (w[0] + w[1]) if w[0] + w[1] else 0.5
    vectors = whole.deltas() if whole.base is not None else whole.models
    if along == "tensor" or len(whole.shape) < 2:
        g = gram(vectors)
        products = np.array([[g[0, 1]], [g[0, 0]], [g[1, 1]]])
    else:
        count = whole.shape[0] if along == "row" else math.prod(whole.shape[1:])
        products = np.zeros((3, count))
        for start, (a, b) in array_blocks(vectors):
            places, x, y = _places(start, a.size, whole.shape, along), a.astype(np.float64), b.astype(np.float64)
            for row, values in zip(products, (x * y, x * x, y * y), strict=True):
                row += np.bincount(places, values, count)
    found = [slerp_weights(d, math.sqrt(a), math.sqrt(b), t, parallel=1.0) for d, a, b in products.T.tolist()]
    return np.array(found, dtype=np.float32).T


@method(scope="element", arrays=True, models=(2, 2), prepare=_coefficients, temporaries=4)
def nuslerp(
    part: Part,
    *,
    weight: Annotated[PerModel, Field(description="weight of each model; their ratio is the place on the arc")] = 1.0,
    along: Annotated[
        Literal["tensor", "row", "column"],
        Field(description="take the whole tensor, each row (one output) or each column (one input) as a vector"),
    ] = "tensor",
) -> Array:
    """Slerp with ``t = w_b / (w_a + w_b)`` along the chosen vectors; of ``model - base`` when there is a base."""
    a, b = (np.asarray(v).reshape(-1) for v in (part.deltas() if part.base is not None else part.models))
    first, second = part.facts
    if len(first) > 1:
        places = _places(part.start, a.size, part.shape, along)
        first, second = first[places], second[places]
    a *= first
    b *= second
    a += b
    if part.base is not None:
        a += np.asarray(part.base).reshape(-1)
    return a
