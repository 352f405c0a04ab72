"""A 3 x 3 convolution of a coarse map that is enlarged twofold and weighted place by place, without building the enlarged map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def conv_enlarged(coarse: Tensor, share: Tensor, kernel: Tensor) -> Tensor:
    """``conv2d(share * nearest(coarse), kernel, padding=1)``, nearest enlarging both sides twofold: [B, O, 2h, 2w].

    The kernel's nine columns are applied to the coarse map, a quarter of the places; what a place of the result takes of them is
    weighted and summed there. With C input channels that is ``9 C O`` multiplications per coarse place and ``9 O`` per fine one instead of
    ``9 C O`` per fine one, and nothing of C channels is built at full size.

    Args:
        coarse: [B, C, h, w], best with channels last. share: one weight per place of the result [B, 1, 2h, 2w].
        kernel: [O, C, 3, 3].
    """
    found: Tensor = _Enlarged.apply(coarse, share.to(coarse.dtype), kernel.to(coarse.dtype))
    return found


class _Step(NamedTuple):
    """A column of the kernel as it falls on a quarter (by parity of row and column) of the result.

    Attributes:
        quarter, column: which. other: the quarter of the shares it meets. shift: rows and columns to the coarse place it reads.
        first: whether it is the first one for its quarter, and for its column.
    """

    quarter: int
    column: int
    other: int
    shift: tuple[int, int]
    first: tuple[bool, bool]


def _steps() -> Iterator[_Step]:
    """All 36, those first that reach every place of the result."""
    found = []
    for column in (4, 0, 1, 2, 3, 5, 6, 7, 8):  # the middle first
        for quarter in range(4):
            row, rest = quarter // 2 + column // 3 - 1, quarter % 2 + column % 3 - 1
            found.append((quarter, column, 2 * (row % 2) + rest % 2, (row // 2, rest // 2)))
    quarters, columns = set(range(4)), set(range(9))
    for quarter, column, other, shift in sorted(found, key=lambda step: step[3] != (0, 0)):
        yield _Step(quarter, column, other, shift, (quarter in quarters, column in columns))
        quarters.discard(quarter)
        columns.discard(column)


STEPS = tuple(_steps())


class _Enlarged(torch.autograd.Function):
    """All coarse places of a batch lie in one row of N = B h w, so that a neighbour is a shift of the row.

    A shift also reaches places that are none, beyond the border or of the next example; those weigh 0.
    """

    @staticmethod
    def forward(ctx: Any, coarse: Tensor, share: Tensor, kernel: Tensor) -> Tensor:
        with torch.autocast(coarse.device.type, enabled=False):
            rows, weight = _flat(coarse, kernel)
            columns = (weight @ rows.T).unflatten(0, (9, -1))  # [9, O, N]
        shares, inside = _quarters(share)[:, 0], _inside(coarse)
        found = columns.new_empty(4, *columns.shape[1:])
        for quarter, column, other, shift, (first, _) in STEPS:
            put, take = _reach(shift, coarse)
            _add(found[quarter][:, put], columns[column][:, take], (shares[other] * inside[shift])[take], first)
        ctx.save_for_backward(coarse, kernel, columns, shares)
        return _whole(found, coarse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coarse, kernel, columns, shares = ctx.saved_tensors
        parts, inside = _quarters(gradient), _inside(coarse)
        of_columns, of_shares, product = torch.empty_like(columns), torch.zeros_like(shares), torch.empty_like(parts[0])
        for quarter, column, other, shift, (_, first) in STEPS:
            put, take = _reach(shift, coarse)
            part, seen = parts[quarter][:, put], columns[column][:, take]
            _add(of_columns[column][:, take], part, (shares[other] * inside[shift])[take], first)
            of_shares[other][take] += torch.mul(part, seen, out=product[:, take]).sum(dim=0) * inside[shift][take]
        (rows, weight), flat = _flat(coarse, kernel), of_columns.flatten(0, 1)
        of_coarse = (flat.T @ weight).unflatten(0, (len(coarse), *coarse.shape[2:])).permute(0, 3, 1, 2)
        of_kernel = (flat @ rows).unflatten(0, (3, 3, -1)).permute(2, 3, 0, 1)
        return of_coarse, _whole(of_shares[:, None], coarse), of_kernel


def _add(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """``total += a * b``; the first time ``total = a * b``."""
    if first:
        torch.mul(a, b, out=total)
    else:
        total.addcmul_(a, b)


def _flat(coarse: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The coarse places [N, C] and the kernel's columns [9 O, C]."""
    return coarse.permute(0, 2, 3, 1).flatten(0, 2), kernel.permute(2, 3, 0, 1).flatten(0, 2)


def _quarters(x: Tensor) -> Tensor:
    """[B, C, 2h, 2w] -> [4, C, N], by parity of row and column."""
    parts = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, h, 2, w, 2]
    return parts.permute(3, 5, 1, 0, 2, 4).flatten(3, 5).flatten(0, 1).contiguous()


def _whole(parts: Tensor, coarse: Tensor) -> Tensor:
    """The inverse of :func:`_quarters` for a coarse map, with channels last."""
    apart = parts.unflatten(2, (len(coarse), *coarse.shape[2:])).unflatten(0, (2, 2))  # [2, 2, C, B, h, w]
    return apart.permute(3, 4, 0, 5, 1, 2).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _inside(coarse: Tensor) -> dict[tuple[int, int], Tensor]:
    """By shift: 1 for the places [N] that a place of the map reads by it, 0 for those that only the row's order puts there."""
    size = coarse.shape[2:]
    found = {}
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            rows, columns = (slice(max(0, s), n + min(0, s)) for s, n in zip((down, right), size, strict=True))
            grid = coarse.new_zeros(size)
            grid[rows, columns] = 1
            found[down, right] = grid.expand(len(coarse), *size).flatten()
    return found


def _reach(shift: tuple[int, int], coarse: Tensor) -> tuple[slice, slice]:
    """What a shift writes and reads of the row of all places."""
    offset, places = shift[0] * coarse.shape[3] + shift[1], coarse.numel() // coarse.shape[1]
    offset = max(-places, min(offset, places))
    return slice(max(0, -offset), places - max(0, offset)), slice(max(0, offset), places - max(0, -offset))
