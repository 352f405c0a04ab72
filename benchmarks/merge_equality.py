"""Why values of two merges differ, element by element: every difference gets a cause, what has none is counted.

Both programs compute in float32 and round to bfloat16 once. From the sources and the two results follows, without the other program's code,
what each may have done: its coefficients are those that all of its values allow, its masks those that explain each value.

- slerp: with t = 1/2 a tensor's result is ``c (a + b)``. Every value allows an interval of c; where all intervals of a tensor overlap, one
  coefficient explains all of its values. The exact coefficient (float64) tells whose values are the correctly rounded ones.
- ties, sce: a threshold (of magnitudes, of variances) is one number; elements that equal it may be kept or not, so a value must be one
  of those that keeping or leaving its ties gives. A difference at an element without a tie has no cause.
- dare: any subset of an element's changes may have been dropped. The factor of those kept is the one that the elements with a
  single change allow. Every value must be one that some subset gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from interfuse.data.weights import Weights
from interfuse.kit.merging import Computed
from interfuse.kit.reductions import Difference, gram, magnitude_thresholds

#: elements looked at together: their arrays come from memory that was used before
STEP = 1 << 14
#: elements that a factor is taken from
MANY = 1 << 20
#: float32's rounding of a product and a sum, relative to the terms
FLOAT32 = 2.0**-22
Array = NDArray[Any]


def keys(stored: Array) -> Array:
    """bfloat16 bit patterns [n] as whole numbers in the order of the values; both zeros are 0."""
    size = (stored & 0x7FFF).astype(np.int32)
    return np.where(stored >= 0x8000, -size, size)


def values(key: Array) -> Array:
    """The numbers of keys, float64 [n]."""
    size = np.abs(key).astype(np.uint32) << 16
    return np.where(key < 0, -1.0, 1.0) * size.view(np.float32)


def rounded(numbers: Array) -> Array:
    """Keys of float32 numbers rounded to bfloat16, ties to even."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    return keys(((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16))


def floats(stored: Array) -> Array:
    """float32 numbers of bfloat16 bit patterns."""
    return (stored.astype(np.uint32) << 16).view(np.float32)


@dataclass
class Account:
    """What was found over all elements."""

    elements: int = 0
    different: int = 0
    unexplained: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)

    def cause(self, name: str, count: int) -> None:
        """Adds differing elements to a cause."""
        self.causes[name] = self.causes.get(name, 0) + int(count)

    def note(self, name: str, count: float) -> None:
        """Adds to a count that is no difference."""
        self.others[name] = self.others.get(name, 0) + count

    def most(self, name: str, value: float) -> None:
        """Keeps the largest."""
        self.others[name] = max(self.others.get(name, 0.0), value)

    def told(self) -> dict[str, Any]:
        """As the results' file has it."""
        return {
            "elements": self.elements,
            "different": self.different,
            "causes": self.causes,
            "unexplained": self.unexplained,
            **self.others,
        }


class Sides:
    """Sources and both results of one merge, read in pieces.

    Args:
        root: the folder with base, a and b. ours, theirs: the merged models.
    """

    def __init__(self, root: Path, ours: Path, theirs: Path) -> None:
        self.base, self.a, self.b = (Weights.open(root / n) for n in ("base", "a", "b"))
        self.ours, self.theirs = Weights.open(ours), Weights.open(theirs)

    def pieces(self, name: str, *which: Weights) -> Iterator[tuple[int, list[Array]]]:
        """First index and stored bit patterns of some models' tensor."""
        size = self.ours[name].numel
        for start in range(0, size, STEP):
            stop = min(start + STEP, size)
            yield start, [self._stored(w, name, start, stop) for w in which]

    @staticmethod
    def _stored(weights: Weights, name: str, start: int, stop: int) -> Array:
        found = weights.mapped(weights[name], start, stop)
        if found is None:
            found = np.empty(stop - start, dtype=np.uint16)
            weights.read_bytes(weights[name], 2 * start, found.data.cast("B"))
        return np.array(found)


def bounds(key: Array) -> tuple[Array, Array]:
    """Between which numbers a value was rounded to each key, float64 [n] twice."""
    here = values(key)
    return (values(key - 1) + here) / 2, (here + values(key + 1)) / 2


def slerp(sides: Sides) -> Account:
    """One coefficient per tensor and program explains every value."""
    account = Account()
    for name in sides.ours:
        products = gram([sides.a.source(name), sides.b.source(name)])
        cosine = products[0, 1] / math.sqrt(products[0, 0] * products[1, 1])
        exact = 0.5 if abs(cosine) > 0.9995 else 1 / (2 * math.cos(math.acos(cosine) / 2))
        low, high = [0.0, 0.0], [math.inf, math.inf]
        for _, (a, b, *both) in sides.pieces(name, sides.a, sides.b, sides.ours, sides.theirs):
            total, slack = _sum(a, b)
            sign = np.sign(total)
            moving = sign != 0
            for side, stored in enumerate(both):
                least, most = bounds(keys(stored))
                least, most = np.where(sign > 0, least, -most), np.where(sign > 0, most, -least)
                size, room = np.abs(total)[moving], slack[moving]
                low[side] = max(low[side], float(((least[moving] - room) / size).max(initial=0.0)))
                high[side] = min(high[side], float(((most[moving] + room) / size).min(initial=math.inf)))
        one = [low[i] <= high[i] for i in range(2)]
        for who, side in (("Interfuse", 0), ("mergekit", 1)):
            account.note(f"tensors of {who} that one coefficient explains", int(one[side]))
            away = max(low[side] - exact, exact - high[side], 0.0) / exact
            account.most(f"its distance from the exact coefficient at least, {who}", away)
        account.note("tensors", 1)
        for _, (a, b, ours, theirs) in sides.pieces(name, sides.a, sides.b, sides.ours, sides.theirs):
            mine, other = keys(ours), keys(theirs)
            account.elements += len(mine)
            differ = np.flatnonzero(mine != other)
            if not len(differ):
                continue
            account.different += len(differ)
            right = _nearest(exact * _sum(a[differ], b[differ])[0])
            account.note("different and correctly rounded by Interfuse", int((mine[differ] == right).sum()))
            account.note("different and correctly rounded by mergekit", int((other[differ] == right).sum()))
            if all(one):
                account.cause(
                    "mergekit's coefficient (its angle is summed in float32) and the exact one round to two sides of a midpoint",
                    len(differ),
                )
            else:
                account.unexplained += len(differ)
    return account


def _sum(a: Array, b: Array) -> tuple[Array, Array]:
    """``a + b`` in float64 [n], and how far float32 may be from it."""
    x, y = floats(a).astype(np.float64), floats(b).astype(np.float64)
    return x + y, (np.abs(x) + np.abs(y)) * FLOAT32


def _nearest(numbers: Array) -> Array:
    """Keys of the bfloat16 numbers nearest to float64 numbers, ties to even."""
    key = rounded(numbers.astype(np.float32))
    best = key.copy()
    for other in (key - 1, key + 1):  # the way by float32 rounds twice
        gap, least = np.abs(values(other) - numbers), np.abs(values(best) - numbers)
        best = np.where((gap < least) | ((gap == least) & (other % 2 == 0)), other, best)
    return best


def consensus(changes: Sequence[Array], weights: Sequence[float], *, normalize: bool = True) -> Array:
    """The weighted mean (or sum) of the changes that have the sign of their sum, 0 where none has; float32 [n]."""
    total = np.sum(changes, axis=0, dtype=np.float32)
    sign = np.where(total >= 0, np.float32(1), np.float32(-1))
    agree = [np.sign(c) == sign for c in changes]
    over = (
        sum(np.float32(w) * g for w, g in zip(weights, agree, strict=True))
        if normalize
        else np.ones(1, dtype=np.float32)
    )
    mixed = sum(np.float32(w) * c * g for w, c, g in zip(weights, changes, agree, strict=True))
    return np.divide(mixed, np.where(over == 0, 1, over), dtype=np.float32)


def ties(sides: Sides, density: float = 0.2) -> Account:
    """Every value is the one that keeping or leaving the changes at the threshold gives."""
    account = Account()
    for name in sides.ours:
        deltas = [Difference(w.source(name), sides.base.source(name)) for w in (sides.a, sides.b)]
        size = sides.ours[name].numel
        least = [np.float32(magnitude_thresholds([d], max(1, int(density * size)))[0].value) for d in deltas]
        for _, (base, a, b, ours, theirs) in sides.pieces(name, sides.base, sides.a, sides.b, sides.ours, sides.theirs):
            under, mine, other = floats(base), keys(ours), keys(theirs)
            changes = [floats(x) - under for x in (a, b)]
            tied = [np.abs(c) == t for c, t in zip(changes, least, strict=True)]
            found = np.zeros((2, len(mine)), dtype=bool)
            for first in (False, True):
                for second in (False, True):
                    kept = [np.where((np.abs(c) > t) | (e if keep else False), c, np.float32(0))
                            for c, t, e, keep in zip(changes, least, tied, (first, second), strict=True)]  # fmt: skip
                    made = rounded(under + consensus(kept, [1.0, 1.0]))
                    found |= np.stack([made == mine, made == other])
            _judge(
                account,
                mine,
                other,
                found,
                {
                    "a change's magnitude is exactly the threshold: of such ties each program keeps others": tied[0]
                    | tied[1]
                },
            )
    return account


def _judge(account: Account, mine: Array, other: Array, found: Array, causes: dict[str, Array]) -> None:
    """Counts elements, differences by the first cause that applies, and values that nothing allows."""
    differ = mine != other
    account.elements += len(mine)
    account.different += int(differ.sum())
    for who, known in zip(("Interfuse", "mergekit"), found, strict=True):
        account.note(f"values of {who} that are allowed", int(known.sum()))
    open_ = differ & found.all(axis=0)
    for name, applies in causes.items():
        account.cause(name, int((open_ & applies).sum()))
        open_ &= ~applies
    account.unexplained += int((open_ | (differ & ~found.all(axis=0))).sum())


def _variance(changes: list[torch.Tensor]) -> torch.Tensor:
    """As ``torch.var(torch.stack(changes), dim=0, unbiased=False)``, which sums in float64."""
    return (changes[0].double() - changes[1].double()).square_().mul_(0.25).float()


def _quarter(changes: list[torch.Tensor]) -> torch.Tensor:
    return (changes[0] - changes[1]).mul_(0.5).square_()


def sce(sides: Sides, topk: float = 0.5) -> Account:
    """Every value is the one that selecting or leaving the element gives; differences lie where variances are at the threshold."""
    account = Account()
    for name in sides.ours:
        deltas = [Difference(w.source(name), sides.base.source(name)) for w in (sides.a, sides.b)]
        least = []
        for rule in (_quarter, _variance):
            spread, positive = Computed(deltas, rule), 0
            for start in range(0, sides.ours[name].numel, STEP):
                stop = min(start + STEP, sides.ours[name].numel)
                positive += int((spread.read(start, stop) > 0).sum())
            least.append(np.float32(magnitude_thresholds([spread], int(topk * positive))[0].value))
        shares = [_share(sides, name, who, least) for who in (sides.ours, sides.theirs)]
        for _, (base, a, b, ours, theirs) in sides.pieces(name, sides.base, sides.a, sides.b, sides.ours, sides.theirs):
            under, mine, other = floats(base), keys(ours), keys(theirs)
            changes = [floats(x) - under for x in (a, b)]
            spread, above, tied = _selected(changes, least)
            left = rounded(under)
            room = FLOAT32 * (np.abs(under) + 2 * np.abs(changes[0]) + 2 * np.abs(changes[1]))
            found, taken = [], []
            for value, share in zip((mine, other), shares, strict=True):
                change = under + consensus(changes, [share, 1 - share]).astype(np.float64)
                low, high = (rounded((change + side * room).astype(np.float32)) for side in (-1, 1))
                taken.append((value >= low) & (value <= high))
                found.append(taken[-1] | (value == left))
            _judge(account, mine, other, np.stack(found), {
                "the variance is exactly the threshold: of such ties each program selects others": tied,
                "the variance is rounded to two sides of the threshold (float32 of two formulas)": above[0] != above[1],
                "the models' weights, or a sum, differ in the last digits of float32: two sides of a midpoint": taken[0] & taken[1],
            })  # fmt: skip
    return account


def _selected(changes: list[Array], least: Sequence[Any]) -> tuple[list[Array], list[Array], Array]:
    """Variances by both formulas, whether they are above their thresholds, and whether one is exactly at it."""
    spread = [rule([torch.from_numpy(c.copy()) for c in changes]).numpy() for rule in (_quarter, _variance)]
    above = [s > t for s, t in zip(spread, least, strict=True)]
    return spread, above, (spread[0] == least[0]) | (spread[1] == least[1])


def _share(sides: Sides, name: str, result: Weights, least: Sequence[Any]) -> float:
    """The first model's weight where both models count: the middle of what the selected elements allow."""
    low, high = 0.0, 1.0
    for _, (base, a, b, out) in sides.pieces(name, sides.base, sides.a, sides.b, result):
        under = floats(base)
        changes = [floats(x) - under for x in (a, b)]
        _, above, _ = _selected(changes, least)
        here = np.flatnonzero(above[0] & above[1] & (changes[0] * changes[1] > 0))
        if not len(here):
            continue
        one, two = (c[here].astype(np.float64) for c in changes)
        apart, start = one - two, under[here] + two
        room = FLOAT32 * (np.abs(under[here]) + 2 * np.abs(one) + 2 * np.abs(two))
        least_, most = (edge - start for edge in bounds(keys(out[here])))
        least_, most = np.where(apart > 0, least_, -most), np.where(apart > 0, most, -least_)
        low = max(low, float(((least_ - room) / np.abs(apart)).max()))
        high = min(high, float(((most + room) / np.abs(apart)).min()))
    return (low + high) / 2


def dare_ties(sides: Sides) -> Account:
    """Every value is one that some subset of the element's changes gives, with one factor per model and tensor."""
    account = Account()
    for name in sides.ours:
        factors = [_factors(sides, name, who) for who in (sides.ours, sides.theirs)]
        for _, (base, a, b, ours, theirs) in sides.pieces(name, sides.base, sides.a, sides.b, sides.ours, sides.theirs):
            under, both = floats(base), [keys(ours), keys(theirs)]
            changes = [floats(x) - under for x in (a, b)]
            room = FLOAT32 * (np.abs(under) + 4 * np.abs(changes[0]) + 4 * np.abs(changes[1]))
            known = []
            for who, key, factor in zip(("Interfuse", "mergekit"), both, factors, strict=True):
                ways = under + _ways(changes, factor)
                exact = (rounded(ways) == key).any(axis=0)
                near = ((rounded(ways - room) - 1 <= key) & (key <= rounded(ways + room) + 1)).any(axis=0)
                account.note(f"values of {who} that a subset gives to the bit", int(exact.sum()))
                account.note(
                    f"values of {who} within one unit in the last place, of bfloat16 or of float32's terms",
                    int((near & ~exact).sum()),
                )
                known.append(exact | near)
            differ = both[0] != both[1]
            account.elements += len(differ)
            account.different += int(differ.sum())
            account.cause(
                "other changes were dropped: the programs draw different random numbers",
                int((differ & known[0] & known[1]).sum()),
            )
            account.unexplained += int((~(known[0] & known[1])).sum())
    return account


def _ways(changes: Sequence[Array], factors: Sequence[float]) -> Array:
    """The change of an element when nothing, the first, the second or both are kept, float32 [4, n]."""
    scaled = [c * np.float32(f) for c, f in zip(changes, factors, strict=True)]
    return np.stack([np.zeros_like(scaled[0]), *scaled, consensus(scaled, [1.0, 1.0], normalize=False)])


def _factors(sides: Sides, name: str, result: Weights) -> list[float]:
    """What each model's kept changes were multiplied by: the number that most elements allow, of those whose value only this model's
    change can have given. First roughly (elements that one model alone changed, or of a small tensor the factors that fit most values)."""
    parts = []
    for start, stored in sides.pieces(name, sides.base, sides.a, sides.b, result):
        if start < MANY:
            parts.append(stored)
    base, a, b, out = (np.concatenate(p) for p in zip(*parts, strict=True))
    under, key = floats(base), keys(out)
    changes, value = [floats(x) - under for x in (a, b)], values(key)
    found = [2.0, 2.0]
    if len(key) <= 1 << 13:
        for i in (0, 1, 0, 1):
            tried = [[f, found[1]] if i == 0 else [found[0], f] for f in np.arange(1.4, 2.9, 0.003)]
            found = max(tried, key=lambda pair: int((rounded(under + _ways(changes, pair)) == key).any(axis=0).sum()))
    else:
        found = [
            _allowed(under, changes[i], key, (changes[1 - i] == 0) & (changes[i] != 0) & (out != base)) for i in (0, 1)
        ]
    for _ in range(3):
        ways = _ways(changes, found)
        away = np.abs(under + ways.astype(np.float64) - value)
        refined = []
        for i in (0, 1):
            size = np.abs(changes[i])
            alone = (size > 0) & (away[i + 1] < 0.03 * size) & (away[0] > 0.1 * size) & (away[2 - i] > 0.1 * size)
            refined.append(
                _allowed(under, changes[i], key, alone & ((away[3] > 0.1 * size) | (ways[3] == ways[i + 1])))
            )
        found = [new or old for new, old in zip(refined, found, strict=True)]
    return found


def _allowed(under: Array, change: Array, key: Array, here: Array) -> float:
    """The factor of the change that most of some elements allow; 0 without elements."""
    place = np.flatnonzero(here)
    if not len(place):
        return 0.0
    start, size = under[place].astype(np.float64), change[place].astype(np.float64)
    least, most = (edge - start for edge in bounds(key[place]))
    least, most = np.where(size > 0, least, -most), np.where(size > 0, most, -least)
    size = np.abs(size)
    room = FLOAT32 / 4 * (np.abs(start) + 2 * size)
    low, high = np.sort((least - room) / size), np.sort((most + room) / size)
    ends = np.concatenate([low, high])
    order = np.argsort(ends, kind="stable")
    count = np.where(order < len(low), 1, -1).cumsum()
    best = int(count.argmax())
    return float((ends[order[best]] + ends[order[min(best + 1, len(order) - 1)]]) / 2)


EXPLAINED: dict[str, Callable[[Sides], Account]] = {"slerp": slerp, "ties": ties, "sce": sce, "dare-ties": dare_ties}


def explain(method: str, root: Path, ours: Path, theirs: Path) -> dict[str, Any] | None:
    """Causes of all differences of one method's two results; None for methods without a rule here.

    Args:
        root: sources base, a and b. ours: Interfuse's result. theirs: mergekit's, computed in float32 and rounded to bfloat16.
    """
    return EXPLAINED[method](Sides(root, ours, theirs)).told() if method in EXPLAINED else None
