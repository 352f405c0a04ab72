"""Decompositions that trade digits for time, against the exact one in float64."""

from __future__ import annotations

import pytest
import torch

from interfuse.kit.decompose import leading_triplets, levelled, shrunk


def matrix(rows: int, columns: int, decay: float) -> torch.Tensor:
    """A matrix whose singular values are ``decay ** i``."""
    g = torch.Generator().manual_seed(0)
    k = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, k, generator=g, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, k, generator=g, dtype=torch.float64)).Q
    return (left * decay ** torch.arange(k, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize("shape", [(120, 90), (90, 120)])
def test_randomised_triplets_are_the_leading_ones(shape):
    a = matrix(*shape, 0.8)
    u, s, v = leading_triplets(a, 20, "randomised", key=3)
    assert (u.shape, s.shape, v.shape) == ((shape[0], 20), (20,), (20, shape[1]))
    exact = 0.8 ** torch.arange(20, dtype=torch.float64)
    assert float(((s - exact) / exact).abs().max()) < 1e-4
    assert float(torch.linalg.matrix_norm((u * s) @ v - a, 2)) < 1.01 * 0.8**20
    assert torch.equal(s, leading_triplets(a, 20, "randomised", key=3)[1]), "the same key gives the same bytes"
    assert not torch.equal(s, leading_triplets(a, 20, "randomised", key=4)[1])


def test_a_rank_near_the_full_one_is_exact():
    a = matrix(40, 30, 0.9)
    assert torch.equal(leading_triplets(a, 20, "randomised")[1], leading_triplets(a, 20, "exact")[1])


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (40, 40)])
def test_levelled_by_the_gram_matrix(shape):
    a = matrix(*shape, 0.8)  # condition 1e4
    polar, mean = levelled(a, "exact")
    fast, near = levelled(a, "gram")
    assert abs(mean - near) < 1e-9
    assert float((polar - fast).abs().max()) < 1e-6
    assert float((fast @ fast.T @ fast - fast).abs().max()) < 1e-6


def test_directions_that_are_not_there_stay_zero():
    a = matrix(30, 20, 0.5)
    low = (a[:, :3] @ a[:3, :]).contiguous()  # rank 3
    fast, _ = levelled(low, "gram")
    assert int((torch.linalg.svdvals(fast) > 0.5).sum()) <= 3


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_triplets_by_the_gram_matrix(shape):
    a = matrix(*shape, 0.8)
    u, s, v = leading_triplets(a, 12, "gram")
    exact = 0.8 ** torch.arange(12, dtype=torch.float64)
    assert float(((s - exact) / exact).abs().max()) < 1e-9
    best, size, right = leading_triplets(a, 12)
    assert float(((u * s) @ v - (best * size) @ right).abs().max()) < 1e-9
    assert int(leading_triplets(torch.zeros(5, 3), 2, "gram")[0].count_nonzero()) == 0


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
@pytest.mark.parametrize("threshold", [1e-4, 0.1, 2.0])
def test_values_are_shrunk_by_the_gram_matrix(shape, threshold):
    a = matrix(*shape, 0.8)  # values from 1 to 1.7e-4
    u, s, v = leading_triplets(a, 40)
    exact = (u * (s - threshold).clamp(min=0)) @ v
    found, above = shrunk(a, threshold)
    assert above == int((s > threshold).sum())
    assert float((found - exact).abs().max()) < 1e-9
