"""Tokens per second of processor time from files to a saved graph, on prose (Text2KGBench's test sentences as documents), and what one
changed document out of a thousand costs.

Run: ``python -m benchmarks.build_speed`` for both, or with ``again`` for the second alone (some six minutes on an idle machine);
``again short spacy`` for one kind of documents and one parser.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import interfuse
from benchmarks.record import RESULTS, save, shared
from interfuse.core.ctx import Ctx
from interfuse.data.chunks import token_count
from interfuse.kit.language import open_parser
from tests.shared_data import PLACE

KINDS = (("short", "spacy"), ("prose", "spacy"), ("long", "spacy"), ("short", "rules"), ("prose", "rules"))


def sentences(*parts: str) -> list[str]:
    """The test sentences of Text2KGBench, or those of other ``parts`` of it."""
    place = shared("text2kgbench-tekgen") / "text2kgbench-tekgen"
    files = [file for part in parts or ("ground_truth",) for file in sorted((place / part).glob("*.jsonl"))]
    return [json.loads(x)["sent"] for f in files for x in f.read_text().splitlines()]


def thousand(folder: Path, kind: str, count: int = 1000) -> int:
    """Writes a thousand documents; returns their tokens. ``short``: eight towns each, found nowhere else. ``prose``: forty sentences of
    Wikipedia each, drawn with repetition, so that names occur in many documents. ``long``: a hundred, about five pages, drawn from
    the training sentences too, so that one occurs about as often."""
    folder.mkdir(parents=True)
    rows, rng, tokens = sentences(*(["ground_truth", "train"] if kind == "long" else [])), random.Random(0), 0
    for i in range(count):
        if kind == "short":
            text = "\n\n".join(
                f"Town{i}x{k} is a city in Land{i}. Town{i}x{k} was founded by Person{i} Berg in {1200 + (i + k) % 700}."
                for k in range(8)
            )
        else:
            text = "\n\n".join(
                " ".join(rng.choice(rows) for _ in range(4)) for _ in range(25 if kind == "long" else 10)
            )
        (folder / f"{i:04}.txt").write_text(text)
        tokens += token_count(text)
    return tokens


def again(kind: str, parser: str, root: Path, times: int = 3) -> dict[str, Any]:
    """Seconds of the first build of a thousand documents in this process, its parser loaded before, and of those after one document
    changed: here, and as a process of its own from the shell (start-up and loading of the parser included; the package's modules are
    compiled, as an installer leaves them). Of three changes after each other one at least keeps a new state, whose cost the mean holds."""
    folder = root / "in"
    tokens = thousand(folder, kind)
    rows, rng = sentences(), random.Random(1)
    list(open_parser(parser).parse(["A sentence to start with."]))

    def change(number: int) -> None:
        text = f"Somewhere{number} is a city in Nowhere. " + " ".join(rng.choice(rows) for _ in range(3))
        (folder / f"{137 * (number + 1) % 1000:04}.txt").write_text(text)

    def here() -> tuple[float, float]:
        began, wall = time.process_time(), time.perf_counter()
        interfuse.build.offline(
            str(folder), out=root / "g", parser=parser, ctx=Ctx(cache=root / "home/.cache/interfuse")
        )
        return time.process_time() - began, time.perf_counter() - wall

    compiled = {**os.environ, "HOME": str(root / "home")}
    compiled.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", str(Path(interfuse.__file__).parent)], check=True, env=compiled
    )

    def shell() -> tuple[float, float]:
        before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "interfuse",
            "build",
            "offline",
            str(folder),
            "-o",
            str(root / "g"),
            "--parser",
            parser,
        ]
        subprocess.run(command, check=True, capture_output=True, env=compiled)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - wall

    first = here()
    found: dict[str, list[tuple[float, float]]] = {"in the process": [], "from the shell": []}
    for number in range(2 * times):
        change(number)
        where = "in the process" if number < times else "from the shell"
        found[where].append(here() if number < times else shell())
    made: dict[str, Any] = {"tokens": tokens, "first": {"processor seconds": first[0], "seconds": first[1]}}
    for where, rows_ in found.items():
        used, took = (statistics.mean(r[i] for r in rows_) for i in (0, 1))
        made[where] = {"processor seconds": used, "seconds": took, "share of processor seconds": used / first[0], "share of seconds": took / first[1],
                       "n": len(rows_)}  # fmt: skip
    return made


def changes(kinds: Sequence[tuple[str, str]]) -> None:
    """Adds what one changed document costs, by kind of documents and parser, to the figures that are there."""
    path = RESULTS / "build_speed.json"
    figures = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("machine", "commit")}
    rows = figures.setdefault("one document of 1,000 changed", {})
    rows["what"] = "means of changes after each other; shares are of the first build in the process"
    for kind, parser in kinds:
        with tempfile.TemporaryDirectory() as place:
            found = rows[f"{kind}, {parser}"] = again(kind, parser, Path(place))
        for where in ("in the process", "from the shell"):
            print(f"{kind}, {parser}, {where}: {found[where]['share of processor seconds']:.2%} of the processor time of the first build, "
                  f"{found[where]['share of seconds']:.2%} of its time", flush=True)  # fmt: skip
        save("build_speed", figures)


def main() -> None:
    rows = sentences()
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
    changes(KINDS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["again"]:
        changes([tuple(sys.argv[2:4])] if len(sys.argv) == 4 else KINDS)  # type: ignore[list-item]
    else:
        main()
