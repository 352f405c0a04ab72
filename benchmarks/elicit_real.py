"""Every kind of elicitation with a real small model as its own teacher: what comes out, what falls out and for what.

The model is SmolLM2-135M-Instruct (``INTERFUSE_SMOLLM2``: its folder, else ``benchmarks/real_models.py`` makes one). It is far too small to be
a good teacher; what is recorded is how much of what such a model says can be used, and that a verifier finds out.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from record import RESULTS, commit, machine, part

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import apply

QUESTIONS = [
    "What is the capital of France?", "Why is the sky blue?", "Name three fruits.", "What does a thermometer measure?",
    "Give an antonym of cold.", "How many days has a week?", "What is water made of?", "Write one sentence about the sea.",
    "Who wrote Hamlet?", "What is the largest planet?", "Translate 'good morning' into Spanish.", "What do bees make?",
]  # fmt: skip
STEPS: dict[str, dict[str, Any]] = {
    "labeling": {"max_tokens": 48},
    "expansion": {"wanted": 8, "requests": 8, "at_once": 8, "shots": 4, "shots_made": 0, "per_request": 3, "max_tokens": 120, "answers": False},
    "curation": {"axes": {"topic": ["weather", "plants"], "level": ["school", "university"]}, "per_cell": 2, "max_tokens": 120, "answers": False},
    "feedback": {"candidates": 2, "judge": "likelihood", "gap": 0.1, "max_tokens": 32, "cut": False},
    "self-knowledge": {"verify": "number", "samples": 4, "max_tokens": 32, "cut": False, "temperature": 0.7,
                       "instruction": "Answer with the number alone."},
    "feature": {"top_k": 16, "max_length": 64},
}  # fmt: skip


def sums(count: int = 24) -> list[dict[str, str]]:
    """Sums of two numbers with their answers."""
    rng = Ctx(seed=0).rng("sums")
    pairs = [(int(a), int(b)) for a, b in rng.integers(1, 30, (count, 2))]
    return [{"prompt": f"What is {a} + {b}?", "response": str(a + b)} for a, b in pairs]


def step(name: str, folder: Path, data: dict[str, Path]) -> dict[str, Any]:
    """One kind: counts, a few rows and the seconds."""
    import pyarrow.parquet

    params = dict(STEPS[name])
    if name != "curation":
        params["data"] = str(data["sums" if name in ("self-knowledge", "feature") else "questions"])
    with tempfile.TemporaryDirectory() as place:
        began, out = time.monotonic(), Path(place) / "out"
        try:
            apply(f"synthesize/{name}", lm=str(folder), out=out, ctx=Ctx(seed=0, cache=Path(place) / "cache"), **params)
        except InterfuseError as error:
            return {"rows": 0, "refused": f"{error.code}: {error.what}", "seconds": round(time.monotonic() - began, 1)}
        facts = json.loads((out / "interfuse.json").read_text())["facts"]
        rows = pyarrow.parquet.read_table(out / "examples.parquet").to_pylist()
    shown = [
        {k: v for k, v in r.items() if k not in ("token", "top_ids", "top_logprobs", "logsumexp")} for r in rows[:3]
    ]
    return {"rows": len(rows), "dropped": facts["dropped"], "counts": facts["counts"], "asked": facts["asked"],
            "first rows": shown, "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def main() -> None:
    from real_models import smollm2

    folder = Path(os.environ.get("INTERFUSE_SMOLLM2") or smollm2())
    found = {}
    with tempfile.TemporaryDirectory() as place:
        data = {"questions": Path(place) / "questions.jsonl", "sums": Path(place) / "sums.jsonl"}
        data["questions"].write_text("".join(json.dumps({"prompt": q}) + "\n" for q in QUESTIONS))
        data["sums"].write_text("".join(json.dumps(r) + "\n" for r in sums()))
        for name in STEPS:
            found[name] = part("elicit-real", name, lambda name=name: step(name, folder, data))
            print(name, json.dumps(found[name])[:400], flush=True)
    row = {"what": "elicitation kinds with SmolLM2-135M-Instruct as its own teacher, scaled down", "settings": STEPS, "kinds": found,
           "machine": machine(), "commit": commit()}  # fmt: skip
    (RESULTS / "elicit-real.json").write_text(json.dumps(row, indent=2) + "\n")


if __name__ == "__main__":
    main()
