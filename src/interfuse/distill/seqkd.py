"""Sequence-level distillation: the teacher answers every prompt, the student learns the answers (Kim and Rush 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call, Source
from interfuse.data.lm import LM, cached, open_lm
from interfuse.data.local_lm import LocalLM
from interfuse.data.tables import Table
from interfuse.distill.hooks import Batch, Hooks, Needs, Run
from interfuse.kit.encode import targets
from interfuse.kit.token_rows import Words, tokenise


@method()
@dataclass(frozen=True)
class SeqKD(Hooks):
    """Cross entropy with the teacher's own answers (section 3.2): texts travel, so teacher and student may read any tokens.

    Answers are asked once per prompt and kept by content in the cache folder; the table's responses are not looked at. Empty
    answers are left out and counted.
    """

    max_new_tokens: Annotated[int, Field(ge=1, description="longest answer of the teacher")] = 256
    temperature: Annotated[
        float, Field(ge=0, description="of the teacher when it writes; 0 is its most likely word each time")
    ] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, description="share of the probability that is sampled from")] = 1.0
    served: Annotated[
        dict[str, str] | str | None,
        Field(
            description="a teacher elsewhere instead of a model: {endpoint: URL, model: NAME, key_env: VARIABLE}, or replies:FILE.jsonl"
        ),
    ] = None

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 1) if self.served is None else (0, 0), tokens=True, answers=True)

    def calls(self, call: Call) -> int:
        return 0 if self.served is None or isinstance(self.served, str) else len(call.inputs["data"])

    def check(self, call: Call) -> None:
        data: Table = call.inputs["data"]
        if data.kind not in ("prompt", "messages"):
            raise InterfuseError("input.missing", "the teacher needs prompts to answer", where=data.name,
                                 fix="Declare a column: columns: {prompt: NAME}, or messages.")  # fmt: skip

    def setup(self, run: Run) -> None:
        run.teachers = []
        prompts = prompts_of(run.data)
        lm = cached(self._teacher(run), run.ctx)
        replies = lm.generate(prompts, max_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p,
                              seed=run.ctx.seed_for("answers"), ctx=run.ctx)  # fmt: skip
        words, known = [], []
        for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            text = reply[0].text
            if not text.strip():
                continue
            before = prompt if isinstance(prompt, str) else self._rendered(run, prompt)
            words.append(Words(before + text, ((len(before), len(before) + len(text)),), True))
            known.append(row)
        if not words:
            raise InterfuseError("input.empty", "the teacher answers nothing at all", where=lm.name,
                                 fix="Look at its answers; raise max_new_tokens, or give prompts in the form it knows.")  # fmt: skip
        run.held["rows"] = tokenise(words, run.encoder.tokenizer, run.settings.max_length, f"{lm.name}'s answers")
        run.held["known"] = {row: number for number, row in enumerate(known)}
        run.facts["answers"] = {"kept": len(words), "empty": len(prompts) - len(words),
                                "mean tokens": round(sum(len(m.nonzero()[0]) for m in run.held["rows"].learnt) / len(words), 1)}  # fmt: skip

    def _teacher(self, run: Run) -> LM:
        return LocalLM(run.teacher_models[0], run.ctx) if self.served is None else open_lm(Source(self.served), run.ctx)

    def _rendered(self, run: Run, messages: Any) -> str:
        return str(run.encoder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def select(self, run: Run, order: Any) -> Any:
        return order[[int(row) in run.held["known"] for row in order]]

    def batch(self, run: Run, batch: Batch) -> Batch:
        places = [run.held["known"][int(row)] for row in batch.positions]
        made: dict[str, torch.Tensor] = {k: v.to(run.device) for k, v in run.held["rows"].batch(places).items()}
        return Batch(batch.positions, made, [], targets(run.student_model, None, made))


def prompts_of(data: Table) -> list[Any]:
    """What is asked: the prompts of a table, or its conversations up to the last answer."""
    if data.kind == "prompt":
        return list(data.values("prompt"))
    out = []
    for row, messages in enumerate(data.values("messages")):
        asked = [dict(m) for m in messages]
        while asked and asked[-1].get("role") == "assistant":
            asked.pop()
        if not asked:
            raise InterfuseError(
                "input.empty", "the conversation asks nothing", where=f"{data.name}: row {int(data.rows[row])}"
            )
        out.append(asked)
    return out
