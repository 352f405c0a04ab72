"""FitNets (Romero et al. 2015): a hidden layer of the student, through a small regressor, imitates one of the teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss, per_position
from interfuse.kit.feature_losses import hint_mse
from interfuse.kit.nets import Projector, is_auto
from interfuse.kit.taps import AUTO


@method()
@dataclass(frozen=True)
class FitNets(Hooks):
    """``label_weight * CE + weight * sum over pairs of MSE(regressor(student layer), teacher layer)`` (equation 3)."""

    weight: Annotated[float, Field(ge=0, description="weight of the hint loss")] = 100.0
    label_weight: Annotated[float, Field(ge=0, description="weight of the labels; at 0 none are needed")] = 1.0
    student_layers: Annotated[
        list[str], Field(min_length=1, description="guided layers: names, globs, or auto: the middle block")
    ] = field(default_factory=lambda: [AUTO])
    teacher_layers: Annotated[
        list[str], Field(min_length=1, description="hint layers, as many: names, globs, or auto: the middle block")
    ] = field(default_factory=lambda: [AUTO])

    def needs(self) -> Needs:
        return Needs(
            labels=self.label_weight > 0,
            teachers=(1, 1),
            student_features=tuple(self.student_layers),
            teacher_features=tuple(self.teacher_layers),
        )

    def setup(self, run: Run) -> None:
        for k, (s, t) in enumerate(self._pairs(run), start=1):
            regressor = Projector(
                run.student_shapes[s], run.teacher_shapes[0][t], where=f"{s}, {t}"
            )  # r(.; W_r), eq. 3
            run.add(f"regressor_{k}", regressor)

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        hints = []
        for k, (s, t) in enumerate(self._pairs(run), start=1):
            student, teacher = views.pair(s, t)
            hints.append(hint_mse(run.modules[f"regressor_{k}"](student), teacher))
        terms = {"hint": per_position(torch.stack(hints).sum(dim=0), views)}
        return terms | ({"ce": hard_loss(views)} if self.label_weight else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"hint": self.weight, "ce": self.label_weight}

    def _pairs(self, run: Run) -> list[tuple[str, str]]:
        pairs = run.layer_pairs(self.student_layers, self.teacher_layers)
        if is_auto(self.student_layers, self.teacher_layers):
            return [pairs[(len(pairs) - 1) // 2]]
        return pairs
