"""TIES-Merging (Yadav et al. 2023): trim small changes, elect a sign, average the changes that agree with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.kit.merging import disjoint_mean
from interfuse.kit.reductions import Threshold, magnitude_thresholds
from interfuse.merge.plan import Output
from interfuse.merge.room import Part, PerModel, PerModelShare, Whole, per_model
from interfuse.merge.sparsify import kept_and_trimmed, l1_factors, share_of, trim_thresholds


def _thresholds(
    whole: Whole, *, density: PerModel, trim_scope: str, rescale: str, **_: Any
) -> list[tuple[Threshold, float]]:
    found: list[Threshold]
    if trim_scope == "model":
        found = whole.overall
    else:
        found = trim_thresholds(whole, per_model(density, len(whole.models), "density"))
    factors = l1_factors(whole.deltas(), lambda i, values, start: found[i].trim_(values, start), rescale)
    return list(zip(found, factors, strict=True))


def _overall(wholes: Sequence[Whole], owns: Sequence[Mapping[str, Any]], workers: int) -> list[list[Threshold]]:
    """The cuts of each model's whole task vector, its tensors in the order of the plan: a list per tensor."""
    of: dict[int, list[tuple[int, int, float]]] = {}  # model -> (tensor, place among its models, density)
    for number, (whole, own) in enumerate(zip(wholes, owns, strict=True)):
        if own["trim_scope"] == "model":
            densities = per_model(own["density"], len(whole.models), "density")
            for place, (model, _) in enumerate(whole.sources):
                of.setdefault(model, []).append((number, place, densities[place]))
    found = [[Threshold(math.inf, -1)] * len(whole.models) for whole in wholes]
    for places in of.values():
        changes = [wholes[number].deltas()[place] for number, place, _ in places]
        size = sum(math.prod(change.shape) for change in changes)
        keep = share_of(size, places[0][2])
        cuts = magnitude_thresholds(changes, keep, workers=workers)
        for (number, place, _), cut in zip(places, cuts, strict=True):
            found[number][place] = cut
    return found if of else []


def _one_density(outputs: Sequence[Output]) -> None:
    """Raises ``param.value`` when a whole vector would have several densities."""
    known: dict[int, float] = {}
    for output in outputs:
        if output.kept or output.own["trim_scope"] != "model":
            continue
        densities = per_model(output.own["density"], len(output.sources), "density")
        if any(known.setdefault(model, d) != d for (model, _), d in zip(output.sources, densities, strict=True)):
            raise InterfuseError("param.value", "density differs from tensor to tensor, and trim_scope: model has one for all",
                                 where="density", fix="Give one density per model, or trim_scope: tensor.")  # fmt: skip


def _passes(params: Mapping[str, Any]) -> int:
    return 4 if params["trim_scope"] == "model" else 2


@method(
    scope="element",
    base="required",
    prepare=_thresholds,
    overall=_overall,
    check=_one_density,
    passes=_passes,
    per_model=("weight", "density"),
    temporaries=4,
    remarks=kept_and_trimmed,
)
def ties(
    part: Part,
    *,
    density: Annotated[PerModelShare, Field(description="share of each task vector kept, by magnitude")] = 0.2,
    weight: Annotated[PerModel, Field(description="weight of each task vector")] = 1.0,
    scale: Annotated[float, Field(description="factor of the merged task vector (lambda)")] = 1.0,
    normalize: Annotated[bool, Field(description="divide by the weights that agree; off: their plain sum")] = True,
    trim_scope: Annotated[
        Literal["tensor", "model"],
        Field(
            description="the density is that of every tensor, or (as in the paper) that of a model's whole task vector"
        ),
    ] = "tensor",
    rescale: Annotated[
        Literal["none", "l1"],
        Field(
            description="what is kept of a task vector is left, or scaled to its old sum of magnitudes, tensor by tensor"
        ),
    ] = "none",
) -> Tensor:
    """``theta_0 + lambda * mean of the trimmed changes with the elected sign`` (algorithm 1)."""
    deltas = part.deltas()
    for delta, (threshold, factor) in zip(deltas, part.facts, strict=True):
        threshold.trim_(delta, part.start)
        if factor != 1.0:
            delta *= factor
    merged = disjoint_mean(deltas, per_model(weight, len(deltas), "weight"), normalize=normalize)
    assert part.base is not None
    return part.base.add(merged, alpha=scale)
