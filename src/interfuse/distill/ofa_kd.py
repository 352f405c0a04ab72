"""OFA-KD (Hao et al. 2023): every stage of the student predicts classes and matches the teacher's output, not its features.

Only logits cross between the two networks, so their architectures need nothing in common.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.encode import forward
from interfuse.kit.feature_losses import linear_cka
from interfuse.kit.losses import ofa_target, weighted_nll
from interfuse.kit.nets import Shape, as_tokens, grid_of, width_of
from interfuse.kit.taps import AUTO, Taps

#: examples and batch size of the representation report
CKA_ROWS, CKA_BATCH = 256, 128
#: token exits of the paper merge patches until about this many are left
PATCHES = 49


@method()
@dataclass(frozen=True)
class OFAKD(Hooks):
    """``w_gt CE(z_s, y) + w_kd l(z_s; eps_last) + w_ofa sum_k l(exit_k; eps_k)`` with the adaptive target loss l (section 3).

    In the code's form l is ``-sum_c [(p_c + m_c)^eps - m_c] log q_c``, m the one-hot target; in the paper's form
    ``-(1 + p_y)^eps log q_y - sum_{c != y} p_c log q_c``. Exits are trained and thrown away.
    """

    stages: Annotated[
        list[str],
        Field(min_length=1, description="student layers that get an exit, or auto: the quarter points of its blocks"),
    ] = field(default_factory=lambda: [AUTO])
    exit: Annotated[
        Literal["light", "paper"],
        Field(description="light: norm, mean over places, two linear layers; paper: convolution or transformer blocks"),
    ] = "light"
    eps: Annotated[
        float | list[float],
        Field(description="exponent of the adaptive target, >= 0; or one per stage and a last one for the logits"),
    ] = 1.0
    form: Annotated[Literal["code", "paper"], Field(description="the authors' code or the printed equation")] = "code"
    tau: Annotated[float, Field(gt=0, description="temperature; not compensated by tau^2")] = 1.0
    w_gt: Annotated[float, Field(ge=0, description="weight of the cross entropy with the labels")] = 1.0
    w_kd: Annotated[float, Field(ge=0, description="weight of the adaptive loss on the student's own logits")] = 1.0
    w_ofa: Annotated[float, Field(ge=0, description="weight of the adaptive loss on every exit")] = 1.0
    target: Annotated[
        Literal["label", "teacher"],
        Field(description="the class with extra weight; teacher: its most likely class (no labels)"),
    ] = "label"
    cka: Annotated[
        bool, Field(description="report how alike the layers of teacher and student are, before and after")
    ] = False

    def needs(self) -> Needs:
        return Needs(
            labels=self.w_gt > 0 or self.target == "label", teachers=(1, 1), student_features=tuple(self.stages)
        )

    def setup(self, run: Run) -> None:
        shapes = run.student_shapes
        self._exponents(len(shapes))
        final = width_of(list(shapes.values())[-1])
        for k, (name, shape) in enumerate(shapes.items(), start=1):
            if run.student_model.task == "causal-lm":
                run.add(_exit_name(k), nn.LayerNorm(width_of(shape)))  # logit lens: the model's own head follows
            elif self.exit == "light":
                run.add(_exit_name(k), LightExit(width_of(shape), final, run.classes))
            else:
                width = max(final, _last_width(run.teachers[0])) if len(shape) == 3 else final
                run.add(_exit_name(k), paper_exit(shape, len(shapes) - k, width, run.classes, where=name))
        if self.cka:
            run.facts["cka_before"] = self._cka(run)

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        teacher = views.teachers[0]
        target = teacher.argmax(dim=-1) if self.target == "teacher" else _target(views)
        *exits, last = self._exponents(len(run.student_shapes))
        terms = {"ce": hard_loss(views)} if self.w_gt else {}
        weights = {
            e: ofa_target(teacher, target, eps=e, tau=self.tau, form=self.form) for e in dict.fromkeys((last, *exits))
        }
        terms["ofa"] = weighted_nll(views.student, weights[last], tau=self.tau)
        hard = target.argmax(dim=-1) if target.is_floating_point() else target
        for k, (name, eps) in enumerate(zip(run.student_shapes, exits, strict=True), start=1):
            logits = self._exit(run, k, views.features[name])
            terms[_exit_name(k)] = weighted_nll(logits, weights[eps], tau=self.tau)
            terms[f"right_{k}"] = (logits.detach().argmax(dim=-1) == hard).to(logits.dtype)  # logged, weighs nothing
        return terms

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        count = len(run.student_shapes)
        logged: dict[str, float | Tensor] = {f"right_{k}": 0.0 for k in range(1, count + 1)}
        return {"ce": self.w_gt, "ofa": self.w_kd} | {_exit_name(k): self.w_ofa for k in range(1, count + 1)} | logged

    def on_epoch_end(self, run: Run) -> None:
        if self.cka and run.epoch == run.settings.epochs:
            run.facts["cka_after"] = self._cka(run)

    def _exit(self, run: Run, k: int, feature: Tensor) -> Tensor:
        logits: Tensor = run.modules[_exit_name(k)](feature)
        if run.student_model.task != "causal-lm":
            return logits
        head = run.student.get_output_embeddings()  # type: ignore[operator]
        found: Tensor = head(logits)[:, :-1]
        return found

    def _exponents(self, stages: int) -> list[float]:
        eps = self.eps if isinstance(self.eps, list) else [self.eps] * (stages + 1)
        if len(eps) != stages + 1 or min(eps) < 0:
            raise InterfuseError("param.value", f"eps = {self.eps}: there are {stages} exits and the logits", where="eps",
                                 fix=f"Give one number >= 0, or {stages + 1} of them; the last belongs to the logits.")  # fmt: skip
        return [float(e) for e in eps]

    def _cka(self, run: Run) -> dict[str, Any]:
        teacher, student = run.teachers[0], run.student
        rows = np.arange(min(CKA_ROWS, len(run.data)))
        with Taps(teacher, [AUTO]) as t, Taps(student, [AUTO]) as s:
            table = cka_table(_features(run, t, s, rows), len(t.names), len(s.names))
            return {"teacher": t.names, "student": s.names, "cka": np.round(table, 6).tolist()}


def cka_table(pairs: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]], rows: int, columns: int) -> np.ndarray:
    """Linear CKA of every teacher layer with every student layer, averaged over minibatches (section 2 of the paper).

    Args:
        pairs: per minibatch the features [B, ...] of the teacher's and of the student's layers. rows, columns: their numbers.

    Returns:
        float64 [rows, columns].
    """
    total, count = np.zeros((rows, columns)), 0
    for teacher, student in pairs:
        total += [[float(linear_cka(t, s)) for s in student] for t in teacher]
        count += 1
    return total / max(count, 1)


def _features(run: Run, t: Taps, s: Taps, rows: np.ndarray) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    training = run.student.training
    for start in range(0, len(rows), CKA_BATCH):
        part = rows[start : start + CKA_BATCH]
        if len(part) < 2:
            continue
        with torch.no_grad():
            for module, model, encoder in (
                (run.teachers[0], run.teacher_models[0], run.teacher_encoders[0]),
                (run.student, run.student_model, run.encoder),
            ):
                forward(module.eval(), model, {k: v.to(run.device) for k, v in encoder.encode(part).items()})
        yield list(t.features.values()), list(s.features.values())
    run.student.train(training)


def _last_width(module: nn.Module) -> int:
    """Inputs of the last linear layer; 0 for a teacher without one (a tree ensemble)."""
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return linear[-1].in_features if linear else 0


def _exit_name(k: int) -> str:
    return f"exit_{k}"


def _target(views: Views) -> Tensor:
    """The labels, or mixed soft labels, whose largest entry is the target."""
    target = views.batch.soft if views.batch.soft is not None else views.labels
    assert target is not None, "needs().labels guarantees labels"
    return target


# -- exits ------------------------------------------------------------------------------------------------------------


class LightExit(nn.Module):
    """LayerNorm, mean over places, Linear(d, 2 D), GELU, Linear(2 D, K): a feature of any kind becomes logits [B, K]."""

    def __init__(self, width: int, final: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 2 * final), nn.GELU(), nn.Linear(2 * final, classes))

    def forward(self, feature: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(as_tokens(feature)).mean(dim=1))
        return found


def paper_exit(shape: Shape, stages_left: int, width: int, classes: int, *, where: str = "") -> nn.Module:
    """The exit of the paper for a feature of ``shape``, ``stages_left`` stages before the last.

    Args:
        shape: (C, H, W) or (N, D). width: of the last stage.

    Raises:
        InterfuseError: ``input.shape`` for a vector, for tokens that are no square, or for a width that 4 heads do not divide.
    """
    if len(shape) == 3:
        return ConvExit(shape[0], stages_left, width, classes)
    grid = grid_of(shape)
    if len(shape) != 2 or grid is None:
        raise InterfuseError("input.shape", f"a feature of shape {shape} has no square grid of patches", where=where,
                             fix="Use exit: light.")  # fmt: skip
    if width % 4:
        raise InterfuseError("input.shape", f"4 attention heads do not divide the width {width}", where=where, fix="Use exit: light.")  # fmt: skip
    return TokenExit(shape[1], grid, max(stages_left, 1), width, classes)


class _BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that uses its running statistics where a batch holds a single number per channel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)  # fmt: skip
        return super().forward(x)


def _separable(inner: int, outer: int) -> nn.Sequential:
    """Depthwise 3x3 with stride 2, pointwise, norm, ReLU, depthwise 3x3, pointwise, norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inner, inner, 3, stride=2, padding=1, groups=inner, bias=False), nn.Conv2d(inner, inner, 1, bias=False),
        _BatchNorm(inner), nn.ReLU(),
        nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.Conv2d(inner, outer, 1, bias=False),
        _BatchNorm(outer), nn.ReLU(),
    )  # fmt: skip


class ConvExit(nn.Module):
    """Stride-2 separable convolutions, channels doubling, the last to the final width; a 1x1 convolution at the last stage."""

    def __init__(self, channels: int, stages_left: int, width: int, classes: int) -> None:
        super().__init__()
        widths = [channels * 2**i for i in range(stages_left)] + [width]
        blocks: list[nn.Module] = [_separable(a, b) for a, b in itertools.pairwise(widths)]
        self.blocks = nn.Sequential(*(blocks or [nn.Conv2d(channels, width, 1)]))
        self.head = nn.Linear(width, classes)

    def forward(self, feature: Tensor) -> Tensor:
        found: Tensor = self.head(self.blocks(feature).mean(dim=(2, 3)))
        return found


class TokenExit(nn.Module):
    """2x2 patch merging until about 49 patches are left, transformer blocks, class token or mean, a linear layer."""

    def __init__(self, inner: int, grid: tuple[int, int, int], blocks: int, width: int, classes: int) -> None:
        super().__init__()
        self.leading, side, _ = grid
        merges = 0
        while math.ceil(side / 2**merges) ** 2 > PATCHES:
            merges += 1
        widths = [inner] + [width] * merges
        self.merges = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4 * a), nn.Linear(4 * a, b)) for a, b in itertools.pairwise(widths)
        )
        self.widen = nn.Identity() if merges == 0 and inner == width else nn.Linear(inner, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(blocks)
        )  # fmt: skip
        self.head = nn.Linear(width, classes)

    def forward(self, feature: Tensor) -> Tensor:
        first, patches = feature[:, : self.leading], feature[:, self.leading :]
        for merge in self.merges:
            patches = merge(_merge_patches(patches))
        if not self.merges:
            patches = self.widen(patches)
        tokens = torch.cat([self.widen(first), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        found: Tensor = self.head(tokens[:, 0] if self.leading else tokens.mean(dim=1))
        return found


def _merge_patches(patches: Tensor) -> Tensor:
    """Every 2x2 square of patches becomes one with four times the width; odd grids are padded with zeros."""
    side = math.isqrt(patches.shape[1])
    grid = patches.reshape(len(patches), side, side, -1)
    if side % 2:
        grid = nn.functional.pad(grid, (0, 0, 0, 1, 0, 1))
    corners = [grid[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.cat(corners, dim=-1).flatten(1, 2)
