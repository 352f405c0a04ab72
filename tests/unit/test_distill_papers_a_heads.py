"""Worked numbers, invariants, limits and refusals of KD3, DHKD and KD++ through the methods' code."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from datasets import Dataset
from torch import Tensor, nn

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source, apply
from interfuse.data.composed import Composed
from interfuse.data.models import Model, build, open_model
from interfuse.data.seeding import seeded
from interfuse.data.tables import Table, open_table
from interfuse.distill.dhkd import align
from interfuse.distill.kd3 import choose, nt_xent, teacher_share
from interfuse.kit.augmentors import mix_distribution, mix_words
from interfuse.kit.losses import binary_kl
from tests.distill_bars import (
    CLASSES,
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
from tests.tiny_texts import BERT, LLAMA, WORDS, tokenizer

# -- KD3 -------------------------------------------------------------------------------------------------------------


def test_teachers_share_worked_numbers() -> None:
    found = [teacher_share(e, 240) for e in (1, 40, 80, 119, 120, 240)]
    assert found == pytest.approx([0.99237, 0.93708, 0.70446, 0.26838, 0, 0], abs=5e-6)
    assert teacher_share(10, 60) == teacher_share(40, 240), "other lengths stretch the axis"
    assert [teacher_share(e, 2) for e in (1, 2)] == [1.0, 0.0], "the student has learned nothing yet"
    assert teacher_share(1, 1) == 1.0
    assert teacher_share(1, 3) == teacher_share(80, 240)


def test_thresholds_worked_numbers() -> None:
    z = torch.full((120, 3), 0.0)
    z[:90, 0], z[90:, 1] = 5.0, 0.5
    kept, counts, thresholds = choose(z, 0.95)
    assert counts.tolist() == [90, 30, 0]
    assert thresholds.tolist() == pytest.approx([0.95, 0.19, 0.0], abs=1e-6)
    assert bool(kept.all())
    z[:90, 0] = 0.1
    assert choose(z, 0.95)[0].tolist() == [False] * 90 + [True] * 30
    assert choose(z, 0.95, 2)[0][:90].sum() == 2, "the two surest of a class are kept anyway"


def test_feature_weights_worked_numbers(data: Table, teacher: Model) -> None:
    run, hooks = started("kd3", data, teacher, contrast=0.0, min_per_class=2)
    student = torch.tensor([[0.0, 0, 0, 0], [1, -1, 0, 0], [3, 4, 0, 0]], dtype=torch.float64)
    ones = torch.ones(3, 2, 2, 2, dtype=torch.float64)
    views = fixed_views(
        batch_of([0, 0, 0]), student, torch.zeros_like(student), ours={"features": ones}, theirs={"features": ones * 0}
    )
    assert hooks.terms(run, views)["features"].tolist() == pytest.approx([0.5, 0.80443, 0.99331], abs=5e-6)


def test_mix_distribution_worked_numbers() -> None:
    x = torch.tensor([[0.0, 0, 2, 2], [4, 8, 4, 8]], dtype=torch.float64).reshape(2, 1, 2, 2)
    found = mix_distribution(x, torch.tensor([0.25, 1.0]), torch.tensor([1, 0]))
    assert found[0].flatten().tolist() == pytest.approx([3.0, 3.0, 6.5, 6.5], abs=1e-3)
    torch.testing.assert_close(found[1], x[1])  # share 1: nothing of the partner
    torch.testing.assert_close(mix_distribution(x, torch.tensor([0.25, 0.25]), torch.tensor([0, 1])), x)
    slow = oracle.mix_distribution(x.numpy(), np.array([0.25, 0.7]), np.array([1, 0]))
    np.testing.assert_allclose(
        mix_distribution(x, torch.tensor([0.25, 0.7], dtype=torch.float64), torch.tensor([1, 0])), slow, rtol=1e-9
    )
    with pytest.raises(InterfuseError, match=r"input\.shape"):
        mix_distribution(torch.ones(2, 3, 1, 1), torch.ones(2), torch.tensor([0, 1]))


def test_words_of_a_text_are_its_places() -> None:
    x = torch.tensor([[0.0, 0, 2, 2, 9], [4, 8, 4, 8, 9]], dtype=torch.float64).unsqueeze(
        2
    )  # one number per word, the last padding
    mask = torch.tensor([[1, 1, 1, 1, 0]] * 2)
    found = mix_words(x, mask, torch.tensor([0.25, 1.0]), torch.tensor([1, 0]))
    assert found[0].flatten().tolist() == pytest.approx([3.0, 3.0, 6.5, 6.5, 9.0], abs=1e-3)
    torch.testing.assert_close(found[1], x[1])
    assert bool(
        mix_words(x, mask * 0 + torch.tensor([1, 0, 0, 0, 0]), torch.ones(2), torch.tensor([1, 0])).isfinite().all()
    )


def test_nt_xent_against_the_oracle() -> None:
    g = torch.Generator().manual_seed(4)
    a, b = (torch.randn(5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    np.testing.assert_allclose(nt_xent(a, b, 0.3), oracle.nt_xent(a.numpy(), b.numpy(), 0.3), rtol=1e-9)


def test_kd3_exports_backbone_block_and_the_teachers_classifier(data: Table, teacher: Model, tmp_path: Path) -> None:
    found = trained("kd3", data, teacher, tmp_path / "out", min_per_class=4)
    held = weights(found)
    assert {k.split(".")[0] for k in held} == {"backbone", "transfer", "classifier"}
    assert torch.equal(held["classifier.weight"], weights(teacher)["head.weight"]), "the shared classifier was trained"
    run, _ = started("kd3", data, teacher, min_per_class=4)
    x = next(iter(engine.make_batch(run, np.arange(6)).student.values()))
    opened = build(found, Ctx()).eval()
    with torch.no_grad():
        feature = opened.backbone.stages[1](opened.backbone.stages[0](x))
        expected = opened.classifier(opened.transfer(feature).mean(dim=(2, 3)))
        torch.testing.assert_close(opened(x), expected)
    with (tmp_path / "out" / "selection.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["epoch"] for r in rows] == ["1", "2"]
    assert all(int(r["kept"]) >= 2 for r in rows)
    assert float(rows[0]["teacher_share"]) == pytest.approx(teacher_share(1, 2), abs=1e-6)


def test_kd3_on_vectors_when_the_classifier_reads_no_mean(data: Table, tmp_path: Path) -> None:
    teacher = open_model(Source(made(TwoLayers, 5)), Ctx())
    found = trained(
        "kd3",
        data,
        teacher,
        tmp_path / "out",
        made(TwoLayers, 6, 3),
        student_layer="penultimate",
        teacher_layer="penultimate",
        min_per_class=9,
    )
    assert weights(found)["transfer.layers.0.weight"].shape == (6, 3)


def test_the_choice_does_not_train(data: Table, teacher: Model) -> None:
    run, hooks = started("kd3", data, teacher, min_per_class=4)
    before = {k: v.clone() for m in (run.student, *run.modules.values()) for k, v in m.state_dict().items()}
    run.epoch = 1
    chosen = hooks.select(run, np.arange(48))
    after = {k: v for m in (run.student, *run.modules.values()) for k, v in m.state_dict().items()}
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert run.modules["transfer"].training
    assert 2 <= len(chosen) <= 48


def test_kd3_saves_every_weight_under_its_own_name(data: Table, tmp_path: Path) -> None:
    """The classifier of a vision transformer and the one behind the transfer block have one name, and here one shape."""
    vit = {"model_type": "vit", "num_channels": 1, "image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1,
           "num_attention_heads": 2, "intermediate_size": 8, "num_labels": CLASSES}  # fmt: skip
    teacher = trained("none", data, None, tmp_path / "t", student={"config": vit}, epochs=1)
    found = trained("kd3", data, teacher, tmp_path / "s", student={"config": vit}, epochs=1, min_per_class=4)
    opened, saved = build(found, Ctx()).state_dict(), weights(found)
    assert torch.equal(saved["classifier.weight"], weights(teacher)["classifier.weight"])
    for name in ("classifier.weight", "backbone.classifier.weight", "classifier.bias", "backbone.classifier.bias"):
        assert torch.equal(opened[name], saved[name]), name
    assert not torch.equal(saved["classifier.bias"], saved["backbone.classifier.bias"])


def test_kd3_refusals(data: Table, teacher: Model, tmp_path: Path) -> None:
    said = refused("run.failed", "kd3", data, open_model(Source(made(CNN, 9)), Ctx()), tmp_path / "a")
    assert "above" in said, "the thresholds are shown"
    refused("input.shape", "kd3", data, teacher, tmp_path / "b", student_layer="stages.1", teacher_layer="stages.0")


def test_kd3_says_that_labels_are_not_used(data: Table, teacher: Model, tmp_path: Path) -> None:
    said: list[str] = []
    given = {"student": made(CNN, 1), "teacher": [teacher], "epochs": 1, "batch_size": 16, "min_per_class": 4}
    apply("distill/kd3", **given, data=data, out=tmp_path / "a", ctx=Ctx(log=said.append))
    assert "the labels of the pool are not used" in said
    said.clear()
    bare = dataclasses.replace(data, columns={k: v for k, v in data.columns.items() if k != "label"})
    apply("distill/kd3", **given, data=bare, out=tmp_path / "b", ctx=Ctx(log=said.append))
    assert not [line for line in said if "labels" in line]


class HeadFirst(nn.Module):
    """A network whose classifier is not its last linear layer by name."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(5, CLASSES), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x.flatten(1)).relu())
        return found


def test_kd3_taps_the_classifier_wherever_it_is(data: Table, tmp_path: Path) -> None:
    layers = {"student_layer": "penultimate", "teacher_layer": "penultimate"}
    found = trained(
        "kd3", data, made(TwoLayers, 2), tmp_path / "out", made(HeadFirst, 1), min_per_class=4, epochs=1, **layers
    )
    net = build(found, Ctx()).eval()
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        expected = net.classifier(net.transfer(net.backbone.body(x.flatten(1)).relu()))  # type: ignore[operator,union-attr]
        torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize(
    ("layer", "factor"), [("stage", 1.0), ("stage[2]", 2.0), ("penultimate:stage", 1.0), ("penultimate", 1.0)]
)
def test_a_composed_model_reads_the_layer_that_was_tapped(layer: str, factor: float) -> None:
    class Stage(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x.sum(), x, 2 * x[:, None]

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage, self.head = Stage(), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.stage(x - 1)[1])
            return found

    x = torch.rand(3, 5)
    found = Composed(Backbone(), layer, nn.Identity(), nn.Identity())(x)
    torch.testing.assert_close(found.flatten(1), factor * (x - 1))


# -- DHKD ------------------------------------------------------------------------------------------------------------

U, T = torch.tensor([[1.0, 0.5, -2.0]], dtype=torch.float64), torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)


def dhkd_aux(data: Table, teacher: Model, u: Tensor, t: Tensor, **given: Any) -> Tensor:
    run, hooks = started("dhkd", data, teacher, head="main", **given)
    return hooks.terms(run, fixed_views(batch_of([0]), u, t))["aux"]


def test_binary_kl_norm_worked_numbers(data: Table, teacher: Model) -> None:
    u = U.clone().requires_grad_()
    loss = dhkd_aux(data, teacher, u, T)
    assert loss.item() == pytest.approx(0.278607, abs=1e-6)
    loss.sum().backward()
    assert u.grad[0].tolist() == pytest.approx([-0.244919, 0.124353, -0.244919], abs=1e-6)
    assert dhkd_aux(data, teacher, U, T, aux_loss="bkl").item() == pytest.approx(0.248367, abs=1e-6)
    assert binary_kl(U, T, tau=2.0).item() == pytest.approx(0.248367, abs=1e-6)


def test_binary_kl_norm_invariants(data: Table, teacher: Model) -> None:
    same = T.clone().requires_grad_()
    loss = dhkd_aux(data, teacher, same, T)
    assert loss.item() == 0
    assert torch.autograd.grad(loss.sum(), same)[0].abs().max() == 0
    assert dhkd_aux(data, teacher, U + 3, T + 3).item() == pytest.approx(
        dhkd_aux(data, teacher, U, T).item(), abs=1e-12
    )
    assert dhkd_aux(data, teacher, U + 3, T).item() > 1 + dhkd_aux(data, teacher, U, T).item(), (
        "raw logits carry their offset"
    )
    assert dhkd_aux(data, teacher, U, T + 3, center=True).item() == pytest.approx(
        dhkd_aux(data, teacher, U, T, center=True).item(), abs=1e-12
    )


def test_alignment_worked_numbers() -> None:
    g0, g1 = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    assert align([g1], [g0])[0].tolist() == [0.0, 1.0]
    assert (align([g1], [g0])[0] + g0).tolist() == [1.0, 1.0]
    assert align([g0 + g1], [g0])[0].tolist() == [0.0, 1.0], "agreeing gradients stay"
    split = align([g1[:1], g1[1:]], [g0[:1], g0[1:]])
    assert torch.cat(split).tolist() == [0.0, 1.0], "the inner product runs over all parameters"
    assert align([g1], [torch.zeros(2)])[0].tolist() == g1.tolist()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("mode", ["backbone", "all"])
def test_the_gradient_of_a_step_against_two_plain_ones(data: Table, teacher: Model, mode: str, accumulate: int) -> None:
    """g0 + projected g1 on the backbone (or on everything), plain sums elsewhere, also over several forward passes."""
    given = {"head": "linear", "weight": 30.0, "clip": 0, "batch_size": 48 // accumulate, "accumulate": accumulate}
    run, hooks = started("dhkd", data, teacher, made(TwoLayers, 2), align=mode, **given)
    modules = {"student": run.student, "auxiliary": run.modules["auxiliary"]}
    params = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
    views = hooks.views(run, engine.make_batch(run, np.arange(48)))
    terms = hooks.terms(run, views)
    g0, g1 = (
        torch.autograd.grad(w * terms[k].mean(), list(params.values()), retain_graph=True, allow_unused=True)
        for k, w in (("ce", 1.0), ("aux", 30.0))
    )
    g0, g1 = (
        {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(params.items(), grads, strict=True)}
        for grads in (g0, g1)
    )
    inside = [n for n in params if mode == "all" or n.startswith("student.first")]
    dot = sum((g0[n] * g1[n]).sum() for n in inside)
    square = sum(g0[n].square().sum() for n in inside)
    expected = {n: g0[n] + g1[n] - (torch.clamp(dot, max=0) / square * g0[n] if n in inside else 0) for n in params}
    caught: dict[str, Tensor] = {}
    step = run.optimizers["main"].step
    run.optimizers["main"].step = lambda: caught.update({n: p.grad.clone() for n, p in params.items()})  # type: ignore[method-assign]
    engine._step(run, hooks, [np.arange(48)[i::accumulate] for i in range(accumulate)], {})
    run.optimizers["main"].step = step  # type: ignore[method-assign]
    for name, gradient in expected.items():
        torch.testing.assert_close(caught[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert not [k for k in run.tensors if k.startswith("aux/")], "gradients are left in the saved state"


@pytest.mark.parametrize("head", ["mlp", "main"])
def test_alignment_at_the_features_is_one_pass(data: Table, teacher: Model, head: str) -> None:
    """The heads' gradients are the plain ones; the backbone's is that of the features' aligned gradient."""
    state, hooks = started("dhkd", data, teacher, head=head, dropout=0.0, aux_loss="mse", weight=30.0)
    batch = engine.make_batch(state, np.arange(16))
    views = hooks.views(state, batch)
    terms = hooks.terms(state, views)
    parts = {name: hooks.weights(state, views)[name] * value.mean() for name, value in terms.items()}
    h = views.features["penultimate"]
    g0, g1 = (torch.autograd.grad(parts[n], h, retain_graph=True)[0] for n in ("ce", "aux"))
    if float((g0 * g1).sum()) > 0:  # the other way round, so that the gradients disagree
        parts["aux"], g1 = -parts["aux"], -g1
    (wanted,) = align([g1], [g0])
    assert not torch.equal(wanted, g1), "the case shows nothing"
    first = next(state.student.parameters())
    expected = torch.autograd.grad(h, first, g0 + wanted, retain_graph=True)[0]
    heads = [state.student.head.weight, *([state.modules["auxiliary"][0].weight] if head == "mlp" else [])]
    plain = torch.autograd.grad(sum(parts.values()), heads, retain_graph=True)
    hooks.backward(state, torch.stack(list(parts.values())).sum(), parts)
    torch.testing.assert_close(first.grad, expected)
    for head, value in zip(heads, plain, strict=True):
        torch.testing.assert_close(head.grad, value)


def test_alignment_was_put_to_work(data: Table, teacher: Model, tmp_path: Path) -> None:
    """With labels that contradict the teacher, the gradients oppose each other and alignment changes the result."""
    codes = (data.codes + 1) % CLASSES
    wrong = dataclasses.replace(data, codes=codes)
    plain, aligned = (
        weights(trained("dhkd", wrong, teacher, tmp_path / a, align=a, weight=5.0)) for a in ("none", "backbone")
    )
    at_features = weights(trained("dhkd", wrong, teacher, tmp_path / "features", weight=5.0))
    assert any(not torch.equal(plain[k], aligned[k]) for k in plain)
    assert any(not torch.equal(plain[k], at_features[k]) for k in plain)


def test_dhkd_exports_the_main_head_only(data: Table, teacher: Model, tmp_path: Path) -> None:
    held = weights(trained("dhkd", data, teacher, tmp_path / "out"))
    assert set(held) == set(made(CNN).state_dict())


def test_dhkd_weight_0_is_training_on_labels(data: Table, teacher: Model, tmp_path: Path) -> None:
    labels = weights(trained("none", data, None, tmp_path / "none"))
    zero = weights(trained("dhkd", data, teacher, tmp_path / "zero", weight=0.0, head="linear"))
    for name in labels:
        torch.testing.assert_close(zero[name], labels[name], rtol=1e-4, atol=1e-5)


def test_dhkd_refusals(data: Table, teacher: Model, tmp_path: Path) -> None:
    refused("input.limit", "dhkd", data, teacher, tmp_path / "a", head_width=5_000_000)
    refused("param.value", "dhkd", data, teacher, tmp_path / "b", batch_size=1)
    refused(
        "needs.capability", "dhkd", data, teacher, tmp_path / "c", nn.Sequential(nn.Conv2d(1, CLASSES, 8), nn.Flatten())
    )


# -- KD++ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("s", "t", "expected"),
    [
        ((3, 4), (0, 10), 0.7),
        ((3, 4), (1, 0), 0.4),
        ((6, 8), (1, 0), 0.4),
        ((6, 8), (0, 10), 0.4),
        ((5, 0), (0, 3), 0.0),
    ],
)
def test_norm_direction_worked_numbers(data: Table, teacher: Model, s: Any, t: Any, expected: float) -> None:
    run, hooks = started("nd-kd", data, teacher, base="none")
    run.tensors["class_means"] = torch.tensor([[1.0, 0.0]] * CLASSES)
    row = torch.tensor([s], dtype=torch.float64)
    views = fixed_views(batch_of([2]), torch.zeros(1, CLASSES), torch.zeros(1, CLASSES), ours={"penultimate": row},
                        theirs={"penultimate": torch.tensor([t], dtype=torch.float64)})  # fmt: skip
    terms = hooks.terms(run, views)
    assert terms["nd"].item() == pytest.approx(expected, abs=1e-9)
    assert terms["norm"].item() == pytest.approx(math.hypot(*s))
    assert terms["cosine"].item() == pytest.approx(s[0] / math.hypot(*s))
    assert oracle.norm_direction(row[0].numpy(), np.array(t, dtype=float), np.array([2.0, 0.0])) == pytest.approx(
        expected, abs=1e-9
    )


@pytest.mark.parametrize("batch_size", [7, 16, 48])
def test_class_means_against_a_group_by(data: Table, teacher: Model, batch_size: int) -> None:
    run, _ = started("nd-kd", data, teacher, batch_size=batch_size)
    module = build(teacher, Ctx()).eval()
    x = next(iter(engine.make_batch(run, np.arange(48)).student.values()))
    with torch.no_grad():
        features = module.stages[1](module.stages[0](x)).mean(dim=(2, 3)).numpy()
    labels = data.labels()
    slow = np.stack([features[labels == c].astype(np.float64).mean(0) for c in range(CLASSES)])
    np.testing.assert_allclose(run.tensors["class_means"], slow, atol=1e-6)


def test_the_base_is_faded_in_from_epoch_0(data: Table, teacher: Model) -> None:
    run, hooks = started("nd-kd", data, teacher, kd=3.0, warmup_epochs=20)
    seen = []
    for epoch in (0, 5, 20, 30):
        run.epoch = epoch
        seen.append(hooks.weights(run, None)["base"])
    assert seen == [0.0, 0.75, 3.0, 3.0]


def test_base_none_and_nd_0_is_training_on_labels(data: Table, teacher: Model, tmp_path: Path) -> None:
    labels = weights(trained("none", data, None, tmp_path / "none"))
    bare = weights(trained("nd-kd", data, teacher, tmp_path / "bare", base="none", nd=0.0))
    for name in labels:
        torch.testing.assert_close(bare[name], labels[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", ["kd", "dist", "dkd", "none"])
@pytest.mark.parametrize("form", ["norm-direction", "direction", "norm"])
def test_bases_and_forms_run_with_and_without_projection(
    data: Table, teacher: Model, tmp_path: Path, base: str, form: str
) -> None:
    for width in (8, 5):
        found = trained(
            "nd-kd", data, teacher, tmp_path / f"{width}", made(CNN, 1, 4, width), base=base, form=form, epochs=1
        )
        assert set(weights(found)) == set(made(CNN, 1, 4, width).state_dict()), "the projection is dropped"
        means = safetensors.torch.load_file(tmp_path / f"{width}" / "class_means.safetensors")["class_means"]
        assert means.shape == (CLASSES, 8)


def test_norm_form_pushes_the_length_alone(data: Table, teacher: Model) -> None:
    run, hooks = started("nd-kd", data, teacher, base="none", form="norm", norm_step=2.0)
    s = torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    views = fixed_views(
        batch_of([1]),
        torch.zeros(1, CLASSES),
        torch.zeros(1, CLASSES),
        ours={"penultimate": s},
        theirs={"penultimate": s.detach()},
    )
    loss = hooks.terms(run, views)["nd"]
    assert loss.item() == pytest.approx(4.0)
    [gradient] = torch.autograd.grad(loss.sum(), s)
    torch.testing.assert_close(gradient, -4.0 * s.detach() / s.detach().norm())


def test_nd_refusals(data: Table, teacher: Model, tmp_path: Path) -> None:
    three = dataclasses.replace(data, rows=data.rows[data.codes[data.rows] != 2])
    assert "2" in refused("input.empty", "nd-kd", three, teacher, tmp_path / "a")
    trained("nd-kd", three, teacher, tmp_path / "skip", missing="skip", epochs=1)
    refused("input.shape", "nd-kd", data, teacher, tmp_path / "b", made(CNN, 1, 4, 5), projection="none")
    dead = made(CNN, 7)
    nn.init.zeros_(dead.stages[1][0].weight), nn.init.zeros_(dead.stages[1][0].bias)  # type: ignore[index,union-attr]
    refused("needs.capability", "nd-kd", data, dead, tmp_path / "c")


# -- texts, language models and tables -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sentences of two classes, a tokenizer, and a BERT teacher."""
    folder = tmp_path_factory.mktemp("texts")
    words = tokenizer(folder / "words")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS[i % 2 :: 2], rng.integers(3, 9))) for i in range(24)]
    table = open_table(Source(Dataset.from_dict({"text": lines, "label": [i % 2 for i in range(24)]})), Ctx())
    student = {"config": {**BERT, "hidden_size": 8}, "task": "text-classification", "tokenizer": str(words)}
    given = {"data": table, "batch_size": 8, "epochs": 2, "max_length": 16}
    teacher = apply("distill/none", student={**student, "config": BERT}, **given, out=folder / "teacher")
    return {"given": given, "student": student, "teacher": [teacher], "words": str(words)}


@pytest.mark.parametrize(
    ("slug", "extra"),
    [("nd-kd", {}), ("dhkd", {}), ("mix-kd", {}), ("tgeo-kd", {"val_fraction": 0.25}), ("trg", {"k": 3, "tokens": 32})],
)
def test_text_classifiers(texts: dict[str, Any], tmp_path: Path, slug: str, extra: dict[str, Any]) -> None:
    found = apply(
        f"distill/{slug}",
        student=texts["student"],
        teacher=texts["teacher"],
        **texts["given"],
        **extra,
        out=tmp_path / "out",
    )
    start = apply(
        "distill/none", student=texts["student"], **{**texts["given"], "epochs": 1}, lr=1e-12, out=tmp_path / "start"
    )
    assert all(bool(v.isfinite().all()) for v in weights(found).values())
    assert any(not torch.equal(weights(found)[k], v) for k, v in weights(start).items())


def test_mixed_texts_are_mixed_embeddings(texts: dict[str, Any]) -> None:
    from interfuse.distill.mix_kd import mix_inputs

    module = build(texts["teacher"][0], Ctx())
    ids = torch.tensor([[3, 4, 2, 0], [5, 2, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    share, first, second = torch.tensor([0.25, 1.0]), torch.tensor([0, 1]), torch.tensor([1, 0])
    found = mix_inputs(module, inputs, share, first, second)
    words = module.get_input_embeddings().weight  # type: ignore[operator]
    torch.testing.assert_close(found["inputs_embeds"][0, 0], 0.25 * words[3] + 0.75 * words[5])
    assert found["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    with torch.no_grad():
        torch.testing.assert_close(module(**found).logits[1], module(**inputs).logits[1])


def test_language_models(texts: dict[str, Any], tmp_path: Path) -> None:
    model = {"config": LLAMA, "task": "causal-lm", "tokenizer": texts["words"]}
    teacher = [apply("distill/none", student=model, **texts["given"], out=tmp_path / "teacher")]
    for head in ("linear", "mlp"):
        apply("distill/dhkd", student=model, teacher=teacher, **texts["given"], head=head, out=tmp_path / head)
    for slug in ("nd-kd", "mix-kd", "tgeo-kd", "kd3"):
        refused("input.type", slug, texts["given"]["data"], teacher[0], tmp_path / slug, model)


@pytest.mark.parametrize(
    ("slug", "extra"), [("nd-kd", {}), ("dhkd", {}), ("mix-kd", {}), ("tgeo-kd", {}), ("kd3", {"min_per_class": 20})]
)
def test_tables_of_numbers(tmp_path: Path, slug: str, extra: dict[str, Any]) -> None:
    wine = {"data": "sklearn:wine", "scale": 100.0}

    def net(width: int) -> nn.Module:
        with seeded(width):
            return nn.Sequential(nn.Linear(13, width), nn.ReLU(), nn.Linear(width, 3))

    given = {"data": wine, "batch_size": 32, "epochs": 2}
    teacher = apply("distill/none", student=net(12), **given, out=tmp_path / "teacher")
    found = apply(f"distill/{slug}", student=net(6), teacher=[teacher], **given, **extra, out=tmp_path / "out")
    assert all(bool(v.isfinite().all()) for v in weights(found).values())
    assert build(found, Ctx()).eval()(torch.zeros(2, 13)).shape == (2, 3)
