"""The engine of the toy room."""

from pathlib import Path
from typing import Any

from interfuse.toys.number import Number, open_number

from interfuse.core.rooms import Call, Cost, Input, Room


def run(call: Call, folder: Path) -> dict[str, Any]:
    numbers = [float(n.text or (n.path / "number.txt").read_text()) for n in call.inputs["numbers"]]
    with call.ctx.bar("adding", len(numbers), "numbers") as bar:
        for _ in numbers:
            bar.advance()
    print("a library that prints where it should not")
    base = call.inputs["base"]
    value = call.method.target(numbers, float(base.text) if base else 0.0, ctx=call.ctx, **call.params)
    (folder / "number.txt").write_text(f"{value}\n")
    return {"value": value}


ROOM = Room(
    "toys",
    "number",
    (
        Input("numbers", open_number, many=True, positional=True, doc="files with one number each"),
        Input("base", open_number, required=False, doc="a number to start from"),
        Input("side_notes", open_number, many=True, required=False, doc="numbers nobody reads"),
    ),
    run,
    lambda call, path: Number(path, name=path.name),
    estimate=lambda call: Cost(1000, 2_000_000, 3, 75.0),
)
