"""Comparisons out of a small real language model: constrained search and filters against plain beams and sampling.

    python benchmarks/build_neurocomparatives.py [PAIRS]

Animals with their usual adult masses in kilograms (common reference values, rounded) are the gold: a statement that uses a word of size or
weight is right or wrong by them; others are counted as comparisons but not judged. All systems make ten continuations per prompt.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from real_models import smollm2
from record import save

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source, apply
from interfuse.data.lm import open_lm
from interfuse.kit.comparatives import prompt_of, taken_apart
from interfuse.kit.constrained_beam import Constraint, constrained_beam
from interfuse.kit.stats import wilson_interval
from interfuse.kit.token_models import CausalStepper

MASS = {"elephant": 5000, "rhinoceros": 2000, "hippopotamus": 1500, "giraffe": 1000, "bison": 800, "horse": 500, "cow": 600, "camel": 500, "bear": 300,
        "lion": 180, "tiger": 200, "gorilla": 160, "pig": 150, "sheep": 70, "wolf": 40, "goat": 50, "dog": 30, "monkey": 8, "fox": 6, "cat": 4, "rabbit": 2,
        "squirrel": 0.5, "rat": 0.3, "hamster": 0.1, "mouse": 0.02, "ant": 0.000003, "bee": 0.0001, "whale": 100000, "dolphin": 200, "sparrow": 0.03}  # fmt: skip
MORE = ("heavier", "larger", "bigger", "taller", "bulkier", "stronger")
LESS = ("lighter", "smaller", "littler", "shorter", "slimmer", "weaker")
#: a pair is judged when one is at least so many times as heavy as the other
APART = 3.0


def verdict(first: str, second: str, comparative: str) -> bool | None:
    """Whether ``second is comparative than first`` agrees with the masses; None for other words."""
    if comparative in MORE:
        return MASS[second] > MASS[first]
    return MASS[second] < MASS[first] if comparative in LESS else None


def figures(rows: list[tuple[str, str, str]], prompts: int, seconds: float) -> dict[str, Any]:
    """Rows (first, second, continuation) of one system in numbers."""
    apart = [(a, b, taken_apart(a, b, c)) for a, b, c in rows]
    formed = [(a, b, c) for a, b, c in apart if not isinstance(c, str)]
    judged = [v for a, b, c in formed if (v := verdict(a, b, c.comparative)) is not None]
    kinds: dict[tuple[str, str], set[str]] = {}
    for a, b, c in formed:
        kinds.setdefault((a, b), set()).add(c.comparative)
    found: dict[str, Any] = {"statements": len(rows), "well formed": len(formed) / max(len(rows), 1), "judged": len(judged), "seconds": seconds,
                             "comparatives per prompt": sum(map(len, kinds.values())) / prompts}  # fmt: skip
    if judged:
        interval = wilson_interval(sum(judged), len(judged))
        found |= {"right of judged": interval.estimate, "low": interval.low, "high": interval.high}
    return found


def main(count: int = 20) -> None:
    ctx = Ctx()
    lm: Any = open_lm(Source(str(smollm2()), "SmolLM2-135M-Instruct"), ctx)
    rng, names = ctx.rng("pairs"), list(MASS)
    pairs: list[list[str]] = []
    while len(pairs) < count:
        a, b = (names[int(i)] for i in rng.choice(len(names), 2, replace=False))
        if max(MASS[a], MASS[b]) >= APART * min(MASS[a], MASS[b]) and [a, b] not in pairs and [b, a] not in pairs:
            pairs.append([a, b])
    ordered = [(a, b) for a, b in pairs] + [(b, a) for a, b in pairs]
    results: dict[str, Any] = {}
    began = time.perf_counter()
    rows: list[tuple[str, str, str]] = []
    end = [
        *lm.tokenizer(".", add_special_tokens=False)["input_ids"],
        *lm.tokenizer("\n", add_special_tokens=False)["input_ids"],
        *lm.tokenizer.all_special_ids,
    ]
    stepper = CausalStepper(lm.module)
    for a, b in ordered:
        for f in constrained_beam(
            stepper, lm.tokens_of(prompt_of(a, b)), Constraint(), end=end, beam=10, max_length=20, count=10
        ):
            rows.append((a, b, lm.tokenizer.decode(list(f.tokens))))
    results["plain beam"] = figures(rows, len(ordered), time.perf_counter() - began)
    began = time.perf_counter()
    replies = lm.generate(
        [prompt_of(a, b) for a, b in ordered], max_tokens=20, temperature=1.0, top_p=0.9, n=10, stop=(".", "\n"), seed=1
    )
    results["nucleus sampling"] = figures(
        [(a, b, r.text) for (a, b), group in zip(ordered, replies, strict=True) for r in group],
        len(ordered),
        time.perf_counter() - began,
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        apply("build/neurocomparatives", lm=lm, pairs=pairs, beam=10, returned=10, survivors=5, out=Path(place) / "g")
        lines = [json.loads(line) for line in (Path(place) / "g" / "comparisons.jsonl").read_text().splitlines()]
        funnel = json.loads((Path(place) / "g" / "interfuse.json").read_text())["facts"]["method"]["funnel"]
    took = time.perf_counter() - began

    def said(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["first"], row["second"], row["text"].split(",", 1)[1].strip().split(" ", 1)[1]

    results["constrained, clustered"] = figures([said(r) for r in lines], len(ordered), took)
    results["constrained, clustered, voted"] = figures([said(r) for r in lines if not r["dropped"]], len(ordered), took)
    both = consistent([r for r in lines if not r["dropped"]])
    results["the same, and not contradicted by the pair the other way round"] = figures(
        [said(r) for r in both], len(ordered), took
    )
    sample = [r["text"] for r in lines if not r["dropped"]]
    save("build-neurocomparatives", {"model": "SmolLM2-135M-Instruct (4-bit weights as bfloat16)", "pairs": len(pairs), "prompts": len(ordered), "systems": results,
                                     "funnel": funnel, "examples": [sample[int(i)] for i in np.linspace(0, len(sample) - 1, 12)]})  # fmt: skip
    print(json.dumps(results, indent=1))


def consistent(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Statements without an equal one about the pair in the other order (both would say that each is bigger)."""
    said = {(r["first"], r["second"], r["comparative"], r["property"]) for r in rows}
    return [r for r in rows if (r["second"], r["first"], r["comparative"], r["property"]) not in said]


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
