"""Scoring a classifier: accuracy, likelihood, calibration, recall, flips, fidelity to a teacher.

Plain functions from numpy arrays to numbers. ``probs`` are class probabilities ``[n, classes]`` whose rows sum to 1,
``logits`` unnormalised log-probabilities ``[n, classes]``, ``labels`` class numbers ``[n]``; likelihoods and divergences
are in nats. Means run over sorted values, so the order of the items never matters. An argmax tie goes to the lowest
class number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from interfuse.core.errors import InterfuseError
from interfuse.kit.stats import Floats, Ints, at_least, checked_array, checked_outcomes, checked_same_length

#: Rows of probabilities may miss a sum of 1 by this much (half-precision softmax).
_SUM_SLACK = 1e-2


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Items whose confidence lies in ``(low, high]``: how many, their mean confidence and their accuracy.

    For equal-mass bins ``low`` and ``high`` are the smallest and largest confidence in the bin.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """One model's scores on one set of items; ``ece`` has equal-width, ``adaptive_ece`` equal-mass bins."""

    n: int
    accuracy: float
    nll: float
    brier: float
    ece: float
    adaptive_ece: float


@dataclass(frozen=True, slots=True)
class TemperatureScaled:
    """Scores before and after temperature scaling. ``at_bound``: no best temperature inside the range searched."""

    temperature: float
    at_bound: bool
    before: Calibration
    after: Calibration


@dataclass(frozen=True, slots=True)
class Flips:
    """Against a baseline on the same items: ``positive`` were wrong and are right, ``negative`` the reverse.

    ``accuracy - baseline_accuracy = positive_rate - negative_rate`` (rates per item).
    """

    n: int
    positive: int
    negative: int
    positive_rate: float
    negative_rate: float
    accuracy: float
    baseline_accuracy: float


# ---------------------------------------------------------------------------------------------- checking


def checked_probs(probs: ArrayLike, name: str = "probs") -> Floats:
    """Class probabilities ``[n, classes]`` as float64.

    Raises:
        InterfuseError: as :func:`interfuse.kit.stats.checked_array`; ``input.type`` (names the first row with a negative
            entry or a sum other than 1).
    """
    p = checked_array(probs, name, ndim=2)
    bad = np.flatnonzero((p < 0).any(axis=1) | (np.abs(p.sum(axis=1) - 1) > _SUM_SLACK))
    if len(bad):
        what = f"{name} must be probabilities that sum to 1, got a row that sums to {p[bad[0]].sum():g}"
        raise InterfuseError("input.type", what, where=f"{name}, row {bad[0]}", fix="Apply softmax to logits first.")
    return p


def checked_labels(labels: ArrayLike, classes: int | None = None, name: str = "labels") -> Ints:
    """Class numbers ``[n]`` as integers from 0, below ``classes`` when given.

    Raises:
        InterfuseError: as :func:`interfuse.kit.stats.checked_array`; ``input.type`` (a fraction or a negative number),
            ``input.shape`` (a class number beyond the classes); both name the row.
    """
    y = checked_array(labels, name)
    bad = np.flatnonzero((y < 0) | (y != np.floor(y)))
    if len(bad):
        what = f"{name} must hold class numbers from 0, got {y[bad[0]]:g}"
        raise InterfuseError("input.type", what, where=f"{name}, row {bad[0]}")
    beyond = np.flatnonzero(y >= (np.inf if classes is None else classes))
    if len(beyond):
        what = f"{name} holds class {y[beyond[0]]:g}, but there are only {classes} classes (0 to {(classes or 0) - 1})"
        raise InterfuseError("input.shape", what, where=f"{name}, row {beyond[0]}")
    return y.astype(np.int64)


def _labelled(table: Floats, labels: ArrayLike) -> Ints:
    y = checked_labels(labels, table.shape[1])
    checked_same_length(table, y, "scores and labels")
    return y


def _mean(values: Floats) -> float:
    return float(np.sort(values).mean())


# ---------------------------------------------------------------------------------------------- right or wrong


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Share of items ``[n]`` whose predicted class is the label.

    Raises:
        InterfuseError: as :func:`checked_labels`; ``input.shape``.
    """
    guess, y = checked_labels(predicted, name="predicted"), checked_labels(labels)
    checked_same_length(guess, y, "predicted and labels")
    return float((guess == y).mean())


def top_k_accuracy(scores: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """Share of items whose label is among the ``k`` highest of ``scores [n, classes]``; ties go to lower classes.

    Raises:
        InterfuseError: as :func:`interfuse.kit.stats.checked_array`, :func:`checked_labels`; ``param.value`` when ``k``
            is not in 1..classes.
    """
    s = checked_array(scores, "scores", ndim=2)
    y = _labelled(s, labels)
    if not 1 <= k <= s.shape[1]:
        raise InterfuseError("param.value", f"k must lie in 1..{s.shape[1]}, got {k}", where="k")
    own = s[np.arange(len(y)), y][:, None]
    lower = np.arange(s.shape[1])[None] < y[:, None]
    ahead = ((s > own) | ((s == own) & lower)).sum(axis=1)
    return float((ahead < k).mean())


def confusion_matrix(predicted: ArrayLike, labels: ArrayLike, classes: int) -> Ints:
    """Counts ``[classes, classes]``: row = label, column = prediction.

    Raises:
        InterfuseError: as :func:`checked_labels`; ``input.shape``; ``param.value`` when ``classes < 1``.
    """
    at_least(classes, 1, "classes")
    guess, y = checked_labels(predicted, classes, "predicted"), checked_labels(labels, classes)
    checked_same_length(guess, y, "predicted and labels")
    return np.bincount(y * classes + guess, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def per_class_recall(predicted: ArrayLike, labels: ArrayLike, classes: int) -> tuple[Floats, Ints]:
    """Recall of every class ``[classes]`` (NaN for a class without items) and its number of items ``[classes]``.

    Raises:
        InterfuseError: as :func:`confusion_matrix`.
    """
    table = confusion_matrix(predicted, labels, classes)
    support = table.sum(axis=1)
    recall = np.full(classes, np.nan)
    np.divide(np.diag(table), support, out=recall, where=support > 0)
    return recall, support


def flips(baseline: ArrayLike, predicted: ArrayLike, labels: ArrayLike) -> Flips:
    """Predictions ``[n]`` that turned right or wrong against a baseline's ``[n]`` (Yan et al. 2021, negative flips).

    Raises:
        InterfuseError: as :func:`checked_labels`; ``input.shape``.
    """
    before, after = checked_labels(baseline, name="baseline"), checked_labels(predicted, name="predicted")
    y = checked_labels(labels)
    checked_same_length(before, y, "baseline and labels")
    checked_same_length(after, y, "predicted and labels")
    was, now = before == y, after == y
    n, positive, negative = len(y), int((now & ~was).sum()), int((was & ~now).sum())
    return Flips(n, positive, negative, positive / n, negative / n, float(now.mean()), float(was.mean()))


def agreement(predicted: ArrayLike, teacher: ArrayLike) -> float:
    """Share of items on which student and teacher predict the same class (Stanton et al. 2021, fidelity).

    Raises:
        InterfuseError: as :func:`checked_labels`; ``input.shape``.
    """
    student, other = checked_labels(predicted, name="predicted"), checked_labels(teacher, name="teacher")
    checked_same_length(student, other, "predicted and teacher")
    return float((student == other).mean())


# ---------------------------------------------------------------------------------------------- probabilities


def mean_kl(teacher: ArrayLike, student: ArrayLike) -> float:
    """Mean over items of ``KL(teacher || student) = sum_c t_c log(t_c / s_c)``, in nats (Stanton et al. 2021).

    Infinite when the student gives no probability to a class the teacher does.

    Args:
        teacher: probabilities ``[n, classes]``.
        student: probabilities ``[n, classes]``.

    Raises:
        InterfuseError: as :func:`checked_probs`; ``input.shape``.
    """
    t, s = checked_probs(teacher, "teacher"), checked_probs(student, "student")
    if t.shape != s.shape:
        raise InterfuseError("input.shape", f"teacher is {t.shape}, student {s.shape}", where="teacher and student")
    return _mean(special.rel_entr(t, s).sum(axis=1))


def nll(probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean of ``-log p(label)``, in nats; infinite when a label has probability 0 (see :func:`nll_logits`).

    Raises:
        InterfuseError: as :func:`checked_probs`, :func:`checked_labels`; ``input.shape``.
    """
    p = checked_probs(probs)
    y = _labelled(p, labels)
    with np.errstate(divide="ignore"):
        return _mean(-np.log(p[np.arange(len(y)), y])) + 0.0


def nll_logits(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean of ``logsumexp(z) - z_label``, in nats; finite for finite logits ``[n, classes]``.

    Raises:
        InterfuseError: as :func:`interfuse.kit.stats.checked_array`, :func:`checked_labels`; ``input.shape``.
    """
    z = checked_array(logits, "logits", ndim=2)
    y = _labelled(z, labels)
    return _mean(-special.log_softmax(z, axis=1)[np.arange(len(y)), y]) + 0.0


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean of ``sum_c (p_c - 1[c = label])^2``, 0 to 2 (Brier 1950).

    Raises:
        InterfuseError: as :func:`checked_probs`, :func:`checked_labels`; ``input.shape``.
    """
    p = checked_probs(probs)
    y = _labelled(p, labels)
    truth = np.zeros_like(p)
    truth[np.arange(len(y)), y] = 1.0
    return _mean(np.square(p - truth).sum(axis=1))


def confidence_and_correct(probs: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Highest probability ``[n]`` and whether its class is the label ``[n]``, for :func:`ece` and its kin.

    Raises:
        InterfuseError: as :func:`checked_probs`, :func:`checked_labels`; ``input.shape``.
    """
    p = checked_probs(probs)
    y = _labelled(p, labels)
    return np.minimum(1.0, p.max(axis=1)), p.argmax(axis=1) == y


# ---------------------------------------------------------------------------------------------- calibration


def bin_edges(bins: int) -> Floats:
    """Edges ``0, 1/B, ..., 1`` of B equal bins, each the float64 nearest to the fraction."""
    return np.arange(at_least(bins, 1, "bins") + 1) / bins


def reliability_table(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15, equal_mass: bool = False
) -> tuple[ReliabilityBin, ...]:
    """Confidence against accuracy, bin by bin (empty bins left out), lowest first.

    Equal-width bins are right-closed, ``(low, high]``, the first also holding 0; membership is decided in float64
    against :func:`bin_edges`. Equal-mass bins hold ``n / bins`` items each, as near as can be; where equal confidences
    straddle a border each bin gets their mean accuracy, so the items' order does not matter.

    Args:
        confidence: ``[n]`` in 0..1.
        correct: right or wrong ``[n]``.
        bins: number of bins, at least 1.
        equal_mass: bins of equal count instead of equal width.

    Raises:
        InterfuseError: as :func:`interfuse.kit.stats.checked_array`, :func:`interfuse.kit.stats.checked_outcomes`;
            ``input.type`` (a confidence outside 0..1, names the row); ``input.shape``; ``param.value``.
    """
    conf = checked_array(confidence, "confidence")
    right = checked_outcomes(correct, "correct").astype(np.float64)
    checked_same_length(conf, right, "confidence and correct")
    outside = np.flatnonzero((conf < 0) | (conf > 1))
    if len(outside):
        what = f"a confidence lies in 0..1, got {conf[outside[0]]:g}"
        raise InterfuseError("input.type", what, where=f"confidence, row {outside[0]}")
    edges = bin_edges(bins)
    order = np.lexsort((right, conf))
    conf, right = conf[order], right[order]
    if equal_mass:
        _, tie, size = np.unique(conf, return_inverse=True, return_counts=True)
        right = (np.bincount(tie, weights=right) / size)[tie]
        borders = np.arange(min(bins, len(conf)) + 1) * len(conf) // min(bins, len(conf))
    else:
        borders = np.searchsorted(conf, edges, side="right")
        borders[0] = 0  # a confidence of 0 belongs to the first bin
    table = []
    for b, (start, stop) in enumerate(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)):
        if start == stop:
            continue
        inside = conf[start:stop]
        low, high = (inside[0], inside[-1]) if equal_mass else (edges[b], edges[b + 1])
        mean_right = float(right[start:stop].mean())
        table.append(ReliabilityBin(float(low), float(high), stop - start, float(inside.mean()), mean_right))
    return tuple(table)


def ece(confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error ``sum_b n_b/n |accuracy_b - confidence_b|`` over equal-width right-closed bins.

    Naeini et al. 2015; 15 bins as in Guo et al. 2017. Arguments and errors as :func:`reliability_table`.
    """
    return _gap(reliability_table(confidence, correct, bins=bins))


def adaptive_ece(confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error over equal-mass bins (Nguyen and O'Connor 2015); arguments as :func:`ece`."""
    return _gap(reliability_table(confidence, correct, bins=bins, equal_mass=True))


def _gap(table: tuple[ReliabilityBin, ...]) -> float:
    n = sum(b.n for b in table)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in table) / n


def calibration(logits: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> Calibration:
    """All scores of one model from its logits ``[n, classes]``; errors as :func:`nll_logits`, :func:`ece`."""
    z = checked_array(logits, "logits", ndim=2)
    probs = special.softmax(z, axis=1)
    confidence, correct = confidence_and_correct(probs, labels)
    return Calibration(
        len(z),
        top_k_accuracy(z, labels),
        nll_logits(z, labels),
        brier(probs, labels),
        ece(confidence, correct, bins=bins),
        adaptive_ece(confidence, correct, bins=bins),
    )


def fit_temperature(logits: ArrayLike, labels: ArrayLike, *, low: float = 0.01, high: float = 100.0) -> float:
    """The temperature T in ``low..high`` that minimises the NLL of ``softmax(logits / T)`` (Guo et al. 2017, sec. 4.2).

    The NLL is convex in 1/T, so its slope ``mean(E_p[z] - z_label)`` has at most one zero, found by bracketing. When
    all items are right (or no better than chance) there is none and the nearer bound is returned.

    Raises:
        InterfuseError: as :func:`nll_logits`; ``param.value`` unless ``0 < low < high``.
    """
    z = checked_array(logits, "logits", ndim=2)
    y = _labelled(z, labels)
    if not 0.0 < low < high < np.inf:
        raise InterfuseError("param.value", f"the range {low}..{high} of temperatures is empty", where="low, high")
    z = z - z.max(axis=1, keepdims=True)
    own = z[np.arange(len(y)), y]

    def slope(inverse: float) -> float:
        return _mean((special.softmax(z * inverse, axis=1) * z).sum(axis=1) - own)

    if slope(1.0 / high) >= 0.0:
        return high
    if slope(1.0 / low) <= 0.0:
        return low
    return 1.0 / float(optimize.brentq(slope, 1.0 / high, 1.0 / low, xtol=1e-12))


def temperature_scaled(
    fit_logits: ArrayLike,
    fit_labels: ArrayLike,
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    fit_ids: ArrayLike,
    ids: ArrayLike,
    bins: int = 15,
) -> TemperatureScaled:
    """Scores before and after a temperature fitted on other items (Guo et al. 2017).

    Args:
        fit_logits: ``[m, classes]``, with ``fit_labels [m]`` and item names ``fit_ids [m]``: the split to fit on.
        logits: ``[n, classes]``, with ``labels [n]`` and item names ``ids [n]``: the split to measure on.
        bins: bins of both calibration errors.

    Raises:
        InterfuseError: ``input.leak`` when an item is in both splits; as :func:`fit_temperature`, :func:`calibration`.
    """
    z, z_fit = checked_array(logits, "logits", ndim=2), checked_array(fit_logits, "fit_logits", ndim=2)
    names, fit_names = np.asarray(ids), np.asarray(fit_ids)
    checked_same_length(z, names, "logits and ids")
    checked_same_length(z_fit, fit_names, "fit_logits and fit_ids")
    if z.shape[1] != z_fit.shape[1]:
        what = f"the splits have {z_fit.shape[1]} and {z.shape[1]} classes"
        raise InterfuseError("input.shape", what, where="fit_logits and logits")
    both = np.intersect1d(names, fit_names)
    if len(both):
        what = f"{len(both)} item(s) are in the split to fit on and in the split to measure on, first {both[0]}"
        raise InterfuseError(
            "input.leak", what, where="fit_ids and ids", fix="Fit the temperature on a disjoint split."
        )
    low, high = 0.01, 100.0
    t = fit_temperature(z_fit, fit_labels, low=low, high=high)
    before, after = calibration(z, labels, bins=bins), calibration(z / t, labels, bins=bins)
    return TemperatureScaled(t, t in (low, high), before, after)
