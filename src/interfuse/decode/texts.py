"""Streams that read the shared text with a tokenizer of their own.

After each main token the text so far is tokenised anew; what the stream has read beyond the first differing token is taken back from
its cache, and the rest is read. Bytes of an unfinished character wait: until it is whole the stream says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from interfuse.core.errors import InterfuseError
from interfuse.decode.streams import Counts, Tape, Weights

#: stands before a text that is tokenised apart from its prompt, so that no start of a text is seen
ANCHOR = "\n"


@dataclass
class _Reader:
    tape: Tape
    logits: torch.Tensor
    ids: list[int] = field(default_factory=list)
    silent: bool = False


class TextStreams:
    """One stream for several texts, each with a cache of its own.

    Args:
        weights: the stream's model. tokenizer: its own. surfaces: the bytes of each main id.
    """

    def __init__(
        self, weights: Weights, tokenizer: Any, surfaces: Sequence[bytes | None], counts: Counts, chunk: int
    ) -> None:
        if weights.reach == 0:
            raise InterfuseError("needs.capability", "a stream of another vocabulary must be able to take tokens back, and this model's "
                                 "cache cannot", where=weights.name, fix="Use it as the main model.")  # fmt: skip
        self.weights, self.tokenizer, self.surfaces = weights, tokenizer, surfaces
        self.counts, self.chunk = counts, chunk
        self.readers: list[_Reader] = []
        self.anchor = self._plain(ANCHOR)

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def start(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Reads the prompts; gives the logits after each over its own vocabulary, [B, U] float32."""
        for ids in prompts:
            tape = Tape(self.weights, chunk=self.chunk, counts=self.counts)
            self.readers.append(_Reader(tape, tape.start([ids])))
        return self._logits()

    def push(self, made: Sequence[Sequence[int]]) -> torch.Tensor:
        """Reads what the texts have become.

        Args:
            made: the main ids of every text since its prompt.
        """
        for reader, main in zip(self.readers, made, strict=True):
            raw = b"".join(self.surfaces[i] or b"" for i in main)
            text = (
                raw.decode("utf-8", errors="ignore")
                if _whole(raw)
                else raw[: _end(raw)].decode("utf-8", errors="ignore")
            )
            reader.silent = len(text.encode()) < len(raw)
            self._read(reader, self.tokens(text))
        return self._logits()

    def tokens(self, text: str) -> list[int]:
        """The stream's tokens of a text that follows something."""
        ids = self._plain(ANCHOR + text)
        return ids[len(self.anchor) :] if ids[: len(self.anchor)] == self.anchor else self._plain(text)

    def _read(self, reader: _Reader, ids: list[int]) -> None:
        same = next(
            (i for i, (a, b) in enumerate(zip(reader.ids, ids, strict=False)) if a != b), min(len(reader.ids), len(ids))
        )
        if same == len(ids) == len(reader.ids):
            return
        if same == len(ids):
            same -= 1  # the last token is read again, for its logits
        if same < 0:
            return  # nothing was made yet that it could read
        window = min((w for w in (self.weights.window, self.weights.reach) if w is not None), default=None)
        if window is not None and reader.tape.mask.shape[1] + len(ids) - len(reader.ids) > window:
            raise InterfuseError("input.limit", f"the text is longer than the {window} tokens up to which the stream can follow it", where=self.weights.name,
                                 fix="Lower max_tokens.")  # fmt: skip
        reader.tape.cut(len(reader.ids) - same)
        reader.logits = reader.tape.feed(torch.tensor([ids[same:]], device=self.weights.device))
        reader.ids = ids

    def silent(self) -> torch.Tensor:
        """The texts that end within a character, [B] bool."""
        return torch.tensor([r.silent for r in self.readers], device=self.weights.device)

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these texts."""
        self.readers = [self.readers[r] for r in rows]

    def _logits(self) -> torch.Tensor:
        return torch.cat([r.logits for r in self.readers])


def _whole(raw: bytes) -> bool:
    return _end(raw) == len(raw)


def _end(raw: bytes) -> int:
    """Where the last whole character of UTF-8 bytes ends; broken bytes elsewhere do not matter."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte < 0x80:
            return len(raw)
        if byte >= 0xC0:  # the start of a character of this many bytes
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(raw) if back >= length else len(raw) - back
    return len(raw)
