"""Learning from preferences: a teacher's between the student's own answers, or those of a table (DPO, Rafailov et al. 2023; RRHF; PRO)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from importlib.util import find_spec
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

#: the columns of a table that brings its preferences
SIDES = ("chosen", "rejected")


@method()
@dataclass(frozen=True)
class DPO(Hooks):
    """The student writes several answers, the teacher ranks them by how likely it finds their words, the student learns the ranking.
    A table with ``chosen`` and ``rejected`` brings its preferences, and needs no teacher.

    ``dpo``: ``-log sigmoid(beta [log pi/ref (best) - log pi/ref (worst)])``, ref the student as it was (equation 7). ``rrhf``: the sum over
    pairs of ``max(0, p_worse - p_better)`` on length-normalised log-likelihoods, plus the best answer's cross entropy. ``pro``: the
    likelihood of the whole ranking.
    """

    objective: Annotated[Literal["dpo", "rrhf", "pro"], Field(description="how the ranking is learnt")] = "dpo"
    beta: Annotated[float, Field(gt=0, description="of dpo: how firmly the student is held to what it was")] = 0.1
    candidates: Annotated[int, Field(ge=2, le=16, description="answers the student writes per prompt")] = 2
    max_new_tokens: Annotated[int, Field(ge=1, description="longest answer")] = 128
    temperature: Annotated[float, Field(gt=0, description="of the student when it writes")] = 1.0
    loop: Annotated[
        Literal["own", "trl"],
        Field(description="who trains: this room's loop, or trl.DPOTrainer (objective dpo alone)"),
    ] = "own"

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(0, 1), tokens=True, answers=True)

    def check(self, call: Call) -> None:
        data: Table = call.inputs["data"]
        if data.kind not in ("prompt", "messages"):
            raise InterfuseError("input.missing", "the student needs prompts to answer", where=data.name,
                                 fix="Declare a column: columns: {prompt: NAME}, or messages.")  # fmt: skip
        sides = [role for role in SIDES if role in data.columns]
        if len(sides) == 1:
            raise InterfuseError("input.missing", f"a preference has two sides, the table has {sides[0]} alone", where=data.name,
                                 fix="Declare both: columns: {prompt: NAME, chosen: NAME, rejected: NAME}.")  # fmt: skip
        if sides and call.inputs["teacher"]:
            raise InterfuseError("param.value", "the table holds preferences already, so no teacher judges", where="teacher",
                                 fix="Leave the teacher out, or declare the prompts alone: columns: {prompt: NAME}.")  # fmt: skip
        if not sides and not call.inputs["teacher"]:
            raise InterfuseError("param.missing", "nobody prefers one answer to another", where="teacher",
                                 fix="Give a teacher that judges, or a table with the columns chosen and rejected (synthesize/feedback makes one).")  # fmt: skip
        if self.loop == "trl":
            if self.objective != "dpo":
                raise InterfuseError("param.value", f"trl's trainer is for dpo, not {self.objective}", where="loop", fix="Set loop: own.")  # fmt: skip
            if find_spec("trl") is None:
                raise InterfuseError("needs.package", "loop: trl needs the package trl", fix="pip install 'interfuse[train]'")  # fmt: skip

    def setup(self, run: Run) -> None:
        words, known, first = self._given(run) if SIDES[0] in run.data.columns else self._judged(run)
        each = 2 if SIDES[0] in run.data.columns else self.candidates
        if not known:
            raise InterfuseError("input.empty", "there is no prompt with answers that differ, so nothing is preferred", where=run.data.name,
                                 fix="Raise temperature or max_new_tokens, or give more prompts.")  # fmt: skip
        run.held |= {"words": words, "each": each, "known": {row: number for number, row in enumerate(known)}}
        run.facts["preferences"] = {"prompts": len(known), "left out": len(run.data) - len(known), "first": first[:80]}
        if self.loop == "trl":
            return
        rows = tokenise(words, run.encoder.tokenizer, run.settings.max_length, "the answers")
        said_by_student = token_said(
            run.student_model, run.student, rows, run.ctx, k=1, folder=cache_folder(run), device=run.device
        )
        cut = rows.offsets
        run.held["rows"] = rows
        run.held["reference"] = torch.tensor([float(said_by_student.gold[a:b].double().sum()) for a, b in itertools.pairwise(cut)])  # fmt: skip

    def _asked(self, run: Run) -> list[str]:
        """Every prompt as the text that answers follow."""
        return [p if isinstance(p, str) else str(run.encoder.tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True))
                for p in prompts_of(run.data)]  # fmt: skip

    def _given(self, run: Run) -> tuple[list[Words], list[int], str]:
        """The preferences of the table; pairs of equal or empty texts are left out."""
        words, known, asked = [], [], self._asked(run)
        for row, (before, better, worse) in enumerate(zip(asked, *map(run.data.values, SIDES), strict=True)):
            if str(better or "").strip() and str(worse or "").strip() and str(better).strip() != str(worse).strip():
                words += [Words(before + t, ((len(before), len(before + t)),), True) for t in (better, worse)]
                known.append(row)
        return words, known, asked[known[0]] if known else ""

    def _judged(self, run: Run) -> tuple[list[Words], list[int], str]:
        """The student's own answers, ranked by the teacher."""
        prompts, asked = prompts_of(run.data), self._asked(run)
        student = cached(LocalLM(run.student_model, run.ctx), run.ctx)
        written = student.generate(prompts, max_tokens=self.max_new_tokens, temperature=self.temperature, n=self.candidates,
                                   seed=run.ctx.seed_for("answers"), ctx=run.ctx)  # fmt: skip
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
        return words, known, words_of(prompts[known[0]]) if known else ""

    def fit(self, run: Run) -> list[dict[str, Any]] | None:
        if self.loop == "own":
            return None
        from interfuse.distill.by_trl import train_preferences

        pairs = [(w.text[: w.spans[0][0]], w.text[w.spans[0][0] :]) for w in run.held["words"]]
        each = run.held["each"]
        rows = [(pairs[i][0], pairs[i][1], pairs[i + each - 1][1]) for i in range(0, len(pairs), each)]
        return train_preferences(run, rows, beta=self.beta)

    def select(self, run: Run, order: Any) -> Any:
        return order[[int(row) in run.held["known"] for row in order]]

    def batch(self, run: Run, batch: Batch) -> Batch:
        each = run.held["each"]
        places = [run.held["known"][int(row)] * each + n for row in batch.positions for n in range(each)]
        made: dict[str, torch.Tensor] = {k: v.to(run.device) for k, v in run.held["rows"].batch(places).items()}
        extra = {
            "words": targets(run.student_model, None, made),
            "reference": run.held["reference"][np.array(places)].to(run.device),
            "each": each,
        }
        return Batch(batch.positions, made, [], None, extra=extra)

    def views(self, run: Run, batch: Batch) -> Views:
        return Views(batch, forward(run.student, run.student_model, batch.student), [])

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        labels, n = views.batch.extra["words"], views.batch.extra.get("each", self.candidates)
        each = -token_cross_entropy(views.student, labels)  # [B n, L-1]
        total = each.sum(-1).view(-1, n)
        mean = total / (labels != IGNORE).sum(-1).view(-1, n)
        if self.objective == "dpo":
            ratio = total - views.batch.extra["reference"].to(total.dtype).view(-1, n)
            return {"dpo": -F.logsigmoid(self.beta * (ratio[:, 0] - ratio[:, -1]))}
        if self.objective == "pro":
            ranked = [mean[:, k] - mean[:, k:].logsumexp(-1) for k in range(n - 1)]
            return {"pro": -torch.stack(ranked).sum(0)}
        pairs = [(mean[:, j] - mean[:, i]).clamp_min(0) for i in range(n) for j in range(i + 1, n)]
        return {"rrhf": torch.stack(pairs).sum(0), "best": -mean[:, 0]}
