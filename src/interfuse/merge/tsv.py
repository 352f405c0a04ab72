"""Task Singular Vectors (Gargiulo et al. 2025): keep each task's leading singular vectors and make them orthogonal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.data.weights import Flat
from interfuse.kit.counter_random import tensor_key
from interfuse.kit.decompose import How, short_side, side_by_side, spectrum, squares, times, whitening
from interfuse.merge.room import Part, Whole, weighted_sum


def _singular(whole: Whole, *, svd: str, **_: Any) -> list[tuple[Flat, Tensor, Tensor]] | None:
    """Each task matrix ``A_i``, and two factors [k, r] and [r, k] of its short side: their products with the matrices sum to the merged one.

    For m >= n: with ``A_i ~ U_i S_i V_i^T``, the singular vectors of all tasks side by side in U [m, K] and V [n, K], the merged matrix is
    ``U (U^T U)^(-1/2) S (V^T V)^(-1/2) V^T``, and ``U_i = A_i V_i S_i^-1`` is never held. A wide matrix is merged as its transpose.
    """
    if len(whole.shape) != 2 or min(whole.shape) < max(len(whole.models), 1):
        return None
    deltas, keep = whole.deltas(), min(whole.shape) // len(whole.models)
    keys = [tensor_key(whole.seed, label, whole.name) for label in whole.labels]
    found = [short_side(d, svd, keep, key) for d, key in zip(deltas, keys, strict=True)]
    sizes, vectors = torch.cat([s for s, _ in found]), torch.cat([v for _, v in found], dim=1)
    del found
    inverse = torch.where(sizes > 0, 1.0 / torch.where(sizes > 0, sizes, 1.0), 0.0)
    vectors.mul_(sizes > 0)
    leading = vectors.chunk(len(deltas), dim=1)

    def others() -> Iterator[Tensor]:
        """U, a few rows at a time."""
        for rows in side_by_side(deltas, leading):
            yield rows.mul_(inverse)

    kind = "exact" if svd == "exact" else "gram"
    middle = whitening(*spectrum(lambda: iter([vectors]), len(sizes), kind)).mul_(sizes[:, None])
    middle = whitening(*spectrum(others, len(sizes), kind)).mul_(inverse[:, None]) @ middle
    return list(zip(deltas, leading, (middle @ vectors.T).chunk(len(deltas)), strict=True))


@method(
    scope="matrix", base="required", prepare=_singular, squares=lambda count, svd, **_: squares(svd) + 2, temporaries=10
)
def tsv(
    part: Part,
    *,
    scale: Annotated[float, Field(description="factor of the merged task matrix (alpha)")] = 1.0,
    svd: Annotated[
        How,
        Field(
            description="how the leading triplets and polar factors are found; gram (by eigenvectors of Gram matrices) and randomised "
            "(Halko et al. 2011, with the polar factors by gram) are faster and nearly exact"
        ),
    ] = "exact",
) -> Tensor:
    """TSV-Merge: the top ``1/N`` singular triplets of each task matrix, singular vectors whitened by their polar factors
    (algorithm 1), without the directions of singular value 0. Tensors without two axes are averaged."""
    assert part.base is not None
    if part.facts is None:
        deltas = part.deltas()
        return part.base.add(weighted_sum(deltas, [1.0 / len(deltas)] * len(deltas)), alpha=scale)
    merged = torch.zeros(part.base.shape, dtype=torch.float64)
    for change, first, second in part.facts:
        merged += times(change, [first, second], part.start, part.start + merged.numel())
    return part.base + scale * merged.float()
