"""Comparisons out of a small real language model: constrained search and filters against plain beams and sampling.

    INTERFUSE_SHARED_DATA=... python benchmarks/build_neurocomparatives.py [PAIRS OF EACH KIND]

Animals with their usual adult masses in kilograms (common reference values, rounded), atoms of elements with their weights and radii, and bars of
metals with their densities (package mendeleev, fetched with pip unless it is installed) are the gold: a statement that uses a word of size or
weight is right or wrong by them; others are counted as comparisons but not judged. Pairs of the authors' own list of things (shared data) have no
gold: they show forms and diversity. All systems make ten continuations per prompt, and say how many tokens the model computed for them. The critic
judges each pair after learning from the statements of other pairs. Intervals of differences are drawn over pairs. What is measured of one pair is
kept: a run that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from build_bertnet import package
from real_models import smollm2
from record import part, save

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.lm import open_lm
from interfuse.kit.comparatives import prompt_of, taken_apart
from interfuse.kit.constrained_beam import Constraint, constrained_beam
from interfuse.kit.critics import train_critic
from interfuse.kit.stats import wilson_interval
from interfuse.kit.token_models import CausalStepper

PLACE = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
MASS = {"elephant": 5000, "rhinoceros": 2000, "hippopotamus": 1500, "giraffe": 1000, "bison": 800, "horse": 500, "cow": 600, "camel": 500, "bear": 300,
        "lion": 180, "tiger": 200, "gorilla": 160, "pig": 150, "sheep": 70, "wolf": 40, "goat": 50, "dog": 30, "monkey": 8, "fox": 6, "cat": 4, "rabbit": 2,
        "squirrel": 0.5, "rat": 0.3, "hamster": 0.1, "mouse": 0.02, "ant": 0.000003, "bee": 0.0001, "whale": 100000, "dolphin": 200, "sparrow": 0.03}  # fmt: skip
#: word -> what it is of, and whether it says more
SAYS = {**{w: (kind, 1) for kind, words in (("weight", ("heavier",)), ("density", ("denser",)), ("size", ("larger", "bigger")),
                                            ("build", ("taller", "bulkier", "stronger"))) for w in words},
        **{w: (kind, -1) for kind, words in (("weight", ("lighter",)), ("density", ("sparser",)), ("size", ("smaller", "littler")),
                                             ("build", ("shorter", "slimmer", "weaker"))) for w in words}}  # fmt: skip
#: elements whose atoms are compared, and metals whose bars are
ATOMS = ("hydrogen", "helium", "lithium", "carbon", "nitrogen", "oxygen", "neon", "sodium", "magnesium", "aluminum", "chlorine", "calcium", "iron", "copper",
         "zinc", "silver", "tin", "platinum", "gold", "mercury", "lead", "uranium")  # fmt: skip
BARS = (
    "lithium",
    "magnesium",
    "aluminum",
    "titanium",
    "zinc",
    "tin",
    "iron",
    "nickel",
    "copper",
    "silver",
    "lead",
    "tungsten",
    "gold",
    "platinum",
)
#: kind of pairs -> a pair is taken when one is at least so many times as heavy as the other
APART = {"animals": 3.0, "atoms": 3.0, "bars of metal": 1.5}
#: a word is judged when one is at least so many times what it is of as the other
JUDGED_FROM = 1.2
THINGS = "things of the authors' list"
#: pairs of that list, whatever the number of the others
LISTED = 48


@cache
def measures() -> dict[str, dict[str, dict[str, float]]]:
    """Kind -> thing -> what is known of it."""
    base = package("mendeleev", "1.1.0") / "elements.db"
    with sqlite3.connect(f"file:{base}?mode=ro", uri=True) as table:
        rows = table.execute(
            "select lower(name), atomic_weight, covalent_radius_pyykko, density from elements"
        ).fetchall()
    known = {name: (weight, radius, density) for name, weight, radius, density in rows}
    return {"animals": {a: {"weight": m, "size": m, "build": m} for a, m in MASS.items()},
            "atoms": {f"{e} atom": {"weight": known[e][0], "size": known[e][1]} for e in ATOMS},
            "bars of metal": {f"{e} bar": {"weight": known[e][2], "density": known[e][2]} for e in BARS}}  # fmt: skip


def verdict(first: str, second: str, comparative: str) -> bool | None:
    """Whether ``second is comparative than first`` agrees with what is known; None for other words and things."""
    aspect, sign = SAYS.get(comparative, ("", 0))
    of = next((own for own in measures().values() if first in own and second in own), {})
    a, b = (of.get(thing, {}).get(aspect) for thing in (first, second))
    return None if a is None or b is None or max(a, b) < JUDGED_FROM * min(a, b) else (b - a) * sign > 0


PLAIN, SAMPLED, MADE, VOTED = (
    "plain beam",
    "nucleus sampling",
    "constrained, clustered",
    "constrained, clustered, voted",
)
CONSISTENT, JUDGED = (
    "the same, and not contradicted by the pair the other way round",
    "the same, and a critic's better half",
)
COUNT, LONGEST, FOLDS, DRAWS = 10, 20, 5, 1000

#: (first, second, continuation, confidence)
Said = tuple[str, str, str, float]


def measured(lm: Any, pair: tuple[str, str]) -> dict[str, Any]:
    """What each system says of a pair in both orders; seconds of processor time and tokens computed."""
    found: dict[str, list[Said]] = {PLAIN: [], SAMPLED: []}
    cost: dict[str, dict[str, float]] = {}
    end = [*lm.tokenizer(".", add_special_tokens=False)["input_ids"], *lm.tokenizer("\n", add_special_tokens=False)["input_ids"],
           *lm.tokenizer.all_special_ids]  # fmt: skip
    orders = [pair, (pair[1], pair[0])]
    began, stepper = time.process_time(), CausalStepper(lm.module)
    for a, b in orders:
        for f in constrained_beam(
            stepper,
            lm.tokens_of(prompt_of(a, b)),
            Constraint(),
            end=end,
            beam=COUNT,
            max_length=LONGEST,
            penalty=0.1,
            count=COUNT,
        ):
            found[PLAIN].append((a, b, lm.tokenizer.decode(list(f.tokens)), f.score(0.1)))
    cost[PLAIN] = {"seconds": time.process_time() - began, "tokens": stepper.forward_tokens}
    began = time.process_time()
    replies = lm.generate([prompt_of(a, b) for a, b in orders], max_tokens=LONGEST, temperature=1.0, top_p=0.9, n=COUNT, stop=(".", "\n"), seed=1)  # fmt: skip
    found[SAMPLED] = [(a, b, r.text, 0.0) for (a, b), group in zip(orders, replies, strict=True) for r in group]
    cost[SAMPLED] = {"seconds": time.process_time() - began, "tokens": sum(r.tokens for group in replies for r in group)}  # fmt: skip
    began = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        apply("build/neurocomparatives", lm=lm, pairs=[list(pair)], beam=COUNT, returned=COUNT, longest=LONGEST, survivors=5, out=Path(place) / "g")  # fmt: skip
        rows = [json.loads(line) for line in (Path(place) / "g" / "comparisons.jsonl").read_text().splitlines()]
        told = json.loads((Path(place) / "g" / "interfuse.json").read_text())["facts"]
    cost[MADE] = {"seconds": time.process_time() - began, "tokens": told["counts"]["tokens computed"]}
    return {"said": found, "rows": rows, "cost": cost, "funnel": told["method"]["funnel"]}


def said(row: dict[str, Any]) -> Said:
    text = row["text"].removeprefix(prompt_of(row["first"], row["second"])).strip()
    return row["first"], row["second"], text, row["entailed"] - row["contradicted"] + row["logprob"] / 100


def consistent(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Statements without an equal one about the pair in the other order (both would say that each is bigger)."""
    said = {(r["first"], r["second"], r["comparative"], r["property"]) for r in rows}
    return [r for r in rows if (r["second"], r["first"], r["comparative"], r["property"]) not in said]


def figures(rows: Sequence[Said], prompts: int, cost: dict[str, float]) -> dict[str, Any]:
    """Rows of one system in numbers."""
    apart = [(a, b, taken_apart(a, b, c), v) for a, b, c, v in rows]
    formed = [(a, b, c, v) for a, b, c, v in apart if not isinstance(c, str)]
    judged = sorted(((v, ok) for a, b, c, v in formed if (ok := verdict(a, b, c.comparative)) is not None), key=lambda r: -r[0])  # fmt: skip
    kinds: dict[tuple[str, str], set[str]] = {}
    for a, b, c, _ in formed:
        kinds.setdefault((a, b), set()).add(c.comparative)
    found: dict[str, Any] = {"statements": len(rows), "well formed": len(formed) / max(len(rows), 1), "judged": len(judged), **cost,
                             "comparatives per prompt": sum(map(len, kinds.values())) / prompts}  # fmt: skip
    if judged:
        interval = wilson_interval(sum(ok for _, ok in judged), len(judged))
        found |= {"right of judged": interval.estimate, "low": interval.low, "high": interval.high, "right per prompt": sum(ok for _, ok in judged) / prompts}  # fmt: skip
        found["as the filter tightens"] = [{"kept": k, "right": (w := wilson_interval(sum(ok for _, ok in judged[:k]), k)).estimate, "low": w.low, "high": w.high,
                                            "of all right ones": sum(ok for _, ok in judged[:k]) / max(sum(ok for _, ok in judged), 1)}
                                           for share in (0.75, 0.5, 0.25) if (k := round(share * len(judged)))]  # fmt: skip
    return found


def critic(learnt: list[list[dict[str, Any]]], groups: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Of each pair's statements those that are likelier right than the median, by a critic that learnt from all statements of other pairs."""
    order = Ctx().rng("folds").permutation(len(groups))
    fold = {int(g): n % FOLDS for n, g in enumerate(order)}
    chosen: list[list[dict[str, Any]]] = [[] for _ in groups]
    for f in range(FOLDS):
        known = [(r["text"], ok, str(g)) for g, rows in enumerate(learnt) if fold[g] != f for r in rows
                 if (ok := verdict(r["first"], r["second"], r["comparative"])) is not None]  # fmt: skip
        texts, truth = [t for t, _, _ in known], [ok for _, ok, _ in known]
        judge = train_critic(texts, truth, groups=[g for *_, g in known], rng=Ctx(seed=f).rng("critic"), least=40)
        own = [(g, r) for g, rows in enumerate(groups) if fold[g] == f for r in rows]
        bar = float(np.median(judge(texts)))
        for (g, r), value in zip(own, judge([r["text"] for _, r in own]), strict=True):
            if value > bar:
                chosen[g].append(r)
    return chosen


def difference(first: list[list[Said]], second: list[list[Said]]) -> dict[str, float]:
    """How much more of what the second system says is right, of what can be judged; the interval is drawn over pairs."""
    counts = np.zeros((len(first), 4))
    for k, groups in enumerate((first, second)):
        for i, rows in enumerate(groups):
            for a, b, text, _ in rows:
                c = taken_apart(a, b, text)
                ok = None if isinstance(c, str) else verdict(a, b, c.comparative)
                counts[i, 2 * k : 2 * k + 2] += (ok is not None, bool(ok))

    def gain(total: Any) -> float:
        return float(total[3] / max(total[2], 1) - total[1] / max(total[0], 1))

    rng = Ctx().rng("draws")
    drawn = [gain(counts[rng.integers(0, len(counts), len(counts))].sum(0)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"pairs": len(counts), "difference": gain(counts.sum(0)), "low": float(low), "high": float(high)}


def counted(rows: Sequence[Said]) -> tuple[float, float, float]:
    """Of one pair's statements: distinct comparatives and right statements per prompt, and the share that is a comparison."""
    formed = [(a, b, c) for a, b, text, _ in rows if not isinstance(c := taken_apart(a, b, text), str)]
    right = sum(bool(verdict(a, b, c.comparative)) for a, b, c in formed)
    return (
        len({(a, b, c.comparative) for a, b, c in formed}) / 2,
        right / 2,
        len(formed) / len(rows) if rows else np.nan,
    )


def changes(first: list[list[Said]], second: list[list[Said]], *, judged: bool) -> dict[str, Any]:
    """Differences of :func:`counted` between two systems, paired, intervals drawn over pairs; of what is right only where it is judged."""
    gaps = np.array([counted(b) for b in second]) - np.array([counted(a) for a in first])
    rng = Ctx().rng("draws")
    drawn = np.array([np.nanmean(gaps[rng.integers(0, len(gaps), len(gaps))], axis=0) for _ in range(DRAWS)])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    names = ("comparatives per prompt", "right per prompt", "well formed")
    return {n: {"pairs": int(np.isfinite(gaps[:, i]).sum()), "difference": float(np.nanmean(gaps[:, i])), "low": float(low[i]), "high": float(high[i])} for i, n in enumerate(names) if judged or i != 1}  # fmt: skip


def pairs_of(kind: str, count: int) -> list[tuple[str, str]]:
    """Pairs of a kind, one thing heavier than the other by what :data:`APART` says; of the authors' list, as they come."""
    if kind == THINGS:
        rows = [
            line.split("\t") for line in (PLACE / "neurocomparatives" / "entity_pairs.tsv").read_text().splitlines()
        ]
        plain = [(a, b) for _, a, b in rows if all(re.fullmatch(r"[a-z]{3,}( [a-z]{3,})?", w) for w in (a, b))]
        return [plain[int(i)] for i in Ctx().rng("pairs things").choice(len(plain), LISTED, replace=False)]
    of, rng, found = (
        measures()[kind],
        Ctx().rng("pairs" if kind == "animals" else f"pairs {kind}"),
        list[tuple[str, str]](),
    )
    names = list(of)
    while len(found) < count:
        a, b = (names[int(i)] for i in rng.choice(len(names), 2, replace=False))
        weights = of[a]["weight"], of[b]["weight"]
        if max(weights) >= APART[kind] * min(weights) and (a, b) not in found and (b, a) not in found:
            found.append((a, b))
    return found


def main(count: int = 16) -> None:
    model = smollm2()
    if model is None:
        print("skipped: the model is not here")
        return
    lm: Any = open_lm(Source(str(model), "SmolLM2-135M-Instruct"), Ctx(dtype="bfloat16"))
    kinds: dict[str, list[dict[str, Any]]] = {}
    for kind in [*measures(), *([THINGS] if (PLACE / "neurocomparatives").is_dir() else [])]:
        kinds[kind] = []
        for pair in pairs_of(kind, count):
            kinds[kind].append(part("build-neurocomparatives", " ".join(pair), partial(measured, lm, pair)))
            print(pair, {k: round(v["seconds"], 1) for k, v in kinds[kind][-1]["cost"].items()}, flush=True)
        write(kinds)


def write(kinds: dict[str, list[dict[str, Any]]]) -> None:
    """Each kind of pairs by itself, animals first, and all that are judged together."""
    every = [p for kind in measures() for p in kinds.get(kind, [])]
    save("build-neurocomparatives", {"model": "SmolLM2-135M-Instruct (4-bit weights, computed in bfloat16)", **told(kinds["animals"], trained=True),
                                     "other pairs": {k: told(p, trained=False) for k, p in kinds.items() if k != "animals"},
                                     "animals, atoms and bars together": told(every, trained=True)})  # fmt: skip


def told(parts: list[dict[str, Any]], *, trained: bool) -> dict[str, Any]:
    """Some pairs in numbers, with a critic that learns from them where they are enough."""
    voted = [[r for r in p["rows"] if not r["dropped"]] for p in parts]
    both = [consistent(rows) for rows in voted]
    kept: dict[str, list[list[Said]]] = {
        name: [[tuple(x) for x in p["said"][name]] for p in parts] for name in (PLAIN, SAMPLED)
    }
    for name, groups in (
        (MADE, [p["rows"] for p in parts]),
        (VOTED, voted),
        (CONSISTENT, both),
        *([(JUDGED, critic([p["rows"] for p in parts], both))] if trained else []),
    ):
        kept[name] = [[said(r) for r in rows] for rows in groups]

    def cost(name: str) -> dict[str, float]:
        return {k: sum(p["cost"].get(name, p["cost"][MADE])[k] for p in parts) for k in ("seconds", "tokens")}

    table = {
        name: figures([r for rows in groups for r in rows], 2 * len(parts), cost(name)) for name, groups in kept.items()
    }
    steps: tuple[tuple[str, str], ...] = ((PLAIN, MADE), (SAMPLED, MADE), (MADE, VOTED), (VOTED, CONSISTENT), (CONSISTENT, JUDGED), (SAMPLED, JUDGED))  # fmt: skip
    wanted = [(a, b) for a, b in (*steps, *([] if trained else [(SAMPLED, CONSISTENT)])) if b in kept]
    funnel: dict[str, dict[str, int]] = {}
    for p in parts:
        for row in p["funnel"]:
            at = funnel.setdefault(row["stage"], {"in": 0, "out": 0})
            at["in"], at["out"] = at["in"] + row["in"], at["out"] + row["out"]
    sample = [r["text"] for rows in both for r in rows]
    return {"pairs": len(parts), "prompts": 2 * len(parts), "systems": table,
            "paired": {f"{b} minus {a}": difference(kept[a], kept[b]) for a, b in wanted if table[a]["judged"] and table[b]["judged"]},
            "paired, per prompt": {f"{b} minus {a}": changes(kept[a], kept[b], judged=trained or bool(table[b]["judged"])) for a, b in (*wanted, *([(PLAIN, JUDGED)] if trained else []))},
            "funnel": funnel, "examples": sample[:: max(len(sample) // 12, 1)]}  # fmt: skip


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
