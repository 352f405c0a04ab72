"""Scores, weights and search of relation prompts, by hand and against trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError
from interfuse.kit.relation_prompts import (
    corrupted,
    masked_spans,
    most_apart,
    prompt_weights,
    read_prompt,
    slots_in,
    tuple_score,
    weigh,
)
from interfuse.kit.tuple_search import entity_is_good, search_tuples


def test_score_of_a_tuple_by_hand() -> None:
    assert tuple_score([-1, -2, -6], 2) == pytest.approx((-3 - 4.5 - 6) / 3)
    with pytest.raises(InterfuseError):
        tuple_score([], 2)


@pytest.mark.parametrize(
    "text", ["no slot", "<ENT0> and <ENT0>", "<ENT0> and <ENT2>", "the re<ENT0> of <ENT1>", "<ENT1> alone"]
)
def test_a_prompt_without_its_slots_is_refused(text: str) -> None:
    with pytest.raises(InterfuseError) as error:
        read_prompt(text)
    assert error.value.code == "input.format"


def test_a_prompt_is_filled_and_its_words_found() -> None:
    p = read_prompt("the capital of <ENT1> is <ENT0>.")
    assert p.text == "The capital of <ENT1> is <ENT0> ."
    assert p.order == (1, 0)
    text, spans = p.fill(["Bern", "new zealand"])
    assert text == "The capital of new zealand is Bern ."
    assert [text[a:b] for a, b in spans] == ["Bern", "new zealand"]
    text, spans = masked_spans(p, ["Bern", "new zealand"], False)
    assert [text[a:b] for a, b in spans] == ["Bern", "new"]
    text, spans = masked_spans(read_prompt("<ENT0>s eat <ENT1>"), ["cat", "raw fish"], False)
    assert text == "Cats eat raw fish ."
    assert [text[a:b] for a, b in spans] == ["Cats", "raw"]
    text, spans = masked_spans(read_prompt("<ENT0>s eat <ENT1>"), ["cat", "raw fish"], True)
    assert [text[a:b] for a, b in spans] == ["Cats", "raw fish"]


def test_sentences_give_prompts_only_with_every_entity_once() -> None:
    assert (
        slots_in("Paris is where France is ruled from", ["France", "Paris"]) == "<ENT1> is where <ENT0> is ruled from"
    )
    assert slots_in("Paris, Paris", ["Paris"]) is None
    assert slots_in("Parisian", ["Paris"]) is None
    assert most_apart(["a b c", "a b d", "x y z w"], 2, kept=["a b e"]) == ["x y z w", "a b c"]


def test_weights_by_hand() -> None:
    seeds = [("a", "x"), ("b", "y")]
    assert corrupted(seeds) == [("b", "x"), ("a", "y"), ("a", "y"), ("b", "x")]
    raw = np.array([-1 + 0.5 * 4, -2 + 0.5 * 4, -9 + 0.5 * 9]) / 1.0
    soft = np.exp(raw) / np.exp(raw).sum()
    want = np.where(soft < 0.05, 0, soft)
    got = prompt_weights([-1, -2, -9], [-4, -4, -9], temperature=1.0)
    np.testing.assert_allclose(got, want / want.sum())
    assert got[2] == 0
    np.testing.assert_allclose(prompt_weights([-1.0] * 40, [-2.0] * 40, most=30).sum(), 1)
    np.testing.assert_allclose(prompt_weights([-1, -5], None), [0.5, 0.5])


def test_nonsense_prompts_weigh_nothing() -> None:
    """A prompt under which right and wrong tuples score alike, and low, loses to one that tells them apart."""
    good, bad = read_prompt("<ENT0> is in <ENT1>"), read_prompt("<ENT0> pencils <ENT1>")
    truth = {("Rome", "Italy"), ("Oslo", "Norway"), ("Lima", "Peru")}

    def score(pairs: object) -> NDArray[np.float64]:
        return np.array([-9.0 if p is bad else -2.0 if tuple(t) in truth else -8.0 for p, t in pairs])  # type: ignore[attr-defined]

    weights, pos, neg = weigh(score, [good, bad], sorted(truth))
    assert weights.tolist() == [1.0, 0.0]
    assert pos.tolist() == [-2, -9]
    assert neg.tolist() == [-8, -9]
    alone, _, _ = weigh(score, [good, bad], [("Rome", "Italy")])
    assert alone.tolist() == [0.5, 0.5]


# ------------------------------------------------------------------------------------------------ search

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]


class Made:
    """A made-up masked model of six tokens: two tokens next to each other make one name."""

    def __init__(self, seed: int) -> None:
        self.calls, self.seed = 0, seed

    def __call__(
        self, counts: tuple[int, ...], done: tuple[tuple[int, ...], ...], prefix: tuple[int, ...]
    ) -> NDArray[np.float64]:
        self.calls += 1
        key = [self.seed, *counts, 99, *itertools.chain(*done), 98, *prefix]
        z = np.random.default_rng(key).normal(size=len(NAMES)) * 2
        return np.asarray(z - np.logaddexp.reduce(z))


def decode(tokens: tuple[int, ...]) -> str:
    return " ".join(NAMES[t] for t in tokens)


def by_trying_everything(fill: Made, arity: int, subwords: int) -> dict[tuple[str, ...], float]:
    best: dict[tuple[str, ...], float] = {}
    for counts in itertools.product(range(1, subwords + 1), repeat=arity):
        for tokens in itertools.product(*(itertools.product(range(len(NAMES)), repeat=n) for n in counts)):
            names = [decode(t) for t in tokens]
            if not all(entity_is_good(n, names[:i]) for i, n in enumerate(names)):
                continue
            score = min(
                float(fill(counts, tokens[:i], t[:j])[t[j]]) for i, t in enumerate(tokens) for j in range(len(t))
            )
            key = tuple(names)
            best[key] = max(best.get(key, -math.inf), score)
    return best


@pytest.mark.parametrize(("arity", "subwords", "seed"), [(2, 1, 0), (2, 2, 1), (3, 1, 2), (1, 2, 3)])
def test_search_finds_what_trying_everything_finds(arity: int, subwords: int, seed: int) -> None:
    fill = Made(seed)
    want = by_trying_everything(fill, arity, subwords)
    got = search_tuples(fill, decode, arity, most=len(want) * 9, subwords=subwords, repeat=None)
    assert {n: s for s, n in got} == pytest.approx(want)
    assert [s for s, _ in got] == sorted((s for s, _ in got), reverse=True)


def test_pruning_changes_nothing_and_saves_work() -> None:
    fill = Made(5)
    want = sorted(by_trying_everything(fill, 2, 2).items(), key=lambda kv: -kv[1])[:20]
    wide, narrow = Made(5), Made(5)
    search_tuples(wide, decode, 2, most=10_000, subwords=2, repeat=None)
    got = search_tuples(narrow, decode, 2, most=20, subwords=2, repeat=None)
    assert [s for s, _ in got] == pytest.approx([s for _, s in want])
    assert narrow.calls < wide.calls / 2


def test_no_word_fills_the_result() -> None:
    got = search_tuples(Made(7), decode, 2, most=50, subwords=2, repeat=3)
    words = [w for _, names in got for name in names for w in name.split()]
    assert max(words.count(w) for w in NAMES) <= 3
    free = search_tuples(Made(7), decode, 2, most=50, subwords=2, repeat=None)
    assert len(free) > len(got)


@pytest.mark.parametrize(
    ("entity", "earlier", "good"),
    [("Paris", [], True), ("the city", [], False), ("ab", [], False), ("x ray", [], False), ("cat cat", [], False),
     ("parisian", ["Paris"], False), ("new york", ["york"], True), ("york", ["yorkshire"], False), ("capital", [], False), ("1234", [], False)],
)  # fmt: skip
def test_what_may_be_an_entity(entity: str, earlier: list[str], good: bool) -> None:
    assert entity_is_good(entity, earlier, ["The capital of <ENT0> is <ENT1> ."]) == good
