"""The classical distillation losses once more: NumPy, float64, loops over samples, pairs, places and negatives.

As in ``distill_oracle.py``: what the method saw and its parameters go in, weighted terms by name come out, one number per
sample. Layers are paired here by their order; the cases name as many on either side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.oracles import distill_oracle
from tests.oracles import losses_oracle as losses
from tests.oracles.seen import Array, Seen

Said = dict[str, Array]


def _hard(seen: Seen, logits: Array | None = None) -> Array:
    assert seen.labels is not None
    z = seen.student if logits is None else logits
    eye = np.eye(z.shape[-1])
    return np.array([losses.cross_entropy(row, eye[y], 0.0) for row, y in zip(z, seen.labels, strict=True)])


def _layers(seen: Seen) -> list[tuple[Array, Array]]:
    return list(zip(seen.features.values(), seen.teacher_features[0].values(), strict=True))


# -- features of unlike shapes ------------------------------------------------------------------------------------------


def _leading(tokens: int) -> int:
    return next(k for k in (0, 1, 2, 5) if tokens > k and round((tokens - k) ** 0.5) ** 2 == tokens - k)


def _map(x: Array) -> Array:
    """[B, C, H, W] from a map, from tokens without their leading ones, or from a vector as one place."""
    if x.ndim == 4:
        return x
    if x.ndim == 2:
        return x[:, :, None, None]
    places = x[:, _leading(x.shape[1]) :]
    side = round(places.shape[1] ** 0.5)
    return np.stack([p.T.reshape(x.shape[2], side, side) for p in places])


def _cells(size: int, out: int) -> list[slice]:
    """Which rows an adaptive average covers."""
    return [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _pool(x: Array, height: int, width: int) -> Array:
    rows, columns = _cells(x.shape[2], height), _cells(x.shape[3], width)
    return np.stack([np.stack([x[:, :, r, c].mean(axis=(2, 3)) for c in columns], axis=-1) for r in rows], axis=-2)


def _nearest(x: Array, height: int, width: int) -> Array:
    rows = [i * x.shape[2] // height for i in range(height)]
    columns = [i * x.shape[3] // width for i in range(width)]
    return x[:, :, rows][:, :, :, columns]


def _linear(x: Array, weights: Mapping[str, Array]) -> Array:
    """Over the last dimension."""
    found: Array = x @ weights["linear.weight"].T + weights["linear.bias"]
    return found


# -- methods ------------------------------------------------------------------------------------------------------------


def fitnets_loss(seen: Seen, *, weight: float, label_weight: float, **_: Any) -> Said:
    """Romero et al. 2015, equation 3: a map of the student against tokens of the teacher of as many places."""
    total = np.zeros(len(seen.student))
    for k, (student, teacher) in enumerate(_layers(seen), start=1):
        leading = _leading(teacher.shape[1])
        for row, (s, t) in enumerate(zip(_map(student), teacher, strict=True)):
            places = [_linear(s[:, i, j], seen.modules[f"regressor_{k}"]) for i, j in np.ndindex(s.shape[1:])]
            tokens = [np.mean(places, axis=0)] * leading + places
            total[row] += np.mean([(a - b) ** 2 for a, b in zip(tokens, t, strict=True)])
    return {"hint": weight * total, "ce": label_weight * _hard(seen)}


def at_loss(seen: Seen, *, weight: float, p: float, label_weight: float, **_: Any) -> Said:
    """Zagoruyko & Komodakis 2017, section 3.1."""
    total = np.zeros(len(seen.student))
    for student, teacher in _layers(seen):
        s, t = _map(student), _map(teacher)
        size = min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3])
        s, t = _pool(s, *size), _pool(t, *size)
        total += [losses.attention_transfer(a, b, p) for a, b in zip(s, t, strict=True)]
    return {"at": weight * total, "ce": label_weight * _hard(seen)}


def sp_loss(seen: Seen, *, weight: float, label_weight: float, **_: Any) -> Said:
    """Tung & Mori 2019, section 3: row i of the table over B."""
    rows = len(seen.student)
    total = np.zeros(rows)
    for pair in _layers(seen):
        tables = []
        for x in pair:
            flat = x.reshape(rows, -1)
            gram = [[float(a @ b) for b in flat] for a in flat]
            tables.append(np.array([np.array(r) / np.linalg.norm(r) for r in gram]))
        total += [sum((tables[0][i] - tables[1][i]) ** 2) / rows for i in range(rows)]
    return {"sp": weight * total, "ce": label_weight * _hard(seen)}


def rkd_loss(seen: Seen, *, distance_weight: float, angle_weight: float, label_weight: float, **_: Any) -> Said:
    """Park et al. 2019, section 3: pairs from i, triangles with their corner at i."""
    rows = len(seen.student)
    everyone = range(rows)
    distance, angle = np.zeros(rows), np.zeros(rows)

    def cosine(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[j] - x[i], x[k] - x[i]
        size = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / size) if size > 0 else 0.0

    for pair in _layers(seen):
        s, t = (x.reshape(rows, -1) for x in pair)
        lengths = [np.array([[np.linalg.norm(a - b) for b in x] for a in x]) for x in (s, t)]
        lengths = [d / (d.sum() / (rows * (rows - 1))) for d in lengths]
        for i in everyone:
            distance[i] += np.mean([losses.huber(lengths[0][i, j] - lengths[1][i, j]) for j in everyone])
            angle[i] += np.mean([losses.huber(cosine(s, i, j, k) - cosine(t, i, j, k)) for j in everyone for k in everyone])  # fmt: skip
    return {"distance": distance_weight * distance, "angle": angle_weight * angle, "ce": label_weight * _hard(seen)}


def _ramp(seen: Seen, warmup_epochs: int) -> float:
    return min((seen.epoch + 1) / warmup_epochs, 1.0) if warmup_epochs else 1.0


def dkd_loss(seen: Seen, *, alpha: float, beta: float, tau: float, warmup_epochs: int, label_weight: float, **_: Any) -> Said:  # fmt: skip
    """Zhao et al. 2022, equation 7."""
    assert seen.labels is not None
    rows = list(zip(seen.student, seen.teachers[0], seen.labels, strict=True))
    ramp = _ramp(seen, warmup_epochs)
    return {
        "tckd": ramp * np.array([losses.dkd(s, t, int(y), tau, alpha, 0.0) for s, t, y in rows]),
        "nckd": ramp * np.array([losses.dkd(s, t, int(y), tau, 0.0, beta) for s, t, y in rows]),
        "ce": label_weight * _hard(seen),
    }


def dist_loss(seen: Seen, *, beta: float, gamma: float, tau: float, label_weight: float, **_: Any) -> Said:
    """Huang et al. 2022, section 4. A class's correlation is a sum over samples: each gets its summand."""
    q = np.array([losses.softmax(z, tau) for z in seen.student])
    p = np.array([losses.softmax(z, tau) for z in seen.teachers[0]])
    rows, classes = q.shape
    inter = [1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(rows)]
    intra = np.ones(rows)
    for c in range(classes):
        a, b = q[:, c] - q[:, c].mean(), p[:, c] - p[:, c].mean()
        intra -= rows / classes * a * b / (np.linalg.norm(a) * np.linalg.norm(b))
    return {
        "inter": beta * tau**2 * np.array(inter),
        "intra": gamma * tau**2 * intra,
        "ce": label_weight * _hard(seen),
    }


def standardised_loss(seen: Seen, *, weight: float, tau: float, label_weight: float, **_: Any) -> Said:
    """Sun et al. 2024, algorithm 1."""

    def score(z: Array) -> Array:
        found: Array = (z - z.mean()) / (1e-7 + z.std(ddof=1))
        return found

    soft = [losses.forward_kl(score(s), score(t), tau) for s, t in zip(seen.student, seen.teachers[0], strict=True)]
    return {"kd": weight * np.array(soft), "ce": label_weight * _hard(seen)}


def dml_loss(seen: Seen, *, weight: float, tau: float, **_: Any) -> Said:
    """Zhang et al. 2018, section 3: every network learns the labels and the mean of what its peers say."""
    networks = [seen.student, *seen.teachers]
    said: Said = {}
    for k, mine in enumerate(networks):
        end = f"_peer_{k}" if k else ""
        said[f"ce{end}"] = _hard(seen, mine)
        rest = [z for j, z in enumerate(networks) if j != k]
        kl = [[losses.forward_kl(s, t, tau) for s, t in zip(mine, other, strict=True)] for other in rest]
        said[f"kl{end}"] = weight * np.mean(kl, axis=0)
    return said


def _unit_rows(x: Array) -> Array:
    return np.array([r / np.linalg.norm(r) for r in x])


def crd_loss(seen: Seen, *, weight: float, tau: float, negatives: str, label_weight: float, **_: Any) -> Said:
    """Tian et al. 2020, equation 18, on the first batch (which sets the two constants); or InfoNCE both ways."""
    ((student, teacher),) = _layers(seen)
    s = _unit_rows(_linear(student, seen.modules["embed_student"]))
    t = _unit_rows(_linear(teacher, seen.modules["embed_teacher"]))
    total = np.zeros(len(s))
    if negatives == "in-batch":
        assert seen.labels is not None
        for a, b in ((s, t), (t, s)):
            for i, anchor in enumerate(a):
                others = [j for j in range(len(b)) if j == i or seen.labels[j] != seen.labels[i]]
                scores = [np.exp(anchor @ b[j] / tau) for j in others]
                total[i] -= np.log(np.exp(anchor @ b[i] / tau) / sum(scores))
        return {"crd": weight * total, "ce": label_weight * _hard(seen)}
    drawn = np.asarray(seen.extra["negatives"])
    for anchors, bank in ((s, seen.modules["memory"]["teacher"]), (t, seen.modules["memory"]["student"])):
        rows, count = len(bank), drawn.shape[1]
        table = np.array([
            [np.exp(anchor @ bank[j] / tau) for j in [position, *others]]
            for anchor, position, others in zip(anchors, seen.positions, drawn, strict=True)
        ])  # fmt: skip
        scores = table / (table.mean() * rows)
        noise = count / rows
        for i, row in enumerate(scores):
            total[i] -= np.log(row[0] / (row[0] + noise + 1e-7))
            total[i] -= sum(np.log(noise / (x + noise + 1e-7)) for x in row[1:])
    return {"crd": weight * total, "ce": label_weight * _hard(seen)}


# -- knowledge review ---------------------------------------------------------------------------------------------------


def _convolve(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """[B, C, H, W] with [O, C, k, k], padded to keep the size."""
    half = kernel.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)))
    out = np.zeros((len(x), len(kernel), *x.shape[2:]))
    for i, j in np.ndindex(x.shape[2:]):
        window = padded[:, :, i : i + kernel.shape[2], j : j + kernel.shape[3]]
        out[:, :, i, j] = np.tensordot(window, kernel, axes=([1, 2, 3], [1, 2, 3]))
    return out if bias is None else out + bias[None, :, None, None]


def _normalise(x: Array, weight: Array, bias: Array) -> Array:
    """Batch normalisation in training."""
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        out[:, c] = (x[:, c] - x[:, c].mean()) / np.sqrt(x[:, c].var() + 1e-5) * weight[c] + bias[c]
    return out


def review_loss(seen: Seen, *, weight: float, warmup_epochs: int, label_weight: float, **_: Any) -> Said:
    """Chen et al. 2021, section 3."""
    total, deeper = np.zeros(len(seen.student)), None
    layers = [(_map(s), _map(t)) for s, t in _layers(seen)]
    for k in range(len(layers), 0, -1):
        student, teacher = layers[k - 1]
        w = seen.modules[f"fusion_{k}"]
        x = _normalise(_convolve(student, w["reduce.0.weight"]), w["reduce.1.weight"], w["reduce.1.bias"])
        if deeper is not None:
            y = _nearest(deeper, *x.shape[2:])
            both = _convolve(np.concatenate([x, y], axis=1), w["attention.weight"], w["attention.bias"])
            share = 1 / (1 + np.exp(-both))
            x = share[:, :1] * x + share[:, 1:] * y
        deeper = _nearest(x, *teacher.shape[2:])
        out = _normalise(_convolve(deeper, w["expand.0.weight"]), w["expand.1.weight"], w["expand.1.bias"])
        weights, parts = [1.0], [((out - teacher) ** 2).mean(axis=(1, 2, 3))]
        for side in (4, 2, 1):
            if side < teacher.shape[2]:
                weights.append(weights[-1] / 2)
                parts.append(((_pool(out, side, side) - _pool(teacher, side, side)) ** 2).mean(axis=(1, 2, 3)))
        total += sum(a * b for a, b in zip(weights, parts, strict=True)) / sum(weights)
    return {"review": _ramp(seen, warmup_epochs) * weight * total, "ce": label_weight * _hard(seen)}


def kdcl_loss(seen: Seen, *, target: str, weight: float, tau: float, **_: Any) -> Said:
    """Guo et al. 2020, section 3.2: every network learns the labels and one target made of all networks."""
    assert seen.labels is not None
    assert target == "min-logit"
    networks = [seen.student, *seen.teachers]
    wanted = []
    for i, y in enumerate(seen.labels):
        wanted.append([min(z[i][c] - z[i][y] for z in networks) for c in range(len(seen.student[i]))])
    said: Said = {}
    for k, mine in enumerate(networks):
        end = f"_peer_{k}" if k else ""
        said[f"ce{end}"] = _hard(seen, mine)
        said[f"kl{end}"] = weight * np.array(
            [losses.forward_kl(s, np.array(t), tau) for s, t in zip(mine, wanted, strict=True)]
        )
    return said


def composed_loss(seen: Seen, *, parts: Any, **_: Any) -> Said:
    """KD at weight 1 and the distances of RKD at weight 2, by the oracles of both."""
    assert [p["use"] for p in parts] == ["kd", "rkd"]
    kd = distill_oracle.kd_loss(seen, alpha=0.9, tau=parts[0]["tau"])
    rkd = rkd_loss(seen, distance_weight=25.0, angle_weight=0.0, label_weight=0.0)
    said = {f"kd:{name}": value for name, value in kd.items()}
    return {**said, "rkd:distance": parts[1]["weight"] * rkd["distance"]}
