"""Random numbers that depend on an element's index and not on the order of work.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3) is a function of a key and a
counter. The key is made of names, the counter of the element's index, so any block of a tensor can be drawn alone.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

_LOW = 1 << 127  # of the key of the lower bits


def tensor_key(seed: int, source: str, name: str) -> int:
    """The 128-bit key of one tensor's random numbers.

    Args:
        seed: the recipe's seed.
        source: what identifies the model among the sources (its id, not its position).
        name: the tensor's name.
    """
    text = f"{seed}\0{source}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def uniform(key: int, start: int, stop: int) -> Tensor:
    """Uniform numbers in [0, 1) of elements ``start`` to ``stop``, multiples of 2**-24.

    The numbers of an element are the same whatever range it is drawn in: ``uniform(k, 0, n)[a:b]`` equals
    ``uniform(k, a, b)``. A Bernoulli mask of probability p is ``uniform(key, start, stop) < p``.

    Args:
        key: from :func:`tensor_key`.
        start: flat index of the first element.
        stop: one past the last.

    Returns:
        float32 [stop - start].
    """
    high = _drawn(key, start, stop, np.dtype("<u2")).astype(np.uint32)
    high <<= 8
    high |= _drawn(key ^ _LOW, start, stop, np.dtype("u1"))
    out = torch.from_numpy(high.view(np.int32)).to(torch.float32)
    return out.mul_(2.0**-24)


def below(key: int, start: int, stop: int, probability: float) -> NDArray[np.bool_]:
    """``uniform(key, start, stop) < probability`` without making the numbers: bool [stop - start].

    The upper 16 of their 24 bits decide nearly always; the others are drawn where these are equal.
    """
    if probability >= 1:
        return np.ones(stop - start, dtype=np.bool_)
    limit, rest = divmod(math.ceil(max(probability, 0.0) * (1 << 24)), 1 << 8)
    if limit >> 16:
        return np.ones(stop - start, dtype=np.bool_)
    high = _drawn(key, start, stop, np.dtype("<u2"))
    found = high < np.uint16(limit)
    if rest:
        for place in np.flatnonzero(high == np.uint16(limit)).tolist():
            found[place] = _drawn(key ^ _LOW, start + place, start + place + 1, np.dtype("u1"))[0] < rest
    return found


def _drawn(key: int, start: int, stop: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """One unsigned integer of a kind per element, of Philox-4x64's words in order."""
    each = 8 // kind.itemsize  # elements in a 64-bit word
    first, skip = divmod(start, 4 * each)
    raw = np.random.Philox(key=key, counter=first).random_raw(-(-(stop - start + skip) // each))
    numbers: NDArray[Any] = raw.astype("<u8", copy=False).view(kind)[skip : skip + stop - start]
    return numbers
