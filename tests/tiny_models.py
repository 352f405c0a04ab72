"""Tiny checkpoints of language-model architectures, made by code; variants are a base plus a small random step."""

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
    "bert": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
             "max_position_embeddings": 64},
}  # fmt: skip


def tiny(folder: Path, kind: str, name: str = "base", *, step: float = 0.05, vocab: int = 29, **changes: Any) -> Path:
    """The folder of a checkpoint: ``base``, or the base plus ``step`` times normal noise that depends on the name alone.

    Args:
        kind: one of :data:`SIZES`. changes: other fields of the configuration.
    """
    import torch
    import transformers

    place = folder / f"{kind}-{name}"
    if place.is_dir():
        return place
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.AutoConfig.for_model(kind, vocab_size=vocab, **special, **{**SIZES[kind], **changes})
    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(11)
        module = auto.from_config(config)
        torch.manual_seed(sum(name.encode()))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.2
                )
                if name != "base":
                    parameter.add_(step * torch.randn_like(parameter))
    module.save_pretrained(place)
    return place
