"""Which tokens of two readings of one text belong together.

Two ways: by the bytes of the text the tokens cover (exact and fast), and by dynamic time warping over edit distances between
tokens (FuseLLM and FuseChat, Wan et al. 2024), for texts that differ a little.

A position here says what its tokenizer's model says *after* reading that token. So a position of the base belongs to the
position of the source where the same text has been read: both tokens end at the same place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError
from interfuse.kit.lexicon import Lexicon, byte_spans
from interfuse.kit.token_map import rapidfuzz_or_refuse

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """A text as one tokenizer reads it: ids, and where each token starts and ends in bytes; int64 [N] each."""

    ids: Ints = field(repr=False)
    starts: Ints = field(repr=False)
    ends: Ints = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Alignment:
    """For every position of the base [N]: the source positions whose tokens share text with it, and the one that ends with it.

    Attributes:
        first, last: source positions ``first..last`` overlap; ``first > last`` where none does. int64 [N].
        same: the source position at which the same text has been read, -1 where there is none. int64 [N].
    """

    first: Ints = field(repr=False)
    last: Ints = field(repr=False)
    same: Ints = field(repr=False)

    def __len__(self) -> int:
        return len(self.same)

    def report(self) -> dict[str, float]:
        """Shares of base positions: that have a source position to learn from, and that overlap exactly one token."""
        count = max(len(self), 1)
        return {
            "positions": float(len(self)),
            "synchronous": float((self.same >= 0).sum() / count),
            "one to one": float(((self.first == self.last) & (self.same == self.first)).sum() / count),
        }


def read(tokenizer: Any, lex: Lexicon, texts: Sequence[str], **settings: Any) -> list[Reading]:
    """Reads texts with a fast tokenizer.

    Args:
        lex: the tokenizer's lexicon. settings: of the tokenizer's call (``add_special_tokens``, ``truncation``, ``max_length``).

    Raises:
        InterfuseError: ``needs.capability`` for a tokenizer that does not tell where its tokens stand.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InterfuseError("needs.capability", "the tokenizer does not tell where its tokens stand in the text",
                             where=str(tokenizer.name_or_path), fix="Use its fast version (tokenizer.json).")  # fmt: skip
    found = tokenizer(list(texts), return_offsets_mapping=True, return_attention_mask=False, **settings)
    out = []
    for text, ids, offsets in zip(texts, found["input_ids"], found["offset_mapping"], strict=True):
        out.append(Reading(np.asarray(ids, dtype=np.int64), *byte_spans(lex, ids, offsets, text)))
    return out


def align(base: Reading, source: Reading) -> Alignment:
    """Aligns two readings of one text by bytes, in time proportional to their length.

    Tokens of no width (ends of a text) belong to those of the other reading at the same place: first to first, last to last.
    """
    same = np.searchsorted(source.ends, base.ends, side="left")
    # several tokens may end at one place (an end token after the last word): the k-th belongs to the k-th
    same = same + _rank(base.ends)
    inside = same < len(source)
    same = np.where(inside & (source.ends[np.minimum(same, max(len(source) - 1, 0))] == base.ends), same, -1) if len(source) else np.full(len(base), -1)  # fmt: skip
    first = np.searchsorted(source.ends, base.starts, side="right")
    last = np.searchsorted(source.starts, base.ends, side="left") - 1
    empty = base.ends == base.starts
    first, last = np.where(empty, same, first), np.where(empty, np.where(same < 0, -2, same), last)
    return Alignment(first.astype(np.int64), last.astype(np.int64), same.astype(np.int64))


def _rank(ends: Ints) -> Ints:
    """How many earlier positions end at the same place."""
    if not len(ends):
        return ends
    fresh = np.concatenate([[True], ends[1:] != ends[:-1]])
    begin = np.maximum.accumulate(np.where(fresh, np.arange(len(ends)), 0))
    return np.arange(len(ends)) - begin


def align_by_edits(base_ids: Ints, source_ids: Ints, base: Lexicon, source: Lexicon) -> Alignment:
    """Aligns two token sequences by dynamic time warping; the cost of a pair is the edit distance of its tokens.

    ``D[i, j] = cost + min(D[i-1, j-1], D[i, j-1], D[i-1, j])``, walked back with preference diagonal, base stays, source
    stays (FuseChat, section 3.2; word-start markers are left out, or exchanged where nothing would remain).

    ``same`` is the first aligned position whose token ends as the base's does, or the other way round; else the last one
    where the aligned tokens together spell the base's token; else -1.

    Args:
        base_ids [N], source_ids [M]: the tokens. Memory and time grow with N * M.

    Raises:
        InterfuseError: ``needs.package`` without ``rapidfuzz``.
    """
    rows, columns = len(base_ids), len(source_ids)
    nothing = np.full(rows, -1, dtype=np.int64)
    if not rows or not columns:
        return Alignment(nothing + 1, nothing, nothing)
    cost = _costs(base_ids, source_ids, base, source)
    total = _accumulate(cost)
    first, last = np.full(rows, columns, dtype=np.int64), nothing.copy()
    i, j = rows - 1, columns - 1
    while True:
        first[i], last[i] = min(int(first[i]), j), max(int(last[i]), j)
        if i == 0 and j == 0:
            break
        steps = (
            (total[i - 1, j - 1] if i and j else np.inf, i - 1, j - 1),
            (total[i, j - 1] if j else np.inf, i, j - 1),
            (total[i - 1, j] if i else np.inf, i - 1, j),
        )
        _, i, j = min(steps, key=lambda s: s[0])  # the first of equals
    same = nothing.copy()
    for position in range(rows):
        mine = base.surfaces[base_ids[position]].strip(b" ") or base.surfaces[base_ids[position]]
        span = range(int(first[position]), int(last[position]) + 1)
        theirs = [source.surfaces[source_ids[k]].strip(b" ") or source.surfaces[source_ids[k]] for k in span]
        for k, token in zip(span, theirs, strict=True):
            if token and mine and (mine.endswith(token) or token.endswith(mine)):
                same[position] = k
                break
        else:
            if b"".join(theirs) == mine:
                same[position] = span[-1]
    return Alignment(first, last, same)


def _costs(base_ids: Ints, source_ids: Ints, base: Lexicon, source: Lexicon) -> NDArray[np.float64]:
    fuzz = rapidfuzz_or_refuse()

    def plain(lex: Lexicon, ids: Ints) -> tuple[list[str], Ints]:
        unique, back = np.unique(ids, return_inverse=True)
        bare = [lex.surfaces[i].removeprefix(b" ") or lex.surfaces[i] for i in unique.tolist()]
        return [b.decode("latin-1") for b in bare], back.astype(np.int64)

    (mine, rows), (theirs, columns) = plain(base, base_ids), plain(source, source_ids)
    table = fuzz.process.cdist(mine, theirs, scorer=fuzz.distance.Levenshtein.distance, dtype=np.uint16)
    # special tokens of one role are the same token, whatever they are called
    wide = table.astype(np.float64)[rows[:, None], columns[None, :]]
    for role in ("bos", "eos"):
        if role in base.roles and role in source.roles:
            wide[np.ix_(base_ids == base.roles[role], source_ids == source.roles[role])] = 0.0
    return wide


def _accumulate(cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cheapest way to every cell, one anti-diagonal at a time."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        best = np.minimum(total[i, j], np.minimum(total[i + 1, j], total[i, j + 1]))
        total[i + 1, j + 1] = cost[i, j] + best
    return total[1:, 1:]


def count_pairs(
    alignments: Sequence[Alignment], base_ids: Sequence[Ints], source_ids: Sequence[Ints]
) -> Counter[tuple[int, int]]:
    """How often a source token and a base token were aligned: (source id, base id) -> count.

    Args:
        alignments, base_ids, source_ids: one of each per text.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for alignment, base, source in zip(alignments, base_ids, source_ids, strict=True):
        lengths = np.maximum(alignment.last - alignment.first + 1, 0)
        rows = np.repeat(np.arange(len(base)), lengths)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        pairs, times = np.unique(
            np.stack([source[alignment.first[rows] + within], base[rows]]), axis=1, return_counts=True
        )
        for s, b, n in zip(*pairs.tolist(), times.tolist(), strict=True):
            counts[(s, b)] += n
    return counts
