"""Dropping parts of task vectors: by magnitude (TIES) and at random (DARE). Shared by the room's sparse methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.data.weights import Flat
from interfuse.kit.reductions import Threshold, blocks, magnitude_thresholds
from interfuse.merge.room import Part, PerModel, Whole, per_model


def trim_thresholds(whole: Whole, densities: Sequence[float]) -> list[Threshold]:
    """The cut that keeps the given share of each task vector by magnitude; at least one element is kept, none where the share is 0.

    Raises:
        InterfuseError: ``param.value`` for a density outside [0, 1].
    """
    size = math.prod(whole.shape)
    return [
        magnitude_thresholds([delta], share_of(size, d))[0] for delta, d in zip(whole.deltas(), densities, strict=True)
    ]


def share_of(size: int, density: float) -> int:
    """How many of ``size`` elements a density keeps: at least one, none where it is 0.

    Raises:
        InterfuseError: ``param.value`` when it is outside [0, 1].
    """
    return min(size, max(1, int(density * size))) if checked_density(density) else 0


def checked_density(density: float) -> float:
    """The density itself.

    Raises:
        InterfuseError: ``param.value`` when it is outside [0, 1].
    """
    if not 0 <= density <= 1:
        raise InterfuseError("param.value", f"density = {density}: it is the share kept, from 0 to 1")
    return density


def l1_factors(deltas: Sequence[Flat], cut: Callable[[int, Tensor, int], object], rescale: str) -> list[float]:
    """What the kept elements of each task vector are multiplied by: the ratio of its sums of magnitudes before and after, for
    ``rescale`` l1; else 1. One more reading.

    Args:
        cut: sets what is dropped to zero in place; gets the model's number, a piece, and the piece's first flat index.
    """
    if rescale != "l1":
        return [1.0] * len(deltas)
    found = []
    for i, delta in enumerate(deltas):
        before = after = 0.0
        for start, (values,) in blocks([delta]):
            before += float(values.abs().sum(dtype=torch.float64))
            cut(i, values, start)
            after += float(values.abs().sum(dtype=torch.float64))
        found.append(before / after if after > 0 else 1.0)
    return found


def kept_and_trimmed(owns: Sequence[Mapping[str, Any]], same: bool) -> list[str]:
    """A line for the report that says what a density means: papers and tools give either the share kept or the share dropped.

    Args:
        owns: the parameters of every tensor, each combination once.
    """
    found = [d for own in owns for d in (own["density"] if isinstance(own["density"], list) else [own["density"]])]
    least, most = min(found, default=1.0), max(found, default=1.0)
    if least == most:
        return [f"density {most:.4g}: of every task vector {most:.4g} is kept, {1 - most:.4g} is trimmed"]
    return [
        f"density {least:.4g} to {most:.4g}: of task vectors {least:.4g} to {most:.4g} is kept, {1 - most:.4g} to {1 - least:.4g} is trimmed"
    ]


#: Elements of a tensor whose masks are kept, one bit each, from the reading that sums them to the one that merges.
_MASKED = 1 << 28


class Dropped(NamedTuple):
    """What is known of a tensor's random masks before they are used.

    Attributes:
        factors: what the kept elements are multiplied by, one per model.
        masks: one bit per element and model where they were drawn already, else None: they are drawn again, the same.
    """

    factors: list[float]
    masks: list[NDArray[np.uint8] | None]

    def kept(self, part: Part, model: int, density: float) -> NDArray[np.bool_]:
        """The mask of a model in a block."""
        mask, size = self.masks[model], part.models[model].numel()
        if mask is None:
            return part.kept(model, density)
        skip = part.start % 8
        bits = np.unpackbits(mask[part.start // 8 : -(-(part.start + size) // 8)], count=skip + size)
        return bits[skip:].view(np.bool_).reshape(part.models[model].shape)


def drop_random(part: Part, densities: Sequence[float]) -> list[Tensor]:
    """Task vectors with each element kept with probability ``density`` and multiplied by the model's factor in ``part.facts``."""
    dropped: Dropped = part.facts
    keep = [dropped.kept(part, i, d) if d < 1 else None for i, d in enumerate(densities)]
    deltas = part.deltas()
    for delta, mask, factor in zip(deltas, keep, dropped.factors, strict=True):
        if mask is not None:
            numbers = delta.numpy()
            np.multiply(numbers, mask, out=numbers)
            delta.mul_(factor)
    return deltas


def dropped(whole: Whole, *, density: PerModel, rescale: str, **_: Any) -> Dropped:
    """Prepares dropping at random: what the kept elements are multiplied by: 1/density, or the ratio of the sums of magnitudes before and after, or 1."""
    found: list[float] = []
    masks: list[NDArray[np.uint8] | None] = []
    small = math.prod(whole.shape) <= _MASKED
    for i, (delta, share) in enumerate(
        zip(whole.deltas(), per_model(density, len(whole.models), "density"), strict=True)
    ):
        checked_density(share)
        if rescale != "l1" or share in (0, 1):
            found.append(1.0 / share if rescale == "inverse" and share else 1.0)
            masks.append(None)
            continue
        before = after = 0.0
        drawn = []
        for start, (values,) in blocks([delta]):
            sizes = values.abs_()
            before += float(sizes.sum(dtype=torch.float64))
            numbers = sizes.numpy()
            mask = whole.kept(i, start, start + numbers.size, share)
            if small:
                drawn.append(np.packbits(mask))
            np.multiply(numbers, mask, out=numbers)
            after += float(sizes.sum(dtype=torch.float64))
        found.append(before / after if after > 0 else 1.0)
        masks.append(np.concatenate(drawn) if drawn else None)
    return Dropped(found, masks)
