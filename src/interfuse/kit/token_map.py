"""From the tokens of one vocabulary to those of another: made once per pair of tokenizers, kept on disk, applied in one step.

A map is made in this order, and says of every token which rule placed it:

- *exact*: both vocabularies have a token of the same bytes, word starts and byte tokens normalised (:mod:`.lexicon`);
  special tokens match by role (begin, end, padding, unknown) or by their text;
- *prefix* (default for the rest): the longest target tokens, one after another, that spell the source token. The first of them
  is what a model that reads the target vocabulary would say next;
- *edit* (MinED, Fu et al. 2023; Wan et al. 2024): the plain target token of least edit distance;
- *counted* (MS of FuseChat 2.0, Wan et al. 2024, section 3.2): the target token a source token was aligned with most often
  in a corpus. *counted-reference* is the rule of the authors' program instead: least ``distance * sigmoid(count)``, a tenth of
  it where one token contains the other.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint, write_atomic
from interfuse.kit.lexicon import ROLES, Lexicon

if TYPE_CHECKING:
    import torch

#: what placed a token
NONE, EXACT, SPECIAL, PREFIX, EDIT, COUNTED = range(6)
KINDS = ("none", "exact", "special", "prefix", "edit", "counted")
Policy = Literal["exact", "prefix", "edit", "counted", "counted-reference"]
#: source tokens compared with the whole target vocabulary at a time
_BLOCK = 256
_VERSION = 1
Counts = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class VocabularyMap:
    """Source token id -> target token id(s).

    Attributes:
        starts, targets: the target ids of source id ``s`` are ``targets[starts[s]:starts[s + 1]]``, in reading order; int64
            [V_source + 1] and [n]. Several where only a sequence spells the source token; none where nothing fits.
        kinds: int8 [V_source], which rule placed it: an index into :data:`KINDS`.
        target_size: V_target, ids of the target's tokenizer. A model may have more rows: its padding is never a target.
        source_key, target_key: digests of the two tokenizers. policy: what unmatched tokens were given.

    A map of a vocabulary into itself is the identity (:attr:`identity`), whatever the policy.
    """

    starts: NDArray[np.int64] = field(repr=False, compare=False)
    targets: NDArray[np.int64] = field(repr=False, compare=False)
    kinds: NDArray[np.int8] = field(repr=False, compare=False)
    target_size: int
    source_key: str
    target_key: str
    policy: str

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, source: int) -> tuple[int, ...]:
        """The target ids of one source id."""
        return tuple(self.targets[self.starts[source] : self.starts[source + 1]].tolist())

    @property
    def identity(self) -> bool:
        """Whether both tokenizers are the same, so that ids can be used as they are."""
        return self.source_key == self.target_key

    @functools.cached_property
    def first(self) -> NDArray[np.int64]:
        """The one target id a source id's probability goes to (the first of a sequence), or -1; int64 [V_source]."""
        count = np.diff(self.starts)
        out = np.full(len(self), -1, dtype=np.int64)
        out[count > 0] = self.targets[self.starts[:-1][count > 0]]
        return out

    @functools.cached_property
    def matched(self) -> NDArray[np.bool_]:
        """bool [V_source]: ids whose target means exactly the same (rules *exact* and *special*)."""
        return (self.kinds == EXACT) | (self.kinds == SPECIAL)

    def report(self, weights: NDArray[Any] | None = None) -> dict[str, Any]:
        """How many source tokens each rule placed, and the share that is matched exactly.

        Args:
            weights: occurrences of every source id in a text, [V_source]; shares are then by occurrence.
        """
        weight = np.ones(len(self)) if weights is None else np.asarray(weights, dtype=np.float64)
        total = max(float(weight.sum()), 1e-300)
        return {
            "source tokens": len(self),
            "target tokens": self.target_size,
            "policy": self.policy,
            "tokens": {name: int((self.kinds == kind).sum()) for kind, name in enumerate(KINDS)},
            "matched share": float(weight[self.matched].sum() / total),
            "placed share": float(weight[self.first >= 0].sum() / total),
        }

    @functools.cached_property
    def _columns(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        known = np.flatnonzero(self.first >= 0)
        return torch.from_numpy(known), torch.from_numpy(self.first[known]), torch.from_numpy(~self.matched)

    def project(
        self, probs: torch.Tensor, *, unmatched: Literal["prefix", "drop"] = "prefix", size: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A next-token distribution over the source vocabulary, said in the target vocabulary.

        Probability of a source token with an exact partner goes to it. The rest goes to the first target token of its
        spelling (``prefix``), or is left out (``drop``). Rows are *not* renormalised: what reached no target is missing.

        Args:
            probs: ``[..., V]`` probabilities, V >= V_source (rows beyond the tokenizer are padding and ignored).
            size: columns of the result, at least ``target_size``; by default ``target_size``.

        Returns:
            ``[..., size]`` projected probabilities, and ``[...]`` the matched mass: probability of tokens with an exact
            partner. Renormalise by the row sum, and warn where the matched mass is under 0.8.

        Raises:
            InterfuseError: ``input.shape`` when ``probs`` has fewer columns than the source vocabulary, or ``size`` is too small.
        """
        import torch

        size = self.target_size if size is None else size
        if probs.shape[-1] < len(self) or size < self.target_size:
            raise InterfuseError("input.shape", f"the map is from {len(self)} to {self.target_size} tokens", where=f"{probs.shape[-1]} and {size}")  # fmt: skip
        known, to, loose = (c.to(probs.device) for c in self._columns)
        mass = probs[..., : len(self)]
        matched = (
            1.0 - mass.masked_select(loose).reshape(*mass.shape[:-1], -1).sum(-1) - probs[..., len(self) :].sum(-1)
        )
        if unmatched == "drop":
            mass = mass.masked_fill(loose, 0.0)
        out = torch.zeros(*probs.shape[:-1], size, dtype=probs.dtype, device=probs.device)
        return out.index_add_(-1, to, mass.index_select(-1, known)), matched.clamp(0.0, 1.0)

    def send(
        self, ids: NDArray[np.int64], logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best tokens of positions, said in the target vocabulary.

        Args:
            ids, logits: ``[N, k]``, the largest logit first. A target that two tokens are sent to keeps the larger logit.

        Returns:
            ids and logits ``[N, k]``; places that hold nothing have id 0 and logit ``-inf``.
        """
        to = self.first[ids]
        doubled = np.zeros(to.shape, dtype=np.bool_)
        for column in range(1, to.shape[1]):
            doubled[:, column] = (to[:, :column] == to[:, column : column + 1]).any(axis=1)
        lost = (to < 0) | doubled
        return np.where(lost, 0, to), np.where(lost, np.float32(-np.inf), logits)


def identity_map(lex: Lexicon) -> VocabularyMap:
    """The map of a vocabulary into itself."""
    size = len(lex)
    kinds = np.where(lex.special, SPECIAL, EXACT).astype(np.int8)
    return VocabularyMap(np.arange(size + 1), np.arange(size), kinds, size, lex.key, lex.key, "exact")


def vocabulary_map(
    source: Lexicon, target: Lexicon, *, policy: Policy = "prefix", counts: Counts | None = None, ctx: Ctx | None = None
) -> VocabularyMap:
    """The map from one vocabulary to another.

    Args:
        policy: what tokens without an exact partner are given: ``exact`` nothing, ``prefix`` the longest spelling, ``edit``
            the nearest token, ``counted`` (or ``counted-reference``) the partner that alignments name (needs ``counts``; the rest
            nothing).
        counts: (source id, target id) -> how often the two were aligned, see ``token_align.count_pairs``.
        ctx: with it, the map is kept in ``<cache>/token-maps`` under the digests of both tokenizers, and read from there.

    Raises:
        InterfuseError: ``param.value`` for ``counted`` without counts, ``needs.package`` for distances without ``rapidfuzz``,
            ``artifact.damaged`` for a cache file that is not what its name says.
    """
    if source.key == target.key:
        return identity_map(source)
    if policy.startswith("counted") and counts is None:
        raise InterfuseError("param.value", "the map by counts needs counts of a corpus", where="policy",
                             fix="Choose policy: prefix or edit, or give counts.")  # fmt: skip
    said = [
        source.key,
        target.key,
        policy,
        _VERSION,
        sorted([*pair, n] for pair, n in counts.items()) if counts else None,
    ]
    key = fingerprint(said)
    path = Path(ctx.cache).expanduser() / "token-maps" / f"{key[:32]}.safetensors" if ctx is not None else None
    if path is not None and path.is_file():
        return _load(path, key, source, target, policy)
    made = _make(source, target, policy, counts)
    if path is not None:
        _store(path, key, made)
    return made


def _make(source: Lexicon, target: Lexicon, policy: Policy, counts: Counts | None) -> VocabularyMap:
    kinds = np.zeros(len(source), dtype=np.int8)
    first = np.full(len(source), -1, dtype=np.int64)
    wanted = target.ids
    for number, surface in enumerate(source.surfaces):
        if not source.special[number] and surface:
            found = wanted.get(surface, -1)
            if found >= 0:
                kinds[number], first[number] = EXACT, found
    texts = {target.surfaces[i]: int(i) for i in np.flatnonzero(target.special)[::-1] if target.surfaces[i]}
    for number in np.flatnonzero(source.special).tolist():
        if source.surfaces[number] in texts:
            kinds[number], first[number] = SPECIAL, texts[source.surfaces[number]]
    for role in ROLES:
        if role in source.roles and role in target.roles:
            kinds[source.roles[role]], first[source.roles[role]] = SPECIAL, target.roles[role]
    for role in ("eos", "bos"):  # one id may play several roles: ending comes first
        if role in source.roles and role in target.roles and source.roles.get("eos") == source.roles[role]:
            first[source.roles[role]] = target.roles["eos" if "eos" in target.roles else role]
    rest = np.flatnonzero((kinds == NONE) & ~source.special & (source.lengths > 0))
    several: dict[int, list[int]] = {}
    if policy == "prefix":
        longest = int(target.lengths.max())
        for number in rest.tolist():
            found_ids = _spell(source.surfaces[number], wanted, longest)
            if found_ids:
                several[number], kinds[number] = found_ids, PREFIX
    elif policy == "edit":
        first[rest] = nearest(source, target, rest)
        kinds[rest[first[rest] >= 0]] = EDIT
    elif policy.startswith("counted"):
        assert counts is not None, "checked by the caller"
        chosen = _by_counts(source, target, counts, reference=policy == "counted-reference")
        for number in rest.tolist():
            if number in chosen:
                kinds[number], first[number] = COUNTED, chosen[number]
    rows = [several.get(n) or ([int(first[n])] if first[n] >= 0 else []) for n in range(len(source))]
    starts = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    targets = np.fromiter((t for r in rows for t in r), dtype=np.int64, count=int(starts[-1]))
    return VocabularyMap(starts, targets, kinds, len(target), source.key, target.key, policy)


def _spell(surface: bytes, wanted: Mapping[bytes, int], longest: int) -> list[int]:
    """The longest tokens, one after another, that spell a text; what came before the first gap when they cannot."""
    found, at = [], 0
    while at < len(surface):
        for end in range(min(len(surface), at + longest), at, -1):
            number = wanted.get(surface[at:end])
            if number is not None:
                found.append(number)
                at = end
                break
        else:
            break
    return found


def _by_counts(source: Lexicon, target: Lexicon, counts: Counts, *, reference: bool) -> dict[int, int]:
    """The partner of most alignments; ties go to the smaller edit distance, then to the smaller id.

    ``reference``: the partner of least ``distance * sigmoid(count)``, a tenth of it where one contains the other.
    """
    best: dict[int, tuple[float, int, int]] = {}
    for (s, t), n in sorted(counts.items()):
        if target.special[t] or n <= 0 or (not reference and s in best and -n > best[s][0]):
            continue
        a, b = source.surfaces[s], target.surfaces[t]
        distance = edit_distance(a, b)
        score = distance / (1 + math.exp(-n)) * (0.1 if a in b or b in a else 1.0)
        rank = (score if reference else float(-n), distance, t)
        if s not in best or rank < best[s]:
            best[s] = rank
    return {s: rank[2] for s, rank in best.items()}


def rapidfuzz_or_refuse() -> Any:
    """The package of edit distances; raises ``needs.package`` where it is not installed."""
    try:
        import rapidfuzz
        import rapidfuzz.distance
        import rapidfuzz.process
    except ImportError as error:
        raise InterfuseError(
            "needs.package", "edit distances need rapidfuzz", fix="pip install 'interfuse[train]'"
        ) from error
    return rapidfuzz


def edit_distance(a: bytes, b: bytes) -> int:
    """The Levenshtein distance of two tokens in bytes, word-start spaces left out where both have one."""
    a, b = _bare(a, b)
    return int(rapidfuzz_or_refuse().distance.Levenshtein.distance(a, b))


def _bare(a: bytes, b: bytes) -> tuple[bytes, bytes]:
    return (a[1:], b[1:]) if a[:1] == b" " == b[:1] else (a, b)


def nearest(source: Lexicon, target: Lexicon, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of some source ids the plain target id of least edit distance; int64 [len(numbers)].

    Distances are between tokens without word-start spaces; ties go to a token that agrees about the start of a word, then to
    the smaller id. Costs about 1 s per 400 tokens and 50,000 targets on one core.
    """
    fuzz = rapidfuzz_or_refuse()
    plain = np.array(sorted(target.ids.values()), dtype=np.int64)
    opens = np.array([target.surfaces[i][:1] == b" " for i in plain.tolist()])
    texts = [target.surfaces[i].lstrip(b" ").decode("latin-1") for i in plain.tolist()]
    out = np.full(len(numbers), -1, dtype=np.int64)
    if not len(plain):
        return out
    for begin in range(0, len(numbers), _BLOCK):
        block = numbers[begin : begin + _BLOCK].tolist()
        queries = [source.surfaces[n].lstrip(b" ").decode("latin-1") for n in block]
        distance = fuzz.process.cdist(queries, texts, scorer=fuzz.distance.Levenshtein.distance, dtype=np.uint16)
        start = np.array([source.surfaces[n][:1] == b" " for n in block])
        rank = 2 * distance.astype(np.int32) + (start[:, None] != opens[None, :])
        out[begin : begin + len(block)] = plain[rank.argmin(axis=1)]
    return out


def _store(path: Path, key: str, made: VocabularyMap) -> None:
    import safetensors.numpy

    arrays: dict[str, NDArray[Any]] = {"starts": made.starts, "targets": made.targets, "kinds": made.kinds}
    write_atomic(path, safetensors.numpy.save(arrays, metadata={"key": key}))


def _load(path: Path, key: str, source: Lexicon, target: Lexicon, policy: str) -> VocabularyMap:
    import safetensors

    try:
        with safetensors.safe_open(os.fspath(path), framework="np") as file:
            same = (file.metadata() or {}).get("key") == key
            starts, targets, kinds = (file.get_tensor(n) for n in ("starts", "targets", "kinds"))
    except (safetensors.SafetensorError, OSError) as error:
        raise InterfuseError("artifact.damaged", "the map between two vocabularies cannot be read", where=str(path),
                             fix="Delete the file; it is made again.") from error  # fmt: skip
    if not same or len(kinds) != len(source):
        raise InterfuseError("artifact.damaged", "the map is of other tokenizers than its name says", where=str(path),
                             fix="Delete the file; it is made again.")  # fmt: skip
    return VocabularyMap(starts, targets, kinds, len(target), source.key, target.key, policy)
