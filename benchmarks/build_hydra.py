"""Do contracts keep faults out of a graph? A scripted language model spoils a share of its relations (a predicate that does not exist, a
class as an entity, an entity without a type, a value out of range) and mends half of them when it is told; HyDRA reads its answers
with contracts that mend, that drop, and without. Ten seeds, paired; no model is loaded.

    python benchmarks/build_hydra.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import interfuse
from benchmarks.record import save
from interfuse.core.artifact import open_artifact
from interfuse.kit.ontology_growth import read_concepts
from interfuse.kit.resample import paired_bootstrap, sign_flip
from interfuse.kit.typed_triplets import IS_A
from tests.scripted_panel import GROWTH, ScriptedPanel, facts

SEEDS, RATE, MENDS = range(10), 0.3, 0.5
SYSTEMS: dict[str, dict[str, Any]] = {
    "none": {"contracts": "off", "tries": 1},
    "drop": {"contracts": "drop", "tries": 3},
    "repair": {"contracts": "repair", "tries": 3},
}


def texts(seed: int) -> dict[str, str]:
    """Twenty documents about composers and towns, and what they state."""
    rng = np.random.Generator(np.random.Philox(seed))
    made = {}
    for i in range(20):
        town, land = f"Town{rng.integers(12)}", f"Land{rng.integers(4)}"
        made[f"{i}.txt"] = (
            f"Composer{i} was born in {town}. {town} lies in {land}. {town} was founded in {int(rng.integers(900, 1900))}."
        )
    return made


def one(seed: int, place: Path, options: dict[str, Any]) -> dict[str, float]:
    """Violations left in the graph, the share of what was stated that is in it, and requests."""
    documents, lm = texts(seed), ScriptedPanel(RATE, seed=seed, mends=MENDS)
    graph = interfuse.build.hydra(
        documents,
        lm=lm,
        ontology=read_concepts(GROWTH).ontology(),
        out=place / "graph",
        seed=seed,
        ctx=interfuse.Ctx(cache=place / "cache"),
        **options,
    )
    verified = open_artifact(place / "graph").manifest["facts"]["method"]["verification"]
    stated = {(s, p, o) for text in documents.values() for s, p, o in facts(text) if p != IS_A}
    label = {e: graph.label(e).casefold() for e in graph.entities()}
    names = {"bornin": "bornIn", "liesin": "liesIn", "foundedin": "foundedIn"}
    held = {(label.get(s.subject, ""), names.get(s.predicate.rsplit(":", 1)[-1].replace("-", ""), ""), label.get(s.object, "") if isinstance(s.object, str) else s.object.value)
            for s in graph.statements()}  # fmt: skip
    return {
        "violations": float(verified["violations"]),
        "islands": float(verified["islands"]),
        "recall": len(stated & held) / len(stated),
        "requests": float(lm.asked),
    }


def main() -> None:
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for seed in SEEDS:
        for name, options in SYSTEMS.items():
            with tempfile.TemporaryDirectory() as place:
                rows[name].append(one(seed, Path(place), options))
    rng = np.random.Generator(np.random.Philox(0))
    figures: dict[str, Any] = {
        "what": "scripted model, 20 documents a seed", "seeds": len(SEEDS), "spoilt": RATE, "mended when told": MENDS,
        "systems": {name: {k: {"mean": float(np.mean([r[k] for r in runs])), "each": [r[k] for r in runs]} for k in runs[0]} for name, runs in rows.items()},
        "against none": {},
    }  # fmt: skip
    for name in ("drop", "repair"):
        for key in ("violations", "islands", "recall"):
            base, new = np.array([r[key] for r in rows["none"]]), np.array([r[key] for r in rows[name]])
            ends = paired_bootstrap(base, new, rng)
            figures["against none"][f"{name}: {key}"] = {
                "delta": ends.estimate,
                "low": ends.low,
                "high": ends.high,
                "p": sign_flip(base, new, rng).p,
            }
    print(save("build-hydra", figures).read_text())


if __name__ == "__main__":
    main()
