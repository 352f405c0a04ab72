"""Distillation of a language model token by token, under any of the usual divergences."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.distill.token_targets import Aligned, Mapping, attach, refuse_other_tokens, targets_of
from interfuse.kit import losses
from interfuse.kit.chunked_losses import Divergence, chunked
from interfuse.kit.sparse_losses import Missing, sparse_divergence

Named = Literal["forward-kl", "reverse-kl", "js", "skewed-forward-kl", "skewed-reverse-kl", "alpha-beta", "tvd"]


def divergence_of(
    name: Named, *, beta: float = 0.5, skew: float = 0.1, alpha: float = 0.2, power: float = 0.7
) -> Divergence:
    """The divergence of a name as a function of student and teacher logits, ``[N, V], [N, V] -> [N]``."""
    table: dict[str, Divergence] = {
        "forward-kl": losses.forward_kl,
        "reverse-kl": losses.reverse_kl,
        "js": functools.partial(losses.js, beta=beta),
        "skewed-forward-kl": functools.partial(losses.skew_forward_kl, alpha=skew),
        "skewed-reverse-kl": functools.partial(losses.skew_reverse_kl, alpha=skew),
        "alpha-beta": functools.partial(losses.alpha_beta, alpha=alpha, beta=power),
        "tvd": losses.total_variation,
    }
    return table[name]


@method()
@dataclass(frozen=True)
class LMKD(Hooks):
    """``alpha * D(teacher, student) + (1 - alpha) * CE`` per learnt token, D a divergence by name.

    The teacher is asked once for its ``top_k`` tokens at every learnt position (``teacher_cache: off``: it runs on every batch,
    and its whole distribution counts). A teacher of another vocabulary is put into the student's tokens where ``vocabulary`` says how.
    """

    divergence: Annotated[
        Named,
        Field(
            description="forward KL, reverse KL, Jensen-Shannon (beta), the skewed KLs (skew), alpha-beta, total variation"
        ),
    ] = "forward-kl"
    alpha: Annotated[float, Field(ge=0, le=1, description="weight of the teacher; the labels have the rest")] = 0.9
    beta: Annotated[float, Field(ge=0, le=1, description="of js: 0 is forward, 1 reverse KL")] = 0.5
    skew: Annotated[
        float, Field(ge=0, le=1, description="of the skewed KLs: share of the other side in the mixture")
    ] = 0.1
    ab_alpha: Annotated[float, Field(gt=0, le=4, description="of alpha-beta: power of the teacher's probabilities")] = (
        0.2
    )
    ab_beta: Annotated[float, Field(gt=0, le=4, description="of alpha-beta: power of the student's probabilities")] = (
        0.7
    )
    tau: Annotated[float, Field(gt=0, description="temperature of both sides")] = 1.0
    top_k: Annotated[int, Field(ge=1, description="tokens kept per position; a position takes 6 top_k + 12 bytes")] = 32
    missing: Annotated[
        Literal["tail", "renormalise"],
        Field(description="what lies beyond the kept tokens: one more class, or left out on both sides"),
    ] = "tail"
    vocabulary: Annotated[
        Mapping,
        Field(
            description="how a teacher's tokens become the student's: same refuses another tokenizer; the rest of the words name maps"
        ),
    ] = "same"
    align: Annotated[
        Aligned, Field(description="positions of two tokenizers belong together by bytes or by edit distance")
    ] = "bytes"

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 1), tokens=True)

    def check(self, call: Call) -> None:
        if self.vocabulary == "same" or call.params["teacher_cache"] == "off":
            refuse_other_tokens(
                call, "Set vocabulary: prefix with a cached teacher, or use uld, fusechat or infigfusion."
            )

    def setup(self, run: Run) -> None:
        if run.settings.teacher_cache == "off":
            run.stored = None  # the teacher runs on every batch
            return
        run.held["targets"] = [targets_of(run, 0, k=self.top_k, mapping=self.vocabulary, way=self.align)]
        run.facts["teachers"] = [t.report for t in run.held["targets"]]

    def batch(self, run: Run, batch: Batch) -> Batch:
        return attach(run, batch, run.held["targets"]) if "targets" in run.held else batch

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        divergence = divergence_of(
            self.divergence, beta=self.beta, skew=self.skew, alpha=self.ab_alpha, power=self.ab_beta
        )
        terms = {"kd": self._distance(views, divergence)}
        return terms | ({"ce": hard_loss(views)} if self.alpha < 1 else {})

    def _distance(self, views: Views, divergence: Divergence) -> torch.Tensor:
        if views.teachers:
            assert views.labels is not None, "a causal language model has targets"
            whole: Divergence = divergence if self.tau == 1.0 else functools.partial(divergence, tau=self.tau)  # type: ignore[call-arg]
            return chunked(whole, views.student, views.teachers[0], mask=views.labels != -100)
        said = views.batch.extra["said"][0]
        missing: Missing = self.missing
        return sparse_divergence(divergence, views.student, said["ids"], said["logp"], said["tail"], missing=missing, tau=self.tau,
                                 mask=said["valid"])  # fmt: skip

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"kd": self.alpha, "ce": 1 - self.alpha}
