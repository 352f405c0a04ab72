"""DIST (Huang et al. 2022): a strong teacher hands on how it ranks classes and samples, not its exact probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.encode import IGNORE
from interfuse.kit.losses import dist_inter, dist_intra


@method()
@dataclass(frozen=True)
class DIST(Hooks):
    """``label_weight * CE + beta * (1 - Pearson over classes) + gamma * (1 - Pearson over the batch)`` (section 4)."""

    beta: Annotated[float, Field(ge=0, description="weight of the relation between classes of a sample")] = 1.0
    gamma: Annotated[float, Field(ge=0, description="weight of the relation between samples in a class")] = 1.0
    tau: Annotated[float, Field(gt=0, description="temperature; losses are multiplied by tau^2")] = 1.0
    label_weight: Annotated[float, Field(ge=0, description="weight of the labels; at 0 none are needed")] = 1.0

    def needs(self) -> Needs:
        return Needs(labels=self.label_weight > 0, teachers=(1, 1), batch=2)

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        student, teacher, where = views.student, views.teachers[0], None
        if student.ndim == 3:  # every token that counts is a sample
            where = views.labels != IGNORE if views.labels is not None else torch.ones_like(student[..., 0]).bool()
            student, teacher = student[where], teacher[where]
        terms = {
            "inter": dist_inter(student, teacher, tau=self.tau),
            "intra": dist_intra(student, teacher, tau=self.tau),
        }
        if where is not None:
            terms = {k: v.new_zeros(where.shape).masked_scatter(where, v) for k, v in terms.items()}
        return terms | ({"ce": hard_loss(views)} if self.label_weight else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"inter": self.beta, "intra": self.gamma, "ce": self.label_weight}
