"""Classifiers side by side: scores with intervals, and what each model gained, kept and lost against each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from scipy.special import log_softmax, logsumexp

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.kit.page import between, number, p_value
from interfuse.kit.resample import paired_bootstrap, sign_flip
from interfuse.kit.stats import by_chance, compare_outcomes, holm, tost, verdict, wilson_interval
from interfuse.measure import classification_page, scores
from interfuse.measure.room import Contender, Findings, Predictions, tidy

ENSEMBLE = "ensemble of sources"
Bins = Annotated[int, Field(ge=1, le=1000, description="bins of the calibration errors")]
Resamples = Annotated[int, Field(ge=100, le=1_000_000, description="bootstrap draws and sign patterns")]
Ensemble = Annotated[bool, Field(description="add the mean of the sources' probabilities as an upper reference")]
Margin = Annotated[
    float, Field(ge=0, lt=1, description="also ask: not worse by more than this share of items? 0 asks nothing")
]
AllowLeak = Annotated[bool, Field(description="measure on items that were also trained on, and say so")]
#: roles of what is measured; the others are what it is measured against
MEASURED = ("result", "baseline")
PARTS = ("gained", "kept", "lost", "never")


def ensemble_needs_sources(inputs: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Refuses an ensemble of fewer than two sources (``param.missing``)."""
    if params["ensemble"] and len(inputs["against"]) < 2:
        raise InterfuseError("param.missing", "an ensemble needs at least two sources", where="against",
                             fix="Name the sources as against, or leave out ensemble.")  # fmt: skip


@method(before=ensemble_needs_sources, tempered=True)
def classification(
    seen: Predictions,
    *,
    ctx: Ctx,
    bins: Bins = 15,
    resamples: Resamples = 5000,
    ensemble: Ensemble = False,
    margin: Margin = 0.0,
    allow_leak: AllowLeak = False,
) -> Findings:
    """Scores every model and compares each with every source, item by item.

    Args:
        seen: logits ``[seeds, items, classes]`` of every model and the labels ``[items]``.
        ctx: seed of the draws. See the card for the statistics and their sources.
    """
    contenders = seen.contenders + ((_ensemble(seen),) if ensemble else ())
    per_item = {c.name: scores.outcomes(c.logits, seen.labels) for c in contenders}
    models = _models(contenders, per_item, seen, ctx, bins, resamples)
    means = {m["name"]: m["scores"]["accuracy"]["mean"] for m in models}
    sources = [c.name for c in contenders if c.role == "source"]
    best = max(sources, key=lambda name: means[name]) if sources else None
    comparisons = _comparisons(contenders, per_item, seen, ctx, best, resamples, margin)
    per_class = _per_class(contenders, per_item, seen)
    figures: dict[str, Any] = {
        "models": models,
        "best_source": best,
        "comparisons": comparisons,
        "per_class": per_class,
        "reliability": {c.name: scores.reliability(c.logits, seen.labels, bins) for c in contenders},
        "confusion": {c.name: scores.confusion(c.logits, seen.labels, len(seen.classes)).tolist() for c in contenders},
        "level": scores.LEVEL,
    }
    figures = tidy(figures)
    notes = _notes(seen, figures, margin)
    title = "What was gained, kept and lost" if sources else "How good the models are"
    plots, sections = classification_page.layout(figures, seen.classes, bins)
    return Findings(title, notes, _table(figures), figures, contenders, plots, sections)


def _ensemble(seen: Predictions) -> Contender:
    """The mean of the sources' probabilities (a linear opinion pool, Stone 1961), as log-probabilities."""

    def pool(parts: Sequence[Any]) -> Any:
        return logsumexp([log_softmax(z, axis=2) for z in parts], axis=0) - np.log(len(parts))

    sources, taken, name = seen.role("source"), [c.name for c in seen.contenders], ENSEMBLE
    while name in taken:
        name += " (2)"
    held = [c.held for c in sources if c.held is not None]
    return Contender(name, "reference", pool([c.logits for c in sources]), all(c.fixed for c in sources),
                     sum(c.parameters for c in sources), pool(held) if held else None)  # fmt: skip


def _models(contenders: Sequence[Contender], per_item: Mapping[str, Mapping[str, Any]], seen: Predictions, ctx: Ctx, bins: int,
            draws: int) -> list[dict[str, Any]]:  # fmt: skip
    errors = scores.calibration_errors([c.logits for c in contenders], seen.labels, ctx, bins=bins, draws=draws)
    rows = []
    for c, error in zip(contenders, errors, strict=True):
        found = {key: scores.spread(v, ctx, f"measure/{key}/{c.name}", draws) for key, v in per_item[c.name].items()}
        row = {
            "name": c.name,
            "role": c.role,
            "parameters": c.parameters,
            "fixed": c.fixed,
            "scores": {**found, **error},
        }
        if c.held is not None and seen.held_labels is not None:
            row["after_temperature"] = scores.after_temperature(c.logits, seen.labels, c.held, seen.held_labels, bins)
        rows.append(row)
    return rows


def _comparisons(contenders: Sequence[Contender], per_item: Mapping[str, Mapping[str, Any]], seen: Predictions, ctx: Ctx,
                 best: str | None, draws: int, margin: float) -> list[dict[str, Any]]:  # fmt: skip
    rows: list[dict[str, Any]] = []
    for model in (c for c in contenders if c.role in MEASURED):
        for other in (c for c in contenders if c.role not in MEASURED):
            rows.append(_compare(model, other, per_item, seen, ctx, draws, margin))
            rows[-1]["best_source"] = other.name == best
    if rows:
        for row, adjusted in zip(rows, holm([r["p"] for r in rows]), strict=True):
            row["p_holm"] = float(adjusted)
            row["verdict"] = words(row["delta"]["low"], row["delta"]["high"], float(adjusted))
    return rows


def _compare(model: Contender, other: Contender, per_item: Mapping[str, Mapping[str, Any]], seen: Predictions, ctx: Ctx, draws: int,
             margin: float) -> dict[str, Any]:  # fmt: skip
    after, before = per_item[model.name]["accuracy"], per_item[other.name]["accuracy"]
    base, new = (np.sort(x, axis=0).mean(axis=0) for x in (before, after))
    name = f"measure/{model.name}/{other.name}"
    ends = paired_bootstrap(base, new, ctx.rng(f"{name}/delta"), draws=draws, level=scores.LEVEL)
    each = [compare_outcomes(b, a) for b, a in zip(before, after, strict=True)]
    parts = _parts(before, after)
    row: dict[str, Any] = {
        "model": model.name, "role": model.role, "baseline": other.name, "baseline_role": other.role, "n": ends.n,
        "delta": {"mean": ends.estimate, "low": ends.low, "high": ends.high, "seeds": [e.delta for e in each]},
        "mcnemar_p": [e.mcnemar_p for e in each],
        "p": sign_flip(base, new, ctx.rng(f"{name}/signs"), draws=draws).p,
    }  # fmt: skip
    for part in PARTS:  # counts of items: mean over seeds with its interval, and each seed's own
        share = scores.spread(parts[part], ctx, f"{name}/{part}", draws)
        row[part] = {"items": share["mean"] * ends.n, "low": share["low"] * ends.n, "high": share["high"] * ends.n,
                     "seeds": [getattr(e, part) for e in each]}  # fmt: skip
    if margin > 0:
        test = tost(base, new, margin)
        row["margin"] = {"margin": margin, "p": test.p_not_worse, "not_worse": test.noninferior, "test": test.test}
    return row


def _parts(before: Any, after: Any) -> dict[str, Any]:
    """Which part every item belongs to, 0 or 1, ``[seeds, items]`` each."""
    return {
        "gained": (1 - before) * after,
        "kept": before * after,
        "lost": before * (1 - after),
        "never": (1 - before) * (1 - after),
    }


def words(low: float, high: float, p_holm: float) -> str:
    """The verdict on one comparison: *better* only when the interval leaves out 0 and the adjusted p-value agrees."""
    found = verdict(low, high)
    if by_chance(found, p_holm):
        return f"not shown: the interval leaves out 0, but p = {number(p_holm)} among all comparisons"
    return found


def _per_class(
    contenders: Sequence[Contender], per_item: Mapping[str, Mapping[str, Any]], seen: Predictions
) -> dict[str, Any]:
    count = len(seen.classes)
    recall, changes = [], []
    support = np.bincount(seen.labels, minlength=count)
    for c in contenders:
        mean, sd, _ = scores.recalls(c.logits, seen.labels, count)
        for k, name in enumerate(seen.classes):
            value, n = mean[k], int(support[k])
            ends = wilson_interval(round(value * n), n, level=scores.LEVEL) if value is not None else None
            recall.append({"model": c.name, "class": name, "n": n, "mean": value, "sd": sd[k],
                           "low": ends.low if ends else None, "high": ends.high if ends else None})  # fmt: skip
    for model in (c for c in contenders if c.role in MEASURED):
        for other in (c for c in contenders if c.role not in MEASURED):
            parts = _parts(per_item[other.name]["accuracy"], per_item[model.name]["accuracy"])
            for k, name in enumerate(seen.classes):
                inside = seen.labels == k
                row = {part: float(parts[part][:, inside].sum(axis=1).mean()) for part in PARTS}
                changes.append(
                    {"model": model.name, "baseline": other.name, "class": name, "n": int(support[k]), **row}
                )
    return {"recall": recall, "changes": changes}


def _table(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The report's main table: one row per model, plain numbers, intervals as words."""
    against = {c["model"]: c for c in figures["comparisons"] if c["best_source"]}
    columns = ["model", "role", "accuracy", "95% interval", "sd over seeds", "NLL", "Brier", "ECE"]
    columns += ["minus best source", "95% interval of it", "verdict"] if against else []
    rows = []
    for m in figures["models"]:
        s = m["scores"]
        row = [m["name"], m["role"], s["accuracy"]["mean"], between(s["accuracy"]["low"], s["accuracy"]["high"]), s["accuracy"]["sd"], s["nll"]["mean"],
               s["brier"]["mean"], s["ece"]["mean"]]  # fmt: skip
        if against:
            c = against.get(m["name"])
            row += (
                [c["delta"]["mean"], between(c["delta"]["low"], c["delta"]["high"], signed=True), c["verdict"]]
                if c
                else [None, "", ""]
            )
        rows.append([round(v, 4) if isinstance(v, float) else v for v in row])
    return {"columns": columns, "rows": rows}


# ---------------------------------------------------------------------------------------------- words at the top


def _notes(seen: Predictions, figures: Mapping[str, Any], margin: float) -> list[str]:
    by_name = {m["name"]: m for m in figures["models"]}
    best = figures["best_source"]
    notes = []
    if best is not None:
        duels = [c for c in figures["comparisons"] if c["best_source"]]
        notes.append(_headline(duels, best, by_name[best]["scores"]["accuracy"]["mean"]))
        bases = [c for c in duels if c["role"] == "baseline"]
        if bases:
            notes.append(f"Not made from the sources, so a baseline: {_said(bases)} against {best}.")
        sources = len(seen.role("source"))
        if sources > 1:
            notes.append(f"The best of the {sources} sources, {best}, was chosen by its accuracy on these very items: the hardest choice for the models.")  # fmt: skip
        notes += [counts(duels, best, len(seen.labels))] if duels else []
        notes += [_gates(duels)] if margin > 0 else []
    else:
        notes.append("No sources were given, so nothing is said about what was gained or lost.")
    for name in [m["name"] for m in figures["models"] if m["role"] == "reference"]:
        upper = by_name[name]["scores"]["accuracy"]["mean"]
        notes.append(f"The ensemble of the sources, which runs all of them, reaches {number(upper)}; it is an upper reference, not a competitor.")  # fmt: skip
    if len(seen.seeds) == 1:
        notes.append("One seed was run, so nothing is known of the spread over seeds.")
    else:
        notes.append(f"Means over {len(seen.seeds)} seeds. Intervals (95%) speak of other items under the same seeds.")  # fmt: skip
    notes += seen.cautions("items", "scores")
    empty = [name for k, name in enumerate(seen.classes) if not (seen.labels == k).any()]
    if empty:
        notes.append(f"{len(empty)} of the {len(seen.classes)} classes have no items here: {', '.join(empty[:10])}{' ...' if len(empty) > 10 else ''}.")  # fmt: skip
    return notes


def counts(duels: Sequence[Mapping[str, Any]], best: str, items: int) -> str:
    """What each model gained, kept and lost beside the best source, in items (means over seeds)."""
    each = ["{}: {} gained, {} kept, {} lost".format(c["model"], *(number(c[p]["items"], 1).removesuffix(".0") for p in PARTS[:3])) for c in duels]  # fmt: skip
    return f"Of {items:,} items, beside {best}: " + "; ".join(each) + "."


def _said(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each model with its difference and interval in points."""
    names = [f"{c['model']} ({number(100 * c['delta']['mean'], 1, signed=True)} points, "
             f"{between(100 * c['delta']['low'], 100 * c['delta']['high'], 1, signed=True)})" for c in rows]  # fmt: skip
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def _headline(duels: Sequence[Mapping[str, Any]], best: str, accuracy: float) -> str:
    fused = [c for c in duels if c["role"] == "result"]
    if not fused:
        return f"None of the models is known to be made from the sources; the best single source is {best} ({number(accuracy)})."
    better = [c for c in fused if c["verdict"] == "better"]
    worse = [c for c in fused if c["verdict"] == "worse"]
    open_ = [c for c in fused if c not in better and c not in worse]
    parts = [f"Yes for {_said(better)}" if better else "No"]
    parts += [f"not shown for {_said(open_)}"] if open_ else []
    parts += [f"worse: {_said(worse)}"] if worse else []
    return f"Does fusion beat the best single source, {best} ({number(accuracy)})? {'; '.join(parts)}."


def _gates(duels: Sequence[Mapping[str, Any]]) -> str:
    """Which models are shown to be not worse than the best source by more than the margin."""

    def said(rows: Sequence[Mapping[str, Any]]) -> str:
        return (
            ", ".join(
                f"{c['model']} (p {p if (p := p_value(c['margin']['p'])).startswith('<') else '= ' + p})" for c in rows
            )
            or "none"
        )

    passed = [c for c in duels if c["margin"]["not_worse"]]
    failed = [c for c in duels if not c["margin"]["not_worse"]]
    head = f"Not worse than {duels[0]['baseline']} by more than {number(100 * duels[0]['margin']['margin'], 1)} points: shown for {said(passed)}"
    return head + (f"; not shown for {said(failed)}." if failed else ".")


__all__ = ["AllowLeak", "Bins", "Ensemble", "Margin", "Resamples", "classification", "words"]
