"""Six published distillations once more: slow, obvious, float64, one sample or token at a time.

An oracle takes what the method saw (:class:`tests.oracles.seen.Seen`) and the method's own parameters by name, and gives
the weighted loss terms by name, one number per sample.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.oracles import losses_oracle as losses
from tests.oracles.seen import Array, Seen


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _hard(seen: Seen) -> Array:
    assert seen.labels is not None
    return np.array([-math.log(losses.softmax(z)[y]) for z, y in zip(seen.student, seen.labels, strict=True)])


def _soft(seen: Seen, tau: float) -> Array:
    return np.array([losses.forward_kl(s, t, tau) for s, t in zip(seen.student, seen.teachers[0], strict=True)])


# -- TGeo-KD ---------------------------------------------------------------------------------------------------------


def geometry(s: Array, t: Array, label: int, mean: Array, features: str = "full") -> Array:
    """Hu et al. 2024, section 3.2, one sample: corners S, T, G, M and the squares of M-S, G-S, T-S, T-G, M-G."""
    p, q, g = losses.softmax(s), losses.softmax(t), np.eye(len(s))[label]
    edges = [(mean - p) ** 2, (g - p) ** 2, (q - p) ** 2, (q - g) ** 2, (mean - g) ** 2]
    if features == "norms":
        return np.array([e.sum() for e in edges])
    return np.concatenate({"full": [p, q, g, mean, *edges], "vertices": [p, q, g, mean], "edges": edges}[features])


def tgeo_loss(seen: Seen, *, tau: float, features: str, **_: Any) -> dict[str, Array]:
    assert seen.labels is not None
    net, ratios = seen.modules["fusion"], []
    depth = sorted({int(name.split(".")[0]) for name in net})
    for s, t, y in zip(seen.student, seen.teachers[0], seen.labels, strict=True):
        x = geometry(s, t, int(y), seen.tensors["class_means"][y], features)
        for layer in depth:
            x = net[f"{layer}.weight"] @ x + net[f"{layer}.bias"]
            if layer != depth[-1]:
                x = np.array([v if v > 0 else 0.01 * v for v in x])
        ratios.append(sigmoid(float(x[0])))
    alpha = np.array(ratios)
    return {"kd": alpha * _soft(seen, tau), "ce": (1 - alpha) * _hard(seen)}


# -- MIX-KD ----------------------------------------------------------------------------------------------------------


def mix_loss(seen: Seen, *, alpha: float, gamma: float, rescale: str, tau: float, **_: Any) -> dict[str, Array]:
    """Choi et al. 2023: both sides over their own unbiased deviation, labels mixed from the recorded plan."""
    assert seen.labels is not None
    eye, share, first, second = np.eye(seen.student.shape[1]), *(seen.extra[k] for k in ("share", "first", "second"))
    kd, ce = [], []
    for i, (s, t) in enumerate(zip(seen.student, seen.teachers[0], strict=True)):
        target = share[i] * eye[seen.labels[first[i]]] + (1 - share[i]) * eye[seen.labels[second[i]]]
        if rescale == "std":
            s, t = (z / (1e-7 + z.std(ddof=1)) for z in (s, t))
        kd.append(losses.forward_kl(s, t, 1.0 if rescale == "std" else tau))
        ce.append(losses.cross_entropy(s, target, 0.0))
    watched = np.zeros(len(kd))
    return {
        "kd": alpha * np.array(kd),
        "ce": gamma * np.array(ce),
        "teacher_entropy": watched,
        "student_entropy": watched,
    }


# -- TRG -------------------------------------------------------------------------------------------------------------


def adjacency(tokens: Array, k: int, sigma: float, neighbours: Array | None = None) -> Array:
    """A_ij = exp(-||T_i - T_j||^2 / (2 sigma)) if i is among the k nearest of j (Zhang et al. 2023)."""
    count = len(tokens)
    found = np.zeros((count, count))
    for j in range(count):
        distance = [((tokens[i] - tokens[j]) ** 2).sum() if i != j else math.inf for i in range(count)]
        near = np.argsort(distance, kind="stable")[:k] if neighbours is None else np.flatnonzero(neighbours[:, j])
        for i in near:
            found[i, j] = math.exp(-((tokens[i] - tokens[j]) ** 2).sum() / (2 * sigma))
    return found


def graph_divergence(student: Array, teacher: Array) -> Array:
    """KL(student || teacher) of every row, zeros included."""
    return np.array([losses.kl(losses.softmax(a), losses.softmax(b)) for a, b in zip(student, teacher, strict=True)])


def contextual(s: Array, t: Array) -> float:
    """Mean squared difference of softmax_row(F F^T / sqrt(D)), one image."""
    rows = [np.array([losses.softmax(r) for r in f @ f.T / math.sqrt(f.shape[1])]) for f in (s, t)]
    return float(((rows[0] - rows[1]) ** 2).mean())


def cross_nce(student: Array, teacher: Array, tau: float) -> Array:
    """Each student token must find the teacher's token of the same place among all."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher))
    similarity = a @ b.T / tau
    return np.array([-math.log(losses.softmax(row)[i]) for i, row in enumerate(similarity)])


def trg_loss(seen: Seen, *, ce: float, kd: float, tau: float, inner: float, local: float, contrast: float, k: int, sigma: float,
             tau_high: float, tau_low: float, **_: Any) -> dict[str, Array]:  # fmt: skip
    s, t, places = seen.features["tokens"], seen.teacher_features[0]["tokens"], seen.extra["places"]
    ours, theirs = (np.concatenate([image[p] for image, p in zip(x, places, strict=True)]) for x in (s, t))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (ours, theirs)]
    per_token = graph_divergence(adjacency(unit[0], k, sigma), adjacency(unit[1], k, sigma))
    done = seen.step / (seen.steps - 1)
    temperature = tau_low + (tau_high - tau_low) * (1 + math.cos(math.pi * done)) / 2
    projected = [
        x @ seen.modules[m]["weight"].T for x, m in ((ours, "student_projection"), (theirs, "teacher_projection"))
    ]
    found = cross_nce(*projected, temperature)
    return {
        "inner": inner * s.shape[1] * np.array([contextual(a, b) for a, b in zip(s, t, strict=True)]),
        "local": local * per_token.reshape(len(s), -1).mean(axis=1),
        "global": contrast * found.reshape(len(s), -1).mean(axis=1),
        "kd": kd * _soft(seen, tau),
        "ce": ce * _hard(seen),
    }


# -- KD3 -------------------------------------------------------------------------------------------------------------


def mix_distribution(x: Array, share: Array, partner: Array) -> Array:
    """Tang et al. 2023: own content, statistics between the own and the partner's, per image and channel."""
    found = np.zeros_like(x)
    for i in range(len(x)):
        for c in range(x.shape[1]):
            own, other = x[i, c], x[partner[i], c]
            mu, mu_other = own.mean(), other.mean()
            sd, sd_other = (math.sqrt(v.var(ddof=1) + 1e-6) for v in (own, other))
            mixed_sd, mixed_mu = (share[i] * a + (1 - share[i]) * b for a, b in ((sd, sd_other), (mu, mu_other)))
            found[i, c] = (own - mu) / sd * mixed_sd + mixed_mu
    return found


def nt_xent(a: Array, b: Array, temperature: float) -> Array:
    e = np.concatenate([a, b])
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    count, half = len(e), len(a)
    anchors = []
    for i in range(count):
        scores = [float(e[i] @ e[j]) / temperature for j in range(count) if j != i]
        positive = float(e[i] @ e[(i + half) % count]) / temperature
        anchors.append(math.log(sum(math.exp(v) for v in scores)) - positive)
    return np.array([(anchors[i] + anchors[i + half]) / 2 for i in range(half)])


def kd3_loss(seen: Seen, *, contrast: float, temperature: float, **_: Any) -> dict[str, Array]:
    ours, theirs = seen.features, seen.teacher_features[0]
    weight = [sigmoid(math.sqrt(((a - b) ** 2).sum())) for a, b in zip(seen.student, seen.teachers[0], strict=True)]
    feature = [((a - b) ** 2).mean() for a, b in zip(ours["features"], theirs["features"], strict=True)]
    sides = []
    for side, name in ((ours, "student_embedding"), (theirs, "teacher_embedding")):
        net = seen.modules[name]
        sides.append(nt_xent(*(side[v] @ net["weight"].T + net["bias"] for v in ("vector", "perturbed")), temperature))
    return {"features": np.array(weight) * np.array(feature), "contrast": contrast * (sides[0] + sides[1])}


# -- DHKD ------------------------------------------------------------------------------------------------------------


def dhkd_loss(seen: Seen, *, tau: float, weight: float, ce: float, **_: Any) -> dict[str, Array]:
    """Yang et al. 2025 with a linear auxiliary head: tau^2 sum_k KL(Bern(1/2) || Bern(sigmoid((u - z_t) / tau)))."""
    net, found = seen.modules["auxiliary"], []
    for h, t in zip(seen.features["penultimate"], seen.teachers[0], strict=True):
        u = net["weight"] @ h + net["bias"]
        q = [sigmoid((a - b) / tau) for a, b in zip(u, t, strict=True)]
        found.append(tau**2 * sum(0.5 * math.log(0.5 / v) + 0.5 * math.log(0.5 / (1 - v)) for v in q))
    return {"ce": ce * _hard(seen), "aux": weight * np.array(found)}


# -- ND-KD -----------------------------------------------------------------------------------------------------------


def norm_direction(s: Array, t: Array, centre: Array) -> float:
    e = centre / np.linalg.norm(centre)
    return 1 - float(s @ e) / max(float(np.linalg.norm(s)), float(np.linalg.norm(t)))


def nd_loss(
    seen: Seen, *, nd: float, kd: float, ce: float, tau: float, warmup_epochs: int, **_: Any
) -> dict[str, Array]:
    """Wang et al. 2023 on plain KD."""
    assert seen.labels is not None
    pairs = zip(seen.features["penultimate"], seen.teacher_features[0]["penultimate"], seen.labels, strict=True)
    found = np.array([norm_direction(s, t, seen.tensors["class_means"][y]) for s, t, y in pairs])
    ramp = min(1.0, seen.epoch / warmup_epochs) if warmup_epochs else 1.0
    watched = np.zeros(len(found))
    return {
        "ce": ce * _hard(seen),
        "nd": nd * found,
        "base": kd * ramp * _soft(seen, tau),
        "norm": watched,
        "cosine": watched,
    }
