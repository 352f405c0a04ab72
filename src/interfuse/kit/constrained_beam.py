"""Beam search under lexical constraints, in the manner of NeuroLogic decoding (Lu et al. 2021), over any model of tokens.

A constraint says what must occur (clauses, each met by any one of its phrases, all of them in any or in a stated order) and
what must not. Hypotheses are grouped by the clauses they have met, and the beam is filled from the groups in turn, so that a
hypothesis that pays for a rare word early is not lost to cheaper ones that have yet to pay. The decoder knows no model: it asks a
:class:`Stepper` for log-probabilities of the next token (see :mod:`interfuse.kit.token_models`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError

Tokens = tuple[int, ...]
Logs = NDArray[np.floating]


class Stepper(Protocol):
    """A model that continues several token sequences of one length side by side."""

    def begin(self, prompt: Sequence[int]) -> Logs:
        """Log-probabilities of the token after the prompt, [1, V], in nats; forgets what came before."""
        ...

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> Logs:
        """Row ``i`` becomes the old row ``parents[i]`` with ``tokens[i]`` appended; log-probabilities of the next one, [N, V]."""
        ...


class Continuations:
    """A stepper made of a function from whole continuations (without the prompt) to log-probabilities [V]."""

    def __init__(self, logs: Callable[[Tokens], Logs]) -> None:
        self._logs, self._rows = logs, [()]  # type: tuple[Callable[[Tokens], Logs], list[Tokens]]

    def begin(self, prompt: Sequence[int]) -> Logs:
        """As :meth:`Stepper.begin`; the prompt is left to the function."""
        self._rows = [()]
        return np.stack([self._logs(())])

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> Logs:
        """As :meth:`Stepper.advance`."""
        self._rows = [(*self._rows[p], t) for p, t in zip(parents, tokens, strict=True)]
        return np.stack([self._logs(r) for r in self._rows])


@dataclass(frozen=True)
class Clause:
    """One thing that must occur: any of the phrases.

    Attributes:
        phrases: token sequences. ``leading``: only so many phrases whose first token is likeliest are begun at a step (0: all);
            any phrase of the clause that comes about meets it all the same.
    """

    phrases: tuple[Tokens, ...]
    leading: int = 0


@dataclass(frozen=True)
class Constraint:
    """What a continuation must and must not hold.

    Attributes:
        must: the clauses, all of which are to be met. ``ordered``: one after the other; a phrase of a later clause is forbidden
            before its turn. never: phrases that must not occur. unrepeated: no sequence of so many tokens occurs twice (0: allowed).
        starts: for each token whether a word (or a sign) starts with it, [V]; then a phrase counts only where it ends with
            its word: `` are`` is not met inside `` areas``. None: every token is a word.
    """

    must: tuple[Clause, ...] = ()
    never: tuple[Tokens, ...] = ()
    ordered: bool = False
    unrepeated: int = 0
    starts: NDArray[np.bool_] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for clause in self.must:
            if not clause.phrases or any(not p for p in clause.phrases):
                raise InterfuseError("input.empty", "a clause has no phrase, or one without tokens")
            if all(any(_holds(p, n) for n in self.never) for p in clause.phrases):
                raise InterfuseError("param.value", "every phrase of a clause is also forbidden",
                                     fix="Drop it from one of the two lists.")  # fmt: skip
        if any(not p for p in self.never):
            raise InterfuseError("input.empty", "a forbidden phrase has no tokens")


@dataclass(frozen=True)
class State:
    """How far a continuation has come: clauses met, clauses whose phrase has just ended (its word may go on), whether a
    forbidden phrase has just ended, and where the last clause's phrase ended (in ordered search)."""

    met: tuple[bool, ...]
    pending: tuple[bool, ...]
    doomed: bool = False
    since: int = 0

    @property
    def done(self) -> tuple[bool, ...]:
        """Met or just about to be."""
        return tuple(a or b for a, b in zip(self.met, self.pending, strict=True))


@dataclass(frozen=True)
class Found:
    """One continuation: its tokens without the end token, the sum of its log-probabilities (the end token's included), the
    clauses met, and whether that is all of them (an incomplete one is given back only when nothing complete was found)."""

    tokens: Tokens
    logprob: float
    met: tuple[bool, ...]
    complete: bool

    def score(self, penalty: float) -> float:
        """``logprob / length^penalty``, the end token counted."""
        return self.logprob / float(len(self.tokens) + 1) ** penalty


def _holds(phrase: Tokens, part: Tokens) -> bool:
    return any(phrase[i : i + len(part)] == part for i in range(len(phrase) - len(part) + 1))


def _open(c: Constraint, state: State) -> list[int]:
    """The clauses that may be pursued now."""
    todo = [i for i, done in enumerate(state.done) if not done]
    return todo[:1] if c.ordered else todo


def fresh(c: Constraint) -> State:
    """The state of an empty continuation."""
    blank = (False,) * len(c.must)
    return State(blank, blank)


def follow(c: Constraint, state: State, tokens: Tokens, token: int) -> State | None:
    """The state after one more token; None when the token is forbidden."""
    word = c.starts is None or bool(c.starts[token])
    if state.doomed and word:
        return None
    met = tuple(a or (b and word) for a, b in zip(state.met, state.pending, strict=True))
    since = state.since
    if c.ordered and not word and any(state.pending):  # the word went on: the clause is not met after all
        since = 0
    grown = (*tokens, token)
    lasting = State(met, (False,) * len(met))
    allowed, pending = _open(c, lasting), [False] * len(met)
    for i, clause in enumerate(c.must):
        if met[i]:
            continue
        for phrase in clause.phrases:
            if grown[-len(phrase) :] == phrase and len(grown) - len(phrase) >= since:
                if i not in allowed:
                    return None
                pending[i] = True
    if c.ordered and any(pending):
        since = len(grown)
    ends = any(grown[-len(n) :] == n for n in c.never)
    if ends and c.starts is None:
        return None
    if c.starts is None:
        met, pending = tuple(a or b for a, b in zip(met, pending, strict=True)), [False] * len(met)
    if c.unrepeated and len(grown) > c.unrepeated:
        last = grown[-c.unrepeated :]
        if any(grown[i : i + c.unrepeated] == last for i in range(len(grown) - c.unrepeated)):
            return None
    return State(met, tuple(pending), ends, since)


def satisfied(c: Constraint, tokens: Sequence[int]) -> bool:
    """Whether a whole continuation meets the constraint."""
    state: State | None = fresh(c)
    for i, token in enumerate(tokens):
        if state is None:
            return False
        state = follow(c, state, tuple(tokens[:i]), token)
    return state is not None and not state.doomed and all(state.done)


def helpful(c: Constraint, state: State, tokens: Tokens, logs: Logs) -> list[int]:
    """The tokens that begin or go on with a phrase of a clause that may be pursued, each once, in the order of the clauses."""
    found: dict[int, None] = {}
    for i in _open(c, state):
        clause, begun = c.must[i], []
        for phrase in clause.phrases:
            step = _progress(phrase, tokens, state.since)
            if step:
                found[phrase[step]] = None
            else:
                begun.append(phrase[0])
        if clause.leading and len(begun) > clause.leading:
            begun = sorted(dict.fromkeys(begun), key=lambda t: -float(logs[t]))[: clause.leading]
        found.update(dict.fromkeys(begun))
    return list(found)


def _progress(phrase: Tokens, tokens: Tokens, since: int) -> int:
    """The length of the longest proper start of the phrase that the continuation ends with."""
    for n in range(min(len(phrase) - 1, len(tokens) - since), 0, -1):
        if tokens[-n:] == phrase[:n]:
            return n
    return 0


@dataclass(frozen=True)
class _Row:
    tokens: Tokens
    logprob: float
    state: State
    parent: int = 0


def constrained_beam(
    stepper: Stepper, prompt: Sequence[int], constraint: Constraint, *, end: Sequence[int], beam: int = 15, min_length: int = 1,
    max_length: int = 32, tolerance: int = 3, penalty: float = 0.1, count: int = 10, per_row: int = 0, temperature: float = 0.0,
    rng: np.random.Generator | None = None,
) -> list[Found]:  # fmt: skip
    """The best continuations that meet a constraint.

    At every step the candidates are the ``2 beam`` best tokens over all rows, the tokens that bring an open clause further, and
    each row's best ``per_row`` tokens. Those whose count of met clauses lags more than ``tolerance`` behind the best are dropped; the rest
    are grouped by the clauses met and in progress, and the next beam takes the best of each group, then the second best, and so on. An
    end token is allowed once every clause is met. Without clauses this is plain beam search.

    Args:
        end: tokens that end a continuation (their log-probability counts). min_length, max_length: in tokens, the end not counted.
        penalty: finished ones are ordered by ``logprob / length^penalty``. count: how many are given back at most.
        temperature: above 0, members of a group are drawn without replacement with weights ``exp(score / temperature)`` instead of
            taken best first; very large is uniform. Needs ``rng``.

    Returns:
        Finished continuations, best first. If none meets the constraint within ``max_length``, the furthest unfinished ones with
        ``complete=False``.

    Raises:
        InterfuseError: ``param.value`` for a beam below one or lengths that contradict each other.
    """
    if beam < 1 or not 0 <= min_length <= max_length:
        raise InterfuseError(
            "param.value", f"beam {beam}, lengths {min_length} to {max_length}: these leave nothing to search"
        )
    if temperature > 0 and rng is None:
        raise InterfuseError("param.missing", "drawing from the groups needs a generator")
    ends, finished = np.asarray(list(end), dtype=np.int64), []  # type: tuple[NDArray[np.int64], list[Found]]
    rows, logs = [_Row((), 0.0, fresh(constraint))], stepper.begin(prompt)
    for length in range(max_length + 1):
        for row, log in zip(rows, logs, strict=True):
            state = row.state
            if length >= min_length and all(state.done) and not state.doomed and len(ends):
                best = float(np.logaddexp.reduce(log[ends]))
                if np.isfinite(best):
                    finished.append(Found(row.tokens, row.logprob + best, state.done, True))
        if length == max_length:
            break
        following = _candidates(constraint, rows, logs, ends, beam, per_row)
        if not following:
            break
        chosen = _fill(constraint, following, beam, tolerance, temperature, rng)
        if _settled(finished, chosen, count, penalty, max_length):
            break
        logs = stepper.advance([r.parent for r in chosen], [r.tokens[-1] for r in chosen])
        rows = chosen
    if not len(ends):
        finished = [Found(r.tokens, r.logprob, r.state.done, True) for r in rows
                    if all(r.state.done) and not r.state.doomed and len(r.tokens) >= min_length]  # fmt: skip
    if not finished:
        finished = [Found(r.tokens, r.logprob, r.state.done, False) for r in rows]
        return sorted(finished, key=lambda f: (-sum(f.met), -f.score(penalty)))[:count]
    return sorted(finished, key=lambda f: -f.score(penalty))[:count]


def _candidates(
    c: Constraint, rows: Sequence[_Row], logs: Logs, ends: NDArray[np.int64], beam: int, per_row: int
) -> list[_Row]:
    open_logs = np.array(logs, dtype=np.float64)
    if len(ends):
        open_logs[:, ends] = -np.inf
    totals = open_logs + np.array([[r.logprob] for r in rows])
    wanted: dict[tuple[int, int], None] = {}
    flat, vocabulary = totals.ravel(), totals.shape[1]
    for i, row in enumerate(rows):
        wanted.update(dict.fromkeys((i, t) for t in helpful(c, row.state, row.tokens, logs[i])))
        for t in _best(totals[i], per_row):
            wanted[i, int(t)] = None
    # forbidden tokens may stand among the best: go further down until enough are allowed
    allowed: dict[tuple[int, int], _Row] = {}

    def enter(i: int, t: int) -> None:
        if (i, t) in allowed or not np.isfinite(totals[i, t]):
            return
        state = follow(c, rows[i].state, rows[i].tokens, t)
        if state is not None:
            allowed[i, t] = _Row((*rows[i].tokens, t), float(totals[i, t]), state, i)

    reach, seen = min(4 * beam, len(flat)), 0
    while True:
        order = _best(flat, reach)
        for place in order[seen:]:
            enter(int(place) // vocabulary, int(place) % vocabulary)
            if len(allowed) >= 2 * beam:
                break
        if len(allowed) >= 2 * beam or reach == len(flat):
            break
        seen, reach = reach, min(4 * reach, len(flat))
    for i, t in wanted:
        enter(i, t)
    return list(allowed.values())


def _best(values: Logs, count: int) -> NDArray[np.int64]:
    """The places of the largest values, largest first, ties by place."""
    if count <= 0:
        return np.zeros(0, np.int64)
    if count < len(values):
        edge = np.partition(values, -count)[-count]
        places = np.flatnonzero(values >= edge)
    else:
        places = np.arange(len(values))
    return places[np.argsort(-values[places], kind="stable")][:count]


def _fill(
    c: Constraint,
    candidates: list[_Row],
    beam: int,
    tolerance: int,
    temperature: float,
    rng: np.random.Generator | None,
) -> list[_Row]:
    furthest = max(sum(r.state.done) for r in candidates)
    groups: dict[tuple[int, ...], list[_Row]] = {}
    for row in sorted(candidates, key=lambda r: -r.logprob):
        if sum(row.state.done) >= furthest - tolerance:
            groups.setdefault(_advance(c, row), []).append(row)
    if temperature > 0 and rng is not None:
        groups = {k: _drawn(v, temperature, rng) for k, v in groups.items()}
    chosen: list[_Row] = []
    for rank in range(max(map(len, groups.values()))):
        layer = [(sum(k), g[rank]) for k, g in groups.items() if rank < len(g)]
        layer.sort(key=lambda pair: (-pair[0], -pair[1].logprob))  # the furthest group is never crowded out
        chosen += [row for _, row in layer[: beam - len(chosen)]]
        if len(chosen) == beam:
            break
    return chosen


def _advance(c: Constraint, row: _Row) -> tuple[int, ...]:
    """The group of a row: 2 for a clause that is met, 1 for one of which a phrase is begun, 0 for the others."""
    level = [2 * done for done in row.state.done]
    for i in _open(c, row.state):
        level[i] = int(any(_progress(p, row.tokens, row.state.since) for p in c.must[i].phrases))
    return tuple(level)


def _drawn(rows: list[_Row], temperature: float, rng: np.random.Generator) -> list[_Row]:
    """All rows in an order drawn without replacement with weights ``exp(score / temperature)`` (Gumbel keys)."""
    keys = np.array([r.logprob for r in rows]) / temperature + rng.gumbel(size=len(rows))
    return [rows[int(i)] for i in np.argsort(-keys, kind="stable")]


def _settled(finished: Sequence[Found], rows: Sequence[_Row], count: int, penalty: float, longest: int) -> bool:
    """Whether no unfinished row can still enter the ``count`` best (scores only fall; a longer one is divided by more)."""
    if len(finished) < count or not rows:
        return False
    bar = sorted((f.score(penalty) for f in finished), reverse=True)[count - 1]
    return max(r.logprob for r in rows) / float(longest + 1) ** penalty < bar


def word_starts(pieces: Sequence[str], marks: str = "▁Ġ ") -> NDArray[np.bool_]:
    """For each token of a vocabulary whether a new word or a sign starts with it, [V].

    Args:
        pieces: the tokens as the tokenizer spells them: with a mark for the space before (SentencePiece, byte-level BPE), or with
            ``##`` in front of those that go on (WordPiece).
    """
    marked = any(p[:1] in marks for p in pieces if p)
    return np.array(
        [not p or p[0] in marks or not p[0].isalnum() if marked else not p.startswith("##") for p in pieces]
    )


def each_alternative(clauses: Sequence[Clause], divided: Sequence[int]) -> Iterator[tuple[Clause, ...]]:
    """Every way to fix the clauses numbered in ``divided`` to one phrase each, the last running fastest."""
    import itertools

    choices = [c.phrases if i in divided else (None,) for i, c in enumerate(clauses)]
    for picked in itertools.product(*choices):
        yield tuple(c if p is None else Clause((p,)) for c, p in zip(clauses, picked, strict=True))
