"""Scores of untrained architectures: how alike an untrained student and an untrained teacher are (DisWOT), and plain proxies.

Higher is better everywhere. A probe is what one network says of one batch at initialisation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interfuse.core.errors import InterfuseError
from interfuse.kit.feature_losses import linear_cka, similarity_preserving
from interfuse.kit.losses import forward_kl
from interfuse.kit.taps import AUTO, PENULTIMATE, Taps

Forward = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Probe:
    """One network at initialisation on one batch.

    Attributes:
        features: of the last stage before pooling, [B, ...]. gradient: of the cross entropy with respect to the
            classifier's weight, [K, d]. logits: [B, K]. gradient_norm: of all parameters together.
        finite: whether all of it is.
    """

    features: Tensor
    gradient: Tensor
    logits: Tensor
    gradient_norm: float

    @property
    def finite(self) -> bool:
        return all(bool(t.isfinite().all()) for t in (self.features, self.gradient, self.logits))


def probe(module: nn.Module, forward: Forward, labels: Tensor, *, layer: str = AUTO) -> Probe:
    """Runs one forward and one backward pass in training mode (batch statistics of the batch itself).

    Args:
        forward: gives the module's logits [B, K] on the batch. labels: [B]. layer: a pattern; its last layer counts.

    Raises:
        InterfuseError: ``input.shape`` for a batch of one or a label that is no class; ``needs.capability`` for a module without a
            linear layer.
    """
    if len(labels) < 2:
        raise InterfuseError("input.shape", "similarity within a batch needs at least two examples")
    training = module.training
    with Taps(module.train(), [PENULTIMATE, layer]) as taps:
        logits = forward(module)
        weight = module.get_submodule(taps.classifier).weight
        if int(labels.max()) >= logits.shape[-1] or int(labels.min()) < 0:
            raise InterfuseError("input.shape", f"a label is {int(labels.max())}, the model has {logits.shape[-1]} classes")  # fmt: skip
        parameters = [p for p in module.parameters() if p.requires_grad]
        found = torch.autograd.grad(F.cross_entropy(logits, labels), parameters, allow_unused=True)
        features = taps.features[taps.names[-1]].detach()
    module.train(training)
    own = next(g for p, g in zip(parameters, found, strict=True) if p is weight)
    assert own is not None
    norm = float(torch.sqrt(torch.stack([(g.double() ** 2).sum() for g in found if g is not None]).sum()))
    return Probe(features, own, logits.detach(), norm)


def relation_score(teacher: Tensor, student: Tensor) -> float:
    """``M_r = -||G_t - G_s||_F^2 / B^2``, G the row-normalised Gram matrix of the samples (DisWOT, equation of M_r).

    Args:
        teacher, student: features [B, ...]; widths may differ; B >= 2.
    """
    return -float(similarity_preserving(student.double(), teacher.double()).mean())


def semantic_score(teacher: Tensor, student: Tensor, *, relation: Literal["auto", "channel", "class"] = "auto",
                   zero_rows: Literal["keep", "skip"] = "keep") -> float:  # fmt: skip
    """``M_s``: how alike the gradients of two classifiers are, class by class (DisWOT, equation of M_s).

    ``channel``: per class ``E = g g^T`` with normalised rows, ``-sum_classes ||E_t - E_s||_F^2 / (d K)``, in closed form: row i of E
    is ``sign(g_i) g / |g|``. It needs equal widths d. ``class``: the same of the K x K matrix ``W W^T``, for any widths (ours).

    Args:
        teacher, student: gradients [K, d]. relation: auto takes channel where widths are equal.
        zero_rows: whether classes without gradient count (as in the reference) or are left out.

    Raises:
        InterfuseError: ``input.shape`` when classes, or widths under ``channel``, differ.
    """
    t, s = teacher.double(), student.double()
    if len(t) != len(s) or (relation == "channel" and t.shape != s.shape):
        raise InterfuseError("input.shape", "gradients of different classes or widths", where=f"{tuple(t.shape)} and {tuple(s.shape)}",
                             fix="Use semantic: class for different widths.")  # fmt: skip
    if zero_rows == "skip":
        keep = (t != 0).any(dim=1) & (s != 0).any(dim=1)
        t, s = t[keep], s[keep]
        if not len(t):
            return 0.0
    if relation == "class" or (relation == "auto" and t.shape != s.shape):
        c_t, c_s = (F.normalize(x @ x.T, dim=1) for x in (t, s))
        return -float((c_t - c_s).square().mean())
    cosine = (F.normalize(t, dim=1) * F.normalize(s, dim=1)).sum(dim=1)
    # |sign_t a - sign_s b|^2 per row, a and b unit vectors: rows of a zero entry are zero
    rows = (t != 0).to(t.dtype) + (s != 0).to(s.dtype) - 2 * cosine[:, None] * t.sign() * s.sign()
    return -float(rows.mean())


def kd_score(teacher: Probe, student: Probe, *, tau: float = 4.0) -> float:
    """Minus the distillation loss at initialisation."""
    return -float(forward_kl(student.logits, teacher.logits, tau=tau).mean())


def cka_score(teacher: Probe, student: Probe) -> float:
    """Linear CKA of the features at initialisation."""
    return float(linear_cka(student.features.double(), teacher.features.double()))


def nwot_score(module: nn.Module, forward: Forward) -> float | None:
    """``log |det K|``, K counting per pair of inputs the rectified units on which they agree (NASWOT, Mellor et al. 2021).

    None for a network without rectified linear units.
    """
    codes: list[Tensor] = []
    units = [m for m in module.modules() if isinstance(m, nn.ReLU)]
    handles = [m.register_forward_hook(lambda _, __, out: codes.append((out > 0).flatten(1).double())) for m in units]
    training = module.training
    with torch.no_grad():
        forward(module.train())
    module.train(training)
    for handle in handles:
        handle.remove()
    if not codes:
        return None
    agree = sum((c @ c.T + (1 - c) @ (1 - c).T for c in codes), torch.zeros(()))
    return float(torch.linalg.slogdet(agree).logabsdet)


def synflow_score(module: nn.Module, forward: Forward) -> float:
    """``log sum |w dR/dw|`` with all weights made positive, R the sum of the logits (SynFlow, Tanaka et al. 2020).

    Works on a float64 copy, since products over many layers leave float32's range: ``forward`` must feed float64 ones.
    """
    positive = copy.deepcopy(module).double().eval()
    with torch.no_grad():
        for value in positive.state_dict().values():
            if value.is_floating_point():
                value.abs_()
    parameters = [p for p in positive.parameters() if p.requires_grad]
    found = torch.autograd.grad(forward(positive).sum(), parameters, allow_unused=True)
    terms = [(g * p).abs().sum() for p, g in zip(parameters, found, strict=True) if g is not None]
    return float(torch.log(torch.stack(terms).sum()).detach())
