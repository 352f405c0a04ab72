"""Every merge method once more: NumPy, whole tensors, sorting where the library streams. After the papers' equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.oracles.seen import Array

State = dict[str, Array]
Draw = Callable[[int, str], Array]


def _list(value: Any, count: int) -> list[float]:
    return list(value) if isinstance(value, list) else [value] * count


def _deltas(models: Sequence[State], base: State, name: str) -> list[Array]:
    """Task vectors of the stored (float32) numbers, as the files hold them."""
    return [(m[name].astype(np.float32) - base[name].astype(np.float32)).astype(np.float64) for m in models]


def _top(x: Array, keep: int) -> Array:
    """Whether an element is among the ``keep`` largest magnitudes; of equals the earlier."""
    order = np.argsort(-np.abs(x).ravel(), kind="stable")
    mask = np.zeros(x.size, dtype=bool)
    mask[order[:keep]] = True
    return mask.reshape(x.shape)


def _elected_mean(deltas: Sequence[Array], weights: Sequence[float], normalize: bool) -> Array:
    changes = [w * d for w, d in zip(weights, deltas, strict=True)]
    sign = np.where(sum(changes) >= 0, 1, -1)
    total, count = np.zeros(deltas[0].shape), np.zeros(deltas[0].shape)
    for change, weight in zip(changes, weights, strict=True):
        agrees = (np.sign(change) == sign).astype(float)
        total += change * agrees
        count += abs(weight) * agrees
    return np.where(count > 0, total / np.where(count > 0, count, 1), 0) if normalize else total


def _kept(size: int, density: float) -> int:
    return min(size, max(1, int(density * size))) if density else 0


def _restored(kept: Array, delta: Array, rescale: str) -> Array:
    """What is kept of a change, scaled to the sum of magnitudes of the whole change."""
    l1 = np.abs(kept).sum()
    return kept * (np.abs(delta).sum() / l1) if rescale == "l1" and l1 else kept


def ties_merge(models: Sequence[State], base: State, *, density: Any, weight: Any, scale: float, normalize: bool, trim_scope: str = "tensor", rescale: str = "none") -> State:  # fmt: skip
    densities, weights = _list(density, len(models)), _list(weight, len(models))
    groups = [list(base)] if trim_scope == "model" else [[name] for name in base]  # each is trimmed as one long vector
    out = {}
    for names in groups:
        masks = []
        for i, density in enumerate(densities):
            vector = np.concatenate([_deltas(models, base, name)[i].ravel() for name in names])
            top = _top(vector, _kept(vector.size, density))
            masks.append(
                dict(zip(names, np.split(top, np.cumsum([base[name].size for name in names])[:-1]), strict=True))
            )
        for name in names:
            deltas = _deltas(models, base, name)
            trimmed = [
                _restored(d * mask[name].reshape(d.shape), d, rescale) for d, mask in zip(deltas, masks, strict=True)
            ]
            out[name] = base[name] + scale * _elected_mean(trimmed, weights, normalize)
    return out


def _dare(models: Sequence[State], base: State, name: str, densities: Sequence[float], rescale: str, draw: Draw) -> list[Array]:  # fmt: skip
    found = []
    for i, (delta, density) in enumerate(zip(_deltas(models, base, name), densities, strict=True)):
        kept = delta * (draw(i, name) < density)
        l1 = np.abs(kept).sum()
        factor = {
            "inverse": 1 / density if density else 1.0,
            "l1": np.abs(delta).sum() / l1 if l1 else 1.0,
            "none": 1.0,
        }[rescale]
        found.append(kept * factor)
    return found


def dare_added(models: Sequence[State], base: State, *, density: Any, weight: Any, scale: float, normalize: bool, rescale: str, draw: Draw) -> State:  # fmt: skip
    weights = np.array(_list(weight, len(models)))
    weights = weights / weights.sum() if normalize else weights
    out = {}
    for name, b in base.items():
        deltas = _dare(models, base, name, _list(density, len(models)), rescale, draw)
        out[name] = b + scale * sum(w * d for w, d in zip(weights, deltas, strict=True))
    return out


def dare_elected(models: Sequence[State], base: State, *, density: Any, weight: Any, scale: float, normalize: bool, rescale: str, draw: Draw) -> State:  # fmt: skip
    weights, densities = _list(weight, len(models)), _list(density, len(models))
    return {
        n: b + scale * _elected_mean(_dare(models, base, n, densities, rescale, draw), weights, normalize)
        for n, b in base.items()
    }


def crumbs(models: Sequence[State], base: State, *, density: Any, gamma: Any, weight: Any, scale: float, normalize: bool, elect: bool = False, rescale: str = "none") -> State:  # fmt: skip
    weights = np.array(_list(weight, len(models)))
    weights = weights / weights.sum() if normalize and not elect else weights
    out = {}
    for name, b in base.items():
        total, kept = np.zeros(b.shape), []
        rows = zip(
            _deltas(models, base, name), weights, _list(density, len(models)), _list(gamma, len(models)), strict=True
        )
        for delta, w, keep, top in rows:
            outliers = int(top * delta.size)
            both = _top(delta, outliers + min(_kept(delta.size, keep), delta.size - outliers))
            kept.append(_restored(delta * (both & ~_top(delta, outliers)), delta, rescale))
            total += w * kept[-1]
        out[name] = b + scale * (_elected_mean(kept, list(weights), normalize) if elect else total)
    return out


def magprune(models: Sequence[State], base: State, *, density: Any, epsilon: Any, weight: Any, scale: float, normalize: bool, rescale: str, draw: Draw, elect: bool = True) -> State:  # fmt: skip
    out = {}
    count = len(models)
    for name, b in base.items():
        kept = []
        for i, (delta, keep, spread) in enumerate(zip(_deltas(models, base, name), _list(density, count), _list(epsilon, count), strict=True)):  # fmt: skip
            rows = delta.reshape(-1, delta.shape[-1])
            random = draw(i, name).reshape(rows.shape)
            result = np.zeros(rows.shape)
            for r, row in enumerate(rows if keep else []):
                rank = np.argsort(np.argsort(np.abs(row), kind="stable"), kind="stable") / max(len(row) - 1, 1)
                p = np.float32(keep - spread) + np.float32(2 * spread) * rank.astype(np.float32)
                chosen = row * (random[r] < p)
                l1 = np.abs(chosen).sum()
                factor = {"inverse": 1 / p, "l1": np.abs(row).sum() / l1 if l1 else 1.0, "none": 1.0}[rescale]
                result[r] = chosen * factor
            kept.append(result.reshape(delta.shape))
        weights = np.array(_list(weight, count), dtype=float)
        plain = sum(w * k for w, k in zip(weights / (weights.sum() if normalize else 1), kept, strict=True))
        out[name] = b + scale * (_elected_mean(kept, list(weights), normalize) if elect else plain)
    return out


def select_calculate_erase(
    models: Sequence[State], base: State, *, select_topk: float, select_scope: str, degenerate: str = "keep"
) -> State:
    out = {}
    for name, b in base.items():
        deltas = np.stack(_deltas(models, base, name))
        variance = deltas.var(axis=0).astype(np.float32)
        positive = int((variance > 0).sum())
        everything = select_topk == 1 or (positive == 0 and degenerate == "keep")
        mask = np.ones(b.shape, bool) if everything else _top(variance, int(select_topk * positive))
        energy = ((deltas * mask) ** 2).reshape(len(models), -1).sum(1)
        eta = energy / energy.sum() if energy.sum() > 0 else np.full(len(models), 1 / len(models))
        used = deltas * mask if select_scope == "deltas" else deltas
        majority = np.where(used.sum(0) >= 0, 1, -1)
        agree = np.sign(used) == majority
        weight = np.tensordot(eta, agree.astype(float), 1)
        total = np.tensordot(eta, used * agree, 1)
        out[name] = b + np.where(weight > 0, total / np.where(weight > 0, weight, 1), 0)
    return out


def variation_ratio(models: Sequence[State], base: State, *, statistic: str, granularity: str) -> State:
    out = {}
    for name, b in base.items():
        deltas = np.stack(_deltas(models, base, name))
        size = deltas**2 if statistic == "square" else np.abs(deltas)
        energy = size if granularity == "element" else size.reshape(len(models), -1).mean(1).reshape(-1, *[1] * b.ndim)
        total = energy.sum(0, keepdims=True)
        w = np.where(total > 0, energy / np.where(total > 0, total, 1), 1 / len(models))
        out[name] = sum(wi * m[name] for wi, m in zip(np.broadcast_to(w, deltas.shape), models, strict=True))
    return out


def stock(models: Sequence[State], base: State, *, filter_wise: bool = False) -> State:
    out, n = {}, len(models)
    for name, b in base.items():
        if filter_wise and b.ndim > 1:
            rows = [dict(enumerate(s[name].reshape(-1, b.shape[-1]))) for s in (*models, base)]
            out[name] = np.stack([*stock(rows[:-1], rows[-1]).values()]).reshape(b.shape)
            continue
        flat = [d.ravel() for d in _deltas(models, base, name)]
        norms = [np.linalg.norm(d) for d in flat]
        cosines = [
            flat[i] @ flat[j] / (norms[i] * norms[j]) if norms[i] * norms[j] else 0 for i in range(n) for j in range(i)
        ]
        cos = float(np.clip(np.mean(cosines), 0, 1))
        t = n * cos / (1 + (n - 1) * cos)
        out[name] = t * sum(m[name] for m in models) / n + (1 - t) * b
    return out


def _slerp(a: Array, b: Array, t: float, bound: float) -> Array:
    na, nb = np.linalg.norm(a), np.linalg.norm(b)
    cos = float(np.clip((a / na).ravel() @ (b / nb).ravel(), -1, 1)) if na and nb else 1.0
    angle = np.arccos(cos)
    if abs(cos) > bound or np.sin(angle) < 1e-8:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def arc(models: Sequence[State], base: State | None, *, t: float) -> State:
    return {name: _slerp(a, models[1][name], t, 0.9995) for name, a in models[0].items()}


def arc_of_rows(models: Sequence[State], base: State | None, *, weight: Any, along: str) -> State:
    w = _list(weight, 2)
    t, out = w[1] / sum(w), {}
    for name in models[0]:
        a, b = _deltas(models, base, name) if base is not None else (m[name] for m in models)
        if along == "tensor" or a.ndim < 2:
            merged = _slerp(a, b, t, 1.0)
        elif along == "row":
            merged = np.stack([_slerp(x, y, t, 1.0) for x, y in zip(a, b, strict=True)])
        else:
            fa, fb = a.reshape(len(a), -1), b.reshape(len(b), -1)
            merged = np.stack([_slerp(x, y, t, 1.0) for x, y in zip(fa.T, fb.T, strict=True)]).T.reshape(a.shape)
        out[name] = merged if base is None else base[name] + merged
    return out


def _on_sphere(vectors: Sequence[Array], weights: Sequence[float], steps: int) -> Array:
    share = np.array(weights, dtype=float)
    norms = np.array([np.linalg.norm(v) for v in vectors])
    share = np.where(norms > 0, share, 0)
    if share.sum() == 0:
        return np.zeros(vectors[0].shape)
    share = share / share.sum()
    units = [v.ravel() / n if n else v.ravel() for v, n in zip(vectors, norms, strict=True)]
    mean = sum(s * u for s, u in zip(share, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    for _ in range(steps):
        tangent = np.zeros(mean.shape)
        for s, u in zip(share, units, strict=True):
            angle = np.arccos(np.clip(u @ mean, -1, 1))
            tangent += s * (u - np.cos(angle) * mean) * (angle / np.sin(angle) if np.sin(angle) > 1e-12 else 1)
        size = np.linalg.norm(tangent)
        if size < 1e-13:
            break
        mean = np.cos(size) * mean + np.sin(size) / size * tangent
        mean = mean / np.linalg.norm(mean)
    return (mean * (share @ norms)).reshape(vectors[0].shape)


def sphere(models: Sequence[State], base: State | None, *, weight: Any, steps: int = 1, normalize: bool = True) -> State:  # fmt: skip
    out = {}
    for name in models[0]:
        vectors = _deltas(models, base, name) if base is not None else [m[name] for m in models]
        weights = _list(weight, len(models))
        mean = _on_sphere(vectors, weights, steps)
        if not normalize:
            mean = mean * sum(w for w, v in zip(weights, vectors, strict=True) if np.any(v))
        out[name] = mean if base is None else base[name] + mean
    return out


def median_point(models: Sequence[State], base: State | None, *, weight: Any, steps: int) -> State:
    out = {}
    for name in models[0]:
        points = np.stack([m[name].ravel() for m in models])
        w = np.array(_list(weight, len(models)), dtype=float)
        z = w @ points / w.sum()
        for _ in range(2000):
            distance = np.linalg.norm(points - z, axis=1)
            if (distance < 1e-14).any():
                break
            new = (w / distance) @ points / (w / distance).sum()
            if np.abs(new - z).max() < 1e-13:
                break
            z = new
        out[name] = z.reshape(models[0][name].shape)
    return out


def clipped_move(models: Sequence[State], base: State | None, *, t: float) -> State:
    out = {}
    for name, a in models[0].items():
        gap = models[1][name] - a
        far = np.abs(gap)
        out[name] = a + np.where(far > 0, np.minimum(1, t / np.where(far > 0, far, 1)), 0) * gap
    return out


def shared_and_own(models: Sequence[State], base: State, *, epsilon: float, r: float, alpha: float) -> State:
    out = {}
    for name, b in base.items():
        deltas = [d.ravel() for d in _deltas(models, base, name)]
        who = [[i for i, d in enumerate(deltas) if abs(d[k]) > epsilon] for k in range(b.size)]
        factors = []
        for i in range(len(models)):
            own = sum(w == [i] for w in who)
            shared = sum(i in w for w in who) - own
            factors.append(1 + r * min(shared / own, alpha) if own else 1.0)
        change = np.zeros(b.size)
        for k, w in enumerate(who):
            if len(w) == 1:
                change[k] = factors[w[0]] * deltas[w[0]][k]
            elif w:
                change[k] = sum(deltas[i][k] for i in w) / len(w)
        out[name] = b + change.reshape(b.shape)
    return out


def standing_out(models: Sequence[State], base: State | None) -> State:
    def log_softmax(x: Array) -> Array:
        x = x - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    out = {}
    for name, a in models[0].items():
        b = models[1][name]
        la, lb = log_softmax(a), log_softmax(b)
        importance = np.abs(b - a) * np.maximum((np.exp(lb) * (lb - la)).sum(-1, keepdims=True), 0)
        q1, q2, q3 = np.quantile(importance, [0.25, 0.5, 0.75])
        out[name] = np.where(importance >= q2 + 1.5 * (q3 - q1), b, a)
    return out


def scaled(models: Sequence[State], base: State | None, *, scale: float) -> State:
    return {name: scale * value for name, value in models[0].items()}


def _polar(x: Array) -> Array:
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v


def singular_tasks(models: Sequence[State], base: State, *, scale: float, svd: str) -> State:
    out, n = {}, len(models)
    for name, b in base.items():
        deltas = _deltas(models, base, name)
        if b.ndim != 2 or min(b.shape) < n:
            out[name] = b + scale * sum(deltas) / n
            continue
        keep = min(b.shape) // n
        parts = [np.linalg.svd(d, full_matrices=False) for d in deltas]
        left, right = np.hstack([p[0][:, :keep] for p in parts]), np.vstack([p[2][:keep] for p in parts])
        out[name] = b + scale * _polar(left) @ np.diag(np.concatenate([p[1][:keep] for p in parts])) @ _polar(right)
    return out


def level_spectrum(models: Sequence[State], base: State, *, scale: float, svd: str) -> State:
    out = {}
    for name, b in base.items():
        deltas = _deltas(models, base, name)
        if b.ndim != 2:
            out[name] = b + scale * sum(deltas) / len(models)
            continue
        u, s, v = np.linalg.svd(sum(deltas), full_matrices=False)
        out[name] = b + scale * s.mean() * u @ v
    return out


def shared_and_exclusive(models: Sequence[State], base: State | None, *, density: float, weight: Any, exclusive_weight: Any, svd: str) -> State:  # fmt: skip
    n = len(models)
    share = np.array(_list(weight, n)) / sum(_list(weight, n))
    extra = _list(1 / n if exclusive_weight is None else exclusive_weight, n)
    out = {}
    for name in models[0]:
        shared = sum(s * m[name] for s, m in zip(share, models, strict=True))
        total = shared.copy()
        for m, w in zip(models, extra, strict=True):
            change = m[name] - shared
            if change.ndim == 2 and density < 1:
                u, s, v = np.linalg.svd(change, full_matrices=False)
                r = int(density * min(change.shape))
                change = u[:, :r] @ np.diag(s[:r]) @ v[:r]
            total = total + w * change
        out[name] = total
    return out


def low_rank_estimate(models: Sequence[State], base: State | None, *, mu: float, scale: float, combine: str, steps: int, svd: str) -> State:  # fmt: skip
    def shrink(x: Array, by: float) -> Array:
        u, s, v = np.linalg.svd(x, full_matrices=False)
        return u @ np.diag(np.maximum(s - by, 0)) @ v

    out = {}
    for name in models[0]:
        thetas = [m[name] for m in models]
        z = sum(thetas) / len(thetas)
        if z.ndim == 2:
            largest = max(np.linalg.norm(t - z, 2) for t in thetas)
            tasks = [np.zeros(z.shape)] * len(thetas)
            for _ in range(steps):
                tasks = [shrink(t - z, mu * largest / 2) for t in thetas]
                z = sum(t - d for t, d in zip(thetas, tasks, strict=True)) / len(thetas)
            z = z + scale * sum(tasks) / (len(tasks) if combine == "mean" else 1)
        out[name] = z
    return out
