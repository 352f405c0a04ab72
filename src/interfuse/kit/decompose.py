"""Singular value decompositions of large matrices: the exact one, and two that trade digits for time.

The exact one (LAPACK, float64) spends most of its time outside matrix products. The randomised one (Halko, Martinsson and Tropp 2011,
"Finding structure with randomness", algorithms 4.4 and 5.1) finds the leading triplets by products alone; the one by the Gram matrix
decomposes ``A^T A``, whose small singular values have half the digits: what is far below the largest one's share it cannot tell from 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: How singular vectors are found.
How = Literal["exact", "gram", "randomised"]
_MORE = 16  # columns beyond the rank that is wanted
_ROUNDS = 2  # power iterations
_LEAST = 1e-6  # of the largest singular value: below it the Gram matrix tells nothing


def leading_triplets(matrix: Tensor, rank: int, how: str = "exact", key: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` largest singular values and their vectors.

    Args:
        matrix: [m, n].
        rank: 0 to min(m, n).
        how: ``exact``, ``gram`` (left vectors of values below 1e-6 of the largest are 0) or ``randomised``; the last is exact where
            it would not be faster (a rank near the full one).
        key: what the random directions are drawn from, :func:`interfuse.kit.counter_random.tensor_key`.

    Returns:
        ``U`` [m, rank], ``s`` [rank] in falling order, ``V^T`` [rank, n]; float64.
    """
    if how == "gram":
        a = matrix.double()
        flat = a.shape[0] < a.shape[1]
        if flat:
            a = a.T
        sizes, vectors = _by_gram(a)
        sizes, vectors = sizes[:rank], vectors[:, :rank]
        left = (a @ vectors) * _inverse(sizes)
        return (vectors, sizes, left.T) if flat else (left, sizes, vectors.T)
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
    sizes, vectors = _by_gram(a.T if flat else a)
    half = (vectors * _inverse(sizes)) @ vectors.T  # (A A^T)^(-1/2), or (A^T A)^(-1/2)
    return (half @ a if flat else a @ half), float(sizes.mean())


def shrunk(matrix: Tensor, threshold: float) -> tuple[Tensor, int]:
    """Singular value thresholding by the Gram matrix: ``U max(S - threshold, 0) V^T`` of ``U S V^T``, the proximal map of the nuclear norm.

    With a threshold of t times the largest singular value the error is about ``1e-16 / t**2`` of that value, so that thresholds from
    1e-4 on lose nothing in float32.

    Args:
        matrix: [m, n]. threshold: from 0 on.

    Returns:
        float64 [m, n], and how many singular values are above the threshold.
    """
    a = matrix.double()
    flat = a.shape[0] < a.shape[1]
    sizes, vectors = _by_gram(a.T if flat else a)
    share = (1.0 - threshold * _inverse(sizes)).clamp(min=0.0) * (sizes > threshold)
    half = (vectors * share) @ vectors.T
    return (half @ a if flat else a @ half), int((sizes > threshold).sum())


def _by_gram(tall: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of ``tall`` [m, n] in falling order and its right singular vectors [n, n], from ``A^T A``."""
    squares, vectors = torch.linalg.eigh(tall.T @ tall)
    return squares.flip(0).clamp(min=0.0).sqrt(), vectors.flip(1)


def _inverse(sizes: Tensor) -> Tensor:
    """``1 / s``, 0 for what is below 1e-6 of the largest."""
    inverse = torch.zeros_like(sizes)
    if sizes.numel():
        good = sizes > _LEAST * sizes.max()
        inverse[good] = 1.0 / sizes[good]
    return inverse
