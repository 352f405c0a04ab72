"""A 3 x 3 convolution of two maps mixed place by place, the second a coarse one enlarged twofold, without building what is wide and large."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Kernels(NamedTuple):
    """What :func:`conv_mixed` does with its maps of I and C channels.

    Attributes:
        fine: [O, I + 1, 3, 3], the last column for a channel of ones. coarse: [O, C, 3, 3].
        fine_logits: [2, I], coarse_logits: [2, C], bias: [2]: how the two shares of a place are told.
    """

    fine: Tensor
    coarse: Tensor
    fine_logits: Tensor
    coarse_logits: Tensor
    bias: Tensor


def conv_mixed(fine: Tensor, coarse: Tensor, kernels: Kernels) -> Tensor:
    """``conv2d(a * [fine, 1], kernels.fine) + conv2d(b * y, kernels.coarse)``, both with a border of one 0: [B, O, 2h, 2w].

    ``y`` is ``coarse`` enlarged twofold by repetition, and the shares ``(a, b) = sigmoid(fine_logits fine + coarse_logits y + bias)`` are
    two numbers per place. The nine columns of the coarse kernel are applied to the coarse map, a quarter of the places; what a place of
    the result takes of them is weighted and summed there. With C coarse channels that is ``9 C O`` multiplications per coarse place and
    ``9 O`` per fine one instead of ``9 C O`` per fine one, and nothing of C channels is built at full size.

    Args:
        fine: [B, I, 2h, 2w] and coarse: [B, C, h, w], best with channels last.

    Returns:
        With channels last.
    """
    device = fine.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else fine.dtype
    found: Tensor = _Mixed.apply(*(x.to(dtype) for x in (fine, coarse, *kernels)))
    return found


class _Step(NamedTuple):
    """A column of the kernel as it falls on quarters (by parity of row and column) of the result, by one shift.

    Attributes:
        column: which. quarters: of the result, slices by row and column. others: of the shares it meets, in the same order.
        shift: rows and columns to the coarse place it reads.
    """

    column: int
    quarters: tuple[slice, slice]
    others: tuple[slice, slice]
    shift: tuple[int, int]


def _steps() -> tuple[_Step, ...]:
    """All 25, the one that reaches every place of the result first."""
    found = []
    #: by the column's offset along one axis: quarters, the shares' quarters, shift
    along: dict[int, tuple[tuple[int | slice, int | slice, int], ...]] = {
        -1: ((1, 0, 0), (0, 1, -1)),
        0: ((slice(None), slice(None), 0),),
        1: ((0, 1, 0), (1, 0, 1)),
    }
    for row in (0, -1, 1):
        for rest in (0, -1, 1):
            for q, o, down in along[row]:
                for r, p, right in along[rest]:
                    pick = [k if isinstance(k, slice) else slice(k, k + 1) for k in (q, r, o, p)]
                    found.append(_Step(3 * row + rest + 4, (pick[0], pick[1]), (pick[2], pick[3]), (down, right)))
    return tuple(found)


STEPS = _steps()
SHIFTS = tuple(dict.fromkeys(step.shift for step in STEPS))


class _Mixed(torch.autograd.Function):
    """All coarse places of a batch lie in one row of N = B h w, so that a neighbour is a shift of the row.

    A shift also reaches places that are none, beyond the border or of the next example; those weigh 0. What is of the fine map lies in
    its order, or by quarters, [4, ..., N]: those of the four fine places that share a coarse one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        fine: Tensor,
        coarse: Tensor,
        narrow: Tensor,
        kernel: Tensor,
        mine: Tensor,
        theirs: Tensor,
        bias: Tensor,
    ) -> Tensor:
        grid = (len(coarse), *coarse.shape[2:])
        with torch.autocast(fine.device.type, enabled=False):
            fine = fine.contiguous(memory_format=torch.channels_last)
            flat = fine.permute(0, 2, 3, 1)  # [B, 2h, 2w, I]
            rows = coarse.permute(0, 2, 3, 1).flatten(0, 2)  # [N, C]
            weight = torch.cat([kernel.permute(2, 3, 0, 1).flatten(0, 2), theirs])  # [9 O + 2, C]
            columns = weight @ rows.T
            logits = _apart(F.linear(flat, mine, bias))  # [4, 2, N]
            shares = torch.sigmoid(logits.add_(columns[-2:]))
            own = _together(shares[:, :1], grid)  # [B, 2h, 2w, 1]
            mixed = torch.cat([flat * own, own], dim=3).permute(0, 3, 1, 2)
            found = F.conv2d(mixed, narrow, padding=1)
        parts = columns[:-2].unflatten(0, (9, -1)).unbind()  # nine of [O, N]
        total, weights = parts[0].new_empty(2, 2, *parts[0].shape), _weights(shares[:, 1], grid)
        for number, (column, quarters, others, shift) in enumerate(STEPS):
            put, take = _reach(shift, grid)
            _add(total[quarters][..., put], parts[column][:, take], weights[shift][others][..., take], number == 0)
        whole = found.permute(0, 2, 3, 1)
        for k in range(4):  # turned first: adding what lies the other way round would take twice as long
            whole[:, k // 2 :: 2, k % 2 :: 2].add_(total[k // 2, k % 2].T.contiguous().unflatten(0, grid))
        ctx.save_for_backward(fine, rows, weight, narrow, mine, columns, shares, own, mixed)
        ctx.grid = grid
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        fine, rows, weight, narrow, mine, columns, shares, own, mixed = ctx.saved_tensors
        grid, flat = ctx.grid, fine.permute(0, 2, 3, 1)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        # the fine map's half
        back = gradient.permute(0, 2, 3, 1)  # [B, 2h, 2w, O]
        *_, of_narrow, _ = torch.ops.aten.convolution_backward(
            gradient, mixed, narrow, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
        )
        turned = narrow.flip(2, 3).transpose(0, 1)  # [I + 1, O, 3, 3]
        of_mixed = F.conv2d(gradient, turned[:-1], padding=1).permute(0, 2, 3, 1)
        of_own = torch.linalg.vecdot(of_mixed, flat).add_(_single(back, turned[-1]))
        of_fine = of_mixed.mul_(own)
        # the coarse map's
        parts, back = columns[:-2].unflatten(0, (9, -1)).unbind(), _apart(back).unflatten(0, (2, 2))
        of_columns, of_shares = torch.empty_like(columns), torch.empty_like(shares)
        of_parts = of_columns[:-2].unflatten(0, (9, -1)).unbind()
        product, inside = torch.empty_like(back), _inside(*grid, shares.dtype, shares.device)
        of_other, weights = torch.zeros_like(shares[:, 1]).unflatten(0, (2, 2)), _weights(shares[:, 1], grid)
        for column, quarters, others, shift in STEPS:
            put, take = _reach(shift, grid)
            here, there = back[quarters][..., put], weights[shift][others][..., take]
            for k, (one, share) in enumerate(zip(here.flatten(0, 1), there.flatten(0, 1), strict=True)):
                _add(of_parts[column][:, take], one, share, k == 0 and not any(shift))
            seen = torch.mul(here, parts[column][:, take], out=product[quarters][..., take]).sum(dim=2)
            of_other[others][..., take].addcmul_(seen, inside[shift][take])
        # the shares
        of_shares[:, 0], of_shares[:, 1] = _apart(of_own.unsqueeze(3))[:, 0], of_other.flatten(0, 1)
        of_logits = torch.ops.aten.sigmoid_backward(of_shares, shares)
        torch.sum(of_logits, dim=0, out=of_columns[-2:])
        fine_logits = _together(of_logits, grid).flatten(0, 2)  # [4 N, 2]
        of_fine.flatten(0, 2).addmm_(fine_logits, mine)
        of_mine, of_bias = fine_logits.T @ flat.flatten(0, 2), fine_logits.sum(dim=0)
        of_coarse = (of_columns.T @ weight).unflatten(0, grid).permute(0, 3, 1, 2)
        of_weight = of_columns @ rows
        of_kernel = of_weight[:-2].unflatten(0, (3, 3, -1)).permute(2, 3, 0, 1)
        return of_fine.permute(0, 3, 1, 2), of_coarse, of_narrow, of_kernel, of_mine, of_weight[-2:], of_bias


def _add(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """``total += a * b``; the first time ``total = a * b``."""
    if first:
        torch.mul(a, b, out=total)
    else:
        total.addcmul_(a, b)


def _apart(x: Tensor) -> Tensor:
    """A fine map [B, 2h, 2w, C] by quarters: [4, C, N]."""
    quarters = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(2, 4, 5, 0, 1, 3)  # [2, 2, C, B, h, w]
    return quarters.flatten(3, 5).flatten(0, 1).contiguous()


def _together(parts: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The inverse of :func:`_apart`."""
    return (
        parts.unflatten(2, grid).unflatten(0, (2, 2)).permute(3, 4, 0, 5, 1, 2).flatten(3, 4).flatten(1, 2).contiguous()
    )


def _single(x: Tensor, kernel: Tensor) -> Tensor:
    """A 3 x 3 convolution of [B, H, W, C] with a kernel [C, 3, 3] of one result: [B, H, W]."""
    columns = F.pad(
        (kernel.flatten(1).T @ x.flatten(0, 2).T).unflatten(1, x.shape[:3]), (1, 1, 1, 1)
    )  # [9, B, H + 2, W + 2]
    found = columns[0, :, :-2, :-2].clone()
    for k in range(1, 9):
        found += columns[k, :, k // 3 : k // 3 + x.shape[1], k % 3 : k % 3 + x.shape[2]]
    return found


def _weights(shares: Tensor, grid: tuple[int, int, int]) -> dict[tuple[int, int], Tensor]:
    """By shift: the shares [4, N] as [2, 2, 1, N], 0 where it leaves the map."""
    inside, shares = _inside(*grid, shares.dtype, shares.device), shares.unflatten(0, (2, 2)).unsqueeze(2)
    return {shift: shares * inside[shift] if any(shift) else shares for shift in SHIFTS}


@functools.lru_cache(maxsize=4)
def _inside(
    batch: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> dict[tuple[int, int], Tensor]:
    """By shift: 1 for the places [N] that a place of the map reads by it, 0 for those that only the row's order puts there."""
    size, found = (height, width), {}
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            rows, columns = (slice(max(0, s), n + min(0, s)) for s, n in zip((down, right), size, strict=True))
            grid = torch.zeros(size, dtype=dtype, device=device)
            grid[rows, columns] = 1
            found[down, right] = grid.expand(batch, *size).flatten()
    return found


def _reach(shift: tuple[int, int], grid: tuple[int, int, int]) -> tuple[slice, slice]:
    """What a shift writes and reads of the row of all places."""
    offset, places = shift[0] * grid[2] + shift[1], grid[0] * grid[1] * grid[2]
    offset = max(-places, min(offset, places))
    return slice(max(0, -offset), places - max(0, offset)), slice(max(0, offset), places - max(0, -offset))
