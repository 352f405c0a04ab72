"""Dropping parts of task vectors: by magnitude (TIES) and at random (DARE). Shared by the room's sparse methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.kit.reductions import Threshold, blocks, magnitude_thresholds
from interfuse.merge.room import Part, Whole


def trim_thresholds(whole: Whole, densities: Sequence[float]) -> list[Threshold]:
    """The cut that keeps the given share of each task vector by magnitude; at least one element is kept.

    Raises:
        InterfuseError: ``param.value`` for a density outside (0, 1].
    """
    size = math.prod(whole.shape)
    return [
        magnitude_thresholds([delta], min(size, max(1, int(checked_density(d) * size))))[0]
        for delta, d in zip(whole.deltas(), densities, strict=True)
    ]


def checked_density(density: float) -> float:
    """The density itself.

    Raises:
        InterfuseError: ``param.value`` when it is outside (0, 1].
    """
    if not 0 < density <= 1:
        raise InterfuseError("param.value", f"density = {density}: it is the share kept, above 0 and at most 1")
    return density


def drop_random(part: Part, densities: Sequence[float]) -> list[Tensor]:
    """Task vectors with each element kept with probability ``density`` and multiplied by the model's factor in ``part.facts``."""
    keep = [part.kept(i, d) if d < 1 else None for i, d in enumerate(densities)]
    deltas = part.deltas()
    for delta, mask, factor in zip(deltas, keep, part.facts, strict=True):
        if mask is not None:
            numbers = delta.numpy()
            np.multiply(numbers, mask, out=numbers)
            delta.mul_(factor)
    return deltas


def l1_factors(whole: Whole, densities: Sequence[float], rescale: str) -> list[float]:
    """What the kept elements are multiplied by: 1/density, or the ratio of the sums of magnitudes before and after, or 1."""
    found = []
    for i, (delta, density) in enumerate(zip(whole.deltas(), densities, strict=True)):
        checked_density(density)
        if rescale != "l1" or density == 1:
            found.append(1.0 / density if rescale == "inverse" else 1.0)
            continue
        before = after = 0.0
        for start, (values,) in blocks([delta]):
            sizes = values.abs_()
            before += float(sizes.double().sum())
            numbers = sizes.numpy()
            np.multiply(numbers, whole.kept(i, start, start + sizes.numel(), density), out=numbers)
            after += float(sizes.double().sum())
        found.append(before / after if after > 0 else 1.0)
    return found
