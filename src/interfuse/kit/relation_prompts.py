"""Prompts of a relation with slots for its entities, how well a tuple fits one, and what each prompt is worth (Hao et al. 2023).

A prompt is a sentence such as ``The capital of <ENT0> is <ENT1>``. The score of a tuple under a prompt is made of the
log-probabilities of the entities' tokens, each entity revealed before the next is asked for; a masked model hides them, a causal
model reads from left to right.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interfuse.core.errors import InterfuseError
from interfuse.kit.token_models import causal_logprobs, masked_logits, offsets_of, tokens_over

Floats = NDArray[np.float64]
_SLOT = re.compile(r"<ENT(\d+)>")


@dataclass(frozen=True)
class Prompt:
    """A checked prompt.

    Attributes:
        text: with its slots. arity: how many there are. order: the slots in the order of the sentence.
    """

    text: str
    arity: int
    order: tuple[int, ...]

    def fill(self, entities: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """The sentence, and where each entity's span stands, by slot number. An entity at the beginning is capitalised."""
        text, spans, at = "", [(0, 0)] * self.arity, 0
        for found in _SLOT.finditer(self.text):
            text += self.text[at : found.start()]
            entity = entities[int(found[1])]
            if not text:
                entity = entity[:1].upper() + entity[1:]
            spans[int(found[1])] = (len(text), len(text) + len(entity))
            text, at = text + entity, found.end()
        return text + self.text[at:], spans

    def literals(self) -> list[str]:
        """The text before, between and behind the slots, in order."""
        return [p for i, p in enumerate(_SLOT.split(self.text)) if i % 2 == 0]


def read_prompt(text: str, arity: int | None = None, *, ending: str = " .") -> Prompt:
    """A prompt, stripped, its first letter raised, its full stop written as ``ending``.

    Raises:
        InterfuseError: ``input.format`` when slots are missing, doubled, not numbered from 0, or glued behind a letter.
    """
    body = text.strip()
    if not body.endswith(("?", "!")):
        body = body.rstrip(" .") + ending
    slots = [int(n) for n in _SLOT.findall(body)]
    count = len(slots) if arity is None else arity
    if not slots or sorted(slots) != list(range(count)):
        raise InterfuseError("input.format", f"the slots are {slots}, not each of <ENT0> to <ENT{max(count, 1) - 1}> once",
                             where=text, fix="The capital of <ENT0> is <ENT1>")  # fmt: skip
    for found in _SLOT.finditer(body):
        if found.start() and body[found.start() - 1] not in " \"'“‘(-":
            raise InterfuseError("input.format", f"{found[0]} stands right behind a letter or a sign", where=text)
    first = body if _SLOT.match(body) else body[:1].upper() + body[1:]
    return Prompt(first, count, tuple(slots))


def slots_in(sentence: str, entities: Sequence[str]) -> str | None:
    """A sentence with its entities replaced by slots; None unless each is found exactly once."""
    spans = []
    for i, entity in enumerate(entities):
        found = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(entity)}(?!\w)", sentence, re.IGNORECASE)]
        if len(found) != 1:
            return None
        spans.append((*found[0], i))
    spans.sort()
    if any(a[1] > b[0] for a, b in itertools.pairwise(spans)):
        return None
    for start, end, i in reversed(spans):
        sentence = f"{sentence[:start]}<ENT{i}>{sentence[end:]}"
    return sentence


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance of two texts' words."""
    a, b = first.split(), second.split()
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(before + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def most_apart(texts: Sequence[str], count: int, kept: Sequence[str] = ()) -> list[str]:
    """Up to ``count`` distinct texts, each time the one whose nearest kept text is furthest (in words to edit)."""
    chosen, pool = list(kept), [t for t in dict.fromkeys(texts) if t not in kept]
    fresh: list[str] = []
    while pool and len(fresh) < count:
        best = max(pool, key=lambda t: min((edit_distance(t, c) for c in chosen), default=0))
        pool.remove(best)
        chosen.append(best)
        fresh.append(best)
    return fresh


# -------------------------------------------------------------------------------------------------- scores


def tuple_score(logs: ArrayLike, entities: int) -> float:
    """``f = (mean_k l_k + (sum_k l_k) / N + min_k l_k) / 3`` for K token log-probabilities and N entities.

    Raises:
        InterfuseError: ``input.empty`` when an entity has no token.
    """
    values = np.asarray(logs, dtype=np.float64)
    if not values.size:
        raise InterfuseError("input.empty", "the entities have no token")
    return float((values.mean() + values.sum() / entities + values.min()) / 3)


def masked_spans(prompt: Prompt, entities: Sequence[str], whole: bool) -> tuple[str, list[tuple[int, int]]]:
    """The sentence and the characters whose tokens count, per entity: its first word (with what the prompt glues to a one-word
    entity), or all of it."""
    text, spans = prompt.fill(entities)
    found = []
    for start, end in spans:
        word = re.match(r"\S+", text[start:end])
        stop = end if whole or word is None else start + word.end()
        if stop == end:
            glued = re.match(r"\w+", text[end:])
            stop = end + (glued.end() if glued else 0)
        found.append((start, stop))
    return text, found


class TupleScorer:
    """Scores tuples under prompts with a masked or a causal model.

    Args:
        module: the model. tokenizer: a fast one. masked: whether the model fills hidden places. whole: all words of an entity
            count, not its first alone (the authors' code hides the first only, to encourage entities of several words).
        batch: sequences per forward pass.
    """

    def __init__(self, module: Any, tokenizer: Any, *, masked: bool, whole: bool = False, batch: int = 64) -> None:
        if masked and tokenizer.mask_token_id is None:
            raise InterfuseError(
                "needs.capability",
                "the tokenizer has no mask token",
                fix="Use a masked language model, or a causal one.",
            )
        self.module, self.tokenizer, self.masked, self.whole, self.batch = module, tokenizer, masked, whole, batch
        self.scored = 0
        self._known: dict[tuple[str, tuple[str, ...]], float] = {}

    def __call__(self, pairs: Sequence[tuple[Prompt, Sequence[str]]]) -> Floats:
        """``f(p, h)`` of each (prompt, tuple), [N]; what was scored before is remembered.

        Raises:
            InterfuseError: ``input.empty`` naming the entity that has no token.
        """
        asked = [(p.text, tuple(h)) for p, h in pairs]
        fresh = {key: pair for key, pair in zip(asked, pairs, strict=True) if key not in self._known}
        if fresh:
            self._known.update(zip(fresh, self._scores(list(fresh.values())).tolist(), strict=True))
        return np.array([self._known[key] for key in asked])

    def _scores(self, pairs: Sequence[tuple[Prompt, Sequence[str]]]) -> Floats:
        self.scored += len(pairs)
        rows: list[list[int]] = []
        wanted: list[tuple[int, int, list[int]]] = []  # pair, place, the row's target token
        placed = []
        for prompt, entities in pairs:
            text, spans = masked_spans(prompt, entities, self.whole)
            ids, offsets = offsets_of(self.tokenizer, text)
            places = []
            for entity, (start, end) in zip(entities, spans, strict=True):
                own = tokens_over(offsets, start, end)
                if not own:
                    raise InterfuseError("input.empty", f"the entity {entity!r} has no token", where=prompt.text)
                places += own
            placed.append((ids, places))
        if self.masked:
            for n, (ids, places) in enumerate(placed):
                for k, place in enumerate(places):
                    hidden = list(ids)
                    for later in places[k:]:
                        hidden[later] = self.tokenizer.mask_token_id
                    rows.append(hidden)
                    wanted.append((n, place, [ids[place]]))
            pad = self.tokenizer.pad_token_id or 0
            logs: list[list[float]] = [[] for _ in pairs]
            for start in range(0, len(rows), self.batch):
                part = wanted[start : start + self.batch]
                logits = masked_logits(
                    self.module, rows[start : start + self.batch], [[p] for _, p, _ in part], pad, self.batch
                )
                picked = logits[:, 0].log_softmax(dim=-1).cpu().numpy()
                for (n, _, token), row in zip(part, picked, strict=True):
                    logs[n].append(float(row[token[0]]))
        else:
            begin = (
                self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
            )
            started = [(ids, places) if begin is None or ids[:1] == [begin] else ([begin, *ids], [p + 1 for p in places])
                       for ids, places in placed]  # fmt: skip
            all_logs = causal_logprobs(
                self.module, [ids for ids, _ in started], self.tokenizer.pad_token_id or 0, self.batch
            )
            logs = [[float(row[p - 1]) for p in places] for row, (_, places) in zip(all_logs, started, strict=True)]
        return np.array([tuple_score(row, p.arity) for row, (p, _) in zip(logs, pairs, strict=True)])


# -------------------------------------------------------------------------------------------------- weights


def corrupted(seeds: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Each seed with one entity replaced by another seed's of the same place, wherever the two differ."""
    found = []
    for a, b in itertools.permutations(range(len(seeds)), 2):
        for place in range(len(seeds[a])):
            if seeds[a][place] != seeds[b][place]:
                found.append((*seeds[a][:place], seeds[b][place], *seeds[a][place + 1 :]))
    return found


def prompt_weights(
    positive: ArrayLike, negative: ArrayLike | None, *, temperature: float = 2.0, most: int = 20, least: float = 0.05
) -> Floats:
    """Softmax of ``(pos - 0.5 neg) / T`` over the best prompts, [P]; weights below ``least`` become 0, the rest sum to 1.

    Args:
        positive: mean score of the seeds per prompt [P]. negative: of the corrupted seeds; None: all prompts weigh the same.
    """
    pos = np.asarray(positive, dtype=np.float64)
    if negative is None:
        return np.full(len(pos), 1 / len(pos))
    raw = (pos - 0.5 * np.asarray(negative, dtype=np.float64)) / temperature
    chosen = np.zeros(len(raw), dtype=bool)
    chosen[np.argsort(-raw, kind="stable")[:most]] = True
    weights = np.where(chosen, np.exp(raw - raw.max()), 0.0)
    weights /= weights.sum()
    weights = np.where(weights < least, 0.0, weights)
    if not weights.any():  # more than 1 / least equal prompts: none reaches the bar
        weights = np.where(chosen, np.exp(raw - raw.max()), 0.0)
    weights /= weights.sum()
    weights = np.where(weights <= 1e-4, 0.0, weights)
    return np.asarray(weights / weights.sum())


def weigh(
    score: Callable[[Sequence[tuple[Prompt, Sequence[str]]]], Floats], prompts: Sequence[Prompt], seeds: Sequence[Sequence[str]], *,
    temperature: float = 2.0, most: int = 20,
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """Weights, mean score of seeds and mean score of corrupted seeds of every prompt, each [P].

    One seed alone has nothing to be corrupted with: the weights are then equal and the last is NaN-free zeros.
    """
    clean = [tuple(e.replace("_", " ") for e in s) for s in seeds]
    wrong = corrupted(clean)
    pos = np.array([score([(p, s) for s in clean]).mean() for p in prompts])
    neg = np.array([score([(p, s) for s in wrong]).mean() for p in prompts]) if wrong else np.zeros(len(prompts))
    return prompt_weights(pos, neg if wrong else None, temperature=temperature, most=most), pos, neg


def casings(entity: str) -> list[str]:
    """The entity as it is and in title case."""
    return list(dict.fromkeys((entity, entity.title())))


def rescored(
    score: Callable[[Sequence[tuple[Prompt, Sequence[str]]]], Floats], prompts: Sequence[Prompt], weights: Floats,
    tuples: Sequence[tuple[str, ...]], *, cases: bool = True, batch: int = 256,
) -> list[tuple[float, tuple[str, ...]]]:  # fmt: skip
    """``sum_p weight_p f(p, h)`` of every distinct tuple in its best casing, best first; prompts of weight 0 cost nothing."""
    used = [(p, float(w)) for p, w in zip(prompts, weights, strict=True) if w > 0]
    jobs: list[tuple[int, tuple[str, ...]]] = []
    once = list(dict.fromkeys(tuples))
    for i, entities in enumerate(once):
        options = itertools.product(*(casings(e) for e in entities)) if cases else [entities]
        jobs += [(i, tuple(o)) for o in options]
    best: dict[int, tuple[float, tuple[str, ...]]] = {}
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        values = score([(p, form) for _, form in part for p, _ in used]).reshape(len(part), len(used))
        total = values @ np.array([w for _, w in used])
        for (i, form), value in zip(part, total, strict=True):
            if i not in best or value > best[i][0]:
                best[i] = (float(value), form)
    return sorted(best.values(), key=lambda pair: -pair[0])
