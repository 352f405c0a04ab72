"""OFA-KD, BD-KD, Fantastic Gains, HARD and DisWOT once more: slow, obvious, float64, one sample at a time.

Form and rules as in ``distill_oracle.py``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.oracles import losses_oracle as losses
from tests.oracles.seen import Array, Seen


def _hard(logits: Array, labels: Any) -> Array:
    return np.array([-math.log(losses.softmax(z)[y]) for z, y in zip(logits, labels, strict=True)])


# -- OFA-KD ------------------------------------------------------------------------------------------------------------


def adaptive(s: Array, t: Array, y: int, eps: float, tau: float, form: str) -> float:
    """The adaptive target loss of one sample (section 3 of the paper; ``code``: as the authors train)."""
    p, q = losses.softmax(t, tau), losses.softmax(s, tau)
    total = 0.0
    for c in range(len(p)):
        if form == "code":
            weight = (1 + p[c]) ** eps - 1 if c == y else p[c] ** eps
        else:
            weight = (1 + p[c]) ** eps if c == y else p[c]
        total -= weight * math.log(q[c])
    return total


def light_exit(feature: Array, weights: Any) -> Array:
    """LayerNorm at every place, mean over places, Linear, GELU, Linear: one feature [C, H, W], [N, D] or [D]."""
    places = {1: lambda f: f[None], 2: lambda f: f, 3: lambda f: f.reshape(f.shape[0], -1).T}[feature.ndim](feature)
    rows = []
    for place in places:
        centred = place - place.mean()
        rows.append(centred / math.sqrt((centred**2).mean() + 1e-5) * weights["norm.weight"] + weights["norm.bias"])
    hidden = weights["head.0.weight"] @ np.mean(rows, axis=0) + weights["head.0.bias"]
    active = np.array([h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
    out: Array = weights["head.2.weight"] @ active + weights["head.2.bias"]
    return out


def ofa_loss(seen: Seen, *, eps: Any, tau: float, form: str, w_gt: float, w_kd: float, w_ofa: float, **_: Any) -> dict[str, Array]:  # fmt: skip
    """Step 3 of the card, with light exits."""
    assert seen.labels is not None
    exponents = eps if isinstance(eps, list) else [eps] * (len(seen.features) + 1)

    def rows(logits: Any, e: float) -> Array:
        triples = zip(logits, seen.teachers[0], seen.labels, strict=True)  # type: ignore[arg-type]
        return np.array([adaptive(s, t, int(y), e, tau, form) for s, t, y in triples])

    said = {"ce": w_gt * _hard(seen.student, seen.labels), "ofa": w_kd * rows(seen.student, exponents[-1])}
    for k, feature in enumerate(seen.features.values(), start=1):
        logits = [light_exit(f, seen.modules[f"exit_{k}"]) for f in feature]
        said[f"exit_{k}"] = w_ofa * rows(logits, exponents[k - 1])
        said[f"right_{k}"] = np.zeros(len(seen.labels))
    return said


# -- BD-KD -------------------------------------------------------------------------------------------------------------


def bd_loss(seen: Seen, *, delta: float, rule: str, tau: float, weight: float, ce: float, **_: Any) -> dict[str, Array]:
    """Steps 1 to 3 of the card, for one teacher or several."""
    assert seen.labels is not None
    count, size = len(seen.teachers), len(seen.student)
    said = {"ce": ce * _hard(seen.student, seen.labels)}
    for k, teacher in enumerate(seen.teachers):
        forward, reverse = np.zeros(size), np.zeros(size)
        for i in range(size):
            s, t = seen.student[i], teacher[i]
            less_certain = losses.entropy(s, tau) >= losses.entropy(t, tau)
            v, u = {"balance": (1.0, delta) if less_certain else (delta, 1.0),
                    "flipped": (delta, 1.0) if less_certain else (1.0, delta),
                    "fixed": (1.0, 1.0), "forward": (1.0, 0.0), "reverse": (0.0, 1.0)}[rule]  # fmt: skip
            forward[i] = weight * v * losses.forward_kl(s, t, tau) / count
            reverse[i] = weight * u * losses.reverse_kl(s, t, tau) / count
        said |= {f"forward_{k}": forward, f"reverse_{k}": reverse, f"less_certain_{k}": np.zeros(size)}
        others = [seen.student] + [t for j, t in enumerate(seen.teachers) if j != k]
        pulls = [[losses.forward_kl(own, other, tau) for own, other in zip(teacher, o, strict=True)] for o in others]
        said |= {f"teacher_ce_{k}": _hard(teacher, seen.labels), f"teacher_kl_{k}": weight * np.mean(pulls, axis=0)}
    return said


# -- Fantastic Gains -----------------------------------------------------------------------------------------------------


def gains_loss(seen: Seen, *, partition: str, alpha: float, tau: float, top_k: int, **_: Any) -> dict[str, Array]:
    """Step 2 of the card, all teachers in parallel, without scaled temperatures."""
    assert seen.labels is not None
    transfer = []
    for i, s in enumerate(seen.student):
        copy, y = seen.extra["copy"][i], int(seen.labels[i])

        def sure(z: Array, y: int = y) -> float:
            p = losses.softmax(z)
            return float(p.max() if partition == "unsupervised" else p[y])

        source = copy
        for teacher in seen.teachers:
            if sure(teacher[i]) > sure(source):
                source = teacher[i]
        keep = np.argsort(-source, kind="stable")[: top_k or None]
        transfer.append(alpha * losses.forward_kl(s[keep], source[keep], tau))
    said = {"transfer": np.array(transfer), "from_teacher": np.zeros(len(transfer))}
    return said | ({"ce": (1 - alpha) * _hard(seen.student, seen.labels)} if alpha < 1 else {})


# -- HARD ------------------------------------------------------------------------------------------------------------


def hard_loss(seen: Seen, *, distance: str, tau: float, clean: float, ce: float, **_: Any) -> dict[str, Array]:
    """The student's phase: the distance on unchanged and on changed inputs."""

    def rows(first: Array, second: Array) -> Array:
        if distance == "mse":
            return np.array(
                [sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for a, b in zip(first, second, strict=True)]
            )
        return np.array([losses.forward_kl(s, t, tau) for t, s in zip(first, second, strict=True)])

    said = {
        "kd": clean * rows(seen.teachers[0], seen.student),
        "hard": rows(seen.extra["teacher"], seen.extra["student"]),
    }
    said["teacher_change"] = np.zeros(len(seen.student))
    return said | ({"ce": ce * _hard(seen.student, seen.labels)} if ce else {})


def affine_image(image: Array, quantities: Array) -> Array:
    """One image [H, W] moved by (shift x, shift y, angle, log scale, shear), place by place, bilinear, zeros outside."""
    height, width = image.shape
    dx, dy, angle, log_scale, shear = quantities
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            # from the middle, in pixels; shear, rotate and scale back, then shift
            x, y = column + 0.5 - width / 2, row + 0.5 - height / 2
            turned = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
            back = turned @ np.array([[1.0, 0.0], [math.tan(shear), 1.0]])
            sx, sy = math.exp(-log_scale) * back @ np.array([x, y]) - np.array([dx * width, dy * height])
            c, r = sx + width / 2 - 0.5, sy + height / 2 - 0.5
            for rr in (math.floor(r), math.floor(r) + 1):
                for cc in (math.floor(c), math.floor(c) + 1):
                    if 0 <= rr < height and 0 <= cc < width:
                        out[row, column] += (1 - abs(r - rr)) * (1 - abs(c - cc)) * image[rr, cc]
    return out


# -- DisWOT ----------------------------------------------------------------------------------------------------------


def _rows_normalised(table: Array) -> Array:
    out = np.zeros_like(table)
    for i, row in enumerate(table):
        length = math.sqrt(sum(v * v for v in row))
        out[i] = row / length if length else 0.0
    return out


def relation(teacher: Array, student: Array) -> float:
    """M_r from features [B, D]."""
    b = len(teacher)
    difference = _rows_normalised(teacher @ teacher.T) - _rows_normalised(student @ student.T)
    return -sum(float(v) ** 2 for v in difference.ravel()) / b**2


def semantic(teacher: Array, student: Array) -> float:
    """M_s by channel from gradients [K, d], with the d x d matrices written out."""
    k, d = teacher.shape
    total = 0.0
    for g, h in zip(teacher, student, strict=True):
        difference = _rows_normalised(np.outer(g, g)) - _rows_normalised(np.outer(h, h))
        total += sum(float(v) ** 2 for v in difference.ravel())
    return -total / (d * k)


def icc(teacher: Array, student: Array) -> float:
    """ICKD of one sample [C, H, W]."""
    e = [_rows_normalised(f.reshape(len(f), -1) @ f.reshape(len(f), -1).T) for f in (teacher, student)]
    return sum(float(v) ** 2 for v in (e[0] - e[1]).ravel()) / len(teacher)


def diswot_loss(seen: Seen, *, alpha: float, tau: float, sp: float, ickd: float, **_: Any) -> dict[str, Array]:
    """The training of the chosen student, features of the last layer, widths alike."""
    kd = [losses.forward_kl(s, t, tau) for s, t in zip(seen.student, seen.teachers[0], strict=True)]
    student, teacher = list(seen.features.values())[-1], list(seen.teacher_features[0].values())[-1]
    b = len(student)
    grams = [_rows_normalised(f.reshape(b, -1) @ f.reshape(b, -1).T) for f in (student, teacher)]
    shares = np.array([sum(float(v) ** 2 for v in row) / b for row in grams[0] - grams[1]])
    return {
        "kd": alpha * np.array(kd),
        "ce": (1 - alpha) * _hard(seen.student, seen.labels),
        "sp": sp * shares,
        "ickd": ickd * np.array([icc(t, s) for t, s in zip(teacher, student, strict=True)]),
    }
