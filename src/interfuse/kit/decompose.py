"""Singular value decompositions of large matrices: the exact one, and two that trade digits for time.

A matrix ``A`` [m, n] whose short side is k = min(m, n) needs only factors [k, k]: its singular values and the vectors of its short side,
found while it is read piece by piece along the long one (:func:`short_side`); what is made of it is a product with such factors, again
piece by piece (:func:`times`). Where m < n the transpose is decomposed.

The exact one (float64) folds the pieces into one triangle by QR and takes that apart from its largest singular values down. The randomised
one (Halko, Martinsson and Tropp 2011, "Finding structure with randomness", algorithms 4.4 and 5.1) finds the leading vectors by products
alone; the one by the Gram matrix decomposes ``A^T A``, whose small singular values have half the digits: what is far below the largest
one's share it cannot tell from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.data.weights import Flat
from interfuse.kit.heap import give_back

#: How singular vectors are found.
How = Literal["exact", "gram", "randomised"]
#: Pieces of a matrix, read anew by each call.
Pieces = Callable[[], Iterator[Tensor]]
_MORE = 16  # columns beyond the rank that is wanted
_ROUNDS = 2  # power iterations
_LEAST = 1e-6  # of the largest singular value: below it the Gram matrix tells nothing
_TOLD = 1e-3  # of the largest: from here on its Gram matrix tells a triangle's singular vectors to 1e-9
_PIECE = 1 << 20  # elements of a piece
_READ = 1 << 18  # elements read at once
_LARGE = 1 << 20  # elements of a Gram matrix


def short_side(flat: Flat, how: str = "exact", rank: int | None = None, key: int = 0) -> tuple[Tensor, Tensor]:
    """Singular values of a matrix and the singular vectors of its short side, without holding it.

    Args:
        flat: [m, n]; k = min(m, n).
        how: ``exact`` (values below the float64 epsilon times max(m, n) of the largest are 0), ``gram`` (values below 1e-6 of the largest
            are 0) or ``randomised``, which is exact where it would not be faster (a rank near the full one).
        rank: how many; all k when None.
        key: what the random directions are drawn from, :func:`interfuse.kit.counter_random.tensor_key`.

    Returns:
        The values [rank] in falling order, and the vectors [k, rank]: right ones where m >= n, else left ones. float64.

    Raises:
        InterfuseError: ``input.nan`` for NaN or infinite elements.
    """
    return right_side(lambda: pieces(flat), min(flat.shape), how, rank, key)


def right_side(
    parts: Pieces, width: int, how: str = "exact", rank: int | None = None, key: int = 0
) -> tuple[Tensor, Tensor]:
    """The same of a matrix that is given in pieces of its rows: float64 [any, width], at least ``width`` rows together."""
    rank = width if rank is None else rank
    wide = rank + _MORE
    if how != "randomised" or 2 * wide > width:
        sizes, vectors = spectrum(parts, width, "gram" if how == "gram" else "exact")
        return sizes[:rank], vectors if rank == width else vectors[:, :rank].clone()
    generator = torch.Generator().manual_seed(key % (1 << 63))
    rough = torch.randn(
        width, wide, generator=generator
    )  # float32 is enough for a subspace that is only near the leading one
    for _ in range(_ROUNDS + 1):
        image = torch.zeros_like(rough)
        for piece in parts():
            part = piece.float()
            image.addmm_(part.T, part @ rough)
        rough = torch.linalg.qr(image).Q
    basis = rough.double()
    sizes, vectors = spectrum(lambda: (piece @ basis for piece in parts()), wide)
    return sizes[:rank], basis @ vectors[:, :rank]


def pieces(flat: Flat) -> Iterator[Tensor]:
    """A matrix [m, n] along its long side: float64 [rows, k] of it, or of its transpose where m < n. The pieces follow from the shape alone;
    each is a buffer that the next one overwrites.

    Raises:
        InterfuseError: ``input.nan`` for NaN or infinite elements.
    """
    step = _step(flat.shape)
    buffer = torch.empty(min(step, max(flat.shape)) * min(flat.shape), dtype=torch.float64)
    for at in range(0, max(flat.shape), step):
        yield _piece(flat, at, step, buffer)


def side_by_side(flats: Sequence[Flat], factors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Rows of ``[A_1 F_1, A_2 F_2, ...]`` for matrices of one shape [m, n] (for their transposes where m < n), of the same pieces; one piece
    of one matrix is held at a time.

    Args:
        flats: A_i. factors: F_i, float64 [k, r_i].

    Returns:
        float64 [rows, r_1 + r_2 + ...].

    Raises:
        InterfuseError: as :func:`pieces`.
    """
    shape = flats[0].shape
    step, long, width = _step(shape), max(shape), sum(factor.shape[1] for factor in factors)
    buffer = torch.empty(min(step, long) * min(shape), dtype=torch.float64)
    for at in range(0, long, step):
        made, left = torch.empty(min(step, long - at), width, dtype=torch.float64), 0
        for flat, factor in zip(flats, factors, strict=True):
            made[:, left : left + factor.shape[1]] = _piece(flat, at, step, buffer) @ factor
            left += factor.shape[1]
        yield made


def _step(shape: tuple[int, ...]) -> int:
    """Rows of a piece of a tall matrix, columns of one of a wide one."""
    m, n = shape
    return max((_PIECE if m < n else _PIECE // 2) // max(min(shape), 1), 256)  # a wide one is read once for each piece


def _piece(flat: Flat, at: int, step: int, buffer: Tensor) -> Tensor:
    """The piece of :func:`pieces` that begins at a row (of the transpose where m < n), in the buffer's memory."""
    m, n = flat.shape
    size, rows = min(step, max(m, n) - at), max(_READ // max(n, 1), 32)
    if m >= n:
        piece = buffer[: size * n].view(size, n)
        for row in range(0, size, rows):
            upto = min(row + rows, size)
            piece[row:upto] = flat.read((at + row) * n, (at + upto) * n).view(-1, n)
    else:
        piece = buffer[: m * size].view(m, size)
        for row in range(0, m, rows):
            upto = min(row + rows, m)
            piece[row:upto] = flat.read(row * n, upto * n).view(-1, n)[:, at : at + size]
        piece = piece.T
    if not math.isfinite(float(piece.sum())):  # sums of float32 numbers are far from the largest of float64
        raise InterfuseError("input.nan", "NaN or infinite numbers have no singular values")
    return piece


def spectrum(parts: Pieces, width: int, how: str = "exact") -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors of a matrix that is given in pieces of its rows.

    Args:
        parts: pieces [any, width], float64, read once.
        width: number of columns, at most that of rows.
        how: ``exact`` or ``gram``, as for :func:`short_side`.

    Returns:
        The values [width] in falling order, 0 for those that cannot be told from it, and the vectors [width, width]; float64.
    """
    if how == "gram":
        sizes, vectors = _by_eigenvectors(_gram(parts, width))
        return torch.where(sizes > _LEAST * sizes[0], sizes, 0.0), vectors
    folded, rows = triangle(parts, width)
    return _peeled(folded, torch.finfo(torch.float64).eps * max(rows, width))


def squares(how: str) -> int:
    """How many matrices [k, k] a decomposition of a matrix with the short side k holds at once: :func:`matrix_memory`."""
    return 3 if how == "gram" else 4


def matrix_memory(shape: tuple[int, ...], count: float) -> int:
    """Bytes that a preparation of a matrix takes: ``count`` matrices [k, k] of its short side, and a piece along the long one with two
    products of that size (:func:`side_by_side`), float64. What is read for a piece comes on top: a megabyte for each source."""
    short = min(shape)
    return int(8 * (count * short**2 + 3 * min(_step(shape), max(shape)) * short))


def times(flat: Flat, factors: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """Rows of ``A F_1 F_2 ...`` for a matrix A [m, n], m >= n, or of ``F_last^T ... F_1^T A`` where m < n: the same of the transpose.

    Args:
        flat: A. factors: float64, from [k, .] to [., k], k = min(m, n).
        start, stop: flat indices, of whole rows.

    Returns:
        float64 [rows, n].
    """
    m, n = flat.shape
    if m >= n:
        made = flat.read(start, stop).view(-1, n).double()
        for factor in factors:
            made = made @ factor
        return made
    left = factors[-1][:, start // n : stop // n].T
    for factor in reversed(factors[:-1]):
        left = left @ factor.T
    made = torch.zeros(len(left), n, dtype=torch.float64)
    rows = max(_READ // n, 64)
    for row in range(0, m, rows):
        upto = min(row + rows, m)
        made.addmm_(left[:, row:upto], flat.read(row * n, upto * n).view(-1, n).double())
    return made


def whitening(sizes: Tensor, vectors: Tensor) -> Tensor:
    """``(A^T A)^(-1/2)`` of a matrix with these singular values and right vectors: ``A`` times it is ``U V^T``, the polar factor of A,
    without the directions whose value is 0."""
    inverse = torch.where(sizes > 0, 1.0 / torch.where(sizes > 0, sizes, 1.0), 0.0)
    return (vectors * inverse) @ vectors.T


def _gram(parts: Pieces, width: int) -> Tensor:
    """``A^T A`` [width, width] of all pieces below each other."""
    total = torch.zeros(width, width, dtype=torch.float64)
    for part in parts():
        total.addmm_(part.T, part)
    return total


def triangle(parts: Pieces, width: int) -> tuple[Tensor, int]:
    """R [width, width] of a QR decomposition of all pieces [any, width] below each other, rows of zeros below them where they are fewer than
    ``width``; and the number of their rows."""
    # the triangle so far, and rows to be folded into it; column by column, so that LAPACK works in place
    stack, scales = torch.empty(width, 2 * width, dtype=torch.float64).mT, torch.empty(width, dtype=torch.float64)
    rows = filled = 0
    for part in parts():
        rows += len(part)
        while len(part):
            if filled == len(stack):
                torch.geqrf(stack, out=(stack, scales))
                stack[:width] = stack[:width].triu()
                filled = width
            taken = min(len(part), len(stack) - filled)
            stack[filled : filled + taken] = part[:taken]
            part, filled = part[taken:], filled + taken
    stack[filled:] = 0.0
    torch.geqrf(stack, out=(stack, scales))
    return stack[:width].triu(), rows


def _peeled(matrix: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Singular values [n] and right vectors [n, n] of a square matrix; values of at most ``least`` times the largest are given as 0.

    The eigenvectors of the Gram matrix are good where values are near the largest. These are taken, and what is left, without their
    directions on either side, is a matrix whose largest value is smaller: and so on. The vectors of what is left are corrected so that
    the matrix maps them to orthogonal ones; they are orthogonal themselves to 1e-9.
    """
    rest, basis, floor = matrix, torch.eye(0), 0.0
    sizes: list[Tensor] = []
    vectors: list[Tensor] = []
    while rest.shape[1]:
        found, turn = _by_eigenvectors(rest.T @ rest)
        top = float(found[0])
        floor = floor if sizes else least * top
        turned = basis @ turn if sizes else turn
        if top <= floor:
            sizes.append(torch.zeros_like(found))
            vectors.append(turned)
            break
        good = int((found > _TOLD * top).sum())
        sizes.append(found[:good])
        vectors.append(turned[:, :good])
        if good == len(found):
            break
        image = (rest @ turn[:, :good]) / found[:good]
        smaller = rest @ turn[:, good:]
        overlap = image.T @ smaller
        rest = smaller - image @ overlap
        basis = turned[:, good:] - turned[:, :good] @ (overlap / found[:good, None])
    return torch.cat(sizes), torch.cat(vectors, dim=1)


def _by_eigenvectors(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of a matrix A [m, n] in falling order and its right singular vectors [n, n], from ``A^T A``, which is overwritten."""
    if gram.numel() >= _LARGE:
        give_back()  # twice the matrix is needed beside it, which is most of all that a decomposition holds
    squares, vectors = gram.new_empty(len(gram)), gram.mT  # column by column, so that LAPACK works in place
    torch.linalg.eigh(vectors, out=(squares, vectors))
    return squares.flip(0).clamp_(min=0.0).sqrt_(), vectors.flip(1)
