"""Recipes in which a student learns what was harvested, run on tiny models; and how a step's parts are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.shipped_recipe import shipped
from interfuse.core import index
from interfuse.core.artifact import verify
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.recipe import load_recipe
from interfuse.core.run import make_plan, run
from tests import tiny_world as world

TALK = "{% for m in messages %}{{ m.role }} : {{ m.content }} {{ eos_token }} {% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"


def changed(student: Path, base: str) -> dict[str, torch.Tensor]:
    """What the training has changed, by tensor."""
    before, after = load_file(Path(base) / "model.safetensors"), load_file(student / "model.safetensors")
    return {n: after[n].float() - t.float() for n, t in before.items() if not torch.equal(after[n], t)}


def test_a_student_learns_what_passed_the_critic(tmp_path: Path) -> None:
    (tmp_path / "symbolic-kd.csv").write_text((index.shipped("recipes") / "symbolic-kd.csv").read_text())
    lm = world.model(tmp_path, "causal")
    recipe = shipped("symbolic-kd.yaml", tmp_path, {
        r"teacher: \{[^}]*\}": f"teacher: {{model: {lm}}}", r"small: \{[^}]*\}": f"small: {{model: {lm}}}",
        r"heads: \[[^]]*\]": "heads: [stone, brick, cup, feather, water, dinner]", "tails: 5": "tails: 3", "epochs: 4": "epochs: 1",
    })  # fmt: skip
    plan = make_plan(load_recipe(recipe), tmp_path / "out", Ctx())
    assert [row["method"] for row in plan.rows()] == ["build/symbolic-kd", "distill/sft"]
    assert plan.work[1].call.inputs["data"].columns == {"prompt": "prompt", "response": "completion"}
    made = run(recipe, tmp_path / "out")
    told = verify(made["student"]).manifest
    rows = world.lines(made["corpus"] / "train.jsonl")
    assert told["facts"]["examples"] == len(rows) > 0
    assert changed(made["student"], lm)
    assert all(item.done for item in make_plan(load_recipe(recipe), tmp_path / "out", Ctx()).work)
    recipe.write_text(recipe.read_text().replace("recall: 0.8", "recall: 0.7"))
    assert [item.done for item in make_plan(load_recipe(recipe), tmp_path / "out", Ctx()).work] == [False, False]


def test_a_model_learns_the_pairs_by_low_rank_changes(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    lm, texts = world.model(tmp_path, "causal"), world.documents(tmp_path / "texts")
    tokenizer = AutoTokenizer.from_pretrained(lm)
    tokenizer.chat_template = TALK
    tokenizer.save_pretrained(lm)
    recipe = shipped("mechgpt.yaml", tmp_path, {
        r"small: \{[^}]*\}": f"small: {{model: {lm}}}", r"documents: texts\}": f"documents: {texts}}}", r"\n  teacher: \{[^}]*\}": "", " lm: teacher,": "",
        "shortest_answer: 15": "shortest_answer: 2", r", topics: \[[^]]*\]": "", "rank: 16": "rank: 2", "lr: 2.0e-4": "lr: 1.0e-2",
    })  # fmt: skip
    made = run(recipe, tmp_path / "out")
    told = verify(made["tuned"]).manifest["facts"]
    assert told["examples"] == len(world.lines(made["pairs"] / "qa-train.jsonl")) > 0
    assert 0 < told["trained share"] < 0.5
    moved = changed(made["tuned"], lm)
    assert moved
    for name, delta in moved.items():
        assert name.endswith("_proj.weight"), name
        assert torch.linalg.matrix_rank(delta.double(), rtol=1e-4) <= 2, name


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("{from: pairs, take: tests}", "recipe.key"),
        ("{from: pairs, limit: 3}", "recipe.key"),
        ("{from: pairs, take: [train]}", "recipe.key"),
        ("{from: paris, take: train}", "recipe.key"),
        ("{from: pairs}", "input.type"),
    ],
)
def test_what_a_step_does_not_keep_is_refused_before_work(tmp_path: Path, given: str, code: str) -> None:
    lm, texts = world.model(tmp_path, "causal"), world.documents(tmp_path / "texts")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""interfuse: 1
steps:
  pairs: {{use: build/mechgpt, documents: {{documents: {texts}}}, shortest_answer: 2}}
  tuned: {{use: distill/lora, student: {{model: {lm}}}, data: {given}}}
""")
    with pytest.raises(InterfuseError) as caught:
        make_plan(load_recipe(recipe), tmp_path / "out", Ctx())
    assert caught.value.code == code
    assert "r.yaml:4" in caught.value.where
    assert not (tmp_path / "out").exists()


def test_a_table_that_turns_out_empty_is_refused(tmp_path: Path) -> None:
    lm = world.model(tmp_path, "causal")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Nobody asked. It rained, then it stopped.")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""interfuse: 1
steps:
  pairs: {{use: build/mechgpt, documents: {{documents: texts}}}}
  tuned: {{use: distill/lora, student: {{model: {lm}}}, data: {{from: pairs, take: train}}}}
""")
    with pytest.raises(InterfuseError) as caught:
        run(recipe, tmp_path / "out")
    assert (caught.value.code, "tuned" in caught.value.where) == ("input.empty", True)


def test_layers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    from interfuse.core.rooms import apply

    (tmp_path / "a.jsonl").write_text('{"text": "the capital of france is paris"}\n')
    with pytest.raises(InterfuseError) as caught:
        apply("distill/lora", student=world.model(tmp_path, "causal"), data=str(tmp_path / "a.jsonl"), layers=["nowhere"], out=tmp_path / "m")  # fmt: skip
    assert caught.value.code == "param.value"
