"""Logit standardisation (Sun et al. 2024): KD on z-scored logits, so that teacher and student need not share a temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.losses import forward_kl, standardise_logits


@method()
@dataclass(frozen=True)
class LogitStandardisation(Hooks):
    """``label_weight * CE + weight * tau^2 * KL(p_teacher || p_student)``, both of ``(z - mean) / std`` per row (algorithm 1)."""

    weight: Annotated[float, Field(ge=0, description="weight of the teacher")] = 9.0
    tau: Annotated[float, Field(gt=0, description="base temperature of the standardised logits")] = 2.0
    label_weight: Annotated[float, Field(ge=0, description="weight of the labels; at 0 none are needed")] = 0.1

    def needs(self) -> Needs:
        return Needs(labels=self.label_weight > 0, teachers=(1, 1))

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        student, teacher = standardise_logits(views.student), standardise_logits(views.teachers[0])
        terms = {"kd": forward_kl(student, teacher, tau=self.tau)}
        return terms | ({"ce": hard_loss(views)} if self.label_weight else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"kd": self.weight, "ce": self.label_weight}
