"""Losses of a language model against the k best tokens of a teacher, a few positions at a time.

A teacher's stored distribution at a position is its k largest log-probabilities and the log of the mass that is left, the
*tail*. The tail counts as one more class (``missing="tail"``): the divergence of the k + 1 classes is never larger than that
of the whole vocabulary (data processing), and equal where k is the vocabulary. ``renormalise`` divides the kept part by its
sum on both sides; ``zero`` takes the teacher's mass beyond the k tokens as 0 and keeps the student's whole distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from interfuse.core.errors import InterfuseError
from interfuse.kit.chunked_losses import BLOCK, Divergence, _blocks
from interfuse.kit.losses import cross_entropy, full_precision

Missing = Literal["tail", "renormalise", "zero"]
#: log-probabilities below this are taken as nothing: the tail of a distribution that was kept whole
NOTHING = -80.0


def chunked_rows(
    loss: Callable[..., Tensor],
    student: Tensor,
    *others: Tensor,
    mask: Tensor | None = None,
    positions: int | None = None,
) -> Tensor:
    """``loss(student, *others)`` per position, one block of positions at a time; gradient to the student only.

    Equal to the plain call, but beside the logits and their gradient only one block of float32 numbers exists.

    Args:
        loss: ``[N, V], [N, ...], ... -> [N]``, position by position.
        student: ``[..., V]`` logits. others: ``[..., *]`` with the same leading shape, without gradient.
        mask: ``[...]``, false where a position does not count: it costs nothing, gives 0 and no gradient.
        positions: positions per block; by default as many as make a block of fixed size.

    Returns:
        ``[...]`` in float32 (float64 if the student is).

    Raises:
        InterfuseError: ``input.shape`` when leading shapes differ.
    """
    lead = student.shape[:-1]
    for other in (*others, *(() if mask is None else (mask,))):
        if other.shape[: len(lead)] != lead:
            raise InterfuseError("input.shape", "logits, targets and mask must have the same leading shape",
                                 where=f"{tuple(student.shape)}, {tuple(other.shape)}")  # fmt: skip
    rows = None if mask is None else mask.flatten().bool().nonzero().squeeze(1)
    flat = [x.reshape(-1, *x.shape[len(lead) :]) for x in others]
    positions = positions or max(1, BLOCK // max(student.shape[-1], 1))
    out: Tensor = _Rows.apply(loss, rows, positions, student.reshape(-1, student.shape[-1]), *flat)
    return out.reshape(lead)


class _Rows(torch.autograd.Function):
    """Forward without a graph; backward rebuilds one block's graph at a time."""

    @staticmethod
    def forward(ctx: Any, loss: Any, rows: Tensor | None, positions: int, student: Tensor, *others: Tensor) -> Tensor:
        ctx.loss, ctx.positions = loss, positions
        ctx.save_for_backward(rows, student, *others)
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        out = torch.zeros(len(student), dtype=dtype, device=student.device)
        for block in _blocks(len(student), rows, positions):
            out[block] = loss(full_precision(student[block]), *(x[block] for x in others)).to(dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rows, student, *others = ctx.saved_tensors
        found = torch.zeros_like(student)
        for block in _blocks(len(student), rows, ctx.positions):
            with torch.enable_grad():
                z = full_precision(student[block].detach()).requires_grad_()
                value = ctx.loss(z, *(x[block] for x in others))
            found[block] = torch.autograd.grad(value, z, grad[block].to(value.dtype))[0].to(found.dtype)
        return None, None, None, found, *(None for _ in others)


def token_cross_entropy(student: Tensor, labels: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Cross entropy with the next tokens, ``[..., V], [...] -> [...]``, in blocks; 0 where labels are ``ignore_index``."""
    mask = labels != ignore_index
    return chunked_rows(cross_entropy, student, labels.masked_fill(~mask, 0), mask=mask)


def kept_classes(
    student: Tensor, ids: Tensor, logp: Tensor, tail: Tensor, *, missing: Missing, tau: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Both distributions over the teacher's kept tokens (and the tail), as log-probabilities ``[N, k]`` or ``[N, k + 1]``.

    Args:
        student: ``[N, V]`` logits. ids, logp: ``[N, k]`` kept tokens, ``-inf`` where a place holds none. tail: ``[N]``, log of
            the teacher's mass beyond them, ``-inf`` for none.
        tau: temperature of both sides; other than 1 only with ``renormalise``.
    """
    lost = logp == -math.inf
    logp = logp.to(student.dtype)
    if missing == "renormalise":
        lq = student.gather(-1, ids).masked_fill(lost, -math.inf) / tau
        return lq.log_softmax(-1), (logp / tau).log_softmax(-1)
    lq = (student.gather(-1, ids) - student.logsumexp(-1, keepdim=True)).masked_fill(lost, -math.inf)
    if missing == "zero" or ids.shape[-1] >= student.shape[-1]:
        return lq, logp.log_softmax(-1) if missing == "zero" else logp
    rest = _log_rest(lq)
    tail = tail.to(student.dtype).unsqueeze(-1)
    return torch.cat([lq, rest], -1), torch.cat([logp, tail.clamp_min(NOTHING)], -1)


def _log_rest(lq: Tensor) -> Tensor:
    """``log(1 - sum exp lq)``, not below :data:`NOTHING`, with a gradient that stays finite."""
    room = 1 - lq.exp().sum(-1, keepdim=True)
    return room.clamp_min(torch.finfo(lq.dtype).eps).log()


def sparse_divergence(
    divergence: Divergence,
    student: Tensor,
    ids: Tensor,
    logp: Tensor,
    tail: Tensor,
    *,
    missing: Missing = "tail",
    tau: float = 1.0,
    mask: Tensor | None = None,
    positions: int | None = None,
) -> Tensor:
    """A divergence of :mod:`.losses` between a student and the stored k best tokens of a teacher, per position.

    Args:
        divergence: ``[N, K], [N, K] -> [N]`` on logits (student, teacher), such as ``forward_kl`` or a ``partial`` of ``js``.
        student: ``[..., V]``. ids, logp: ``[..., k]``. tail: ``[...]``. mask: ``[...]``.

    Raises:
        InterfuseError: ``param.value`` for a temperature with ``tail`` or ``zero``: what lies in the tail is not known at another.
    """
    if tau != 1.0 and missing != "renormalise":
        raise InterfuseError("param.value", "a temperature other than 1 needs the teacher's whole distribution", where="tau",
                             fix="Set missing: renormalise, or tau: 1.")  # fmt: skip

    def loss(z: Tensor, i: Tensor, lp: Tensor, rest: Tensor) -> Tensor:
        lq, lp = kept_classes(z, i, lp, rest, missing=missing, tau=tau)
        if (
            missing == "zero"
        ):  # the student's classes are not a whole distribution: only sums over the teacher's are taken
            return (lp.exp() * (lp - lq).masked_fill(lp == -math.inf, 0.0)).sum(-1)
        return divergence(lq, lp)

    value = chunked_rows(loss, student, ids, logp, tail, mask=mask, positions=positions)
    return value * tau**2


def sparse_cross_entropy(student: Tensor, ids: Tensor, logp: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """``-sum over kept tokens of p log q``, with p the softmax of the kept values: ``[..., V], [..., k], [..., k] -> [...]``."""

    def loss(z: Tensor, i: Tensor, lp: Tensor) -> Tensor:
        p = lp.to(z.dtype).softmax(-1)
        return z.logsumexp(-1) - (p * z.gather(-1, i)).sum(-1)

    return chunked_rows(loss, student, ids, logp, mask=mask)


def sparse_uld(student: Tensor, logp: Tensor, tail: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Universal logit distance (Boizard et al. 2024) on the k largest probabilities of both sides and what is left.

    ``sum_i |sort(p)_i - sort(q)_i|`` over the k largest and ``|tail_p - tail_q|``: never larger than the distance over the whole
    vocabularies, and equal where k covers both. ``[..., V], [..., k], [...] -> [...]``; tokens need no partner.
    """

    def loss(z: Tensor, lp: Tensor, rest: Tensor) -> Tensor:
        k = min(lp.shape[-1], z.shape[-1])
        q = (z.topk(k, dim=-1).values - z.logsumexp(-1, keepdim=True)).exp()
        p = lp.to(z.dtype).sort(dim=-1, descending=True).values.exp()
        beyond = p[..., k:].sum(-1) + rest.to(z.dtype).exp()
        return (p[..., :k] - q).abs().sum(-1) + (beyond - (1 - q.sum(-1))).abs()

    return chunked_rows(loss, student, logp, tail, mask=mask)
