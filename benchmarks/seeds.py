"""One loop over seeds for benchmarks that train from nothing: a run that was stopped goes on, and what is there is written as it comes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from record import RESULTS, save

from interfuse.core.ctx import Ctx
from interfuse.core.safe import canonical_json


def interval(values: Sequence[float], rng: np.random.Generator) -> dict[str, Any]:
    """Mean with a 95 % bootstrap interval over seeds."""
    v = np.array(values, dtype=float)
    means = v[rng.integers(len(v), size=(5000, len(v)))].mean(axis=1)
    return {
        "mean": float(v.mean()),
        "interval": [float(x) for x in np.quantile(means, (0.025, 0.975))],
        "values": [float(x) for x in v],
    }


def each_seed(name: str, settings: Mapping[str, Any], experiment: Callable[[int], dict[str, Any]],
              figures: Callable[[list[dict[str, Any]], np.random.Generator], Mapping[str, Any]], seeds: Sequence[int] = ()) -> None:  # fmt: skip
    """Runs ``experiment`` for every seed that ``results/<name>.json`` does not hold yet, and writes the file after each.

    Args:
        settings: what the figures depend on; seeds of other settings are not kept. experiment: what is measured at one seed, a mapping
            with ``seed``. figures: the summary of the seeds so far, given a generator for its intervals. seeds: from the command line,
            or the first five, when empty.
    """
    asked = list(seeds) or [int(s) for s in sys.argv[1:]] or [0, 1, 2, 3, 4]
    runs: list[dict[str, Any]] = []
    file = RESULTS / f"{name}.json"
    if file.is_file():
        old = json.loads(file.read_text())
        if canonical_json(old.get("settings")) == canonical_json(dict(settings)):
            runs = old["runs"]
    for seed in asked:
        if any(run["seed"] == seed for run in runs):
            continue
        began = time.perf_counter()
        found = experiment(seed)
        runs = sorted([*runs, {**found, "seconds": time.perf_counter() - began}], key=lambda run: int(run["seed"]))
        save(name, {"settings": dict(settings), "seeds": [r["seed"] for r in runs], **figures(runs, Ctx(seed=0).rng("bootstrap")), "runs": runs})  # fmt: skip
