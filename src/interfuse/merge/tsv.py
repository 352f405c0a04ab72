"""Task Singular Vectors (Gargiulo et al. 2025): keep each task's leading singular vectors and make them orthogonal."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.kit.counter_random import tensor_key
from interfuse.kit.decompose import How, leading_triplets, levelled
from interfuse.merge.room import Part, weighted_sum


@method(scope="tensor", base="required", temporaries=12)
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
    (algorithm 1). Tensors without two axes are averaged."""
    assert part.base is not None
    deltas = part.deltas()
    count = len(deltas)
    if part.base.ndim != 2 or min(part.shape) < count:
        return part.base.add(weighted_sum(deltas, [1.0 / count] * count), alpha=scale)
    keep = min(part.shape) // count
    triplets = [
        leading_triplets(d, keep, svd, tensor_key(part.seed, part.labels[i], part.name)) for i, d in enumerate(deltas)
    ]
    left = torch.cat([u for u, _, _ in triplets], dim=1)
    sizes = torch.cat([s for _, s, _ in triplets])
    right = torch.cat([v for _, _, v in triplets], dim=0)
    kind = "exact" if svd == "exact" else "gram"
    whitened = (levelled(left, kind)[0] * sizes) @ levelled(right, kind)[0]
    return part.base + scale * whitened.float()
