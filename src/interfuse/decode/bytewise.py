"""Exact next-byte distributions of a model of tokens, so that models of any vocabularies can be combined byte by byte.

A text of bytes can be spelt by many sequences of tokens. Every sequence that ends within the text, and that some token could go on
from, is kept with its probability; the next byte's probability is the mass of all tokens that spell what is left and then this byte
(marginalisation over tokenisations, as in Phan et al. 2024, arXiv 2410.09303). Slow, without caches: a reference.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from interfuse.core.errors import InterfuseError
from interfuse.decode.streams import Counts, Tape, Weights

#: the outcome that stands for the end of a text
END = 256
#: sequences less likely than the likeliest by more than so many nats are dropped
FAR = 25.0


@dataclass
class _Spelling:
    """A sequence of tokens that spells the first ``upto`` bytes: its log-probability and the next token's [U]."""

    ids: list[int]
    upto: int
    logprob: float
    then: torch.Tensor


class ByteVocabulary:
    """The tokens of one tokenizer in the order of their bytes.

    Args:
        surfaces: the bytes of each id, None for ids of no text. ends: ids that end a text.
    """

    def __init__(self, surfaces: Sequence[bytes | None], ends: Sequence[int]) -> None:
        pairs = sorted((text, i) for i, text in enumerate(surfaces) if text)
        self.texts = [text for text, _ in pairs]
        self.ids = torch.tensor([i for _, i in pairs], dtype=torch.long)
        self.ends = torch.tensor(sorted(ends), dtype=torch.long)

    def starting(self, rest: bytes) -> tuple[int, int]:
        """The range of tokens that begin with some bytes."""
        low = bisect.bisect_left(self.texts, rest)
        high = bisect.bisect_left(self.texts, rest + b"\xff" * 64, lo=low)
        while high < len(self.texts) and self.texts[high].startswith(rest):
            high += 1
        return low, high


class ByteReader:
    """One model reading one text byte by byte.

    Args:
        weights: the model. vocabulary: its tokens. prompt: the ids before the text.
    """

    def __init__(self, weights: Weights, vocabulary: ByteVocabulary, prompt: Sequence[int], counts: Counts) -> None:
        self.weights, self.vocabulary, self.prompt, self.counts = weights, vocabulary, list(prompt), counts
        self.text = b""
        self.spellings = [_Spelling([], 0, 0.0, self._next([[]])[0])]

    def _next(self, made: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Log-probabilities of the next token after the prompt and each sequence."""
        tape = Tape(self.weights, counts=self.counts)
        logits = tape.start([[*self.prompt, *ids] for ids in made]).cpu()
        spoken = torch.full_like(logits, -torch.inf)  # tokens of no text, such as padding, are never drawn
        able = torch.cat([self.vocabulary.ids, self.vocabulary.ends])
        spoken[:, able] = logits[:, able]
        return list(spoken.log_softmax(dim=1))

    def distribution(self) -> torch.Tensor:
        """Log-probabilities of the next byte, or of the end, [257]."""
        total = torch.zeros(END + 1, dtype=torch.float64)
        best = max(s.logprob for s in self.spellings)
        for s in self.spellings:
            weight = float(torch.tensor(s.logprob - best, dtype=torch.float64).exp())
            rest = self.text[s.upto :]
            low, high = self.vocabulary.starting(rest)
            longer = [k for k in range(low, high) if len(self.vocabulary.texts[k]) > len(rest)]
            places = torch.tensor([self.vocabulary.texts[k][len(rest)] for k in longer], dtype=torch.long)
            mass = s.then[self.vocabulary.ids[longer]].double().exp()
            total.index_add_(0, places, weight * mass)
            if not rest and len(self.vocabulary.ends):
                total[END] += weight * float(s.then[self.vocabulary.ends].double().exp().sum())
        return (total / total.sum()).log().float()

    def push(self, byte: int) -> None:
        """Reads a byte.

        Raises:
            InterfuseError: ``input.vocabulary`` when none of the model's tokens spell the text.
        """
        self.text += bytes([byte])
        kept, grown = list[_Spelling](), list[tuple[_Spelling, int]]()
        for s in self.spellings:
            rest = self.text[s.upto :]
            low, high = self.vocabulary.starting(rest)
            for k in range(low, high):
                if self.vocabulary.texts[k] == rest:
                    grown.append((s, int(self.vocabulary.ids[k])))
            if high > low:
                kept.append(s)
        if not kept and not grown:
            raise InterfuseError("input.vocabulary", f"its tokens cannot spell {self.text!r}", where=self.weights.name,
                                 fix="Leave this stream out, or write with the tokens it has.")  # fmt: skip
        best = max([s.logprob for s in kept] + [s.logprob + float(s.then[i]) for s, i in grown])
        grown = [(s, i) for s, i in grown if s.logprob + float(s.then[i]) > best - FAR]
        nexts = self._next([[*s.ids, i] for s, i in grown]) if grown else []
        made = [
            _Spelling([*s.ids, i], len(self.text), s.logprob + float(s.then[i]), then)
            for (s, i), then in zip(grown, nexts, strict=True)
        ]
        self.spellings = made + [s for s in kept if s.logprob > best - FAR]
