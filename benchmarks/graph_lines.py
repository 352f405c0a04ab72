"""A hundred million lines of triples, one in a thousand of them bad: read into columns, and refused with ``strict``.

    python benchmarks/graph_lines.py [LINES]

Seconds and the most memory of a process of its own, how many bad lines were counted and which were told. The file takes 2 GB of disk; without
16 GB of free memory nothing is run. Beside it the seconds that Arrow's reader takes for the same file into plain text columns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from record import save

BLOCK = 1_000_000
READ = """
import json, resource, sys, time
from pathlib import Path
from interfuse.core.errors import InterfuseError
from interfuse.data.graph_columns import read_tsv
began = time.perf_counter()
try:
    columns = read_tsv(Path(sys.argv[1]), strict=sys.argv[2] == "strict")
    told = {"statements": len(columns), "duplicates": columns.duplicates, "nodes": len(columns.nodes), "bad lines": columns.problems.count,
            "told": len(columns.problems.shown), "first told": columns.problems.shown[0]}
except InterfuseError as error:
    told = {"refused": str(error).splitlines()[0].replace(sys.argv[1], Path(sys.argv[1]).name)}
print(json.dumps({**told, "seconds": time.perf_counter() - began, "most memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""
ARROW = """
import json, sys, time, pyarrow.csv as csv
began = time.perf_counter()
with csv.open_csv(sys.argv[1], read_options=csv.ReadOptions(column_names=["s", "p", "o"]),
                  parse_options=csv.ParseOptions(delimiter="\\t", quote_char=False, invalid_row_handler=lambda row: "skip")) as batches:
    rows = sum(b.num_rows for b in batches)
print(json.dumps({"rows": rows, "seconds": time.perf_counter() - began}))
"""


def written(file: Path, lines: int) -> None:
    """Random triples over a tenth as many nodes and a hundred relations; every thousandth line has two fields, one in a million four."""
    rng = np.random.default_rng(0)
    with file.open("w") as out:
        for _ in range(0, lines, BLOCK):
            s, o = rng.integers(0, lines // 10, (2, BLOCK)).tolist()
            p = rng.integers(0, 100, BLOCK).tolist()
            rows = [f"e{a}\tr{b}\te{c}" for a, b, c in zip(s, p, o, strict=True)]
            for i in range(0, BLOCK, 1000):
                rows[i] = f"bad{i}\tr1"
            rows[7], rows[11] = rows[8], "a\tb\tc\td"
            out.write("\n".join(rows) + "\n")


def own_process(code: str, *words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main(lines: int) -> None:
    told = Path("/proc/meminfo").read_text() if os.path.exists("/proc/meminfo") else "MemAvailable: 0 kB"
    free = int(told.split("MemAvailable:")[1].split()[0]) / 2**20
    if free < 16e-8 * lines:
        print(f"skipped: {free:.0f} GB of memory are free, {lines} lines may take {16e-8 * lines:.0f}")
        return
    figures: dict[str, Any] = {"lines": lines}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "triples.tsv"
        written(file, lines)
        figures["gigabytes"] = file.stat().st_size / 1e9
        for name, code, words in (("read", READ, ("",)), ("strict", READ, ("strict",)), ("Arrow alone", ARROW, ())):
            figures[name] = own_process(code, str(file), *words)
            print(name, figures[name], flush=True)
    figures["read / Arrow alone"] = figures["read"]["seconds"] / figures["Arrow alone"]["seconds"]
    save("graph-lines", figures)


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 100_000_000)
