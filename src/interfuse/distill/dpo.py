"""Learning from a teacher's preferences between the student's own answers (DPO, Rafailov et al. 2023; RRHF; PRO)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.data.lm import cached, words_of
from interfuse.data.local_lm import LocalLM
from interfuse.data.tables import Table
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views
from interfuse.distill.seqkd import prompts_of
from interfuse.distill.token_targets import cache_folder
from interfuse.kit.encode import IGNORE, forward, targets
from interfuse.kit.sparse_losses import token_cross_entropy
from interfuse.kit.token_cache import token_said
from interfuse.kit.token_rows import Words, tokenise


@method()
@dataclass(frozen=True)
class DPO(Hooks):
    """The student writes several answers, the teacher ranks them by how likely it finds their words, the student learns the ranking.

    ``dpo``: ``-log sigmoid(beta [log pi/ref (best) - log pi/ref (worst)])``, ref the student as it was (equation 7). ``rrhf``: the sum over
    pairs of ``max(0, p_worse - p_better)`` on length-normalised log-likelihoods, plus the best answer's cross entropy. ``pro``: the
    likelihood of the whole ranking.
    """

    objective: Annotated[Literal["dpo", "rrhf", "pro"], Field(description="how the ranking is learnt")] = "dpo"
    beta: Annotated[float, Field(gt=0, description="of dpo: how firmly the student is held to what it was")] = 0.1
    candidates: Annotated[int, Field(ge=2, le=16, description="answers the student writes per prompt")] = 2
    max_new_tokens: Annotated[int, Field(ge=1, description="longest answer")] = 128
    temperature: Annotated[float, Field(gt=0, description="of the student when it writes")] = 1.0

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 1), tokens=True)

    def check(self, call: Call) -> None:
        data: Table = call.inputs["data"]
        if data.kind not in ("prompt", "messages"):
            raise InterfuseError("input.missing", "the student needs prompts to answer", where=data.name,
                                 fix="Declare a column: columns: {prompt: NAME}, or messages.")  # fmt: skip

    def setup(self, run: Run) -> None:
        prompts = prompts_of(run.data)
        student = cached(LocalLM(run.student_model, run.ctx), run.ctx)
        written = student.generate(prompts, max_tokens=self.max_new_tokens, temperature=self.temperature, n=self.candidates,
                                   seed=run.ctx.seed_for("answers"), ctx=run.ctx)  # fmt: skip
        asked = [p if isinstance(p, str) else run.encoder.tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
                 for p in prompts]  # fmt: skip
        teacher = LocalLM(run.teacher_models[0], run.ctx)
        run.teachers = []
        words, known = [], []
        scored = teacher.score(
            [(a, r.text) for a, replies in zip(asked, written, strict=True) for r in replies if r.text.strip()],
            ctx=run.ctx,
        )
        score = iter(scored)
        for row, (before, replies) in enumerate(zip(asked, written, strict=True)):
            found: dict[str, float] = {}
            for reply in replies:
                if reply.text.strip():
                    said = next(score)
                    found.setdefault(reply.text, said.logprob / max(said.tokens, 1))
            if len(found) == self.candidates:  # equal or empty answers teach no preference
                best_first = sorted(found, key=lambda text: -found[text])
                words += [Words(before + t, ((len(before), len(before + t)),), True) for t in best_first]
                known.append(row)
        if not known:
            raise InterfuseError("input.empty", "there is no prompt with answers that differ, so nothing is preferred", where=run.data.name,
                                 fix="Raise temperature or max_new_tokens, or give more prompts.")  # fmt: skip
        rows = tokenise(words, run.encoder.tokenizer, run.settings.max_length, "the student's answers")
        said_by_student = token_said(
            run.student_model, run.student, rows, run.ctx, k=1, folder=cache_folder(run), device=run.device
        )
        run.held["rows"], run.held["known"] = rows, {row: number for number, row in enumerate(known)}
        cut = rows.offsets
        run.held["reference"] = torch.tensor([float(said_by_student.gold[a:b].double().sum()) for a, b in itertools.pairwise(cut)])  # fmt: skip
        run.facts["preferences"] = {
            "prompts": len(known),
            "left out": len(prompts) - len(known),
            "first": words_of(prompts[known[0]])[:80],
        }

    def select(self, run: Run, order: Any) -> Any:
        return order[[int(row) in run.held["known"] for row in order]]

    def batch(self, run: Run, batch: Batch) -> Batch:
        places = [
            run.held["known"][int(row)] * self.candidates + n for row in batch.positions for n in range(self.candidates)
        ]
        made: dict[str, torch.Tensor] = {k: v.to(run.device) for k, v in run.held["rows"].batch(places).items()}
        extra = {
            "words": targets(run.student_model, None, made),
            "reference": run.held["reference"][np.array(places)].to(run.device),
        }
        return Batch(batch.positions, made, [], None, extra=extra)

    def views(self, run: Run, batch: Batch) -> Views:
        return Views(batch, forward(run.student, run.student_model, batch.student), [])

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        labels = views.batch.extra["words"]
        each = -token_cross_entropy(views.student, labels)  # [B n, L-1]
        total = each.sum(-1).view(-1, self.candidates)
        mean = total / (labels != IGNORE).sum(-1).view(-1, self.candidates)
        if self.objective == "dpo":
            ratio = total - views.batch.extra["reference"].to(total.dtype).view(-1, self.candidates)
            return {"dpo": -F.logsigmoid(self.beta * (ratio[:, 0] - ratio[:, -1]))}
        if self.objective == "pro":
            ranked = [mean[:, k] - mean[:, k:].logsumexp(-1) for k in range(self.candidates - 1)]
            return {"pro": -torch.stack(ranked).sum(0)}
        pairs = [
            (mean[:, j] - mean[:, i]).clamp_min(0)
            for i in range(self.candidates)
            for j in range(i + 1, self.candidates)
        ]
        return {"rrhf": torch.stack(pairs).sum(0), "best": -mean[:, 0]}
