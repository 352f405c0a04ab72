"""Does global fusion help? Documents from a known graph of concepts, with aliases, wrong statements and edges that only follow; five seeds.

Run: ``python -m benchmarks.build_graphusion``. Compared: the union of what documents say; with names merged; with conflicts settled; with what
follows. Edges are compared by concept, whatever it is called: all of them, and those of each relation, prerequisites among them.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import interfuse
from benchmarks.record import save
from interfuse.core.ctx import Ctx
from interfuse.data.statements import key_of_label
from interfuse.kit.stats import paired_t, wilson_interval

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


def figures(seed: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[int]]]]:
    """Of every system its figures over all edges, and of every relation how many edges are right, given and true."""
    short, edges, documents = world(seed)
    back = {key_of_label(s): n for n, s in short.items() if list(short.values()).count(s) == 1}
    rows, counts = {}, {}
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
            counts[name] = {
                relation: [
                    len({e for e in group if e[1] == relation.casefold()}) for group in (ours & gold, ours, gold)
                ]
                for relation in SAY
            }
            rows[name] = {"precision": p, "recall": r, "f1": 2 * p * r / max(p + r, 1e-9),
                          "duplicate nodes": 1 - len({concept(n) for n in distinct}) / max(len(distinct), 1),
                          "pairs with several relations": 1 - len(set(pairs)) / max(len(pairs), 1)}  # fmt: skip
    return rows, counts


def by_relation(runs: Sequence[dict[str, dict[str, list[int]]]]) -> dict[str, Any]:
    """Every relation by itself: precision and recall over the edges of all seeds with Wilson's intervals, F1 over seeds with Student's, paired."""

    def share(good: int, n: int) -> dict[str, float]:
        made = wilson_interval(good, n)
        return {"value": made.estimate, "low": made.low, "high": made.high, "n": n}

    def f1(right: int, given: int, true: int) -> float:
        return 2 * right / max(given + true, 1)

    table: dict[str, Any] = {}
    for relation in SAY:
        own = {name: [f1(*r[name][relation]) for r in runs] for name in SYSTEMS}
        table[relation] = {}
        for name in SYSTEMS:
            right, given, true = (sum(r[name][relation][i] for r in runs) for i in range(3))
            over = paired_t(np.zeros(len(runs)), own[name])
            table[relation][name] = {
                "precision": share(right, given),
                "recall": share(right, true),
                "f1": {"value": over.delta, "low": over.low, "high": over.high},
            }
        last = list(SYSTEMS)[-1]
        for other in list(SYSTEMS)[:-1]:
            made = paired_t(own[other], own[last])
            table[relation][f"{last} against {other}"] = {
                "difference of F1": made.delta,
                "low": made.low,
                "high": made.high,
                "n": len(runs),
            }
    return table


def main() -> None:
    both = {seed: figures(seed) for seed in range(5)}
    runs = {seed: rows for seed, (rows, _) in both.items()}
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
            "relations": by_relation([counts for _, counts in both.values()]),
            "seeds": runs,
        },
    )


if __name__ == "__main__":
    main()
