"""RegMean (Jin et al. 2023): each matrix becomes the least-squares fit of what the models' matrices give on their own inputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.merge.calibrate import Calibration, Found
from interfuse.merge.looks import Look, each
from interfuse.merge.room import Part, weighted_sum


def _inputs(calibration: Calibration, **_: Any) -> Found:
    return Found({}, [calibration.grams(i) for i in range(calibration.count)],
                 {"examples": [len(calibration.table(i)) for i in range(calibration.count)]})  # fmt: skip


def _looks(call: Call) -> list[Look]:
    return each(call, grams=True)


@method(scope="tensor", base="optional", calibrate=_inputs, looks=_looks, per_model=(), temporaries=12)
def regmean(
    part: Part,
    *,
    reduce: Annotated[
        float, Field(ge=0, le=1, description="factor of the inner products between different inputs (alpha)")
    ] = 0.9,
    gram: Annotated[
        Literal["sum", "mean"],
        Field(description="sum inner products over tokens, or take their mean so that every model weighs the same"),
    ] = "sum",
    ridge: Annotated[
        float, Field(ge=0, description="added to the diagonal, relative to its mean: pulls towards the plain mean")
    ] = 0.0,
) -> Tensor:
    """``W = (sum_i G_i)^-1 sum_i G_i W_i`` for ``W [in, out]``, ``G_i = X_i^T X_i`` with off-diagonals times alpha (equation 2,
    section 4.2). Solved for the difference from the plain mean; where no input ever went the mean stays. Tensors that multiply
    nothing are averaged."""
    models = [m.double() for m in part.models]
    mean = weighted_sum([m.clone() for m in models], [1.0 / len(models)] * len(models))
    kept = [part.found[i] for i, _ in part.sources]
    leaders = [k.facts["leader"].get(n) for k, (_, n) in zip(kept, part.sources, strict=True)]
    if mean.ndim != 2 or any(leader is None for leader in leaders):
        return mean.float()
    grams = []
    for known, leader in zip(kept, leaders, strict=True):
        g = known.tensor(f"gram/{leader}")
        if gram == "mean":
            g = g / known.tensor(f"tokens/{leader}").clamp(min=1)
        diagonal = torch.diagonal(g).clone()
        g.mul_(reduce).diagonal().copy_(diagonal)
        grams.append(g)
    turned = not kept[0].facts["stored"][part.sources[0][1]]  # files hold [out, in], except where they hold [in, out]
    whole = torch.stack(grams).sum(0)
    level = float(torch.diagonal(whole).mean())
    pull = torch.zeros_like(mean.T if turned else mean)
    for g, model in zip(grams, models, strict=True):
        change = model - mean
        pull.addmm_(g, change.T if turned else change)
    whole.diagonal().add_(ridge * level)
    found = _solve(whole, pull)
    return (mean + (found.T if turned else found)).float()


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """``a^-1 b`` for a positive semi-definite matrix; directions in which ``a`` is 0 (to 12 digits) get 0."""
    values, vectors = torch.linalg.eigh(a)
    low = float(values.abs().max()) * 1e-12 * 1.0
    inverse = torch.where(values > low, 1.0 / torch.where(values > low, values, 1.0), 0.0)
    solved: Tensor = vectors @ (inverse.unsqueeze(1) * (vectors.T @ b))
    return solved
