"""A tiny tokenizer and tiny text models, made by code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "a",
    "one",
    "red",
    "blue",
    "green",
    "small",
    "large",
    "cat",
    "dog",
    "bird",
    "fish",
    "runs",
    "sits",
    "sings",
    "swims",
    "sees",
    "likes",
    "and",
    "but",
    "not",
    "here",
    "there",
]
SPECIAL = ["[PAD]", "[UNK]", "[EOS]"]
VOCABULARY = len(WORDS) + len(SPECIAL)

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 2,
    "bos_token_id": 2,
}  # fmt: skip
BERT: dict[str, Any] = {
    "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 2,
}  # fmt: skip


def tokenizer(folder: Path) -> Path:
    """The folder of a tokenizer with one token per word; texts end with ``[EOS]``."""
    if not (folder / "tokenizer_config.json").is_file():
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        ids = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
        core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        core.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])
        fast = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")
        fast.save_pretrained(folder)
    return folder


def sentences(count: int) -> tuple[list[str], list[str]]:
    """Texts of 2 to 9 words, and whether each speaks of a cat or dog (``yes``) or not (``no``)."""
    texts = []
    for i in range(count):
        length = 2 + (i * 7) % 8
        texts.append(" ".join(WORDS[(i * 5 + j * (3 + i % 4)) % len(WORDS)] for j in range(length)))
    return texts, ["yes" if {"cat", "dog"} & set(text.split()) else "no" for text in texts]
