"""How well language models predict texts, in bits per byte, and which texts became likelier or less likely."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.data.lm import as_lm
from interfuse.data.models import Model
from interfuse.data.tables import Table
from interfuse.kit import plots
from interfuse.kit.page import Estimate, Grid, Name, Section, between, number
from interfuse.kit.resample import sign_flip
from interfuse.kit.stats import by_chance, holm, verdict
from interfuse.measure.classification import AllowLeak, Resamples
from interfuse.measure.room import Contender, Findings, Logits, Predictions, Reading
from interfuse.measure.scores import LEVEL, ratio

Floats = NDArray[np.float64]
#: columns of a reading
NATS, BYTES, TOKENS = 0, 1, 2


def _texts(table: Table) -> list[tuple[str, str]]:
    """(what stands before, what is predicted) of every row: a prompt and its response, or nothing and the text."""
    if table.kind == "prompt":
        pairs = list(zip(table.values("prompt"), table.values("response"), strict=True))
    elif table.kind == "text":
        pairs = [("", text) for text in table.values("text")]
    else:
        raise InterfuseError(
            "input.missing",
            "the table has no texts",
            where=table.name,
            fix="Declare a column: columns: {text: NAME}, or prompt and response.",
        )
    for i, (prompt, text) in enumerate(pairs):
        if not isinstance(text, str) or not text or not isinstance(prompt, str):
            raise InterfuseError("input.missing", "the text is empty", where=f"{table.name}: row {table.rows[i]}")
    return pairs


def _gold(table: Table) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    return np.zeros(len(_texts(table)), dtype=np.int64), ()


def _predict(model: Model, table: Table, ctx: Ctx, params: Mapping[str, Any]) -> Logits:
    pairs = _texts(table)
    scored = as_lm(model, ctx).score(pairs, ctx=ctx)
    return np.array(
        [[-s.logprob, len(text.encode()), s.tokens] for s, (_, text) in zip(scored, pairs, strict=True)],
        dtype=np.float64,
    )


def _rows(read: Logits, labels: NDArray[np.int64], classes: tuple[str, ...]) -> dict[str, Any]:
    return {"nats": read[:, NATS], "bytes": read[:, BYTES].astype(np.int64), "tokens": read[:, TOKENS].astype(np.int64)}


READING = Reading(("causal-lm", "seq2seq-lm"), _gold, _predict, _rows)


@method(reading=READING)
def likelihood(
    seen: Predictions,
    *,
    ctx: Ctx,
    resamples: Resamples = 5000,
    allow_leak: AllowLeak = False,
) -> Findings:
    """Bits per byte, ``sum(nats) / ln 2 / sum(bytes)``, of every model, and the paired difference from every source.

    Args:
        seen: ``[seeds, items, (nats, bytes, tokens)]`` of every model.
        ctx: seed of the draws. Intervals are percentile bootstrap intervals over texts (a ratio of sums each time).
    """
    sizes = seen.contenders[0].logits[0, :, BYTES]
    bits = {c.name: np.sort(c.logits[:, :, NATS], axis=0).mean(axis=0) / math.log(2) for c in seen.contenders}
    models = [_model(c, bits[c.name], sizes, ctx, resamples) for c in seen.contenders]
    means = {m["name"]: m["bits_per_byte"]["mean"] for m in models}
    sources = [c.name for c in seen.role("source")]
    best = min(sources, key=lambda n: means[n]) if sources else None
    pairs = [(c, s) for c in seen.contenders if c.role != "source" for s in sources]
    duels = [_duel(c, s, bits, sizes, ctx, resamples, s == best) for c, s in pairs]
    if duels:
        for row, p in zip(duels, holm([d["p"] for d in duels]), strict=True):
            found = verdict(row["delta"]["low"], row["delta"]["high"], higher_is_better=False)
            row["p_holm"] = float(p)
            row["verdict"] = "not shown among all comparisons" if by_chance(found, float(p)) else found
    figures = {"models": models, "best_source": best, "comparisons": duels, "level": LEVEL}
    table, grids = _tables(models, duels)
    bars = [
        (m["name"], m["role"], plots.Spread(*(m["bits_per_byte"][k] for k in ("mean", "low", "high")))) for m in models
    ]
    line = next(((s.value, "best source") for n, _, s in bars if n == best), None)
    picture = plots.scores("bits", "Bits per byte (lower is better)", bars, caption="Mean over seeds, with its 95% interval over texts.",
                           line=line, csv="plots/bits.csv")  # fmt: skip
    rows = [[m["name"], m["role"], *(m["bits_per_byte"][k] for k in ("n", "mean", "low", "high"))] for m in models]
    return Findings(
        "How well the texts are predicted", _notes(seen, duels, best, means), table, figures, seen.contenders,
        {"bits": (("model", "role", "texts", "bits_per_byte", "low", "high"), rows)},
        [Section("How well each model predicts the texts", pictures=[picture], grids=grids[:1])]
        + ([Section("Against every source", grids=grids[1:])] if duels else []),
    )  # fmt: skip


def _model(c: Contender, bits: Floats, sizes: Floats, ctx: Ctx, draws: int) -> dict[str, Any]:
    mean, low, high = ratio(bits, sizes, ctx.rng(f"measure/bits/{c.name}"), draws)
    each = c.logits[:, :, NATS].sum(axis=1)
    per_seed = each / math.log(2) / sizes.sum()
    tokens = c.logits[:, :, TOKENS].sum(axis=1)
    row = {"n": len(bits), "mean": mean, "low": low, "high": high, "seeds": per_seed.tolist(),
           "sd": float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None}  # fmt: skip
    return {"name": c.name, "role": c.role, "parameters": c.parameters, "bits_per_byte": row,
            "nats_per_token": float(each.sum() / tokens.sum()), "tokens_per_text": float(tokens.mean() / len(bits))}  # fmt: skip


def _duel(
    c: Contender, source: str, bits: Mapping[str, Floats], sizes: Floats, ctx: Ctx, draws: int, best: bool
) -> dict[str, Any]:
    change, name = bits[c.name] - bits[source], f"measure/{c.name}/{source}"
    mean, low, high = ratio(change, sizes, ctx.rng(f"{name}/delta"), draws)
    p = sign_flip(bits[source], bits[c.name], ctx.rng(f"{name}/signs"), draws=draws).p
    return {"model": c.name, "role": c.role, "baseline": source, "n": len(change), "best_source": best, "delta": {"mean": mean, "low": low, "high": high},
            "likelier": int((change < 0).sum()), "less_likely": int((change > 0).sum()), "same": int((change == 0).sum()), "p": p}  # fmt: skip


def _tables(
    models: Sequence[Mapping[str, Any]], duels: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[Grid]]:
    """The report's main table, and the page's tables."""
    against = {d["model"]: d for d in duels if d["best_source"]}
    columns = ["model", "role", "bits per byte", "95% interval", "sd over seeds", "nats per token"]
    columns += ["minus best source", "95% interval of it", "verdict"] if against else []
    rows, shown = [], []
    for m in models:
        b, d = m["bits_per_byte"], against.get(m["name"])
        row = [m["name"], m["role"], b["mean"], between(b["low"], b["high"]), b["sd"], m["nats_per_token"]]
        if against:
            row += (
                [d["delta"]["mean"], between(d["delta"]["low"], d["delta"]["high"], signed=True), d["verdict"]]
                if d
                else [None, "", ""]
            )
        rows.append([round(v, 4) if isinstance(v, float) else v for v in row])
        shown.append(
            [
                Name(m["name"], m["role"]),
                Estimate(b["mean"], b["low"], b["high"]),
                Estimate(b["sd"]),
                Estimate(m["nats_per_token"]),
                m["parameters"],
            ]
        )
    note = "Small figures are 95% intervals over texts. Nats per token are of each model's own tokens: they compare models of one tokenizer only."
    first = Grid(["model", "bits per byte", "sd over seeds", "nats per token", "parameters"], shown, note=note)
    body = [[Name(d["model"], d["role"]), Name(d["baseline"] + (" *" if d["best_source"] else ""), "source"), d["likelier"], d["same"], d["less_likely"],
             Estimate(d["delta"]["mean"], d["delta"]["low"], d["delta"]["high"], 4, True), Estimate(d["p_holm"], least=0.001), d["verdict"]] for d in duels]  # fmt: skip
    note = "Texts, means over seeds. * best single source. p: sign-flip permutation of the bits per text, Holm-adjusted over all rows."
    second = Grid(
        ["model", "against", "likelier", "the same", "less likely", "difference, bits per byte", "p", "verdict"],
        body,
        note=note,
    )
    return {"columns": columns, "rows": rows}, [first, second]


def _notes(
    seen: Predictions, duels: Sequence[Mapping[str, Any]], best: str | None, means: Mapping[str, float]
) -> list[str]:
    notes = []
    if best is None:
        notes.append("No sources were given, so nothing is said about what was gained or lost.")
    else:
        said = [f"{d['model']} {d['verdict']} ({number(d['delta']['mean'], 4, signed=True)} bits per byte, "
                f"{between(d['delta']['low'], d['delta']['high'], 4, signed=True)})" for d in duels if d["best_source"]]  # fmt: skip
        notes.append(
            f"Against the best single source, {best} ({number(means[best])} bits per byte): {'; '.join(said)}."
        )
    if len(seen.seeds) > 1:
        notes.append(f"Means over {len(seen.seeds)} seeds. Intervals (95%) speak of other texts under the same seeds.")
    else:
        notes.append("One seed was run, so nothing is known of the spread over seeds.")
    return notes + seen.cautions("texts")
