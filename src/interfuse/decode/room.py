"""The decode room: its contract, and what a combiner sees and gives.

A method is one pure function of a step, ``method(step, *, parameters) -> Combined``: it gets the streams' logits, float32, and
gives scores over the main model's vocabulary. It calls no model. Its traits say which streams it needs: ``base`` (``required``,
``none`` or ``optional``), ``experts`` (least and most), ``context`` (the main model also reads the prompt without its context),
``evidence`` (how well each stream predicts the prompt), ``valid`` (refuses parameters that do not fit each other), ``check`` (refuses
inputs), ``fit`` (facts found
once and kept in the artifact) and ``steer`` (what is installed in the main model while it decodes). The loop is in
:mod:`interfuse.decode.engine`; the artifact is described in :mod:`interfuse.decode.fused`. A method with the trait ``spans`` sees
:class:`Spans` instead of a step: stretches of text and how likely each model finds them, which endpoints can tell too
(:mod:`interfuse.decode.spans`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Call, Cost, Input, Room
from interfuse.data.lm import open_speaker
from interfuse.data.models import Model

if TYPE_CHECKING:
    import torch

    from interfuse.core.method import Method
    from interfuse.decode.fused import FusedLM


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of every method of the room; they are kept in the artifact."""

    vocabulary: Annotated[
        Literal["auto", "same", "map", "union", "bytes"],
        Field(
            description="how streams of other tokenizers are read: same (refused), map (token map), union (the likeliest "
            "tokens of every stream), bytes (exact next bytes, slow, a reference); auto is same, else union"
        ),
    ] = "auto"
    union_k: Annotated[int, Field(ge=1, le=1000, description="with union: likeliest tokens taken from each stream")] = (
        20
    )
    templates: Annotated[
        Literal["own", "main", "none"],
        Field(
            description="chat template of every stream: its own, the main model's for all, or none, so that a question is continued as text"
        ),
    ] = "own"
    with_context: Annotated[
        str, Field(min_length=1, description="how a question and its context are written as one prompt")
    ] = "{context}\n{question}"
    embed: Annotated[bool, Field(description="copy the sources into the artifact instead of naming their folders")] = (
        False
    )
    prefill: Annotated[int, Field(ge=1, description="tokens of a prompt that are read at once")] = 2048
    rows: Annotated[int, Field(ge=1, description="texts that are generated at once")] = 16


@dataclass
class Step:
    """What a combiner sees at one step: B texts, V tokens of the main model; all tensors are float32 and not to be changed.

    Attributes:
        model: logits of the main model [B, V]; under two prompts, given the one with the context.
        base: logits of the base [B, V], None without one. experts: those of the experts, each [B, V].
        plain: logits of the main model given the prompt without its context [B, V], None for methods with one prompt.
        evidence: mean log-probability (nats) of the prompt's tokens under the main model and each expert [B, 1 + E]; None for
            methods that do not ask for it.
        number: the step, counted from 0.
    """

    model: torch.Tensor
    base: torch.Tensor | None = None
    experts: list[torch.Tensor] = field(default_factory=list)
    plain: torch.Tensor | None = None
    evidence: torch.Tensor | None = None
    number: int = 0

    def need_base(self) -> torch.Tensor:
        """The base's logits [B, V], which the trait ``base="required"`` guarantees."""
        assert self.base is not None, "the trait base='required' guarantees a base"
        return self.base

    def need_plain(self) -> torch.Tensor:
        """The logits without the context [B, V], which the trait ``context=True`` guarantees."""
        assert self.plain is not None, "the trait context=True guarantees a second prompt"
        return self.plain


@dataclass
class Spans:
    """What a method of spans sees at one round of one text: C stretches of text that may come next, M models.

    Attributes:
        scores: log-probability of every stretch under every model, in nats per byte [C, M], so that tokenizers of any kind compare.
        writers: which model wrote each stretch, [C]. number: the round, counted from 0.
    """

    scores: torch.Tensor
    writers: list[int]
    number: int = 0


@dataclass
class Combined:
    """What a combiner gives.

    Attributes:
        scores: unnormalised log-probabilities of the next token [B, V]; -inf excludes a token. Of spans: one number each [1, C].
        trace: name -> one number per text [B], for the trace. Names are columns of the parquet file.
    """

    scores: torch.Tensor
    trace: dict[str, torch.Tensor] = field(default_factory=dict)


def settings_of(params: Mapping[str, Any]) -> DecodeSettings:
    """The room's settings among the parameters of a call."""
    return DecodeSettings(**{f.name: params[f.name] for f in dataclasses.fields(DecodeSettings)})


def own_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The method's own parameters among those of a call."""
    shared = {f.name for f in dataclasses.fields(DecodeSettings)}
    return {name: value for name, value in params.items() if name not in shared}


def refuse_params(method: Method, params: Mapping[str, Any]) -> None:
    """Raises ``param.value`` for parameters that a method's trait ``valid`` refuses, each of which would pass alone."""
    if "valid" in method.traits:
        method.traits["valid"](own_params(params))


def members(inputs: Mapping[str, Any]) -> list[tuple[str, Model]]:
    """The streams' models in order, each with its role: ``model``, ``base``, ``expert``."""
    found = [("model", inputs["model"])]
    found += [("base", inputs["base"])] if inputs.get("base") is not None else []
    return found + [("expert", m) for m in inputs.get("experts") or ()]


def check(call: Call) -> None:
    """Refuses what cannot be decoded together, before a weight is read.

    Raises:
        InterfuseError: ``param.missing``, ``param.value``, ``input.type``, ``input.vocabulary``, ``input.missing`` or
            ``needs.capability``.
    """
    from interfuse.decode.vocabularies import fit_vocabularies, read_tokens

    traits, slug = call.method.traits, call.method.entry.slug
    base, experts = call.inputs.get("base"), call.inputs.get("experts") or []
    least, most = traits.get("experts", (0, 0))
    if traits.get("base", "none") == "required" and base is None:
        raise InterfuseError(
            "param.missing", f"{slug} needs a base", fix="The small model that the experts were made from."
        )
    if traits.get("base", "none") == "none" and base is not None:
        raise InterfuseError("param.value", f"{slug} takes no base")
    if len(experts) < least:
        raise InterfuseError("param.missing", f"{slug} needs {least} or more experts, {len(experts)} are given")
    if len(experts) > most:
        raise InterfuseError("param.value", f"{slug} takes at most {most} experts, {len(experts)} are given")
    for name in ("transcripts", "profile"):
        if call.inputs.get(name) is not None and not traits.get(name):
            raise InterfuseError("param.value", f"{slug} takes no {name}")
    spans = bool(traits.get("spans"))
    for _, model in members(call.inputs):
        if model.speaker is not None and not spans:
            raise InterfuseError("needs.capability", f"{slug} compares the whole distribution at every token, which {model.name} does not tell",
                                 where=model.name, fix="An endpoint tells twenty tokens at most. Give the model itself, or use span-fusion, which fuses stretches of text.")  # fmt: skip
        if model.task != "causal-lm" and not (model.task == "module" and model.module is not None):
            raise InterfuseError("input.type", f"{model.name} is a {model.task}, not a causal language model", where=model.name,
                                 fix="Encoder-decoder models and endpoints give no logits of a shared text.")  # fmt: skip
    refuse_params(call.method, call.params)
    if "check" in traits:
        traits["check"](call)
    if spans:
        for _, model in members(call.inputs):
            if model.speaker is None and read_tokens(model).folder is None:
                raise InterfuseError("input.missing", "the model has no tokenizer beside it", where=model.name,
                                     fix="Name it: {model: FOLDER, tokenizer: FOLDER}.")  # fmt: skip
        return
    read = [(role, read_tokens(model)) for role, model in members(call.inputs)]
    fit_vocabularies(read, settings_of(call.params), call.ctx.log)


def estimate(call: Call) -> Cost:
    """Nothing is computed but for methods that look at data first; embedding copies every source."""
    folders = dict.fromkeys(m.path for _, m in members(call.inputs) if m.path is not None and m.path.is_dir())
    size = sum(p.stat().st_size for f in folders for p in f.glob("*.safetensors"))
    looked = size if "fit" in call.method.traits else 0
    return Cost(
        looked + (size if call.params["embed"] else 0),
        size if call.params["embed"] else 10_000,
        0,
        round(size / 2e8, 1),
    )


def run(call: Call, folder: Path) -> Mapping[str, Any]:
    """Writes the description, and what the method finds out once."""
    from interfuse.decode.fused import write_fused

    return write_fused(call, folder)


def promise(call: Call, path: Path) -> FusedLM:
    """The fused language model."""
    from interfuse.decode.fused import FusedLM

    return FusedLM(name=call.method.entry.slug, path=path)


def _transcripts(source: Any, ctx: Any) -> Any:
    from interfuse.decode.transcripts import open_transcripts

    return open_transcripts(source, ctx)


def _profile(source: Any, ctx: Any) -> Any:
    from interfuse.decode.transcripts import open_profile

    return open_profile(source, ctx)


ROOM = Room(
    name="decode",
    kind="lm",
    inputs=(
        Input("model", open_speaker, positional=True, doc="the main model, whose tokens are written"),
        Input("base", open_speaker, required=False, doc="the small model the experts were made from, or the amateur"),
        Input("experts", open_speaker, many=True, required=False, doc="further models, often fine-tuned from the base"),
        Input(
            "transcripts",
            _transcripts,
            required=False,
            doc="texts with markers, from which experts of a mixture are found",
        ),
        Input("profile", _profile, required=False, doc="a steering profile found before"),
    ),
    settings=DecodeSettings,
    run=run,
    promise=promise,
    check=check,
    estimate=estimate,
)


def reopen(artifact: Any, name: str, ctx: Any) -> FusedLM:
    """The language model of an artifact of this room; other rooms open it by this."""
    from interfuse.decode.fused import open_fused

    return open_fused(artifact, name, ctx)
