"""Slow, plain versions of the decode room's equations: one text, one token at a time, in Python's own double precision.

Each takes what a step shows of one text (lists of logits) and the method's parameters, and gives the probabilities of the next token,
with whatever the trace says.
"""

from __future__ import annotations

import math
from typing import Any

Row = list[float]


def softmax(logits: Row) -> Row:
    top = max(logits)
    parts = [math.exp(x - top) if x > -math.inf else 0.0 for x in logits]
    return [p / sum(parts) for p in parts]


def kl(p: Row, q: Row) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def entropy(p: Row) -> float:
    return -sum(a * math.log(a) for a in p if a > 0)


def moved(model: Row, base: Row, experts: list[Row], strengths: list[float]) -> Row:
    return softmax([
        x + sum(a * (e[v] - base[v]) for a, e in zip(strengths, experts, strict=True)) for v, x in enumerate(model)
    ])  # fmt: skip


def arithmetic(step: dict[str, Any], *, alpha: Any) -> dict[str, Any]:
    experts = step["experts"]
    strengths = alpha if isinstance(alpha, list) else [alpha] * len(experts)
    return {"probs": moved(step["model"], step["base"], experts, strengths)}


def contrast(step: dict[str, Any], *, beta: float, plausible: float) -> dict[str, Any]:
    p, q = softmax(step["model"]), softmax(step["base"])
    weights = [a ** (1 + beta) / b**beta if a >= plausible * max(p) else 0.0 for a, b in zip(p, q, strict=True)]
    return {"probs": [w / sum(weights) for w in weights], "plausible": sum(w > 0 for w in weights)}


def aware(step: dict[str, Any], *, alpha: float) -> dict[str, Any]:
    r, p = softmax(step["model"]), softmax(step["plain"])
    weights = [b ** (1 + alpha) / a**alpha for a, b in zip(p, r, strict=True)]
    return {"probs": [w / sum(weights) for w in weights]}


def adaptive(step: dict[str, Any], *, least: float) -> dict[str, Any]:
    r, p = softmax(step["model"]), softmax(step["plain"])
    m = [(a + b) / 2 for a, b in zip(r, p, strict=True)]
    alpha = max(least, (kl(r, m) + kl(p, m)) / 2 / math.log(2))
    return {**aware(step, alpha=alpha), "alpha": alpha}


def mixed(step: dict[str, Any], *, kind: str, weights: Any, tau: float) -> dict[str, Any]:
    models = [softmax(x) for x in (step["model"], *step["experts"])]
    if weights == "perplexity":
        raw = [math.exp(-math.log(math.exp(-e)) / tau) for e in step["evidence"]]  # exp(-log PPL / tau)
    elif weights == "entropy":
        raw = [math.exp(-entropy(p) / tau) for p in models]
    else:
        raw = [1.0] * len(models) if weights == "equal" else weights
    shares = [w / sum(raw) for w in raw]
    columns = list(zip(*models, strict=True))
    if kind == "linear":
        probs = [sum(w * p for w, p in zip(shares, column, strict=True)) for column in columns]
    else:
        parts = [math.prod(p**w for w, p in zip(shares, column, strict=True)) for column in columns]
        probs = [p / sum(parts) for p in parts]
    return {"probs": probs, **{f"weight {i}": w for i, w in enumerate(shares)}}


def giant(step: dict[str, Any], *, alphas: list[float], limits: Any) -> dict[str, Any]:
    """Every strength of every expert is tried in turn, with the distributions themselves."""
    large, small = softmax(step["model"]), softmax(step["base"])
    tuned = [softmax(e) for e in step["experts"]]
    best: tuple[float, int, float, Row] | None = None
    for t in range(len(tuned)):
        for alpha in alphas:
            if limits is not None and alpha > limits[t]:
                continue
            strengths = [alpha if s == t else 0.0 for s in range(len(tuned))]
            fused = moved(step["model"], step["base"], step["experts"], strengths)
            loss = sum((kl(fused, large) - kl(q, small)) ** 2 + (kl(large, fused) - kl(small, q)) ** 2 for q in tuned)
            if best is None or loss < best[0]:
                best = loss, t + 1 if alpha else 0, alpha, fused
    assert best is not None
    return {"probs": best[3], "alpha": best[2], "expert": best[1], "loss": best[0]}


def plug(step: dict[str, Any], *, alpha: Any, gate: str, threshold: float, e: float, k: int, relative_top: float, entropies: str,
         restrict: str, extrapolate: bool) -> dict[str, Any]:  # fmt: skip
    p, r = softmax(step["plain"]), softmax(step["model"])
    head = set()
    for side in (p, r):
        kth = sorted(side, reverse=True)[min(k, len(side)) - 1]
        head |= {v for v, a in enumerate(side) if a >= min(kth, relative_top * max(side))}
    on = [p, r]
    if entropies == "head":
        on = [[a / sum(side[v] for v in head) if v in head else 0.0 for v, a in enumerate(side)] for side in (p, r)]
    h_p, h_r = entropy(on[0]), entropy(on[1])
    gain = h_p - h_r
    conflict = {"absolute": gain < threshold, "relative": gain + e * h_r < 0, "always": True, "never": False}[gate]
    share = h_r / (h_p + h_r) if alpha == "auto" else alpha
    probs = r
    if conflict:
        parts = [
            math.exp(share * math.log(a) + (1 - share) * (math.log(b) - math.log(a))) if v in head else 0.0
            for v, (a, b) in enumerate(zip(p, r, strict=True))
        ]
        probs = [x / sum(parts) for x in parts]
    elif restrict == "always":
        probs = [a / sum(r[v] for v in head) if v in head else 0.0 for v, a in enumerate(r)]
    return {"probs": probs, "H_param": h_p, "H_rag": h_r, "gain": gain, "intervened": float(conflict), "alpha": share}


def association(transcripts: list[dict[str, Any]], experts: int, *, markers: dict[str, float], count: int, min_count: int,
                skip_first: int) -> dict[str, Any]:  # fmt: skip
    """Scores of all experts by counting one token after the other, and the highest of them.

    A transcript has its words, and per layer the experts selected at each word.
    """
    events = [
        (w, [layer[i] for layer in t["experts"]])
        for t in transcripts
        for i, w in enumerate(t["words"])
        if i >= skip_first
    ]
    scores, often = {}, {}
    for layer in range(len(transcripts[0]["experts"])):
        for expert in range(experts):
            name = f"layer {layer} expert {expert}"
            active = sum(expert in picked[layer] for _, picked in events)
            often[name] = active
            scores[name] = 0.0
            for marker, weight in markers.items():
                marked = sum(w == marker for w, _ in events)
                both = sum(w == marker and expert in picked[layer] for w, picked in events)
                joint = both / len(events)
                value = (
                    -1.0
                    if both == 0
                    else math.log2(joint / (marked / len(events) * active / len(events))) / -math.log2(joint)
                )
                scores[name] += weight * value
    places = [(layer, expert) for layer in range(len(transcripts[0]["experts"])) for expert in range(experts)]
    able = [p for p in places if often[f"layer {p[0]} expert {p[1]}"] >= min_count]
    able.sort(key=lambda p: -scores[f"layer {p[0]} expert {p[1]}"])
    return {"scores": scores, "chosen": [list(p) for p in able[:count]]}


def stretch(scores: list[list[float]], outlier: float | None, weights: list[float] | str, **params: Any) -> tuple[list[float], int]:  # fmt: skip
    """The mean judgement of each stretch over those that count, and how many do not."""
    means, lost = [], 0
    for row in scores:
        shares = weights if isinstance(weights, list) else [1.0] * len(row)
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row))
        heard = [outlier is None or abs(x - mean) <= outlier * spread for x in row]
        lost += heard.count(False)
        kept = [(x, w) for x, w, h in zip(row, shares, heard, strict=True) if h]
        total = sum(w for _, w in kept)
        means.append(sum(x * w for x, w in kept) / total)
    return means, lost
