"""Slow and obvious: scores and paired outcomes of classifiers, item by item, with plain Python numbers."""

from __future__ import annotations

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
