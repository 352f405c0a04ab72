"""A 3 x 3 convolution of a coarse map that is enlarged twofold and weighted place by place, without building the enlarged map."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Place = tuple[slice, slice]


def conv_enlarged(coarse: Tensor, share: Tensor, kernel: Tensor) -> Tensor:
    """``conv2d(share * nearest(coarse), kernel, padding=1)``, nearest enlarging both sides twofold: [B, O, 2h, 2w].

    The kernel's nine columns are applied to the coarse map, a quarter of the places; what a place of the result takes of them is
    weighted and summed there. With C input channels that is ``9 C O`` multiplications per coarse place and ``9 O`` per fine one instead of
    ``9 C O`` per fine one, and nothing of C channels is built at full size.

    Args:
        coarse: [B, C, h, w]. share: one weight per place of the result [B, 1, 2h, 2w]. kernel: [O, C, 3, 3].
    """
    columns = F.conv2d(coarse, kernel.permute(2, 3, 0, 1).flatten(0, 2)[:, :, None, None])
    found: Tensor = _Gathered.apply(columns.unflatten(1, (9, -1)), share.to(columns.dtype))
    return found


def _steps(height: int, width: int) -> list[tuple[int, int, int, bool, Place, Place]]:
    """For every column of the kernel and every quarter (row, column parity) of the result: the quarter, the column, the quarter of the
    shares it meets, whether no place lies beyond the border, and the coarse places written and read.

    Of every quarter of the result, every column and every quarter of the shares the first step reaches all places.
    """
    found = []
    for column in (4, 0, 1, 2, 3, 5, 6, 7, 8):  # the middle first
        for quarter in range(4):
            row, rest = quarter // 2 + column // 3 - 1, quarter % 2 + column % 3 - 1
            down, right = row // 2, rest // 2  # the coarse neighbour that is read: -1, 0 or 1
            write = (slice(max(0, -down), height - max(0, down)), slice(max(0, -right), width - max(0, right)))
            read = (slice(max(0, down), height - max(0, -down)), slice(max(0, right), width - max(0, -right)))
            found.append((quarter, column, 2 * (row % 2) + rest % 2, down == right == 0, write, read))
    return sorted(found, key=lambda step: not step[3])


def _quarters(x: Tensor) -> Tensor:
    """[B, C, 2h, 2w] -> [4, B, C, h, w], by parity of row and column."""
    parts = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, h, 2, w, 2]
    return parts.permute(3, 5, 0, 1, 2, 4).flatten(0, 1).contiguous()


def _whole(parts: Tensor) -> Tensor:
    """The inverse of :func:`_quarters`."""
    return parts.unflatten(0, (2, 2)).permute(2, 3, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)


class _Gathered(torch.autograd.Function):
    """Columns [B, 9, O, h, w] weighted by shares [B, 1, 2h, 2w] and summed where they fall: [B, O, 2h, 2w]."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, share: Tensor) -> Tensor:
        shares = _quarters(share)
        batch, _, out, height, width = columns.shape
        found = columns.new_empty(4, batch, out, height, width)
        begun: set[int] = set()
        for quarter, column, other, everywhere, write, read in _steps(height, width):
            seen, weights = columns[:, column][(..., *read)], shares[other][(..., *read)]
            _gather(found[quarter], seen, weights, write, everywhere, quarter, begun)
        ctx.save_for_backward(columns, shares)
        return _whole(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        columns, shares = ctx.saved_tensors
        parts = _quarters(gradient)
        of_columns, products = torch.empty_like(columns), torch.empty_like(parts)  # products: by quarter of the shares
        begun: dict[str, set[int]] = {"column": set(), "share": set()}
        for quarter, column, other, everywhere, write, read in _steps(columns.shape[3], columns.shape[4]):
            part, seen = parts[quarter][(..., *write)], columns[:, column][(..., *read)]
            _gather(of_columns[:, column], part, shares[other][(..., *read)], read, everywhere, column, begun["column"])
            _gather(products[other], part, seen, read, everywhere, other, begun["share"])
        return of_columns, _whole(products.sum(dim=2, keepdim=True))


def _gather(total: Tensor, a: Tensor, b: Tensor, place: Place, everywhere: bool, name: int, begun: set[int]) -> None:
    """``total[place] += a * b``; the first time, when every place is reached, ``total = a * b``."""
    if everywhere and name not in begun:
        begun.add(name)
        torch.mul(a, b, out=total)
    else:
        total[(..., *place)].addcmul_(a, b)
