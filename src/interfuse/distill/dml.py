"""Deep mutual learning (Zhang et al. 2018): students trained together teach each other; no teacher is trained before."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.data.models import build
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.encode import forward
from interfuse.kit.losses import forward_kl

if TYPE_CHECKING:
    from interfuse.core.rooms import Call


@method()
@dataclass(frozen=True)
class DML(Hooks):
    """``CE_k + weight / (K - 1) * sum over l != k of KL(p_l || p_k)`` for every network k of K (section 3).

    The input ``teacher`` names the peers: models to go on from, or configurations that start from weights of their own.
    """

    weight: Annotated[float, Field(ge=0, description="weight of what the peers say")] = 1.0
    tau: Annotated[float, Field(gt=0, description="temperature; 1 in the paper")] = 1.0

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 16), live=True, batch=2)  # a peer may normalise over the batch

    def check(self, call: Call) -> None:
        check_trainable(call)

    def setup(self, run: Run) -> None:
        add_peers(run)

    def views(self, run: Run, batch: Batch) -> Views:
        return peer_views(run, batch)

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        networks = [views.student, *views.teachers]
        terms: dict[str, torch.Tensor] = {}
        for k, logits in enumerate(networks):
            others = [z.detach() for j, z in enumerate(networks) if j != k]
            said = torch.stack([forward_kl(logits, z, tau=self.tau) for z in others]).mean(dim=0)
            end = f"_peer_{k}" if k else ""
            terms |= {f"ce{end}": hard_loss(dataclasses.replace(views, student=logits)), f"kl{end}": said}
        return terms

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        names = ["kl", *(f"kl_peer_{k}" for k in range(1, len(views.teachers) + 1))]
        return dict.fromkeys(names, self.weight)


def add_peers(run: Run) -> None:
    """The input ``teacher`` as networks that train beside the student, in training mode, with the student's optimiser."""
    for k, model in enumerate(run.teacher_models, start=1):
        # a seed of its own: a peer of the student's configuration must not start from the student's weights
        ctx = run.ctx.with_(seed=run.ctx.seed_for(f"peer/{k}"))
        run.add(f"peer_{k}", build(model, ctx, train=True))
    run.teachers = []


def check_trainable(call: Call) -> None:
    """Refuses a network that is to train beside the student and has nothing to train. What a module's owner froze stays frozen.

    Raises:
        InterfuseError: ``needs.capability`` for a module all of whose parameters are frozen, or that has none (trees).
    """
    for model in call.inputs["teacher"]:
        if model.module is not None and not any(p.requires_grad for p in model.module.parameters()):
            raise InterfuseError("needs.capability", "the teacher is to train as well, and has no parameter that may", where=model.name,
                                 fix="Give a network with requires_grad_(True), or use a method whose teacher stays as it is, such as kd.")  # fmt: skip


def peer_views(run: Run, batch: Batch) -> Views:
    """The student's logits and, as teachers, its peers', all with gradient."""
    student = forward(run.student, run.student_model, batch.student)
    peers = [
        forward(run.modules[f"peer_{k}"], model, inputs)
        for k, (model, inputs) in enumerate(zip(run.teacher_models, batch.teachers, strict=True), start=1)
    ]
    return Views(batch, student, peers)
