"""AIM (Nobari et al. 2025): a merge is pulled back towards the base in the input channels that matter most to the base."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.merge.calibrate import Calibration, Found
from interfuse.merge.looks import Look
from interfuse.merge.room import Part, PerModel, Whole, per_model, shares, weighted_sum


def _channels(calibration: Calibration, **_: Any) -> Found:
    table = calibration.call.inputs["calibration"][0]
    return Found({}, calibration.channels(calibration.base, table), {"examples": len(table)})


def _importance(whole: Whole, *, keep: float, **_: Any) -> tuple[Tensor | None, bool]:
    """The factor of every channel's change, float32, and whether channels are rows of the tensor."""
    if whole.under not in whole.found:
        return None, False
    s = whole.found.tensor(whole.under)
    top = float(s.max())
    factors = 1 - (s / top if top > 0 else torch.zeros_like(s)) * (1 - keep)
    return factors.float(), bool(whole.found.facts["stored"].get(whole.under, False))


def _looks(call: Call) -> list[Look]:
    return [Look((len(call.inputs["models"]),), 0)]


@method(scope="row", base="required", calibrate=_channels, looks=_looks, tables=1, prepare=_importance, temporaries=3)
def aim(
    part: Part,
    *,
    keep: Annotated[
        float, Field(ge=0, le=1, description="share of the change that the most important channel keeps (omega)")
    ] = 0.4,
    weight: Annotated[PerModel, Field(description="weight of each model's change, where there are several")] = 1.0,
    normalize: Annotated[bool, Field(description="divide the weights by their sum")] = True,
    scale: Annotated[float, Field(description="factor of the merged change, before it is relaxed")] = 1.0,
) -> Tensor:
    """``theta_0 + (theta - theta_0) (1 - s_c (1 - omega))`` with ``s_c`` the base's mean ``|x_c|`` over the layer's largest (section 3):
    for one model, itself a merge, the plug-in of the paper; several are first added with weights. Embeddings and biases are
    not relaxed."""
    assert part.base is not None
    weights = shares(per_model(weight, len(part.models), "weight"), normalize)
    change = weighted_sum(part.deltas(), [scale * w for w in weights])
    factors, by_row = part.facts
    if factors is not None:
        if by_row:
            columns = part.shape[-1]
            first = part.start // columns
            factors = factors[first : first + change.numel() // columns].unsqueeze(1)
        change = change.mul_(factors)
    return part.base + change
