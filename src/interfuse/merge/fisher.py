"""Fisher-weighted averaging (Matena and Raffel 2022): every weight is averaged with how sure each model is of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.kit.passes import Loaded
from interfuse.kit.reductions import sums
from interfuse.merge.calibrate import Calibration, Found
from interfuse.merge.looks import Look, each
from interfuse.merge.room import Part, PerModel, per_model


def _expected(loaded: Loaded, logits: Tensor, batch: Mapping[str, Tensor], labels: Tensor | None) -> list[tuple[float, Tensor]]:  # fmt: skip
    """Every class's loss with the probability the model itself gives it (equation 4)."""
    if loaded.model.task.endswith("-lm"):
        raise InterfuseError("param.value", "labels = model needs a classifier: a language model has too many classes to try each",
                             where="labels", fix="Use labels = data.")  # fmt: skip
    logs = logits.log_softmax(-1)[0]
    return [(float(p), -log) for p, log in zip(logs.exp().detach(), logs, strict=True)]


def _curvature(calibration: Calibration, **_: Any) -> Found:
    labels, normalize = calibration.one("labels"), calibration.one("fisher_norm")
    losses = _expected if labels == "model" else None
    kept = [calibration.squared_gradients(i, losses=losses, about=labels) for i in range(calibration.count)]
    factors = [1.0] * len(kept)
    if normalize == "model":
        squares = [sum(sums([k.weights(n).source(n) for n in [name]], lambda x: [x[0].double().square()])[0] for name in k.names())
                   for k in kept]  # fmt: skip
        factors = [square**-0.5 if square > 0 else 1.0 for square in squares]
    flats = {i: (lambda n, k=k: k.weights(n).source(n) if n in k else None) for i, k in enumerate(kept)}
    return Found(flats, factors, {"examples": [len(calibration.table(i)) for i in range(calibration.count)]})


def _looks(call: Call) -> list[Look]:
    return each(call, gradients=True, totals=8.0, kept=4.0)


@method(scope="element", base="optional", calibrate=_curvature, looks=_looks, temporaries=3)
def fisher(
    part: Part,
    *,
    weight: Annotated[PerModel, Field(description="weight of each model, beside its Fisher information")] = 1.0,
    floor: Annotated[float, Field(gt=0, description="least Fisher information of a weight")] = 1e-8,
    labels: Annotated[
        Literal["data", "model"],
        Field(
            description="gradients of the loss of the examples' own labels (or next tokens), or of labels as the model expects them"
        ),
    ] = "data",
    fisher_norm: Annotated[
        Literal["none", "model"],
        Field(description="divide each model's Fisher information by its norm over the whole model"),
    ] = "none",
) -> Tensor:
    """``sum_i w_i F_i theta_i / sum_i w_i F_i`` with ``F_i = max(mean g^2, floor)`` (equation 6); tensors without gradients are
    averaged with the weights."""
    weights = per_model(weight, len(part.models), "weight")
    total, share = torch.zeros_like(part.models[0]), torch.zeros_like(part.models[0])
    first = part.models[0].clone()
    for i, model in enumerate(part.models):
        if part.statistics:
            known = part.statistics[i].mul_(part.found[part.sources[i][0]]).clamp_(min=floor).mul_(weights[i])
        else:
            known = torch.full_like(model, weights[i])
        total.add_(known * (model - first))
        share.add_(known)
    return first + torch.where(share == 0, 0.0, total / share)
