"""The shipped recipes of the distill room, each run as it ships: how long it takes and what its reports say.

    python benchmarks/distill_recipes.py [--seeds N] [SLUG ...]

With ``--seeds N`` only the first N of a recipe's seeds are run; everything else is as it ships.

Results are written after every recipe, so that a run that was killed can go on with those that are missing.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, save

from interfuse.core.ctx import Ctx
from interfuse.core.recipe import load_recipe
from interfuse.core.run import run

FOLDER = Path(__file__).parents[1] / "recipes" / "distill"


def said(report: Path) -> dict[str, Any]:
    """Mean accuracy of every model over the seeds, and each comparison with its interval and verdict."""
    figures = json.loads((report / "report.json").read_text())
    return {
        "accuracy": {m["name"]: m["scores"]["accuracy"]["mean"] for m in figures["models"]},
        "comparisons": [
            {"model": c["model"], "baseline": c["baseline"], "difference": c["delta"]["mean"], "low": c["delta"]["low"],
             "high": c["delta"]["high"], "lost_items": c["lost"]["items"], "gained_items": c["gained"]["items"], "verdict": c["verdict"]}
            for c in figures["comparisons"]
        ],
    }  # fmt: skip


def main(slugs: list[str]) -> None:
    torch.set_num_threads(1)
    most = int(slugs[1]) if slugs[:1] == ["--seeds"] else None
    slugs = slugs if most is None else slugs[2:]
    known = RESULTS / "distill-recipes.json"
    rows: dict[str, Any] = json.loads(known.read_text())["recipes"] if known.is_file() else {}
    for path in sorted(FOLDER.glob("*.yaml")):
        if slugs and path.stem not in slugs:
            continue
        recipe = load_recipe(path)
        seeds = recipe.seeds[:most]
        cpu, wall = time.process_time(), time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            made = run(path, place, ctx=Ctx(device="cpu"), seeds=seeds)
            reports = {step.name: said(made[step.name]) for step in recipe.steps if step.use.startswith("measure/")}
        rows[path.stem] = {"seeds": len(seeds), "steps": len(recipe.steps), "processor_seconds": time.process_time() - cpu,
                           "seconds": time.perf_counter() - wall, "reports": reports}  # fmt: skip
        save(
            "distill-recipes",
            {"what": "each recipe of recipes/distill as it ships, one thread", "recipes": dict(sorted(rows.items()))},
        )
        print(f"{path.stem}: {rows[path.stem]['processor_seconds']:.0f} s", *(
            f"{c['model']} against {c['baseline']} {c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]"
            for r in reports.values() for c in r["comparisons"]), sep="\n  ", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
