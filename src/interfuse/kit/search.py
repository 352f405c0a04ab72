"""Search over a grid of choices: all of it, or aging evolution (Real et al. 2019). A candidate is a tuple of indices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from interfuse.core.errors import InterfuseError

Candidate = tuple[int, ...]


def grid(sizes: Sequence[int]) -> Iterator[Candidate]:
    """Every candidate of a space with so many choices per gene, the last gene running fastest."""
    return itertools.product(*(range(n) for n in sizes))


def aging_evolution(
    score: Callable[[Candidate], float], allowed: Callable[[Candidate], bool], sizes: Sequence[int], rng: np.random.Generator, *,
    evaluations: int = 1000, population: int = 20, tournament: int = 10, parents: int = 5,
) -> list[tuple[Candidate, float]]:  # fmt: skip
    """Evolves candidates of high score: the parent is drawn from the best of a random sample, one gene is changed, the oldest dies.

    A candidate that was scored before enters the population again at no cost; the search ends as well when a hundred changes in
    a row bring nothing new.

    Args:
        score: higher is better. allowed: whether a candidate is within the budget.
        sizes: choices per gene. evaluations: most candidates to score.
        tournament: size of the sample. parents: how many of its best may become the parent.

    Returns:
        Candidates and scores in the order of their evaluation.

    Raises:
        InterfuseError: ``param.value`` when no allowed candidate is found.
    """
    seen: dict[Candidate, float] = {}
    alive: list[Candidate] = []

    def enter(candidate: Candidate) -> bool:
        fresh = candidate not in seen
        if fresh:
            seen[candidate] = score(candidate)
        alive.append(candidate)
        del alive[: max(len(alive) - population, 0)]
        return fresh

    for _ in range(100 * population):
        if len(seen) >= min(population, evaluations):
            break
        candidate = tuple(int(rng.integers(n)) for n in sizes)
        if candidate not in seen and allowed(candidate):
            enter(candidate)
    if not seen:
        raise InterfuseError("param.value", "no candidate within the budget was found", fix="Raise the budget.")
    changeable = [gene for gene, n in enumerate(sizes) if n > 1]
    idle = 0
    while changeable and len(seen) < evaluations and idle < 100:
        sample = [alive[int(i)] for i in rng.choice(len(alive), min(tournament, len(alive)), replace=False)]
        best = sorted(dict.fromkeys(sample), key=lambda c: -seen[c])[:parents]
        child = list(best[int(rng.integers(len(best)))])
        gene = changeable[int(rng.integers(len(changeable)))]
        child[gene] = int((child[gene] + 1 + rng.integers(sizes[gene] - 1)) % sizes[gene])
        candidate = tuple(child)
        idle = 0 if allowed(candidate) and enter(candidate) else idle + 1
    return list(seen.items())
