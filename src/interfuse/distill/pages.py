"""The report a method writes beside the student: ``report.json``, ``report.html``, and ``plots/*.csv`` with every picture's numbers."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.kit import plots as drawing
from interfuse.kit import training_plots as training
from interfuse.kit.calibration import calibration, confidence_and_correct, reliability_table
from interfuse.kit.page import Section, number, render

#: epochs in the picture of fusion ratios, bars in a histogram, images in a row
EPOCHS, BINS, SHOWN = 4, 20, 8

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]


def write_report(
    folder: Path, method: str, title: str, *, notes: Sequence[str], sections: Sequence[Section], plots: Mapping[str, Table],
    facts: Sequence[tuple[str, str]] = (), table: Mapping[str, Any] | None = None, figures: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes the report; ``interfuse report FOLDER`` prints it.

    Args:
        notes: sentences, the first is the answer. plots: name -> (columns, rows), written as ``plots/<name>.csv``.
        table: ``{"columns": [...], "rows": [...]}`` for the terminal. figures: further JSON values.
    """
    (folder / "plots").mkdir(exist_ok=True)
    for name, (columns, rows) in plots.items():
        with (folder / "plots" / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([round(v, 6) if isinstance(v, float) else v for v in row] for row in rows)
    report = {"format": 1, "title": title, "method": method, "notes": list(notes), "plots": {n: f"plots/{n}.csv" for n in sorted(plots)},
              **({"table": table} if table else {}), **(figures or {})}  # fmt: skip
    text = json.dumps(report, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    html = render(title, notes=notes, sections=sections, facts=facts, made_by=method)
    (folder / "report.html").write_text(html, encoding="utf-8")


def fusion_ratios(folder: Path, alpha: NDArray[np.float32], right: NDArray[np.bool_], epochs: Sequence[int]) -> None:
    """TGeo-KD: histograms of the teacher's weight per epoch, where the teacher is right and where it is wrong.

    Args:
        alpha: [E, N], NaN where an example was not seen. right: whether the teacher is right, [N]. epochs: what the E rows are.
    """
    edges = np.linspace(0, 1, BINS + 1)
    rows, table = [], []
    for epoch, row in zip(epochs, alpha, strict=True):
        groups = [row[np.isfinite(row) & (right == is_right)] for is_right in (True, False)]
        counts = [np.histogram(g, edges)[0] for g in groups]
        table += [
            [epoch, float(edges[k]), float(edges[k + 1]), int(counts[0][k]), int(counts[1][k])] for k in range(BINS)
        ]
        rows.append((epoch, groups))
    chosen = dict.fromkeys(round(i) for i in np.linspace(0, len(rows) - 1, min(EPOCHS, len(rows))))
    shown = [(f"epoch {rows[i][0]}", [("teacher right", "result", rows[i][1][0].tolist()), ("teacher wrong", "lost", rows[i][1][1].tolist())])
             for i in chosen]  # fmt: skip
    last = rows[-1][1]
    means = [number(float(g.mean()), 3) if len(g) else "–" for g in last]
    note = f"In the last epoch the teacher's mean weight is {means[0]} where it is right and {means[1]} where it is wrong ({len(last[1])} examples)."
    picture = training.histograms("ratios", "Weight of the teacher, example by example", shown, bins=BINS, csv="plots/fusion_ratio.csv",
                                  caption="Shares of the examples of each group.")  # fmt: skip
    write_report(folder, "distill/tgeo-kd", "Whom the student trusted", notes=[note], sections=[Section("Fusion ratios", pictures=[picture])],
                 plots={"fusion_ratio": (("epoch", "low", "high", "teacher_right", "teacher_wrong"), table)},
                 table={"columns": ["epoch", "teacher right", "teacher wrong"],
                        "rows": [[e, *(number(float(g.mean())) if len(g) else "–" for g in groups)] for e, groups in (rows[i] for i in chosen)]})  # fmt: skip


def augmentations(
    folder: Path,
    examples: Sequence[tuple[int, NDArray[np.float32]]],
    curve: NDArray[np.float32],
    diagnostics: Mapping[str, float],
) -> None:
    """HARD: images beside what the augmentor made of them over time, and the disagreement with the augmentor's phases.

    Args:
        examples: (step, [2, n, C, H, W]: images and their changed versions). curve: [steps, 4], disagreement, change of the
            teacher's answer, running mean, augmentor steps so far. diagnostics: what the augmentor says of itself.
    """
    sections: list[Section] = []
    tables: dict[str, Table] = {}
    moves = [int(v) for v in curve[:, 3]]
    phases = [i + 1 for i in range(1, len(moves)) if moves[i] != moves[i - 1]]
    every = max(len(curve) // 400, 1)
    lines = [
        ("disagreement", "result", curve[::every, 0].tolist()),
        ("teacher's own change", "lost", curve[::every, 1].tolist()),
    ]
    tables["disagreement"] = (("step", "disagreement", "teacher_change", "running_mean", "augmentor_steps"),
                              [[i + 1, *map(float, row[:3]), int(row[3])] for i, row in enumerate(curve)])  # fmt: skip
    if examples:
        rows = [("original", examples[0][1][0]), *((f"step {step}", pair[1]) for step, pair in examples)]
        caption = "What the augmentor makes of the same images while training goes on."
        sections.append(
            Section(
                "Images",
                pictures=[
                    training.images(
                        "augmented", "Originals and changed images", rows, caption=caption, csv="plots/augmented.csv"
                    )
                ],
            )
        )
        tables["augmented"] = (("step", "image", "mean_change", "largest_change"), [
            [step, k, float(np.abs(b - a).mean()), float(np.abs(b - a).max())] for step, (first, second) in ((s, p) for s, p in examples)
            for k, (a, b) in enumerate(zip(first, second, strict=True))])  # fmt: skip
    picture = training.curves("disagreement", "Disagreement of student and teacher on changed inputs", lines, marks=[1 + (p - 1) // every for p in phases],
                              axis="step" if every == 1 else f"step / {every}", caption="Upright lines: the augmentor was trained.", csv="plots/disagreement.csv")  # fmt: skip
    sections.append(Section("The two players", pictures=[picture]))
    note = f"{len(curve)} student steps, {len(phases)} augmentor phases of {moves[-1] if moves else 0} steps together."
    write_report(folder, "distill/hard", "What was changed, and what it did", notes=[note], sections=sections, plots=tables,
                 facts=[(k, number(v)) for k, v in diagnostics.items()])  # fmt: skip


def reliability(
    folder: Path,
    method: str,
    logits: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.int64],
    data: str,
    *,
    bins: int = 15,
) -> None:
    """Reliability diagrams and scores of several models on one set of held-out examples.

    Args:
        logits: [N, K] by model; the first is the student. labels: [N].
    """
    said, tables = {}, {}
    for name, z in logits.items():
        wide = z.astype(np.float64) - z.max(axis=1, keepdims=True)
        p = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
        said[name], tables[name] = (
            calibration(z, labels, bins=bins),
            reliability_table(*confidence_and_correct(p, labels), bins=bins),
        )
    pictures = [drawing.reliability(f"reliability-{i}", name, "result" if i == 0 else "reference", c.ece,
                                    [(b.confidence, b.accuracy, b.n) for b in tables[name]]) for i, (name, c) in enumerate(said.items())]  # fmt: skip
    rows = [[name, b.low, b.high, b.n, b.confidence, b.accuracy] for name, table in tables.items() for b in table]
    scores = [[name, *(number(v) for v in (c.accuracy, c.ece, c.adaptive_ece, c.nll))] for name, c in said.items()]
    student, first = next(iter(said.values())), next(iter(said))
    note = f"{first}: accuracy {number(student.accuracy)}, expected calibration error {number(student.ece)} on {len(labels)} examples of {data}."
    write_report(folder, method, "Does confidence mean what it says", notes=[note], sections=[Section("Reliability", f"{bins} bins of equal width.", pictures, csv="plots/reliability.csv")],
                 plots={"reliability": (("model", "low", "high", "n", "confidence", "accuracy"), rows)},
                 table={"columns": ["model", "accuracy", "ECE", "adaptive ECE", "NLL"], "rows": scores})  # fmt: skip


def ranking(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """DisWOT: every candidate's score against its size."""
    points = [
        (
            "chosen" if i == 0 else "",
            "result" if i == 0 else "reference",
            math.log10(max(r["parameters"], 1)),
            float(r["score"]),
        )
        for i, r in enumerate(rows)
    ]
    picture = training.scatter("ranking", "Candidates", points, axes=("log10 of the parameters", "score"), csv="plots/ranking.csv",
                               caption="Higher is more like the teacher before any training.")  # fmt: skip
    best = rows[0]
    tie = len(rows) > 1 and best["score"] - rows[1]["score"] <= max(best["sd"], rows[1]["sd"])
    note = f"{len(rows)} students were scored; the best has {best['parameters']:,} parameters and {number(best['score'], 4)} points."
    more = ["The first two differ by less than the spread over initialisations: a tie."] if tie else []
    table: list[list[Any]] = [
        [str(r["config"]), float(r["score"]), float(r["sd"]), int(r["parameters"]), float(r["flops"])] for r in rows
    ]
    write_report(folder, "distill/diswot", "Which student to train", notes=[note, *more], sections=[Section("Score and size", pictures=[picture])],
                 plots={"ranking": (("config", "score", "sd", "parameters", "flops"), table)},
                 table={"columns": ["configuration", "score", "sd", "parameters"], "rows": [[r[0], number(r[1], 4), number(r[2], 4), r[3]] for r in table[:10]]})  # fmt: skip


def selected(
    folder: Path,
    images: Mapping[str, tuple[Sequence[str], NDArray[np.float32]]],
    log: Sequence[tuple[int, int]],
    of: int,
) -> None:
    """KD3: a sheet of images of the last selection, class by class, and how many were kept per epoch.

    Args:
        images: pseudo class -> (ids, images [n, C, H, W]). log: (epoch, kept). of: size of the pool.
    """
    rows = [(name, pictures[:SHOWN]) for name, (_, pictures) in images.items() if len(pictures)]
    sheet = training.images(
        "selected", "Kept in the last choice, by the class they are taken for", rows, csv="plots/selected.csv"
    )
    kept = training.curves(
        "kept", "Examples kept", [("kept", "result", [float(n) for _, n in log])], axis="epoch", csv="plots/kept.csv"
    )
    note = (
        f"{log[-1][1]} of {of} examples were kept in the last epoch, in {sum(bool(len(ids)) for ids, _ in images.values())} of {len(images)} classes."
        if log
        else "Nothing was chosen."
    )
    write_report(folder, "distill/kd3", "What was learned on", notes=[note], sections=[Section("Selection", pictures=[sheet, kept])],
                 plots={"selected": (("class", "id"), [[name, i] for name, (ids, _) in images.items() for i in ids[:SHOWN]]),
                        "kept": (("epoch", "kept"), [list(row) for row in log])})  # fmt: skip
