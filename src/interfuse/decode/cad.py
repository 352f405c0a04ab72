"""Context-aware decoding: what the context adds to the model's memory is amplified (Shi et al. 2023)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from interfuse.core.method import method
from interfuse.decode.room import Combined, Step
from interfuse.kit.logits import change


@method(context=True)
def cad(
    step: Step, *, alpha: Annotated[float, Field(ge=0, description="strength; 0 is plain reading of the context")] = 0.5
) -> Combined:
    """``softmax((1 + alpha) logits(y | c, x) - alpha logits(y | x))``, equation 3."""
    if alpha == 0:
        return Combined(step.model)
    return Combined(step.model + alpha * change(step.model, step.need_plain()))
