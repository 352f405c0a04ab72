"""How the figures of ``measure/classification`` are shown: pictures, the rows behind them, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interfuse.kit import plots
from interfuse.kit.page import Estimate, Grid, Name, Picture, Section, number, p_value

#: classes shown in a picture; the files have all
MOST_CLASSES = 24
NAMES = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "nll": "NLL (nats)",
    "brier": "Brier",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
}
Rows = dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]


def layout(figures: Mapping[str, Any], classes: Sequence[str], bins: int) -> tuple[Rows, list[Section]]:
    """The CSV rows of every picture, and the sections of the page."""
    tone = {m["name"]: m["role"] for m in figures["models"]}
    duels = figures["comparisons"]
    rows = _rows(figures)
    sections = [Section("How good each model is", pictures=_accuracy(figures), grids=[_scores(figures)])]
    if duels:
        moves = [_change(c, tone) for c in duels]
        said = "Items that only the model gets right, and items that only the other gets right, in percent, with 95% intervals; the diamond is the difference."
        whole = "All items: right in both, only in the model, only in the other, in neither. Percent, mean over seeds."
        pictures = [plots.changes("changes", "Gained and lost", moves, caption=said, csv="plots/changes.csv"),
                    plots.composition("composition", "Where every item went", moves, caption=whole, csv="plots/changes.csv")]  # fmt: skip
        sections.append(Section("Gained, kept and lost", pictures=pictures, grids=[_duels(figures)]))
    shown = _classes(figures, classes)
    sections.append(Section("Class by class", pictures=[_heat(figures, classes, shown, tone)]))
    said = (f"Confidence to the right, accuracy upwards, {bins} bins of equal width, all seeds together. Dots grow with their items; "
            "a model is too sure of itself below the dashed line and too modest above it.")  # fmt: skip
    sections.append(
        Section("Does confidence mean what it says", said, _reliability(figures), csv="plots/reliability.csv")
    )
    sections.append(Section("All scores", grids=_details(figures), folded=True))
    if duels:
        sections.append(Section("Seed by seed", grids=[_by_seed(figures)], folded=True))
    sections.append(Section("What is mistaken for what", grids=[_confusions(figures, classes)], folded=True))
    return rows, sections


def _rows(figures: Mapping[str, Any]) -> Rows:
    found: Rows = {
        "scores": (("model", "role", "score", "n", "mean", "sd_over_seeds", "low", "high"),
                   [[m["name"], m["role"], key, *(s[k] for k in ("n", "mean", "sd", "low", "high"))] for m in figures["models"] for key, s in m["scores"].items()]),
        "per_class": (("model", "class", "n", "recall", "sd_over_seeds", "low", "high"),
                      [[r[k] for k in ("model", "class", "n", "mean", "sd", "low", "high")] for r in figures["per_class"]["recall"]]),
        "reliability": (("model", "low", "high", "n", "confidence", "accuracy"),
                        [[name, *(b[k] for k in ("low", "high", "n", "confidence", "accuracy"))] for name, table in figures["reliability"].items() for b in table]),
    }  # fmt: skip
    if figures["comparisons"]:
        parts = ("gained", "kept", "lost", "never")
        heads = ["model", "baseline", "n", *(f"{p}{e}" for p in parts for e in ("", "_low", "_high")), "delta", "delta_low", "delta_high", "p_holm", "verdict"]  # fmt: skip
        found["changes"] = (heads, [
            [c["model"], c["baseline"], c["n"], *(c[p][k] for p in parts for k in ("items", "low", "high")),
             *(c["delta"][k] for k in ("mean", "low", "high")), c["p_holm"], c["verdict"]] for c in figures["comparisons"]])  # fmt: skip
        found["per_class_changes"] = (("model", "baseline", "class", "n", *parts),
                                      [[r[k] for k in ("model", "baseline", "class", "n", *parts)] for r in figures["per_class"]["changes"]])  # fmt: skip
    return found


# ---------------------------------------------------------------------------------------------- pictures


def _accuracy(figures: Mapping[str, Any]) -> list[Picture]:
    found = []
    for key, title, digits in (("accuracy", "Accuracy", 3), ("nll", "Negative log-likelihood (lower is better)", 3)):
        rows = [
            (m["name"], m["role"], plots.Spread(*(m["scores"][key][k] for k in ("mean", "low", "high"))))
            for m in figures["models"]
        ]
        best = figures["best_source"]
        line = next(((s.value, "best source") for n, _, s in rows if n == best), None) if key == "accuracy" else None
        caption = "Mean over seeds, with its 95% interval over items."
        found.append(plots.scores(key, title, rows, caption=caption, line=line, csv="plots/scores.csv", digits=digits))
    return found


def _change(c: Mapping[str, Any], tone: Mapping[str, str]) -> plots.Change:
    def share(part: str) -> plots.Spread:
        return plots.Spread(*(c[part][k] / c["n"] for k in ("items", "low", "high")))

    delta = plots.Spread(*(c["delta"][k] for k in ("mean", "low", "high")))
    name = f"{c['baseline']} *" if c["best_source"] else c["baseline"]
    return plots.Change(c["model"], tone[c["model"]], name, share("gained"), share("lost"), share("kept").value, share("never").value, delta)  # fmt: skip


def _classes(figures: Mapping[str, Any], classes: Sequence[str]) -> list[int]:
    """The classes to show: all, or those that changed most."""
    if len(classes) <= MOST_CLASSES:
        return list(range(len(classes)))
    moved = dict.fromkeys(classes, 0.0)
    for r in figures["per_class"]["changes"]:
        moved[r["class"]] += abs(r["gained"] - r["lost"])
    most = sorted(range(len(classes)), key=lambda k: (-moved[classes[k]], k))[:MOST_CLASSES]
    return sorted(most)


def _heat(figures: Mapping[str, Any], classes: Sequence[str], shown: Sequence[int], tone: Mapping[str, str]) -> Picture:
    recall: dict[str, list[float | None]] = {}
    for r in figures["per_class"]["recall"]:
        recall.setdefault(r["model"], []).append(r["mean"])
    rows = [(name, tone[name], [values[k] for k in shown]) for name, values in recall.items()]
    best, moves = figures["best_source"], {}  # type: str | None, dict[str, list[tuple[float, float] | None]]
    for r in figures["per_class"]["changes"]:
        if r["baseline"] == best:
            moves.setdefault(r["model"], []).append((r["gained"] / r["n"], r["lost"] / r["n"]) if r["n"] else None)
    heads = ("recall, percent", f"gained and lost against the best source, {best}, percent of the class")
    caption = "How many of a class's items are found; mean over seeds."
    if len(shown) < len(classes):
        caption += f" The {len(shown)} of {len(classes)} classes that changed most."
    return plots.heat("classes", "Recall per class", [classes[k] for k in shown], rows,
                      [(name, tone[name], [pairs[k] for k in shown]) for name, pairs in moves.items()], heads=heads, caption=caption,
                      csv="plots/per_class.csv")  # fmt: skip


def _reliability(figures: Mapping[str, Any]) -> list[Picture]:
    found = []
    for i, m in enumerate(figures["models"]):
        bins = [(b["confidence"], b["accuracy"], int(b["n"])) for b in figures["reliability"][m["name"]]]
        found.append(plots.reliability(f"reliability-{i}", m["name"], m["role"], m["scores"]["ece"]["mean"], bins))
    return found


# ---------------------------------------------------------------------------------------------- tables


def _estimate(score: Mapping[str, Any], *, signed: bool = False, scale: float = 1.0, digits: int = 3) -> Estimate:
    mean, low, high = (scale * score[k] for k in ("mean", "low", "high"))
    return Estimate(mean, low, high, digits, signed)


def _scores(figures: Mapping[str, Any]) -> Grid:
    against = {c["model"]: c for c in figures["comparisons"] if c["best_source"]}
    columns = ["model", "accuracy", "sd over seeds", "NLL", "Brier", "ECE", "parameters"]
    columns += ["minus best source", "verdict"] if against else []
    rows = []
    for m in figures["models"]:
        s = m["scores"]
        row = [Name(m["name"], m["role"]), _estimate(s["accuracy"]), Estimate(s["accuracy"]["sd"]), _estimate(s["nll"]), _estimate(s["brier"]),
               _estimate(s["ece"]), m["parameters"]]  # fmt: skip
        if against:
            c = against.get(m["name"])
            row += (
                [_estimate(c["delta"], signed=True), c["verdict"]]
                if c
                else [Estimate(None), "best source" if m["name"] == figures["best_source"] else ""]
            )
        rows.append(row)
    return Grid(
        columns,
        rows,
        note="Small figures are 95% intervals over items. A better score is higher accuracy; lower NLL, Brier score and ECE.",
    )


def _duels(figures: Mapping[str, Any]) -> Grid:
    columns = ["model", "against", "gained", "kept", "lost", "never", "difference, points", "p", "verdict"]
    margin = any("margin" in c for c in figures["comparisons"])
    if margin:
        columns.insert(8, "p, not worse")
    rows = []
    for c in figures["comparisons"]:
        parts = [Estimate(c[p]["items"], c[p]["low"], c[p]["high"], 1) for p in ("gained", "kept", "lost", "never")]
        name = c["baseline"] + (" *" if c["best_source"] else "")
        row = [
            Name(c["model"], c["role"]),
            Name(name, c["baseline_role"]),
            *parts,
            _estimate(c["delta"], signed=True, scale=100, digits=1),
            Estimate(c["p_holm"], least=0.001),
        ]
        rows.append([*row, *([Estimate(c["margin"]["p"], least=0.001)] if margin else []), c["verdict"]])
    note = ("Items of " + (f"{figures['comparisons'][0]['n']:,}" if figures["comparisons"] else "0") + ", mean over seeds, with 95% intervals. "
            "* best single source. p: sign-flip permutation of the seed-averaged difference, Holm-adjusted over all rows.")  # fmt: skip
    return Grid(columns, rows, note=note)


def _details(figures: Mapping[str, Any]) -> list[Grid]:
    keys = [k for k in NAMES if k in figures["models"][0]["scores"]]
    rows = []
    for m in figures["models"]:
        for key in keys:
            s = m["scores"][key]
            rows.append([Name(m["name"], m["role"]), NAMES[key], s["n"], _estimate(s, digits=4), Estimate(s["sd"], digits=4),
                         ", ".join(number(v, 4) for v in s["seeds"])])  # fmt: skip
    grids = [Grid(["model", "score", "items", "mean", "sd over seeds", "each seed"], rows)]
    scaled = [m for m in figures["models"] if "after_temperature" in m]
    if scaled:
        body = [[Name(m["name"], m["role"]), ", ".join(number(t, 2) for t in m["after_temperature"]["temperature"]),
                 *(number(m["scores"][k]["mean"]) + " → " + number(m["after_temperature"][k]) for k in ("nll", "brier", "ece", "adaptive_ece"))] for m in scaled]  # fmt: skip
        grids.append(
            Grid(
                ["model", "temperature", "NLL", "Brier", "ECE", "adaptive ECE"], body, title="After temperature scaling"
            )
        )
    return grids


def _by_seed(figures: Mapping[str, Any]) -> Grid:
    rows = []
    for c in figures["comparisons"]:
        rows.append([Name(c["model"], c["role"]), Name(c["baseline"], c["baseline_role"]), *(", ".join(map(str, c[p]["seeds"])) for p in ("gained", "lost")),
                     ", ".join(number(100 * v, 1, signed=True) for v in c["delta"]["seeds"]), ", ".join(p_value(p) for p in c["mcnemar_p"])])  # fmt: skip
    return Grid(
        ["model", "against", "gained", "lost", "difference, points", "McNemar p, exact"],
        rows,
        note="One figure per seed, in the order of the seeds.",
    )


def _confusions(figures: Mapping[str, Any], classes: Sequence[str]) -> Grid:
    rows = []
    for m in figures["models"]:
        table = figures["confusion"][m["name"]]
        pairs = sorted(
            (-table[i][j], i, j) for i in range(len(classes)) for j in range(len(classes)) if i != j and table[i][j]
        )[:5]
        said = "; ".join(f"{classes[i]} as {classes[j]}, {-count} of {sum(table[i])}" for count, i, j in pairs)
        rows.append([Name(m["name"], m["role"]), said or "nothing"])
    return Grid(["model", "most frequent, over all seeds"], rows, note="report.json has the whole tables.")
