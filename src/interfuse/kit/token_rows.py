"""Tables of text as a language model reads them: tokens, where they stand in the text, and which of them are to be learnt.

A row is a ``text`` (all of it is learnt), a ``prompt`` with its ``response`` (the response is learnt, with the end token), or
``messages``, a conversation that the chat template of a tokenizer puts into words (what the assistant says is learnt). Several
models read the *same words*: those of the student's template, each with its own tokenizer.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError
from interfuse.data.tables import Table
from interfuse.kit.lexicon import Lexicon, lexicon
from interfuse.kit.token_align import Reading, read

#: kinds of tables a causal language model learns from
KINDS = ("text", "prompt", "messages")
#: key of a batch that says which tokens are learnt; it is no input of a model
LEARNT = "learnt"


@dataclass(frozen=True)
class Words:
    """One row in words: the text, the spans of characters that are learnt, and whether an end token follows."""

    text: str
    spans: tuple[tuple[int, int], ...]
    end: bool


@dataclass
class TokenRows:
    """All rows of a table as one tokenizer reads them.

    Attributes:
        readings: ids and byte spans of every row. learnt: bool [L] per row, true for tokens that are to be predicted.
    """

    lex: Lexicon
    readings: list[Reading] = field(repr=False)
    learnt: list[NDArray[np.bool_]] = field(repr=False)
    words: list[Words] = field(repr=False)
    pad: int = 0

    def __len__(self) -> int:
        return len(self.readings)

    @functools.cached_property
    def counted(self) -> list[NDArray[np.int64]]:
        """Per row the positions whose next token is learnt: t with ``learnt[t + 1]``."""
        return [np.flatnonzero(mask[1:]) for mask in self.learnt]

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where the counted positions of each row begin when all rows' are put together; int64 [N + 1]."""
        return np.concatenate([[0], np.cumsum([len(c) for c in self.counted])]).astype(np.int64)

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the tokens and of which are learnt: what a model's predictions for these rows depend on."""
        sha = hashlib.sha256()
        for reading, mask in zip(self.readings, self.learnt, strict=True):
            sha.update(len(reading).to_bytes(8, "little"))
            sha.update(reading.ids.astype("<i8").tobytes() + mask.tobytes())
        return sha.hexdigest()

    def batch(self, positions: Sequence[int] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Rows padded on the right: ``input_ids``, ``attention_mask`` and ``learnt``, int64, int64 and bool [B, L]."""
        rows = [int(p) for p in positions]
        return pad_rows([self.readings[r].ids for r in rows], [self.learnt[r] for r in rows], self.pad)


def pad_rows(
    ids: Sequence[NDArray[np.int64]], learnt: Sequence[NDArray[np.bool_]], pad: int
) -> dict[str, torch.Tensor]:
    """Token sequences as one batch, padded on the right."""
    length = max((len(i) for i in ids), default=0)
    inputs = np.full((len(ids), length), pad, dtype=np.int64)
    mask, which = np.zeros((len(ids), length), dtype=np.int64), np.zeros((len(ids), length), dtype=np.bool_)
    for row, (numbers, counts) in enumerate(zip(ids, learnt, strict=True)):
        inputs[row, : len(numbers)], mask[row, : len(numbers)] = numbers, 1
        which[row, : len(counts)] = counts
    made = {"input_ids": inputs, "attention_mask": mask, LEARNT: which}
    return {name: torch.from_numpy(array) for name, array in made.items()}


def put_into_words(table: Table, tokenizer: Any) -> list[Words]:
    """Every row of a table in words.

    Args:
        tokenizer: whose chat template is used for ``messages``.

    Raises:
        InterfuseError: ``input.missing`` for an empty text or a tokenizer without chat template, ``input.format`` for
            messages a template refuses, ``needs.capability`` for a template that rewrites earlier turns.
    """
    if table.kind == "text":
        texts = table.values("text")
        for row, text in enumerate(texts):
            _need_text(text, "text", table, row)
        return [Words(t, ((0, len(t)),), False) for t in texts]
    if table.kind == "prompt":
        prompts = table.values("prompt")
        responses = table.values("response")
        out = []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            _need_text(response, "response", table, row)
            out.append(Words((prompt or "") + response, ((len(prompt or ""), len((prompt or "") + response)),), True))
        return out
    if not getattr(tokenizer, "chat_template", None):
        raise InterfuseError("input.missing", "the tokenizer has no chat template, so messages cannot be put into words",
                             where=table.name, fix="Give a model whose tokenizer has one, or columns prompt and response.")  # fmt: skip
    return [_conversation(m, tokenizer, f"{table.name}: row {r}") for r, m in enumerate(table.values("messages"))]


def _need_text(text: Any, role: str, table: Table, row: int) -> None:
    if not isinstance(text, str) or not text:
        raise InterfuseError("input.missing", f"the {role} is empty", where=f"{table.name}: row {int(table.rows[row])}")


def _conversation(messages: Any, tokenizer: Any, where: str) -> Words:
    """A conversation in words. What lies between the words before an answer and those after it is learnt."""

    def render(part: Any, **options: Any) -> str:
        try:
            return str(tokenizer.apply_chat_template(part, tokenize=False, **options))
        except Exception as error:  # a template is a program: whatever it raises is its refusal
            raise InterfuseError(
                "input.format", f"the chat template refuses the messages: {str(error).splitlines()[0]}", where=where
            ) from error

    if not isinstance(messages, list | tuple) or not messages:
        raise InterfuseError("input.missing", "the conversation is empty", where=where)
    whole, spans = render(messages), []
    for turn, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before = render(messages[:turn], add_generation_prompt=True) if turn else ""
        after = render(messages[: turn + 1])
        if not (whole.startswith(before) and whole.startswith(after) and len(after) >= len(before)):
            raise InterfuseError("needs.capability", "the chat template changes earlier turns, so answers cannot be told apart", where=where,
                                 fix="Give columns prompt and response instead.")  # fmt: skip
        spans.append((len(before), len(after)))
    if not spans:
        raise InterfuseError("input.empty", "nothing is learnt: the assistant says nothing", where=where)
    return Words(whole, tuple(spans), False)


def tokenise(words: Sequence[Words], tokenizer: Any, max_length: int, where: str) -> TokenRows:
    """Rows in words as a tokenizer reads them, at most ``max_length`` tokens each.

    Raises:
        InterfuseError: ``input.empty`` naming a row of which nothing is left to learn, ``needs.capability`` for a slow tokenizer.
    """
    lex = lexicon(tokenizer)
    bos, eos = lex.roles.get("bos"), lex.roles.get("eos")
    readings, learnt = [], []
    for start in range(0, len(words), 1000):
        part = words[start : start + 1000]
        for row, (reading, said) in enumerate(
            zip(read(tokenizer, lex, [w.text for w in part]), part, strict=True), start
        ):
            if bos is not None and len(reading) > 1 and reading.ids[0] == bos == reading.ids[1]:
                reading = _cut(reading, 1, len(reading))  # a template that writes the begin token itself
            if said.end and eos is not None and (not len(reading) or reading.ids[-1] != eos):
                at = len(said.text.encode("utf-8", "surrogatepass"))
                reading = Reading(
                    np.append(reading.ids, eos), np.append(reading.starts, at), np.append(reading.ends, at)
                )
            reading = _cut(reading, 0, max_length)
            mask = _within(reading, said)
            mask[:1] = False  # nothing stands before the first token to predict it from
            if not mask.any() and said.spans != ((0, len(said.text)),):
                raise InterfuseError("input.empty", "nothing of the row is left to learn", where=f"{where}: row {row}",
                                     fix=f"The response is empty, or begins after the {max_length} tokens of max_length.")  # fmt: skip
            readings.append(reading)
            learnt.append(mask)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos or 0
    return TokenRows(lex, readings, learnt, list(words), int(pad))


def _cut(reading: Reading, low: int, high: int) -> Reading:
    return Reading(reading.ids[low:high], reading.starts[low:high], reading.ends[low:high])


def _within(reading: Reading, said: Words) -> NDArray[np.bool_]:
    """Which tokens lie in the learnt spans: they share a byte with one, or stand (without width) at the end of the last."""
    mask = np.zeros(len(reading), dtype=np.bool_)
    if said.spans == ((0, len(said.text)),):
        return ~mask
    for low, high in said.spans:
        begin, end = (len(said.text[:at].encode("utf-8", "surrogatepass")) for at in (low, high))
        mask |= (reading.ends > begin) & (reading.starts < end)
        mask |= (reading.starts == reading.ends) & (reading.ends == end) & (end > begin)
    return mask
