"""A mixture of models: the mean of their next-token distributions, weighted by hand, by perplexity or by entropy (Mavromatis et al. 2024)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.decode.room import Combined, Step
from interfuse.kit.logits import entropy, finite_logs


def _valid(params: dict[str, Any]) -> None:
    weights = params["weights"]
    if isinstance(weights, list) and (not weights or min(weights) < 0 or sum(weights) <= 0):
        raise InterfuseError("param.value", f"weights = {weights}: they are not negative, and one is above 0")


@method(experts=(0, 64), evidence=True, valid=_valid)
def mixture(
    step: Step,
    *,
    kind: Annotated[
        Literal["linear", "geometric"], Field(description="mean of the probabilities, or of their logarithms")
    ] = "linear",
    weights: Annotated[
        list[float] | Literal["equal", "perplexity", "entropy"],
        Field(
            description="one number for the model and each expert, or how they follow from prompt (perplexity) or step (entropy)"
        ),
    ] = "equal",
    tau: Annotated[float, Field(gt=0, description="temperature of weights by perplexity or entropy, in nats")] = 1.0,
) -> Combined:
    """``log sum_i w_i p_i`` or ``sum_i w_i log p_i``. By perplexity ``w = softmax(-log PPL_i(prompt) / tau)`` (equation 3 of PackLLM),
    by entropy ``w = softmax(-H(p_i) / tau)`` at every step.

    Raises:
        InterfuseError: ``param.value`` when a list has another length than the models.
    """
    models = [step.model, *step.experts]
    if isinstance(weights, list):
        if len(weights) != len(models):
            raise InterfuseError("param.value", f"weights has {len(weights)} numbers for {len(models)} models",
                                 fix="One for the main model, then one per expert.")  # fmt: skip
        fixed = torch.tensor(weights, device=step.model.device)
        shares = (fixed / fixed.sum()).expand(len(step.model), -1)
    elif weights == "perplexity":
        assert step.evidence is not None, "the trait evidence=True guarantees it"
        shares = (step.evidence / tau).softmax(dim=1)
    elif weights == "entropy":
        shares = (-torch.stack([entropy(m.log_softmax(dim=1)) for m in models], dim=1) / tau).softmax(dim=1)
    else:
        shares = torch.full((len(step.model), len(models)), 1.0 / len(models), device=step.model.device)
    trace = {f"weight {i}": shares[:, i] for i in range(len(models))}
    if len(models) == 1:
        return Combined(step.model, trace)
    logs = [m.log_softmax(dim=1) for m in models]
    if kind == "geometric":
        scores = sum(shares[:, i, None] * finite_logs(x) for i, x in enumerate(logs))
        return Combined(torch.as_tensor(scores).masked_fill(torch.isneginf(step.model), float("-inf")), trace)
    parts = torch.stack([x + shares[:, i, None].log() for i, x in enumerate(logs)])
    return Combined(parts.logsumexp(dim=0), trace)
