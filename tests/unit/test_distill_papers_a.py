"""Worked numbers, invariants, limits and refusals of TGeo-KD, MIX-KD and TRG, and resuming, through the methods' code."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import apply
from interfuse.data.models import Model, build
from interfuse.data.tables import Table
from interfuse.distill.dhkd import DHKD
from interfuse.distill.mix_kd import mix, plan
from interfuse.distill.tgeo_kd import class_means, geometry, hyper_gradient
from interfuse.distill.trg import TRG, patches, sample_places, unit_graph
from interfuse.kit.feature_losses import info_nce
from tests.distill_bars import (
    CNN,
    TwoLayers,
    batch_of,
    engine,
    fixed_views,
    made,
    refused,
    started,
    trained,
    weights,
)
from tests.distill_bars import data as data
from tests.distill_bars import teacher as teacher
from tests.oracles import distill_papers_a_oracle as oracle

# -- TGeo-KD ---------------------------------------------------------------------------------------------------------


def test_hyper_gradient_worked_number() -> None:
    """Scalar case of the card: th = 0, a = 1, b = 0, c = 1, eta = 0.1, alpha = 0.5 gives th' = 0.05 and dJ/dalpha = -0.095."""
    alpha = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    theta = {"th": torch.tensor(0.0, dtype=torch.float64)}
    seen = []

    def outer(p: dict[str, Tensor]) -> Tensor:
        seen.append(p["th"].item())
        return (p["th"] - 1) ** 2 / 2

    [found] = hyper_gradient(
        lambda p: alpha * (p["th"] - 1) ** 2 / 2 + (1 - alpha) * p["th"] ** 2 / 2, outer, theta, 0.1, [alpha]
    )
    assert seen == [pytest.approx(0.05, abs=1e-12)]
    assert found.item() == pytest.approx(-0.095, abs=1e-12)
    assert alpha.grad is None
    assert theta["th"].grad is None


def test_hyper_gradient_of_the_method_against_finite_differences(data: Table, teacher: Model) -> None:
    """The whole path on a two-layer net in float64: w is moved by 1e-6 and the validation loss after the step is taken."""
    held = dataclasses.replace(data, rows=data.rows[40:])
    rows = dataclasses.replace(data, rows=data.rows[:40])
    run, hooks = started(
        "tgeo-kd", rows, teacher, made(TwoLayers, 3), validation=held, lr=0.5, hidden=[5], outer_batch=8
    )
    run.student.double(), run.modules["fusion"].double()
    batch = engine.make_batch(run, np.arange(12))
    batch.student = {k: v.double() for k, v in batch.student.items()}
    said = hooks._teacher(run, batch).double()
    validation = hooks._validation_batch
    hooks.__class__._validation_batch = lambda self, r: (
        {k: v.double() for k, v in validation(r)[0].items()},
        validation(r)[1],
    )
    try:
        found = hooks._outer_gradient(run, batch, said)
    finally:
        hooks.__class__._validation_batch = validation.__func__
    x_val, y_val = validation(run)
    eta = run.optimizers["main"].param_groups[0]["lr"]

    def outer_loss() -> float:
        """Slow: alpha by the network, one gradient step by autograd on plain tensors, cross entropy."""
        theta = {n: p.detach().clone().requires_grad_() for n, p in run.student.named_parameters()}

        def logits(x: Tensor, p: dict[str, Tensor]) -> Tensor:
            return (
                torch.tanh(x.flatten(1) @ p["first.weight"].T + p["first.bias"]) @ p["second.weight"].T
                + p["second.bias"]
            )

        z = logits(next(iter(batch.student.values())), theta)
        with torch.no_grad():
            seen = geometry(z, said, batch.labels, run.tensors["class_means"])
            alpha = torch.sigmoid(run.modules["fusion"](seen)).squeeze(1)
        kl = 16 * ((said / 4).softmax(1) * ((said / 4).log_softmax(1) - (z / 4).log_softmax(1))).sum(1)
        ce = nn.functional.cross_entropy(z, batch.labels, reduction="none")
        grads = torch.autograd.grad((alpha * kl + (1 - alpha) * ce).mean(), list(theta.values()))
        moved = {n: p.detach() - eta * g for (n, p), g in zip(theta.items(), grads, strict=True)}
        with torch.no_grad():
            return float(nn.functional.cross_entropy(logits(next(iter(x_val.values())).double(), moved), y_val))

    checked = 0
    for parameter, gradient in zip(run.modules["fusion"].parameters(), found, strict=True):
        flat, flat_gradient = parameter.data.view(-1), gradient.reshape(-1)
        for i in flat_gradient.abs().argsort(descending=True)[:4].tolist():
            at = flat[i].item()
            flat[i] = at + 1e-5
            up = outer_loss()
            flat[i] = at - 1e-5
            down = outer_loss()
            flat[i] = at
            assert flat_gradient[i].item() == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-10)
            checked += abs(flat_gradient[i].item()) > 1e-8
    assert checked >= 8, "the gradient is not trivially zero"


def test_outer_step_leaves_the_student_alone(data: Table, teacher: Model) -> None:
    run, hooks = started("tgeo-kd", data, teacher)
    batch = engine.make_batch(run, run.tensors["train_rows"].numpy()[:12])
    before = {k: v.clone() for k, v in run.student.state_dict().items()}
    views = engine.default_views(run, batch)
    moved = {k: v.clone() for k, v in run.student.state_dict().items()}
    alpha = hooks.weights(run, views)["kd"]
    after = run.student.state_dict()
    assert all(torch.equal(moved[k], after[k]) for k in after), "running statistics or weights moved in the outer step"
    assert any(not torch.equal(before[k], moved[k]) for k in moved), "the plain forward pass does move them"
    assert all(p.grad is None for p in run.student.parameters())
    assert not alpha.requires_grad
    assert bool(((alpha > 0) & (alpha < 1)).all())


@pytest.mark.parametrize("features", ["full", "vertices", "edges", "norms"])
def test_geometry_matches_the_oracle(features: str) -> None:
    g = torch.Generator().manual_seed(0)
    s, t, means = (torch.randn(5, 3, generator=g, dtype=torch.float64) for _ in range(3))
    means, labels = means[:3].softmax(1), torch.tensor([0, 2, 1, 1, 0])
    found = geometry(s, t, labels, means, features=features)
    slow = [
        oracle.geometry(s[i].numpy(), t[i].numpy(), int(labels[i]), means[labels[i]].numpy(), features)
        for i in range(5)
    ]
    np.testing.assert_allclose(found.numpy(), np.stack(slow), rtol=1e-12)


def test_class_means_and_a_class_without_samples() -> None:
    z = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [3.0, 0.0, 1.0]])
    means = class_means(z, torch.tensor([0, 2, 0]), 3)
    np.testing.assert_allclose(means[0], (z[0].softmax(0) + z[2].softmax(0)) / 2, rtol=1e-6)
    np.testing.assert_allclose(means[1], torch.full((3,), 1 / 3), rtol=1e-6)


def test_fixed_alpha_0_is_training_on_labels_bit_for_bit_and_1_is_kd(
    data: Table, teacher: Model, tmp_path: Path
) -> None:
    labels = weights(trained("none", data, None, tmp_path / "none"))
    zero = weights(trained("tgeo-kd", data, teacher, tmp_path / "zero", fixed_alpha=0.0))
    assert all(torch.equal(zero[k], labels[k]) for k in labels)
    kd = weights(trained("kd", data, teacher, tmp_path / "kd", alpha=1.0, tau=4.0))
    one = weights(trained("tgeo-kd", data, teacher, tmp_path / "one", fixed_alpha=1.0))
    assert all(torch.equal(one[k], kd[k]) for k in kd)


def test_the_record_of_fusion_ratios(data: Table, teacher: Model, tmp_path: Path) -> None:
    made_ = trained("tgeo-kd", data, teacher, tmp_path / "out", val_fraction=0.25)
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "fusion_ratio.parquet").to_pandas()
    assert len(rows) == 2 * 36
    assert set(rows.epoch) == {1, 2}
    assert rows.sample_id.nunique() == 36
    assert list(rows.columns) == ["sample_id", "epoch", "alpha", "teacher_correct", "student_correct", "st_distance"]
    assert ((rows.alpha > 0) & (rows.alpha < 1)).all()
    assert (tmp_path / "out" / "fusion.safetensors").is_file()
    assert made_.path == tmp_path / "out"


def test_tgeo_refusals(data: Table, teacher: Model, tmp_path: Path) -> None:
    refused("input.missing", "tgeo-kd", data, teacher, tmp_path / "a", val_fraction=0.0)
    refused(
        "input.leak", "tgeo-kd", data, teacher, tmp_path / "b", validation=dataclasses.replace(data, rows=data.rows[:5])
    )
    bare = dataclasses.replace(data, columns={k: v for k, v in data.columns.items() if k != "label"})
    refused("input.missing", "tgeo-kd", bare, teacher, tmp_path / "c")
    refused(
        "param.value", "kd", data, teacher, tmp_path / "d", validation=dataclasses.replace(data, rows=data.rows[:5])
    )

    class Once(torch.autograd.Function):
        """A layer whose gradient has no gradient."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0] * 2

    class Stubborn(TwoLayers):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(super().forward(x))  # type: ignore[no-untyped-call,no-any-return]

    refused("needs.capability", "tgeo-kd", data, teacher, tmp_path / "e", made(Stubborn))


def test_many_classes_need_norms() -> None:
    assert geometry(
        torch.zeros(1, 2000), torch.zeros(1, 2000), torch.tensor([3]), torch.zeros(2000, 2000), features="norms"
    ).shape == (1, 5)


# -- MIX-KD ----------------------------------------------------------------------------------------------------------


def mix_terms(
    data: Table, teacher: Model, student: Tensor, teacher_logits: Tensor, soft: Tensor, **given: Any
) -> dict[str, Tensor]:
    run, hooks = started("mix-kd", data, teacher, **given)
    return hooks.terms(run, fixed_views(batch_of([0], soft), student, teacher_logits))


def test_rescaled_worked_numbers(data: Table, teacher: Model) -> None:
    """t = [3, 1, -1] and s = [1, 0, -1] are one distribution after rescaling; the label [.7, .3, 0] costs 0.70761."""
    t, s, y = (torch.tensor([v], dtype=torch.float64) for v in ([3.0, 1, -1], [1.0, 0, -1], [0.7, 0.3, 0]))
    terms = mix_terms(data, teacher, s, t, y)
    assert terms["kd"].item() == pytest.approx(0, abs=1e-12)
    assert terms["ce"].item() == pytest.approx(0.70761, abs=5e-6)
    assert 0.1 * terms["ce"].item() + 0.9 * terms["kd"].item() == pytest.approx(0.07076, abs=5e-6)
    scaled = mix_terms(data, teacher, 7 * s + 3, 0.5 * t - 1, y)
    assert scaled["ce"].item() == pytest.approx(terms["ce"].item(), abs=1e-6)


def test_the_students_deviation_carries_gradient(data: Table, teacher: Model) -> None:
    s = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    mix_terms(
        data, teacher, s, torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:1]
    )["kd"].sum().backward()
    assert (s.grad * s.detach()).sum().item() == pytest.approx(0, abs=1e-6), (
        "the loss has a slope along the logits' scale"
    )
    assert s.grad.abs().max() > 0.01


@settings(max_examples=50)
@given(st.integers(2, 40), st.floats(0, 1), st.integers(0, 2**32))
def test_mixing_plan(size: int, fraction: float, seed: int) -> None:
    share, first, second = plan(size, 1.0, fraction, np.random.default_rng(seed))
    assert sorted(first) == sorted(second) == list(range(size))
    assert (share < 1).sum() <= round(fraction * size)
    assert (share == 1).sum() >= size - round(fraction * size)
    lam, i, j = torch.from_numpy(share), torch.from_numpy(first), torch.from_numpy(second)
    rows = mix(torch.eye(size), lam, i, j)
    torch.testing.assert_close(rows.sum(1), torch.ones(size))


def test_mixing_half_and_half_is_the_mean() -> None:
    x = torch.arange(8.0).reshape(2, 1, 2, 2)
    torch.testing.assert_close(
        mix(x, torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), torch.tensor([1, 0])),
        x.mean(0, keepdim=True).expand(2, -1, -1, -1),
    )


def test_reference_draws_with_replacement() -> None:
    whole = [(plan(64, 1.0, 0.1, np.random.default_rng(s), partial="reference")[0] == 1).mean() for s in range(200)]
    assert np.mean(whole) == pytest.approx(1 - (63 / 64) ** 57, abs=0.01)  # 0.592, though the option says 0.9


def test_no_mixing_is_kd(data: Table, teacher: Model) -> None:
    """Fraction 0 at a temperature is KD on the same batch in another order."""
    run, hooks = started("mix-kd", data, teacher, fraction=0.0, rescale="temperature")
    kd_run, kd = started("kd", data, teacher, alpha=0.9, tau=4.0)
    positions = np.arange(16)
    run.student.eval(), kd_run.student.eval()
    views = hooks.views(run, hooks.batch(run, engine.make_batch(run, positions)))
    plain = kd.views(kd_run, engine.make_batch(kd_run, positions))
    ours, theirs = hooks.terms(run, views), kd.terms(kd_run, plain)
    for name in ("kd", "ce"):
        assert ours[name].mean().item() == pytest.approx(theirs[name].mean().item(), rel=1e-5)
    assert hooks.weights(run, views)["kd"] == kd.weights(kd_run, plain)["kd"]


def test_mix_refusals_and_a_row_without_spread(data: Table, teacher: Model, tmp_path: Path) -> None:
    refused("param.value", "mix-kd", data, teacher, tmp_path / "a", batch_size=1)
    refused("param.value", "mix-kd", data, teacher, tmp_path / "b", mixup_alpha=0.0)
    refused("param.value", "mix-kd", data, teacher, tmp_path / "c", fraction=1.5)
    terms = mix_terms(data, teacher, torch.zeros(1, 3), torch.zeros(1, 3), torch.eye(3)[:1])
    assert all(bool(v.isfinite().all()) for v in terms.values())
    from interfuse.distill.mix_kd import mix_inputs

    with pytest.raises(InterfuseError, match=r"input\.type"):
        mix_inputs(
            nn.Identity(),
            {"x": torch.zeros(2, 3, dtype=torch.int64)},
            torch.ones(2),
            torch.tensor([0, 1]),
            torch.tensor([1, 0]),
        )


# -- TRG -------------------------------------------------------------------------------------------------------------


def trg_local(s: Tensor, t: Tensor, **given: Any) -> Tensor:
    return TRG(**{"k": 1, "normalise": False, "reduction": "sum", **given})._local(s, t)


T_T, T_S = (
    torch.tensor([[0.0, 0], [1, 0], [0, 2]], dtype=torch.float64),
    torch.tensor([[0.0], [1], [1.5]], dtype=torch.float64),
)


def test_local_preserving_worked_number() -> None:
    assert trg_local(T_S, T_T).sum().item() == pytest.approx(0.222896, abs=1e-6)
    assert trg_local(T_S, T_T, axis="column").sum().item() == pytest.approx(0.3167, abs=5e-5)
    slow = oracle.graph_divergence(oracle.adjacency(T_S.numpy(), 1, 1.0), oracle.adjacency(T_T.numpy(), 1, 1.0))
    assert slow.sum() == pytest.approx(0.222896, abs=1e-6)
    a = oracle.adjacency(T_T.numpy(), 1, 1.0)
    assert (a[1, 0], a[0, 1], a[0, 2]) == pytest.approx((0.60653, 0.60653, 0.13534), abs=5e-6)


def test_contextual_worked_number_through_the_method() -> None:
    inner = TRG()._inner(torch.ones(1, 2, 1, dtype=torch.float64), torch.eye(2, dtype=torch.float64)[None])
    assert inner.item() / 2 == pytest.approx(0.028819, abs=1e-6)  # the method multiplies by N = 2


def test_global_worked_numbers() -> None:
    """SIM = [[.9, .1], [.2, .8]] is reached with unit teacher tokens e1, e2 and students of those inner products."""
    similarity = np.array([[0.9, 0.1], [0.2, 0.8]])
    for tau, expected in ((1.0, 0.808589), (0.1, 0.002811)):
        rows = [-math.log(np.exp(r[i] / tau) / np.exp(r / tau).sum()) for i, r in enumerate(similarity)]
        assert sum(rows) == pytest.approx(expected, abs=1e-6)
        rest = np.sqrt(1 - (similarity**2).sum(1))
        ours = torch.tensor(np.c_[similarity, rest * np.eye(2)], dtype=torch.float64)
        theirs = torch.eye(4, dtype=torch.float64)[:2]
        from interfuse.kit.feature_losses import info_nce

        assert info_nce(ours, theirs, tau=tau).sum().item() == pytest.approx(expected, abs=1e-6)


def test_trg_invariants() -> None:
    g = torch.Generator().manual_seed(1)
    s, t = torch.randn(12, 5, generator=g, dtype=torch.float64), torch.randn(12, 7, generator=g, dtype=torch.float64)
    method = TRG(k=3)
    assert method._local(t, t).abs().max() == 0
    grid = t.reshape(3, 4, 7)
    assert method._inner(grid, grid).abs().max() == 0
    torch.testing.assert_close(method._local(5 * s, 0.1 * t), method._local(s, t))
    order = torch.randperm(12, generator=g)
    torch.testing.assert_close(method._local(s[order], t[order]), method._local(s, t)[order])
    fixed = TRG(k=3, neighbours="teacher")._local(s, t)
    assert not torch.allclose(fixed, method._local(s, t))


def test_the_fast_graph_is_the_graph_of_normalised_tokens() -> None:
    tokens = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    tokens[4] = tokens[3]  # twins
    unit = (tokens / tokens.norm(dim=1, keepdim=True)).numpy()
    fast, near = unit_graph(tokens, 4, 0.7)
    np.testing.assert_allclose(fast, oracle.adjacency(unit, 4, 0.7), rtol=1e-9)
    zero, _ = unit_graph(torch.zeros(5, 3), 2, 1.0)
    assert bool(zero.isfinite().all()), "tokens without length are no error"
    again, _ = unit_graph(tokens.flip(1) + 1, 4, 0.7, near)
    assert torch.equal(again > 0, near)


def test_neighbours_entries_do_not_underflow(data: Table) -> None:
    """The median entry between neighbours on normalised 2x2 patches of real pictures lies well inside (0, 1)."""
    from sklearn.datasets import load_digits

    from interfuse.kit.feature_losses import gaussian_graph, nearest_neighbours

    x = torch.from_numpy(load_digits().images[:16] / 16).float()[:, None]
    tokens = nn.functional.normalize(patches(x, 2).flatten(0, 1), dim=-1)
    near = nearest_neighbours(tokens, 8)
    assert 0.05 < gaussian_graph(tokens, near)[near].median() <= 1.0
    assert gaussian_graph(tokens, near)[~near].abs().max() == 0


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes of tensors alive at once that some work made, by the memory events of PyTorch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    alive = list(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    return max(alive)


@pytest.mark.parametrize(("places", "memory", "rows"), [(150, 1, "images"), (400, 1, "rows"), (200, 64, "whole")])
def test_contextual_in_turns_is_the_same_and_fits_the_budget(places: int, memory: int, rows: str) -> None:
    g = torch.Generator().manual_seed(2)
    s, t = (torch.randn(6, places, 4, generator=g, requires_grad=r) for r in (True, False))
    whole = TRG(memory=512)._inner(s, t)
    [a] = torch.autograd.grad(whole.sum(), s)
    method = TRG(memory=memory, tokens=60)
    step = method._left(60) // (24 * places**2)
    assert rows == ("whole" if step >= 6 else "images" if step else "rows")
    parts = method._inner(s, t)
    [b] = torch.autograd.grad(parts.sum(), s)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(a, b)

    def step_of(method: TRG) -> Callable[[], object]:
        """The three losses of a step, whose matrices are alive together, and their gradients."""
        ours, theirs = s[:, :10].flatten(0, 1), t[:, :10].flatten(0, 1)
        return lambda: (method._inner(s, t).sum() + method._local(ours, theirs).sum() + info_nce(ours, theirs, tau=0.1).sum()).backward()  # fmt: skip

    beside = 16 * s.nbytes  # features and their gradients, which are no matrices of tokens by tokens
    assert peak_of(step_of(method)) < memory * 2**20 + beside
    if rows != "whole":
        assert peak_of(step_of(TRG(memory=512, tokens=60))) > memory * 2**20 + beside


def test_the_graphs_of_sampled_tokens_take_what_is_reckoned() -> None:
    g = torch.Generator().manual_seed(3)
    s, t = (torch.randn(256, 4, generator=g, requires_grad=r) for r in (True, False))
    for method in (TRG(), TRG(normalise=False), TRG(neighbours="teacher"), TRG(axis="column", direction="forward")):
        peak = peak_of(lambda m=method: (m._local(s, t).sum() + info_nce(s, t, tau=0.1).sum()).backward())  # type: ignore[misc]
        assert 0.8 < peak / (42 * 256**2) <= 1.0


def test_patches_and_places() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(patches(x, 2)[0, 1], torch.tensor([2.0, 3, 6, 7]))
    with pytest.raises(InterfuseError, match=r"input\.shape"):
        patches(x, 3)
    places = sample_places(5, 9, 4, np.random.default_rng(0))
    assert places.shape == (5, 4)
    assert all(len(set(row)) == 4 for row in places.tolist())
    masked = sample_places(3, 9, 2, np.random.default_rng(0), torch.tensor([[1, 1] + [0] * 7] * 3))
    assert masked.tolist() == [[0, 1]] * 3, "padding is drawn only when nothing else is left"


def test_temperature_falls_monotonically(data: Table, teacher: Model) -> None:
    run, hooks = started("trg", data, teacher, k=3)
    seen = []
    for step in range(run.steps):
        run.step = step
        seen.append(hooks._temperature(run))
    assert seen[0] == pytest.approx(1.0)
    assert seen[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(seen))


def test_both_networks_are_sampled_at_the_same_places(data: Table, teacher: Model) -> None:
    """A student that is its teacher: the local, inner and KD losses are 0 only if tokens match place by place."""
    run, hooks = started("trg", data, teacher, build(teacher, Ctx(), train=True), k=3)
    run.student.eval()
    terms = hooks.terms(run, hooks.views(run, engine.make_batch(run, np.arange(8))))
    for name in ("inner", "local", "kd"):
        assert terms[name].abs().max() < 1e-5, name


@pytest.mark.parametrize(("slug", "extra", "code", "word"), [
    ("tgeo-kd", {"val_fraction": 0.25}, "input.limit", "features: norms"),
    ("mix-kd", {}, "input.shape", "one class"),
])  # fmt: skip
def test_refused_numbers_of_classes(slug: str, extra: dict[str, Any], code: str, word: str, tmp_path: Path) -> None:
    classes = 1001 if slug == "tgeo-kd" else 1
    x = np.random.default_rng(0).random((8, 64), dtype=np.float32)
    rows = Dataset.from_dict({"features": x.tolist(), "label": [i % 2 * (classes > 1) for i in range(8)]})
    nets = [nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, classes)) for _ in range(2)]
    said = refused(code, slug, rows, nets[0], tmp_path / "out", nets[1], batch_size=4, **extra)
    assert word in said.replace("every example has the class", "one class")


def test_gradients_are_aligned_in_one_process_only(data: Table, teacher: Model) -> None:
    run, _ = started("dhkd", data, teacher, align="none")
    run.accelerator = SimpleNamespace(num_processes=2)
    for align in ("features", "backbone", "all"):
        with pytest.raises(InterfuseError) as caught:
            DHKD(align=align).setup(run)  # type: ignore[arg-type]
        assert (caught.value.code, caught.value.where) == ("param.value", "align")
    DHKD(align="none").setup(run)


def test_trg_of_texts_reckons_with_the_longest(data: Table, teacher: Model) -> None:
    run, hooks = started("trg", data, teacher, k=3)
    run.data = dataclasses.replace(data, columns={"text": "image", "label": "label"})
    assert run.data.kind == "text"
    short, settings = {"student": torch.rand(2, 5, 4), "teacher": torch.rand(2, 5, 4)}, run.settings
    taps = [SimpleNamespace(features={"a": v}) for v in short.values()]
    run.student_taps, run.teacher_taps = taps[0], [taps[1]]
    run.student_shapes, run.teacher_shapes = {"a": (5, 4)}, [{"a": (5, 4)}]
    run.settings = dataclasses.replace(settings, batch_size=2, max_length=600)
    hooks = TRG(k=3, student_layer="a", teacher_layer="a", memory=1, tokens=1024)
    with pytest.raises(InterfuseError) as caught:
        hooks.setup(run)
    assert caught.value.code == "input.limit"
    run.settings = dataclasses.replace(settings, batch_size=2, max_length=60)
    hooks.setup(run)


def test_trg_refusals(data: Table, teacher: Model, tmp_path: Path) -> None:
    refused("param.value", "trg", data, teacher, tmp_path / "a", k=16, tokens=16)
    refused("input.shape", "trg", data, teacher, tmp_path / "b", student_layer="head", teacher_layer="stages.1")
    assert "stages" in refused("param.value", "trg", data, teacher, tmp_path / "c", student_layer="stage.1")
    refused(
        "input.limit",
        "trg",
        data,
        teacher,
        tmp_path / "d",
        student_layer="stages.0",
        teacher_layer="stages.0",
        tokens=1024,
        memory=1,
    )
    refused("input.shape", "trg", data, teacher, tmp_path / "e", patch=3)


# -- state that survives a resume ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slug", "given"),
    [("tgeo-kd", {"outer_lr": 0.05}), ("kd3", {"min_per_class": 6, "select_every": 2}), ("dhkd", {}), ("nd-kd", {})],
)
def test_resume_equals_one_go(
    data: Table, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slug: str, given: dict[str, Any]
) -> None:
    """Killed after every single epoch of four, then carried on: the same weights and the same records."""
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    keep = engine.save_state

    class Dead(BaseException):
        pass

    def save_and_die(*args: Any) -> None:
        keep(*args)
        raise Dead

    inputs = {
        "student": made(CNN, 1),
        "data": data,
        "teacher": [teacher],
        "batch_size": 16,
        "epochs": 4,
        "lr": 0.01,
        **given,
    }
    whole = apply(f"distill/{slug}", **inputs, out=tmp_path / "whole")
    for _ in range(3):
        monkeypatch.setattr(engine, "save_state", save_and_die)
        with pytest.raises(Dead):
            apply(f"distill/{slug}", **inputs, out=tmp_path / "parts")
    monkeypatch.setattr(engine, "save_state", keep)
    parts = apply(f"distill/{slug}", **inputs, out=tmp_path / "parts")
    assert whole.path is not None
    assert parts.path is not None
    names = sorted(str(p.relative_to(whole.path)) for p in whole.path.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(parts.path)) for p in parts.path.rglob("*") if p.is_file())
    assert [n for n in names if (whole.path / n).read_bytes() != (parts.path / n).read_bytes()] == []
