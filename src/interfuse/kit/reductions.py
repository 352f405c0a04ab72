"""Sums and order statistics of tensors too large to hold, read once or twice from front to back.

Nothing here depends on how the tensor is cut or on how many threads work: sums are taken in float64 over fixed chunks and
added exactly, order statistics are counts of bit patterns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError
from interfuse.core.lazy import lazy
from interfuse.data.weights import Flat, read_array

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

#: Elements summed on their own; also the granule of every block, see :mod:`interfuse.kit.streaming`.
CHUNK = 1 << 14
#: Elements read at a time: one megabyte of float32.
_PASS = 1 << 18
#: Elements made float64 at a time: half a megabyte, which a processor's cache holds.
_WIDE = 1 << 16
#: Elements of an inner product on their own: BLAS takes more than 10,000 with several threads.
_DOT = 1 << 13
#: Candidates for a threshold that are held at once; a tensor of no more elements is held whole.
_HELD = 1 << 21
#: Number and length of the pieces of a tensor that are looked at to bracket a threshold.
_RUNS, _RUN = 64, 1 << 12
_INFINITY = 0x7F800000  # bits of float32 infinity; larger magnitudes are NaN


class Difference:
    """A task vector that is never stored: ``model - base``, subtracted in float32 while it is read."""

    def __init__(self, model: Flat, base: Flat) -> None:
        _same_size((model, base))
        self.model, self.base = model, base

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensors' shape."""
        return self.model.shape

    def read(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` of the difference, float32 [stop - start]."""
        return self.model.read(start, stop, out).sub_(self.base.read(start, stop))

    def array(self, start: int, stop: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same into a NumPy array, without ``torch`` where the tensors are stored."""
        read_array(self.model, start, stop, out)
        return np.subtract(out, read_array(self.base, start, stop, np.empty_like(out)), out=out)


def array_blocks(sources: Sequence[Flat]) -> Iterator[tuple[int, list[NDArray[np.float32]]]]:
    """As :func:`blocks`, as NumPy arrays; without ``torch`` where the tensors are stored."""
    size = _same_size(sources)
    buffers = [np.empty(min(_PASS, size), dtype=np.float32) for _ in sources]
    for start in range(0, size, _PASS):
        stop = min(start + _PASS, size)
        read = [s.array if isinstance(s, Difference) else functools.partial(read_array, s) for s in sources]
        yield start, [r(start, stop, out[: stop - start]) for r, out in zip(read, buffers, strict=True)]


def blocks(sources: Sequence[Flat]) -> Iterator[tuple[int, list[Tensor]]]:
    """Aligned pieces of tensors of equal size: the first element's flat index, and one float32 [n] per tensor.

    The tensors given are buffers, overwritten by the next piece.
    """
    for start, values in array_blocks(sources):
        yield start, [torch.from_numpy(value) for value in values]


def sums(sources: Sequence[Flat], terms: Callable[[list[Tensor]], Iterable[Tensor]]) -> list[float]:
    """Sums over all elements of functions of the tensors, in one reading.

    Args:
        sources: tensors of equal size.
        terms: from one float64 [n] per source to as many float64 [n] as sums are wanted; it must work element by element.

    Returns:
        One correctly rounded sum of float64 chunk sums per term.

    Example:
        ``dot, square = sums([a, b], lambda x: (x[0] * x[1], x[0] * x[0]))``
    """
    partial: list[list[float]] = []
    for _, values in blocks(sources):
        for pieces in zip(*(value.split(_WIDE) for value in values), strict=True):
            for index, term in enumerate(terms([piece.to(torch.float64) for piece in pieces])):
                if index == len(partial):
                    partial.append([])
                whole = term.numel() // CHUNK * CHUNK
                partial[index] += term[:whole].view(-1, CHUNK).sum(1).tolist()
                if whole < term.numel():
                    partial[index].append(term[whole:].sum().item())
    if not partial:  # empty tensors
        return [0.0 for _ in terms([torch.empty(0, dtype=torch.float64) for _ in sources])]
    return [_total(numbers) for numbers in partial]


def _total(numbers: list[float]) -> float:
    """The exactly rounded sum; NaN or infinite where :func:`math.fsum` would refuse."""
    return math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers)


def gram(sources: Sequence[Flat]) -> NDArray[np.float64]:
    """All inner products of tensors of equal size, in one reading: norms are the roots of the diagonal.

    Returns:
        float64 [m, m], every number a correctly rounded sum of the float64 sums of chunks.
    """
    count = len(sources)
    pairs = [(i, j) for i in range(count) for j in range(i + 1)]
    partial: list[list[float]] = [[] for _ in pairs]
    wide = np.empty((count, min(_PASS, _same_size(sources))), dtype=np.float64)
    for _, values in array_blocks(sources):
        n = values[0].size
        whole = n // _DOT * _DOT
        for row, value in zip(wide, values, strict=True):
            np.copyto(row[:n], value)
        for found, (i, j) in zip(partial, pairs, strict=True):
            x, y = wide[i, :n], wide[j, :n]
            found += np.vecdot(x[:whole].reshape(-1, _DOT), y[:whole].reshape(-1, _DOT)).tolist()
            if whole < n:
                found.append(float(np.vecdot(x[whole:], y[whole:])))
    out = np.empty((count, count), dtype=np.float64)
    for (i, j), numbers in zip(pairs, partial, strict=True):
        out[i, j] = out[j, i] = _total(numbers)
    return out


@dataclass(frozen=True, slots=True)
class Moments:
    """What one reading says about a tensor.

    Attributes:
        count: number of elements.
        mean: mean.
        variance: population variance; exactly 0 for a constant tensor.
        mean_square: mean of squares.
        mean_absolute: mean of magnitudes.
        positive: number of elements above 0.
        negative: number of elements below 0.
    """

    count: int
    mean: float
    variance: float
    mean_square: float
    mean_absolute: float
    positive: int
    negative: int


def moments(source: Flat) -> Moments:
    """Mean, variance, mean square, mean magnitude and sign counts of a tensor, in one reading.

    Raises:
        InterfuseError: ``input.empty`` for a tensor without elements.
    """
    count = math.prod(source.shape)
    if count == 0:
        raise InterfuseError("input.empty", "a tensor without elements has no mean")
    origin = source.read(0, 1).item()  # shifting by a value of the data keeps the variance free of cancellation

    def terms(x: list[Tensor]) -> Sequence[Tensor]:
        shifted = x[0] - origin
        return x[0], shifted, shifted.square(), x[0].square(), x[0].abs(), (x[0] > 0).double(), (x[0] < 0).double()

    total, shift, spread, square, absolute, positive, negative = sums([source], terms)
    variance = max(0.0, spread / count - (shift / count) ** 2)
    return Moments(count, total / count, variance, square / count, absolute / count, round(positive), round(negative))


@dataclass(frozen=True, slots=True)
class Threshold:
    """Which elements of a tensor belong to the largest magnitudes, exactly as many as were asked for.

    Attributes:
        value: elements of larger magnitude are in.
        last: elements of this very magnitude are in up to this flat index: of equals, the earlier are kept.
    """

    value: float
    last: int

    def mask(self, values: Tensor, start: int) -> Tensor:
        """Whether each of consecutive elements, the first at flat index ``start``, is in: bool of the same shape."""
        sizes = np.abs(values.reshape(-1).numpy())
        ties = self._ties(sizes.size, start)
        out = np.empty(sizes.size, dtype=np.bool_)
        np.greater_equal(sizes[:ties], np.float32(self.value), out=out[:ties])
        np.greater(sizes[ties:], np.float32(self.value), out=out[ties:])
        return torch.from_numpy(out).view(values.shape)

    def trim_(self, values: Tensor, start: int) -> Tensor:
        """Sets the elements that are not in to zero, in place; several times faster than multiplying by the mask.

        Args:
            values: contiguous float32, consecutive elements.
            start: flat index of the first.
        """
        flat = values.view(-1)
        ties = self._ties(flat.numel(), start)
        if self.value > 0:  # |x| >= value is |x| > the float before it
            before = float(np.nextafter(np.float32(self.value), np.float32(0)))
            torch.hardshrink(flat[:ties], before, out=flat[:ties])
        torch.hardshrink(flat[ties:], self.value, out=flat[ties:])
        return values

    def _ties(self, count: int, start: int) -> int:
        """How many of ``count`` elements from ``start`` on lie not behind ``last``."""
        return min(max(self.last + 1 - start, 0), count)


def magnitude_thresholds(sources: Sequence[Flat], keep: int, *, workers: int = 1) -> list[Threshold]:
    """The ``keep`` elements of largest magnitude among several tensors taken together, or of a single one.

    Exact, without sorting and without holding a long tensor. One tensor is usually read once: a sample brackets the
    threshold, what lies above is counted, what lies inside is collected. Where the bracket fails (many equal values), and
    for several tensors, float32 bit patterns are counted: 65,536 buckets, then the 32,768 values of the bucket that
    holds the threshold, then the places of its ties. Of equal magnitudes those of earlier tensors, and within a tensor of
    lower flat index, are kept. Memory per thread: up to 60 MB.

    Args:
        sources: the tensors; any shapes.
        keep: how many elements to keep, 0 to all.
        workers: threads, at most one per tensor.

    Returns:
        One threshold per tensor.

    Raises:
        InterfuseError: ``param.value`` if there are not as many elements, ``input.nan`` for NaN or infinite elements.
    """
    sizes = [math.prod(source.shape) for source in sources]
    total = sum(sizes)
    if not 0 <= keep <= total:
        raise InterfuseError("param.value", f"cannot keep {keep} of {total} elements")
    if keep == 0:
        return [Threshold(math.inf, -1) for _ in sources]
    if len(sources) == 1:
        found = _by_bracket(sources[0], total, total - keep)
        if found is not None:
            return [found]
    key, below = _select(sources, total - keep, workers, _magnitude, 15)
    # `below` elements are smaller than the threshold; of the equal ones the last (total - keep - below) are left out
    return _cut_ties(sources, sizes, _float_of(key), total - keep - below)


def _by_bracket(source: Flat, total: int, k: int) -> Threshold | None:
    """The threshold at the k-th smallest magnitude in one reading; None if the bracket missed or held too much."""
    if total <= _HELD:
        whole = _magnitude(source.read(0, total)).numpy()
        _refuse_nan(whole)
        return _cut(whole, np.arange(0), k, total)
    low, high = _bracket(source, total, k)
    below = held = 0
    keys, places = [], []
    for start, (values,) in blocks([source]):
        block = _magnitude(values).numpy()
        _refuse_nan(block)
        inside = np.flatnonzero((block - np.int32(low)).view(np.uint32) <= high - low)
        below += int(np.count_nonzero(block < low))
        held += len(inside)
        if held > _HELD:
            return None
        keys.append(block[inside])
        places.append(inside + start)
    if not below <= k < below + held:
        return None
    return _cut(np.concatenate(keys), np.concatenate(places), k - below, total)


def _cut(keys: NDArray[np.int32], places: NDArray[np.int64], k: int, total: int) -> Threshold:
    """The threshold at the k-th smallest of keys in flat order; ``places`` are their flat indices, empty for 0, 1, 2..."""
    key = np.partition(keys, k)[k]
    drop = k - int(np.count_nonzero(keys < key))
    if drop == 0:
        return Threshold(_float_of(int(key)), total - 1)
    ties = np.flatnonzero(keys == key)
    first = ties[len(ties) - drop]  # of the equals that are left out
    return Threshold(_float_of(int(key)), int(places[first] if len(places) else first) - 1)


def _refuse_nan(keys: NDArray[np.int32]) -> None:
    if int(keys.max()) >= _INFINITY:
        raise InterfuseError("input.nan", "NaN or infinite numbers have no place in an order")


def _bracket(source: Flat, total: int, k: int) -> tuple[int, int]:
    """Two keys between which the k-th smallest magnitude lies, very probably: six standard errors around its quantile."""
    runs = min(_RUNS, total)
    length = min(_RUN, total // runs)
    starts = [run * (total - length) // max(runs - 1, 1) for run in range(runs)]
    sample = np.concatenate([_magnitude(source.read(start, start + length)).numpy() for start in starts])
    sample.sort()
    share, size = k / total, len(sample)
    spread = 6 * math.sqrt(size * share * (1 - share)) + 6
    low, high = math.floor(share * size - spread), math.ceil(share * size + spread)
    return int(sample[low]) if low >= 0 else 0, int(sample[high]) if high < size else _INFINITY - 1


def _cut_ties(sources: Sequence[Flat], sizes: list[int], value: float, drop: int) -> list[Threshold]:
    """Thresholds at ``value`` that leave out the last ``drop`` elements of exactly this magnitude."""
    found = [Threshold(value, size - 1) for size in sizes]
    for index in reversed(range(len(sources))):
        if drop == 0:
            break
        for start in reversed(range(0, sizes[index], _PASS)):
            values = sources[index].read(start, min(start + _PASS, sizes[index])).numpy()
            places = np.flatnonzero(np.abs(values) == np.float32(value))
            if len(places) >= drop:
                place = int(places[len(places) - drop])
                found[index] = Threshold(value, start + place - 1)
                return found
            drop -= len(places)
        found[index] = Threshold(value, -1)
    return found


def kth_smallest(source: Flat, k: int, *, magnitude: bool = False, workers: int = 1) -> float:
    """The k-th smallest element (k = 0 is the smallest), exactly, without sorting: medians and quantiles.

    Args:
        source: the tensor.
        k: 0 to the number of elements - 1.
        magnitude: order by absolute value.
        workers: threads.

    Raises:
        InterfuseError: ``param.value`` if there is no such element, ``input.nan`` for NaN or infinite elements.
    """
    total = math.prod(source.shape)
    if not 0 <= k < total:
        raise InterfuseError("param.value", f"there is no element {k} of {total}")
    if magnitude:
        return _float_of(_select([source], k, workers, _magnitude, 15)[0])
    key, _ = _select([source], k, workers, _signed, 16)
    return _float_of(key ^ 0x7FFFFFFF if key < 0 else key)


def kth_smallest_of(parts: Callable[[], Iterator[NDArray[np.float64]]], ranks: Sequence[int]) -> list[float]:
    """The elements of some ranks (0 is the smallest) of numbers that are computed anew in every reading, exactly, without sorting.

    The numbers' bit patterns are counted, 65,536 buckets in a reading, until the buckets that hold the ranks are few enough elements
    to be collected: five readings at most, three as a rule.

    Args:
        parts: gives the numbers, float64 from 0 on, in pieces of any length, the same each time it is called.
        ranks: each from 0 to the number of elements - 1.

    Raises:
        InterfuseError: ``param.value`` if there is no such element, ``input.nan`` for numbers that are negative, NaN or infinite.
    """

    def keys() -> Iterator[NDArray[np.int64]]:
        for part in parts():
            if not (np.isfinite(part).all() and float(part.min(initial=0.0)) >= 0):
                raise InterfuseError("input.nan", "NaN, infinite or negative numbers have no place in this order")
            yield (part + 0.0).view(np.int64)  # -0 as +0

    shift, total = 63, 0
    places = {rank: (0, rank) for rank in ranks}  # leading bits of the key, and the rank among the keys that begin so
    while True:
        wanted, width = sorted({lead for lead, _ in places.values()}), min(16, shift)
        counts = {lead: np.zeros(1 << width, dtype=np.int64) for lead in wanted}
        for key in keys():
            for lead in wanted:
                inside = key if shift == 63 else key[(key >> shift) == lead]
                counts[lead] += np.bincount((inside >> (shift - width)) & ((1 << width) - 1), minlength=1 << width)
        total = total or sum(int(count.sum()) for count in counts.values())
        if not all(0 <= rank < total for rank in ranks):
            raise InterfuseError("param.value", f"there are {total} elements, not those of ranks {list(ranks)}")
        shift -= width
        held = {}
        for rank, (lead, place) in places.items():
            upto = counts[lead].cumsum()
            bucket = int(np.searchsorted(upto, place, side="right"))
            size = int(counts[lead][bucket])
            places[rank] = (lead << width) | bucket, place - int(upto[bucket]) + size
            held[places[rank][0]] = size
        if shift == 0:
            return [float(np.int64(places[rank][0]).view(np.float64)) for rank in ranks]
        if sum(held.values()) <= _HELD:
            # each into one piece of memory: many small ones would keep what is freed between them from being used again
            whole, filled = (
                {lead: np.empty(size, dtype=np.int64) for lead, size in held.items()},
                dict.fromkeys(held, 0),
            )
            for key in keys():
                for lead, kept in whole.items():
                    found = key[(key >> shift) == lead]
                    kept[filled[lead] : filled[lead] + len(found)] = found
                    filled[lead] += len(found)
            for kept in whole.values():
                kept.sort()
            return [float(whole[lead][place].view(np.float64)) for lead, place in (places[rank] for rank in ranks)]


def _float_of(bits: int) -> float:
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()


def _magnitude(values: Tensor) -> Tensor:
    """int32 that orders finite floats by magnitude, >= 0; overwrites its argument."""
    keys = values.view(torch.int32)
    bits = keys.numpy()
    np.bitwise_and(bits, np.int32(0x7FFFFFFF), out=bits)
    return keys


def _signed(values: Tensor) -> Tensor:
    """int32 that orders finite floats by value, -0 as +0; overwrites its argument."""
    bits = values.add_(0.0).view(torch.int32)
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))


def _select(
    sources: Sequence[Flat], k: int, workers: int, key: Callable[[Tensor], Tensor], shift: int
) -> tuple[int, int]:
    """The k-th smallest key, and how many keys are smaller."""
    half = 0 if shift == 15 else 1 << 15  # signed keys have negative buckets

    def coarse(source: Flat) -> Tensor:
        counts = torch.zeros(1 << 16, dtype=torch.int64)
        for _, (values,) in blocks([source]):
            keys = key(values)
            low, high = torch.aminmax(keys)
            if int(high) >= _INFINITY or int(low) <= -_INFINITY - 1:
                raise InterfuseError("input.nan", "NaN or infinite numbers have no place in an order")
            counts += torch.bincount((keys >> shift).add_(half), minlength=1 << 16)
        return counts

    def fine(source: Flat) -> Tensor:
        counts = torch.zeros(1 << shift, dtype=torch.int64)
        for _, (values,) in blocks([source]):
            keys = key(values).numpy()  # numpy's selection is several times faster here than torch's
            inside = keys[(keys >> shift) == bucket - half] & ((1 << shift) - 1)
            counts += torch.bincount(torch.from_numpy(inside), minlength=1 << shift)
        return counts

    bucket, before = _rank(_add(coarse, sources, workers), k)
    low, smaller = _rank(_add(fine, sources, workers), k - before)
    return ((bucket - half) << shift) | low, before + smaller


def _add(count: Callable[[Flat], Tensor], sources: Sequence[Flat], workers: int) -> Tensor:
    """The sum of all tensors' counts; whole numbers, so the order does not matter."""

    def share(group: Sequence[Flat]) -> Tensor:
        total = count(group[0])
        for source in group[1:]:
            total += count(source)
        return total

    workers = min(workers, len(sources))
    if workers <= 1:
        return share(sources)
    with ThreadPoolExecutor(workers) as pool:
        return torch.stack(list(pool.map(share, [sources[w::workers] for w in range(workers)]))).sum(0)


def _rank(counts: Tensor, k: int) -> tuple[int, int]:
    """The bucket that holds the k-th element, and how many elements lie in lower buckets."""
    upto = counts.cumsum(0)
    bucket = int(torch.searchsorted(upto, k, right=True))
    return bucket, int(upto[bucket]) - int(counts[bucket])


def _same_size(sources: Sequence[Flat]) -> int:
    sizes = [math.prod(source.shape) for source in sources]
    if len(set(sizes)) > 1:
        shapes = " and ".join(str(list(source.shape)) for source in sources)
        raise InterfuseError("input.shape", f"tensors of different sizes: {shapes}")
    return sizes[0]
