"""RCP-Merging (Yang et al. 2026): a domain model's changes enter a reasoning model where the domain wants them and reasoning does
not mind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.merge.calibrate import Calibration, Found
from interfuse.merge.looks import Look
from interfuse.merge.plan import layer_of
from interfuse.merge.room import Part

#: penalties that are tried when a share to accept is given: 0, and powers of the root of ten
TRIED = (0.0, *(10 ** (k / 2) for k in range(-4, 25)))


def _votes(calibration: Calibration, **_: Any) -> Found:
    params = calibration.call.params
    penalties = {name: o.own["penalty"] for o in calibration.plan.outputs for _, name in o.sources}
    for output in calibration.plan.outputs:
        if len({name for _, name in output.sources}) > 1:
            raise InterfuseError("param.value", "the slices pair different layers of the two models, and votes compare a layer with itself",
                                 where=f"tensor {output.name}", fix="Give both sources of a slice the same layers.")  # fmt: skip
    accept = calibration.one("accept")
    prior = calibration.squared_gradients(0, times_weight=calibration.one("fisher") == "gtheta")
    tried = {}
    if accept is not None:
        shares = calibration.acceptance(
            0,
            1,
            prior,
            penalties=TRIED,
            zero_passes=calibration.one("zero_is") == "merge",
            part=calibration.one("domain_text"),
        )
        found = next((t for t, share in zip(TRIED, shares, strict=True) if share <= accept), TRIED[-1])
        penalties = dict.fromkeys(penalties, found)
        tried = {"penalty": found, "accepted by penalty": [list(pair) for pair in zip(TRIED, shares, strict=True)]}
    kept = calibration.votes(0, 1, prior, penalty=lambda n: float(penalties.get(n, 0.0)), zero_passes=calibration.one("zero_is") == "merge",
                             part=calibration.one("domain_text"))  # fmt: skip
    layers: dict[str, list[float]] = {}
    silent = 0
    for name in calibration.plan.weights[1]:
        if name in kept:
            place = layer_of(name)
            row = layers.setdefault(name if place is None else f"{place[0]}{place[1]}", [0.0, 0.0])
            row[0] += float(kept.tensor(f"accepted/{name}"))
            row[1] += kept.weights(name)[name].numel
            silent += int(kept.tensor(f"silent/{name}"))
    accepted, weights = (sum(row[i] for row in layers.values()) for i in (0, 1))
    report = {
        "accepted": accepted / max(weights, 1),
        "accepted by layer": {layer: row[0] / max(row[1], 1) for layer, row in layers.items()},
        "weights without any gradient": silent,
        "examples": [len(calibration.table(i)) for i in (0, 1)],
        **tried,
    }
    calibration.call.ctx.log(f"rcp: {report['accepted']:.1%} of the weights take the domain's change; {silent} of {weights:.0f} score 0 in "
                             f"every example and are {'merged' if params['zero_is'] == 'merge' else 'kept'}")  # fmt: skip
    return Found({1: lambda n: kept.weights(n).source(n) if n in kept else None}, None, report)


def _looks(call: Call) -> list[Look]:
    tried = [Look((1,), 1, True, call.params["domain_text"], 8.0 * (2 + len(TRIED) // 4))]
    return [
        Look((0,), 0, True, totals=8.0, kept=4.0),
        *(tried if call.params["accept"] is not None else []),
        Look((1,), 1, True, call.params["domain_text"], 24.0, 4.0),
    ]


@method(
    scope="element",
    base="required",
    models=(2, 2),
    ordered=True,
    tables=2,
    calibrate=_votes,
    looks=_looks,
    per_model=(),
    temporaries=2,
)
def rcp(
    part: Part,
    *,
    penalty: Annotated[
        float, Field(ge=0, description="price of moving a weight of the reasoning model (lambda)")
    ] = 1000.0,
    accept: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="share of weights that may take the change: the least penalty that keeps to it is used",
        ),
    ] = None,
    fisher: Annotated[
        Literal["gtheta", "g2"],
        Field(description="what reasoning minds: (gradient x weight)^2 as the authors' code has it, or gradient^2"),
    ] = "gtheta",
    domain_text: Annotated[
        Literal["prompt", "full"],
        Field(
            description="the domain's gradients are of the column prompt alone (as in the authors' code), or of all of it"
        ),
    ] = "prompt",
    zero_is: Annotated[
        Literal["merge", "keep"], Field(description="what happens to a weight whose score is exactly 0")
    ] = "merge",
) -> Tensor:
    """``theta_R + 1[V > 0] (theta_D - theta_0)``: V counts domain examples with ``g theta_D + lambda F (theta_R - theta_D)^2 <= 0``
    minus the others (sections 3.2 to 3.4). The first model is the reasoning model, the second the domain's; their calibration
    tables stand in that order."""
    reasoning, domain = part.models
    assert part.base is not None
    change = domain.sub_(part.base)
    if not part.statistics:  # a tensor without gradients (a buffer) stays the reasoning model's
        return reasoning
    (balance,) = part.statistics
    return reasoning.add_(torch.where(balance > 0, change, 0.0))
