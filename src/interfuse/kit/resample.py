"""Resampling: sign-flip permutation, paired and clustered bootstrap, rank intervals, runs x items.

As in :mod:`interfuse.kit.stats`, ``baseline`` comes first and a difference is ``candidate - baseline``. Randomness comes
from the numpy generator passed in and draws run over sorted values, so the same generator state and the same items give
the same numbers, bit for bit, whatever the order of the items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from interfuse.kit.stats import (
    Floats,
    Interval,
    Ints,
    at_least,
    checked_array,
    checked_same_length,
    cluster_sums,
    differences,
    mean_of,
    probability,
    ratio,
    standard_error,
    two_or_more,
)

#: Random numbers held in memory at once by the resampling functions (8 bytes each).
_BLOCK = 1 << 20
#: Drawing how often each distinct value occurs is cheaper than drawing items once a value occurs this often on average.
_REPEATS = 16


@dataclass(frozen=True, slots=True)
class SignFlip:
    """A sign-flip permutation test: mean difference, two-sided p, sign patterns drawn (0 when ``exact``)."""

    n: int
    delta: float
    p: float
    exact: bool
    draws: int


@dataclass(frozen=True, slots=True)
class RunsByItems:
    """Scores of several runs (seeds) on the same items: ``sd_runs`` is the standard deviation of the runs' means,
    ``sd_items`` that of the items' means (NaN where there is only one)."""

    runs: int
    items: int
    mean: float
    sd_runs: float
    sd_items: float


@dataclass(frozen=True, slots=True)
class RunsDifference:
    """Two systems, several runs each, the same items: both summaries, the interval of the mean difference, its two-sided ``p``."""

    baseline: RunsByItems
    candidate: RunsByItems
    delta: Interval
    p: float


@dataclass(frozen=True, slots=True)
class RankInterval:
    """A system's rank (1 is best, ties share the better rank) with its bootstrap interval."""

    rank: int
    low: int
    high: int


def sign_flip(baseline: ArrayLike, candidate: ArrayLike, rng: np.random.Generator, *, draws: int = 10_000) -> SignFlip:
    """Two-sided sign-flip permutation test of the mean difference of real-valued scores.

    Under the hypothesis every difference is as likely as its negative (Fisher 1935). When the distinct
    outcomes (equal differences taken together) number at most ``draws`` all of them are enumerated and p is exact;
    for right/wrong outcomes it then equals exact McNemar. Otherwise p = (1 + hits) / (1 + draws) (Phipson and Smyth
    2010), never 0.

    Args:
        baseline: scores ``[n]``.
        candidate: scores ``[n]`` of the same items.
        rng: generator for the signs; untouched when the test is exact.
        draws: sign patterns, at least 1.

    Raises:
        InterfuseError: as :func:`checked_array`; ``input.shape``; ``param.value``.
    """
    d = differences(baseline, candidate)
    at_least(draws, 1, "draws")
    delta = mean_of(d).mean
    sizes, repeats = np.unique(np.abs(d[d != 0.0]), return_counts=True)
    if not len(sizes):
        return SignFlip(len(d), delta, 1.0, True, 0)
    # sums that differ from the observed one by rounding alone count as ties
    observed = abs(float(np.sort(d).sum())) - 1e-12 * float(sizes @ repeats)
    if float(np.log(repeats + 1.0).sum()) <= math.log(draws):
        sums, chances = np.zeros(1), np.ones(1)
        for size, k in zip(sizes, repeats, strict=True):
            positive = np.arange(k + 1)
            sums = np.add.outer(sums, size * (2.0 * positive - k)).ravel()
            chances = np.multiply.outer(chances, _binomial_half(int(k))).ravel()
        return SignFlip(len(d), delta, min(1.0, float(chances[np.abs(sums) >= observed].sum())), True, 0)
    total = float(sizes @ repeats)
    grouped = len(sizes) * _REPEATS <= repeats.sum()
    values = sizes if grouped else np.repeat(sizes, repeats)
    hits = 0
    for rows in _blocks(draws, len(values)):
        if grouped:  # how many of the equal differences stay positive
            positive = rng.binomial(repeats, 0.5, size=(rows, len(values)))
        else:
            positive = rng.integers(0, 2, size=(rows, len(values)))
        hits += int((np.abs(2.0 * (positive @ values) - total) >= observed).sum())
    return SignFlip(len(d), delta, (1 + hits) / (1 + draws), False, draws)


def paired_bootstrap(
    baseline: ArrayLike,
    candidate: ArrayLike,
    rng: np.random.Generator,
    *,
    clusters: ArrayLike | None = None,
    draws: int = 5000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of the mean difference (Efron 1979; Koehn 2004 for paired system comparison).

    Memory stays below a few tens of megabytes whatever ``n`` and ``draws``. When differences repeat (right/wrong
    outcomes do) the counts of the distinct values are drawn instead of the items: the same distribution, sooner.
    With fewer than about 20 items or clusters percentile intervals are too narrow; for outcomes see
    :func:`score_interval`.

    Args:
        baseline: scores ``[n]``.
        candidate: scores ``[n]`` of the same items.
        rng: generator for the draws.
        clusters: labels ``[n]``; given, whole clusters are drawn.
        draws: number of resamples, at least 1.
        level: confidence.

    Raises:
        InterfuseError: as :func:`checked_array`; ``input.shape``; ``input.empty`` for fewer than two items or clusters;
            ``param.value``.
    """
    d = differences(baseline, candidate)
    return _bootstrap_mean(d, rng, clusters, draws, level)


def _bootstrap_mean(
    d: Floats, rng: np.random.Generator, clusters: ArrayLike | None, draws: int, level: float
) -> Interval:
    at_least(draws, 1, "draws")
    tail = (1 - probability(level, "level")) / 2
    sums, sizes = cluster_sums(d, clusters)
    g = len(sums)
    two_or_more(g, "a bootstrap interval")
    new = np.r_[True, (np.diff(sums) != 0) | (np.diff(sizes) != 0)]  # sorted, so equal clusters lie together
    first = np.flatnonzero(new)
    means = np.empty(draws)
    done = 0
    if len(first) * _REPEATS <= g:
        repeats = np.diff(np.r_[first, g])
        for rows in _blocks(draws, len(first)):
            drawn = rng.multinomial(g, repeats / g, size=rows)
            means[done : done + rows] = (drawn @ sums[first]) / (drawn @ sizes[first])
            done += rows
    else:
        for rows in _blocks(draws, g):
            drawn = rng.integers(0, g, size=(rows, g))
            weight = g * sizes[0] if sizes.min() == sizes.max() else sizes[drawn].sum(axis=1)
            means[done : done + rows] = sums[drawn].sum(axis=1) / weight
            done += rows
    low, high = np.quantile(means, [tail, 1 - tail])
    # a mean that is 0 but for rounding must not count as above or below 0
    nought = 1e-12 * float(np.abs(d).max())
    low, high = (0.0 if abs(edge) <= nought else float(edge) for edge in (low, high))
    return Interval(len(d), mean_of(d).mean, low, high, level)


def _blocks(draws: int, width: int) -> Iterator[int]:
    """Row counts that add up to ``draws`` with at most ``_BLOCK`` numbers (at least one row) each."""
    step = max(1, _BLOCK // width)
    for start in range(0, draws, step):
        yield min(step, draws - start)


def _binomial_half(k: int) -> Floats:
    """Chances of 0..k heads in k fair throws."""
    heads = np.arange(k + 1.0)
    chances = np.exp(
        special.gammaln(k + 1.0) - special.gammaln(heads + 1) - special.gammaln(k - heads + 1) - k * math.log(2.0)
    )
    return chances / chances.sum()


# ---------------------------------------------------------------------------------------------- runs x items


def runs_by_items(scores: ArrayLike) -> RunsByItems:
    """Spread over runs (seeds) and over items, apart, of scores ``[runs, items]``.

    Raises:
        InterfuseError: as :func:`checked_array`.
    """
    table = checked_array(scores, "scores", ndim=2)
    runs, items = table.shape
    over_items = mean_of(np.sort(table, axis=0).mean(axis=0))
    over_runs = mean_of(np.sort(table, axis=1).mean(axis=1))
    return RunsByItems(runs, items, over_items.mean, over_runs.sd, over_items.sd)


def compare_runs(
    baseline: ArrayLike, candidate: ArrayLike, *, clusters: ArrayLike | None = None, level: float = 0.95
) -> RunsDifference:
    """Difference of two systems, each run with several seeds on the same items: for other items *and* other seeds.

    Runs and items are crossed random effects. The variance of the mean difference is that of the runs' means plus that of
    the items' means minus what both hold of the residual (never less than the larger one); the interval and ``p`` are Student's, with
    Satterthwaite's degrees of freedom, because five runs are far too few for a percentile (Satterthwaite 1946; Clark 1973
    for items and subjects crossed).

    Args:
        baseline: scores ``[runs, items]``.
        candidate: scores ``[other runs, items]``. With equally many runs, run ``k`` of both is one seed and they are paired;
            otherwise the runs are independent. A single run says nothing about seeds: its spread counts as none.
        clusters: labels ``[items]``.
        level: confidence.

    Raises:
        InterfuseError: as :func:`checked_array`; ``input.shape`` when the items differ in number; ``input.empty`` for
            fewer than two items or clusters; ``param.value``.
    """
    before = checked_array(baseline, "baseline", ndim=2)
    after = checked_array(candidate, "candidate", ndim=2)
    checked_same_length(before.T, after.T, "items of baseline and candidate")
    quantile = (1 + probability(level, "level")) / 2
    paired = len(before) == len(after)
    tables = [after - before] if paired else [before, after]
    d = np.sort(after, axis=0).mean(axis=0) - np.sort(before, axis=0).mean(axis=0)
    items = standard_error(d, clusters)
    two_or_more(items[1] + 1, "an interval")
    parts = [(items[0] ** 2, items[1])]  # (variance of the mean difference, degrees of freedom)
    residual = []
    for table in tables:
        runs = len(table)
        if runs > 1:
            parts.append((runs_by_items(table).sd_runs ** 2 / runs, runs - 1))
            if clusters is None:
                residual.append((_residual(table) / table.size, (runs - 1) * (table.shape[1] - 1)))
    sums = sum(v for v, _ in parts)
    variance = max(*(v for v, _ in parts), sums - sum(v for v, _ in residual), 0.0) if len(parts) > 1 else sums
    spread = sum(v**2 / df for v, df in parts + residual)
    delta = mean_of(d).mean
    nought = 1e-12 * float(np.abs(d).max())
    delta = 0.0 if abs(delta) <= nought else delta  # 0 but for rounding
    df = variance**2 / spread if spread > 0.0 else 1.0
    se = math.sqrt(variance)
    half = float(special.stdtrit(df, quantile)) * se
    p = 2.0 * float(special.stdtr(df, -abs(ratio(delta, se))))
    return RunsDifference(
        runs_by_items(before), runs_by_items(after), Interval(len(d), delta, delta - half, delta + half, level), p
    )


def _residual(table: Floats) -> float:
    """Mean square of what is left of ``[runs, items]`` after the runs' and the items' means."""
    runs, items = table.shape
    by_item = np.sort(table, axis=0).mean(axis=0)
    by_run = np.sort(table, axis=1).mean(axis=1)
    left = np.square(table - by_item - by_run[:, None] + mean_of(by_item).mean)
    return float(np.sort(left, axis=None).sum()) / ((runs - 1) * (items - 1))


def rank_intervals(
    scores: ArrayLike, rng: np.random.Generator, *, draws: int = 5000, level: float = 0.95
) -> tuple[RankInterval, ...]:
    """Rank of every system by its mean score, with bootstrap intervals over items drawn jointly for all systems.

    Args:
        scores: ``[systems, items]``, higher is better.
        rng: generator for the draws.
        draws: number of resamples.
        level: confidence.

    Raises:
        InterfuseError: as :func:`checked_array`; ``input.empty`` for fewer than two items; ``param.value``.
    """
    table = checked_array(scores, "scores", ndim=2)
    at_least(draws, 1, "draws")
    tail = (1 - probability(level, "level")) / 2
    systems, n = table.shape
    two_or_more(n, "a bootstrap interval")
    table = table[:, np.lexsort(table[::-1])]  # items in an order of their own, whatever the order given
    ranks = np.empty((draws, systems), dtype=np.int64)
    done = 0
    for rows in _blocks(draws, n * systems):
        means = table[:, rng.integers(0, n, size=(rows, n))].mean(axis=2).T
        ranks[done : done + rows] = _ranks(means)
        done += rows
    low, high = np.quantile(ranks, [tail, 1 - tail], axis=0, method="inverted_cdf")
    here = _ranks(table.mean(axis=1)[None])[0]
    return tuple(RankInterval(int(r), int(a), int(b)) for r, a, b in zip(here, low, high, strict=True))


def _ranks(means: Floats) -> Ints:
    """Ranks ``[draws, systems]``: 1 + the number of systems that are better by more than rounding."""
    slack = 1e-12 * max(1.0, float(np.abs(means).max()))
    return 1 + (means[:, None, :] > means[:, :, None] + slack).sum(axis=2)
