"""The merge room's recipes: those for models of one's own are run on tiny ones made here, the grid's corner is planned."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from interfuse.core import index
from interfuse.core.artifact import verify
from interfuse.core.ctx import Ctx
from interfuse.core.recipe import load_recipe
from interfuse.core.run import make_plan, run
from tests import tiny_texts
from tests.tiny_models import tiny

SHIPPED = index.shipped("recipes")


def models(folder, **names):
    """``models/NAME`` for each name, with tokenizers beside the weights."""
    (folder / "models").mkdir()
    for name, variant in names.items():
        tiny_texts.tokenizer(tiny(folder, "llama", variant).rename(folder / "models" / name.replace("_", "-")))


def state(folder):
    return load_file(folder / "model.safetensors")


def test_long_to_short_on_models_of_ones_own(tmp_path):
    models(tmp_path, base="base", quick="x", slow="y")
    texts = tiny_texts.sentences(30)[0]
    for name, length in (("short", 2), ("long", 6)):
        rows = [t.split() for t in texts if len(t.split()) >= 4][:6]
        lines = [json.dumps({"question": " ".join(r[:2]) + " ", "answer": " ".join(r[2 : 2 + length])}) for r in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    lines = [
        json.dumps({"question": " ".join(t.split()[:2]) + " ", "answer": t.split()[2]})
        for t in texts
        if len(t.split()) >= 4
    ][6:10]
    (tmp_path / "test.jsonl").write_text("\n".join(lines) + "\n")
    recipe = tmp_path / "long-to-short.yaml"
    recipe.write_text((SHIPPED / "long-to-short.yaml").read_text().replace("max_tokens: 1024", "max_tokens: 3"))
    made = run(recipe, tmp_path / "out", ctx=Ctx(cache=tmp_path / "cache"))
    read = json.loads((made.pop("report") / "report.json").read_text())
    assert len(made) == len(read["models"]) - 2 == len(read["comparisons"]) / 2 == 9
    assert all(0 < m["scores"]["tokens"]["mean"] <= 3 for m in read["models"])
    assert any(m["on_front"] for m in read["models"])
    assert set(made) == {"average", "task-arithmetic", "ties", "dare", "lore", "twin", "aim", "sens", "acm"}
    base, quick, slow = (state(tmp_path / "models" / n) for n in ("base", "quick", "slow"))
    for name, path in made.items():
        verify(path)
        assert all(torch.isfinite(t).all() for t in state(path).values()), name
        assert (path / "tokenizer_config.json").is_file(), name
    for name, weights in (("average", (0.5, 0.5)), ("task-arithmetic", (0.3, 0.7))):
        for tensor, value in state(made[name]).items():
            torch.testing.assert_close(value, weights[0] * quick[tensor] + weights[1] * slow[tensor])
    ties, aim = state(made["ties"]), state(made["aim"])
    for tensor, value in aim.items():  # nearer to the base than what it relaxes, embeddings left alone
        assert float((value - base[tensor]).norm()) <= float((ties[tensor] - base[tensor]).norm()) * 1.000001
    torch.testing.assert_close(aim["model.embed_tokens.weight"], ties["model.embed_tokens.weight"])
    assert not aim["model.layers.0.mlp.up_proj.weight"].equal(ties["model.layers.0.mlp.up_proj.weight"])


def test_a_sweep_on_models_of_ones_own(tmp_path):
    models(tmp_path, quick="x", slow="y")
    texts = [t.split() for t in tiny_texts.sentences(30)[0] if len(t.split()) >= 4][:4]
    lines = [json.dumps({"question": " ".join(t[:2]) + " ", "answer": t[2]}) for t in texts]
    (tmp_path / "choose.jsonl").write_text("\n".join(lines) + "\n")
    recipe = tmp_path / "sweep.yaml"
    recipe.write_text((SHIPPED / "long-to-short-sweep.yaml").read_text().replace("max_tokens: 1024", "max_tokens: 3"))
    made = run(recipe, tmp_path / "out")
    quick, slow = (state(tmp_path / "models" / n) for n in ("quick", "slow"))
    for tenths in range(1, 10):
        for name, tensor in state(made[f"slow-{tenths}0"]).items():
            torch.testing.assert_close(tensor, (10 - tenths) / 10 * quick[name] + tenths / 10 * slow[name])
    places = {m["name"]: (m["scores"]["accuracy"]["mean"], m["scores"]["tokens"]["mean"], m["on_front"])
              for m in json.loads((made["report"] / "report.json").read_text())["models"]}  # fmt: skip
    assert len(places) == 11
    for right, tokens, front in places.values():
        beaten = any(r >= right and t <= tokens and (r, t) != (right, tokens) for r, t, _ in places.values())
        assert front == (not beaten)


def test_fusechat_on_models_of_ones_own(tmp_path):
    models(tmp_path, pivot="base", from_a="x", from_b="y")
    recipe = tmp_path / "fusechat-merge.yaml"
    recipe.write_text((SHIPPED / "fusechat-merge.yaml").read_text())
    made = run(recipe, tmp_path / "out")
    assert set(made) == {"varm", "sce", "average", "task-arithmetic", "ties", "dare"}
    pivot, a, b = (state(tmp_path / "models" / n) for n in ("pivot", "from-a", "from-b"))
    varm = state(made["varm"])
    for name, value in varm.items():
        moved = [(t[name] - pivot[name]).double().square().mean() for t in (a, b)]
        w = float(moved[0] / (moved[0] + moved[1]))
        torch.testing.assert_close(
            value.double(), w * a[name].double() + (1 - w) * b[name].double(), rtol=1e-4, atol=1e-5
        )
    sce = state(made["sce"])
    changed = sum(int((sce[n] != pivot[n]).sum()) for n in sce) / sum(t.numel() for t in sce.values())
    assert 0.05 < changed < 0.15


def test_the_corner_of_the_grid_is_planned(tmp_path):
    recipe = load_recipe(SHIPPED / "merging-at-scale.yaml")
    plan = make_plan(recipe, tmp_path / "out", Ctx())
    assert len(recipe.steps) == 18
    uses = [step.use for step in recipe.steps]
    assert {u for u in uses if u.startswith("merge/")} == {
        "merge/linear",
        "merge/task-arithmetic",
        "merge/ties",
        "merge/dare-ties",
    }
    assert plan is not None


@pytest.mark.parametrize("name", ["long-to-short", "long-to-short-sweep", "fusechat-merge"])
def test_models_that_are_not_there_are_named(name, tmp_path):
    from interfuse.core.errors import InterfuseError

    with pytest.raises(InterfuseError) as caught:
        make_plan(load_recipe(SHIPPED / f"{name}.yaml"), tmp_path, Ctx())
    assert caught.value.code == "input.missing"
