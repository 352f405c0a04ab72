"""LoRA adapters as sources: the numbers peft itself gives, computed while they are read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import Source, load_room, prepare
from interfuse.data.models import build, open_model
from interfuse.data.overlay import whole
from interfuse.merge.inspect import explain, verify_merge
from tests.tiny_models import adapter, tiny

peft = pytest.importorskip("peft")

SETTINGS = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
    "rank-stabilised": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["v_proj"]},
    "patterns": {"r": 4, "lora_alpha": 6, "rank_pattern": {"layers.1.self_attn.q_proj": 2},
                 "alpha_pattern": {"layers.1.self_attn.q_proj": 9}, "target_modules": ["q_proj"]},
    "dora": {"r": 2, "lora_alpha": 5, "use_dora": True, "target_modules": ["o_proj", "up_proj"]},
    "embedding": {"r": 2, "lora_alpha": 5, "target_modules": ["embed_tokens", "q_proj"]},
    "whole tensors": {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "transposed": {"r": 3, "lora_alpha": 4, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_fc"]},
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_numbers_of_peft(case, tmp_path):
    kind = "gpt2" if case == "transposed" else "llama"
    base = tiny(tmp_path, kind)
    expected = adapter(base, tmp_path / "adapter", **SETTINGS[case])
    model = open_model(Source(f"{base}+{tmp_path / 'adapter'}"), Ctx())
    with model.computed.open() as tensors:
        changed = 0
        for name in tensors:
            got = whole(tensors.source(name))
            torch.testing.assert_close(got, expected[name], rtol=1e-5, atol=1e-6)
            flat = got.view(-1)
            third = flat.numel() // 3
            assert (
                tensors.source(name).read(third, 2 * third + 1).equal(flat[third : 2 * third + 1])
            )  # same bits in any piece
            changed += not got.equal(load_file(base / "model.safetensors")[name])
        assert changed >= 2
    module = build(model, Ctx())
    torch.testing.assert_close(module.state_dict()["lm_head.weight"], expected["lm_head.weight"])


def test_adapter_folder_names_its_base(tmp_path):
    base = tiny(tmp_path, "llama")
    adapter(base, tmp_path / "adapter", **SETTINGS["plain"])
    model = open_model(Source(str(tmp_path / "adapter")), Ctx())
    assert model.computed.base == base
    assert model.config["model_type"] == "llama"
    before = model.fingerprint()
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    save_file({n: t * 2 for n, t in weights.items()}, tmp_path / "adapter/adapter_model.safetensors")
    assert model.fingerprint() != before
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "/nowhere/x"})
    )
    with pytest.raises(InterfuseError, match="BASE\\+ADAPTER") as caught:
        open_model(Source(str(tmp_path / "adapter")), Ctx())
    assert caught.value.code == "input.missing"


def test_another_base_is_refused(tmp_path):
    base, wide = tiny(tmp_path, "llama"), tiny(tmp_path, "llama", "wide", hidden_size=24, num_attention_heads=3)
    other = tiny(tmp_path, "gpt2")
    adapter(base, tmp_path / "adapter", **SETTINGS["plain"])
    for wrong, word in ((wide, "down_proj"), (other, "no model.layers.0")):
        with pytest.raises(InterfuseError, match=word) as caught:
            open_model(Source(f"{wrong}+{tmp_path / 'adapter'}"), Ctx()).computed.open()
        assert caught.value.code == "input.shape"


def test_damaged_adapters_are_refused(tmp_path):
    base = tiny(tmp_path, "llama")
    adapter(base, tmp_path / "adapter", **SETTINGS["plain"])
    file, config = tmp_path / "adapter/adapter_model.safetensors", tmp_path / "adapter/adapter_config.json"
    whole_file, settings = file.read_bytes(), config.read_text()
    tensors = load_file(file)

    def refused(code):
        with pytest.raises(InterfuseError) as caught:
            open_model(Source(f"{base}+{tmp_path / 'adapter'}"), Ctx()).computed.open()
        assert caught.value.code == code

    save_file({n: t for n, t in tensors.items() if "lora_B" not in n}, file)
    refused("input.format")
    file.write_bytes(whole_file[:-7])
    refused("input.format")
    file.rename(file.with_suffix(".bin"))
    refused("unsafe.pickle")
    config.write_text(settings.replace('"LORA"', '"IA3"'))
    refused("needs.capability")
    config.write_text("{")
    refused("input.format")
    config.unlink()
    refused("input.missing")


def test_an_adapter_with_more_tokens_than_its_base(tmp_path):
    """Resized embeddings are saved whole; the merged model has their rows, and its configuration says so."""
    from transformers import AutoModelForCausalLM

    import interfuse

    base = tiny(tmp_path, "llama")
    module = AutoModelForCausalLM.from_pretrained(base)
    module.resize_token_embeddings(33)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    adapted = peft.get_peft_model(module, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.merge_and_unload().state_dict()
    model = open_model(Source(f"{base}+{tmp_path / 'adapter'}"), Ctx())
    assert model.config["vocab_size"] == 33
    assert build(model, Ctx()).get_input_embeddings().weight.shape[0] == 33
    made = interfuse.merge.passthrough([model], out=tmp_path / "out")
    got = AutoModelForCausalLM.from_pretrained(made.path)
    torch.testing.assert_close(got.state_dict()["model.embed_tokens.weight"], expected["model.embed_tokens.weight"])
    with pytest.raises(InterfuseError) as caught:
        interfuse.merge.task_arithmetic([model], base=str(base), out=tmp_path / "no")
    assert caught.value.code == "input.vocabulary"


@pytest.fixture
def pair_of_adapters(tmp_path):
    """A base and two adapters on it, of different ranks and layers."""
    base = tiny(tmp_path, "llama")
    adapter(base, tmp_path / "one", r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    adapter(base, tmp_path / "two", r=2, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "v_proj"])
    return base, [f"{base}+{tmp_path / 'one'}", f"{base}+{tmp_path / 'two'}"]


def loaded_by_peft(base, folder):
    from transformers import AutoModelForCausalLM

    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)


def same_as_whole(method, models, base, tmp_path, *, atol=1e-6, given=None, **params):
    """The adapter as peft merges it beside the whole merged model; the adapter's model and facts."""
    import interfuse
    from interfuse.core.artifact import open_artifact

    apply = getattr(interfuse.merge, method)
    given = {} if given is None else {"base": given}
    whole_model = apply(
        models, out=tmp_path / "whole", **given, **{n: v for n, v in params.items() if n != "lora_rank"}
    )
    made = apply(models, out=tmp_path / "lora", output="lora", **given, **params)
    expected = load_file(whole_model.path / "model.safetensors")
    got = loaded_by_peft(base, tmp_path / "lora").merge_and_unload().state_dict()
    assert set(expected) == set(got)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=atol, msg=name)
    with made.computed.open() as tensors:
        for name, tensor in expected.items():
            torch.testing.assert_close(whole(tensors.source(name)), tensor, rtol=0, atol=atol)
    return made, open_artifact(tmp_path / "lora").manifest["facts"]


def test_sums_of_adapters_are_an_adapter(pair_of_adapters, tmp_path):
    base, models = pair_of_adapters
    (base / "preprocessor_config.json").write_text('{"do_rescale": false}')
    made, facts = same_as_whole("linear", models, base, tmp_path, weight=[3, 1])
    assert facts == {"matrices": 12, "whole tensors": 0, "rank": 5, "share": 1.0}
    assert {p.name for p in (tmp_path / "lora").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "interfuse.json", "merge.json"}  # fmt: skip
    assert "library_name: peft" in (tmp_path / "lora/README.md").read_text()
    ranks = {n: t.shape[0] for n, t in load_file(tmp_path / "lora/adapter_model.safetensors").items() if "lora_A" in n}
    assert sorted(set(ranks.values())) == [2, 3, 5]  # those of q_proj add up
    assert verify_merge(tmp_path / "lora")["generated"] is not None
    numbers = explain(tmp_path / "lora", "layers.1.self_attn.q_proj.weight", models=models, base=base)["numbers"]
    assert numbers["norm of the result"] > 0
    again = open_model(Source(str(tmp_path / "lora")), Ctx())
    assert again.computed.base == base
    assert made.processor == again.processor == {"do_rescale": False}  # what reads pictures reads them as the base does
    other = [models[1], models[0]]
    import interfuse

    turned = interfuse.merge.linear(other, out=tmp_path / "turned", output="lora", weight=[1, 3])
    file = "adapter_model.safetensors"
    assert (turned.computed.adapter / file).read_bytes() == (made.computed.adapter / file).read_bytes()


def test_task_vectors_by_layer_are_an_adapter(pair_of_adapters, tmp_path):
    base, models = pair_of_adapters
    weight = [{"gradient": [0.2, 1.5]}, -0.4]
    _, facts = same_as_whole("task_arithmetic", models, base, tmp_path, given=str(base), weight=weight, scale=0.7)
    assert facts["share"] == 1.0


def test_what_is_no_sum_is_decomposed(pair_of_adapters, tmp_path):
    base, models = pair_of_adapters
    _, facts = same_as_whole("ties", models, base, tmp_path, given=str(base), density=0.5, lora_rank=99)
    assert facts["share"] == pytest.approx(1.0, abs=1e-12)
    import interfuse
    from interfuse.core.artifact import open_artifact

    shares = []
    for rank in (1, 3):
        made = interfuse.merge.ties(
            models, base=str(base), density=0.5, output="lora", lora_rank=rank, out=tmp_path / f"r{rank}"
        )
        shares.append(open_artifact(made.computed.adapter).manifest["facts"]["share"])
        held = load_file(made.computed.adapter / "adapter_model.safetensors")
        assert max(t.shape[0] for n, t in held.items() if "lora_A" in n) == rank
    assert 0 < shares[0] < shares[1] < 1


def test_fewer_ranks_are_the_best_approximation(pair_of_adapters, tmp_path):
    """The product of the matrices side by side is never multiplied out, and decomposed as if it were."""
    import interfuse

    base, models = pair_of_adapters
    folder = interfuse.merge.linear(models, out=tmp_path / "whole").path
    said: list[str] = []
    made = interfuse.merge.linear(models, output="lora", lora_rank=2, out=tmp_path / "small", ctx=Ctx(log=said.append))
    share = json.loads((tmp_path / "small/interfuse.json").read_text())["facts"]["share"]
    assert f"rank 2 holds {share:.1%} of the squared change; a larger lora_rank holds more" in said
    name = "model.layers.1.self_attn.q_proj.weight"
    change = (load_file(folder / "model.safetensors")[name] - load_file(base / "model.safetensors")[name]).double()
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    with made.computed.open() as tensors:
        got = whole(tensors.source(name)) - load_file(base / "model.safetensors")[name]
    torch.testing.assert_close(got.double(), (u[:, :2] * s[:2]) @ v[:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["dora", "embedding", "whole tensors", "transposed"])
def test_adapters_of_every_kind_merge_to_one(case, tmp_path):
    base = tiny(tmp_path, "gpt2" if case == "transposed" else "llama")
    adapter(base, tmp_path / "one", **SETTINGS[case])
    adapter(base, tmp_path / "two", **{**SETTINGS[case], "r": 3})
    models = [f"{base}+{tmp_path / n}" for n in ("one", "two")]
    same_as_whole("linear", models, base, tmp_path, weight=[1, 2], lora_rank=99)


def test_what_makes_no_adapter_is_refused(pair_of_adapters, tmp_path):
    import interfuse

    base, models = pair_of_adapters
    other = tiny(tmp_path, "llama", "x")
    adapter(other, tmp_path / "three", **SETTINGS["plain"])
    strange = f"{other}+{tmp_path / 'three'}"

    def refused(code, match, method="linear", given=None, **params):
        with pytest.raises(InterfuseError, match=match) as caught:
            getattr(interfuse.merge, method)(given or models, out=tmp_path / "no", output="lora", **params)
        assert caught.value.code == code
        assert not (tmp_path / "no").exists()

    refused("param.value", "whole model", given=[models[0], str(other)])
    refused("param.value", "one base", given=[models[0], strange])
    refused("param.value", "one base", method="task_arithmetic", base=str(other))
    refused("param.value", "weights sum to 2", weight=1.0, normalize=False)
    refused("param.value", "no adapter touches", method="passthrough", given=models[:1], scale=0.5)
    refused("param.unknown", "no place for chat_template", chat_template="auto")
    refused("param.unknown", "no place for freeze", freeze=["q_proj"])
    refused("param.value", "lora_rank", lora_rank=0)
    with pytest.raises(InterfuseError, match="a whole model would be written") as caught:
        interfuse.merge.linear(models, lora_rank=2, out=tmp_path / "no")
    assert caught.value.code == "param.missing"
    copied = tmp_path / "copy"  # the same bytes elsewhere are the same base
    copied.mkdir()
    for file in base.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    interfuse.merge.linear([models[0], f"{copied}+{tmp_path / 'two'}"], output="lora", out=tmp_path / "yes")


def test_recipes_and_commands_merge_adapters(pair_of_adapters, tmp_path):
    from click.testing import CliRunner

    import interfuse
    from interfuse.cli.main import app

    base, models = pair_of_adapters
    said = CliRunner().invoke(app, ["merge", "linear", *models, "--output", "lora", "-o", str(tmp_path / "cli")])
    assert said.exit_code == 0, said.output
    (tmp_path / "recipe.yaml").write_text(
        "interfuse: 1\nsources:\n" + "".join(f"  {n}: {m}\n" for n, m in zip("abc", [*models, base], strict=True))
        + "steps:\n  small: {use: merge/linear, models: [a, b], output: lora}\n"
        + "  more: {use: merge/task-arithmetic, models: [small, a], base: c, output: lora}\n"
        + "  whole: {use: merge/passthrough, models: [more]}\n"
    )  # fmt: skip
    made = interfuse.run(tmp_path / "recipe.yaml", tmp_path / "run")
    file = "adapter_model.safetensors"
    assert (made["small"] / file).read_bytes() == (tmp_path / "cli" / file).read_bytes()
    expected = loaded_by_peft(base, made["more"]).merge_and_unload().state_dict()
    got = load_file(made["whole"] / "model.safetensors")
    torch.testing.assert_close(got, {n: expected[n] for n in got}, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "dare_linear", "geometric_median"])
def test_a_number_that_is_none_is_refused_and_no_change_left_out(method, pair_of_adapters, tmp_path):
    import interfuse

    base, models = pair_of_adapters
    file = tmp_path / "one/adapter_model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if "layers.1.self_attn.q_proj.lora_B" in n)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file)
    given = {"base": str(base)} if method in ("task_arithmetic", "dare_linear") else {}
    with pytest.raises(InterfuseError, match="one holds NaN or infinity") as caught:
        getattr(interfuse.merge, method)(models, **given, output="lora", out=tmp_path / "no")
    assert caught.value.code == "input.nan"
    assert caught.value.where == "tensor model.layers.1.self_attn.q_proj.weight"


def test_a_number_too_large_for_the_type_is_refused(pair_of_adapters, tmp_path):
    import interfuse

    file = tmp_path / "one/adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(n for n in tensors if "q_proj.lora_B" in n)][0, 0] = 1e6
    save_file(tensors, file)
    with pytest.raises(InterfuseError, match="too large for float16") as caught:
        interfuse.merge.linear(pair_of_adapters[1], output="lora", out_dtype="float16", out=tmp_path / "no")
    assert caught.value.code == "input.nan"


def test_the_adapter_names_the_base_it_was_made_with(pair_of_adapters, tmp_path):
    """The adapters' own settings name another folder, which is there too."""
    import interfuse

    base, models = pair_of_adapters
    other = tiny(tmp_path, "llama", "other")
    for place in ("one", "two"):
        file = tmp_path / place / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(other)}))
    made = interfuse.merge.linear(models, output="lora", out=tmp_path / "out")
    assert open_model(Source(str(made.computed.adapter)), Ctx()).computed.base == base


def test_an_adapter_tells_what_its_method_computed(pair_of_adapters, tmp_path):
    import interfuse

    _, models = pair_of_adapters
    told = []
    for output in ("model", "lora"):
        interfuse.merge.karcher(models, output=output, out=tmp_path / output)
        told.append(json.loads((tmp_path / output / "merge.json").read_text())["told"])
    assert told[0]["model.norm.weight"]["weights"]
    assert told[0] == told[1]


def test_a_plan_counts_the_bases_below_adapters(pair_of_adapters, tmp_path):
    base, models = pair_of_adapters
    room, small = (
        load_room("merge"),
        [(tmp_path / n / "adapter_model.safetensors").stat().st_size for n in ("one", "two")],
    )
    under = (base / "model.safetensors").stat().st_size
    for output, written in (("model", under + max(small)), ("lora", sum(small))):
        cost = room.estimate(prepare(room, load("merge/linear"), {"models": models, "output": output}, Ctx()))
        assert (cost.bytes_read, cost.bytes_written) == (2 * under + sum(small), written)
