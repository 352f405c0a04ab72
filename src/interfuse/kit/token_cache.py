"""What a language model says at every learnt position of a table: its k best tokens, kept on disk, shared and resumable.

A position takes ``6 k + 12`` bytes: k ids (int32), k log-probabilities (float16), and as float32 the log-sum-exp of the logits,
the log of the mass beyond the k tokens and the log-probability of the token that follows. With k = 48 that is 300 bytes.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint, write_atomic
from interfuse.data.models import Model
from interfuse.kit.encode import forward
from interfuse.kit.threads import threads_for
from interfuse.kit.token_rows import TokenRows

#: rows in one file of a cache: what an interruption costs at most
SHARD = 64
#: logits of one forward pass, in numbers
_PASS = 2**26
NAMES = ("ids", "logp", "lse", "tail", "gold")


@dataclass(frozen=True)
class TokenSaid:
    """A model's predictions at all counted positions of all rows, one after another (``TokenRows.offsets``).

    Attributes:
        ids: int32 [T, k], the most likely tokens, best first. logp: float16 [T, k], their log-probabilities.
        lse: float32 [T], log-sum-exp of the logits (``logit = logp + lse``). tail: float32 [T], log of the mass beyond the k.
        gold: float32 [T], log-probability of the token that follows.
        made: shards that had to be computed; the others were read.
    """

    ids: Tensor = field(repr=False)
    logp: Tensor = field(repr=False)
    lse: Tensor = field(repr=False)
    tail: Tensor = field(repr=False)
    gold: Tensor = field(repr=False)
    made: int = 0

    @property
    def bytes_per_token(self) -> float:
        """Bytes that a position takes."""
        tensors = (self.ids, self.logp, self.lse, self.tail, self.gold)
        return sum(t.numel() * t.element_size() for t in tensors) / max(len(self.lse), 1)

    def mean_loss(self, rows: TokenRows) -> NDArray[np.float64]:
        """Mean cross entropy over the learnt tokens of every row, float64 [N]; NaN where the model gave none."""
        cut = rows.offsets
        gold = -self.gold.double().numpy()
        return np.array([gold[a:b].mean() if b > a else math.nan for a, b in itertools.pairwise(cut)])


def token_said(
    model: Model,
    module: torch.nn.Module,
    rows: TokenRows,
    ctx: Ctx,
    *,
    k: int,
    folder: Path | None,
    device: torch.device,
) -> TokenSaid:
    """What a model says about rows; computed, or read from ``folder`` as far as it is there.

    Args:
        module: the model, which is put into evaluation mode while it runs. k: tokens kept per position, at most the vocabulary.
        folder: where caches live (``<cache>/teachers``), or None to keep nothing. A cache's name and header hold the digest of
            model, tokens and k.

    Raises:
        InterfuseError: ``artifact.damaged`` for a file of another model or other texts, or that cannot be read.
    """
    about = {"model": model.fingerprint(), "tokenizer": rows.lex.key, "tokens": rows.digest, "k": k, "dtype": ctx.dtype}
    key = fingerprint(about)
    place = folder / f"tokens-{key[:32]}" if folder is not None else None
    shards, made = [], 0
    training = module.training
    module.eval()
    try:
        size = sum(p.numel() for p in module.parameters())
        with threads_for(size), torch.inference_mode(), ctx.bar(f"ask {model.name}", len(rows), "texts") as bar:
            for start in range(0, len(rows), SHARD):
                stop = min(start + SHARD, len(rows))
                file = place / f"{start:08d}.safetensors" if place is not None else None
                if file is not None and file.is_file():
                    shard = _read(file, key, int(rows.offsets[stop] - rows.offsets[start]))
                else:
                    shard, made = _ask(model, module, rows, range(start, stop), k, device), made + 1
                    if file is not None:
                        header = {"key": key, "about": json.dumps(about, sort_keys=True)}
                        write_atomic(file, safetensors.torch.save(shard, metadata=header))
                shards.append(shard)
                bar.advance(stop - start)
    finally:
        module.train(training)
    if place is not None and 0 < made < len(shards):
        ctx.log(f"resuming: {len(shards) - made} of {len(shards)} parts of what {model.name} says were there")
    whole = {name: torch.cat([s[name] for s in shards]).clone() for name in NAMES}
    return TokenSaid(**whole, made=made)


def _ask(
    model: Model, module: torch.nn.Module, rows: TokenRows, numbers: Sequence[int], k: int, device: torch.device
) -> dict[str, Tensor]:
    """One shard: rows of similar length run together, results in the rows' order."""
    order = sorted(numbers, key=lambda r: len(rows.readings[r]))
    found: dict[int, dict[str, Tensor]] = {}
    vocabulary = model.labels or len(rows.lex)
    while order:
        count = 1
        while count < len(order) and (count + 1) * len(rows.readings[order[count]]) * vocabulary <= _PASS:
            count += 1
        part, order = order[:count], order[count:]
        batch = {name: t.to(device) for name, t in rows.batch(part).items()}
        logits = forward(module, model, batch)
        for place, row in enumerate(part):
            at = torch.from_numpy(rows.counted[row]).to(device)
            found[row] = best(logits[place, at], batch["input_ids"][place, at + 1], k)
    return {name: torch.cat([found[r][name] for r in numbers]).contiguous() for name in NAMES}


def best(logits: Tensor, following: Tensor, k: int) -> dict[str, Tensor]:
    """The k best tokens of ``[n, V]`` logits and what is said of them; ``following``: the tokens that follow, [n]."""
    z = logits.float()
    lse = z.logsumexp(-1)
    top = z.topk(min(k, z.shape[-1]), dim=-1)
    logp = top.values - lse.unsqueeze(-1)
    room = (1 - logp.double().exp().sum(-1)).clamp_min(0.0)
    tail = torch.where(room > 1e-9, room.log(), torch.full_like(room, -math.inf)).float()
    if k >= z.shape[-1]:
        tail = torch.full_like(tail, -math.inf)
    gold = z.gather(-1, following.unsqueeze(-1)).squeeze(-1) - lse
    made = {"ids": top.indices.int(), "logp": logp.half(), "lse": lse, "tail": tail, "gold": gold}
    return {name: t.cpu() for name, t in made.items()}


def _read(path: Path, key: str, count: int) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            same = (file.metadata() or {}).get("key") == key
            shard = {name: file.get_tensor(name) for name in NAMES}
    except (safetensors.SafetensorError, OSError) as error:
        raise InterfuseError("artifact.damaged", "the teacher cache cannot be read", where=str(path),
                             fix="Delete the file; it is made again.") from error  # fmt: skip
    if not same or len(shard["lse"]) != count:
        raise InterfuseError("artifact.damaged", "the teacher cache is of another model, tokenizer or other texts", where=str(path),
                             fix="Delete the file; it is made again.")  # fmt: skip
    return shard
