"""Isotropic merging in the common space (Marczak et al. 2025): level the spectrum of the summed task matrix."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.data.weights import Flat
from interfuse.kit.decompose import short_side, squares, times, whitening
from interfuse.kit.merging import Computed
from interfuse.merge.room import Part, Whole, weighted_sum


def _levelling(whole: Whole, *, svd: str, **_: Any) -> tuple[Flat, Tensor] | None:
    """The summed task matrix, and the factor [k, k] of its short side that gives all its singular values their mean."""
    if len(whole.shape) != 2 or 0 in whole.shape:
        return None
    change = Computed(whole.deltas(), lambda deltas: weighted_sum(deltas, [1.0] * len(deltas)))
    sizes, vectors = short_side(change, svd)
    return change, whitening(sizes, vectors).mul_(sizes.mean())


@method(
    scope="matrix", base="required", prepare=_levelling, squares=lambda count, svd, **_: squares(svd), temporaries=10
)
def iso_c(
    part: Part,
    *,
    scale: Annotated[float, Field(description="factor of the merged task matrix (alpha)")] = 1.0,
    svd: Annotated[
        Literal["exact", "gram"],
        Field(
            description="gram: by the eigenvectors of the Gram matrix, faster on long matrices, with half the digits"
        ),
    ] = "exact",
) -> Tensor:
    """``theta_0 + alpha * mean(sigma) U V^T`` for the sum of task matrices ``U diag(sigma) V^T`` (section 4.1), without the directions
    of singular value 0. Tensors without two axes are averaged."""
    assert part.base is not None
    if part.facts is None:
        deltas = part.deltas()
        return part.base.add(weighted_sum(deltas, [1.0 / len(deltas)] * len(deltas)), alpha=scale)
    change, factor = part.facts
    return part.base.add(times(change, [factor], part.start, part.start + part.base.numel()).float(), alpha=scale)
