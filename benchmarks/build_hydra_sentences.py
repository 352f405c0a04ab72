"""HyDRA with the ontologies of Text2KGBench and a small real model: contracts that mend against contracts that drop, beside the extractor without a model.

    INTERFUSE_SHARED_DATA=... python -m benchmarks.build_hydra_sentences [MODEL_FOLDER [SENTENCES OF EACH ONTOLOGY]]

Sentences are drawn by a fixed seed from each ontology's test set, one of every ontology in turn, so that a run that is stopped has read as many of
each. Every sentence is a build of its own. What is found in one is kept, and so are replies: a run that was stopped goes on. Figures are those
of ``build_text2kg.py``; differences are paired over sentences.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.build_text2kg import DATA, built, difference, normal, one_by_one, rows_of, scored
from benchmarks.real_models import smollm2
from benchmarks.record import part, save, shared
from interfuse.core.ctx import Ctx
from interfuse.core.rooms import Source
from interfuse.data.lm import open_lm
from interfuse.kit.resample import paired_bootstrap
from interfuse.kit.stats import Interval

OFFLINE, DROP, REPAIR = "offline", "hydra, drop", "hydra, repair"
#: system -> what HyDRA is given
ASKED: dict[str, dict[str, Any]] = {
    DROP: {"tries": 3, "contracts": "drop"},
    REPAIR: {"tries": 3, "contracts": "repair"},
}
NAMES = sorted((f.name.replace("_ontology.json", "") for f in (DATA / "ontologies").glob("*.json")), key=lambda n: int(n.split("_")[0]))  # fmt: skip


def sentences(name: str, count: int) -> list[dict[str, Any]]:
    """Test sentences with gold triples, the first of a fixed order: more of them only add to fewer."""
    rows = [r for r in rows_of(DATA / f"ground_truth/ont_{name}_ground_truth.jsonl") if r["triples"]]
    order = np.random.Generator(np.random.Philox(11)).permutation(len(rows))
    return [rows[int(i)] for i in order[:count]]


def read(lm: Any, cache: Path, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """What every system finds in one sentence, with its seconds, and what HyDRA says of its contracts, remedies and graph."""
    found, seconds, _ = built("offline", name, [row], cache)
    made: dict[str, Any] = {"id": row["id"], OFFLINE: {"triples": found[0], "seconds": seconds}}
    for system, given in ASKED.items():
        found, seconds, report = built("hydra", name, [row], cache, lm=lm, **given)
        facts = report["facts"]["method"]
        made[system] = {"triples": found[0], "seconds": seconds, "counts": report["facts"]["counts"],
                        **{k: facts.get(k, {}) for k in ("contracts", "remedies", "verification")}}  # fmt: skip
    return made


def ends_of(interval: Interval) -> dict[str, float]:
    return {"value": interval.estimate, "low": interval.low, "high": interval.high}


def told(model: str, parts: list[dict[str, Any]], rows: list[dict[str, Any]], relations: set[str]) -> None:
    """All sentences so far in numbers."""
    said = {system: [p[system]["triples"] for p in parts] for system in (OFFLINE, *ASKED)}
    rng = np.random.Generator(np.random.Philox(0))

    def apart(one: str, other: str) -> dict[str, Any]:
        a, b = one_by_one(said[other], rows), one_by_one(said[one], rows)
        ends = {k: paired_bootstrap(a[:, i], b[:, i], rng) for i, k in ((0, "precision"), (1, "recall"))}
        return {"f1": difference(said[one], said[other], rows),
                **{k: ends_of(e) for k, e in ends.items()}}  # fmt: skip

    kept: dict[str, Any] = {}
    for system in ASKED:
        totals: dict[str, Counter[str]] = {k: Counter() for k in ("counts", "remedies", "triplets")}
        for p in parts:
            totals["counts"].update(p[system]["counts"])
            totals["remedies"].update(p[system]["remedies"])
            totals["triplets"].update(p[system]["contracts"].get("triplets", {}))
        kept[system] = {**{k: dict(sorted(c.items())) for k, c in totals.items()}, "violations": sum(p[system]["verification"]["violations"] for p in parts),
                        "sentences with triples": sum(bool(t) for t in said[system])}  # fmt: skip
    save("build-hydra-sentences", {
        "what": "sentences of Text2KGBench (tekgen), one build each, the ontology given; precision, recall and F1 are means over sentences",
        "model": model, "n": len(parts), "seconds a sentence": {s: float(np.mean([p[s]["seconds"] for p in parts])) for s in said},
        "asked": ASKED, "systems": {s: scored(said[s], rows, relations) for s in said}, "what became of replies": kept,
        "apart": {f"{a} minus {b}": apart(a, b) for a, b in ((REPAIR, DROP), (REPAIR, OFFLINE), (DROP, OFFLINE))},
        "examples": [{"sentence": r["sent"], "gold": [list(t.values()) for t in r["triples"]], **{s: said[s][i] for s in said}} for i, r in enumerate(rows[:10])],
    })  # fmt: skip


def main(model: str = "", count: int = 6) -> None:
    """``model``: a folder, else SmolLM2-135M-Instruct. ``count``: sentences of each ontology."""
    shared("text2kgbench-tekgen")
    model = model or str(smollm2())
    lm = open_lm(Source(model, Path(model).name), Ctx(dtype="bfloat16"))
    cache = (
        Path(os.environ.get("INTERFUSE_BENCH_PARTS") or Path(tempfile.gettempdir()) / "interfuse-parts")
        / "build-hydra-replies"
    )
    drawn, relations = {n: sentences(n, count) for n in NAMES}, set[str]()
    for n in NAMES:
        relations |= {normal(r["label"]) for r in json.loads((DATA / f"ontologies/{n}_ontology.json").read_text())["relations"]}  # fmt: skip
    parts, rows = list[dict[str, Any]](), list[dict[str, Any]]()
    for k in range(count):
        for n in NAMES:
            row = drawn[n][k]
            parts.append(
                part("build-hydra-sentences", f"{Path(model).name} {row['id']}", partial(read, lm, cache, n, row))
            )
            rows.append(row)
            print(row["id"], {s: (len(parts[-1][s]["triples"]), round(parts[-1][s]["seconds"])) for s in (OFFLINE, *ASKED)}, flush=True)  # fmt: skip
            if len(parts) > 1:
                told(Path(model).name, parts, rows, relations)


if __name__ == "__main__":
    main(*sys.argv[1:2], *(int(a) for a in sys.argv[2:3]))
