"""Distillation losses on logits: pure functions, one number per sample or token, never reduced.

Conventions shared by every function here:

* ``student`` and ``teacher`` have shape ``[..., K]`` (``[B, K]`` classes or ``[B, L, V]`` tokens); the result has the
  leading shape (``[B]`` or ``[B, L]``). The caller weights, masks and averages.
* p is the teacher's distribution, q the student's: *forward* KL is KL(p || q), *reverse* KL is KL(q || p).
* Work is done in float32 whatever the input's dtype (float64 stays float64), so half precision is safe.
* ``tau`` is the softmax temperature of both sides. Divergences are multiplied by tau^2 (Hinton et al. 2015, section 2)
  unless ``scaled=False``; that factor lives in :func:`rescale` alone.
* ``targets="probs"`` says that ``teacher`` holds probabilities (rows of a cache, a tree ensemble, an API); they are
  turned into log-probabilities and sharpened or softened by ``tau`` like logits. Rows are renormalised.
* Gradients flow to both sides. Detach a frozen teacher yourself; online methods need the other gradient too.
* A class with probability exactly 0 (logit ``-inf``) is legal: 0 log 0 = 0. A divergence that is infinite is ``inf``.

Wrong shapes and parameters raise :class:`~interfuse.core.errors.InterfuseError` with codes ``input.shape``,
``input.empty``, ``input.type``, ``input.nan`` or ``param.value``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from interfuse.core.errors import InterfuseError

Targets = Literal["logits", "probs"]

# -- what all of them stand on ---------------------------------------------------------------------------------------


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32, or unchanged when it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def rescale(loss: Tensor, tau: float, scaled: bool = True) -> Tensor:
    """``tau^2 * loss``: keeps gradients at one size when the temperature changes (Hinton et al. 2015, section 2)."""
    return loss * tau**2 if scaled else loss


def log_probs(logits: Tensor, tau: float = 1.0, *, targets: Targets = "logits") -> Tensor:
    """Log-softmax at temperature ``tau``, in full precision.

    Args:
        logits: ``[..., K]`` logits, or probabilities when ``targets="probs"``.
        tau: temperature, > 0.
        targets: what ``logits`` holds.

    Raises:
        InterfuseError: ``param.value`` if tau <= 0 or ``targets`` is unknown, ``input.empty`` without classes,
            ``input.nan`` if something called probabilities is negative or NaN.
    """
    _check_tau(tau)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise InterfuseError("input.empty", "there are no classes to compare", where=f"shape {tuple(logits.shape)}")
    z = full_precision(logits)
    if targets == "probs":
        if z.numel() and not bool((z.detach() >= 0).all()):
            raise InterfuseError(
                "input.nan", "probabilities must be numbers >= 0", fix='If these are logits, say targets="logits".'
            )
        z = z.log()
    elif targets != "logits":
        raise InterfuseError("param.value", f"targets must be 'logits' or 'probs', not {targets!r}")
    return F.log_softmax(z if tau == 1 else z / tau, dim=-1)


def entropy(logits: Tensor, *, tau: float = 1.0, targets: Targets = "logits") -> Tensor:
    """Entropy in nats of the softmax at temperature ``tau``: ``[..., K] -> [...]``."""
    lp = log_probs(logits, tau, targets=targets)
    return -_dot(lp.exp(), lp)


def standardise_logits(logits: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Z-score of every row: ``(z - mean) / (eps + std)`` with the unbiased std (Sun et al. 2024, algorithm 1).

    Apply it to both sides, then any loss at the base temperature: ``forward_kl(standardise_logits(s), ...)``.

    Args:
        logits: ``[..., K]``, K >= 2.
        eps: keeps a constant row finite (it becomes all zeros).
    """
    _check_classes(logits, 2)
    z = full_precision(logits)
    std, mean = torch.std_mean(z, dim=-1, keepdim=True)
    return (z - mean) / (eps + std)


# -- against labels --------------------------------------------------------------------------------------------------


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Cross-entropy per sample or token, with hard or soft targets.

    Args:
        logits: ``[..., K]``.
        target: class indices ``[...]`` (integer), or probabilities ``[..., K]`` (floating).
        label_smoothing: eps in [0, 1]; the target becomes ``(1 - eps) * target + eps / K`` (Szegedy et al. 2016).
        mask: ``[...]``, false or 0 where a position does not count.
        ignore_index: hard targets of this value do not count.

    Returns:
        ``[...]``; positions that do not count are exactly 0 and give no gradient.
    """
    _check_range("label_smoothing", label_smoothing, 0.0, 1.0)
    lq = log_probs(logits)
    classes = lq.shape[-1]
    if target.is_floating_point():
        _check_same(logits, target, "logits", "target")
        weights = full_precision(target)
        if label_smoothing:
            weights = weights * (1 - label_smoothing) + label_smoothing / classes
        loss, counts = -_dot(weights, lq), None
    else:
        index, counts = _hard_target(target, lq, ignore_index)
        loss = -lq.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        if label_smoothing:
            loss = (1 - label_smoothing) * loss - label_smoothing * lq.mean(dim=-1)
    if mask is not None:
        if mask.shape != loss.shape:
            raise InterfuseError(
                "input.shape", "the mask does not fit the logits", where=f"{tuple(mask.shape)} for {tuple(loss.shape)}"
            )
        counts = mask.bool() if counts is None else counts & mask.bool()
    return _counted(loss, counts)


def ofa(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    eps: float = 1.0,
    tau: float = 1.0,
    form: Literal["code", "paper"] = "code",
    targets: Targets = "logits",
    ignore_index: int = -100,
) -> Tensor:
    """Adaptive target loss of OFA-KD (Hao et al. 2023, section 3), with extra weight on the true class.

    ``form="code"`` is what the authors train with: ``-sum_c [(p_c + m_c)^eps - m_c] log q_c`` with m the one-hot
    target; the hard cross-entropy is added separately. ``form="paper"`` is the printed equation:
    ``-(1 + p_y)^eps log q_y - sum_{c != y} p_c log q_c``, which contains it. Neither is scaled by tau^2.

    Args:
        student: ``[..., K]`` logits of an exit or of the head.
        teacher: ``[..., K]``.
        target: ``[...]`` class indices, or ``[..., K]`` soft labels whose largest entry is the target.
        eps: exponent (gamma in the paper), >= 0; 1 is plain soft cross-entropy in the code form.
    """
    _check_same(student, teacher)
    weights = ofa_target(teacher, target, eps=eps, tau=tau, form=form, targets=targets, ignore_index=ignore_index)
    return weighted_nll(student, weights, tau=tau)


def ofa_target(
    teacher: Tensor,
    target: Tensor,
    *,
    eps: float = 1.0,
    tau: float = 1.0,
    form: Literal["code", "paper"] = "code",
    targets: Targets = "logits",
    ignore_index: int = -100,
) -> Tensor:
    """The weights ``[..., K]`` of the classes in :func:`ofa`, the same for every exit; 0 where a position does not count.

    Args:
        as in :func:`ofa`.
    """
    if eps < 0:
        raise InterfuseError("param.value", f"eps must be >= 0, not {eps}")
    if form not in ("code", "paper"):
        raise InterfuseError("param.value", f"form must be 'code' or 'paper', not {form!r}")
    p = log_probs(teacher, tau, targets=targets).exp()
    index, counts = _hard_target(target, p, ignore_index)
    if eps != 1 or form == "paper":
        m = _one_hot(index, p)
        p = (p + m) ** eps - m.to(p.dtype) if form == "code" else torch.where(m, (1 + p) ** eps, p)
    return p if counts is None else p.masked_fill(~counts.unsqueeze(-1), 0.0)


def weighted_nll(logits: Tensor, weights: Tensor, *, tau: float = 1.0) -> Tensor:
    """``-sum_c w_c log q_c`` with q the softmax at temperature ``tau``: ``[..., K]`` twice ``-> [...]``. Weights need not sum to 1."""
    _check_same(logits, weights, "logits", "weights")
    return -_dot(full_precision(weights), log_probs(logits, tau))


def tckd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    tau: float = 4.0,
    targets: Targets = "logits",
    ignore_index: int = -100,
    scaled: bool = True,
) -> Tensor:
    """Target-class part of DKD: KL between the two-way distributions (target, rest) (first term of equation 5, Zhao et al. 2022)."""
    return dkd_parts(student, teacher, target, tau=tau, targets=targets, ignore_index=ignore_index, scaled=scaled)[0]


def nckd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    tau: float = 4.0,
    targets: Targets = "logits",
    ignore_index: int = -100,
    scaled: bool = True,
) -> Tensor:
    """Non-target part of DKD: KL among the other classes, renormalised (equation 5, Zhao et al. 2022)."""
    return dkd_parts(student, teacher, target, tau=tau, targets=targets, ignore_index=ignore_index, scaled=scaled)[1]


def dkd_parts(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    tau: float = 4.0,
    targets: Targets = "logits",
    ignore_index: int = -100,
    scaled: bool = True,
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of DKD together: ``[..., K] -> [...]`` twice; arguments as in :func:`dkd`."""
    _check_classes(student, 2)
    lp, lq = _both(student, teacher, tau, targets)
    index, counts = _hard_target(target, lq, ignore_index)
    onehot = _one_hot(index, lq)
    (two_p, rest_p), (two_q, rest_q) = _decoupled(lp, index, onehot), _decoupled(lq, index, onehot)
    others = _dot(rest_p.masked_fill(onehot, -math.inf).exp(), rest_p - rest_q)
    one, other = (_counted(rescale(x, tau, scaled), counts) for x in (_kl(two_p, two_q), others))
    return one, other


def dkd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    tau: float = 4.0,
    targets: Targets = "logits",
    ignore_index: int = -100,
    scaled: bool = True,
) -> Tensor:
    """Decoupled KD: ``alpha * TCKD + beta * NCKD`` (Zhao et al. 2022, equation 7).

    With ``beta = 1 - p_target`` per sample and ``alpha = 1`` it is the forward KL (equation 6).

    Args:
        student: ``[..., K]`` logits, K >= 2.
        teacher: ``[..., K]``.
        target: ``[...]`` class indices, or ``[..., K]`` soft labels whose largest entry is the target.
    """
    t, n = dkd_parts(student, teacher, target, tau=tau, targets=targets, ignore_index=ignore_index, scaled=scaled)
    return alpha * t + beta * n


# -- divergences between the two distributions -----------------------------------------------------------------------


def forward_kl(
    student: Tensor, teacher: Tensor, *, tau: float = 1.0, targets: Targets = "logits", scaled: bool = True
) -> Tensor:
    """``tau^2 KL(p || q)``, the loss of Hinton et al. 2015: mean-seeking. ``[..., K] -> [...]``."""
    lp, lq = _both(student, teacher, tau, targets)
    return rescale(_kl(lp, lq), tau, scaled)


def kl_and_cross_entropy(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`forward_kl` and :func:`cross_entropy` with soft targets, at one temperature of 1, of which the student's half is the same.

    Args:
        student, teacher: logits ``[..., K]``. target: probabilities ``[..., K]``.
    """
    _check_same(student, target, "student", "target")
    lp, lq = _both(student, teacher, 1.0, "logits")
    return _kl(lp, lq), -_dot(full_precision(target), lq)


def reverse_kl(
    student: Tensor, teacher: Tensor, *, tau: float = 1.0, targets: Targets = "logits", scaled: bool = True
) -> Tensor:
    """``tau^2 KL(q || p)`` (MiniLLM, Gu et al. 2024, equation 1): mode-seeking. ``[..., K] -> [...]``.

    Infinite where the teacher excludes (probability 0) a class the student allows.
    """
    lp, lq = _both(student, teacher, tau, targets)
    return rescale(_kl(lq, lp), tau, scaled)


def js(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 0.5,
    tau: float = 1.0,
    targets: Targets = "logits",
    scaled: bool = True,
) -> Tensor:
    """Generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024, equation 1).

    ``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``. By the convention of the common GKD
    trainers ``beta=0`` gives forward and ``beta=1`` reverse KL; these are the limits of ``js / beta`` and of
    ``js / (1 - beta)``, so the value jumps at the two ends.
    """
    _check_range("beta", beta, 0.0, 1.0)
    lp, lq = _both(student, teacher, tau, targets)
    if beta == 0.0:
        loss = _kl(lp, lq)
    elif beta == 1.0:
        loss = _kl(lq, lp)
    else:
        lm = _log_mixture(lp, lq, beta)
        loss = beta * _kl(lp, lm) + (1 - beta) * _kl(lq, lm)
    return rescale(loss, tau, scaled)


def skew_forward_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    alpha: float = 0.1,
    tau: float = 1.0,
    targets: Targets = "logits",
    scaled: bool = True,
) -> Tensor:
    """``tau^2 KL(p || alpha p + (1 - alpha) q)`` (DistiLLM, Ko et al. 2024, section 3.1); alpha=0 is forward KL."""
    _check_range("alpha", alpha, 0.0, 1.0)
    lp, lq = _both(student, teacher, tau, targets)
    return rescale(_kl(lp, _log_mixture(lp, lq, alpha) if alpha else lq), tau, scaled)


def skew_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    alpha: float = 0.1,
    tau: float = 1.0,
    targets: Targets = "logits",
    scaled: bool = True,
) -> Tensor:
    """``tau^2 KL(q || alpha q + (1 - alpha) p)`` (DistiLLM, Ko et al. 2024, section 3.1); alpha=0 is reverse KL."""
    _check_range("alpha", alpha, 0.0, 1.0)
    lp, lq = _both(student, teacher, tau, targets)
    return rescale(_kl(lq, _log_mixture(lq, lp, alpha) if alpha else lp), tau, scaled)


def alpha_beta(
    student: Tensor,
    teacher: Tensor,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    tau: float = 1.0,
    targets: Targets = "logits",
    scaled: bool = True,
) -> Tensor:
    """Alpha-beta divergence D(p || q) (Cichocki, Cruces & Amari 2011; ABKD, Wang et al. 2025).

    ``-1/(alpha beta) sum [p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) - beta/(alpha+beta) q^(alpha+beta)]``,
    continued to its limits: (1, 0) is forward KL, (0, 1) reverse KL, (0.5, 0.5) twice the sum of
    ``(sqrt p - sqrt q)^2``. Values of alpha, beta or alpha+beta near 0 but not 0 lose digits to cancellation. Zero
    probabilities need positive exponents.
    """
    lp, lq = _both(student, teacher, tau, targets)
    a, b = alpha, beta
    if a == 0.0 and b == 0.0:  # log-Euclidean
        loss = 0.5 * (lp - lq).square().sum(dim=-1)
    elif b == 0.0:
        loss = _alpha_zero_beta(lp, lq, a)
    elif a == 0.0:
        loss = _alpha_zero_beta(lq, lp, b)
    elif a + b == 0.0:
        loss = (a * (lq - lp) + torch.exp(a * (lp - lq)) - 1).sum(dim=-1) / a**2
    else:
        c = a + b
        terms = torch.exp(c * lp) / (b * c) + torch.exp(c * lq) / (a * c) - torch.exp(a * lp + b * lq) / (a * b)
        loss = terms.sum(dim=-1)
    return rescale(loss, tau, scaled)


def total_variation(student: Tensor, teacher: Tensor, *, tau: float = 1.0, targets: Targets = "logits") -> Tensor:
    """``1/2 sum |p - q|``, in [0, 1] and therefore not scaled by tau^2. ``[..., K] -> [...]``."""
    lp, lq = _both(student, teacher, tau, targets)
    return 0.5 * (lp.exp() - lq.exp()).abs().sum(dim=-1)


def uld(student: Tensor, teacher: Tensor, *, tau: float = 1.0, targets: Targets = "logits") -> Tensor:
    """Universal logit distance: L1 between the *sorted* probabilities (ULD, Boizard et al. 2024).

    The vocabularies may differ, in size and order; the shorter side is padded with zeros. It depends on sorted values
    only, so the top-k variant is ``uld(student.topk(k).values, teacher.topk(k).values)``. Not scaled by tau^2.

    Args:
        student: ``[..., K_s]`` logits.
        teacher: ``[..., K_t]``, the same leading shape.
    """
    if student.shape[:-1] != teacher.shape[:-1]:
        raise InterfuseError(
            "input.shape",
            "student and teacher have different numbers of samples or positions",
            where=f"{tuple(student.shape)} and {tuple(teacher.shape)}",
            fix="Align the sequences first.",
        )
    p = log_probs(teacher, tau, targets=targets).exp().sort(dim=-1, descending=True).values
    q = log_probs(student, tau).exp().sort(dim=-1, descending=True).values
    width = max(p.shape[-1], q.shape[-1])
    p, q = (F.pad(x, (0, width - x.shape[-1])) for x in (p, q))
    return (p - q).abs().sum(dim=-1)


# -- raw logits ------------------------------------------------------------------------------------------------------


def mse_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over classes of ``(z_s - z_t)^2`` (Ba & Caruana 2014; Kim et al. 2021). ``[..., K] -> [...]``."""
    _check_same(student, teacher)
    return (full_precision(student) - full_precision(teacher)).square().mean(dim=-1)


def log_cosh_logits(student: Tensor, teacher: Tensor, *, tau: float = 2.0) -> Tensor:
    """BinaryKL-Norm of DHKD (Yang et al. 2025) in closed form: ``tau^2 sum_k log cosh((z_s - z_t) / (2 tau))``.

    Equal to ``tau^2 sum_k KL(Bern(1/2) || Bern(sigmoid((z_s - z_t) / tau)))``, without the clamp that form needs.
    """
    _check_same(student, teacher)
    _check_tau(tau)
    found: Tensor = _LogCosh.apply(full_precision(student) - full_precision(teacher), tau)
    return found


class _LogCosh(torch.autograd.Function):
    """``tau^2 sum log cosh(x / (2 tau))`` over the last dimension; its gradient is ``tau / 2 tanh(x / (2 tau))``."""

    @staticmethod
    def forward(ctx: Any, difference: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(difference)
        ctx.tau = tau
        x = difference / (2 * tau)
        return rescale((x + F.softplus(-2 * x) - math.log(2)).sum(dim=-1), tau)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return torch.tanh(difference / (2 * ctx.tau)) * (gradient * (ctx.tau / 2)).unsqueeze(-1), None


def binary_kl(student: Tensor, teacher: Tensor, *, tau: float = 2.0) -> Tensor:
    """``tau^2 sum_k KL(Bern(sigmoid(z_t / tau)) || Bern(sigmoid(z_s / tau)))`` (BinaryKL of DHKD, Yang et al. 2025)."""
    _check_same(student, teacher)
    _check_tau(tau)
    s, t = full_precision(student) / tau, full_precision(teacher) / tau
    on = torch.sigmoid(t) * (F.logsigmoid(t) - F.logsigmoid(s))
    off = torch.sigmoid(-t) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return rescale((on + off).sum(dim=-1), tau)


# -- DIST: correlation instead of equality ---------------------------------------------------------------------------


def dist_inter(
    student: Tensor, teacher: Tensor, *, tau: float = 1.0, targets: Targets = "logits", scaled: bool = True
) -> Tensor:
    """One minus the Pearson correlation over classes of each sample's probabilities (DIST, Huang et al. 2022)."""
    lp, lq = _both(student, teacher, tau, targets)
    correlation = (_unit_centred(lp.exp(), -1) * _unit_centred(lq.exp(), -1)).sum(dim=-1)
    return rescale(1 - correlation, tau, scaled)


def dist_intra(
    student: Tensor, teacher: Tensor, *, tau: float = 1.0, targets: Targets = "logits", scaled: bool = True
) -> Tensor:
    """One minus the Pearson correlation over the batch, averaged over classes (DIST, Huang et al. 2022).

    A class's correlation is a sum over samples; sample b gets ``1 - (B/K) sum_c (its summand of class c)``. These
    shares average over the batch to the published scalar; a single share may be negative.

    Args:
        student: ``[B, K]`` logits, B >= 2.
        teacher: ``[B, K]``.
    """
    _check_batch(student, 2, ndim=2)
    lp, lq = _both(student, teacher, tau, targets)
    summands = _unit_centred(lp.exp(), 0) * _unit_centred(lq.exp(), 0)
    return rescale(1 - lp.shape[0] * summands.mean(dim=-1), tau, scaled)


def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    tau: float = 1.0,
    targets: Targets = "logits",
    scaled: bool = True,
) -> Tensor:
    """DIST: ``beta * inter + gamma * intra`` (Huang et al. 2022). ``[B, K] -> [B]``, B >= 2."""
    inter = dist_inter(student, teacher, tau=tau, targets=targets, scaled=scaled)
    intra = dist_intra(student, teacher, tau=tau, targets=targets, scaled=scaled)
    return beta * inter + gamma * intra


# -- pieces ----------------------------------------------------------------------------------------------------------


def _dot(weights: Tensor, values: Tensor) -> Tensor:
    """``sum w * v`` over the last dimension with 0 * inf = 0, in the gradient too."""
    found = (weights * values).sum(dim=-1)
    if math.isfinite(float(found.detach().sum())):  # so there is no such product, and nothing to mask
        return found
    return (weights * values.masked_fill((weights == 0) & ~values.isfinite(), 0.0)).sum(dim=-1)


def _kl(lp: Tensor, lq: Tensor) -> Tensor:
    return _dot(lp.exp(), lp - lq)


def _log_mixture(la: Tensor, lb: Tensor, weight: float) -> Tensor:
    """``log(weight * a + (1 - weight) * b)``; the clamp keeps the gradient finite where both are 0."""
    mixture = weight * la.exp() + (1 - weight) * lb.exp()
    return mixture.clamp_min(torch.finfo(mixture.dtype).tiny).log()


def _alpha_zero_beta(lp: Tensor, lq: Tensor, a: float) -> Tensor:
    powers = torch.exp(a * lp)
    return (_dot(a * powers, lp - lq) + (torch.exp(a * lq) - powers).sum(dim=-1)) / a**2


def _unit_centred(x: Tensor, dim: int) -> Tensor:
    return F.normalize(x - x.mean(dim=dim, keepdim=True), dim=dim, eps=1e-8)


def _decoupled(lp: Tensor, index: Tensor, onehot: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities of (target, rest) [..., 2], and those of the rest, renormalised [..., K]; what it holds at the target means nothing."""
    rest = lp.masked_fill(onehot, -math.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([lp.gather(-1, index.unsqueeze(-1)), rest], dim=-1), lp - rest


def _both(student: Tensor, teacher: Tensor, tau: float, targets: Targets) -> tuple[Tensor, Tensor]:
    """log p (teacher) and log q (student)."""
    _check_same(student, teacher)
    return log_probs(teacher, tau, targets=targets), log_probs(student, tau)


def _hard_target(target: Tensor, logits: Tensor, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Class indices with ignored ones replaced by 0, and where they count; None where all do."""
    if target.is_floating_point():
        _check_same(logits, target, "logits", "target")
        return target.argmax(dim=-1), None
    if target.shape != logits.shape[:-1]:
        raise InterfuseError(
            "input.shape",
            "there must be one target per sample or position",
            where=f"target {tuple(target.shape)}, logits {tuple(logits.shape)}",
        )
    classes = logits.shape[-1]
    if target.numel() and not 0 <= ignore_index < classes:
        least, most = target.aminmax()
        if least >= 0 and most < classes:
            return target.long(), None
    counts = target != ignore_index
    index = target.long().masked_fill(~counts, 0)
    if index.numel() and not bool(((index >= 0) & (index < classes)).all()):
        raise InterfuseError("param.value", f"a target lies outside the {classes} classes")
    return index, counts


def _one_hot(index: Tensor, logits: Tensor) -> Tensor:
    onehot = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    return onehot.scatter_(-1, index.unsqueeze(-1), True)


def _counted(loss: Tensor, counts: Tensor | None) -> Tensor:
    """The loss where it counts, 0 without gradient elsewhere."""
    return loss if counts is None else loss.masked_fill(~counts, 0.0)


def _check_tau(tau: float) -> None:
    if not (math.isfinite(tau) and tau > 0):
        raise InterfuseError("param.value", f"tau must be a number > 0, not {tau}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InterfuseError("param.value", f"{name} must lie in [{low:g}, {high:g}], not {value}")


def _check_classes(logits: Tensor, least: int) -> None:
    if logits.ndim == 0 or logits.shape[-1] < least:
        raise InterfuseError(
            "input.shape", f"at least {least} classes are needed", where=f"logits {tuple(logits.shape)}"
        )


def _check_batch(x: Tensor, least: int, *, ndim: int | None = None) -> None:
    if x.ndim < 2 or x.shape[0] < least or (ndim is not None and x.ndim != ndim):
        raise InterfuseError(
            "input.shape",
            f"this loss compares samples of a batch and needs [B, ...] with B >= {least}"
            + (f" and {ndim} dimensions" if ndim else ""),
            where=f"shape {tuple(x.shape)}",
            fix="Drop the last incomplete batch.",
        )


def _check_same(a: Tensor, b: Tensor, name_a: str = "student", name_b: str = "teacher") -> None:
    if a.shape != b.shape:
        raise InterfuseError(
            "input.shape",
            f"{name_a} and {name_b} must have the same shape",
            where=f"{tuple(a.shape)} and {tuple(b.shape)}",
            fix="Different vocabularies or class lists must be aligned first.",
        )
