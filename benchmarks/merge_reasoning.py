"""Long-to-short and RCP merging, scaled down: a step-by-step arithmetic language, one base and three fine-tunings of it.

The language sums six digits. A *quick* model answers at once, a *slow* model writes every partial sum, says "wait", writes them
again and answers; a *domain* model has learned facts (a key's value) instead. All are fine-tunings of one base that was shown
a little of everything. Merged with every method the room has; a merged model's answers are scored for accuracy, length, "wait"
and nonsense (an answer that does not end, or fits neither format). Settings are chosen per seed on problems of their own
(``choose``), figures are of others. Every seed has its own base, data and draws; comparisons are the means of the seeds' paired
differences with a 95 % bootstrap interval over seeds.

    python benchmarks/merge_reasoning.py [long-to-short | rcp] ...
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from interfuse.core.ctx import Ctx
from interfuse.data.seeding import seeded

SEEDS = range(5)
DIGITS, NUMBERS, KEYS = 6, 55, 40
PAD, END, PLUS, EQUALS, WAIT, ANSWER, ASK = range(7)
FIRST_NUMBER, FIRST_KEY = 7, 7 + NUMBERS
FIRST_VALUE = FIRST_KEY + KEYS
WORDS = ["[PAD]", "[END]", "+", "=", "wait", "so", "?", *(str(n) for n in range(NUMBERS)), *(f"k{i}" for i in range(KEYS)),
         *(f"v{i}" for i in range(KEYS))]  # fmt: skip
LONGEST = 24  # tokens an answer may take
CONFIG = {"model_type": "llama", "vocab_size": len(WORDS), "hidden_size": 48, "intermediate_size": 144, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "pad_token_id": PAD,
          "bos_token_id": PAD, "eos_token_id": END, "tie_word_embeddings": False}  # fmt: skip


def problems(rng: np.random.Generator, count: int) -> np.ndarray:
    """Digits [count, DIGITS]."""
    return rng.integers(0, 10, (count, DIGITS))


def asked(digits: np.ndarray) -> np.ndarray:
    """``3 + 8 + ... =`` as token ids."""
    out = np.full((len(digits), 2 * DIGITS), PLUS)
    out[:, ::2] = digits + FIRST_NUMBER
    out[:, -1] = EQUALS
    return out


def answered(digits: np.ndarray, style: str) -> np.ndarray:
    """``so 25`` or ``11 16 ... wait 11 16 ... so 25``, with the end."""
    sums = digits.cumsum(1)[:, 1:] + FIRST_NUMBER
    column = np.ones((len(digits), 1), dtype=int)
    last = [ANSWER * column, sums[:, -1:], END * column]
    return np.hstack(last if style == "quick" else [sums, WAIT * column, sums, *last])


def arithmetic(rng: np.random.Generator, count: int, style: str) -> tuple[np.ndarray, int]:
    """Token ids, and the length of the question."""
    digits = problems(rng, count)
    return np.hstack([asked(digits), answered(digits, style)]), 2 * DIGITS


def facts(values: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, int]:
    """``k7 ? v12`` with the end."""
    ids = np.stack([FIRST_KEY + keys, np.full_like(keys, ASK), FIRST_VALUE + values[keys], np.full_like(keys, END)], 1)
    return ids, 2


Batch = list[tuple[np.ndarray, int]]


def train(module: Any, batches: Any, steps: int, lr: float) -> None:
    """AdamW on the answers' tokens; ``batches(step)`` gives groups of equal length."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01, fused=True)
    module.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 20) * (0.5 * (1 + np.cos(np.pi * step / steps)) * 0.95 + 0.05)
        total, count = 0.0, 0
        for ids, question in batches(step):
            x = torch.from_numpy(ids)
            logits = module(input_ids=x, use_cache=False).logits[:, question - 1 : -1]
            wanted = x[:, question:]
            total = total + torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
            count += wanted.numel()
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    module.eval()


@torch.inference_mode()
def reply(module: Any, questions: np.ndarray) -> list[list[int]]:
    """Greedy answers up to the end or LONGEST tokens."""
    ids = torch.from_numpy(questions)
    out = module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONGEST, do_sample=False,
                          pad_token_id=PAD, eos_token_id=END)[:, questions.shape[1] :]  # fmt: skip
    found = []
    for row in out.tolist():
        stop = row.index(END) + 1 if END in row else len(row)
        found.append(row[:stop])
    return found


def score_sums(module: Any, digits: np.ndarray) -> dict[str, float]:
    """Accuracy, mean tokens, share of answers that say "wait", and of nonsense: no end, or not ``... so NUMBER end``."""
    replies = reply(module, asked(digits))
    truth = digits.sum(1) + FIRST_NUMBER
    number = range(FIRST_NUMBER, FIRST_KEY)
    formed = [len(r) >= 3 and r[-1] == END and r[-3] == ANSWER and r[-2] in number and
              all(t in number or t == WAIT for t in r[:-3]) for r in replies]  # fmt: skip
    right = [f and r[-2] == t for f, r, t in zip(formed, replies, truth.tolist(), strict=True)]
    return {
        "accuracy": float(np.mean(right)),
        "tokens": float(np.mean([len(r) for r in replies])),
        "wait": float(np.mean([WAIT in r for r in replies])),
        "nonsense": 1 - float(np.mean(formed)),
        "cut off": float(np.mean([r[-1] != END for r in replies])),
    }


def score_facts(module: Any, values: np.ndarray) -> dict[str, float]:
    """Accuracy over all keys, and the share of replies that are not one value."""
    keys = np.arange(KEYS)
    replies = reply(module, facts(values, keys)[0][:, :2])
    formed = [len(r) == 2 and r[1] == END and r[0] >= FIRST_VALUE for r in replies]
    return {"accuracy": float(np.mean([r[0] == FIRST_VALUE + v for r, v in zip(replies, values.tolist(), strict=True)])),
            "nonsense": 1 - float(np.mean(formed))}  # fmt: skip


@dataclass
class Family:
    """One seed's models on disk, and its problems."""

    folder: Path
    seed: int
    values: np.ndarray
    choose: np.ndarray
    test: np.ndarray

    def place(self, name: str) -> str:
        return str(self.folder / name)

    def open(self, name: str) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(self.place(name))


def tokenizer(folder: Path) -> None:
    """One token per word, beside every model."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[PAD]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", eos_token="[END]")
    fast.save_pretrained(folder)


BASE_STEPS, TUNE_STEPS = 600, 150


def family(folder: Path, seed: int) -> Family:
    """The base, shown both styles and facts with values of no meaning; then quick, slow and domain models."""
    rng = Ctx(seed=seed).rng("reasoning")
    values = rng.permutation(KEYS)
    made = Family(folder, seed, values, problems(rng, 200), problems(rng, 400))
    with seeded(Ctx(seed=seed).seed_for("base")):
        base = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**CONFIG))

    def mixed(step: int) -> Batch:
        noise = rng.permutation(KEYS)
        return [arithmetic(rng, 32, "slow"), arithmetic(rng, 32, "quick"), facts(noise, rng.integers(0, KEYS, 16))]

    train(base, mixed, BASE_STEPS, 3e-3)
    kinds: dict[str, Any] = {
        "quick": lambda step: [arithmetic(rng, 64, "quick")],
        "slow": lambda step: [arithmetic(rng, 48, "slow")],
        "domain": lambda step: [facts(values, rng.integers(0, KEYS, 64))],
    }
    base.save_pretrained(folder / "base")
    for name, batches in kinds.items():
        module = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
        train(module, batches, TUNE_STEPS, 1e-3)
        module.save_pretrained(folder / name)
    for name in ("base", *kinds):
        tokenizer(folder / name)
    return made
