"""Language models as one small noun: generate texts, score continuations; local, behind an endpoint, or recorded.

A prompt is a string, which is continued as it stands, or a list of messages ``{"role": ..., "content": ...}``, which the model's chat
template (or its server) renders. :func:`open_lm` opens whatever a recipe or a flag names; :class:`CachedLM` keeps every reply on
disk by its content, so that a call that is paid for is never repeated.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from interfuse.core import index
from interfuse.core.artifact import MANIFEST, Artifact, open_artifact
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.rooms import Source
from interfuse.core.safe import canonical_json, file_sha256, fingerprint, read_text, write_atomic
from interfuse.data.models import Model, open_model

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
#: characters per token, where a count is only estimated (English text under common vocabularies)
CHARACTERS_PER_TOKEN = 4.0
ENDPOINT_KEYS = ("endpoint", "model", "key_env", "api", "timeout", "retries", "workers")


@dataclass(frozen=True)
class Reply:
    """One generated text.

    Attributes:
        text: without the prompt and without the stop string.
        prompt_tokens, tokens: counts of the model's own tokens (estimated where a backend does not tell).
        finish: ``stop`` when the model ended it, ``length`` when ``max_tokens`` did.
        logprob: the sum over its tokens, in nats, where the backend gives it.
    """

    text: str
    prompt_tokens: int
    tokens: int
    finish: str
    logprob: float | None = None


@dataclass(frozen=True)
class Scored:
    """A continuation scored after its prompt: log-probabilities in nats, in all and token by token."""

    logprob: float
    tokens: int
    token_logprobs: tuple[float, ...]


@runtime_checkable
class LM(Protocol):
    """What every language model can be asked."""

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str:
        """A digest that changes when its answers may."""
        ...

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0,
                 stop: Sequence[str] = (), n: int = 1, seed: int = 0, schema: Mapping[str, Any] | None = None,
                 ctx: Ctx | None = None) -> list[list[Reply]]:  # fmt: skip
        """``n`` replies per prompt, in the order of the prompts.

        Args:
            max_tokens: the most tokens of a reply. temperature: 0 is greedy. top_p: nucleus. stop: texts that end a reply.
            schema: a JSON schema that the backend enforces where it can; the caller still checks the reply.
            ctx: budget and progress.

        Raises:
            InterfuseError: ``input.limit`` when a prompt is too long, ``endpoint.failed``, ``budget.spent`` or ``needs.capability``.
        """
        ...

    def score(self, pairs: Sequence[tuple[str, str]], *, ctx: Ctx | None = None) -> list[Scored]:
        """How likely each continuation is after its prompt: pairs (prompt, continuation).

        Raises:
            InterfuseError: ``needs.capability`` when the backend cannot score, ``input.empty`` for an empty continuation.
        """
        ...


def words_of(prompt: Prompt) -> str:
    """The text of a prompt, for counts and messages."""
    return prompt if isinstance(prompt, str) else "\n".join(str(m.get("content", "")) for m in prompt)


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Raises ``input.type`` or ``input.empty`` naming the first prompt that is neither a text nor a list of messages."""
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            continue
        if not isinstance(prompt, Sequence) or not all(
            isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in prompt
        ):
            raise InterfuseError(
                "input.type", "a prompt is a text, or a list of messages with role and content", where=f"prompt {i}"
            )
        if not prompt:
            raise InterfuseError("input.empty", "the conversation holds no message", where=f"prompt {i}")


def estimated_tokens(prompts: Sequence[Prompt], max_tokens: int = 0, n: int = 1) -> int:
    """Tokens that prompts and their replies may take at most, from their characters (for costs that are told first)."""
    return sum(int(len(words_of(p)) / CHARACTERS_PER_TOKEN) + 1 for p in prompts) + len(prompts) * max_tokens * n


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first of the stop strings, and whether one was found."""
    places = [text.find(s) for s in stop if s and s in text]
    return (text[: min(places)], True) if places else (text, False)


class RecordedLM:
    """Replies from a file, for tests and for repeating an analysis without its model.

    The file holds one JSON object per line: ``{"prompt": TEXT or MESSAGES, "replies": [TEXT, ...]}``, and for scores
    ``{"prompt": TEXT, "continuation": TEXT, "token_logprobs": [...]}``.

    Raises:
        InterfuseError: ``input.missing`` for a missing file, or for a prompt that was not recorded (the closest one is named);
            ``input.format`` naming the line.
    """

    def __init__(self, file: Path, name: str = "") -> None:
        if not file.is_file():
            raise InterfuseError("input.missing", "there is no such file of recorded replies", where=str(file))
        self.name, self.file = name or file.stem, file
        self._replies: dict[bytes, list[str]] = {}
        self._scores: dict[tuple[str, str], tuple[float, ...]] = {}
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if line.strip():
                self._read(line, f"{file}:{number}")

    def _read(self, line: str, where: str) -> None:
        try:
            row = json.loads(line)
            if "continuation" in row:
                self._scores[row["prompt"], row["continuation"]] = tuple(float(v) for v in row["token_logprobs"])
            else:
                self._replies[canonical_json(row["prompt"])] = [str(v) for v in row["replies"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InterfuseError("input.format", "a line of recorded replies cannot be read", where=where,
                                 fix='It is {"prompt": ..., "replies": [...]}.') from error  # fmt: skip

    def fingerprint(self) -> str:
        return file_sha256(self.file)

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0,
                 stop: Sequence[str] = (), n: int = 1, seed: int = 0, schema: Mapping[str, Any] | None = None,
                 ctx: Ctx | None = None) -> list[list[Reply]]:  # fmt: skip
        """The recorded replies; the first of them again where more than were recorded are asked for."""
        check_prompts(prompts)
        found = []
        for prompt in prompts:
            texts = self._replies.get(canonical_json(prompt))
            if not texts:
                close = did_you_mean(words_of(prompt)[:200], [json.dumps(json.loads(k))[:200] for k in self._replies])
                raise InterfuseError("input.missing", f"no reply was recorded for the prompt {words_of(prompt)[:80]!r}",
                                     where=str(self.file), fix=close)  # fmt: skip
            replies = []
            for i in range(n):
                text, _ = cut_at(texts[i % len(texts)], stop)
                replies.append(
                    Reply(
                        text,
                        estimated_tokens([prompt]),
                        estimated_tokens([text]),
                        "stop",
                    )
                )
            found.append(replies)
        return found

    def score(self, pairs: Sequence[tuple[str, str]], *, ctx: Ctx | None = None) -> list[Scored]:
        """The recorded scores."""
        for pair in pairs:
            if pair not in self._scores:
                raise InterfuseError(
                    "input.missing",
                    f"no score was recorded for {pair[1][:80]!r} after {pair[0][-80:]!r}",
                    where=str(self.file),
                )
        return [Scored(sum(v), len(v), v) for v in (self._scores[p] for p in pairs)]


class CachedLM:
    """Any LM with its replies kept on disk by content: model, prompt, options and seed. What is kept is not asked or paid again.

    Args:
        inner: the model. folder: where replies are kept. batch: prompts per call of a model here; what a call brought is kept
            before the next one, so that a kill loses one call at most. An endpoint's replies are kept one by one.
    """

    def __init__(self, inner: LM, folder: Path, batch: int = 16) -> None:
        self.inner, self.folder, self.batch = inner, folder, batch
        #: prompts that were asked, and that were found, since it was made
        self.asked, self.found = 0, 0

    @property
    def name(self) -> str:
        return self.inner.name

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def _file(self, kind: str, prompt: Any, options: Mapping[str, Any]) -> Path:
        key = fingerprint({"lm": self.inner.fingerprint(), "kind": kind, "prompt": prompt, "options": dict(options)})
        return self.folder / key[:2] / f"{key}.json"

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0,
                 stop: Sequence[str] = (), n: int = 1, seed: int = 0, schema: Mapping[str, Any] | None = None,
                 ctx: Ctx | None = None) -> list[list[Reply]]:  # fmt: skip
        """As the model's own; ``ctx.budget`` pays for what is not kept yet, before it is asked."""
        check_prompts(prompts)
        options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "stop": list(stop),
                                   "n": n, "seed": seed, "schema": dict(schema) if schema is not None else None}  # fmt: skip
        files = [self._file("reply", _plain(p), options) for p in prompts]
        missing = _first_missing(files)
        self.found += len(prompts) - len(missing)
        asked: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "stop": stop, "n": n, "seed": seed,
                                 "schema": schema}  # fmt: skip
        for start in range(0, len(missing), self.batch):
            part = missing[start : start + self.batch]
            texts = [prompts[i] for i in part]
            if ctx is not None:
                ctx.budget.spend(calls=len(part), tokens=estimated_tokens(texts, max_tokens, n))
            self.asked += len(part)
            for i, replies in self._brought(part, texts, asked, ctx):
                write_atomic(files[i], canonical_json([dataclasses.asdict(r) for r in replies]))
        return [[Reply(**row) for row in _kept(f)] for f in files]

    def _brought(
        self, part: Sequence[int], texts: Sequence[Prompt], asked: Mapping[str, Any], ctx: Ctx | None
    ) -> Iterator[tuple[int, list[Reply]]]:
        """What the model answers, as it comes. Of an endpoint every answer is given by itself, also when another call fails."""
        from interfuse.data.endpoint_lm import EndpointLM

        if not isinstance(self.inner, EndpointLM):
            yield from zip(part, self.inner.generate(texts, **asked, ctx=ctx), strict=True)
            return
        failed: list[BaseException] = []
        for i, answer in zip(part, self.inner.each(texts, **asked, ctx=ctx), strict=True):
            if isinstance(answer, BaseException):
                failed.append(answer)
            else:
                yield i, answer
        if failed:
            raise failed[0]

    def score(self, pairs: Sequence[tuple[str, str]], *, ctx: Ctx | None = None) -> list[Scored]:
        """As the model's own."""
        files = [self._file("score", list(pair), {}) for pair in pairs]
        missing = _first_missing(files)
        self.found += len(pairs) - len(missing)
        if missing and is_far(self.inner):
            self.inner.score([])  # one that cannot score says so before anything is paid
        for start in range(0, len(missing), self.batch):
            part = missing[start : start + self.batch]
            if ctx is not None:
                ctx.budget.spend(calls=len(part), tokens=estimated_tokens(["".join(pairs[i]) for i in part]))
            self.asked += len(part)
            for i, scored in zip(part, self.inner.score([pairs[i] for i in part], ctx=ctx), strict=True):
                write_atomic(files[i], canonical_json(list(scored.token_logprobs)))
        kept = [tuple(float(v) for v in _kept(f)) for f in files]
        return [Scored(sum(v), len(v), v) for v in kept]

    def forget(self, prompt: Prompt, **options: Any) -> None:
        """Drops what is kept for a prompt, such as a reply that turned out to be unusable.

        Args:
            options: those of :meth:`generate` that were given.
        """
        full = {
            "max_tokens": 256,
            "temperature": 0.0,
            "top_p": 1.0,
            "stop": [],
            "n": 1,
            "seed": 0,
            "schema": None,
            **options,
        }
        full["stop"] = list(full["stop"])
        self._file("reply", _plain(prompt), full).unlink(missing_ok=True)


def _first_missing(files: Sequence[Path]) -> list[int]:
    """Where each file that is not there is named first."""
    places = {file: i for i, file in reversed(list(enumerate(files)))}
    return sorted(i for file, i in places.items() if not file.is_file())


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [dict(m) for m in prompt]


def _kept(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except ValueError as error:
        raise InterfuseError(
            "artifact.damaged", "a kept reply cannot be read", where=str(file), fix="Remove the file."
        ) from error


def cached(lm: LM, ctx: Ctx) -> CachedLM:
    """The model with its replies kept in the context's cache folder."""
    return lm if isinstance(lm, CachedLM) else CachedLM(lm, ctx.cache.expanduser() / "replies")


def is_far(lm: Any) -> bool:
    """Whether asking the model is a call of an endpoint."""
    from interfuse.data.endpoint_lm import EndpointLM

    return isinstance(lm.inner if isinstance(lm, CachedLM) else lm, EndpointLM)


def open_lm(source: Source, ctx: Ctx) -> LM:
    """Opens a language model, reading as little as possible and asking nothing.

    Accepts a model's folder or Hugging Face id, ``replies:FILE.jsonl``, a table with the keys ``endpoint`` and ``model`` (and
    ``key_env``, ``api``, ``timeout``, ``retries``, ``workers``), a table of a model source, the artifact of a room that makes language
    models, a :class:`~interfuse.data.models.Model`, or any object that is an :class:`LM`.

    Raises:
        InterfuseError: as ``open_model``; ``input.type`` when the model generates no text, ``param.unknown``, ``param.missing``.
    """
    spec = source.spec
    if isinstance(spec, LM):
        return spec
    if isinstance(spec, Mapping) and "replies" in spec:
        spec = f"replies:{spec['replies']}"
    if isinstance(spec, str) and spec.startswith("replies:"):
        return RecordedLM(source.folder / Path(spec.removeprefix("replies:")).expanduser(), source.name)
    if isinstance(spec, Mapping) and "endpoint" in spec:
        for key in spec:
            if key not in ENDPOINT_KEYS:
                raise InterfuseError(
                    "param.unknown",
                    f"an endpoint has no key {key!r}",
                    where=source.name,
                    fix=did_you_mean(key, ENDPOINT_KEYS),
                )
        if "model" not in spec:
            raise InterfuseError(
                "param.missing", "an endpoint needs 'model', the name its server knows", where=source.name
            )
        from interfuse.data.endpoint_lm import EndpointLM

        return EndpointLM(**dict(spec), name=source.name)
    made = _is_made(source)
    if made is not None:
        room = index.load_room_module(str(made.manifest["method"]).split("/")[0])
        return room.reopen(made, source.name or made.path.name, ctx)
    from interfuse.data.local_lm import LocalLM

    return LocalLM(open_model(source, ctx), ctx)


def _is_made(source: Source) -> Artifact | None:
    """The artifact of a language model that a room has made and that is no checkpoint, where the source names one."""
    if not isinstance(source.spec, str | Path):
        return None
    folder = source.folder / Path(source.spec).expanduser()
    found = open_artifact(folder) if (folder / MANIFEST).is_file() else None
    return found if found is not None and found.kind == "lm" else None


def open_speaker(source: Source, ctx: Ctx) -> Model:
    """Opens a model of any kind: a checkpoint as ``open_model`` does, or a language model that is none as a model that speaks.

    Raises:
        InterfuseError: as ``open_model`` and :func:`open_lm`.
    """
    spec = source.spec
    if isinstance(spec, Model):
        return spec
    far = isinstance(spec, Mapping) and ("endpoint" in spec or "replies" in spec)
    if not far and not isinstance(spec, LM) and not str(spec).startswith("replies:") and _is_made(source) is None:
        return open_model(source, ctx)
    lm = open_lm(source, ctx)
    made_by, parents = getattr(lm, "made_by", ""), getattr(lm, "parents", ())
    return Model(
        source.name or lm.name,
        task="causal-lm",
        speaker=lm,
        made_by=made_by,
        parents=tuple(parents),
        key=lm.fingerprint(),
    )


def as_lm(model: Model, ctx: Ctx) -> LM:
    """The language model that a model is.

    Raises:
        InterfuseError: ``input.type`` when it generates no text.
    """
    from interfuse.data.local_lm import LocalLM

    return model.speaker if model.speaker is not None else LocalLM(model, ctx)
