"""Contracts: what a step may be given, what it must give back, how often it may try, and what graphs may take in.

:class:`Contract` stands around any step, deterministic or asking a language model: the input is checked before it costs anything,
the output after; what is wrong is told in words and the step is asked again with them, a few times; then a fallback, or an honest
failure. Everything is recorded. :func:`gate` does the same for a graph's write path: a batch is tried on a copy, and only what breaks
no shape is added. After SymbolicAI's contracts (github.com/ExtensityAI/symbolicai), which HyDRA uses.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from interfuse.core.errors import InterfuseError
from interfuse.data.graph import Graph
from interfuse.data.statements import Literal, Statement
from interfuse.kit.shapes import Shapes, Violation, validate

X = TypeVar("X")
Y = TypeVar("Y")
#: errors of a step that another try may mend; others end it
MENDABLE = ("input.format", "input.missing", "input.empty", "endpoint.failed")


@dataclass(frozen=True)
class Attempt:
    """One try: what was wrong with it (nothing: it passed), and the seconds it took."""

    number: int
    problems: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Outcome(Generic[Y]):
    """What came of a step.

    Attributes:
        value: the result that passed, the fallback's, or None. ok: whether it passed. fallen: whether it is the fallback's.
        attempts: every try. refused: what was wrong with the input, if that was it.
    """

    value: Y | None
    ok: bool
    attempts: tuple[Attempt, ...] = ()
    refused: tuple[str, ...] = ()
    fallen: bool = False


@dataclass
class Record:
    """Counts over many runs of contracts, by name, for reports."""

    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, name: str, outcome: Outcome[Any]) -> None:
        """Counts one outcome."""
        row = self.rows.setdefault(
            name,
            dict.fromkeys(
                ("runs", "refused", "passed", "passed at once", "mended", "failed", "fallen", "tries", "seconds"), 0.0
            ),
        )
        row["runs"] += 1
        row["refused"] += bool(outcome.refused)
        row["passed"] += outcome.ok
        row["passed at once"] += outcome.ok and len(outcome.attempts) == 1
        row["mended"] += outcome.ok and len(outcome.attempts) > 1
        row["failed"] += not outcome.ok and not outcome.refused
        row["fallen"] += outcome.fallen
        row["tries"] += len(outcome.attempts)
        row["seconds"] += sum(a.seconds for a in outcome.attempts)

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The counts, without the seconds, which differ from run to run."""
        return {name: {k: int(v) for k, v in row.items() if k != "seconds"} for name, row in sorted(self.rows.items())}


def nothing(*_: Any) -> tuple[str, ...]:
    """A check that finds nothing wrong."""
    return ()


@dataclass(frozen=True)
class Contract(Generic[X, Y]):
    """What a step promises.

    Attributes:
        pre: problems of an input, in words. post: problems of an input's output.
        tries: calls of the step at most. backoff: seconds before the second try, doubled for each further one.
        correct: (first input, last output or None, problems) -> the next input; None repeats the input.
        fallback: (input, problems) -> a value that does without the step.
    """

    name: str
    pre: Callable[[X], Iterable[str]] = nothing
    post: Callable[[X, Y], Iterable[str]] = nothing
    tries: int = 3
    backoff: float = 0.0
    correct: Callable[[X, Y | None, tuple[str, ...]], X] | None = None
    fallback: Callable[[X, tuple[str, ...]], Y] | None = None

    def run(self, step: Callable[[X], Y], value: X, record: Record | None = None) -> Outcome[Y]:
        """Runs a step under the contract. Errors of :data:`MENDABLE` count as problems; others, such as a spent budget, end it."""
        outcome = self._run(step, value)
        if record is not None:
            record.add(self.name, outcome)
        return outcome

    def _run(self, step: Callable[[X], Y], value: X) -> Outcome[Y]:
        refused = tuple(self.pre(value))
        if refused:
            return self._fall(value, refused, (), refused)
        attempts: list[Attempt] = []
        given = value
        problems: tuple[str, ...] = ()
        for number in range(1, max(1, self.tries) + 1):
            if number > 1 and self.backoff:
                time.sleep(self.backoff * 2 ** (number - 2))
            began = time.monotonic()
            made: Y | None = None
            try:
                made = step(given)
                problems = tuple(self.post(value, made))
            except InterfuseError as error:
                if error.code not in MENDABLE:
                    raise
                problems = (str(error),)
            attempts.append(Attempt(number, problems, time.monotonic() - began))
            if not problems:
                return Outcome(made, True, tuple(attempts))
            if self.correct is not None:
                given = self.correct(value, made, problems)
        return self._fall(value, problems, tuple(attempts))

    def _fall(
        self, value: X, problems: tuple[str, ...], attempts: tuple[Attempt, ...], refused: tuple[str, ...] = ()
    ) -> Outcome[Y]:
        if self.fallback is None:
            return Outcome(None, False, attempts, refused)
        return Outcome(self.fallback(value, problems), False, attempts, refused, fallen=True)


def contract(**terms: Any) -> Callable[[Callable[[X], Y]], Callable[[X], Y]]:
    """Puts a function under a contract: it returns what passed, or the fallback's value.

    The function raises ``run.failed`` when no try passed and there is no fallback.

    Args:
        terms: the fields of :class:`Contract`, and ``record``.
    """
    record = terms.pop("record", None)

    def mark(step: Callable[[X], Y]) -> Callable[[X], Y]:
        bound: Contract[X, Y] = Contract(**{"name": step.__name__, **terms})

        @functools.wraps(step)
        def guarded(value: X) -> Y:
            outcome = bound.run(step, value, record)
            if outcome.value is None and not outcome.ok:
                said = outcome.refused or (outcome.attempts[-1].problems if outcome.attempts else ())
                raise InterfuseError("run.failed", f"{bound.name} did not keep its contract: {'; '.join(said)[:500]}",
                                     where=f"{len(outcome.attempts)} tries")  # fmt: skip
            return outcome.value  # type: ignore[return-value]

        return guarded

    return mark


@dataclass(frozen=True)
class Gated:
    """What became of a batch: the operation that added it (0: nothing was), what was let in, what was kept out and why."""

    op: int
    accepted: tuple[Statement, ...]
    rejected: tuple[tuple[Statement, tuple[Violation, ...]], ...]
    violations: tuple[Violation, ...] = ()


def gate(
    graph: Graph, statements: Iterable[Statement], shapes: Shapes, *, whole: bool = False, note: str = ""
) -> Gated:
    """Adds those statements that bring no new violation; the graph itself is touched once, or not at all.

    The batch is tried on a copy. Statements that take part in a new violation are left out, until none is new.

    Args:
        whole: any new violation keeps the whole batch out.

    Raises:
        InterfuseError: as :meth:`interfuse.data.graph.Graph.add` and :func:`interfuse.kit.shapes.validate`.
    """
    batch = [s.checked() for s in statements]
    before = {v.order[:4] for v in validate(graph, shapes).violations}
    kept, out = list(batch), {}
    first: tuple[Violation, ...] = ()
    while kept:
        trial = Graph.of(graph.history())
        trial.add(kept)
        new = [v for v in validate(trial, shapes).violations if v.order[:4] not in before]
        first = first or tuple(new)
        if not new:
            break
        if whole:
            return Gated(
                0, (), tuple((s, tuple(v for v in new if _part(s, v, trial)) or tuple(new)) for s in batch), first
            )
        blamed = {s.id: tuple(v for v in new if _part(s, v, trial)) for s in kept}
        blamed = {k: v for k, v in blamed.items() if v} or {s.id: tuple(new) for s in kept}  # nobody in particular: all
        out.update(blamed)
        kept = [s for s in kept if s.id not in blamed]
    op = graph.add(kept, note=note) if kept else 0
    return Gated(op, tuple(kept), tuple((s, out[s.id]) for s in batch if s.id in out), first)


def _part(statement: Statement, violation: Violation, graph: Graph) -> bool:
    """Whether a statement takes part in a violation: it is about the node, by the property and with the value that are named."""
    ends = [graph.called(n) for n in (statement.subject, statement.object) if isinstance(n, str)]
    if violation.focus not in ends and not (
        isinstance(statement.object, Literal) and statement.object.value == violation.focus
    ):
        return False
    if violation.path in ("", "?") or "(" in violation.path:
        return True
    named = violation.path.lstrip("^").strip("<>")
    if graph.called(statement.predicate) != named:
        return violation.component in ("MinCount", "HasValue") and graph.called(statement.subject) == violation.focus
    return violation.value is None or violation.value in (statement.object, statement.subject, *ends)


def summary(violations: Sequence[Violation], limit: int = 20) -> list[str]:
    """Violations in words, for a corrective prompt or a report."""
    lines = []
    for v in violations[:limit]:
        what = f" {v.path}" if v.path else ""
        value = "" if v.value is None else f" (found {v.value.value if isinstance(v.value, Literal) else v.value})"
        lines.append(f"{v.focus}{what}: {v.message or v.component}{value}")
    if len(violations) > limit:
        lines.append(f"and {len(violations) - limit} more")
    return lines
