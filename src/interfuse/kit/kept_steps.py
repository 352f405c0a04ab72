"""Steps of long work whose results are kept as JSON, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import canonical_json, fingerprint, jsonable, read_text, write_atomic


def kept(ctx: Ctx, name: str, make: Callable[[], Any]) -> Any:
    """The result of a step as plain JSON: read where an earlier run of the same work left it, else made and kept.

    Args:
        name: of the step, unique within the work; any text.

    Raises:
        InterfuseError: ``artifact.damaged`` when what was kept cannot be read, or whatever stops the step.
    """
    if ctx.scratch is None:
        return json.loads(canonical_json(jsonable(make())))
    file = ctx.scratch / "steps" / f"{fingerprint(name)[:24]}.json"
    if file.is_file():
        ctx.log(f"resuming: {name} is done")
        try:
            return json.loads(read_text(file))
        except ValueError as error:
            raise InterfuseError("artifact.damaged", f"the kept step {name!r} cannot be read", where=str(file),
                                 fix="Remove the file.") from error  # fmt: skip
    data = canonical_json(jsonable(make()))
    write_atomic(file, data)
    return json.loads(data)
