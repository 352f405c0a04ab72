"""HARD (Nix et al. 2023): learn the changes of an example on which student and teacher disagree, and train the student on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill import pages
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.distill.token_targets import refuse_other_tokens
from interfuse.kit.augmentors import Affine, Augmentor, Latent, Mix, Noise, Words, clamp_through
from interfuse.kit.encode import forward, words_changed
from interfuse.kit.losses import forward_kl, full_precision

if TYPE_CHECKING:
    from interfuse.core.rooms import Call
    from interfuse.data.models import Model

AUGMENTOR = "augmentor"
#: pictures in a row of the examples
SHOWN = 8


@method()
@dataclass(frozen=True)
class HARD(Hooks):
    """Student phase: ``min_theta D(f_t(x~), f_s(x~)) + D(f_t(x), f_s(x))``, ``x~ = g_phi(x)``, phi fixed. Augmentor phase:
    ``max_phi lambda_s D(f_t(x~), f_s(x~)) - lambda_t D(f_t(x), f_t(x~))``, theta fixed.

    The phase changes when the running mean of ``D(f_t(x~), f_s(x~))`` has fallen below ``phase_min`` times, or has risen above
    ``phase_max`` times, its value at the start of the phase.
    """

    augmentor: Annotated[
        Literal["affine", "mix", "vae", "noise"],
        Field(description="what is learned: moving the image, mixing fixed operations, latents, or bounded noise"),
    ] = "affine"
    shift: Annotated[float, Field(ge=0, le=1, description="affine: largest shift, as a share of the image")] = 0.3
    rotate: Annotated[float, Field(ge=0, le=180, description="affine: largest rotation, in degrees")] = 45.0
    scale: Annotated[
        float, Field(ge=0, le=3, description="affine: largest log2 of the enlargement; 0.5 is 0.71 to 1.41")
    ] = 0.5
    shear: Annotated[float, Field(ge=0, le=60, description="affine: largest shear, in degrees")] = 15.0
    noise: Annotated[
        float, Field(ge=0, description="noise: largest change of an input number, or of the factor of a word's vector")
    ] = 0.3
    start: Annotated[
        float, Field(ge=0, description="initial spread; at 0 the augmentor is the identity and hardly learns")
    ] = 0.3
    distance: Annotated[
        Literal["kl", "mse"], Field(description="tau^2 KL for classes, squared error for regression")
    ] = "kl"
    tau: Annotated[float, Field(gt=0, description="temperature of the KL")] = 4.0
    lambda_s: Annotated[float, Field(ge=0, description="augmentor: weight of the disagreement it looks for")] = 1.0
    lambda_t: Annotated[
        float, Field(ge=0, description="augmentor: weight of the change of the teacher's answer; larger than lambda_s")
    ] = 2.0
    constraint: Annotated[
        Literal["teacher-invariance", "none"], Field(description="none: look for disagreement alone (lambda_t is 0)")
    ] = "teacher-invariance"
    phase_min: Annotated[float, Field(ge=0, description="ends a student phase: share of its first disagreement")] = 0.5
    phase_max: Annotated[float, Field(ge=0, description="ends an augmentor phase: share of its first disagreement")] = (
        1.5
    )
    student_steps: Annotated[int, Field(ge=1, description="longest student phase, in steps")] = 50
    augmentor_steps: Annotated[int, Field(ge=1, description="longest augmentor phase, in steps")] = 10
    augmentor_lr: Annotated[float, Field(gt=0, description="learning rate of the augmentor (Adam)")] = 1e-3
    ema: Annotated[float, Field(ge=0, lt=1, description="share of the old value in the running mean")] = 0.9
    clean: Annotated[float, Field(ge=0, description="weight of the distance on unchanged inputs")] = 1.0
    ce: Annotated[
        float, Field(ge=0, description="weight of the labels' cross entropy on unchanged inputs; 0 needs none")
    ] = 0.0
    examples: Annotated[
        int, Field(ge=0, description="how often during training changed images are kept to look at")
    ] = 4

    def needs(self) -> Needs:
        return Needs(labels=self.ce > 0, teachers=(1, 1), live=True)

    def check(self, call: Call) -> None:
        data = call.inputs["data"]
        student = call.inputs["student"]
        if data.kind not in ("image", "features", "text") or student.task.endswith("-lm"):
            raise InterfuseError("input.type", f"hard compares what is said of whole examples, the student is for {student.task}", where=student.name,
                                 fix="Use gkd or lm-kd for next tokens.")  # fmt: skip
        if data.kind != "image" and self.augmentor != "noise":
            kind = {"features": "numbers", "text": "texts"}[data.kind]
            raise InterfuseError("input.type", f"the {self.augmentor} augmentor changes pictures, the table holds {kind}", where=data.name,
                                 fix="Set augmentor: noise, which moves every number, or every word's strength, within a bound.")  # fmt: skip
        if data.kind == "text":
            refuse_other_tokens(call, "Give both the same tokenizer, or use kd.")

    def setup(self, run: Run) -> None:
        if self.phase_min >= self.phase_max:
            raise InterfuseError("param.value", f"phase_min {self.phase_min} is not below phase_max {self.phase_max}", where="phase_min")  # fmt: skip
        probe = self._batch(run, np.arange(min(2, len(run.data))))
        x = self._source(probe)
        moved = x.detach() if x.is_floating_point() else torch.ones(x.shape, device=x.device)
        seen = self._teacher(run, probe, moved.requires_grad_(True))
        if not seen.requires_grad:
            raise InterfuseError("needs.capability", "the teacher gives no gradient with respect to its input", where=run.teacher_models[0].name,
                                 fix="Use random changes of the images instead, or a teacher made of torch modules.")  # fmt: skip
        module = cast(nn.Module, self._make(run, x))
        run.add(AUGMENTOR, module, train=False)
        run.optimizers[AUGMENTOR] = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=self.augmentor_lr)  # fmt: skip
        run.tensors |= {"phase": torch.zeros(3, dtype=torch.float64), "curve": torch.zeros(run.steps, 4)}

    def _make(self, run: Run, x: Tensor) -> Augmentor:
        shape = tuple(x.shape[1:])
        if run.data.kind == "text":
            return Words(len(run.encoder.tokenizer), limit=self.noise, start=self.start)
        if self.augmentor == "affine":
            return Affine(shift=self.shift, rotate=self.rotate, scale=self.scale, shear=self.shear, start=self.start)
        if self.augmentor == "mix":
            return Mix(start=min(self.start, 1.0))
        if self.augmentor == "noise":
            return Noise(shape, limit=self.noise, start=self.start)
        found = Latent(shape, start=self.start)
        images = self._source(self._batch(run, np.arange(len(run.data)))).cpu()
        run.facts["vae_loss"] = round(found.fit(images, run.generator("hard/vae")), 4)
        return found

    # -- the student's phase -----------------------------------------------------------------------------------------

    def views(self, run: Run, batch: Batch) -> Views:
        generator = run.generator(f"hard/{run.step}/{int(batch.positions[0])}")
        with torch.no_grad():
            moved = self.augment(run, self._source(batch), generator)
            teacher = self._teacher(run, batch, moved)
            clean = forward(run.teachers[0], run.teacher_models[0], batch.teachers[0])
        # half of what the student sees in a step is unchanged, half is changed
        name, x = next(iter(batch.student.items()))
        if name == "input_ids":
            twice = {n: torch.cat([v, v]) for n, v in batch.student.items()}
            both = shown(run.student, run.student_model, twice, torch.cat([torch.ones_like(moved), moved]))
        else:
            both = forward(run.student, run.student_model, {name: torch.cat([x, fit(moved, x)])})
        student, changed = both.chunk(2)
        batch.extra |= {"student": changed, "teacher": teacher}
        # for others in a composition: features of the unchanged half, which the teacher saw last
        features = (
            {n: f[: len(x)] for n, f in run.student_taps.features.items()} if run.student_taps is not None else {}
        )
        return Views(batch, student, [clean], features, [dict(t.features) for t in run.teacher_taps], len(changed))

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        extra, teacher = views.batch.extra, views.teachers[0]
        terms = {"kd": self.between(teacher, views.student), "hard": self.between(extra["teacher"], extra["student"])}
        terms["teacher_change"] = self.between(
            teacher, extra["teacher"]
        )  # logged: large means the changes mean something else
        run.tensors["seen"] = torch.stack([terms["hard"].detach().mean(), terms["teacher_change"].mean()]).float().cpu()
        return terms | ({"ce": hard_loss(views)} if self.ce else {})

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        return {"kd": self.clean, "hard": 1.0, "teacher_change": 0.0, "ce": self.ce}

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """D(first, second) per sample, [..., K] -> [...]: ``tau^2 KL(first || second)`` or the squared difference."""
        if self.distance == "kl":
            return forward_kl(second, first, tau=self.tau)
        return (full_precision(first) - full_precision(second)).square().sum(dim=-1)

    def objective(self, teacher: Tensor, teacher_moved: Tensor, student_moved: Tensor) -> Tensor:
        """What the augmentor maximises, per sample: [..., K] -> [...]."""
        hold = self.lambda_t if self.constraint == "teacher-invariance" else 0.0
        return self.lambda_s * self.between(teacher_moved, student_moved) - hold * self.between(teacher, teacher_moved)

    # -- the augmentor's phase ---------------------------------------------------------------------------------------

    def after_step(self, run: Run) -> None:
        found, change = run.tensors["seen"].tolist()
        steps, first, mean = run.tensors["phase"].tolist()
        first = first if steps else found
        mean = self.ema * mean + (1 - self.ema) * found if steps else found
        moves = run.tensors["curve"][max(run.step - 2, 0), 3].item()
        run.tensors["phase"] = torch.tensor([steps + 1, first, mean], dtype=torch.float64)
        if mean < self.phase_min * first or steps + 1 >= self.student_steps:
            moves += self._augmentor_phase(run)
            run.tensors["phase"] = torch.zeros(3, dtype=torch.float64)
        run.tensors["curve"][run.step - 1] = torch.tensor([found, change, mean, moves])
        self._keep_examples(run)

    def _augmentor_phase(self, run: Run) -> int:
        """Steps of the augmentor against the frozen student; returns how many. Batch statistics stay as they are."""
        optimizer, module = run.optimizers[AUGMENTOR], run.modules[AUGMENTOR]
        phi = [p for p in module.parameters() if p.requires_grad]
        run.student.eval()
        first = mean = 0.0
        for step in range(self.augmentor_steps):
            name = f"hard/{run.step}/augmentor/{step}"
            size = min(run.settings.batch_size, len(run.data))
            batch = self._batch(run, np.sort(run.ctx.rng(name).choice(len(run.data), size, replace=False)))
            moved = self.augment(run, self._source(batch), run.generator(name))
            student = shown(run.student, run.student_model, batch.student, moved)
            with torch.no_grad():
                clean = forward(run.teachers[0], run.teacher_models[0], batch.teachers[0])
            teacher = self._teacher(run, batch, moved)
            gain = self.objective(clean, teacher, student).mean()
            for p, g in zip(phi, torch.autograd.grad(-gain, phi), strict=True):
                p.grad = g
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            found = float(self.between(teacher, student).detach().mean())
            first = first if step else found
            mean = self.ema * mean + (1 - self.ema) * found if step else found
            if mean > self.phase_max * first:
                break
        change = float(self.between(clean, teacher).detach().mean())
        if change > mean:
            run.ctx.log(f"step {run.step}: the changes move the teacher's own answer ({change:.3g}) more than it differs from the student's "
                        f"({mean:.3g}); raise lambda_t or narrow the ranges")  # fmt: skip
        return step + 1

    # -- inputs ------------------------------------------------------------------------------------------------------

    def augment(self, run: Run, x: Tensor, generator: torch.Generator) -> Tensor:
        """``x~ = g_phi(x)``; images stay in [0, 1], gradients pass through the cut. Of token ids the factors of their vectors."""
        module = run.modules[AUGMENTOR]
        if not x.is_floating_point():
            return cast(Augmentor, module)(x, generator)
        wide = x.to(next(module.parameters()).dtype)
        moved = cast(Augmentor, module)(wide, generator)
        inside = x.ndim == 4 and bool((x >= 0).all()) and bool((x <= 1).all())
        return (clamp_through(moved) if inside else moved).to(x.dtype)

    def _batch(self, run: Run, positions: np.ndarray) -> Batch:
        from interfuse.distill.room import make_batch

        return make_batch(run, positions, live=True)

    def _source(self, batch: Batch) -> Tensor:
        """The inputs that are changed: the student's or the teacher's, whichever have more numbers; of texts the token ids.

        Raises:
            InterfuseError: ``input.vocabulary`` where the two read other tokens, padding included.
        """
        student, teacher = (next(iter(inputs.values())) for inputs in (batch.student, batch.teachers[0]))
        if not student.is_floating_point():
            if not torch.equal(student, teacher):
                raise InterfuseError("input.vocabulary", "hard needs a teacher that reads the student's tokens")
            return student
        return teacher if teacher[0].numel() > student[0].numel() else student

    def _teacher(self, run: Run, batch: Batch, moved: Tensor) -> Tensor:
        """The teacher's answer to changed inputs, in evaluation mode, with gradient with respect to them."""
        return shown(run.teachers[0], run.teacher_models[0], batch.teachers[0], moved)

    # -- what is written ---------------------------------------------------------------------------------------------

    def _keep_examples(self, run: Run) -> None:
        every = max(run.steps // self.examples, 1) if self.examples else 0
        if every and run.step % every == 0 and run.data.kind == "image":
            x = self._source(self._batch(run, np.arange(min(SHOWN, len(run.data)))))
            with torch.no_grad():
                moved = self.augment(run, x, run.generator("hard/examples"))
            run.tensors[f"examples/{run.step:09d}"] = torch.stack([x, moved]).cpu()

    def write(self, run: Run, folder: Path) -> None:
        module = run.modules[AUGMENTOR].cpu()
        state = {k: v.detach().contiguous().clone() for k, v in module.state_dict().items()}
        safetensors.torch.save_file(state, folder / "augmentor.safetensors")
        names = sorted(name for name in run.tensors if name.startswith("examples/"))
        kept = [(int(name.split("/")[1]), run.tensors[name].numpy()) for name in names]
        found = {name: float(value) for name, value in cast(Augmentor, module).diagnostics().items()}
        run.facts["augmentor"] = {name: round(value, 5) for name, value in found.items()}
        moves = int(run.tensors["curve"][-1, 3]) if run.steps else 0
        run.facts["phases"] = {"student_steps": run.step, "augmentor_steps": moves}
        pages.augmentations(folder, kept, run.tensors["curve"].numpy(), found)


def shown(module: nn.Module, model: Model, inputs: dict[str, Tensor], moved: Tensor) -> Tensor:
    """What a network says [B, K] of changed inputs: numbers in the place of its own, or factors [B, L] of its word vectors."""
    name, like = next(iter(inputs.items()))
    if name != "input_ids":
        return forward(module, model, {name: fit(moved, like)})
    with words_changed(module, like, lambda words: words * moved.unsqueeze(-1).to(words.dtype)):
        return forward(module, model, inputs)


def fit(x: Tensor, like: Tensor) -> Tensor:
    """Images with the channels and the size of others (mean and copy, bilinear), differentiable; anything else as it is."""
    if x.ndim != 4 or x.shape[1:] == like.shape[1:]:
        return x
    if x.shape[1] != like.shape[1]:
        x = x.mean(dim=1, keepdim=True).expand(-1, like.shape[1], -1, -1)
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False, antialias=True)
