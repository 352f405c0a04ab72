"""Token-level access to local language models: the next token of a causal model, the hidden places of a masked one.

Models that only continue texts are the business of :mod:`interfuse.data.lm`; what needs every token's probability (constrained
search, harvesting of tuples) goes through here. Both kinds step through :class:`interfuse.kit.constrained_beam.Stepper`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError

Logs = NDArray[np.float32]


def _log_softmax(logits: Any) -> Logs:
    result: Logs = logits.float().log_softmax(dim=-1).cpu().numpy()
    return result


class CausalStepper:
    """Continues token sequences with a causal model, keeping keys and values so that a step costs one token per row.

    Args:
        module: a ``transformers`` causal model in evaluation mode. context: tokens in front of every prompt, computed once.
    """

    def __init__(self, module: Any, context: Sequence[int] = ()) -> None:
        self.module, self.context = module, list(context)
        self._past: Any = None
        self._kept: Any = None
        self.forward_tokens = 0

    def _run(self, ids: list[list[int]], past: Any) -> tuple[Any, Any]:
        import torch

        with torch.no_grad():
            tokens = torch.tensor(ids, dtype=torch.long, device=self.module.device)
            self.forward_tokens += tokens.numel()
            out = self.module(input_ids=tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values

    def begin(self, prompt: Sequence[int]) -> Logs:
        """As :meth:`Stepper.begin`.

        Raises:
            InterfuseError: ``input.empty`` when neither the context nor the prompt has a token.
        """
        if not (self.context or prompt):
            raise InterfuseError("input.empty", "there is no token to continue from")
        past = None
        if self.context and prompt:
            if self._kept is None:
                _, self._kept = self._run([self.context], None)
            past = copy.deepcopy(self._kept)
        logits, self._past = self._run([list(prompt) if past is not None else [*self.context, *prompt]], past)
        return _log_softmax(logits)

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> Logs:
        """As :meth:`Stepper.advance`."""
        import torch

        if self._past is None:
            raise InterfuseError("run.failed", "a search that has not begun cannot go on")
        self._past.reorder_cache(torch.tensor(list(parents), device=self.module.device))
        logits, self._past = self._run([[t] for t in tokens], self._past)
        return _log_softmax(logits)


class MaskedStepper:
    """Fills the hidden places of a text from left to right with a masked model; a prompt is the text with mask tokens.

    A continuation has exactly as many tokens as there are masks, and there is no end token (``end=()``).
    """

    def __init__(self, module: Any, mask: int) -> None:
        self.module, self.mask, self._rows, self._places = module, mask, [], []  # type: ignore[var-annotated]

    def begin(self, prompt: Sequence[int]) -> Logs:
        """As :meth:`Stepper.begin`; raises ``input.shape`` when nothing is hidden."""
        self._places = [i for i, t in enumerate(prompt) if t == self.mask]
        if not self._places:
            raise InterfuseError("input.shape", "the text has no hidden place to fill")
        self._rows, self._filled = [list(prompt)], 0
        return self._logs()

    def _logs(self) -> Logs:
        place = self._places[min(self._filled, len(self._places) - 1)]
        return _log_softmax(masked_logits(self.module, self._rows, [[place]] * len(self._rows))[:, 0])

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> Logs:
        """As :meth:`Stepper.advance`."""
        rows = [list(self._rows[p]) for p in parents]
        for row, token in zip(rows, tokens, strict=True):
            row[self._places[self._filled]] = token
        self._rows, self._filled = rows, self._filled + 1
        return self._logs()


def masked_logits(
    module: Any, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]], pad: int = 0, batch: int = 64
) -> Any:
    """Logits at some places of each row, a tensor [N, P, V]; rows may differ in length, each names the same count of places."""
    import torch

    parts = []
    for start in range(0, len(rows), batch):
        part, where = rows[start : start + batch], places[start : start + batch]
        longest = max(map(len, part))
        ids = torch.full((len(part), longest), pad, dtype=torch.long, device=module.device)
        seen = torch.zeros_like(ids)
        for i, row in enumerate(part):
            ids[i, : len(row)] = torch.tensor(list(row))
            seen[i, : len(row)] = 1
        with torch.no_grad():
            logits = module(input_ids=ids, attention_mask=seen).logits
        index = torch.tensor([list(w) for w in where], device=logits.device)
        parts.append(logits.gather(1, index[:, :, None].expand(-1, -1, logits.shape[-1])).float())
    return torch.cat(parts)


def causal_logprobs(
    module: Any, rows: Sequence[Sequence[int]], pad: int = 0, batch: int = 32
) -> list[NDArray[np.float64]]:
    """For each row the log-probability in nats of every token but the first, given those before it: arrays [L - 1]."""
    import torch

    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, NDArray[np.float64]] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        longest = max(len(rows[i]) for i in part)
        ids = torch.full((len(part), longest), pad, dtype=torch.long, device=module.device)
        seen = torch.zeros_like(ids)
        for k, i in enumerate(part):
            ids[k, : len(rows[i])] = torch.tensor(list(rows[i]))
            seen[k, : len(rows[i])] = 1
        with torch.no_grad():
            logits = module(input_ids=ids, attention_mask=seen).logits[:, :-1].float()
        logs = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.logsumexp(dim=-1)
        for k, i in enumerate(part):
            found[i] = logs[k, : len(rows[i]) - 1].double().cpu().numpy()
    return [found[i] for i in range(len(rows))]


def offsets_of(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their character spans.

    Raises:
        InterfuseError: ``needs.capability`` for a tokenizer without character positions.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InterfuseError(
            "needs.capability", "the tokenizer tells no character positions", fix="Use a fast tokenizer."
        )
    made = tokenizer(text, return_offsets_mapping=True)
    return list(made["input_ids"]), [tuple(pair) for pair in made["offset_mapping"]]


def tokens_over(spans: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    """The places of the tokens that share a character with [start, end)."""
    return [i for i, (a, b) in enumerate(spans) if a < end and b > start]
