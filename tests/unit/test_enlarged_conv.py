"""A convolution of an enlarged, weighted map without the map: the plain one's values and gradients."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interfuse.distill.reviewkd import LARGE, Fusion
from interfuse.kit.enlarged_conv import conv_enlarged

reviewkd = importlib.import_module("interfuse.distill.reviewkd")


def inputs(batch: int, width: int, out: int, height: int, wide: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(height + wide)
    shapes = ((batch, width, height, wide), (batch, 1, 2 * height, 2 * wide), (out, width, 3, 3))
    return [torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]


def plainly(coarse: Tensor, share: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(share * F.interpolate(coarse, scale_factor=2, mode="nearest"), kernel, padding=1)


@pytest.mark.parametrize("shape", [(3, 5, 4, 4, 4), (2, 3, 2, 1, 3), (1, 1, 1, 1, 1), (2, 4, 3, 5, 2)])
def test_values_and_gradients_are_those_of_the_plain_convolution(shape: tuple[int, int, int, int, int]) -> None:
    values = inputs(*shape)
    found, expected = conv_enlarged(*values), plainly(*values)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), values),
        torch.autograd.grad((expected * weight).sum(), values),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("last", [False, True])
def test_a_large_narrow_stage_is_fused_as_a_small_one(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics from the covariance and the composed convolutions change nothing but the rounding, in the gradients either."""
    side = int(LARGE**0.5)
    torch.manual_seed(0)
    fusion = Fusion(3, 5, 4, fuse=True).double()
    for p in fusion.parameters():  # no weight at its special start
        p.data.normal_()
    feature = 3 + torch.randn(2, 3, side, side, dtype=torch.float64).square()
    feature.requires_grad_()
    deeper = torch.randn(2, 5, side // 2, side // 2, dtype=torch.float64, requires_grad=True)
    results = []
    for least in (LARGE, 10**9):
        monkeypatch.setattr(reviewkd, "LARGE", least)
        out, residual = fusion(feature, deeper, (side, side), last=last)
        assert (residual is None) == (last and least == LARGE)
        results.append(
            [out, *torch.autograd.grad(out.square().mul(0.3).cos().sum(), [feature, deeper, *fusion.parameters()])]
        )
    for mine, plain in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("last", [False, True])
def test_half_precision_by_autocast(last: bool) -> None:
    torch.manual_seed(0)
    fusion, side = Fusion(3, 5, 4, fuse=True), int(LARGE**0.5)
    feature, deeper = torch.randn(2, 3, side, side), torch.randn(2, 5, side // 2, side // 2)
    exact, _ = fusion(feature, deeper, (side, side), last=last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = fusion(feature.bfloat16(), deeper.bfloat16(), (side, side), last=last)
    assert float((rough - exact).abs().mean()) < 0.05
