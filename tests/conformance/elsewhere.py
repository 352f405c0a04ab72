"""Runs cases in a process of its own and prints one line of JSON per case: the digests of its artifact.

Started by :class:`tests.conformance.workspace.Shared` with another hash seed and with the inputs in another folder.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch


def main() -> None:
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    from tests.conformance.cases import CASES
    from tests.conformance.workspace import Shared, Workspace, digests

    cases = {case.method: case for case in CASES}
    if job["broken"]:
        from tests.conformance import broken

        cases |= broken.plant_for_good(job["broken"])
    shared = Shared(Path(job["root"]))
    for method in job["methods"]:
        row: dict[str, object] = {"method": method, "files": {}, "error": ""}
        try:
            row["files"] = digests(Workspace(cases[method], shared, shared.root / method).first())
        except Exception:
            row["error"] = traceback.format_exc()
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
