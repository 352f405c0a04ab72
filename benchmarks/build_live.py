"""A small local language model reads three short documents: how much of its word can be used, recorded as it is.

Run: ``python -m benchmarks.build_live MODEL_FOLDER`` (such as SmolLM2-135M-Instruct; see ``benchmarks/real_models.py``).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import interfuse
from benchmarks.record import save
from interfuse.core.ctx import Ctx
from interfuse.data.statements import Literal, key_of_label

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


def main() -> None:
    figures: dict[str, object] = {
        "what": "pairs (subject, object) found of six that are stated; the relation's wording is not judged",
        "model": Path(sys.argv[1]).name,
    }
    for name, given in (
        ("rules", {}),
        ("language model", {"lm": sys.argv[1], "max_tokens": 160, "tries": 1}),
        ("graphusion, language model", {"lm": sys.argv[1], "max_tokens": 160, "concepts": 3, "topics": 1}),
    ):
        with tempfile.TemporaryDirectory() as place:
            door = (
                interfuse.build.offline
                if name == "rules"
                else interfuse.build.graphusion
                if "graphusion" in name
                else interfuse.build.lm_extract
            )
            began = time.process_time()
            graph = door(DOCUMENTS, out=Path(place) / "g", ctx=Ctx(cache=Path(place) / "cache"), **given)
            pairs = {(key_of_label(graph.label(s.subject)), key_of_label(graph.label(s.object))) for s in graph
                     if isinstance(s.object, str) and not isinstance(s.object, Literal) and "relation:" in s.predicate}  # fmt: skip
            facts = json.loads((Path(place) / "g" / "interfuse.json").read_text())
            figures[name] = {"right": len(pairs & GOLD), "given": len(pairs), "stated": len(GOLD), "processor seconds": time.process_time() - began,
                             "counts": next((v for k, v in _walk(facts) if k == "counts"), {})}  # fmt: skip
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
