"""``interfuse distill teacher``, ``search`` and ``compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from interfuse.cli.main import app
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import load_room, prepare
from interfuse.data.models import Model
from interfuse.data.tables import Table
from interfuse.distill.verbs import _recipe, _said, _space, compare, step_memory
from tests.distill_bars import CNN, made
from tests.distill_bars import data as data
from tests.distill_bars import teacher as teacher

STUDENT = {"model_type": "resnet", "num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1],
           "layer_type": "basic", "downsample_in_first_stage": False, "num_labels": 10}  # fmt: skip
DIGITS = {"from": {"data": "sklearn:digits", "split": {"train": 0.05}}, "take": "train"}


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["distill", *words], catch_exceptions=False)


def test_teacher_is_training_on_labels(tmp_path: Path) -> None:
    given = ["--student", json.dumps({"config": STUDENT}), "--data", json.dumps(DIGITS), "--epochs", "1", "-q"]
    for verb in ("teacher", "none"):
        assert run(verb, *given, "-o", str(tmp_path / verb)).exit_code == 0
    one, two = ((tmp_path / verb / "model.safetensors").read_bytes() for verb in ("teacher", "none"))
    assert one == two
    assert "--label-smoothing" not in run("teacher", "--help").output
    assert "--epochs" in run("teacher", "--help").output


def test_search_prints_the_ranking_and_a_student_that_trains(tmp_path: Path) -> None:
    words = ["search", "--teacher", json.dumps({"config": {**STUDENT, "depths": [3, 3]}}), "--student", json.dumps({"config": STUDENT}),
             "--data", json.dumps(DIGITS), "--space", '{"depths": [[1, 1], [2, 2]]}', "--inits", "2"]  # fmt: skip
    found = json.loads(run(*words, "--json").stdout)
    scores = [row["score"] for row in found["ranking"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert run(*words, "-o", str(tmp_path / "s.yaml")).exit_code == 0
    assert yaml.safe_load((tmp_path / "s.yaml").read_text()) == found["student"]
    assert found["student"]["config"]["depths"] == found["ranking"][0]["config"]["depths"]


def test_a_space_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("grid:\n  depths: [[1, 1], [2, 2]]\n")
    assert _space(str(file)) == _space('{"depths": [[1, 1], [2, 2]]}') == {"depths": [[1, 1], [2, 2]]}
    file.write_text("- 1\n")
    for text, code in (
        (str(file), "param.value"),
        (str(tmp_path / "none.yaml"), "input.missing"),
        ("{", "param.value"),
    ):
        with pytest.raises(InterfuseError) as caught:
            _space(text)
        assert caught.value.code == code


def test_compare_counts_what_is_lost_and_does_not_call_chance_better(data: Table, teacher: Model) -> None:
    both = """compose:{"parts": [{"use": "kd"}, {"use": "sp", "weight": 0.1}]}"""
    methods = [_recipe(m) for m in ("none", "none:lr=1e-9", "kd:alpha=0.5,tau=2", both)]
    rows = compare(
        methods,
        [teacher],
        made(CNN, 1),
        data,
        data,
        seeds=2,
        baseline="none",
        common={"epochs": 6, "lr": 0.02, "batch_size": 16},
    )
    base, untrained, kd, added = rows
    assert base["said"] == "baseline"
    assert base["difference"] is None
    assert base["negative_flips"] == 0
    for row in (untrained, kd, added):
        apart = row["difference"]
        assert apart["estimate"] == pytest.approx(row["accuracy"] - base["accuracy"])
        assert apart["estimate"] == pytest.approx(row["positive_flips"] - row["negative_flips"])
        assert ("better" in row["said"]) == (apart["low"] > 0 and apart["p"] <= 0.05)
        assert row["step_ms"] > 0
        assert 0.1 < row["step_ratio"] < 20
        assert row["memory_mb"] > 0
    assert untrained["said"] == "worse"
    assert kd["memory_mb"] > base["memory_mb"], "the teacher takes no room"


def test_compare_prints_a_row_per_method_with_the_ratio_of_its_step(tmp_path: Path) -> None:
    both = 'compose:{"parts": [{"use": "kd"}, {"use": "sp"}]}'
    model, data = json.dumps({"config": STUDENT}), json.dumps(DIGITS)
    found = run("compare", "none", both, "--teacher", model, "--student", model, "--data", data, "--test", data, "--seeds", "2",
                "--common", "epochs=1", "-q", "-o", str(tmp_path / "table.json"))  # fmt: skip
    assert found.exit_code == 0
    head, base, composed, *_ = found.output.splitlines()
    assert head.split()[-6:] == ["step", "ms", "ratio", "memory", "MB", "said"]
    assert base.startswith("none ")
    assert base.endswith("baseline")
    assert composed.startswith(both)
    row = json.loads((tmp_path / "table.json").read_text())[1]
    assert f"{row['step_ratio']:.2f}" in composed
    assert f"{row['difference']['p']:.4f}" in composed


def test_compare_of_a_method_with_itself_shows_nothing(data: Table) -> None:
    twice = [("a", "none", {}), ("b", "none", {})]
    said: list[str] = []
    ctx = Ctx(log=said.append)
    rows = compare(twice, [], made(CNN, 1), data, data, seeds=2, baseline="a", common={"epochs": 1}, ctx=ctx)
    assert f"{len(data)} of the {len(data)} test examples are trained on: accuracies are too good" in said
    assert rows[1]["difference"] == {"estimate": 0, "low": 0, "high": 0, "p": 1}
    assert rows[1]["said"].startswith("no difference shown")


@pytest.mark.parametrize("slug", ["dml", "kdcl"])
def test_a_method_that_trains_its_teachers_can_be_compared(slug: str, data: Table, teacher: Model) -> None:
    rows = compare([("none", "none", {}), (slug, slug, {})], [teacher], made(CNN, 1), data, data, seeds=2, baseline="none", common={"epochs": 1})  # fmt: skip
    assert rows[1]["step_ratio"] > 0.1
    assert rows[1]["memory_mb"] > rows[0]["memory_mb"]


def test_compare_refuses(data: Table) -> None:
    for methods, given in (([("a", "none", {})], {"baseline": "b"}), ([("a", "none", {})], {"baseline": "a", "seeds": 1}),
                           ([("a", "none", {}), ("a", "kd", {})], {"baseline": "a"}), ([("a", "kd", {})], {"baseline": "a"})):  # fmt: skip
        with pytest.raises(InterfuseError) as caught:
            compare(methods, [], made(CNN, 1), data, data, **given)  # type: ignore[arg-type]
        assert caught.value.code == "param.value"


def test_compare_reads_recipes(tmp_path: Path) -> None:
    assert _recipe("kd:tau=2,form=code") == ("kd:tau=2,form=code", "kd", {"tau": 2, "form": "code"})
    assert _recipe('ofa-kd:{"eps": [1.0, 1.2]}')[1:] == ("ofa-kd", {"eps": [1.0, 1.2]})
    file = tmp_path / "both.yaml"
    file.write_text("parts:\n  - {use: kd}\n  - {use: sp, weight: 2}\n")
    assert _recipe(f"compose:{file}")[1:] == ("compose", {"parts": [{"use": "kd"}, {"use": "sp", "weight": 2}]})
    for text in ("kd:tau", 'kd:{"tau": 2', f"kd:{tmp_path}/none.yaml"):
        with pytest.raises(InterfuseError):
            _recipe(text)


def test_many_comparisons_make_a_small_p_a_thing_of_chance() -> None:
    assert _said("better", 0.01, 5) == "better"
    assert _said("worse", 0.06, 5) == "no difference shown: p is 0.060 for one of 5 comparisons"


def test_memory_of_a_step_counts_buffers_and_what_the_method_stores(data: Table, teacher: Model) -> None:
    from interfuse.distill.room import _hooks, start

    def held(slug: str, **given: Any) -> float:
        call = prepare(load_room("distill"), load(f"distill/{slug}"), {"teacher": [teacher], "student": made(CNN, 1), "data": data, **given}, Ctx())  # fmt: skip
        return step_memory(start(call, _hooks(call)), lambda: None)

    rows = 4 * len(data) * len(data.classes)
    assert held("kd") - held("kd", teacher_cache="off") == pytest.approx(rows / 1e6, rel=0.01)
    memory = 4 * 2 * len(data)  # one number on both sides, for every example
    grown = held("crd", dim=32) - held("crd", dim=16)
    assert grown > memory * 16 / 1e6
    without = held("crd", dim=32, negatives="in-batch") - held("crd", dim=16, negatives="in-batch")
    assert grown - without == pytest.approx(memory * 16 / 1e6, rel=0.01)
