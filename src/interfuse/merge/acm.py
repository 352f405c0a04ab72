"""ACM (Yao et al. 2025), experimental: a layer that still gives what the base gives adds less of its change."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.merge.calibrate import Calibration, Found
from interfuse.merge.looks import Look
from interfuse.merge.room import Part, weighted_sum


def _coefficients(calibration: Calibration, **_: Any) -> Found:
    found, owners, shown = [], {}, []
    for i in range(calibration.count):
        bits, owner = calibration.information(i)
        owners[i] = owner
        weights = {block: 1 - 1 / (1 + math.exp(-v)) for block, v in bits.items()}
        found.append((weights, math.fsum(weights.values()) / len(weights)))
        shown.append({block: {"information": bits[block], "weight": w} for block, w in weights.items()})
    return Found({}, (found, owners), {"layers": shown})


def _looks(call: Call) -> list[Look]:
    count = len(call.inputs["models"])
    return [Look((count, i), i) for i in range(count)]


@method(scope="element", base="required", calibrate=_coefficients, looks=_looks, per_model=(), temporaries=2)
def acm(
    part: Part,
    *,
    scale: Annotated[float, Field(description="factor of the summed change")] = 1.0,
) -> Tensor:
    """``theta_0 + scale sum_i t_i^l delta_i``, ``t = 1 - 1 / (1 + exp(-I))`` with I the mutual information, in nats, between what layer
    l of the base and of model i give on the same examples; tensors outside the layers take the mean over layers."""
    found, owners = part.found
    used = []
    for i, name in part.sources:
        weights, mean = found[i]
        used.append(scale * weights.get(owners[i].get(name, ""), mean))
    total = weighted_sum(part.deltas(), used)
    assert part.base is not None
    return part.base.add(total)
