"""LoRE-Merging (Liu et al. 2025): estimate base and low-rank task vectors from the models alone, by coordinate descent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.data.weights import Flat
from interfuse.kit.counter_random import tensor_key
from interfuse.kit.decompose import How, pieces, right_side, squares, times, triangle
from interfuse.kit.reductions import Difference
from interfuse.merge.room import Part, Whole


def _left_over(count: int, scale: float, combine: str) -> float:
    """The result is the mean of the models, and so many times the mean of the low-rank task vectors: ``Z + scale * sum_i D_i`` (or their
    mean) with ``Z = mean_i(theta_i - D_i)``."""
    return scale * (1.0 if combine == "mean" else float(count)) - 1.0


def _memory(count: int, svd: str, scale: float, combine: str, **_: Any) -> float:
    """Matrices [k, k] that :func:`_estimated` holds at once."""
    if _left_over(count, scale, combine) == 0:
        return 0.0
    wide = count - 1
    return max(3 * wide**2, wide**2 + 4 * wide + squares(svd))


def _estimated(
    whole: Whole, *, mu: float, scale: float, combine: str, steps: int, svd: str, **_: Any
) -> list[tuple[Flat, Tensor]] | None:
    """Differences ``B_j = theta_j - theta_N`` of a matrix, and factors [k, k] of its short side: their products sum to what the result has beyond
    the mean of the models.

    For m >= n all iterates are products ``[B_1 B_2 ...] C`` with C [(N - 1) n, n]: a singular value thresholding of such a product is one
    more factor on its right, found from ``R C``, where R is the triangle of a QR decomposition of the differences. Matrices are read once
    for it; a wide one is merged as its transpose.
    """
    count, share = len(whole.models), _left_over(len(whole.models), scale, combine)
    if len(whole.shape) != 2 or 0 in whole.shape or share == 0:
        return None
    changes, k = [Difference(m, whole.models[-1]) for m in whole.models[:-1]], min(whole.shape)
    keys = [tensor_key(whole.seed, label, whole.name) for label in whole.labels]

    def rows() -> Iterator[Tensor]:
        for beside in zip(*(pieces(change) for change in changes), strict=True):
            yield torch.cat(beside, dim=1)

    folded, _rows = triangle(rows, (count - 1) * k)
    common = torch.zeros((count - 1) * k, k, dtype=torch.float64)  # of the mean of the task vectors
    largest = 0.0
    for i, key in enumerate(keys):
        largest = max(largest, float(_leading(folded @ _without_base(common, i), 1, svd, key)[0][0]))
    ranks = [max(1, k // 16) if svd == "randomised" else k] * count
    for _step in range(steps):
        total = torch.zeros_like(common)
        for i, key in enumerate(keys):
            own = _without_base(common, i)
            factor, ranks[i] = _shrinking(folded @ own, mu * largest / 2, ranks[i], svd, key)
            total.addmm_(own, factor, alpha=1.0 / count)
            del own, factor  # not held beside the next decomposition
        moved = float(torch.linalg.vector_norm(folded @ common.sub_(total)))
        common = total
        if moved <= 1e-12:
            break
    return list(zip(changes, common.mul_(share).chunk(count - 1), strict=True))


@method(scope="matrix", base="none", models=(2, 1000), prepare=_estimated, squares=_memory, temporaries=10)
def lore(
    part: Part,
    *,
    mu: Annotated[
        float,
        Field(ge=0, description="price of the nuclear norm, relative to the largest singular value of the changes"),
    ] = 0.05,
    scale: Annotated[float, Field(description="factor of the summed task vectors")] = 1.0,
    combine: Annotated[
        Literal["mean", "sum"],
        Field(
            description="how task vectors are added to the estimated base; with mean and scale 1 the result is the mean of the models"
        ),
    ] = "mean",
    steps: Annotated[int, Field(ge=1, description="rounds of coordinate descent")] = 20,
    svd: Annotated[
        How,
        Field(
            description="how the singular values above the threshold are found: gram by the eigenvectors of the Gram matrix, faster; "
            "randomised (Halko et al. 2011) begins with few, which is fast when few are above it"
        ),
    ] = "exact",
) -> Tensor:
    """Minimises ``sum_i |Z + D_i - theta_i|_F^2 + mu |D_i|_*``: ``D_i = SVT(theta_i - Z, mu/2)``, ``Z = mean_i(theta_i - D_i)``."""
    merged = part.models[0].double()
    for model in part.models[1:]:
        merged += model
    merged /= len(part.models)
    for change, factor in part.facts or ():
        merged += times(change, [factor], part.start, part.start + merged.numel())
    return merged.float()


def _without_base(common: Tensor, i: int) -> Tensor:
    """``theta_i - Z`` in terms of the differences: model i without the mean of all, and the mean of the task vectors."""
    own, count = common.clone(), common.shape[0] // common.shape[1] + 1
    for j, block in enumerate(own.chunk(count - 1)):
        block.diagonal().add_(float(i == j) - 1.0 / count)
    return own


def _leading(image: Tensor, rank: int, svd: str, key: int) -> tuple[Tensor, Tensor]:
    """The largest singular values of [rows, k], and their right vectors [k, rank]."""
    return right_side(lambda: iter([image]), image.shape[1], svd, rank, key)


def _shrinking(image: Tensor, threshold: float, rank: int, svd: str, key: int) -> tuple[Tensor, int]:
    """The factor [k, k] that, on the right of a matrix with this image, lessens its singular values by the threshold (the proximal map of the
    nuclear norm); and the rank that sufficed to find all that remain."""
    most = image.shape[1]
    while True:
        sizes, vectors = _leading(image, min(rank, most), svd, key)
        if rank >= most or float(sizes[-1]) <= threshold:
            left = torch.where(sizes > threshold, 1.0 - threshold / sizes.clamp(min=threshold or 1.0), 0.0)
            above = int((sizes > threshold).sum())
            return (vectors * left) @ vectors.T, max(1, min(most, above + 1)) if svd == "randomised" else most
        rank *= 2
