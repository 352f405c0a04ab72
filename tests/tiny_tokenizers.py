"""Small tokenizers of different schemes, trained by code on one short text."""

from __future__ import annotations

import functools
from typing import Any

TEXT = [
    "The cat sees a small red bird and the dog runs home.",
    "One plus two is three; three plus four is seven.",
    "Fusing knowledge: many models, one answer, naïve or not.",
    "A word, a token, a byte — und Straße, élan, 日本語 text.",
    "She sings and swims here, but the fish sits there.",
] * 4


@functools.cache
def tokenizer(scheme: str, size: int = 320) -> Any:
    """A fast tokenizer: ``bytes`` (GPT-2 alphabet), ``marker`` (SentencePiece style with byte tokens) or ``wordpiece``.

    It has ``<s>``, ``</s>`` and ``<pad>``; ``bytes`` adds no token to a text, ``marker`` begins texts with ``<s>``.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    if scheme == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        core.train_from_iterator(
            TEXT, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
        )
    elif scheme == "marker":
        spelt = [f"<0x{b:02X}>" for b in range(256)]
        core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.BpeTrainer(
            vocab_size=256 + size, special_tokens=[*special, "<unk>", *spelt], limit_alphabet=60
        )
        core.train_from_iterator(TEXT, trainer)
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        core = _unmarked(core, core.get_vocab(), spelt)
    else:
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.normalizer = normalizers.BertNormalizer(lowercase=False)
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        core.decoder = decoders.WordPiece()
        core.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*special, "[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def _unmarked(core: Any, vocabulary: dict[str, int], spelt: list[str]) -> Any:
    """The same tokenizer with its byte tokens as plain tokens: trainers know only special ones."""
    import json

    from tokenizers import Tokenizer

    state = json.loads(core.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in spelt]
    assert all(t in vocabulary for t in spelt)
    return Tokenizer.from_str(json.dumps(state))
