"""Model Stock (Jang, Yun and Han 2024): how far to go from the base follows from the angle between two fine-tunes."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from interfuse.core.method import method
from interfuse.kit.reductions import array_blocks, gram
from interfuse.merge.room import Array, Part, Whole, from_base, weighted_sum


def _ratio(whole: Whole, *, filter_wise: bool) -> float | NDArray[np.float32]:
    """How far to go from the base: one number, or one for each row of the tensor."""
    if filter_wise and len(whole.shape) > 1:
        return np.array([_towards(products) for products in _grams_of_rows(whole).tolist()], dtype=np.float32)
    return _towards(gram(whole.deltas()).tolist())


def _grams_of_rows(whole: Whole) -> NDArray[np.float64]:
    """The inner products of the task vectors within each row (all axes but the last count rows): float64 [rows, models, models]."""
    width, count = whole.shape[-1], len(whole.models)
    found = np.zeros((math.prod(whole.shape[:-1]), count, count))
    for start, values in array_blocks(whole.deltas()):
        deltas = [v.astype(np.float64) for v in values]
        first = start // width  # rows begin where the flat index is a multiple of the width
        begins = np.maximum(np.arange(first, -(-(start + values[0].size) // width)) * width - start, 0)
        for i in range(count):
            for j in range(i + 1):
                found[first : first + len(begins), i, j] += np.add.reduceat(deltas[i] * deltas[j], begins)
                found[first : first + len(begins), j, i] = found[first : first + len(begins), i, j]
    return found


def _towards(products: list[list[float]]) -> float:
    count = len(products)
    norms = [math.sqrt(products[i][i]) for i in range(count)]
    cosines = [
        products[i][j] / (norms[i] * norms[j]) if norms[i] * norms[j] > 0 else 0.0
        for i in range(count)
        for j in range(i)
    ]
    cosine = max(0.0, min(1.0, sum(cosines) / len(cosines)))
    return count * cosine / (1 + (count - 1) * cosine)


def _tells(ratio: float | NDArray[np.float32], **_: Any) -> dict[str, Any]:
    if isinstance(ratio, float):
        return {"t": ratio}
    return {
        "rows": len(ratio),
        "t of rows, mean": float(ratio.mean()),
        "least": float(ratio.min()),
        "most": float(ratio.max()),
    }


@method(scope="element", arrays=True, base="required", models=(2, 1000), prepare=_ratio, tells=_tells, temporaries=1)
def model_stock(
    part: Part,
    *,
    filter_wise: Annotated[
        bool,
        Field(description="one angle for each row of a tensor (an output's weights) instead of one for the tensor"),
    ] = False,
) -> Array:
    """``t mean(theta) + (1 - t) theta_0`` with ``t = N cos / (1 + (N - 1) cos)``, cos the mean cosine of task vectors (section 4)."""
    count = len(part.models)
    mean: Array = weighted_sum(part.deltas(), [1.0 / count] * count)
    if isinstance(part.facts, float):
        return from_base(part, mean, part.facts)
    places = np.arange(part.start, part.start + mean.size) // part.shape[-1]
    mean *= part.facts[places].reshape(mean.shape)
    return from_base(part, mean)
