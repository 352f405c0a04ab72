"""NearSwap: move towards a second model only where it is near."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.merge.room import Part


@method(scope="element", base="none", models=(2, 2), ordered=True, temporaries=2)
def nearswap(
    part: Part,
    *,
    t: Annotated[
        float, Field(gt=0, description="distance up to which an element is taken from the second model")
    ] = 0.001,
) -> Tensor:
    """``a + min(1, t / |b - a|) (b - a)`` element by element."""
    a, b = part.models
    change = b.sub_(a)
    return a.add_(torch.clamp(change, -t, t))
