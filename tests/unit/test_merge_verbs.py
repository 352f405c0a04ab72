"""The further verbs of the merge room, in this process and through the command line."""

from __future__ import annotations

import json
import math

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import interfuse
from interfuse.cli.main import app
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.models import open_model
from interfuse.merge.inspect import by_layer, difference, explain, extract_lora, verify_merge
from interfuse.merge.prepare import weights_of
from tests.tiny_models import tiny

RECIPE = "merge_method: ties\nbase_model: llama-base\nmodels:\n" + "".join(
    f"  - model: llama-{n}\n    parameters: {{weight: {w}, density: 0.5}}\n" for n, w in (("x", 1), ("y", [0.5, 1]))
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("base", "x", "y"):
        tiny(folder, "llama", name)
    (folder / "recipe.yml").write_text(RECIPE)
    return folder


@pytest.fixture
def cli(models, monkeypatch):
    monkeypatch.chdir(models)

    def call(*args, code=0):
        result = CliRunner().invoke(app, ["merge", *map(str, args)])
        assert result.exit_code == code, result.output + result.stderr
        return result.stdout if code == 0 else result.stderr

    return call


def opened(folder):
    return weights_of(open_model(Source(str(folder)), Ctx()))


def test_a_recipe_as_the_first_word(cli, tmp_path):
    made = json.loads(cli("recipe.yml", "-o", tmp_path / "out", "--json"))
    assert made["method"] == "merge/ties"
    again = cli("recipe", "recipe.yml", "-o", tmp_path / "again")
    assert "merge/ties made a model" in again
    digest = json.loads((tmp_path / "again/interfuse.json").read_text())["digest"]
    assert digest == made["digest"]
    assert "output.exists" in cli("recipe.yml", "-o", tmp_path / "out", code=3)
    plan = json.loads(cli("recipe.yml", "-o", tmp_path / "third", "--dry-run", "--json"))
    assert plan["tensors"] == 39
    assert not (tmp_path / "third").exists()
    assert "there is no such file" in cli("absent.yml", "-o", tmp_path / "x", code=3)


def test_lint_says_plan_and_sizes(cli, models):
    said = cli("lint", "recipe.yml")
    assert "39 tensors, 4 layers" in said
    assert said.strip().endswith("ok")
    found = json.loads(cli("lint", "recipe.yml", "--json"))
    assert found["bytes"] == sum(t.nbytes for t in load_file(models / "llama-base/model.safetensors").values())
    assert found["parameter sets"] == 4  # one per layer; what lies outside the layers is as layer 0
    (models / "wrong.yml").write_text(RECIPE.replace("density", "desnity"))
    assert "wrong.yml:5" in cli("lint", "wrong.yml", code=3)


def test_diff_by_layer_and_tensor(cli, models, tmp_path):
    changed = load_file(models / "llama-base/model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    changed[name] = changed[name] * 1.5
    del changed["lm_head.weight"]
    changed["model.norm.weight"] = changed["model.norm.weight"][:8].clone()
    save_file(changed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((models / "llama-base/config.json").read_bytes())
    rows = {r["tensor"]: r for r in difference(opened(models / "llama-base"), opened(tmp_path))}
    assert rows[name]["relative"] == pytest.approx(0.5, rel=1e-6)
    assert rows[name]["cosine"] == pytest.approx(1.0)
    assert rows[name]["changed"] == 1.0
    assert rows["lm_head.weight"]["note"] == "only in the first"
    assert rows["model.norm.weight"]["note"] == "[16] and [8]"
    assert rows["model.embed_tokens.weight"]["relative"] == 0
    parts = {g["part"]: g for g in by_layer(list(rows.values()))}
    base = load_file(models / "llama-base/model.safetensors")
    inside = [t for k, t in base.items() if "layers.2." in k]
    expected = 0.5 * base[name].norm() / math.sqrt(sum(float(t.square().sum()) for t in inside))
    assert parts["model.layers.2"]["relative"] == pytest.approx(float(expected), rel=1e-5)
    assert parts["model.layers.1"]["relative"] == 0
    said = cli("diff", "llama-base", tmp_path)
    assert said.count("#") == 40
    assert said.splitlines()[0].split()[:2] == ["part", "relative"]
    assert "(1 not comparable)" in said
    first = cli("diff", "llama-base", tmp_path, "--tensors", "--top", 3).splitlines()
    assert len(first) == 3
    assert first[2].startswith(f"{name}: relative 0.5")


def test_explain_names_sources_and_numbers(cli, models, tmp_path):
    cli("recipe.yml", "-o", tmp_path / "out")
    found = explain(tmp_path / "out", "layers.3.mlp.up_proj.weight")
    assert found["tensor"] == "model.layers.3.mlp.up_proj.weight"
    assert [s["model"] for s in found["sources"]] == ["llama-x", "llama-y"]
    assert found["base"]["model"] == "llama-base"
    assert found["parameters"]["weight"] == [1.0, 1.0]
    assert explain(tmp_path / "out", "layers.0.mlp.up_proj.weight")["parameters"]["weight"] == [1.0, 0.5]
    folders = [models / "llama-x", models / "llama-y"]
    numbers = explain(tmp_path / "out", found["tensor"], models=folders, base=models / "llama-base")["numbers"]
    base, x, y, out = (
        load_file(f / "model.safetensors")[found["tensor"]] for f in (models / "llama-base", *folders, tmp_path / "out")
    )
    dx, dy, do = (t.double() - base.double() for t in (x, y, out))
    assert numbers["norms"] == pytest.approx([float(dx.norm()), float(dy.norm())], rel=1e-5)
    assert numbers["norm of the result"] == pytest.approx(float(do.norm()), rel=1e-5)
    assert numbers["cosines"][0][1] == pytest.approx(float((dx * dy).sum() / dx.norm() / dy.norm()), abs=1e-6)
    assert numbers["sign conflicts"] == pytest.approx(float((dx * dy < 0).double().mean()), abs=1e-3)
    said = cli("explain", tmp_path / "out", found["tensor"])
    assert "from llama-y: model.layers.3.mlp.up_proj.weight" in said
    assert "0 tensors end in" in cli("explain", tmp_path / "out", "up_porj.weight", code=3)
    assert "no merge.json" in cli("explain", interfuse_artifact(tmp_path, models), "x", code=3)


def interfuse_artifact(place, models):
    """An artifact that is not a merge."""
    made = interfuse.merge.linear([str(models / "llama-x"), str(models / "llama-y")], out=place / "other").path
    extract_lora(
        open_model(Source(str(models / "llama-x")), Ctx()), open_model(Source(str(made)), Ctx()), place / "lora", rank=2
    )
    return place / "lora"


def test_explain_of_stacked_layers(models, tmp_path):
    slices = [{"sources": [{"model": 0, "layers": [0, 2]}]}, {"sources": [{"model": 1, "layers": [1, 3]}]}]
    made = interfuse.merge.passthrough(
        [str(models / "llama-x"), str(models / "llama-y")], slices=slices, out=tmp_path / "out"
    )
    found = explain(made.path, "layers.3.mlp.up_proj.weight", models=[models / "llama-x", models / "llama-y"])
    assert found["sources"] == [{"model": "llama-y", "tensor": "model.layers.2.mlp.up_proj.weight"}]
    assert found["numbers"]["cosines with the result"] == pytest.approx([1.0])


def test_verify_loads_and_generates(cli, tmp_path):
    cli("recipe.yml", "-o", tmp_path / "out")
    assert "ok: 39 finite tensors, the model loads and generates" in cli("verify", tmp_path / "out")
    assert json.loads(cli("verify", tmp_path / "out", "--no-generate", "--json"))["generated"] is None
    file = tmp_path / "out/model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(InterfuseError) as caught:
        verify_merge(tmp_path / "out")
    assert caught.value.code == "artifact.damaged"


def test_verify_finds_numbers_that_are_none(models, tmp_path):
    """Bytes that are as they were written may still be no numbers."""
    from interfuse.core.artifact import save_artifact

    def work(folder):
        tensors = load_file(models / "llama-x/model.safetensors")
        tensors["model.norm.weight"][3] = float("inf")
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_bytes((models / "llama-x/config.json").read_bytes())

    save_artifact(tmp_path / "bad", work, {"kind": "model"})
    with pytest.raises(InterfuseError, match=r"model\.norm\.weight") as caught:
        verify_merge(tmp_path / "bad")
    assert caught.value.code == "input.nan"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_extracted_lora_of_full_rank_is_the_model(kind, tmp_path):
    """With every rank and the rest kept whole, base and adapter are the model; a smaller rank is the best of its rank."""
    base, model = tiny(tmp_path, kind), tiny(tmp_path, kind, "x")
    kinds = [open_model(Source(str(f)), Ctx()) for f in (model, base)]
    found = extract_lora(*kinds, tmp_path / "adapter", rank=64, save_rest=True)
    assert found["share"] == pytest.approx(1.0)
    expected = load_file(model / "model.safetensors")
    made = interfuse.merge.passthrough([f"{base}+{tmp_path / 'adapter'}"], out=tmp_path / "back")
    for key, value in load_file(made.path / "model.safetensors").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
    low = extract_lora(*kinds, tmp_path / "low", rank=3)
    before = load_file(base / "model.safetensors")
    for row in low["tensors"]:
        key = row["tensor"]
        delta = (expected[key].double() - before[key].double()).numpy()
        if row["share"] > 0:
            s = torch.linalg.svdvals(torch.from_numpy(delta))
            assert row["share"] == pytest.approx(float(s[:3].square().sum() / s.square().sum()), rel=1e-5)
    assert 0 < low["share"] < 1


def test_extracted_lora_opens_in_peft(models, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    for kind in ("llama", "gpt2"):
        base, model = tiny(models, kind), tiny(models, kind, "x")
        extract_lora(
            *(open_model(Source(str(f)), Ctx()) for f in (model, base)),
            tmp_path / kind,
            rank=64,
            save_rest=kind == "llama",
        )
        merged = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), tmp_path / kind
        ).merge_and_unload()
        expected = load_file(model / "model.safetensors")
        matrices = [k for k in expected if expected[k].ndim == 2 and (".layers." in k or ".h." in k)]
        for key in matrices:
            torch.testing.assert_close(merged.state_dict()[key], expected[key], rtol=1e-4, atol=1e-5)
        if kind == "llama":
            torch.testing.assert_close(merged.state_dict()["model.norm.weight"], expected["model.norm.weight"])


def test_extract_lora_refuses(cli, models, tmp_path):
    assert "--base" in cli("extract-lora", "llama-x", "-o", tmp_path / "a", code=2)
    assert "do not differ" in cli("extract-lora", "llama-x", "--base", "llama-x", "-o", tmp_path / "a", code=3)
    tiny(models, "llama", "wide", intermediate_size=40)
    assert "differ in name or shape" in cli(
        "extract-lora", "llama-x", "--base", "llama-wide", "-o", tmp_path / "a", code=3
    )
    assert "at least 1" in cli(
        "extract-lora", "llama-x", "--base", "llama-base", "--rank", 0, "-o", tmp_path / "a", code=2
    )
    assert "hold" in cli("extract-lora", "llama-x", "--base", "llama-base", "--rank", 2, "-o", tmp_path / "a")
    assert json.loads((tmp_path / "a/interfuse.json").read_text())["kind"] == "adapter"


def test_a_file_that_is_not_there_is_no_unknown_method(cli):
    said = cli("nosuch.yml", code=3)
    assert "input.missing: there is no such file" in said
    assert "nosuch.yml" in said


def test_layers_stand_in_the_order_of_their_numbers():
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in (1, 10, 11, 2)]
    rows = [{"tensor": n, "_squares": 1.0, "_gap": 1.0} for n in ["lm_head.weight", *names, "model.norm.weight"]]
    assert [g["part"] for g in by_layer(rows)] == [
        "lm_head.weight",
        *(f"model.layers.{n}" for n in (1, 2, 10, 11)),
        "model.norm.weight",
    ]


def test_explain_without_sources_asks_for_them_and_prints_no_empty_rows(cli, tmp_path):
    cli("recipe.yml", "-o", tmp_path / "out")
    said = cli("explain", tmp_path / "out").splitlines()
    assert len(said) == 2
    assert "--model A" in said[1]
