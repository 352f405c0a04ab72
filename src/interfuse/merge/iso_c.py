"""Isotropic merging in the common space (Marczak et al. 2025): level the spectrum of the summed task matrix."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.kit.decompose import levelled
from interfuse.merge.room import Part, weighted_sum


@method(scope="tensor", base="required", temporaries=8)
def iso_c(
    part: Part,
    *,
    scale: Annotated[float, Field(description="factor of the merged task matrix (alpha)")] = 1.0,
    svd: Annotated[
        Literal["exact", "gram"],
        Field(description="gram: by the eigenvectors of the Gram matrix, several times as fast, with half the digits"),
    ] = "exact",
) -> Tensor:
    """``theta_0 + alpha * mean(sigma) U V^T`` for the sum of task matrices ``U diag(sigma) V^T`` (section 4.1). Tensors without two
    axes are averaged."""
    assert part.base is not None
    deltas = part.deltas()
    count = len(deltas)
    if part.base.ndim != 2:
        return part.base.add(weighted_sum(deltas, [1.0 / count] * count), alpha=scale)
    directions, level = levelled(weighted_sum(deltas, [1.0] * count), svd)
    return part.base.add(directions.mul_(level).float(), alpha=scale)
