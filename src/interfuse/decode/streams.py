"""Streams: what one set of weights reads for several rows, with one cache.

Rows are left-padded; masks and positions are kept per row, so padding is never relied on to be ignored. Caches are those of
``transformers`` and inputs are prepared by the model's own helper.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from interfuse.core.errors import InterfuseError

#: below so many tokens a shared prefix is not worth a pass of its own
SHARED = 8


@dataclass
class Counts:
    """Tokens that prompts asked for, tokens that were computed for them, and single steps."""

    asked: int = 0
    computed: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Weights:
    """One model in memory with what the loop must know of it.

    Attributes:
        module: a causal model of ``transformers``, in evaluation mode. name: for errors. window: longest text in tokens, None
            where the configuration tells none. accepts: names of the arguments of its ``forward``. thin: see :func:`few_rows`.
    """

    module: Any
    name: str
    window: int | None
    accepts: frozenset[str] = field(repr=False, default=frozenset())
    thin: tuple[tuple[dict[str, Any], Any], ...] = field(repr=False, default=())

    @classmethod
    def of(cls, module: Any, name: str) -> Weights:
        """Reads what is needed from the module's configuration.

        Raises:
            InterfuseError: ``needs.capability`` for models without a cache of keys and values.
        """
        config = (
            module.config.get_text_config()
            if callable(getattr(module.config, "get_text_config", None))
            else module.config
        )
        window = next((int(v) for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
                       if isinstance(v := getattr(config, key, None), int)), None)  # fmt: skip
        names = inspect.signature(module.forward).parameters
        if "past_key_values" not in names:
            raise InterfuseError("needs.capability", f"{type(module).__name__} keeps no cache of keys and values", where=name,
                                 fix="Use a model with attention; mixed ones, part attention and part state, are fine.")  # fmt: skip
        return cls(module, name, window, frozenset(names), _thin(module))

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.module.parameters()).device
        return found

    @property
    def plain_cache(self) -> bool:
        """Whether every layer attends to everything before it, so that a cache may have gaps."""
        return self.reach is None

    @property
    def reach(self) -> int | None:
        """Up to so many tokens a cache can be cut back: None without a limit, a sliding window's width, 0 for caches of another kind."""
        config = self.module.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or []
        if any(k not in ("full_attention", "sliding_attention") for k in kinds):
            return 0
        sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return int(sliding) if sliding and (not kinds or "sliding_attention" in kinds) else None


def _thin(module: Any) -> tuple[tuple[dict[str, Any], Any], ...]:
    """The plain float32 linear layers of a model on the processor, each with what computes it for a few rows."""
    layers = (m for m in module.modules() if type(m) is torch.nn.Linear and "forward" not in vars(m))
    return tuple(
        (vars(m), functools.partial(_by_columns, m))
        for m in layers
        if m.weight.dtype == torch.float32 and m.weight.device.type == "cpu"
    )


def _by_columns(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """``x W^T + b`` as ``(W x^T)^T + b``: on processors the weights are then read once for all rows."""
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) > 2 and layer.out_features < layer.in_features:
        return torch.nn.functional.linear(x, layer.weight, layer.bias)
    out = (layer.weight @ flat.t()).t()
    return (out if layer.bias is None else out + layer.bias).reshape(*x.shape[:-1], -1)


@contextlib.contextmanager
def few_rows(weights: Weights, rows: int) -> Iterator[None]:
    """Computes linear layers in the way that is quick for 2 to 6 rows; afterwards the model is as it was."""
    layers = weights.thin if 2 <= rows <= 6 else ()
    for held, quick in layers:
        held["forward"] = quick
    try:
        yield
    finally:
        for held, _ in layers:
            held.pop("forward", None)


class Tape:
    """Rows that one set of weights reads, [R] at a time, with their cache.

    Args:
        weights: the model. chunk: tokens of a prompt read at once. counts: where work is counted.
    """

    def __init__(self, weights: Weights, *, chunk: int = 2048, counts: Counts | None = None) -> None:
        self.weights, self.chunk, self.counts = weights, chunk, counts or Counts()
        self.cache: Any = None
        self.mask = torch.zeros(0, 0, dtype=torch.long)

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]], *, share: bool = True) -> torch.Tensor:
        """Reads the prompts and gives the logits after each, [R, V] float32.

        Args:
            prompts: token ids, one list per row, none empty. share: compute equal rows and a common beginning once.

        Raises:
            InterfuseError: ``input.empty``, ``input.limit`` naming the model.
        """
        from transformers import DynamicCache

        self._check(prompts)
        self.counts.asked += sum(map(len, prompts))
        unique = {tuple(ids): i for i, ids in reversed(list(enumerate(prompts)))} if share else {}
        rows = sorted(unique.values()) if share else list(range(len(prompts)))
        texts = [list(prompts[i]) for i in rows]
        common = _common(texts) if share and len(texts) > 1 and self.weights.plain_cache else 0
        self.cache = DynamicCache(config=self.weights.module.config)
        device = self.weights.device
        if common >= SHARED:
            self.mask = torch.zeros(1, 0, dtype=torch.long, device=device)
            self._chunks(
                torch.tensor([texts[0][:common]], device=device), torch.ones(1, common, dtype=torch.long, device=device)
            )
            self.cache.batch_repeat_interleave(len(texts))
            self.mask = self.mask.expand(len(texts), -1)
            texts = [ids[common:] for ids in texts]
            self.counts.computed += common
        else:
            self.mask = torch.zeros(len(texts), 0, dtype=torch.long, device=device)
        ids, mask = pad(texts, device)
        logits = self._chunks(ids, mask)
        self.counts.computed += int(mask.sum())
        if share and len(rows) < len(prompts):
            order = torch.tensor([rows.index(unique[tuple(ids)]) for ids in prompts], device=device)
            self.select(order)
            logits = logits[order]
        return logits

    @torch.no_grad()
    def read(self, prompts: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The logits before each of the wanted tokens, which follow the prompts: one tensor [T, V] float32 per row.

        Nothing is kept for further steps. An empty list of wanted tokens gives an empty tensor.
        """
        whole = [[*p, *w][:-1] for p, w in zip(prompts, wanted, strict=True)]
        self._check(whole)
        ids, mask = pad(whole, self.weights.device)
        extra: dict[str, Any] = (
            {"position_ids": (mask.cumsum(-1) - 1).clamp_(min=0)} if "position_ids" in self.weights.accepts else {}
        )
        width = max(map(len, wanted))
        if "logits_to_keep" in self.weights.accepts:
            extra["logits_to_keep"] = width
        logits = self.weights.module(
            input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True, **extra
        ).logits
        return [logits[r, logits.shape[1] - len(w) :].float() for r, w in enumerate(wanted)]

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        name, window = self.weights.name, self.weights.window
        for ids in prompts:
            if not ids:
                raise InterfuseError("input.empty", "a prompt has no tokens", where=name)
            if window is not None and len(ids) > window:
                raise InterfuseError("input.limit", f"the text has {len(ids)} tokens, {name} reads {window}", where=name,
                                     fix="Shorten the prompt or lower max_tokens.")  # fmt: skip

    def _chunks(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = ids
        for i in range(0, ids.shape[1], self.chunk):
            logits = self._forward(ids[:, i : i + self.chunk], mask[:, i : i + self.chunk])
        return logits[:, -1].float().contiguous()  # rows of interleaved columns are slow to read

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        module, accepts = self.weights.module, self.weights.accepts
        self.mask = torch.cat([self.mask, mask], dim=1)
        extra: dict[str, Any] = {}
        if "position_ids" in accepts:
            extra["position_ids"] = (self.mask.cumsum(-1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in accepts:
            extra["logits_to_keep"] = 1
        inputs = module.prepare_inputs_for_generation(
            ids, past_key_values=self.cache, attention_mask=self.mask, use_cache=True, **extra
        )
        with few_rows(self.weights, ids.numel()):
            logits: torch.Tensor = module(**inputs, return_dict=True).logits
        return logits

    @torch.no_grad()
    def feed(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Reads further tokens [R, T] and gives the logits after the last, [R, V] float32."""
        self.counts.steps += 1
        return self._chunks(ids, torch.ones_like(ids) if mask is None else mask)

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows, in this order."""
        self.cache.reorder_cache(rows)  # every kind of layer can; it takes fewer or more rows too
        self.mask = self.mask[rows]

    def cut(self, tokens: int) -> None:
        """Takes back the last tokens of every row."""
        if tokens:
            self.cache.crop(-tokens)
            self.mask = self.mask[:, :-tokens]


def pad(texts: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and their mask, both [R, T]; the padding is id 0, which the mask hides."""
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(t)) + list(t) for t in texts], device=device)
    mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts], device=device)
    return ids, mask


def _common(texts: Sequence[Sequence[int]]) -> int:
    """The length of the beginning that all texts share, leaving each at least one token."""
    least = min(map(len, texts)) - 1
    first = texts[0]
    for i in range(max(least, 0)):
        if any(t[i] != first[i] for t in texts):
            return i
    return max(least, 0)
