"""The identity: one model's tensors, scaled if asked. With slices of several models it stacks layers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.merge.room import Part


@method(scope="element", base="none", models=(1, 1), temporaries=0)
def passthrough(part: Part, *, scale: Annotated[float, Field(description="factor of every number")] = 1.0) -> Tensor:
    """``scale * theta``: the model as it is, in the number type and shards asked for."""
    return part.models[0] if scale == 1.0 else part.models[0].mul_(scale)
