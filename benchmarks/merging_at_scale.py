"""What Matters for Model Merging at Scale? (Yadav et al. 2024), scaled down: the grid of ``merging_at_scale.yaml`` on digits.

python benchmarks/merging_at_scale.py [FOLDER]     with a folder, cells that are done are kept there
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from record import save

from interfuse.core.ctx import Ctx
from interfuse.merge.study import run_study

GRID = Path(__file__).with_suffix(".yaml")


def main() -> None:
    began = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        report = run_study(GRID, Path(sys.argv[1] if sys.argv[1:] else place), Ctx())
    rows = [{k: v for k, v in row.items() if k != "settings chosen"} for row in report["table"]]
    save("merging-at-scale", {"grid": GRID.read_text(encoding="utf-8").splitlines(), **report, "table": rows,
                              "processor seconds": time.process_time() - began})  # fmt: skip
    for name, claim in report["claims"].items():
        print(f"{name}: {claim['value']:+.3f} ({claim['low']:+.3f} to {claim['high']:+.3f})")


if __name__ == "__main__":
    main()
