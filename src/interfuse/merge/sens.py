"""Sens-Merging (Liu et al. 2025): each layer of each model weighs what its sensitivity and the model's distance from others say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.merge.calibrate import Calibration, Found, block_of
from interfuse.merge.looks import Look, each, pairs
from interfuse.merge.room import Part, weighted_sum


def _coefficients(calibration: Calibration, **_: Any) -> Found:
    temperature, count = calibration.one("temperature"), calibration.count
    alphas = []
    for i in range(count):
        raw = calibration.sensitivities(i)
        norm = math.sqrt(math.fsum(v * v for v in raw.values()))
        alphas.append({b: v / norm if norm > 0 else 1 / len(raw) for b, v in raw.items()})
    gaps = [math.fsum(calibration.distance(i, j) for j in range(count) if j != i) for i in range(count)]
    total = math.fsum(gaps)
    taus = [g / total if total > 0 else 1 / count for g in gaps]
    scores = [{b: a * tau / temperature for b, a in alpha.items()} for alpha, tau in zip(alphas, taus, strict=True)]
    shown = {b: _softmax([s.get(b) for s in scores]) for b in scores[0]}
    return Found({}, scores, {"between models": taus, "shares": shown})


def _softmax(scores: Sequence[float | None]) -> list[float]:
    """Shares of one block's models; equal ones where a model has no such block."""
    known = [s for s in scores if s is not None]
    if len(known) < len(scores):
        return [1.0 / len(scores)] * len(scores)
    powers = [math.exp(s - max(known)) for s in known]
    return [p / math.fsum(powers) for p in powers]


def _looks(call: Call) -> list[Look]:
    return [*each(call, gradients=True), *pairs(call)]


@method(scope="element", base="required", calibrate=_coefficients, looks=_looks, per_model=(), temporaries=2)
def sens(
    part: Part,
    *,
    temperature: Annotated[float, Field(gt=0, description="temperature of the softmax over models")] = 2.0,
    scale: Annotated[float, Field(description="factor of the summed change")] = 1.0,
) -> Tensor:
    """``theta_0 + K sum_i sigma_i^l delta_i``: sigma the softmax over models of ``alpha_i^l tau_i / T``; alpha is the layer's
    ``mean sum |theta g|`` on the model's own examples over all layers' norm, tau the mean distance of the model's logits from
    the others', on theirs, over the sum of all (sections 3.1 to 3.3)."""
    deltas = part.deltas()
    count = len(deltas)
    used = _softmax([part.found[i].get(block_of(name)) for i, name in part.sources])
    assert part.base is not None
    total = weighted_sum(deltas, used)
    return torch.add(part.base, total, alpha=scale * count)
