"""What one classifier knows and another does not: who is right where the other is wrong, and in which classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.kit import plots
from interfuse.kit.complementary import complement
from interfuse.kit.page import Estimate, Grid, Name, Section, between, number
from interfuse.measure.classification import AllowLeak, Resamples
from interfuse.measure.classification_page import MOST_CLASSES
from interfuse.measure.room import Contender, Findings, Predictions
from interfuse.measure.scores import LEVEL, spread


def models_to_compare_with(inputs: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Refuses a measurement without models to compare with (``param.missing``)."""
    if not inputs["against"]:
        raise InterfuseError("param.missing", "there is no model to compare with", where="against",
                             fix="Name the possible teachers as against, the student as the model to measure.")  # fmt: skip


@method(before=models_to_compare_with)
def flips(seen: Predictions, *, ctx: Ctx, resamples: Resamples = 5000, allow_leak: AllowLeak = False) -> Findings:
    """Positive and negative flips of every teacher against every student (Roth et al. 2024, section 3), most promising teacher first.

    Args:
        seen: logits ``[seeds, items, classes]`` of every model and the labels ``[items]``.
        ctx: seed of the draws. Intervals are percentile bootstrap intervals over items.
    """
    guesses = {c.name: c.logits.argmax(axis=2) for c in seen.contenders}
    students = [c for c in seen.contenders if c.role != "source"]
    pairs = [_pair(s, t, guesses, seen, ctx, resamples) for s in students for t in seen.role("source")]
    order = {s.name: i for i, s in enumerate(students)}
    pairs.sort(key=lambda p: (order[p["model"]], -p["rho_pos"]["mean"], p["baseline"]))
    for p in pairs:
        first = next(q for q in pairs if q["model"] == p["model"])
        p["behind_first"] = None if p is first else _behind(p, first, guesses, seen, ctx, resamples)
    figures = {"pairs": pairs, "level": LEVEL}
    tone = {c.name: c.role for c in seen.contenders}
    plots_rows, sections = _layout(pairs, seen, tone)
    return Findings("What each teacher knows and the student does not", _notes(pairs, seen), _table(pairs), figures, seen.contenders,
                    plots_rows, sections)  # fmt: skip


def _pair(
    student: Contender, teacher: Contender, guesses: Mapping[str, Any], seen: Predictions, ctx: Ctx, draws: int
) -> dict[str, Any]:
    """One teacher against one student; counts by class and what is made from them are taken over all seeds together."""
    s, t, classes = guesses[student.name], guesses[teacher.name], len(seen.classes)
    seeds = len(seen.seeds)
    found = complement(s.ravel(), t.ravel(), np.tile(seen.labels, seeds), classes)
    right, wrong = s == seen.labels, t != seen.labels
    name = f"measure/{student.name}/{teacher.name}"
    support = np.bincount(seen.labels, minlength=classes)
    return {
        "model": student.name, "baseline": teacher.name, "n": len(seen.labels),
        "rho_pos": spread((~right & ~wrong).astype(np.float64), ctx, f"{name}/positive", draws),
        "rho_neg": spread((right & wrong).astype(np.float64), ctx, f"{name}/negative", draws),
        "accuracy_student": found.accuracy_student, "accuracy_teacher": found.accuracy_teacher, "entropy": found.entropy,
        "per_class": [{"class": label, "n": int(support[k]), "flips": found.per_class[k] / seeds} for k, label in enumerate(seen.classes)],
        "expertise": {share: [seen.classes[k] for k in held] for share, held in found.expertise.items()},
    }  # fmt: skip


def _behind(
    p: Mapping[str, Any], first: Mapping[str, Any], guesses: Mapping[str, Any], seen: Predictions, ctx: Ctx, draws: int
) -> dict[str, Any]:
    """By how much fewer items a teacher alone has right than the student's first one does, in shares, item by item."""
    wrong = guesses[p["model"]] != seen.labels
    ours, theirs = ((wrong & (guesses[q["baseline"]] == seen.labels)).astype(np.float64) for q in (p, first))
    return spread(theirs - ours, ctx, f"measure/{p['model']}/{p['baseline']}/behind", draws)


def _table(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = ["student", "teacher", "only the teacher is right", "95% interval", "only the student is right", "teacher's accuracy", "student's accuracy",
               "entropy over classes", "classes with half of them"]  # fmt: skip
    rows = []
    for p in pairs:
        row = [p["model"], p["baseline"], p["rho_pos"]["mean"], between(p["rho_pos"]["low"], p["rho_pos"]["high"]), p["rho_neg"]["mean"],
               p["accuracy_teacher"], p["accuracy_student"], p["entropy"], ", ".join(p["expertise"]["0.5"])]  # fmt: skip
        rows.append([round(v, 4) if isinstance(v, float) else v for v in row])
    return {"columns": columns, "rows": rows}


def _layout(
    pairs: Sequence[Mapping[str, Any]], seen: Predictions, tone: Mapping[str, str]
) -> tuple[dict[str, Any], list[Section]]:
    """The rows behind the pictures, and the sections of the page."""
    many = len(dict.fromkeys(p["model"] for p in pairs)) > 1
    names = [f"{p['baseline']} for {p['model']}" if many else p["baseline"] for p in pairs]
    bars = [(n, "source", plots.Spread(*(p["rho_pos"][k] for k in ("mean", "low", "high")))) for n, p in zip(names, pairs, strict=True)]  # fmt: skip
    first = plots.scores("positive", "Items that only the teacher has right", bars, csv="plots/flips.csv",
                         caption="Share of the items, mean over seeds, with its 95% interval over items.")  # fmt: skip
    most = np.sum([[r["flips"] for r in p["per_class"]] for p in pairs], axis=0)
    shown = sorted(sorted(range(len(seen.classes)), key=lambda k: (-float(most[k]), k))[:MOST_CLASSES])
    shares = [[r["flips"] / r["n"] if r["n"] else None for r in p["per_class"]] for p in pairs]
    second = plots.heat("classes", "Where the teacher is the expert", [seen.classes[k] for k in shown],
                        [(n, "source", [s[k] for k in shown]) for n, s in zip(names, shares, strict=True)], csv="plots/per_class.csv",
                        heads=("percent of the class that only the teacher has right", ""),
                        caption="" if len(shown) == len(seen.classes) else f"The {len(shown)} of {len(seen.classes)} classes with most of them.")  # fmt: skip
    body = [[Name(p["model"], tone[p["model"]]), Name(p["baseline"], "source"), *(Estimate(*(p[r][k] for k in ("mean", "low", "high"))) for r in ("rho_pos", "rho_neg")),
             Estimate(p["accuracy_teacher"]), Estimate(p["accuracy_student"]), Estimate(p["entropy"]), ", ".join(p["expertise"]["0.5"])] for p in pairs]  # fmt: skip
    grid = Grid(["student", "teacher", "only the teacher is right", "only the student is right", "teacher's accuracy", "student's accuracy", "entropy, nats",
                 "classes with half of them"], body,
                note="Shares of the items with 95% intervals. The teacher's accuracy minus the student's is the difference of the two shares. "
                "Entropy: of the teacher's flips over the classes; low where they gather in a few.")  # fmt: skip
    ends = ("mean", "low", "high")
    rows = {
        "flips": (("student", "teacher", "n", *(f"rho_{s}{e}" for s in ("pos", "neg") for e in ("", "_low", "_high")), "accuracy_teacher", "accuracy_student", "entropy"),
                  [[p["model"], p["baseline"], p["n"], *(p[f"rho_{s}"][k] for s in ("pos", "neg") for k in ends), p["accuracy_teacher"], p["accuracy_student"], p["entropy"]]
                   for p in pairs]),
        "per_class": (("student", "teacher", "class", "n", "flips"),
                      [[p["model"], p["baseline"], r["class"], r["n"], r["flips"]] for p in pairs for r in p["per_class"]]),
    }  # fmt: skip
    return rows, [
        Section("What each teacher could teach", pictures=[first], grids=[grid]),
        Section("Class by class", pictures=[second]),
    ]


def _notes(pairs: Sequence[Mapping[str, Any]], seen: Predictions) -> list[str]:
    notes = []
    for student in dict.fromkeys(p["model"] for p in pairs):
        best, *others = (p for p in pairs if p["model"] == student)
        rho, near = best["rho_pos"], [p["baseline"] for p in others if p["behind_first"]["low"] <= 0]
        said = f"{student} {'may have' if near else 'has'} most to learn from {best['baseline']}: {number(100 * rho['mean'], 1)} percent of the items " \
               f"({between(100 * rho['low'], 100 * rho['high'], 1)}) are right in {best['baseline']} alone"  # fmt: skip
        half = best["expertise"]["0.5"]
        notes.append(f"{said}, half of them in {'the class' if len(half) == 1 else f'{len(half)} classes:'} {', '.join(half[:10])}." if half else
                     f"No teacher is right where {student} is wrong.")  # fmt: skip
        if half and near:
            notes.append(f"In that {', '.join(near)} cannot be told from {best['baseline']}: the interval of the difference covers 0.")  # fmt: skip
    notes.append("This is what could be taught; a transfer brings a part of it, and may lose what the student had right alone.")  # fmt: skip
    if len(seen.seeds) == 1:
        notes.append("One seed was run, so nothing is known of the spread over seeds.")
    return notes + seen.cautions("items")
