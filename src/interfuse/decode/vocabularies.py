"""Streams of other vocabularies: what their tokens are as bytes, and their logits over the main model's tokens.

The same vocabulary: ids are used as they are, rows beyond it get -inf. Otherwise a stream reads the shared text with its own tokenizer
(:mod:`interfuse.decode.texts`) and its next-token distribution is put onto the main tokens in one of two ways. ``map``: the mass of
each of its tokens goes to the main token that equals it, or else to the longest main token it begins with. ``union`` (UniTE, Yao et
al. 2024): only the likeliest tokens of every stream are candidates, and a candidate that is no token of a stream is worth its first
token there. Main tokens about which a stream can say nothing keep the main model's own probability.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import read_text
from interfuse.data.models import Model, tokenizer_folder
from interfuse.data.vocabulary import read_ids
from interfuse.decode.room import DecodeSettings
from interfuse.kit.lexicon import lexicon
from interfuse.kit.token_map import vocabulary_map

#: below this share of a stream's mass that has a main token, its opinion is called doubtful
DOUBTFUL = 0.8
NONE = float("-inf")


@dataclass(frozen=True)
class Tokens:
    """What a model reads with, found without loading it.

    Attributes:
        name: the model. folder: of its tokenizer, None without one. ids: token -> id. added: tokens added by hand (special ones).
        rows: rows of its embedding, where the configuration tells.
    """

    name: str
    folder: Path | None
    ids: Mapping[str, int] = field(repr=False)
    added: frozenset[str] = field(repr=False)
    rows: int | None


def read_tokens(model: Model) -> Tokens:
    """The tokens of a model.

    Raises:
        InterfuseError: ``input.format`` when its tokenizer cannot be read.
    """
    folder = tokenizer_folder(model)
    ids = (read_ids(folder) or {}) if folder is not None else {}
    return Tokens(model.name, folder if ids else None, ids, _added(folder) if folder else frozenset(), _rows(model))


def _rows(model: Model) -> int | None:
    config = model.config.get("text_config", model.config)
    stated = config.get("vocab_size")
    return None if stated is None else int(stated)


def _added(folder: Path) -> frozenset[str]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return frozenset()
    return frozenset(
        str(row["content"]) for row in json.loads(read_text(path, limit=1 << 28)).get("added_tokens") or ()
    )


def same_tokens(main: Tokens, other: Tokens) -> str:
    """Why two models do not read the same tokens; empty when they do. Tokens added by hand may differ."""
    if main.folder is None or other.folder is None:
        if main.rows == other.rows:
            return ""
        return f"{other.name} has {other.rows} tokens, {main.name} has {main.rows}, and one of them has no tokenizer to compare"
    names = {i: token for token, i in main.ids.items()}
    wrong = [(i, names[i], token) for token, i in other.ids.items()
             if i in names and names[i] != token and names[i] not in main.added and token not in other.added]  # fmt: skip
    if wrong:
        i, mine, theirs = min(wrong)
        return f"{len(wrong)} ids mean other tokens: {i} is {mine!r} in {main.name} and {theirs!r} in {other.name}"
    shared = sum(1 for token, i in other.ids.items() if names.get(i) == token)
    plain = len([t for t in main.ids if t not in main.added]), len([t for t in other.ids if t not in other.added])
    if shared < min(len(main.ids), len(other.ids)) * 0.99 or abs(plain[0] - plain[1]) > 0.01 * max(plain):
        return f"{other.name} has {len(other.ids)} tokens, {main.name} {len(main.ids)}, and {shared} are shared"
    return ""


def fit_vocabularies(
    read: Sequence[tuple[str, Tokens]], settings: DecodeSettings, log: Callable[[str], None] = lambda line: None
) -> list[Literal["same", "map", "union"]]:
    """How each stream's vocabulary is brought onto that of the first.

    Args:
        read: role and tokens of each stream, the main one first.

    Raises:
        InterfuseError: ``input.missing`` when the main model has no tokenizer, ``input.vocabulary`` for vocabularies that differ where
            they must not.
    """
    main = read[0][1]
    if main.folder is None:
        raise InterfuseError("input.missing", "the main model has no tokenizer", where=main.name,
                             fix="Add 'tokenizer: FOLDER' to its source.")  # fmt: skip
    found: list[Literal["same", "map", "union"]] = ["same"]
    bases = [t for role, t in read if role == "base"]
    for role, tokens in read[1:]:
        why = same_tokens(main, tokens)
        if role == "expert" and bases and same_tokens(bases[0], tokens):
            raise InterfuseError("input.vocabulary", f"the expert and the base differ: {same_tokens(bases[0], tokens)}", where=tokens.name,
                                 fix="An expert is a fine-tuned copy of the base.")  # fmt: skip
        if not why or (settings.vocabulary == "bytes" and tokens.folder is not None):
            found.append("same")  # bytes are the same for all
        elif settings.vocabulary == "same":
            raise InterfuseError(
                "input.vocabulary", why, where=tokens.name, fix="Allow it with vocabulary: union or map."
            )
        elif tokens.folder is None:
            raise InterfuseError(
                "input.vocabulary", why, where=tokens.name, fix="Add 'tokenizer: FOLDER' to its source."
            )
        else:
            kind: Literal["map", "union"] = "map" if settings.vocabulary == "map" else "union"
            log(f"{tokens.name} reads other tokens than {main.name}: they are compared by {kind}")
            found.append(kind)
    return found


def widen_logits(logits: torch.Tensor, width: int) -> torch.Tensor:
    """Logits [..., U] of the same vocabulary as [..., width]: rows that only one of two models has are padding of no token."""
    have = logits.shape[-1]
    if have == width:
        return logits
    if have > width:
        return logits[..., :width]
    return torch.nn.functional.pad(logits, (0, width - have), value=NONE)


def surfaces(tokenizer: Any) -> list[bytes | None]:
    """The bytes that each id adds to a text, by id; None for special tokens and ids of no token."""
    lex = lexicon(tokenizer)
    return [
        None if special or not text else text for text, special in zip(lex.surfaces, lex.special.tolist(), strict=True)
    ]


@dataclass
class Projection:
    """From the tokens of one stream to those of the main model.

    Attributes:
        kind: ``map`` or ``union``. forward: the main id each of its tokens starts with [U], -1 for none. back: its own first token of
            each main token [V], -1 for none. k: candidates per stream. matched: mass with a main token at the last step [B].
    """

    kind: Literal["map", "union"]
    forward: torch.Tensor
    back: torch.Tensor
    k: int = 20
    matched: torch.Tensor | None = field(default=None, repr=False)

    @classmethod
    def between(cls, main: Any, other: Any, kind: Literal["map", "union"], width: int, k: int = 20) -> Projection:
        """The projection between two tokenizers; special tokens are matched by their role.

        Args:
            width: columns of the main model's logits.
        """
        mine, theirs = lexicon(main), lexicon(other)
        back = np.full(width, -1, dtype=np.int64)
        found = vocabulary_map(mine, theirs).first[:width]
        back[: len(found)] = found
        forward = vocabulary_map(theirs, mine).first
        return cls(kind, torch.from_numpy(np.where(forward < width, forward, -1)), torch.from_numpy(back), k)

    def coverage(self) -> float:
        """The share of the main tokens about which the stream has an opinion."""
        reached = torch.zeros(len(self.back), dtype=torch.bool)
        reached[self.forward[self.forward >= 0]] = True
        return float((reached if self.kind == "map" else self.back >= 0).float().mean())

    def mapped(self, logits: torch.Tensor, main: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, V] of the stream's logits [B, U], beside the main model's logits [B, V]."""
        forward = self.forward.to(logits.device)
        probs = logits.softmax(dim=1)[:, : len(forward)]
        has = forward[: probs.shape[1]] >= 0
        put = torch.zeros_like(main).index_add_(1, forward[: probs.shape[1]][has], probs[:, has])
        reached = torch.zeros(main.shape[1], dtype=torch.bool, device=main.device)
        reached[forward[forward >= 0]] = True
        own = main.softmax(dim=1)
        self.matched = put.sum(dim=1)
        scale = (own * reached).sum(dim=1) / self.matched.clamp_min(1e-9)
        return torch.where(reached, put * scale[:, None], own).clamp_min(1e-30).log()

    def candidates(self, logits: torch.Tensor, main: torch.Tensor) -> torch.Tensor:
        """Main ids of the stream's likeliest tokens, [B, k]; those without a main token are replaced by the main favourite."""
        forward = self.forward.to(logits.device)
        top = logits[:, : len(forward)].topk(min(self.k, len(forward)), dim=1).indices
        found = forward[top]
        return torch.where(found >= 0, found, main.argmax(dim=1, keepdim=True))

    def looked_up(self, logits: torch.Tensor, main: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, V]: of each main token its first token in the stream, or the main model's own."""
        back = self.back.to(logits.device)
        logs, own = logits.log_softmax(dim=1), main.log_softmax(dim=1)
        forward = self.forward.to(logits.device)
        self.matched = (logs.exp()[:, : len(forward)] * (forward >= 0)).sum(dim=1)
        return torch.where(back >= 0, logs[:, back.clamp_min(0)], own)


def onto_main(
    logits: Sequence[torch.Tensor],
    projections: Sequence[Projection | None],
    silent: Sequence[torch.Tensor | None],
    width: int,
) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
    """Every stream's logits over the main tokens, [B, V] each, and the matched mass [B] of those that were projected.

    Args:
        logits: as the streams give them, the main one first. silent: for projected streams the texts [B] about which they can say
            nothing yet (the text ends within a character): there they follow the main model.
    """
    main, found, matched = logits[0], list[torch.Tensor](), dict[int, torch.Tensor]()
    union = [i for i, p in enumerate(projections) if p is not None and p.kind == "union"]
    for i, (values, projection) in enumerate(zip(logits, projections, strict=True)):
        values = values.to(main.device)
        if projection is None:
            found.append(widen_logits(values, width))
            continue
        put = projection.mapped(values, main) if projection.kind == "map" else projection.looked_up(values, main)
        hush = silent[i]
        if hush is not None:
            put = torch.where(hush[:, None], main.log_softmax(dim=1), put)
        assert projection.matched is not None, "set by the projection"
        found.append(put)
        matched[i] = projection.matched
    if union:
        first = projections[union[0]]
        assert first is not None, "union streams have a projection"
        picked = [
            x.topk(min(first.k, width), dim=1).indices for x, p in zip(found, projections, strict=True) if p is None
        ]
        picked += [p.candidates(logits[i].to(main.device), main) for i in union if (p := projections[i]) is not None]
        keep = torch.zeros_like(main, dtype=torch.bool).scatter_(1, torch.cat(picked, dim=1), True)
        found = [x.masked_fill(~keep, NONE) for x in found]
    return found, matched
