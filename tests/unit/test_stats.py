"""Worked numbers, edges and refusals of the statistics."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from interfuse.core.errors import InterfuseError
from interfuse.kit import resample, stats
from tests.oracles import stats_oracle as oracle


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def outcomes(gained: int, lost: int, kept: int, never: int) -> tuple[list[int], list[int]]:
    """Baseline and candidate vectors with these counts."""
    return [0] * gained + [1] * lost + [1] * kept + [0] * never, [1] * gained + [0] * lost + [1] * kept + [0] * never


# one vector


def test_mean_with_se_by_hand() -> None:
    m = stats.mean_with_se([1.0, 2.0, 3.0, 6.0])  # squares about 3: 4 + 1 + 0 + 9 = 14
    assert (m.n, m.mean) == (4, 3.0)
    assert m.sd == pytest.approx(math.sqrt(14 / 3))
    assert m.se == pytest.approx(math.sqrt(14 / 3) / 2)


def test_mean_of_one_value_has_no_spread() -> None:
    m = stats.mean_with_se([0.4])
    assert m.mean == 0.4
    assert math.isnan(m.sd)
    assert math.isnan(m.se)


def test_clustered_se_by_hand() -> None:
    # mean 0.5; cluster sums of deviations +1, -1, 0: sqrt(3/2 * 2) / 6
    assert stats.clustered_se([1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "c"]) == pytest.approx(math.sqrt(3) / 6)
    assert math.isnan(stats.clustered_se([1, 0], ["a", "a"]))


@pytest.mark.parametrize("successes, n", [(0, 10), (10, 10), (7, 10), (1, 1), (500, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_agrees_with_scipy(successes: int, n: int, level: float) -> None:
    ours = stats.wilson_interval(successes, n, level=level)
    theirs = scipy_stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_ends_are_exact() -> None:
    assert stats.wilson_interval(0, 7).low == 0.0
    assert stats.wilson_interval(7, 7).high == 1.0


# outcomes


def test_paired_outcome_worked_example() -> None:
    before, after = outcomes(gained=12, lost=4, kept=50, never=34)
    got = stats.compare_outcomes(before, after)
    assert (got.n, got.gained, got.lost, got.kept, got.never) == (100, 12, 4, 50, 34)
    assert got.delta == pytest.approx(0.08)
    assert got.se == pytest.approx(0.0392, abs=5e-5)
    assert got.mcnemar_p == pytest.approx(0.0768, abs=5e-5)


def test_paired_outcome_se_ignores_what_both_share() -> None:
    """The unpaired error of the same data is far larger: pairing must not be thrown away."""
    before, after = outcomes(12, 4, 50, 34)
    p, q = np.mean(before), np.mean(after)
    unpaired = math.sqrt((p * (1 - p) + q * (1 - q)) / 100)
    assert stats.compare_outcomes(before, after).se < 0.6 * unpaired


def test_nothing_changed() -> None:
    got = stats.compare_outcomes([True, False, True], [True, False, True])
    assert (got.gained, got.lost, got.kept, got.never) == (0, 0, 2, 1)
    assert (got.delta, got.se, got.mcnemar_p) == (0.0, 0.0, 1.0)


def test_everything_flipped() -> None:
    got = stats.compare_outcomes(np.zeros(10), np.ones(10))
    assert (got.delta, got.se, got.mcnemar_p) == (1.0, 0.0, pytest.approx(2 / 2**10))


@pytest.mark.parametrize("gained, lost", [(12, 4), (4, 12), (0, 1), (0, 6), (5, 5), (30, 31), (400, 300), (1200, 1000)])
def test_mcnemar_agrees_with_binomtest_and_fractions(gained: int, lost: int) -> None:
    p = stats.mcnemar_exact(gained, lost)
    assert p == pytest.approx(scipy_stats.binomtest(gained, gained + lost).pvalue, rel=1e-9)
    assert p == pytest.approx(oracle.mcnemar(gained, lost), rel=1e-9)


@pytest.mark.parametrize("gained, lost, n", [(12, 4, 100), (0, 0, 50), (3, 0, 3), (0, 7, 7), (1, 1, 2), (9, 0, 40)])
def test_score_interval_ends_meet_the_quantile(gained: int, lost: int, n: int) -> None:
    z = scipy_stats.norm.ppf(0.975)
    interval = stats.score_interval(gained, lost, n)
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
    if interval.low > -1:
        assert oracle.tango(gained, lost, n, interval.low) == pytest.approx(z, abs=1e-4)
    if interval.high < 1:
        assert oracle.tango(gained, lost, n, interval.high) == pytest.approx(-z, abs=1e-4)


def test_score_interval_keeps_a_width_when_nothing_changed() -> None:
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    interval = stats.score_interval(0, 0, 50)
    assert (interval.low, interval.high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)))


def test_three_gains_of_three_show_nothing() -> None:
    """The bootstrap interval has no width here; the score interval has."""
    interval = stats.score_interval(3, 0, 3)
    assert stats.verdict(interval.low, interval.high).startswith("no difference shown")


# real scores


def test_paired_t_agrees_with_scipy() -> None:
    a, b = rng(1).normal(size=(2, 30))
    ours = stats.paired_t(a, b)
    theirs = scipy_stats.ttest_rel(b, a)
    ci = theirs.confidence_interval(0.95)
    assert (ours.t, ours.p, ours.df) == pytest.approx((theirs.statistic, theirs.pvalue, 29))
    assert (ours.low, ours.high) == pytest.approx((ci.low, ci.high))


def test_paired_t_without_spread() -> None:
    same = stats.paired_t([1.0, 2.0], [1.0, 2.0])
    assert (same.delta, same.t, same.p) == (0.0, 0.0, 1.0)
    shifted = stats.paired_t([1.0, 2.0], [2.0, 3.0])
    assert (shifted.delta, shifted.t, shifted.p) == (1.0, math.inf, 0.0)


def test_paired_t_counts_clusters_not_items() -> None:
    """Ten copies of every item are no news."""
    d = rng(2).normal(size=8)
    once = stats.paired_t(np.zeros(8), d)
    copied = stats.paired_t(np.zeros(80), np.repeat(d, 10), clusters=np.repeat(np.arange(8), 10))
    assert (copied.se, copied.df, copied.p) == pytest.approx((once.se, once.df, once.p))
    assert copied.n == 80


@pytest.mark.parametrize("d", [[3, -1, 4, 1, -5, 9, 2], [1, 1, 1, -1], [5], [0, 0, 2, 2, 2, -2], [1, 2, 3]])
def test_sign_flip_small_is_exact(d: list[int]) -> None:
    generator = rng()
    state = generator.bit_generator.state
    got = resample.sign_flip(np.zeros(len(d)), d, generator)
    assert got.exact
    assert got.p == pytest.approx(oracle.sign_flip(d), abs=1e-12)
    assert generator.bit_generator.state == state


def test_sign_flip_of_outcomes_is_mcnemar() -> None:
    before, after = outcomes(60, 38, 500, 402)
    got = resample.sign_flip(before, after, rng())
    assert got.exact
    assert got.p == pytest.approx(stats.mcnemar_exact(60, 38), rel=1e-9)


def test_sign_flip_without_difference() -> None:
    assert resample.sign_flip([1.5, 2.5], [1.5, 2.5], rng()).p == 1.0


@pytest.mark.parametrize("kind", ["all distinct", "few distinct"])
def test_sign_flip_sampled_is_near_the_t_test(kind: str) -> None:
    d = rng(3).normal(0.15, 1.0, size=200) if kind == "all distinct" else rng(3).choice([-2.0, -1, 0.5, 3], size=200)
    got = resample.sign_flip(np.zeros(200), d, rng(4), draws=20_000)
    assert not got.exact
    assert got.draws == 20_000
    assert got.p == pytest.approx(scipy_stats.ttest_1samp(d, 0).pvalue, abs=0.02)


def test_sign_flip_sampled_is_never_zero() -> None:
    got = resample.sign_flip(np.zeros(60), np.arange(1.0, 61.0), rng(), draws=99)
    assert got.p == pytest.approx(0.01)


def test_bootstrap_of_three_items_is_the_full_enumeration() -> None:
    d = [0.0, 1.0, 5.0]
    every = oracle.bootstrap_distribution([(v, 1) for v in d])
    got = resample.paired_bootstrap(np.zeros(3), d, rng(), draws=40_000, level=0.8)
    assert got.estimate == 2.0
    assert (got.low, got.high) == tuple(np.quantile(every, [0.1, 0.9], method="inverted_cdf"))


def test_bootstrap_of_clusters_is_the_full_enumeration() -> None:
    d, clusters = [1.0, 2.0, -1.0, 4.0, 4.0, 0.0], ["x", "x", "y", "z", "z", "z"]
    every = oracle.bootstrap_distribution([(3.0, 2), (-1.0, 1), (8.0, 3)])
    got = resample.paired_bootstrap(np.zeros(6), d, rng(), clusters=clusters, draws=40_000, level=0.8)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(every, [0.1, 0.9], method="inverted_cdf")))


def test_bootstrap_by_counts_and_by_items_draw_from_one_distribution() -> None:
    before, after = outcomes(30, 18, 100, 52)
    by_counts = resample.paired_bootstrap(before, after, rng(1), draws=20_000)
    nudged = np.asarray(after) + rng(2).normal(size=200) * 1e-9  # no two differences equal any more
    by_items = resample.paired_bootstrap(before, nudged, rng(1), draws=20_000)
    assert (by_counts.low, by_counts.high) == pytest.approx((by_items.low, by_items.high), abs=0.006)


def test_bootstrap_by_counts_weighs_clusters_by_their_size() -> None:
    sizes = np.tile([1, 3], 60)
    clusters = np.repeat(np.arange(120), sizes)
    d = np.where(np.repeat(sizes, sizes) == 1, 1.0, 0.0)  # 60 gains on their own, 60 clusters of three ties
    by_counts = resample.paired_bootstrap(np.zeros(240), d, rng(1), clusters=clusters, draws=20_000)
    nudged = d + rng(2).normal(size=240) * 1e-9
    by_items = resample.paired_bootstrap(np.zeros(240), nudged, rng(1), clusters=clusters, draws=20_000)
    assert by_counts.estimate == 0.25
    assert (by_counts.low, by_counts.high) == pytest.approx((by_items.low, by_items.high), abs=0.006)


def test_bootstrap_sees_clusters() -> None:
    d = np.repeat(rng(5).normal(size=40), 25)
    items = resample.paired_bootstrap(np.zeros(1000), d, rng(), draws=2000)
    groups = resample.paired_bootstrap(np.zeros(1000), d, rng(), clusters=np.repeat(np.arange(40), 25), draws=2000)
    assert groups.high - groups.low == pytest.approx(5 * (items.high - items.low), rel=0.15)


def test_bootstrap_memory_is_bounded() -> None:
    d = rng().normal(size=20_000)  # 5,000 draws at once would be 800 MB
    tracemalloc.start()
    resample.paired_bootstrap(np.zeros_like(d), d, rng(), draws=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def test_bootstrap_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = rng(8).normal(size=(2, 50))
    whole = resample.paired_bootstrap(a, b, rng(), draws=500)
    monkeypatch.setattr(resample, "_BLOCK", 64)
    assert resample.paired_bootstrap(a, b, rng(), draws=500) == whole


def test_rounding_alone_is_not_better() -> None:
    """0.1 + 0.2 - 0.3 is 5e-17 in floating point: an interval that ends there contains 0."""
    got = resample.paired_bootstrap([0.3, 0.3], [0.1 + 0.2, 0.1 + 0.2 + 1], rng())
    assert got.low == 0.0
    assert stats.verdict(got.low, got.high).startswith("no difference shown")


# equivalence, power, many comparisons


def test_tost_of_scores_agrees_with_scipy() -> None:
    a, b = rng(6).normal(size=(2, 40)) * 0.1
    got = stats.tost(a, b, 0.05)
    assert got.test == "t"
    assert got.p_not_worse == pytest.approx(scipy_stats.ttest_1samp(b - a, -0.05, alternative="greater").pvalue)
    assert got.p_not_better == pytest.approx(scipy_stats.ttest_1samp(b - a, 0.05, alternative="less").pvalue)
    assert got.p_equivalent == max(got.p_not_worse, got.p_not_better)


def test_tost_of_outcomes_by_the_score_statistic() -> None:
    before, after = outcomes(10, 14, 300, 176)
    got = stats.tost(before, after, 0.03)
    assert got.test == "score"
    assert got.p_not_worse == pytest.approx(scipy_stats.norm.sf(oracle.tango(10, 14, 500, -0.03)), rel=1e-5)
    assert got.p_not_better == pytest.approx(scipy_stats.norm.cdf(oracle.tango(10, 14, 500, 0.03)), rel=1e-5)


def test_tost_does_not_call_ten_unchanged_items_proof() -> None:
    assert not stats.tost([1] * 10, [1] * 10, 0.01).noninferior
    assert stats.tost([1] * 1000, [1] * 1000, 0.01).equivalent


def test_tost_better_is_noninferior_but_not_equivalent() -> None:
    before, after = outcomes(60, 10, 300, 130)
    got = stats.tost(before, after, 0.02)
    assert got.noninferior
    assert not got.equivalent


def test_smallest_detectable_delta_by_hand() -> None:
    assert stats.smallest_detectable_delta(1000, 0.2) == pytest.approx(
        (1.959964 + 0.841621) * math.sqrt(0.0002), rel=1e-6
    )


def test_smallest_detectable_delta_is_detected_that_often() -> None:
    n, discordance, generator = 1000, 0.2, rng(7)
    delta = stats.smallest_detectable_delta(n, discordance)
    lost = (discordance - delta) / 2
    draws = generator.multinomial(n, [lost + delta, lost, 1 - discordance], size=2000)
    power = np.mean([stats.mcnemar_exact(int(g), int(k)) <= 0.05 for g, k, _ in draws])
    assert power == pytest.approx(0.8, abs=0.05)


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert stats.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert stats.benjamini_hochberg(p) == pytest.approx(scipy_stats.false_discovery_control(p))
    assert stats.holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_rank_intervals() -> None:
    base = rng(9).normal(size=300)
    scores = np.stack([base, base + 1.0 + 0.1 * rng(10).normal(size=300), base + 0.01 * rng(11).normal(size=300)])
    first, best, third = resample.rank_intervals(scores, rng(), draws=1000)
    assert best == resample.RankInterval(1, 1, 1)
    assert {first.rank, third.rank} == {2, 3}
    assert (first.low, first.high, third.low, third.high) == (2, 3, 2, 3)
    same = resample.rank_intervals(np.stack([base, base]), rng(), draws=100)
    assert same == (resample.RankInterval(1, 1, 1), resample.RankInterval(1, 1, 1))


# runs x items


def test_runs_by_items_separates_the_spreads() -> None:
    table = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    got = resample.runs_by_items(table)
    assert (got.runs, got.items, got.mean) == (2, 3, 1.5)
    assert got.sd_runs == pytest.approx(np.std([1.0, 2.0], ddof=1))
    assert got.sd_items == pytest.approx(1.0)
    assert math.isnan(resample.runs_by_items(table[:1]).sd_runs)


def test_compare_runs_with_one_run_each_is_a_t_test_over_items() -> None:
    generator = rng(12)
    before, after = generator.normal(size=(2, 1, 60))
    got = resample.compare_runs(before, after)
    t = stats.paired_t(before[0], after[0])
    assert (got.delta.estimate, got.delta.low, got.delta.high, got.p) == pytest.approx((t.delta, t.low, t.high, t.p))
    clusters = np.arange(60) // 3
    got = resample.compare_runs(before, after, clusters=clusters)
    t = stats.paired_t(before[0], after[0], clusters=clusters)
    assert (got.delta.low, got.delta.high, got.p) == pytest.approx((t.low, t.high, t.p))


def test_compare_runs_allows_for_other_seeds_as_for_other_items() -> None:
    generator = rng(12)
    before = np.zeros((5, 400))
    items, runs = generator.normal(size=(1, 400)) * 0.3, generator.normal(size=(5, 1)) * 0.3
    runs -= runs.mean()
    steady = resample.compare_runs(before, before + items + 0.2)
    shaken = resample.compare_runs(before, before + items + runs + 0.2)
    over_items = stats.paired_t(before[0], items[0] + 0.2)
    assert (steady.delta.low, steady.delta.high) == pytest.approx((over_items.low, over_items.high))
    over_runs = stats.paired_t(before[:, 0], runs[:, 0] + 0.2 + items.mean())
    assert shaken.delta.high - shaken.delta.low == pytest.approx(over_runs.high - over_runs.low, rel=0.02)
    assert (steady.baseline.runs, steady.candidate.runs) == (5, 5)
    assert stats.verdict(steady.delta.low, steady.delta.high) == "better"
    assert stats.verdict(shaken.delta.low, shaken.delta.high).startswith("no difference")
    # seeds of two systems that are not paired spread apart
    alone = resample.compare_runs(before[:4], before + items + runs + 0.2)
    assert alone.delta.high - alone.delta.low == pytest.approx(over_runs.high - over_runs.low, rel=0.02)


def test_intervals_of_runs_hold_the_truth_as_often_as_they_say() -> None:
    generator = rng(14)
    missed = 0
    for _ in range(400):
        runs, items = generator.normal(size=(5, 1)) * 0.1, generator.normal(size=(1, 100)) * 0.5
        d = runs + items + generator.normal(size=(5, 100))
        delta = resample.compare_runs(np.zeros_like(d), d).delta
        missed += not delta.low <= 0.0 <= delta.high
    assert 4 <= missed <= 32  # of 20 expected


# words


@pytest.mark.parametrize(
    "low, high, words",
    [
        (0.1, 0.2, "better"),
        (-0.2, -0.1, "worse"),
        (-0.1, 0.2, "no difference shown: the interval contains 0"),
        (0.0, 0.2, "no difference shown: the interval contains 0"),
        (-0.2, 0.0, "no difference shown: the interval contains 0"),
        (-0.0, 0.0, "no difference shown: the interval contains 0"),
    ],
)
def test_verdict(low: float, high: float, words: str) -> None:
    assert stats.verdict(low, high) == words
    mirrored = {"better": "worse", "worse": "better"}.get(words, words)
    assert stats.verdict(low, high, higher_is_better=False) == mirrored


# refusals

BAD_PAIRS: list[tuple[Any, Any, str, str]] = [
    ([], [], "input.empty", "baseline"),
    ([1.0, 0.0], [1.0], "input.shape", "baseline and candidate"),
    ([1.0, 0.0], [1.0, math.nan], "input.nan", "candidate, row 1"),
    ([math.inf, 0.0], [1.0, 0.0], "input.nan", "baseline, row 0"),
    ([[1.0], [0.0]], [1.0, 0.0], "input.shape", "baseline"),
    ([[1.0], [0.0, 1.0]], [1.0, 0.0], "input.shape", "baseline"),
    (["a", "b"], [1.0, 0.0], "input.type", "baseline"),
    ([1.0, None], [1.0, 0.0], "input.type", "baseline"),
]
PAIRED: list[Callable[[Any, Any], object]] = [
    stats.compare_outcomes,
    stats.paired_t,
    lambda a, b: stats.tost(a, b, 0.1),
    lambda a, b: resample.sign_flip(a, b, rng()),
    lambda a, b: resample.paired_bootstrap(a, b, rng()),
]


@pytest.mark.parametrize("before, after, code, where", BAD_PAIRS)
@pytest.mark.parametrize("compare", PAIRED)
def test_bad_pairs_are_refused(
    compare: Callable[[Any, Any], object], before: Any, after: Any, code: str, where: str
) -> None:
    with pytest.raises(InterfuseError) as caught:
        compare(before, after)
    assert (caught.value.code, caught.value.where) == (code, where)


@pytest.mark.parametrize(
    "call, code",
    [
        (lambda: stats.compare_outcomes([0.5, 1], [1, 1]), "input.type"),
        (lambda: stats.mcnemar_exact(-1, 2), "param.value"),
        (lambda: stats.wilson_interval(0, 0), "input.empty"),
        (lambda: stats.wilson_interval(3, 2), "param.value"),
        (lambda: stats.wilson_interval(1, 2, level=1.0), "param.value"),
        (lambda: stats.score_interval(3, 3, 5), "param.value"),
        (lambda: stats.score_interval(0, 0, 0), "input.empty"),
        (lambda: stats.paired_t([1.0], [2.0]), "input.empty"),
        (lambda: stats.paired_t([1.0, 2.0], [2.0, 2.0], clusters=["a", "a"]), "input.empty"),
        (lambda: stats.clustered_se([1.0, 2.0], ["a"]), "input.shape"),
        (lambda: stats.clustered_se([1.0, 2.0], [1.0, math.nan]), "input.nan"),
        (lambda: stats.clustered_se([1.0, 2.0], [None, "a"]), "input.type"),
        (lambda: stats.tost([1, 0], [1, 0], 0.0), "param.value"),
        (lambda: stats.tost([1, 0], [1, 0], math.inf), "param.value"),
        (lambda: stats.tost([1, 0], [1, 0], 0.1, alpha=0), "param.value"),
        (lambda: stats.tost([0.5], [0.7], 0.1), "input.empty"),
        (lambda: stats.smallest_detectable_delta(0, 0.1), "param.value"),
        (lambda: stats.smallest_detectable_delta(10, 1.1), "param.value"),
        (lambda: stats.holm([0.5, 1.5]), "param.value"),
        (lambda: stats.holm([]), "input.empty"),
        (lambda: stats.benjamini_hochberg([math.nan]), "input.nan"),
        (lambda: stats.verdict(math.nan, 1.0), "input.nan"),
        (lambda: stats.verdict(1.0, -1.0), "param.value"),
        (lambda: resample.paired_bootstrap([1.0], [2.0], rng()), "input.empty"),
        (lambda: resample.paired_bootstrap([1.0, 1], [2.0, 1], rng(), draws=0), "param.value"),
        (lambda: resample.sign_flip([1.0], [2.0], rng(), draws=0), "param.value"),
        (lambda: resample.compare_runs([[1.0, 2.0]], [[1.0]]), "input.shape"),
        (lambda: resample.compare_runs([[1.0, 2.0]], [[1.0, math.nan]]), "input.nan"),
        (lambda: resample.runs_by_items([]), "input.empty"),
        (lambda: resample.rank_intervals([[1.0], [2.0]], rng()), "input.empty"),
    ],
)
def test_refusals(call: Callable[[], object], code: str) -> None:
    with pytest.raises(InterfuseError) as caught:
        call()
    assert caught.value.code == code
