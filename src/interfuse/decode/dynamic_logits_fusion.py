"""Dynamic logits fusion: small experts steer a large model by as much as fine-tuning moved them, afresh at every token (Fan et al. 2024)."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.decode.room import Combined, Step
from interfuse.kit.logits import change, log_partitions

#: the paper's search, 0 to 2 by 0.1
GRID = [i / 10 for i in range(21)]


def _valid(params: dict[str, Any]) -> None:
    grid = params["alphas"]
    if not grid or min(grid) < 0 or any(b <= a for a, b in itertools.pairwise(grid)):
        raise InterfuseError("param.value", f"alphas = {grid}: a grid of rising numbers that are not negative",
                             fix="0 should be the first, so that an expert may stay silent.")  # fmt: skip
    limits = params["limits"]
    if limits is not None and (not limits or min(limits) < grid[0]):
        raise InterfuseError("param.value", f"limits = {limits}: the largest alpha of each expert, none below the grid")


def _check(call: Call) -> None:
    grid = call.params["alphas"]
    if 0.0 not in grid:
        call.ctx.log(f"alphas = {grid} hold no 0: no expert can stay silent")


@method(base="required", experts=(1, 64), valid=_valid, check=_check)
def dynamic_logits_fusion(
    step: Step,
    *,
    alphas: Annotated[list[float], Field(description="strengths that are tried for one expert at a time")] = GRID,
    limits: Annotated[list[float] | None, Field(description="largest strength of each expert")] = None,
) -> Combined:
    """``softmax(M + alpha_t d_t)`` with one expert ``t`` and one ``alpha`` per step, those that least change

    ``J = sum_t [(KL(P~ || P) - KL(Q_t || Q))^2 + (KL(P || P~) - KL(Q || Q_t))^2]``    (equation 5; section 3.3 for several experts).

    With ``A(alpha) = log sum_v p_v exp(alpha d_v)`` the first divergence is ``alpha E_P~[d] - A`` and the second ``A - alpha E_P[d]``,
    so the whole grid costs one pass over the vocabulary per strength. The first minimum wins.

    Raises:
        InterfuseError: ``param.value`` when limits has another length than the experts.
    """
    model, base = step.model, step.need_base()
    if limits is not None and len(limits) != len(step.experts):
        raise InterfuseError("param.value", f"limits has {len(limits)} numbers for {len(step.experts)} experts")
    large, small = model.log_softmax(dim=1), base.log_softmax(dim=1)
    probs, before = large.exp(), small.exp()
    grid = torch.tensor(alphas, device=model.device)
    changes, wanted = [], []  # d_t [B, V]; (KL(Q_t || Q), KL(Q || Q_t)) [B] each
    for expert in step.experts:
        tuned = expert.log_softmax(dim=1)
        d = change(tuned, small)
        changes.append(d)
        wanted.append((torch.linalg.vecdot(tuned.exp(), d), -torch.linalg.vecdot(before, d)))
    losses = []
    for t, d in enumerate(changes):
        mean = torch.linalg.vecdot(probs, d)  # E_P[d] [B]
        parts, means = log_partitions(large, probs, d - mean[:, None], alphas)  # of d less its mean: [G, B] each
        forward, backward = grid[:, None] * means - parts, parts  # KL(P~ || P), KL(P || P~)
        loss = torch.stack([(forward - a) ** 2 + (backward - b) ** 2 for a, b in wanted]).sum(dim=0)  # J [G, B]
        losses.append(loss if limits is None else loss.masked_fill(grid[:, None] > limits[t] + 1e-9, torch.inf))
    table = torch.stack(losses).flatten(0, 1)  # [T G, B]
    least = table.amin(dim=0)
    places = torch.arange(len(table), device=table.device)[:, None]
    best = torch.where(table == least, places, len(table)).amin(dim=0).clamp(max=len(table) - 1)  # the first minimum
    chosen, alpha = best // len(alphas), grid[best % len(alphas)]
    moved = (
        changes[0]
        if len(changes) == 1
        else torch.stack(changes)[chosen, torch.arange(len(chosen), device=chosen.device)]
    )
    scores = torch.where((alpha == 0)[:, None], model, model + alpha[:, None] * moved)
    expert_number = torch.where(alpha == 0, 0, chosen + 1)
    return Combined(scores, {"alpha": alpha, "expert": expert_number, "loss": least})
