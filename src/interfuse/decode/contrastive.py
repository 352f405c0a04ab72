"""Contrastive decoding: what a strong model knows and a weak one does not (Li et al. 2022)."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from interfuse.core.method import method
from interfuse.decode.room import Combined, Step
from interfuse.kit.logits import finite_logs


@method(base="required")
def contrastive(
    step: Step,
    *,
    beta: Annotated[float, Field(ge=0, description="strength of the contrast")] = 0.5,
    plausible: Annotated[
        float, Field(gt=0, le=1, description="tokens less likely than this share of the likeliest are left out")
    ] = 0.1,
) -> Combined:
    """``(1 + beta) log p_model - beta log p_base`` where ``p_model >= plausible max p_model`` (equations 2 and 3; the weighted form is
    equation 3 of O'Brien and Lewis 2023)."""
    strong, weak = step.model.log_softmax(dim=1), finite_logs(step.need_base().log_softmax(dim=1))
    keep = strong >= strong.amax(dim=1, keepdim=True) + math.log(plausible)
    return Combined(
        ((1 + beta) * strong - beta * weak).masked_fill(~keep, -math.inf), {"plausible": keep.sum(dim=1).float()}
    )
