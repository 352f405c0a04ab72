"""The combiner inside plain ``model.generate``: a ``transformers`` logits processor that advances the other streams itself.

processor = StreamLogitsProcessor(engine)
model.generate(**inputs, logits_processor=LogitsProcessorList([processor]))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from interfuse.core.errors import InterfuseError
from interfuse.decode.engine import Engine
from interfuse.decode.streams import Tape
from interfuse.decode.vocabularies import widen_logits


class StreamLogitsProcessor(LogitsProcessor):
    """Combines the scores of the model that generates (the engine's first stream) with those of the other streams.

    Beams are followed: where rows are reordered, the other streams' caches are reordered with them. One processor serves one call of
    ``generate``; make a new one for the next.

    Args:
        engine: over streams of one vocabulary. prompts: what the other streams read, one prompt per row before beams, in any form
            :meth:`Engine.encode` takes; without it they read the model's own prompt. pad: the padding id of the model's prompt, which
            the other streams shall not read.

    Raises:
        InterfuseError: ``needs.capability`` for streams of other vocabularies and for two prompts without ``prompts``.
    """

    def __init__(self, engine: Engine, prompts: Sequence[Any] | None = None, *, pad: int | None = None) -> None:
        if engine.bytewise or any(v.projection is not None for v in engine.voices):
            raise InterfuseError("needs.capability", "streams of another vocabulary read texts of their own",
                                 fix="Use generate() of the fused model.")  # fmt: skip
        if prompts is None and any(v.role == "plain" for v in engine.voices):
            raise InterfuseError(
                "needs.capability",
                "the method compares two prompts, and one is given",
                fix="Give prompts with their contexts.",
            )
        self.engine, self.prompts = engine, prompts
        self.pad = engine.tokenizer.pad_token_id if pad is None else pad
        self.tapes: list[tuple[Tape, list[int]]] = []
        self.seen: torch.Tensor | None = None
        self.number = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the fused model, [B, V]."""
        others = self._start(input_ids) if self.seen is None else self._step(input_ids)
        self.seen = input_ids.clone()
        logits = [scores.float(), *(widen_logits(others[v].to(scores.device), scores.shape[1]) for v in sorted(others))]
        combined = self.engine.combined(logits, None, self.number)
        self.number += 1
        return combined.scores.log_softmax(dim=1)

    def _start(self, input_ids: torch.Tensor) -> dict[int, torch.Tensor]:
        count = len(input_ids)
        if self.prompts is not None:
            encoded = self.engine.encode(self.prompts)
            if count % len(self.prompts):
                raise InterfuseError("input.shape", f"{len(self.prompts)} prompts for {count} rows")
            copies = count // len(self.prompts)
            encoded = [[ids for ids in rows for _ in range(copies)] for rows in encoded]
        else:
            own = [_unpadded(row, self.pad) for row in input_ids.tolist()]
            encoded = [own] * len(self.engine.voices)
        self.keys = [[tuple(rows[r]) for rows in encoded] for r in range(count)]
        found: dict[int, torch.Tensor] = {}
        for w, weights in enumerate(self.engine.weights):
            mine = [v for v, voice in enumerate(self.engine.voices) if voice.weights == w and v > 0]
            if mine:
                tape = Tape(weights, chunk=self.engine.settings.prefill, counts=self.engine.counts)
                found |= self._split(tape.start([ids for v in mine for ids in encoded[v]]), mine, count)
                self.tapes.append((tape, mine))
        return found

    def _step(self, input_ids: torch.Tensor) -> dict[int, torch.Tensor]:
        assert self.seen is not None, "a first call came before"
        before, count = input_ids[:, :-1], len(input_ids)
        if before.shape != self.seen.shape:
            raise InterfuseError("needs.capability", "the rows are not those of the step before, longer by one token",
                                 fix="Make a new processor for every call of generate; assisted decoding is not supported.")  # fmt: skip
        if not torch.equal(before, self.seen):
            order = torch.tensor([self._origin(before, r) for r in range(count)], device=input_ids.device)
            for tape, mine in self.tapes:
                tape.select(torch.cat([order + i * count for i in range(len(mine))]))
            self.keys = [self.keys[i] for i in order.tolist()]
        found: dict[int, torch.Tensor] = {}
        for tape, mine in self.tapes:
            found |= self._split(tape.feed(input_ids[:, -1:].to(tape.weights.device).repeat(len(mine), 1)), mine, count)
        return found

    def _origin(self, before: torch.Tensor, row: int) -> int:
        """The row of the step before that this one continues."""
        assert self.seen is not None, "a first call came before"
        same = (self.seen == before[row]).all(dim=1).nonzero().squeeze(1).tolist()
        if row in same:
            return row
        if not same:
            raise InterfuseError(
                "needs.capability",
                "a row continues none of the step before",
                fix="Beams of this kind are not supported.",
            )
        return int(same[0])

    def _split(self, logits: torch.Tensor, mine: Sequence[int], count: int) -> dict[int, torch.Tensor]:
        return dict(zip(mine, torch.split(logits, count), strict=True))


def _unpadded(ids: list[int], pad: int | None) -> list[int]:
    """A row without the padding on its left."""
    start = next((i for i, t in enumerate(ids) if t != pad), len(ids) - 1)
    return ids[start:]
