"""CK-PLUG: one knob between retrieved context and memory, turned only at the tokens where the two disagree (Bi et al. 2025)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.decode.room import Combined, Step
from interfuse.kit.logits import entropy, finite_logs, leaders

#: nats by which the gate must be passed: two readings of one prompt differ by rounding, and that is no conflict
SLACK = 1e-5


def _valid(params: dict[str, Any]) -> None:
    alpha = params["alpha"]
    if alpha != "auto" and not 0 <= alpha <= 1 and not params["extrapolate"]:
        raise InterfuseError("param.value", f"alpha = {alpha:g}: it lies in [0, 1], or is auto",
                             fix="Add extrapolate to go beyond: at such strengths texts often break down.")  # fmt: skip


@method(context=True, valid=_valid)
def ck_plug(
    step: Step,
    *,
    alpha: Annotated[
        float | Literal["auto"],
        Field(description="0 trusts the context, 1 the model's memory; auto decides at each token"),
    ] = 0.5,
    gate: Annotated[
        Literal["absolute", "relative", "always", "never"],
        Field(
            description="where it steps in: confidence gain below threshold, or below -e H(r) as in the authors' code"
        ),
    ] = "absolute",
    threshold: Annotated[float, Field(description="of the absolute gate, in nats")] = 0.0,
    e: Annotated[float, Field(description="of the relative gate: it steps in where CG + e H(r) < 0")] = -1.0,
    k: Annotated[int, Field(ge=1, description="likeliest tokens of each side that are candidates")] = 10,
    relative_top: Annotated[
        float, Field(gt=0, le=1, description="so are tokens down to this share of the likeliest of either side")
    ] = 0.01,
    entropies: Annotated[
        Literal["head", "all"], Field(description="over the candidates, or over the whole vocabulary")
    ] = "head",
    restrict: Annotated[
        Literal["conflict", "always"],
        Field(description="leave out other tokens where it steps in, or everywhere as the authors' code"),
    ] = "conflict",
    extrapolate: Annotated[bool, Field(description="allow alpha outside [0, 1]")] = False,
) -> Combined:
    """``F = alpha log p + (1 - alpha) (log r - log p)`` on the candidates where the confidence gain ``H(p) - H(r)`` is below the gate
    (equations 3 to 6), else ``r``; ``p`` is read without the context, ``r`` with it. auto: ``alpha = H(r) / (H(p) + H(r))`` (equation 7)."""
    r, p = step.model, step.need_plain()  # logits: the candidates do not depend on their constants
    places = torch.unique(torch.cat([leaders(x, k, relative_top) for x in (r, p)]))  # a few of the vocabulary
    sides = [x[:, places] for x in (r, p)]  # [B, C]
    chosen, logs = torch.zeros_like(sides[0], dtype=torch.bool), []
    for side in sides:  # the authors' relative_top_filter
        top = side.topk(min(k, side.shape[1]), dim=1).values
        chosen |= side >= torch.minimum(top[:, -1], top[:, 0] + math.log(relative_top))[:, None]
        # log-probabilities up to a constant of each side, which no distribution over the candidates depends on
        logs.append(finite_logs(side - top[:, :1]))
    head_r, head_p = logs
    chosen &= ~torch.isneginf(sides[0])
    if entropies == "head":
        h_p, h_r = (entropy(x.masked_fill(~chosen, -math.inf).log_softmax(dim=1)) for x in (head_p, head_r))
    else:
        h_p, h_r = entropy(p.log_softmax(dim=1)), entropy(r.log_softmax(dim=1))
    gain = h_p - h_r
    every = torch.ones_like(gain, dtype=torch.bool)
    conflict = {
        "absolute": gain < threshold - SLACK,
        "relative": gain + e * h_r < -SLACK,
        "always": every,
        "never": ~every,
    }[gate]
    if alpha == "auto":
        total = h_p + h_r
        share = torch.where(total > 0, h_r / total.clamp_min(1e-9), 0.5)
    else:
        share = torch.full_like(gain, float(alpha))
    mixed = (1 - share)[:, None] * head_r + (2 * share - 1)[
        :, None
    ] * head_p  # = alpha log p + (1 - alpha) (log r - log p)
    closed = conflict | (restrict == "always")
    scores = step.model.masked_fill(closed[:, None], -math.inf)
    here = torch.where(conflict[:, None], mixed, sides[0])
    scores[:, places] = torch.where(chosen | ~closed[:, None], here, -math.inf)
    trace = {"H_param": h_p, "H_rag": h_r, "gain": gain, "intervened": conflict.float(), "alpha": share}
    return Combined(scores, trace)
