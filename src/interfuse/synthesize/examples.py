"""What methods of the room share: prompts of a table under an instruction, and rows in the form of the table they came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Call
from interfuse.data.lm import LM, Prompt, estimated_tokens
from interfuse.data.tables import Table
from interfuse.kit.eliciting import flat, prompts_and_answers, reads_turns, request
from interfuse.synthesize.room import Work

#: tokens assumed of a prompt that is not there yet when a cost is told
UNSEEN = 100


@dataclass(frozen=True)
class Asked:
    """One example of the table that is worked on: what is asked (a text, or messages), and the answer that stands there ("" without)."""

    prompt: Any
    answer: str = ""

    @property
    def words(self) -> str:
        """The prompt as one text."""
        return self.prompt if isinstance(self.prompt, str) else flat(self.prompt)


def examples_of(work: Work, *, texts: bool = False) -> list[Asked]:
    """The table's examples, those with a prompt that came before left out and counted.

    Args:
        texts: a table of plain texts will do, each of which is asked about.

    Raises:
        InterfuseError: ``input.missing`` or ``input.empty`` naming the row.
    """
    table = work.need_table()
    if texts and table.kind == "text":
        prompts, answers = table.values("text"), [""] * len(table)
    else:
        prompts, answers = prompts_and_answers(table)
    found: dict[str, Asked] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        key = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
        if key in found:
            work.drop("the same prompt again", prompt=prompt)
        else:
            found[key] = Asked(prompt, answer)
    return list(found.values())


def refuse_kinds(call: Call, *kinds: str) -> None:
    """Refuses a table that is not of one of the kinds.

    Raises:
        InterfuseError: ``input.missing``.
    """
    table: Table | None = call.inputs.get("data")
    if table is not None and table.kind not in kinds:
        raise InterfuseError("input.missing", f"{call.method.id} reads {' or '.join(kinds)}, the table holds {table.kind}", where=table.name,
                             fix=f"Declare a column: columns: {{{kinds[0]}: NAME}}.")  # fmt: skip


def size_of(call: Call) -> tuple[int, int]:
    """How many examples the table has, and about how many tokens their prompts take; guessed for a table that is not made yet."""
    table: Table = call.inputs["data"]
    if table.rows is None or table.kind not in ("prompt", "text"):
        return len(table), UNSEEN * len(table)
    return len(table), estimated_tokens([str(v) for v in table.values(table.kind)])


def put(
    lm: LM, asked: Asked, instruction: str, shots: Sequence[tuple[str, str]] = (), *, answer: str = "Answer:"
) -> Prompt:
    """An example as a model is asked it: the prompt itself where nothing is said around it, a conversation with the instruction first."""
    if isinstance(asked.prompt, str):
        if not instruction and not shots:
            return [{"role": "user", "content": asked.prompt}] if reads_turns(lm) else asked.prompt
        return request(lm, instruction, asked.prompt, shots, answer=answer)
    turns = [dict(m) for m in asked.prompt]
    if instruction:
        turns = [{"role": "system", "content": instruction}, *turns]
    return turns if reads_turns(lm) else flat(turns)


def answered(asked: Asked, text: str, **more: Any) -> dict[str, Any]:
    """A row: the prompt with its response, or the conversation with the answer as its last turn."""
    if isinstance(asked.prompt, str):
        return {"prompt": asked.prompt, "response": text, **more}
    return {"messages": [*[dict(m) for m in asked.prompt], {"role": "assistant", "content": text}], **more}


def answer_columns(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    """Roles of what :func:`answered` makes."""
    table = inputs.get("data")
    if table is not None and table.kind == "messages":
        return {"messages": "messages"}
    return {"prompt": "prompt", "response": "response"}


def preferred(asked: Asked, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    """A row of two answers to one prompt; a conversation stands as messages."""
    key = "prompt" if isinstance(asked.prompt, str) else "messages"
    return {key: asked.prompt if key == "prompt" else [dict(m) for m in asked.prompt], "chosen": chosen, "rejected": rejected, **more}  # fmt: skip


def preference_columns(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    """Roles of what :func:`preferred` makes."""
    table = inputs.get("data")
    key = "messages" if table is not None and table.kind == "messages" else "prompt"
    return {key: key, "chosen": "chosen", "rejected": "rejected"}
