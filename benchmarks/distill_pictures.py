"""The pictures of the documentation's section on distillation, each from the method itself, with their numbers as CSV.

HARD's changed images, TGeo-KD's ratios, BD-KD's reliability (all on digits, the first reported seed with the settings its study
chose, the first trained shorter) and DisWOT's score against published distilled accuracies, where that table is there.

    python benchmarks/distill_pictures.py [augmented | ratios | reliability | diswot ...]
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill_papers_a import CNN, FIRST, Seed, mlp, table
from distill_papers_b import BD, DISWOT_DATA, HARD, _jitter, scatter
from record import RESULTS

from interfuse.data.models import Model

DOCS = Path(__file__).parents[1] / "docs"


def chosen(slug: str) -> dict[str, Any]:
    """The settings that the recorded study of a method chose for it."""
    found: dict[str, Any] = json.loads((RESULTS / f"distill-{slug}.json").read_text())["tuning"]["chosen"]
    return {slug: found[slug]}


def from_report(made: Model, names: dict[str, str], csv: str) -> None:
    """Pictures of a method's report: name in the report -> name in the documentation."""
    assert made.path is not None
    page = (made.path / "report.html").read_text()
    for name, target in names.items():
        drawings = [d for d in re.findall(r"<svg .*?</svg>", page, re.DOTALL) if f'id="{name}-figure_1"' in d]
        (DOCS / f"distill-{target}.svg").write_text(drawings[0] + "\n")
    shutil.copy(made.path / "plots" / f"{csv}.csv", RESULTS / f"distill-{csv.replace('_', '-')}.csv")


def augmented(folder: Path) -> None:
    seed = Seed(FIRST, folder, chosen("hard"))
    x, y, rng = seed.x, seed.y, seed.rng
    moved = [x[:500]] + [np.stack([_jitter(image, rng) for image in x[:500]]) for _ in range(3)]
    teacher = seed.train("none", seed.net(CNN, 32, 64), table(np.concatenate(moved), np.tile(y[:500], 4)), epochs=15)
    made = seed.train("hard", seed.net(mlp, 64), table(x[500:900]), name="hard", teacher=[teacher], epochs=12, **HARD)
    from_report(made, {"augmented": "augmented"}, "augmented")


def ratios(folder: Path) -> None:
    seed = Seed(FIRST, folder, chosen("tgeo-kd"))
    x, y, rng = seed.x, seed.y, seed.rng
    wrong = y[:400].copy()
    confused = np.flatnonzero(np.isin(wrong, (3, 5, 8)))
    for row in rng.choice(confused, round(0.2 * len(confused)), replace=False):
        wrong[row] = rng.choice([c for c in (3, 5, 8) if c != wrong[row]])
    noise = rng.random((40, 8, 8)).astype(np.float32)
    data = table(np.concatenate([x[:400], noise]), np.concatenate([y[:400], rng.integers(0, 10, 40)]))
    teacher = seed.train("none", seed.net(CNN, 16, 32), table(x[:400], wrong))
    made = seed.train("tgeo-kd", seed.net(mlp, 16, 10), data, name="tgeo-kd", teacher=[teacher],
                      validation=table(x[400:600], y[400:600]))  # fmt: skip
    from_report(made, {"ratios": "ratios"}, "fusion_ratio")


def reliability(folder: Path) -> None:
    seed = Seed(FIRST, folder, chosen("bd-kd"))
    x, y, rng = seed.x, seed.y, seed.rng
    noisy = y[:300].copy()
    for row in rng.choice(300, 30, replace=False):
        noisy[row] = (noisy[row] + rng.integers(1, 10)) % 10
    made = seed.train("bd-kd", seed.net(mlp, 12), table(x[:300], noisy), name="bd-kd", teacher=[seed.net(mlp, 256, 256)],
                      validation=table(x[600:], y[600:]), **BD)  # fmt: skip
    from_report(made, {"reliability-0": "reliability-student", "reliability-1": "reliability-teacher"}, "reliability")


def diswot(folder: Path) -> None:
    if DISWOT_DATA.is_dir():
        shutil.move(scatter(), DOCS / "distill-diswot.svg")


PICTURES: dict[str, Callable[[Path], None]] = {
    "augmented": augmented,
    "ratios": ratios,
    "reliability": reliability,
    "diswot": diswot,
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or PICTURES:
        with tempfile.TemporaryDirectory() as place:
            PICTURES[name](Path(place))
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
