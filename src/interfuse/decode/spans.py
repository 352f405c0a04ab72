"""The loop of methods that fuse stretches of text: models propose, judge, and the chosen stretch is appended to the shared text.

It has the interface of :class:`interfuse.decode.engine.Engine` as far as generating and serving need it. Models are any language
model that goes on a text and scores one: local ones, endpoints (their replies kept), recorded ones.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint
from interfuse.data.endpoint_lm import EndpointLM
from interfuse.data.lm import LM, CachedLM, estimated_tokens
from interfuse.data.local_lm import LocalLM
from interfuse.decode.engine import Event, Options, Text, Timing
from interfuse.decode.prompts import Contexts, texts_of
from interfuse.decode.room import Combined, DecodeSettings, Spans
from interfuse.decode.streams import Counts

#: a stretch that was cut off ends before its last word, which may be half of one
_WORDS = re.compile(r"(.*\S)\s+\S+\s*\Z", re.DOTALL)


class SpanEngine:
    """A method of spans over language models, ready to write.

    Args:
        lms: the models, the main one first. names: what traces call them. choose: the method with its parameters.
        span, samples: tokens of a stretch, and stretches per model and round. ctx: budget and log.
    """

    #: spans know no bytes
    bytewise = False

    def __init__(self, lms: Sequence[LM], names: Sequence[str], choose: Callable[[Spans], Combined], settings: DecodeSettings, *,
                 span: int, samples: int, ctx: Ctx) -> None:  # fmt: skip
        self.lms, self.names, self.choose, self.settings = list(lms), list(names), choose, settings
        self.span, self.samples, self.ctx = span, samples, ctx
        self.counts, self.timing = Counts(), Timing()
        self.log: Callable[[str], None] = lambda line: None

    # -------------------------------------------------------------------------------------------- prompts

    def prefixes(self, prompts: Sequence[Any]) -> list[list[str]]:
        """Every prompt as the text that each model goes on from, [model][prompt].

        Raises:
            InterfuseError: ``needs.capability`` for messages to a model that reads none; ``input.type``, ``input.empty`` ...
        """
        contexts = Contexts(self.settings.with_context, False, self.settings.templates != "none")
        found = []
        for lm, name in zip(self.lms, self.names, strict=True):
            inner: Any = lm.inner if isinstance(lm, CachedLM) else lm
            rows = []
            for i, prompt in enumerate(prompts):
                if not isinstance(inner, LocalLM) and not isinstance(prompt, str):
                    raise InterfuseError("needs.capability", f"{lm.name} goes on texts and knows no chat template here", where=f"prompt {i}",
                                         fix="Give the prompt as a text, in the form that all models know.")  # fmt: skip
                text = prompt if isinstance(prompt, str) else texts_of(prompt, inner.tokenizer, contexts, plain=False, name=name, where=f"prompt {i}")[0]  # fmt: skip
                if not text:
                    raise InterfuseError("input.empty", "the prompt is empty", where=f"prompt {i}")
                rows.append(text)
            found.append(rows)
        return found

    def encode(self, prompts: Sequence[Any]) -> list[list[list[int]]]:
        """What counts and limits go by: as many places as each prompt has tokens, [model][prompt]."""
        out = []
        for lm, rows in zip(self.lms, self.prefixes(prompts), strict=True):
            inner = lm.inner if isinstance(lm, CachedLM) else lm
            out.append([[0] * (len(inner.tokens_of(t)) if isinstance(inner, LocalLM) else estimated_tokens([t])) for t in rows])  # fmt: skip
        return out

    def fits(self, encoded: Sequence[Sequence[Sequence[int]]], further: int) -> None:
        """Raises ``input.limit`` when a prompt with so many tokens after it is longer than a model here reads."""
        for lm, rows in zip(self.lms, encoded, strict=True):
            window = lm.window if isinstance(lm, LocalLM) else None
            for i, ids in enumerate(rows):
                if window is not None and len(ids) + further > window:
                    raise InterfuseError("input.limit", f"prompt and reply may take {len(ids) + further} tokens, {lm.name} reads {window}",
                                         where=f"prompt {i}", fix="Shorten the prompt or lower max_tokens.")  # fmt: skip

    # -------------------------------------------------------------------------------------------- writing

    def run(self, prompts: Sequence[Any], options: Options) -> Iterator[Event]:
        """Writes every prompt's text ``n`` times and gives each stretch as it is chosen.

        Raises:
            InterfuseError: ``needs.capability`` for what has no meaning for spans, or for an endpoint without log-probabilities;
                ``input.limit``, ``budget.spent``, ``endpoint.failed``.
        """
        options.check()
        if (
            options.processors
            or options.repetition_penalty != 1.0
            or options.top_k
            or options.min_p
            or options.generator is not None
        ):
            raise InterfuseError("needs.capability", "tokens are drawn by the models themselves, so only temperature and top_p reach them",
                                 fix="Leave top_k, min_p, repetition_penalty and processors out.")  # fmt: skip
        if self.samples > 1 and options.temperature == 0:
            raise InterfuseError("param.value", "the likeliest stretch of a model is always the same", where="samples",
                                 fix="Set a temperature above 0, or samples: 1.")  # fmt: skip
        before = self.prefixes(prompts)
        self.fits(self.encode(prompts), options.max_tokens)
        rounds = -(-options.max_tokens // self.span) * len(prompts) * options.n
        far = sum(isinstance(getattr(lm, "inner", lm), EndpointLM) for lm in self.lms)
        proposals = len(self.lms) * self.samples
        self.log(f"up to {rounds} rounds of {proposals} proposals: at most {far * rounds * (1 + proposals)} calls of endpoints, more where words are cut")  # fmt: skip
        for sample in range(options.n):
            texts = [Text(i, sample, estimated_tokens([before[0][i]])) for i in range(len(prompts))]
            for start in range(0, len(texts), self.settings.rows):
                yield from self._together(texts[start : start + self.settings.rows], before, options)

    def _together(self, texts: list[Text], before: Sequence[Sequence[str]], options: Options) -> Iterator[Event]:
        live, number = list(texts), 0
        while live:
            began = time.perf_counter()
            proposals, enough = self._proposals(live, before, options, number)
            self.timing.sample += time.perf_counter() - began
            began = time.perf_counter()
            judged = self._judged(live, before, proposals)
            self.timing.streams += time.perf_counter() - began
            for text, found, scores, done in zip(live, proposals, judged, enough, strict=True):
                began = time.perf_counter()
                said, ended = self._chosen(text, found, scores, number, options) if found and not done else ("", True)
                self.timing.combine += time.perf_counter() - began
                self._take(text, said, ended, options)
                self.timing.tokens += len(said.split())
                yield Event(text, -1, bool(text.finish))
            self.timing.steps += 1
            live, number = [t for t in live if not t.finish], number + 1

    def _proposals(
        self, live: Sequence[Text], before: Sequence[Sequence[str]], options: Options, number: int
    ) -> tuple[list[dict[str, tuple[int, bool]]], list[bool]]:
        """Per text the stretches that may come next, each with its writer and whether it ends the text; and whether most want to end."""
        found: list[dict[str, tuple[int, bool]]] = [{} for _ in live]
        votes = [0.0] * len(live)
        seed = int(fingerprint([options.seed, live[0].sample, number])[:7], 16) if options.temperature > 0 else 0
        for m, lm in enumerate(self.lms):
            left = max(options.max_tokens - min(len(t.ids) for t in live), 1)
            replies = lm.generate([before[m][t.prompt] + t.text for t in live], max_tokens=min(self.span, left), temperature=options.temperature,
                                  top_p=options.top_p, n=self.samples, seed=seed, ctx=self.ctx)  # fmt: skip
            for place, row in enumerate(replies):
                for reply in row:
                    said, ended = _whole_words(reply.text, reply.finish == "stop")
                    if said.strip():
                        known = found[place].get(said)
                        found[place][said] = (known[0], known[1] or ended) if known else (m, ended)
                    elif ended:
                        votes[place] += 1 / self.samples
        return found, [2 * v >= len(self.lms) for v in votes]

    def _judged(
        self, live: Sequence[Text], before: Sequence[Sequence[str]], proposals: Sequence[dict[str, tuple[int, bool]]]
    ) -> list[torch.Tensor]:
        """Nats per byte of every proposal under every model, [C, M] per text; a lone proposal is judged by nobody."""
        asked = [(i, said) for i, found in enumerate(proposals) if len(found) > 1 for said in found]
        values = [torch.zeros(len(found), len(self.lms), dtype=torch.float64) for found in proposals]
        for m, lm in enumerate(self.lms):
            scored = (
                lm.score([(before[m][live[i].prompt] + live[i].text, said) for i, said in asked], ctx=self.ctx)
                if asked
                else []
            )
            place = [0] * len(live)
            for (i, said), one in zip(asked, scored, strict=True):
                values[i][place[i], m] = one.logprob / max(len(said.encode()), 1)
                place[i] += 1
        return values

    def _chosen(
        self, text: Text, found: dict[str, tuple[int, bool]], scores: torch.Tensor, number: int, options: Options
    ) -> tuple[str, bool]:
        made = self.choose(Spans(scores, [m for m, _ in found.values()], number))
        best = int(made.scores[0].argmax())
        said = list(found)[best]
        if options.trace is not None:
            row = {"prompt": text.prompt, "sample": text.sample, "step": number, "token_id": -1, "token": said,
                   "logprob": float(scores[best, 0]) * len(said.encode()), "entropy": _entropy(made.scores[0])}  # fmt: skip
            options.trace({**row, **{name: float(value[0]) for name, value in made.trace.items()}})
        return said, found[said][1]

    def _take(self, text: Text, said: str, ended: bool, options: Options) -> None:
        text.text += said
        text.ids += [0] * self._tokens(said)
        if ended or any(s in text.text for s in options.stop):
            text.finish = "stop"
        elif len(text.ids) >= options.max_tokens:
            text.finish = "length"

    def _tokens(self, said: str) -> int:
        """Tokens of a stretch in the main model's own where that is here, else estimated."""
        main = self.lms[0]
        if not said or not isinstance(main, LocalLM):
            return estimated_tokens([said]) if said else 0
        return max(len(main.tokenizer(said, add_special_tokens=False)["input_ids"]), 1)

    def words(self, text: Text, stop: Sequence[str] = ()) -> str:
        """The text that was made, up to the first stop string."""
        places = [text.text.find(s) for s in stop if s in text.text]
        return text.text[: min(places)] if places else text.text


def _entropy(scores: torch.Tensor) -> float:
    """How open the choice was, in nats: of the softmax of the proposals' scores; 0 for a lone one."""
    logs = scores.log_softmax(dim=0)
    return float(-(logs.exp() * logs).sum())


def _whole_words(text: str, ended: bool) -> tuple[str, bool]:
    """A stretch without the last word, where more may follow that word's letters; alone it stays."""
    match = None if ended else _WORDS.match(text)
    return (match[1] if match else text), ended
