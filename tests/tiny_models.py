"""Tiny checkpoints of language-model architectures, made by code; variants are a base plus a small random step.

Their numbers follow from names alone (a counter-based generator), so outputs of other programs can be kept and compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
              "num_key_value_heads": 1, "max_position_embeddings": 64},
    "qwen2": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
              "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True},
    "gemma": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
              "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64, "tie_word_embeddings": False},
    "bertmlm": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                "max_position_embeddings": 64},
    "bert": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
             "max_position_embeddings": 64},
}  # fmt: skip


def noise(label: str, shape: tuple[int, ...]) -> Any:
    """A float32 tensor of bell-shaped numbers of deviation 1 that depends on the label alone."""
    import math

    import numpy as np
    import torch

    from interfuse.kit.counter_random import tensor_key

    count = math.prod(shape)
    words = [
        np.random.Philox(key=tensor_key(0, f"tiny {i}", label), counter=0).random_raw(-(-count // 2)).view(np.uint32)
        for i in range(4)
    ]
    total = sum(torch.from_numpy((w[:count] >> 8).view(np.int32)).to(torch.float32).mul_(2.0**-24) for w in words)
    return (total - 2.0).mul(math.sqrt(3.0)).view(shape)


def tiny(folder: Path, kind: str, name: str = "base", *, step: float = 0.05, vocab: int = 29, **changes: Any) -> Path:
    """The folder of a checkpoint: ``base``, or the base plus ``step`` times noise that depends on the name alone.

    Args:
        kind: one of :data:`SIZES`. changes: other fields of the configuration.
    """
    import torch
    import transformers

    place = folder / f"{kind}-{name}"
    if place.is_dir():
        return place
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.AutoConfig.for_model(
        kind.removesuffix("mlm"), vocab_size=vocab, **special, **{**SIZES[kind], **changes}
    )
    task = {"bert": "SequenceClassification", "bertmlm": "MaskedLM"}.get(kind, "CausalLM")
    auto = getattr(transformers, f"AutoModelFor{task}")
    module = auto.from_config(config)
    with torch.no_grad():
        for label, parameter in module.named_parameters():
            parameter.copy_(0.2 * noise(label, tuple(parameter.shape)))
            if name != "base":
                parameter.add_(noise(f"{name} {label}", tuple(parameter.shape)), alpha=step)
    module.to(getattr(torch, changes.get("dtype", "float32"))).save_pretrained(place)
    return place


def words(folder: Path, name: str, vocabulary: list[str]) -> Path:
    """A tiny Llama that reads whole words, with its tokenizer: special tokens first, one token per word after them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[EOS]"]
    ids = {word: i for i, word in enumerate([*special, *vocabulary])}
    place = tiny(folder, "llama", name, vocab=len(ids)).rename(folder / f"words-{name}")
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")
    fast.save_pretrained(place)
    return place


def adapter(base: Path, place: Path, **settings: Any) -> dict[str, Any]:
    """Writes a LoRA adapter with random numbers in all its tensors; returns the state that peft merges it to."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    )
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if parameter.requires_grad:
                step = noise(label, tuple(parameter.shape))
                start = (
                    torch.zeros_like(parameter) if "lora_" in label else parameter
                )  # the library's own start is random
                parameter.copy_(1 + step.abs() if "magnitude" in label else start + 0.1 * step)
    model.save_pretrained(place)
    return {n: t.detach().clone() for n, t in model.merge_and_unload().state_dict().items()}


WORDS_X = ["the", "cat", "dog", "sees", "a", "red", "bird", "small"]
WORDS_Y = ["a", "fish", "the", "cat", "swims", "blue", "small", "here", "bird"]


def zoo(folder: Path) -> Path:
    """Every checkpoint the recipes in ``tests/formats/mergekit`` name, in one folder."""
    for kind in SIZES:
        for name in ("base", "x", "y", "z"):
            tiny(folder, kind, name)
    for name, step in (("near", 1e-4), ("nearer", 2e-4), ("nearest", 1e-5)):
        tiny(folder, "llama", name, step=step)
    for name, step in (("halfbase", 0.0), ("half", 0.05), ("halves", 0.05)):
        tiny(folder, "llama", name, step=step, dtype="bfloat16")
    if not (folder / "words-x").is_dir():
        for name, vocabulary in (("x", WORDS_X), ("y", WORDS_Y)):
            (folder / ".apart").mkdir()
            words(folder / ".apart", name, vocabulary).rename(folder / f"words-{name}")
            (folder / ".apart").rmdir()
        adapter(folder / "llama-base", folder / "adapter", r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    return folder
