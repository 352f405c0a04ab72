"""The loop: streams give logits, the combiner makes scores of them, the sampler draws, every stream reads the token.

Streams that use the same weights run as one batched forward. Temperature, top-k, top-p and further processors come after
combining. Each text draws from a generator of its own, so a text does not depend on what else is in the batch; with one generator
for all, texts are those of ``model.generate`` under that generator.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint
from interfuse.decode.bytewise import END, ByteReader, ByteVocabulary
from interfuse.decode.prompts import Contexts, ids_of, texts_of
from interfuse.decode.room import Combined, DecodeSettings, Step
from interfuse.decode.streams import Counts, Tape, Weights, pad
from interfuse.decode.texts import TextStreams
from interfuse.decode.vocabularies import Projection, onto_main, surfaces, widen_logits


@dataclass(frozen=True)
class Voice:
    """One stream: whose weights it uses, what it is to the combiner, and what it reads.

    Attributes:
        name: for errors and traces. role: ``model``, ``base``, ``expert`` or ``plain``. weights: index into the engine's models.
        projection: how logits over another vocabulary become those over the main one; None for the same vocabulary.
    """

    name: str
    role: str
    weights: int
    projection: Projection | None = None


@dataclass(frozen=True)
class Options:
    """How texts are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep every token.

    Attributes:
        seed: of the texts' own generators. generator: one generator for all texts instead, as ``model.generate`` uses it.
        processors: of ``transformers``, applied after combining and before the temperature.
        trace: called with one row per token.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    n: int = 1
    seed: int = 0
    generator: torch.Generator | None = None
    processors: tuple[Any, ...] = ()
    trace: Callable[[Mapping[str, Any]], None] | None = None

    def check(self) -> None:
        """Raises ``param.value`` for what cannot be drawn."""
        for name, good, words in (
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("n", self.n >= 1, "1 or more"),
        ):
            if not good:
                raise InterfuseError("param.value", f"{name} = {getattr(self, name)}: it must be {words}")


@dataclass(eq=False)
class Text:
    """A text that is being made: its prompt's and sample's numbers, and the tokens so far."""

    prompt: int
    sample: int
    asked: int
    draw: torch.Generator | None = None
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish: str = ""
    text: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Event:
    """One token of one text; ``text`` is what can be shown of it so far, stop strings left out once they are whole."""

    source: Text
    token: int
    done: bool


@dataclass
class Timing:
    """Seconds by part of the work, and how many tokens were made in how many steps."""

    prefill: float = 0.0
    streams: float = 0.0
    combine: float = 0.0
    sample: float = 0.0
    tokens: int = 0
    steps: int = 0

    def figures(self) -> dict[str, float]:
        """Tokens a second, and the combiner's share of a step."""
        whole = self.streams + self.combine + self.sample
        return {
            "tokens": float(self.tokens),
            "tokens_per_second": self.tokens / whole if whole else 0.0,
            "prefill_seconds": self.prefill,
            "decode_seconds": whole,
            "combine_share": self.combine / whole if whole else 0.0,
        }


class Engine:
    """A combiner over streams, ready to decode.

    Args:
        weights: the models in memory. tokenizers: one per model. voices: the streams; the first is the main model.
        combine: the combiner with its parameters. settings: the room's. traits: the method's.
        steer: makes what is installed in the main model while it decodes.
    """

    def __init__(
        self,
        weights: Sequence[Weights],
        tokenizers: Sequence[Any],
        voices: Sequence[Voice],
        combine: Callable[[Step], Combined],
        settings: DecodeSettings,
        *,
        evidence: bool = False,
        steer: Callable[[], contextlib.AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.weights, self.tokenizers, self.voices = list(weights), list(tokenizers), list(voices)
        self.combine, self.settings, self.evidence = combine, settings, evidence
        self.steer = steer or contextlib.nullcontext
        self.counts, self.timing = Counts(), Timing()
        #: called with one line before texts are made
        self.log: Callable[[str], None] = lambda line: None
        #: whether streams are combined byte by byte: tokens of texts are then bytes, and 256 is their end
        self.bytewise = settings.vocabulary == "bytes"
        self.width = END + 1 if self.bytewise else int(self.weights[0].module.get_output_embeddings().weight.shape[0])

    @property
    def tokenizer(self) -> Any:
        """That of the main model."""
        return self.tokenizers[0]

    @functools.cached_property
    def surfaces(self) -> list[bytes | None]:
        """The bytes of each id of the main vocabulary."""
        found = surfaces(self.tokenizer)
        return found + [None] * (self.width - len(found))

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """Ids of the main vocabulary that end a text: the end tokens of every stream that shares its vocabulary."""
        if self.bytewise:
            return frozenset([END])
        return frozenset(i for v in self.voices if v.projection is None for i in self.own_ends(v.weights))

    def own_ends(self, weights: int) -> list[int]:
        """Ids of a model's own vocabulary that end a text."""
        module, tokenizer, found = self.weights[weights].module, self.tokenizers[weights], list[int]()
        for value in (module.generation_config.eos_token_id, module.config.eos_token_id, tokenizer.eos_token_id):
            found += [value] if isinstance(value, int) else list(value or ())
        return sorted(dict.fromkeys(found))

    def spell(self, ids: Sequence[int]) -> str:
        """The text of tokens, or of bytes, of the main vocabulary."""
        if self.bytewise:
            return bytes(i for i in ids if i < END).decode("utf-8", errors="replace")
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def open_streams(self, rows: list[list[list[int]]]) -> Streams | ByteStreams:
        """The voices of a batch: token ids of every prompt, ``[voice][text]``."""
        return ByteStreams(self, rows) if self.bytewise else Streams(self, rows)

    # -------------------------------------------------------------------------------------------- prompts

    def encode(self, prompts: Sequence[Any]) -> list[list[list[int]]]:
        """Token ids of every prompt for every voice, [voice][prompt].

        Raises:
            InterfuseError: ``input.type``, ``input.empty``, ``input.missing`` or ``needs.capability``.
        """
        contexts = Contexts(
            self.settings.with_context, any(v.role == "plain" for v in self.voices), self.settings.templates != "none"
        )
        found: list[list[list[int]]] = []
        for voice in self.voices:
            own = self.tokenizers[voice.weights]
            template = self.tokenizer if self.settings.templates == "main" else own
            rows = []
            for i, prompt in enumerate(prompts):
                text, raw = texts_of(
                    prompt, template, contexts, plain=voice.role == "plain", name=voice.name, where=f"prompt {i}"
                )
                ids = ids_of(text, own, raw=raw)
                if not ids:
                    raise InterfuseError("input.empty", "the prompt has no tokens", where=f"prompt {i}: {voice.name}")
                rows.append(ids)
            found.append(rows)
        return found

    def fits(self, encoded: Sequence[Sequence[Sequence[int]]], further: int) -> None:
        """Raises ``input.limit`` when a prompt with so many tokens after it is longer than a stream reads."""
        for voice, rows in zip(self.voices, encoded, strict=True):
            window = self.weights[voice.weights].window
            for i, ids in enumerate(rows):
                if window is not None and len(ids) + further > window:
                    raise InterfuseError(
                        "input.limit", f"prompt and reply may take {len(ids) + further} tokens, the stream {voice.name} reads {window}",
                        where=f"prompt {i}", fix="Shorten the prompt or lower max_tokens.",
                    )  # fmt: skip

    def cache_bytes(self, tokens: int, rows: int) -> int:
        """The memory that keys and values of so many tokens in so many texts take, over all streams."""
        total = 0
        for voice in self.voices:
            module = self.weights[voice.weights].module
            config = module.config.get_text_config()
            heads = getattr(config, "num_attention_heads", None)
            if not heads:
                continue  # it keeps a state of fixed size
            kept = int(getattr(config, "num_key_value_heads", None) or heads)
            size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
            width = 2 * int(config.num_hidden_layers) * kept * size * next(module.parameters()).element_size()
            total += width * tokens * rows
        return total

    # -------------------------------------------------------------------------------------------- decoding

    def run(self, prompts: Sequence[Any], options: Options) -> Iterator[Event]:
        """Decodes every prompt ``n`` times and gives each token as it is made.

        Raises:
            InterfuseError: ``input.nan`` naming stream and step, ``input.limit``, or those of :meth:`encode`.
        """
        options.check()
        if self.bytewise and (options.processors or options.repetition_penalty != 1.0):
            raise InterfuseError("needs.capability", "processors of tokens have no meaning where bytes are drawn",
                                 fix="Leave processors and repetition_penalty out, or choose vocabulary: union.")  # fmt: skip
        encoded = self.encode(prompts)
        self.fits(encoded, options.max_tokens)
        texts = self._texts(prompts, encoded, options)
        at_once = min(len(texts), self.settings.rows)
        size = self.cache_bytes(max(len(ids) for rows in encoded for ids in rows) + options.max_tokens, at_once)
        self.log(
            f"{at_once} texts at once in {len(self.voices)} streams: keys and values take up to {size / 1e6:.1f} MB"
        )
        for start in range(0, len(texts), self.settings.rows):
            part = texts[start : start + self.settings.rows]
            yield from self._batch([[rows[t.prompt] for t in part] for rows in encoded], part, options)

    def _texts(
        self, prompts: Sequence[Any], encoded: Sequence[Sequence[Sequence[int]]], options: Options
    ) -> list[Text]:
        texts, seen = [], dict[str, int]()
        for i in range(len(prompts)):
            key = fingerprint([rows[i] for rows in encoded])
            for sample in range(options.n):
                draw = None
                if options.temperature > 0 and options.generator is None:
                    number = seen[key] = seen.get(key, -1) + 1  # equal prompts are further samples of one
                    value = int(fingerprint([options.seed, key, number])[:15], 16)
                    draw = torch.Generator().manual_seed(value)
                texts.append(Text(i, sample, len(encoded[0][i]), draw))
        return texts

    def _batch(self, rows: list[list[list[int]]], texts: list[Text], options: Options) -> Iterator[Event]:
        began = time.perf_counter()
        with self.steer():
            streams = self.open_streams(rows)
            logits = streams.start()
        self.timing.prefill += time.perf_counter() - began
        processors = _processors(options)
        live, places = list(texts), list(range(len(texts)))
        drawn = self.tape_ids(rows[0], live)
        for number in range(options.max_tokens):
            began = time.perf_counter()
            combined = self.combined(logits, streams.evidence, number)
            self.timing.combine += time.perf_counter() - began
            began = time.perf_counter()
            scores = combined.scores
            tokens = _draw(processors(drawn(), scores.clone()) if processors else scores, live, options)
            logprobs = (scores.gather(1, tokens[:, None]).squeeze(1) - scores.logsumexp(dim=1)).tolist()
            chosen = tokens.tolist()
            if options.trace is not None:
                self._trace(options, live, number, combined, logits, chosen, logprobs, streams.matched)
            self.timing.sample += time.perf_counter() - began
            keep = []
            for r, (text, token) in enumerate(zip(live, chosen, strict=True)):
                self._take(text, token, logprobs[r], options)
                if not text.finish:
                    keep.append(r)
                yield Event(text, token, bool(text.finish))
            self.timing.tokens += len(live)
            self.timing.steps += 1
            if not keep:
                return
            began = time.perf_counter()
            if options.generator is None and len(keep) < len(live):
                order = torch.tensor(keep, device=tokens.device)
                streams.select(order)
                live, places, tokens = [live[r] for r in keep], [places[r] for r in keep], tokens[order]
                drawn = self.tape_ids([rows[0][p] for p in places], live)
            with self.steer():
                logits = streams.push(tokens, live)
            self.timing.streams += time.perf_counter() - began

    def tape_ids(self, prompts: Sequence[Sequence[int]], live: Sequence[Text]) -> Callable[[], torch.Tensor]:
        """What processors see: prompts and tokens so far [B, T], left-padded."""
        device = self.weights[0].device
        return lambda: pad([[*p, *t.ids] for p, t in zip(prompts, live, strict=True)], device)[0]

    def _take(self, text: Text, token: int, logprob: float, options: Options) -> None:
        """Adds a token to a text and sees whether it ends there. A text that has ended takes no more."""
        if text.finish:
            return
        text.logprob += logprob
        if token in self.ends:
            text.finish = "stop"
            return
        text.ids.append(token)
        if options.stop:
            length = max(len(s.encode()) for s in options.stop) + 4
            tail = self.spell(text.ids[-length:])
            if any(s in tail for s in options.stop):
                text.finish, text.cut = "stop", True
                return
        if len(text.ids) >= options.max_tokens:
            text.finish = "length"

    def words(self, text: Text, stop: Sequence[str] = ()) -> str:
        """The text that was made, up to the first stop string."""
        found = self.spell(text.ids)
        places = [found.find(s) for s in stop if s in found]
        return found[: min(places)] if places else found

    @torch.no_grad()
    def combined(self, logits: Sequence[torch.Tensor], evidence: torch.Tensor | None, number: int) -> Combined:
        """One step of the combiner. ``logits``: one tensor [B, V] per voice, in their order."""
        for voice, values in zip(self.voices, logits, strict=True):
            top = values.amax(dim=1)
            if not bool(torch.isfinite(top).all()):
                raise InterfuseError("input.nan", f"the stream {voice.name} gives a logit that is not a number at step {number}",
                                     where=voice.name, fix="Load it in float32, or leave it out.")  # fmt: skip
        roles = [v.role for v in self.voices]
        return self.combine(
            Step(
                model=logits[0],
                base=logits[roles.index("base")] if "base" in roles else None,
                experts=[x for x, role in zip(logits, roles, strict=True) if role == "expert"],
                plain=logits[roles.index("plain")] if "plain" in roles else None,
                evidence=evidence,
                number=number,
            )
        )

    def _one(self, token: int) -> str:
        return self.spell([token]) if self.bytewise else str(self.tokenizer.decode([token]))

    def _trace(self, options: Options, live: Sequence[Text], number: int, combined: Combined, logits: Sequence[torch.Tensor],
               chosen: Sequence[int], logprobs: Sequence[float], matched: Mapping[int, torch.Tensor]) -> None:  # fmt: skip
        assert options.trace is not None
        logs = combined.scores.log_softmax(dim=1)
        entropy = -(logs.exp() * logs.nan_to_num(neginf=0.0)).sum(dim=1)
        columns = {"entropy": entropy, **combined.trace}
        columns |= {f"matched {self.voices[v].name}": mass for v, mass in matched.items()}
        numbers = {name: value.tolist() for name, value in columns.items()}
        tops = [x.log_softmax(dim=1).topk(min(5, x.shape[1]), dim=1) for x in logits]
        for r, text in enumerate(live):
            if text.finish:
                continue
            row: dict[str, Any] = {"prompt": text.prompt, "sample": text.sample, "step": number, "token_id": chosen[r],
                                   "token": self._one(chosen[r]), "logprob": logprobs[r]}  # fmt: skip
            row |= {name: value[r] for name, value in numbers.items()}
            for voice, top in zip(self.voices, tops, strict=True):
                row[f"top {voice.name}"] = [
                    {"token": self._one(i), "logprob": value}
                    for i, value in zip(top.indices[r].tolist(), top.values[r].tolist(), strict=True)
                ]
            options.trace(row)

    # -------------------------------------------------------------------------------------------- scoring

    def score(self, prompts: Sequence[Any], wanted: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities (nats) of given tokens of the main vocabulary after their prompts, under the fused model.

        Args:
            prompts: encoded by :meth:`encode` or given as ids, ``[voice][prompt]``. wanted: ids per prompt, none empty.
        """
        encoded = self.encode(prompts) if not _encoded(prompts, len(self.voices)) else prompts
        self.fits(encoded, max(map(len, wanted)) - 1)
        found: list[list[float]] = []
        with self.steer():
            for i, ids in enumerate(wanted):
                if self.bytewise or any(v.projection is not None for v in self.voices):
                    found.append(self._force([[rows[i]] for rows in encoded], ids))
                    continue
                evidence = self._evidence([[rows[i]] for rows in encoded])
                logits = self._positions([rows[i] for rows in encoded], ids)
                combined = self.combined(logits, None if evidence is None else evidence.expand(len(ids), -1), 0)
                logs = combined.scores.log_softmax(dim=1)
                found.append(logs.gather(1, torch.tensor(ids, device=logs.device)[:, None]).squeeze(1).tolist())
        return found

    def _positions(self, prompts: Sequence[Sequence[int]], ids: Sequence[int]) -> list[torch.Tensor]:
        """Every voice's logits before each of the tokens, [T, V] each; voices of the same weights in one pass."""
        logits: dict[int, torch.Tensor] = {}
        for w, weights in enumerate(self.weights):
            mine = [v for v, voice in enumerate(self.voices) if voice.weights == w]
            read = Tape(weights, counts=self.counts).read([prompts[v] for v in mine], [ids] * len(mine))
            logits |= dict(zip(mine, read, strict=True))
        return [widen_logits(logits[v], self.width) for v in range(len(self.voices))]

    def _force(self, rows: list[list[list[int]]], ids: Sequence[int]) -> list[float]:
        """The same, one step after the other, for streams that read tokens of their own."""
        streams = self.open_streams(rows)
        logits, text, found = streams.start(), Text(0, 0, len(rows[0][0])), []
        for number, token in enumerate(ids):
            scores = self.combined(logits, streams.evidence, number).scores
            found.append(float(scores[0, token] - scores[0].logsumexp(dim=0)))
            text.ids.append(token)
            if number + 1 < len(ids):
                logits = streams.push(torch.tensor([token], device=scores.device), [text])
        return found

    def _evidence(self, rows: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor | None:
        """Mean log-probability of each prompt's tokens under the main model and each expert, [B, 1 + E]."""
        if not self.evidence:
            return None
        columns = []
        for voice, prompts in zip(self.voices, rows, strict=True):
            if voice.role in ("model", "expert"):
                tape, values = Tape(self.weights[voice.weights], counts=self.counts), []
                for ids in prompts:
                    after = torch.tensor(ids[1:], dtype=torch.long)
                    if len(ids) < 2:
                        values.append(0.0)
                        continue
                    logs = tape.read([ids[:1]], [ids[1:]])[0].log_softmax(dim=1)
                    values.append(float(logs.gather(1, after.to(logs.device)[:, None]).mean()))
                columns.append(torch.tensor(values, device=self.weights[0].device))
        return torch.stack(columns, dim=1)


def _encoded(prompts: Any, voices: int) -> bool:
    return len(prompts) == voices and all(isinstance(p, list) and p and isinstance(p[0], list) for p in prompts)


class Streams:
    """The voices of one batch of texts: one tape per set of weights, and one reader of text per foreign tokenizer."""

    def __init__(self, engine: Engine, rows: list[list[list[int]]]) -> None:
        self.engine, self.rows, self.count = engine, rows, len(rows[0])
        self.tapes: list[tuple[Tape, list[int]]] = []  # with the voices whose rows it holds, in blocks of ``count``
        self.readers: dict[int, TextStreams] = {}
        self.evidence: torch.Tensor | None = None
        self.matched: dict[int, torch.Tensor] = {}  # mass that had a main token, by voice
        for w, weights in enumerate(engine.weights):
            mine = [v for v, voice in enumerate(engine.voices) if voice.weights == w and voice.projection is None]
            if mine:
                self.tapes.append((Tape(weights, chunk=engine.settings.prefill, counts=engine.counts), mine))
        for v, voice in enumerate(engine.voices):
            if voice.projection is not None:
                self.readers[v] = TextStreams(engine.weights[voice.weights], engine.tokenizers[voice.weights], engine.surfaces,
                                              engine.counts, engine.settings.prefill)  # fmt: skip

    def start(self) -> list[torch.Tensor]:
        """Reads the prompts; gives the logits after them, one tensor [B, V] per voice."""
        logits: dict[int, torch.Tensor] = {}
        for tape, mine in self.tapes:
            logits |= self._split(tape.start([ids for v in mine for ids in self.rows[v]]), mine)
        for v, reader in self.readers.items():
            logits[v] = reader.start(self.rows[v])
        self.evidence = self.engine._evidence(self.rows)
        return self._ordered(logits)

    def push(self, tokens: torch.Tensor, live: Sequence[Text]) -> list[torch.Tensor]:
        """Every voice reads the tokens [B]; gives the next logits."""
        logits: dict[int, torch.Tensor] = {}
        for tape, mine in self.tapes:
            logits |= self._split(tape.feed(tokens.to(tape.weights.device).repeat(len(mine))[:, None]), mine)
        for v, reader in self.readers.items():
            logits[v] = reader.push([t.ids for t in live])
        return self._ordered(logits)

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these texts."""
        for tape, mine in self.tapes:
            tape.select(torch.cat([rows + i * self.count for i in range(len(mine))]))
        for reader in self.readers.values():
            reader.select(rows.tolist())
        if self.evidence is not None:
            self.evidence = self.evidence[rows]
        self.count = len(rows)

    def _split(self, logits: torch.Tensor, mine: Sequence[int]) -> dict[int, torch.Tensor]:
        return dict(zip(mine, torch.split(logits, self.count), strict=True))

    @torch.no_grad()
    def _ordered(self, logits: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        voices, width = self.engine.voices, self.engine.width
        values = [logits[v] for v in range(len(voices))]
        if not self.readers:
            return [values[0], *(widen_logits(x.to(values[0].device), width) for x in values[1:])]
        silent = [self.readers[v].silent() if v in self.readers else None for v in range(len(voices))]
        found, self.matched = onto_main(values, [v.projection for v in voices], silent, width)
        return found


class ByteStreams:
    """The voices of one batch of texts, each reading byte by byte; has the interface of :class:`Streams`."""

    def __init__(self, engine: Engine, rows: list[list[list[int]]]) -> None:
        self.engine, self.rows, self.count = engine, rows, len(rows[0])
        self.evidence: torch.Tensor | None = None
        self.matched: dict[int, torch.Tensor] = {}
        self.readers: list[list[ByteReader]] = []  # [voice][text]

    def start(self) -> list[torch.Tensor]:
        """Reads the prompts; gives log-probabilities of the next byte, one tensor [B, 257] per voice."""
        engine = self.engine
        known = [ByteVocabulary(surfaces(t), engine.own_ends(w)) for w, t in enumerate(engine.tokenizers)]
        self.readers = [
            [ByteReader(engine.weights[v.weights], known[v.weights], ids, engine.counts) for ids in rows]
            for v, rows in zip(engine.voices, self.rows, strict=True)
        ]
        self.evidence = engine._evidence(self.rows)
        return self._next()

    def push(self, tokens: torch.Tensor, live: Sequence[Text]) -> list[torch.Tensor]:
        """Every voice reads the bytes [B]; gives the next log-probabilities."""
        for row in self.readers:
            for reader, byte in zip(row, tokens.tolist(), strict=True):
                if byte < END:  # a finished text reads nothing more
                    reader.push(byte)
        return self._next()

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these texts."""
        self.readers = [[row[r] for r in rows.tolist()] for row in self.readers]
        if self.evidence is not None:
            self.evidence = self.evidence[rows]

    def _next(self) -> list[torch.Tensor]:
        return [torch.stack([reader.distribution() for reader in row]) for row in self.readers]


def _processors(options: Options) -> Any:
    """The sampler's processors, in the order of ``model.generate``; None when there is nothing to do."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    found: list[Any] = []
    if options.repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    found += options.processors
    if options.temperature > 0:
        if options.temperature != 1.0:
            found.append(TemperatureLogitsWarper(options.temperature))
        if options.top_k:
            found.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1.0:
            found.append(TopPLogitsWarper(options.top_p))
        if options.min_p > 0:
            found.append(MinPLogitsWarper(options.min_p))
    return LogitsProcessorList(found) if found else None


def _draw(scores: torch.Tensor, live: Sequence[Text], options: Options) -> torch.Tensor:
    """The next token of every text, [B]."""
    if options.temperature == 0:
        return scores.argmax(dim=1)
    probs = scores.softmax(dim=1)
    if options.generator is not None:
        return torch.multinomial(probs, 1, generator=options.generator).squeeze(1)
    points = torch.cat([torch.rand(1, generator=t.draw, dtype=torch.float64) for t in live]).to(probs.device)
    sums = probs.double().cumsum(dim=1)
    found = torch.searchsorted(sums, (points * sums[:, -1])[:, None], right=True).squeeze(1)
    return found.clamp_(max=probs.shape[1] - 1)
