"""Complementary knowledge of two classifiers: who is right where the other is wrong, in which classes, and what arrived.

Source: Roth et al. 2024 (Fantastic Gains and Where to Find Them), sections 3 and 4. Plain functions from arrays to numbers;
``labels``, ``student``, ``teacher``, ``before``, ``after`` are class numbers [n].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from interfuse.kit.calibration import checked_labels, flips
from interfuse.kit.stats import checked_same_length


@dataclass(frozen=True, slots=True)
class Complement:
    """What a teacher knows and a student does not.

    Attributes:
        n: items. rho_pos: share with the student wrong and the teacher right. rho_neg: the reverse;
            ``accuracy_teacher - accuracy_student = rho_pos - rho_neg``.
        per_class: positive flips of every class. entropy: of their distribution over classes, in nats (0 without flips).
        expertise: share of flips -> the classes, most flips first, that together hold at least that share of them.
    """

    n: int
    rho_pos: float
    rho_neg: float
    accuracy_teacher: float
    accuracy_student: float
    per_class: tuple[int, ...]
    entropy: float
    expertise: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a transfer did to a student.

    Attributes:
        delta: change of accuracy = gain - loss. gain: share of items wrong before and right after. loss: the reverse.
        rate: of the items that the teacher could have taught (student wrong before, teacher right), the share right after; NaN
            when there are none.
        transferable: the number of those items.
    """

    delta: float
    gain: float
    loss: float
    rate: float
    transferable: int


def complement(
    student: ArrayLike, teacher: ArrayLike, labels: ArrayLike, classes: int,
    shares: tuple[float, ...] = (0.02, 0.05, 0.2, 0.5),
) -> Complement:  # fmt: skip
    """Positive and negative flips of a teacher against a student, and the classes in which it is the expert.

    Raises:
        InterfuseError: ``input.shape``, ``input.empty``, ``input.nan`` or ``param.value`` for arrays that are no class numbers of
            one length.
    """
    found = flips(student, teacher, labels)
    s, t, y = checked_labels(student), checked_labels(teacher), checked_labels(labels, classes)
    counts = np.bincount(y[(t == y) & (s != y)], minlength=classes)
    part = counts[counts > 0] / max(counts.sum(), 1)
    order = sorted(range(classes), key=lambda c: (-int(counts[c]), c))
    held = np.cumsum(counts[order])
    expertise = {
        f"{share:g}": tuple(order[: int(np.searchsorted(held, math.ceil(share * held[-1]))) + 1]) if held[-1] else ()
        for share in shares
    }
    return Complement(found.n, found.positive_rate, found.negative_rate, found.accuracy, found.baseline_accuracy,
                      tuple(int(c) for c in counts), float(0 - (part * np.log(part)).sum()), expertise)  # fmt: skip


def transferred(before: ArrayLike, after: ArrayLike, teacher: ArrayLike, labels: ArrayLike) -> Transfer:
    """Gain, loss and transfer rate of a student that was ``before`` and is ``after``.

    Raises:
        InterfuseError: as :func:`complement`.
    """
    found = flips(before, after, labels)
    b, a, t, y = (checked_labels(v) for v in (before, after, teacher, labels))
    checked_same_length(t, y, "teacher and labels")
    could = (b != y) & (t == y)
    rate = float((a[could] == y[could]).mean()) if could.any() else math.nan
    return Transfer(found.accuracy - found.baseline_accuracy, found.positive_rate, found.negative_rate, rate, int(could.sum()))  # fmt: skip
