"""mergekit's files run unchanged: every recipe of the corpus beside the numbers mergekit 0.1.5 itself gives (``golden/freeze.py``).

Where the two differ, a test says why and holds ours against an oracle or a plain fact.
"""

from __future__ import annotations

import gc
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.formats.mergekit import read_mergekit
from interfuse.data.models import open_model
from interfuse.data.weights import Weights
from interfuse.kit.counter_random import tensor_key, uniform
from interfuse.merge import room
from interfuse.merge.inspect import lint, verify_merge
from interfuse.merge.recipes import merge_recipe
from tests.formats.golden.freeze import digest
from tests.oracles import merge_methods_oracle as oracle
from tests.tiny_models import SIZES, WORDS_X, WORDS_Y, zoo
from tests.unit.test_merge_methods import run as alone

HERE = Path(__file__).parent
RECIPES = sorted(p.stem for p in (HERE / "mergekit").glob("*.yml"))
GOLDEN = json.loads((HERE / "golden/mergekit.json").read_text())
#: recipe -> why our numbers are not mergekit's; each has a test of its own below
DIFFERENT = {
    "dare-ties": "random masks", "dare-linear-no-rescale": "random masks", "della": "random masks",
    "arcee-fusion": "quantiles between two elements", "model-stock": "cosines below 0",
    "multislerp": "a step that is always 0 in mergekit", "karcher": "mergekit lacks a pooler", "passthrough-scaled": "layer_types",
    "tokenizer-union": "ids in no order, tokens cut out of words", "beat-sce-small-changes": "weights below 1e-6",
    "beat-model-stock-small-changes": "norms below 1e-6", "beat-ties-negative-weight": "the sign of a negative weight is lost",
    "beat-bfloat16-arithmetic": "arithmetic in the files' type",
}  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(autouse=True)
def beside_the_models(models, monkeypatch):
    monkeypatch.chdir(models)


@pytest.fixture(scope="session")
def merged(models, tmp_path_factory):
    """Runs a recipe of the corpus once; gives folder and tensors."""
    done, place = {}, tmp_path_factory.mktemp("merged")

    def run(name):
        if name not in done:
            merge_recipe(HERE / "mergekit" / f"{name}.yml", place / name, seed=7)
            files = sorted((place / name).glob("*.safetensors"))
            done[name] = place / name, {k: v for f in files for k, v in load_file(f).items()}
        return done[name]

    return run


def state(name):
    return {k: v.double().numpy() for k, v in load_file(Path(name) / "model.safetensors").items()}


def close(made, expected, tolerance=1e-6):
    assert set(made) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(made[name].double().numpy(), value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", RECIPES)
def test_runs_loads_and_generates(name, merged):
    folder, tensors = merged(name)
    said = verify_merge(folder)
    assert said["tensors"] == len(tensors)
    assert (said["generated"] is not None) == (said["task"] == "causal-lm")


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in DIFFERENT])
def test_the_numbers_of_mergekit(name, merged):
    _, tensors = merged(name)
    expected = GOLDEN["recipes"][name]["tensors"]
    assert set(tensors) == set(expected)
    for key, row in expected.items():
        mine = digest(tensors[key])
        assert mine["shape"] == row["shape"]
        tolerance = 1e-5 if name.startswith("karcher") else 2e-6  # mergekit stops the mean at 1e-5
        np.testing.assert_allclose(
            mine["numbers"], row["numbers"], rtol=tolerance, atol=tolerance, err_msg=f"{name} {key}"
        )


def test_every_recipe_has_its_numbers():
    assert GOLDEN["mergekit"] == "0.1.5"
    assert set(GOLDEN["recipes"]) == set(RECIPES)
    assert len(RECIPES) >= 50
    failing = {n for n, row in GOLDEN["recipes"].items() if "error" in row}
    assert failing == {"karcher", "passthrough-scaled"}
    assert set(DIFFERENT) <= set(RECIPES)


# ------------------------------------------------------------------- values by layer and name, against the oracles


def layer(name):
    found = [int(p) for p in name.split(".") if p.isdigit()]
    return found[0] if found else None


def along(values, name, layers=4):
    """A gradient's value: np.interp over the layers, the first value outside them."""
    place = 0.0 if layer(name) is None else layer(name) / (layers - 1)
    return float(np.interp(place * (len(values) - 1), range(len(values)), values))


def test_gradients_and_filters_of_ties(merged):
    _, made = merged("ties-density-gradient")
    base, states = state("llama-base"), [state(f"llama-{n}") for n in "xyz"]
    expected = {}
    for key in base:
        density = [along([1, 0.7, 0.1], key), 0.5, 0.33]
        weight = [1.0, along([0, 0.3, 0.7, 1], key), 0.5 if "mlp" in key else 0.0]
        one = oracle.ties_merge(
            [{key: s[key]} for s in states], {key: base[key]}, density=density, weight=weight, scale=1.0, normalize=True
        )
        expected |= one
    close(made, expected)


def test_gradients_and_filters_of_slerp(merged):
    _, made = merged("slerp-gradient")
    x, y = state("llama-x"), state("llama-y")
    expected = {}
    for key in x:
        values = [0, 0.5, 0.3, 0.7, 1] if "self_attn" in key else [1, 0.5, 0.7, 0.3, 0] if "mlp" in key else [0.5]
        expected |= oracle.arc([{key: x[key]}, {key: y[key]}], None, t=along(values, key))
    close(made, expected)


def test_levels_of_slices(merged):
    """Source before slice before recipe; gradients run within a slice; what no rule fits falls to the next level."""
    _, made = merged("ties-slices")
    base, x, y, z = (state(f"llama-{n}") for n in ("base", "x", "y", "z"))
    expected = {}
    for key in base:
        upper = (layer(key) or 0) >= 2 or key in ("lm_head.weight", "model.norm.weight")
        if upper:
            models, density, scale = (x, z), [0.7, 0.7], 1.0
            weight = [0.6, 0.6] if "mlp" in key else [0.35, 0.35]
        else:
            models, weight, scale = (x, y), [0.9, 0.4], 0.8
            density = [0.5, 0.8 if layer(key) == 1 else 0.2]
        expected |= oracle.ties_merge([{key: m[key]} for m in models], {key: base[key]}, density=density, weight=weight, scale=scale, normalize=True)  # fmt: skip
    close(made, expected)


def test_stacked_layers_are_renumbered_and_scaled(merged):
    """mergekit 0.1.5 stops here: it leaves Qwen2's list of layer types at its old length."""
    assert "layer_type" in GOLDEN["recipes"]["passthrough-scaled"]["error"]
    folder, made = merged("passthrough-scaled")
    source = load_file("qwen2-x/model.safetensors")
    origin = [0, 1, 2, 1, 2, 3]
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 6
    assert len(config["layer_types"]) == 6
    for key, value in made.items():
        number = layer(key)
        theirs = source[key if number is None else key.replace(f"layers.{number}.", f"layers.{origin[number]}.")]
        silent = number in (3, 4) and ("o_proj" in key or "down_proj" in key)
        assert value.equal(theirs * 0 if silent else theirs)


def test_three_stages_write_one_model(models, tmp_path, monkeypatch):
    written, real = [], room.WeightWriter

    def noted(folder, *rest, **more):
        written.append(Path(folder))
        return real(folder, *rest, **more)

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(room, "WeightWriter", noted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "empty"))
    made = merge_recipe(HERE / "mergekit/three-stages.yml", tmp_path / "out")
    assert len(written) == 1
    assert list((tmp_path / "empty").iterdir()) == []
    x, y, z, base = (state(f"llama-{n}") for n in ("x", "y", "z", "base"))
    first = {k: (x[k] + y[k]) / 2 for k in x}
    second = oracle.arc([first, z], None, t=0.5)
    expected = oracle.ties_merge([second, z], base, density=[0.6, 0.8], weight=[0.5, 0.5], scale=1.0, normalize=True)
    close(load_file(made.path / "model.safetensors"), expected, 5e-6)


@pytest.mark.parametrize("methods", [("tsv", "linear"), ("della", "linear"), ("slerp", "tsv")])
def test_stages_of_any_scope(methods, tmp_path):
    """A merge within a merge gives what the two give one after the other, for methods of rows and of whole tensors too."""
    ctx = {"base": "llama-base"}
    two = ["llama-x", "llama-y"]
    from interfuse.core.ctx import Ctx
    from interfuse.core.method import load
    from interfuse.core.rooms import apply, prepare
    from interfuse.data.models import Model
    from interfuse.merge.room import ROOM
    from interfuse.merge.unwritten import Unwritten

    inner, outer = methods
    given = {"models": two, **({} if inner == "slerp" else ctx)}
    call = prepare(ROOM, load(inner, room="merge"), given, Ctx(seed=3))
    written = apply(f"merge/{inner}", out=tmp_path / "inner", seed=3, **given)
    lazy = Model("inner", None, written.config, "causal-lm", computed=Unwritten(call))
    more = {} if outer == "linear" else ctx
    a = apply(f"merge/{outer}", out=tmp_path / "lazy", models=[lazy, "llama-z"], **more)
    b = apply(f"merge/{outer}", out=tmp_path / "twice", models=[str(written.path), "llama-z"], **more)
    one, two_ = (load_file(m.path / "model.safetensors") for m in (a, b))
    for key in one:
        torch.testing.assert_close(one[key], two_[key], rtol=2e-6, atol=2e-6)


# ------------------------------------------------------------------- where mergekit and we differ, and why


def theirs(name, key):
    return np.array(GOLDEN["recipes"][name]["tensors"][key]["numbers"])


def differs(name, key, made):
    assert not np.allclose(theirs(name, key), digest(made[key])["numbers"], rtol=1e-6, atol=1e-6)


def test_small_changes_keep_their_energies(merged):
    """mergekit weighs models alike when their mean squares sum to less than 1e-6: a change of 1e-4 is that small."""
    _, made = merged("beat-sce-small-changes")
    base, models = state("llama-base"), [state("llama-near"), state("llama-nearer")]
    close(made, oracle.select_calculate_erase(models, base, select_topk=1.0, select_scope="deltas"), 1e-7)
    differs("beat-sce-small-changes", "model.layers.3.mlp.down_proj.weight", made)


def test_small_changes_keep_their_angle(merged):
    """mergekit takes a product of norms below 1e-6 for 1e-6, so the cosine of small changes shrinks."""
    _, made = merged("beat-model-stock-small-changes")
    close(made, oracle.stock([state("llama-near"), state("llama-nearest")], state("llama-base")), 1e-7)
    differs("beat-model-stock-small-changes", "model.layers.1.post_attention_layernorm.weight", made)


def test_opposed_changes_stay_at_the_base(merged):
    """mergekit extrapolates away from the mean of fine-tunes whose mean cosine is below 0; the method interpolates."""
    _, made = merged("model-stock")
    base, models = state("gpt2-base"), [state(f"gpt2-{n}") for n in "xyz"]
    close(made, oracle.stock(models, base))
    key = "transformer.h.2.attn.c_proj.bias"
    assert made[key].double().numpy().tolist() == base[key].tolist()
    differs("model-stock", key, made)


def test_negative_weights_keep_their_sign(merged):
    """mergekit divides by the signed sum of weights: where only the model of weight -0.5 agrees, its change is added, not taken."""
    _, made = merged("beat-ties-negative-weight")
    base, x, y = state("llama-base"), state("llama-x"), state("llama-y")
    close(made, oracle.ties_merge([x, y], base, density=0.5, weight=[-0.5, 0.8], scale=1.0, normalize=True))
    key = "model.layers.1.mlp.gate_proj.weight"
    change = made[key].double().numpy() - base[key]
    kept = oracle._top(x[key] - base[key], int(0.5 * x[key].size))
    alone = kept & ~oracle._top(y[key] - base[key], int(0.5 * x[key].size))
    assert alone.any()
    assert (np.sign(change[alone]) == -np.sign((x[key] - base[key])[alone])).all()
    differs("beat-ties-negative-weight", key, made)


def test_one_rounding(merged):
    """Without dtype mergekit computes in bfloat16, rounding every step; ours rounds the float32 result once."""
    folder, made = merged("beat-bfloat16-arithmetic")
    base, a, b = (load_file(f"llama-{n}/model.safetensors") for n in ("halfbase", "half", "halves"))
    wrong = 0
    for key, value in made.items():
        exact = base[key].float() + (
            0.3 * (a[key].float() - base[key].float()) + 0.6 * (b[key].float() - base[key].float())
        )
        assert value.dtype == torch.bfloat16
        assert (value.float() - exact).abs().le(exact.abs() * 2**-8 + 1e-9).all()  # half a unit in the last place
        wrong += not np.allclose(theirs("beat-bfloat16-arithmetic", key), digest(value)["numbers"], rtol=1e-7)
    assert wrong > 30
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_multislerp_follows_the_arc(merged):
    """The changes from the normalised mean sum to 0, so mergekit's step in the tangent space, which leaves out the angles, is
    always 0: its result is the mean direction. With them, two models of equal norm give slerp's point up to third order."""
    _, made = merged("multislerp")
    models, weight = [state(f"llama-{n}") for n in "xyz"], [0.5, 0.3, 0.9]
    close(made, oracle.sphere(models, None, weight=weight))
    key = "model.layers.3.mlp.gate_proj.weight"
    units = [m[key] / np.linalg.norm(m[key]) for m in models]
    mean = sum(w * u for w, u in zip(weight, units, strict=True))
    flat = (
        mean
        / np.linalg.norm(mean)
        * sum(w * np.linalg.norm(m[key]) for w, m in zip(weight, models, strict=True))
        / sum(weight)
    )
    np.testing.assert_allclose(
        digest(torch.from_numpy(flat))["numbers"], theirs("multislerp", key), rtol=1e-5, atol=1e-5
    )
    differs("multislerp", key, made)


def test_quantiles_lie_between_elements(merged):
    """mergekit takes the element below a quantile; the two masks differ in a few elements near the bound."""
    _, made = merged("arcee-fusion")
    x, y = state("llama-x"), state("llama-y")
    close(made, oracle.standing_out([x, y], None), 1e-7)
    same = sum(np.allclose(digest(made[k])["numbers"], theirs("arcee-fusion", k), rtol=1e-6, atol=1e-6) for k in made)
    assert len(made) * 0.75 < same < len(made)


def test_bert_without_pooler(merged):
    """transformers gives BertForMaskedLM no pooler; mergekit 0.1.5 wants one. Names come from the files here."""
    assert "bert.pooler.dense.weight required" in GOLDEN["recipes"]["karcher"]["error"]
    _, made = merged("karcher")
    close(made, oracle.sphere([state(f"bertmlm-{n}") for n in "xyz"], None, weight=[1, 1, 1], steps=20))


def drawn(*folders):
    """The random numbers that the models' masks compare with: of a seed, a model's content and a tensor's name alone."""
    labels = [open_model(Source(folder), Ctx()).fingerprint() for folder in folders]

    def draw(model, name):
        shape = state(folders[model])[name].shape
        return uniform(tensor_key(7, labels[model], name), 0, math.prod(shape)).numpy().reshape(shape)

    return draw


@pytest.mark.parametrize("name", ["dare-ties", "dare-linear-no-rescale", "della"])
def test_random_masks_keep_what_they_should(name, merged):
    """Masks depend on seed, model and tensor alone; mergekit's on the order of work. The numbers are those of the masks drawn here;
    the shares moved are those of the densities, in mergekit's files what is kept is rescaled to the old sum of magnitudes."""
    _, made = merged(name)
    kind = "bert" if "linear" in name else "llama"
    base, x, y = state(f"{kind}-base"), state(f"{kind}-x"), state(f"{kind}-y")
    rule, own = {"dare-ties": (oracle.dare_elected, {"density": 0.53, "weight": [0.4, 0.3], "scale": 1.0, "normalize": False, "rescale": "l1"}),
                 "dare-linear-no-rescale": (oracle.dare_added, {"density": [0.6, 0.8], "weight": [0.4, 0.6], "scale": 1.0, "normalize": True, "rescale": "none"}),
                 "della": (oracle.magprune, {"density": [0.5, 0.7], "epsilon": [0.2, 0.1], "weight": [0.8, 0.5], "scale": 1.1, "normalize": True, "rescale": "l1"})}[name]  # fmt: skip
    said = rule([x, y], base, draw=drawn(f"{kind}-x", f"{kind}-y"), **own)
    moved = total = 0
    for key, value in said.items():
        expected = torch.from_numpy(value).float()
        torch.testing.assert_close(made[key].float(), expected.to(made[key].dtype).float(), rtol=2**-8 if name == "dare-ties" else 1e-6, atol=1e-7)  # fmt: skip
        moved += (np.abs(value - base[key]) > 1e-9).sum()
        total += value.size
    share = {"dare-ties": 1 - 0.47**2, "dare-linear-no-rescale": 1 - 0.4 * 0.2, "della": 1 - 0.5 * 0.3}[name]
    assert share - 0.02 < moved / total < share + 0.02


def test_a_row_keeps_its_own_sum_of_magnitudes():
    """DELLA in mergekit gives a tensor one factor; rows in which much was dropped stay too small there, and others grow."""
    g = torch.Generator().manual_seed(1)
    change = torch.randn(6, 200, generator=g) * torch.tensor([1e-3, 1e-2, 0.1, 1, 10, 100]).unsqueeze(1)
    kept = alone("della", [change], torch.zeros(6, 200), density=0.5, epsilon=0.2, rescale="l1")
    torch.testing.assert_close(kept.double().abs().sum(1), change.double().abs().sum(1), rtol=1e-6, atol=0)
    whole = change * (kept != 0)
    whole = whole * (change.abs().sum() / whole.abs().sum())
    assert ((whole.abs().sum(1) / change.abs().sum(1) - 1).abs() > 0.01).sum() >= 3
    for method in ("dare_linear", "ties", "breadcrumbs"):  # these scale the tensor, as mergekit does
        kept = alone(method.replace("_", "-"), [change], torch.zeros(6, 200), density=0.5, rescale="l1", weight=1.0)
        assert float(kept.double().abs().sum()) == pytest.approx(float(change.double().abs().sum()), rel=2e-7)


def test_fewer_outliers_than_asked_for_are_refused(tmp_path):
    """mergekit drops fewer of the largest changes than gamma says where density and gamma are more than 1 together."""
    text = (
        (HERE / "mergekit/breadcrumbs.yml").read_text().replace("density: 0.9, gamma: 0.01", "density: 0.9, gamma: 0.2")
    )
    (tmp_path / "recipe.yml").write_text(text)
    with pytest.raises(InterfuseError, match="more than 1") as caught:
        merge_recipe(tmp_path / "recipe.yml", tmp_path / "out")
    assert caught.value.code == "param.value"
    assert not (tmp_path / "out").exists()


def test_the_sign_of_nothing_is_plus():
    """Changes that cancel: + is elected, as in mergekit; not the sign of the majority of elements, as elsewhere."""
    merged = alone("ties", [[1.0, -2.0, -1.0], [-1.0, 2.0, -1.0]], [0.0, 0.0, 0.0], density=1.0)
    assert merged.tolist() == [1.0, 2.0, -1.0]


def twice(file, tmp_path, names):
    """A file of two merges, and the same with its first one written and read again: the files of both results, by name."""
    first, second = file.split("---\n")
    (tmp_path / "both.yml").write_text(file)
    merge_recipe(tmp_path / "both.yml", tmp_path / "both")
    (tmp_path / "first.yml").write_text(first)
    merge_recipe(tmp_path / "first.yml", tmp_path / "first")
    (tmp_path / "second.yml").write_text(second.replace("EARLIER", str(tmp_path / "first")))
    merge_recipe(tmp_path / "second.yml", tmp_path / "second")
    return [{n: (tmp_path / folder / n).read_bytes() for n in names if (tmp_path / folder / n).exists()} for folder in ("both", "second")]  # fmt: skip


ADAPTED = """name: EARLIER
merge_method: slerp
base_model: llama-x
models: [{model: llama-x}, {model: llama-y}]
parameters: {t: 0.3}
dtype: float32
---
merge_method: task_arithmetic
base_model: llama-base
models:
- {model: EARLIER+adapter, parameters: {weight: 0.6}}
- {model: llama-z, parameters: {weight: 0.5}}
dtype: float32
"""
UNITED = """name: EARLIER
merge_method: linear
base_model: words-x
models: [{model: words-x, parameters: {weight: 0.6}}, {model: words-y, parameters: {weight: 0.4}}]
tokenizer_source: union
chat_template: chatml
dtype: float32
---
merge_method: linear
base_model: BASE
models: [{model: EARLIER, parameters: {weight: 0.5}}, {model: words-y, parameters: {weight: 0.5}}]
tokenizer_source: SOURCE
dtype: float32
"""
SURROUNDINGS = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")  # fmt: skip


def test_an_adapter_on_an_earlier_merge(tmp_path):
    """Its change is added where the earlier merge's numbers are computed."""
    lazy, written = twice(ADAPTED, tmp_path, SURROUNDINGS)
    assert lazy == written
    (tmp_path / "without.yml").write_text(ADAPTED.replace("+adapter", ""))
    merge_recipe(tmp_path / "without.yml", tmp_path / "without")
    assert (tmp_path / "without/model.safetensors").read_bytes() != lazy["model.safetensors"]


@pytest.mark.parametrize(
    ("base", "source"), [("EARLIER", "base"), ("EARLIER", "union"), ("words-y", "EARLIER"), ("words-y", "union")]
)
def test_a_union_in_an_earlier_merge(base, source, tmp_path, monkeypatch):
    """The next merge reads the united tokenizer, its rows and its template, and nothing of it stays behind."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    file = UNITED.replace("BASE", base).replace("SOURCE", source)
    lazy, written = twice(file, tmp_path, SURROUNDINGS)
    assert lazy == written
    words = json.loads(lazy["tokenizer.json"])["model"]["vocab"]
    assert {*WORDS_X, *WORDS_Y} <= set(words)
    assert json.loads(lazy["config.json"])["vocab_size"] == len(words)
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_place_where_nothing_can_be_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    (tmp_path / "both.yml").write_text(ADAPTED)
    with pytest.raises(InterfuseError) as caught:
        merge_recipe(tmp_path / "both.yml", tmp_path / "out")
    assert caught.value.code == "output.write"
    assert "both.yml:1" in caught.value.where
    assert not (tmp_path / "out").exists()


def test_layers_chosen_in_an_earlier_merge_are_counted(tmp_path):
    file = """name: EARLIER
merge_method: passthrough
slices: [{sources: [{model: llama-x, layer_range: [0, 2]}]}, {sources: [{model: llama-y, layer_range: [1, 4]}]}]
dtype: float32
---
merge_method: passthrough
models: [{model: EARLIER}]
"""
    lazy, written = twice(file, tmp_path, SURROUNDINGS)
    assert lazy == written
    assert json.loads(lazy["config.json"])["num_hidden_layers"] == 5


def test_an_adapter_leaves_no_merged_copy(tmp_path, monkeypatch):
    """mergekit writes the base with the adapter merged into it before it begins."""
    (tmp_path / "temporary").mkdir()
    written, real = [], room.WeightWriter

    def noted(folder, *rest, **more):
        written.append(Path(folder))
        return real(folder, *rest, **more)

    monkeypatch.setattr(room, "WeightWriter", noted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = sorted(p for p in Path().rglob("*") if p.is_file())
    merge_recipe(HERE / "mergekit/task-arithmetic-lora.yml", tmp_path / "out" / "merged", ctx=Ctx(cache=tmp_path / "cache"))  # fmt: skip
    assert len(written) == 1
    assert [p for p in tmp_path.rglob("*.safetensors") if p.parent != tmp_path / "out" / "merged"] == []
    assert list((tmp_path / "temporary").iterdir()) == []
    assert sorted(p for p in Path().rglob("*") if p.is_file()) == before


def test_union_of_words(merged):
    """mergekit's new tokens get their ids in the order of a hash table, and as added tokens they are cut out of other words:
    there it reads ``there`` as [UNK] and ``here``. Ours keep the order of their source and are words like the others."""
    from transformers import AutoTokenizer

    folder, made = merged("tokenizer-union")
    golden = GOLDEN["recipes"]["tokenizer-union"]
    assert golden["encoded"]["there sees a bluebird"] == ["[UNK]", "here", "sees", "a", "blue", "bird"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    read = {text: tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) for text in golden["encoded"]}
    assert read == {"the cat swims here": ["the", "cat", "swims", "here"], "there sees a bluebird": ["[UNK]", "sees", "a", "[UNK]"],
                    "fish dog": ["fish", "dog"]}  # fmt: skip
    order = ["[PAD]", "[UNK]", "[EOS]", *WORDS_X, *(w for w in WORDS_Y if w not in WORDS_X)]
    assert tokenizer.get_vocab() == {w: i for i, w in enumerate(order)}
    for token, row in golden["tokens"].items():  # the rows are the same, at other ids
        mine = made["model.embed_tokens.weight"][order.index(token), :3]
        np.testing.assert_allclose(mine.numpy(), golden["embedding"][row], rtol=1e-6, atol=1e-6)
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == len(order) == made["lm_head.weight"].shape[0]
    assert (config["pad_token_id"], config["eos_token_id"]) == (0, 2)


def test_tokens_of_the_block(merged):
    """The rows are mergekit's (test above); padding is the mean row, the template is written, special ids are the tokenizer's."""
    from transformers import AutoTokenizer

    folder, made = merged("tokenizer-block")
    assert made["lm_head.weight"].shape[0] == 16
    torch.testing.assert_close(made["lm_head.weight"][11:], made["lm_head.weight"][:11].mean(0).expand(5, -1))
    said = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "cat"}], tokenize=False
    )
    assert said == "<|im_start|>user\ncat<|im_end|>\n"
    report = json.loads((folder / "merge.json").read_text())["tokenizer"]
    assert report["padding"] == 5
    assert report["missing rows from"]["given"] == 2
    assert report["texts"] == 1000


# ------------------------------------------------------------------- reading


def test_linting_reads_no_number(monkeypatch):
    def never(*args, **rest):
        raise AssertionError("a weight was read")

    for name in ("read_range", "read_bytes", "tensor", "sha256"):
        monkeypatch.setattr(Weights, name, never)
    for name in RECIPES:
        if name != "task-arithmetic-lora":  # an adapter's small matrices are held
            found = lint(HERE / "mergekit" / f"{name}.yml")
            assert found["tensors"] > 20
            assert found["bytes"] > 0
    assert "rescale" not in str(lint(HERE / "mergekit/dare-ties.yml")["notes"])


def test_notes_say_what_has_no_effect():
    stage = read_mergekit(HERE / "mergekit/ties-density-gradient.yml")[0]
    assert any("int8_mask" in note for note in stage.notes)
    assert stage.params["density"][0] == {"gradient": [1, 0.7, 0.1]}
    base = read_mergekit(HERE / "mergekit/linear-base-included.yml")[0]
    assert base.models == ("llama-x", "llama-y", "llama-base")
    assert base.base is None
    assert any("base_model" in note for note in base.notes)


def test_what_files_carry_over_from_another_method_is_noted_with_its_line(tmp_path):
    text = "merge_method: slerp\nbase_model: a\nmodels:\n- model: a\n- model: b\n  parameters: {weight: 1}\nparameters:\n  t: 0.3\n"
    (tmp_path / "plain.yml").write_text(text.replace("  parameters: {weight: 1}\n", ""))
    (tmp_path / "more.yml").write_text(text + "  int8_mask: true\n  embed_slerp: true\n")
    plain, more = (read_mergekit(tmp_path / f"{name}.yml")[0] for name in ("plain", "more"))
    assert more.params == plain.params
    said = [note for note in more.notes if "no effect with slerp" in note]
    assert [note.split()[0] for note in said] == ["int8_mask", "embed_slerp", "weight"]
    assert "line 6" in said[2]


GOOD = "merge_method: ties\nbase_model: llama-base\nmodels:\n  - model: llama-x\n    parameters: {weight: 1, density: 0.5}\ndtype: float32\n"
BAD = {
    "method": (GOOD.replace("ties", "tise"), 1, "recipe.key", "Did you mean ties"),
    "key": (GOOD + "base_modle: x\n", 7, "recipe.key", "Did you mean base_model"),
    "parameter": (GOOD.replace("density", "desnity"), 5, "recipe.key", "Did you mean density"),
    "of another method": (GOOD.replace("density", "gamma"), 5, "recipe.key", "gamma"),
    "filter": (GOOD.replace("0.5}", "[{filter: selfattn, value: 0.5}]}"), 5, "param.value", "Did you mean self_attn"),
    "old spelling": (GOOD.replace("0.5}", "[{pattern: mlp, value: 0.5}]}"), 5, "recipe.key", "Did you mean filter"),
    "range": (GOOD.replace("0.5", "1.5"), 5, "param.value", "density"),
    "range of the recipe's level": (GOOD.replace(", density: 0.5", "") + "parameters:\n  weight: 1\n  density:\n  - {filter: mlp, value: 0.3}\n  - value: [0.5, -2]\n", 11,
                                    "param.value", "density"),
    "range of a word": ("merge_method: tsv\nbase_model: llama-base\nmodels:\n- model: llama-x\nparameters:\n  scale: 1\n  svd: exakt\n", 7, "param.value", "svd"),
    "a list where one value counts": (GOOD + "parameters:\n  normalize: [true, false]\n", 8, "recipe.key", "one value for all tensors"),
    "text": (GOOD.replace("0.5", "half"), 5, "recipe.key", "a number is wanted"),
    "dtype": (GOOD.replace("float32", "flaot16"), 6, "recipe.key", "Did you mean float16"),
    "no models": (GOOD.replace("models:", "models: []\nslices: []\nx:").replace("x:\n", "#\n").split("  -")[0], 1, "recipe.key", "exactly one"),
    "base missing": (GOOD.replace("base_model: llama-base\n", ""), 2, "recipe.key", "needs base_model"),
    "nowhere": (GOOD.replace("llama-x", "llama-q"), 4, "input.missing", "llama-q"),
    "t of one model": ("merge_method: slerp\nbase_model: llama-x\nslices:\n- sources:\n  - model: llama-x\n    layer_range: [0, 4]\n"
                       "  - {model: llama-y, layer_range: [0, 4], parameters: {t: 0.5}}\n", 7, "recipe.key", "all models together"),
    "layers": ("merge_method: passthrough\nslices:\n- sources:\n  - {model: llama-x, layer_range: [2, 9]}\n", 1, "param.value", "which has 4"),
    "range form": ("merge_method: passthrough\nslices:\n- sources:\n  - {model: llama-x, layer_range: 4}\n", 4, "recipe.key", "[first, end)"),
    "lengths": ("merge_method: linear\nslices:\n- sources:\n  - {model: llama-x, layer_range: [0, 2]}\n  - {model: llama-y, layer_range: [0, 3]}\n",
                1, "param.value", "as many layers"),
    "one weight": (GOOD.replace("  - model: llama-x", "  - model: llama-y\n  - model: llama-x"), 4, "recipe.key", "has no weight"),
    "no number": (GOOD.replace("0.5", ".nan"), 5, "recipe.key", "a finite number is wanted"),
    "larger than any number": (GOOD.replace("0.5", "1" + 400 * "0"), 5, "recipe.key", "a finite number is wanted"),
    "a seed": (GOOD + "random_seed: 42\n", 7, "recipe.key", "--seed NUMBER"),
    "layers outside slices": (GOOD.replace("  - model: llama-x\n", "  - model: llama-x\n    layer_range: [0, 4]\n"), 5, "recipe.key", "chosen in slices"),
    "a file of mergekit-moe": ("base_model: llama-x\ngate_mode: hidden\nexperts:\n- source_model: llama-x\n", 3, "recipe.key", "mergekit-moe"),
    "the base's weight": ("merge_method: linear\nbase_model: llama-base\nmodels:\n- {model: llama-x, parameters: {weight: 1}}\n", 2, "recipe.key",
                          "the base llama-base has no weight"),
    "filter_wise": ("merge_method: model_stock\nbase_model: llama-base\nmodels:\n- model: llama-x\n- model: llama-y\nparameters:\n"
                    "  filter_wise: [true, false]\n", 7, "recipe.key", "filter_wise"),
    "a method nobody has": (GOOD.replace("ties", "tiles"), 1, "recipe.key", "no merge_method 'tiles'"),
    "one model's cut": (GOOD.replace("ties", "ram").replace("density", "epsilon"), 5, "recipe.key", "epsilon holds for all models together"),
    "a revision of a merge": ("name: a\n" + GOOD + "---\nmerge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n"
                              "- {model: a@main+adapter, parameters: {weight: 1}}\n", 9, "recipe.key", "no revisions"),
    "no adapter there": ("name: a\n" + GOOD + "---\n" + GOOD.replace("llama-x", "a+nowhere"), 9, "input.missing", "nowhere"),
    "no adapter for it": ("name: a\n" + GOOD + "---\n" + GOOD.replace("llama-x", "a+llama-y"), 9, "input.missing", "adapter_config.json"),
    "an adapter of another base": ("name: a\nmerge_method: passthrough\nslices: [{sources: [{model: llama-x, layer_range: [0, 1]}]}]\n---\nmerge_method: passthrough\nmodels: [{model: a+adapter}]\n",
                                   5, "input.shape", "does not fit this base"),
    "not YAML": ("merge_method: [ties\n", 2, "recipe.syntax", "YAML"),
    "a tag": ("merge_method: !!python/name:os.system ''\n", 1, "recipe.syntax", "data"),
    "two results": (GOOD + "---\n" + GOOD, 1, "recipe.key", "without a name"),
    "idle stage": ("name: a\n" + GOOD + "---\n" + GOOD, 1, "recipe.key", "nothing uses"),
    "same name": ("name: a\n" + GOOD + "---\nname: a\n" + GOOD, 9, "recipe.key", "two merges"),
    "a circle": ("name: a\n" + GOOD.replace("llama-x", "b") + "---\nname: b\n" + GOOD.replace("llama-x", "a"), 1, "recipe.cycle", "need each other"),
    "line of a later stage": ("name: a\n" + GOOD + "---\n" + GOOD.replace("llama-x", "a").replace("density", "desnity"), 13, "recipe.key", "density"),
    "tokens of no model": (GOOD + "tokenizer: {source: base, tokens: {cat: {source: llama-z}}}\n", 7, "recipe.key", "not a model of this merge"),
    "template": (GOOD.replace("llama-x", "words-x").replace("llama-base", "words-x").replace("words-x", "words-y", 1)
                 + "tokenizer_source: union\nchat_template: nonsense\n", 0, "param.value", "no chat template"),
    "different words": ("merge_method: linear\nmodels:\n- {model: words-x, parameters: {weight: 1}}\n- {model: words-y, parameters: {weight: 1}}\n",
                        1, "input.vocabulary", "tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_refused_with_their_line(case, tmp_path):
    text, line, code, words = BAD[case]
    (tmp_path / "recipe.yml").write_text(text)
    with pytest.raises(InterfuseError) as caught:
        merge_recipe(tmp_path / "recipe.yml", tmp_path / "out")
    assert caught.value.code == code, caught.value
    assert words in str(caught.value)
    if line:
        assert f"recipe.yml:{line}" in caught.value.where
    assert not (tmp_path / "out").exists()


def test_models_beside_the_file(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (models / "here.yml").write_text("merge_method: passthrough\nmodels: [{model: llama-base+adapter}]\n")
    made = merge_recipe(models / "here.yml", tmp_path / "out")
    (models / "here.yml").unlink()
    changed = load_file(made.path / "model.safetensors")
    base = load_file(models / "llama-base/model.safetensors")
    assert sum(not changed[k].equal(base[k]) for k in base) == 2 * SIZES["llama"]["num_hidden_layers"]


def test_order_of_models_changes_no_bit(models, tmp_path):
    text = (HERE / "mergekit/linear-soup.yml").read_text()
    rows = text.split("  - model: ")
    head, tail = rows[0], rows[-1].split("merge_method")[1]
    blocks = [*rows[1:-1], rows[-1].split("merge_method")[0]]
    (tmp_path / "turned.yml").write_text(
        head + "".join("  - model: " + b for b in reversed(blocks)) + "merge_method" + tail
    )
    a = merge_recipe(HERE / "mergekit/linear-soup.yml", tmp_path / "a").path
    b = merge_recipe(tmp_path / "turned.yml", tmp_path / "b").path
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
