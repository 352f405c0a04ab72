"""Tokens per second of processor time from files to a saved graph, on prose (Text2KGBench's test sentences as documents).

Run: ``python -m benchmarks.build_speed``.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import interfuse
from benchmarks.record import save
from interfuse.core.ctx import Ctx
from interfuse.data.chunks import token_count
from interfuse.kit.language import open_parser
from tests.shared_data import PLACE


def main() -> None:
    rows = [
        json.loads(x)["sent"]
        for f in sorted((PLACE / "text2kgbench-tekgen/ground_truth").glob("*.jsonl"))
        for x in f.read_text().splitlines()
    ]
    figures: dict[str, object] = {
        "what": "build offline on prose, files to saved graph, one process; linking included unless said otherwise"
    }
    for kind, count in (("spacy", 1500), ("rules", 1500)):
        list(open_parser(kind).parse(["A sentence to start with."]))
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "in"
            folder.mkdir()
            tokens = 0
            for i in range(0, count, 15):
                text = "\n\n".join(" ".join(rows[j : j + 5]) for j in range(i, i + 15, 5))
                tokens += token_count(text)
                (folder / f"{i:05}.txt").write_text(text)
            parts: dict[str, float] = {}
            for link, ontology in ((False, ""), (True, ""), (True, "1_movie")):
                began = time.process_time()
                interfuse.build.offline(
                    str(folder),
                    out=Path(place) / f"g{link}{ontology}",
                    parser=kind,
                    link=link,
                    ctx=Ctx(cache=Path(place) / f"cache{link}"),
                    **(
                        {"ontology": str(PLACE / f"text2kgbench-tekgen/ontologies/{ontology}_ontology.json")}
                        if ontology
                        else {}
                    ),
                )
                label = "linked, with an ontology of 15 relations" if ontology else "linked" if link else "not linked"
                parts[f"tokens per second, {label}"] = tokens / (time.process_time() - began)
            figures[kind] = {"tokens": tokens, **parts}
            print(kind, figures[kind], flush=True)
    save("build_speed", figures)


if __name__ == "__main__":
    main()
