"""RICE: the experts of a mixture that fire with thinking tokens are found by nPMI and turned up while decoding (Wang et al. 2025)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.data.models import build, device_of, open_tokenizer, size_of
from interfuse.decode.room import Combined, Step
from interfuse.decode.routing import count_routing, table_of
from interfuse.decode.steering import family_of, routed_layers, self_test, steer
from interfuse.decode.streams import Weights
from interfuse.kit.threads import threads_for

#: the paper's markers with their weights, as a public summary gives them
MARKERS = {"<think>": 1.0, "</think>": -1.0, "alternatively": -1.0}


def _check(call: Call) -> None:
    model = call.inputs["model"]
    if call.inputs.get("transcripts") is None and call.inputs.get("profile") is None:
        raise InterfuseError("param.missing", "rice needs transcripts, or a profile found in some before",
                             fix="Transcripts are texts the model wrote, with its markers in them.")  # fmt: skip
    if not call.params["markers"]:
        raise InterfuseError("param.value", "markers is empty: at least one marker and its weight")
    if model.config:
        family_of(model.config, model.name)


def _fit(call: Call) -> Mapping[str, Any]:
    """The steering profile: counts, the table of nPMI, and the chosen experts."""
    model, profile, p = call.inputs["model"], call.inputs.get("profile"), call.params
    if profile is not None:
        if profile.facts.get("model") != model.fingerprint():
            raise InterfuseError("input.type", "the profile was found in another model", where=profile.name,
                                 fix="Give transcripts, so that it is found anew.")  # fmt: skip
        return dict(profile.facts)
    device = device_of(call.ctx)
    with threads_for(size_of(model)):
        module: Any = build(model, call.ctx).to(device).eval()
        tokenizer = open_tokenizer(model)
        layers = routed_layers(module, model.name)
        probe = torch.arange(8, device=device)[None] % int(module.config.get_text_config().vocab_size)
        moved = self_test(module, probe)
        counts = count_routing(
            module, tokenizer, call.inputs["transcripts"].texts, list(p["markers"]), layers[0].experts,
            shift=1 if p["position"] == "predict" else 0, skip_first=p["skip_first"], window=Weights.of(module, model.name).window,
            log=call.ctx.log,
        )  # fmt: skip
    table = table_of(counts, p["markers"])
    known = [row for row in table if row["active"] >= p["min_count"]]
    if len(known) < p["count"]:
        raise InterfuseError("input.limit", f"{len(known)} experts are active at {p['min_count']} tokens or more, {p['count']} are wanted",
                             fix="Give more transcripts, or lower min_count.")  # fmt: skip
    if p["choose"] == "random":
        picked = call.ctx.rng("rice/random").permutation(len(known))[: p["count"]]
        chosen = [known[i] for i in sorted(picked.tolist())]
    else:
        key = "active" if p["choose"] == "used" else "score"
        chosen = sorted(known, key=lambda row: (-row[key], row["layer"], row["expert"]))[: p["count"]]
    return {
        "model": model.fingerprint(), "tokens": counts.total, "instances": counts.marked, "markers": p["markers"],
        "chosen": [[row["layer"], row["expert"]] for row in chosen], "table": table, "probe": round(moved, 6),
    }  # fmt: skip


def _steer(
    module: Any, facts: Mapping[str, Any], *, beta: float, renormalise: bool, **rest: Any
) -> contextlib.AbstractContextManager[Any]:
    return steer(
        module, [(int(layer), int(expert)) for layer, expert in facts["chosen"]], beta, renormalise=renormalise
    )


@method(transcripts=True, profile=True, check=_check, fit=_fit, steer=_steer)
def rice(
    step: Step,
    *,
    beta: Annotated[
        float,
        Field(
            gt=0,
            description="routing weight of the chosen experts is multiplied by it; choose it on held-out questions",
        ),
    ] = 4.0,
    count: Annotated[int, Field(ge=1, description="experts that are chosen")] = 2,
    markers: Annotated[
        dict[str, float], Field(description="marker texts and the weight of each in an expert's score")
    ] = MARKERS,
    position: Annotated[
        Literal["input", "predict"],
        Field(description="the token at which the marker is read, or the one that predicts it"),
    ] = "input",
    min_count: Annotated[int, Field(ge=1, description="experts active at fewer tokens are not chosen")] = 20,
    skip_first: Annotated[int, Field(ge=0, description="tokens at the start of each transcript that do not count")] = 1,
    choose: Annotated[
        Literal["npmi", "random", "used"], Field(description="by score, or as a control: at random, or the most used")
    ] = "npmi",
    renormalise: Annotated[bool, Field(description="keep the sum of a token's routing weights")] = False,
) -> Combined:
    """The model's own distribution; what differs is its routing: ``y = sum_i beta^[i in S] g_i E_i(x)`` (section 3.3), for the experts
    ``S`` of the highest ``sum_x c_x nPMI(x, E)`` over the markers (equations 1 to 3)."""
    return Combined(step.model)
