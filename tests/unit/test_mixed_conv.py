"""A convolution of two mixed maps, one of them enlarged, without building them: the plain one's values and gradients."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interfuse.distill.reviewkd import LARGE, Fusion
from interfuse.kit.mixed_conv import Kernels, conv_mixed

reviewkd = importlib.import_module("interfuse.distill.reviewkd")


def inputs(batch: int, narrow: int, wide: int, out: int, side: tuple[int, int]) -> list[Tensor]:
    g = torch.Generator().manual_seed(sum(side))
    maps = [(batch, narrow, 2 * side[0], 2 * side[1]), (batch, wide, *side)]
    kernels = [(out, narrow + 1, 3, 3), (out, wide, 3, 3), (2, narrow), (2, wide), (2,)]
    return [torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in (*maps, *kernels)]


def plainly(fine: Tensor, coarse: Tensor, kernels: Kernels) -> Tensor:
    large = F.interpolate(coarse, scale_factor=2, mode="nearest")
    logits = F.conv2d(
        torch.cat([fine, large], dim=1),
        torch.cat([kernels.fine_logits, kernels.coarse_logits], dim=1)[:, :, None, None],
        kernels.bias,
    )
    a, b = torch.sigmoid(logits).split(1, dim=1)
    ones = torch.ones_like(fine[:, :1])
    mixed = torch.cat([a * torch.cat([fine, ones], dim=1), b * large], dim=1)
    return F.conv2d(mixed, torch.cat([kernels.fine, kernels.coarse], dim=1), padding=1)


@pytest.mark.parametrize(
    "shape", [(3, 5, 6, 4, (4, 4)), (2, 2, 4, 2, (1, 3)), (1, 1, 1, 1, (1, 1)), (2, 4, 3, 3, (5, 2))]
)
def test_values_and_gradients_are_those_of_the_plain_convolution(
    shape: tuple[int, int, int, int, tuple[int, int]],
) -> None:
    values = inputs(*shape)
    fine, coarse, *rest = values
    found, expected = conv_mixed(fine, coarse, Kernels(*rest)), plainly(fine, coarse, Kernels(*rest))
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
    side = 2 * math.ceil(LARGE**0.5 / 2)
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
    fusion, side = Fusion(3, 5, 4, fuse=True), 2 * math.ceil(LARGE**0.5 / 2)
    feature, deeper = torch.randn(2, 3, side, side), torch.randn(2, 5, side // 2, side // 2)
    exact, _ = fusion(feature, deeper, (side, side), last=last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = fusion(feature.bfloat16(), deeper.bfloat16(), (side, side), last=last)
    assert float((rough - exact).abs().mean()) < 0.05
