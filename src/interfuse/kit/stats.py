"""Uncertainty and comparison: means with intervals, paired tests, many comparisons, power, equivalence.

Plain functions from numpy arrays to numbers. Everywhere ``baseline`` comes first, ``candidate`` second, entry ``i`` of
both belongs to the same item, and a difference is ``candidate - baseline``. The order of the items never matters: the
same pairs in another order give the same numbers, bit for bit, because every sum runs over sorted values.
What needs random draws (bootstrap, sign flips) is in :mod:`interfuse.kit.resample`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from interfuse.core.errors import InterfuseError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: the adjusted p above which a verdict is not said
ALPHA = 0.05


# ---------------------------------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of ``n`` values with their sample standard deviation and standard error (NaN when ``n`` is 1)."""

    n: int
    mean: float
    sd: float
    se: float


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate from ``n`` items with a two-sided interval of confidence ``level``."""

    n: int
    estimate: float
    low: float
    high: float
    level: float


@dataclass(frozen=True, slots=True)
class PairedOutcome:
    """Two right/wrong vectors on the same ``n`` items, as counts: ``n = gained + lost + kept + never``.

    ``gained``: only the candidate is right; ``lost``: only the baseline; ``kept``: both; ``never``: neither.
    ``delta = (gained - lost) / n`` with standard error ``se``; ``mcnemar_p`` is the exact two-sided p-value.
    """

    n: int
    gained: int
    lost: int
    kept: int
    never: int
    delta: float
    se: float
    mcnemar_p: float


@dataclass(frozen=True, slots=True)
class PairedT:
    """A paired t test: mean difference, its standard error, statistic, degrees of freedom, p and interval."""

    n: int
    delta: float
    se: float
    t: float
    df: int
    p: float
    low: float
    high: float
    level: float


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests against a margin.

    ``p_not_worse`` tests ``delta <= -margin``, ``p_not_better`` tests ``delta >= margin``; small values speak for
    ``delta > -margin`` (non-inferior) and ``delta < margin``. ``p_equivalent`` is the larger of the two.
    ``test`` is ``"score"`` (outcomes, Tango) or ``"t"`` (real-valued scores).
    """

    n: int
    delta: float
    margin: float
    alpha: float
    p_not_worse: float
    p_not_better: float
    p_equivalent: float
    noninferior: bool
    equivalent: bool
    test: str


# ---------------------------------------------------------------------------------------------- checking


def checked_array(values: ArrayLike, name: str, ndim: int = 1) -> Floats:
    """Values as a finite, non-empty float64 array of ``ndim`` dimensions.

    Raises:
        InterfuseError: ``input.type`` (not numbers), ``input.shape`` (other dimensions, ragged rows), ``input.empty``,
            ``input.nan`` (names the first row that is NaN or infinite).
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InterfuseError("input.shape", f"{name} is ragged: its rows differ in length", where=name) from error
    if array.size == 0:
        raise InterfuseError("input.empty", f"{name} has no values", where=name)
    if array.ndim != ndim:
        raise InterfuseError("input.shape", f"{name} needs {ndim} dimension(s), got shape {array.shape}", where=name)
    if array.dtype.kind not in "biuf":
        raise InterfuseError("input.type", f"{name} must hold numbers, not {array.dtype}", where=name)
    numbers = array.astype(np.float64)
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        value = numbers[tuple(bad[0])]
        raise InterfuseError("input.nan", f"{name} holds {value}", where=f"{name}, row {bad[0][0]}")
    return numbers


def checked_outcomes(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    """Right/wrong outcomes (booleans or 0/1) as a boolean vector ``[n]``.

    Raises:
        InterfuseError: as :func:`checked_array`, and ``input.type`` for a number other than 0 and 1.
    """
    numbers = checked_array(values, name)
    other = np.flatnonzero((numbers != 0) & (numbers != 1))
    if len(other):
        what = f"{name} must hold right/wrong outcomes (0 or 1), got {numbers[other[0]]:g}"
        raise InterfuseError(
            "input.type",
            what,
            where=f"{name}, row {other[0]}",
            fix="Compare real-valued scores with paired_t, sign_flip or paired_bootstrap.",
        )
    return numbers.astype(bool)


def checked_same_length(first: NDArray[np.generic], second: NDArray[np.generic], names: str) -> None:
    """Raise ``input.shape`` unless both arrays have equally many rows."""
    if len(first) != len(second):
        raise InterfuseError("input.shape", f"{len(first)} and {len(second)} rows do not pair up", where=names)


def differences(baseline: ArrayLike, candidate: ArrayLike) -> Floats:
    """``candidate - baseline`` of two checked vectors ``[n]``."""
    before, after = checked_array(baseline, "baseline"), checked_array(candidate, "candidate")
    checked_same_length(before, after, "baseline and candidate")
    return after - before


def _cluster_index(clusters: ArrayLike, n: int) -> Ints:
    """Cluster labels of any sortable kind as numbers ``0..G-1``."""
    labels = np.asarray(clusters)
    if labels.ndim != 1 or len(labels) != n:
        raise InterfuseError("input.shape", f"{n} values need {n} cluster labels, got {labels.shape}", where="clusters")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        row = int(np.flatnonzero(np.isnan(labels))[0])
        raise InterfuseError("input.nan", "a cluster label is NaN", where=f"clusters, row {row}")
    try:
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)
    except TypeError as error:
        raise InterfuseError("input.type", "cluster labels must be of one kind", where="clusters") from error


def cluster_sums(values: Floats, clusters: ArrayLike | None) -> tuple[Floats, Floats]:
    """Sum and size of every cluster (each value its own cluster when ``clusters`` is None), in sorted order."""
    if clusters is None:
        return np.sort(values), np.ones(len(values))
    index = _cluster_index(clusters, len(values))
    order = np.lexsort((values, index))  # the order of items must not reach the rounding of the sums
    sums = np.bincount(index[order], weights=values[order]).astype(np.float64)
    sizes = np.bincount(index).astype(np.float64)
    order = np.lexsort((sizes, sums))
    return sums[order], sizes[order]


def probability(value: float, name: str) -> float:
    """The value, if it lies strictly between 0 and 1; else ``param.value``."""
    if not 0.0 < value < 1.0:
        raise InterfuseError("param.value", f"{name} must lie strictly between 0 and 1, got {value}", where=name)
    return value


def at_least(value: int, least: int, name: str) -> int:
    """The value, if it is no less than ``least``; else ``param.value``."""
    if value < least:
        raise InterfuseError("param.value", f"{name} must be at least {least}, got {value}", where=name)
    return value


def two_or_more(n: int, what: str) -> None:
    """Raise ``input.empty`` when fewer than two items or clusters leave no spread to work on."""
    if n < 2:
        raise InterfuseError("input.empty", f"{what} needs at least two items or clusters, got {n}")


# ---------------------------------------------------------------------------------------------- one vector


def mean_with_se(values: ArrayLike) -> Mean:
    """Mean, sample standard deviation (n - 1) and standard error ``sd / sqrt(n)``.

    Args:
        values: scores ``[n]``, in any unit; the result has the same unit.

    Raises:
        InterfuseError: as :func:`checked_array`.
    """
    return mean_of(checked_array(values, "values"))


def mean_of(values: Floats) -> Mean:
    """:func:`mean_with_se` of values already checked."""
    x = np.sort(values)
    n = len(x)
    sd = float(x.std(ddof=1)) if n > 1 else math.nan
    return Mean(n, float(x.mean()), sd, sd / math.sqrt(n))


def clustered_se(values: ArrayLike, clusters: ArrayLike) -> float:
    """Standard error of the mean of values ``[n]`` that come in clusters ``[n]`` (any sortable labels).

    ``sqrt(G/(G-1) * sum_g (sum_{i in g} (x_i - mean))^2) / n`` (Liang and Zeger 1986; Miller 2024, with the
    small-sample factor for G clusters). Equal to ``sd / sqrt(n)`` when every cluster has one value; NaN when G is 1.

    Raises:
        InterfuseError: as :func:`checked_array`; ``input.shape`` when the labels do not fit.
    """
    return standard_error(checked_array(values, "values"), clusters)[0]


def standard_error(values: Floats, clusters: ArrayLike | None) -> tuple[float, int]:
    """Standard error of the mean and its degrees of freedom (clusters - 1)."""
    sums, sizes = cluster_sums(values - mean_of(values).mean, clusters)
    g = len(sums)
    if g == 1:
        return math.nan, 0
    return math.sqrt(g / (g - 1) * float(np.square(sums).sum())) / float(sizes.sum()), g - 1


def wilson_interval(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927).

    Args:
        successes: how many of the ``n`` items are right, ``0 <= successes <= n``.
        n: number of items, at least 1.
        level: confidence, between 0 and 1.

    Raises:
        InterfuseError: ``input.empty`` (n is 0), ``param.value`` (counts or level outside their range).
    """
    if n == 0:
        raise InterfuseError("input.empty", "a proportion of no items has no interval", where="n")
    if not 0 <= successes <= n:
        raise InterfuseError("param.value", f"successes must lie in 0..{n}, got {successes}", where="successes")
    z = float(special.ndtri((1 + probability(level, "level")) / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(n, p, low, high, level)


# ---------------------------------------------------------------------------------------------- right or wrong, paired


def compare_outcomes(baseline: ArrayLike, candidate: ArrayLike) -> PairedOutcome:
    """What a candidate gained and lost against a baseline on the same items.

    Args:
        baseline: right (1, True) or wrong (0, False) per item ``[n]``.
        candidate: the same for the candidate ``[n]``, in the same item order.

    Returns:
        Counts, ``delta = (gained - lost) / n``, ``se = sqrt((g + l) - (g - l)^2 / n) / n`` (the paired standard error,
        Agresti, Categorical Data Analysis, on matched pairs) and the exact McNemar p.

    Raises:
        InterfuseError: as :func:`checked_outcomes`; ``input.shape`` when lengths differ.
    """
    before, after = checked_outcomes(baseline, "baseline"), checked_outcomes(candidate, "candidate")
    checked_same_length(before, after, "baseline and candidate")
    n = len(before)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    kept = int((before & after).sum())
    # (g + l) n >= (g - l)^2 holds in integers, so the root is never of a rounding error
    se = math.sqrt((gained + lost) * n - (gained - lost) ** 2) / n**1.5
    never = n - gained - lost - kept
    return PairedOutcome(n, gained, lost, kept, never, (gained - lost) / n, se, mcnemar_exact(gained, lost))


def mcnemar_exact(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p: ``min(1, 2 P(Bin(gained + lost, 1/2) <= min(gained, lost)))`` (McNemar 1947).

    1 when nothing changed.

    Raises:
        InterfuseError: ``param.value`` for a negative count.
    """
    at_least(gained, 0, "gained")
    at_least(lost, 0, "lost")
    if gained == lost:
        return 1.0
    return min(1.0, 2.0 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))


def _tango(gained: int, lost: int, n: int, delta: float) -> float:
    """Tango's score statistic for the paired difference ``delta`` (Tango 1998), normal under the hypothesis."""
    # maximum-likelihood chance of "lost" given p_gained - p_lost = delta: a q^2 + b q + c = 0
    a = 2.0 * n
    b = -gained - lost + (2.0 * n - gained + lost) * delta
    c = -lost * delta * (1.0 - delta)
    q = (math.sqrt(max(0.0, b * b - 4.0 * a * c)) - b) / (2.0 * a)
    variance = n * max(0.0, 2.0 * q + delta * (1.0 - delta))
    distance = gained - lost - n * delta
    if variance == 0.0:
        return 0.0 if distance == 0.0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def score_interval(gained: int, lost: int, n: int, *, level: float = 0.95) -> Interval:
    """Score interval of ``(gained - lost) / n`` for two right/wrong vectors on the same ``n`` items (Tango 1998).

    Unlike the normal and the bootstrap interval it keeps a width when nothing changed or when all changes point one
    way, so it is the interval to trust for small ``n``.

    Raises:
        InterfuseError: ``input.empty`` (n is 0), ``param.value`` (counts or level outside their range).
    """
    if n == 0:
        raise InterfuseError("input.empty", "a difference over no items has no interval", where="n")
    at_least(gained, 0, "gained")
    at_least(lost, 0, "lost")
    at_least(n, gained + lost, "n")
    z = float(special.ndtri((1 + probability(level, "level")) / 2))
    delta = (gained - lost) / n

    def edge(outer: float, quantile: float) -> float:
        """Where the falling statistic meets the quantile, between the estimate and the end of the range."""
        if delta == outer:
            return outer
        return float(optimize.brentq(lambda d: _bounded(_tango(gained, lost, n, d)) - quantile, outer, delta))

    return Interval(n, delta, edge(-1.0, z), edge(1.0, -z), level)


def _bounded(z: float) -> float:
    return min(1e6, max(-1e6, z))


# ---------------------------------------------------------------------------------------------- real scores, paired


def paired_t(
    baseline: ArrayLike, candidate: ArrayLike, *, clusters: ArrayLike | None = None, level: float = 0.95
) -> PairedT:
    """Paired t test of the mean difference of real-valued scores (Student 1908).

    Args:
        baseline: scores ``[n]``.
        candidate: scores ``[n]`` of the same items.
        clusters: labels ``[n]``; given, the clustered standard error with G - 1 degrees of freedom is used.
        level: confidence of the interval.

    Raises:
        InterfuseError: as :func:`checked_array`; ``input.shape``; ``input.empty`` for fewer than two items or clusters;
            ``param.value``.
    """
    d = differences(baseline, candidate)
    se, df = standard_error(d, clusters)
    two_or_more(df + 1, "a t test")
    delta = mean_of(d).mean
    t = ratio(delta, se)
    half = float(special.stdtrit(df, (1 + probability(level, "level")) / 2)) * se
    p = 2.0 * float(special.stdtr(df, -abs(t)))
    return PairedT(len(d), delta, se, t, df, p, delta - half, delta + half, level)


def ratio(delta: float, se: float) -> float:
    """``delta / se``, where no spread at all makes any difference infinitely many standard errors."""
    if se > 0.0:
        return delta / se
    return 0.0 if delta == 0.0 else math.copysign(math.inf, delta)


# ---------------------------------------------------------------------------------------------- equivalence and power


def tost(
    baseline: ArrayLike,
    candidate: ArrayLike,
    margin: float,
    *,
    clusters: ArrayLike | None = None,
    alpha: float = 0.05,
) -> Equivalence:
    """Is the candidate not worse, and not different, by more than ``margin``? Two one-sided tests (Schuirmann 1987).

    Right/wrong outcomes (all scores 0 or 1, margin below 1) without clusters use Tango's score statistic (Tango 1998):
    a t test would call ten items on which nothing changed proof of equality, because their spread is zero. Other
    scores, and clusters, use the t test.

    Args:
        baseline: outcomes or scores ``[n]``.
        candidate: outcomes or scores ``[n]`` of the same items.
        margin: the largest difference that does not matter, above 0, in the unit of the scores (0.01 = one point of
            accuracy).
        clusters: labels ``[n]`` for the clustered standard error.
        alpha: level of each one-sided test.

    Raises:
        InterfuseError: as :func:`checked_array`; ``input.shape``; ``input.empty`` for a t test on fewer than two items
            or clusters; ``param.value``.
    """
    d = differences(baseline, candidate)
    probability(alpha, "alpha")
    if not 0.0 < margin < math.inf:
        raise InterfuseError("param.value", f"margin must be a positive number, got {margin}", where="margin")
    delta = mean_of(d).mean
    if clusters is None and margin < 1.0 and _is_outcomes(baseline) and _is_outcomes(candidate):
        test = "score"
        gained, lost = int((d > 0).sum()), int((d < 0).sum())
        p_not_worse = float(special.ndtr(-_tango(gained, lost, len(d), -margin)))
        p_not_better = float(special.ndtr(_tango(gained, lost, len(d), margin)))
    else:
        test = "t"
        se, df = standard_error(d, clusters)
        two_or_more(df + 1, "a t test")
        p_not_worse = float(special.stdtr(df, -ratio(delta + margin, se)))
        p_not_better = float(special.stdtr(df, ratio(delta - margin, se)))
    p = max(p_not_worse, p_not_better)
    return Equivalence(
        len(d), delta, margin, alpha, p_not_worse, p_not_better, p, p_not_worse <= alpha, p <= alpha, test
    )


def _is_outcomes(values: ArrayLike) -> bool:
    numbers = np.asarray(values)
    return bool(((numbers == 0) | (numbers == 1)).all())


def smallest_detectable_delta(n: int, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest difference of accuracy that ``n`` paired items show with the given power (Miller 2024).

    ``(z_{1-alpha/2} + z_power) * sqrt(discordance / n)``. A value above ``discordance`` itself cannot occur: then no
    difference at all is likely to be shown.

    Args:
        n: items, at least 1.
        discordance: share of items on which the two models differ, 0 to 1.
        alpha: two-sided level of the test.
        power: chance of showing a true difference of this size.

    Raises:
        InterfuseError: ``param.value``.
    """
    at_least(n, 1, "n")
    if not 0.0 <= discordance <= 1.0:
        raise InterfuseError("param.value", f"discordance must lie in 0..1, got {discordance}", where="discordance")
    z = special.ndtri(1 - probability(alpha, "alpha") / 2) + special.ndtri(probability(power, "power"))
    return float(z) * math.sqrt(discordance / n)


# ---------------------------------------------------------------------------------------------- many comparisons


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values ``[m]``, in the order given (Holm 1979): family-wise error.

    Raises:
        InterfuseError: as :func:`checked_array`; ``param.value`` outside 0..1.
    """
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")
    m = len(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(m, 0, -1))
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Benjamini-Hochberg step-up adjusted p-values ``[m]``, in the order given (1995): false discovery rate.

    Raises:
        InterfuseError: as :func:`checked_array`; ``param.value`` outside 0..1.
    """
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")
    m = len(p)
    stepped = np.minimum.accumulate((p[order] * (m / np.arange(1, m + 1)))[::-1])[::-1]
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def _p_values(values: ArrayLike) -> Floats:
    p = checked_array(values, "p_values")
    outside = np.flatnonzero((p < 0) | (p > 1))
    if len(outside):
        row = int(outside[0])
        raise InterfuseError("param.value", f"a p-value lies in 0..1, got {p[row]:g}", where=f"p_values, row {row}")
    return p


# ---------------------------------------------------------------------------------------------- words


def by_chance(said: str, p: float) -> bool:
    """Whether the number of comparisons makes a verdict a thing of chance: *better* or *worse* with an adjusted p above :data:`ALPHA`."""
    return said in ("better", "worse") and p > ALPHA


def verdict(low: float, high: float, *, higher_is_better: bool = True) -> str:
    """What an interval of ``candidate - baseline`` allows to be said.

    Returns:
        ``"better"``, ``"worse"`` or ``"no difference shown: the interval contains 0"``; an end exactly at 0 counts as
        containing it.

    Raises:
        InterfuseError: ``input.nan``; ``param.value`` when ``low > high``.
    """
    if math.isnan(low) or math.isnan(high):
        raise InterfuseError("input.nan", f"the interval [{low}, {high}] is not a number", where="verdict")
    if low > high:
        raise InterfuseError("param.value", f"the interval's ends are swapped: [{low}, {high}]", where="verdict")
    if low <= 0.0 <= high:
        return "no difference shown: the interval contains 0"
    return "better" if (low > 0.0) == higher_is_better else "worse"
