"""AdaCAD: context-aware decoding whose strength is the conflict between context and memory (Wang et al. 2024)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.decode.room import Combined, Step
from interfuse.kit.logits import change, finite_logs


@method(context=True)
def adacad(
    step: Step,
    *,
    least: Annotated[
        float, Field(ge=0, le=1, description="smallest strength; the paper uses 0.3 for long texts")
    ] = 0.0,
) -> Combined:
    """Equation 3 of CAD with ``alpha_t = JSD(p(y | x), p(y | c, x))`` in bits, so that it lies in [0, 1] (equations 2 and 3)."""
    read, own = step.model.log_softmax(dim=1), step.need_plain().log_softmax(dim=1)
    r, p = read.exp(), own.exp()
    middle = finite_logs((0.5 * (r + p)).log())
    divergence = 0.5 * ((r * (finite_logs(read) - middle)).sum(dim=1) + (p * (finite_logs(own) - middle)).sum(dim=1))
    alpha = (divergence / math.log(2)).clamp(least, 1.0)
    scores = step.model + alpha[:, None] * change(step.model, step.need_plain())
    return Combined(torch.where((alpha == 0)[:, None], step.model, scores), {"alpha": alpha})
