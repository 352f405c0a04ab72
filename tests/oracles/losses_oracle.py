"""The losses once more: slow, obvious, float64, numpy, one scalar at a time. Rows in, one number per row out."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(z: Array, tau: float = 1.0) -> Array:
    e = np.exp((z - z.max()) / tau)
    return e / e.sum()


def kl(p: Array, q: Array) -> float:
    return sum(float(a) * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def entropy(z: Array, tau: float) -> float:
    return -sum(float(a) * math.log(a) for a in softmax(z, tau))


def cross_entropy(z: Array, target: Array, smoothing: float) -> float:
    q = softmax(z)
    return -sum(((1 - smoothing) * t + smoothing / len(z)) * math.log(b) for t, b in zip(target, q, strict=True))


def forward_kl(s: Array, t: Array, tau: float) -> float:
    return tau**2 * kl(softmax(t, tau), softmax(s, tau))


def reverse_kl(s: Array, t: Array, tau: float) -> float:
    return tau**2 * kl(softmax(s, tau), softmax(t, tau))


def js(s: Array, t: Array, tau: float, beta: float) -> float:
    p, q = softmax(t, tau), softmax(s, tau)
    m = beta * p + (1 - beta) * q
    return tau**2 * (beta * kl(p, m) + (1 - beta) * kl(q, m))


def skew_forward_kl(s: Array, t: Array, tau: float, alpha: float) -> float:
    p, q = softmax(t, tau), softmax(s, tau)
    return tau**2 * kl(p, alpha * p + (1 - alpha) * q)


def skew_reverse_kl(s: Array, t: Array, tau: float, alpha: float) -> float:
    p, q = softmax(t, tau), softmax(s, tau)
    return tau**2 * kl(q, alpha * q + (1 - alpha) * p)


def alpha_beta(s: Array, t: Array, tau: float, a: float, b: float) -> float:
    """The generic case only: a, b and a + b not 0."""
    total = 0.0
    for p, q in zip(softmax(t, tau), softmax(s, tau), strict=True):
        total += p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    return -(tau**2) * total / (a * b)


def total_variation(s: Array, t: Array, tau: float) -> float:
    return 0.5 * sum(abs(a - b) for a, b in zip(softmax(t, tau), softmax(s, tau), strict=True))


def uld(s: Array, t: Array, tau: float) -> float:
    p, q = sorted(softmax(t, tau), reverse=True), sorted(softmax(s, tau), reverse=True)
    width = max(len(p), len(q))
    p, q = p + [0.0] * (width - len(p)), q + [0.0] * (width - len(q))
    return sum(abs(a - b) for a, b in zip(p, q, strict=True))


def dkd(s: Array, t: Array, y: int, tau: float, alpha: float, beta: float) -> float:
    p, q = softmax(t, tau), softmax(s, tau)
    two = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    rest_p, rest_q = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
    return tau**2 * (alpha * two + beta * kl(rest_p, rest_q))


def ofa(s: Array, t: Array, y: int, tau: float, eps: float, form: str) -> float:
    p, q = softmax(t, tau), softmax(s, tau)
    total = 0.0
    for c in range(len(p)):
        hit = c == y
        if form == "code":
            weight = (1 + p[c]) ** eps - 1 if hit else p[c] ** eps
        else:
            weight = (1 + p[c]) ** eps if hit else p[c]
        total -= weight * math.log(q[c])
    return total


def log_cosh(s: Array, t: Array, tau: float) -> float:
    total = 0.0
    for a, b in zip(s, t, strict=True):
        total += kl(
            np.array([0.5, 0.5]), np.array([1 / (1 + math.exp((b - a) / tau)), 1 / (1 + math.exp((a - b) / tau))])
        )
    return tau**2 * total


def binary_kl(s: Array, t: Array, tau: float) -> float:
    total = 0.0
    for a, b in zip(s, t, strict=True):
        p, q = (
            [1 / (1 + math.exp(-x / tau)), 1 / (1 + math.exp(x / tau))] for x in (b, a)
        )  # 1 - p would lose its digits
        total += kl(np.array(p), np.array(q))
    return tau**2 * total


def dist(s: Array, t: Array, tau: float, beta: float, gamma: float) -> float:
    """The published scalar of a batch."""
    q, p = np.array([softmax(row, tau) for row in s]), np.array([softmax(row, tau) for row in t])
    inter = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(len(p))])
    intra = np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(p.shape[1])])
    return float(tau**2 * (beta * inter + gamma * intra))


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def rkd_distance(s: Array, t: Array) -> float:
    """The published scalar of a batch."""
    n = len(s)
    tables = []
    for x in (s, t):
        d = np.array([[np.linalg.norm(x[i] - x[j]) for j in range(n)] for i in range(n)])
        tables.append(d / d[~np.eye(n, dtype=bool)].mean())
    return float(np.mean([huber(tables[0][i, j] - tables[1][i, j]) for i, j in product(range(n), repeat=2)]))


def rkd_angle(s: Array, t: Array) -> float:
    """The published scalar of a batch."""

    def cosine(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[j] - x[i], x[k] - x[i]
        size = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / size) if size > 0 else 0.0

    n = range(len(s))
    return float(np.mean([huber(cosine(s, i, j, k) - cosine(t, i, j, k)) for i in n for j in n for k in n]))


def similarity_preserving(s: Array, t: Array) -> float:
    """The published scalar of a batch."""
    grams = []
    for x in (s, t):
        g = np.array([[a @ b for b in x] for a in x])
        grams.append(np.array([row / np.linalg.norm(row) for row in g]))
    return float(((grams[0] - grams[1]) ** 2).sum() / len(s) ** 2)


def attention_transfer(s: Array, t: Array, p: float) -> float:
    """One sample: maps [C, H, W] of one size."""
    maps = []
    for x in (s, t):
        a = np.array([np.mean([abs(v) ** p for v in x[:, i, j]]) for i, j in np.ndindex(x.shape[1:])])
        maps.append(a / np.linalg.norm(a))
    return float(np.mean((maps[0] - maps[1]) ** 2))


def contextual(s: Array, t: Array) -> float:
    """One sample: tokens [N, D]."""
    tables = [np.array([softmax(np.array([a @ b for b in x]) / math.sqrt(x.shape[1])) for a in x]) for x in (s, t)]
    return float(np.mean((tables[0] - tables[1]) ** 2))


def info_nce(s: Array, t: Array, tau: float) -> Array:
    unit_s, unit_t = (np.array([row / np.linalg.norm(row) for row in x]) for x in (s, t))
    return np.array([-math.log(softmax(unit_t @ a, tau)[i]) for i, a in enumerate(unit_s)])


def linear_cka(x: Array, y: Array) -> float:
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float((np.linalg.norm(x.T @ y) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def hsic_unbiased(x: Array, y: Array) -> float:
    """Song et al. 2012 as the average over all ordered quadruples of different samples (its U-statistic)."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    total, count = 0.0, 0
    for i, j, q, r in product(range(n), repeat=4):
        if len({i, j, q, r}) == 4:
            total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
            count += 1
    return total / count


def norm_direction(s: Array, t: Array, c: Array) -> float:
    return float(1 - s @ (c / np.linalg.norm(c)) / max(np.linalg.norm(s), np.linalg.norm(t)))
