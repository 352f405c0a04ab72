"""Similarity-preserving distillation (Tung and Mori 2019): inputs alike to the teacher become alike to the student."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss, per_position
from interfuse.kit.feature_losses import similarity_preserving
from interfuse.kit.nets import is_auto
from interfuse.kit.taps import AUTO


@method()
@dataclass(frozen=True)
class SimilarityPreserving(Hooks):
    """``label_weight * CE + weight * sum over pairs of ||G_t - G_s||_F^2 / B^2``, G the row-normalised Gram matrix (section 3)."""

    weight: Annotated[float, Field(ge=0, description="weight of the similarity loss")] = 3000.0
    label_weight: Annotated[float, Field(ge=0, description="weight of the labels; at 0 none are needed")] = 1.0
    student_layers: Annotated[
        list[str], Field(min_length=1, description="student layers: names, globs, or auto: the last block")
    ] = field(default_factory=lambda: [AUTO])
    teacher_layers: Annotated[
        list[str], Field(min_length=1, description="teacher layers, as many: names, globs, or auto: the last block")
    ] = field(default_factory=lambda: [AUTO])

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
        pairs = [similarity_preserving(*views.pair(s, t)) for s, t in self._pairs(run)]
        terms = {"sp": per_position(torch.stack(pairs).sum(dim=0), views)}
        return terms | ({"ce": hard_loss(views)} if self.label_weight else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"sp": self.weight, "ce": self.label_weight}

    def _pairs(self, run: Run) -> list[tuple[str, str]]:
        pairs = run.layer_pairs(self.student_layers, self.teacher_layers)
        return pairs[-1:] if is_auto(self.student_layers, self.teacher_layers) else pairs
