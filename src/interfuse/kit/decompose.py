"""Singular value decompositions of large matrices: the exact one, and two that trade digits for time.

The exact one (LAPACK, float64) spends most of its time outside matrix products. The randomised one (Halko, Martinsson and Tropp 2011,
"Finding structure with randomness", algorithms 4.4 and 5.1) finds the leading triplets by products alone; the one by the Gram matrix
decomposes ``A^T A``, whose small singular values have half the digits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: How singular vectors are found.
How = Literal["exact", "randomised"]
_MORE = 16  # columns beyond the rank that is wanted
_ROUNDS = 2  # power iterations


def leading_triplets(matrix: Tensor, rank: int, how: str = "exact", key: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` largest singular values and their vectors.

    Args:
        matrix: [m, n].
        rank: 0 to min(m, n).
        how: ``exact`` or ``randomised``; the latter is exact too where it would not be faster (a rank near the full one).
        key: what the random directions are drawn from, :func:`interfuse.kit.counter_random.tensor_key`.

    Returns:
        ``U`` [m, rank], ``s`` [rank] in falling order, ``V^T`` [rank, n]; float64.
    """
    width = rank + _MORE
    if how == "exact" or 2 * width > min(matrix.shape):
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank]
    a = matrix.float()
    flat = a.shape[0] < a.shape[1]
    if flat:
        a = a.T
    generator = torch.Generator().manual_seed(key % (1 << 63))
    basis = torch.linalg.qr(a @ torch.randn(a.shape[1], width, generator=generator)).Q
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(a.T @ basis).Q
        basis = torch.linalg.qr(a @ basis).Q
    u, s, v = torch.linalg.svd((basis.T @ a).double(), full_matrices=False)
    left, right = (basis.double() @ u[:, :rank]), v[:rank]
    return (right.T, s[:rank], left.T) if flat else (left, s[:rank], right)


def levelled(matrix: Tensor, how: str = "exact") -> tuple[Tensor, float]:
    """``U V^T`` of a matrix ``U S V^T`` and the mean of its singular values.

    Args:
        matrix: [m, n].
        how: ``exact``, or ``gram``: by the eigenvectors of the smaller Gram matrix, several times as fast. Directions whose singular
            value is below 1e-6 of the largest are then left out of ``U V^T``: the Gram matrix cannot tell them.

    Returns:
        float64 [m, n], and the mean.
    """
    a = matrix.double()
    if how == "exact":
        u, s, v = torch.linalg.svd(a, full_matrices=False)
        return u @ v, float(s.mean())
    flat = a.shape[0] < a.shape[1]
    squares, vectors = torch.linalg.eigh(a @ a.T if flat else a.T @ a)
    sizes = squares.clamp(min=0.0).sqrt()
    inverse = torch.zeros_like(sizes)
    good = sizes > 1e-6 * sizes.max()
    inverse[good] = 1.0 / sizes[good]
    half = (vectors * inverse) @ vectors.T  # (A A^T)^(-1/2), or (A^T A)^(-1/2)
    return (half @ a if flat else a @ half), float(sizes.mean())
