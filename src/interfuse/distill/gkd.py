"""On-policy distillation: the student writes, the teacher says how each word should have been (GKD, Agarwal et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views
from interfuse.distill.token_targets import refuse_other_tokens
from interfuse.kit.chunked_losses import chunked
from interfuse.kit.encode import IGNORE, targets
from interfuse.kit.losses import js
from interfuse.kit.token_rows import pad_rows


@method()
@dataclass(frozen=True)
class GKD(Hooks):
    """``JSD(beta)(teacher || student)`` per token, on the student's own answers with probability ``on_policy``, else on the given ones.

    A batch is the student's own or the table's as a whole (algorithm 1). Answers are sampled from the student as it is at that
    step; no gradient goes through the sampling.
    """

    on_policy: Annotated[
        float, Field(ge=0, le=1, description="probability that a batch is the student's own answers")
    ] = 0.5
    beta: Annotated[float, Field(ge=0, le=1, description="of the divergence: 0 is forward, 1 reverse KL")] = 0.5
    tau: Annotated[float, Field(gt=0, description="temperature of both sides in the divergence")] = 1.0
    temperature: Annotated[float, Field(gt=0, description="of the student when it writes")] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1, description="longest answer the student writes")] = 128
    prompt_share: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="of a plain text without prompt: the share of its tokens that the student goes on from",
        ),
    ] = 0.25

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 1), live=True, tokens=True)

    def check(self, call: Call) -> None:
        refuse_other_tokens(
            call, "Use fusechat, uld or infigfusion, which put another vocabulary's words into the student's."
        )

    def batch(self, run: Run, batch: Batch) -> Batch:
        row = int(batch.positions[0])
        if run.ctx.rng(f"policy/{run.step}/{row}").random() >= self.on_policy:
            return batch
        rows = run.encoder.token_rows
        starts = []
        for position in batch.positions.tolist():
            ids, learnt = rows.readings[position].ids, rows.learnt[position]
            first = int(learnt.argmax()) if not learnt[1:].all() else max(1, int(self.prompt_share * len(ids)))
            starts.append(ids[:first])
        written = self._write(run, starts, rows.pad, rows.lex.roles.get("eos"))
        ids = [np.concatenate([s, w]) for s, w in zip(starts, written, strict=True)]
        learnt = [np.arange(len(i)) >= len(s) for i, s in zip(ids, starts, strict=True)]
        made = {k: v.to(run.device) for k, v in pad_rows(ids, learnt, rows.pad).items()}
        labels = targets(run.student_model, None, made)
        assert labels is not None, "a causal language model has targets"
        return Batch(batch.positions, made, [dict(made)], labels, extra={"on policy": True})

    def _write(self, run: Run, starts: list[np.ndarray], pad: int, eos: int | None) -> list[np.ndarray]:
        """The student's answers, up to and with the end token."""
        student: Any = run.bare
        width = max(len(s) for s in starts)
        ids, mask = np.full((len(starts), width), pad, dtype=np.int64), np.zeros((len(starts), width), dtype=np.int64)
        for line, start in enumerate(starts):
            ids[line, width - len(start) :], mask[line, width - len(start) :] = start, 1
        room = max(1, min(self.max_new_tokens, run.settings.max_length - width))
        training = student.training
        student.eval()
        with torch.no_grad():
            out = student.generate(
                input_ids=torch.from_numpy(ids).to(run.device), attention_mask=torch.from_numpy(mask).to(run.device), do_sample=True,
                temperature=self.temperature, top_k=0, top_p=1.0, max_new_tokens=room, pad_token_id=pad, eos_token_id=eos)  # fmt: skip
        student.train(training)
        written = []
        for line in out[:, width:].cpu().numpy():
            ends: list[int] = np.flatnonzero(line == eos).tolist() if eos is not None else []
            written.append(line[: ends[0] + 1] if len(ends) else line)
        return written

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        assert views.labels is not None, "a causal language model has targets"

        def divergence(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return js(z, t, beta=self.beta, tau=self.tau)

        return {"kd": chunked(divergence, views.student, views.teachers[0], mask=views.labels != IGNORE)}
