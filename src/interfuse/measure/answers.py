"""Answers written out: how many are right, how long they are, how many are cut off or reflect, beside every source's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
from interfuse.kit import plots
from interfuse.kit.eliciting import keeping, reads_turns
from interfuse.kit.page import Estimate, Grid, Name, Section, between, number
from interfuse.kit.resample import paired_bootstrap, sign_flip
from interfuse.kit.stats import holm
from interfuse.kit.verifiers import answer_of, compiled, last_number, same_number, same_words
from interfuse.measure.classification import PARTS, AllowLeak, Resamples, words
from interfuse.measure.room import Contender, Findings, Logits, Predictions, Reading
from interfuse.measure.scores import LEVEL, ratio, spread

Floats = NDArray[np.float64]
#: columns of a reading
RIGHT, TOKENS, CUT, REFLECTS = 0, 1, 2, 3
COLUMNS = ("accuracy", "tokens", "cut_off", "reflective")
#: words by which Long-to-Short (Wu et al. 2025, section 4) tells an answer that reflects
REFLECTIVE = re.compile(
    r"\b(?:wait|re-?examine|recap|double[- ]check|let me (?:just )?(?:check|verify))\b", re.IGNORECASE
)
_WHOLE = re.compile(r"[^\w-]*-?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?\W*")


def _known(table: Table) -> list[str]:
    """The right answer of every row: its label, or its response."""
    if table.kind != "prompt":
        raise InterfuseError("input.missing", "the table has no prompts", where=table.name,
                             fix="Declare its columns: columns: {prompt: NAME, label: NAME} (or response: NAME).")  # fmt: skip
    role = "label" if "label" in table.columns else "response"
    known = []
    for i, (prompt, value) in enumerate(zip(table.values("prompt"), table.values(role), strict=True)):
        text = "" if value is None else str(value).strip()
        if not prompt or not text:
            raise InterfuseError("input.missing", f"the {'prompt' if text else role} is empty", where=f"{table.name}: row {table.rows[i]}")  # fmt: skip
        known.append(text)
    return known


def _gold(table: Table) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    return np.zeros(len(_known(table)), dtype=np.int64), ()


def _equal(answer: str, known: str, match: str) -> bool:
    """Whether an answer is the known one, as numbers or as words."""
    numbers = match == "number" or (match == "auto" and _WHOLE.fullmatch(known) is not None)
    return same_number(answer, known) if numbers else same_words(answer, known)


def _predict(model: Model, table: Table, ctx: Ctx, params: Mapping[str, Any]) -> Logits:
    pattern = compiled(params["pattern"], "pattern") if params["pattern"] else None
    known = _known(table)
    if "label" not in table.columns:
        known = [answer_of(text, pattern) for text in known]
    lm = keeping(as_lm(model, ctx), ctx)
    prompts = table.values("prompt")
    if params["chat"] and reads_turns(lm):
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    said = lm.generate(prompts, max_tokens=params["max_tokens"], stop=params["stop"], seed=ctx.seed, ctx=ctx)
    rows = [
        [_equal(answer_of(r.text, pattern), k, params["match"]), r.tokens, r.finish == "length", bool(REFLECTIVE.search(r.text))]
        for (r,), k in zip(said, known, strict=True)
    ]  # fmt: skip
    return np.array(rows, dtype=np.float64)


def _rows(read: Logits, labels: NDArray[np.int64], classes: tuple[str, ...]) -> dict[str, Any]:
    return {"correct": read[:, RIGHT] > 0, "tokens": read[:, TOKENS].astype(np.int64), "cut_off": read[:, CUT] > 0,
            "reflective": read[:, REFLECTS] > 0}  # fmt: skip


def _before(inputs: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Refuses a pattern that is none, and known answers in which it finds nothing or no number stands (``param.value``)."""
    pattern = compiled(params["pattern"], "pattern") if params["pattern"] else None
    table: Table = inputs["data"]
    found = _known(table) if "label" in table.columns else [answer_of(text, pattern) for text in _known(table)]
    for i, text in enumerate(found):
        if not text or (params["match"] == "number" and last_number(text) is None):
            raise InterfuseError("param.value", f"no {'number' if text else 'answer'} stands in the known answer", where=f"{table.name}: row {table.rows[i]}",
                                 fix="Look at pattern and match, or give the answers themselves as label.")  # fmt: skip


READING = Reading(("causal-lm", "seq2seq-lm"), _gold, _predict, _rows)


@method(before=_before, reading=READING)
def answers(
    seen: Predictions,
    *,
    ctx: Ctx,
    max_tokens: Annotated[
        int, Field(ge=1, description="longest answer, in each model's own tokens: one limit for all models")
    ] = 512,
    match: Annotated[
        Literal["auto", "number", "words"],
        Field(
            description="number: the last numbers are equal; words: equal but for case, spacing and marks; auto: number where the known answer is one"
        ),
    ] = "auto",
    pattern: Annotated[
        str | None,
        Field(description="regular expression whose last match (its first group) is the answer; none: the whole reply"),
    ] = None,
    stop: Annotated[list[str], Field(description="texts that end a reply")] = [],  # noqa: B006
    chat: Annotated[bool, Field(description="ask in a user's message where the model has a chat template")] = True,
    resamples: Resamples = 5000,
    allow_leak: AllowLeak = False,
) -> Findings:
    """Greedy answers to every prompt: the share that is right, tokens, the share cut off, and the share that reflects.

    Args:
        seen: ``[seeds, items, (right, tokens, cut off, reflective)]`` of every model.
        ctx: seed of the draws. Intervals are percentile bootstrap intervals over prompts.
    """
    models = [_model(c, ctx, resamples) for c in seen.contenders]
    place = {m["name"]: (m["scores"]["accuracy"]["mean"], m["scores"]["tokens"]["mean"]) for m in models}
    for m in models:
        right, tokens = place[m["name"]]
        m["on_front"] = not any(a >= right and t <= tokens and (a, t) != (right, tokens) for a, t in place.values())
    sources = [c.name for c in seen.role("source")]
    best = max(sources, key=lambda n: place[n]) if sources else None
    duels = [
        _duel(c, s, ctx, resamples, s.name == best)
        for c in seen.contenders
        if c.role != "source"
        for s in seen.role("source")
    ]
    if duels:
        for row, p in zip(duels, holm([d["p"] for d in duels]), strict=True):
            row["p_holm"] = float(p)
            row["verdict"] = words(row["delta"]["low"], row["delta"]["high"], float(p))
    figures = {"models": models, "best_source": best, "comparisons": duels, "level": LEVEL, "max_tokens": max_tokens}
    table, grids = _tables(models, duels)
    pictures = []
    for key, title in (("accuracy", "Right answers"), ("tokens", "Tokens per answer")):
        bars = [
            (m["name"], m["role"], plots.Spread(*(m["scores"][key][k] for k in ("mean", "low", "high"))))
            for m in models
        ]
        pictures.append(plots.scores(key, title, bars, caption="Mean over prompts, with its 95% interval.", csv="plots/answers.csv",
                                     digits=3 if key == "accuracy" else 1))  # fmt: skip
    rows = [
        [
            m["name"],
            m["role"],
            *(m["scores"][key][k] for key in COLUMNS for k in ("mean", "low", "high")),
            m["on_front"],
        ]
        for m in models
    ]
    heads = ("model", "role", *(f"{key}{end}" for key in COLUMNS for end in ("", "_low", "_high")), "on_front")
    return Findings(
        "Right answers and their length", _notes(seen, models, duels, best, max_tokens), table, figures, seen.contenders, {"answers": (heads, rows)},
        [Section("How each model answers", pictures=pictures, grids=grids[:1])] + ([Section("Against every source", grids=grids[1:])] if duels else []),
    )  # fmt: skip


def _model(c: Contender, ctx: Ctx, draws: int) -> dict[str, Any]:
    found = {key: spread(c.logits[:, :, i], ctx, f"measure/{key}/{c.name}", draws) for i, key in enumerate(COLUMNS)}
    return {"name": c.name, "role": c.role, "parameters": c.parameters, "scores": found}


def _duel(c: Contender, source: Contender, ctx: Ctx, draws: int, best: bool) -> dict[str, Any]:
    """One model beside one source: accuracy item by item, and its tokens as a share of the source's."""
    name = f"measure/{c.name}/{source.name}"
    after, before = (np.sort(x.logits, axis=0).mean(axis=0) for x in (c, source))
    ends = paired_bootstrap(before[:, RIGHT], after[:, RIGHT], ctx.rng(f"{name}/delta"), draws=draws, level=LEVEL)
    new, old = c.logits[:, :, RIGHT], source.logits[:, :, RIGHT]
    parts = dict(zip(PARTS, ((1 - old) * new, old * new, old * (1 - new), (1 - old) * (1 - new)), strict=True))
    length = (
        ratio(after[:, TOKENS], before[:, TOKENS], ctx.rng(f"{name}/length"), draws)
        if before[:, TOKENS].all()
        else None
    )
    return {"model": c.name, "role": c.role, "baseline": source.name, "n": ends.n, "best_source": best,
            "delta": {"mean": ends.estimate, "low": ends.low, "high": ends.high},
            "p": sign_flip(before[:, RIGHT], after[:, RIGHT], ctx.rng(f"{name}/signs"), draws=draws).p,
            **{part: float(values.sum(axis=1).mean()) for part, values in parts.items()},
            "length": dict(zip(("mean", "low", "high"), length, strict=True)) if length else None}  # fmt: skip


def _tables(
    models: Sequence[Mapping[str, Any]], duels: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[Grid]]:
    """The report's main table, and the page's tables."""
    columns = [
        "model",
        "role",
        "accuracy",
        "95% interval",
        "tokens per answer",
        "cut off",
        "reflective",
        "on the front",
    ]
    rows, shown = [], []
    for m in models:
        s = m["scores"]
        means = [s[key]["mean"] for key in COLUMNS]
        front = "yes" if m["on_front"] else ""
        rows.append([m["name"], m["role"], round(means[0], 4), between(s["accuracy"]["low"], s["accuracy"]["high"]), round(means[1], 2),
                     round(means[2], 4), round(means[3], 4), front])  # fmt: skip
        shown.append([Name(m["name"], m["role"]), *(Estimate(s[key]["mean"], s[key]["low"], s[key]["high"], 1 if key == "tokens" else 3) for key in COLUMNS),
                      front])  # fmt: skip
    note = ("On the front: no other model is as right with fewer tokens, or more often right with as few. Answers that were cut off are not "
            "short ones: look at their share first. Tokens are each model's own.")  # fmt: skip
    grids = [
        Grid(["model", "accuracy", "tokens per answer", "cut off", "reflective", "on the front"], shown, note=note)
    ]
    body = [[Name(d["model"], d["role"]), Name(d["baseline"] + (" *" if d["best_source"] else ""), "source"), *(d[part] for part in PARTS),
             Estimate(d["delta"]["mean"], d["delta"]["low"], d["delta"]["high"], 3, True),
             Estimate(d["length"]["mean"], d["length"]["low"], d["length"]["high"]) if d["length"] else "", Estimate(d["p_holm"], least=0.001),
             d["verdict"]] for d in duels]  # fmt: skip
    note = "Prompts, means over seeds. * best single source. Length: tokens of the model over those of the source. p: sign-flip permutation, Holm-adjusted over all rows."
    grids.append(
        Grid(["model", "against", *PARTS, "difference of accuracy", "length", "p", "verdict"], body, note=note)
    )
    return {"columns": columns, "rows": rows}, grids


def _notes(
    seen: Predictions,
    models: Sequence[Mapping[str, Any]],
    duels: Sequence[Mapping[str, Any]],
    best: str | None,
    longest: int,
) -> list[str]:
    notes = []
    if best is None:
        notes.append("No sources were given, so nothing is said about what was gained or lost.")
    else:
        said = [f"{d['model']} {d['verdict']} ({number(100 * d['delta']['mean'], 1, signed=True)} points, {between(100 * d['delta']['low'], 100 * d['delta']['high'], 1, signed=True)})"
                + (f", {number(d['length']['mean'], 2)} times its length" if d["length"] else "") for d in duels if d["best_source"]]  # fmt: skip
        notes.append(f"Against the best single source, {best}: {'; '.join(said)}.")
    cut = [
        f"{m['name']} {number(100 * m['scores']['cut_off']['mean'], 0)} %"
        for m in models
        if m["scores"]["cut_off"]["mean"] > 0
    ]
    if cut:
        notes.append(f"Answers were cut off at {longest} tokens: {', '.join(cut)}. Their length is not known.")
    return notes + seen.cautions("prompts")
