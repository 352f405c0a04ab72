"""Relational knowledge distillation (Park et al. 2019): distances and angles between embeddings are handed on, not the embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss, per_position
from interfuse.kit.feature_losses import rkd, rkd_distance
from interfuse.kit.taps import PENULTIMATE


@method()
@dataclass(frozen=True)
class RKD(Hooks):
    """``label_weight * CE + distance_weight * RKD-D + angle_weight * RKD-A`` (section 3), Huber on pairs and triplets."""

    distance_weight: Annotated[float, Field(ge=0, description="weight of the distances between pairs")] = 25.0
    angle_weight: Annotated[float, Field(ge=0, description="weight of the angles of triplets; 0 saves B^3 numbers")] = (
        50.0
    )
    label_weight: Annotated[float, Field(ge=0, description="weight of the labels; at 0 none are needed")] = 1.0
    student_layers: Annotated[
        list[str], Field(min_length=1, description="student embeddings: names, globs, auto or penultimate")
    ] = field(default_factory=lambda: [PENULTIMATE])
    teacher_layers: Annotated[
        list[str], Field(min_length=1, description="teacher embeddings, as many: names, globs, auto or penultimate")
    ] = field(default_factory=lambda: [PENULTIMATE])

    def needs(self) -> Needs:
        return Needs(
            labels=self.label_weight > 0,
            teachers=(1, 1),
            student_features=tuple(self.student_layers),
            teacher_features=tuple(self.teacher_layers),
            batch=2,
        )

    def setup(self, run: Run) -> None:
        self._pairs(run)

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        pairs = [views.pair(s, t) for s, t in self._pairs(run)]
        terms = {"ce": hard_loss(views)} if self.label_weight else {}
        if self.angle_weight:  # which holds the distances, too
            found = [torch.stack(losses).sum(dim=0) for losses in zip(*(rkd(s, t) for s, t in pairs), strict=True)]
            terms["angle"] = per_position(found[1], views)
        elif self.distance_weight:
            found = [torch.stack([rkd_distance(s, t) for s, t in pairs]).sum(dim=0)]
        if self.distance_weight:
            terms["distance"] = per_position(found[0], views)
        return terms

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"distance": self.distance_weight, "angle": self.angle_weight, "ce": self.label_weight}

    def _pairs(self, run: Run) -> list[tuple[str, str]]:
        return run.layer_pairs(self.student_layers, self.teacher_layers)
