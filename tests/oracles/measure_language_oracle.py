"""Slow and obvious: one text at a time through ``transformers``, one logit after the other."""

from __future__ import annotations

import functools
import math
from typing import Any


@functools.lru_cache(maxsize=4)
def _opened(folder: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)


def _nats(folder: str, before: str, text: str) -> tuple[float, int]:
    """Minus the log-probability of ``text`` after ``before``, and its tokens: words here, so nothing straddles the border."""
    import torch

    tokenizer, model = _opened(folder)
    start = tokenizer(before, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    total, ids = 0.0, tokenizer(text, add_special_tokens=False)["input_ids"]
    for i, token in enumerate(ids):
        with torch.no_grad():
            logits = model(torch.tensor([start + ids[:i]])).logits[0, -1].double().tolist()
        top = max(logits)
        total -= logits[token] - top - math.log(math.fsum(math.exp(z - top) for z in logits))
    return total, len(ids)


def bits_per_byte(folder: str, rows: list[dict[str, Any]], **given: Any) -> dict[str, float]:
    """Nats of all texts over ln 2 and their bytes."""
    nats = math.fsum(_nats(folder, "", row["text"])[0] for row in rows)
    return {"bits": nats / math.log(2) / sum(len(row["text"].encode()) for row in rows)}


def likeliest_choice(
    folder: str, rows: list[dict[str, Any]], normalize: str = "none", **given: Any
) -> dict[str, float]:
    """Share of items whose right choice is the likeliest, and the mean of -log softmax over the choices."""
    right, nll = 0, 0.0
    for row in rows:
        scores = []
        for answer in row["choices"]:
            nats, tokens = _nats(folder, row["prompt"], " " + answer)
            scores.append(
                -nats / {"none": 1, "token": tokens, "byte": len(answer.encode()), "character": len(answer)}[normalize]
            )
        own, top = scores[int(row["label"])], max(scores)
        right += scores.index(top) == int(row["label"])
        nll -= own - top - math.log(math.fsum(math.exp(s - top) for s in scores))
    return {"accuracy": right / len(rows), "nll": nll / len(rows)}


def written_answers(folder: str, rows: list[dict[str, Any]], max_tokens: int, **given: Any) -> dict[str, float]:
    """The likeliest token again and again, one prompt at a time, until the end token or the limit."""
    import torch

    tokenizer, model = _opened(folder)
    right = tokens = cut = reflects = 0
    for row in rows:
        start = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        made: list[int] = []
        while len(made) < max_tokens:
            with torch.no_grad():
                logits = model(torch.tensor([start + made])).logits[0, -1].tolist()
            made.append(logits.index(max(logits)))
            if made[-1] == tokenizer.eos_token_id:
                break
        ended = made[-1:] == [tokenizer.eos_token_id]
        said = tokenizer.decode(made, skip_special_tokens=True).strip()
        right += said == row["label"]
        tokens += len(made) - ended
        cut += not ended
        reflects += "wait" in said
    count = len(rows)
    return {"accuracy": right / count, "tokens": tokens / count, "cut_off": cut / count, "reflective": reflects / count}
