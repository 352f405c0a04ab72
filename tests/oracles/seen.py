"""What a distillation oracle is shown: the views of one batch as float64 NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """One batch of B samples and K classes (or L tokens and V words).

    Attributes:
        positions: rows of the table [B]. student: logits [B, K]. teachers: theirs. labels: [B] or None. soft: probabilities
            [B, K] that replace labels, or None.
        features, teacher_features: by layer name. extra: what the method's ``batch`` hook put there.
        modules: extra modules' parameters and buffers by name. tensors: the run's further state.
        epoch, step: counted from 0. epochs, steps: how many there will be.
    """

    positions: NDArray[np.int64]
    student: Array
    teachers: Sequence[Array]
    labels: NDArray[np.int64] | None
    soft: Array | None = None
    features: Mapping[str, Array] = field(default_factory=dict)
    teacher_features: Sequence[Mapping[str, Array]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=dict)
    epoch: int = 0
    epochs: int = 1
    step: int = 0
    steps: int = 1
