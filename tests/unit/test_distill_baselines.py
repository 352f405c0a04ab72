"""The classical distillations: parity through their terms, what they train, how layers are named and paired, what is refused."""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import apply, load_room, prepare
from interfuse.distill.crd import CRD, Memory
from interfuse.distill.hooks import Batch, Hooks, Run, Views, per_position
from interfuse.distill.reviewkd import Fusion, hierarchical_context
from interfuse.kit import nets
from interfuse.kit.feature_losses import info_nce
from tests.oracles.distill_baselines_oracle import crd_loss
from tests.oracles.seen import Seen
from tests.unit.test_distill_inputs import Mixer
from tests.unit.test_losses import F_S, F_T, F_T_SMALL, V_S, V_T, V_T_WIDE, S, T, Y, close, wave

FEATURES = ("fitnets", "at", "sp", "rkd", "crd", "reviewkd")
LOGITS = ("dkd", "dist", "logit-standardisation", "dml")


def hooks_of(slug: str, **values: Any) -> Hooks:
    """The method of a slug with its own parameters."""
    made: Hooks = load(f"distill/{slug}").target(**values)
    return made


def run_of(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], rows: int = 6) -> Run:
    """A run that knows the shapes of features and nothing else."""
    shapes = ({k: tuple(v.shape[1:]) for k, v in side.items()} for side in (student, teacher))
    run = Run(*cast(Any, [None] * 9 + [torch.arange(rows) % 3, torch.device("cpu")]))
    run.ctx, run.data = Ctx(), cast(Any, range(rows))
    run.student_shapes, run.teacher_shapes = next(shapes), [next(shapes)]
    return run


def views_of(student: Tensor, *teachers: Tensor, labels: Tensor | None = None, features: Any = None, theirs: Any = None) -> Views:  # fmt: skip
    batch = Batch(np.arange(len(student)), {}, [], labels)
    return Views(batch, student, list(teachers), features or {}, [theirs or {}])


def to_identity(projector: nn.Module) -> None:
    """A projector that changes nothing, in float64."""
    assert isinstance(projector, nets.Projector)
    nn.init.eye_(projector.double().linear.weight)
    nn.init.zeros_(projector.linear.bias)


# -- parity: the reference implementations' numbers, through the methods' terms ------------------------------------------


@pytest.mark.parametrize(
    ("slug", "values", "expected"),
    [
        # mdistiller a08d46f dkd_loss, tau 4
        ("dkd", {}, {"tckd": 0.292116210469, "nckd": 1.972671820828}),
        # torchdistill 3e4373c DISTLoss
        ("dist", {}, {"inter": 0.814767715546, "intra": 0.500392839126}),
        # logit-standardization-KD f6e5aa5 kd_loss, temperature 2
        ("logit-standardisation", {}, {"kd": 0.760879433449}),
        # RepDistiller b84f547 DistillKL, T 1, one way; the other way is distillm's reverse_kl
        ("dml", {}, {"kl": 1.271630558085, "kl_peer_1": 0.947613831353}),
    ],
)
def test_logit_methods_give_the_reference_numbers(slug: str, values: Any, expected: dict[str, float]) -> None:
    terms = hooks_of(slug, **values).terms(run_of({}, {}), views_of(S, T, labels=Y))
    for name, number in expected.items():
        close(terms[name].mean(), number, 2e-7)
    assert set(terms) == {*expected, *(n for n in terms if n.startswith("ce"))}
    torch.testing.assert_close(terms["ce"], nn.functional.cross_entropy(S, Y, reduction="none"))


@pytest.mark.parametrize(
    ("slug", "student", "teacher", "expected"),
    [
        ("fitnets", V_S, V_T_WIDE, {"hint": 4.181393840321}),  # RepDistiller HintLoss
        ("at", F_S, F_T, {"at": 0.002423814629}),  # RepDistiller Attention
        ("at", F_S, F_T_SMALL, {"at": 0.012460044375}),
        ("sp", F_S, F_T, {"sp": 0.247643151018}),  # RepDistiller Similarity
        ("rkd", V_S, V_T, {"distance": 0.191544102845, "angle": 0.145055503853}),  # mdistiller rkd_loss
    ],
)
def test_feature_methods_give_the_reference_numbers(slug: str, student: Tensor, teacher: Tensor, expected: dict[str, float]) -> None:  # fmt: skip
    run = run_of({"a": student}, {"b": teacher})
    method = hooks_of(slug, student_layers=["a"], teacher_layers=["b"], label_weight=0.0)
    method.setup(run)
    for module in run.modules.values():
        to_identity(module)
    terms = method.terms(run, views_of(student, teacher, features={"a": student}, theirs={"b": teacher}))
    assert set(terms) == set(expected)
    for name, number in expected.items():
        close(terms[name].mean(), number, 2e-7)


def test_stages_are_summed() -> None:
    method = hooks_of("at", student_layers=["a", "c"], teacher_layers=["b", "d"], label_weight=0.0)
    mine, theirs = {"a": F_S, "c": F_S}, {"b": F_T, "d": F_T_SMALL}
    terms = method.terms(run_of(mine, theirs), views_of(F_S, F_T, features=mine, theirs=theirs))
    close(terms["at"].mean(), 0.002423814629 + 0.012460044375, 2e-7)


@pytest.mark.parametrize(("tau", "number"), [(0.07, 24.906948314059), (0.5, 4.970625673415)])
@pytest.mark.parametrize("gathered", [False, True])
def test_crd_with_a_memory_gives_the_reference_number(tau: float, number: float, gathered: bool) -> None:
    """RepDistiller b84f547 CRDLoss: its first batch, its constants, and its memory afterwards."""
    student, teacher = wave(0.7, 3, 4), wave(1.3, 3, 4)
    run = run_of({"a": student}, {"b": teacher})
    method = CRD(dim=4, count=3, tau=tau, label_weight=0.0, student_layers=["a"], teacher_layers=["b"])
    method.setup(run)
    for side in ("student", "teacher"):
        to_identity(run.modules[f"embed_{side}"])
    memory = run.modules["memory"].double()
    assert isinstance(memory, Memory)
    memory.student.copy_(wave(0.9, 6, 4) / 2)
    memory.teacher.copy_(wave(0.4, 6, 4) / 2)
    views = views_of(student, teacher, features={"a": student}, theirs={"b": teacher})
    views.batch.positions = np.array([0, 3, 5])
    drawn = torch.tensor([[1, 2, 4], [0, 1, 5], [2, 2, 4]])
    if not gathered:  # more draws than rows: one product with the whole memory, the same scores
        drawn = drawn.repeat(1, 2)
    views.batch.extra["negatives"] = drawn
    loss = method.terms(run, views)["crd"].mean()
    if gathered:
        close(loss, number, 1e-9)
        close(memory.constants[0 if tau == 0.5 else 1], {0.5: 37.840194826330, 0.07: 873322086.257991}[tau], 1e-6)
    else:
        assert loss.item() > number
    method.after_step(run)
    close(memory.student.sum(), -0.163819797909721, 1e-12)
    close(memory.teacher.sum(), 4.039025835640291, 1e-12)
    assert not memory.pending


def test_the_two_ways_to_score_a_memory_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    crd: Any = importlib.import_module("interfuse.distill.crd")
    bank, anchor = wave(0.9, 6, 4), wave(0.7, 3, 4)
    few = torch.tensor([[1, 2, 4], [0, 1, 5], [2, 2, 4]])
    anchors, banks = torch.stack([anchor, 2 - anchor]), (bank, 1 - bank)
    products = crd._similarity(anchors, *banks, few)
    monkeypatch.setattr(crd, "PRODUCTS", 0)
    close((crd._similarity(anchors, *banks, few) - products).abs().max(), 0.0, 1e-14)


def test_a_memory_is_multiplied_where_rows_drawn_from_it_would_fill_more_room() -> None:
    """128 numbers a row: 64 x 100 drawn rows of a memory of 1,000 would be 3 MB a side, all products are 0.3 MB."""
    crd: Any = importlib.import_module("interfuse.distill.crd")
    anchors, bank = torch.randn(2, 64, 128, requires_grad=True), torch.randn(1000, 128)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        crd._similarity(anchors, bank, bank, torch.randint(0, 1000, (64, 100)))
    assert max(kept) < 64 * 100 * 128


def test_crd_in_the_batch_is_info_nce_both_ways() -> None:
    from interfuse.kit.feature_losses import info_nce

    student, teacher, labels = wave(0.7, 4, 4), wave(1.3, 4, 4), torch.tensor([0, 1, 0, 2])
    run = run_of({"a": student}, {"b": teacher})
    method = CRD(dim=4, negatives="in-batch", label_weight=0.0, student_layers=["a"], teacher_layers=["b"])
    method.setup(run)
    assert "memory" not in run.modules
    s, t = (run.modules[f"embed_{k}"].double()(x) for k, x in (("student", student), ("teacher", teacher)))
    views = views_of(student, teacher, labels=labels, features={"a": student}, theirs={"b": teacher})
    expected = info_nce(s, t, tau=0.07, classes=labels) + info_nce(t, s, tau=0.07, classes=labels)
    torch.testing.assert_close(method.terms(run, views)["crd"], expected)


def test_crd_in_the_batch_is_cross_entropy_over_similarities() -> None:
    """As the reference implementations of contrast within a batch write it: every row of ``s t' / tau`` finds its own column, both ways."""
    student, teacher = wave(0.7, 5, 4), wave(1.3, 5, 4)
    run = run_of({"a": student}, {"b": teacher})
    method = CRD(negatives="in-batch", dim=4, label_weight=0.0, student_layers=["a"], teacher_layers=["b"])
    method.setup(run)
    for module in run.modules.values():
        to_identity(module)
    views = views_of(student, teacher, labels=torch.arange(5), features={"a": student}, theirs={"b": teacher})
    s, t = (torch.nn.functional.normalize(x, dim=1) for x in (student, teacher))
    logits, own = s @ t.T / 0.07, torch.arange(5)
    expected = torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)
    torch.testing.assert_close(method.terms(run, views)["crd"].mean(), expected)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 1, 0, 2]])
def test_crd_in_the_batch_agrees_with_its_oracle(labels: list[int]) -> None:
    """Sums over the other examples of other classes, anchor by anchor."""
    student, teacher = wave(0.7, 4, 4), wave(1.3, 4, 4)
    run = run_of({"a": student}, {"b": teacher})
    method = CRD(negatives="in-batch", dim=4, student_layers=["a"], teacher_layers=["b"])
    method.setup(run)
    parameters = {}
    for name, module in run.modules.items():
        module.double()
        parameters[name] = {n: p.detach().numpy() for n, p in module.named_parameters()}
    views = views_of(student, teacher, labels=torch.tensor(labels), features={"a": student}, theirs={"b": teacher})
    seen = Seen(np.arange(4), student.numpy(), [teacher.numpy()], np.array(labels), features={"a": student.numpy()},
                teacher_features=[{"b": teacher.numpy()}], modules=parameters)  # fmt: skip
    expected = crd_loss(seen, weight=0.8, tau=0.07, negatives="in-batch", label_weight=1.0)
    torch.testing.assert_close(
        0.8 * method.terms(run, views)["crd"], torch.from_numpy(expected["crd"]), rtol=1e-9, atol=1e-9
    )


REVIEWED = [wave(0.7, 4, 3, 4, 4), wave(0.5, 4, 6, 2, 2), wave(0.3, 4, 6)]
REVIEW = [wave(1.3, 4, 5, 8, 8), wave(1.1, 4, 7, 2, 2), wave(0.8, 4, 8)]


def test_reviewkd_gives_the_reference_number() -> None:
    """mdistiller a08d46f: ABF with weights from sines, hcl_loss over three stages, the last a pooled vector."""
    mine, theirs = (dict(zip("abc", x, strict=True)) for x in (REVIEWED, REVIEW))
    run = run_of(mine, theirs)
    method = hooks_of("reviewkd", student_layers=[*"abc"], teacher_layers=[*"abc"], label_weight=0.0)
    method.setup(run)
    for k in range(3):
        module = run.modules[f"fusion_{k + 1}"].double()
        assert isinstance(module, Fusion)
        order = [*module.reduce.parameters(), *module.expand.parameters()]
        order += [] if module.attention is None else [*module.attention.parameters()]
        for i, p in enumerate(order):
            p.data.copy_(wave(0.31 + 0.1 * k + 0.07 * i, *p.shape) / 2)
    terms = method.terms(run, views_of(REVIEWED[2], REVIEW[2], features=mine, theirs=theirs))
    close(terms["review"].mean(), 4.933829293231, 1e-9)


def test_hierarchical_context_gives_the_reference_number() -> None:
    close(hierarchical_context(wave(0.7, 4, 3, 8, 8), wave(1.3, 4, 3, 8, 8)).mean(), 2.689116874124, 1e-9)
    one = hierarchical_context(torch.ones(2, 3, 1, 1), torch.zeros(2, 3, 1, 1))
    assert one.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 2, 6, 5), (2, 2, 2, 2), (2, 3, 1, 1)])
def test_gradient_of_the_hierarchical_context(shape: tuple[int, ...]) -> None:
    """Levels that are averages of each other, levels that are not, few and none."""
    maps = [wave(0.7, *shape).requires_grad_(), wave(1.3, *shape).requires_grad_()]
    assert torch.autograd.gradcheck(hierarchical_context, maps)


# -- weights ------------------------------------------------------------------------------------------------------------


def test_published_weights() -> None:
    run, views = run_of({}, {}), views_of(S, T, T, labels=Y)
    expected = {
        "fitnets": {"hint": 100, "ce": 1}, "at": {"at": 1000, "ce": 1}, "sp": {"sp": 3000, "ce": 1},
        "rkd": {"distance": 25, "angle": 50, "ce": 1}, "crd": {"crd": 0.8, "ce": 1}, "dist": {"inter": 1, "intra": 1, "ce": 1},
        "logit-standardisation": {"kd": 9, "ce": 0.1}, "dml": {"kl": 1, "kl_peer_1": 1, "kl_peer_2": 1},
    }  # fmt: skip
    for slug, weights in expected.items():
        assert hooks_of(slug).weights(run, views) == weights, slug


@pytest.mark.parametrize(("slug", "name", "full"), [("dkd", "nckd", 8.0), ("dkd", "tckd", 1.0), ("reviewkd", "review", 1.0)])  # fmt: skip
def test_distillation_grows_over_the_first_epochs(slug: str, name: str, full: float) -> None:
    run, views, grown = run_of({}, {}), views_of(S, T, labels=Y), []
    for run.epoch in (0, 9, 19, 40):
        weights = hooks_of(slug).weights(run, views)
        grown.append(weights[name])
        assert weights["ce"] == 1.0
    assert grown == pytest.approx([full / 20, full / 2, full, full])
    assert hooks_of(slug, warmup_epochs=0).weights(run, views)[name] == full


# -- language models ----------------------------------------------------------------------------------------------------


def test_dist_takes_every_token_that_counts_as_a_sample() -> None:
    student, teacher = wave(0.7, 2, 2, 5), wave(1.3, 2, 2, 5)
    labels = torch.tensor([[0, 3], [1, -100]])
    method = hooks_of("dist")
    terms = method.terms(run_of({}, {}), views_of(student, teacher, labels=labels))
    flat = method.terms(run_of({}, {}), views_of(student.flatten(0, 1)[:3], teacher.flatten(0, 1)[:3], labels=labels.flatten()[:3]))  # fmt: skip
    for name in ("inter", "intra"):
        torch.testing.assert_close(terms[name].flatten()[:3], flat[name])
        assert terms[name][1, 1].item() == 0.0


def test_a_loss_per_text_weighs_the_same_at_every_position() -> None:
    views = views_of(wave(0.7, 2, 3, 5), labels=torch.zeros(2, 3, dtype=torch.int64))
    assert per_position(torch.tensor([1.0, 2.0]), views).tolist() == [[1.0] * 3, [2.0] * 3]
    assert per_position(torch.tensor([1.0, 2.0]), views_of(S, labels=Y)).tolist() == [1.0, 2.0]


# -- the memory of crd --------------------------------------------------------------------------------------------------


def test_negatives_are_of_other_classes_and_evenly_drawn() -> None:
    classes = torch.tensor([2, 0, 2, 1, 0, 2])
    memory = Memory(classes, 4, torch.Generator().manual_seed(0))
    rows = torch.arange(6)
    drawn = torch.cat([memory.draw(rows, 6, torch.Generator().manual_seed(k)) for k in range(500)], dim=1)
    for row in range(6):
        others = [j for j in range(6) if classes[j] != classes[row]]
        counts = torch.bincount(drawn[row], minlength=6)
        assert counts.nonzero().flatten().tolist() == others
        share = counts[others] / len(drawn[row])
        assert (share - 1 / len(others)).abs().max().item() < 4 * math.sqrt(0.25 / 3000)


def test_examples_of_one_class_are_refused_by_crd() -> None:
    with pytest.raises(InterfuseError) as refused:
        Memory(torch.zeros(5, dtype=torch.int64), 4, torch.Generator().manual_seed(0))
    assert refused.value.code == "input.shape"


# -- shapes and layers --------------------------------------------------------------------------------------------------

SHAPES = [(16, 4, 4), (32, 1, 1), (8, 8, 8), (17, 32), (16, 24), (18, 5)]


@pytest.mark.parametrize("out", [*SHAPES, (64,)])
@pytest.mark.parametrize("inner", SHAPES)
def test_projector_gives_the_other_shape(inner: tuple[int, ...], out: tuple[int, ...]) -> None:
    assert nets.Projector(inner, out)(torch.ones(3, *inner)).shape == (3, *out)


@pytest.mark.parametrize("out", SHAPES)
def test_a_vector_has_no_places(out: tuple[int, ...]) -> None:
    with pytest.raises(InterfuseError) as refused:
        nets.Projector((64,), out, where="head, stage")
    assert refused.value.code == "input.shape"
    assert "head, stage" in str(refused.value)


def test_tokens_that_are_no_square_are_refused_beside_a_map_but_not_beside_themselves() -> None:
    with pytest.raises(InterfuseError) as refused:
        nets.Projector((13, 8), (4, 4, 4))
    assert refused.value.code == "input.shape"
    assert nets.Projector((13, 8), (13, 4))(torch.ones(2, 9, 8)).shape == (2, 9, 4)  # texts of any length


def test_tokens_become_the_map_they_came_from() -> None:
    image = wave(0.7, 2, 3, 4, 4)
    tokens = nets.as_tokens(image)
    assert torch.equal(nets.as_map(tokens), image)
    assert torch.equal(nets.as_map(torch.cat([torch.zeros(2, 1, 3).double(), tokens], dim=1)), image)


def test_padding_is_not_seen() -> None:
    tokens, mask = torch.ones(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert nets.unpadded(tokens, {"attention_mask": mask}).sum(dim=(1, 2)).tolist() == [8.0, 4.0]
    assert nets.unpadded(tokens, {"pixel_values": mask}) is tokens


def test_a_batch_of_one_class_is_told_by_in_batch_crd() -> None:
    said: list[str] = []
    run = SimpleNamespace(held={}, ctx=SimpleNamespace(log=said.append))
    assert CRD._alone(run, torch.tensor([1, 0, 1])).tolist() == [False] * 3  # type: ignore[arg-type]
    assert not said
    for _ in range(2):
        assert CRD._alone(run, torch.tensor([1, 1])).tolist() == [True, True]  # type: ignore[arg-type]
    assert len(said) == 1
    assert "one class" in said[0]
    alone = info_nce(S, T, tau=0.1, classes=torch.zeros(len(S)))
    assert float(alone.abs().max()) < 1e-6  # which is why


def test_the_share_of_lone_anchors_is_logged(tmp_path: Path) -> None:
    apply("distill/crd", **given("convnext", "resnet", negatives="in-batch", epochs=1), out=tmp_path / "out", ctx=Ctx())
    with (tmp_path / "out" / "training.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["raw/alone"]) == 0.0
    assert float(row["weighted/alone"]) == 0.0


def test_layers_are_paired_in_order() -> None:
    assert nets.pair_layers(["a", "b"], ["x", "y"]) == [("a", "x"), ("b", "y")]
    assert nets.pair_layers(["a", "b"], ["w", "x", "y", "z"], auto=True) == [("a", "x"), ("b", "z")]
    with pytest.raises(InterfuseError) as refused:
        nets.pair_layers(["a", "b"], ["x"])
    assert refused.value.code == "param.value"
    assert "a, b" in str(refused.value)


# -- real trainings -----------------------------------------------------------------------------------------------------

VISION: dict[str, dict[str, Any]] = {
    "resnet": {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
               "layer_type": "basic", "downsample_in_first_stage": False, "num_labels": 10},
    "vit": {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10},
    "convnext": {"model_type": "convnext", "num_channels": 1, "patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16],
                 "depths": [1, 1], "image_size": 8, "num_labels": 10},
}  # fmt: skip
DIGITS = {"data": "sklearn:digits", "split": {"train": 0.04, "rest": 0.96}, "take": "train"}


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))  # fmt: skip


def given(student: Any, teacher: Any, **values: Any) -> dict[str, Any]:
    inputs = {"student": {"config": VISION[student]} if isinstance(student, str) else student,
              "teacher": {"config": VISION[teacher]} if isinstance(teacher, str) else teacher}  # fmt: skip
    return {**inputs, "data": DIGITS, "epochs": 2, "batch_size": 16, "lr": 3e-3, **values}


@pytest.mark.parametrize(("student", "teacher"), [("resnet", "vit"), ("vit", "convnext"), ("convnext", "resnet"), ("vit", "vit")])  # fmt: skip
@pytest.mark.parametrize("slug", [*FEATURES, *LOGITS])
def test_unlike_architectures(slug: str, student: str, teacher: str, tmp_path: Path) -> None:
    made = apply(f"distill/{slug}", **given(student, teacher), out=tmp_path / "out", ctx=Ctx())
    assert made.config["model_type"] == student
    rows = (tmp_path / "out" / "training.csv").read_text().splitlines()
    assert len(rows) == 3
    assert all(math.isfinite(float(x)) for row in rows[1:] for x in row.split(","))


@pytest.mark.parametrize(("student", "teacher"), [("mixer", "vit"), ("convnext", "mixer")])
@pytest.mark.parametrize("slug", FEATURES)
def test_a_mixer_learns_and_teaches_by_automatic_layers(slug: str, student: str, teacher: str, tmp_path: Path) -> None:
    sides = [Mixer(classes=10) if side == "mixer" else side for side in (student, teacher)]
    apply(f"distill/{slug}", **given(*sides), out=tmp_path / "out", ctx=Ctx())
    rows = (tmp_path / "out" / "training.csv").read_text().splitlines()
    assert all(math.isfinite(float(x)) for row in rows[1:] for x in row.split(","))


@pytest.mark.parametrize("slug", ["fitnets", "sp", "rkd", "crd", "reviewkd", *LOGITS])
def test_plain_modules(slug: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, teacher = mlp(12), mlp(24)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    apply(f"distill/{slug}", **given(student, teacher), out=tmp_path / "out", ctx=Ctx())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    ("slug", "values", "modules"),
    [
        ("fitnets", {}, {"regressor_1"}),
        ("crd", {}, {"embed_student", "embed_teacher", "memory"}),
        ("crd", {"negatives": "in-batch"}, {"embed_student", "embed_teacher"}),
        ("reviewkd", {}, {"fusion_1", "fusion_2", "fusion_3"}),
        ("dml", {}, {"peer_1"}),
    ],
)
def test_extra_modules_are_trained(slug: str, values: Any, modules: set[str]) -> None:
    engine: Any = importlib.import_module("interfuse.distill.room")
    call = prepare(load_room("distill"), load(f"distill/{slug}"), given("convnext", "resnet", **values), Ctx())
    hooks = engine._hooks(call)
    run = engine.start(call, hooks)
    assert set(run.modules) == modules
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in run.modules.items()}
    engine.train(run, hooks)
    for name, module in run.modules.items():
        still = [k for k, p in module.named_parameters() if torch.equal(p, before[name][k])]
        assert not still, f"{name}: {still} did not move"
    if "memory" in modules:
        memory = run.modules["memory"]
        assert isinstance(memory, Memory)
        rows = memory.student.norm(dim=1)
        torch.testing.assert_close(rows, torch.ones_like(rows))  # every example was seen and written
        assert not torch.equal(memory.teacher, before["memory"]["teacher"])


def test_peers_of_one_architecture_start_apart_and_learn_from_each_other() -> None:
    engine: Any = importlib.import_module("interfuse.distill.room")
    values = given("convnext", "convnext", epochs=12)
    losses = {}
    for weight in (0.0, 5.0):
        call = prepare(load_room("distill"), load("distill/dml"), {**values, "weight": weight}, Ctx())
        hooks = engine._hooks(call)
        run = engine.start(call, hooks)
        pairs = zip(run.student.named_parameters(), run.modules["peer_1"].parameters(), strict=True)
        drawn = [k for (k, a), b in pairs if a.ndim >= 2 and torch.equal(a, b)]
        assert not drawn, f"{drawn} start alike"
        losses[weight] = engine.train(run, hooks)[-1]
    assert losses[5.0]["raw/kl"] < losses[0.0]["raw/kl"]
    assert losses[5.0]["raw/kl_peer_1"] < losses[0.0]["raw/kl_peer_1"]


def test_the_hint_of_auto_is_the_middle_pair() -> None:
    engine: Any = importlib.import_module("interfuse.distill.room")
    deep = {**VISION["vit"], "num_hidden_layers": 4}
    call = prepare(load_room("distill"), load("distill/fitnets"), given({"config": deep}, {"config": deep}), Ctx())
    hooks = engine._hooks(call)
    run = engine.start(call, hooks)
    assert hooks._pairs(run) == [("vit.layers.1", "vit.layers.1")]
    assert run.student_shapes["vit.layers.1"] == (17, 16)


# -- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", FEATURES)
@pytest.mark.parametrize("side", ["student_layers", "teacher_layers"])
def test_a_pattern_that_matches_nothing_lists_close_names(slug: str, side: str, tmp_path: Path) -> None:
    with pytest.raises(InterfuseError) as refused:
        apply(f"distill/{slug}", **given("resnet", "resnet", **{side: ["resnet.encoder.stags.0"]}), out=tmp_path / "out", ctx=Ctx())  # fmt: skip
    assert refused.value.code == "param.value"
    assert "resnet.encoder.stages.0" in refused.value.fix


@pytest.mark.parametrize(
    ("slug", "student", "values"),
    [
        ("fitnets", "resnet", {"student_layers": ["penultimate"], "teacher_layers": ["resnet.encoder.stages.0"]}),
        ("at", "resnet", {"student_layers": ["penultimate"], "teacher_layers": ["resnet.encoder.stages.0"]}),
        ("at", mlp(8), {}),
        ("reviewkd", {"config": {**VISION["vit"], "image_size": [8, 6]}}, {}),
    ],
)
def test_features_that_cannot_be_aligned_are_refused(slug: str, student: Any, values: Any, tmp_path: Path) -> None:
    with pytest.raises(InterfuseError) as refused:
        apply(f"distill/{slug}", **given(student, "resnet", **values), out=tmp_path / "out", ctx=Ctx())
    assert refused.value.code == "input.shape"


def test_unequal_lists_of_layers_are_refused(tmp_path: Path) -> None:
    layers = {"student_layers": ["resnet.encoder.stages.*"], "teacher_layers": ["resnet.encoder.stages.0"]}
    with pytest.raises(InterfuseError) as refused:
        apply("distill/at", **given("resnet", "resnet", **layers), out=tmp_path / "out", ctx=Ctx())
    assert refused.value.code == "param.value"


@pytest.mark.parametrize(("slug", "label_weight"), [("sp", 1.0), ("dist", 1.0), ("dkd", 0.0)])
def test_labels_are_asked_for_where_they_are_used(slug: str, label_weight: float) -> None:
    assert hooks_of(slug, label_weight=label_weight).needs().labels


@pytest.mark.parametrize("slug", [*FEATURES, "dist", "logit-standardisation"])
def test_without_weight_on_labels_none_are_needed(slug: str, tmp_path: Path) -> None:
    method = hooks_of(slug, label_weight=0.0)
    assert not method.needs().labels
    unlabelled = {**DIGITS, "columns": {"image": "x"}}
    apply(f"distill/{slug}", **{**given("vit", "resnet", label_weight=0.0), "data": unlabelled}, out=tmp_path / "o", ctx=Ctx())  # fmt: skip
    assert "raw/ce" not in (tmp_path / "o" / "training.csv").read_text()


@pytest.mark.parametrize("slug", ["sp", "rkd", "crd", "dist", "reviewkd"])
def test_a_batch_of_one_is_refused_and_a_lone_last_example_left_out(slug: str, tmp_path: Path) -> None:
    with pytest.raises(InterfuseError) as refused:
        apply(f"distill/{slug}", **given("vit", "resnet", batch_size=1), out=tmp_path / "one", ctx=Ctx())
    assert refused.value.code == "param.value"
    rows = {"data": "sklearn:digits", "split": {"train": 17 / 1797, "rest": 1780 / 1797}, "take": "train"}
    made = given("vit", "resnet", epochs=1)
    apply(f"distill/{slug}", **{**made, "data": rows}, out=tmp_path / "out", ctx=Ctx())
    assert (tmp_path / "out" / "training.csv").is_file()


def test_a_star_stays_within_one_level() -> None:
    from interfuse.kit.taps import layer_names

    deep = nn.ModuleDict({"stages": nn.ModuleList([mlp(4), mlp(4)])})
    assert layer_names(deep, ["stages.*"]) == ["stages.0", "stages.1"]
    assert layer_names(deep, ["stages.1.*"]) == [f"stages.1.{i}" for i in range(6)]
