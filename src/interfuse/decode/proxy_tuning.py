"""Proxy tuning: a small tuned model and its untuned copy steer a large untuned one (Liu et al. 2024)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from interfuse.core.method import method
from interfuse.decode.room import Combined, Step
from interfuse.kit.logits import change


@method(base="required", experts=(1, 1))
def proxy_tuning(
    step: Step, *, alpha: Annotated[float, Field(ge=0, description="strength; the paper uses 1")] = 1.0
) -> Combined:
    """``softmax(M + alpha (M_tuned - M_untuned))``, equation 1."""
    if alpha == 0:
        return Combined(step.model)
    return Combined(step.model + alpha * change(step.experts[0], step.need_base()))
