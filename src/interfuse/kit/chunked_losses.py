"""Any loss on ``[B, L, V]`` logits, a few positions at a time.

A divergence over a vocabulary of 150k tokens keeps several float32 copies of both logit tensors alive for the
backward pass. :func:`chunked` evaluates the very same function on blocks of positions and recomputes each block when
its gradient is asked for, so beside the logits and the gradient that autograd returns only one block exists at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from interfuse.core.errors import InterfuseError
from interfuse.kit.losses import full_precision

Divergence = Callable[[Tensor, Tensor], Tensor]

#: Numbers in one block: 4 MB per float32 copy. Larger blocks cost memory and, on a CPU, gain no speed.
BLOCK = 2**20


def chunked(
    divergence: Divergence,
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    positions: int | None = None,
) -> Tensor:
    """``divergence(student, teacher)`` per position, without full-size intermediate tensors.

    Equal to the plain call, gradient included. Gradients reach ``student`` and ``teacher`` only (not, say, a trainable
    temperature held by ``divergence``) and cannot be differentiated again.

    Args:
        divergence: a position-wise loss ``[N, V], [N, V'] -> [N]``, such as :func:`~interfuse.kit.losses.forward_kl`,
            ``reverse_kl`` or ``functools.partial(js, beta=0.1, tau=2.0)``. Losses that relate positions do not fit.
        student: ``[..., V]`` logits of any floating type.
        teacher: ``[..., V']``, the same leading shape.
        mask: ``[...]``, false or 0 where a position does not count: it costs nothing, gives 0 and no gradient.
        positions: positions per block; by default as many as make :data:`BLOCK` numbers.

    Returns:
        ``[...]`` in float32 (float64 if either side is).

    Raises:
        InterfuseError: ``input.shape`` if leading shapes differ, ``param.value`` if ``positions`` < 1.
    """
    lead = student.shape[:-1]
    if student.ndim == 0 or teacher.shape[:-1] != lead or (mask is not None and mask.shape != lead):
        raise InterfuseError(
            "input.shape",
            "student, teacher and mask must have the same leading shape",
            where=f"{tuple(student.shape)}, {tuple(teacher.shape)}"
            + (f", mask {tuple(mask.shape)}" if mask is not None else ""),
        )
    if positions is None:
        positions = max(1, BLOCK // max(student.shape[-1], teacher.shape[-1], 1))
    if positions < 1:
        raise InterfuseError("param.value", f"positions must be at least 1, not {positions}")
    rows = None if mask is None else mask.flatten().bool().nonzero().squeeze(1)
    flat_s, flat_t = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
    out: Tensor = _Chunked.apply(divergence, flat_s, flat_t, rows, positions)
    return out.reshape(lead)


class _Chunked(torch.autograd.Function):
    """Forward without a graph; backward rebuilds one block's graph at a time."""

    @staticmethod
    def forward(
        ctx: Any, divergence: Divergence, student: Tensor, teacher: Tensor, rows: Tensor | None, positions: int
    ) -> Tensor:
        ctx.divergence, ctx.positions = divergence, positions
        ctx.save_for_backward(student, teacher, rows)
        dtype = torch.promote_types(
            *(torch.float64 if x.dtype == torch.float64 else torch.float32 for x in (student, teacher))
        )
        out = torch.zeros(len(student), dtype=dtype, device=student.device)
        for block in _blocks(len(student), rows, positions):
            out[block] = divergence(student[block], teacher[block])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, rows = ctx.saved_tensors
        sides = (student, teacher)
        wanted = [i for i in (0, 1) if ctx.needs_input_grad[1 + i]]
        grads: list[Tensor | None] = [None, None]
        for i in wanted:
            grads[i] = torch.zeros_like(sides[i])
        for block in _blocks(len(student), rows, ctx.positions):
            with torch.enable_grad():
                parts = [full_precision(x[block].detach()) for x in sides]
                for i in wanted:
                    parts[i] = parts[i].detach().requires_grad_()
                loss = ctx.divergence(*parts)
            for i, g in zip(wanted, torch.autograd.grad(loss, [parts[i] for i in wanted], grad[block]), strict=True):
                target = grads[i]
                assert target is not None
                target[block] = g.to(target.dtype)
        return None, grads[0], grads[1], None, None


def _blocks(count: int, rows: Tensor | None, positions: int) -> Iterator[slice | Tensor]:
    """Slices (views) of all positions, or index tensors when a mask leaves some out."""
    if rows is None:
        for start in range(0, count, positions):
            yield slice(start, start + positions)
    else:
        yield from (part for part in rows.split(positions) if len(part))
