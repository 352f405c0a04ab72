"""KD++: a loss on norm and direction of the student's features, beside any loss on logits (Wang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.encode import forward
from interfuse.kit.feature_losses import cosine_distance, norm_direction_watched
from interfuse.kit.losses import dist, dkd, forward_kl, full_precision
from interfuse.kit.nets import unpadded
from interfuse.kit.taps import PENULTIMATE, as_vector


@method()
@dataclass(frozen=True)
class NDKD(Hooks):
    """``ce * CE + w(epoch) * kd * base + nd * ND``, ``ND = 1 - <s, e> / max(||s||, ||t||)`` (section 3.3), e the unit
    vector to the teacher's mean feature of the sample's class, ``w = min(1, epoch / warmup_epochs)`` counted from 0."""

    base: Annotated[
        Literal["kd", "dist", "dkd", "none"],
        Field(description="the loss on logits that norm and direction are added to"),
    ] = "kd"
    nd: Annotated[float, Field(ge=0, description="weight of the norm-and-direction loss")] = 1.0
    kd: Annotated[float, Field(ge=0, description="weight of the base loss")] = 1.0
    ce: Annotated[float, Field(ge=0, description="weight of the cross entropy with the labels")] = 1.0
    tau: Annotated[float, Field(gt=0, description="temperature of the base loss")] = 4.0
    warmup_epochs: Annotated[
        int, Field(ge=0, description="epochs over which the base loss is faded in; 0 is at once")
    ] = 20
    form: Annotated[
        Literal["norm-direction", "direction", "norm"],
        Field(
            description="the paper's loss, or its weaker halves: 1 - cosine to the class mean, or a step towards longer features"
        ),
    ] = "norm-direction"
    norm_step: Annotated[float, Field(gt=0, description="how much longer form 'norm' wants a feature than it is")] = 1.0
    projection: Annotated[
        Literal["auto", "none"], Field(description="project the student's features where widths differ, or refuse")
    ] = "auto"
    missing: Annotated[
        Literal["refuse", "skip"], Field(description="a class without examples: refuse, or give its samples no ND loss")
    ] = "refuse"
    dkd_alpha: Annotated[float, Field(ge=0, description="base dkd: weight of its target part")] = 1.0
    dkd_beta: Annotated[float, Field(ge=0, description="base dkd: weight of its non-target part")] = 8.0

    def needs(self) -> Needs:
        return Needs(
            labels=True, batch=2, student_features=(PENULTIMATE,), teacher_features=(PENULTIMATE,), own_labels=True
        )

    def setup(self, run: Run) -> None:
        if run.student_model.task == "causal-lm":
            raise InterfuseError("input.type", "a language model has no class means", where=run.student_model.name)
        ours, theirs = run.student_shapes[PENULTIMATE][-1], run.teacher_shapes[0][PENULTIMATE][-1]
        if ours == theirs:
            return
        if self.projection == "none":
            raise InterfuseError("input.shape", f"the student's features have {ours} numbers, the teacher's {theirs}",
                                 where=f"{run.student_model.name}, {run.teacher_models[0].name}", fix="Use projection: auto.")  # fmt: skip
        run.add("projection", nn.Sequential(nn.BatchNorm1d(ours), nn.Dropout(0.5), nn.Linear(ours, theirs)))

    def scan(self, run: Run) -> None:
        """The teacher's class means over the training examples, float32 [K, D], zero for a class that is left out."""
        assert run.labels is not None, "needs().labels guarantees labels"
        means, counts = class_means(run, run.labels, run.classes)
        missing = [run.data.classes[c] for c in np.flatnonzero(counts.numpy() == 0) if c < len(run.data.classes)]
        if missing and self.missing == "refuse":
            raise InterfuseError("input.empty", f"there are no examples of the classes {', '.join(missing)}", where=run.data.name,
                                 fix="Use missing: skip, or add examples.")  # fmt: skip
        short = (means.norm(dim=1) == 0) & (counts > 0)
        if bool(short.any()):
            raise InterfuseError("needs.capability", f"the teacher's mean feature of class {int(short.nonzero()[0])} is zero",
                                 where=run.teacher_models[0].name)  # fmt: skip
        run.tensors["class_means"] = means

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        assert views.labels is not None, "needs().labels guarantees labels"
        s, t = (as_vector(x) for x in views.pair(PENULTIMATE, PENULTIMATE))
        if "projection" in run.modules:
            s = run.modules["projection"](s)
        s = full_precision(s)
        direction = (
            _directions(run).to(s.device, s.dtype).index_select(0, views.labels)
        )  # of the label, not of the prediction
        loss, norm, cosine = norm_direction_watched(s, t.to(s.dtype), direction)
        if self.form == "direction":
            loss = cosine_distance(s, direction)
        elif self.form == "norm":
            loss = (s.norm(dim=-1) - (norm + self.norm_step)).square()
        if self.missing == "skip":
            loss = loss.masked_fill((direction == 0).all(dim=-1), 0.0)
        terms = {"ce": hard_loss(views), "nd": loss}
        if self.base != "none":
            terms["base"] = self._base(views)
        # watched, not trained on
        return terms | {"norm": norm, "cosine": cosine}

    def _base(self, views: Views) -> torch.Tensor:
        s, t = views.student, views.teachers[0]
        if self.base == "kd":
            return forward_kl(s, t, tau=self.tau)
        if self.base == "dist":
            return dist(s, t, tau=self.tau)
        assert views.labels is not None
        return dkd(s, t, views.labels, alpha=self.dkd_alpha, beta=self.dkd_beta, tau=self.tau)

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        ramp = min(1.0, run.epoch / self.warmup_epochs) if self.warmup_epochs else 1.0
        return {"ce": self.ce, "nd": self.nd, "base": self.kd * ramp, "norm": 0.0, "cosine": 0.0}

    def write(self, run: Run, folder: Path) -> None:
        import safetensors.torch

        safetensors.torch.save_file({"class_means": run.tensors["class_means"]}, folder / "class_means.safetensors")


def _directions(run: Run) -> torch.Tensor:
    """The class means brought to length 1 [K, D], once for all steps; 0 stays 0."""
    means = run.tensors["class_means"]
    if run.held.get("class_means") is not means:
        run.held |= {"class_means": means, "directions": nn.functional.normalize(means, dim=1)}
    found: torch.Tensor = run.held["directions"]
    return found


@torch.no_grad()
def class_means(run: Run, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's mean penultimate feature of every class, summed in float64: float32 [K, D] and counts [K].

    The first teacher runs in evaluation mode on the examples as they are; a class without examples has mean 0.
    """
    model, teacher, taps = run.teacher_models[0], run.teachers[0], run.teacher_taps[0]
    sums = torch.zeros(classes, taps.shapes()[PENULTIMATE][-1], dtype=torch.float64)
    for positions, batch in run.teacher_encoders[0].batches(np.arange(len(run.data)), run.settings.batch_size):
        inputs = {k: v.to(run.device) for k, v in batch.items()}
        forward(teacher, model, inputs)
        vectors = as_vector(unpadded(taps.features[PENULTIMATE], inputs))  # as the terms see them
        sums.index_add_(0, labels[torch.from_numpy(positions)], vectors.double().cpu())
    counts = torch.bincount(labels, minlength=classes)
    return (sums / counts.clamp_min(1).unsqueeze(1)).float(), counts
