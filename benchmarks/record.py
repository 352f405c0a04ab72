"""What every benchmark writes beside its figures: the machine, the versions, the commit."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor count and kind, Python and library versions; no names of places."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
               platform.processor()) if Path("/proc/cpuinfo").exists() else platform.processor()  # fmt: skip
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("interfuse", "torch", "transformers", "accelerate", "numpy")},
    }


def commit() -> str:
    """The commit the figures belong to, with ``+`` when files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    dirty = git("status", "--porcelain", "--untracked-files=no", "../src")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")


def summary(values: Sequence[float]) -> dict[str, float]:
    """Minimum, quartiles and maximum of some measurements."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"n": len(values), "min": min(values), "q1": low, "median": middle, "q3": high, "max": max(values)}


def part(name: str, key: str, make: Callable[[], Any]) -> Any:
    """One part of a long benchmark (a seed, a relation) as JSON, made once: a run that was stopped goes on where it was.

    Parts lie under ``INTERFUSE_BENCH_PARTS`` (else the temporary folder); remove them after a change of the script or of what it runs.
    """
    from interfuse.core.ctx import Ctx
    from interfuse.kit.kept_steps import kept

    place = Path(os.environ.get("INTERFUSE_BENCH_PARTS") or Path(tempfile.gettempdir()) / "interfuse-parts")
    return kept(Ctx(scratch=place / name), key, make)


def shared(*names: str) -> Path:
    """The folder of the shared data (``INTERFUSE_SHARED_DATA``, else ``shared/data`` beside the repository), if these data sets are in
    it; else the script ends here well, having said which are missing: without them it would write figures of nothing."""
    place = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    missing = [name for name in names if not (place / name).exists()]
    if missing:
        print(f"skipped: {', '.join(missing)} is not here (INTERFUSE_SHARED_DATA names the folder that holds it)")
        raise SystemExit(0)
    return place


def save(name: str, figures: dict[str, Any]) -> Path:
    """Writes ``results/<name>.json``: figures with machine and commit."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {k: rounded(v) for k, v in value.items()}
        return [rounded(v) for v in value] if isinstance(value, list | tuple) else value

    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"machine": machine(), "commit": commit(), **rounded(figures)}, indent=2, sort_keys=False) + "\n"
    )
    return path
