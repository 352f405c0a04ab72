"""The synthesize room: its contract, and the account that every synthesis keeps of what was asked and what fell out.

A method is one generator, ``method(work, *, parameters) -> rows``: it asks the models of its :class:`Work` and yields rows of plain
values, all with the same keys. Its traits say what it needs: ``needs`` and ``takes`` (inputs that must and may be given), ``columns``
(``(params, inputs) -> role -> column`` of what it makes), ``plan`` (``call -> [(input, prompts, tokens of them and their replies)]``, at
most), ``rows`` (``call -> how many`` at most) and ``valid`` (refuses a call before anything is asked).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.rooms import Call, Cost, Input, Room, key_of
from interfuse.data.lm import LM, Prompt, RecordedLM, Reply, estimated_tokens, is_far, open_lm
from interfuse.data.made_tables import MadeTable, promised, write_rows
from interfuse.data.tables import Table, open_table
from interfuse.kit.eliciting import Account, ask, ask_records, keeping

#: seconds that one reply of a model on this machine is assumed to take, per token, in estimates
ASSUMED_SECONDS = 0.05
#: rows that fell out which are written down, with why
MOST_DROPPED = 10_000


@dataclass(frozen=True)
class SynthesizeSettings:
    """Settings of every method of the room."""

    max_tokens: Annotated[int, Field(ge=1, le=100_000, description="tokens of one reply at most")] = 512
    top_p: Annotated[float, Field(gt=0, le=1, description="share of the probability that replies are drawn from")] = 1.0
    tries: Annotated[
        int, Field(ge=1, le=10, description="times a prompt is asked about when its reply cannot be read")
    ] = 2
    cut: Annotated[bool, Field(description="drop replies that end because max_tokens were spent")] = True
    form: Annotated[
        Literal["given", "messages"],
        Field(
            description="rows as the prompts are given, or every prompt as a conversation, for students that were trained for chat"
        ),
    ] = "given"


@dataclass
class Work:
    """What a method works with.

    Attributes:
        lm: the model that writes or judges, its replies kept. student, verifier: further models, None where not given.
        table: the examples to begin with, None where not given. settings: of the room. account: what was asked and lost.
        dropped: rows that fell out, with the reason.
    """

    ctx: Ctx
    lm: LM
    settings: SynthesizeSettings
    table: Table | None = None
    student: LM | None = None
    verifier: LM | None = None
    account: Account = field(default_factory=Account)
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def ask(
        self, lm: LM, prompts: Sequence[Prompt], purpose: str, *, temperature: float, n: int = 1
    ) -> list[list[Reply]]:
        """``n`` replies per prompt. ``purpose`` names the randomness: the same prompt asked for another purpose is drawn anew."""
        return ask(lm, prompts, self.ctx, self.account, max_tokens=self.settings.max_tokens, temperature=temperature,
                   top_p=self.settings.top_p, n=n, seed=self._seed(purpose, temperature))  # fmt: skip

    def ask_records(self, lm: LM, prompts: Sequence[Prompt], purpose: str, fields: Sequence[str], *, temperature: float,
                    needed: Sequence[str] = (), usable: Callable[[Mapping[str, Any]], bool] | None = None,
                    schema: Mapping[str, Any] | None = None) -> list[list[dict[str, Any]]]:  # fmt: skip
        """The records of every reply; see :func:`interfuse.kit.eliciting.ask_records`."""
        return ask_records(lm, prompts, self.ctx, self.account, fields, needed=needed, usable=usable, tries=self.settings.tries,
                           max_tokens=self.settings.max_tokens, temperature=temperature, top_p=self.settings.top_p,
                           seed=self._seed(purpose, temperature), schema=schema)  # fmt: skip

    def _seed(self, purpose: str, temperature: float) -> int:
        return self.ctx.seed_for(purpose) % 2**31 if temperature > 0 else 0

    def drop(self, reason: str, **row: Any) -> None:
        """A candidate falls out: it is counted and written down."""
        self.account.drop(reason)
        if len(self.dropped) < MOST_DROPPED:
            self.dropped.append({"reason": reason, **row})

    def need_table(self) -> Table:
        """The table, which ``needs=("data",)`` guarantees."""
        assert self.table is not None, "the trait needs=('data',) guarantees a table"
        return self.table


def _settings(params: Mapping[str, Any]) -> SynthesizeSettings:
    return SynthesizeSettings(**{f.name: params[f.name] for f in dataclasses.fields(SynthesizeSettings)})


def own_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The method's own parameters among those of a call."""
    shared = {f.name for f in dataclasses.fields(SynthesizeSettings)}
    return {name: value for name, value in params.items() if name not in shared}


def check(call: Call) -> None:
    """Refuses what cannot work, before anything is asked.

    Raises:
        InterfuseError: ``param.missing``, ``param.value``, ``input.missing`` or what the method's own check raises.
    """
    traits = call.method.traits
    needs, takes = traits.get("needs", ()), traits.get("takes", ())
    for name in ("data", "student", "verifier"):
        given = call.inputs.get(name) is not None
        if name in needs and not given:
            doc = next(i.doc for i in ROOM.inputs if i.name == name)
            raise InterfuseError("param.missing", f"{call.method.id} needs the input {name!r}", fix=doc)
        if given and name not in (*needs, *takes):
            raise InterfuseError("param.value", f"{call.method.id} has no use for the input {name!r}", where=name,
                                 fix=did_you_mean(name, (*needs, *takes)))  # fmt: skip
    if "valid" in traits:
        traits["valid"](call)


def plan_of(call: Call) -> list[tuple[str, str, int, int]]:
    """What will be asked at most: (input, model, prompts, tokens of prompts and replies)."""
    rows = []
    for name, prompts, tokens in call.method.traits["plan"](call):
        lm = call.inputs.get(name) or call.inputs["lm"]
        rows.append((name, lm.name, int(prompts), int(tokens)))
    return rows


def estimate(call: Call) -> Cost:
    """Calls of endpoints at most, and a rough time; nothing is asked."""
    calls, seconds = 0, 0.0
    for name, _, prompts, tokens in plan_of(call):
        lm = call.inputs.get(name) or call.inputs["lm"]
        if is_far(lm):
            calls += prompts
        seconds += 0.0 if isinstance(lm, RecordedLM) else tokens * ASSUMED_SECONDS
    return Cost(bytes_written=200 * expected(call), calls=calls, seconds=round(seconds, 1))


def expected(call: Call) -> int:
    """Rows that will be made at most."""
    return int(call.method.traits["rows"](call))


def columns(call: Call) -> dict[str, str]:
    """Role -> column of the table that will be made."""
    found = dict(call.method.traits["columns"](call.params, call.inputs))
    if call.params["form"] == "messages" and "prompt" in found:
        del found["prompt"]
        found = {"messages": "messages", **{role: name for role, name in found.items() if role != "response"}}
    return found


def in_turns(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose prompt is a text as one whose prompt (and response) are turns of a conversation."""
    if not isinstance(row.get("prompt"), str):
        return dict(row)
    turns = [{"role": "user", "content": row["prompt"]}]
    turns += [{"role": "assistant", "content": row["response"]}] if "response" in row else []
    return {"messages": turns, **{name: value for name, value in row.items() if name not in ("prompt", "response")}}


def promise(call: Call, path: Path) -> MadeTable:
    """The table that will be made."""
    return promised(call.method.entry.slug, path, columns(call), expected(call), key_of(call))


def run(call: Call, folder: Path) -> Mapping[str, Any]:
    """Asks, and writes ``examples.parquet`` with ``dropped.jsonl`` beside it; says first what will be asked.

    Raises:
        InterfuseError: ``input.empty`` when no example is left, saying what they fell out for.
    """
    for name, model, prompts, tokens in plan_of(call):
        price = "calls" if is_far(call.inputs.get(name) or call.inputs["lm"]) else "prompts, nothing to pay"
        call.ctx.log(f"{call.method.id} asks {model} at most {prompts} {price}, about {tokens} tokens in all")
    models = {n: keeping(call.inputs[n], call.ctx) if call.inputs.get(n) is not None else None for n in ("lm", "student", "verifier")}  # fmt: skip
    assert models["lm"] is not None, "the room's input lm is required"
    work = Work(call.ctx, models["lm"], _settings(call.params), call.inputs.get("data"), models["student"], models["verifier"])  # fmt: skip
    rows = list(call.method.target(work, **own_params(call.params)))
    rows = [in_turns(row) for row in rows] if call.params["form"] == "messages" else rows
    lost = work.account.lost
    if not rows:
        said = ", ".join(f"{n} {why}" for why, n in sorted(lost.items())) or "the model gave none"
        raise InterfuseError("input.empty", f"no example is left: {said}", where=models["lm"].name,
                             fix="Look at the model's replies; raise max_tokens, tries or samples, or ask a model that follows instructions.")  # fmt: skip
    write_rows(folder, rows)
    _lines(folder / "dropped.jsonl", work.dropped)
    made = columns(call)
    assert set(made.values()) <= set(rows[0]), "a method makes the columns that its trait names"
    return {"columns": made, "rows": len(rows), "asked": work.account.asked, "dropped": lost, "counts": work.account.notes,
            "models": {n: {"name": m.name, "fingerprint": m.fingerprint()} for n, m in models.items() if m is not None}}  # fmt: skip


def _lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in rows), encoding="utf-8")


def tokens_for(call: Call, prompts: Sequence[Prompt], n: int = 1, *, extra: int = 0) -> int:
    """Tokens of prompts and of ``n`` replies each at most, from characters. ``extra``: characters added to every prompt."""
    return estimated_tokens(prompts, int(call.params["max_tokens"]), n) + len(prompts) * extra // 4


ROOM = Room(
    name="synthesize",
    kind="table",
    inputs=(
        Input("lm", open_lm, doc="the model that writes, or judges: a folder or id, an endpoint, or recorded replies"),
        Input("data", open_table, required=False, doc="examples to begin with: prompts, conversations or texts"),
        Input("student", open_lm, required=False, doc="the model whose answers are judged, where it is another"),
        Input("verifier", open_lm, required=False, doc="a model that says whether an answer is right or good"),
    ),
    settings=SynthesizeSettings,
    run=run,
    promise=promise,
    check=check,
    estimate=estimate,
)
