"""FuseChat, first stage: pairwise fusion of language models into a copy of the pivot (Wan et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.distill.token_targets import Aligned, Targets, attach, targets_of
from interfuse.kit.losses import forward_kl
from interfuse.kit.sparse_losses import sparse_cross_entropy, sparse_divergence


@method()
@dataclass(frozen=True)
class FuseChat(Hooks):
    """``lambda * CE + (1 - lambda) * fusion``: the fusion target of a text is the source's or the pivot's, whichever fits it better.

    The student is the pivot. One source is the published pairwise fusion; with several at once the best of all is taken per text.
    """

    lm_weight: Annotated[
        float, Field(ge=0, le=1, description="lambda, the weight of the cross entropy with the text")
    ] = 0.9
    top_k: Annotated[int, Field(ge=1, description="tokens kept per position; a position takes 6 top_k + 12 bytes")] = 10
    rule: Annotated[
        Literal["min-ce", "source"],
        Field(
            description="per text the model of least cross entropy, the pivot included (MinCE), or always the best source"
        ),
    ] = "min-ce"
    vocabulary: Annotated[
        Literal["exact", "prefix", "edit", "counted", "counted-reference"],
        Field(
            description="where a source's token goes that the pivot has not: nowhere, to the first of its spelling, to the nearest, or to the partner it is aligned with most often (MS)"
        ),
    ] = "counted"
    align: Annotated[
        Aligned, Field(description="positions belong together by bytes, or by warping over edit distances as published")
    ] = "bytes"
    loss: Annotated[
        Literal["cross-entropy", "kl"],
        Field(description="cross entropy with the target (published), or KL, which is 0 where the target is met"),
    ] = "cross-entropy"

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 99), tokens=True)

    def check(self, call: Call) -> None:
        if call.params["teacher_cache"] == "off":
            raise InterfuseError("param.value", "fusechat works with stored predictions of its sources", where="teacher_cache",
                                 fix="Set teacher_cache: auto or disk.")  # fmt: skip

    def setup(self, run: Run) -> None:
        pivot = targets_of(run, -1, k=self.top_k)
        sources = [
            targets_of(run, n, k=self.top_k, mapping=self.vocabulary, way=self.align, gold=True)
            for n in range(len(run.teachers))
        ]
        run.held["targets"] = [pivot, *sources]
        winner = choose(pivot, sources, self.rule)
        run.held["winner"] = torch.from_numpy(winner)
        names = ["the pivot", *(m.name for m in run.teacher_models)]
        run.facts["fusion"] = {
            "texts won": {f"{n} {name}": int((winner == n).sum()) for n, name in enumerate(names)},
            "texts left out": int((winner < 0).sum()),
            "mean loss": {
                f"{n} {name}": _mean(t.loss) for n, (name, t) in enumerate(zip(names, [pivot, *sources], strict=True))
            },
        }
        run.facts["teachers"] = [t.report for t in sources]

    def batch(self, run: Run, batch: Batch) -> Batch:
        batch = attach(run, batch, run.held["targets"])
        winner = run.held["winner"][torch.from_numpy(batch.positions)].to(run.device)  # [B]
        said = batch.extra["said"]
        width = max(s["ids"].shape[-1] for s in said)
        chosen = {}
        for name, fill in (("ids", 0), ("logp", float("-inf"))):
            parts = [torch.nn.functional.pad(s[name], (0, width - s[name].shape[-1]), value=fill) for s in said]
            chosen[name] = torch.stack(parts)[winner.clamp_min(0), torch.arange(len(winner), device=run.device)]
        valid = torch.stack([s["valid"] for s in said])[
            winner.clamp_min(0), torch.arange(len(winner), device=run.device)
        ]
        gold = (chosen["logp"] > float("-inf")).any(-1)
        chosen["valid"] = (valid | gold) & (winner >= 0)[:, None] & (batch.labels != -100)
        batch.extra["said"] = [chosen]
        return batch

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        said = views.batch.extra["said"][0]
        if self.loss == "kl":
            fusion = sparse_divergence(forward_kl, views.student, said["ids"], said["logp"], torch.zeros_like(said["logp"][..., 0]),
                                       missing="renormalise", mask=said["valid"])  # fmt: skip
        else:
            fusion = sparse_cross_entropy(views.student, said["ids"], said["logp"], mask=said["valid"])
        return {"lm": hard_loss(views), "fusion": fusion}

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"lm": self.lm_weight, "fusion": 1 - self.lm_weight}


def choose(pivot: Targets, sources: list[Targets], rule: str) -> np.ndarray:
    """Whose predictions each text is fused towards: 0 the pivot, n the n-th source, -1 where no loss is a number; int64 [N].

    A source wins only where it is strictly better than the pivot; of equal sources the first.
    """
    losses = np.stack([pivot.loss, *(s.loss for s in sources)])
    losses = np.where(np.isfinite(losses), losses, np.inf)
    if rule == "source":
        losses[0] = np.inf
    winner = losses.argmin(axis=0)
    return np.where(np.isfinite(losses.min(axis=0)), winner, -1)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return round(float(known.mean()), 6) if len(known) else float("inf")
