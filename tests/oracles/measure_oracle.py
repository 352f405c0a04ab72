"""Slow and obvious: scores and paired outcomes of classifiers, item by item, with plain Python numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any


def probabilities(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(z - top) for z in logits]
    return [p / math.fsum(powers) for p in powers]


def best_class(values: Sequence[float]) -> int:
    return list(values).index(max(values))


def calibration_error(confidence: Sequence[float], correct: Sequence[bool], bins: int) -> float:
    """Sum over the bins ``(b/B, (b+1)/B]`` of share times distance between accuracy and confidence; 0 is in the first."""
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if (b / bins < c <= (b + 1) / bins) or (b == 0 and c == 0)]
        if inside:
            gap = math.fsum(correct[i] for i in inside) - math.fsum(confidence[i] for i in inside)
            total += abs(gap) / len(confidence)
    return total


def mcnemar(gained: int, lost: int) -> float:
    m = gained + lost
    tail = sum(math.comb(m, k) for k in range(min(gained, lost) + 1)) / 2**m
    return min(1.0, 2 * tail)


def classification(runs: dict[str, list[list[list[float]]]], labels: list[int], bins: int) -> dict[str, Any]:
    """Every figure that needs no random draw.

    Args:
        runs: model -> seed -> item -> logits. labels: class number of every item.

    Returns:
        (model, score) -> mean over seeds; (model, other, what) -> mean over seeds of items, or a list of one p per seed.
    """
    found: dict[str, Any] = {}
    right: dict[str, list[list[bool]]] = {}
    for name, seeds in runs.items():
        right[name] = [[best_class(z) == y for z, y in zip(seed, labels, strict=True)] for seed in seeds]
        sums: dict[str, list[float]] = {"accuracy": [], "nll": [], "brier": [], "ece": [], "top5": []}
        for seed, correct in zip(seeds, right[name], strict=True):
            probs = [probabilities(z) for z in seed]
            n = len(labels)
            sums["accuracy"].append(sum(correct) / n)
            sums["nll"].append(-math.fsum(math.log(p[y]) for p, y in zip(probs, labels, strict=True)) / n)
            sums["brier"].append(
                math.fsum((q - (c == y)) ** 2 for p, y in zip(probs, labels, strict=True) for c, q in enumerate(p)) / n
            )
            sums["ece"].append(calibration_error([max(p) for p in probs], correct, bins))
            in_five = [
                y in sorted(range(len(z)), key=lambda c: (-z[c], c))[:5] for z, y in zip(seed, labels, strict=True)
            ]
            sums["top5"].append(sum(in_five) / n)
        for score, values in sums.items():
            found[f"{name}: {score}"] = math.fsum(values) / len(values)
    for name in runs:
        for other in runs:
            pairs = [list(zip(a, b, strict=True)) for a, b in zip(right[name], right[other], strict=True)]
            counts = {
                "gained": [sum(a and not b for a, b in seed) for seed in pairs],
                "kept": [sum(a and b for a, b in seed) for seed in pairs],
                "lost": [sum(b and not a for a, b in seed) for seed in pairs],
                "never": [sum(not a and not b for a, b in seed) for seed in pairs],
            }
            for part, values in counts.items():
                found[f"{name} against {other}: {part}"] = sum(values) / len(values)
            found[f"{name} against {other}: McNemar"] = [
                mcnemar(g, lo) for g, lo in zip(counts["gained"], counts["lost"], strict=True)
            ]
    return found


def knows_more(runs: dict[str, list[list[list[float]]]], labels: list[int], classes: int) -> dict[str, Any]:
    """Of every two models the shares of items that one alone has right, and where those of the second are, item by item.

    Returns:
        "A against B: positive" (only B is right) and so on; counts by class are of all seeds.
    """
    found: dict[str, Any] = {}
    for name in runs:
        for other in runs:
            items = [(best_class(a) == y, best_class(b) == y, y) for s, t in zip(runs[name], runs[other], strict=True)
                     for a, b, y in zip(s, t, labels, strict=True)]  # fmt: skip
            flips = [y for mine, theirs, y in items if theirs and not mine]
            counts = [flips.count(k) for k in range(classes)]
            shares = [c / len(flips) for c in counts if c]
            head = f"{name} against {other}"
            found[f"{head}: positive"] = len(flips) / len(items)
            found[f"{head}: negative"] = sum(mine and not theirs for mine, theirs, _ in items) / len(items)
            found[f"{head}: classes"] = [c / len(runs[name]) for c in counts]
            found[f"{head}: entropy"] = -math.fsum(s * math.log(s) for s in shares)
            half, order = [], sorted(range(classes), key=lambda k: (-counts[k], k))
            while flips and sum(counts[k] for k in half) < len(flips) / 2:
                half.append(order[len(half)])
            found[f"{head}: half"] = half
    return found


def layer_likeness(x: list[list[float]], y: list[list[float]], batch: int) -> float:
    """Linear CKA of two layers' features, an item a row: the unbiased HSIC as it is printed in Song et al. 2012 (equation 5),
    averaged over minibatches as even as they can be."""

    def hsic(k: list[list[float]], m: list[list[float]]) -> float:
        n = len(k)
        both = math.fsum(k[i][j] * m[j][i] for i in range(n) for j in range(n) if i != j)
        sums = [
            (math.fsum(k[i][j] for j in range(n) if j != i), math.fsum(m[i][j] for j in range(n) if j != i))
            for i in range(n)
        ]
        all_k, all_m = math.fsum(a for a, _ in sums), math.fsum(b for _, b in sums)
        mixed = math.fsum(a * b for a, b in sums)
        return (both + all_k * all_m / ((n - 1) * (n - 2)) - 2 * mixed / (n - 2)) / (n * (n - 3))

    def gram(rows: list[list[float]]) -> list[list[float]]:
        return [[math.fsum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]

    parts = -(-len(x) // batch)
    size, rest = divmod(len(x), parts)
    ends = [0]
    for i in range(parts):
        ends.append(ends[-1] + size + (i < rest))
    sums = [0.0, 0.0, 0.0]
    for begin, end in itertools.pairwise(ends):
        k, m = gram(x[begin:end]), gram(y[begin:end])
        sums = [s + h for s, h in zip(sums, (hsic(k, m), hsic(k, k), hsic(m, m)), strict=True)]
    return sums[0] / math.sqrt(sums[1] * sums[2])
