"""Further verbs of the room on the command line: examples in the formats of other trainers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from interfuse.core.errors import InterfuseError
from interfuse.kit.verbs import print_value, shared_options

PATH = click.Path(path_type=Path)
Format = Literal["trl", "openai", "alpaca"]
FORMATS: tuple[Format, ...] = ("trl", "openai", "alpaca")


def _turns(prompt: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def exported(row: Mapping[str, Any], to: Format) -> dict[str, Any]:
    """One example in a trainer's format: ``trl`` (prompt and completion, messages, or prompt, chosen and rejected), ``openai`` (chats, or
    input with preferred and non-preferred output) or ``alpaca`` (instruction, input, output).

    Args:
        row: values by role.

    Raises:
        InterfuseError: ``param.value`` where the format has no place for such an example.
    """
    messages = row.get("messages")
    if "chosen" in row:
        prompt = row["prompt"] if messages is None else messages
        if to == "openai":
            return {"input": {"messages": _turns(prompt)}, "preferred_output": _said(row["chosen"]), "non_preferred_output": _said(row["rejected"])}  # fmt: skip
        if to == "trl" and messages is None:
            return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}
        if to == "trl":
            return {"prompt": _turns(prompt), "chosen": _said(row["chosen"]), "rejected": _said(row["rejected"])}
    elif messages is not None:
        turns = _turns(messages)
        if to in ("trl", "openai"):
            return {"messages": turns}
        if len(turns) == 2 and turns[1]["role"] == "assistant":
            return {"instruction": turns[0]["content"], "input": "", "output": turns[1]["content"]}
    elif "prompt" in row and "response" in row:
        if to == "trl":
            return {"prompt": row["prompt"], "completion": row["response"]}
        if to == "openai":
            return {"messages": [*_turns(row["prompt"]), *_said(row["response"].strip())]}
        return {"instruction": row["prompt"], "input": "", "output": row["response"].strip()}
    elif "prompt" in row and to == "trl":
        return {"prompt": row["prompt"]}
    raise InterfuseError("param.value", f"the format {to} has no place for an example of {', '.join(sorted(row))}", where="--to",
                         fix="Formats: " + ", ".join(FORMATS) + ".")  # fmt: skip


def _export(table: Path, out: Path | None, to: Format, force: bool) -> None:
    """Examples as JSON lines for trl, OpenAI's fine-tuning or alpaca."""
    from interfuse.core.ctx import Ctx
    from interfuse.core.rooms import Source
    from interfuse.core.safe import write_atomic
    from interfuse.data.tables import open_table

    found = open_table(Source(str(table)), Ctx())
    place = out or Path(f"{table.name}-{to}.jsonl")
    if place.exists() and not force:
        raise InterfuseError("output.exists", "the file is there already", where=str(place), fix="Name another with -o, or add --force.")  # fmt: skip
    roles = [r for r in ("prompt", "response", "messages", "chosen", "rejected") if r in found.columns]
    values = {role: found.values(role) for role in roles}
    rows = [exported({role: values[role][i] for role in roles}, to) for i in range(len(found))]
    write_atomic(place, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode())
    print_value({"out": str(place), "rows": len(rows)}, lambda: [f"{len(rows)} examples: {place}"])


VERBS: dict[str, click.Command] = {
    "export": click.Command(
        "export", callback=_export, help=_export.__doc__, short_help="Examples in the format of another trainer.",
        params=[click.Argument(["table"], type=PATH), click.Option(["--to"], type=click.Choice(FORMATS), default="trl", show_default=True, help="The format."),
                click.Option(["-o", "--out"], type=PATH, default=None, help="The file to write."),
                click.Option(["--force"], is_flag=True, help="Replace the file."), *shared_options()],
        epilog="\b\nExample:\n  interfuse synthesize export labels/ --to trl -o labels.jsonl",
    ),
}  # fmt: skip
