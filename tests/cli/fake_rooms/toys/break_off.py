"""Stops in the middle, in a way one can choose."""

import time
from typing import Literal

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method


@method()
def break_off(
    numbers: list[float], base: float, *, ctx: Ctx, how: Literal["budget", "crash", "wait", "failed"]
) -> float:
    if how == "budget":
        ctx.budget.calls = 1
        ctx.budget.spend(calls=2)
    if how == "wait":
        ctx.log("waiting now")
        time.sleep(60)
    if how == "failed":
        raise InterfuseError("run.failed", "it \x1b[31mbroke\x1b[0m", where="the middle", fix="Mend it.")
    raise ValueError("something\nunforeseen")
