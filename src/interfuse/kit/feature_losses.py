"""Distillation losses on features and on relations between samples: pure functions, one number per sample.

Features are vectors ``[B, D]``, token grids ``[B, N, D]`` or maps ``[B, C, H, W]``; work is done in float32 (float64 stays
float64), matrix products included, also under autocast.

A *relational* loss (similarity-preserving, RKD, CKA, the token graph) is defined on a whole batch. It is returned as
per-sample shares whose **mean is the published scalar**; a share belongs to the row of the relation matrix that the
sample owns. Weighting shares is therefore weighting rows, and the shares change when the batch does.

Gradients flow to both sides: detach a frozen teacher. Wrong shapes raise
:class:`~interfuse.core.errors.InterfuseError` with code ``input.shape``, wrong parameters with ``param.value``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from interfuse.core.errors import InterfuseError
from interfuse.kit.losses import full_precision

#: keeps square roots of lengths differentiable at 0, also in float32 and multiplied by each other
_TINY = 1e-30
#: least length that a difference is divided by
_LEAST = 1e-12

# -- one sample at a time --------------------------------------------------------------------------------------------


def hint_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two features of one shape (FitNets, Romero et al. 2015). ``[B, ...] -> [B]``.

    Unequal widths go through a trainable regressor first, which belongs to the method.
    """
    _check_same(student, teacher)
    return (full_precision(student) - full_precision(teacher)).square().flatten(1).mean(dim=1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - cos(s, t)`` over the last dimension, in [0, 2]. ``[..., D] -> [...]``."""
    _check_same(student, teacher)
    return 1 - (_unit(full_precision(student)) * _unit(full_precision(teacher))).sum(dim=-1)


def norm_direction(student: Tensor, teacher: Tensor, centre: Tensor) -> Tensor:
    """ND loss of KD++: ``1 - <s, e> / max(||s||, ||t||)`` with ``e = c / ||c||`` (Wang et al. 2023). ``[B, D] -> [B]``.

    A student shorter than its teacher is pulled in length and direction, a longer one in direction alone.

    Args:
        student: ``[B, D]`` penultimate features.
        teacher: ``[B, D]``.
        centre: ``[B, D]``, the teacher's class mean of each sample's *label*, for instance ``means[labels]``.
    """
    return norm_direction_watched(student, teacher, _unit(full_precision(centre)))[0]


def norm_direction_watched(student: Tensor, teacher: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of :func:`norm_direction`, and without gradient the student's length ``||s||`` and cosine ``<s, e> / ||s||``: each ``[B]``.

    Args:
        student, teacher: ``[B, D]``. direction: ``[B, D]``, the unit vector e of each sample.
    """
    _check_same(student, teacher)
    _check_same(student, direction, "student", "centre")
    found: tuple[Tensor, Tensor, Tensor] = _NormDirection.apply(
        full_precision(student), full_precision(teacher), full_precision(direction)
    )
    return found


class _NormDirection(torch.autograd.Function):
    """:func:`norm_direction_watched`, in the few operations its gradient needs when it is written out."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        along, own, theirs = torch.linalg.vecdot(s, direction), *(torch.linalg.vector_norm(x, dim=-1) for x in (s, t))
        tiny = torch.finfo(own.dtype).tiny
        longest, length = torch.maximum(own, theirs).clamp_min(tiny), own.clamp_min(tiny)
        share = along / longest
        ctx.save_for_backward(s, t, direction, own, theirs, longest, share)
        ctx.mark_non_differentiable(own, found := along / length)
        return 1 - share, own, found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        s, t, direction, own, theirs, longest, share = ctx.saved_tensors
        per, tiny = gradient / longest, torch.finfo(own.dtype).tiny
        pull = per * share  # of the longer of both; of each half where they are equal
        first = (torch.sign(own - theirs) + 1) / 2
        of_s = torch.addcmul(
            (pull * first / own.clamp_min(tiny)).unsqueeze(-1) * s, per.unsqueeze(-1), direction, value=-1
        )
        _, second, third = ctx.needs_input_grad
        of_t = (pull * (1 - first) / theirs.clamp_min(tiny)).unsqueeze(-1) * t if second else None
        return of_s, of_t, -per.unsqueeze(-1) * s if third else None


def attention_transfer(student: Tensor, teacher: Tensor, *, p: float = 2.0) -> Tensor:
    """Attention transfer of one stage (Zagoruyko & Komodakis 2017), as trained by the authors' code.

    The attention of a position is the mean over channels of ``|a|^p``; both maps are L2-normalised and the squared
    difference is averaged over positions. (Equation 2 of the paper takes the norm of the difference instead.)
    The larger of two maps is average-pooled to the smaller. Sum over stages yourself.

    Args:
        student: ``[B, C, H, W]`` map or ``[B, N, D]`` tokens; widths may differ.
        teacher: the same kind.
        p: exponent, > 0.

    Returns:
        ``[B]``.
    """
    if p <= 0:
        raise InterfuseError("param.value", f"p must be > 0, not {p}")
    s, t = full_precision(student), full_precision(teacher)
    if (
        s.ndim != t.ndim
        or s.ndim not in (3, 4)
        or s.shape[0] != t.shape[0]
        or (s.ndim == 3 and s.shape[1] != t.shape[1])
    ):
        raise _shape_error("attention transfer needs two maps [B, C, H, W] or two token grids [B, N, D]", s, t)
    if s.ndim == 4:
        size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
        s, t = (F.adaptive_avg_pool2d(x, size) if x.shape[2:] != size else x for x in (s, t))
    channel = 1 if s.ndim == 4 else 2
    a_s, a_t = (_unit(x.abs().pow(p).mean(dim=channel).flatten(1)) for x in (s, t))
    return (a_s - a_t).square().mean(dim=1)


def contextual(student: Tensor, teacher: Tensor, rows: slice | None = None) -> Tensor:
    """Contextual (inner-instance) loss of TRG (Zhang et al. 2023): how the tokens of one sample attend to each other.

    Mean squared difference of ``softmax_row(F F^T / sqrt(D))``, each side with its own width D.

    Args:
        student: ``[B, N, D_s]``.
        teacher: ``[B, N, D_t]``.
        rows: tokens whose share of the whole alone is wanted; only their rows of the N x N matrices are made.

    Returns:
        ``[B]``.
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise _shape_error("both sides need [B, N, D] with the same B and N", student, teacher)
    c_s, c_t = (
        torch.softmax(_matmul(x if rows is None else x[:, rows], x.transpose(1, 2)) / x.shape[2] ** 0.5, dim=-1)
        for x in (full_precision(student), full_precision(teacher))
    )
    squares = (c_s - c_t).square().flatten(1)
    return squares.mean(dim=1) if rows is None else squares.sum(dim=1) / student.shape[1] ** 2


def inter_channel_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """ICKD (Liu et al. 2021): ``||E_t - E_s||_F^2 / C`` per sample, E the channels' Gram matrix with L2-normalised rows.

    Args:
        student: ``[B, C, H, W]`` map, ``[B, N, C]`` tokens or ``[B, C]`` vectors; project to the teacher's width first.
        teacher: the same kind with the same C.

    Returns:
        ``[B]``; the mean is the published scalar.
    """
    if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4) or len(student) != len(teacher):
        raise _shape_error("inter-channel correlation needs two maps, two token grids or two vectors", student, teacher)
    s, t = (
        x.flatten(2) if x.ndim == 4 else x.transpose(1, 2) if x.ndim == 3 else x.unsqueeze(2)
        for x in (full_precision(student), full_precision(teacher))
    )  # [B, C, places]
    if s.shape[1] != t.shape[1]:
        raise _shape_error("both sides must have the same number of channels", student, teacher)
    if s.shape[2] + t.shape[2] >= s.shape[1]:
        e_s, e_t = (_unit(_matmul(x, x.transpose(1, 2))) for x in (s, t))
        return (e_s - e_t).square().sum(dim=(1, 2)) / s.shape[1]
    # fewer places than channels: rows of F F^T are compared through places x places, C x C is never built
    own_s, own_t, cross = (
        _matmul(x, _matmul(x.transpose(1, 2), y)) for x, y in ((s, s), (t, t), (s, t))
    )  # [B, C, places]
    norm_s, norm_t = (
        (x * g).sum(dim=2).clamp_min(0) for x, g in ((s, own_s), (t, own_t))
    )  # squared lengths of the rows
    there = [(n > 0).to(n.dtype) for n in (norm_s, norm_t)]
    length = norm_s.clamp_min(_TINY).sqrt() * norm_t.clamp_min(_TINY).sqrt()
    along = (cross * t).sum(dim=2) / length
    return (there[0] + there[1] - 2 * along * there[0] * there[1]).sum(dim=1).clamp_min(0) / s.shape[1]


# -- relations between the samples of a batch ------------------------------------------------------------------------


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation (Tung & Mori 2019): ``||G_s - G_t||_F^2 / B^2``, G the row-normalised Gram.

    Rows are L2-normalised, as the first author confirmed for RepDistiller. (torchdistill divides rows by their L1 norm.)

    Args:
        student: ``[B, ...]``, flattened; widths may differ.
        teacher: ``[B, ...]``.

    Returns:
        ``[B]`` shares, row sums divided by B: their mean is the published scalar.
    """
    s, t = _vectors(student, teacher, 1)
    g_s, g_t = (_unit(_matmul(x, x.T)) for x in (s, t))
    return (g_s - g_t).square().mean(dim=1)


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD, distance part (Park et al. 2019): Huber on pairwise distances divided by their mean.

    The mean runs over the B(B-1) pairs of different samples, the loss over all B^2 (the diagonal is 0).

    Args:
        student: ``[B, ...]``, flattened; B >= 2; widths may differ.
        teacher: ``[B, ...]``.

    Returns:
        ``[B]`` shares, row means of the B x B table: their mean is the published scalar.
    """
    s, t = _vectors(student, teacher, 2)
    return F.smooth_l1_loss(_relative(_distances(s)), _relative(_distances(t)), reduction="none").mean(dim=1)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD, angle part (Park et al. 2019): Huber on the cosine at i of the triangle (j, i, k), over all B^3 triples.

    Needs memory for B^3 numbers per side.

    Args:
        student: ``[B, ...]``, flattened; B >= 2; widths may differ.
        teacher: ``[B, ...]``.

    Returns:
        ``[B]`` shares, the mean over (j, k) at vertex i: their mean is the published scalar.
    """
    return rkd(student, teacher)[1]


def rkd(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`rkd_distance` and :func:`rkd_angle` together, each ``[B]``: directions and distances are the same differences."""
    s, t = _vectors(student, teacher, 2)
    angle, d_s, d_t = _Triangles.apply(s, t)
    return F.smooth_l1_loss(_relative(d_s), _relative(d_t), reduction="none").mean(dim=1), angle


class _Triangles(torch.autograd.Function):
    """Of two embeddings ``[B, D]``: the mean Huber loss ``[B]`` on the cosines at every vertex, and both tables of distances ``[B, B]``.

    The difference of the cosines ``[B, B, B]`` is made by one product onto another, and its gradient, the difference cut at 1, needs one
    product since it is symmetric in the two sides of an angle.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(student.device.type, enabled=False):
            (e_s, d_s), (e_t, d_t) = _towards(student), _towards(teacher)
            difference = (e_t @ e_t.transpose(1, 2)).baddbmm_(
                e_s, e_s.transpose(1, 2), beta=-1
            )  # of the cosines [B, B, B]
            cut = difference.clamp(-1, 1)
            flat, bent = difference.flatten(1), cut.flatten(1)
            huber = torch.linalg.vecdot(bent, flat) - torch.linalg.vecdot(bent, bent) / 2
        ctx.save_for_backward(e_s, d_s, e_t, d_t, cut)
        return huber / flat.shape[1], d_s, d_t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_angle: Tensor, of_d_s: Tensor, of_d_t: Tensor) -> tuple[Tensor, Tensor | None]:
        e_s, d_s, e_t, d_t, cut = ctx.saved_tensors
        scale = 2 / cut[0].numel() * of_angle[:, None]
        of_student = _through(e_s, d_s, cut @ e_s, scale, of_d_s)
        return of_student, _through(e_t, d_t, cut @ e_t, -scale, of_d_t) if ctx.needs_input_grad[1] else None


def _towards(x: Tensor) -> tuple[Tensor, Tensor]:
    """``[i, j]``: the unit vector from i to j ``[B, B, D]`` (0 between equal rows), and the distance."""
    difference = x[None, :, :] - x[:, None, :]
    distance = torch.linalg.vector_norm(difference, dim=2)
    return difference / distance.clamp_min(_LEAST)[..., None], distance


def _through(unit: Tensor, distance: Tensor, of_unit: Tensor, scale: Tensor, of_distance: Tensor) -> Tensor:
    """The gradient of the rows behind :func:`_towards`, of ``scale * of_unit`` [B, B, D], which is written over, and ``of_distance``."""
    share = scale / distance.clamp_min(_LEAST)
    along = of_distance - share * torch.linalg.vecdot(of_unit, unit)
    of_difference = of_unit.mul_(share[..., None]).addcmul_(unit, along[..., None])
    return of_difference.sum(dim=0) - of_difference.sum(dim=1)


def info_nce(
    student: Tensor,
    teacher: Tensor,
    *,
    tau: float = 0.07,
    classes: Tensor | None = None,
    normalise: bool = True,
) -> Tensor:
    """InfoNCE between networks: find the teacher's view of the same sample among the batch (van den Oord et al. 2018).

    ``-log exp(<s_i, t_i>/tau) / sum_j exp(<s_i, t_j>/tau)``. This is contrastive representation distillation (Tian et
    al. 2020) with the negatives taken from the batch instead of a memory.

    Args:
        student: ``[B, D]`` embeddings.
        teacher: ``[B, D]`` embeddings of the same width (project first).
        tau: temperature, > 0.
        classes: ``[B]``; when given, other samples of the same class are not used as negatives, as in CRD.
        normalise: cosine similarity; False takes the plain inner product.

    Returns:
        ``[B]``, each sample as the anchor.
    """
    if tau <= 0:
        raise InterfuseError("param.value", f"tau must be > 0, not {tau}")
    _check_same(student, teacher)
    if student.ndim != 2:
        raise _shape_error("embeddings must be [B, D]", student, teacher)
    s, t = full_precision(student), full_precision(teacher)
    if normalise:
        s, t = _unit(s), _unit(t)
    similarity = _matmul(s, t.T) / tau
    if classes is not None:
        if classes.shape != student.shape[:1]:
            raise _shape_error("there must be one class per sample", classes, student)
        same = classes[:, None] == classes[None, :]
        same = same & ~torch.eye(len(s), dtype=torch.bool, device=s.device)
        similarity = similarity.masked_fill(same, -torch.inf)
    return similarity.logsumexp(dim=1) - similarity.diagonal()


# -- centred kernel alignment ----------------------------------------------------------------------------------------


def linear_hsic(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    """Hilbert-Schmidt independence criterion with linear kernels: a scalar.

    Biased: ``||X^T Y||_F^2`` on centred features (Kornblith et al. 2019, unnormalised). Unbiased: the estimator of Song
    et al. 2012, which may be averaged over minibatches before forming CKA (Nguyen et al. 2021) and needs B >= 4.

    Args:
        x: ``[B, ...]``, flattened.
        y: ``[B, ...]``, flattened; the widths may differ.
    """
    a, b = _vectors(x, y, 4 if unbiased else 2)
    if not unbiased:
        return (_centred_gram(a) * _centred_gram(b)).sum()
    return unbiased_hsic(_matmul(a, a.T), _matmul(b, b.T))


def unbiased_hsic(k: Tensor, m: Tensor) -> Tensor:
    """The unbiased Hilbert-Schmidt independence criterion (Song et al. 2012) of two Gram matrices of the same samples: a scalar.

    Args:
        k, m: ``[B, B]``, not centred, B >= 4; their diagonals play no part.
    """
    n = len(k)
    off = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k, m = k * off, m * off
    rows_k, rows_m = k.sum(dim=0), m.sum(dim=0)
    total = (k * m).sum() + rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2)) - 2 * (rows_k * rows_m).sum() / (n - 2)
    return total / (n * (n - 3))


def linear_cka(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    """Linear CKA of one batch (Kornblith et al. 2019): a scalar, 1 for features equal up to rotation and scale.

    The biased form lies in [0, 1] and is too high for small batches; the unbiased one may be slightly negative. For
    several minibatches average the three :func:`linear_hsic` values, not the ratios. 0 if a side does not vary.
    """
    xy, xx, yy = (linear_hsic(a, b, unbiased=unbiased) for a, b in ((x, y), (x, x), (y, y)))
    product = xx * yy
    return torch.where(product > 0, xy / product.clamp_min(torch.finfo(xy.dtype).tiny).sqrt(), 0.0)


def cka_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - linear_cka`` as per-sample shares ``[B]``, which average to it. Shares may be negative; B >= 2."""
    s, t = _vectors(student, teacher, 2)
    k, m = (F.normalize(_centred_gram(x).flatten(), dim=0).view(len(s), -1) for x in (s, t))
    return 1 - len(s) * (k * m).sum(dim=1)


# -- graph of tokens -------------------------------------------------------------------------------------------------


def nearest_neighbours(tokens: Tensor, k: int) -> Tensor:
    """Which tokens are among the ``k`` nearest of which: ``[M, D] -> [M, M]`` bool, ``[i, j]`` true if i is one of j's.

    Euclidean distance, self excluded. The choice carries no gradient.
    """
    _check_tokens(tokens)
    count = len(tokens)
    if not 1 <= k < count:
        raise InterfuseError("param.value", f"k must lie in [1, {count - 1}] for {count} tokens, not {k}")
    distance = _distances(full_precision(tokens.detach())).fill_diagonal_(torch.inf)
    near = torch.zeros(count, count, dtype=torch.bool, device=tokens.device)
    return near.scatter_(0, distance.topk(k, dim=0, largest=False).indices, True)


def gaussian_graph(tokens: Tensor, neighbours: Tensor, *, sigma: float = 1.0) -> Tensor:
    """Adjacency ``exp(-||t_i - t_j||^2 / (2 sigma))`` on the given edges, else 0 (TRG, Zhang et al. 2023).

    Note 2 sigma, not 2 sigma^2. L2-normalise wide tokens first, or the kernel underflows to 0.

    Args:
        tokens: ``[M, D]``.
        neighbours: ``[M, M]`` bool, from :func:`nearest_neighbours` of this network or of the other.
        sigma: width, > 0.
    """
    _check_tokens(tokens)
    if sigma <= 0:
        raise InterfuseError("param.value", f"sigma must be > 0, not {sigma}")
    if neighbours.shape != (len(tokens), len(tokens)):
        raise _shape_error("neighbours must be [M, M] for M tokens", neighbours, tokens)
    kernel = torch.exp(-_distances(full_precision(tokens)).square() / (2 * sigma))
    return torch.where(neighbours, kernel, 0.0)


def graph_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    direction: Literal["reverse", "forward"] = "reverse",
    axis: Literal["row", "column"] = "row",
) -> Tensor:
    """Local preserving loss of TRG (Zhang et al. 2023): KL between softmax-normalised rows of two adjacencies.

    Zeros take part with weight ``e^0``. ``reverse`` is KL(student || teacher), as published.

    Args:
        student: ``[M, M]`` adjacency.
        teacher: ``[M, M]`` adjacency.

    Returns:
        ``[M]``, one KL per token: the published sum is their sum.
    """
    _check_same(student, teacher)
    dim = {"row": 1, "column": 0}.get(axis)
    if dim is None or direction not in ("reverse", "forward"):
        raise InterfuseError("param.value", f"direction {direction!r} or axis {axis!r} is not known")
    first, second = (student, teacher) if direction == "reverse" else (teacher, student)
    la, lb = (F.log_softmax(full_precision(x), dim=dim) for x in (first, second))
    return (la.exp() * (la - lb)).sum(dim=dim)


# -- pieces ----------------------------------------------------------------------------------------------------------


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product that autocast may not turn into half precision."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _distances(x: Tensor) -> Tensor:
    """Euclidean distances ``[B, D] -> [B, B]``, exact for near points, with gradient 0 at distance 0."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _relative(distance: Tensor) -> Tensor:
    mean = distance.sum() / (len(distance) * (len(distance) - 1))
    return distance / mean.clamp_min(torch.finfo(distance.dtype).tiny)


def _centred_gram(x: Tensor) -> Tensor:
    x = x - x.mean(dim=0)
    return _matmul(x, x.T)


def _vectors(student: Tensor, teacher: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise _shape_error("both sides need [B, ...] with the same B", student, teacher)
    if len(student) < least:
        raise InterfuseError(
            "input.shape",
            f"this loss compares samples of a batch and needs at least {least}",
            where=f"shape {tuple(student.shape)}",
            fix="Drop the last incomplete batch.",
        )
    return full_precision(student).flatten(1), full_precision(teacher).flatten(1)


def _check_tokens(tokens: Tensor) -> None:
    if tokens.ndim != 2:
        raise InterfuseError("input.shape", "tokens must be [M, D]", where=f"shape {tuple(tokens.shape)}")


def _check_same(a: Tensor, b: Tensor, name_a: str = "student", name_b: str = "teacher") -> None:
    if a.shape != b.shape or a.ndim == 0:
        raise _shape_error(f"{name_a} and {name_b} must have the same shape", a, b)


def _shape_error(what: str, a: Tensor, b: Tensor) -> InterfuseError:
    return InterfuseError("input.shape", what, where=f"{tuple(a.shape)} and {tuple(b.shape)}")
