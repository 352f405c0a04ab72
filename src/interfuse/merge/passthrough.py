"""The identity: one model's tensors, scaled if asked. With slices of several models it stacks layers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from interfuse.core.method import method
from interfuse.merge.room import Array, Part, weighted_sum


@method(scope="element", arrays=True, base="none", models=(1, 1), temporaries=0)
def passthrough(part: Part, *, scale: Annotated[float, Field(description="factor of every number")] = 1.0) -> Array:
    """``scale * theta``: the model as it is, in the number type and shards asked for."""
    return weighted_sum(part.models, [scale])
