"""Knowledge review (ReviewKD, Chen et al. 2021): deep student stages are fused into shallow ones before they meet the teacher's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss, per_position
from interfuse.kit.losses import full_precision
from interfuse.kit.mixed_conv import Kernels, conv_mixed
from interfuse.kit.nets import as_map, check_places, width_of
from interfuse.kit.taps import AUTO, PENULTIMATE

if TYPE_CHECKING:
    from interfuse.core.rooms import Call

#: sides of the averaged copies that a map is compared at, beside its own size (section 3.3)
PYRAMID = (4, 2, 1)
#: places of a map from which on it is fused without being built wide; below, the additional operations cost more
LARGE = 512


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

    def check(self, call: Call) -> None:
        data = call.inputs["data"]
        if data.kind not in ("image", "features") and {*self.student_layers, *self.teacher_layers} != {PENULTIMATE}:
            raise InterfuseError("input.type", f"reviewkd fuses maps of places, the table holds {data.kind}, whose tokens are no map", where=data.name,
                                 fix="Use fitnets, which matches tokens, or name penultimate alone for both.")  # fmt: skip

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
    found: Tensor = _Context.apply(full_precision(student), full_precision(teacher))  # type: ignore[no-untyped-call]
    return found


class _Context(torch.autograd.Function):
    """:func:`hierarchical_context`, whose gradient takes two passes over the map."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        maps, weights = [student - teacher], [1.0]
        ctx.even = all(side % PYRAMID[0] == 0 for side in student.shape[2:])
        for side in PYRAMID:
            if side < student.shape[2]:
                maps.append(F.adaptive_avg_pool2d(maps[-1 if ctx.even else 0], side))
                weights.append(weights[-1] / 2)
        ctx.scales = [w / (sum(weights) * m[0].numel()) for w, m in zip(weights, maps, strict=True)]
        ctx.save_for_backward(*maps)
        lengths = [torch.linalg.vector_norm(m, dim=(1, 2, 3)) for m in maps]  # one pass over the map
        return torch.stack(lengths, dim=1).square() @ student.new_tensor(ctx.scales)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        maps: tuple[Tensor, ...] = ctx.saved_tensors
        of: dict[int, Tensor] = {}
        for k in range(len(maps) - 1, -1, -1):  # from coarse to fine
            own = 2 * ctx.scales[k] * gradient[:, None, None, None]
            of[k] = torch.addcmul(of[k], own, maps[k]) if k in of else own * maps[k]
            if k > 0:
                finer = k - 1 if ctx.even else 0
                spread = torch.ops.aten._adaptive_avg_pool2d_backward(of[k], maps[finer])
                of[finer] = of[finer] + spread if finer in of else spread
        return of[0], -of[0] if ctx.needs_input_grad[1] else None


class Fusion(nn.Module):
    """Attention-based fusion (section 3.3): a stage and the residual of the deeper ones, mixed by two maps of weights per place.

    Where the last stage is large and narrower than the fusion, as the shallowest is, no more is computed at its size than must be: the
    1 x 1 convolution and the normalisation over the batch that follows it are one affine map whose statistics are read off the
    stage's own covariance, and the 3 x 3 convolution runs on the narrow stage and on the residual of the deeper ones before it is enlarged.
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
        feature = _channels_last(feature)
        if self.attention is None or deeper is None:
            x = self._reduced(feature)
        else:
            # the 1 x 1 convolution of [x, y] in two halves: that of y runs before y is enlarged, which changes nothing
            mine, theirs = self.attention.weight[:, : self.middle], self.attention.weight[:, self.middle :]
            bias = self.attention.get_parameter("bias")
            narrow = self.inner < self.middle and here[0] * here[1] >= LARGE
            twice = tuple(here) == size == tuple(2 * n for n in deeper.shape[2:])
            if narrow and last and twice and convolution.kernel_size == (3, 3):
                first = self._folded(feature)
                told, theirs = mine[:, :, 0, 0] @ first, theirs[:, :, 0, 0]
                after = torch.einsum("omyx,mi->oiyx", convolution.weight, first)
                kernels = Kernels(after, convolution.weight, told[:, :-1], theirs, bias + told[:, -1])
                return norm(conv_mixed(feature, deeper, kernels)), None
            x = self._reduced(feature)
            there = _enlarged(_pointwise(deeper, theirs), here)
            share = torch.sigmoid(_pointwise(x, mine, bias) + there)  # [B, 2, H, W]
            own, other = torch.split(share, 1, dim=1)
            x = torch.addcmul(own * x, other, _enlarged(deeper, here))
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="nearest")
        return norm(_convolved(x, convolution)), x

    def _reduced(self, feature: Tensor) -> Tensor:
        convolution, norm = _parts(self.reduce)
        found: Tensor = norm(_pointwise(feature, convolution.weight))
        return found

    def _folded(self, feature: Tensor) -> Tensor:
        """Convolution and normalisation together for this batch, bias last: ``[middle, inner + 1]``.

        The variance of ``w . f`` over all places is ``w . Cov(f) w``.
        """
        convolution, norm = _parts(self.reduce)
        with torch.autocast(feature.device.type, enabled=False):
            mean, covariance = _Moments.apply(full_precision(feature).permute(0, 2, 3, 1).flatten(0, 2))  # type: ignore[no-untyped-call]
            weight = convolution.weight.to(mean.dtype)[:, :, 0, 0]
            variance = ((weight @ covariance) * weight).sum(dim=1)
            weight = weight * (norm.weight * torch.rsqrt(variance + norm.eps))[:, None]
            return torch.cat([weight, (norm.bias - weight @ mean)[:, None]], dim=1)


class _Moments(torch.autograd.Function):
    """Mean ``[D]`` and covariance ``[D, D]`` of rows ``[N, D]``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        mean = rows.mean(dim=0)
        centred = rows - mean
        ctx.save_for_backward(centred)
        return mean, (centred.T @ centred) / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_covariance: Tensor) -> Tensor:
        (centred,) = ctx.saved_tensors  # of mean 0, so the covariance's gradient needs no mean's
        return torch.addmm(of_mean / len(centred), centred, (of_covariance + of_covariance.T) / len(centred))


class _ChannelsLast(torch.autograd.Function):
    """A map with channels last; its gradient comes back in the map's own order, as the network's other gradients have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.plain = x.is_contiguous()
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous() if ctx.plain else gradient


def _channels_last(x: Tensor) -> Tensor:
    found: Tensor = _ChannelsLast.apply(x)  # type: ignore[no-untyped-call]
    return found


def _parts(block: nn.Sequential) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution, norm = block
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return convolution, norm


def _convolved(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A convolution that keeps the size; of a map of one place it sees the middle of its kernel alone."""
    if x.shape[2:] == (1, 1):
        k = convolution.kernel_size[0] // 2
        return _pointwise(x, convolution.weight[:, :, k : k + 1, k : k + 1])
    if convolution.kernel_size == (1, 1):
        return _pointwise(x, convolution.weight)
    found: Tensor = convolution(x)
    return found


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1 x 1 convolution with weights ``[O, I, 1, 1]`` as one product, which is cheaper on small maps; channels last stay last."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _enlarged(x: Tensor, size: torch.Size) -> Tensor:
    """Enlarged by repetition; a single place stands for all as it is."""
    return x if x.shape[2:] in (size, (1, 1)) else F.interpolate(x, size=size, mode="nearest")
