"""Slow, obvious statistics: loops and definitions, no vector tricks. Compared with ``interfuse.kit`` by the tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from fractions import Fraction


def mean(x: Sequence[float]) -> float:
    return math.fsum(x) / len(x)


def standard_error(x: Sequence[float]) -> float:
    m = mean(x)
    return math.sqrt(math.fsum((v - m) ** 2 for v in x) / (len(x) - 1)) / math.sqrt(len(x))


def clustered_se(x: Sequence[float], clusters: Sequence[Hashable]) -> float:
    m = mean(x)
    totals: dict[Hashable, float] = {}
    for value, name in zip(x, clusters, strict=True):
        totals[name] = totals.get(name, 0.0) + value - m
    g = len(totals)
    return math.sqrt(g / (g - 1) * math.fsum(t * t for t in totals.values())) / len(x)


def mcnemar(gained: int, lost: int) -> float:
    """Sum of binomial chances in exact fractions."""
    m = gained + lost
    tail = sum(math.comb(m, k) for k in range(min(gained, lost) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**m)))


def sign_flip(d: Sequence[int]) -> float:
    """All 2^n sign patterns of whole-number differences."""
    observed = abs(sum(d))
    hits = [
        abs(sum(s * v for s, v in zip(signs, d, strict=True))) for signs in itertools.product((-1, 1), repeat=len(d))
    ]
    return sum(h >= observed for h in hits) / len(hits)


def bootstrap_distribution(pairs: Sequence[tuple[float, int]]) -> list[float]:
    """The mean of every one of the G^G equally likely resamples of clusters given as (sum, size)."""
    return [
        math.fsum(s for s, _ in drawn) / sum(n for _, n in drawn)
        for drawn in itertools.product(pairs, repeat=len(pairs))
    ]


def tango_lost_chance(gained: int, lost: int, n: int, delta: float) -> float:
    """The chance of "lost" that makes the counts likeliest when gained - lost has chance ``delta``: ternary search."""

    def log_likelihood(q: float) -> float:
        terms = ((gained, q + delta), (lost, q), (n - gained - lost, 1 - 2 * q - delta))
        return sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        if log_likelihood(a) < log_likelihood(b):
            low = a
        else:
            high = b
    return (low + high) / 2


def tango(gained: int, lost: int, n: int, delta: float) -> float:
    q = tango_lost_chance(gained, lost, n, delta)
    return (gained - lost - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))


def holm_rejects(p: Sequence[float], alpha: float) -> list[bool]:
    """Holm's procedure as published: smallest p first, stop at the first that fails."""
    rejected = [False] * len(p)
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] * (len(p) - step) > alpha:
            break
        rejected[i] = True
    return rejected


def benjamini_hochberg_rejects(p: Sequence[float], alpha: float) -> list[bool]:
    """Reject the k smallest for the largest k with p_(k) m / k <= alpha."""
    m, order = len(p), sorted(range(len(p)), key=lambda i: p[i])
    k = max((r for r in range(1, m + 1) if p[order[r - 1]] * (m / r) <= alpha), default=0)
    return [i in order[:k] for i in range(m)]


def ece(confidence: Sequence[float], correct: Sequence[bool], bins: int) -> float:
    """Right-closed equal-width bins, one comparison per item and bin."""
    total = 0.0
    for b in range(bins):
        inside = [
            (c, r)
            for c, r in zip(confidence, correct, strict=True)
            if (b / bins < c <= (b + 1) / bins) or (b == 0 and c == 0)
        ]
        if inside:
            gap = abs(sum(r for _, r in inside) / len(inside) - math.fsum(c for c, _ in inside) / len(inside))
            total += len(inside) / len(confidence) * gap
    return total


def top_k(scores: Sequence[Sequence[float]], labels: Sequence[int], k: int) -> float:
    hits = 0
    for row, y in zip(scores, labels, strict=True):
        best = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
        hits += y in best
    return hits / len(labels)


def nll(logits: Sequence[Sequence[float]], labels: Sequence[int], temperature: float = 1.0) -> float:
    losses = []
    for row, y in zip(logits, labels, strict=True):
        z = [v / temperature for v in row]
        top = max(z)
        losses.append(top + math.log(math.fsum(math.exp(v - top) for v in z)) - z[y])
    return mean(losses)


def brier(probs: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    return mean(
        [math.fsum((p - (c == y)) ** 2 for c, p in enumerate(row)) for row, y in zip(probs, labels, strict=True)]
    )


def kl(teacher: Sequence[Sequence[float]], student: Sequence[Sequence[float]]) -> float:
    rows = zip(teacher, student, strict=True)
    return mean([math.fsum(a * math.log(a / b) for a, b in zip(t, s, strict=True) if a > 0) for t, s in rows])
