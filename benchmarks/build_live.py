"""A small local language model reads three short documents: how much of its word can be used, recorded as it is.

Run: ``python -m benchmarks.build_live [MODEL_FOLDER [SYSTEM ...]]`` (by default SmolLM2-135M-Instruct, see ``benchmarks/real_models.py``).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import interfuse
from benchmarks.real_models import smollm2
from benchmarks.record import RESULTS, save
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.data.statements import Literal, key_of_label

LM = "the model"
DOCUMENTS = {
    "a.txt": "Oslo is the capital of Norway. Edvard Grieg was born in Bergen.",
    "b.txt": "The Danube flows into the Black Sea. Vienna lies on the Danube.",
    "c.txt": "Marie Curie discovered radium. She was born in Warsaw.",
}
GOLD = {
    ("oslo", "norway"),
    ("edvard grieg", "bergen"),
    ("danube", "black sea"),
    ("vienna", "danube"),
    ("marie curie", "radium"),
    ("marie curie", "warsaw"),
}


ONTOLOGY = """@prefix owl: <http://www.w3.org/2002/07/owl#> . @prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
<urn:x:Place> a owl:Class ; rdfs:label "place" . <urn:x:Person> a owl:Class ; rdfs:label "person" . <urn:x:River> a owl:Class ; rdfs:label "river" .
<urn:x:capital> a owl:ObjectProperty ; rdfs:label "capital of" ; rdfs:domain <urn:x:Place> ; rdfs:range <urn:x:Place> .
<urn:x:born> a owl:ObjectProperty ; rdfs:label "born in" ; rdfs:domain <urn:x:Person> ; rdfs:range <urn:x:Place> .
<urn:x:flows> a owl:ObjectProperty ; rdfs:label "flows into" ; rdfs:domain <urn:x:River> ; rdfs:range <urn:x:Place> .
"""
#: name -> method and what it is given; LM stands for the model
SYSTEMS: dict[str, tuple[str, dict[str, object]]] = {
    "rules": ("offline", {}),
    "language model": ("lm_extract", {"lm": LM, "max_tokens": 160, "tries": 1}),
    "language model, shown two examples": ("lm_extract", {"lm": LM, "max_tokens": 160, "tries": 1, "examples": 2}),
    "graphusion, rules": ("graphusion", {"concepts": 6, "topics": 1}),
    "graphusion, language model": ("graphusion", {"lm": LM, "max_tokens": 160, "concepts": 3, "topics": 1}),
    "hydra, its ontology given": ("hydra", {"lm": LM, "ontology": "wanted.ttl", "tries": 1}),
    "hydra, from the domain": ("hydra", {"lm": LM, "domain": "towns, rivers and people", "group": 2, "tries": 1}),
}


def main() -> None:
    model, names = sys.argv[1] if len(sys.argv) > 1 else str(smollm2()), sys.argv[2:] or list(SYSTEMS)
    file = RESULTS / "build_live.json"
    figures: dict[str, object] = {
        "what": "pairs (subject, object) found of six that are stated in three short documents; the relation's wording is not judged",
        "model": Path(model).name, "documents": DOCUMENTS,
        **({k: v for k, v in json.loads(file.read_text()).items() if k in SYSTEMS} if file.exists() else {}),
    }  # fmt: skip
    for name in names:
        method, given = SYSTEMS[name]
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "wanted.ttl").write_text(ONTOLOGY)
            said = {
                k: model if v == LM else str(Path(place) / str(v)) if k == "ontology" else v for k, v in given.items()
            }
            began = time.process_time()
            row: dict[str, object] = {}
            try:
                graph = getattr(interfuse.build, method)(
                    DOCUMENTS, out=Path(place) / "g", ctx=Ctx(cache=Path(place) / "cache"), **said
                )
                pairs = {(key_of_label(graph.label(s.subject)), key_of_label(graph.label(s.object))) for s in graph
                         if isinstance(s.object, str) and not isinstance(s.object, Literal)
                         and ("relation:" in s.predicate or s.predicate.startswith("urn:x:"))}  # fmt: skip
                facts = json.loads((Path(place) / "g" / "interfuse.json").read_text())
                row = {"right": len(pairs & GOLD), "given": len(pairs), "stated": len(GOLD),
                       "counts": next((v for k, v in _walk(facts) if k == "counts"), {}),
                       "verification": next((v for k, v in _walk(facts) if k == "verification"), {})}  # fmt: skip
            except InterfuseError as error:
                row = {"right": 0, "given": 0, "stated": len(GOLD), "ended with": f"{error.code}: {error}"[:200]}
            figures[name] = {**row, "processor seconds": time.process_time() - began}
            print(name, figures[name], flush=True)
            save("build_live", figures)


def _walk(value: object) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    if isinstance(value, dict):
        for k, v in value.items():
            found += [(k, v), *_walk(v)]
    return found


if __name__ == "__main__":
    main()
