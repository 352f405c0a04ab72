"""Decoupled knowledge distillation (Zhao et al. 2022): what the teacher says of the other classes weighs on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.losses import dkd_parts


@method()
@dataclass(frozen=True)
class DKD(Hooks):
    """``label_weight * CE + ramp * (alpha * TCKD + beta * NCKD)`` (equation 7), the ramp rising over the first epochs."""

    alpha: Annotated[float, Field(ge=0, description="weight of the target class against the rest")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of the distribution over the other classes")] = 8.0
    tau: Annotated[float, Field(gt=0, description="temperature")] = 4.0
    warmup_epochs: Annotated[
        int, Field(ge=0, description="epochs over which the distillation grows to full weight")
    ] = 20
    label_weight: Annotated[float, Field(ge=0, description="weight of the cross entropy with the labels")] = 1.0

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 1))

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        target = views.batch.soft if views.batch.soft is not None else views.labels
        assert target is not None, "needs().labels guarantees labels"
        teacher = views.teachers[0]
        tckd, nckd = dkd_parts(views.student, teacher, target, tau=self.tau)
        return {"tckd": tckd, "nckd": nckd, "ce": hard_loss(views)}

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        # the reference counts epochs from 1, so the first one already distils
        ramp = min((run.epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        return {"tckd": ramp * self.alpha, "nckd": ramp * self.beta, "ce": self.label_weight}
