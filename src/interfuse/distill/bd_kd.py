"""BD-KD (Amara et al. 2022): teacher and student learn together, and each sample has its own mix of the two KL directions."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.data.models import save, tokenizer_folder
from interfuse.data.tables import Table
from interfuse.distill import pages
from interfuse.distill.dml import check_trainable
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.encode import IGNORE, Encoder, forward, predict
from interfuse.kit.losses import cross_entropy, entropy, forward_kl, reverse_kl
from interfuse.kit.train import TrainSettings, make_optimizer, set_lr

if TYPE_CHECKING:
    from interfuse.core.rooms import Call
    from interfuse.data.models import Model


@method()
@dataclass(frozen=True)
class BDKD(Hooks):
    """``CE(y, z_s) + v KL(p_t || p_s) + u KL(p_s || p_t)`` for the student, weights chosen by who is more certain;
    ``CE(y, z_t) + KL(p_s || p_t)`` for the teacher, which is trained in the same steps by an optimiser of its own.

    With several teachers the student averages over them, and every teacher averages over all other networks.
    """

    delta: Annotated[float, Field(gt=0, description="weight of the emphasised divergence; the other one weighs 1")] = (
        2.0
    )
    rule: Annotated[
        Literal["balance", "flipped", "fixed", "forward", "reverse"],
        Field(
            description="balance: reverse KL where the student is less certain, else forward KL; flipped: the other way; "
            "fixed: both weigh 1; forward (mutual learning) or reverse alone"
        ),
    ] = "balance"
    tau: Annotated[float, Field(gt=0, description="temperature of divergences and entropies")] = 1.0
    weight: Annotated[float, Field(ge=0, description="weight of the divergence part, in both losses")] = 1.0
    ce: Annotated[float, Field(ge=0, description="weight of the student's cross entropy")] = 1.0
    online: Annotated[bool, Field(description="train the teachers too; otherwise they are frozen")] = True
    alternate: Annotated[
        bool, Field(description="step the teachers first and let the student see their new answers")
    ] = False
    teacher_lr: Annotated[
        float | None, Field(gt=0, description="the teachers' peak learning rate; the student's when left out")
    ] = None
    teacher_optimizer: Annotated[Literal["same", "adamw", "sgd"], Field(description="the teachers' optimiser")] = "same"

    def needs(self) -> Needs:
        return Needs(labels=self.online or self.ce > 0, teachers=(1, 100), live=self.online, validation=True)

    def check(self, call: Call) -> None:
        if self.online:
            check_trainable(call)

    def setup(self, run: Run) -> None:
        if not self.online:
            return
        if run.accelerator.num_processes > 1:
            raise InterfuseError("needs.capability", "teachers are trained online on one process only", where="bd-kd")
        if self.alternate and run.settings.accumulate > 1:
            raise InterfuseError("param.value", "alternate steps the teachers on every batch", where="accumulate", fix="Set accumulate: 1.")  # fmt: skip
        settings = self._teacher_settings(run)
        for k, teacher in enumerate(run.teachers):
            # a copy: a module the caller passed stays as it was
            module = run.add(_name(k), _unfrozen(copy.deepcopy(teacher), run.teacher_models[k]), train=False)
            optimizer = make_optimizer([{"params": list(module.parameters())}], settings)
            scaled = run.accelerator.scaler is not None
            run.optimizers[_name(k)] = run.accelerator.prepare(optimizer) if scaled else optimizer

    def views(self, run: Run, batch: Batch) -> Views:
        if not self.online:
            return super().views(run, batch)
        student = forward(run.student, run.student_model, batch.student)
        teachers = self._teachers(run, batch)
        if self.alternate:
            views = Views(batch, student, teachers)
            losses = self._teacher_terms(run, views)
            assert views.labels is not None
            count = (views.labels != IGNORE).sum()
            scale = self.weights(run, views)
            total = torch.stack([(scale.get(name, 1.0) * value).sum() for name, value in losses.items()]).sum()
            run.accelerator.backward(total / count)
            self._step_teachers(run, run.step)
            with torch.no_grad():
                teachers = self._teachers(run, batch)
        return Views(batch, student, teachers)

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        terms = {"ce": hard_loss(views)} if self.ce else {}
        for k, logits in enumerate(views.teachers):
            teacher = logits.detach()  # equation of the student's loss: no gradient to the teacher
            terms[f"forward_{k}"] = forward_kl(views.student, teacher, tau=self.tau)
            terms[f"reverse_{k}"] = reverse_kl(views.student, teacher, tau=self.tau)
            terms[f"less_certain_{k}"] = (self._gap(views.student, teacher) >= 0).to(teacher.dtype)  # logged only
        if self.online and not self.alternate:
            terms |= self._teacher_terms(run, views)
        return terms

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        found: dict[str, float | Tensor] = {"ce": self.ce}
        for k, teacher in enumerate(views.teachers):
            v, u = (share * self.weight / len(views.teachers) for share in self.shares(views.student, teacher))
            found |= {f"forward_{k}": v, f"reverse_{k}": u, f"less_certain_{k}": 0.0, f"teacher_kl_{k}": self.weight}
        return found

    def after_step(self, run: Run) -> None:
        if self.online and not self.alternate:
            self._step_teachers(run, run.step - 1)

    def write(self, run: Run, folder: Path) -> None:
        for k, model in enumerate(run.teacher_models if self.online else []):
            place = folder / _name(k)
            place.mkdir()
            save(run.modules[_name(k)].cpu(), place, tokenizer_from=tokenizer_folder(model), processor=model.processor)
        if run.validation is not None and run.student_model.task != "causal-lm":
            self._report(run, run.validation, folder)

    def _report(self, run: Run, held: Table, folder: Path) -> None:
        """Reliability of student and teachers on the examples held apart, which are not trained on."""
        taught = [run.modules[_name(k)] for k in range(len(run.teacher_models))] if self.online else run.teachers
        every = [("student", run.student_model, run.bare),
                 *((_name(k), m, t) for k, (m, t) in enumerate(zip(run.teacher_models, taught, strict=True)))]  # fmt: skip
        logits = {
            name: predict(
                model, held, run.ctx, module=module.eval(), encoder=Encoder(model, held, run.settings.max_length)
            )
            for name, model, module in every
        }
        pages.reliability(folder, "distill/bd-kd", logits, held.labels(), held.name)

    def shares(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The weights v of the forward and u of the reverse KL of every sample, without gradient.

        Args:
            student, teacher: logits [..., K].

        Returns:
            v, u: [...].
        """
        less_certain = self._gap(student, teacher) >= 0
        one = torch.ones_like(less_certain, dtype=student.dtype)
        fixed = {"fixed": (one, one), "forward": (one, 0 * one), "reverse": (0 * one, one)}
        if self.rule in fixed:
            return fixed[self.rule]
        sharpen = less_certain if self.rule == "balance" else ~less_certain
        return torch.where(sharpen, one, self.delta * one), torch.where(sharpen, self.delta * one, one)

    def _gap(self, student: Tensor, teacher: Tensor) -> Tensor:
        """xi = H(p_s) - H(p_t), at the temperature of the divergences."""
        return entropy(student.detach(), tau=self.tau) - entropy(teacher.detach(), tau=self.tau)

    def _teacher_terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        """``CE(y, z_t) + mean over the others of KL(p_other || p_t)``, the others without gradient."""
        assert views.labels is not None, "needs().labels guarantees labels"
        nets = [*views.teachers, views.student]
        terms: dict[str, Tensor] = {}
        for k, own in enumerate(views.teachers):
            others = [other.detach() for i, other in enumerate(nets) if i != k]
            divergence = torch.stack([forward_kl(own, other, tau=self.tau) for other in others]).mean(dim=0)
            terms[f"teacher_ce_{k}"] = cross_entropy(own, views.labels)
            terms[f"teacher_kl_{k}"] = divergence
        return terms

    def _teachers(self, run: Run, batch: Batch) -> list[Tensor]:
        """The teachers' logits in training mode: their batch statistics move as the student's do."""
        return [
            forward(run.modules[_name(k)].train(), model, inputs)
            for k, (model, inputs) in enumerate(zip(run.teacher_models, batch.teachers, strict=True))
        ]

    def _step_teachers(self, run: Run, step: int) -> None:
        settings = self._teacher_settings(run)
        for k in range(len(run.teacher_models)):
            optimizer = run.optimizers[_name(k)]
            if settings.clip:
                run.accelerator.clip_grad_norm_(run.modules[_name(k)].parameters(), settings.clip)
            set_lr(optimizer, settings, step, run.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _teacher_settings(self, run: Run) -> TrainSettings:
        chosen = run.settings.optimizer if self.teacher_optimizer == "same" else self.teacher_optimizer
        return dataclasses.replace(run.settings, lr=self.teacher_lr or run.settings.lr, optimizer=chosen)


def _unfrozen(module: torch.nn.Module, model: Model) -> torch.nn.Module:
    """The module with gradients for all parameters but those that the owner of a module in memory froze."""
    frozen = {n for n, p in model.module.named_parameters() if not p.requires_grad} if model.module is not None else {}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return module


def _name(k: int) -> str:
    return f"teacher-{k}"
