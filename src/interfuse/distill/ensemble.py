"""Several teachers into one student: the mixture of their predictions is the target (Hinton et al. 2015, section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.losses import forward_kl, log_probs


@method()
@dataclass(frozen=True)
class Ensemble(Hooks):
    """KD from the weighted mean of the teachers' probabilities, or from the softmax of their mean log-probabilities."""

    alpha: Annotated[float, Field(ge=0, le=1, description="weight of the teachers; at 1 no labels are used")] = 0.9
    tau: Annotated[float, Field(gt=0, description="temperature")] = 4.0
    mean: Annotated[
        Literal["probabilities", "log-probabilities"],
        Field(
            description="arithmetic mean (one confident teacher decides) or geometric mean (a doubtful teacher can veto)"
        ),
    ] = "probabilities"
    teacher_weights: Annotated[list[float] | None, Field(description="one weight per teacher; equal when left out")] = (
        None
    )

    def needs(self) -> Needs:
        return Needs(labels=self.alpha < 1, teachers=(2, 1000))

    def setup(self, run: Run) -> None:
        self._shares(len(run.teacher_models))

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        shares = torch.tensor(self._shares(len(views.teachers)), dtype=torch.float32, device=views.student.device)
        logs = torch.stack([log_probs(t, self.tau) for t in views.teachers])  # [T, ..., K]
        shares = shares.to(logs.dtype).reshape(-1, *([1] * (logs.ndim - 1)))
        if self.mean == "probabilities":
            target = torch.logsumexp(logs + shares.log(), dim=0)
        else:
            target = (shares * logs).sum(dim=0)
        # the target is already at temperature tau: times tau it survives the division inside the loss
        terms = {"kd": forward_kl(views.student, target * self.tau, tau=self.tau)}
        return terms | ({"ce": hard_loss(views)} if self.alpha < 1 else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"kd": self.alpha, "ce": 1 - self.alpha}

    def _shares(self, teachers: int) -> list[float]:
        weights = self.teacher_weights or [1.0] * teachers
        if len(weights) != teachers or min(weights) < 0 or sum(weights) <= 0:
            raise InterfuseError("param.value", f"teacher_weights has {len(weights)} numbers for {teachers} teachers, or a negative one",
                                 fix="Give one number of at least 0 per teacher, in the order of the teachers.")  # fmt: skip
        return [w / sum(weights) for w in weights]
