"""Features of unlike networks brought together: layers paired, grids resized, widths projected by small trainable modules.

A *shape* here is a feature's shape without its batch: ``(C, H, W)`` a map, ``(N, D)`` tokens, ``(D,)`` a vector.
Tokens stand for a square map in row-major order, after at most a few leading tokens that stand for no place: a class token,
a distillation token, registers. Which leading tokens these are is read off the count alone (see :data:`LEADING`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interfuse.core.errors import InterfuseError
from interfuse.kit.taps import AUTO, as_vector

Shape = tuple[int, ...]
#: numbers of leading tokens that stand for no place: none, class, class and distillation, class and four registers
LEADING = (0, 1, 2, 5)


def grid_of(shape: Shape) -> tuple[int, int, int] | None:
    """Leading tokens, height and width of a map's or of tokens' grid; None for a vector or a count that is no square."""
    if len(shape) == 3:
        return 0, shape[1], shape[2]
    if len(shape) == 2:
        for leading in LEADING:
            side = math.isqrt(max(shape[0] - leading, 0))
            if side >= 1 and side * side == shape[0] - leading:
                return leading, side, side
    return None


def as_map(feature: Tensor) -> Tensor:
    """A feature as a map ``[B, C, H, W]``: tokens lose their leading ones and become a square.

    Raises:
        InterfuseError: ``input.shape`` when it has no grid.
    """
    grid = grid_of(tuple(feature.shape[1:]))
    if grid is None:
        raise InterfuseError("input.shape", "the feature has no grid of places", where=f"shape {tuple(feature.shape)}",
                             fix="Name a layer that gives a map [B, C, H, W] or tokens [B, N, D] with N a square.")  # fmt: skip
    if feature.ndim == 4:
        return feature
    leading, height, width = grid
    return feature[:, leading:].transpose(1, 2).unflatten(2, (height, width))


def as_tokens(feature: Tensor) -> Tensor:
    """A feature as tokens ``[B, N, D]``: a map's places in row-major order, a vector as one token."""
    if feature.ndim == 4:
        return feature.flatten(2).transpose(1, 2)
    return feature.unsqueeze(1) if feature.ndim == 2 else feature


def unpadded(feature: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Tokens ``[B, N, D]`` with those of a text's padding set to zero; every other feature as it is."""
    mask = inputs.get("attention_mask")
    if mask is None or feature.ndim != 3 or feature.shape[:2] != mask.shape:
        return feature
    return feature * mask.unsqueeze(-1).to(feature.dtype)


def resize(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """A map ``[B, C, H, W]`` at another size: averaged where it shrinks, bilinear where it grows."""
    height, width = feature.shape[2:]
    if height > size[0] or width > size[1]:
        feature = F.adaptive_avg_pool2d(feature, (min(height, size[0]), min(width, size[1])))
    if feature.shape[2:] != size:
        feature = F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
    return feature


def same_places(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two features over the same places, widths untouched: tokens of one count as they are, else two maps at the smaller size.

    Raises:
        InterfuseError: ``input.shape`` when a side has no grid.
    """
    if student.ndim == teacher.ndim == 3 and student.shape[1] == teacher.shape[1]:
        return student, teacher
    s, t = as_map(student), as_map(teacher)
    size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
    return resize(s, size), resize(t, size)


def check_places(student: Shape, teacher: Shape, where: str = "") -> None:
    """Refuses two shapes that :func:`same_places` cannot bring together.

    Raises:
        InterfuseError: ``input.shape``.
    """
    if len(student) == len(teacher) == 2 and student[0] == teacher[0]:
        return
    if grid_of(student) is None or grid_of(teacher) is None:
        raise InterfuseError("input.shape", f"features of shapes {student} and {teacher} cannot be laid over each other", where=where,
                             fix="Name layers that give maps [B, C, H, W] or tokens [B, N, D] with N a square.")  # fmt: skip


def pair_layers(student: Sequence[str], teacher: Sequence[str], *, auto: bool = False) -> list[tuple[str, str]]:
    """Pairs layers by their order. With ``auto``, the longer list is thinned evenly, its last layer kept.

    Args:
        student, teacher: layer names in order (``Taps.names``). auto: the lists were chosen automatically.

    Raises:
        InterfuseError: ``param.value`` when lists that the user wrote differ in length.
    """
    count = min(len(student), len(teacher))
    if not auto and len(student) != len(teacher):
        raise InterfuseError("param.value", f"student_layers names {len(student)} layers, teacher_layers {len(teacher)}",
                             fix=f"Student: {', '.join(student)}. Teacher: {', '.join(teacher)}.")  # fmt: skip
    s, t = ([names[-(-(i + 1) * len(names) // count) - 1] for i in range(count)] for names in (student, teacher))
    return list(zip(s, t, strict=True))


def is_auto(*patterns: Sequence[str]) -> bool:
    """Whether a side left the choice of layers open, so that lists of unequal length may be thinned."""
    return any(AUTO in p for p in patterns)


class Projector(nn.Module):
    """A trainable linear map from one feature's shape to another's: ``[B, *in_shape] -> [B, *out_shape]``.

    Channels are mapped at every place alike (a 1x1 convolution, a linear layer on tokens); maps are resized, tokens laid out
    as a map and back where counts differ; anything becomes a vector by averaging over places. Equal token counts are taken as
    they come, so texts of any length pass.

    Args:
        in_shape, out_shape: ``(C, H, W)``, ``(N, D)`` or ``(D,)``. bias: whether the linear map has one.
        where: names of the layers, for the message.

    Raises:
        InterfuseError: ``input.shape`` when one shape cannot become the other (a vector has no places).
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, *, bias: bool = True, where: str = "") -> None:
        super().__init__()
        self.in_shape, self.out_shape = in_shape, out_shape
        kinds = (1, 2, 3)
        if len(in_shape) not in kinds or len(out_shape) not in kinds:
            raise InterfuseError("input.shape", f"a feature is a map, tokens or a vector, not {in_shape} and {out_shape}", where=where)  # fmt: skip
        if len(out_shape) > 1:
            check_places(in_shape, out_shape, where)
        self.linear = nn.Linear(width_of(in_shape), width_of(out_shape), bias=bias)

    def forward(self, feature: Tensor) -> Tensor:
        if len(self.out_shape) == 1:
            found: Tensor = self.linear(as_vector(feature))
            return found
        if len(self.in_shape) == len(self.out_shape) == 2 and self.in_shape[0] == self.out_shape[0]:
            found = self.linear(feature)
            return found
        grid = grid_of(self.out_shape)
        assert grid is not None, "check_places has seen the shapes"
        leading, height, width = grid
        here = as_map(feature)
        shrinks = here.shape[2] * here.shape[3] > height * width
        here = resize(here, (height, width)) if shrinks else here  # the linear map and the resizing commute
        here = self.linear(here.movedim(1, -1)).movedim(-1, 1)
        here = here if shrinks else resize(here, (height, width))
        if len(self.out_shape) == 3:
            return here
        tokens = as_tokens(here)
        if leading == 0:
            return tokens
        # leading tokens stand for no place: they are asked for the mean over places
        return torch.cat([tokens.mean(dim=1, keepdim=True).expand(-1, leading, -1), tokens], dim=1)


def width_of(shape: Shape) -> int:
    """Channels of a map, width of tokens or of a vector."""
    return shape[0] if len(shape) == 3 else shape[-1]
