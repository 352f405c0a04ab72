"""A planted technique in a simulated literature: are its entry and the end of its integration found, and does a control stay at chance?

    python benchmarks/build_astro_kg.py [PAPERS]
    python benchmarks/build_astro_kg.py --picture FILE      (the two phases of one literature, as the method draws them)
    python benchmarks/build_astro_kg.py --large [PAPERS CONCEPTS]      (time and memory of the method on many papers and concepts, two windows)

Forty years, papers growing tenfold. A technique domain enters at year 10; until year 22 papers that carry it cite science papers more and
more; from then on new science concepts are born that cite it. A control domain is spread over papers by popularity alone. Ten seeds, none of which was looked at
while the method was made; windows of one length (40, of equal count or calendar years) and of another (25 of equal count). What is measured of
one seed is kept: a run that was stopped goes on.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from record import part, save

from interfuse.core.rooms import apply
from interfuse.kit.change_points import course
from interfuse.kit.concept_walks import driving_force, windows
from interfuse.kit.stats import paired_t

YEARS, ENTRY, FULL = 40, 10, 22
TECHNIQUE, CONTROL, SCIENCE = list(range(5)), list(range(5, 10)), list(range(10, 40))


def literature(papers: int, seed: int) -> tuple[np.ndarray, list[tuple[int, int]], np.ndarray]:
    """Years, citations and which paper carries which concept."""
    rng = np.random.default_rng(seed)
    growth = np.exp(np.linspace(0, np.log(10), YEARS))
    years = np.sort(rng.choice(YEARS, papers, p=growth / growth.sum())).astype(float)
    m = np.zeros((papers, 40))
    born = np.concatenate(
        [np.zeros(15), np.linspace(FULL, YEARS - 4, 15)]
    )  # half of the science is there from the start
    edges: list[tuple[int, int]] = []
    has: dict[str, list[int]] = {"technique": [], "science": []}
    popularity = rng.dirichlet(np.ones(5) * 2)
    for i, year in enumerate(years):
        live = [c for c, b in zip(SCIENCE, born, strict=True) if b <= year]
        tied = float(np.clip((year - ENTRY) / (FULL - ENTRY), 0, 1)) if year >= ENTRY else 0.0
        technical = year >= ENTRY and rng.random() < 0.15
        if technical:
            m[i, TECHNIQUE[int(rng.integers(5))]] = 1
        if not technical or rng.random() < 0.2:
            m[i, rng.choice(live, 1 + int(rng.random() < 0.4))] = 1
        if rng.random() < 0.15:
            m[i, CONTROL[int(rng.choice(5, p=popularity))]] = 1
        fresh = any(m[i, c] and born[c - 10] >= FULL for c in SCIENCE)
        for _ in range(6 if i else 0):
            pool: list[int] = []
            if technical:
                pool = has["science"] if rng.random() < 0.6 * tied else has["technique"]
            elif fresh and rng.random() < 0.4:
                pool = has["technique"]
            elif has["science"]:
                pool = has["science"]
            pool = pool or list(range(i))
            edges.append((i, pool[int(len(pool) * rng.beta(3, 1))]))
        if technical:
            has["technique"].append(i)
        if m[i, SCIENCE].any():
            has["science"].append(i)
    return years, list(dict.fromkeys(edges)), m


SEEDS = range(5, 15)
OFF = ("entry off by windows", "full off by windows")


def measured(papers: int, seed: int) -> dict[str, Any]:
    """What is found in one literature, by kind of windows."""
    years, edges, m = literature(papers, seed)
    row: dict[str, Any] = {"seed": seed}
    for kind, slices in (
        ("equal count", windows(years, count=papers // YEARS)),
        ("calendar", windows(years, years=1)),
        ("equal count, 25 windows", windows(years, count=papers // 25)),
    ):
        rng = np.random.default_rng(seed)
        real = driving_force(years, edges, m, TECHNIQUE, SCIENCE, slices, draws=0, null=False, rng=rng)
        control = driving_force(years, edges, m, CONTROL, SCIENCE, slices, draws=0, null=False, rng=rng)
        at = [f.end for f in real]
        entry = next(i for i, f in enumerate(real) if f.cross > 0)
        ends = [entry + b for b in course([f.lift for f in real[entry:]]).breaks]
        planted = {
            name: next(i for i, t in enumerate(at) if t >= year) for name, year in (("entry", ENTRY), ("full", FULL))
        }
        row[kind] = {
            "entry": at[entry],
            "breaks": [at[b] for b in ends],
            "entry off by windows": abs(entry - planted["entry"]),
            "full off by windows": min((abs(b - planted["full"]) for b in ends), default=None),
            "control lift, second half": float(np.mean([f.lift for f in control[len(control) // 2 :]])),
            "control relevance, last fifth over first fifth": float(np.mean([f.cross for f in control[-len(control) // 5 :]])
                                                                    / np.mean([f.cross for f in control[: len(control) // 5]])),
            "technique lift, last fifth": float(np.mean([f.lift for f in real[-len(real) // 5 :]])),
        }  # fmt: skip
    return row


def told(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """All seeds together: how often each time is found within one window, and the other figures with t intervals."""
    found: dict[str, Any] = {
        f"{name[:5].strip()} within 1 window": sum(r[kind][name] is not None and r[kind][name] <= 1 for r in rows)
        for name in OFF
    }
    for name in rows[0][kind]:
        if name not in OFF and name not in ("entry", "breaks"):
            interval = paired_t(np.zeros(len(rows)), [r[kind][name] for r in rows])
            found[name] = {"mean": interval.delta, "low": interval.low, "high": interval.high}
    apart = paired_t([r[kind]["control lift, second half"] for r in rows], [r[kind]["technique lift, last fifth"] for r in rows])  # fmt: skip
    return found | {"technique minus control lift": {"difference": apart.delta, "low": apart.low, "high": apart.high}}


def main(papers: int = 5000) -> None:
    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        rows.append(part(f"build-astro-kg-{papers}", f"seed {seed}", partial(measured, papers, seed)))
        print(json.dumps(rows[-1]), flush=True)
        if len(rows) > 1:
            save("build-astro-kg", {"papers": papers, "years": YEARS, "entry": ENTRY, "full": FULL, "n": len(rows),
                                    "together": {kind: told(rows, kind) for kind in rows[0] if kind != "seed"}, "seeds": rows})  # fmt: skip


def picture(file: Path, papers: int = 2000, count: int = 100) -> None:
    """The method itself on a table of papers; its ``two-phases.svg``."""
    years, edges, m = literature(papers, 99)
    cited: list[list[str]] = [[] for _ in years]
    for i, j in edges:
        cited[i].append(f"p{j}")
    names = [
        *(f"technique {c}" for c in TECHNIQUE),
        *(f"control {c}" for c in CONTROL),
        *(f"science {c}" for c in SCIENCE),
    ]
    table = Dataset.from_dict({"id": [f"p{i}" for i in range(papers)], "year": [int(1980 + y) for y in years], "references": cited,
                               "concepts": [[names[k] for k in np.flatnonzero(row)] for row in m]})  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        apply("build/astro-kg", table=table, count=count, domains={"technique": names[:5], "science": names[10:]}, technique="technique", science="science",
              most_share=0.5, draws=40, out=Path(place) / "g")  # fmt: skip
        file.write_text((Path(place) / "g" / "two-phases.svg").read_text())


def large(papers: int = 100_000, count: int = 10_000) -> None:
    """The method on papers of ten references and five concepts each, halves of them as windows: seconds and the most memory."""
    rng = np.random.default_rng(1)
    popularity = 1 / (np.arange(count) + 50.0)
    carried = rng.choice(count, (papers, 5), p=popularity / popularity.sum())
    back = (rng.beta(3, 1, (papers, 10)) * np.arange(papers)[:, None]).astype(int)
    table = Dataset.from_dict({"id": [f"p{i}" for i in range(papers)], "year": [1980 + 40 * i // papers for i in range(papers)],
                               "references": [[f"p{j}" for j in row] for row in back.tolist()],
                               "concepts": [[f"concept {k}" for k in row] for row in carried.tolist()]})  # fmt: skip
    names = [f"concept {k}" for k in range(60)]
    made_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, own = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as place:
        apply("build/astro-kg", table=table, count=papers // 2, domains={"technique": names[:20], "science": names[20:]},
              technique="technique", science="science", draws=50, out=Path(place) / "g")  # fmt: skip
        facts = json.loads((Path(place) / "g" / "interfuse.json").read_text())["facts"]
    print(save("build-astro-kg-large", {
        "what": "the method as users call it, on a made table; a cell of a table of concepts by concepts takes 8 bytes",
        "papers": papers, "concepts": count, "references of a paper": 10, "concepts of a paper": 5, "windows": 2, "links": facts["counts"]["links"],
        "seconds": time.perf_counter() - wall, "processor seconds": time.process_time() - own,
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "peak GB before it": made_before / 2**20, "one table GB": 8 * count**2 / 2**30,
    }).read_text())  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--picture"]:
        picture(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--large"]:
        large(*(int(a) for a in sys.argv[2:4]))
    else:
        main(*(int(a) for a in sys.argv[1:2]))
