"""InfiGFusion: besides the words, match how the words of a vocabulary fire together (Wang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views, hard_loss
from interfuse.distill.token_targets import attach, in_own_tokens, said_by
from interfuse.kit.encode import IGNORE
from interfuse.kit.graph_logits import Kept, Mismatch, Nodes, Scale, gld_loss, standardised_uld
from interfuse.kit.sparse_losses import sparse_uld


@method()
@dataclass(frozen=True)
class InfiGFusion(Hooks):
    """``CE + uld * ULD + gld * GLD``, ULD and GLD averaged over the sources. No common vocabulary is needed.

    ULD compares sorted probabilities token by token; GLD compares, over the whole batch, the sorted mean edge weights of the graph
    of tokens that are likely together. All sources at once is the paper's ``unified``; one source per training and a merge
    of the results is ``pairwise`` (a recipe).
    """

    uld: Annotated[float, Field(ge=0, description="weight of the token-level term")] = 0.5
    gld: Annotated[
        float | Literal["auto"],
        Field(
            description="weight of the graph term; auto makes its pull on the logits gld_share of the cross entropy's at the first step"
        ),
    ] = "auto"
    gld_share: Annotated[
        float, Field(gt=0, le=1, description="of the norm of the cross entropy's gradient, for gld: auto")
    ] = 0.1
    top_k: Annotated[int, Field(ge=2, description="logits kept per position")] = 10
    scale: Annotated[
        Scale, Field(description="kept logits minus their minimum over their deviation, or as they are")
    ] = "standardise"
    nodes: Annotated[
        Nodes,
        Field(description="features are averaged over tokens that were kept, or over the whole vocabulary as written"),
    ] = "active"
    mismatch: Annotated[
        Mismatch,
        Field(description="graphs of different size: exact one-dimensional transport, or zeros for the missing nodes"),
    ] = "ot"
    power: Annotated[
        float, Field(ge=1, le=2, description="of the differences: 2 as in the distance that is approximated")
    ] = 2.0
    uld_standardise: Annotated[bool, Field(description="standardise kept logits before ULD, as InfiFusion does")] = True
    align: Annotated[
        Literal["order", "bytes"],
        Field(
            description="for ULD: the n-th learnt token belongs to the source's n-th, or to the one that ends where it ends"
        ),
    ] = "order"
    graph_memory: Annotated[
        int, Field(ge=1, description="most memory of the graphs, in megabytes; more is refused")
    ] = 256

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 99), tokens=True)

    def setup(self, run: Run) -> None:
        run.held["said"] = [said_by(run, n, self.top_k) for n in range(len(run.teachers))]
        run.held["targets"] = [
            in_own_tokens(run, n, k=self.top_k, way=self.align, said=run.held["said"][n])
            for n in range(len(run.teachers))
        ]
        run.facts["teachers"] = [t.report for t in run.held["targets"]]

    def batch(self, run: Run, batch: Batch) -> Batch:
        batch = attach(run, batch, run.held["targets"])
        graphs = []
        for said, encoder, model in zip(run.held["said"], run.teacher_encoders, run.teacher_models, strict=True):
            cut = encoder.token_rows.offsets
            places = torch.cat([torch.arange(cut[r], cut[r + 1]) for r in batch.positions.tolist()])
            graphs.append({
                "ids": said.ids[places].long().to(run.device),
                "logits": (said.logp[places].float() + said.lse[places].unsqueeze(-1)).to(run.device),
                "size": int(model.labels or len(encoder.token_rows.lex)),
            })  # fmt: skip
        batch.extra["graphs"] = graphs
        return batch

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        labels, extra = views.labels, views.batch.extra
        assert labels is not None, "a causal language model has targets"
        counts = labels != IGNORE
        sources = len(extra["said"])
        terms = {"ce": hard_loss(views)}
        kept = self._kept(views.student)
        if self.uld:
            terms["uld"] = torch.stack([self._uld(views, said, kept.values) for said in extra["said"]]).sum(0) / sources
        if self.gld:
            terms["gld"] = self._gld(views, kept).expand(labels.shape).masked_fill(~counts, 0.0)
            if self.gld == "auto" and "gld_scale" not in run.tensors:
                run.tensors["gld_scale"] = self._first_scale(views, int(counts.sum()))
        return terms

    def _uld(self, views: Views, said: dict[str, torch.Tensor], mine: torch.Tensor) -> torch.Tensor:
        if not self.uld_standardise:
            return sparse_uld(views.student, said["logp"], said["tail"], mask=said["valid"])
        valid = said["valid"]
        out = mine.new_zeros(valid.shape)
        out[valid] = standardised_uld(mine[valid], said["logp"][valid]).to(out.dtype)
        return out

    def _kept(self, logits: torch.Tensor) -> Kept:
        """The largest logits of every position, [B, L, k]."""
        top = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1)
        return Kept(top.indices, top.values)

    def _gld(self, views: Views, kept: Kept) -> torch.Tensor:
        """How far the student's graph is from those of the sources, on average."""
        assert views.labels is not None
        size, counts = views.student.shape[-1], views.labels != IGNORE
        ours = Kept(kept.ids[counts], kept.values[counts])
        each = []
        for graph in views.batch.extra["graphs"]:
            theirs = Kept(graph["ids"], graph["logits"])
            each.append(gld_loss(ours, theirs, size, graph["size"], scale=self.scale, nodes=self.nodes, power=self.power,
                                 mismatch=self.mismatch, budget=self.graph_memory * 2**20))  # fmt: skip
        return torch.stack(each).mean()

    def _first_scale(self, views: Views, count: int) -> torch.Tensor:
        """The weight at which the graph term pulls at the logits ``gld_share`` as much as the cross entropy; 0 where the graphs agree.

        Values do not compare: at a tenth of the cross entropy's value the graph term pulls two to four times as much.
        """
        logits = views.student.detach().requires_grad_()
        with torch.enable_grad():
            apart = replace(views, student=logits)
            ce, gld = (
                float(torch.autograd.grad(x, logits)[0].norm())
                for x in (hard_loss(apart).sum() / count, self._gld(apart, self._kept(logits)))
            )
        return torch.tensor(self.gld_share * ce / gld if gld > 1e-12 else 0.0, dtype=torch.float64)

    def on_epoch_end(self, run: Run) -> None:
        if "gld_scale" in run.tensors:
            run.facts["weight of the graph term"] = round(float(run.tensors["gld_scale"]), 9)

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        gld = float(run.tensors["gld_scale"]) if self.gld == "auto" and "gld_scale" in run.tensors else self.gld
        return {"uld": self.uld, "gld": gld if not isinstance(gld, str) else 1.0}
