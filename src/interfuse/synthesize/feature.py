"""Feature: a model's probabilities word by word, its k best tokens at every learnt position of a table (white box elicitation)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call
from interfuse.data.lm import CachedLM
from interfuse.data.local_lm import LocalLM
from interfuse.kit.token_cache import token_said
from interfuse.kit.token_rows import put_into_words, tokenise
from interfuse.synthesize.examples import refuse_kinds, size_of
from interfuse.synthesize.room import Work


def _plan(call: Call) -> list[tuple[str, int, int]]:
    rows, tokens = size_of(call)
    return [("lm", rows, tokens)]


def _valid(call: Call) -> None:
    refuse_kinds(call, "text", "prompt", "messages")
    lm = call.inputs["lm"]
    if not isinstance(lm.inner if isinstance(lm, CachedLM) else lm, LocalLM):
        raise InterfuseError("needs.capability", "only a model that computes here shows its whole distribution", where=lm.name,
                             fix="An endpoint tells twenty tokens at most, under names of its own: use labeling or feedback, or give the model's folder.")  # fmt: skip


def _columns(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, str]:
    return {role: role for role in ("text", "prompt", "response", "messages") if role in inputs["data"].columns}


@method(needs=("data",), columns=_columns, plan=_plan, valid=_valid, rows=lambda call: len(call.inputs["data"]))
def feature(
    work: Work,
    *,
    top_k: Annotated[
        int, Field(ge=1, description="tokens kept per position; a position takes 6 top_k + 12 bytes")
    ] = 32,
    max_length: Annotated[int, Field(ge=2, description="tokens of a text that are read at most")] = 512,
) -> Iterator[dict[str, Any]]:
    """``phi_feat(x, y; theta_T)``: per learnt position its token, the ``top_k`` best ids and their log-probabilities, and log-sum-exp.

    The same predictions go into the cache of teachers, where ``distill`` with ``teacher_cache: disk`` finds them: the teacher is
    needed once, and not where the student is trained.

    Raises:
        InterfuseError: ``input.missing`` or ``input.empty`` naming a row of which nothing is to be learnt.
    """
    lm, table = work.lm.inner if isinstance(work.lm, CachedLM) else work.lm, work.need_table()
    assert isinstance(lm, LocalLM), "refused before work"
    words = put_into_words(table, lm.tokenizer)
    lm.tokenizer.padding_side = "right"
    rows = tokenise(words, lm.tokenizer, max_length, table.name)
    said = token_said(lm.model, lm.module, rows, work.ctx, k=top_k, folder=Path(work.ctx.cache).expanduser() / "teachers", device=lm.device)  # fmt: skip
    lm.tokenizer.padding_side = "left"
    work.account.said(lm.name, len(rows), [])
    work.account.note("positions", len(said.lse))
    values = {role: table.values(role) for role in _columns({}, {"data": table})}
    for i in range(len(rows)):
        begin, end = int(rows.offsets[i]), int(rows.offsets[i + 1])
        following = rows.readings[i].ids[rows.counted[i] + 1]
        yield {
            **{role: column[i] for role, column in values.items()},
            "token": following.tolist(),
            "top_ids": said.ids[begin:end].tolist(),
            "top_logprobs": said.logp[begin:end].float().tolist(),
            "logsumexp": said.lse[begin:end].tolist(),
        }
