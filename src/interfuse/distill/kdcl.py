"""Online distillation by collaborative learning (KDCL, Guo et al. 2020): all networks learn from one ensemble of themselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill.dml import add_peers, check_trainable, peer_views
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.losses import cross_entropy, forward_kl, full_precision

if TYPE_CHECKING:
    from interfuse.core.rooms import Call

#: steps of the search for the best mixture of logits, and their length
STEPS, RATE = 20, 2.0


@method()
@dataclass(frozen=True)
class KDCL(Hooks):
    """``CE_k + weight * tau^2 KL(p_target || p_k)`` for every network k, the target made of all networks' logits and the
    labels (section 3.2). The input ``teacher`` names the peers: models, or configurations that start from new weights.
    """

    target: Annotated[
        Literal["min-logit", "naive", "linear"],
        Field(description="min-logit: per class the least logit after the label's is taken off; naive: the logits with the least cross "
              "entropy, per sample; linear: the mixture of logits with the least cross entropy over the batch"),
    ] = "min-logit"  # fmt: skip
    weight: Annotated[float, Field(ge=0, description="weight of the ensemble's target")] = 1.0
    tau: Annotated[float, Field(gt=0, description="temperature")] = 2.0

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 16), live=True, batch=2)  # a peer may normalise over the batch

    def check(self, call: Call) -> None:
        check_trainable(call)

    def setup(self, run: Run) -> None:
        if run.student_model.task == "causal-lm":
            raise InterfuseError("input.type", "the ensemble needs one label per example", where=run.student_model.name)
        add_peers(run)

    def views(self, run: Run, batch: Batch) -> Views:
        return peer_views(run, batch)

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        assert views.labels is not None, "needs().labels guarantees labels"
        networks = [views.student, *views.teachers]
        target = ensemble(torch.stack([z.detach() for z in networks]), views.labels, self.target)
        terms: dict[str, Tensor] = {}
        for k, logits in enumerate(networks):
            end = f"_peer_{k}" if k else ""
            terms[f"ce{end}"] = hard_loss(dataclasses.replace(views, student=logits))
            terms[f"kl{end}"] = forward_kl(logits, target, tau=self.tau)
        return terms

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        names = ["kl", *(f"kl_peer_{k}" for k in range(1, len(views.teachers) + 1))]
        return dict.fromkeys(names, self.weight)


def ensemble(logits: Tensor, labels: Tensor, target: str) -> Tensor:
    """The target's logits (equations 4 to 7): [M, B, K] of M networks and labels [B] -> [B, K], without gradient."""
    z = full_precision(logits)
    index = labels.unsqueeze(-1)
    if target == "min-logit":
        return (z - z.gather(-1, index.expand(len(z), -1, -1))).min(dim=0).values
    if target == "naive":
        losses = torch.stack([cross_entropy(one, labels) for one in z])
        best = losses.argmin(dim=0)[None, :, None].expand(1, *z.shape[1:])
        return z.gather(0, best)[0]
    share = torch.full((len(z),), 1 / len(z), dtype=z.dtype, device=z.device)
    for _ in range(STEPS):  # exponentiated gradient: shares stay positive and sum to 1
        p = torch.einsum("m,mbk->bk", share, z).softmax(-1)
        p.scatter_add_(-1, index, -torch.ones_like(index, dtype=p.dtype))
        slope = torch.einsum("bk,mbk->m", p, z) / len(labels)
        share = (share.log() - RATE * (slope - slope.mean())).softmax(0)
    return torch.einsum("m,mbk->bk", share, z)
