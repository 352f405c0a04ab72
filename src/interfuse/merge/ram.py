"""RAM, Reinforced Agent Merging (Yuan et al. 2026): shared changes are averaged, what one model alone changed is kept whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from interfuse.core.method import method
from interfuse.kit.reductions import array_blocks
from interfuse.merge.room import Array, Part, Whole, from_base


def _factors(whole: Whole, *, epsilon: float, r: float, alpha: float) -> list[float]:
    """``lambda`` of each model: what its own changes are multiplied by, from the counts of this tensor."""
    shared, own = [0] * len(whole.models), [0] * len(whole.models)
    if r == 0 or alpha == 0:
        return [1.0] * len(whole.models)
    for _, deltas in array_blocks(whole.deltas()):
        changed = [np.abs(delta) > epsilon for delta in deltas]
        several = np.sum(changed, axis=0, dtype=np.uint16) > 1
        for i, mine in enumerate(changed):
            both = int(np.count_nonzero(mine & several))
            shared[i] += both
            own[i] += int(np.count_nonzero(mine)) - both
    return [1.0 + r * min(s / o, alpha) if o else 1.0 for s, o in zip(shared, own, strict=True)]


def _tells(facts: list[float], **_: Any) -> dict[str, Any]:
    return {"weights": facts}


def _passes(params: Mapping[str, Any]) -> int:
    """Ratios are counted in a pass of their own, unless nothing is raised by them."""
    return 2 if params["r"] and params["alpha"] else 1


@method(
    scope="element", arrays=True, base="required", prepare=_factors, tells=_tells, passes=_passes, per_model=(), temporaries=4
)  # fmt: skip
def ram(
    part: Part,
    *,
    epsilon: Annotated[
        float, Field(ge=0, description="a weight counts as changed when it moved by more than this")
    ] = 1e-5,
    r: Annotated[
        float, Field(ge=0, description="strength of RAM+: how much a model's own changes are raised; 0 is RAM")
    ] = 0.0,
    alpha: Annotated[
        float, Field(ge=0, description="most that the ratio of shared to own changes counts for in RAM+")
    ] = 0.2,
) -> Array:
    """``theta_0 + lambda_i delta_i`` where only model i changed a weight, ``theta_0`` + the mean of the changes where several did;
    ``lambda_i = 1 + r min(shared_i / own_i, alpha)`` from the numbers of model i's changes of each kind."""
    deltas: list[Array] = list(part.deltas())
    for delta in deltas:
        delta *= np.abs(delta) > epsilon
    count = np.sum([delta != 0 for delta in deltas], axis=0, dtype=np.float32)
    if any(factor != 1.0 for factor in part.facts):
        alone = count == 1
        for delta, factor in zip(deltas, part.facts, strict=True):
            delta *= np.where(alone, np.float32(factor), np.float32(1.0))
    total = deltas[0]
    for delta in deltas[1:]:
        total += delta
    total /= np.maximum(count, np.float32(1.0))
    return from_base(part, total)
