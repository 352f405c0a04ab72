"""The shipped recipes of the distill room, each run as it ships: how long it takes and what its reports say.

    python benchmarks/distill_recipes.py [--seeds N | --tried RATE] [SLUG ...]

With ``--seeds N`` only the first N of a recipe's seeds are run; everything else is as it ships. ``--tried RATE`` is how the recipes' learning
rate was chosen: one other seed, every step that trains from nothing at this rate, measured on the images ``tried``, which nothing else sees.

Results are written after every recipe, so that a run that was killed can go on with those that are missing.
"""

from __future__ import annotations

import json
import re
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


def trial(path: Path, rate: str, place: Path) -> dict[str, Any]:
    """Accuracies of a recipe's models at one learning rate, seed 100, by report, on the images that are for trying."""
    text = path.read_text().replace("take: test", "take: tried")
    short = place / path.name
    short.write_text(re.sub(r"(?m)^seeds: .*$", "seeds: [100]", re.sub(r"\blr: [\d.]+", f"lr: {rate}", text)))
    made = run(short, place / "out", ctx=Ctx(device="cpu"))
    return {s.name: said(made[s.name])["accuracy"] for s in load_recipe(short).steps if s.use.startswith("measure/")}


def main(slugs: list[str]) -> None:
    torch.set_num_threads(1)
    most = int(slugs[1]) if slugs[:1] == ["--seeds"] else None
    rate = slugs[1] if slugs[:1] == ["--tried"] else None
    slugs = slugs[2:] if slugs[:1] in (["--seeds"], ["--tried"]) else slugs
    known = RESULTS / "distill-recipes.json"
    before: dict[str, Any] = json.loads(known.read_text()) if known.is_file() else {}
    rows, tried = before.get("recipes", {}), before.get("tried", {})

    def keep() -> None:
        save("distill-recipes", {"what": "each recipe of recipes/distill as it ships, one thread; tried: accuracies by learning rate, seed 100, on the images tried",
                                 "recipes": dict(sorted(rows.items())), "tried": dict(sorted(tried.items()))})  # fmt: skip

    for path in sorted(FOLDER.glob("*.yaml")):
        if slugs and path.stem not in slugs:
            continue
        if rate is not None:
            with tempfile.TemporaryDirectory() as place:
                tried.setdefault(path.stem, {})[rate] = trial(path, rate, Path(place))
            keep()
            continue
        recipe = load_recipe(path)
        seeds = recipe.seeds[:most]
        cpu, wall = time.process_time(), time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            made = run(path, place, ctx=Ctx(device="cpu"), seeds=seeds)
            reports = {step.name: said(made[step.name]) for step in recipe.steps if step.use.startswith("measure/")}
        rows[path.stem] = {"seeds": len(seeds), "steps": len(recipe.steps), "processor_seconds": time.process_time() - cpu,
                           "seconds": time.perf_counter() - wall, "reports": reports}  # fmt: skip
        keep()
        print(f"{path.stem}: {rows[path.stem]['processor_seconds']:.0f} s", *(
            f"{c['model']} against {c['baseline']} {c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]"
            for r in reports.values() for c in r["comparisons"]), sep="\n  ", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
