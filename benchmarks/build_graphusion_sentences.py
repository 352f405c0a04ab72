"""Does global fusion lose facts of real sentences? Graphusion by rules on the test sentences of Text2KGBench, the union against each step of fusion.

    INTERFUSE_SHARED_DATA=... python -m benchmarks.build_graphusion_sentences

The relations are those of each of the ten ontologies. The words by which rules find them are the verb groups that join the two ends of
gold triples in its training sentences: said twice at least, and of no other relation more often. All test sentences of an ontology are one build, each a
document, so that names are merged and conflicts settled over them. Facts are gold triples that a sentence gave (by text, as in ``build_text2kg.py``);
nodes are the ends of relations. No relation is declared transitive, so that nothing follows.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import interfuse
from benchmarks.build_text2kg import DATA, drawn, normal, one_by_one, rows_of
from benchmarks.record import part, save, shared
from interfuse.core.ctx import Ctx
from interfuse.data.graph_files import read_documents
from interfuse.data.statements import relation_id
from interfuse.kit.language import open_parser
from interfuse.kit.mentions import find_mentions
from interfuse.kit.open_relations import IS_A, open_relations
from interfuse.kit.stats import paired_t

UNION, MERGED, SETTLED = "union", "names merged", "conflicts settled"
SYSTEMS: dict[str, dict[str, bool]] = {
    UNION: {"merge": False, "settle_conflicts": False, "novel": False},
    MERGED: {"merge": True, "settle_conflicts": False, "novel": False},
    SETTLED: {"merge": True, "settle_conflicts": True, "novel": False},
}
NAMES = sorted((f.name.replace("_ontology.json", "") for f in (DATA / "ontologies").glob("*.json")), key=lambda n: int(n.split("_")[0]))  # fmt: skip
#: times that training sentences must say a relation by a verb group
LEAST = 2


def words_of(name: str) -> dict[str, list[str]]:
    """Relation -> the verb groups that say it in training sentences; "<" turns the ends."""
    rows = rows_of(DATA / f"train/ont_{name}_train.jsonl")
    said: dict[str, Counter[str]] = {}
    for row, sentences in zip(rows, open_parser().parse([r["sent"] for r in rows]), strict=True):
        ends = normal(row["sub_label"]), normal(row["obj_label"])
        for s in sentences:
            for f in open_relations(s, find_mentions(s)):
                found = normal(f.subject.label), normal(f.object.label)
                if f.predicate != IS_A and ends in (found, found[::-1]):
                    word = f.predicate if found == ends else f"<{f.predicate}"
                    said.setdefault(word.removeprefix("<"), Counter())[row["rel_label"], word] += 1
    words: dict[str, list[str]] = {}
    for counts in said.values():
        (relation, word), times = counts.most_common(1)[0]
        if times >= LEAST:
            words.setdefault(relation, []).append(word)
    return {r: sorted(w) for r, w in sorted(words.items())}


def measured(name: str) -> dict[str, Any]:
    """What every system finds in an ontology's test sentences, sentence by sentence, what of it is contested, and its nodes."""
    words = words_of(name)
    rows = [r for r in rows_of(DATA / f"ground_truth/ont_{name}_ground_truth.jsonl") if r["triples"]]
    relations = {relation_id(r): r for r in words}
    made: dict[str, Any] = {"words": words}
    for system, options in SYSTEMS.items():
        with tempfile.TemporaryDirectory() as place:
            graph = interfuse.build.graphusion(
                {f"{i:05}.txt": r["sent"] for i, r in enumerate(rows)}, relations={r: {"words": w} for r, w in words.items()},
                out=Path(place) / "g", ctx=Ctx(cache=Path(place) / "cache"), **options)  # fmt: skip
            texts = read_documents(Path(place) / "g")
            found: list[list[list[str]]] = [[] for _ in rows]
            sure: list[list[list[str]]] = [[] for _ in rows]
            nodes: dict[str, None] = {}
            for s in graph:
                if s.predicate in relations and isinstance(s.object, str):
                    triple = [graph.label(s.subject), relations[s.predicate], graph.label(s.object)]
                    nodes |= {s.subject: None, s.object: None}
                    for i in dict.fromkeys(int(texts[e.document][0].removesuffix(".txt")) for e in s.evidence):
                        found[i].append(triple)
                        sure[i] += [triple] if s.status != "contested" else []
            counts = json.loads((Path(place) / "g" / "interfuse.json").read_text())["facts"]["counts"]
        made[system] = {"found": found, "not contested": sure, "nodes": len(nodes), "counts": counts}
    return made


def main() -> None:
    shared("text2kgbench-tekgen")
    parts: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        parts[name] = part("build-graphusion-sentences", name, partial(measured, name))
        print(name, {s: (parts[name][s]["nodes"], sum(map(len, parts[name][s]["found"]))) for s in SYSTEMS}, flush=True)
    first: dict[tuple[str, str], tuple[str, int]] = {}  # a sentence that an ontology has twice is one document
    tests = {n: [r for r in rows_of(DATA / f"ground_truth/ont_{n}_ground_truth.jsonl") if r["triples"]] for n in NAMES}
    for n in NAMES:
        for i, r in enumerate(tests[n]):
            first.setdefault((n, r["sent"]), (n, i))
    rows = [tests[n][i] for n, i in first.values()]
    figures: dict[str, Any] = {}
    values: dict[tuple[str, str], np.ndarray] = {}
    for system in SYSTEMS:
        figures[system] = {"nodes": [parts[n][system]["nodes"] for n in NAMES]}
        for kind in ("found", "not contested"):
            said = [[tuple(t) for t in parts[n][system][kind][i]] for n, i in first.values()]
            values[system, kind] = one_by_one(said, rows)
            low, high = drawn(values[system, kind])
            gold = [{(normal(t["sub"]), normal(t["rel"]), normal(t["obj"])) for t in r["triples"]} for r in rows]
            ours = [{tuple(map(normal, t)) for t in one} for one in said]
            figures[system][kind] = {
                "facts": sum(len(a & b) for a, b in zip(ours, gold, strict=True)), "given": sum(map(len, ours)), "gold": sum(map(len, gold)),
                **{k: {"value": values[system, kind][:, i].mean(), "low": low[i], "high": high[i]} for i, k in enumerate(("precision", "recall", "f1"))},
            }  # fmt: skip
    apart: dict[str, Any] = {}
    for one, other in ((MERGED, UNION), (SETTLED, MERGED), (SETTLED, UNION)):
        row: dict[str, Any] = {}
        for kind in ("found", "not contested"):
            change = values[one, kind] - values[other, kind]
            low, high = drawn(change)
            row[kind] = {k: {"value": change[:, i].mean(), "low": low[i], "high": high[i]} for i, k in enumerate(("precision", "recall", "f1"))}  # fmt: skip
        shares = np.array(figures[one]["nodes"]) / np.array(figures[other]["nodes"])
        over = paired_t(np.ones(len(shares)), shares)
        row["share of nodes more"] = {"value": over.delta, "low": over.low, "high": over.high, "n": len(shares)}
        apart[f"{one} minus {other}"] = row
    save("build-graphusion-sentences", {
        "what": "all test sentences with gold triples of ten ontologies; facts are gold triples, figures are means over sentences", "sentences": len(rows),
        "systems": figures, "apart": apart, "what was done": {n: parts[n][SETTLED]["counts"] for n in NAMES}, "words": {n: parts[n]["words"] for n in NAMES},
    })  # fmt: skip
    print({k: (v["found"]["recall"], v["not contested"]["recall"], v["share of nodes more"]) for k, v in apart.items()})


if __name__ == "__main__":
    main()
