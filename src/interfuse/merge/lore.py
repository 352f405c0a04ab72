"""LoRE-Merging (Liu et al. 2025): estimate base and low-rank task vectors from the models alone, by coordinate descent."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.kit.counter_random import tensor_key
from interfuse.kit.decompose import How, leading_triplets, shrunk
from interfuse.merge.room import Part, weighted_sum


@method(scope="tensor", base="none", models=(2, 1000), temporaries=10)
def lore(
    part: Part,
    *,
    mu: Annotated[
        float,
        Field(ge=0, description="price of the nuclear norm, relative to the largest singular value of the changes"),
    ] = 0.05,
    scale: Annotated[float, Field(description="factor of the summed task vectors")] = 1.0,
    combine: Annotated[
        Literal["mean", "sum"], Field(description="how task vectors are added to the estimated base")
    ] = "mean",
    steps: Annotated[int, Field(ge=1, description="rounds of coordinate descent")] = 20,
    svd: Annotated[
        How,
        Field(
            description="how the singular values above the threshold are found: gram by the eigenvectors of the Gram matrix, twice as fast; "
            "randomised (Halko et al. 2011) begins with few, which is fast when few are above it"
        ),
    ] = "exact",
) -> Tensor:
    """Minimises ``sum_i |Z + D_i - theta_i|_F^2 + mu |D_i|_*``: ``D_i = SVT(theta_i - Z, mu/2)``, ``Z = mean_i(theta_i - D_i)``."""
    models = [m.double() for m in part.models]
    count = len(models)
    base = torch.stack(models).mean(0)
    if base.ndim != 2:
        return base.float()
    keys = [tensor_key(part.seed, label, part.name) for label in part.labels]
    largest = max(float(leading_triplets(m - base, 1, svd, key)[1].sum()) for m, key in zip(models, keys, strict=True))
    tasks = [torch.zeros_like(base)] * count
    ranks = [max(1, min(base.shape) // 16)] * count if svd == "randomised" else [min(base.shape)] * count
    for _ in range(steps):
        for i, model in enumerate(models):
            tasks[i], ranks[i] = _shrink(model - base, mu * largest / 2, ranks[i], svd, keys[i])
        before, base = base, torch.stack([m - d for m, d in zip(models, tasks, strict=True)]).mean(0)
        if float((base - before).abs().max()) <= 1e-12 * max(1.0, float(base.abs().max())):
            break
    total = weighted_sum([t.clone() for t in tasks], [1.0 / count if combine == "mean" else 1.0] * count)
    return (base + scale * total).float()


def _shrink(matrix: Tensor, threshold: float, rank: int, svd: str, key: int) -> tuple[Tensor, int]:
    """Singular value thresholding, the proximal map of the nuclear norm; and the rank that sufficed to find all that remains."""
    if threshold == 0:
        return matrix, rank
    if svd == "gram":
        return shrunk(matrix, threshold)[0], rank
    most = min(matrix.shape)
    while True:
        u, s, v = leading_triplets(matrix, min(rank, most), svd, key)
        if rank >= most or float(s[-1]) <= threshold:
            found: Tensor = (u * torch.clamp(s - threshold, min=0)) @ v
            return found, most if svd == "exact" else max(1, min(most, int((s > threshold).sum()) + 1))
        rank *= 2
