"""Where a series changes its course: piecewise linear fits chosen by BIC, and lags between series."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interfuse.core.errors import InterfuseError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Course:
    """A continuous piecewise linear fit.

    Attributes:
        breaks: places (indices of the series) where the slope changes. slopes: per segment, units per step.
        fitted: [N]. bic: of the fit; lower is better.
    """

    breaks: tuple[int, ...]
    slopes: tuple[float, ...]
    fitted: Floats
    bic: float


def course(values: ArrayLike, *, most: int = 2, least: int = 3) -> Course:
    """The continuous piecewise linear fit of at most ``most`` breaks with the lowest BIC (every placement is tried).

    A break counts as three parameters, its slope, its place, and one more for having searched for the place (Zhang and Siegmund 2007).

    Args:
        least: points between two breaks, and before the first and after the last.

    Raises:
        InterfuseError: ``input.empty`` for a series of fewer than three points, ``input.nan``.
    """
    y = np.asarray(values, dtype=np.float64)
    if len(y) < 3:
        raise InterfuseError("input.empty", f"a series of {len(y)} points has no course")
    if not np.isfinite(y).all():
        raise InterfuseError("input.nan", "the series holds something that is not a number")
    x, best = np.arange(len(y), dtype=np.float64), None
    scale = max(float(np.var(y)), 1e-300)
    for count in range(most + 1):
        for breaks in itertools.combinations(range(least, len(y) - least), count):
            if any(b - a < least for a, b in itertools.pairwise(breaks)):
                continue
            design = np.stack([np.ones_like(x), x, *(np.maximum(x - b, 0) for b in breaks)], axis=1)
            weights, *_ = np.linalg.lstsq(design, y, rcond=None)
            fitted = design @ weights
            error = max(float(((y - fitted) ** 2).mean()), 1e-12 * scale)
            bic = len(y) * np.log(error) + (2 + 3 * count) * np.log(len(y))
            if best is None or bic < best.bic - 1e-9:
                best = Course(breaks, tuple(float(v) for v in np.cumsum(weights[1:])), fitted, float(bic))
    assert best is not None
    return best


def lag(first: ArrayLike, second: ArrayLike, most: int | None = None) -> tuple[int, float]:
    """By how many steps the second series follows the first: the shift with the highest correlation of their differences.

    Returns:
        The shift (positive: the second comes later) and the correlation there; (0, 0) when either does not change.
    """
    a, b = np.diff(np.asarray(first, dtype=np.float64)), np.diff(np.asarray(second, dtype=np.float64))
    reach = min(most if most is not None else len(a) // 2, len(a) - 3)
    best = (0, 0.0)
    for shift in sorted(range(-max(reach, 0), max(reach, 0) + 1), key=abs):
        x, y = (a[: len(a) - shift], b[shift:]) if shift >= 0 else (a[-shift:], b[: len(b) + shift])
        if len(x) < 3 or x.std() < 1e-12 or y.std() < 1e-12:
            continue
        value = float(np.corrcoef(x, y)[0, 1])
        if value > best[1] + 1e-12:
            best = (shift, value)
    return best
