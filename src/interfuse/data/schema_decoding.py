"""Replies that are JSON of a given shape: which tokens a local model may write next.

A schema (objects, arrays, texts, numbers, truth values, enumerations) becomes a stack of things still to be written; a token is allowed when
every one of its characters fits. Objects have all their properties in their order, with single blanks, so that the model chooses content alone.
A text with a ``minLength`` (however large) is not empty and does not begin with a blank. A list of ``uniqueItems`` ends when it says an item again: small
models repeat themselves to the last item that is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

#: characters of one text, and items of one list, at most
LONGEST, MOST = 200, 40
Stack = tuple[tuple[Any, ...], ...]


def stack_of(schema: Mapping[str, Any]) -> Stack | None:
    """What is to be written for a schema, or None for one that is not understood (it is not enforced then)."""
    if "enum" in schema:
        return (("one of", tuple(json.dumps(v, ensure_ascii=False) for v in schema["enum"])),)
    kind = schema.get("type")
    if kind == "string":
        first = "word" if int(schema.get("minLength", 0)) else "text"
        return (("just", '"'), (first, int(schema.get("maxLength", LONGEST))))
    if kind == "boolean":
        return (("one of", ("true", "false")),)
    if kind in ("integer", "number"):
        return (("number", 0),)
    if kind == "array":
        items = stack_of(schema.get("items", {}))
        once = bool(schema.get("uniqueItems"))
        return None if items is None else (("just", "["), ("list", items, int(schema.get("maxItems", MOST)), once))
    if kind == "object" and schema.get("properties"):
        made: list[tuple[Any, ...]] = []
        for i, (name, value) in enumerate(schema["properties"].items()):
            inner = stack_of(value)
            if inner is None:
                return None
            made += [("just", ("{" if i == 0 else ", ") + json.dumps(name, ensure_ascii=False) + ": "), *inner]
        return (*made, ("just", "}"))
    return None


def step(stack: Stack, char: str) -> Stack | None:
    """The stack after one more character, or None when it does not fit."""
    if not stack:
        return None
    top, rest = stack[0], stack[1:]
    kind = top[0]
    if kind == "just":
        return None if top[1][0] != char else (("just", top[1][1:]), *rest) if len(top[1]) > 1 else rest
    if kind == "word":  # a text that is not empty starts with something that is seen
        return None if char in '"\\' or char.isspace() else step((("text", top[1]), *rest), char)
    if kind == "text":
        if char == '"':
            return rest
        if top[1] <= 0 or char < " " or char == "\ufffd":
            return None
        return (("escape" if char == "\\" else "text", top[1] - 1), *rest)
    if kind == "escape":
        return (("text", top[1]), *rest) if char in '"\\/bfnrt' else None
    if kind == "list":
        return rest if char == "]" else step((*top[1], ("more", top[1], top[2] - 1, top[3]), *rest), char)
    if kind == "more":
        if char == "]":
            return rest
        more = ("more", top[1], top[2] - 1, top[3])
        return (("just", " "), *top[1], more, *rest) if char == "," and top[2] > 0 else None
    if kind == "one of":
        left = tuple(dict.fromkeys(t[1:] for t in top[1] if t[:1] == char))
        return None if not left else rest if left == ("",) else (("one of", left), *rest)
    if char.isdigit() and top[1] < 15:
        return (("number", top[1] + 1), *rest)
    return step(rest, char) if top[1] else None


def run(stack: Stack | None, text: str) -> Stack | None:
    """The stack after a text."""
    for char in text:
        if stack is None:
            return None
        stack = step(stack, char)
    return stack


class Written:
    """What one reply has said so far under a schema: the stack of what is still to be written, and the items of lists whose items differ.

    A list that says an item again takes no more of them (one that the same token has begun is finished).
    """

    def __init__(self, stack: Stack) -> None:
        self.stack: Stack | None = stack
        self._text = ""
        self._lists: dict[int, tuple[int, list[str]]] = {}  # depth of a list -> where its next item starts, its items

    def add(self, text: str) -> None:
        """One more token."""
        repeated = []
        for char in text:
            self.stack, self._text = step(self.stack, char) if self.stack else None, self._text + char
            if not self.stack or self.stack[0][0] not in ("list", "more") or not self.stack[0][3]:
                continue
            depth, end = len(self.stack), len(self._text)
            if self.stack[0][0] == "list":
                self._lists[depth] = (end, [])
                continue
            start, items = self._lists[depth]
            item = self._text[start:].lstrip(", ")
            if item in items:
                repeated.append(depth)
            self._lists[depth] = (end, [*items, item])
        for depth in repeated:
            place = len(self.stack or ()) - depth
            if self.stack and place >= 0 and self.stack[place][0] == "more":
                closed = ("more", self.stack[place][1], 0, True)
                self.stack = (*self.stack[:place], closed, *self.stack[place + 1 :])


class Vocabulary:
    """The characters that every token adds to a text, sorted for looking them up.

    Args:
        tokenizer: of the model. Tokens that stand for a part of a character, and special ones, are never allowed.
    Attributes:
        surfaces: by id. writes_json: whether every mark of JSON can be written alone.
    """

    def __init__(self, tokenizer: Any) -> None:
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
        before = tokenizer.decode([anchor])
        count = len(tokenizer)
        whole = tokenizer.batch_decode([[anchor, i] for i in range(count)], skip_special_tokens=True)
        self.surfaces = [w[len(before) :] if w.startswith(before) and "\ufffd" not in w else "" for w in whole]
        self.by_first: dict[str, list[int]] = {}
        self.plain: list[int] = []
        self.marked: list[int] = []
        for i, surface in enumerate(self.surfaces):
            if surface:
                self.by_first.setdefault(surface[0], []).append(i)
                (self.marked if any(c in '"\\' or c < " " for c in surface) else self.plain).append(i)
        self.longest = max(map(len, self.surfaces))
        self.writes_json = all(c in self.surfaces for c in '{}[]":, ')
        self._kept: dict[Stack, torch.Tensor] = {}

    def allowed(self, stack: Stack) -> torch.Tensor:
        """Ids of the tokens that may come next, int64."""
        key = (("text", self.longest), *stack[1:]) if stack[0][0] == "text" and stack[0][1] >= self.longest else stack
        if key not in self._kept:
            if key[0] == ("text", self.longest):
                found = [*self.plain, *(i for i in self.marked if run(key, self.surfaces[i]) is not None)]
            else:
                firsts = [c for c in self.by_first if step(key, c) is not None]
                found = [i for c in firsts for i in self.by_first[c] if run(key, self.surfaces[i]) is not None]
            if len(self._kept) > 2000:
                self._kept.clear()
            self._kept[key] = torch.tensor(sorted(found), dtype=torch.int64)
        return self._kept[key]


class Shaped:
    """A logits processor of ``transformers``: rows of a batch may only go on with what their stacks allow.

    Args:
        stack: what every row writes. start: where replies begin in the ids. ends: tokens that end a reply.
    """

    def __init__(self, vocabulary: Vocabulary, stack: Stack, start: int, ends: Sequence[int]) -> None:
        self.vocabulary, self.stack, self.start, self.ends = vocabulary, stack, start, list(ends)
        self.rows: list[Written] = []
        self.seen = start

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] with everything that does not fit at minus infinity."""
        if not self.rows:
            self.rows = [Written(self.stack) for _ in ids]
        masked = torch.full_like(scores, float("-inf"))
        surfaces = self.vocabulary.surfaces
        for row, written in enumerate(self.rows):
            for token in ids[row, self.seen :].tolist():
                written.add(surfaces[token] if token < len(surfaces) else "")
            stack = written.stack
            allowed = self.vocabulary.allowed(stack) if stack else None
            if allowed is None or not len(allowed):
                allowed = torch.tensor(self.ends)
            allowed = allowed.to(scores.device)
            masked[row, allowed] = scores[row, allowed]
        self.seen = ids.shape[1]
        return masked
