"""Decompositions that trade digits for time, against the exact one in float64."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
import torch

from interfuse.core.errors import InterfuseError
from interfuse.data.weights import Flat, Weights
from interfuse.kit import decompose
from interfuse.kit.decompose import (
    matrix_memory,
    pieces,
    short_side,
    side_by_side,
    times,
    whitening,
)
from interfuse.kit.heap import give_back


def matrix(rows: int, columns: int, decay: float) -> torch.Tensor:
    """A matrix whose singular values are ``decay ** i``."""
    g = torch.Generator().manual_seed(0)
    k = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, k, generator=g, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, k, generator=g, dtype=torch.float64)).Q
    return (left * decay ** torch.arange(k, dtype=torch.float64)) @ right.T


def source(a: torch.Tensor) -> Flat:
    """A matrix that is read in pieces."""
    return Weights.from_state_dict({"a": a.float()}).source("a")


def polar(a: Flat, how: str) -> torch.Tensor:
    """``U V^T``, made piece by piece."""
    (m, n), factor = a.shape, whitening(*short_side(a, how))
    blocks = [times(a, [factor], row * n, min(row + 100, m) * n) for row in range(0, m, 100)]
    return torch.cat(blocks)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(decompose, "_PIECE", 1)  # 256 rows or columns
    monkeypatch.setattr(decompose, "_READ", 1)


SHAPES = [(1100, 60), (60, 1100), (64, 64)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("smallest", "near"), [(1e-2, 1e-11), (1e-4, 1e-9), (1e-7, 1e-8)])
def test_a_matrix_in_pieces_has_the_singular_values_and_vectors_of_the_whole(small_pieces, shape, smallest, near):
    k = min(shape)
    a = matrix(*shape, smallest ** (1 / k))
    u, s, v = torch.linalg.svd(a.float().double(), full_matrices=False)
    sizes, vectors = short_side(source(a))
    assert float((sizes - s).abs().max()) < 1e-13
    assert float((vectors.T @ vectors - torch.eye(k)).abs().max()) < 1e-9
    assert float((polar(source(a), "exact") - u @ v).abs().max()) < near
    leading = short_side(source(a), rank=k // 3)[1]
    assert leading.shape == (k, k // 3)
    made = times(source(a), [leading, leading.T], 0, a.numel())
    assert float((made - (u[:, : k // 3] * s[: k // 3]) @ v[: k // 3]).abs().max()) < 1e-12


def test_values_of_very_different_sizes_keep_their_vectors(small_pieces):
    """What the Gram matrix of the whole cannot tell: each level is found where the larger ones have been taken away."""
    a = matrix(300, 40, 1.0)
    u, _, v = torch.linalg.svd(a, full_matrices=False)
    s = torch.tensor([1.0] * 10 + [3e-6] * 10 + [1e-10] * 19 + [0.0]).double()
    sizes, vectors = decompose.spectrum(lambda: iter(((u * s) @ v).split(70)), 40)
    assert torch.allclose(sizes, s, rtol=1e-4, atol=1e-15)
    assert sizes[-1] == 0
    for part in (slice(0, 10), slice(10, 20), slice(20, 39)):
        angles = torch.linalg.svdvals(v[part] @ vectors[:, part])
        assert float(angles.min()) > 1 - 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_levelling_by_the_gram_matrix(small_pieces, shape):
    a = matrix(*shape, 1e-4 ** (1 / min(shape)))
    exact, fast = polar(source(a), "exact"), polar(source(a), "gram")
    assert float((exact - fast).abs().max()) < 1e-6
    assert float((fast @ fast.T @ fast - fast).abs().max()) < 1e-6


@pytest.mark.parametrize("how", ["exact", "gram"])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_directions_that_are_not_there_stay_zero(how, shape):
    low = torch.zeros(shape)
    low[:3, :3] = torch.diag(torch.tensor([4.0, 2.0, 1.0]))  # rank 3
    assert short_side(source(low), how)[0].tolist() == pytest.approx([4, 2, 1, *[0] * 17])
    made = polar(source(low), how)
    assert int((torch.linalg.svdvals(made) > 0.5).sum()) == 3
    assert float(torch.linalg.svdvals(made)[2]) == pytest.approx(1)
    assert int(polar(source(torch.zeros(shape)), how).count_nonzero()) == 0


@pytest.mark.parametrize("shape", [(700, 90), (90, 700)])
def test_leading_vectors_by_products_alone(small_pieces, shape):
    a = matrix(*shape, 0.8)
    sizes, vectors = short_side(source(a), "randomised", 20, key=3)
    exact = 0.8 ** torch.arange(20, dtype=torch.float64)
    assert float(((sizes - exact) / exact).abs().max()) < 1e-4
    left = a - times(source(a), [vectors, vectors.T], 0, a.numel())
    assert float(torch.linalg.matrix_norm(left, 2)) < 1.01 * 0.8**20
    assert torch.equal(sizes, short_side(source(a), "randomised", 20, key=3)[0]), "the same key gives the same bytes"
    assert not torch.equal(sizes, short_side(source(a), "randomised", 20, key=4)[0])
    assert torch.equal(short_side(source(a), "randomised", 40)[0], short_side(source(a), "exact", 40)[0])


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_numbers_that_are_none_have_no_singular_values(shape):
    bad = torch.ones(shape)
    bad[7, 3] = float("nan")
    with pytest.raises(InterfuseError) as caught:
        short_side(source(bad))
    assert caught.value.code == "input.nan"


@pytest.mark.parametrize("shape", [(600, 30), (30, 600), (300, 280), (40, 40)])
def test_pieces_are_the_matrix_in_one_buffer(small_pieces, shape):
    a, b = matrix(*shape, 0.9), matrix(*shape, 0.7)
    long = (a if shape[0] >= shape[1] else a.T).float().double()
    seen, at = [], 0
    for piece in pieces(source(a)):
        assert torch.equal(piece, long[at : at + len(piece)])
        seen.append(piece.data_ptr())
        at += len(piece)
    assert (at, len(set(seen))) == (len(long), 1)
    factors = [torch.eye(min(shape), dtype=torch.float64)[:, :3], torch.eye(min(shape), dtype=torch.float64)[:, 4:6]]
    beside = torch.cat(list(side_by_side([source(a), source(b)], factors)))
    other = (b if shape[0] >= shape[1] else b.T).float().double()
    assert torch.equal(beside, torch.cat([long[:, :3], other[:, 4:6]], dim=1))


def test_memory_follows_the_short_side():
    assert matrix_memory((32000, 2048), 3) == matrix_memory((9000, 2048), 3) == 8 * (3 * 2048**2 + 3 * 256 * 2048)
    assert matrix_memory((2048, 32000), 3) == 8 * (3 * 2048**2 + 3 * 512 * 2048), "a wide one is read in larger pieces"
    assert matrix_memory((10, 4), 2) == 8 * (2 * 16 + 3 * 40), "a small one is one piece"


def test_freed_memory_goes_back_before_a_large_decomposition():
    """Of small pieces, between those that are kept, nothing would go back by itself."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("other C libraries give it back by themselves, or not at all")

    def private() -> int:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    many = [bytearray(100_000) for _ in range(640)]  # below the size from which each has pages of its own
    kept = many[::64]
    before = private()
    del many
    assert give_back()
    assert before - private() > 40 << 20
    assert len(kept) == 10
