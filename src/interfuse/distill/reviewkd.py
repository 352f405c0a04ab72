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
from interfuse.kit.enlarged_conv import conv_enlarged
from interfuse.kit.losses import full_precision
from interfuse.kit.nets import as_map, check_places, width_of
from interfuse.kit.taps import AUTO, PENULTIMATE

#: sides of the averaged copies that a map is compared at, beside its own size (section 3.3)
PYRAMID = (4, 2, 1)
#: places of a map from which on its normalisation is computed ahead of its convolution; below, the additional operations cost more
LARGE = 256


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
            tokens = (
                len(inner) == len(outer) == 2
            )  # of one size at every depth: there is nothing enlarged to smooth over
            run.add(
                f"fusion_{k}",
                Fusion(width_of(inner), middle, width_of(outer), fuse=k < len(pairs), kernel=1 if tokens else 3),
            )

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        pairs = [tuple(_map(x) for x in views.pair(s, t)) for s, t in self._pairs(run)]
        total: Tensor | None = None
        deeper: Tensor | None = None
        for k in range(len(pairs), 0, -1):  # from the deepest stage back to the first
            student, teacher = pairs[k - 1]
            size = (int(teacher.shape[2]), int(teacher.shape[3]))
            reviewed, deeper = run.modules[f"fusion_{k}"](student, deeper, size, last=k == 1)
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

    The maps weigh 1, each coarser level that is smaller than the map half of the one before. An average of differences is a
    difference of averages, and where sides divide evenly an average of averages.

    Args:
        student, teacher: ``[B, C, H, W]``, one shape.

    Returns:
        ``[B]``.
    """
    difference = full_precision(student) - full_precision(teacher)
    loss, weight, total = _mean_square(difference), 1.0, 1.0
    even = all(side % PYRAMID[0] == 0 for side in difference.shape[2:])
    coarse = difference
    for side in PYRAMID:
        if side < difference.shape[2]:
            weight /= 2
            coarse = F.adaptive_avg_pool2d(coarse if even else difference, side)
            loss = loss + weight * _mean_square(coarse)
            total += weight
    return loss / total


def _mean_square(x: Tensor) -> Tensor:
    """Of each sample ``[B]``, by the norm: one pass over the map either way."""
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return length.square() / x[0].numel()


class Fusion(nn.Module):
    """Attention-based fusion (section 3.3): a stage and the residual of the deeper ones, mixed by two maps of weights per place.

    Where the stage is large and narrower than the fusion, as shallow ones are, no more is computed at its size than must be: the
    1 x 1 convolution and the normalisation over the batch that follows it are one affine map whose statistics are read off the
    stage's own covariance, and where nothing comes after, the 3 x 3 convolution runs on the narrow stage as well.
    """

    def __init__(self, inner: int, middle: int, outer: int, *, fuse: bool, kernel: int = 3) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(inner, middle, 1, bias=False), nn.BatchNorm2d(middle, track_running_stats=False)
        )
        self.expand = nn.Sequential(nn.Conv2d(middle, outer, kernel, padding=kernel // 2, bias=False),
                                    nn.BatchNorm2d(outer, track_running_stats=False))  # fmt: skip
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuse else None
        self.inner, self.middle = inner, middle
        for block in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(next(block.parameters()), a=1)

    def forward(
        self, feature: Tensor, deeper: Tensor | None, size: tuple[int, int], *, last: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The stage as the teacher would have it ``[B, outer, *size]``, and the residual ``[B, middle, *size]`` for the next.

        Args:
            last: no stage comes after, so that the residual may be left out.
        """
        convolution, norm = _parts(self.expand)
        here = feature.shape[2:]
        folded = self._folded(feature) if self.inner < self.middle and here[0] * here[1] >= LARGE else None
        x: Tensor = feature if folded else self.reduce(feature)
        if self.attention is not None and deeper is not None:
            # the 1 x 1 convolution of [x, y] in two halves: that of y runs before y is enlarged, which changes nothing
            mine, theirs = self.attention.weight[:, : self.middle], self.attention.weight[:, self.middle :]
            there, bias = _enlarged(F.conv2d(deeper, theirs), here), self.attention.get_parameter("bias")
            if folded:
                own = F.conv2d(x, _after(mine, folded[0]), torch.addmv(bias, mine[:, :, 0, 0], folded[1]))
            else:
                own = F.conv2d(x, mine, bias)
            share = torch.sigmoid(own + there)  # [B, 2, H, W]
            twice = tuple(here) == size == tuple(2 * n for n in deeper.shape[2:])
            if folded and last and twice and convolution.kernel_size == (3, 3):
                kernel = convolution.weight
                narrow = F.conv2d(share[:, :1] * feature, _after(kernel, folded[0]), padding=1)
                constant = F.conv2d(share[:, :1], torch.einsum("omyx,m->oyx", kernel, folded[1])[:, None], padding=1)
                return norm(narrow.add_(constant).add_(conv_enlarged(deeper, share[:, 1:], kernel))), None
            x = F.conv2d(x, *folded) if folded else x
            x = torch.addcmul(share[:, :1] * x, share[:, 1:], _enlarged(deeper, here))
        elif folded:
            x = F.conv2d(x, *folded)
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="nearest")
        return norm(_convolved(x, convolution)), x

    def _folded(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Weight ``[middle, inner, 1, 1]`` and bias ``[middle]`` of convolution and normalisation together, for this batch.

        The variance of ``w . f`` over all places is ``w . Cov(f) w``.
        """
        convolution, norm = _parts(self.reduce)
        with torch.autocast(feature.device.type, enabled=False):
            f = full_precision(feature)
            mean = f.mean(dim=(0, 2, 3))
            centred = (f - mean.detach()[:, None, None]).flatten(2)  # has mean 0, so its gradient needs no mean's
            covariance = (centred @ centred.transpose(1, 2)).sum(dim=0) / (len(f) * centred.shape[2])
            weight = convolution.weight.to(f.dtype)[:, :, 0, 0]
            variance = ((weight @ covariance) * weight).sum(dim=1)
            weight = weight * (norm.weight * torch.rsqrt(variance + norm.eps))[:, None]
            bias = norm.bias - weight @ mean
        return weight[:, :, None, None], bias


def _parts(block: nn.Sequential) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution, norm = block
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return convolution, norm


def _after(kernel: Tensor, first: Tensor) -> Tensor:
    """The kernel ``[O, I, k, k]`` of a convolution with ``kernel [O, M, k, k]`` after a 1 x 1 one with ``first [M, I, 1, 1]``."""
    return torch.einsum("omyx,mi->oiyx", kernel, first[:, :, 0, 0])


def _convolved(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A convolution that keeps the size; of a map of one place it sees the middle of its kernel alone."""
    if x.shape[2:] == (1, 1):
        k = convolution.kernel_size[0] // 2
        return F.conv2d(x, convolution.weight[:, :, k : k + 1, k : k + 1])
    found: Tensor = convolution(x)
    return found


def _enlarged(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="nearest")
