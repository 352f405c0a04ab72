"""Distillation of language models once more: NumPy, float64, one position at a time.

As in ``distill_oracle.py``: what the method saw and its parameters go in, weighted terms by name come out, one number per
token. What a teacher says is in ``extra["said"]``: its kept tokens at the student's positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.oracles.seen import Array, Seen

Said = dict[str, Array]


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return e / e.sum()


def _ce(seen: Seen) -> Array:
    assert seen.labels is not None
    out = np.zeros(seen.labels.shape)
    for b, t in np.ndindex(*seen.labels.shape):
        if seen.labels[b, t] != -100:
            out[b, t] = -math.log(_softmax(seen.student[b, t])[seen.labels[b, t]])
    return out


def sft_loss(seen: Seen) -> Said:
    return {"ce": _ce(seen)}


def lora_loss(seen: Seen, **params: Any) -> Said:
    """What is learnt of a text does not depend on which weights move."""
    return sft_loss(seen)


def _classes(z: Array, said: Mapping[str, Array], b: int, t: int) -> tuple[Array, Array]:
    """Teacher's and student's probabilities of the kept tokens and of all others together."""
    q = _softmax(z)
    kept = [i for i in range(said["ids"].shape[-1]) if said["logp"][b, t, i] > -np.inf]
    ids = [int(said["ids"][b, t, i]) for i in kept]
    p = [math.exp(said["logp"][b, t, i]) for i in kept] + [math.exp(said["tail"][b, t])]
    mine = [float(q[i]) for i in ids]
    return np.array(p) / sum(p), np.array([*mine, 1 - sum(mine)])


def _kl(p: Array, q: Array) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def _divergence(name: str, p: Array, q: Array, beta: float, skew: float, a: float, b: float) -> float:
    if name == "forward-kl":
        return _kl(p, q)
    if name == "reverse-kl":
        return _kl(q, p)
    if name == "js":
        m = beta * p + (1 - beta) * q
        return beta * _kl(p, m) + (1 - beta) * _kl(q, m)
    if name == "skewed-forward-kl":
        return _kl(p, skew * p + (1 - skew) * q)
    if name == "skewed-reverse-kl":
        return _kl(q, skew * q + (1 - skew) * p)
    if name == "tvd":
        return 0.5 * float(np.abs(p - q).sum())
    inner = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    return -float(inner.sum()) / (a * b)


def lm_kd_loss(seen: Seen, **params: Any) -> Said:
    said = seen.extra["said"][0]
    kd = np.zeros(seen.student.shape[:2])
    for b, t in np.ndindex(*kd.shape):
        if said["valid"][b, t]:
            p, q = _classes(seen.student[b, t], said, b, t)
            kd[b, t] = _divergence(
                params["divergence"], p, q, params["beta"], params["skew"], params["ab_alpha"], params["ab_beta"]
            )
    alpha = params["alpha"]
    return {"kd": alpha * kd, **({"ce": (1 - alpha) * _ce(seen)} if alpha < 1 else {})}


def uld_loss(seen: Seen, *, weight: float, top_k: int, align: str) -> Said:
    said = seen.extra["said"][0]
    out = np.zeros(seen.student.shape[:2])
    for b, t in np.ndindex(*out.shape):
        if said["valid"][b, t]:
            p = np.sort(np.exp(said["logp"][b, t]))[::-1]
            q = np.sort(_softmax(seen.student[b, t]))[::-1][: len(p)]
            out[b, t] = np.abs(p - q).sum() + abs(math.exp(said["tail"][b, t]) - (1 - q.sum()))
    return {"ce": _ce(seen), "uld": weight * out}


def fusechat_loss(seen: Seen, *, lm_weight: float, **params: Any) -> Said:
    said = seen.extra["said"][0]
    fusion = np.zeros(seen.student.shape[:2])
    for b, t in np.ndindex(*fusion.shape):
        if said["valid"][b, t]:
            kept = [i for i in range(said["ids"].shape[-1]) if said["logp"][b, t, i] > -np.inf]
            p = _softmax(np.array([said["logp"][b, t, i] for i in kept]))
            logs = np.log(_softmax(seen.student[b, t]))
            fusion[b, t] = -sum(a * logs[int(said["ids"][b, t, i])] for a, i in zip(p, kept, strict=True))
    return {"lm": lm_weight * _ce(seen), "fusion": (1 - lm_weight) * fusion}


def _graph(rows: list[dict[int, float]]) -> Array:
    """The mean edge weights of a graph over its active nodes, by making the whole matrix."""
    nodes = sorted({i for row in rows for i in row})
    c = np.zeros((len(nodes), len(nodes)))
    for row in rows:
        z = np.array([row.get(i, 0.0) for i in nodes])
        c += np.outer(z, z) / len(rows)
    return c.mean(axis=1)


def _standardised(values: Array) -> Array:
    return (values - values.min()) / np.std(values)


def _transport(a: Array, b: Array, power: float, steps: int = 0) -> float:
    """One-dimensional transport by cutting both quantile functions into n * m equal pieces."""
    n, m = len(a), len(b)
    fine_a, fine_b = np.repeat(np.sort(a), m), np.repeat(np.sort(b), n)
    return float((np.abs(fine_a - fine_b) ** power).mean())


def infigfusion_loss(seen: Seen, *, uld: float, gld_share: float, top_k: int, power: float, **params: Any) -> Said:
    assert seen.labels is not None
    counts = seen.labels != -100
    places = list(zip(*np.nonzero(counts), strict=True))
    best = [np.argsort(-seen.student[b, t])[:top_k] for b, t in places]
    theirs = [
        [
            dict(zip(ids.tolist(), _standardised(z).tolist(), strict=True))
            for ids, z in zip(graph["ids"], graph["logits"], strict=True)
        ]
        for graph in seen.extra["graphs"]
    ]

    def graphs_differ(student: Array) -> float:
        rows = [_standardised(student[b, t][top]) for (b, t), top in zip(places, best, strict=True)]
        mine = _graph([dict(zip(top.tolist(), row.tolist(), strict=True)) for top, row in zip(best, rows, strict=True)])
        return float(np.mean([_transport(mine, _graph(other), power) for other in theirs]))

    ulds = np.zeros(counts.shape)
    for said in seen.extra["said"]:
        for b, t in np.ndindex(*counts.shape):
            if said["valid"][b, t]:
                z = np.sort(seen.student[b, t])[::-1][:top_k]
                p = np.sort(_softmax((said["logp"][b, t] - said["logp"][b, t].mean()) / said["logp"][b, t].std()))[::-1]
                q = np.sort(_softmax((z - z.mean()) / z.std()))[::-1]
                ulds[b, t] += np.abs(p - q).sum() / len(seen.extra["said"])
    ce, gld = _ce(seen), graphs_differ(seen.student)
    pulls: list[list[float]] = [[], []]  # of the cross entropy, exactly; of the graph term, by differences
    for (b, t), top in zip(places, best, strict=True):
        p = _softmax(seen.student[b, t])
        p[seen.labels[b, t]] -= 1
        pulls[0] += (p / len(places)).tolist()
        for i in top:
            sides = []
            for h in (1e-5, -1e-5):
                moved = seen.student.copy()
                moved[b, t, i] += h
                sides.append(graphs_differ(moved))
            pulls[1].append((sides[0] - sides[1]) / 2e-5)
    scale = gld_share * float(np.linalg.norm(pulls[0]) / np.linalg.norm(pulls[1]))
    return {"ce": ce, "uld": uld * ulds, "gld": np.where(counts, scale * gld, 0.0)}


def knfu_loss(seen: Seen, **params: Any) -> Said:
    """The first round: each client's cross entropy on its own rows, its mean counted as if it were alone."""
    assert seen.labels is not None
    owner = seen.extra["owner"]
    local = np.zeros(len(owner))
    for b, n in enumerate(owner):
        alone = sum(o == n for o in owner)
        local[b] = -math.log(_softmax(seen.student[b])[seen.labels[b]]) * len(owner) / alone
    return {"local": local, "tune": np.zeros(len(owner))}


def gkd_loss(seen: Seen, *, beta: float, tau: float, **params: Any) -> Said:
    assert seen.labels is not None
    out = np.zeros(seen.labels.shape)
    for b, t in np.ndindex(*out.shape):
        if seen.labels[b, t] != -100:
            p, q = _softmax(seen.teachers[0][b, t] / tau), _softmax(seen.student[b, t] / tau)
            out[b, t] = tau**2 * _divergence("js", p, q, beta, 0, 0, 0)
    return {"kd": out}


def seqkd_loss(seen: Seen, **params: Any) -> Said:
    return {"ce": _ce(seen)}


def dpo_loss(seen: Seen, *, objective: str, beta: float, candidates: int, **params: Any) -> Said:
    labels, out = seen.extra["words"], []
    for b in range(len(labels) // candidates):
        total, mean = [], []
        for n in range(b * candidates, (b + 1) * candidates):
            logs = [math.log(_softmax(seen.student[n, t])[y]) for t, y in enumerate(labels[n]) if y != -100]
            total.append(sum(logs) - float(seen.extra["reference"][n]))
            mean.append(sum(logs) / len(logs))
        if objective == "dpo":
            out.append(math.log(1 + math.exp(-beta * (total[0] - total[-1]))))
        else:
            out.append(-sum(mean[k] - math.log(sum(math.exp(m) for m in mean[k:])) for k in range(candidates - 1)))
    return {objective: np.array(out)}
