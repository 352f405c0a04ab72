"""Multiple choice: which answer a language model finds likeliest, and what was gained and lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.data.lm import as_lm
from interfuse.data.models import Model
from interfuse.data.tables import Table
from interfuse.measure.classification import (
    AllowLeak,
    Bins,
    Ensemble,
    Margin,
    Resamples,
    classification,
    ensemble_needs_sources,
)
from interfuse.measure.room import Findings, Logits, Predictions, Reading, guesses

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _place(value: Any, answers: list[str], where: str) -> int:
    """Which answer a label names: by its text, its letter, or its place from 0."""
    text = str(value).strip()
    if answers.count(text) == 1:
        return answers.index(text)
    place = int(text) if text.isdecimal() else LETTERS.find(text) if len(text) == 1 else -1
    if not 0 <= place < len(answers):
        raise InterfuseError("input.missing", f"the label {text!r} names none of the {len(answers)} choices", where=where,
                             fix="A label is the right answer's text, its letter (A, B, ...) or its place (0, 1, ...).")  # fmt: skip
    return place


def _gold(table: Table) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The place of the right answer of every item, and names for the places."""
    if table.kind not in ("prompt", "text"):
        raise InterfuseError(
            "input.missing",
            "the table has no prompts",
            where=table.name,
            fix="Declare a column: columns: {prompt: NAME, choices: NAME, label: NAME}.",
        )
    labels, most = [], 0
    for i, (value, answers, prompt) in enumerate(
        zip(table.values("label"), table.values("choices"), table.values(table.kind), strict=True)
    ):
        where = f"{table.name}: row {table.rows[i]}"
        if not isinstance(prompt, str) or not prompt:
            raise InterfuseError("input.missing", "the prompt is empty", where=where)
        if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(a, str) and a for a in answers):
            raise InterfuseError("input.empty", "choices are a list of two or more texts", where=where)
        if len(dict.fromkeys(answers)) < len(answers):
            raise InterfuseError("input.duplicate", "two choices are the same", where=where)
        labels.append(_place(value, answers, where))
        most = max(most, len(answers))
    return np.array(labels, dtype=np.int64), tuple(LETTERS[i] if i < len(LETTERS) else str(i) for i in range(most))


def _predict(model: Model, table: Table, ctx: Ctx, params: Mapping[str, Any]) -> Logits:
    """Log-likelihoods ``[items, choices]`` in nats (per unit with ``normalize``), minus infinity where an item has fewer choices."""
    prompts, choices = table.values(table.kind), table.values("choices")
    found = np.full((len(table), max(len(c) for c in choices)), -np.inf)
    pairs = [
        (f"{p}{params['delimiter']}" if not p[-1].isspace() else p, a)
        for p, answers in zip(prompts, choices, strict=True)
        for a in answers
    ]
    scored = iter(as_lm(model, ctx).score([(p.rstrip(), p[len(p.rstrip()) :] + a) for p, a in pairs], ctx=ctx))
    for i, answers in enumerate(choices):
        for k, answer in enumerate(answers):
            s = next(scored)
            unit = {"none": 1, "token": s.tokens, "byte": len(answer.encode()), "character": len(answer)}[
                params["normalize"]
            ]
            found[i, k] = s.logprob / unit
    return found


READING = Reading(("causal-lm", "seq2seq-lm"), _gold, _predict, guesses)


@method(before=ensemble_needs_sources, reading=READING, tempered=True)
def choice(
    seen: Predictions,
    *,
    ctx: Ctx,
    normalize: Annotated[
        Literal["none", "token", "byte", "character"],
        Field(description="what a choice's log-likelihood is divided by; none keeps probabilities what they are"),
    ] = "none",
    delimiter: Annotated[
        str, Field(description="stands between prompt and choice where the prompt ends without a blank")
    ] = " ",
    bins: Bins = 15,
    resamples: Resamples = 5000,
    ensemble: Ensemble = False,
    margin: Margin = 0.0,
    allow_leak: AllowLeak = False,
) -> Findings:
    """Takes a language model as a classifier of its choices and scores it as one.

    Args:
        seen: log-likelihoods ``[seeds, items, choices]`` in nats and the place of the right choice ``[items]``.
    """
    return classification(
        seen, ctx=ctx, bins=bins, resamples=resamples, ensemble=ensemble, margin=margin, allow_leak=allow_leak
    )
