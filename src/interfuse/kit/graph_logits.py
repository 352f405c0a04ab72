"""How the tokens of a vocabulary fire together, compared between two models without any common vocabulary.

InfiGFusion (Wang et al. 2025): a model's graph over a batch has tokens as nodes and ``C = 1/N sum over positions of z z^T`` as
weights, z the k largest logits of a position and 0 elsewhere. The Gromov-Wasserstein distance of two graphs costs n^4; compared
here are the sorted mean edge weights of the nodes, ``f = C 1 / n``, in time n log n and without ever making C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.kit.losses import full_precision

Scale = Literal["standardise", "raw"]
Nodes = Literal["active", "all"]
Mismatch = Literal["ot", "pad"]


@dataclass(frozen=True)
class Kept:
    """The k largest logits of N positions: ids int64 [N, k] and values [N, k] (``-inf`` where a place holds none)."""

    ids: Tensor
    values: Tensor


def keep(logits: Tensor, k: int, mask: Tensor | None = None) -> Kept:
    """The k largest logits of every position that counts; gradient flows through the values.

    Args:
        logits: ``[..., V]``. mask: ``[...]``.

    Raises:
        InterfuseError: ``param.value`` for k < 1 or k > V, ``input.empty`` when no position counts, ``input.nan``.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise InterfuseError(
            "param.value", f"k must lie between 1 and the {logits.shape[-1]} tokens, not {k}", where="top_k"
        )
    top = logits.topk(k, dim=-1)
    ids, values = top.indices.reshape(-1, k), full_precision(top.values.reshape(-1, k))
    if mask is not None:
        counts = mask.flatten().bool()
        ids, values = ids[counts], values[counts]
    if not len(ids):
        raise InterfuseError("input.empty", "no position counts, so there is no graph")
    if not bool(torch.isfinite(values).all()):
        raise InterfuseError("input.nan", "a kept logit is not a number")
    return Kept(ids, values)


def scaled(values: Tensor, scale: Scale) -> Tensor:
    """Kept logits on a common scale: minus the kept minimum, over the standard deviation of the kept values of a position.

    Unlike centring, which would make every node's feature 0, this keeps them positive. It takes out shift and scale. Places
    without a token become 0. ``raw`` leaves the numbers as they are.
    """
    there = torch.isfinite(values)
    if scale == "raw":
        return values.masked_fill(~there, 0.0)
    count = there.sum(-1, keepdim=True).clamp_min(1)
    least = values.masked_fill(~there, torch.inf).amin(-1, keepdim=True)
    moved = (values - least).masked_fill(~there, 0.0)
    mean = moved.sum(-1, keepdim=True) / count
    spread = ((moved - mean).masked_fill(~there, 0.0).square().sum(-1, keepdim=True) / count).clamp_min(1e-12).sqrt()
    return moved / spread


def node_features(kept: Kept, size: int, *, scale: Scale = "standardise", nodes: Nodes = "active") -> Tensor:
    """The mean edge weight of every node: ``f_i = 1/(n N) sum_t z_ti sum_j z_tj`` (equation of the row means of C).

    Args:
        size: tokens of the vocabulary. nodes: n counts the tokens that were kept anywhere (``active``), or the whole vocabulary,
            whose other features are 0 (``all``; the loss then shrinks with the third power of the vocabulary).

    Returns:
        [n] features.
    """
    z = scaled(kept.values, scale)
    joint = z * z.sum(-1, keepdim=True)
    if nodes == "all":
        flat, count = kept.ids.flatten(), size
    else:
        there = torch.isfinite(kept.values).flatten()
        known, flat = torch.unique(kept.ids.flatten(), return_inverse=True)
        held = torch.zeros(len(known), dtype=torch.bool, device=flat.device).index_fill_(0, flat[there], True)
        place = torch.cumsum(held, 0) - 1
        flat, count = place.clamp_min(0)[flat], int(held.sum())
    out = torch.zeros(count, dtype=joint.dtype, device=joint.device)
    return out.index_add(0, flat, joint.flatten()) / (count * len(kept.ids))


def sorted_distance(a: Tensor, b: Tensor, *, power: float = 2.0, mismatch: Mismatch = "ot") -> Tensor:
    """One-dimensional optimal transport between two sets of numbers of equal weights: ``integral |F_a^-1 - F_b^-1|^power``.

    Args:
        a, b: [n] and [m]. mismatch: for n != m the exact distance (``ot``), or the shorter one filled with zeros (``pad``).
    """
    n, m = len(a), len(b)
    if n != m and mismatch == "pad":
        a, b = (torch.cat([x, x.new_zeros(max(n, m) - len(x))]) for x in (a, b))
        n = m = max(n, m)
    a, b = a.sort().values, b.sort().values
    if n == m:
        return (a - b).abs().pow(power).mean()
    steps = torch.cat([torch.arange(1, n + 1, device=a.device) * m, torch.arange(1, m + 1, device=a.device) * n])
    edges = torch.unique(steps)  # ends of the intervals, in units of 1 / (n m)
    widths = torch.diff(edges, prepend=edges.new_zeros(1))
    begin = edges - widths
    return ((a[begin // m] - b[begin // n]).abs().pow(power) * (widths.to(a.dtype) / (n * m))).sum()


def gld_loss(
    student: Kept,
    teacher: Kept,
    student_size: int,
    teacher_size: int,
    *,
    scale: Scale = "standardise",
    nodes: Nodes = "active",
    power: float = 2.0,
    mismatch: Mismatch = "ot",
    budget: int = 2**28,
) -> Tensor:
    """Graph-on-logits distance of a batch, a scalar; 0 when both say the same, whatever their tokens are called.

    Args:
        student, teacher: see :func:`keep`; positions need not be as many. sizes: of the two vocabularies.
        budget: bytes that may be needed beside the logits.

    Raises:
        InterfuseError: ``input.limit`` when the graphs need more than ``budget`` bytes.
    """
    need = memory_of(student, student_size, nodes) + memory_of(teacher, teacher_size, nodes)
    if need > budget:
        raise InterfuseError("input.limit", f"the graphs need {need / 2**20:.0f} MB, the budget is {budget / 2**20:.0f} MB",
                             fix="Take a smaller batch or top_k, or raise graph_memory.")  # fmt: skip
    ours = node_features(student, student_size, scale=scale, nodes=nodes)
    theirs = node_features(teacher, teacher_size, scale=scale, nodes=nodes).to(ours.dtype)
    return sorted_distance(ours, theirs, power=power, mismatch=mismatch)


def memory_of(kept: Kept, size: int, nodes: Nodes) -> int:
    """The most bytes a graph's features take: eight numbers per kept logit, and as many per node for sorting."""
    most = size if nodes == "all" else min(size, kept.ids.numel())
    return 8 * (8 * kept.ids.numel() + 8 * most)


def standardised_uld(student: Tensor, teacher: Tensor) -> Tensor:
    """ULD on kept logits, each position standardised before its softmax (InfiFusion, Yan et al. 2025): ``[N, k], [N, k] -> [N]``."""

    def sorted_probs(values: Tensor) -> Tensor:
        there = torch.isfinite(values)
        count = there.sum(-1, keepdim=True).clamp_min(1)
        mean = values.masked_fill(~there, 0.0).sum(-1, keepdim=True) / count
        moved = (values - mean).masked_fill(~there, 0.0)
        spread = (moved.square().sum(-1, keepdim=True) / count).clamp_min(1e-12).sqrt()
        probs = (moved / spread).masked_fill(~there, -torch.inf).softmax(-1)
        return probs.sort(dim=-1, descending=True).values

    q, p = sorted_probs(full_precision(student)), sorted_probs(full_precision(teacher))
    width = max(p.shape[-1], q.shape[-1])
    p, q = (torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in (p, q))
    return (p.to(q.dtype) - q).abs().sum(-1)
