"""Vocabularies of several models: whether they agree, a tokenizer for their merge, and embeddings in its order.

A merged model reads the tokens of one of its sources (``base``, or a folder) or of all (``union``). Every source's embedding
and output rows are put into that order by an index map; a row a source lacks comes from the base, else from the only owner,
else it is the mean of the owners' rows. Rows that belong to no token are the mean row (Hewitt 2021, "Initializing new word
embeddings for pretrained language models").
"""

from __future__ import annotations

import functools
import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.lazy import lazy
from interfuse.core.safe import file_sha256, fingerprint, read_text
from interfuse.data.overlay import Overlay, Tensors
from interfuse.data.tokenizer_union import TOKENIZER
from interfuse.data.weights import Flat

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

#: names of embeddings and of output layers, whose first axis is the vocabulary
_VOCABULARY = re.compile(
    r"(?:^|\.)(?:embed_tokens|word_embeddings|embed_in|embed_out|wte|lm_head|shared|embeddings?|predictions|decoder|output|tok_embeddings)(?:\.|\Z)"
)
#: names of input embeddings
EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|word_embeddings|embed_in|wte|tok_embeddings)\.weight\Z")
_ROWS = 4096


@dataclass(frozen=True)
class Reader:
    """What a model reads with.

    Attributes:
        name: how reports call the model. folder: its tokenizer's folder; None without one. rows: rows of its embedding.
    """

    name: str
    folder: Path | None
    rows: int

    def ids(self) -> dict[str, int] | None:
        """token -> row, for the tokens that have one; None without a tokenizer."""
        found = read_ids(self.folder) if self.folder is not None else None
        return None if found is None else {token: row for token, row in found.items() if row < self.rows}


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens a merged model shall read: ``base``, ``union`` or those of a folder (``path``)."""

    name: str
    path: Path | None = None

    def fingerprint(self) -> str:
        """Of the word, or of the folder's tokenizer."""
        files = (
            [self.path / n for n in (TOKENIZER, "tokenizer_config.json", "vocab.json", "merges.txt")]
            if self.path
            else []
        )
        return fingerprint([self.name] if self.path is None else [file_sha256(f) for f in files if f.is_file()])


def read_ids(folder: Path) -> dict[str, int] | None:
    """The tokens of a folder's tokenizer and their ids; None when there is no tokenizer.

    Raises:
        InterfuseError: ``input.format``.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        return _ids_by_transformers(folder)
    try:
        raw = json.loads(read_text(path, limit=1 << 28))
        vocab = raw["model"]["vocab"]
        ids = (
            {str(t): int(i) for t, i in vocab.items()}
            if isinstance(vocab, dict)
            else {str(v[0]): i for i, v in enumerate(vocab)}
        )
        ids.update({str(row["content"]): int(row["id"]) for row in raw.get("added_tokens") or ()})
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise InterfuseError("input.format", "the tokenizer cannot be read", where=str(path)) from error
    return ids


def _ids_by_transformers(folder: Path) -> dict[str, int] | None:
    if not any(
        (folder / name).is_file() for name in ("tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")
    ):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise InterfuseError(
            "input.format", f"the tokenizer cannot be loaded: {str(error).splitlines()[0]}", where=str(folder)
        ) from error
    return {str(token): int(row) for token, row in tokenizer.get_vocab().items()}


def vocabulary_tensors(tensors: Tensors, rows: int | None) -> list[str]:
    """The names of tensors with one row per token."""
    return [n for n in tensors if tensors[n].shape[:1] == (rows,) and _VOCABULARY.search(n) and "position" not in n]


def rows_of(tensors: Tensors, config: Mapping[str, Any]) -> int | None:
    """The number of rows of a model's embedding, which may exceed its tokens; None for a model that reads none."""
    stated = config.get("text_config", config).get("vocab_size")
    if stated is None or vocabulary_tensors(tensors, stated):
        return stated if stated is None else int(stated)
    found = [tensors[n].shape[0] for n in tensors if EMBEDDING.search(n) and len(tensors[n].shape) == 2]
    return found[0] if found else None


def refuse_different(readers: Sequence[Reader]) -> list[str]:
    """Refuses models that do not read the same tokens; returns remarks on differences that do no harm.

    The same id must mean the same token in all of them. Special and added tokens may differ: that is remarked.

    Raises:
        InterfuseError: ``input.vocabulary`` with examples and the remedy.
    """
    fix = (
        "Add tokenizer: base (keep the base's tokens) or tokenizer: union (all tokens); rows are then matched by token."
    )
    sizes = list(dict.fromkeys(r.rows for r in readers))
    if len(sizes) > 1:
        said = ", ".join(f"{r.name}: {r.rows}" for r in readers)
        raise InterfuseError(
            "input.vocabulary", f"the models have embeddings of different numbers of tokens ({said})", fix=fix
        )
    first, remarks = readers[0], []
    names = ids = None
    for reader in readers[1:]:
        if first.folder is None or reader.folder is None or _same_file(first.folder, reader.folder):
            continue
        if ids is None:
            ids = first.ids() or {}
            names = {row: token for token, row in ids.items()}
        theirs = reader.ids() or {}
        assert names is not None, "made with ids"
        wrong = [(names[row], token, row) for token, row in theirs.items() if row in names and names[row] != token]
        plain = [w for w in wrong if not (_is_added(first.folder, w[0]) or _is_added(reader.folder, w[1]))]
        shown = ", ".join(
            f"{row} is {mine!r} in {first.name} and {other!r} in {reader.name}"
            for mine, other, row in (plain or wrong)[:3]
        )
        if plain:
            raise InterfuseError("input.vocabulary", f"{len(plain)} ids mean different tokens: {shown}", fix=fix)
        if wrong:
            remarks.append(f"{len(wrong)} special or added tokens differ: {shown}")
    return remarks


def _same_file(a: Path, b: Path) -> bool:
    files = a / TOKENIZER, b / TOKENIZER
    there = all(f.is_file() for f in files)
    return a == b or (
        there and files[0].stat().st_size == files[1].stat().st_size and files[0].read_bytes() == files[1].read_bytes()
    )


def _is_added(folder: Path, token: str) -> bool:
    path = folder / TOKENIZER
    return path.is_file() and token in _added(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _added(path: Path, stamp: int) -> frozenset[str]:
    raw = json.loads(read_text(path, limit=1 << 28))
    return frozenset(str(row["content"]) for row in raw.get("added_tokens") or ())


@dataclass(frozen=True)
class Alignment:
    """Rows of every source in the order of the merged vocabulary.

    Attributes:
        ids: token -> row of the result. rows: rows of the result, with padding.
        maps: for every source the row of each row of the result, -1 where it has none; int64 [rows].
        donors: row -> the (source, row) pairs whose mean takes the place of a missing row.
        forced: rows whose donors count for every source, zero: rows that are zero where missing.
        report: what was found, for the artifact.
    """

    ids: Mapping[str, int]
    rows: int
    maps: tuple[NDArray[np.int64], ...]
    donors: Mapping[int, tuple[tuple[int, int], ...]]
    forced: tuple[int, ...] = ()
    zero: tuple[int, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)

    def overlay(self, index: int, tensors: Sequence[Tensors], rows: Sequence[int]) -> Overlay:
        """One source's tensors with those of the vocabulary in the new order; the others' are read for missing rows."""
        flats: dict[str, tuple[Flat, torch.dtype | str]] = {}
        for name in vocabulary_tensors(tensors[index], rows[index]):
            theirs = [
                t.source(name) if name in t and t[name].shape[1:] == tensors[index][name].shape[1:] else None
                for t in tensors
            ]
            flats[name] = (Realigned(self, index, theirs), tensors[index][name].code)
        return Overlay(tensors[index], flats)


def align(
    readers: Sequence[Reader],
    ids: Mapping[str, int],
    *,
    base: int | None,
    tokens: Mapping[str, Any] | None = None,
    pad_to_multiple_of: int | None = None,
) -> Alignment:
    """Finds for every token of the result the rows that stand for it.

    Args:
        readers: the sources. ids: the tokens of the result. base: which source is the base, None without one.
        tokens: token -> ``{source: INDEX | "base" | "zero" | {model: INDEX, token: TEXT or id}, force: bool}``.
        pad_to_multiple_of: the number of rows is rounded up to a multiple of this.

    Raises:
        InterfuseError: ``input.vocabulary`` for a source without tokenizer whose rows differ from the base's, ``param.value``.
    """
    count = max(ids.values(), default=-1) + 1
    step = pad_to_multiple_of or 1
    rows = -(-count // step) * step
    head = base if base is not None else 0
    assumed: list[str] = []
    maps: list[NDArray[np.int64]] = []
    vocabularies: list[dict[str, int]] = []
    first = readers[head].ids()
    for reader in readers:
        theirs = reader.ids()
        if theirs is None:
            if first is None or reader.rows != readers[head].rows:
                raise InterfuseError("input.vocabulary", "the model has no tokenizer, so its rows cannot be matched by token",
                                     where=reader.name, fix="Put its tokenizer files into its folder.")  # fmt: skip
            theirs, assumed = first, [*assumed, reader.name]
        places = np.full(rows, -1, dtype=np.int64)
        for token, row in ids.items():
            places[row] = theirs.get(token, -1)
        vocabularies.append(theirs)
        maps.append(places)
    names = {row: token for token, row in ids.items()}
    given, forced, zero = _overrides(tokens or {}, ids, vocabularies, head)
    donors: dict[int, tuple[tuple[int, int], ...]] = dict(given)
    kinds = {"base": 0, "owner": 0, "mean of owners": 0, "mean row": 0, "given": len(given) + len(zero)}
    missing = np.flatnonzero((np.stack(maps) < 0).any(axis=0))
    for row in missing.tolist():
        if row in donors or row in zero or row not in names:
            continue
        owners = [(i, int(m[row])) for i, m in enumerate(maps) if m[row] >= 0]
        if base is not None and maps[base][row] >= 0:
            owners = [(base, int(maps[base][row]))]
            kinds["base"] += 1
        else:
            kinds["owner" if len(owners) == 1 else "mean of owners" if owners else "mean row"] += 1
        donors[row] = tuple(owners)
    report = {
        "tokens": len(ids), "rows": rows, "padding": rows - count, "missing rows from": kinds,
        "sources": [{"model": r.name, "rows": r.rows, "tokens matched": int((m >= 0).sum())} for r, m in zip(readers, maps, strict=True)],
        "assumed to read the base's tokens": assumed,
    }  # fmt: skip
    return Alignment(dict(ids), rows, tuple(maps), donors, tuple(forced), tuple(zero), report)


def _overrides(
    tokens: Mapping[str, Any], ids: Mapping[str, int], vocabularies: Sequence[Mapping[str, int]], head: int
) -> tuple[dict[int, tuple[tuple[int, int], ...]], list[int], list[int]]:
    donors: dict[int, tuple[tuple[int, int], ...]] = {}
    forced: list[int] = []
    zero: list[int] = []
    for token, rule in tokens.items():
        where = f"tokens: {token!r}"
        if token not in ids:
            raise InterfuseError(
                "param.value",
                "the tokenizer of the result has no such token",
                where=where,
                fix=did_you_mean(token, ids),
            )
        if not isinstance(rule, Mapping) or not set(rule) <= {"source", "force"}:
            raise InterfuseError("param.value", f"a token takes 'source' and 'force', not {rule!r}", where=where)
        source, row = rule.get("source"), ids[token]
        if rule.get("force"):
            forced.append(row)
        if source is None:
            continue
        if source == "zero":
            zero.append(row)
            continue
        table = (
            source if isinstance(source, Mapping) else {"model": head if source == "base" else source, "token": token}
        )
        model, word = table.get("model"), table.get("token", token)
        model = head if model == "base" else model
        if type(model) is not int or not 0 <= model < len(vocabularies):
            raise InterfuseError("param.value", f"there is no model {model!r}", where=where)
        found = word if type(word) is int else vocabularies[model].get(str(word))
        if found is None:
            raise InterfuseError(
                "param.value",
                f"the model has no token {word!r}",
                where=where,
                fix=did_you_mean(str(word), vocabularies[model]),
            )
        donors[row] = ((model, found),)
    return donors, forced, zero


class Realigned:
    """One source's embedding or output tensor with its rows in the order of the merged vocabulary."""

    def __init__(self, alignment: Alignment, index: int, flats: Sequence[Flat | None]) -> None:
        self.flats, own = flats, flats[index]
        assert own is not None, "a source has the tensor it is asked for"
        self.own = own
        self.columns = math.prod(own.shape[1:])
        self.donors, self.zero = alignment.donors, frozenset(alignment.zero)
        self.rows = alignment.maps[index].copy()
        self.rows[list(alignment.forced)] = -1
        self._shape = (alignment.rows, *own.shape[1:])
        self._mean: Tensor | None = None
        self._lock = threading.Lock()

    @property
    def shape(self) -> tuple[int, ...]:
        """The result's rows, the source's other axes."""
        return self._shape

    def read(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements ``start`` to ``stop``, float32 [stop - start]."""
        out = torch.empty(stop - start, dtype=torch.float32) if out is None else out
        if stop <= start:
            return out
        top, bottom = start // self.columns, -(-stop // self.columns)
        whole = start == top * self.columns and stop == bottom * self.columns
        into = out if whole else torch.empty((bottom - top) * self.columns, dtype=torch.float32)
        self._fill(top, bottom, into, self.mean())
        return out if whole else out.copy_(into[start - top * self.columns : stop - top * self.columns])

    def _fill(self, top: int, bottom: int, into: Tensor, mean: Tensor | None) -> list[int]:
        """Rows ``top`` to ``bottom``; returns those that belong to no token, which are the mean row when it is known."""
        wanted, width, empty = self.rows[top:bottom], self.columns, []
        ends = np.flatnonzero(np.diff(wanted) != 1) + 1  # runs of rows that lie together in the source too
        for first, last in zip([0, *ends.tolist()], [*ends.tolist(), len(wanted)], strict=True):
            if wanted[first] >= 0:
                low = int(wanted[first]) * width
                self.own.read(low, low + (last - first) * width, into[first * width : last * width])
                continue
            for row in range(first, last):
                given = [(self.flats[i], at) for i, at in self.donors.get(top + row, ())]
                rows = [flat.read(at * width, (at + 1) * width) for flat, at in given if flat is not None]
                place = into[row * width : (row + 1) * width]
                if rows:
                    place.copy_(torch.stack(rows).double().mean(0).float())
                elif top + row in self.zero or mean is None:
                    place.zero_()
                else:
                    place.copy_(mean)
                if not rows and top + row not in self.zero:
                    empty.append(row)
        return empty

    def mean(self) -> Tensor:
        """The mean of all rows that belong to a token, float32 [columns]."""
        with self._lock:
            if self._mean is None:
                total, count = torch.zeros(self.columns, dtype=torch.float64), 0
                for top in range(0, len(self.rows), _ROWS):
                    bottom = min(top + _ROWS, len(self.rows))
                    block = torch.empty((bottom - top) * self.columns, dtype=torch.float32)
                    empty = self._fill(top, bottom, block, None)
                    total += block.view(-1, self.columns).double().sum(0)  # empty rows are 0 here
                    count += bottom - top - len(empty)
                self._mean = (total / max(count, 1)).float()
            return self._mean
