"""What must hold of the losses for any input: oracle, zero, sign, invariances, gradients, shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interfuse.kit import feature_losses as fl
from interfuse.kit import losses
from interfuse.kit.chunked_losses import chunked
from tests.oracles import losses_oracle as oracle

Pair = tuple[Tensor, Tensor]


@st.composite
def pairs(
    draw: st.DrawFn, rows: tuple[int, int] = (2, 5), classes: tuple[int, int] = (3, 6), scale: float = 5.0
) -> Pair:
    """Student and teacher ``[B, K]`` in float64: hypothesis picks the shape, the spread and the seed."""
    shape = (draw(st.integers(*rows)), draw(st.integers(*classes)))
    spread = draw(st.floats(0.1, scale))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    s, t = (torch.randn(shape, generator=generator, dtype=torch.float64) * spread for _ in range(2))
    return s, t


taus = st.sampled_from([0.5, 1.0, 2.0, 4.0])
unit = st.floats(0.05, 0.95)

DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": partial(losses.forward_kl, tau=2.0),
    "reverse_kl": partial(losses.reverse_kl, tau=2.0),
    "js": losses.js,
    "js 0.1": partial(losses.js, beta=0.1, tau=3.0),
    "js 0": partial(losses.js, beta=0.0),
    "js 1": partial(losses.js, beta=1.0),
    "skew_forward_kl": losses.skew_forward_kl,
    "skew_reverse_kl": losses.skew_reverse_kl,
    "alpha_beta": losses.alpha_beta,
    "alpha_beta 1 0": partial(losses.alpha_beta, alpha=1.0, beta=0.0),
    "alpha_beta 0 .5": partial(losses.alpha_beta, alpha=0.0, beta=0.5),
    "alpha_beta .5 -.5": partial(losses.alpha_beta, alpha=0.5, beta=-0.5),
    "alpha_beta 0 0": partial(losses.alpha_beta, alpha=0.0, beta=0.0),
    "total_variation": losses.total_variation,
    "uld": losses.uld,
    "dist_inter": losses.dist_inter,
}
RAW = {"mse_logits": losses.mse_logits, "log_cosh_logits": losses.log_cosh_logits, "binary_kl": losses.binary_kl}
PER_SAMPLE = DIVERGENCES | RAW
RELATIONAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dist_intra": losses.dist_intra,
    "dist": losses.dist,
    "similarity_preserving": fl.similarity_preserving,
    "rkd_distance": fl.rkd_distance,
    "rkd_angle": fl.rkd_angle,
    "cka_distance": fl.cka_distance,
}
OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hint_mse": fl.hint_mse,
    "cosine_distance": fl.cosine_distance,
    "info_nce": partial(fl.info_nce, tau=0.5),
    "norm_direction": lambda s, t: fl.norm_direction(s, t, t + 1),
    "contextual": lambda s, t: fl.contextual(s[:, :, None], t[:, :, None]),
    "attention_transfer": lambda s, t: fl.attention_transfer(s[:, :, None], t[:, :, None]),
}
ALL = PER_SAMPLE | RELATIONAL | OTHERS


def agree(ours: Tensor, expected: object) -> None:
    np.testing.assert_allclose(ours.numpy(), np.asarray(expected), rtol=1e-8, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(pair=pairs(), tau=taus, weight=unit, data=st.data())
def test_logit_losses_match_the_oracle(pair: Pair, tau: float, weight: float, data: st.DataObject) -> None:
    s, t = pair
    rows = list(zip(s.numpy(), t.numpy(), strict=True))
    y = torch.tensor(data.draw(st.lists(st.integers(0, s.shape[1] - 1), min_size=len(s), max_size=len(s))))
    agree(losses.entropy(t, tau=tau), [oracle.entropy(b, tau) for _, b in rows])
    agree(losses.forward_kl(s, t, tau=tau), [oracle.forward_kl(a, b, tau) for a, b in rows])
    agree(losses.reverse_kl(s, t, tau=tau), [oracle.reverse_kl(a, b, tau) for a, b in rows])
    agree(losses.js(s, t, tau=tau, beta=weight), [oracle.js(a, b, tau, weight) for a, b in rows])
    for ours, slow in (
        (losses.skew_forward_kl, oracle.skew_forward_kl),
        (losses.skew_reverse_kl, oracle.skew_reverse_kl),
    ):
        agree(ours(s, t, tau=tau, alpha=weight), [slow(a, b, tau, weight) for a, b in rows])
    agree(
        losses.alpha_beta(s, t, tau=tau, alpha=weight, beta=0.6),
        [oracle.alpha_beta(a, b, tau, weight, 0.6) for a, b in rows],
    )
    agree(losses.total_variation(s, t, tau=tau), [oracle.total_variation(a, b, tau) for a, b in rows])
    agree(losses.uld(s, t[:, 1:], tau=tau), [oracle.uld(a, b[1:], tau) for a, b in rows])
    agree(losses.log_cosh_logits(s, t, tau=tau), [oracle.log_cosh(a, b, tau) for a, b in rows])
    agree(losses.binary_kl(s, t, tau=tau), [oracle.binary_kl(a, b, tau) for a, b in rows])
    labelled = [(a, b, int(c)) for (a, b), c in zip(rows, y, strict=True)]
    for form in ("code", "paper"):
        ours = losses.ofa(s, t, y, tau=tau, eps=1 + weight, form=form)
        agree(ours, [oracle.ofa(a, b, c, tau, 1 + weight, form) for a, b, c in labelled])
    onehot = np.eye(s.shape[1])
    agree(
        losses.cross_entropy(s, y, label_smoothing=weight),
        [oracle.cross_entropy(a, onehot[c], weight) for a, _, c in labelled],
    )


@settings(max_examples=40, deadline=None)
@given(pair=pairs(scale=3.0), tau=st.sampled_from([1.0, 4.0]))
def test_dkd_matches_the_oracle(pair: Pair, tau: float) -> None:
    s, t = pair
    y = s.argmin(dim=1)  # keeps 1 - p_target away from 0, where the oracle loses digits
    expected = [oracle.dkd(a, b, int(c), tau, 1.0, 8.0) for a, b, c in zip(s.numpy(), t.numpy(), y, strict=True)]
    np.testing.assert_allclose(losses.dkd(s, t, y, tau=tau).numpy(), expected, rtol=1e-6, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(pair=pairs(rows=(4, 6)), tau=taus)
def test_batch_losses_average_to_the_published_scalar(pair: Pair, tau: float) -> None:
    s, t = pair
    a, b = s.numpy(), t.numpy()
    narrow = t[:, :2]
    shares = losses.dist(s, t, beta=2.0, gamma=3.0, tau=tau)
    assert shares.shape == (len(s),)
    if (
        losses.log_probs(s, tau).exp().std(dim=0).min() > 1e-4
        and losses.log_probs(t, tau).exp().std(dim=0).min() > 1e-4
    ):
        np.testing.assert_allclose(shares.mean(), oracle.dist(a, b, tau, 2.0, 3.0), rtol=1e-6)
    agree(fl.rkd_distance(s, narrow).mean(), oracle.rkd_distance(a, b[:, :2]))
    agree(fl.rkd_angle(s, narrow).mean(), oracle.rkd_angle(a, b[:, :2]))
    agree(fl.similarity_preserving(s, narrow).mean(), oracle.similarity_preserving(a, b[:, :2]))
    agree(1 - fl.cka_distance(s, narrow).mean(), oracle.linear_cka(a, b[:, :2]))
    agree(fl.linear_cka(s, narrow), oracle.linear_cka(a, b[:, :2]))
    agree(fl.linear_hsic(s, narrow, unbiased=True), oracle.hsic_unbiased(a, b[:, :2]))
    agree(fl.info_nce(s, t, tau=0.3), oracle.info_nce(a, b, 0.3))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), p=st.sampled_from([1.0, 2.0, 3.0]))
def test_feature_losses_match_the_oracle(seed: int, p: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(3, c, 2, 3, generator=generator, dtype=torch.float64) for c in (2, 4)]
    expected = [oracle.attention_transfer(a.numpy(), b.numpy(), p) for a, b in zip(*maps, strict=True)]
    agree(fl.attention_transfer(*maps, p=p), expected)
    tokens = [m.flatten(2).transpose(1, 2) for m in maps]
    agree(fl.attention_transfer(*tokens, p=p), expected)
    agree(fl.contextual(*tokens), [oracle.contextual(a.numpy(), b.numpy()) for a, b in zip(*tokens, strict=True)])
    s, t, c = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    agree(
        fl.norm_direction(s, t, c),
        [oracle.norm_direction(*(x.numpy() for x in rows)) for rows in zip(s, t, c, strict=True)],
    )


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=15, deadline=None)
@given(pair=pairs())
def test_never_negative_and_zero_for_identical_input(name: str, pair: Pair) -> None:
    s, t = pair
    loss = ALL[name]
    value = loss(s, t)
    total = value.mean() if name in RELATIONAL else value  # single shares of a relational loss may be negative
    assert total.min().item() >= -1e-10
    if name in ("info_nce", "norm_direction"):  # not zero at equality: positive by construction
        return
    assert loss(t, t.clone()).abs().max().item() < 1e-9 or (
        # a share is B times a summand, so only the batch's sum vanishes where terms are unequal in size
        name in ("dist_intra", "dist", "cka_distance") and abs(loss(t, t.clone()).mean().item()) < 1e-9
    )


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(max_examples=15, deadline=None)
@given(pair=pairs(), shift=st.floats(-20, 20))
def test_softmax_losses_ignore_a_shift_of_logits_and_the_order_of_classes(name: str, pair: Pair, shift: float) -> None:
    s, t = pair
    value = DIVERGENCES[name](s, t)
    offsets = shift * torch.arange(1, len(s) + 1, dtype=torch.float64)[:, None]
    torch.testing.assert_close(DIVERGENCES[name](s + offsets, t - 2 * offsets), value, atol=1e-9, rtol=1e-9)
    order = torch.arange(s.shape[1]).flip(0).roll(1)
    torch.testing.assert_close(DIVERGENCES[name](s[:, order], t[:, order]), value, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", RAW)
@settings(max_examples=15, deadline=None)
@given(pair=pairs(), shift=st.floats(0.5, 5))
def test_logit_losses_notice_a_shift_of_one_side(name: str, pair: Pair, shift: float) -> None:
    s, t = pair
    order = torch.arange(s.shape[1]).flip(0).roll(1)
    torch.testing.assert_close(RAW[name](s[:, order], t[:, order]), RAW[name](s, t))
    assert (RAW[name](t + shift, t) > 1e-12).all()
    if name != "binary_kl":
        torch.testing.assert_close(RAW[name](s + shift, t + shift), RAW[name](s, t))


@settings(max_examples=25, deadline=None)
@given(pair=pairs(), data=st.data())
def test_labelled_losses_ignore_shift_and_order_of_classes(pair: Pair, data: st.DataObject) -> None:
    s, t = pair
    classes = s.shape[1]
    y = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=len(s), max_size=len(s))))
    order = torch.tensor(data.draw(st.permutations(range(classes))))
    moved = order.argsort()[y]
    for loss in (losses.dkd, losses.tckd, losses.nckd, partial(losses.ofa, eps=1.5)):
        value = loss(s, t, y)
        assert value.min().item() >= -1e-10
        torch.testing.assert_close(loss(s[:, order] + 3, t[:, order] - 2, moved), value, atol=1e-9, rtol=1e-9)
    for loss in (losses.dkd, losses.tckd, losses.nckd):
        assert loss(t, t.clone(), y).abs().max().item() < 1e-9


@pytest.mark.parametrize("name", RELATIONAL)
@settings(max_examples=10, deadline=None)
@given(pair=pairs(rows=(4, 6)))
def test_shares_move_with_their_samples(name: str, pair: Pair) -> None:
    s, t = pair
    order = torch.arange(len(s)).flip(0).roll(1)
    torch.testing.assert_close(
        RELATIONAL[name](s[order], t[order]), RELATIONAL[name](s, t)[order], atol=1e-8, rtol=1e-8
    )


@settings(max_examples=25, deadline=None)
@given(pair=pairs(rows=(4, 6), scale=2.0), factor=st.floats(0.1, 10))
def test_relations_ignore_rotation_and_scale(pair: Pair, factor: float) -> None:
    s, t = pair
    rotation = torch.linalg.qr(
        torch.randn(s.shape[1], s.shape[1], generator=torch.Generator().manual_seed(0)).double()
    ).Q
    for loss in (fl.similarity_preserving, fl.rkd_distance, fl.rkd_angle, fl.cka_distance):
        torch.testing.assert_close(loss(factor * s @ rotation, t), loss(s, t), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("total_variation", "uld")])
@settings(max_examples=4, deadline=None)
@given(pair=pairs(rows=(3, 3), classes=(3, 4), scale=2.0))
def test_gradients_are_right_on_both_sides(name: str, pair: Pair) -> None:
    s, t = (x.clone().requires_grad_() for x in pair)
    assert torch.autograd.gradcheck(ALL[name], (s, t), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["total_variation", "uld"])
def test_gradients_of_the_absolute_differences_away_from_their_kinks(name: str) -> None:
    s = torch.tensor([[2.0, 0.0, -1.0], [0.3, 1.0, -0.2]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[0.5, 0.2, -0.3], [1.5, 0.0, -2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(DIVERGENCES[name], (s, t))


@settings(max_examples=4, deadline=None)
@given(pair=pairs(rows=(3, 3), classes=(3, 4), scale=2.0))
def test_gradients_of_labelled_losses_are_right(pair: Pair) -> None:
    s, t = (x.clone().requires_grad_() for x in pair)
    y = torch.tensor([0, 2, -100])
    for loss in (losses.dkd, partial(losses.ofa, eps=1.5), partial(losses.ofa, form="paper")):
        assert torch.autograd.gradcheck(lambda a, b, loss=loss: loss(a, b, y), (s, t))
    assert torch.autograd.gradcheck(lambda a: losses.cross_entropy(a, y, label_smoothing=0.1), (s,))
    assert torch.autograd.gradcheck(losses.standardise_logits, (s,), atol=1e-5, rtol=1e-3)


@settings(max_examples=4, deadline=None)
@given(pair=pairs(rows=(4, 4), classes=(3, 3), scale=1.0))
def test_gradient_of_the_token_graph_is_right(pair: Pair) -> None:
    s, t = (x.clone().requires_grad_() for x in pair)
    near = fl.nearest_neighbours(t, 2)

    def local(a: Tensor, b: Tensor) -> Tensor:
        return fl.graph_divergence(fl.gaussian_graph(a, near), fl.gaussian_graph(b, near))

    assert torch.autograd.gradcheck(local, (s, t), atol=1e-5, rtol=1e-3)
    assert local(t, t.clone()).abs().max().item() < 1e-12
    assert near.sum(dim=0).tolist() == [2, 2, 2, 2]
    assert not near.diagonal().any()


@pytest.mark.parametrize("name", PER_SAMPLE)
@settings(max_examples=10, deadline=None)
@given(pair=pairs(rows=(1, 9)), positions=st.integers(1, 10), data=st.data())
def test_chunked_equals_plain_value_and_gradient(name: str, pair: Pair, positions: int, data: st.DataObject) -> None:
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(pair[0]), max_size=len(pair[0]))))
    weights = torch.linspace(-1, 2, len(mask), dtype=torch.float64)
    s, t = (x.clone().requires_grad_() for x in pair)
    plain = PER_SAMPLE[name](s, t).masked_fill(~mask, 0.0)
    blocks = chunked(PER_SAMPLE[name], s, t, mask=mask, positions=positions)
    torch.testing.assert_close(blocks, plain, atol=1e-10, rtol=1e-10)
    expected = torch.autograd.grad((plain * weights).sum(), [s, t])
    got = torch.autograd.grad((blocks * weights).sum(), [s, t])
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@settings(max_examples=5, deadline=None)
@given(pair=pairs(rows=(3, 3), classes=(3, 4), scale=2.0))
def test_chunked_passes_gradcheck(pair: Pair) -> None:
    s, t = (x.clone().requires_grad_() for x in pair)
    for loss in (losses.forward_kl, losses.reverse_kl, losses.js):
        assert torch.autograd.gradcheck(lambda a, b, loss=loss: chunked(loss, a, b, positions=2), (s, t))
