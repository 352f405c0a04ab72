"""Added losses, KDCL's targets, ratios of other papers, and teachers that give probabilities."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import apply
from interfuse.data.models import Model
from interfuse.data.tables import Table
from interfuse.distill.dhkd import giving_way
from interfuse.distill.kdcl import ensemble
from interfuse.distill.tgeo_kd import margin
from interfuse.kit.taps import Taps
from tests.distill_bars import CNN, TwoLayers, engine, log_of, made, refused, same, started, trained, weights
from tests.distill_bars import data as data
from tests.distill_bars import teacher as teacher

# -- compose -----------------------------------------------------------------------------------------------------------


def test_two_halves_are_the_whole(data: Table, teacher: Model, tmp_path: Path) -> None:
    """KD with half its weight, twice, is KD."""
    plain = {"optimizer": "sgd", "lr": 0.02}
    whole = trained("kd", data, teacher, tmp_path / "a", **plain)
    halves = trained(
        "compose",
        data,
        teacher,
        tmp_path / "b",
        parts=[{"use": "kd", "weight": 0.5}, {"use": "kd", "weight": 0.5}],
        **plain,
    )
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(halves)[name], value, rtol=1e-4, atol=1e-5)
    assert log_of(halves)[0]["weighted/kd-2:ce"] == pytest.approx(log_of(whole)[0]["weighted/ce"] / 2, rel=1e-4)


@pytest.mark.parametrize(
    "parts",
    [
        [{"use": "dist"}, {"use": "trg", "kd": 0, "ce": 0, "k": 3}],
        [{"use": "mix-kd", "alpha": 0, "gamma": 0}, {"use": "dist"}],
        [{"use": "mix-kd", "alpha": 0, "gamma": 0}, {"use": "ofa-kd", "cka": True}],
        [{"use": "crd", "count": 8}, {"use": "fitnets", "student_layers": ["stages.1"], "teacher_layers": ["stages.1"]}],
        [{"use": "nd-kd", "base": "none"}, {"use": "reviewkd", "label_weight": 0}],
        [{"use": "dhkd"}, {"use": "sp", "label_weight": 0, "student_layers": ["stages.1"], "teacher_layers": ["stages.1"]}],
        [{"use": "hard", "augmentor_steps": 1, "student_steps": 2}, {"use": "fitnets", "label_weight": 0, "student_layers": ["stages.1"], "teacher_layers": ["stages.1"]}],
        [{"use": "hard", "augmentor_steps": 1, "student_steps": 2}, {"use": "dhkd"}],
        [{"use": "tgeo-kd", "ratio": "margin"}, {"use": "dist", "label_weight": 0}],
        [{"use": "tgeo-kd", "val_fraction": 0.25}, {"use": "rkd", "label_weight": 0}],
        [{"use": "kd3", "min_per_class": 6}, {"use": "rkd", "label_weight": 0}],
        [{"use": "kd3", "min_per_class": 6}, {"use": "kd", "alpha": 1}],
    ],
    ids=lambda parts: "+".join(p["use"] for p in parts),
)  # fmt: skip
def test_terms_of_two_papers_train_together(
    parts: list[dict[str, Any]], data: Table, teacher: Model, tmp_path: Path
) -> None:
    found = trained("compose", data, teacher, tmp_path / "a", parts=parts)
    heads = {name.split("/")[1].split(":")[0] for name in log_of(found)[0] if ":" in name}
    assert heads == {p["use"] for p in parts}
    alone = trained(parts[1]["use"], data, teacher, tmp_path / "b", **{k: v for k, v in parts[1].items() if k != "use"})
    assert not same(weights(found), weights(alone))


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([{"use": "mix-kd"}, {"use": "nd-kd"}], "param.value"), ([{"use": "mix-kd"}, {"use": "tgeo-kd", "ratio": "losses"}], "param.value"), ([{"use": "compose", "parts": []}], "param.value"),
        ([{"use": "kd", "tua": 3}], "param.unknown"), ([{"kd": 1}], "param.missing"), ([{"use": "kd", "weight": -1}], "param.value"),
        ([{"use": "kb"}], "method.unknown"), ([], "param.value"), ([{"use": "trg"}, {"use": "dml"}], "param.value"),
        ([{"use": "kd3"}, {"use": "hard"}], "param.value"), ([{"use": "mix-kd"}, {"use": "tgeo-kd"}], "param.value"),
    ],
)  # fmt: skip
def test_parts_that_cannot_stand_together(
    parts: list[dict[str, Any]], code: str, data: Table, teacher: Model, tmp_path: Path
) -> None:
    refused(code, "compose", data, teacher, tmp_path / "a", parts=parts)


@pytest.mark.parametrize(
    ("part", "why", "instead"),
    [
        ({"use": "dhkd", "align": "backbone"}, "takes the gradients of all parameters apart", "align: features"),
        ({"use": "dhkd", "head": "main"}, "on one head", "another head"),
        ({"use": "diswot", "space": {"width": [1]}}, "chooses the student", "alone"), ({"use": "fantastic-gains"}, "saves something else", "alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_part_says_why_and_what_to_do(
    part: dict[str, Any], why: str, instead: str, data: Table, teacher: Model, tmp_path: Path
) -> None:
    with pytest.raises(InterfuseError) as caught:
        trained("compose", data, teacher, tmp_path / "a", parts=[part])
    assert caught.value.code == "param.value"
    assert why in caught.value.what
    assert instead in caught.value.fix


@pytest.mark.parametrize(
    ("slug", "given"), [("dhkd", {}), ("hard", {}), ("kd3", {"min_per_class": 6}), ("tgeo-kd", {"val_fraction": 0.25})]
)
def test_a_composition_of_one_part_is_that_part(
    slug: str, given: dict[str, Any], data: Table, teacher: Model, tmp_path: Path
) -> None:
    alone = trained(slug, data, teacher, tmp_path / "a", **given)
    composed = trained("compose", data, teacher, tmp_path / "b", parts=[{"use": slug, **given}])
    assert same(weights(alone), weights(composed))
    assert alone.path is not None
    assert composed.path is not None
    assert {f.name for f in alone.path.iterdir()} == {f.name for f in composed.path.iterdir()}


def test_a_step_looks_no_layers_up(data: Table, teacher: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of layers are found by going through a whole model."""
    layers = {"student_layers": ["stages.1"], "teacher_layers": ["stages.1"]}
    run, hooks = started("compose", data, teacher, parts=[{"use": "kd"}, {"use": "sp", "label_weight": 0, **layers}])
    monkeypatch.setattr(Taps, "chosen", lambda *_: pytest.fail("layers were looked up"))
    assert engine._step(run, hooks, [np.arange(8)], {}) == 8


def test_in_a_composition_the_auxiliary_head_gives_way_to_every_other_part() -> None:
    """Worked by hand: others come down with (1, 0), the auxiliary head with (-1, 1), of which (0, 1) may stay."""
    below = torch.zeros(2, requires_grad=True)
    h = below * 1.0
    loss = giving_way(h) @ torch.tensor([-1.0, 1.0]) + h @ torch.tensor([0.25, 0.0]) + h @ torch.tensor([0.75, 0.0])
    loss.backward()
    assert below.grad is not None
    assert below.grad.tolist() == [1.0, 1.0]
    assert giving_way(h.detach()).tolist() == [0.0, 0.0]


# -- KDCL --------------------------------------------------------------------------------------------------------------


def test_targets_by_hand() -> None:
    z = torch.tensor([[[2.0, 0.0, 1.0]], [[1.0, 0.5, -3.0]]])
    labels = torch.tensor([0])
    assert ensemble(z, labels, "min-logit").tolist() == [[0.0, -2.0, -4.0]]
    assert torch.equal(ensemble(z, labels, "naive"), z[0] if _ce(z[0], 0) < _ce(z[1], 0) else z[1])
    best = min(np.linspace(0, 1, 1001), key=lambda a: _ce(a * z[0] + (1 - a) * z[1], 0))
    assert _ce(ensemble(z, labels, "linear"), 0) == pytest.approx(_ce(best * z[0] + (1 - best) * z[1], 0), abs=2e-3)


def _ce(z: torch.Tensor, label: int) -> float:
    return float(nn.functional.cross_entropy(z, torch.tensor([label])))


@pytest.mark.parametrize("target", ["naive", "linear"])
def test_networks_of_unlike_size_learn_together(target: str, data: Table, tmp_path: Path) -> None:
    found = apply("distill/kdcl", student=made(TwoLayers, 1), teacher=[made(CNN, 2)], data=data, epochs=6, batch_size=16, lr=0.02,
                  target=target, out=tmp_path / "a")  # fmt: skip
    rows = log_of(found)
    assert rows[-1]["raw/ce"] < rows[0]["raw/ce"]
    assert rows[-1]["raw/ce_peer_1"] < rows[0]["raw/ce_peer_1"]


# -- ratios of other papers --------------------------------------------------------------------------------------------


def test_margin_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]))
    assert margin(logits, torch.tensor([0, 0])).tolist() == pytest.approx([0.7 - 0.15, 0.0])


def test_ratios_that_are_not_learned(data: Table, teacher: Model, tmp_path: Path) -> None:
    anneal = log_of(trained("tgeo-kd", data, teacher, tmp_path / "a", ratio="anneal"))
    assert anneal[0]["weighted/ce"] == pytest.approx(0, abs=1e-9)
    assert anneal[-1]["weighted/kd"] == pytest.approx(0, abs=1e-9)
    for ratio in ("margin", "losses"):
        row = log_of(trained("tgeo-kd", data, teacher, tmp_path / ratio, ratio=ratio))[0]
        assert 0 < row["weighted/ce"] < row["raw/ce"]


def test_a_free_ratio_per_sample_is_learned_where_it_was_shown(data: Table, teacher: Model, tmp_path: Path) -> None:
    import safetensors.torch

    found = trained("tgeo-kd", data, teacher, tmp_path / "a", ratio="sample", val_fraction=0.25, outer_lr=0.05)
    assert found.path is not None
    values = safetensors.torch.load_file(found.path / "fusion.safetensors")["values"]
    assert int((values != 0).sum()) == 36, "the held-apart quarter has no ratio"


# -- teachers that give probabilities ----------------------------------------------------------------------------------


def test_probabilities_are_no_logits(data: Table, tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    x = np.random.default_rng(0).random((48, 64), dtype=np.float32)
    trees = RandomForestClassifier(5, random_state=0).fit(x, data.labels())
    with pytest.raises(InterfuseError) as caught:
        apply(
            "distill/dhkd",
            student=made(CNN, 1),
            teacher=[trees],
            data=data,
            epochs=1,
            batch_size=16,
            out=tmp_path / "a",
        )
    assert caught.value.code == "needs.capability"
    for slug, given in (("dhkd", {"center": True}), ("kd", {})):
        apply(
            f"distill/{slug}",
            student=made(CNN, 1),
            teacher=[trees],
            data=data,
            epochs=1,
            batch_size=16,
            **given,
            out=tmp_path / slug,
        )


@pytest.mark.parametrize("slug", ["kd", "crd", "nd-kd", "mix-kd", "bd-kd", "none"])
def test_examples_of_one_class_are_refused(slug: str, data: Table, teacher: Model, tmp_path: Path) -> None:
    one = dataclasses.replace(data, rows=data.rows[data.labels() == 2])
    said = refused("input.shape", slug, one, teacher if slug != "none" else None, tmp_path / "a")
    assert "class" in said


def test_without_labels_one_class_will_do(data: Table, teacher: Model, tmp_path: Path) -> None:
    one = dataclasses.replace(data, rows=data.rows[data.labels() == 2])
    trained("kd", one, teacher, tmp_path / "a", alpha=1.0)
