"""Few-shot requests for commonsense triples, names put in and taken out again, and cleaning of what comes back (West et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interfuse.core.errors import InterfuseError

#: given names that go with any sentence
NAMES = ("Alex", "Chris", "Jamie", "Jordan", "Taylor", "Morgan", "Casey", "Riley", "Avery", "Quinn", "Robin", "Sam", "Charlie", "Dana",
         "Drew", "Emerson", "Finley", "Frankie", "Harper", "Hayden", "Jesse", "Kai", "Kendall", "Lee", "Logan", "Pat", "Peyton", "Rowan",
         "Sidney", "Skyler")  # fmt: skip
#: the fixed pair of a query
QUERY_NAMES = ("Alex", "Chris")
#: relation -> how a head goes on in words, as a critic reads it
PHRASES = {
    "xAttr": "so, PersonX is seen as", "xReact": "as a result, PersonX feels", "xEffect": "as a result, PersonX",
    "xIntent": "because PersonX wanted", "xWant": "as a result, PersonX wants", "xNeed": "but before, PersonX needed",
    "HinderedBy": "can be hindered by",
}  # fmt: skip
_PERSON = re.compile(r"\bPerson([XYZ])\b")


@dataclass(frozen=True)
class Relation:
    """A relation of the schema.

    Attributes:
        phrase: what follows the head in words; ``PersonX`` and ``PersonY`` may stand in it.
        examples: (head, tail) pairs for the request.
    """

    name: str
    phrase: str
    examples: tuple[tuple[str, str], ...]


def read_schema(spec: Mapping[str, Mapping[str, Any]]) -> list[Relation]:
    """Relations from ``name: {phrase: words, examples: [[head, tail], ...]}``; the seven published ones have a phrase already.

    Raises:
        InterfuseError: ``input.empty`` without relations or examples, ``param.unknown``, ``input.shape`` for an example that is no pair.
    """
    if not spec:
        raise InterfuseError(
            "input.empty", "the schema names no relation", fix="relations: {xWant: {examples: [[head, tail], ...]}}"
        )
    found = []
    for name, facts in spec.items():
        for key in facts:
            if key not in ("phrase", "examples"):
                raise InterfuseError(
                    "param.unknown", f"a relation has no key {key!r}", where=name, fix="Known: phrase, examples."
                )
        examples = facts.get("examples") or []
        if not examples:
            raise InterfuseError("input.empty", "a relation needs examples", where=name)
        for e in examples:
            if not isinstance(e, list | tuple) or len(e) != 2 or not all(str(v).strip() for v in e):
                raise InterfuseError("input.shape", f"an example is a head and a tail, not {e!r}", where=name)
        phrase = str(facts.get("phrase") or PHRASES.get(name, re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name).lower()))
        found.append(Relation(name, phrase, tuple((str(a).strip(), str(b).strip()) for a, b in examples)))
    return found


def with_names(text: str, names: Sequence[str]) -> str:
    """``PersonX``, ``PersonY`` and ``PersonZ`` replaced by given names."""
    return _PERSON.sub(lambda m: names["XYZ".index(m[1]) % len(names)], text)


def without_names(text: str, names: Sequence[str]) -> str:
    """Given names replaced by ``PersonX``, ``PersonY`` ...; only whole words count: ``Alexander`` stays."""
    for name, letter in zip(names, "XYZ", strict=False):
        text = re.sub(rf"\b{re.escape(name)}\b", f"Person{letter}", text)
    return text


def sentence(relation: Relation, head: str, tail: str = "") -> str:
    """A triple in words."""
    return f"{head} {relation.phrase} {tail}".strip()


def request(relation: Relation, head: str, rng: np.random.Generator, shots: int = 10) -> str:
    """A numbered few-shot request for a tail: examples with names drawn for each, the query with the fixed pair."""
    order = rng.permutation(len(relation.examples))[:shots]
    lines = []
    for k, i in enumerate(order, 1):
        a, b = relation.examples[int(i)]
        drawn = [NAMES[int(n)] for n in rng.choice(len(NAMES), 3, replace=False)]
        lines.append(f"{k}. {with_names(sentence(relation, a, b), drawn)}.")
    lines.append(f"{len(order) + 1}. {with_names(sentence(relation, head), QUERY_NAMES)}")
    return "\n".join(lines)


def head_request(seeds: Sequence[str], rng: np.random.Generator, shots: int = 10) -> str:
    """A numbered list of seed events that the model goes on with."""
    order = rng.permutation(len(seeds))[:shots]
    lines = [f"{k}. Event: {seeds[int(i)]}" for k, i in enumerate(order, 1)]
    return "\n".join([*lines, f"{len(order) + 1}. Event:"])


def clean_tail(text: str) -> str:
    """A reply as a tail: first line, no final full stop, names taken out; empty when two characters or fewer are left."""
    lines = text.strip().splitlines()
    tail = without_names(lines[0].strip() if lines else "", QUERY_NAMES).strip().rstrip(".").strip()
    return tail if len(tail) > 2 else ""


def clean_head(text: str, start: str = "") -> str:
    """A reply as a head: its first line; empty when it is too short, has odd signs or does not begin as heads must."""
    lines = text.strip().splitlines()
    head = lines[0].strip().rstrip(".").strip() if lines else ""
    if len(head.split()) < 2 or re.search(r"[^\w\s',-]", head) or not head.startswith(start):
        return ""
    return head


def likely(items: Sequence[tuple[str, float | None]], drop: float = 0.2) -> list[str]:
    """Texts without the least likely share by the SUM of their log-probabilities (which penalises long ones); texts without a
    log-probability are all kept. Each once, most likely first."""
    if any(v is None for _, v in items):
        return list(dict.fromkeys(t for t, _ in items))
    best: dict[str, float] = {}
    for text, value in items:
        best[text] = max(best.get(text, -np.inf), float(value or 0.0))
    order = sorted(best, key=lambda t: -best[t])
    return order[: len(order) - int(drop * len(order))]


def by_head(heads: Sequence[str], rng: np.random.Generator, shares: tuple[float, float] = (0.8, 0.1)) -> dict[str, str]:
    """Head -> ``train``, ``val`` or ``test``: all triples of a head are on one side."""
    names = list(dict.fromkeys(heads))
    order = [names[int(i)] for i in rng.permutation(len(names))]
    first, second = round(shares[0] * len(order)), round(sum(shares) * len(order))
    return {h: "train" if i < first else "val" if i < second else "test" for i, h in enumerate(order)}


def training_text(head: str, relation: str, tail: str) -> dict[str, str]:
    """The student's example: the loss falls on the completion alone."""
    return {"prompt": f"<head> {head} </head> <relation> {relation} </relation> [GEN]", "completion": f" {tail}."}
