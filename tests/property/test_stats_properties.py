"""Laws the statistics must keep, and agreement with slow obvious oracles, on generated data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from interfuse.kit import calibration as cal
from interfuse.kit import resample, stats
from tests.oracles import stats_oracle as oracle

scores = st.floats(-100, 100).map(lambda v: round(v, 3))
vectors = st.lists(scores, min_size=2, max_size=30)
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)
seeds = st.integers(0, 2**32 - 1)
outcome_pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# against the oracles


@given(vectors, st.data())
def test_standard_errors(x: list[float], data: st.DataObject) -> None:
    assert stats.mean_with_se(x).mean == pytest.approx(oracle.mean(x), abs=1e-9)
    assert stats.mean_with_se(x).se == pytest.approx(oracle.standard_error(x), abs=1e-9)
    clusters = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(x), max_size=len(x)))
    if len(set(clusters)) > 1:
        assert stats.clustered_se(x, clusters) == pytest.approx(oracle.clustered_se(x, clusters), abs=1e-9)


@given(vectors, seeds)
def test_clusters_of_one_change_nothing(x: list[float], seed: int) -> None:
    names = rng(seed).permutation(len(x))
    assert stats.clustered_se(x, names) == pytest.approx(stats.mean_with_se(x).se, rel=1e-12, abs=1e-12)
    zeros = np.zeros(len(x))
    alone = resample.paired_bootstrap(zeros, x, rng(seed), draws=50)
    assert resample.paired_bootstrap(zeros, x, rng(seed), clusters=names, draws=50) == alone


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar(gained: int, lost: int) -> None:
    p = stats.mcnemar_exact(gained, lost)
    assert p == pytest.approx(oracle.mcnemar(gained, lost), rel=1e-9)
    assert p == stats.mcnemar_exact(lost, gained)
    assert 0 < p <= 1


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=11))
def test_sign_flip_exact(d: list[int]) -> None:
    got = resample.sign_flip(np.zeros(len(d)), d, rng())
    assert got.exact
    assert got.p == pytest.approx(oracle.sign_flip(d), abs=1e-12)


@given(outcome_pairs)
def test_outcomes_add_up(pairs: list[tuple[bool, bool]]) -> None:
    before, after = zip(*pairs, strict=True)
    got = stats.compare_outcomes(before, after)
    d = [float(b) - float(a) for a, b in pairs]
    assert got.gained + got.lost + got.kept + got.never == got.n == len(pairs)
    assert got.delta == pytest.approx(oracle.mean(d))
    population = math.sqrt((len(d) - 1) / len(d))
    assert got.se == pytest.approx(oracle.standard_error(d) * population, abs=1e-12)
    assert resample.sign_flip(before, after, rng()).p == pytest.approx(got.mcnemar_p, rel=1e-9)
    back = stats.compare_outcomes(after, before)
    assert (back.gained, back.lost, back.delta, back.mcnemar_p) == (got.lost, got.gained, -got.delta, got.mcnemar_p)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60), st.floats(-0.9, 0.9))
def test_score_interval_is_the_score_test_turned_round(gained: int, lost: int, rest: int, delta: float) -> None:
    n = gained + lost + rest
    interval = stats.score_interval(gained, lost, n)
    statistic = oracle.tango(gained, lost, n, delta) if abs(delta) > 1e-6 or gained + lost else 0.0
    inside = interval.low <= delta <= interval.high
    if abs(abs(statistic) - 1.959964) > 1e-3:
        assert inside == (abs(statistic) < 1.959964)
    mirrored = stats.score_interval(lost, gained, n)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low), abs=1e-9)


@given(p_lists, st.floats(0.001, 0.5))
def test_adjusted_p_values_reject_what_the_procedures_reject(p: list[float], alpha: float) -> None:
    assert (stats.holm(p) <= alpha).tolist() == oracle.holm_rejects(p, alpha)
    assert (stats.benjamini_hochberg(p) <= alpha).tolist() == oracle.benjamini_hochberg_rejects(p, alpha)


@given(p_lists)
def test_adjusted_p_values_are_monotone(p: list[float]) -> None:
    order = np.argsort(p)
    family, discovery = stats.holm(p), stats.benjamini_hochberg(p)
    assert (np.diff(family[order]) >= 0).all()
    assert (np.diff(discovery[order]) >= 0).all()
    assert (family >= np.asarray(p)).all()
    assert (discovery <= family + 1e-15).all()
    assert (family <= 1).all()


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=60), st.data())
def test_ece_with_many_confidences_on_edges(bins: int, items: list[tuple[int, bool]], data: st.DataObject) -> None:
    parts = data.draw(st.sampled_from([bins, 60]))
    confidence = [min(k, parts) / parts for k, _ in items]
    correct = [c for _, c in items]
    assert cal.ece(confidence, correct, bins=bins) == pytest.approx(oracle.ece(confidence, correct, bins), abs=1e-12)
    assert sum(b.n for b in cal.reliability_table(confidence, correct, bins=bins)) == len(items)


@given(seeds, st.integers(1, 25), st.integers(2, 6), st.floats(0.2, 5))
def test_classifier_scores(seed: int, n: int, classes: int, temperature: float) -> None:
    logits = rng(seed).normal(size=(n, classes)).round(1)  # rounding makes ties
    labels = rng(seed + 1).integers(0, classes, size=n)
    probs = special.softmax(logits, axis=1)
    rows, y = logits.tolist(), labels.tolist()
    for k in range(1, classes + 1):
        assert cal.top_k_accuracy(logits, labels, k) == pytest.approx(oracle.top_k(rows, y, k))
    assert cal.nll_logits(logits, labels) == pytest.approx(oracle.nll(rows, y), abs=1e-12)
    assert cal.nll(probs, labels) == pytest.approx(oracle.nll(rows, y), abs=1e-9)
    assert cal.brier(probs, labels) == pytest.approx(oracle.brier(probs.tolist(), y), abs=1e-12)
    t = cal.fit_temperature(logits, labels)
    other = min(100.0, max(0.01, t * temperature))
    assert oracle.nll(rows, y, t) <= oracle.nll(rows, y, other) + 1e-9


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=40))
def test_flips_explain_the_difference_of_accuracy(rows: list[tuple[int, int, int]]) -> None:
    before, after, labels = zip(*rows, strict=True)
    got = cal.flips(before, after, labels)
    assert got.accuracy - got.baseline_accuracy == pytest.approx(got.positive_rate - got.negative_rate, abs=1e-12)
    assert got.accuracy == cal.accuracy(after, labels)
    assert got.baseline_accuracy == cal.accuracy(before, labels)
    assert cal.confusion_matrix(after, labels, 4).trace() == round(got.accuracy * got.n)


# laws


@settings(max_examples=40)
@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=40), st.data())
def test_order_of_items_never_matters(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    a, b = np.array(pairs).T
    clusters = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(a), max_size=len(a))))
    clusters[:2] = 0, 1
    order = np.array(data.draw(st.permutations(range(len(a)))))
    c, d, shuffled = a[order], b[order], clusters[order]
    assert stats.mean_with_se(a) == stats.mean_with_se(c)
    assert stats.clustered_se(a, clusters) == stats.clustered_se(c, shuffled)
    assert stats.paired_t(a, b) == stats.paired_t(c, d)
    assert stats.paired_t(a, b, clusters=clusters) == stats.paired_t(c, d, clusters=shuffled)
    assert stats.tost(a, b, 1.0) == stats.tost(c, d, 1.0)
    assert resample.sign_flip(a, b, rng(), draws=99) == resample.sign_flip(c, d, rng(), draws=99)
    assert resample.paired_bootstrap(a, b, rng(), draws=99) == resample.paired_bootstrap(c, d, rng(), draws=99)
    one = resample.paired_bootstrap(a, b, rng(), draws=99, clusters=clusters)
    assert one == resample.paired_bootstrap(c, d, rng(), draws=99, clusters=shuffled)
    runs, mixed = np.stack([a, b]), np.stack([c, d])
    assert resample.compare_runs(runs, runs[::-1]) == resample.compare_runs(mixed, mixed[::-1])
    assert resample.rank_intervals(runs, rng(), draws=99) == resample.rank_intervals(mixed, rng(), draws=99)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=60), st.data())
def test_order_of_items_never_matters_to_calibration(items: list[tuple[int, bool]], data: st.DataObject) -> None:
    confidence, correct = np.array([k / 20 for k, _ in items]), np.array([c for _, c in items])
    order = np.array(data.draw(st.permutations(range(len(items)))))
    for equal_mass in (False, True):
        one = cal.reliability_table(confidence, correct, equal_mass=equal_mass)
        assert one == cal.reliability_table(confidence[order], correct[order], equal_mass=equal_mass)
    overall = abs(correct.mean() - confidence.mean())
    assert overall - 1e-12 <= cal.adaptive_ece(confidence, correct) <= 1
    assert overall - 1e-12 <= cal.ece(confidence, correct) <= 1
    assert cal.ece(confidence, correct, bins=1) == pytest.approx(overall, abs=1e-12)


@given(outcome_pairs, seeds)
def test_never_better_while_the_interval_covers_zero(pairs: list[tuple[bool, bool]], seed: int) -> None:
    before, after = zip(*pairs, strict=True)
    interval = resample.paired_bootstrap(before, after, rng(seed), draws=200)
    words = stats.verdict(interval.low, interval.high)
    assert (words == "better") == (interval.low > 0)
    assert (words == "worse") == (interval.high < 0)
    assert interval.low <= interval.high


@given(vectors, seeds)
def test_same_generator_same_interval_and_inputs_untouched(x: list[float], seed: int) -> None:
    a, b = np.zeros(len(x)), np.array(x)
    kept = b.copy()
    assert resample.paired_bootstrap(a, b, rng(seed), draws=50) == resample.paired_bootstrap(a, b, rng(seed), draws=50)
    assert (b == kept).all()


# simulations


def covered(kind: str, n: int, truth: float, generator: np.random.Generator) -> bool:
    if kind == "outcomes":
        gained = (0.3 + truth) / 2
        d = generator.choice([1.0, -1.0, 0.0], p=[gained, gained - truth, 0.7], size=n)
        interval = resample.paired_bootstrap(np.zeros(n), d, generator, draws=1000)
    elif kind == "scores":
        d = truth + generator.normal(size=n)
        interval = resample.paired_bootstrap(np.zeros(n), d, generator, draws=1000)
    elif kind == "clusters":
        d = truth + np.repeat(generator.normal(size=n), 4) + generator.normal(size=4 * n)
        names = np.repeat(np.arange(n), 4)
        interval = resample.paired_bootstrap(np.zeros(4 * n), d, generator, clusters=names, draws=1000)
    else:
        counts = generator.multinomial(n, [(0.3 + truth) / 2, (0.3 - truth) / 2, 0.7])
        interval = stats.score_interval(int(counts[0]), int(counts[1]), n)
    return bool(interval.low <= truth <= interval.high)


@pytest.mark.parametrize("kind", ["outcomes", "scores", "clusters", "score interval"])
def test_intervals_cover_the_truth_95_times_in_100(kind: str) -> None:
    generator = rng(20)
    coverage = np.mean([covered(kind, 150, 0.1, generator) for _ in range(500)])
    assert 0.93 <= coverage <= 0.97


def test_forgetting_the_clusters_would_be_noticed() -> None:
    """The simulation above can fail: items drawn one by one cover far too seldom when they come in clusters."""
    generator, hits = rng(21), 0
    for _ in range(200):
        d = np.repeat(generator.normal(size=100), 4) + 0.5 * generator.normal(size=400)
        interval = resample.paired_bootstrap(np.zeros(400), d, generator, draws=300)
        hits += interval.low <= 0 <= interval.high
    assert hits / 200 < 0.8


def test_p_values_are_uniform_when_nothing_differs() -> None:
    generator = rng(22)
    d = generator.normal(size=(400, 25))
    small = [resample.sign_flip(np.zeros(25), row, generator, draws=499).p <= 0.05 for row in d]
    assert np.mean(small) == pytest.approx(0.05, abs=0.025)
    small_t = [stats.paired_t(np.zeros(25), row).p <= 0.05 for row in d]
    assert np.mean(small_t) == pytest.approx(0.05, abs=0.025)


@pytest.mark.parametrize("outcomes", [True, False])
def test_tost_at_the_margin_errs_five_times_in_100(outcomes: bool) -> None:
    """Truly worse by exactly the margin: called non-inferior at most about alpha of the time."""
    generator, n, margin = rng(23), 400, 0.05
    called = []
    for _ in range(1000):
        if outcomes:
            d = generator.choice([1, -1, 0], p=[0.075, 0.125, 0.8], size=n)
            before, after = (d < 0).astype(int), (d > 0).astype(int)
        else:
            before, after = np.zeros(n), generator.normal(-margin, 0.4, size=n)
        called.append(stats.tost(before, after, margin).noninferior)
    assert np.mean(called) == pytest.approx(0.05, abs=0.02)
