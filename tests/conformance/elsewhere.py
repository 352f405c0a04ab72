"""Runs cases in a process of its own and prints one line of JSON per case: the digests of its artifact.

Started by :class:`tests.conformance.workspace.Shared` with another hash seed and with the inputs in another folder.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from pathlib import Path

from tests.conformance.cases import CASES, Case
from tests.conformance.workspace import Shared, Workspace, digests, quiet_threads


def report(label: str, case: Case, shared: Shared) -> None:
    """Runs one case and prints what came of it."""
    row: dict[str, object] = {"label": label, "files": {}, "error": ""}
    try:
        row["files"] = digests(Workspace(case, shared, shared.root / label.replace(" ", "-")).first())
    except Exception:
        row["error"] = traceback.format_exc()
    print(json.dumps(row), flush=True)


def main() -> None:
    job = json.loads(sys.argv[1])
    shared = Shared(Path(job["root"]))
    cases = {case.method: case for case in CASES}
    with quiet_threads():
        for method in job["methods"]:
            report(method, cases[method], shared)
        if job["faults"]:
            from tests.conformance.broken import FAULTS, SOUND

            for fault in (*FAULTS, SOUND):
                with fault.plant() if fault.name in job["faults"] else contextlib.nullcontext() as case:
                    if case is not None:
                        report(fault.name, case, shared)


if __name__ == "__main__":
    main()
