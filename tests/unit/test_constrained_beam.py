"""The constrained decoder against all strings of a small world."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError
from interfuse.kit.constrained_beam import (
    Clause,
    Constraint,
    Continuations,
    Found,
    Tokens,
    constrained_beam,
    each_alternative,
    fresh,
    satisfied,
    word_starts,
)

WORDS = 5
END = WORDS


def table(seed: int = 0) -> Continuations:
    """A made-up language of five words and an end: the next token depends on the last two."""
    logits = np.random.default_rng(seed).normal(size=(WORDS + 1, WORDS + 1, WORDS + 1)) * 1.5

    def logs(tokens: Tokens) -> NDArray[np.float64]:
        a, b = (END, END, *tokens)[-2:]
        row = logits[a, b]
        return np.asarray(row - np.logaddexp.reduce(row))

    return Continuations(logs)


def everything(stepper: Continuations, longest: int) -> dict[Tokens, float]:
    """Every string of at most so many words with its log-probability, the end counted."""
    found = {}
    for n in range(1, longest + 1):
        for string in itertools.product(range(WORDS), repeat=n):
            total = sum(float(stepper._logs(string[:i])[t]) for i, t in enumerate(string))
            found[string] = total + float(stepper._logs(string)[END])
    return found


def holds(string: Tokens, phrase: Tokens) -> bool:
    return any(string[i : i + len(phrase)] == phrase for i in range(len(string)))


CASES = {
    "one of two words": Constraint((Clause(((0,), (3,))),)),
    "two clauses, phrases that overlap": Constraint((Clause(((0, 1), (0, 0, 1))), Clause(((1, 2),)))),
    "a phrase that begins like itself": Constraint((Clause(((0, 0, 1),)),), never=((2,), (3, 4))),
    "only what must not be": Constraint(never=((1,), (0, 0), (4, 2, 3))),
    "nothing repeated": Constraint((Clause(((2,),)),), unrepeated=2),
}


@pytest.mark.parametrize("name", CASES)
def test_satisfied_agrees_with_looking_for_the_phrases(name: str) -> None:
    c = CASES[name]
    for n in range(7):
        for string in itertools.product(range(WORDS), repeat=n):
            want = all(any(holds(string, p) for p in k.phrases) for k in c.must) and not any(
                holds(string, p) for p in c.never
            )
            if c.unrepeated:
                pairs = [string[i : i + c.unrepeated] for i in range(n - c.unrepeated + 1)]
                want = want and len(pairs) == len(set(pairs))
            assert satisfied(c, string) == want, string


def in_order(string: Tokens, clauses: Sequence[Clause]) -> bool:
    """Clauses one after the other, the first end of each counting, and nothing of a later clause before its turn."""
    turn, since = 0, 0
    for end in range(1, len(string) + 1):
        ended = [k for k, c in enumerate(clauses) for p in c.phrases
                 if k >= turn and len(p) <= end - since and string[end - len(p) : end] == p]  # fmt: skip
        if any(k > turn for k in ended):
            return False
        if turn in ended:
            turn, since = turn + 1, end
    return turn == len(clauses)


def test_ordered_clauses_wait_for_their_turn() -> None:
    clauses = (Clause(((0,), (1, 2))), Clause(((3,), (0, 4))))
    c = Constraint(clauses, ordered=True)
    for n in range(7):
        for string in itertools.product(range(WORDS), repeat=n):
            assert satisfied(c, string) == in_order(string, clauses), string


@pytest.mark.parametrize("name", CASES)
def test_with_room_for_everything_the_best_is_the_best_of_all(name: str) -> None:
    c, stepper = CASES[name], table(3)
    strings = {s: v for s, v in everything(stepper, 4).items() if satisfied(c, s)}
    best = sorted(strings.items(), key=lambda kv: -kv[1])[:5]
    found = constrained_beam(stepper, (), c, end=[END], beam=WORDS**4, max_length=4, penalty=0.0, count=5, tolerance=9)
    assert [f.tokens for f in found] == [s for s, _ in best]
    np.testing.assert_allclose([f.logprob for f in found], [v for _, v in best], rtol=1e-12)
    assert all(f.complete and all(f.met) for f in found)


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_without_clauses_it_is_plain_beam_search(beam: int, seed: int) -> None:
    stepper, finished = table(seed), []
    rows: list[tuple[Tokens, float]] = [((), 0.0)]
    for length in range(6):
        if length:
            finished += [Found(s, v + float(stepper._logs(s)[END]), (), True) for s, v in rows]
        if length < 5:
            grown = [((*s, t), v + float(stepper._logs(s)[t])) for s, v in rows for t in range(WORDS)]
            rows = sorted(grown, key=lambda r: -r[1])[:beam]
    want = sorted(finished, key=lambda f: -f.score(0.1))[:3]
    got = constrained_beam(stepper, (), Constraint(), end=[END], beam=beam, max_length=5, penalty=0.1, count=3)
    assert [g.tokens for g in got] == [w.tokens for w in want]


def test_every_finished_one_meets_the_constraint_with_a_small_beam_too() -> None:
    c = Constraint((Clause(((4, 4), (3, 1))), Clause(((2, 0),))), never=((1, 1),), ordered=True)
    for seed in range(20):
        for f in constrained_beam(table(seed), (), c, end=[END], beam=4, max_length=8, count=6):
            assert f.complete
            assert satisfied(c, f.tokens)


def test_the_groups_keep_what_pays_early() -> None:
    """A word that costs 20 nats is found by a beam of two although 40 continuations are cheaper."""
    costs = np.array([-0.7, -0.7, -5.0, -20.0, -5.0, -1.0])
    c = Constraint((Clause(((3,),)),))
    found = constrained_beam(
        Continuations(lambda s: costs), (), c, end=[END], beam=2, max_length=5, count=1, penalty=0.0
    )
    assert found[0].tokens == (3,)
    assert found[0].logprob == pytest.approx(-21.0)


def test_what_cannot_be_met_comes_back_as_incomplete() -> None:
    c = Constraint((Clause(((0, 1, 2, 3),)),))
    found = constrained_beam(table(), (), c, end=[END], beam=3, max_length=3)
    assert found
    assert not any(f.complete or all(f.met) for f in found)


def test_drawing_is_by_weight_and_repeats_with_its_seed() -> None:
    def firsts(temperature: float) -> list[Tokens]:
        made = []
        for seed in range(200):
            rng = np.random.default_rng(seed)
            made += [
                constrained_beam(
                    table(), (), Constraint(), end=[END], beam=1, max_length=1, temperature=temperature, rng=rng
                )[0].tokens
            ]
        return made

    logs = table()._logs(())[:WORDS]
    # two candidates reach the drawing (twice the beam); cold drawing takes the best, hot drawing either
    best = (int(np.argmax(logs)),)
    assert set(firsts(1e-6)) == {best}
    hot = firsts(1e7)
    assert 60 < sum(t == best for t in hot) < 140
    assert hot == firsts(1e7)


def test_a_phrase_ends_with_its_word() -> None:
    pieces = ["Ġare", "as", "Ġbig", "Ġthan", "kful", "."]
    starts = word_starts(pieces)
    assert starts.tolist() == [True, False, True, True, False, True]
    c = Constraint((Clause(((0,),)),), never=((3,),), starts=starts)
    assert satisfied(c, (0, 2))
    assert satisfied(c, (2, 0))
    assert not satisfied(c, (0, 1))  # "areas"
    assert not satisfied(c, (0, 3))  # "than" is forbidden
    assert not satisfied(c, (0, 3, 2))
    assert satisfied(c, (0, 3, 4))  # "thankful" is not
    assert satisfied(c, (0, 1, 0))
    assert word_starts(["are", "##as", "big"]).tolist() == [True, False, True]


def test_only_the_likeliest_phrases_are_begun() -> None:
    from interfuse.kit.constrained_beam import helpful

    c = Constraint((Clause(((0,), (1,), (2,), (3, 0)), leading=2),))
    assert helpful(c, fresh(c), (), np.array([-1.0, -4.0, -2.0, -3.0, 0.0])) == [0, 2]


def test_alternatives_of_divided_clauses() -> None:
    clauses = (Clause(((0,), (1,))), Clause(((2,), (3,))), Clause(((4,), (5,))))
    made = list(each_alternative(clauses, (0, 1)))
    assert len(made) == 4
    assert all(m[2] == clauses[2] for m in made)
    assert [m[0].phrases + m[1].phrases for m in made] == [((a,), (b,)) for a in (0, 1) for b in (2, 3)]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: Constraint((Clause(()),)), "input.empty"),
        (lambda: Constraint((Clause(((),)),)), "input.empty"),
        (lambda: Constraint(never=((),)), "input.empty"),
        (lambda: Constraint((Clause(((1, 2), (1,))),), never=((1,),)), "param.value"),
        (lambda: constrained_beam(table(), (), Constraint(), end=[END], beam=0), "param.value"),
        (lambda: constrained_beam(table(), (), Constraint(), end=[END], min_length=9, max_length=3), "param.value"),
        (lambda: constrained_beam(table(), (), Constraint(), end=[END], temperature=1.0), "param.missing"),
    ],
)
def test_contradictions_are_refused(make: object, code: str) -> None:
    with pytest.raises(InterfuseError) as error:
        make()  # type: ignore[operator]
    assert error.value.code == code


def test_a_fixed_length_needs_no_end() -> None:
    stepper = table(1)
    strings = {
        s: sum(float(stepper._logs(s[:i])[t]) for i, t in enumerate(s))
        for s in itertools.product(range(WORDS), repeat=3)
    }
    best = max(strings, key=lambda s: strings[s])
    stepper._logs, inner = (lambda s: inner(s)), stepper._logs  # the end is just a token here, which is never drawn
    c = Constraint(never=((END,),))
    found = constrained_beam(stepper, (), c, end=(), beam=WORDS**3, min_length=3, max_length=3, penalty=0.0, count=1)
    assert found[0].tokens == best
    assert math.isclose(found[0].logprob, strings[best])
