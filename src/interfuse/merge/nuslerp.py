"""NuSLERP: spherical interpolation by weights, of whole tensors, rows or columns, and of task vectors when a base is given."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from interfuse.core.method import method
from interfuse.merge.room import Part, PerModel, per_model


@method(scope="tensor", models=(2, 2), temporaries=5)
def nuslerp(
    part: Part,
    *,
    weight: Annotated[PerModel, Field(description="weight of each model; their ratio is the place on the arc")] = 1.0,
    along: Annotated[
        Literal["tensor", "row", "column"],
        Field(description="take the whole tensor, each row (one output) or each column (one input) as a vector"),
    ] = "tensor",
) -> Tensor:
    """Slerp with ``t = w_b / (w_a + w_b)`` along the chosen vectors; of ``model - base`` when there is a base."""
    w = per_model(weight, 2, "weight")
    t = w[1] / (w[0] + w[1]) if w[0] + w[1] else 0.5
    a, b = part.deltas() if part.base is not None else part.models
    shape = a.shape
    whole = along == "tensor" or a.ndim < 2
    a, b = (x.reshape(1, -1) if whole else x.reshape(shape[0], -1) for x in (a, b))
    dim = 0 if along == "column" and not whole else 1
    norm = torch.linalg.vector_norm(a, dim=dim, keepdim=True, dtype=torch.float64) * torch.linalg.vector_norm(
        b, dim=dim, keepdim=True, dtype=torch.float64
    )
    cosine = ((a.double() * b).sum(dim=dim, keepdim=True) / norm.clamp(min=1e-300)).clamp(-1.0, 1.0)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    flat = (sine < 1e-8) | (norm == 0)
    first = torch.where(flat, 1.0 - t, torch.sin((1.0 - t) * angle) / sine)
    second = torch.where(flat, t, torch.sin(t * angle) / sine)
    merged = (first * a + second * b).reshape(shape)
    return merged if part.base is None else merged + part.base
