"""Transfer between any two trained models (Roth et al. 2024): learn from the teacher where it knows better, else from oneself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.calibration import fit_temperature
from interfuse.kit.complementary import complement, transferred
from interfuse.kit.encode import forward, predict
from interfuse.kit.losses import forward_kl, log_probs

COPY, SLOW = "student-copy", "slow"
#: a student with less than this many times the accuracy of guessing is called untrained
GUESSING = 1.5


@method()
@dataclass(frozen=True)
class FantasticGains(Hooks):
    """``alpha tau^2 KL(p_source || p_student) + (1 - alpha) CE``, the source of each sample being a teacher or the frozen copy of
    the initial student, whichever is surer of the label (supervised) or of its own answer (unsupervised); ties go to the copy
    (section 4.2, KL-Dist + DP).
    """

    partition: Annotated[
        Literal["supervised", "unsupervised", "teacher", "self", "flip-st", "flip-t", "flip-avg"],
        Field(
            description="who teaches a sample: supervised or unsupervised confidence; always the teacher (KL-Dist); always "
            "the copy; teacher on positive flips; copy on negative flips; as flip-st with the mean of logits on neutral ones"
        ),
    ] = "supervised"
    alpha: Annotated[float, Field(ge=0, le=1, description="weight of the transfer; the labels weigh the rest")] = 1.0
    tau: Annotated[float, Field(gt=0, description="temperature")] = 1.0
    top_k: Annotated[int, Field(ge=0, description="compare only the source's largest classes; 0 is all")] = 0
    mask: Annotated[
        Literal["frozen", "moving"],
        Field(description="whose confidence the teacher must beat: the frozen copy's or the student's at this moment"),
    ] = "frozen"
    strategy: Annotated[
        Literal["parallel", "sequential", "soup"],
        Field(description="several teachers: the surest per sample, one after the other, or the mean of the students"),
    ] = "parallel"
    calibrate: Annotated[
        bool, Field(description="compare confidences after scaling every model's temperature on the labels")
    ] = False
    slow: Annotated[
        float, Field(ge=0, lt=1, description="share of slow weights kept at each interpolation (MCL: 0.9999); 0 is off")
    ] = 0.0
    slow_every: Annotated[int, Field(ge=1, description="steps between interpolations of the slow weights")] = 2
    freeze_norms: Annotated[bool, Field(description="keep the student's batch statistics as they are")] = False
    lr: Annotated[float, Field(gt=0, description="peak learning rate; what suits training from scratch destroys")] = (
        1e-4
    )
    optimizer: Annotated[Literal["adamw", "sgd"], Field(description="AdamW, or SGD with Nesterov momentum 0.9")] = "sgd"
    weight_decay: Annotated[float, Field(ge=0, description="decoupled (AdamW) or L2 (SGD) weight decay")] = 1e-4
    schedule: Annotated[Literal["cosine", "linear", "constant"], Field(description="learning rate after warm-up")] = (
        "constant"
    )
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the steps with rising learning rate")] = 0.0

    def needs(self) -> Needs:
        labelled = self.alpha < 1 or self.calibrate or self.partition in ("supervised", "flip-st", "flip-t", "flip-avg")
        return Needs(labels=labelled, teachers=(1, 100))

    # -- before training ---------------------------------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        for teacher in run.teacher_models:
            _same_classes(run.student_model.config, teacher.config, f"{run.student_model.name}, {teacher.name}")
        phases = self._phases(run)
        if run.settings.epochs < phases:
            raise InterfuseError("param.value", f"{phases} teachers one after the other need at least {phases} epochs", where="epochs")  # fmt: skip
        if 0 < run.classes < self.top_k:
            raise InterfuseError(
                "param.value", f"top_k is {self.top_k}, there are {run.classes} classes", where="top_k"
            )
        run.add(COPY, run.frozen_copy(run.student), train=False)
        if self.slow:
            run.add(SLOW, run.frozen_copy(run.student), train=False)
        if self._labelled(run):
            self._look(run)

    def _look(self, run: Run) -> None:
        """Accuracies, flips and temperatures of everybody on the transfer examples, before the first step."""
        assert run.labels is not None
        labels = run.labels.numpy()
        said = [self._predict(run, COPY), *self._teacher_predictions(run)]
        right = [float((logits.argmax(axis=1) == labels).mean()) for logits in said]
        if right[0] < GUESSING / max(run.classes, 1):
            run.ctx.log(f"the student is right on {right[0]:.1%} of the examples, hardly more than guessing: "
                        "use kd to train it first")  # fmt: skip
        before = said[0].argmax(axis=1)
        run.tensors["before"] = torch.from_numpy(before)
        run.tensors["order"] = torch.tensor(sorted(range(len(said) - 1), key=lambda k: (right[k + 1], k)))
        if self.calibrate:
            run.tensors["temperatures"] = torch.tensor([fit_temperature(logits, labels) for logits in said])
        run.facts["flips"] = [
            {
                "teacher": model.name,
                **dataclasses.asdict(complement(before, logits.argmax(axis=1), labels, run.classes)),
            }
            for model, logits in zip(run.teacher_models, said[1:], strict=True)
        ]

    def scan(self, run: Run) -> None:
        self._keep_copy(run)

    def _keep_copy(self, run: Run, *, renew: bool = False) -> None:
        """The frozen copy's predictions, where the teachers' are kept as well: then a step costs what a plain one costs."""
        if run.stored is not None and self.mask == "frozen" and (renew or "copy" not in run.tensors):
            run.tensors["copy"] = torch.from_numpy(self._predict(run, COPY))

    # -- a batch -----------------------------------------------------------------------------------------------------

    def views(self, run: Run, batch: Batch) -> Views:
        if self.freeze_norms:
            for module in run.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        views = super().views(run, batch)
        if "copy" in run.tensors:
            copy = run.tensors["copy"][torch.from_numpy(batch.positions)].to(run.device)
        else:
            with torch.no_grad():
                copy = forward(run.modules[COPY], run.student_model, batch.student)
        batch.extra["copy"] = copy
        return views

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        source, taught = self.source(run, views)
        student = views.student
        if self.top_k:
            best = source.topk(self.top_k, dim=-1).indices
            student, source = student.gather(-1, best), source.gather(-1, best)
        terms = {"transfer": forward_kl(student, source, tau=self.tau)}
        terms["from_teacher"] = taught.to(
            student.dtype
        )  # the share of samples a teacher taught: logged, weighs nothing
        return terms | ({"ce": hard_loss(views)} if self.alpha < 1 else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        return {"transfer": self.alpha, "from_teacher": 0.0, "ce": 1 - self.alpha}

    def source(self, run: Run, views: Views) -> tuple[Tensor, Tensor]:
        """The logits [..., K] each sample learns from, without gradient, and whether they are a teacher's [...]."""
        copy = views.batch.extra["copy"]
        judge = views.student.detach() if self.mask == "moving" else copy
        chosen = self._active(run)
        teachers = torch.stack([views.teachers[k] for k in chosen]).detach()  # [T, ..., K]
        degrees = run.tensors.get("temperatures", torch.ones(1 + len(views.teachers))).to(copy)
        if self.partition == "self":
            return copy, torch.zeros_like(copy[..., 0], dtype=torch.bool)
        if self.partition == "teacher":
            return self._surest(teachers, chosen, degrees, None), torch.ones_like(copy[..., 0], dtype=torch.bool)
        labels = views.labels.clamp_min(0) if views.labels is not None and self.partition != "unsupervised" else None
        if self.partition in ("supervised", "unsupervised"):
            surety = torch.stack([_surety(t, float(degrees[k + 1]), labels) for k, t in zip(chosen, teachers, strict=True)])  # fmt: skip
            taught = surety.max(dim=0).values > _surety(judge, float(degrees[0]), labels)
            best = self._surest(teachers, chosen, degrees, labels)
            return torch.where(taught.unsqueeze(-1), best, copy), taught
        best = self._surest(teachers, chosen, degrees, labels)
        assert labels is not None, "needs().labels guarantees labels"
        right_t, right_s = best.argmax(dim=-1) == labels, judge.argmax(dim=-1) == labels
        taught = ~(right_s & ~right_t) if self.partition == "flip-t" else right_t & ~right_s
        source = torch.where(taught.unsqueeze(-1), best, copy)
        if self.partition == "flip-avg":
            source = torch.where((right_t == right_s).unsqueeze(-1), (best + copy) / 2, source)
        return source, taught

    def _surest(self, teachers: Tensor, chosen: list[int], degrees: Tensor, labels: Tensor | None) -> Tensor:
        """Per sample the logits of the surest of the teachers [T, ..., K]; the first of equals."""
        if len(chosen) == 1:
            return teachers[0]
        surety = torch.stack([_surety(t, float(degrees[k + 1]), labels) for k, t in zip(chosen, teachers, strict=True)])
        best = surety.argmax(dim=0)[None, ..., None].expand(1, *teachers.shape[1:])
        return teachers.gather(0, best)[0]

    # -- several teachers --------------------------------------------------------------------------------------------

    def _phases(self, run: Run) -> int:
        return 1 if self.strategy == "parallel" else len(run.teacher_models)

    def _active(self, run: Run) -> list[int]:
        """The teachers of this epoch: all, or one per phase, weaker ones first where labels tell."""
        count = len(run.teacher_models)
        if self.strategy == "parallel":
            return list(range(count))
        phase = min(run.epoch * count // run.settings.epochs, count - 1)
        return [int(run.tensors["order"][phase])] if "order" in run.tensors else [phase]

    def after_step(self, run: Run) -> None:
        if self.slow and run.step % self.slow_every == 0:
            _blend(run.modules[SLOW], run.student, self.slow)

    def on_epoch_end(self, run: Run) -> None:
        count, epochs = self._phases(run), run.settings.epochs
        phase = (run.epoch - 1) * count // epochs
        if count == 1 or run.epoch * count // epochs == phase:
            return
        student = run.bare
        if self.strategy == "soup":
            for name, value in student.state_dict().items():
                if value.is_floating_point():
                    share = value.detach().cpu() / count
                    run.tensors[f"soup/{name}"] = run.tensors.get(f"soup/{name}", torch.zeros_like(share)) + share
            student.load_state_dict(run.modules[COPY].state_dict())
        else:
            run.modules[COPY].load_state_dict(student.state_dict())
            if run.epoch < epochs:
                self._keep_copy(run, renew=True)
        run.optimizers["main"].state.clear()  # each transfer is a training of its own

    def export(self, run: Run) -> nn.Module:
        module = run.modules[SLOW] if self.slow else run.bare
        if self.strategy == "soup" and self._phases(run) > 1:
            soup = {name[5:]: value for name, value in run.tensors.items() if name.startswith("soup/")}
            module.load_state_dict({**module.state_dict(), **soup})
        if self._labelled(run):
            assert run.labels is not None
            labels, before = run.labels.numpy(), run.tensors["before"].numpy()
            after = predict(run.student_model, run.data, run.ctx, module=module.eval(), encoder=run.encoder).argmax(axis=1)  # fmt: skip
            said = [t.argmax(axis=1) for t in self._teacher_predictions(run)]
            rows = [_plain(dataclasses.asdict(transferred(before, after, t, labels))) for t in said]
            run.facts["transfer"] = [
                {"teacher": m.name, **row} for m, row in zip(run.teacher_models, rows, strict=True)
            ]
        return module

    def _labelled(self, run: Run) -> bool:
        return run.labels is not None and run.student_model.task != "causal-lm"

    def _predict(self, run: Run, name: str) -> np.ndarray:
        return predict(run.student_model, run.data, run.ctx, module=run.modules[name].eval(), encoder=run.encoder)

    def _teacher_predictions(self, run: Run) -> list[np.ndarray]:
        count = len(run.stored if run.stored is not None else run.teachers)
        return [run.taught(k).numpy() for k in range(count)]


def _surety(logits: Tensor, temperature: float, labels: Tensor | None) -> Tensor:
    """Probability of the label, or of the most likely class: [..., K] -> [...]."""
    p = log_probs(logits, temperature)
    return p.gather(-1, labels.unsqueeze(-1)).squeeze(-1).exp() if labels is not None else p.max(dim=-1).values.exp()


def _blend(slow: nn.Module, fast: nn.Module, keep: float) -> None:
    """``slow = keep slow + (1 - keep) fast``; whole numbers (batch counters) are copied."""
    fresh = fast.state_dict()
    with torch.no_grad():
        for name, value in slow.state_dict().items():
            if value.is_floating_point():
                value.lerp_(fresh[name], 1 - keep)
            else:
                value.copy_(fresh[name])


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _same_classes(student: Mapping[str, Any], teacher: Mapping[str, Any], where: str) -> None:
    """Refuses class names that differ, and heads with several labels at once."""
    for config in (student, teacher):
        if config.get("problem_type") == "multi_label_classification":
            raise InterfuseError("input.type", "a head with several labels at once has no single confidence", where=where)  # fmt: skip
    names = [{int(k): str(v) for k, v in (c.get("id2label") or {}).items()} for c in (student, teacher)]
    named = [n for n in names if n and not all(v == f"LABEL_{k}" for k, v in n.items())]
    if len(named) == 2 and named[0] != named[1]:
        differ = next(k for k in sorted({*named[0], *named[1]}) if named[0].get(k) != named[1].get(k))
        raise InterfuseError("input.shape", f"class {differ} is {named[0].get(differ)!r} for the student, "
                             f"{named[1].get(differ)!r} for the teacher", where=where,
                             fix="Bring id2label and the classifier's rows into one order.")  # fmt: skip
