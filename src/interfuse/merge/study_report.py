"""What a study says: means over seeds with intervals, the paper's claims, three questions answered, tables, curves and a page."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interfuse.core.ctx import Ctx
from interfuse.core.safe import canonical_json, jsonable, write_atomic
from interfuse.kit.page import Estimate, Grid, Section, render
from interfuse.kit.plots import Curve, Spread, curves
from interfuse.kit.resample import paired_bootstrap

if TYPE_CHECKING:
    from interfuse.merge.study import Study

Row = dict[str, Any]
TONES = ("result", "source", "gained", "reference", "lost", "baseline", "ink", "muted")
#: what of a model is merged
MERGED = "every tensor of a model; embeddings, norms and output heads too, where it has them"
BROKEN = 0.9  # a merge that keeps less of its experts' scores is called broken


def _by_seed(study: Study, rows: Sequence[Row], value: Callable[[Row], float | None]) -> list[float]:
    """The mean over a seed's rows, for every seed: seeds, not subsets or methods, are what intervals are over."""
    found = []
    for seed in study.seeds:
        values = [v for r in rows if r["seed"] == seed and (v := value(r)) is not None]
        if values:
            found.append(float(np.mean(values)))
    return found


def _interval(values: Sequence[float], against: Sequence[float] | None, label: str) -> dict[str, float]:
    """Mean (difference) with a 95 % bootstrap interval over seeds; none for a single seed."""
    other = [0.0] * len(values) if against is None else list(against)
    mean = float(np.mean(np.subtract(values, other)))
    if len(values) < 2:
        return {"value": mean, "low": mean, "high": mean, "seeds": len(values)}
    interval = paired_bootstrap(other, list(values), Ctx().rng(f"study {label}"))
    return {"value": mean, "low": interval.low, "high": interval.high, "seeds": len(values)}


def _spread(found: dict[str, float]) -> Spread:
    return Spread(found["value"], found["low"], found["high"])


def write_report(study: Study, rows: Sequence[Row], out: Path) -> dict[str, Any]:
    """Writes ``cells.csv``, ``curves/*.csv``, ``report.json`` and ``report.html``; returns what report.json holds."""

    def pick(**wanted: Any) -> list[Row]:
        return [r for r in rows if all(r[k] == v for k, v in wanted.items())]

    table: list[dict[str, Any]] = []
    for (size, quality), n, method in itertools.product(study.labels, study.counts, study.methods):
        mine = pick(size=size, quality=quality, n=n, method=method)
        line: dict[str, Any] = {"size": size, "quality": quality, "experts": n, "method": method}
        for kind in ("held_in_normalised", "held_out_normalised"):
            values = _by_seed(study, mine, lambda r, kind=kind: r[kind])  # type: ignore[misc]
            line[kind] = _interval(values, None, f"{size} {quality} {n} {method} {kind}") if values else None
        line["held_in"] = float(np.mean([np.mean(list(r["held_in"].values())) for r in mine]))
        line["held_out"] = (
            float(np.mean([np.mean(list(r["held_out"].values())) for r in mine])) if study.held_out else None
        )
        line["settings chosen"] = [r["setting"] for r in mine]
        table.append(line)
    report: dict[str, Any] = {"title": study.title, "seeds": list(study.seeds), **study.cost(), "table": table, "claims": _claims(study, pick),
              "answers": _answers(study, pick), "merged": MERGED}  # fmt: skip
    sections = _sections(study, table, report, out)
    _write_csv(out / "cells.csv", [_flat(r) for r in rows])
    write_atomic(out / "report.json", canonical_json(jsonable(report)))
    page = render(study.title, notes=list(report["answers"].values()), sections=sections, made_by="merge study",
                  facts=[("seeds", str(len(study.seeds))), ("cells", str(report["cells"])), ("merges", str(report["merges"])), ("merged", MERGED)])  # fmt: skip
    write_atomic(out / "report.html", page.encode())
    return report


def _claims(study: Study, pick: Callable[..., list[Row]]) -> dict[str, Any]:
    """The paper's claims in figures: positive values speak for them."""
    sizes, qualities = (list(dict.fromkeys(label[i] for label in study.labels)) for i in (0, 1))
    claims: dict[str, Any] = {}

    def inside(row: Row) -> float:
        return float(row["held_in_normalised"])

    if len(qualities) > 1:
        weak, strong = qualities[0], qualities[-1]
        for size, n in itertools.product(sizes, study.counts):
            a, b = (_by_seed(study, pick(size=size, quality=q, n=n), inside) for q in (weak, strong))
            claims[f"1 {strong} base above {weak} base, {size}, {n} experts"] = _interval(b, a, f"1 {size} {n}")
    if len(sizes) > 1:
        small, large = sizes[0], sizes[-1]
        for quality, n in itertools.product(qualities, study.counts):
            a, b = (_by_seed(study, pick(size=s, quality=quality, n=n), inside) for s in (small, large))
            claims[f"2 {large} above {small}, {quality} base, {n} experts"] = _interval(b, a, f"2 {quality} {n}")
    if study.held_out:
        n = max(study.counts)
        for size, quality in study.labels:
            mine = pick(size=size, quality=quality, n=n)
            out = _by_seed(study, mine, lambda r: r["held_out_normalised"])
            claims[f"3 held-out above the base, {size} {quality}, {n} experts"] = _interval(
                out, [1.0] * len(out), f"3 {size} {quality}"
            )
            many = _by_seed(study, mine, lambda r: r["multitask_held_out"])
            if len(many) == len(out):
                claims[f"3 held-out above multitask training, {size} {quality}, {n} experts"] = _interval(
                    out, many, f"3m {size} {quality}"
                )
    if len(study.counts) > 1:
        few, most = min(study.counts), max(study.counts)
        drops = {}
        for size, quality in study.labels:
            a, b = (_by_seed(study, pick(size=size, quality=quality, n=n), inside) for n in (few, most))
            drops[size, quality] = [x - y for x, y in zip(a, b, strict=True)]
            claims[f"4 held-in falls from {few} to {most} experts, {size} {quality}"] = _interval(
                a, b, f"4 {size} {quality}"
            )
        if len(sizes) > 1:
            for quality in qualities:
                claims[f"4 it falls less for {sizes[-1]} than for {sizes[0]}, {quality} base"] = _interval(
                    drops[sizes[0], quality], drops[sizes[-1], quality], f"4 {quality}"
                )
    if len(study.methods) > 1 and len(study.labels) > 1:

        def gaps(size: str, quality: str) -> list[float]:
            found = []
            for seed in study.seeds:
                means = [
                    float(np.mean([inside(r) for r in pick(size=size, quality=quality, method=m, seed=seed)]))
                    for m in study.methods
                ]
                found.append(max(means) - min(means))
            return found

        first, last = study.labels[0], study.labels[-1]
        claims[f"5 methods differ less, {' '.join(last)} than {' '.join(first)}"] = _interval(
            gaps(*first), gaps(*last), "5"
        )
    return claims


def _answers(study: Study, pick: Callable[..., list[Row]]) -> dict[str, str]:
    """One sentence per question of a user, with the figures."""
    size, quality = study.labels[-1]
    who = f"the {size} {quality} family"
    answers = {}
    mine = pick(size=size, quality=quality, n=max(study.counts))
    best = max(study.methods, key=lambda m: float(np.mean([r["held_in_normalised"] for r in mine if r["method"] == m])))
    chosen = [r for r in mine if r["method"] == best]
    inside = _by_seed(study, chosen, lambda r: r["held_in_normalised"])
    many = _by_seed(study, chosen, lambda r: r["multitask_held_in"])
    if many:
        gap = _interval(inside, many, "answer multitask")
        word = "keeps less than" if gap["high"] < 0 else "keeps more than" if gap["low"] > 0 else "cannot be told from"
        answers["merge or multitask"] = (f"With {max(study.counts)} experts of {who} the best method here, {best}, keeps {np.mean(inside):.2f} of the experts' "
                                         f"scores and {word} multitask training ({np.mean(many):.2f}; difference {gap['value']:+.2f}, "
                                         f"95 % {gap['low']:+.2f} to {gap['high']:+.2f}).")  # fmt: skip
    tuned = {m: [r["setting"] for r in pick(method=m)] for m in study.methods if len(study.settings(m)) > 1}
    words = []
    for m, settings in tuned.items():
        common = max(study.settings(m), key=lambda s: sum(t == s for t in settings))
        words.append(f"{m} {', '.join(f'{k} {v:g}' if isinstance(v, float) else f'{k} {v}' for k, v in common.items())} "
                     f"({sum(t == common for t in settings)} of {len(settings)} cells)")  # fmt: skip
    if words:
        answers["which setting"] = "Chosen most often: " + "; ".join(words) + "."
    means = {
        n: float(np.mean(_by_seed(study, pick(size=size, quality=quality, n=n), lambda r: r["held_in_normalised"])))
        for n in study.counts
    }
    broken = [n for n, v in means.items() if v < BROKEN]
    shown = ", ".join(f"{n}: {v:.2f}" for n, v in means.items())
    answers["how many experts"] = (f"Of {who}, {min(broken)} experts are the first number to keep less than {BROKEN:.0%} of their scores ({shown})." if broken
                                   else f"{who[0].upper()}{who[1:]} keeps at least {BROKEN:.0%} of its experts' scores at every number tried ({shown}).")  # fmt: skip
    return answers


def _sections(study: Study, table: Sequence[dict[str, Any]], report: dict[str, Any], out: Path) -> list[Section]:
    (out / "curves").mkdir(exist_ok=True)
    pictures = []
    kinds = [("held_in_normalised", "Held-in, share of the experts' scores", 1.0, "experts")]
    if study.held_out:
        kinds.append(("held_out_normalised", "Held-out, times the base's score", 1.0, "base"))
    for kind, words, level, named in kinds:
        short = kind.removesuffix("_normalised").replace("_", "-")
        for quality in dict.fromkeys(q for _, q in study.labels):
            lines, numbers = [], []
            for tone, size in enumerate(dict.fromkeys(s for s, q in study.labels if q == quality)):
                x, y = [], []
                for n in study.counts:
                    values = [t[kind] for t in table if (t["size"], t["quality"], t["experts"]) == (size, quality, n)]
                    spread = Spread(*(float(np.mean([v[k] for v in values])) for k in ("value", "low", "high")))
                    x.append(float(n))
                    y.append(spread)
                    numbers.append(
                        {
                            "size": size,
                            "quality": quality,
                            "experts": n,
                            "mean": spread.value,
                            "low": spread.low,
                            "high": spread.high,
                        }
                    )
                lines.append(Curve(size, TONES[tone % len(TONES)], x, y))
            file = f"curves/{short}-{quality}.csv"
            _write_csv(out / file, numbers)
            pictures.append(curves(f"{short}-{quality}", f"{words}: {quality} base", lines, x_label="experts merged", csv=file, level=(level, named),
                                   caption="Means over methods, with the mean of their intervals."))  # fmt: skip
        for size, quality in study.labels:
            lines, numbers = [], []
            for tone, method in enumerate(study.methods):
                mine = [t for t in table if (t["size"], t["quality"], t["method"]) == (size, quality, method)]
                lines.append(
                    Curve(
                        method,
                        TONES[tone % len(TONES)],
                        [float(t["experts"]) for t in mine],
                        [_spread(t[kind]) for t in mine],
                    )
                )
                numbers += [
                    {"method": method, "experts": t["experts"], **{k: t[kind][k] for k in ("value", "low", "high")}}
                    for t in mine
                ]
            file = f"curves/{short}-{size}-{quality}.csv"
            _write_csv(out / file, numbers)
            pictures.append(curves(f"{short}-{size}-{quality}", f"{words}: {size} {quality}", lines, x_label="experts merged", csv=file, level=(level, named)))  # fmt: skip

    def estimate(found: dict[str, float] | None, signed: bool = False) -> Any:
        return None if found is None else Estimate(found["value"], found["low"], found["high"], signed=signed)

    claims = Grid(["claim", "difference"], [[name, estimate(v, True)] for name, v in report["claims"].items()],
                  note="Positive speaks for the claim, an interval without 0 beyond chance. Means over methods and sets of experts; intervals over seeds.")  # fmt: skip
    grid = Grid(["size", "base", "experts", "method", "held-in", "held-out", "raw held-in", "raw held-out"],
                [[t["size"], t["quality"], str(t["experts"]), t["method"], estimate(t["held_in_normalised"]), estimate(t["held_out_normalised"]),
                  t["held_in"], t["held_out"]] for t in table])  # fmt: skip
    return [Section("Curves", pictures=pictures), Section("What the paper claims", grids=[claims]),
            Section("Every cell", grids=[grid], folded=True, csv="cells.csv")]  # fmt: skip


def _flat(row: Row) -> dict[str, Any]:
    plain = {k: row[k] for k in ("size", "quality", "seed", "n", "method", "held_in_normalised", "held_out_normalised", "multitask_held_in",
                                 "multitask_held_out")}  # fmt: skip
    return {**plain, "experts_merged": " ".join(row["experts_merged"]), "setting": " ".join(f"{k}={v}" for k, v in row["setting"].items()),
            **{f"held-in {k}": v for k, v in row["held_in"].items()}, **{f"held-out {k}": v for k, v in row["held_out"].items()}}  # fmt: skip


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(k for r in rows for k in r))
    sink = io.StringIO()
    writer = csv.DictWriter(sink, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, sink.getvalue().encode())
