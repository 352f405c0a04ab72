"""Parameters that differ by layer and name, slices of several models, and what of it is refused, in the room's own terms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import interfuse
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.merge.plan import layer_of, stacks
from interfuse.merge.schedule import at
from tests.tiny_models import tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [str(tiny(folder, "llama", name)) for name in ("base", "x", "y")]


def layers_of(model, out, **given_):
    return load_file(interfuse.merge.linear(model, out=out, **given_).path / "model.safetensors")


def test_values_by_rule_and_layer():
    value = [{"regex": r"mlp\.(up|gate)", "value": {"gradient": [0, 1]}}, {"filter": "mlp", "value": 5}, {"layer": ">=2", "value": 7},
             {"layer": "0-1", "value": {"gradient": [2, 4, 2]}}, {"layer": "9", "value": 3}]  # fmt: skip
    assert at(value, "model.layers.1.mlp.up_proj.weight", 1, 0.25) == 0.25
    assert at(value, "model.layers.1.mlp.down_proj.weight", 1, 0.25) == 5
    assert at(value, "model.layers.3.self_attn.q_proj.weight", 3, 1.0) == 7
    assert at(value, "model.layers.1.self_attn.q_proj.weight", 1, 0.25) == 3
    assert at(value, "model.norm.weight", None, 0.0) is None
    assert at([{"filter": "*", "value": 1}], "anything", None, 0.0) == 1


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6), st.floats(0, 1))
def test_gradients_interpolate(values, t):
    import numpy as np

    expected = np.interp(t * (len(values) - 1), range(len(values)), values)
    assert at({"gradient": values}, "x", 0, t) == pytest.approx(float(expected), abs=1e-9)


@given(
    st.integers(0, 99),
    st.sampled_from(["model.layers.", "h.", "bert.encoder.layer.", ""]),
    st.sampled_from([".w", ".experts.3.w1"]),
)
def test_the_layer_is_the_first_number(number, before, after):
    assert layer_of(f"{before}{number}{after}") == (before, number, after)
    assert layer_of("model.norm.weight") is None
    assert layer_of("transformer.wte2.weight") is None
    assert stacks([f"{before}{i}{after}" for i in range(number + 1)]) == {before: number + 1}


def test_rules_in_python_and_flags_are_one(models, tmp_path):
    """A schedule as a Python value, and as the text of a flag."""
    rules = [{"filter": "mlp", "value": 0.25}, {"layer": "<2", "value": {"gradient": [0, 1]}}]
    slerp = load("merge/slerp")
    assert slerp.check({"t": json.dumps(rules)})["t"] == slerp.check({"t": rules})["t"]
    made = interfuse.merge.slerp(models[1:], t=rules, out=tmp_path / "out")
    a, b, got = (load_file(f"{m}/model.safetensors") for m in (*models[1:], made.path))
    import numpy as np

    from tests.oracles.merge_methods_oracle import arc

    for key in a:
        number = layer_of(key)
        layer = number[1] if number else None
        t = 0.25 if "mlp" in key else 0.5 if layer is None or layer >= 2 else layer / 3
        pair = [{key: m[key].double().numpy()} for m in (a, b)]
        np.testing.assert_allclose(got[key].numpy(), arc(pair, None, t=t)[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_a_list_is_for_the_models_and_may_hold_schedules(models, tmp_path):
    made = layers_of(models[:2], tmp_path / "a", weight=[{"gradient": [1, 0]}, {"gradient": [0, 1]}], normalize=False)
    base, x = (load_file(f"{m}/model.safetensors") for m in models[:2])
    for key, value in made.items():
        place = layer_of(key)
        t = place[1] / 3 if place else 0.0
        torch.testing.assert_close(value, (1 - t) * base[key] + t * x[key], rtol=1e-5, atol=1e-6)
    text = load("merge/linear").check({"weight": '[0.5, [{"filter": "mlp", "value": 2}, {"value": 1}]]'})["weight"]
    assert text == [0.5, [{"value": 2.0, "filter": "mlp"}, {"value": 1.0}]]


def test_slices_stack_and_keep_weights_per_model(models, tmp_path):
    slices = [
        {"sources": [{"model": 1, "layers": [0, 3]}]},
        {"sources": [{"model": 0, "layers": [1, 3]}, {"model": 1, "layers": [2, 4]}], "parameters": {"weight": [1, 3]}},
        {"sources": [{"model": 0, "layers": [3, 4]}, {"model": 1, "layers": [3, 4]}]},
    ]
    made = layers_of(models[:2], tmp_path / "a", slices=slices, weight=[1, 4])
    base, x = (load_file(f"{m}/model.safetensors") for m in models[:2])
    q = "model.layers.{}.self_attn.q_proj.weight"
    assert sum(".self_attn.q_proj" in k for k in made) == 6
    assert made[q.format(2)].equal(x[q.format(2)])
    torch.testing.assert_close(made[q.format(4)], 0.25 * base[q.format(2)] + 0.75 * x[q.format(3)])
    torch.testing.assert_close(made[q.format(5)], 0.2 * base[q.format(3)] + 0.8 * x[q.format(3)])
    assert made["model.embed_tokens.weight"].equal(x["model.embed_tokens.weight"])  # of the first slice
    torch.testing.assert_close(
        made["lm_head.weight"], 0.2 * base["lm_head.weight"] + 0.8 * x["lm_head.weight"]
    )  # of the last
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert module.config.num_hidden_layers == 6


def test_a_tied_model_meets_an_untied_one(tmp_path):
    tied, free = tiny(tmp_path, "qwen2", "x"), tiny(tmp_path, "qwen2", "y", tie_word_embeddings=False)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    made = interfuse.merge.linear([str(tied), str(free)], out=tmp_path / "out")
    got = load_file(made.path / "model.safetensors")
    a, b = load_file(tied / "model.safetensors"), load_file(free / "model.safetensors")
    torch.testing.assert_close(got["lm_head.weight"], (a["model.embed_tokens.weight"] + b["lm_head.weight"]) / 2)
    assert made.config["tie_word_embeddings"] is False
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(made.path)
    torch.testing.assert_close(module.lm_head.weight.detach(), got["lm_head.weight"])


BAD = {
    "filter fits nothing": ({"weight": [{"filter": "selfattn", "value": 1}, {"value": 2}]}, "param.value", "Did you mean self_attn"),
    "layer fits nothing": ({"weight": [{"layer": ">=4", "value": 1}, {"value": 2}]}, "param.value", "fits no tensor"),
    "two conditions": ({"weight": [{"layer": "1", "filter": "mlp", "value": 1}]}, "param.value", "at most one"),
    "unknown key": ({"weight": [{"fliter": "mlp", "value": 1}]}, "param.value", "Did you mean filter"),
    "bad regex": ({"weight": [{"regex": "(", "value": 1}]}, "param.value", "regular expression"),
    "bad layer": ({"weight": [{"layer": "top", "value": 1}]}, "param.value", "condition on the layer"),
    "empty gradient": ({"weight": {"gradient": []}}, "param.value", "gradient"),
    "a word in a gradient": ({"weight": {"gradient": [1, "x"]}}, "param.value", "number"),
    "not a number in a gradient": ({"weight": {"gradient": [1, float("nan")]}}, "param.value", "numbers"),
    "bad JSON": ({"weight": "[{"}, "param.value", "JSON"),
    "list of another length": ({"weight": [1, {"gradient": [0, 1]}, 3]}, "param.value", "3 values for 2 models"),
    "no such model": ({"slices": [{"sources": [{"model": 2, "layers": [0, 4]}]}]}, "param.value", "no model 2"),
    "no such layer": ({"slices": [{"sources": [{"model": 0, "layers": [3, 5]}]}]}, "param.value", "which has 4"),
    "layers backwards": ({"slices": [{"sources": [{"model": 0, "layers": [3, 2]}]}]}, "param.value", "first, end"),
    "unknown key of a slice": ({"slices": [{"source": []}]}, "param.unknown", "Did you mean sources"),
    "unknown parameter of a slice": ({"slices": [{"sources": [{"model": 0, "layers": [0, 4]}], "parameters": {"wieght": 1}}]},
                                     "param.unknown", "Did you mean weight"),
    "unequal sources": ({"slices": [{"sources": [{"model": 0, "layers": [0, 4]}, {"model": 1, "layers": [0, 3]}]}]}, "param.value", "as many"),
    "unknown module": ({"slices": [{"sources": [{"model": 0, "layers": [0, 4]}], "module": "encodr"}]}, "param.value", "encodr"),
    "tokens without tokenizer": ({"pad_to_multiple_of": 8}, "param.missing", "tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_sense_is_refused_before_work(case, models, tmp_path):
    given_, code, words = BAD[case]
    with pytest.raises(InterfuseError) as caught:
        interfuse.merge.linear(models[:2], out=tmp_path / "out", **given_)
    assert caught.value.code == code, caught.value
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_ranges_hold_within_schedules(models):
    ties = load("merge/ties")
    for value in (
        {"gradient": [0.5, 1.5]},
        [0.5, {"gradient": [0, 1.1]}],
        [{"filter": "mlp", "value": 2}],
        -0.1,
        [0.2, -1],
    ):
        with pytest.raises(InterfuseError) as caught:
            ties.check({"density": value})
        assert caught.value.code == "param.value"
    with pytest.raises(InterfuseError):
        load("merge/slerp").check({"t": [0.2, 0.3]})  # t has one value, not one per model


@pytest.mark.parametrize("method", ["linear", "task-arithmetic", "dare-linear", "breadcrumbs"])
def test_weights_that_cancel_cannot_be_normalised(method, models, tmp_path):
    """mergekit divides by 0 here."""
    from interfuse.core.rooms import apply

    given_ = {"models": models[1:], "weight": [1, -1], "normalize": True}
    with pytest.raises(InterfuseError, match="sum to 0") as caught:
        apply(f"merge/{method}", out=tmp_path / "out", **given_, **({} if method == "linear" else {"base": models[0]}))
    assert caught.value.code == "param.value"
    assert not (tmp_path / "out").exists()


def test_modules_are_parts_of_the_name(tmp_path):
    import transformers

    config = transformers.AutoConfig.for_model(
        "t5", vocab_size=29, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=2, num_heads=2
    )
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / str(seed))
        folders.append(str(tmp_path / str(seed)))
    both = [{"model": 0, "layers": [0, 3]}, {"model": 1, "layers": [0, 3]}]
    shallow = [{"model": i, "layers": [0, 2]} for i in (0, 1)]
    slices = [{"module": "encoder", "sources": both, "parameters": {"weight": [1, 0]}},
              {"module": "decoder", "sources": shallow, "parameters": {"weight": [0, 1]}}]  # fmt: skip
    made = layers_of(folders, tmp_path / "out", slices=slices)
    a, b = (load_file(f"{f}/model.safetensors") for f in folders)
    for key, value in made.items():
        assert value.equal(a[key] if key.startswith("encoder") else b[key]), key


def test_planning_grows_with_the_number_of_tensors():
    """Mixtures of experts have tens of thousands: twice as many cost about twice the time, not four times."""
    import time

    from interfuse.data.overlay import Overlay
    from interfuse.merge.plan import plan_outputs, read_slices

    linear = load("merge/linear")
    own = {"weight": [[{"filter": "w1", "value": 1.0}, {"value": {"gradient": [0.0, 1.0]}}], 1.0], "normalize": True}

    class Shaped:
        shape = (2, 2)

        def read(self, start, stop, out=None):
            raise AssertionError("planning reads nothing")

    def seconds(experts):
        names = [f"model.layers.{i}.mlp.experts.{e}.w{j}" for i in range(20) for e in range(experts) for j in (1, 2)]
        models = [Overlay(None, {n: (Shaped(), torch.bfloat16) for n in names}) for _ in range(2)]
        best = 1e9
        for _ in range(3):
            began = time.process_time()
            parts = read_slices(None, 2, False, own, ("weight",), linear.params)
            assert len(plan_outputs(models, None, parts, {"weight": 1.0}, ["a", "b"])) == len(names)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(200) < 11 * seconds(50)  # quadratic would be 16


def test_frozen_tensors_are_those_of_the_base(models, tmp_path):
    base, x, y = map(Path, models)
    plain = interfuse.merge.ties([x, y], base=base, density=0.4, out=tmp_path / "plain")
    made = interfuse.merge.ties([x, y], base=base, density=0.4, freeze=["lm_head", "layers.2."], out=tmp_path / "out")
    under, free, got = (load_file(p / "model.safetensors") for p in (base, plain.path, made.path))
    kept = 0
    for name, tensor in got.items():
        frozen = "lm_head" in name or "layers.2." in name
        kept += frozen
        assert tensor.equal(under[name] if frozen else free[name]), name
        assert not frozen or not tensor.equal(free[name])
    assert kept == 10
    report = json.loads((made.path / "merge.json").read_text())
    assert report["made"][report["tensors"]["lm_head.weight"]]["kept"]
    assert "layers.2." in (made.path / "README.md").read_text()
    rules = [{"filter": "lm_head", "value": 1.0}, {"value": 0.4}]
    ruled = interfuse.merge.ties([x, y], base=base, density=rules, freeze=["lm_head"], out=tmp_path / "ruled")
    said = json.loads((ruled.path / "merge.json").read_text())["remarks"]
    assert said == ["density 0.4: of every task vector 0.4 is kept, 0.6 is trimmed"]
    half = interfuse.merge.linear([x, y], freeze=["lm_head"], out_dtype="bfloat16", out=tmp_path / "half")
    got = load_file(half.path / "model.safetensors")["lm_head.weight"]
    assert got.equal(
        load_file(x / "model.safetensors")["lm_head.weight"].bfloat16()
    )  # without a base the first model's
    with pytest.raises(InterfuseError, match="fits no tensor") as caught:
        interfuse.merge.linear([x, y], freeze=["lm_haed"], out=tmp_path / "no")
    assert caught.value.code == "param.value"


def test_one_cut_of_a_vector_leaves_frozen_tensors_out(models, tmp_path):
    base, x, y = map(Path, models)
    own = {"base": base, "density": 0.3, "trim_scope": "model"}
    made = interfuse.merge.ties([x, y], freeze=["layers.1."], out=tmp_path / "out", **own)
    states = [load_file(p / "model.safetensors") for p in (base, x, y)]
    rest = [{n: t.clone() for n, t in s.items() if "layers.1." not in n} for s in states]
    alone = interfuse.merge.ties(rest[1:], out=tmp_path / "rest", **{**own, "base": rest[0]})
    got = load_file(made.path / "model.safetensors")
    assert all(got[n].equal(t) for n, t in load_file(alone.path / "model.safetensors").items())
    assert all(got[n].equal(t) for n, t in states[0].items() if "layers.1." in n)
