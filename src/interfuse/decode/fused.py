"""A fused language model: the folder that describes it, and the noun that answers like any other language model.

The folder holds ``fused-lm.json``: the method with its parameters, and the streams, each with its role, where its model is (a folder
relative to this one, or a Hugging Face id) and a digest of that model's files, which is compared before anything is decoded.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from interfuse.core.artifact import Artifact
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import Method, load
from interfuse.core.rooms import Call, Source
from interfuse.core.safe import canonical_json, fingerprint, jsonable, read_text
from interfuse.data.endpoint_lm import EndpointLM
from interfuse.data.lm import LM, CachedLM, RecordedLM, Reply, Scored, cached, open_lm
from interfuse.data.local_lm import LocalLM
from interfuse.data.models import (
    Model,
    build,
    device_of,
    folder_digest,
    open_model,
    open_tokenizer,
    save,
    tokenizer_folder,
)
from interfuse.decode.engine import Engine, Event, Options, Text, Voice
from interfuse.decode.room import DecodeSettings, members, own_params, refuse_params, settings_of
from interfuse.decode.spans import SpanEngine
from interfuse.decode.streams import Weights
from interfuse.decode.vocabularies import Projection, fit_vocabularies, read_tokens

DESCRIPTION, FACTS = "fused-lm.json", "facts.json"
FORMAT = 1
_CACHED = re.compile(r"models--([^/]+)--([^/]+)/snapshots/([^/]+)\Z")


# ------------------------------------------------------------------------------------------------ writing


def write_fused(call: Call, folder: Path) -> Mapping[str, Any]:
    """Writes the description of a call's streams, and the facts its method finds, into ``folder``."""
    settings, streams, numbers = settings_of(call.params), [], dict[str, int]()
    for role, model in members(call.inputs):
        number = numbers[role] = numbers.get(role, 0) + 1
        name = role if role != "expert" else f"expert {number}"
        place = _speaks(model, folder) if model.speaker is not None else _where(model, folder, settings, name, call.ctx)
        streams.append({"role": role, "name": name, "model": model.name, **place})
    facts: Mapping[str, Any] = {}
    if "fit" in call.method.traits:
        facts = call.method.traits["fit"](call)
        (folder / FACTS).write_bytes(canonical_json(jsonable(facts)))
    body = {"format": FORMAT, "method": call.method.id, "version": call.method.version(), "params": jsonable(call.params),
            "streams": streams}  # fmt: skip
    (folder / DESCRIPTION).write_bytes(canonical_json(body))
    return {
        "streams": [s["name"] for s in streams],
        **{k: v for k, v in facts.items() if isinstance(v, int | float | str)},
    }


def _speaks(model: Model, folder: Path) -> dict[str, Any]:
    """How a language model that is no checkpoint can be found again; keys are never written, only the name of their variable."""
    lm = model.speaker.inner if isinstance(model.speaker, CachedLM) else model.speaker
    if isinstance(lm, EndpointLM):
        spec: dict[str, Any] = {"endpoint": lm.endpoint, "model": lm.model, "key_env": lm.key_env, "api": lm.api, "timeout": lm.timeout,
                                "retries": lm.retries, "workers": lm.workers}  # fmt: skip
    elif isinstance(lm, RecordedLM):
        spec = {"replies": _place(lm.file, folder)}
    elif isinstance(lm, FusedLM):
        spec = {"fused": _place(lm.path, folder)}
    else:
        raise InterfuseError("input.type", "a language model in memory cannot be written down", where=model.name,
                             fix="Name its folder, endpoint or file of recorded replies.")  # fmt: skip
    return {"speaker": spec, "digest": model.fingerprint()}


def open_speaking(row: Mapping[str, Any], folder: Path, ctx: Ctx) -> LM:
    """The language model of one stream of a description: endpoints with their replies kept, the others as they are.

    Raises:
        InterfuseError: as :func:`open_stream`.
    """
    spec = row.get("speaker")
    if spec is None:
        return LocalLM(open_stream(row, folder, ctx), ctx, exact=True)
    known: Any = str(folder / spec["fused"]) if "fused" in spec else f"replies:{folder / spec['replies']}" if "replies" in spec else dict(spec)  # fmt: skip
    lm = open_lm(Source(known, name=str(row["model"])), ctx)
    if lm.fingerprint() != row["digest"]:
        raise InterfuseError("artifact.damaged", f"the model of the stream {row['name']} is not the one it was made with", where=lm.name,
                             fix="Make the fused model again.")  # fmt: skip
    return cached(lm, ctx) if isinstance(lm, EndpointLM) else lm


def _where(model: Model, folder: Path, settings: DecodeSettings, name: str, ctx: Ctx) -> dict[str, Any]:
    """Where a stream's model can be found again, and the digest of its files."""
    adapted = model.computed
    base, adapter = getattr(adapted, "base", None), getattr(adapted, "adapter", None)
    own = tokenizer_folder(model)
    if isinstance(base, Path) and isinstance(adapter, Path) and not settings.embed:
        found: dict[str, Any] = {
            "at": _place(base, folder),
            "adapter": _place(adapter, folder),
            "digest": model.fingerprint(),
        }
        return {**found, "tokenizer": _place(own, folder) if own is not None else None}
    if model.path is not None and model.path.is_dir() and not settings.embed:
        separate = own is not None and own != model.path
        return {"at": _place(model.path, folder), "adapter": None, "digest": folder_digest(model.path),
                "tokenizer": _place(own, folder) if separate and own is not None else None}  # fmt: skip
    place = folder / "sources" / name.replace(" ", "-")
    place.mkdir(parents=True)
    if model.path is not None and model.path.is_dir():
        for file in sorted(model.path.iterdir()):
            if file.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja") and file.name != "interfuse.json":
                shutil.copyfile(file, place / file.name)
    else:
        save(build(model, ctx), place, tokenizer_from=own)
    return {"at": _place(place, folder), "adapter": None, "digest": folder_digest(place), "tokenizer": None}


def _place(path: Path, folder: Path) -> str:
    """A path relative to the artifact, or the id of a model in the Hugging Face cache."""
    absolute = Path(os.path.realpath(path.parent)) / path.name
    if match := _CACHED.search(absolute.as_posix()):
        return f"{match[1]}/{match[2]}@{match[3]}"
    return Path(os.path.relpath(absolute, os.path.realpath(folder))).as_posix()


# ------------------------------------------------------------------------------------------------ loading


@dataclass(frozen=True)
class Loaded:
    """Models in memory, and the streams over them; for methods of spans the language models alone."""

    weights: list[Weights]
    tokenizers: list[Any]
    voices: list[Voice]
    lms: list[LM] = field(default_factory=list)


def load_streams(streams: Sequence[tuple[str, str, Any, Any]], method: Method, settings: DecodeSettings,
                 kinds: Sequence[str] | None = None) -> Loaded:  # fmt: skip
    """Streams over modules in memory; equal modules are one set of weights.

    Args:
        streams: role, name, module and tokenizer of each, the main model first. kinds: how each vocabulary is brought onto the first's
            (``same``, ``map``, ``union``); all the same when None.
    """
    weights: list[Weights] = []
    tokenizers: list[Any] = []
    voices: list[Voice] = []
    for i, (role, name, module, tokenizer) in enumerate(streams):
        at = next((w for w, known in enumerate(weights) if known.module is module), len(weights))
        if at == len(weights):
            weights.append(Weights.of(module, name))
            tokenizers.append(tokenizer)
        projection = None
        kind = kinds[i] if kinds is not None else "same"
        if kind in ("map", "union"):
            width = int(weights[0].module.get_output_embeddings().weight.shape[0])
            projection = Projection.between(
                tokenizers[0], tokenizer, "map" if kind == "map" else "union", width, settings.union_k
            )
        voices.append(Voice(name, role, at, projection))
    if method.traits.get("context"):
        voices.append(Voice("without context", "plain", 0))
    return Loaded(weights, tokenizers, voices)


def make_engine(
    loaded: Loaded, method: Method, params: Mapping[str, Any], facts: Mapping[str, Any] | None = None
) -> Engine:
    """An engine of a method over loaded streams.

    Args:
        params: all of the method's parameters, checked.
    """
    own = own_params(params)
    steer: Callable[[], contextlib.AbstractContextManager[Any]] | None = None
    if "steer" in method.traits:
        steer = functools.partial(method.traits["steer"], loaded.weights[0].module, facts or {}, **own)
    return Engine(
        loaded.weights, loaded.tokenizers, loaded.voices, lambda step: method.target(step, **own), settings_of(params),
        evidence=bool(method.traits.get("evidence")), steer=steer,
    )  # fmt: skip


def fuse(
    method: str, streams: Sequence[tuple[str, Any, Any]], *, facts: Mapping[str, Any] | None = None, **params: Any
) -> Engine:
    """An engine over modules in memory, without an artifact.

    Args:
        method: slug or id, such as ``ck-plug``. streams: role (``model``, ``base``, ``expert``), module and tokenizer of each, the main
            model first; all of one vocabulary.

    Raises:
        InterfuseError: ``param.unknown``, ``param.value`` or ``param.missing``.
    """
    chosen = load(method, room="decode")
    checked = chosen.check(params)
    refuse_params(chosen, checked)
    named = [(role, role if role != "expert" else f"expert {i}", module, tokenizer)
             for i, (role, module, tokenizer) in enumerate(streams, 1 - sum(r != "expert" for r, _, _ in streams))]  # fmt: skip
    return make_engine(load_streams(named, chosen, settings_of(checked)), chosen, checked, facts)


def read_description(path: Path) -> dict[str, Any]:
    """``fused-lm.json`` of an artifact.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    file = path / DESCRIPTION
    if not file.is_file():
        raise InterfuseError("input.missing", f"the folder has no {DESCRIPTION}", where=str(path),
                             fix="Name a folder that a method of the room decode has made.")  # fmt: skip
    try:
        body: dict[str, Any] = json.loads(read_text(file))
        if body["format"] != FORMAT or not body["streams"]:
            raise ValueError("another format")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InterfuseError(
            "input.format", "the description of the fused model cannot be read", where=str(file)
        ) from error
    return body


def open_stream(row: Mapping[str, Any], folder: Path, ctx: Ctx) -> Model:
    """The model of one stream of a description.

    Raises:
        InterfuseError: ``input.missing`` when it is not where it was, ``artifact.damaged`` when it is another one now.
    """
    at = str(row["at"])
    spec: dict[str, Any] = {"model": at if "@" in at and not (folder / at).exists() else str(folder / at)}
    spec |= {"adapter": str(folder / str(row["adapter"]))} if row.get("adapter") else {}
    spec |= {"tokenizer": str(folder / str(row["tokenizer"]))} if row.get("tokenizer") else {}
    try:
        model = open_model(Source(spec, name=str(row["model"])), ctx)
    except InterfuseError as error:
        raise InterfuseError(error.code, f"the stream {row['name']} ({row['model']}): {error.what}", where=str(folder),
                             fix="Put the model back, or make the fused model again; embed: true keeps copies in the folder.") from error  # fmt: skip
    have = model.fingerprint()
    if have != row["digest"]:
        raise InterfuseError("artifact.damaged", f"the model of the stream {row['name']} is not the one it was made with", where=str(model.path or at),
                             fix="Make the fused model again.")  # fmt: skip
    return model


def open_streams(path: Path, method: Method, params: Mapping[str, Any], ctx: Ctx) -> Loaded:
    """Loads every stream that a description names; one folder is loaded once."""
    settings, modules, streams = settings_of(params), dict[str, tuple[Any, Any]](), []
    if method.traits.get("spans"):
        return Loaded([], [], [], [open_speaking(row, path, ctx) for row in read_description(path)["streams"]])
    read = []
    for row in read_description(path)["streams"]:
        model = open_stream(row, path, ctx)
        key = fingerprint([row["digest"], row.get("tokenizer")])
        if key not in modules:
            module = build(model, ctx).to(device_of(ctx)).eval()
            modules[key] = module, open_tokenizer(model) if tokenizer_folder(model) is not None else None
        read.append((str(row["role"]), read_tokens(model)))
        streams.append((str(row["role"]), str(row["name"]), *modules[key]))
    main = streams[0][3]
    streams = [(role, name, module, tokenizer or main) for role, name, module, tokenizer in streams]
    return load_streams(streams, method, settings, fit_vocabularies(read, settings, ctx.log))


# ------------------------------------------------------------------------------------------------ the noun


@dataclass(frozen=True)
class FusedLM:
    """A fused language model that may not have been loaded yet; an :class:`~interfuse.data.lm.LM`.

    Attributes:
        name: how reports call it. path: the folder of its description. changes: parameters that differ from the description's.
        made_by, parents, key: the step that makes it, what that step takes, and the step's key.
        ctx: device and dtype it is loaded in.
    """

    name: str
    path: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    made_by: str = ""
    parents: tuple[Any, ...] = field(default=(), repr=False)
    key: str = ""
    ctx: Ctx = field(default_factory=Ctx, repr=False, compare=False)
    loaded: Loaded | None = field(default=None, repr=False, compare=False)

    def fingerprint(self) -> str:
        """The key of the step that makes it, or a digest of its description; changed parameters change it."""
        made = self.key or fingerprint(read_description(self.path))
        return fingerprint([made, jsonable(dict(self.changes))]) if self.changes else made

    @functools.cached_property
    def method(self) -> Method:
        """The method that combines its streams."""
        return load(str(read_description(self.path)["method"]))

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        """All parameters, the changed ones included, checked.

        Raises:
            InterfuseError: ``param.unknown`` or ``param.value``.
        """
        stored: dict[str, Any] = read_description(self.path)["params"]
        return self.method.check({**stored, **self.changes})

    @functools.cached_property
    def _streams(self) -> Loaded:
        return self.loaded or open_streams(self.path, self.method, self.params, self.ctx)

    @functools.cached_property
    def spans(self) -> SpanEngine | None:
        """The loop over its models for a method of spans, None for others."""
        if not self.method.traits.get("spans"):
            return None
        own, names = own_params(self.params), [str(row["name"]) for row in read_description(self.path)["streams"]]
        made = SpanEngine(self._streams.lms, names, lambda step: self.method.target(step, **own), settings_of(self.params),
                          span=own["span"], samples=own["samples"], ctx=self.ctx)  # fmt: skip
        made.log = self.ctx.log
        return made

    @functools.cached_property
    def engine(self) -> Engine | SpanEngine:
        """The loop over its streams, loaded when first asked for."""
        if self.spans is not None:
            return self.spans
        file = self.path / FACTS
        facts: dict[str, Any] = json.loads(read_text(file)) if file.is_file() else {}
        made = make_engine(self._streams, self.method, self.params, facts)
        made.log = self.ctx.log
        return made

    def with_params(self, **changes: Any) -> FusedLM:
        """The same streams under other parameters of the combiner; nothing is loaded again.

        Raises:
            InterfuseError: ``param.unknown`` or ``param.value``.
        """
        refuse_params(self.method, self.method.check({**self.params, **changes}))
        return replace(self, changes={**self.changes, **changes}, loaded=self._streams)

    def generate(self, prompts: Sequence[Any], *, max_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0,
                 stop: Sequence[str] = (), n: int = 1, seed: int = 0, schema: Mapping[str, Any] | None = None, ctx: Ctx | None = None,
                 top_k: int = 0, min_p: float = 0.0, repetition_penalty: float = 1.0, generator: torch.Generator | None = None,
                 processors: Sequence[Any] = (), trace: Callable[[Mapping[str, Any]], None] | None = None) -> list[list[Reply]]:  # fmt: skip
        """``n`` replies per prompt.

        Args:
            prompts: texts, lists of messages (one of the role ``context`` holds the context), or tables ``{question, context}``.
            generator: one generator for all texts, used as ``model.generate`` does; without it each text has its own.
            processors: of ``transformers``, applied after combining. trace: called with one row per token. schema: not enforced.

        Raises:
            InterfuseError: ``input.empty``, ``input.limit``, ``input.nan``, ``input.missing`` or ``needs.capability``.
        """
        copies, n = (n, 1) if temperature == 0 else (1, n)
        options = Options(max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, tuple(s for s in stop if s), n, seed, generator,
                          tuple(processors), trace)  # fmt: skip
        found: dict[tuple[int, int], Reply] = {}
        with (ctx or self.ctx).bar(f"generate {self.name}", len(prompts) * n, "texts") as bar:
            for event in self.engine.run(prompts, options):
                if event.done:
                    text = event.source
                    if (text.prompt, text.sample) not in found:
                        bar.advance(1)
                    found[text.prompt, text.sample] = self.reply(text, options)
        return [[found[i, k] for k in range(n)] * copies for i in range(len(prompts))]

    def stream(self, prompts: Sequence[Any], options: Options) -> Iterator[Event]:
        """The tokens of every text as they are made."""
        return self.engine.run(prompts, options)

    def reply(self, text: Text, options: Options) -> Reply:
        """A finished text as a reply."""
        return Reply(self.engine.words(text, options.stop), text.asked, len(text.ids), text.finish, text.logprob)

    def score(self, pairs: Sequence[tuple[Any, str]], *, ctx: Ctx | None = None) -> list[Scored]:
        """How likely each continuation is after its prompt under the fused distribution; prompts as in :meth:`generate`.

        Raises:
            InterfuseError: ``input.empty`` for an empty continuation, ``input.limit``.
        """
        engine, found = self.engine, []
        if isinstance(engine, SpanEngine):
            raise InterfuseError("needs.capability", f"{self.method.id} fuses texts and has no distribution of its own", where=self.name,
                                 fix="Score with its models, or fuse tokens: mixture.")  # fmt: skip
        for prompt, text in pairs:
            if not text:
                raise InterfuseError("input.empty", "a continuation to score is empty", where=self.name)
            encoded, ids = self._split(prompt, text)
            values = engine.score([[row] for row in encoded], [ids])[0]
            found.append(Scored(sum(values), len(values), tuple(values)))
        return found

    def _split(self, prompt: Any, text: str) -> tuple[list[list[int]], list[int]]:
        """Every voice's prompt, and the main tokens that hold a character of the continuation."""
        engine = self.engine
        assert isinstance(engine, Engine), "spans are refused before"
        encoded = [rows[0] for rows in engine.encode([prompt])]
        tokenizer = engine.tokenizer
        if engine.bytewise:
            return encoded, list(text.encode())
        if not isinstance(prompt, str) or any(v.projection is not None for v in engine.voices):
            ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
            return encoded, ids
        coded = tokenizer(prompt + text, return_offsets_mapping=True, return_special_tokens_mask=True)
        ids, spans, special = list(coded["input_ids"]), coded["offset_mapping"], coded["special_tokens_mask"]
        border = next(
            (i for i, (span, s) in enumerate(zip(spans, special, strict=True)) if not s and span[1] > len(prompt)),
            len(ids),
        )
        last = next((i for i in range(len(ids), border, -1) if not special[i - 1]), border)
        if not border or border == last:
            return encoded, list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return [ids[:border]] * len(encoded), ids[border:last]


def open_fused(artifact: Artifact, name: str, ctx: Ctx) -> FusedLM:
    """The language model of an artifact of this room."""
    read_description(artifact.path)
    return FusedLM(name=name, path=artifact.path, key=str(artifact.manifest.get("key", "")), ctx=ctx)


__all__ = ["FusedLM", "Loaded", "fuse", "load_streams", "make_engine", "open_fused", "read_description", "write_fused"]
