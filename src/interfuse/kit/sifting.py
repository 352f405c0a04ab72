"""Search, judge, rank: candidates for knowledge that is taken out of a model, and an account of what fell out where.

What is shared is the candidate (:class:`Proposal`) and the account: :class:`Funnel` writes down how many came into a stage, how many went on, and
why the others did not, so that a graph's report can say what a filter cost. The loops themselves differ too much (BertNet searches tuples best
first, LINK lowers its bar value by value, NeuroComparatives filters once): each stands in its own method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from interfuse.core.errors import InterfuseError


@dataclass(frozen=True)
class Proposal:
    """One candidate on its way through the loop.

    Attributes:
        key: what it is (subject, object; bindings of a rule ...). text: it in words.
        score: of the search, higher is better. p_valid: of the critic, None before it was judged.
        cluster, cluster_size: which near duplicates it stands for. facts: what a method wants to keep beside it.
    """

    key: tuple[str, ...]
    text: str = ""
    score: float = 0.0
    p_valid: float | None = None
    cluster: int = 0
    cluster_size: int = 1
    facts: tuple[tuple[str, Any], ...] = ()

    def fact(self, name: str, otherwise: Any = None) -> Any:
        """A fact by its name."""
        return dict(self.facts).get(name, otherwise)

    def with_facts(self, **facts: Any) -> Proposal:
        """A copy with facts added or replaced."""
        return replace(self, facts=tuple({**dict(self.facts), **facts}.items()))


@dataclass(frozen=True)
class Stage:
    """What one stage did: how many came in and went out, and why the others did not."""

    name: str
    entered: int
    left: int
    reasons: tuple[tuple[str, int], ...] = ()


@dataclass
class Funnel:
    """The account of a harvest, stage by stage."""

    stages: list[Stage] = field(default_factory=list)

    def note(self, name: str, entered: int, left: int, reasons: Iterable[str] = ()) -> None:
        """Writes a stage down; stages of one name are added up. ``reasons``: one per dropped candidate."""
        counts: dict[str, int] = {}
        for reason in reasons:
            counts[reason] = counts.get(reason, 0) + 1
        for i, old in enumerate(self.stages):
            if old.name == name:
                merged = dict(old.reasons)
                for reason, n in counts.items():
                    merged[reason] = merged.get(reason, 0) + n
                self.stages[i] = Stage(name, old.entered + entered, old.left + left, tuple(sorted(merged.items())))
                return
        self.stages.append(Stage(name, entered, left, tuple(sorted(counts.items()))))

    def keep(self, name: str, items: Sequence[Proposal], reason: Callable[[Proposal], str]) -> list[Proposal]:
        """Those for which ``reason`` says nothing; what it says of the others is counted."""
        said = [reason(item) for item in items]
        kept = [item for item, why in zip(items, said, strict=True) if not why]
        self.note(name, len(items), len(kept), [why for why in said if why])
        return kept

    def unique(self, name: str, items: Sequence[Proposal], key: Callable[[Proposal], Any]) -> list[Proposal]:
        """The best-scored of those with one key, in the order of first appearance."""
        best: dict[Any, Proposal] = {}
        for item in items:
            k = key(item)
            if k not in best or item.score > best[k].score:
                best[k] = item
        kept = list(best.values())
        self.note(name, len(items), len(kept), ["the same again"] * (len(items) - len(kept)))
        return kept

    def rows(self) -> list[dict[str, Any]]:
        """The account as plain rows."""
        return [{"stage": s.name, "in": s.entered, "out": s.left, "dropped": dict(s.reasons)} for s in self.stages]


def judged(items: Sequence[Proposal], p: ArrayLike) -> list[Proposal]:
    """The candidates with the critic's probabilities.

    Raises:
        InterfuseError: ``input.shape`` or ``input.nan``.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.shape != (len(items),):
        raise InterfuseError("input.shape", f"{values.shape} probabilities for {len(items)} candidates")
    if not np.isfinite(values).all():
        raise InterfuseError("input.nan", "the critic gave something that is not a number")
    return [replace(item, p_valid=float(v)) for item, v in zip(items, values, strict=True)]
