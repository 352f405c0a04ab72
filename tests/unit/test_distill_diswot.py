"""DisWOT: worked numbers, invariants, search, budget, refusals, and the ranking of 64 published students."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import Source, apply, load_room, prepare
from interfuse.data.models import Model
from interfuse.data.seeding import seeded
from interfuse.data.tables import Table, open_table
from interfuse.distill.diswot import DisWOT
from interfuse.kit.architecture_scores import (
    cka_score,
    kd_score,
    nwot_score,
    probe,
    relation_score,
    semantic_score,
    synflow_score,
)
from interfuse.kit.feature_losses import inter_channel_correlation
from interfuse.kit.search import aging_evolution, grid
from interfuse.kit.threads import threads_for
from tests.oracles import distill_papers_b_oracle as oracle

TRUTH = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "diswot-s1" / "s1-gt-kd.txt"
STUDENT = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
           "layer_type": "basic", "downsample_in_first_stage": False, "num_labels": 10}  # fmt: skip
SPACE = {"depths": [[1, 1], [1, 2], [2, 2]], "hidden_sizes": [[4, 8], [8, 16]]}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads_for(1):
        yield


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


# -- scores ----------------------------------------------------------------------------------------------------------


def test_relation_worked_numbers() -> None:
    assert relation_score(torch.eye(2), torch.ones(2, 2)) == pytest.approx(-0.292893, abs=1e-6)
    assert relation_score(torch.eye(2), torch.diag(torch.tensor([2.0, 5.0]))) == pytest.approx(0, abs=1e-12)


def test_semantic_worked_numbers() -> None:
    assert semantic_score(rows((1, 2)), rows((2, 1))) == pytest.approx(-0.4, abs=1e-12)
    assert semantic_score(rows((1, 2)), rows((1, 2))) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(2, 6), st.booleans())
def test_scores_are_the_oracles(seed: int, classes: int, width: int, zeros: bool) -> None:
    t, s = random_pair(classes, width, seed=seed)
    if zeros:
        t[0, 0] = s[0, -1] = 0
        s[-1] = 0
    assert semantic_score(t, s) == pytest.approx(oracle.semantic(t.numpy(), s.numpy()), abs=1e-9)
    f, g = random_pair(width, 3, 2, seed=seed)
    found = relation_score(f, g)
    assert found == pytest.approx(oracle.relation(f.flatten(1).numpy(), g.flatten(1).numpy()), abs=1e-9)


@given(st.integers(0, 1000))
def test_score_invariants(seed: int) -> None:
    """The order of a batch, a rotation of the student's features, a positive scale of gradients: nothing changes."""
    f, g = random_pair(6, 5, seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    turned = g @ torch.linalg.qr(random_pair(5, 5, seed=seed + 1)[0]).Q
    assert relation_score(f[order], g[order]) == pytest.approx(relation_score(f, g), abs=1e-12)
    assert relation_score(f, turned) == pytest.approx(relation_score(f, g), abs=1e-9)
    assert semantic_score(3 * f, 0.1 * g) == pytest.approx(semantic_score(f, g), abs=1e-12)
    assert semantic_score(f, g) <= 0 and relation_score(f, g) <= 0  # noqa: PT018


def test_semantic_of_unlike_widths_and_of_classes_without_gradient() -> None:
    t, s = random_pair(4, 5)
    wide = torch.cat([s, torch.zeros(4, 3, dtype=torch.float64)], dim=1)
    assert semantic_score(t, wide) == semantic_score(t, s, relation="class")
    with pytest.raises(InterfuseError) as caught:
        semantic_score(t, wide, relation="channel")
    assert caught.value.code == "input.shape"
    t[1] = s[1] = 0
    assert semantic_score(t, s, zero_rows="skip") == pytest.approx(semantic_score(t, s) * 4 / 3)
    assert semantic_score(0 * t, s, zero_rows="skip") == 0


@given(st.integers(0, 100))
def test_channel_correlation_is_the_oracles(seed: int) -> None:
    f, g = random_pair(3, 4, 2, 2, seed=seed)
    ours = inter_channel_correlation(g, f)
    np.testing.assert_allclose(ours.numpy(), [oracle.icc(t, s) for t, s in zip(f.numpy(), g.numpy(), strict=True)])
    tokens = inter_channel_correlation(g.flatten(2).transpose(1, 2), f.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens, ours)


@pytest.mark.parametrize("places", [1, 2])
def test_channel_correlation_of_many_channels_never_builds_their_table(places: int) -> None:
    f, g = random_pair(3, 12, places, places, seed=places)
    g[1, 4] = 0  # a channel that is silent on one side
    ours = inter_channel_correlation(g.requires_grad_(), f)
    np.testing.assert_allclose(
        ours.detach().numpy(), [oracle.icc(t, s) for t, s in zip(f.numpy(), g.detach().numpy(), strict=True)], rtol=1e-9
    )
    assert bool(torch.autograd.grad(ours.sum(), g)[0].isfinite().all())
    assert float(inter_channel_correlation(f, f).max()) == pytest.approx(0, abs=1e-12)
    half, other = g.detach().float().requires_grad_(), f.float().clone()
    other[1, 4] = 0  # silent on both sides, in single precision
    said = inter_channel_correlation(half, other)
    torch.testing.assert_close(said[0].double(), ours[0].detach(), rtol=1e-4, atol=1e-5)
    assert bool(torch.autograd.grad(said.sum(), half)[0].isfinite().all())


def small_net(seed: int, width: int = 8, classes: int = 3) -> nn.Module:
    with seeded(seed):
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, width), nn.ReLU(), nn.Linear(width, classes))


def test_probe_gives_the_classifiers_gradient_and_leaves_no_trace() -> None:
    net, (x, _), y = small_net(0).double(), random_pair(5, 4), torch.tensor([0, 1, 2, 0, 1])
    seen = probe(net, lambda m: m(x), y, layer="3")
    hidden = net[:4](x).detach()  # type: ignore[index]
    error = net(x).softmax(1).detach() - torch.eye(3, dtype=torch.float64)[y]
    torch.testing.assert_close(seen.gradient, error.T @ hidden / 5)
    torch.testing.assert_close(seen.features, hidden)
    assert all(p.grad is None for p in net.parameters())
    again = probe(net, lambda m: m(x), y, layer="3")
    assert torch.equal(again.gradient, seen.gradient), "a gradient was added to the last one"
    assert relation_score(seen.features, again.features) == pytest.approx(0, abs=1e-12)
    assert semantic_score(seen.gradient, again.gradient) == pytest.approx(0, abs=1e-12)
    assert kd_score(seen, again) == pytest.approx(0, abs=1e-12)
    assert cka_score(seen, again) == pytest.approx(1)


def test_probe_refuses() -> None:
    net, (x, _) = small_net(0).double(), random_pair(5, 4)
    for labels, forward in ((torch.tensor([0]), lambda m: m(x[:1])), (torch.tensor([0, 3, 1, 1, 2]), lambda m: m(x))):
        with pytest.raises(InterfuseError) as caught:
            probe(net, forward, labels, layer="3")
        assert caught.value.code == "input.shape"
    with pytest.raises(InterfuseError) as caught:
        probe(nn.Conv2d(1, 2, 1), lambda m: m(x), torch.tensor([0, 1]))
    assert caught.value.code == "needs.capability"


def test_plain_proxies_by_hand() -> None:
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[2].weight.copy_(torch.tensor([[2.0, -3.0]]))
    # two inputs of opposite sign never agree on a unit: K = 2 I, log det = 2 log 2
    assert nwot_score(net, lambda m: m(torch.tensor([[1.0], [-1.0]]))) == pytest.approx(2 * np.log(2))
    # with positive weights R = 2 + 3 = 5, and every layer's weights share it: 5 + 5
    assert synflow_score(net, lambda m: m(torch.ones(1, 1, dtype=torch.float64))) == pytest.approx(np.log(10))
    assert net[2].weight[0, 1].item() == -3.0
    assert nwot_score(nn.Sequential(nn.Linear(1, 1), nn.GELU()), lambda m: m(torch.ones(2, 1))) is None


# -- search ----------------------------------------------------------------------------------------------------------


def test_evolution_finds_the_top_of_a_hill_and_keeps_its_promises() -> None:
    sizes, asked = (10, 10, 10), []

    def score(c: tuple[int, ...]) -> float:
        asked.append(c)
        return -sum((v - 7) ** 2 for v in c)

    def allowed(c: tuple[int, ...]) -> bool:
        return c[0] <= 6

    found = aging_evolution(score, allowed, sizes, np.random.default_rng(0), evaluations=250)
    assert len(asked) == len(set(asked)) == len(found) <= 250
    assert all(allowed(c) for c, _ in found)
    best = max(found, key=lambda row: row[1])
    random_best = max(-sum((v - 7) ** 2 for v in c) for c, _ in found[:20])
    assert best[1] > random_best and best[0] == (6, 7, 7)  # noqa: PT018
    again = aging_evolution(score, allowed, sizes, np.random.default_rng(0), evaluations=250)
    assert again == found
    with pytest.raises(InterfuseError) as caught:
        aging_evolution(score, lambda c: False, sizes, np.random.default_rng(0))
    assert caught.value.code == "param.value"
    assert len(list(grid((2, 3)))) == 6


# -- the method ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Table:
    return open_table(Source({"from": {"data": "sklearn:digits", "split": {"train": 0.05}}, "take": "train"}), Ctx())


def given_(digits: Table, **more: Any) -> dict[str, Any]:
    teacher = {"config": {**STUDENT, "hidden_sizes": [16, 16], "depths": [2, 2]}}
    return {"teacher": [teacher], "student": {"config": STUDENT}, "data": digits, "space": SPACE, "inits": 2, "score_batch": 16,
            "epochs": 1, **more}  # fmt: skip


def ranking(digits: Table, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    call = prepare(load_room("distill"), load("distill/diswot"), given_(digits, **more), Ctx(seed=seed))
    hooks = load_room("distill").run.__globals__["_hooks"](call)
    found: list[dict[str, Any]] = hooks.rank(call)
    return found


def test_the_best_is_trained_and_everything_is_written(digits: Table, tmp_path: Path) -> None:
    model = apply("distill/diswot", **given_(digits), out=tmp_path / "a")
    assert isinstance(model, Model)
    assert model.path is not None
    with (model.path / "ranking.csv").open() as file:
        table = list(csv.DictReader(file))
    scores = [float(r["score"]) for r in table]
    assert len(table) == 6
    assert scores == sorted(scores, reverse=True)
    assert table[0]["depths"] == str(list(model.config["depths"])), "another student than the best was trained"
    chosen = yaml.safe_load((model.path / "student.yaml").read_text())
    again = apply("distill/none", student=chosen, data=digits, epochs=1, out=tmp_path / "b")
    assert again.config["hidden_sizes"] == model.config["hidden_sizes"]
    said = json.loads((model.path / "interfuse.json").read_text())["facts"]["search"]
    assert said["candidates"] == said["scored"] == 6
    for row in said["ranking"]:
        assert row["score"] == pytest.approx(row["semantic"] + row["relation"])
        assert row["flops"] > 0 and row["sd"] >= 0  # noqa: PT018


def test_the_ranking_depends_on_the_seed_alone(digits: Table) -> None:
    assert ranking(digits) == ranking(digits)
    assert ranking(digits) != ranking(digits, seed=1)


def test_a_student_like_the_teacher_scores_zero(digits: Table) -> None:
    """The same configuration from the same initial weights."""
    [row] = ranking(digits, teacher=[{"config": STUDENT}], space={"depths": [[1, 1]]})
    assert row["score"] == pytest.approx(0, abs=1e-9)
    assert row["cka"] == pytest.approx(1)


def test_budgets(digits: Table) -> None:
    free = ranking(digits)
    sizes = sorted(row["parameters"] for row in free)
    assert [r["config"] for r in ranking(digits, max_parameters=sizes[2])] == [
        r["config"] for r in free if r["parameters"] <= sizes[2]
    ]
    work = sorted(row["flops"] for row in free)
    assert [r["config"] for r in ranking(digits, max_flops=work[2])] == [r["config"] for r in free if r["flops"] <= work[2]]  # fmt: skip
    with pytest.raises(InterfuseError) as caught:
        ranking(digits, max_parameters=10)
    assert caught.value.code == "param.value"
    assert str(sizes[0]) in str(caught.value)


def test_evolution_ranks_and_gaussian_weights_and_a_plain_teacher(digits: Table) -> None:
    evolved = ranking(digits, exhaustive=2, evaluations=4)
    assert len(evolved) == 4
    by_rank = ranking(digits, combine="ranks")
    assert sorted(r["score"] for r in by_rank)[-1] <= 0
    assert ranking(digits, init="gaussian") != ranking(digits)
    with seeded(0):
        teacher = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 12), nn.ReLU()), nn.Linear(12, 10))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    assert len(ranking(digits, teacher=[teacher])) == 6
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


@pytest.mark.parametrize(
    "more, code",
    [({"space": {"depth": [[1, 1]]}}, "param.value"), ({"space": {"depths": []}}, "param.value"), ({"space": {}}, "param.value"),
     ({"student": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}, "param.value"), ({"score_batch": 1}, "param.value")],
)  # fmt: skip
def test_refusals(more: dict[str, Any], code: str, digits: Table) -> None:
    with pytest.raises(InterfuseError) as caught:
        ranking(digits, **more)
    assert caught.value.code == code


def test_one_example_is_refused(digits: Table) -> None:
    one = open_table(
        Source({"from": {"data": "sklearn:digits", "split": {"train": 0.05}}, "take": "train", "limit": 1}), Ctx()
    )
    with pytest.raises(InterfuseError) as caught:
        ranking(one)
    assert caught.value.code == "input.shape"


def test_the_similarities_as_losses_fall(digits: Table, tmp_path: Path) -> None:
    model = apply(
        "distill/diswot",
        **given_(digits, space={"depths": [[1, 1]]}, epochs=6, lr=5e-3, sp=30.0, ickd=2.5),
        out=tmp_path / "a",
    )
    assert model.path is not None
    with (model.path / "training.csv").open() as file:
        first, *_, last = csv.DictReader(file)
    assert float(last["raw/sp"]) < float(first["raw/sp"])
    assert float(last["raw/ickd"]) < float(first["raw/ickd"])


# -- 64 published students -------------------------------------------------------------------------------------------


class Basic(nn.Module):
    """A residual block of two 3x3 convolutions with a projection where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer))
        short = [nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)]
        self.short = nn.Identity() if stride == 1 and inner == outer else nn.Sequential(*short)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(self.one(x)) + self.short(x))


def cifar_resnet(depths: tuple[int, ...]) -> nn.Sequential:
    widths = (16, 16, 32, 64)
    stages = [
        nn.Sequential(*(Basic(widths[i] if j == 0 else widths[i + 1], widths[i + 1], 2 if i and not j else 1) for j in range(n)))
        for i, n in enumerate(depths)
    ]  # fmt: skip
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 100))
    return nn.Sequential(stem, *stages, pool)


def photo_crops(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Crops of two photographs, 32 x 32; the class is the picture and one of its 50 regions."""
    from sklearn.datasets import load_sample_images

    rng, images, labels = np.random.default_rng(seed), [], []
    photos = load_sample_images().images
    for _ in range(count):
        number, row, column = int(rng.integers(2)), int(rng.integers(5)), int(rng.integers(10))
        height, width = photos[number].shape[0] // 5, photos[number].shape[1] // 10
        top, left = row * height + int(rng.integers(height - 32)), column * width + int(rng.integers(width - 32))
        crop = photos[number][top : top + 32, left : left + 32] / 255.0
        images.append((crop - crop.mean((0, 1))) / (crop.std((0, 1)) + 1e-3))
        labels.append(50 * number + 10 * row + column)
    return torch.tensor(np.stack(images), dtype=torch.float32).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


@pytest.mark.slow
def test_ranking_of_published_students() -> None:
    """The scores order 64 CIFAR ResNets by their distilled accuracy far better than chance, though not better than their size."""
    if not TRUTH.is_file():
        pytest.skip("the published accuracies (shared/data/diswot-s1 beside the repository) are not here")
    truth = {
        key: float(value) for key, value in (line.split() for line in TRUTH.read_text().splitlines() if line.strip())
    }
    assert len(truth) == 64
    x, y = photo_crops(64, 0)
    with seeded(0):
        teacher = probe(cifar_resnet((9, 9, 9)), lambda m: m(x), y, layer="3")
    found: dict[str, list[float]] = {"semantic": [], "relation": [], "both": [], "size": []}
    for key in truth:
        with seeded(0):
            net = cifar_resnet(tuple(int(c) for c in key))
        seen = probe(net, lambda m: m(x), y, layer="3")
        semantic, relation = (
            semantic_score(teacher.gradient, seen.gradient),
            relation_score(teacher.features, seen.features),
        )
        sizes = float(sum(p.numel() for p in net.parameters()))
        for name, value in (
            ("semantic", semantic),
            ("relation", relation),
            ("both", semantic + relation),
            ("size", sizes),
        ):
            found[name].append(value)
    tau = {name: stats.kendalltau(values, list(truth.values())) for name, values in found.items()}
    assert tau["size"].statistic == pytest.approx(0.873, abs=5e-4)
    assert tau["both"].statistic > 0.3
    assert tau["both"].pvalue < 1e-3
    assert stats.spearmanr(found["both"], list(truth.values())).statistic > 0.4
    best = list(truth)[int(np.argmax(found["both"]))]
    better = sum(value > truth[best] for value in truth.values())
    assert better < 32, "the chosen student is worse than half of them"


def test_settings_have_the_cards_defaults() -> None:
    hooks = DisWOT(space=SPACE)
    assert (hooks.inits, hooks.score_batch, hooks.exhaustive, hooks.evaluations) == (3, 64, 500, 1000)
    assert hooks.init == "default"
    assert hooks.zero_rows == "keep"
