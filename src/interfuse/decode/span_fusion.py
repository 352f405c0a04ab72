"""Fusing stretches of text: every model proposes how to go on, all judge every proposal (SweetSpan, Xu et al. 2024)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.data.endpoint_lm import EndpointLM
from interfuse.decode.room import Combined, Spans


def _valid(params: dict[str, Any]) -> None:
    weights = params["weights"]
    if isinstance(weights, list) and (not weights or min(weights) < 0 or sum(weights) <= 0):
        raise InterfuseError("param.value", f"weights = {weights}: they are not negative, and one is above 0")


def _check(call: Call) -> None:
    for model in [call.inputs["model"], *call.inputs["experts"]]:
        lm = getattr(model.speaker, "inner", model.speaker)
        if isinstance(lm, EndpointLM) and lm.api != "completions":
            raise InterfuseError("needs.capability", "a chat endpoint neither goes on a text nor tells how likely one is", where=model.name,
                                 fix="Use api: completions on a server that echoes log-probabilities (vLLM, llama.cpp).")  # fmt: skip


@method(experts=(0, 64), spans=True, valid=_valid, check=_check)
def span_fusion(
    step: Spans,
    *,
    span: Annotated[int, Field(ge=1, le=1000, description="tokens of a stretch, cut back to whole words")] = 8,
    samples: Annotated[
        int, Field(ge=1, le=16, description="stretches that every model proposes; more than one needs a temperature above 0")
    ] = 1,
    weights: Annotated[
        list[float] | Literal["equal"], Field(description="one number for the judgement of the model and of each expert")
    ] = "equal",
    outlier: Annotated[
        float | None,
        Field(gt=0, description="a judgement so many standard deviations from the mean of a stretch's judgements does not count"),
    ] = 1.5,
) -> Combined:  # fmt: skip
    """The stretch with the highest mean log-probability over the models whose judgement counts.

    Raises:
        InterfuseError: ``param.value`` when weights have another length than the models.
    """
    scores = step.scores.double()
    count = scores.shape[1]
    if isinstance(weights, list) and len(weights) != count:
        raise InterfuseError("param.value", f"weights has {len(weights)} numbers for {count} models",
                             fix="One for the main model, then one per expert.")  # fmt: skip
    shares = torch.tensor(weights if isinstance(weights, list) else [1.0] * count, dtype=torch.float64)
    mean, spread = scores.mean(dim=1, keepdim=True), scores.std(dim=1, unbiased=False, keepdim=True)
    heard = torch.ones_like(scores, dtype=torch.bool) if outlier is None else (scores - mean).abs() <= outlier * spread + 1e-12  # fmt: skip
    kept = shares * heard
    kept = torch.where(kept.sum(dim=1, keepdim=True) > 0, kept, shares.expand_as(kept))
    total = (kept * scores).sum(dim=1) / kept.sum(dim=1)
    best = int(total.argmax())
    trace = {
        "writer": torch.tensor([float(step.writers[best])]),
        "proposals": torch.tensor([float(len(total))]),
        "left out": (~heard).sum().reshape(1).double(),
        **{f"judgement {m}": scores[best, m].reshape(1) for m in range(count)},
    }
    return Combined(total[None], trace)
