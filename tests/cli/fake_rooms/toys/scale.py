"""Adds numbers and scales the sum."""

from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.core.ctx import Ctx
from interfuse.core.method import method


@method()
def scale(
    numbers: list[float],
    base: float,
    *,
    ctx: Ctx,
    factor: Annotated[float, Field(gt=0, le=10, description="what the sum is multiplied by")] = 2.0,
    top_k: Annotated[int, Field(ge=1, description="how many numbers are kept")] = 3,
    rounded: Annotated[bool, Field(description="to whole numbers")] = True,
    weights: list[float] | None = None,
    shifts: Annotated[float | list[float], Field(description="one for all, or one each")] = 0.0,
    names: dict[str, float] | None = None,
    mode: Literal["plain", "fancy"] = "plain",
    note: str | None = None,
) -> float:
    shift = shifts if isinstance(shifts, list) else [shifts] * len(numbers)
    given = weights or [1.0] * len(numbers)
    parts = [n * w + s for n, w, s in zip(numbers, given, shift, strict=True)]
    total: Any = factor * (base + sum(sorted(parts)[-top_k:])) + sum((names or {}).values())
    return float(round(total)) if rounded else total
