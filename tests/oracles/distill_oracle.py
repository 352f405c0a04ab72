"""Distillation losses once more: slow, obvious, float64, one sample at a time.

An oracle takes what the method saw (:class:`tests.oracles.seen.Seen`) and the method's own parameters by name, and gives
the weighted loss terms by name, one number per sample; or one array, the sum of all terms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles import losses_oracle as losses
from tests.oracles.seen import Array, Seen


def _hard(seen: Seen, smoothing: float = 0.0) -> Array:
    assert seen.labels is not None
    eye = np.eye(seen.student.shape[-1])
    return np.array(
        [losses.cross_entropy(z, eye[y], smoothing) for z, y in zip(seen.student, seen.labels, strict=True)]
    )


def ce_loss(seen: Seen, **_: Any) -> dict[str, Array]:
    return {"ce": _hard(seen)}


def smoothed_loss(seen: Seen, *, eps: float, **_: Any) -> dict[str, Array]:
    return {"ce": _hard(seen, eps)}


def kd_loss(seen: Seen, *, alpha: float, tau: float, **_: Any) -> dict[str, Array]:
    """Hinton et al. 2015, section 2."""
    soft = [losses.forward_kl(s, t, tau) for s, t in zip(seen.student, seen.teachers[0], strict=True)]
    return {"kd": alpha * np.array(soft), "ce": (1 - alpha) * _hard(seen)}


def ensemble_loss(seen: Seen, *, alpha: float, tau: float, mean: str, teacher_weights: list[float] | None, **_: Any) -> dict[str, Array]:  # fmt: skip
    """Hinton et al. 2015, section 5: the arithmetic or the geometric mean of the teachers' probabilities."""
    shares = np.array(teacher_weights or [1.0] * len(seen.teachers))
    shares = shares / shares.sum()
    terms = []
    for row, s in enumerate(seen.student):
        said = np.array([losses.softmax(t[row], tau) for t in seen.teachers])
        target = shares @ said if mean == "probabilities" else np.exp(shares @ np.log(said))
        terms.append(tau**2 * losses.kl(target / target.sum(), losses.softmax(s, tau)))
    return {"kd": alpha * np.array(terms), "ce": (1 - alpha) * _hard(seen)}
