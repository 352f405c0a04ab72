"""Knowledge review (ReviewKD, Chen et al. 2021): deep student stages are fused into shallow ones before they meet the teacher's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss, per_position
from interfuse.kit.losses import full_precision
from interfuse.kit.nets import as_map, check_places, width_of
from interfuse.kit.taps import AUTO, PENULTIMATE

#: sides of the averaged copies that a map is compared at, beside its own size (section 3.3)
PYRAMID = (4, 2, 1)


@method()
@dataclass(frozen=True)
class ReviewKD(Hooks):
    """``label_weight * CE + ramp * weight * sum over stages of HCL(fusion(student stages from here on), teacher stage)`` (section 3)."""

    weight: Annotated[float, Field(ge=0, description="weight of the review loss")] = 1.0
    warmup_epochs: Annotated[int, Field(ge=0, description="epochs over which the review grows to full weight")] = 20
    max_width: Annotated[int, Field(ge=1, description="channels that stages are fused in, at most")] = 512
    label_weight: Annotated[float, Field(ge=0, description="weight of the labels; at 0 none are needed")] = 1.0
    student_layers: Annotated[
        list[str],
        Field(min_length=1, description="student stages from shallow to deep: names, globs, auto, penultimate"),
    ] = field(default_factory=lambda: [AUTO, PENULTIMATE])
    teacher_layers: Annotated[
        list[str], Field(min_length=1, description="teacher stages, as many: names, globs, auto, penultimate")
    ] = field(default_factory=lambda: [AUTO, PENULTIMATE])

    def needs(self) -> Needs:
        return Needs(
            labels=self.label_weight > 0,
            teachers=(1, 1),
            student_features=tuple(self.student_layers),
            teacher_features=tuple(self.teacher_layers),
            batch=2,
        )

    def setup(self, run: Run) -> None:
        pairs = self._pairs(run)
        middle = min(self.max_width, width_of(run.student_shapes[pairs[-1][0]]))
        for k, (s, t) in enumerate(pairs, start=1):
            inner, outer = run.student_shapes[s], run.teacher_shapes[0][t]
            for name, shape in ((s, inner), (t, outer)):
                if len(shape) > 1:
                    check_places(shape, (1, 1, 1), where=name)
            run.add(f"fusion_{k}", Fusion(width_of(inner), middle, width_of(outer), fuse=k < len(pairs)))

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        pairs = [tuple(_map(x) for x in views.pair(s, t)) for s, t in self._pairs(run)]
        total: Tensor | None = None
        deeper: Tensor | None = None
        for k in range(len(pairs), 0, -1):  # from the deepest stage back to the first
            student, teacher = pairs[k - 1]
            size = (int(teacher.shape[2]), int(teacher.shape[3]))
            reviewed, deeper = run.modules[f"fusion_{k}"](student, deeper, size)
            stage = hierarchical_context(reviewed, teacher)
            total = stage if total is None else total + stage
        assert total is not None, "there is always a stage"
        terms = {"review": per_position(total, views)}
        return terms | ({"ce": hard_loss(views)} if self.label_weight else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        ramp = min((run.epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        return {"review": ramp * self.weight, "ce": self.label_weight}

    def _pairs(self, run: Run) -> list[tuple[str, str]]:
        return run.layer_pairs(self.student_layers, self.teacher_layers)


def _map(feature: Tensor) -> Tensor:
    """A map, tokens as a map, a vector as a map of one place."""
    return feature[:, :, None, None] if feature.ndim == 2 else as_map(feature)


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss: weighted mean of squared differences of the maps and of their averages over a pyramid (section 3.3).

    The maps weigh 1, each coarser level that is smaller than the map half of the one before.

    Args:
        student, teacher: ``[B, C, H, W]``, one shape.

    Returns:
        ``[B]``.
    """
    s, t = full_precision(student), full_precision(teacher)
    loss, weight, total = (s - t).square().flatten(1).mean(dim=1), 1.0, 1.0
    for side in PYRAMID:
        if side < s.shape[2]:
            weight /= 2
            coarse = F.adaptive_avg_pool2d(s, side) - F.adaptive_avg_pool2d(t, side)
            loss = loss + weight * coarse.square().flatten(1).mean(dim=1)
            total += weight
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion (section 3.3): a stage and the residual of the deeper ones, mixed by two maps of weights per place."""

    def __init__(self, inner: int, middle: int, outer: int, *, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(inner, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.expand = nn.Sequential(nn.Conv2d(middle, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuse else None
        for block in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(next(block.parameters()), a=1)

    def forward(self, feature: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The stage as the teacher would have it ``[B, outer, *size]``, and the residual ``[B, middle, *size]`` for the next."""
        x: Tensor = self.reduce(feature)
        if self.attention is not None and deeper is not None:
            # the 1 x 1 convolution of [x, y] in two halves: that of y runs before y is enlarged, which changes nothing
            half, size_here = x.shape[1], x.shape[2:]
            there = F.conv2d(deeper, self.attention.weight[:, half:])
            here = F.conv2d(x, self.attention.weight[:, :half], self.attention.bias)
            share = torch.sigmoid(here + _enlarged(there, size_here))  # [B, 2, H, W]
            x = share[:, :1] * x + share[:, 1:] * _enlarged(deeper, size_here)
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="nearest")
        return self.expand(x), x


def _enlarged(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="nearest")
