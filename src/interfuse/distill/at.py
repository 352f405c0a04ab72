"""Attention transfer (Zagoruyko and Komodakis 2017): the student looks where the teacher looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss, per_position
from interfuse.kit.feature_losses import attention_transfer
from interfuse.kit.nets import check_places, same_places
from interfuse.kit.taps import AUTO


@method()
@dataclass(frozen=True)
class AttentionTransfer(Hooks):
    """``label_weight * CE + weight * sum over stages of mean((q_s / |q_s| - q_t / |q_t|)^2)``, q the mean over channels of |a|^p.

    Activation-based attention with squared differences, as in the authors' code; equation 2 of the paper takes the norm.
    """

    weight: Annotated[float, Field(ge=0, description="weight of the attention loss")] = 1000.0
    p: Annotated[float, Field(gt=0, description="exponent of the activations")] = 2.0
    label_weight: Annotated[float, Field(ge=0, description="weight of the labels; at 0 none are needed")] = 1.0
    student_layers: Annotated[
        list[str], Field(min_length=1, description="student stages: names, globs, or auto: the quarter points")
    ] = field(default_factory=lambda: [AUTO])
    teacher_layers: Annotated[
        list[str], Field(min_length=1, description="teacher stages, as many: names, globs, or auto: the quarter points")
    ] = field(default_factory=lambda: [AUTO])

    def needs(self) -> Needs:
        return Needs(
            labels=self.label_weight > 0,
            teachers=(1, 1),
            student_features=tuple(self.student_layers),
            teacher_features=tuple(self.teacher_layers),
        )

    def setup(self, run: Run) -> None:
        for s, t in self._pairs(run):
            check_places(run.student_shapes[s], run.teacher_shapes[0][t], where=f"{s}, {t}")

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        stages = [attention_transfer(*same_places(*views.pair(s, t)), p=self.p) for s, t in self._pairs(run)]
        terms = {"at": per_position(torch.stack(stages).sum(dim=0), views)}
        return terms | ({"ce": hard_loss(views)} if self.label_weight else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"at": self.weight, "ce": self.label_weight}

    def _pairs(self, run: Run) -> list[tuple[str, str]]:
        return run.layer_pairs(self.student_layers, self.teacher_layers)
