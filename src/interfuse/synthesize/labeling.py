"""Labeling: the teacher answers given prompts, plainly or with its reasons (the first kind of elicitation of Xu et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.kit.eliciting import trimmed, unusable
from interfuse.synthesize.examples import answer_columns, answered, examples_of, put, refuse_kinds, size_of
from interfuse.synthesize.room import Work

FIELDS = ("rationale", "answer")
FORM = 'Think first. Answer with JSON only: {"rationale": "your reasons, step by step", "answer": "the answer alone"}'
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {f: {"type": "string"} for f in FIELDS},
    "required": list(FIELDS),
}


def _plan(call: Call) -> list[tuple[str, int, int]]:
    rows, tokens = size_of(call)
    around = sum(map(len, [call.params["instruction"], *(w for shot in call.params["demonstrations"] for w in shot)]))
    tries = call.params["tries"] if call.params["rationale"] != "none" else 1
    return [("lm", rows * tries, tries * (tokens + rows * (around // 4 + call.params["max_tokens"])))]


def _columns(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    return answer_columns(params, inputs)


@method(
    needs=("data",), columns=_columns, plan=_plan, rows=lambda call: len(call.inputs["data"]),
    valid=lambda call: refuse_kinds(call, "prompt", "messages", "text"),
)  # fmt: skip
def labeling(
    work: Work,
    *,
    instruction: Annotated[str, Field(description="what the teacher is told before every prompt")] = "",
    demonstrations: Annotated[
        list[tuple[str, str]], Field(description="[prompt, answer] pairs that show it what is wanted")
    ] = [],  # noqa: B006  read only
    rationale: Annotated[
        Literal["none", "kept", "taught"],
        Field(description="ask for reasons too: kept in a column of their own, or taught, written before the answer"),
    ] = "none",
    temperature: Annotated[float, Field(ge=0, description="of the teacher; 0 is its most likely answer")] = 0.0,
) -> Iterator[dict[str, Any]]:
    """``y ~ p_T(y | I, c, x)``: one answer per prompt; empty, cut and refusing ones fall out and are counted.

    A table of plain texts is labelled text by text under the instruction. With reasons the reply is JSON, mended where it is broken.

    Raises:
        InterfuseError: ``input.missing`` or ``input.empty`` naming a row without prompt; what asking raises.
    """
    examples = examples_of(work, texts=True)
    if rationale != "none":
        told = f"{instruction}\n\n{FORM}".strip()
        prompts = [put(work.lm, e, told, demonstrations, answer="JSON:") for e in examples]
        replies = work.ask_records(work.lm, prompts, "labels", FIELDS, temperature=temperature, schema=SCHEMA)
        for example, rows in zip(examples, replies, strict=True):
            if not rows:
                work.drop("no reply could be read", prompt=example.prompt)
                continue
            why, said = (str(rows[0][f]).strip() for f in FIELDS)
            yield answered(example, f"{why}\n\n{said}" if rationale == "taught" else said, rationale=why, answer=said)
        return
    prompts = [put(work.lm, e, instruction, demonstrations) for e in examples]
    for example, (reply, *_) in zip(
        examples, work.ask(work.lm, prompts, "labels", temperature=temperature), strict=True
    ):
        reason = unusable(reply, cut=work.settings.cut)
        if reason:
            work.drop(reason, prompt=example.prompt, reply=reply.text)
        else:
            yield answered(example, trimmed(work.lm, reply.text))
