"""Worked numbers, invariants, limits and refusals of OFA-KD, BD-KD, Fantastic Gains and HARD, through the methods' code."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source, apply
from interfuse.data.models import Model, build
from interfuse.data.tables import Table, open_table
from interfuse.distill.bd_kd import BDKD
from interfuse.distill.fantastic_gains import FantasticGains, _same_classes
from interfuse.distill.hard import HARD
from interfuse.distill.ofa_kd import OFAKD, ConvExit, LightExit, TokenExit, paper_exit
from interfuse.kit.augmentors import OPERATIONS, Affine, Latent, Mix, Noise, affine, clamp_through
from interfuse.kit.complementary import complement, transferred
from interfuse.kit.threads import threads_for
from tests.distill_bars import (
    CNN,
    TwoLayers,
    batch_of,
    engine,
    fixed_views,
    log_of,
    made,
    refused,
    same,
    started,
    trained,
    weights,
)
from tests.distill_bars import data as data
from tests.distill_bars import teacher as teacher
from tests.oracles import distill_papers_b_oracle as oracle


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors wait longer for a second thread than it helps."""
    with threads_for(1):
        yield


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


class Logits(nn.Module):
    """A teacher whose answers are fixed by row number; it has no weights and no gradient (a tree, a table)."""

    def forward(self, x: Tensor) -> Tensor:
        p = torch.softmax(torch.stack([x[:, 0, i, i] for i in range(4)], dim=1), dim=1)
        return torch.from_numpy(np.log(p.detach().numpy()))


def facts(model: Model) -> dict[str, Any]:
    assert model.path is not None
    found: dict[str, Any] = json.loads((model.path / "interfuse.json").read_text())["facts"]
    return found


# -- OFA-KD ----------------------------------------------------------------------------------------------------------


class _Run:
    """As much of a run as ``terms`` of OFA-KD looks at when there are no exits."""

    student_shapes: ClassVar[dict[str, tuple[int, ...]]] = {}


@pytest.mark.parametrize(
    "form, eps, expected",
    [("code", 1.0, 0.886204), ("code", 1.5, 0.863293), ("code", 2.0, 1.083221), ("paper", 1.0, 1.437648)],
)
def test_ofa_worked_numbers(form: Literal["code", "paper"], eps: float, expected: float) -> None:
    views = fixed_views(batch_of([0]), row(1, 0, 0), row(2, 1, 0))
    terms = OFAKD(form=form, eps=eps).terms(_Run(), views)  # type: ignore[arg-type]
    assert terms["ofa"].item() == pytest.approx(expected, abs=1e-6)
    assert terms["ce"].item() == pytest.approx(0.551445, abs=1e-6)
    assert terms["ofa"].item() == pytest.approx(
        oracle.adaptive(np.array([1.0, 0, 0]), np.array([2.0, 1, 0]), 0, eps, 1.0, form)
    )


def test_ofa_paper_form_at_one_is_hard_plus_soft() -> None:
    views = fixed_views(batch_of([0]), row(1, 0, 0), row(2, 1, 0))
    paper, code = (OFAKD(form=f, eps=1.0).terms(_Run(), views) for f in ("paper", "code"))  # type: ignore[arg-type]
    assert paper["ofa"].item() == pytest.approx(code["ofa"].item() + code["ce"].item())


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.integers(0, 2))
def test_ofa_at_one_has_the_gradient_of_kd(numbers: list[float], label: int) -> None:
    from interfuse.kit.losses import forward_kl

    z = torch.tensor([numbers[:3]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([numbers[3:]], dtype=torch.float64)
    ours = OFAKD().terms(_Run(), fixed_views(batch_of([label]), z, t))["ofa"]  # type: ignore[arg-type]
    [a], [b] = (torch.autograd.grad(v.sum(), z) for v in (ours, forward_kl(z, t)))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_exits_do_not_change_inference_and_their_weights_move(data: Table, teacher: Model) -> None:
    run, hooks = started("ofa-kd", data, teacher, epochs=1)
    x = run.encoder.encode(np.arange(8))["pixel_values"]
    plain = build(Model("m", module=run.student), Ctx(), train=True).eval()
    with torch.no_grad():
        assert torch.equal(plain(x), run.student.eval()(x))
    before = {n: [p.clone() for p in m.parameters()] for n, m in run.modules.items()}
    assert list(before) == ["exit_1", "exit_2"]
    engine.train(run, hooks)
    for name, module in run.modules.items():
        assert all(not torch.equal(p, q) for p, q in zip(before[name], module.parameters(), strict=True)), name
    assert list(hooks.export(run).state_dict()) == list(made(CNN).state_dict())


def test_ofa_without_exit_and_adaptive_loss_is_training_on_labels(data: Table, teacher: Model, tmp_path: Path) -> None:
    ours = trained("ofa-kd", data, teacher, tmp_path / "a", w_kd=0, w_ofa=0)
    plain = trained("none", data, None, tmp_path / "b")
    assert same(weights(ours), weights(plain))


def test_ofa_logs_the_accuracy_of_every_exit_and_the_likeness_of_layers(
    data: Table, teacher: Model, tmp_path: Path
) -> None:
    model = trained("ofa-kd", data, teacher, tmp_path / "a", epochs=12, lr=0.02, cka=True)
    first, *_, last = log_of(model)
    assert first["raw/right_2"] < last["raw/right_2"] <= 1
    assert last["weighted/right_2"] == 0
    before, after = (np.array(facts(model)[k]["cka"]) for k in ("cka_before", "cka_after"))
    assert before.shape == after.shape == (2, 2)
    assert (after >= 0).all()
    assert (after <= 1 + 1e-9).all()
    assert not np.array_equal(before, after)


def test_ofa_learns_from_a_teacher_without_gradient_and_without_labels(data: Table, tmp_path: Path) -> None:
    bare = open_table(Source(Dataset.from_dict({"image": data.dataset["image"]})), Ctx())
    model = trained("ofa-kd", bare, Logits(), tmp_path / "a", target="teacher", w_gt=0, epochs=8, lr=0.02)
    rows = log_of(model)
    assert rows[-1]["raw/ofa"] < rows[0]["raw/ofa"]
    assert "raw/ce" not in rows[0]


@pytest.mark.parametrize("shape, left", [((8, 8, 8), 3), ((8, 4, 4), 1), ((16, 2, 2), 0), ((17, 8), 2), ((16, 8), 0)])
def test_paper_exits_take_maps_and_tokens(shape: tuple[int, ...], left: int) -> None:
    module = paper_exit(shape, left, 16, 5)
    assert isinstance(module, ConvExit if len(shape) == 3 else TokenExit)
    out = module(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (3, 5)
    assert out.isfinite().all()
    if isinstance(module, ConvExit):
        strided = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        assert len(strided) == left


def test_paper_exit_merges_patches_until_about_49_are_left() -> None:
    module = paper_exit((197, 8), 3, 16, 5)
    assert isinstance(module, TokenExit)
    assert len(module.merges) == 1
    assert len(module.blocks) == 3
    assert module.leading == 1
    assert module(torch.zeros(2, 197, 8)).shape == (2, 5)


def test_paper_exit_survives_a_single_place() -> None:
    module = paper_exit((4, 2, 2), 2, 8, 5).train()
    assert module(torch.ones(1, 4, 2, 2)).isfinite().all()


def test_light_exit_takes_every_kind_of_feature() -> None:
    for shape in ((6, 4, 4), (9, 6), (6,)):
        assert LightExit(6, 8, 3)(torch.zeros(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("shape, width", [((4,), 8), ((20, 8), 8), ((16, 8), 10)])
def test_paper_exit_refuses_what_has_no_grid(shape: tuple[int, ...], width: int) -> None:
    with pytest.raises(InterfuseError) as caught:
        paper_exit(shape, 1, width, 3)
    assert caught.value.code == "input.shape"
    assert "light" in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"eps": [1.0, 1.0]}, {"eps": -0.5}, {"eps": [1.0, 1.0, -1.0]}, {"stages": ["stages.7"]}, {"stages": []}]
)
def test_ofa_refuses(given: dict[str, Any], data: Table, teacher: Model, tmp_path: Path) -> None:
    refused("param.value", "ofa-kd", data, teacher, tmp_path / "a", **given)


def test_ofa_refuses_missing_labels_and_layers_that_stay_silent(data: Table, teacher: Model, tmp_path: Path) -> None:
    bare = open_table(Source(Dataset.from_dict({"image": data.dataset["image"]})), Ctx())
    refused("input.missing", "ofa-kd", bare, teacher, tmp_path / "a")

    class Silent(CNN):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)

    refused("needs.capability", "ofa-kd", data, teacher, tmp_path / "b", student=made(Silent), stages=["unused"])


# -- BD-KD -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student, teacher_", [((1, 0, 0), (3, 0, 0)), ((3, 0, 0), (1, 0, 0))])
def test_bd_worked_numbers(student: tuple[float, ...], teacher_: tuple[float, ...]) -> None:
    hooks = BDKD(online=False)
    views = fixed_views(batch_of([0]), row(*student), row(*teacher_))
    terms, shares = hooks.terms(None, views), hooks.weights(None, views)  # type: ignore[arg-type]
    forward, reverse = (terms[k] * shares[k] for k in ("forward_0", "reverse_0"))
    assert float(forward + reverse) == pytest.approx(1.057897, abs=1e-6)
    plain = {terms["forward_0"].item(), terms["reverse_0"].item()}
    assert sorted(plain) == [pytest.approx(0.275408, abs=1e-6), pytest.approx(0.391244, abs=1e-6)]
    less = student[0] < teacher_[0]
    assert terms["less_certain_0"].item() == less
    assert [float(v) for v in hooks.shares(views.student, views.teachers[0])] == ([1, 2] if less else [2, 1])
    assert [float(v) for v in BDKD(rule="flipped").shares(views.student, views.teachers[0])] == (
        [2, 1] if less else [1, 2]
    )


def test_bd_delta_one_is_jeffreys_and_equal_nets_are_free() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(20, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    views = fixed_views(batch_of([0] * 20), s, t)
    for hooks in (BDKD(delta=1.0, online=False), BDKD(rule="fixed", online=False)):
        terms, shares = hooks.terms(None, views), hooks.weights(None, views)  # type: ignore[arg-type]
        torch.testing.assert_close(shares["forward_0"] * terms["forward_0"] + shares["reverse_0"] * terms["reverse_0"],
                                   ((t.softmax(1) - s.softmax(1)) * (t.log_softmax(1) - s.log_softmax(1))).sum(1))  # fmt: skip
    alike = BDKD(online=False).terms(None, fixed_views(batch_of([0] * 20), s, s))  # type: ignore[arg-type]
    assert alike["forward_0"].abs().max() < 1e-12
    assert alike["reverse_0"].abs().max() < 1e-12


def test_bd_losses_do_not_reach_the_other_network(data: Table, teacher: Model) -> None:
    run, hooks = started("bd-kd", data, teacher)
    views = hooks.views(run, engine.make_batch(run, np.arange(16)))
    terms, shares = hooks.terms(run, views), hooks.weights(run, views)
    of_student = sum((shares[k] * terms[k]).sum() for k in ("ce", "forward_0", "reverse_0"))
    of_teacher = sum(terms[k].sum() for k in ("teacher_ce_0", "teacher_kl_0"))
    other = list(run.modules["teacher-0"].parameters())
    own = list(run.student.parameters())
    assert all(g is None for g in torch.autograd.grad(of_student, other, allow_unused=True, retain_graph=True))
    assert all(g is None for g in torch.autograd.grad(of_teacher, own, allow_unused=True, retain_graph=True))
    assert any(g is not None for g in torch.autograd.grad(of_student, own, allow_unused=True, retain_graph=True))
    assert any(g is not None for g in torch.autograd.grad(of_teacher, other, allow_unused=True))


def test_bd_reverse_kl_differentiates_both_places(data: Table) -> None:
    z = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    hooks, t = BDKD(rule="reverse", online=False), row(3, 0, 0)
    [ours] = torch.autograd.grad(hooks.terms(None, fixed_views(batch_of([0]), z, t))["reverse_0"].sum(), z)  # type: ignore[arg-type]
    q, gap = z.softmax(1), z.log_softmax(1) - t.log_softmax(1)
    torch.testing.assert_close(ours, (q * (gap - (q * gap).sum())).detach())


def test_bd_balance_brings_the_certainties_together() -> None:
    """The card's measurement: 200 random pairs, 50 steps on the divergence part alone; balance ends nearer than flipped."""
    generator = torch.Generator().manual_seed(3)
    start, t = (2 * torch.randn(200, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    ends = {}
    for rule in ("balance", "flipped"):
        hooks, z = BDKD(rule=rule, delta=8.0, online=False), start.clone().requires_grad_(True)  # type: ignore[arg-type]
        for _ in range(50):
            views = fixed_views(batch_of([0] * 200), z, t)
            terms, shares = hooks.terms(None, views), hooks.weights(None, views)  # type: ignore[arg-type]
            loss = (shares["forward_0"] * terms["forward_0"] + shares["reverse_0"] * terms["reverse_0"]).sum()
            with torch.no_grad():
                z -= 0.05 * torch.autograd.grad(loss, z)[0]
        ends[rule] = hooks._gap(z, t).abs()
    assert ends["balance"].mean() < 0.7 * ends["flipped"].mean()
    assert (ends["balance"] < ends["flipped"]).double().mean() > 0.75


def test_bd_trains_the_teacher_writes_it_and_leaves_the_callers_alone(data: Table, tmp_path: Path) -> None:
    given = made(CNN, 5)
    before = {k: v.clone() for k, v in given.state_dict().items()}
    model = trained("bd-kd", data, given, tmp_path / "a", epochs=6, lr=0.02, teacher_lr=0.01, teacher_optimizer="sgd")
    assert same(before, dict(given.state_dict()))
    assert all(p.requires_grad for p in given.parameters())
    assert model.path is not None
    written = weights(Model("t", path=model.path / "teacher-0"))
    assert not same(before, written)
    rows = log_of(model)
    assert rows[-1]["raw/teacher_ce_0"] < rows[0]["raw/teacher_ce_0"]
    assert not torch.equal(written["stages.0.1.running_mean"], before["stages.0.1.running_mean"]), (
        "batch statistics froze"
    )


def test_bd_offline_leaves_the_teacher_and_alternate_differs(data: Table, teacher: Model, tmp_path: Path) -> None:
    offline = trained("bd-kd", data, teacher, tmp_path / "a", online=False)
    assert offline.path is not None
    assert not (offline.path / "teacher-0").exists()
    one = trained("bd-kd", data, made(CNN, 5), tmp_path / "b")
    two = trained("bd-kd", data, made(CNN, 5), tmp_path / "c", alternate=True)
    assert not same(weights(one), weights(two))


def test_bd_several_teachers(data: Table, tmp_path: Path) -> None:
    model = apply("distill/bd-kd", student=made(CNN, 1), teacher=[made(CNN, 5), made(TwoLayers, 6)], data=data, epochs=2,
                  batch_size=16, out=tmp_path / "a")  # fmt: skip
    assert model.path is not None
    assert (model.path / "teacher-0").is_dir()
    assert (model.path / "teacher-1").is_dir()
    assert {"raw/forward_1", "raw/teacher_kl_1"} <= set(log_of(model)[0])


def test_bd_refuses(data: Table, teacher: Model, tmp_path: Path) -> None:
    refused("param.value", "bd-kd", data, teacher, tmp_path / "a", delta=0.0)
    refused("param.value", "bd-kd", data, teacher, tmp_path / "b", alternate=True, accumulate=2)
    refused("param.value", "bd-kd", data, None, tmp_path / "c")
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    refused("input.shape", "bd-kd", data, other, tmp_path / "d")


# -- Fantastic Gains -------------------------------------------------------------------------------------------------

Z_T, Z_ST, Z_S = (2.0, 1.0, 0.0), (1.0, 1.5, 0.0), (0.5, 0.5, 0.0)


class _Gains:
    """As much of a run as the choice of a source looks at."""

    tensors: ClassVar[dict[str, Tensor]] = {}
    teacher_models: tuple[None, ...] = (None,)


def gains_views(label: int, copy: tuple[float, ...] = Z_ST, t: tuple[float, ...] = Z_T) -> Any:
    batch = batch_of([label])
    batch.extra["copy"] = row(*copy)
    return fixed_views(batch, row(*Z_S), row(*t))


@pytest.mark.parametrize("partition, label, from_teacher, expected", [
    ("supervised", 0, 1, 0.170640), ("supervised", 1, 0, 0.066188), ("unsupervised", 1, 1, 0.170640), ("teacher", 1, 1, 0.170640),
    ("self", 0, 0, 0.066188), ("flip-st", 0, 1, 0.170640), ("flip-st", 1, 0, 0.066188), ("flip-st", 2, 0, 0.066188),
    ("flip-t", 2, 1, 0.170640), ("flip-t", 1, 0, 0.066188),
])  # fmt: skip
def test_gains_worked_numbers(partition: Any, label: int, from_teacher: int, expected: float) -> None:
    terms = FantasticGains(partition=partition).terms(_Gains(), gains_views(label))  # type: ignore[arg-type]
    assert terms["transfer"].item() == pytest.approx(expected, abs=1e-6)
    assert terms["from_teacher"].item() == from_teacher


def test_gains_probabilities_of_the_card() -> None:
    for z, expected in ((Z_T, (0.66524, 0.24473, 0.09003)), (Z_ST, (0.33150, 0.54655, 0.12195))):
        torch.testing.assert_close(row(*z).softmax(1), row(*expected), atol=5e-6, rtol=0)


def test_gains_ties_go_to_the_copy_and_averages_are_of_logits() -> None:
    source, taught = FantasticGains().source(_Gains(), gains_views(0, copy=Z_T))  # type: ignore[arg-type]
    assert not taught.item()
    source, _ = FantasticGains(partition="flip-avg").source(_Gains(), gains_views(2))  # type: ignore[arg-type]
    torch.testing.assert_close(source, (row(*Z_T) + row(*Z_ST)) / 2)


def test_gains_top_k_keeps_the_sources_largest() -> None:
    terms = FantasticGains(top_k=2).terms(_Gains(), gains_views(0))  # type: ignore[arg-type]
    p, q = row(2, 1).softmax(1), row(0.5, 0.5).softmax(1)
    assert terms["transfer"].item() == pytest.approx(float((p * (p / q).log()).sum()))


def test_gains_surest_of_several_teachers() -> None:
    class Two(_Gains):
        teacher_models = (None, None)

    views = gains_views(0)
    views.teachers.append(row(4, 0, 0))
    source, taught = FantasticGains().source(Two(), views)  # type: ignore[arg-type]
    assert taught.item()
    assert torch.equal(source, row(4, 0, 0))


def test_gains_moving_mask_judges_by_the_student() -> None:
    views = gains_views(1)  # the copy is surer of 1 than the teacher, so is the student (0.36 > 0.24)
    assert not FantasticGains(mask="moving").source(_Gains(), views)[1].item()  # type: ignore[arg-type]
    views.student = row(5, 0, 0)
    assert FantasticGains(mask="moving").source(_Gains(), views)[1].item()  # type: ignore[arg-type]
    assert not FantasticGains(mask="frozen").source(_Gains(), views)[1].item()  # type: ignore[arg-type]


def test_gains_learning_from_oneself_changes_nothing(data: Table, teacher: Model, tmp_path: Path) -> None:
    """Teacher = student: loss 0 at step 0 and no change of weights (batch statistics held, no decay)."""
    student = build(teacher, Ctx()).eval()
    still = {"freeze_norms": True, "weight_decay": 0.0, "lr": 0.1}
    for number, more in enumerate(({}, {"partition": "self"}, {"partition": "unsupervised"})):
        model = trained("fantastic-gains", data, teacher, tmp_path / str(number), student=student, **still, **more)
        assert log_of(model)[0]["raw/transfer"] == pytest.approx(0, abs=1e-6)
        for name, value in weights(model).items():
            torch.testing.assert_close(value, student.state_dict()[name], rtol=0, atol=1e-4)


def test_gains_reports_flips_and_what_arrived(data: Table, teacher: Model, tmp_path: Path) -> None:
    weak = trained("none", data, None, tmp_path / "weak", epochs=2, lr=0.01)
    model = trained("fantastic-gains", data, teacher, tmp_path / "a", student=build(weak, Ctx()), lr=0.05, epochs=8)
    said, moved = facts(model)["flips"][0], facts(model)["transfer"][0]
    assert said["accuracy_teacher"] - said["accuracy_student"] == pytest.approx(said["rho_pos"] - said["rho_neg"])
    assert sum(said["per_class"]) == round(said["rho_pos"] * 48)
    assert moved["delta"] == pytest.approx(moved["gain"] - moved["loss"])
    assert moved["delta"] > 0
    assert 0 < moved["rate"] <= 1
    assert moved["transferable"] == sum(said["per_class"])


def test_complementary_knowledge_by_hand() -> None:
    y = [0, 0, 1, 1, 2, 2]
    s, t = [0, 1, 1, 0, 0, 0], [1, 0, 1, 1, 2, 2]
    found = complement(s, t, y, 3)
    assert (found.rho_pos, found.rho_neg) == (pytest.approx(4 / 6), pytest.approx(1 / 6))
    assert found.per_class == (1, 1, 2)
    assert found.entropy == pytest.approx(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)))
    assert found.expertise["0.5"] == (2,)
    assert found.expertise["0.02"] == (2,)
    moved = transferred(s, [0, 0, 1, 0, 2, 0], t, y)
    assert (moved.delta, moved.gain, moved.loss) == (pytest.approx(2 / 6), pytest.approx(2 / 6), 0)
    assert moved.rate == pytest.approx(2 / 4)
    assert moved.transferable == 4
    none = complement(y, y, y, 3)
    assert none.rho_pos == 0
    assert none.entropy == 0
    assert none.expertise["0.5"] == ()
    assert math.isnan(transferred(y, y, y, y).rate)


@pytest.mark.parametrize("strategy", ["parallel", "sequential", "soup"])
def test_gains_several_teachers(strategy: str, data: Table, teacher: Model, tmp_path: Path) -> None:
    other = trained("none", data, None, tmp_path / "o", student=made(TwoLayers, 3), epochs=6, lr=0.02)
    start = trained("none", data, None, tmp_path / "s", epochs=2, lr=0.01)
    model = apply("distill/fantastic-gains", student=build(start, Ctx()), teacher=[teacher, other], data=data, epochs=4, batch_size=16,
                  lr=0.02, strategy=strategy, out=tmp_path / "a")  # fmt: skip
    assert not same(weights(model), weights(start))
    assert len(facts(model)["transfer"]) == 2


def test_gains_soup_is_the_mean_of_its_students(data: Table, teacher: Model, tmp_path: Path) -> None:
    """With the same teacher twice and the whole table in one batch, each share of the epochs gives the same student: their mean is it."""
    start = trained("none", data, None, tmp_path / "s", epochs=2, lr=0.01)
    given = {"data": data, "batch_size": 48, "lr": 0.02, "freeze_norms": True}
    soup = apply("distill/fantastic-gains", student=build(start, Ctx()), teacher=[teacher, teacher], epochs=4, strategy="soup", **given,
                 out=tmp_path / "a")  # fmt: skip
    one = apply("distill/fantastic-gains", student=build(start, Ctx()), teacher=[teacher], epochs=2, **given, out=tmp_path / "b")  # fmt: skip
    for name, value in weights(soup).items():
        torch.testing.assert_close(value, weights(one)[name], rtol=1e-4, atol=1e-5)


def test_gains_slow_weights_follow_by_hand(data: Table, teacher: Model, tmp_path: Path) -> None:
    start = build(trained("none", data, None, tmp_path / "s", epochs=2, lr=0.01), Ctx())
    given = {"student": start, "epochs": 1, "batch_size": 48, "lr": 0.02}
    fast = weights(trained("fantastic-gains", data, teacher, tmp_path / "a", **given))
    slow = weights(trained("fantastic-gains", data, teacher, tmp_path / "b", slow=0.9, slow_every=1, **given))
    for name, value in start.state_dict().items():
        expected = 0.9 * value + 0.1 * fast[name] if value.is_floating_point() else fast[name]
        torch.testing.assert_close(slow[name], expected)


def test_gains_calibration_scales_the_confidences(data: Table, teacher: Model) -> None:
    run, hooks = started("fantastic-gains", data, teacher, student=build(teacher, Ctx()), calibrate=True)
    assert run.tensors["temperatures"].shape == (2,)
    run.tensors["temperatures"] = torch.tensor([1.0, 10.0])  # the teacher's doubts
    views = hooks.views(run, engine.make_batch(run, np.arange(16)))
    views.teachers = [2 * views.teachers[0]]
    doubted = hooks.source(run, views)[1].sum()
    run.tensors["temperatures"] = torch.tensor([10.0, 1.0])
    assert doubted < 0.3 * hooks.source(run, views)[1].sum()


def test_gains_warns_of_a_student_that_knows_nothing(data: Table, teacher: Model, tmp_path: Path) -> None:
    lines: list[str] = []
    apply("distill/fantastic-gains", student=made(TwoLayers, 0), teacher=[teacher], data=data, epochs=1,
          ctx=Ctx(log=lines.append), out=tmp_path / "a")  # fmt: skip
    assert any("guessing" in line for line in lines)


def test_gains_refuses(data: Table, teacher: Model, tmp_path: Path) -> None:
    bare = open_table(Source(Dataset.from_dict({"image": data.dataset["image"]})), Ctx())
    refused("input.missing", "fantastic-gains", bare, teacher, tmp_path / "a")
    trained("fantastic-gains", bare, teacher, tmp_path / "b", partition="unsupervised")
    refused("param.value", "fantastic-gains", data, teacher, tmp_path / "c", top_k=9)
    with pytest.raises(InterfuseError) as caught:
        apply("distill/fantastic-gains", student=made(CNN), teacher=[teacher, teacher], data=data, epochs=1, strategy="soup",
              out=tmp_path / "d")  # fmt: skip
    assert caught.value.code == "param.value"


def test_gains_refuses_other_class_names_and_multi_label_heads() -> None:
    cats, dogs = {"id2label": {0: "cat", 1: "dog"}}, {"id2label": {"0": "dog", "1": "cat"}}
    with pytest.raises(InterfuseError) as caught:
        _same_classes(cats, dogs, "")
    assert caught.value.code == "input.shape"
    assert "cat" in str(caught.value)
    _same_classes(cats, {"id2label": {"0": "cat", "1": "dog"}}, "")
    _same_classes(cats, {"id2label": {0: "LABEL_0", 1: "LABEL_1"}}, "")
    with pytest.raises(InterfuseError) as caught:
        _same_classes({"problem_type": "multi_label_classification"}, cats, "")
    assert caught.value.code == "input.type"


# -- HARD ------------------------------------------------------------------------------------------------------------


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_hard_closed_form() -> None:
    """f_t(x) = x, f_s(x) = 0, squared error, x~ = x + a: the maximiser is lambda_s x / (lambda_t - lambda_s)."""
    hooks, x = HARD(distance="mse", lambda_s=1, lambda_t=3), torch.tensor([[2.0]], dtype=torch.float64)
    a = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        gain = hooks.objective(x, x + a, torch.zeros_like(x)).sum()
        with torch.no_grad():
            a += 0.1 * torch.autograd.grad(gain, a)[0]
    assert a.item() == pytest.approx(1.0, abs=1e-6)
    before, after = hooks.between(x, torch.zeros_like(x)), hooks.between(x + a, torch.zeros_like(x))
    assert (before.item(), after.item()) == (pytest.approx(4), pytest.approx(9, abs=1e-5))
    free = HARD(distance="mse", constraint="none").objective(x, x + a, torch.zeros_like(x))
    assert free.item() == pytest.approx(9, abs=1e-5)


def test_hard_phases_leave_the_other_player_alone(data: Table, teacher: Model) -> None:
    """phi stays as it is in a student phase, theta in an augmentor phase (bitwise); the teacher gets no gradient at all."""
    run, hooks = started("hard", data, teacher, student_steps=100)
    phi = {k: v.clone() for k, v in run.modules["augmentor"].state_dict().items()}
    engine._step(run, hooks, [np.arange(16)], {})
    assert same(phi, dict(run.modules["augmentor"].state_dict()))
    theta = {k: v.clone() for k, v in run.student.state_dict().items()}
    hooks._augmentor_phase(run)
    assert same(theta, dict(run.student.state_dict())), "weights or batch statistics of the student moved"
    assert not same(phi, dict(run.modules["augmentor"].state_dict()))
    assert all(p.grad is None for p in run.teachers[0].parameters())


def test_hard_at_the_identity_is_plain_kd(data: Table, teacher: Model) -> None:
    run, hooks = started("hard", data, teacher, student=made(TwoLayers, 2), start=0.0)
    views = hooks.views(run, engine.make_batch(run, np.arange(16)))
    terms = hooks.terms(run, views)
    torch.testing.assert_close(terms["hard"], terms["kd"], rtol=1e-4, atol=1e-5)
    assert terms["teacher_change"].abs().max() < 1e-5


def test_hard_that_looks_for_nothing_stays_near_the_image(data: Table, teacher: Model) -> None:
    """With lambda_s = 0 the augmentor only keeps the teacher's answer: its changes shrink."""
    run, hooks = started("hard", data, teacher, lambda_s=0.0, augmentor_steps=60, phase_max=1e9, augmentor_lr=0.02)

    def change() -> float:
        batch = engine.make_batch(run, np.arange(48))
        x = hooks._source(batch)
        with torch.no_grad():
            return float((hooks.augment(run, x, torch.Generator().manual_seed(0)) - x).abs().mean())

    before = change()
    hooks._augmentor_phase(run)
    assert change() < 0.5 * before


def test_hard_augmentor_phase_raises_the_objective(data: Table, teacher: Model) -> None:
    run, hooks = started("hard", data, teacher, augmentor_steps=40, phase_max=1e9, augmentor_lr=0.05, lambda_t=0.5)

    def gain() -> float:
        batch = engine.make_batch(run, np.arange(48))
        with torch.no_grad():
            moved = hooks.augment(run, hooks._source(batch), torch.Generator().manual_seed(0))
            clean = run.teachers[0](batch.teachers[0]["pixel_values"])
            return float(hooks.objective(clean, hooks._teacher(run, batch, moved), run.student.eval()(moved)).mean())

    before = gain()
    hooks._augmentor_phase(run)
    assert gain() > before


def test_hard_changes_phase_by_thresholds_and_by_steps(data: Table, teacher: Model) -> None:
    run, hooks = started(
        "hard", data, teacher, phase_min=0.5, student_steps=50, augmentor_steps=3, phase_max=1e9, ema=0.0
    )
    seen = []
    for found in (2.0, 1.5, 0.9, 2.0):
        run.tensors["seen"] = torch.tensor([found, 0.0])
        run.step += 1
        hooks.after_step(run)
        seen.append((run.tensors["phase"][0].item(), run.tensors["curve"][run.step - 1, 3].item()))
    assert seen == [(1, 0), (2, 0), (0, 3), (1, 3)], "the phase ends below half of its first disagreement"


def test_hard_writes_augmentor_curve_and_pictures(data: Table, teacher: Model, tmp_path: Path) -> None:
    model = trained("hard", data, teacher, tmp_path / "a", student_steps=2, examples=2)
    assert model.path is not None
    with (model.path / "plots/disagreement.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert float(rows[-1]["augmentor_steps"]) > 0
    with (model.path / "plots/augmented.csv").open() as file:
        assert [r["step"] for r in csv.DictReader(file)] == ["3"] * 8 + ["6"] * 8
    assert (model.path / "report.html").read_text().count("data:image/png;base64") == 3 * 8
    assert facts(model)["phases"]["student_steps"] == 6
    assert "rotate_spread" in facts(model)["augmentor"]
    state = weights(Model("g", path=model.path)), model.path / "augmentor.safetensors"
    assert state[1].is_file()
    assert same(weights(model), state[0])


@pytest.mark.parametrize("augmentor", ["affine", "mix", "vae", "noise"])
def test_hard_every_augmentor_runs(augmentor: str, data: Table, teacher: Model, tmp_path: Path) -> None:
    model = trained("hard", data, teacher, tmp_path / "a", augmentor=augmentor, student_steps=1, augmentor_steps=2)
    assert all(math.isfinite(v) for v in log_of(model)[-1].values())


def test_hard_teaches_a_regression_beyond_the_data(tmp_path: Path) -> None:
    """The toy of the card: cos, known to the teacher everywhere, data in [-pi, pi], error in [-4 pi, 4 pi] against plain KD."""

    class Cosine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cos(x)

    x = np.random.default_rng(0).uniform(-math.pi, math.pi, (256, 1))
    table = open_table(Source(Dataset.from_dict({"features": x.tolist()})), Ctx())
    wide = torch.linspace(-4 * math.pi, 4 * math.pi, 400)[:, None]
    errors = []
    for number, more in enumerate(({"start": 0.0, "augmentor_lr": 1e-12}, {"start": 0.3, "augmentor_lr": 0.05})):
        torch_net = [nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)]
        for i, layer in enumerate(torch_net):
            for p in layer.parameters():
                nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(i))
        model = trained("hard", table, Cosine(), tmp_path / str(number), student=nn.Sequential(*torch_net), augmentor="noise",
                        noise=3.5 * math.pi, distance="mse", epochs=60, batch_size=64, lr=5e-3, student_steps=20, lambda_t=0.5, **more)  # fmt: skip
        with torch.no_grad():
            errors.append(float((build(model, Ctx()).eval()(wide) - torch.cos(wide)).square().mean()))
    assert errors[1] < errors[0] / 3


def test_hard_refuses(data: Table, teacher: Model, tmp_path: Path) -> None:
    refused("param.value", "hard", data, teacher, tmp_path / "a", phase_min=2.0)
    refused("param.value", "hard", data, teacher, tmp_path / "b", shift=1.5)
    assert "random" in refused("needs.capability", "hard", data, Logits(), tmp_path / "c")
    flat = open_table(
        Source(Dataset.from_dict({"features": np.zeros((8, 64)).tolist(), "label": [0, 1, 2, 3] * 2})), Ctx()
    )
    refused("input.type", "hard", flat, teacher, tmp_path / "d", student=made(TwoLayers))


# -- augmentors ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-0.5, 0.5), min_size=5, max_size=5), st.sampled_from([(8, 8), (5, 9)]))
def test_affine_is_the_oracles(quantities: list[float], size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).random(size)
    ours = affine(torch.tensor(image)[None, None], torch.tensor([quantities], dtype=torch.float64))[0, 0].numpy()
    np.testing.assert_allclose(ours, oracle.affine_image(image, np.array(quantities)), atol=1e-12)


def test_augmentors_start_at_the_identity_and_stay_in_their_ranges() -> None:
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for still in (Affine(start=0.0), Noise((1, 8, 8), start=0.0), Latent((1, 8, 8), start=0.0)):
        torch.testing.assert_close(still(x, torch.Generator().manual_seed(1)), x, rtol=0, atol=1e-5)
    wild = Affine(shift=0.2, rotate=30, scale=0.5, shear=10, start=100.0)
    q = wild.quantities(torch.randn(500, 5, generator=torch.Generator().manual_seed(2))).abs().max(dim=0).values
    limits = torch.tensor([0.2, 0.2, math.radians(30), 0.5 * math.log(2), math.radians(10)])
    assert (q <= limits + 1e-6).all()
    assert (q > 0.9 * limits).all()
    assert (Noise((1, 8, 8), limit=0.3, start=100.0)(x, torch.Generator().manual_seed(1)) - x).abs().max() <= 0.3 + 1e-6


def test_augmentors_depend_on_their_generator_alone() -> None:
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for augmentor in (Affine(), Mix(), Noise((1, 8, 8)), Latent((1, 8, 8))):
        one, two, three = (augmentor(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, three)
        assert one.shape == x.shape
        assert all(math.isfinite(v) for v in augmentor.diagnostics().values())


def test_mix_weights_and_operations() -> None:
    mix = Mix(start=0.4)
    odds = mix.diagnostics()
    assert list(odds) == list(OPERATIONS)
    assert odds["identity"] == pytest.approx(0.6)
    assert sum(odds.values()) == pytest.approx(1)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, operation in OPERATIONS.items():
        moved = operation(x, torch.Generator().manual_seed(1))
        assert moved.shape == x.shape
        assert (name == "identity") == torch.equal(moved, x)


def test_latent_learns_to_draw() -> None:
    images = torch.zeros(32, 1, 8, 8)
    images[:16, :, :4], images[16:, :, 4:] = 1, 1
    latent, generator = Latent((1, 8, 8), latents=2), torch.Generator().manual_seed(0)
    first = latent.fit(images, generator, steps=5)
    assert latent.fit(images, generator, steps=200) < 0.5 * first
    assert [n for n, p in latent.named_parameters() if p.requires_grad] == ["sigma"]


def test_the_cut_lets_gradients_through() -> None:
    x = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True)
    cut = clamp_through(x)
    assert torch.allclose(cut, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(torch.autograd.grad(cut.sum(), x)[0], torch.ones(3))


# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "slug, given",
    [
        ("hard", {"student_steps": 2, "augmentor_steps": 2}), ("hard", {"augmentor": "vae", "student_steps": 2, "examples": 3}),
        ("bd-kd", {"alternate": True}), ("bd-kd", {"optimizer": "sgd", "lr": 0.02}), ("fantastic-gains", {"lr": 0.02, "slow": 0.9}),
        ("ofa-kd", {"exit": "paper"}),
    ],
)  # fmt: skip
def test_resume_equals_one_go(slug: str, given: dict[str, Any], data: Table, teacher: Model, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    inputs = {"student": made(CNN, 1), "teacher": [teacher], "data": data, "epochs": 3, "batch_size": 16, **given}
    whole = apply(f"distill/{slug}", **inputs, out=tmp_path / "whole")
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    keep = engine.save_state

    class Stop(Exception):
        pass

    def save_and_stop(*args: Any) -> None:
        keep(*args)
        raise Stop

    monkeypatch.setattr(engine, "save_state", save_and_stop)
    ctx = Ctx(scratch=tmp_path / "scratch")
    with pytest.raises(Stop):
        apply(f"distill/{slug}", **inputs, ctx=ctx, out=tmp_path / "parts")
    monkeypatch.setattr(engine, "save_state", keep)
    parts = apply(f"distill/{slug}", **inputs, ctx=ctx, out=tmp_path / "parts")
    assert whole.path is not None
    assert parts.path is not None
    names = sorted(str(p.relative_to(whole.path)) for p in whole.path.rglob("*") if p.is_file())
    for name in names:
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes(), name
