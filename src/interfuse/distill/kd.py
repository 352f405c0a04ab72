"""Knowledge distillation with softened targets (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.losses import forward_kl


@method()
@dataclass(frozen=True)
class KD(Hooks):
    """``alpha * tau^2 * KL(p_teacher || p_student) + (1 - alpha) * CE`` with both distributions at temperature tau (section 2)."""

    alpha: Annotated[float, Field(ge=0, le=1, description="weight of the teacher; at 1 no labels are used")] = 0.9
    tau: Annotated[float, Field(gt=0, description="temperature")] = 4.0

    def needs(self) -> Needs:
        return Needs(labels=self.alpha < 1, teachers=(1, 1))

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        terms = {"kd": forward_kl(views.student, views.teachers[0], tau=self.tau)}
        return terms | ({"ce": hard_loss(views)} if self.alpha < 1 else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"kd": self.alpha, "ce": 1 - self.alpha}
