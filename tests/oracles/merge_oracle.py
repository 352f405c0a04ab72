"""Merging once more: slow, obvious, float64. Models are dictionaries of arrays by tensor name, and so is the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.oracles.seen import Array

State = dict[str, Array]


def _weights(weight: float | list[float], count: int, normalize: bool) -> list[float]:
    weights = weight if isinstance(weight, list) else [weight] * count
    return [w / sum(weights) for w in weights] if normalize else weights


def average(
    models: Sequence[State], base: State | None, *, weight: float | list[float], normalize: bool, **_: Any
) -> State:
    """Wortsman et al. 2022: the weighted mean."""
    weights = _weights(weight, len(models), normalize)
    return {name: sum(w * m[name] for w, m in zip(weights, models, strict=True)) for name in models[0]}  # type: ignore[misc]


def task_vectors(models: Sequence[State], base: State | None, *, weight: float | list[float], scale: float, normalize: bool, **_: Any) -> State:  # fmt: skip
    """Ilharco et al. 2023, section 2: the base plus the scaled sum of what each fine-tuning changed."""
    assert base is not None
    weights = _weights(weight, len(models), normalize)
    return {
        name: b + scale * sum(w * (m[name] - b) for w, m in zip(weights, models, strict=True))
        for name, b in base.items()
    }
