"""Scores of one classifier over several seeds, each with its spread over seeds and its interval over items.

``logits`` are ``[seeds, items, classes]``, ``labels`` class numbers ``[items]``. Intervals are bootstrap intervals over
items: a drawn item brings its outcomes under all seeds with it, so seeds are clusters within items (Efron 1979; Field and
Welsh 2007 for clusters).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from interfuse.core.ctx import Ctx
from interfuse.kit import calibration
from interfuse.kit.resample import paired_bootstrap
from interfuse.kit.stats import mean_with_se

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LEVEL = 0.95
#: numbers held at once while calibration errors are resampled
_BLOCK = 1 << 21


def outcomes(logits: Floats, labels: Ints) -> dict[str, Floats]:
    """Per-item scores ``[seeds, items]``: ``accuracy``, ``top5`` (with more than five classes), ``nll``, ``brier``."""
    logp = log_softmax(logits, axis=2)
    items = np.arange(len(labels))
    truth = np.eye(logits.shape[2])[labels]
    own = logits[:, items, labels][:, :, None]
    # place of the label: classes with a higher logit, and those of equal logit and lower number, come before it
    ahead = (logits > own) | ((logits == own) & (np.arange(logits.shape[2]) < labels[:, None]))
    place = ahead.sum(axis=2)
    found = {"accuracy": (place == 0).astype(np.float64)}
    if logits.shape[2] > 5:
        found["top5"] = (place < 5).astype(np.float64)
    found["nll"] = -logp[:, items, labels] + 0.0
    found["brier"] = np.square(np.exp(logp) - truth).sum(axis=2)
    return found


def spread(per_item: Floats, ctx: Ctx, name: str, draws: int) -> dict[str, Any]:
    """Mean of scores ``[seeds, items]``: ``n`` items, ``mean``, ``sd`` over the seeds (None with one), ``low``, ``high``."""
    averaged = np.sort(per_item, axis=0).mean(axis=0)
    ends = paired_bootstrap(np.zeros(len(averaged)), averaged, ctx.rng(name), draws=draws, level=LEVEL)
    return summary(len(averaged), np.sort(per_item, axis=1).mean(axis=1), ends.low, ends.high)


def summary(n: int, per_seed: Floats, low: float, high: float) -> dict[str, Any]:
    """The row of one score in a report."""
    over_seeds = mean_with_se(per_seed)
    return {"n": n, "mean": over_seeds.mean, "sd": None if math.isnan(over_seeds.sd) else over_seeds.sd, "low": low, "high": high,
            "seeds": per_seed.tolist()}  # fmt: skip


def ratio(values: Floats, sizes: Floats, rng: np.random.Generator, draws: int) -> tuple[float, float, float]:
    """``sum(values) / sum(sizes)`` of items ``[items]`` with its percentile bootstrap interval over items."""
    order = np.lexsort((sizes, values))  # the order of the items must not matter
    values, sizes = values[order], sizes[order]
    n, found = len(values), []
    for start in range(0, draws, 256):
        picked = rng.integers(0, n, size=(min(256, draws - start), n))
        found.append(values[picked].sum(axis=1) / sizes[picked].sum(axis=1))
    low, high = np.quantile(np.concatenate(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.sum() / sizes.sum()), float(low), float(high)


def confidences(logits: Floats, labels: Ints) -> tuple[Floats, NDArray[np.bool_]]:
    """Highest probability and whether its class is the label, both ``[seeds, items]``."""
    pairs = [calibration.confidence_and_correct(softmax(z, axis=1), labels) for z in logits]
    return np.stack([c for c, _ in pairs]), np.stack([r for _, r in pairs])


def calibration_errors(
    every: Sequence[Floats], labels: Ints, ctx: Ctx, *, bins: int, draws: int
) -> list[dict[str, Any]]:
    """``ece`` and ``adaptive_ece`` of several models ``[seeds, items, classes]``.

    Both errors are averages over seeds. They are not means over items and overestimate in small samples, the more so when
    resampled; the interval is therefore the basic bootstrap's, ``[2 e - q(.975), 2 e - q(.025)]`` (Davison and Hinkley
    1997, sec. 5.2), cut at 0 and stretched to hold the estimate. Equal-mass bins keep their borders while resampling.
    """
    n = len(labels)
    gaps, found = [], []
    for logits in every:
        conf, correct = confidences(logits, labels)
        each = {"ece": [], "adaptive_ece": []}  # type: dict[str, list[float]]
        columns = {"ece": [], "adaptive_ece": []}  # type: dict[str, list[Floats]]
        for c, r in zip(conf, correct, strict=True):
            each["ece"].append(calibration.ece(c, r, bins=bins))
            each["adaptive_ece"].append(calibration.adaptive_ece(c, r, bins=bins))
            columns["ece"].append(
                _by_bin(np.searchsorted(calibration.bin_edges(bins)[1:-1], c, side="left"), c, r, bins)
            )
            order = np.lexsort((r, c))
            mass = np.empty(n, np.int64)
            mass[order] = np.arange(n) * min(bins, n) // n
            columns["adaptive_ece"].append(_by_bin(mass, c, r, bins))
        gaps.append({key: np.concatenate(parts, axis=1) for key, parts in columns.items()})
        found.append({key: np.array(values) for key, values in each.items()})
    drawn = [{key: np.empty(draws) for key in row} for row in gaps]
    rng = ctx.rng("measure/calibration")
    step = max(1, _BLOCK // n)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        picks = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        weights = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        for out, gap in zip(drawn, gaps, strict=True):
            for key, matrix in gap.items():
                out[key][start : start + rows] = np.abs(weights @ matrix).sum(axis=1) / n / (matrix.shape[1] // bins)
    tail = (1 - LEVEL) / 2
    result = []
    for values, out in zip(found, drawn, strict=True):
        row = {}
        for key, per_seed in values.items():
            mean = float(per_seed.mean())
            high, low = (2 * mean - float(q) for q in np.quantile(out[key], [tail, 1 - tail]))
            row[key] = summary(n, per_seed, min(mean, max(0.0, low)), max(mean, min(1.0, high)))
        result.append(row)
    return result


def _by_bin(member: Ints, conf: Floats, correct: NDArray[np.bool_], bins: int) -> Floats:
    """Each item's gap between outcome and confidence, in the column of its bin: ``[items, bins]``."""
    table = np.zeros((len(conf), bins))
    table[np.arange(len(conf)), member] = correct - conf
    return table


def reliability(logits: Floats, labels: Ints, bins: int) -> list[dict[str, float]]:
    """The reliability table of all seeds together: one row per bin that is not empty."""
    conf, correct = confidences(logits, labels)
    table = calibration.reliability_table(conf.ravel(), correct.ravel(), bins=bins)
    return [{"low": b.low, "high": b.high, "n": b.n, "confidence": b.confidence, "accuracy": b.accuracy} for b in table]


def recalls(logits: Floats, labels: Ints, classes: int) -> tuple[list[float | None], list[float | None], Ints]:
    """Recall of every class, mean and standard deviation over seeds (None for a class without items), and the items."""
    each = [calibration.per_class_recall(z.argmax(axis=1), labels, classes) for z in logits]
    table = np.stack([r for r, _ in each])
    mean = [None if np.isnan(c).any() else float(c.mean()) for c in table.T]
    sd = [None if np.isnan(c).any() or len(c) < 2 else float(c.std(ddof=1)) for c in table.T]
    return mean, sd, each[0][1]


def confusion(logits: Floats, labels: Ints, classes: int) -> Ints:
    """Counts ``[classes, classes]`` over all seeds: row = label, column = prediction."""
    each = [calibration.confusion_matrix(z.argmax(axis=1), labels, classes) for z in logits]
    total: Ints = np.stack(each).sum(axis=0, dtype=np.int64)
    return total


def after_temperature(logits: Floats, labels: Ints, held: Floats, held_labels: Ints, bins: int) -> dict[str, Any]:
    """NLL, Brier and ECE after dividing the logits by a temperature fitted per seed on held-out items (Guo et al. 2017)."""
    temperatures = [calibration.fit_temperature(z, held_labels) for z in held]
    after = [calibration.calibration(z / t, labels, bins=bins) for z, t in zip(logits, temperatures, strict=True)]
    return {
        "temperature": temperatures,
        **{key: float(np.mean([getattr(a, key) for a in after])) for key in ("nll", "brier", "ece", "adaptive_ece")},
    }
