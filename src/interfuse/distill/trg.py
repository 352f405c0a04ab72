"""TRG: the student copies how the patches of all images of a batch relate to each other (Zhang, Liu and He 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.utils.checkpoint import checkpoint

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.distill.room import default_views
from interfuse.kit.feature_losses import contextual, gaussian_graph, graph_divergence, info_nce, nearest_neighbours
from interfuse.kit.losses import forward_kl, full_precision
from interfuse.kit.nets import as_map, as_tokens, check_places, grid_of, same_places
from interfuse.kit.taps import AUTO

#: bytes alive at once, as measured over a forward and backward pass: per pair of sampled tokens (both graphs and the contrast), and per
#: entry of the contextual loss's matrices
PAIR_BYTES, ROW_BYTES = 42, 24


@method()
@dataclass(frozen=True)
class TRG(Hooks):
    """``ce * CE + kd * KD_tau + inner * L_inner + local * L_local + contrast * L_global`` (section 3): how the tokens of one
    image attend to each other, the k-nearest-neighbour graph of sampled tokens of the batch, and finding the teacher's token
    among the others at a temperature that falls during training."""

    ce: Annotated[float, Field(ge=0, description="weight of the cross entropy with the labels")] = 1.0
    kd: Annotated[float, Field(ge=0, description="weight of the loss on logits")] = 1.0
    tau: Annotated[float, Field(gt=0, description="temperature of the loss on logits")] = 4.0
    inner: Annotated[float, Field(ge=0, description="weight of the contextual loss within each image")] = 1.0
    local: Annotated[float, Field(ge=0, description="weight of the neighbour graphs' divergence")] = 1.0
    contrast: Annotated[float, Field(ge=0, description="weight of the global loss between the networks' tokens")] = 0.1
    student_layer: Annotated[str, Field(description="layer of the student, or auto: its last block with a grid")] = AUTO
    teacher_layer: Annotated[str, Field(description="layer of the teacher, or auto: its last block with a grid")] = AUTO
    patch: Annotated[int, Field(ge=1, description="side of the square of places that makes one token")] = 1
    tokens: Annotated[
        int, Field(ge=2, le=4096, description="tokens sampled per batch, the same number from every image")
    ] = 256
    k: Annotated[int, Field(ge=1, description="neighbours per token")] = 8
    sigma: Annotated[float, Field(gt=0, description="width of the kernel exp(-d^2 / (2 sigma))")] = 1.0
    normalise: Annotated[bool, Field(description="bring tokens to length 1 before distances are taken")] = True
    neighbours: Annotated[
        Literal["own", "teacher"],
        Field(description="whose neighbours the student's graph has: its own (the paper) or the teacher's"),
    ] = "own"
    direction: Annotated[
        Literal["reverse", "forward"], Field(description="KL(student || teacher) as published, or the other way")
    ] = "reverse"
    axis: Annotated[Literal["row", "column"], Field(description="the axis of the adjacency that is normalised")] = "row"
    reduction: Annotated[Literal["mean", "sum"], Field(description="over tokens; sum is the printed formula")] = "mean"
    width: Annotated[int, Field(ge=1, description="common width of both networks' tokens in the global loss")] = 128
    tau_high: Annotated[float, Field(gt=0, description="temperature of the global loss at the start")] = 1.0
    tau_low: Annotated[float, Field(gt=0, description="temperature of the global loss at the end")] = 0.1
    memory: Annotated[
        int,
        Field(
            ge=1,
            description="MiB that token-by-token matrices may take, backward pass included; beyond it images, or their rows, are taken in turns",
        ),
    ] = 256

    def needs(self) -> Needs:
        return Needs(
            labels=self.ce > 0, batch=2, student_features=(self.student_layer,), teacher_features=(self.teacher_layer,)
        )

    # -- before training -------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        names = self._layers(run)
        shapes = run.student_shapes[names[0]], run.teacher_shapes[0][names[1]]
        check_places(*shapes, where=f"{names[0]}, {names[1]}")
        s, t = self._tokens(run, run.student_taps.features[names[0]], run.teacher_taps[0].features[names[1]])  # type: ignore[union-attr]
        if s.shape[1] == 1:
            run.ctx.log(f"{names[0]} and {names[1]} give one token per image: the contextual loss is 0")
        images = min(run.settings.batch_size, len(run.data))
        sampled = images * self._per_image(images, s.shape[1])
        if self.k >= sampled:
            raise InterfuseError("param.value", f"k = {self.k} neighbours of {sampled} tokens", where=run.data.name,
                                 fix="Use a smaller k, a larger batch_size or more tokens.")  # fmt: skip
        longest = (
            run.settings.max_length if run.data.kind == "text" else s.shape[1]
        )  # texts to come may be longer than these
        most = max(images, min(self.tokens, images * longest))
        if self._left(most) < ROW_BYTES * longest:
            raise InterfuseError("input.limit", f"{most} sampled tokens need more than {self.memory} MiB", where="memory",
                                 fix="Raise memory, lower tokens, or use a larger patch.")  # fmt: skip
        run.add("student_projection", nn.Linear(s.shape[2], self.width, bias=False))
        run.add("teacher_projection", nn.Linear(t.shape[2], self.width, bias=False))

    def _layers(self, run: Run) -> tuple[str, str]:
        """The last tapped layer of each side that has a grid of several places, or the last one of a text model."""
        chosen = []
        for shapes, wanted in ((run.student_shapes, self.student_layer), (run.teacher_shapes[0], self.teacher_layer)):
            grids = [n for n, shape in shapes.items() if grid_of(shape) is not None or run.data.kind == "text"]
            if not grids:
                raise InterfuseError("input.shape", f"no layer of {wanted!r} has tokens or a map, but {list(shapes.values())}",
                                     where=wanted, fix="Name a layer that gives a map [B, C, H, W] or tokens [B, N, D].")  # fmt: skip
            grids = [n for n in grids if math.prod((grid_of(shapes[n]) or (0, 2, 2))[1:]) > 1] or grids
            chosen.append(grids[-1])
        return chosen[0], chosen[1]

    # -- training --------------------------------------------------------------------------------------------------

    def views(self, run: Run, batch: Batch) -> Views:
        views = default_views(run, batch)
        s, t = self._tokens(run, *views.pair(*self._layers(run)))
        rng = run.ctx.rng(f"tokens/{run.epoch}/{run.step}/{batch.positions[0]}")
        count = self._per_image(*s.shape[:2])
        places = sample_places(s.shape[0], s.shape[1], count, rng, batch.student.get("attention_mask"))
        batch.extra["places"] = torch.from_numpy(places)
        views.features = {"tokens": s}
        views.teacher_features = [{"tokens": t}]
        return views

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        s, t = views.features["tokens"], views.teacher_features[0]["tokens"]
        places = views.batch.extra["places"].to(s.device)
        rows = torch.arange(len(s), device=s.device).unsqueeze(1)
        ours, theirs = s[rows, places].flatten(0, 1), t[rows, places].flatten(0, 1)  # the same places of both, [M, D]
        terms = {"kd": forward_kl(views.student, views.teachers[0], tau=self.tau)} if self.kd > 0 else {}
        if self.ce > 0:
            terms["ce"] = hard_loss(views)
        if self.inner > 0:
            terms["inner"] = self._inner(s, t)
        if self.local > 0:
            terms["local"] = self._spread(self._local(ours, theirs), len(s))
        if self.contrast > 0:
            a, b = run.modules["student_projection"](ours), run.modules["teacher_projection"](theirs)
            terms["global"] = self._spread(info_nce(a, b, tau=self._temperature(run)), len(s))
        return terms

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"ce": self.ce, "kd": self.kd, "inner": self.inner, "local": self.local, "global": self.contrast}

    def _inner(self, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Contextual loss times N, the mean squared distance of two rows, a few images at a time when memory is short."""
        images, count = s.shape[:2]
        room = self._left(images * self._per_image(images, count))
        step = room // (ROW_BYTES * count**2)
        if step >= images:
            return contextual(s, t) * count
        if step >= 1:
            parts = [checkpoint(contextual, s[i : i + step], t[i : i + step], use_reentrant=False) for i in range(0, images, step)]  # fmt: skip
            return torch.cat(parts) * count
        # not even one image's matrix fits: its rows in turns
        height = max(1, room // (ROW_BYTES * count))
        blocks = [slice(k, k + height) for k in range(0, count, height)]
        each = [
            torch.stack([checkpoint(contextual, s[i : i + 1], t[i : i + 1], b, use_reentrant=False) for b in blocks]).sum(dim=0)
            for i in range(images)
        ]  # fmt: skip
        return torch.cat(each) * count

    def _local(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        k = min(self.k, len(ours) - 1)  # the last batch may be small
        if self.normalise:
            target, near = unit_graph(theirs, k, self.sigma)
            graph, _ = unit_graph(ours, k, self.sigma, near if self.neighbours == "teacher" else None)
        else:
            near = nearest_neighbours(theirs, k)
            own = near if self.neighbours == "teacher" else nearest_neighbours(ours, k)
            graph, target = gaussian_graph(ours, own, sigma=self.sigma), gaussian_graph(theirs, near, sigma=self.sigma)
        return graph_divergence(graph, target, direction=self.direction, axis=self.axis)

    def _spread(self, per_token: torch.Tensor, images: int) -> torch.Tensor:
        """Tokens' losses [M] as images' [B], whose mean is the mean over tokens, or their sum."""
        shares = per_token.reshape(images, -1)
        return shares.mean(dim=1) if self.reduction == "mean" else shares.sum(dim=1) * images

    def _temperature(self, run: Run) -> float:
        done = min(1.0, run.step / max(run.steps - 1, 1))
        return self.tau_low + (self.tau_high - self.tau_low) * 0.5 * (1 + math.cos(math.pi * done))

    # -- tokens ----------------------------------------------------------------------------------------------------

    def _tokens(self, run: Run, s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both features as tokens [B, N, D] over the same places; leading tokens of images are dropped on both sides."""
        if run.data.kind == "text":
            if s.shape[1] != t.shape[1]:
                raise InterfuseError("input.vocabulary", f"the student reads {s.shape[1]} tokens where the teacher reads {t.shape[1]}",
                                     where=run.data.name)  # fmt: skip
            return s, t
        s, t = same_places(as_map(s), as_map(t))
        return patches(s, self.patch), patches(t, self.patch)

    def _per_image(self, images: int, places: int) -> int:
        return max(1, min(places, self.tokens // images))

    def _left(self, sampled: int) -> int:
        """Bytes of the budget that the graphs of so many sampled tokens leave to the contextual loss."""
        return self.memory * 2**20 - PAIR_BYTES * sampled**2


def unit_graph(
    tokens: torch.Tensor, k: int, sigma: float, neighbours: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adjacency and neighbours, both [M, M], of tokens [M, D] brought to length 1: one matrix product gives both.

    The same as :func:`nearest_neighbours` and :func:`gaussian_graph` of the normalised tokens, to rounding.
    """
    unit = F.normalize(full_precision(tokens), dim=-1)
    with torch.autocast(unit.device.type, enabled=False):
        square = (2 - 2 * unit @ unit.T).clamp_min(0)  # ||a - b||^2 of unit vectors
    if neighbours is None:
        others = square.detach().clone().fill_diagonal_(torch.inf)
        near = others.topk(k, largest=False, sorted=False).indices.T  # of every row, which the columns equal
        neighbours = torch.zeros_like(others, dtype=torch.bool).scatter_(0, near, True)
    return torch.where(neighbours, torch.exp(-square / (2 * sigma)), 0.0), neighbours


def patches(feature: torch.Tensor, side: int) -> torch.Tensor:
    """Squares of ``side`` x ``side`` places of a map [B, C, H, W], each flattened to a token: [B, N, C side^2].

    Raises:
        InterfuseError: ``input.shape`` when the squares do not fill the map.
    """
    if side == 1:
        return as_tokens(feature)
    if feature.shape[2] % side or feature.shape[3] % side:
        raise InterfuseError(
            "input.shape", f"patches of side {side} do not fill a map of {tuple(feature.shape[2:])}", where="patch"
        )
    return F.unfold(feature, side, stride=side).transpose(1, 2)


def sample_places(
    images: int, places: int, count: int, rng: np.random.Generator, mask: torch.Tensor | None = None
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """``count`` different places of each image, int64 [images, count]; of texts, real tokens first (``mask`` [B, N])."""
    keys = rng.random((images, places))
    if mask is not None:
        keys = keys + (1 - mask.cpu().numpy())  # padding comes last
    return np.sort(np.argsort(keys, axis=1, kind="stable")[:, :count], axis=1)
