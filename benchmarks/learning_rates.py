"""Which learning rate is still to be tried: a grid grows until the best rate lies inside it, so that no condition is judged at an edge."""

from __future__ import annotations

from collections.abc import Mapping

#: what a grid may hold, each about three times the one before
LADDER = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def best(scores: Mapping[float, float]) -> float:
    """The rate with the highest score, of equals the one that stands first (was tried first); a score that is no number loses."""
    return max(scores, key=lambda rate: scores[rate] if scores[rate] == scores[rate] else float("-inf"))


def untried(scores: Mapping[float, float]) -> float | None:
    """A neighbour on the ladder of the best rate that has no score yet; None when both have one.

    Args:
        scores: rate of the ladder -> how well it did (higher is better), at least one, in the order in which they were tried.
    """
    place = LADDER.index(best(scores))
    missing = [rate for rate in LADDER[max(place - 1, 0) : place + 2] if rate not in scores]
    return missing[0] if missing else None


def at_the_edge(scores: Mapping[float, float]) -> bool:
    """Whether the best rate is the lowest or the highest that was tried."""
    return best(scores) in (min(scores), max(scores))
