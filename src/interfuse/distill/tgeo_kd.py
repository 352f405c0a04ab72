"""TGeo-KD: how far to trust the teacher is learned per sample, from the geometry of student, teacher and label (Hu et al. 2024)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill import pages
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.encode import Encoder, forward
from interfuse.kit.losses import cross_entropy, forward_kl

#: widest one-hot features; beyond it ``features`` must be 'norms'
MOST_CLASSES = 1000
#: numbers kept of the table of fusion ratios; a longer training keeps its last epoch only
TABLE = 20_000_000
Params = dict[str, torch.Tensor]


@method()
@dataclass(frozen=True)
class TGeoKD(Hooks):
    """``alpha_i * tau^2 * KL(p_t || p_s) + (1 - alpha_i) * CE`` with ``alpha_i = sigmoid(f_w(geometry_i))`` (section 3); w
    descends the validation loss after one unrolled student step, with the true gradient through that step."""

    tau: Annotated[float, Field(gt=0, description="temperature of the teacher's term")] = 4.0
    features: Annotated[
        Literal["full", "vertices", "edges", "norms"],
        Field(description="what the fusion network sees: the four corners and five squared edges per class, one of both, or corners' edge lengths only"),
    ] = "full"  # fmt: skip
    hidden: Annotated[list[Annotated[int, Field(ge=1)]], Field(description="hidden widths of the fusion network")] = (
        field(default_factory=lambda: [32, 16])
    )
    outer_lr: Annotated[float, Field(gt=0, description="learning rate of the fusion network (Adam)")] = 1e-3
    outer_decay: Annotated[
        float,
        Field(ge=0, description="weight decay of the fusion network (L2); above 0 it outweighs the small gradients"),
    ] = 0.0
    outer_every: Annotated[int, Field(ge=1, description="optimiser steps between two steps of the fusion network")] = 1
    outer_batch: Annotated[int, Field(ge=1, description="validation examples per outer step")] = 128
    val_fraction: Annotated[
        float, Field(ge=0, lt=1, description="share of the examples held apart when no validation data is given")
    ] = 0.1
    fixed_alpha: Annotated[
        float | None, Field(ge=0, le=1, description="one ratio for every sample and no fusion network: the baseline")
    ] = None
    ratio: Annotated[
        Literal["geometry", "sample", "anneal", "margin", "losses"],
        Field(description="where ratios come from: the fusion network (the paper), or its baselines: a free number per sample learned by "
              "the same outer step (RW), falling from 1 to 0 over the epochs (ANL), the teacher's margin for the label (ADA), or "
              "1 - exp(-CE of the student / CE of the teacher) (WLS)"),
    ] = "geometry"  # fmt: skip

    def needs(self) -> Needs:
        own = self.fixed_alpha is None and self.ratio != "anneal"
        return Needs(labels=True, validation=True, own_labels=own)

    def alone(self) -> tuple[str, str]:
        # in a composition the unrolled step is one on its own loss, and the examples held apart are so for all
        return "", ""

    @property
    def learned(self) -> bool:
        """Whether ratios are learned on validation examples."""
        return self.fixed_alpha is None and self.ratio in ("geometry", "sample")

    # -- before training -------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        if run.student_model.task == "causal-lm":
            raise InterfuseError("input.type", "the geometry needs one label per example", where=run.student_model.name)
        if not self.learned:
            return
        if run.accelerator.num_processes > 1:
            raise InterfuseError("needs.capability", "the unrolled step runs in one process only")
        if self.ratio == "geometry" and self.features != "norms" and run.classes > MOST_CLASSES:
            raise InterfuseError("input.limit", f"{run.classes} classes make features of {9 * run.classes} numbers", where="features",
                                 fix="Use features: norms.")  # fmt: skip
        train, held = split(run, self.val_fraction)
        run.tensors |= {"train_rows": torch.from_numpy(train), "held_rows": torch.from_numpy(held)}
        per_epoch = -(-len(train) // (run.settings.batch_size * run.settings.accumulate))
        run.steps = per_epoch * run.settings.epochs
        run.facts |= {"trained_on": len(train), "validated_on": len(held)}
        if run.validation is None:
            run.ctx.log(f"{len(held)} of {len(run.data)} examples are held apart for the outer loss")
        fusion = run.add("fusion", self._fusion(run), train=False)
        run.optimizers["fusion"] = torch.optim.Adam(
            fusion.parameters(), lr=self.outer_lr, weight_decay=self.outer_decay
        )

    def _fusion(self, run: Run) -> nn.Module:
        if self.ratio == "sample":
            return Free(len(run.data))
        widths = [_width(self.features, run.classes), *self.hidden]
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.LeakyReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def scan(self, run: Run) -> None:
        """The teacher's mean prediction per class over the training rows; a trial of the unrolled step."""
        if not self.learned:
            return
        rows = run.tensors["train_rows"]
        run.tensors["class_means"] = means = class_means(run.taught()[rows], _labels(run)[rows], run.classes)
        for c in np.flatnonzero(np.bincount(_labels(run)[rows].numpy(), minlength=run.classes) == 0):
            run.ctx.log(f"class {c} has no training example: its mean prediction is taken as uniform")
        if "alpha" not in run.tensors:
            shape = (run.settings.epochs if run.settings.epochs * len(run.data) <= TABLE else 1, len(run.data))
            run.tensors |= {"alpha": torch.full(shape, torch.nan), "st_distance": torch.full(shape, torch.nan),
                            "student_correct": torch.zeros(shape, dtype=torch.uint8)}  # fmt: skip
        assert means.isfinite().all()
        self._try_unroll(run, rows.numpy())

    def _try_unroll(self, run: Run, train: NDArray[np.int64]) -> None:
        from interfuse.distill.room import make_batch

        batch = make_batch(run, train[:2])
        student = run.bare
        params = {n: p for n, p in student.named_parameters() if p.requires_grad}
        try:
            with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
                logits = forward(Elsewhere(student, params), run.student_model, batch.student)
                loss = cross_entropy(logits, _need(batch.labels)).mean()
                grads = torch.autograd.grad(loss, list(params.values()), create_graph=True, allow_unused=True)
            why = "its gradient has no gradient" if any(_ends(g) for g in grads if g is not None) else ""
            self._outer_gradient(run, batch, self._teacher(run, batch))
        except (RuntimeError, NotImplementedError) as error:
            why = str(error).splitlines()[0]
        if why:
            raise InterfuseError("needs.capability", f"a layer of the student cannot run in an unrolled step: {why}",
                                 where=run.student_model.name)  # fmt: skip

    def select(self, run: Run, order: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.learned:
            return order
        return order[np.isin(order, run.tensors["train_rows"].numpy())]

    # -- training --------------------------------------------------------------------------------------------------

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        return {"kd": forward_kl(views.student, views.teachers[0], tau=self.tau), "ce": hard_loss(views)}

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        if not self.learned:
            given = self._given(run, views) if self.fixed_alpha is None else self.fixed_alpha
            return {"kd": given, "ce": 1 - given}
        if run.step % self.outer_every == 0:
            fusion, optimizer = run.modules["fusion"], run.optimizers["fusion"]
            gradient = self._outer_gradient(run, views.batch, views.teachers[0])
            for p, g in zip(fusion.parameters(), gradient, strict=True):
                p.grad = g.to(p.dtype)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            alpha = self._ratio(run, views.batch, views.student, views.teachers[0])
        self._note(run, views, alpha)
        return {"kd": alpha, "ce": 1 - alpha}

    @torch.no_grad()
    def _given(self, run: Run, views: Views) -> float | torch.Tensor:
        """The ratios of the baselines that learn none: one for all, or per sample [B]."""
        student, teacher, labels = views.student, views.teachers[0], _need(views.labels)
        if self.ratio == "anneal":
            return 1 - run.epoch / max(run.settings.epochs - 1, 1)
        if self.ratio == "margin":
            return margin(teacher, labels)
        return 1 - torch.exp(-cross_entropy(student, labels) / cross_entropy(teacher, labels).clamp_min(1e-8))

    def _ratio(self, run: Run, batch: Batch, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        fusion = run.modules["fusion"]
        if self.ratio == "sample":
            free: torch.Tensor = torch.sigmoid(fusion(torch.from_numpy(batch.positions).to(student.device)))
            return free
        means = run.tensors["class_means"].to(student.device)
        seen = geometry(student.detach(), teacher, _need(batch.labels), means, features=self.features)
        ratio: torch.Tensor = torch.sigmoid(fusion(seen.to(next(fusion.parameters()).dtype))).squeeze(-1)
        return ratio

    def _outer_gradient(self, run: Run, batch: Batch, teacher: torch.Tensor) -> list[torch.Tensor]:
        """The validation loss after one plain gradient step of the student, differentiated through that step by w."""
        student = run.bare
        labels = _need(batch.labels)
        held, held_labels = self._validation_batch(run)

        def train_loss(params: Params) -> torch.Tensor:
            logits = forward(Elsewhere(student, params), run.student_model, batch.student)
            alpha = self._ratio(run, batch, logits, teacher)
            return (
                alpha * forward_kl(logits, teacher, tau=self.tau) + (1 - alpha) * cross_entropy(logits, labels)
            ).mean()

        def outer_loss(params: Params) -> torch.Tensor:
            return cross_entropy(forward(Elsewhere(student, params), run.student_model, held), held_labels).mean()

        params = {n: p for n, p in student.named_parameters() if p.requires_grad}
        eta = float(run.optimizers["main"].param_groups[0]["lr"])
        with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            return hyper_gradient(train_loss, outer_loss, params, eta, list(run.modules["fusion"].parameters()))

    def _validation_batch(self, run: Run) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        held, table = run.tensors["held_rows"].numpy(), run.validation or run.data
        rng = run.ctx.rng(f"validation/{run.step}")
        rows = np.sort(rng.choice(held, min(self.outer_batch, len(held)), replace=False))
        encoder = run.encoder if table is run.data else Encoder(run.student_model, table, run.settings.max_length)
        labels = torch.from_numpy(table.labels()[rows]).to(run.device)
        return {k: v.to(run.device) for k, v in encoder.encode(rows).items()}, labels

    def _teacher(self, run: Run, batch: Batch) -> torch.Tensor:
        if run.stored is not None:
            return run.stored[0][torch.from_numpy(batch.positions)].to(run.device)
        with torch.no_grad():
            return forward(run.teachers[0], run.teacher_models[0], batch.teachers[0])

    # -- the record ------------------------------------------------------------------------------------------------

    def _note(self, run: Run, views: Views, alpha: torch.Tensor) -> None:
        epoch = run.epoch if len(run.tensors["alpha"]) > 1 else 0
        rows = torch.from_numpy(views.batch.positions)
        s, t = views.student.detach().softmax(-1), views.teachers[0].softmax(-1)
        run.tensors["alpha"][epoch, rows] = alpha.cpu().float()
        run.tensors["st_distance"][epoch, rows] = (s - t).norm(dim=-1).cpu().float()
        run.tensors["student_correct"][epoch, rows] = (s.argmax(-1) == _need(views.labels)).cpu().to(torch.uint8)

    def write(self, run: Run, folder: Path) -> None:
        if not self.learned:
            return
        import pyarrow
        import pyarrow.parquet
        import safetensors.torch

        safetensors.torch.save_file(run.modules["fusion"].cpu().state_dict(), folder / "fusion.safetensors")
        alpha = run.tensors["alpha"].numpy()
        right = (run.taught().argmax(-1) == _labels(run)).numpy()
        epoch, row = np.nonzero(np.isfinite(alpha))
        last = 1 + (epoch if len(alpha) > 1 else np.full_like(epoch, run.settings.epochs - 1))
        ids = run.data.ids()
        columns = {"sample_id": [ids[r] for r in row], "epoch": last, "alpha": alpha[epoch, row], "teacher_correct": right[row],
                   "student_correct": run.tensors["student_correct"].numpy()[epoch, row].astype(bool),
                   "st_distance": run.tensors["st_distance"].numpy()[epoch, row]}  # fmt: skip
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "fusion_ratio.parquet")
        epochs = range(1, len(alpha) + 1) if len(alpha) > 1 else [run.settings.epochs]
        pages.fusion_ratios(folder, alpha, right, epochs)


# -- the mathematics -------------------------------------------------------------------------------------------------


def geometry(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, means: torch.Tensor, *, features: str = "full"
) -> torch.Tensor:
    """What the fusion network sees of each sample (section 3.2): [B, 9K] for 'full', [B, 4K], [B, 5K], or [B, 5] for 'norms'.

    Corners are the distributions S (student), T (teacher), G (label) and M (the teacher's mean over the label's class) at
    temperature 1; edges the elementwise squares of M-S, G-S, T-S, T-G and M-G, in the authors' order.

    Args:
        student, teacher: logits [B, K]. labels: [B]. means: [K, K], probabilities.
    """
    s, t = student.softmax(dim=-1), teacher.softmax(dim=-1).to(student.dtype)
    g, m = F.one_hot(labels, s.shape[-1]).to(s.dtype), means.to(s.dtype)[labels]
    edges = [(a - b).square() for a, b in ((m, s), (g, s), (t, s), (t, g), (m, g))]
    if features == "norms":
        return torch.stack([e.sum(dim=-1) for e in edges], dim=-1)
    corners = [s, t, g, m]
    return torch.cat({"full": corners + edges, "vertices": corners, "edges": edges}[features], dim=-1)


def _width(features: str, classes: int) -> int:
    return 5 if features == "norms" else {"full": 9, "vertices": 4, "edges": 5}[features] * classes


def margin(teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The teacher's probability of the label less its mean probability of the others, at least 0: [B, K], [B] -> [B]."""
    p = teacher.softmax(dim=-1)
    own = p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return (own - (1 - own) / max(p.shape[-1] - 1, 1)).clamp_min(0)


class Free(nn.Module):
    """One number per example, 0 at first (a ratio of one half): rows [B] -> [B]."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(rows))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.values[rows]


def class_means(logits: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The teacher's mean softmax of the samples of each class, float32 [K, K]; uniform for a class without samples."""
    sums = torch.zeros(classes, classes, dtype=torch.float64).index_add_(0, labels, logits.double().softmax(dim=-1))
    counts = torch.bincount(labels, minlength=classes).unsqueeze(1)
    return torch.where(counts > 0, sums / counts.clamp_min(1), torch.full_like(sums, 1 / classes)).float()


def hyper_gradient(
    train_loss: Callable[[Params], torch.Tensor],
    outer_loss: Callable[[Params], torch.Tensor],
    params: Mapping[str, torch.Tensor],
    eta: float,
    outer: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """``d/dw outer_loss(theta - eta * d/dtheta train_loss(theta, w))``, exactly: the gradient flows through the step.

    No ``.grad`` is written. A parameter that the training loss does not reach stays where it is.

    Args:
        train_loss, outer_loss: scalars as functions of the parameters. params: theta. eta: step size.
        outer: the tensors w, on which ``train_loss`` depends.
    """
    theta = {name: p.detach().requires_grad_() for name, p in params.items()}
    grads = torch.autograd.grad(train_loss(theta), list(theta.values()), create_graph=True, allow_unused=True)
    moved = {n: p if g is None else p - eta * g for (n, p), g in zip(theta.items(), grads, strict=True)}
    found = torch.autograd.grad(outer_loss(moved), list(outer), allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(outer, found, strict=True)]


def _ends(gradient: torch.Tensor) -> bool:
    """Whether a gradient's graph holds a node behind which PyTorch knows no gradient and would silently take zero."""
    waiting: list[Any] = [gradient.grad_fn]
    seen: dict[Any, None] = {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen[node] = None
        if node.name().endswith("Error"):
            return True
        waiting += [parent for parent, _ in node.next_functions]
    return False


class Elsewhere(nn.Module):
    """A module at other parameters; its running statistics move in copies that are thrown away."""

    def __init__(self, module: nn.Module, params: Params) -> None:
        super().__init__()
        self.module = module
        self.state = {**params, **{n: b.clone() for n, b in module.named_buffers()}}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.module, self.state, args, kwargs)


# -- rows and teachers -----------------------------------------------------------------------------------------------


def split(run: Run, fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training rows of the data, and validation rows: of the validation table, or of the data when there is none.

    Raises:
        InterfuseError: ``input.missing`` without validation examples, ``input.empty`` when nothing is left for one of both.
    """
    everything = np.arange(len(run.data))
    if run.validation is not None:
        return everything, np.arange(len(run.validation))
    if fraction == 0:
        raise InterfuseError("input.missing", "there are no validation examples", where="validation",
                             fix="Give validation: TABLE, or val_fraction: 0.1.")  # fmt: skip
    held = np.sort(run.ctx.rng("held apart").permutation(everything)[: round(fraction * len(everything))])
    train = np.setdiff1d(everything, held)
    if not len(held) or not len(train):
        raise InterfuseError("input.empty", f"{len(everything)} examples cannot be split", where=run.data.name)
    return train, held


def _labels(run: Run) -> torch.Tensor:
    return _need(run.labels)


def _need(labels: torch.Tensor | None) -> torch.Tensor:
    assert labels is not None, "needs().labels guarantees labels"
    return labels
