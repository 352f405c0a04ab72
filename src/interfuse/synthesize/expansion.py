"""Expansion: from a few tasks a model writes many of their kind, unlike each other (Self-Instruct, Wang et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.data.lm import LM, Prompt
from interfuse.kit.eliciting import refuses, request, rouge_above, trimmed, unusable
from interfuse.kit.near_duplicates import plain_key
from interfuse.synthesize.examples import UNSEEN, Asked, examples_of, put, refuse_kinds, size_of
from interfuse.synthesize.room import Work

FIELDS = ("instruction",)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"tasks": {"type": "array", "items": {
        "type": "object", "properties": {"instruction": {"type": "string"}}, "required": ["instruction"]}}},
    "required": ["tasks"],
}  # fmt: skip
TASK = (
    "You write new tasks for a collection. Every task stands for itself, needs no picture, file or link, and differs from those shown in "
    'subject and in what is to be done. Answer with JSON only: {"tasks": [{"instruction": "..."}, ...]}'
)


def _plan(call: Call) -> list[tuple[str, int, int]]:
    p = call.params
    rows, tokens = size_of(call)
    shown = p["shots"] * (tokens // max(rows, 1) + 1) + len(TASK) // 4
    asked = p["requests"] * p["tries"]
    plan = [("lm", asked, asked * (shown + p["max_tokens"]))]
    return plan + ([("lm", p["wanted"], p["wanted"] * (UNSEEN + p["max_tokens"]))] if p["answers"] else [])


def _valid(call: Call) -> None:
    refuse_kinds(call, "prompt")
    if call.params["shots_made"] >= call.params["shots"]:
        raise InterfuseError("param.value", "a request shows at least one task of the table", where="shots_made",
                             fix="Keep shots_made below shots.")  # fmt: skip


def _columns(params: Any, inputs: Any) -> dict[str, str]:
    return {"prompt": "prompt", **({"response": "response"} if params["answers"] else {})}


@method(needs=("data",), columns=_columns, plan=_plan, rows=lambda call: call.params["wanted"], valid=_valid)
def expansion(
    work: Work,
    *,
    wanted: Annotated[int, Field(ge=1, description="new tasks to be made; fewer come out when requests are spent")] = 100,
    requests: Annotated[int, Field(ge=1, description="requests at most")] = 50,
    per_request: Annotated[int, Field(ge=1, le=50, description="tasks asked for in one request")] = 5,
    at_once: Annotated[int, Field(ge=1, description="requests of one round; the next round may show what this one made")] = 8,
    shots: Annotated[int, Field(ge=1, le=50, description="tasks shown in a request")] = 8,
    shots_made: Annotated[int, Field(ge=0, description="of these, tasks that were made before")] = 2,
    similar: Annotated[
        float, Field(gt=0, le=1, description="ROUGE-L with any task from which a new one is too similar")
    ] = 0.7,
    shortest: Annotated[int, Field(ge=1, description="words of a task at least")] = 3,
    longest: Annotated[int, Field(ge=1, description="words of a task at most")] = 150,
    without: Annotated[list[str], Field(description="words that a task must not hold")] = ["image", "picture", "graph", "file", "video", "link"],  # noqa: B006
    answers: Annotated[bool, Field(description="answer every new task as well")] = True,
    temperature: Annotated[float, Field(ge=0, description="when tasks are written; answers are the most likely ones")] = 0.8,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """``x, y ~ p_T(x, y | I, c)`` in rounds: sample tasks of the pool, ask for more, keep what is well formed and new, until ``wanted``.

    Raises:
        InterfuseError: what asking raises.
    """
    seeds = [e.words for e in examples_of(work)]
    banned = re.compile(r"\b(?:" + "|".join(map(re.escape, without)) + r")s?\b", re.IGNORECASE) if without else None
    made: list[str] = []
    spent, number = 0, 0
    shown: dict[str, int] = {}
    while len(made) < wanted and spent < requests:
        rng = work.ctx.rng(f"round/{number}")
        prompts: list[Prompt] = []
        for _ in range(min(at_once, requests - spent)):
            spent += 1
            prompt = _request(work.lm, seeds, made, rng, shots, shots_made, per_request)
            key = str(prompt)
            if shown.setdefault(key, number) == number and key in map(str, prompts):
                work.account.note("requests that were the same")
                continue
            prompts.append(prompt)
        replies = work.ask_records(work.lm, prompts, f"tasks/{number}", FIELDS, temperature=temperature, schema=SCHEMA)
        for row in (row for rows in replies for row in rows):
            text = str(row["instruction"]).strip()
            reason = _fault(text, [*seeds, *made], similar, shortest, longest, banned)
            if reason:
                work.drop(reason, prompt=text)
            elif len(made) == wanted:
                work.drop("beyond the wanted count", prompt=text)
            else:
                made.append(text)
        number += 1
    work.account.note("rounds", number)
    if not answers:
        yield from ({"prompt": text} for text in made)
        return
    tasks = [Asked(text) for text in made]
    told = work.ask(work.lm, [put(work.lm, t, "") for t in tasks], "answers", temperature=0.0)
    for task, (reply, *_) in zip(tasks, told, strict=True):
        reason = unusable(reply, cut=work.settings.cut)
        if not reason and plain_key(reply.text) == plain_key(task.words):
            reason = "the answer repeats the task"
        if reason:
            work.drop(reason, prompt=task.prompt, reply=reply.text)
        else:
            yield {"prompt": task.prompt, "response": trimmed(work.lm, reply.text)}


def _request(
    lm: LM, seeds: list[str], made: list[str], rng: np.random.Generator, shots: int, shots_made: int, count: int
) -> Prompt:
    old = min(shots_made, len(made))
    first = [seeds[i] for i in rng.choice(len(seeds), min(shots - old, len(seeds)), replace=False)]
    shown = first + [made[i] for i in rng.choice(len(made), old, replace=False)] if old else first
    lines = "\n".join(f"{i}. {text}" for i, text in enumerate(shown, 1))
    return request(lm, TASK, f"Tasks of the collection:\n{lines}\n\nWrite {count} more.", answer="JSON:")


def _fault(
    text: str, pool: list[str], similar: float, shortest: int, longest: int, banned: re.Pattern[str] | None
) -> str:
    words = len(text.split())
    if words < shortest:
        return "too short"
    if words > longest:
        return "too long"
    if banned is not None and banned.search(text):
        return "asks for what a text cannot give"
    if refuses(text):
        return "a refusal"
    return "too similar to another" if rouge_above(text, pool, similar) else ""
