"""Arithmetic that merge methods share: sign election, masks, and geometry in the space that the models span.

A spherical mean or a geometric median of a few large tensors is a linear combination of them. Its coefficients follow from the
tensors' inner products alone, so such methods read every tensor once for its inner products and once to combine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from interfuse.core.lazy import lazy
from interfuse.data.weights import Flat

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

#: coefficients or inner products, float64
Numbers = NDArray[np.float64]

_TINY = 1e-38


class Computed:
    """A tensor that is never stored: a function, element by element, of others that are read with it."""

    def __init__(self, sources: Sequence[Flat], function: Callable[[list[Tensor]], Tensor]) -> None:
        self.sources, self.function = sources, function

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensors' shape."""
        return self.sources[0].shape

    def read(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` of the result, float32 [stop - start]."""
        values = self.function([source.read(start, stop) for source in self.sources])
        return values if out is None else out.copy_(values)


def disjoint_mean(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    normalize: bool = True,
    ballots: Sequence[float] | None = None,
) -> Tensor:
    """The weighted sum over models whose change is not 0 and has the elected sign, divided by their weights if ``normalize``.

    The elected sign of an element is that of the weighted sum of its changes, + for a sum of 0 (Yadav et al. 2023, section 4.2).
    Returns 0 where no model agrees. A negative weight turns a model's change around before the election. Overwrites ``deltas``.
    Written without comparisons and selections: on processors those take ten times as long as sums.

    Args:
        deltas: float32, equal shapes.
        weights: one per model.
        normalize: divide by the magnitudes of the weights of those that agree.
        ballots: weights of the election, when they are not ``weights``.
    """
    votes = list(weights) if ballots is None else list(ballots)
    sign = deltas[0] * votes[0]
    for delta, vote in zip(deltas[1:], votes[1:], strict=True):
        sign.add_(delta, alpha=vote)
    sign.sign_().mul_(2.0).add_(1.0).sign_()  # +1 for sums from 0 on, -1 below
    total: Tensor | None = None
    count: Tensor | None = None
    for delta, weight in zip(deltas, weights, strict=True):
        size = abs(weight)
        if size == 0.0:
            continue
        # its magnitude where it has the elected sign, else 0
        agrees = delta.mul_(sign if weight > 0 else -sign).clamp_(min=0.0)
        if total is None:
            count = agrees.sign().mul_(size) if normalize else None
            total = agrees if size == 1.0 else agrees.mul_(size)
            continue
        total.add_(agrees, alpha=size)
        if count is not None:
            count.add_(agrees.sign_(), alpha=size)
    if total is None:
        return torch.zeros_like(sign)
    if count is not None:
        total.div_(count.clamp_(min=_TINY))  # where no model agrees the sum is 0 as well
    return total.mul_(sign)


def slerp_weights(
    dot: float, norm_a: float, norm_b: float, t: float, *, parallel: float = 0.9995
) -> tuple[float, float]:
    """Coefficients of spherical interpolation between two vectors (Shoemake 1985): the angle is that of the directions, the
    coefficients apply to the vectors themselves; plain interpolation when nearly parallel or one is 0."""
    cosine = dot / (norm_a * norm_b) if norm_a > 0 and norm_b > 0 else 1.0
    cosine = max(-1.0, min(1.0, cosine))
    angle = math.acos(cosine)
    if abs(cosine) > parallel or math.sin(angle) == 0.0:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _direction(gram: Numbers, coefficients: Numbers) -> Numbers:
    norm = math.sqrt(max(float(coefficients @ gram @ coefficients), 0.0))
    return coefficients / norm if norm > 0 else coefficients


def _log(gram: Numbers, at: Numbers, to: Numbers) -> Numbers:
    """The tangent at ``at`` that points to ``to``, both unit vectors given by coefficients."""
    cosine = min(max(float(at @ gram @ to), -1.0), 1.0)
    angle = math.acos(cosine)
    return (to - cosine * at) * (angle / math.sin(angle) if math.sin(angle) > 1e-12 else 1.0)


def _exp(gram: Numbers, at: Numbers, tangent: Numbers) -> Numbers:
    size = math.sqrt(max(float(tangent @ gram @ tangent), 0.0))
    if size < 1e-15:
        return at
    return _direction(gram, math.cos(size) * at + math.sin(size) / size * tangent)


def spherical_mean(gram: Numbers, weights: Sequence[float], *, steps: int = 1, tolerance: float = 1e-12) -> Numbers:
    """Coefficients of a weighted mean of directions on the sphere, times the weighted mean of the norms.

    Args:
        gram: inner products of the vectors, float64 [m, m]. weights: they are divided by their sum.
        steps: 1 is one step in the tangent space of the normalised weighted mean; many steps are the Karcher mean.
        tolerance: stop when a step is shorter (radians).

    Returns:
        float64 [m]. Vectors of norm 0 do not count.
    """
    share = np.array(weights, dtype=np.float64)
    norms = np.sqrt(np.diagonal(gram))
    share = np.where(norms > 0, share, 0.0)
    if not float(share.sum()):
        return np.zeros_like(share)
    share = share / share.sum()
    units = np.diag(np.where(norms > 0, 1.0 / np.where(norms > 0, norms, 1.0), 0.0))
    mean = _direction(gram, share @ units)
    for _ in range(steps):
        tangents = [w * _log(gram, mean, unit) for w, unit in zip(share.tolist(), units, strict=True) if w]
        tangent = np.stack(tangents).sum(0)
        mean = _exp(gram, mean, tangent)
        if float(tangent @ gram @ tangent) < tolerance**2:
            break
    return mean * float((share * norms).sum())


def median_weights(gram: Numbers, weights: Sequence[float], *, steps: int = 200, tolerance: float = 1e-10) -> Numbers:
    """Coefficients of the weighted geometric median by Weiszfeld's iteration (1937); they sum to 1.

    Args:
        gram: inner products of the vectors *minus one common point* (any), float64 [m, m]: with the point among them distances
            of nearby models keep their digits.
        tolerance: stop when no coefficient changes by more.
    """
    share = np.array(weights, dtype=np.float64)
    z = share / share.sum()
    scale = float(np.diagonal(gram).max()) or 1.0
    for _ in range(steps):
        squares = np.diagonal(gram) - 2 * gram @ z + z @ gram @ z
        at = squares <= 1e-24 * scale
        if bool(at.any()):  # the iterate is one of the models: it stays if that model outweighs the pull of the others
            distances = np.sqrt(np.where(at, 1.0, np.maximum(squares, 0.0)))
            pull = np.where(at, 0.0, share / distances)
            direction = pull - pull.sum() * z
            if math.sqrt(max(float(direction @ gram @ direction), 0.0)) <= float(share[at].sum()):
                return z
            new = pull / pull.sum()
            new = 0.5 * (new + z)
        else:
            inverse = share / np.sqrt(squares)
            new = inverse / inverse.sum()
        if float(np.abs(new - z).max()) < tolerance:
            return new
        z = new
    return z
