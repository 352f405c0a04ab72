"""Fusing triples from many texts: which relation holds where texts differ, what follows, and a record of every decision.

The arithmetic of Graphusion's fusion step (Yang et al. 2024), made global: support adds up over all texts, one decision per pair.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Pair = tuple[str, str]


@dataclass(frozen=True)
class Claim:
    """One text's word for a triple: its confidence and its source's weight; ``source`` is where it is written."""

    head: str
    relation: str
    tail: str
    confidence: float = 1.0
    weight: float = 1.0
    source: str = ""


@dataclass
class Settled:
    """What holds after conflicts are settled.

    Attributes:
        kept: triple -> support (sum of confidence times weight). contested: triples whose rivals are too close.
        lost: triple -> the triple that won. inferred: triple -> the two it follows from.
    """

    kept: dict[tuple[str, str, str], float] = field(default_factory=dict)
    contested: dict[tuple[str, str, str], float] = field(default_factory=dict)
    lost: dict[tuple[str, str, str], tuple[str, str, str]] = field(default_factory=dict)
    inferred: dict[tuple[str, str, str], tuple[tuple[str, str, str], tuple[str, str, str]]] = field(
        default_factory=dict
    )


def class_tf_idf(classes: Sequence[Mapping[str, int]]) -> list[dict[str, float]]:
    """``tf(t, c) * log(1 + A / f(t))`` for every term and class: A is the mean number of terms of a class, f(t) the term's count in
    all of them (BERTopic, equation 2).
    """
    mean = sum(sum(c.values()) for c in classes) / len(classes) if classes else 0.0
    total: dict[str, int] = {}
    for one in classes:
        for term, count in one.items():
            total[term] = total.get(term, 0) + count
    return [{t: n * math.log(1 + mean / total[t]) for t, n in one.items()} for one in classes]


def support(claims: Iterable[Claim], symmetric: Sequence[str] = ()) -> dict[tuple[str, str, str], float]:
    """Triple -> sum of confidence times weight; ends of symmetric relations stand in alphabetical order."""
    found: dict[tuple[str, str, str], float] = {}
    for c in sorted(claims, key=lambda c: (c.head, c.relation, c.tail, c.source, c.confidence)):
        head, tail = sorted((c.head, c.tail)) if c.relation in symmetric else (c.head, c.tail)
        key = (head, c.relation, tail)
        found[key] = found.get(key, 0.0) + c.confidence * c.weight
    return found


def settle(
    claims: Iterable[Claim], *, symmetric: Sequence[str] = (), delta: float = 0.5, single: bool = True
) -> Settled:
    """At most one relation between two things: the one with most support, when its margin is at least delta; else all stay, contested.

    A relation and the same one the other way round are rivals too, unless it is symmetric.

    Args:
        single: without it, only a relation and its reverse are rivals.
    """
    found = support(claims, symmetric)
    rivals: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
    for key in found:
        rivals.setdefault((*sorted((key[0], key[2])), *([] if single else [key[1]])), []).append(key)
    made = Settled()
    for group in rivals.values():
        order = sorted(group, key=lambda k: (-found[k], k))
        first = order[0]
        close = [k for k in order[1:] if found[first] - found[k] < delta]
        if close:
            for k in (first, *close):
                made.contested[k] = found[k]
        else:
            made.kept[first] = found[first]
        for k in order[1:]:
            if k not in close:
                made.lost[k] = first
    return made


def infer(settled: Settled, transitive: Sequence[str], limit: int = 100_000) -> None:
    """Adds what follows by transitive relations between things that are not linked yet, with the two triples it follows from.

    Raises nothing: circles end, since a triple is inferred once.
    """
    for relation in transitive:
        after: dict[str, dict[str, None]] = {}
        for h, r, t in settled.kept:
            if r == relation:
                after.setdefault(h, {})[t] = None
        linked = {tuple(sorted((k[0], k[2]))) for k in (*settled.kept, *settled.contested, *settled.inferred)}
        changed = True
        while changed and len(settled.inferred) < limit:
            changed = False
            for a in sorted(after):
                for b in sorted(after[a]):
                    for c in sorted(after.get(b, {})):
                        if a == c or tuple(sorted((a, c))) in linked:
                            continue
                        settled.inferred[a, relation, c] = ((a, relation, b), (b, relation, c))
                        linked.add(tuple(sorted((a, c))))
                        after[a][c] = None
                        changed = True


def one_name(ends: Iterable[tuple[str, str]], texts: Iterable[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """One name per concept over all documents: the longest that is no acronym, with most support.

    Args:
        ends: the two names of each triple, as they are written. texts: where acronyms are looked up, "Long Name (LN)".

    Returns:
        Name -> the name of its concept; and who was merged into whom, sorted.
    """
    from interfuse.kit.linking import Mention, link
    from interfuse.kit.mentions import acronyms

    counts: Counter[str] = Counter()
    for pair in ends:
        counts.update(pair)
    short: dict[str, dict[str, None]] = {}
    for text in texts:
        for long, brief in acronyms(text):
            for label in counts:
                if label.casefold() == long.casefold():
                    short.setdefault(label, {})[brief] = None
    mentions = [
        Mention(label, label, aliases=tuple(short.get(label, {})), weight=counts[label]) for label in sorted(counts)
    ]
    called: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    top: dict[str, str] = {}

    def find(x: str) -> str:
        while top.get(x, x) != x:
            x = top[x]
        return x

    for a, b in link(mentions).merges():
        top[max(find(a), find(b))] = min(find(a), find(b))
    for label in counts:
        groups.setdefault(find(label), []).append(label)
    merges = []
    for group in groups.values():
        best = min(group, key=lambda x: (x.isupper() and len(x) <= 6, -counts[x], -len(x), x))
        for label in sorted(group):
            called[label] = best
            if label != best:
                merges.append((label, best))
    return called, sorted(merges)
