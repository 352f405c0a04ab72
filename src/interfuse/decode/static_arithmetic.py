"""Logit arithmetic with fixed strengths: what fine-tuning changed in small experts is added to a large model (Liu et al. 2021)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from interfuse.core.method import method
from interfuse.decode.room import Combined, Step
from interfuse.kit.logits import change, per_expert


@method(base="required", experts=(1, 64))
def static_arithmetic(
    step: Step,
    *,
    alpha: Annotated[
        float | list[float], Field(description="strength of the experts: one number, or one per expert")
    ] = 1.0,
) -> Combined:
    """``softmax(M + sum_t alpha_t (E_t - S))``, section 2 with one expert and one anti-expert generalised to several.

    Raises:
        InterfuseError: ``param.value`` when a list has another length than the experts.
    """
    scores, base = step.model, step.need_base()
    for strength, expert in zip(per_expert(alpha, len(step.experts), "alpha"), step.experts, strict=True):
        if strength != 0:
            scores = scores + strength * change(expert, base)
    return Combined(scores)
