"""Model Stock (Jang, Yun and Han 2024): how far to go from the base follows from the angle between two fine-tunes."""

from __future__ import annotations

import math
from typing import Any

from interfuse.core.method import method
from interfuse.kit.reductions import gram
from interfuse.merge.room import Array, Part, Whole, from_base, weighted_sum


def _ratio(whole: Whole, **_: Any) -> float:
    products = gram(whole.deltas()).tolist()
    count = len(products)
    norms = [math.sqrt(products[i][i]) for i in range(count)]
    cosines = [
        products[i][j] / (norms[i] * norms[j]) if norms[i] * norms[j] > 0 else 0.0
        for i in range(count)
        for j in range(i)
    ]
    cosine = max(0.0, min(1.0, sum(cosines) / len(cosines)))
    return count * cosine / (1 + (count - 1) * cosine)


def _tells(ratio: float, **_: Any) -> dict[str, Any]:
    return {"t": ratio}


@method(scope="element", arrays=True, base="required", models=(2, 1000), prepare=_ratio, tells=_tells, temporaries=1)
def model_stock(part: Part) -> Array:
    """``t mean(theta) + (1 - t) theta_0`` with ``t = N cos / (1 + (N - 1) cos)``, cos the mean cosine of task vectors (section 4)."""
    count = len(part.models)
    mean = weighted_sum(part.deltas(), [1.0 / count] * count)
    return from_base(part, mean, part.facts)
