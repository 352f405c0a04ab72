"""Contrastive representation distillation (Tian et al. 2020): find the teacher's view of the same input among many others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss, per_position
from interfuse.kit.feature_losses import info_nce
from interfuse.kit.losses import full_precision
from interfuse.kit.nets import Projector
from interfuse.kit.taps import PENULTIMATE

#: keeps the logarithms finite, as in the authors' code
EPS = 1e-7


@method()
@dataclass(frozen=True)
class CRD(Hooks):
    """``label_weight * CE + weight * (NCE(student; teacher memory) + NCE(teacher; student memory))`` (equation 18).

    Both sides are embedded in ``dim`` dimensions by trained linear layers. Negatives are examples of other classes, from a
    memory of all embeddings, or from the batch (InfoNCE).
    """

    weight: Annotated[float, Field(ge=0, description="weight of the contrastive loss")] = 0.8
    negatives: Annotated[
        Literal["memory", "in-batch"], Field(description="other embeddings to tell apart: a memory's or the batch's")
    ] = "memory"
    count: Annotated[int, Field(ge=1, description="negatives from the memory; never more than there are examples")] = (
        16384
    )
    dim: Annotated[int, Field(ge=1, description="width of the shared embedding")] = 128
    tau: Annotated[float, Field(gt=0, description="temperature")] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1, description="share of the old embedding a memory row keeps")] = 0.5
    label_weight: Annotated[float, Field(ge=0, description="weight of the labels; at 0 none are needed")] = 1.0
    student_layers: Annotated[
        list[str], Field(min_length=1, max_length=1, description="the student's feature: a name or penultimate")
    ] = field(default_factory=lambda: [PENULTIMATE])
    teacher_layers: Annotated[
        list[str], Field(min_length=1, max_length=1, description="the teacher's feature: a name or penultimate")
    ] = field(default_factory=lambda: [PENULTIMATE])

    def needs(self) -> Needs:
        return Needs(
            labels=self.label_weight > 0,
            teachers=(1, 1),
            student_features=tuple(self.student_layers),
            teacher_features=tuple(self.teacher_layers),
            batch=2,
            own_labels=True,
        )

    def setup(self, run: Run) -> None:
        s, t = self._pair(run)
        run.add("embed_student", Projector(run.student_shapes[s], (self.dim,), where=s))
        run.add("embed_teacher", Projector(run.teacher_shapes[0][t], (self.dim,), where=t))
        if self.negatives == "memory":
            rows = len(run.data)
            classes = run.labels if run.labels is not None else torch.arange(rows)
            run.add("memory", Memory(classes, self.dim, run.generator("memory")), train=False)

    def batch(self, run: Run, batch: Batch) -> Batch:
        if self.negatives == "memory":
            generator = run.generator(f"negatives/{run.step}/{int(batch.positions[0])}")
            rows = torch.from_numpy(batch.positions)
            batch.extra["negatives"] = _memory(run).draw(rows, self.count, generator)
        return batch

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        student, teacher = views.pair(*self._pair(run))
        s, t = (
            F.normalize(full_precision(run.modules[name](feature)), dim=1)
            for name, feature in (("embed_student", student), ("embed_teacher", teacher))
        )
        if self.negatives == "memory":
            loss = self._nce(run, views, s, t)
        else:
            classes = views.labels if views.labels is not None and views.labels.ndim == 1 else None
            loss = info_nce(s, t, tau=self.tau, classes=classes) + info_nce(t, s, tau=self.tau, classes=classes)
        terms = {"crd": per_position(loss, views)}
        return terms | ({"ce": hard_loss(views)} if self.label_weight else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        return {"crd": self.weight, "ce": self.label_weight}

    def after_step(self, run: Run) -> None:
        if self.negatives == "memory":
            _memory(run).write(self.momentum)

    def _pair(self, run: Run) -> tuple[str, str]:
        pairs = run.layer_pairs(self.student_layers, self.teacher_layers)
        if len(pairs) != 1:
            raise InterfuseError("param.value", f"{len(pairs)} pairs of layers are named, crd takes one", where="student_layers")  # fmt: skip
        return pairs[0]

    def _nce(self, run: Run, views: Views, s: Tensor, t: Tensor) -> Tensor:
        memory = _memory(run)
        rows = torch.from_numpy(views.batch.positions).to(s.device)
        index = torch.cat(
            [rows[:, None], views.batch.extra["negatives"].to(s.device)], dim=1
        )  # [B, 1 + m], positive first
        total: Tensor = s.new_zeros(())
        for side, (anchor, bank) in enumerate(((s, memory.teacher), (t, memory.student))):
            exponents = _similarity(anchor / self.tau, bank, index)
            constant = float(memory.constants[side])
            if constant <= 0:  # Z is set once, from the first batch
                memory.constants[side] = exponents.detach().exp().mean() * len(bank)
                constant = float(memory.constants[side])
            total = total + nce(exponents, constant, len(bank))
        memory.pending.append((rows, s.detach(), t.detach()))
        return total


def _memory(run: Run) -> Memory:
    memory = run.modules["memory"]
    assert isinstance(memory, Memory)
    return memory


def nce(exponents: Tensor, constant: float, rows: int) -> Tensor:
    """Noise-contrastive estimation (equation 18): the positive against m draws from the uniform noise ``1 / rows``.

    With scores ``p = exp(exponent) / Z`` and ``n = m / rows`` that is ``-log p_0 / (p_0 + n) - sum_j log n / (p_j + n)``, which is
    ``sum over all of log(1 + p / n)`` but for what depends on the positive alone.

    Args:
        exponents: ``[B, 1 + m]``, similarity / tau, the positive first.
        constant: Z.
        rows: size of the memory.

    Returns:
        ``[B]``.
    """
    count = exponents.shape[1]
    noise = (count - 1) / rows
    own, little = math.log(constant) + math.log(noise), math.log1p(EPS / noise)
    against = F.softplus(exponents - (own + little), threshold=80).sum(
        dim=1
    )  # of log(1 + EPS / n + p / n), less `little` each
    return against - exponents[:, 0] + (own + count * little)


def _similarity(anchor: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Inner products of anchors [B, D] with the rows ``index`` [B, M] of a bank [N, D], in full precision."""
    with torch.autocast(anchor.device.type, enabled=False):
        bank = bank.to(anchor.dtype)
        if len(bank) <= index.shape[1]:
            return (anchor @ bank.T).gather(1, index)
        return torch.einsum("bd,bmd->bm", anchor, bank[index])


class Memory(nn.Module):
    """The last embedding of every example on both sides [N, D], and the two normalisation constants Z."""

    student: Tensor
    teacher: Tensor
    constants: Tensor
    order: Tensor
    begin: Tensor
    same: Tensor

    def __init__(self, classes: Tensor, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        rows = len(classes)
        bound = (3.0 / dim) ** 0.5
        for side in ("student", "teacher"):
            self.register_buffer(side, (2 * torch.rand(rows, dim, generator=generator) - 1) * bound)
        self.register_buffer("constants", torch.zeros(2))
        # rows sorted by class; for every row, where its class begins in that order and how many it has
        _, inverse, counts = torch.unique(classes, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise InterfuseError("input.shape", "every example has the same class, so there is nothing to tell apart",
                                 fix="Use examples of at least two classes.")  # fmt: skip
        self.register_buffer("order", torch.argsort(classes, stable=True), persistent=False)
        self.register_buffer("begin", (counts.cumsum(0) - counts)[inverse], persistent=False)
        self.register_buffer("same", counts[inverse], persistent=False)
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def draw(self, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Rows of other classes, uniformly with replacement: ``[B] -> [B, min(count, N)]``."""
        order, begin, same = self.order.cpu(), self.begin.cpu()[rows][:, None], self.same.cpu()[rows][:, None]
        total = len(order)
        chance = torch.rand(len(rows), min(count, total), generator=generator, dtype=torch.float64)
        drawn = (chance * (total - same)).long()
        return order[torch.where(drawn >= begin, drawn + same, drawn)]

    def write(self, momentum: float) -> None:
        """Moves the rows seen since the last call towards their new embeddings and renormalises them."""
        for rows, student, teacher in self.pending:
            for bank, new in ((self.student, student), (self.teacher, teacher)):
                bank[rows] = F.normalize(torch.lerp(new.to(bank.dtype), bank[rows], momentum), dim=1)
        self.pending.clear()
