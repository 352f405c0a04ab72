"""Distillation with (partial) mixup and logits divided by their own deviation (Choi et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views
from interfuse.kit.losses import cross_entropy, entropy, forward_kl, kl_and_cross_entropy, standardise_logits


@method()
@dataclass(frozen=True)
class MixKD(Hooks):
    """``gamma * CE(z_s, mixed labels) + alpha * KL(p_t || p_s)`` on mixed inputs that both networks see (section 3), with
    logits divided by their deviation over classes (section 5), or at a fixed temperature."""

    alpha: Annotated[float, Field(ge=0, description="weight of the teacher")] = 0.9
    gamma: Annotated[float, Field(ge=0, description="weight of the mixed labels")] = 0.1
    mixup_alpha: Annotated[
        float, Field(gt=0, description="both parameters of the Beta distribution of the mixing share")
    ] = 1.0
    fraction: Annotated[float, Field(ge=0, le=1, description="share of a batch that is mixed; 1 is full mixup")] = 0.5
    partial: Annotated[
        Literal["exact", "reference"],
        Field(description="draw the unmixed samples without replacement, or with it as the reference code does"),
    ] = "exact"
    rescale: Annotated[
        Literal["std", "temperature"], Field(description="divide logits by their own deviation, or by tau")
    ] = "std"
    tau: Annotated[float, Field(gt=0, description="temperature when rescale is 'temperature'")] = 4.0

    def needs(self) -> Needs:
        return Needs(labels=True, live=True, batch=2 if self.fraction > 0 else 1, mixes=True)

    def setup(self, run: Run) -> None:
        if run.student_model.task == "causal-lm":
            raise InterfuseError("input.type", "mixed sequences have no next tokens", where=run.student_model.name)

    def batch(self, run: Run, batch: Batch) -> Batch:
        assert batch.labels is not None, "needs().labels guarantees labels"
        rng = run.ctx.rng(f"mix/{run.epoch}/{run.step}/{batch.positions[0]}")
        share, first, second = plan(len(batch.positions), self.mixup_alpha, self.fraction, rng, partial=self.partial)
        lam = torch.from_numpy(share).to(run.device)
        i, j = torch.from_numpy(first).to(run.device), torch.from_numpy(second).to(run.device)
        student = run.bare
        mixed = mix_inputs(student, batch.student, lam, i, j)
        return replace(
            batch,
            student=mixed,
            teachers=[
                mixed if _alike(x, batch.student) else mix_inputs(m, x, lam, i, j)
                for m, x in zip(run.teachers, batch.teachers, strict=True)
            ],
            soft=mix(F.one_hot(batch.labels, run.classes).float(), lam, i, j),
            extra={"share": share, "first": first, "second": second},
        )

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        s, t, soft = views.student, views.teachers[0], views.batch.soft
        assert soft is not None, "batch() mixes the labels"
        if self.rescale == "std":
            # unbiased deviation of each sample's own logits, with gradient; no tau^2
            s, t = standardise_logits(s), standardise_logits(t)
            kd, ce = kl_and_cross_entropy(s, t, soft)
        else:
            kd, ce = forward_kl(s, t, tau=self.tau), cross_entropy(s, soft)
        # smoothness of both, watched and not trained on
        both = entropy(torch.stack([views.teachers[0].to(views.student.dtype), views.student.detach()]))
        return {"kd": kd, "ce": ce, "teacher_entropy": both[0], "student_entropy": both[1]}

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"kd": self.alpha, "ce": self.gamma, "teacher_entropy": 0.0, "student_entropy": 0.0}


def plan(
    size: int,
    alpha: float,
    fraction: float,
    rng: np.random.Generator,
    *,
    partial: Literal["exact", "reference"] = "exact",
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Who is mixed with whom: shares [B] and two permutations [B]; sample i becomes ``share x[first] + (1 - share) x[second]``.

    A share per sample is drawn from Beta(alpha, alpha); it is 1 for the samples that stay whole.

    Args:
        fraction: of the samples that are mixed. partial: ``reference`` draws int((1 - fraction) B) whole samples *with*
            replacement, so that fewer stay whole.
    """
    share = rng.beta(alpha, alpha, size).astype(np.float32)
    first, second = rng.permutation(size), rng.permutation(size)
    if partial == "exact":
        share[rng.permutation(size)[round(fraction * size) :]] = 1.0
    else:
        share[rng.integers(0, size, int((1 - fraction) * size))] = 1.0
    return share, first, second


def mix(x: torch.Tensor, share: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``share x[first] + (1 - share) x[second]`` for ``x`` [B, ...] and one share per sample [B]."""
    lam = share.to(x.dtype).reshape(-1, *([1] * (x.ndim - 1)))
    return torch.lerp(x.index_select(0, second), x.index_select(0, first), lam)


def _alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether both networks see the same images or features (token ids become vectors of each network's own)."""
    if "input_ids" in one or one.keys() != other.keys():
        return False
    return all(
        x is y or (x.shape == y.shape and torch.equal(x, y)) for x, y in ((one[name], other[name]) for name in one)
    )


def mix_inputs(
    module: Any, inputs: dict[str, torch.Tensor], share: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> dict[str, torch.Tensor]:
    """A model's inputs mixed; token ids are embedded first, and a position counts where it does in either text.

    Raises:
        InterfuseError: ``input.type`` for whole numbers that are no token ids.
    """
    if "input_ids" in inputs:
        words = module.get_input_embeddings()(inputs["input_ids"])
        seen = inputs["attention_mask"]
        seen = torch.where((share < 1).unsqueeze(1), torch.maximum(seen[first], seen[second]), seen[first])
        return {"inputs_embeds": mix(words, share, first, second), "attention_mask": seen}
    for name, x in inputs.items():
        if not x.is_floating_point():
            raise InterfuseError("input.type", f"{name} holds whole numbers, which cannot be mixed")
    return {name: mix(x, share, first, second) for name, x in inputs.items()}
