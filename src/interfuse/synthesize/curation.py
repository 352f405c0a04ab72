"""Curation: questions from topics, skills or documents, every cell with its quota (the third kind of elicitation of Xu et al. 2024)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.data.lm import LM, Prompt
from interfuse.kit.asking import p_yes
from interfuse.kit.document_prompts import about_document
from interfuse.kit.eliciting import flat, reads_turns, refuses, request, rouge_above, trimmed, unusable
from interfuse.synthesize.examples import UNSEEN, Asked, put, refuse_kinds, size_of
from interfuse.synthesize.room import Work

FIELDS = ("question",)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"questions": {"type": "array", "items": {
        "type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]}}},
    "required": ["questions"],
}  # fmt: skip
TASK = (
    "You write questions that train a model. Every question can be answered in words, stands for itself, and is unlike the others. "
    'Answer with JSON only: {"questions": [{"question": "..."}, ...]}'
)


def _cells(axes: Mapping[str, list[str]]) -> list[dict[str, str]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _count(call: Call) -> int:
    return math.prod(len(v) for v in call.params["axes"].values()) * (len(call.inputs["data"]) if call.inputs.get("data") else 1)  # fmt: skip


def _plan(call: Call) -> list[tuple[str, int, int]]:
    p = call.params
    cells = _count(call)
    rows, tokens = size_of(call) if call.inputs.get("data") is not None else (1, 0)
    asked, kept = cells * p["tries"], cells * p["per_cell"]
    plan = [("lm", asked, asked * (tokens // max(rows, 1) + len(TASK) // 4 + p["max_tokens"]))]
    plan += [("lm", kept, kept * (UNSEEN + tokens // max(rows, 1) + p["max_tokens"]))] if p["answers"] else []
    return plan + ([("verifier", 2 * kept, 2 * kept * 2 * UNSEEN)] if call.inputs.get("verifier") is not None else [])


def _valid(call: Call) -> None:
    refuse_kinds(call, "text")
    axes = call.params["axes"]
    if not axes and call.inputs.get("data") is None:
        raise InterfuseError("param.missing", "there is nothing to ask about: neither axes nor texts", where="axes",
                             fix="axes: {topic: [...], skill: [...]}, or a table of texts as data.")  # fmt: skip
    for name, values in axes.items():
        if name in ("prompt", "response", "quality"):
            raise InterfuseError("input.duplicate", f"{name!r} is a column of every example", where="axes")
        if not values or any(not v.strip() for v in values):
            raise InterfuseError("input.empty", f"the axis {name!r} has no values, or an empty one", where="axes")
        if len(dict.fromkeys(values)) != len(values):
            raise InterfuseError("input.duplicate", f"the axis {name!r} names a value twice", where="axes")
    if call.inputs.get("verifier") is not None and not call.params["answers"]:
        raise InterfuseError("param.value", "a verifier judges answers, and none are asked for", where="verifier")


def _columns(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    return {"prompt": "prompt", **({"response": "response"} if params["answers"] else {})}


@method(takes=("data", "verifier"), columns=_columns, plan=_plan, valid=_valid, rows=lambda call: _count(call) * call.params["per_cell"])  # fmt: skip
def curation(
    work: Work,
    *,
    axes: Annotated[
        dict[str, list[str]],
        Field(description="what questions are about: a name of each axis, such as topic or skill, and its values"),
    ] = {},  # noqa: B006  read only
    per_cell: Annotated[int, Field(ge=1, le=50, description="questions for every combination of values (and text)")] = 3,
    similar: Annotated[float, Field(gt=0, le=1, description="ROUGE-L with any question from which one is too similar")] = 0.7,
    answers: Annotated[bool, Field(description="answer every question as well; from a text where there is one")] = True,
    quality: Annotated[
        float, Field(ge=0, le=1, description="with a verifier: least probability that it finds an answer good")
    ] = 0.5,
    temperature: Annotated[float, Field(ge=0, description="when questions are written; answers are the most likely ones")] = 0.8,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """``x ~ p_T(x | I, m)``, then ``y ~ p_T(y | x)``: m runs over the cells of the axes, and over the texts of the table.

    Questions too similar to earlier ones fall out; of every cell at most ``per_cell`` stay, so no topic drowns the others. With a
    verifier, answers it doubts fall out. Texts of the table are data between fences: nothing in them is followed.

    Raises:
        InterfuseError: what asking raises.
    """
    texts: list[str] = work.table.values("text") if work.table is not None else [""]
    cells = [(cell, text) for cell in _cells(axes) for text in texts]
    prompts = [_request(work.lm, cell, text, per_cell) for cell, text in cells]
    replies = work.ask_records(work.lm, prompts, "questions", FIELDS, temperature=temperature, schema=SCHEMA)
    found: list[tuple[dict[str, str], str, str]] = []
    for (cell, text), rows in zip(cells, replies, strict=True):
        mine = 0
        for row in rows:
            question = str(row["question"]).strip()
            if mine == per_cell:
                work.drop("beyond the quota of its cell", prompt=question, **cell)
            elif refuses(question):
                work.drop("a refusal", prompt=question, **cell)
            elif rouge_above(question, [q for _, _, q in found], similar):
                work.drop("too similar to another", prompt=question, **cell)
            else:
                found.append((cell, text, question))
                mine += 1
    if not answers:
        yield from ({"prompt": question, **cell} for cell, _, question in found)
        return
    asked = [_answer_request(work.lm, text, question) for _, text, question in found]
    told: list[tuple[dict[str, str], str, str]] = []
    for (cell, _, question), (reply, *_) in zip(
        found, work.ask(work.lm, asked, "answers", temperature=0.0), strict=True
    ):
        reason = unusable(reply, cut=work.settings.cut)
        if reason:
            work.drop(reason, prompt=question, reply=reply.text, **cell)
        else:
            told.append((cell, question, trimmed(work.lm, reply.text)))
    good = [1.0] * len(told)
    if work.verifier is not None:
        good = p_yes(work.verifier, [f"{q}\nProposed answer: {a.strip()}\nIs the proposed answer right and complete?" for _, q, a in told], ctx=work.ctx).tolist()  # fmt: skip
    for (cell, question, answer), p in zip(told, good, strict=True):
        if work.verifier is not None and p < quality:
            work.drop("the verifier doubts it", prompt=question, reply=answer, probability=p, **cell)
            continue
        yield {"prompt": question, "response": answer, **cell, **({"quality": p} if work.verifier is not None else {})}


def _request(lm: LM, cell: Mapping[str, str], text: str, count: int) -> Prompt:
    lines = "\n".join(f"{name}: {value}" for name, value in cell.items())
    end = f"Write {count} questions" + (" that the document answers." if text else ".")
    if not text:
        return request(lm, TASK, f"{lines}\n\n{end}".strip(), answer="JSON:")
    turns = about_document(TASK, text, before=lines, after=end)
    return turns if reads_turns(lm) else f"{flat(turns)}\nJSON:"


def _answer_request(lm: LM, text: str, question: str) -> Prompt:
    if not text:
        return put(lm, Asked(question), "")
    turns = about_document("Answer the question from the document alone.", text, after=f"Question: {question}")
    return turns if reads_turns(lm) else f"{flat(turns)}\nAnswer:"
