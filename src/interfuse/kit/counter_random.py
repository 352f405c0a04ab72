"""Random numbers that depend on an element's index and not on the order of work.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3) is a function of a key and a
counter. The key is made of names, the counter of the element's index, so any block of a tensor can be drawn alone.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from interfuse.core.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

_WORDS = 8  # 32-bit words per counter value of Philox-4x64


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
    words = _words(key, start, stop)
    words >>= 8
    out = torch.from_numpy(words.view(np.int32)).to(torch.float32)
    return out.mul_(2.0**-24)


def below(key: int, start: int, stop: int, probability: float) -> NDArray[np.bool_]:
    """``uniform(key, start, stop) < probability`` without making the numbers: bool [stop - start]."""
    if probability >= 1:
        return np.ones(stop - start, dtype=np.bool_)
    # u = (word >> 8) / 2**24 is below p where the word is below ceil(2**24 p) * 2**8
    return _words(key, start, stop) < np.uint32(min(math.ceil(max(probability, 0.0) * (1 << 24)) << 8, 0xFFFFFFFF))


def _words(key: int, start: int, stop: int) -> NDArray[np.uint32]:
    """One 32-bit word per element."""
    first, skip = divmod(start, _WORDS)
    count = -(-(stop - start + skip) // 2)  # 64-bit words
    raw = Philox(key=key, counter=first).random_raw(count)
    words: NDArray[np.uint32] = raw.astype("<u8", copy=False).view("<u4")[skip : skip + stop - start]
    return words
