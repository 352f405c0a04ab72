"""Statements as plain sentences, and whether a text says all of them and nothing besides (the round trip of graph and text)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interfuse.kit.near_duplicates import plain_key

Triple = tuple[str, str, str]


@dataclass(frozen=True)
class Faithfulness:
    """How a text matches the triples it was made from.

    Attributes:
        said: triples whose subject and object stand in one sentence, in this order or the other. missing: the others.
        foreign: capitalised names and numbers of the text that no triple holds.
    """

    said: tuple[Triple, ...]
    missing: tuple[Triple, ...]
    foreign: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """The share of the triples that are said, 1 without any."""
        total = len(self.said) + len(self.missing)
        return len(self.said) / total if total else 1.0


def phrase(relation: str, templates: Mapping[str, str] | None = None) -> str:
    """The sentence of a relation with ``[S]`` and ``[O]``: a given template, or one made from its name.

    ``isCapitalOf``, ``capital_of`` and ``capital of`` give ``[S] is capital of [O]``; a name that begins with a verb is taken as it is; a bare
    noun gives ``The capital of [S] is [O]``.
    """
    if templates and relation in templates:
        return templates[relation]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_-]+", " ", relation).lower().split()
    name = " ".join(words)
    if not words:
        return "[S] is related to [O]"
    verb = len(words) > 1 and words[0].endswith("s") and words[0] not in ("class", "series", "species")
    if words[0] in ("is", "was", "has", "are", "can", "needs", "wants") or verb:
        return f"[S] {name} [O]"
    if words[-1] in ("of", "in", "by", "at", "to", "from", "for", "with", "on"):
        return f"[S] is {name} [O]"
    return f"The {name} of [S] is [O]"


def told(triples: Sequence[Triple], templates: Mapping[str, str] | None = None) -> str:
    """Triples as a text: subjects in the order of their first triple, all of one subject together, objects of one relation joined."""
    order: dict[str, dict[str, list[str]]] = {}
    for s, r, o in dict.fromkeys(triples):
        order.setdefault(s, {}).setdefault(r, []).append(o)
    sentences = []
    for s, relations in order.items():
        for r, objects in relations.items():
            listed = objects[0] if len(objects) == 1 else ", ".join(objects[:-1]) + " and " + objects[-1]
            text = phrase(r, templates).replace("[S]", s).replace("[O]", listed)
            sentences.append(text[:1].upper() + text[1:] + ".")
    return " ".join(sentences)


def faithful(text: str, triples: Sequence[Triple]) -> Faithfulness:
    """Compares a text (of :func:`told`, or of a model that was asked to say the triples) with its triples."""
    sentences = [f" {plain_key(s)} " for s in re.split(r"(?<=[.!?])\s+", text)]

    def holds(sentence: str, label: str) -> bool:
        return f" {plain_key(label)} " in sentence

    said = tuple(t for t in triples if any(holds(s, t[0]) and holds(s, t[2]) for s in sentences))
    known = {w for t in triples for part in t for w in plain_key(part).split()}
    first = {m.start() for m in re.finditer(r"(?:(?<=^)|(?<=[.!?]\s))\S", text)}
    names = [
        m
        for m in re.finditer(r"\b(?:[A-Z][\w-]*|\d[\d.,]*\d|\d)\b", text)
        if m.start() not in first or m[0][0].isdigit()
    ]
    foreign = dict.fromkeys(m[0] for m in names if not set(plain_key(m[0]).split()) <= known)
    return Faithfulness(said, tuple(t for t in triples if t not in said), tuple(foreign))
