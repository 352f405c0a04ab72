"""The engine of the gauge room: one report over all seeds."""

import json
from pathlib import Path
from typing import Any

from interfuse.toys.number import Number, open_number

from interfuse.core.rooms import Call, Input, Room


def run(call: Call, folder: Path) -> dict[str, Any]:
    rows = []
    for seed, inputs in zip(call.seeds, call.replicas, strict=True):
        rows += [[n.name, seed, float((n.path / "number.txt").read_text())] for n in inputs["of"]]
    report = {
        "title": "What came out",
        "table": {"columns": ["name", "seed", "value"], "rows": rows},
        "notes": ["scaled-down \x1b[31mred"],
    }
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "report.html").write_text("<!doctype html><title>report</title>")
    return {}


ROOM = Room(
    "gauge",
    "report",
    (Input("of", open_number, many=True, positional=True, doc="numbers"),),
    run,
    lambda call, path: Number(path, name=path.name),
    across_seeds=True,
)
