"""Does global fusion help? Documents from a known graph of concepts, with aliases, wrong statements and edges that only follow; five seeds.

Run: ``python -m benchmarks.build_graphusion``. Compared: the union of what documents say; with names merged; with conflicts settled; with what
follows. Edges are compared by concept, whatever it is called.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import interfuse
from benchmarks.record import save
from interfuse.core.ctx import Ctx
from interfuse.data.statements import key_of_label
from interfuse.kit.stats import paired_t

WORDS = ["Graph", "Neural", "Markov", "Tensor", "Kernel", "Bayesian", "Causal", "Sparse", "Latent", "Spectral", "Dynamic", "Recursive", "Modular", "Robust", "Linear",
         "Convex", "Vector", "Random", "Hidden", "Deep"]  # fmt: skip
THINGS = ["Network", "Model", "Parser", "Encoder", "Sampler", "Filter", "Index", "Planner", "Ranker", "Grammar"]
SAY = {
    "Used-for": "{h} is used for {t}.", "Part-of": "{h} is part of {t}.", "Hyponym-Of": "{h} is a type of {t}.",
    "Is-a-Prerequisite-of": "{h} is a prerequisite of {t}.", "Evaluate-for": "{h} is a measure of {t}.",
}  # fmt: skip
SYSTEMS = {
    "union": {"merge": False, "settle_conflicts": False, "novel": False}, "names merged": {"merge": True, "settle_conflicts": False, "novel": False},
    "conflicts settled": {"merge": True, "settle_conflicts": True, "novel": False}, "with what follows": {"merge": True, "settle_conflicts": True, "novel": True},
}  # fmt: skip
Edge = tuple[str, str, str]


def world(seed: int) -> tuple[dict[str, str], set[Edge], list[str]]:
    """Concept -> acronym, the true edges, and the documents."""
    rng = np.random.Generator(np.random.Philox(seed))
    names = [
        f"{a} {b} {c}"
        for a, b, c in zip(
            rng.permutation(WORDS).tolist() * 2,
            rng.permutation(WORDS).tolist()[::-1] * 2,
            [THINGS[int(i)] for i in rng.integers(0, 10, 40)],
            strict=True,
        )
    ]
    names = list(dict.fromkeys(names))
    short = {n: "".join(w[0] for w in n.split()) for n in names}
    seen: dict[str, int] = {}
    for n in names:
        seen[short[n]] = seen.get(short[n], 0) + 1
    edges: set[Edge] = set()
    stated: list[Edge] = []
    pairs: set[tuple[str, ...]] = set()
    while len(stated) < 60:
        h, t = (names[int(i)] for i in rng.choice(len(names), 2, replace=False))
        if tuple(sorted((h, t))) not in pairs:
            pairs.add(tuple(sorted((h, t))))
            stated.append((h, list(SAY)[int(rng.integers(len(SAY)))], t))
    edges |= set(stated)
    for a, r, b in stated:  # a fifth of the edges is stated nowhere: it follows
        for b2, r2, c in stated:
            if (
                r == r2
                and b == b2
                and r in ("Part-of", "Hyponym-Of", "Is-a-Prerequisite-of")
                and a != c
                and tuple(sorted((a, c))) not in pairs
            ):
                edges.add((a, r, c))
    documents: list[list[str]] = [[] for _ in range(30)]
    for h, r, t in stated:
        for d in rng.choice(30, int(rng.integers(2, 6)), replace=False).tolist():
            relation = r if rng.random() > 0.15 else list(SAY)[int(rng.integers(len(SAY)))]
            ends = []
            for n in (h, t):
                alias = rng.random() < 0.3 and seen[short[n]] == 1
                ends.append(short[n] if alias else n)
                if alias:
                    documents[d].append(f"The {n} ({short[n]}) is well known.")
            documents[d].append(SAY[relation].format(h=ends[0], t=ends[1]))
    return short, edges, [" ".join(dict.fromkeys(d)) for d in documents if d]


def figures(seed: int) -> dict[str, dict[str, float]]:
    short, edges, documents = world(seed)
    back = {key_of_label(s): n for n, s in short.items() if list(short.values()).count(s) == 1}
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        for name, options in SYSTEMS.items():
            graph = interfuse.build.graphusion({f"{i}.txt": d for i, d in enumerate(documents)}, out=Path(place) / name.replace(" ", "-"), concepts=80, topics=4,
                                               ctx=Ctx(cache=Path(place) / "cache"), **options)  # fmt: skip
            labels = {e: graph.label(e) for e in graph.entities()}

            def concept(label: str) -> str:
                key = key_of_label(label)
                return key_of_label(back.get(key, label))

            ours = {(concept(labels[s.subject]), s.predicate.rsplit(":", 1)[-1], concept(labels[s.object])) for s in graph
                    if isinstance(s.object, str) and "relation:" in s.predicate and s.status != "contested"}  # fmt: skip
            gold = {(key_of_label(h), r.casefold(), key_of_label(t)) for h, r, t in edges}
            right = len(ours & gold)
            p, r = right / max(len(ours), 1), right / len(gold)
            nodes = [
                labels[x]
                for s in graph
                if "relation:" in s.predicate and isinstance(s.object, str)
                for x in (s.subject, s.object)
            ]
            distinct = set(nodes)
            pairs = [tuple(sorted((a, b))) for a, _, b in ours]
            rows[name] = {"precision": p, "recall": r, "f1": 2 * p * r / max(p + r, 1e-9),
                          "duplicate nodes": 1 - len({concept(n) for n in distinct}) / max(len(distinct), 1),
                          "pairs with several relations": 1 - len(set(pairs)) / max(len(pairs), 1)}  # fmt: skip
    return rows


def main() -> None:
    runs = {seed: figures(seed) for seed in range(5)}
    names = list(SYSTEMS)
    mean = {n: {k: float(np.mean([r[n][k] for r in runs.values()])) for k in runs[0][n]} for n in names}
    steps: dict[str, Any] = {}
    for before, after in itertools.pairwise(names):
        made = paired_t([r[before]["f1"] for r in runs.values()], [r[after]["f1"] for r in runs.values()])
        steps[f"{after} against {before}"] = {
            "difference of F1": made.delta,
            "low": made.low,
            "high": made.high,
            "n": 5,
        }
    for n in names:
        print(n, {k: round(v, 3) for k, v in mean[n].items()})
    print(steps)
    save(
        "build_graphusion",
        {
            "what": "synthetic documents from a known graph, five seeds, rules, no language model",
            "mean": mean,
            "steps": steps,
            "seeds": runs,
        },
    )


if __name__ == "__main__":
    main()
