"""Fine-tuning of a local causal model on question and answer pairs with LoRA, the loss on answers alone (Buehler 2024; Hu et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.core.safe import read_text
from interfuse.data.models import build, device_of, open_model, open_tokenizer
from interfuse.data.seeding import seeded
from interfuse.kit.qa_pairs import Pair, as_user_assistant

IGNORED = -100


def read_chats(file: Path) -> list[Pair]:
    """Pairs from a JSONL file of two-turn chats (``qa-train.jsonl`` of ``build/mechgpt``).

    Raises:
        InterfuseError: ``input.missing``, ``input.empty``, or ``input.format`` naming the line.
    """
    if not file.is_file():
        raise InterfuseError("input.missing", "there is no such file of chats", where=str(file))
    found = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        try:
            turns = json.loads(line)["messages"]
            found.append(Pair(str(turns[-2]["content"]), str(turns[-1]["content"])))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InterfuseError("input.format", "a line is no chat of two turns", where=f"{file}:{number}") from error
    if not found:
        raise InterfuseError("input.empty", "the file holds no chat", where=str(file))
    return found


def encoded(tokenizer: Any, pair: Pair, end: str) -> tuple[list[int], list[int]]:
    """Token ids and labels of ``User: Q<end>Assistant: A<end>``: what is before the answer is not learnt, its end token is."""
    prompt, completion = as_user_assistant(pair, end)
    a = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    b = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return a + b, [IGNORED] * len(a) + b


def tune(
    model: str | Path, chats: Path | Sequence[Pair], out: Path, *, ctx: Ctx | None = None, rank: int = 16, alpha: int = 32, dropout: float = 0.05,
    epochs: int = 3, batch_size: int = 8, lr: float = 2e-4, warmup: float = 0.03, clip: float = 0.3, end: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Trains low-rank adapters of all linear layers and saves them as an adapter folder that ``peft`` (and a model source) opens.

    The published settings are the cosine schedule, ``warmup`` (a share of the steps) and ``clip`` (of the gradient's norm); the others are ours.

    Args:
        model: a folder or Hugging Face id of a causal model. chats: pairs, or the file of :func:`read_chats`.
        end: text of the token that ends a turn; empty: the tokenizer's own end token. A token it lacks is refused.

    Returns:
        Mean loss of the first and of the last epoch (nats per answer token), steps, and the share of parameters that were trained.

    Raises:
        InterfuseError: ``needs.package`` without peft, ``input.type`` for a model that is not causal, ``input.vocabulary`` for an unknown end.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise InterfuseError(
            "needs.package", "fine-tuning with LoRA needs peft", fix="pip install 'interfuse[train]'"
        ) from error
    import torch
    from transformers import get_cosine_schedule_with_warmup

    ctx = ctx or Ctx()
    noun = open_model(Source(str(model)), ctx)
    if noun.task != "causal-lm":
        raise InterfuseError("input.type", f"the model's task is {noun.task}, not causal-lm", where=noun.name)
    tokenizer = open_tokenizer(noun)
    end = end or str(tokenizer.eos_token)
    if len(tokenizer(end, add_special_tokens=False)["input_ids"]) != 1:
        raise InterfuseError(
            "input.vocabulary", f"{end!r} is not one token of the model", where=noun.name, fix="Leave end out."
        )
    pairs = read_chats(chats) if isinstance(chats, Path) else list(chats)
    rows = [encoded(tokenizer, p, end) for p in pairs]
    device = device_of(ctx)
    with seeded(ctx.seed_for("lora") % 2**31):
        base: Any = build(noun, ctx, train=True)
        config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        tuned: Any = get_peft_model(base, config).to(device).train()
        learnt = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=lr)
        per_epoch = -(-len(rows) // batch_size)
        schedule = get_cosine_schedule_with_warmup(optimizer, round(warmup * epochs * per_epoch), epochs * per_epoch)
        means: list[float] = []
        with ctx.bar("fine-tune", epochs * per_epoch, "steps") as bar:
            for epoch in range(epochs):
                order, total, count = ctx.rng(f"order {epoch}").permutation(len(rows)), 0.0, 0
                for start in range(0, len(rows), batch_size):
                    ids, labels, seen = _padded(
                        [rows[int(i)] for i in order[start : start + batch_size]], tokenizer.pad_token_id or 0
                    )
                    loss = tuned(
                        input_ids=ids.to(device), attention_mask=seen.to(device), labels=labels.to(device)
                    ).loss
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(learnt, clip)
                    optimizer.step()
                    schedule.step()
                    tokens = int((labels != IGNORED).sum())
                    total, count = total + float(loss.detach()) * tokens, count + tokens
                    bar.advance()
                means.append(total / max(count, 1))
        if not np.isfinite(means).all():
            raise InterfuseError(
                "input.nan", "the loss is not a number", where=noun.name, fix="Lower the learning rate."
            )
        tuned.save_pretrained(out, safe_serialization=True)
    share = sum(p.numel() for p in learnt) / sum(p.numel() for p in tuned.parameters())
    return {"first": means[0], "last": means[-1], "steps": epochs * per_epoch, "trained share": share}


def _padded(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Any, Any, Any]:
    """Ids, labels and mask [B, L], padded on the right by place, so that a true end token is not taken for padding."""
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([a + [pad] * (width - len(a)) for a, _ in rows])
    labels = torch.tensor([b + [IGNORED] * (width - len(b)) for _, b in rows])
    return ids, labels, torch.tensor([[1] * len(a) + [0] * (width - len(a)) for a, _ in rows])
