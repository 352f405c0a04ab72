"""Search for entity tuples in a language model: all places of a masked model, best first and pruned; beams of a causal one.

The masked search is the one of Hao et al. 2023: a tuple's score is the smallest log-probability of any of its tokens, so that a
partial tuple bounds every tuple it can become, and whole branches are left out without changing the result.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.kit.constrained_beam import Constraint, constrained_beam, word_starts
from interfuse.kit.relation_prompts import Prompt
from interfuse.kit.token_models import CausalStepper, masked_logits, offsets_of

Floats = NDArray[np.float64]
Tokens = tuple[int, ...]
#: words that are no part of an entity
STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "it",
        "its",
        "he",
        "she",
        "they",
        "them",
        "his",
        "her",
        "their",
        "him",
        "i",
        "you",
        "we",
        "us",
        "our",
        "your",
        "my",
        "me",
        "who",
        "whom",
        "whose",
        "which",
        "what",
        "when",
        "where",
        "why",
        "how",
        "there",
        "here",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "am",
        "do",
        "does",
        "did",
        "done",
        "has",
        "have",
        "had",
        "having",
        "can",
        "could",
        "will",
        "would",
        "shall",
        "should",
        "may",
        "might",
        "must",
        "not",
        "no",
        "nor",
        "and",
        "or",
        "but",
        "if",
        "then",
        "else",
        "than",
        "so",
        "because",
        "as",
        "of",
        "at",
        "by",
        "for",
        "with",
        "about",
        "against",
        "between",
        "into",
        "through",
        "during",
        "before",
        "after",
        "above",
        "below",
        "to",
        "from",
        "up",
        "down",
        "in",
        "out",
        "on",
        "off",
        "over",
        "under",
        "again",
        "further",
        "once",
        "all",
        "any",
        "both",
        "each",
        "few",
        "more",
        "most",
        "other",
        "some",
        "such",
        "only",
        "own",
        "same",
        "too",
        "very",
        "just",
        "also",
        "every",
        "many",
        "much",
        "ll",
        "ve",
        "re",
    ]
)


def entity_is_good(entity: str, earlier: Sequence[str] = (), prompts: Sequence[str] = ()) -> bool:
    """Whether a found text may stand for an entity: the filters of the authors' code, on lower-cased text."""
    text = entity.strip().lower()
    words = text.split()
    if not words or any(w in STOP_WORDS for w in words) or len(text) <= 2 or any(len(w) == 1 for w in words):
        return False
    if all(len(w) <= 2 for w in words) or len(set(words)) != len(words) or not re.search(r"[^\W\d_]", text):
        return False
    squeezed = text.replace(" ", "")
    for other in earlier:
        known = other.lower().replace(" ", "")
        if squeezed.startswith(known) or known.startswith(squeezed):
            return False
    return not any(text in re.sub(r"<ENT\d+>", "|", p).lower() for p in prompts)


@dataclass
class _Heap:
    """The best ``size`` items; of equals the earlier stays. With ``repeat``, no word occurs in more than so many of them."""

    size: int
    repeat: int | None = None
    rows: list[tuple[float, int, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    entered: int = 0

    @property
    def bar(self) -> float:
        """What an item must exceed to enter."""
        return self.rows[0][0] if len(self.rows) >= self.size else -np.inf

    def push(self, score: float, item: Any, words: Sequence[str] = ()) -> None:
        if score <= self.bar or (self.repeat is not None and any(self.counts.get(w, 0) >= self.repeat for w in words)):
            return
        self.entered += 1
        heapq.heappush(self.rows, (score, -self.entered, (item, tuple(words))))
        for w in words:
            self.counts[w] = self.counts.get(w, 0) + 1
        if len(self.rows) > self.size:
            _, _, (_, gone) = heapq.heappop(self.rows)
            for w in gone:
                self.counts[w] -= 1

    def best(self) -> list[tuple[float, Any]]:
        return [(s, item) for s, _, (item, _) in sorted(self.rows, key=lambda r: (-r[0], -r[1]))]


#: (mask counts, tokens of the entities found so far, tokens of the current one) -> log-probabilities of its next token [V]
Filler = Callable[[tuple[int, ...], tuple[Tokens, ...], Tokens], Floats]


def search_tuples(
    fill: Filler, decode: Callable[[Tokens], str], arity: int, *, most: int, subwords: int = 2, repeat: int | None = 5,
    good: Callable[[str, Sequence[str]], bool] = entity_is_good, advance: Callable[[], None] = lambda: None,
) -> list[tuple[float, tuple[str, ...]]]:  # fmt: skip
    """The tuples with the highest smallest log-probability, best first.

    For every vector of token counts (1 to ``subwords`` per entity), depth first over the entities; tokens are walked from the
    likeliest down and the walk ends where nothing can enter the result any more.

    Args:
        fill: the model. decode: tokens -> text. most: tuples kept (also first entities tried per vector).
        repeat: a word stands in no more than so many kept tuples, and so many objects are tried per subject; None: no limit.
        advance: called once per vector.
    """
    found = _Heap(most, repeat)
    for reverse in itertools.product(range(1, subwords + 1), repeat=arity):
        counts = tuple(reversed(reverse))  # entity 0 runs fastest

        def entities(
            done: tuple[Tokens, ...], names: tuple[str, ...], counts: tuple[int, ...] = counts
        ) -> list[tuple[float, Tokens]]:
            heap = _Heap(most if not done else (repeat or most))

            def walk(prefix: Tokens, low: float) -> None:
                logs = fill(counts, done, prefix)
                for token in np.argsort(-logs, kind="stable"):
                    partial = min(low, float(logs[token]))
                    if not np.isfinite(partial) or partial <= heap.bar or partial <= found.bar:
                        break
                    grown = (*prefix, int(token))
                    if len(grown) < counts[len(done)]:
                        walk(grown, partial)
                    elif good(decode(grown), names):
                        heap.push(partial, grown)

            walk((), np.inf)
            return heap.best()

        def deeper(done: tuple[Tokens, ...], names: tuple[str, ...], low: float) -> None:
            for score, tokens in entities(done, names):
                total = min(low, score)
                if total <= found.bar:
                    break
                grown = (*names, decode(tokens).strip().lower())
                if len(grown) == arity:
                    found.push(total, grown, [w for name in grown for w in name.split()])
                else:
                    deeper((*done, tokens), grown, total)

        deeper((), (), np.inf)
        advance()
    best: dict[tuple[str, ...], float] = {}
    for score, names in found.best():
        best.setdefault(names, score)
    return [(score, names) for names, score in best.items()]


class MaskedFiller:
    """Log-probabilities of a hidden token from several prompts at once: the weighted mean of their LOGITS, normalised.

    Args:
        prompts, weights: those of weight 0 are left out. banned: ids that are never proposed.
    """

    def __init__(
        self, module: Any, tokenizer: Any, prompts: Sequence[Prompt], weights: Floats, banned: NDArray[np.bool_]
    ) -> None:
        self.module, self.tokenizer, self.banned = module, tokenizer, banned
        self.used = [(p, float(w)) for p, w in zip(prompts, weights, strict=True) if w > 0]
        self._rows: dict[tuple[int, ...], list[tuple[list[int], list[list[int]]]]] = {}
        self.forwards = 0

    def _templates(self, counts: tuple[int, ...]) -> list[tuple[list[int], list[list[int]]]]:
        """Each prompt's tokens with masks, and where the masks of every entity stand."""
        if counts not in self._rows:
            made = []
            for prompt, _ in self.used:
                text, _ = prompt.fill([" ".join([self.tokenizer.mask_token] * n) for n in counts])
                ids, _ = offsets_of(self.tokenizer, text)
                places = iter([i for i, t in enumerate(ids) if t == self.tokenizer.mask_token_id])
                own: list[list[int]] = [[] for _ in counts]
                for slot in prompt.order:
                    own[slot] = list(itertools.islice(places, counts[slot]))
                made.append((ids, own))
            self._rows[counts] = made
        return self._rows[counts]

    def __call__(self, counts: tuple[int, ...], done: tuple[Tokens, ...], prefix: Tokens) -> Floats:
        rows, places = [], []
        for ids, own in self._templates(counts):
            row = list(ids)
            for slot, tokens in enumerate((*done, prefix)):
                for place, token in zip(own[slot], tokens, strict=False):
                    row[place] = token
            rows.append(row)
            places.append([own[len(done)][len(prefix)]])
        self.forwards += len(rows)
        logits = masked_logits(self.module, rows, places, self.tokenizer.pad_token_id or 0)[:, 0].double().cpu().numpy()
        mixed = np.tensordot(np.array([w for _, w in self.used]), logits, axes=1)
        mixed[self.banned] = -np.inf
        return np.asarray(mixed - np.logaddexp.reduce(mixed))


def banned_ids(tokenizer: Any, size: int) -> NDArray[np.bool_]:
    """Which of ``size`` tokens stand for no part of an entity: special ones, stop words, and those without a letter or with a sign."""
    banned = np.ones(size, dtype=bool)
    for i, piece in enumerate(tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))):
        word = piece.removeprefix("##").lstrip("Ġ▁") if piece else ""
        banned[i] = not word.isalpha() or word.lower() in STOP_WORDS
    banned[[i for i in tokenizer.all_special_ids if i < size]] = True
    return banned


def causal_tuples(
    module: Any, tokenizer: Any, prompt: Prompt, seeds: Sequence[Sequence[str]], *, most: int, repeat: int = 5, longest: int = 6,
    good: Callable[[str, Sequence[str]], bool] = entity_is_good, first: Sequence[str] = (),
) -> Iterator[tuple[float, tuple[str, ...]]]:  # fmt: skip
    """Tuples of a causal model under one prompt: after the seeds' sentences, beams fill the slots in the order of the sentence.

    The first slot is filled by a beam of ``most``, each later one by a beam of ``2 repeat`` of which ``repeat`` are kept. An entity ends where the
    sentence goes on as the prompt does. Score: the sum of log-probabilities of entities and of what ends them.

    Args:
        longest: tokens of an entity at most. first: texts for the slot that comes first, instead of searching for them.
    """
    lines = [prompt.fill(s)[0] for s in seeds]
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    head = ([] if begin is None else [begin]) + tokenizer("\n".join(lines) + "\n", add_special_tokens=False)[
        "input_ids"
    ]
    stepper, literals = CausalStepper(module, head), prompt.literals()
    nothing = tokenizer.all_special_ids
    starts = word_starts([str(p) for p in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))])
    never = tuple((int(t),) for t in dict.fromkeys([*nothing, *tokenizer("\n", add_special_tokens=False)["input_ids"]]))

    def slot(k: int, text: str, names: tuple[str, ...]) -> list[tuple[float, str]]:
        follow = literals[k + 1] or "\n"
        ends = tokenizer(follow, add_special_tokens=False)["input_ids"][:1]
        ids = tokenizer(text.rstrip(" "), add_special_tokens=False)["input_ids"]
        width = most if not names else 2 * repeat
        rule = Constraint(never=tuple(n for n in never if n[0] not in ends))
        found = constrained_beam(stepper, ids, rule, end=ends, beam=width, max_length=longest, penalty=0.0, count=width)
        texts: dict[str, float] = {}
        for f in found:
            written = tokenizer.decode(list(f.tokens))
            if f.complete and f.tokens and (starts[f.tokens[0]] or not text.endswith(" ")) and good(written, names):
                texts.setdefault(written.strip(), f.logprob)
        return [(v, t) for t, v in texts.items()][: most if not names else repeat]

    def deeper(k: int, text: str, filled: dict[int, str], score: float) -> Iterator[tuple[float, tuple[str, ...]]]:
        if k == prompt.arity:
            yield score, tuple(filled[i] for i in range(prompt.arity))
            return
        known = [(0.0, name) for name in first] if k == 0 else []
        for value, name in known or slot(k, text + literals[k], tuple(filled.values())):
            yield from deeper(k + 1, text + literals[k] + name, {**filled, prompt.order[k]: name}, score + value)

    yield from deeper(0, "", {}, 0.0)
