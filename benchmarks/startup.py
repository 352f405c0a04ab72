"""How long the command line and the import take, as whole processes, beside an empty Python process.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from record import save, summary

RUNS = 15
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import interfuse": [sys.executable, "-c", "import interfuse"],
    "interfuse --help": [str(Path(sys.executable).with_name("interfuse")), "--help"],
    "interfuse list": [str(Path(sys.executable).with_name("interfuse")), "list"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    rows: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(RUNS + 1):  # in turn, so that a slow moment hits all; the first round warms the file cache
        for name, command in COMMANDS.items():
            took = seconds(command)
            if run:
                rows[name].append(took)
    figures = {name: summary(values) for name, values in rows.items()}
    print(
        save(
            "startup",
            {"what": "wall seconds of whole processes; goals: import <= 0.3, --help <= 0.4", "seconds": figures},
        )
    )
    for name, row in figures.items():
        print(f"{name:20} {row['median']:.3f} s (min {row['min']:.3f})")
