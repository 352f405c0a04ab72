"""Worked numbers, edges and refusals of the classifier scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, special
from sklearn import metrics

from interfuse.core.errors import InterfuseError
from interfuse.kit import calibration as cal
from tests.oracles import stats_oracle as oracle


def simulated(n: int, classes: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``temperature`` times too sharp for the labels drawn from them."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=(n, classes)) * 1.5
    labels = (true + generator.gumbel(size=(n, classes))).argmax(axis=1)
    return true * temperature, labels


def test_ece_hand_check() -> None:
    assert cal.ece([0.9, 0.8, 0.75, 0.55], [1, 1, 0, 0], bins=10) == pytest.approx(0.30)


@pytest.mark.parametrize("bins", [3, 7, 10, 15, 100])
def test_confidences_on_edges_fall_into_the_bin_below(bins: int) -> None:
    edges = cal.bin_edges(bins)
    table = cal.reliability_table(edges[1:], np.ones(bins), bins=bins)
    assert [b.n for b in table] == [1] * bins
    assert [b.high for b in table] == edges[1:].tolist()
    above = cal.reliability_table(np.nextafter(edges[1:-1], 2), np.ones(bins - 1), bins=bins)
    assert [b.low for b in above] == edges[1:-1].tolist()


def test_zero_confidence_is_in_the_first_bin() -> None:
    (only,) = cal.reliability_table([0.0, 0.01], [0, 0])
    assert (only.low, only.n) == (0.0, 2)


def test_uniform_confidence_of_a_chance_model_is_calibrated() -> None:
    probs = np.full((400, 4), 0.25)
    confidence, correct = cal.confidence_and_correct(probs, np.arange(400) % 4)
    assert correct.mean() == 0.25
    assert cal.ece(confidence, correct) == 0.0
    assert cal.adaptive_ece(confidence, correct) == pytest.approx(0.0)


def test_adaptive_ece_by_hand() -> None:
    # two bins of two: (.5, .6) accuracy .5 confidence .55; (.7, .9) accuracy 1 confidence .8
    assert cal.adaptive_ece([0.9, 0.5, 0.7, 0.6], [1, 1, 1, 0], bins=2) == pytest.approx((0.05 + 0.2) / 2)
    table = cal.reliability_table(np.linspace(0.1, 1, 31), np.ones(31), equal_mass=True)
    assert sum(b.n for b in table) == 31
    assert max(b.n for b in table) - min(b.n for b in table) <= 1


def test_scores_agree_with_scikit_learn() -> None:
    logits, labels = simulated(300, 5, 2.0, seed=1)
    probs = special.softmax(logits, axis=1)
    predicted = probs.argmax(axis=1)
    assert cal.accuracy(predicted, labels) == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert cal.nll(probs, labels) == pytest.approx(metrics.log_loss(labels, probs, labels=range(5)))
    assert cal.nll_logits(logits, labels) == pytest.approx(cal.nll(probs, labels))
    assert cal.brier(probs, labels) == pytest.approx(oracle.brier(probs.tolist(), labels.tolist()))
    assert cal.confusion_matrix(predicted, labels, 5).tolist() == metrics.confusion_matrix(labels, predicted).tolist()
    recall, support = cal.per_class_recall(predicted, labels, 5)
    assert recall == pytest.approx(metrics.recall_score(labels, predicted, average=None))
    assert support.sum() == 300
    for k in (1, 2, 4):
        theirs = metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(5))
        assert cal.top_k_accuracy(logits, labels, k) == pytest.approx(theirs)


def test_top_k_ties_go_to_the_lowest_class() -> None:
    scores = [[1.0, 1.0, 1.0]] * 3
    assert cal.top_k_accuracy(scores, [0, 1, 2], 1) == pytest.approx(1 / 3)
    assert cal.top_k_accuracy(scores, [0, 1, 2], 2) == pytest.approx(2 / 3)
    assert cal.top_k_accuracy(scores, [1, 1, 1], 1) == 0.0


def test_brier_and_nll_ends() -> None:
    assert cal.brier([[1.0, 0.0]], [0]) == 0.0
    assert cal.brier([[1.0, 0.0]], [1]) == 2.0
    assert cal.nll([[1.0, 0.0]], [0]) == 0.0
    assert cal.nll([[1.0, 0.0]], [1]) == math.inf
    assert cal.nll_logits([[2000.0, 0.0]], [1]) == 2000.0


def test_recall_of_an_absent_class_is_not_a_number() -> None:
    recall, support = cal.per_class_recall([0, 2], [0, 0], 3)
    assert recall[0] == 0.5
    assert np.isnan(recall[1:]).all()
    assert support.tolist() == [2, 0, 0]


def test_flips_by_hand() -> None:
    got = cal.flips(baseline=[0, 1, 2, 0, 1], predicted=[0, 0, 2, 1, 2], labels=[0, 0, 1, 1, 1])
    # wrong -> right: rows 1, 3; right -> wrong: row 4
    assert (got.positive, got.negative) == (2, 1)
    assert got.accuracy - got.baseline_accuracy == pytest.approx(got.positive_rate - got.negative_rate)


def test_fidelity_by_hand() -> None:
    assert cal.agreement([0, 1, 2], [0, 2, 2]) == pytest.approx(2 / 3)
    teacher, student = [[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [0.5, 0.5]]
    by_hand = (0.5 * math.log(2) + 0.5 * math.log(2 / 3) + math.log(2)) / 2
    assert cal.mean_kl(teacher, student) == pytest.approx(by_hand)
    assert cal.mean_kl(teacher, student) == pytest.approx(oracle.kl(teacher, student))
    assert cal.mean_kl(teacher, teacher) == 0.0
    assert cal.mean_kl([[0.5, 0.5]], [[1.0, 0.0]]) == math.inf


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fitted_temperature_is_the_minimum_and_near_the_truth(temperature: float) -> None:
    logits, labels = simulated(4000, 6, temperature, seed=2)
    t = cal.fit_temperature(logits, labels)
    assert t == pytest.approx(temperature, rel=0.08)
    found = optimize.minimize_scalar(lambda s: cal.nll_logits(logits / s, labels), bounds=(0.05, 20), method="bounded")
    assert t == pytest.approx(found.x, rel=1e-3)


def test_fitted_temperature_without_a_minimum_is_a_bound() -> None:
    assert cal.fit_temperature([[1.0, 0.0], [0.0, 1.0]], [0, 1]) == 0.01
    assert cal.fit_temperature([[1.0, 0.0], [0.0, 1.0]], [1, 0]) == 100.0


def test_temperature_scaling_repairs_a_sharp_model_and_keeps_its_accuracy() -> None:
    logits, labels = simulated(4000, 6, 3.0, seed=3)
    names = np.arange(4000)
    got = cal.temperature_scaled(
        logits[:2000], labels[:2000], logits[2000:], labels[2000:], fit_ids=names[:2000], ids=names[2000:]
    )
    assert not got.at_bound
    assert got.before.ece > 0.1
    assert got.after.ece < 0.03
    assert got.after.adaptive_ece < got.before.adaptive_ece
    assert got.after.nll < got.before.nll
    assert got.after.accuracy == got.before.accuracy
    assert got.before == cal.calibration(logits[2000:], labels[2000:])


def test_temperature_scaling_refuses_to_fit_on_what_it_measures() -> None:
    logits, labels = simulated(20, 3, 2.0, seed=4)
    names = np.arange(20)
    with pytest.raises(InterfuseError) as caught:
        cal.temperature_scaled(
            logits[:10], labels[:10], logits[10:], labels[10:], fit_ids=names[:10], ids=np.r_[names[11:], 3]
        )
    assert caught.value.code == "input.leak"
    assert "first 3" in caught.value.what


P = [[0.5, 0.5], [0.2, 0.8]]


@pytest.mark.parametrize(
    "call, code, where",
    [
        (lambda: cal.accuracy([], []), "input.empty", "predicted"),
        (lambda: cal.accuracy([1], [1, 2]), "input.shape", "predicted and labels"),
        (lambda: cal.accuracy([1, 2], [1, -1]), "input.type", "labels, row 1"),
        (lambda: cal.accuracy([1, 2.5], [1, 1]), "input.type", "predicted, row 1"),
        (lambda: cal.nll(P, [0, 2]), "input.shape", "labels, row 1"),
        (lambda: cal.nll(P, [0]), "input.shape", "scores and labels"),
        (lambda: cal.nll([[0.5, 0.5], [math.nan, 1.0]], [0, 0]), "input.nan", "probs, row 1"),
        (lambda: cal.nll([[0.5, 0.5], [1.2, 3.0]], [0, 0]), "input.type", "probs, row 1"),
        (lambda: cal.brier([[-0.5, 1.5]], [0]), "input.type", "probs, row 0"),
        (lambda: cal.nll_logits([[1.0, -math.inf]], [0]), "input.nan", "logits, row 0"),
        (lambda: cal.top_k_accuracy(P, [0, 1], 3), "param.value", "k"),
        (lambda: cal.top_k_accuracy(P, [0, 1], 0), "param.value", "k"),
        (lambda: cal.ece([0.5, 1.5], [1, 0]), "input.type", "confidence, row 1"),
        (lambda: cal.ece([0.5, math.nan], [1, 0]), "input.nan", "confidence, row 1"),
        (lambda: cal.ece([0.5], [1, 0]), "input.shape", "confidence and correct"),
        (lambda: cal.ece([0.5, 0.5], [1, 0.5]), "input.type", "correct, row 1"),
        (lambda: cal.ece([0.5], [1], bins=0), "param.value", "bins"),
        (lambda: cal.ece([], []), "input.empty", "confidence"),
        (lambda: cal.confusion_matrix([0], [3], 3), "input.shape", "labels, row 0"),
        (lambda: cal.confusion_matrix([0], [0], 0), "param.value", "classes"),
        (lambda: cal.flips([0, 1], [0], [0, 1]), "input.shape", "predicted and labels"),
        (lambda: cal.mean_kl(P, [[1.0, 0.0]]), "input.shape", "teacher and student"),
        (lambda: cal.fit_temperature(P, [0, 1], low=2.0, high=1.0), "param.value", "low, high"),
        (
            lambda: cal.temperature_scaled(P, [0, 1], [[1.0, 2.0, 3.0]], [0], fit_ids=["a", "b"], ids=["c"]),
            "input.shape",
            "fit_logits and logits",
        ),
    ],
)
def test_refusals(call: Callable[[], object], code: str, where: str) -> None:
    with pytest.raises(InterfuseError) as caught:
        call()
    assert (caught.value.code, caught.value.where) == (code, where)
