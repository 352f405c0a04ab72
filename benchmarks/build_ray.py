"""One process and two workers of ray on the same documents: the same graph, and how long each takes.

Run: ``python -m benchmarks.build_ray [DOCUMENTS]`` (needs ray; INTERFUSE_SHARED_DATA names the folder with ``text2kgbench-tekgen``).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import interfuse
from benchmarks.record import save, shared
from interfuse.core.ctx import Ctx
from interfuse.data.chunks import token_count
from interfuse.kit.language import open_parser
from tests.shared_data import PLACE

WORKERS = 2


def main() -> None:
    shared("text2kgbench-tekgen")
    if find_spec("ray") is None:
        print("skipped: ray is not installed")
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    rows = [
        json.loads(x)["sent"]
        for f in sorted((PLACE / "text2kgbench-tekgen/ground_truth").glob("*.jsonl"))
        for x in f.read_text().splitlines()
    ]
    list(open_parser("auto").parse(["A sentence to start with."]))
    figures: dict[str, Any] = {"what": "build offline, files to saved graph, wall seconds; workers start and load their parser within their time",
                               "version of ray": version("ray"), "workers": WORKERS}  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "in"
        folder.mkdir()
        texts = [" ".join(rows[(15 * i + j) % len(rows)] for j in range(15)) for i in range(count)]
        for i, text in enumerate(texts):
            (folder / f"{i:05}.txt").write_text(text)
        figures |= {"documents": count, "tokens": sum(map(token_count, texts))}
        digests = {}
        for engine in ("local", "ray"):
            for label in ("first", "again, one document changed"):
                if label != "first":
                    (folder / "00007.txt").write_text(f"Oslo is the capital of Norway, says {engine}.")
                began = time.perf_counter()
                graph = interfuse.build.offline(str(folder), out=Path(place) / engine, force=True, engine=engine,
                                                workers=WORKERS if engine == "ray" else None, ctx=Ctx(cache=Path(place) / f"cache-{engine}"))  # fmt: skip
                figures.setdefault(engine, {})[label] = {"seconds": time.perf_counter() - began}
                digests[engine, label] = graph.digest()
                (folder / "00007.txt").write_text(texts[7])
        figures["equal graphs"] = digests["local", "first"] == digests["ray", "first"]
    print(figures)
    save("build_ray", figures)


if __name__ == "__main__":
    main()
