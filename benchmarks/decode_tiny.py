"""Tiny language models for the decode experiments: a tokenizer of single symbols, packed training, exact matches."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from interfuse.data.seeding import seeded
from interfuse.decode.engine import Engine, Options


def symbols(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the given symbols, longest first; ``.`` ends a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    longest = sorted((w for w in words if len(w) > 1), key=len, reverse=True)
    pattern = "|".join([*(re.escape(w) for w in longest), r"[\s\S]"])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token=".")


def new_model(seed: int, tokenizer: Any, **fields: Any) -> Any:
    """A causal model with random weights that depend on the seed alone."""
    config = AutoConfig.for_model(**{
        "model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, **fields,
    })  # fmt: skip
    with seeded(seed):
        return AutoModelForCausalLM.from_config(config).eval()


def train(model: Any, tokenizer: Any, lines: Callable[[np.random.Generator], str], rng: np.random.Generator, *, steps: int, lr: float,
          rows: int = 16, width: int = 64, router: float = 0.0, packed: bool = True) -> float:  # fmt: skip
    """Trains on lines packed into rows of equal width, or one line a row; the rate falls by a cosine. Gives the mean loss of the last
    50 steps."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min(1.0, (i + 1) / 50) * 0.5 * (1 + np.cos(np.pi * i / steps))
    )
    losses, pool = [], list[int]()
    for _ in range(steps):
        extra: dict[str, Any] = {"output_router_logits": True} if router else {}
        if packed:
            while len(pool) < rows * width:
                pool += tokenizer("".join(lines(rng) for _ in range(200)))["input_ids"]
            batch, pool = torch.tensor(pool[: rows * width]).view(rows, width), pool[rows * width :]
            labels = batch
        else:
            coded = tokenizer([lines(rng) for _ in range(rows)], padding=True, return_tensors="pt")
            batch, extra["attention_mask"] = coded["input_ids"], coded["attention_mask"]
            labels = batch.masked_fill(coded["attention_mask"] == 0, -100)
        loss = model(input_ids=batch, labels=labels, **extra).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return float(np.mean(losses[-50:]))


def replies(engine: Engine, prompts: Sequence[str], **options: Any) -> list[str]:
    """What the engine writes, one text per prompt and sample."""
    found = {}
    for event in engine.run(list(prompts), Options(**options)):
        if event.done:
            found[event.source.prompt, event.source.sample] = engine.words(event.source)
    return [found[key] for key in sorted(found)]
