"""Label smoothing (Szegedy et al. 2016): the baseline that separates soft targets from a teacher's knowledge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Run, Views, hard_loss


@method()
@dataclass(frozen=True)
class LabelSmoothing(Hooks):
    """Cross entropy with ``(1 - eps) * onehot + eps / K`` (section 7)."""

    eps: Annotated[float, Field(ge=0, lt=1, description="share of the target spread evenly over all classes")] = 0.1

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        return {"ce": hard_loss(views, self.eps)}
