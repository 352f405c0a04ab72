"""Worked numbers, parity with the reference implementations, precision, masks, shares and refusals of the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interfuse.core.errors import InterfuseError
from interfuse.kit import feature_losses as fl
from interfuse.kit import losses
from interfuse.kit.chunked_losses import chunked


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def wave(step: float, *shape: int) -> Tensor:
    """2 sin(step * 1), 2 sin(step * 2), ... : the fixed input of every parity number below."""
    count = math.prod(shape)
    return (2 * torch.sin(step * torch.arange(1, count + 1, dtype=torch.float64))).reshape(shape)


def close(value: Tensor, expected: float, tolerance: float = 1e-6) -> None:
    assert value.item() == pytest.approx(expected, abs=tolerance, rel=0)


S, T, Y = wave(0.7, 4, 5), wave(1.3, 4, 5), torch.tensor([0, 3, 1, 4])
P, Q = row(0.7, 0.2, 0.1), row(0.5, 0.3, 0.2)  # teacher and student probabilities


# -- worked numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau, expected", [(1.0, 0.119630), (4.0, 0.119818)])
def test_kl_worked_numbers(tau: float, expected: float) -> None:
    close(losses.forward_kl(row(1, 1, 0), row(2, 1, 0), tau=tau), expected)


def test_both_directions_and_entropies() -> None:
    t, s = row(3, 0, 0), row(1, 0, 0)
    close(losses.entropy(t), 0.366594)
    close(losses.entropy(s), 0.975328)
    close(losses.forward_kl(s, t), 0.275408)
    close(losses.reverse_kl(s, t), 0.391244)
    close(losses.forward_kl(t, s), 0.391244)


@pytest.mark.parametrize(
    "loss, expected",
    [
        (losses.forward_kl, 0.085123),
        (losses.reverse_kl, 0.092033),
        (losses.js, 0.021901),
        (losses.total_variation, 0.2),
        (partial(losses.alpha_beta, alpha=0.5, beta=0.5), 2 * 0.044043),  # twice the squared Hellinger sum
    ],
)
def test_divergences_of_two_distributions(loss: Callable[..., Tensor], expected: float) -> None:
    close(loss(Q.log(), P, targets="probs"), expected, 2e-6)
    close(loss(Q.log(), P.log()), expected, 2e-6)


@pytest.mark.parametrize(
    "form, eps, expected",
    [("code", 1.0, 0.886204), ("code", 1.5, 0.863293), ("code", 2.0, 1.083221), ("paper", 1.0, 1.437648)],
)
def test_ofa_worked_numbers(form: Any, eps: float, expected: float) -> None:
    close(losses.ofa(row(1, 0, 0), row(2, 1, 0), torch.tensor([0]), eps=eps, form=form), expected)


def test_ofa_paper_form_at_one_is_hard_plus_soft_cross_entropy() -> None:
    hard = losses.cross_entropy(row(1, 0, 0), torch.tensor([0]))
    close(hard, 0.551445)
    soft = losses.cross_entropy(S, losses.log_probs(T).exp())
    paper = losses.ofa(S, T, Y, form="paper")
    torch.testing.assert_close(paper, soft + losses.cross_entropy(S, Y))


def test_ofa_at_one_has_the_gradient_of_kl() -> None:
    s = S.clone().requires_grad_()
    a = torch.autograd.grad(losses.ofa(s, T, Y, eps=1.0).sum(), s)[0]
    b = torch.autograd.grad(losses.forward_kl(s, T).sum(), s)[0]
    torch.testing.assert_close(a, b)


def test_logit_losses_worked_numbers() -> None:
    t, u = row(2, 0, -1), row(1, 0.5, -2).requires_grad_()
    close(losses.binary_kl(u, t), 0.248367)
    loss = losses.log_cosh_logits(u, t)
    close(loss, 0.278607)
    gradient = torch.autograd.grad(loss.sum(), u)[0]
    torch.testing.assert_close(gradient, row(-0.244919, 0.124353, -0.244919), atol=1e-6, rtol=0)
    close(losses.mse_logits(u, t), (1 + 0.25 + 1) / 3)


@pytest.mark.parametrize(
    "s, t, expected",
    [
        ((3, 4), (0, 10), 0.7),
        ((3, 4), (1, 0), 0.4),
        ((6, 8), (1, 0), 0.4),
        ((6, 8), (0, 10), 0.4),
        ((9, 0), (0, 5), 0.0),
    ],
)
def test_norm_direction_worked_numbers(s: Any, t: Any, expected: float) -> None:
    close(fl.norm_direction(row(*s), row(*t), row(1, 0)), expected)


def test_norm_direction_gradient_turns_but_does_not_stretch_a_long_student() -> None:
    s = row(3, 4).requires_grad_()
    long = torch.autograd.grad(fl.norm_direction(s, row(1, 0), row(2, 0)).sum(), s)[0]
    assert abs((long * s).sum().item()) < 1e-12
    assert long.norm().item() > 0.01
    short = torch.autograd.grad(fl.norm_direction(s, row(0, 10), row(2, 0)).sum(), s)[0]
    torch.testing.assert_close(short, row(-0.1, 0))


def test_similarity_worked_numbers() -> None:
    eye, ones = torch.eye(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    close(fl.similarity_preserving(ones, eye).mean(), 0.292893)
    close(fl.similarity_preserving(torch.diag(row(2, 5)[0]), eye).mean(), 0.0)


def test_contextual_worked_number() -> None:
    close(fl.contextual(torch.ones(1, 2, 1, dtype=torch.float64), torch.eye(2, dtype=torch.float64)[None]), 0.028819)


@pytest.mark.parametrize("tau, expected", [(1.0, 0.808589), (0.1, 0.002811)])
def test_info_nce_worked_numbers(tau: float, expected: float) -> None:
    similarity = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    close(fl.info_nce(similarity, torch.eye(2, dtype=torch.float64), tau=tau, normalise=False).sum(), expected)


def test_token_graph_worked_numbers() -> None:
    t, s = torch.tensor([[0.0, 0], [1, 0], [0, 2]]).double(), torch.tensor([[0.0], [1], [1.5]]).double()
    g_t, g_s = (fl.gaussian_graph(x, fl.nearest_neighbours(x, 1)) for x in (t, s))
    expected_t = torch.tensor([[0, 0.60653, 0.13534], [0.60653, 0, 0], [0, 0, 0]]).double()
    expected_s = torch.tensor([[0, 0, 0], [0.60653, 0, 0.88250], [0, 0.88250, 0]]).double()
    torch.testing.assert_close(g_t, expected_t, atol=5e-6, rtol=0)
    torch.testing.assert_close(g_s, expected_s, atol=5e-6, rtol=0)
    close(fl.graph_divergence(g_s, g_t).sum(), 0.222896)
    close(fl.graph_divergence(g_s, g_t, axis="column").sum(), 0.3167, 5e-5)
    forward = fl.graph_divergence(g_s, g_t, direction="forward")
    torch.testing.assert_close(forward, fl.graph_divergence(g_t, g_s))


# -- parity with reference implementations: numbers of *their* code on S, T, Y and the features below ------------------
# RepDistiller b84f547 (BSD-2), mdistiller a08d46f (MIT), torchdistill 3e4373c (MIT),
# TRL f2cd577 (Apache-2.0); for numbers only: distillm d47e77f, abkd df81318, OFAKD f7bb896, DHKD 7976c69,
# Knowledge-Distillation-via-ND fc6f3f9, logit-standardization-KD f6e5aa5, llm-recipes (ULD) ab6e798.

F_S, F_T, F_T_SMALL = wave(0.7, 4, 3, 4, 4), wave(1.3, 4, 5, 4, 4), wave(1.3, 4, 5, 2, 2)
V_S, V_T, V_T_WIDE = wave(0.7, 5, 6), wave(1.3, 5, 4), wave(1.3, 5, 6)


def _torchdistill_kd() -> Tensor:
    return 0.1 * losses.cross_entropy(S, Y) + 0.9 * losses.forward_kl(S, T, tau=4.0)


def _centres_of_labels() -> Tensor:
    return wave(0.4, 5, 6)[torch.tensor([0, 3, 1, 4, 2])]


PARITY: dict[str, tuple[Callable[[], Tensor], float]] = {
    "RepDistiller DistillKL tau 1": (lambda: losses.forward_kl(S, T), 1.271630558085),
    "mdistiller kd_loss tau 4": (lambda: losses.forward_kl(S, T, tau=4.0), 1.817016670373),
    "torchdistill KDLoss alpha 0.1 tau 4": (_torchdistill_kd, 1.756844980203),
    "mdistiller dkd_loss TCKD tau 4": (lambda: losses.dkd(S, T, Y, alpha=1, beta=0), 0.292116210469),
    "mdistiller dkd_loss NCKD tau 4": (lambda: losses.dkd(S, T, Y, alpha=0, beta=1), 1.972671820828),
    "mdistiller dkd_loss 1 8 tau 4": (lambda: losses.dkd(S, T, Y), 16.073490777092),
    "mdistiller dkd_loss 1 1 tau 1": (lambda: losses.dkd(S, T, Y, beta=1, tau=1.0), 1.655912926523),
    # DIST_KD 2418f18 itself gives 0.814767725890 and 0.500394320868: it adds its 1e-8 to the product of the norms,
    # torchdistill clamps with it, and so do we
    "torchdistill DISTLoss inter": (lambda: losses.dist_inter(S, T), 0.814767715546),
    "torchdistill DISTLoss intra": (lambda: losses.dist_intra(S, T), 0.500392839126),
    "torchdistill DISTLoss": (lambda: losses.dist(S, T), 1.315160554672),
    "torchdistill DISTLoss tau 4": (lambda: losses.dist(S, T, beta=2.0, gamma=3.0, tau=4.0), 56.432187275218),
    "logit-standardization kd_loss tau 2": (
        lambda: losses.forward_kl(losses.standardise_logits(S), losses.standardise_logits(T), tau=2.0),
        0.760879433449,
    ),
    "distillm reverse_kl": (lambda: losses.reverse_kl(S, T), 0.947613831353),
    "distillm js_distance 0.9": (lambda: losses.js(S, T, beta=0.1), 0.095679159324),
    "distillm tv_distance": (lambda: losses.total_variation(S, T), 0.536121492757),
    # their forward losses are cross-entropies: the teacher's entropy is added to ours
    "distillm forward_kl": (lambda: losses.forward_kl(S, T) + losses.entropy(T), 2.324840826532),
    "distillm skewed_forward_kl": (lambda: losses.skew_forward_kl(S, T) + losses.entropy(T), 1.817181339846),
    "distillm skewed_reverse_kl": (lambda: losses.skew_reverse_kl(S, T), 0.699963438795),
    "TRL generalized_jsd_loss 0": (lambda: losses.js(S, T, beta=0.0), 1.271630558085),
    "TRL generalized_jsd_loss 0.5": (lambda: losses.js(S, T), 0.217972684206),
    "TRL generalized_jsd_loss 0.9": (lambda: losses.js(S, T, beta=0.9), 0.080825119567),
    "TRL generalized_jsd_loss 1": (lambda: losses.js(S, T, beta=1.0), 0.947613831353),
    "TRL generalized_jsd_loss 0.3 tau 2": (
        lambda: losses.js(S, T, beta=0.3, tau=2.0, scaled=False),
        0.077648822044,
    ),
    "OFAKD ofa_loss 1": (lambda: losses.ofa(S, T, Y), 2.324840826532),
    "OFAKD ofa_loss 1.5": (lambda: losses.ofa(S, T, Y, eps=1.5), 1.787424722926),
    "OFAKD ofa_loss 2": (lambda: losses.ofa(S, T, Y, eps=2.0), 1.655336844965),
    "OFAKD ofa_loss 1.5 tau 4": (lambda: losses.ofa(S, T, Y, eps=1.5, tau=4.0), 1.117282088706),
    "DHKD BinaryKL": (lambda: losses.binary_kl(S, T), 2.471975871236),
    "DHKD BinaryKLNorm": (lambda: losses.log_cosh_logits(S, T), 2.414894981870),
    "abkd ABKL 0.5 0.5": (lambda: losses.alpha_beta(S, T, alpha=0.5, beta=0.5), 0.968674905679),
    "abkd ABKL 0.2 0.7": (lambda: losses.alpha_beta(S, T), 1.138443820529),
    "abkd ABKL 1.5 -0.3": (lambda: losses.alpha_beta(S, T, alpha=1.5, beta=-0.3), 1.297413557886),
    "llm-recipes ULD": (lambda: losses.uld(wave(0.7, 2, 3, 7), wave(1.3, 2, 3, 5)), 0.389410235068),
    "RepDistiller Attention": (lambda: fl.attention_transfer(F_S, F_T), 0.002423814629),
    "RepDistiller Attention, pooled": (lambda: fl.attention_transfer(F_S, F_T_SMALL), 0.012460044375),
    "RepDistiller Similarity": (lambda: fl.similarity_preserving(F_S, F_T), 0.247643151018),
    "mdistiller rkd_loss distance": (lambda: fl.rkd_distance(V_S, V_T), 0.191544102845),
    "mdistiller rkd_loss angle": (lambda: fl.rkd_angle(V_S, V_T), 0.145055503853),
    "RepDistiller RKDLoss 25 50": (
        lambda: 25 * fl.rkd_distance(V_S, V_T) + 50 * fl.rkd_angle(V_S, V_T),
        12.041377763760,
    ),
    "torchdistill RKDLoss 1 2": (lambda: fl.rkd_distance(V_S, V_T) + 2 * fl.rkd_angle(V_S, V_T), 0.481655110550),
    "RepDistiller HintLoss": (lambda: fl.hint_mse(V_S, V_T_WIDE), 4.181393840321),
    "via-ND DirectNormLoss": (lambda: fl.norm_direction(V_S, V_T_WIDE, _centres_of_labels()), 0.791346764966),
}


@pytest.mark.parametrize("name", PARITY)
def test_parity_with_reference(name: str) -> None:
    ours, reference = PARITY[name]
    close(ours().mean(), reference, 2e-7)


# -- identities ------------------------------------------------------------------------------------------------------


def test_dkd_with_the_teachers_rest_mass_as_beta_is_kl() -> None:
    rest = 1 - losses.log_probs(T, 4.0).exp().gather(1, Y[:, None]).squeeze(1)
    whole = losses.tckd(S, T, Y) + rest * losses.nckd(S, T, Y)
    torch.testing.assert_close(whole, losses.forward_kl(S, T, tau=4.0))


def test_skewed_and_general_divergences_reach_their_limits() -> None:
    forward, reverse = losses.forward_kl(S, T), losses.reverse_kl(S, T)
    torch.testing.assert_close(losses.skew_forward_kl(S, T, alpha=0.0), forward)
    torch.testing.assert_close(losses.skew_reverse_kl(S, T, alpha=0.0), reverse)
    torch.testing.assert_close(losses.alpha_beta(S, T, alpha=1.0, beta=0.0), forward)
    torch.testing.assert_close(losses.alpha_beta(S, T, alpha=0.0, beta=1.0), reverse)
    torch.testing.assert_close(losses.js(S, T, beta=1e-7) / 1e-7, forward, atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.js(S, T, beta=1 - 1e-7) / 1e-7, reverse, atol=1e-5, rtol=0)


@pytest.mark.parametrize("a, b", [(0.0, 0.0), (0.7, 0.0), (0.0, 0.7), (0.6, -0.6)])
def test_alpha_beta_is_continuous_at_its_special_cases(a: float, b: float) -> None:
    h, k = 1.3e-4, 1.1e-4
    around = (losses.alpha_beta(S, T, alpha=a + h, beta=b + k) + losses.alpha_beta(S, T, alpha=a - h, beta=b - k)) / 2
    torch.testing.assert_close(losses.alpha_beta(S, T, alpha=a, beta=b), around, atol=2e-6, rtol=2e-6)


def test_temperature_keeps_gradients_at_one_size() -> None:
    s = S.clone().requires_grad_()
    norms = [torch.autograd.grad(losses.forward_kl(s, T, tau=tau).sum(), s)[0].norm().item() for tau in (20.0, 80.0)]
    assert norms[0] / norms[1] == pytest.approx(1.0, abs=0.05)
    bare = torch.autograd.grad(losses.forward_kl(s, T, tau=80.0, scaled=False).sum(), s)[0].norm().item()
    assert bare * 80**2 == pytest.approx(norms[1])


def test_label_smoothing_equals_torch_and_soft_targets_equal_hard_ones() -> None:
    for eps in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(S, Y, label_smoothing=eps, reduction="none")
        torch.testing.assert_close(losses.cross_entropy(S, Y, label_smoothing=eps), expected)
        onehot = torch.nn.functional.one_hot(Y, 5).double()
        torch.testing.assert_close(losses.cross_entropy(S, onehot, label_smoothing=eps), expected)


def test_uld_ignores_the_order_and_the_size_of_vocabularies() -> None:
    shuffled = S[:, torch.tensor([3, 0, 4, 1, 2])]
    assert losses.uld(shuffled, S).abs().max().item() < 1e-15
    wider = torch.cat([S, torch.full((4, 3), -torch.inf, dtype=torch.float64)], dim=1)
    assert losses.uld(wider, S).abs().max().item() < 1e-15


def test_unbiased_cka_of_independent_features_is_near_zero_where_the_biased_one_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    assert fl.linear_cka(x, y).item() > 0.6
    assert abs(fl.linear_cka(x, y, unbiased=True).item()) < 0.3
    rotation = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q
    close(fl.linear_cka(x, 3 * x @ rotation), 1.0)
    close(fl.linear_cka(x, 3 * x @ rotation, unbiased=True), 1.0)
    close(fl.cka_distance(x, y).mean(), 1 - fl.linear_cka(x, y).item(), 1e-12)


def test_info_nce_leaves_out_negatives_of_the_same_class() -> None:
    s, t = wave(0.7, 3, 4), wave(1.3, 3, 4)
    classes = torch.tensor([0, 0, 1])
    first = fl.info_nce(s, t, tau=0.5, classes=classes)[0]
    torch.testing.assert_close(first, fl.info_nce(s[[0, 2]], t[[0, 2]], tau=0.5)[0])
    assert first < fl.info_nce(s, t, tau=0.5)[0]


# -- precision, zeros, masks, shapes ---------------------------------------------------------------------------------

ON_LOGITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": partial(losses.forward_kl, tau=2.0),
    "reverse_kl": losses.reverse_kl,
    "js": partial(losses.js, beta=0.1),
    "skew_forward_kl": losses.skew_forward_kl,
    "skew_reverse_kl": losses.skew_reverse_kl,
    "alpha_beta": losses.alpha_beta,
    "total_variation": losses.total_variation,
    "uld": losses.uld,
    "mse_logits": losses.mse_logits,
    "log_cosh_logits": losses.log_cosh_logits,
    "binary_kl": losses.binary_kl,
    "dist_inter": losses.dist_inter,
}
ON_FEATURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dist_intra": losses.dist_intra,
    "hint_mse": fl.hint_mse,
    "cosine_distance": fl.cosine_distance,
    "similarity_preserving": fl.similarity_preserving,
    "rkd_distance": fl.rkd_distance,
    "rkd_angle": fl.rkd_angle,
    "info_nce": fl.info_nce,
    "cka_distance": fl.cka_distance,
}


@pytest.mark.parametrize("name", ON_LOGITS | ON_FEATURES)
def test_half_precision_is_computed_in_float32_even_under_autocast(name: str) -> None:
    loss = (ON_LOGITS | ON_FEATURES)[name]
    s, t = wave(0.7, 6, 40).bfloat16(), wave(1.3, 6, 40).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(s, t)
    assert value.dtype == torch.float32
    exact = loss(s.double(), t.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(value.double(), exact, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ON_LOGITS)
def test_tokens_are_treated_like_samples(name: str) -> None:
    s, t = wave(0.7, 2, 3, 5), wave(1.3, 2, 3, 5)
    value = ON_LOGITS[name](s, t)
    assert value.shape == (2, 3)
    torch.testing.assert_close(value.flatten(), ON_LOGITS[name](s.reshape(6, 5), t.reshape(6, 5)))


def test_excluded_classes_do_not_poison_value_or_gradient() -> None:
    inf = torch.inf
    t = row(2, -inf, 0, 1)
    for name in ("forward_kl", "js", "skew_forward_kl", "skew_reverse_kl", "alpha_beta", "total_variation", "uld"):
        s = row(1, 0.5, 0, -1).requires_grad_()
        value = ON_LOGITS[name](s, t)
        gradient = torch.autograd.grad(value.sum(), s)[0]
        assert value.isfinite().all(), name
        assert gradient.isfinite().all(), name
    assert losses.reverse_kl(row(1, 0.5, 0, -1), t).item() == inf
    for name in ("forward_kl", "reverse_kl", "js", "skew_forward_kl"):  # excluded on both sides: as if not there
        s = row(1, -inf, 0, -1).requires_grad_()
        value = ON_LOGITS[name](s, t)
        keep = torch.tensor([0, 2, 3])
        torch.testing.assert_close(value, ON_LOGITS[name](s[:, keep], t[:, keep]))
        gradient = torch.autograd.grad(value.sum(), s)[0]
        assert gradient.isfinite().all(), name
        assert gradient[0, 1].item() == 0


def test_extreme_logits_stay_finite_in_float32() -> None:
    s = torch.tensor([[500.0, -500, 0], [-500, 500, 0]], requires_grad=True)
    t = torch.tensor([[-500.0, 500, 0], [0, 0, 500]])
    for name, loss in ON_LOGITS.items():
        value = loss(s, t)
        assert value.isfinite().all(), name
        assert torch.autograd.grad(value.sum(), s)[0].isfinite().all(), name


def test_ignored_targets_and_masked_positions_are_zero_without_gradient() -> None:
    y = torch.tensor([0, -100, 1, 4])
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda s: losses.cross_entropy(s, y, label_smoothing=0.1),
        lambda s: losses.cross_entropy(s, Y, mask=torch.tensor([1, 0, 1, 1])),
        lambda s: losses.dkd(s, T, y),
        lambda s: losses.ofa(s, T, y),
    ]
    for call in calls:
        s = S.clone().requires_grad_()
        value = call(s)
        gradient = torch.autograd.grad(value.sum(), s)[0]
        assert value[1].item() == 0
        assert gradient[1].abs().max().item() == 0
        assert (value[[0, 2, 3]] > 0).all()


def test_soft_labels_stand_for_their_largest_entry() -> None:
    soft = torch.nn.functional.one_hot(Y, 5).double() * 0.6 + 0.08
    torch.testing.assert_close(losses.dkd(S, T, soft), losses.dkd(S, T, Y))
    torch.testing.assert_close(losses.ofa(S, T, soft, eps=1.5), losses.ofa(S, T, Y, eps=1.5))


def test_teacher_probabilities_equal_teacher_logits_at_any_temperature() -> None:
    p = losses.log_probs(T).exp()
    for loss in (losses.forward_kl, losses.reverse_kl, losses.js, losses.dist):
        torch.testing.assert_close(loss(S, p, tau=3.0, targets="probs"), loss(S, T, tau=3.0))
    torch.testing.assert_close(losses.dkd(S, p, Y, targets="probs"), losses.dkd(S, T, Y))


def test_gradients_reach_an_online_teacher_too() -> None:
    s, t = S.clone().requires_grad_(), T.clone().requires_grad_()
    for loss in (losses.forward_kl, losses.reverse_kl, losses.js):
        both = torch.autograd.grad(loss(s, t).sum(), [s, t])
        assert all(g.abs().max().item() > 0.01 for g in both)


def test_identical_points_give_zero_and_finite_gradients() -> None:
    s = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    for loss in (fl.rkd_distance, fl.rkd_angle, fl.similarity_preserving, fl.cka_distance):
        value = loss(s, V_T[:4])
        assert value.isfinite().all(), loss
        assert torch.autograd.grad(value.sum(), s)[0].isfinite().all(), loss


def test_distances_and_angles_of_rkd_share_their_differences() -> None:
    s, t = V_S.clone().requires_grad_(), V_T.clone().requires_grad_()
    for mine, alone in zip(fl.rkd(s, t), (fl.rkd_distance(s, t), fl.rkd_angle(s, t)), strict=True):
        torch.testing.assert_close(mine, alone)
    near = [wave(0.7, 4, 3).requires_grad_(), wave(1.3, 4, 5).requires_grad_()]
    assert torch.autograd.gradcheck(fl.rkd, near)  # with respect to both, an online teacher too


# -- blocks of positions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize("positions", [1, 4, 100])
def test_chunked_equals_plain(name: str, positions: int) -> None:
    weights = wave(0.3, 2, 5)
    results = []
    for call in (ON_LOGITS[name], partial(chunked, ON_LOGITS[name], positions=positions)):
        s, t = wave(0.7, 2, 5, 7).requires_grad_(), wave(1.3, 2, 5, 7).requires_grad_()
        value = call(s, t)
        results.append((value, *torch.autograd.grad((value * weights).sum(), [s, t])))
    for plain, blocked in zip(*results, strict=True):
        torch.testing.assert_close(blocked, plain, atol=1e-12, rtol=0)


def test_chunked_skips_masked_positions() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 0]])
    s, t = wave(0.7, 2, 3, 5).requires_grad_(), wave(1.3, 2, 3, 5)
    t[mask == 0] = torch.nan  # what is masked is not even looked at
    value = chunked(losses.forward_kl, s, t, mask=mask, positions=2)
    gradient = torch.autograd.grad(value.sum(), s)[0]
    on = mask.bool()
    torch.testing.assert_close(value[on], losses.forward_kl(s[on], t[on]))
    assert value[~on].abs().max().item() == 0
    assert gradient[~on].abs().max().item() == 0
    assert gradient.isfinite().all()
    nothing = chunked(losses.forward_kl, s, t, mask=torch.zeros_like(mask))
    assert torch.autograd.grad(nothing.sum(), s)[0].abs().max().item() == 0


def test_chunked_half_precision_gets_gradients_of_its_own_type() -> None:
    s, t = wave(0.7, 2, 3, 50).bfloat16().requires_grad_(), wave(1.3, 2, 3, 50).bfloat16()
    value = chunked(losses.reverse_kl, s, t, positions=2)
    assert value.dtype == torch.float32
    gradient = torch.autograd.grad(value.sum(), s)[0]
    assert gradient.dtype == torch.bfloat16
    plain = torch.autograd.grad(losses.reverse_kl(s, t).sum(), s)[0]
    torch.testing.assert_close(gradient, plain)


def test_chunked_gives_no_gradient_to_a_frozen_teacher() -> None:
    s, t = wave(0.7, 4, 5), wave(1.3, 4, 5)
    assert not chunked(losses.js, s, t).requires_grad
    s.requires_grad_()
    chunked(losses.js, s, t).sum().backward()
    assert s.grad is not None
    assert t.grad is None


class _LargeTensors(TorchDispatchMode):
    """Counts operations whose result owns as much memory as a full set of logits."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.large = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        seen = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and x.numel() >= self.size and x.untyped_storage().data_ptr() not in seen:
                self.large += 1
        return out


@pytest.mark.parametrize("loss", [losses.forward_kl, losses.reverse_kl, losses.js])
def test_chunked_makes_one_full_size_tensor_only_and_that_is_the_gradient(loss: Callable[..., Tensor]) -> None:
    counts = []
    for call in (loss, partial(chunked, loss, positions=4)):
        s, t = wave(0.7, 4, 8, 64).float().requires_grad_(), wave(1.3, 4, 8, 64).float()
        with _LargeTensors(s.numel()) as mode:
            torch.autograd.grad(call(s, t).sum(), s)
        counts.append(mode.large)
    assert counts[1] == 1
    assert counts[0] > 5


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, call",
    [
        ("input.shape", lambda: losses.forward_kl(S, wave(1.3, 4, 6))),
        ("input.shape", lambda: losses.cross_entropy(S, Y[:3])),
        ("input.shape", lambda: losses.cross_entropy(S, Y, mask=torch.ones(3))),
        ("input.shape", lambda: losses.cross_entropy(S, wave(1.0, 4, 6))),
        ("input.shape", lambda: losses.dist(S[:1], T[:1])),
        ("input.shape", lambda: losses.dist_intra(wave(0.7, 2, 3, 5), wave(1.3, 2, 3, 5))),
        ("input.shape", lambda: losses.dkd(row(1), row(2), torch.tensor([0]))),
        ("input.shape", lambda: losses.standardise_logits(row(1))),
        ("input.shape", lambda: losses.uld(S, T[:3])),
        ("input.shape", lambda: fl.hint_mse(V_S, V_T)),
        ("input.shape", lambda: fl.attention_transfer(F_S, V_T)),
        ("input.shape", lambda: fl.attention_transfer(wave(1.0, 2, 3, 4), wave(1.0, 2, 5, 4))),
        ("input.shape", lambda: fl.contextual(wave(1.0, 2, 3, 4), wave(1.0, 2, 5, 4))),
        ("input.shape", lambda: fl.rkd_distance(V_S[:1], V_T[:1])),
        ("input.shape", lambda: fl.rkd_angle(V_S, V_T[:3])),
        ("input.shape", lambda: fl.info_nce(V_S, V_T)),
        ("input.shape", lambda: fl.info_nce(V_S, V_S, classes=torch.zeros(3))),
        ("input.shape", lambda: fl.linear_cka(V_S[:3], V_T[:3], unbiased=True)),
        ("input.shape", lambda: fl.norm_direction(V_S, V_S, V_S[:2])),
        ("input.shape", lambda: fl.gaussian_graph(V_S, torch.ones(2, 2).bool())),
        ("input.shape", lambda: fl.nearest_neighbours(F_S, 1)),
        ("input.shape", lambda: chunked(losses.js, S, T[:2])),
        ("input.shape", lambda: chunked(losses.js, S, T, mask=torch.ones(3))),
        ("input.empty", lambda: losses.forward_kl(torch.zeros(2, 0), torch.zeros(2, 0))),
        ("input.nan", lambda: losses.forward_kl(S, T, targets="probs")),
        ("input.nan", lambda: losses.forward_kl(S, T * torch.nan, targets="probs")),
        ("param.value", lambda: losses.forward_kl(S, T, tau=0.0)),
        ("param.value", lambda: losses.log_cosh_logits(S, T, tau=math.nan)),
        ("param.value", lambda: losses.forward_kl(S, T, targets="logprobs")),  # type: ignore[arg-type]
        ("param.value", lambda: losses.js(S, T, beta=1.1)),
        ("param.value", lambda: losses.skew_forward_kl(S, T, alpha=-0.1)),
        ("param.value", lambda: losses.cross_entropy(S, Y, label_smoothing=2.0)),
        ("param.value", lambda: losses.cross_entropy(S, Y + 1)),
        ("param.value", lambda: losses.ofa(S, T, Y, eps=-1.0)),
        ("param.value", lambda: losses.ofa(S, T, Y, form="book")),  # type: ignore[arg-type]
        ("param.value", lambda: fl.info_nce(V_S, V_S, tau=0.0)),
        ("param.value", lambda: fl.attention_transfer(F_S, F_T, p=0.0)),
        ("param.value", lambda: fl.nearest_neighbours(V_S, 5)),
        ("param.value", lambda: fl.gaussian_graph(V_S, torch.ones(5, 5).bool(), sigma=0.0)),
        ("param.value", lambda: fl.graph_divergence(V_S, V_S, axis="depth")),  # type: ignore[arg-type]
        ("param.value", lambda: chunked(losses.js, S, T, positions=0)),
    ],
)
def test_bad_input_is_refused_with_its_code(code: str, call: Callable[[], Tensor]) -> None:
    with pytest.raises(InterfuseError) as refused:
        call()
    assert refused.value.code == code
