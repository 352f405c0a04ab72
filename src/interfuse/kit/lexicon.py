"""What every token id of a tokenizer stands for, in bytes, whatever scheme the tokenizer writes its tokens in.

Byte-level alphabets (GPT-2, Llama 3, Qwen), SentencePiece markers and byte tokens (Llama 2, Gemma), WordPiece continuations
(BERT) and whole words become the same thing: the bytes a token adds to a text, with a leading space at the start of a word.
"""

from __future__ import annotations

import functools
import json
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint

#: special tokens that mean the same in every vocabulary
ROLES = ("bos", "eos", "pad", "unk")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_SCHEMES = ("bytes", "marker", "wordpiece", "words")
_kept: weakref.WeakKeyDictionary[Any, Lexicon] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Lexicon:
    """The tokens of one tokenizer.

    Attributes:
        surfaces: the bytes of every id, [V]; ``b""`` where an id stands for no text.
        special: bool [V], true for control tokens (ends, padding, turns of a chat) and for ids without a token.
        roles: ``bos``, ``eos``, ``pad``, ``unk`` -> id, where the tokenizer has them.
        scheme: how the tokenizer writes tokens: ``bytes``, ``marker``, ``wordpiece`` or ``words``.
        key: a digest of vocabulary, merges and normalisation; equal for tokenizers that read alike.
    """

    surfaces: tuple[bytes, ...] = field(repr=False)
    special: NDArray[np.bool_] = field(repr=False, compare=False)
    roles: Mapping[str, int]
    scheme: str
    key: str

    def __len__(self) -> int:
        return len(self.surfaces)

    @functools.cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of every id, int64 [V]."""
        return np.fromiter((len(s) for s in self.surfaces), dtype=np.int64, count=len(self.surfaces))

    @functools.cached_property
    def ids(self) -> dict[bytes, int]:
        """Surface -> id of plain tokens. Of several ids with one surface the one that is not a byte token, then the smallest."""
        found: dict[bytes, int] = {}
        for number in np.flatnonzero(~self.special & (self.lengths > 0) & ~self.spelt).tolist():
            found.setdefault(self.surfaces[number], number)
        for number in np.flatnonzero(~self.special & self.spelt).tolist():
            found.setdefault(self.surfaces[number], number)
        return found

    @functools.cached_property
    def spelt(self) -> NDArray[np.bool_]:
        """bool [V]: byte tokens such as ``<0x41>``, which a tokenizer uses only for what it has no other token for."""
        return np.zeros(len(self), dtype=np.bool_) if self._byte_ids is None else self._byte_ids

    _byte_ids: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)


def lexicon(tokenizer: Any) -> Lexicon:
    """The lexicon of a ``transformers`` tokenizer; made once per tokenizer object.

    Raises:
        InterfuseError: ``input.empty`` for a tokenizer without tokens.
    """
    try:
        if tokenizer in _kept:
            return _kept[tokenizer]
    except TypeError:
        return _read(tokenizer)
    found = _kept[tokenizer] = _read(tokenizer)
    return found


def _read(tokenizer: Any) -> Lexicon:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if not vocabulary:
        raise InterfuseError("input.empty", "the tokenizer has no tokens")
    size = max(vocabulary.values()) + 1
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    special_ids = {int(i) for i in tokenizer.all_special_ids} | {i for i, t in added.items() if t.special}
    scheme = _scheme(tokenizer, vocabulary)
    read = {"bytes": _from_bytes, "marker": _from_marker, "wordpiece": _from_wordpiece, "words": _from_word}[scheme]
    surfaces = [b""] * size
    special = np.ones(size, dtype=np.bool_)
    spelt = np.zeros(size, dtype=np.bool_)
    for token, number in vocabulary.items():
        special[number] = number in special_ids
        plain = number not in added and number not in special_ids
        surfaces[number] = read(token) if plain else token.encode("utf-8", "replace")
        spelt[number] = plain and scheme == "marker" and _BYTE.match(token) is not None
    roles = {}
    for role in ROLES:
        value = getattr(tokenizer, f"{role}_token_id", None)
        if isinstance(value, int) and 0 <= value < size:
            roles[role] = value
    return Lexicon(tuple(surfaces), special, roles, scheme, tokenizer_key(tokenizer), spelt)


def tokenizer_key(tokenizer: Any) -> str:
    """A digest of what decides how a tokenizer reads: vocabulary, merges, normalisation, special tokens.

    Settings of a single call (padding, truncation) do not count.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:
        state = json.loads(core.to_str())
        for passing in ("padding", "truncation"):
            state.pop(passing, None)
    else:
        state = {"vocabulary": sorted(tokenizer.get_vocab().items()), "class": type(tokenizer).__name__}
    roles = {role: getattr(tokenizer, f"{role}_token", None) for role in ("bos", "eos", "unk")}
    return fingerprint({"state": state, "roles": {k: str(v) for k, v in roles.items()}})


def _scheme(tokenizer: Any, vocabulary: Mapping[str, int]) -> str:
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:
        state = [
            getattr(core, part).__getstate__() if getattr(core, part) is not None else b""
            for part in ("decoder", "pre_tokenizer", "normalizer")
        ]
        said = b" ".join(s if isinstance(s, bytes) else str(s).encode() for s in state)
        if b"ByteLevel" in said:
            return "bytes"
        if "▁".encode() in said or b"\\u2581" in said or b"Metaspace" in said or b"ByteFallback" in said:
            return "marker"
        if b"WordPiece" in said:
            return "wordpiece"
    counts = {"bytes": 0, "marker": 0, "wordpiece": 0}
    for token in vocabulary:
        counts["bytes"] += token.startswith("Ġ")
        counts["marker"] += token.startswith("▁")
        counts["wordpiece"] += token.startswith("##") and len(token) > 2
    best = max(counts, key=lambda k: counts[k])
    return best if counts[best] else "words"


@functools.cache
def _alphabet() -> dict[str, int]:
    """The 256 characters byte-level tokenizers write bytes with (GPT-2)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(rest)}


def _from_bytes(token: str) -> bytes:
    table = _alphabet()
    try:
        return bytes([table[c] for c in token])
    except KeyError:  # an added word that is written as it is
        return token.encode("utf-8", "replace")


def _from_marker(token: str) -> bytes:
    spelt = _BYTE.match(token)
    if spelt:
        return bytes([int(spelt.group(1), 16)])
    return token.replace("▁", " ").encode("utf-8", "replace")


def _from_wordpiece(token: str) -> bytes:
    return (token[2:] if token.startswith("##") and len(token) > 2 else " " + token).encode("utf-8", "replace")


def _from_word(token: str) -> bytes:
    return b" " + token.encode("utf-8", "replace")


def byte_spans(
    lex: Lexicon, ids: Sequence[int] | NDArray[np.int64], offsets: Sequence[tuple[int, int]], text: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where every token of a text begins and ends, in bytes of the text's UTF-8.

    Exact, inside characters too, where the tokens spell the text (byte-level and SentencePiece tokenizers); else the
    tokenizer's character spans. Tokens a tokenizer adds around a text have no width: they stand at its start or end.

    Args:
        ids: the tokens, [N]. offsets: their spans in characters, as ``return_offsets_mapping`` gives them.
        text: the text they were made from.

    Returns:
        starts and ends, int64 [N] each, both not falling.
    """
    numbers = np.asarray(ids, dtype=np.int64)
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    data = text.encode("utf-8", "surrogatepass")
    starts, ends = np.zeros(len(numbers), dtype=np.int64), np.zeros(len(numbers), dtype=np.int64)
    if not len(numbers):
        return starts, ends
    wide = np.flatnonzero(spans[:, 1] > spans[:, 0])
    low, high = (int(wide[0]), int(wide[-1]) + 1) if len(wide) else (0, 0)
    starts[high:] = ends[high:] = len(data) if len(wide) else 0
    inner = numbers[low:high]
    if len(inner) and int(inner.max()) < len(lex):
        spelt = b"".join([lex.surfaces[i] for i in inner.tolist()])
        extra = 1 if spelt[:1] == b" " and spelt[1:] == data else 0
        if extra or spelt == data:
            upto = np.cumsum(lex.lengths[inner])
            ends[low:high] = np.maximum(upto - extra, 0)
            starts[low:high] = np.concatenate([[0], ends[low : high - 1]])
            return starts, ends
    widths = np.zeros(len(text) + 1, dtype=np.int64)
    if len(data) == len(text):
        widths = np.arange(len(text) + 1)
    else:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        widths[1:] = np.cumsum(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF))
    ends[low:high] = np.maximum.accumulate(widths[spans[low:high, 1]])
    starts[low:high] = np.minimum(np.maximum.accumulate(widths[spans[low:high, 0]]), ends[low:high])
    return starts, ends
