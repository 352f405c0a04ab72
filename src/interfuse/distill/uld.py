"""Universal logit distillation: sorted probabilities need no common vocabulary (Boizard et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.distill.token_targets import attach, in_own_tokens
from interfuse.kit.sparse_losses import sparse_uld


@method()
@dataclass(frozen=True)
class ULD(Hooks):
    """``CE + weight * sum over i of |sort(p)_i - sort(q)_i|`` per learnt token (equation 4)."""

    weight: Annotated[float, Field(ge=0, description="weight of the distance beside the cross entropy")] = 1.5
    top_k: Annotated[int, Field(ge=1, description="probabilities compared, largest first; the rest counts as one")] = 32
    align: Annotated[
        Literal["order", "bytes"],
        Field(
            description="the n-th learnt token belongs to the teacher's n-th (the paper), or to the one that ends where it ends"
        ),
    ] = "order"

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 1), tokens=True)

    def setup(self, run: Run) -> None:
        run.held["targets"] = [in_own_tokens(run, 0, k=self.top_k, way=self.align)]
        run.facts["teachers"] = [t.report for t in run.held["targets"]]

    def batch(self, run: Run, batch: Batch) -> Batch:
        return attach(run, batch, run.held["targets"])

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        said = views.batch.extra["said"][0]
        return {
            "ce": hard_loss(views),
            "uld": sparse_uld(views.student, said["logp"], said["tail"], mask=said["valid"]),
        }

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"uld": self.weight}
