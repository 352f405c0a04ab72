"""Contrastive representation distillation (Tian et al. 2020): find the teacher's view of the same input among many others."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        embedded = [
            full_precision(run.modules[f"embed_{k}"](x)) for k, x in (("student", student), ("teacher", teacher))
        ]
        both = F.normalize(torch.stack(embedded), dim=2)
        terms: dict[str, Tensor] = {}
        if self.negatives == "memory":
            loss = self._nce(run, views, both)
        else:
            s, t = both.unbind()
            classes = views.labels if views.labels is not None and views.labels.ndim == 1 else None
            loss = info_nce(s, t, tau=self.tau, classes=classes) + info_nce(t, s, tau=self.tau, classes=classes)
            if classes is not None:
                terms["alone"] = self._alone(run, classes).to(loss.dtype)
        terms = {"crd": per_position(loss, views)} | terms
        return terms | ({"ce": hard_loss(views)} if self.label_weight else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        watched: dict[str, float | Tensor] = {"alone": 0.0} if self.negatives == "in-batch" else {}
        return {"crd": self.weight, "ce": self.label_weight} | watched

    @staticmethod
    def _alone(run: Run, classes: Tensor) -> Tensor:
        """Whose batch holds no other class [B], so that there is nothing to tell it from: logged, and said once."""
        alone = (classes == classes[0]).all().expand(len(classes))
        if "crd/told" not in run.held and bool(alone[0]):
            run.held["crd/told"] = True
            run.ctx.log("a batch holds one class alone: in-batch negatives are examples of other classes, so nothing is contrasted in it "
                        "(column raw/alone: the share); use a larger batch_size or negatives: memory")  # fmt: skip
        return alone

    def after_step(self, run: Run) -> None:
        if self.negatives == "memory":
            _memory(run).write(self.momentum)

    def _pair(self, run: Run) -> tuple[str, str]:
        pairs = run.layer_pairs(self.student_layers, self.teacher_layers)
        if len(pairs) != 1:
            raise InterfuseError("param.value", f"{len(pairs)} pairs of layers are named, crd takes one", where="student_layers")  # fmt: skip
        return pairs[0]

    def _nce(self, run: Run, views: Views, anchors: Tensor) -> Tensor:
        memory = _memory(run)
        rows = torch.from_numpy(views.batch.positions).to(anchors.device)
        index = torch.cat(
            [rows[:, None], views.batch.extra["negatives"].to(anchors.device)], dim=1
        )  # [B, 1 + m], positive first
        exponents = _similarity(anchors / self.tau, memory.teacher, memory.student, index)  # [2, B, 1 + m]
        constants = memory.constants.tolist()
        if min(constants) <= 0:  # Z is set once, from the first batch
            memory.constants.copy_(exponents.detach().exp().mean(dim=(1, 2)) * len(memory.student))
            constants = memory.constants.tolist()
        memory.pending.append((rows, anchors.detach()))
        return nce(exponents, constants, len(memory.student)).sum(dim=0)


def _memory(run: Run) -> Memory:
    memory = run.modules["memory"]
    assert isinstance(memory, Memory)
    return memory


def nce(exponents: Tensor, constants: Sequence[float], rows: int) -> Tensor:
    """Noise-contrastive estimation (equation 18): the positive against m draws from the uniform noise ``1 / rows``.

    With scores ``p = exp(exponent) / Z`` and ``n = m / rows`` that is ``-log p_0 / (p_0 + n) - sum_j log n / (p_j + n)``, which is
    ``sum over all of log(1 + p / n)`` but for what depends on the positive alone.

    Args:
        exponents: ``[S, B, 1 + m]``, similarity / tau by side, the positive first.
        constants: Z by side.
        rows: size of the memory.

    Returns:
        ``[S, B]``.
    """
    count = exponents.shape[2]
    noise = (count - 1) / rows
    little = math.log1p(EPS / noise)
    own = exponents.new_tensor([[math.log(z) + math.log(noise)] for z in constants])  # [S, 1]
    # of log(1 + EPS / n + p / n), less `little` each
    against = F.softplus(exponents - (own + little).unsqueeze(2), threshold=80).sum(dim=2)
    return against - exponents[:, :, 0] + (own + count * little)


#: rows of a memory per number drawn from it, up to which all products (a multiplication of matrices) take less time than the drawn rows alone
PRODUCTS = 16


def _similarity(anchors: Tensor, first: Tensor, second: Tensor, index: Tensor) -> Tensor:
    """Inner products of anchors [2, B, D] with the rows ``index`` [B, M] of a bank [N, D] each, in full precision: [2, B, M]."""
    banks = [bank.to(anchors.dtype) for bank in (first, second)]
    with torch.autocast(anchors.device.type, enabled=False):
        if len(first) <= PRODUCTS * index.shape[1]:
            return torch.bmm(anchors, torch.stack(banks).transpose(1, 2)).gather(2, index.expand(2, *index.shape))
        return torch.stack(
            [torch.einsum("bd,bmd->bm", anchor, bank[index]) for anchor, bank in zip(anchors, banks, strict=True)]
        )


class Memory(nn.Module):
    """The last embedding of every example on both sides [N, D], and the two normalisation constants Z."""

    student: Tensor
    teacher: Tensor
    constants: Tensor
    order: Tensor
    begin: Tensor
    others: Tensor

    def __init__(self, classes: Tensor, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        rows = len(classes)
        bound = (3.0 / dim) ** 0.5
        for side in ("student", "teacher"):
            self.register_buffer(side, (2 * torch.rand(rows, dim, generator=generator) - 1) * bound)
        self.register_buffer("constants", torch.zeros(2))
        # rows sorted by class, twice over; for every row, where the other classes begin in that order and how many rows they have
        _, inverse, counts = torch.unique(classes, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise InterfuseError("input.shape", "every example has the same class, so there is nothing to tell apart",
                                 fix="Use examples of at least two classes.")  # fmt: skip
        self.register_buffer("order", torch.argsort(classes, stable=True).repeat(2), persistent=False)
        self.register_buffer("begin", counts.cumsum(0)[inverse], persistent=False)
        self.register_buffer("others", (rows - counts)[inverse], persistent=False)
        self.pending: list[tuple[Tensor, Tensor]] = []  # rows [B] and both sides' embeddings [2, B, D]

    def draw(self, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Rows of other classes, uniformly with replacement: ``[B] -> [B, min(count, N)]``."""
        order, begin, others = self.order.cpu(), self.begin.cpu()[rows][:, None], self.others.cpu()[rows][:, None]
        size = len(rows), min(count, len(order) // 2)
        chance = torch.rand(size, generator=generator, dtype=torch.float64)
        drawn = chance.mul_(others).long().add_(begin)
        return order.expand(len(rows), -1).gather(1, drawn)

    def write(self, momentum: float) -> None:
        """Moves the rows seen since the last call towards their new embeddings and renormalises them."""
        for rows, new in self.pending:
            old = torch.stack([bank.index_select(0, rows) for bank in (self.student, self.teacher)])
            moved = F.normalize(torch.lerp(new.to(old.dtype), old, momentum), dim=2)
            for bank, values in zip((self.student, self.teacher), moved, strict=True):
                bank.index_copy_(0, rows, values)
        self.pending.clear()
