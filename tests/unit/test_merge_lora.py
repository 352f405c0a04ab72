"""LoRA adapters as sources: the numbers peft itself gives, computed while they are read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.models import build, open_model
from interfuse.data.overlay import whole
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
