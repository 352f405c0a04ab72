"""Triplets that must fit an ontology: what is wrong with them in words, and what can be mended without asking again.

The post-conditions of HyDRA's extraction (Kaiser et al. 2025, arXiv 2507.15917, step 6): types first (``isA``), then everything else.
Domain and range count with all superclasses, and literals are parsed (the published code looks one level up and does not parse).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation

from interfuse.kit.ontology_growth import Concepts, Issue, Relating

IS_A = "isA"
_WORD = re.compile(r"[^\W_]+(?:_[^\W_]+)*\Z")


@dataclass(frozen=True)
class Triplet:
    """Subject, predicate, object as they are said; entities in snake_case, classes and properties as the ontology names them."""

    subject: str
    predicate: str
    object: str


def snake(name: str) -> str:
    """A name by the convention: lower case, words joined by an underscore."""
    return "_".join(re.findall(r"[^\W_]+", re.sub(r"(?<=[a-zß-ÿ0-9])(?=[A-ZÀ-Þ])", " ", name))).lower()


def is_snake(name: str) -> bool:
    """Whether a name keeps the convention."""
    return _WORD.match(name) is not None and name == name.lower()


def _date(text: str) -> None:
    date.fromisoformat(text)


_PARSERS: dict[str, Callable[[str], object]] = {
    "integer": int, "gYear": int, "decimal": Decimal, "double": float, "date": _date, "dateTime": datetime.fromisoformat,
}  # fmt: skip


def fits_datatype(text: str, datatype: str) -> bool:
    """Whether a text is a value of an XSD datatype (named without its prefix)."""
    if datatype == "boolean":
        return text in ("true", "false", "0", "1")
    if datatype == "anyURI":
        return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:\S+\Z", text) is not None
    try:
        _PARSERS.get(datatype, str)(text)
    except (ValueError, InvalidOperation):
        return False
    return True


def _property(concepts: Concepts, name: str) -> Relating | None:
    return concepts.properties.get(name)


def triplet_issues(
    concepts: Concepts, types: Mapping[str, str], triplets: Sequence[Triplet]
) -> tuple[list[tuple[int, Issue]], dict[str, str]]:
    """What is wrong with each triplet (its place, the issue), and the types of entities as they would be after the right ones.

    Args:
        types: entity -> class, of what is in the graph already.
    """
    found: list[tuple[int, Issue]] = []
    after = dict(types)

    def say(i: int, code: str, message: str, hint: str = "") -> None:
        t = triplets[i]
        found.append((i, Issue(code, f"({t.subject}, {t.predicate}, {t.object})", message, hint)))

    def is_class(name: str) -> bool:
        return concepts.called(name) in concepts.classes

    for i, t in enumerate(triplets):
        if t.predicate != IS_A:
            continue
        known = after.get(t.subject)
        if not is_class(t.object):
            say(i, "type.unknown", f"{t.object} is not a class of the ontology")
        elif is_class(t.subject):
            say(i, "type.class", f"{t.subject} is a class, not an entity")
        elif not is_snake(t.subject):
            say(i, "name", f"{t.subject} is not in snake_case", snake(t.subject))
        elif known is not None and concepts.called(known) not in concepts.above(concepts.called(t.object)):
            say(i, "type.second", f"{t.subject} is already a {known}", f"only a class below {known} would refine it")
        else:
            after[t.subject] = concepts.called(t.object)
    for i, t in enumerate(triplets):
        if t.predicate == IS_A:
            continue
        p = _property(concepts, t.predicate)
        ends = [t.subject] if p is not None and p.data else [t.subject, t.object]
        classes = [n for n in ends if is_class(n)]
        unnamed = [n for n in ends if not is_snake(n)]
        untyped = [n for n in ends if n not in after]
        if p is None:
            say(i, "property.unknown", f"{t.predicate} is not a property of the ontology")
        elif classes:
            say(i, "instance.class", f"{classes[0]} is a class; relations join entities")
        elif unnamed:
            say(i, "name", f"{unnamed[0]} is not in snake_case", snake(unnamed[0]))
        elif untyped:
            say(i, "instance.untyped", f"{untyped[0]} has no type", f"add ({untyped[0]}, {IS_A}, CLASS)")
        elif not _in(concepts, after[t.subject], p.domain):
            say(i, "domain", f"{t.subject} is a {after[t.subject]}, the domain is {' or '.join(p.domain)}")
        elif p.data and p.range and not fits_datatype(t.object, p.range[0]):
            say(i, "datatype", f"{t.object!r} is no {p.range[0]}")
        elif not p.data and not _in(concepts, after[t.object], p.range):
            say(i, "range", f"{t.object} is a {after[t.object]}, the range is {' or '.join(p.range)}")
    return found, after


def _in(concepts: Concepts, kind: str, wanted: Sequence[str]) -> bool:
    above = concepts.above(kind)
    return not wanted or any(concepts.called(w) in above for w in wanted)


def remedied(
    concepts: Concepts, types: Mapping[str, str], triplets: Sequence[Triplet], *, repair: bool = True
) -> tuple[list[Triplet], list[dict[str, str]]]:
    """The triplets that are left when the wrong ones are mended or dropped, and a record of each remedy.

    Mended (with ``repair``): names brought to the convention, predicates and classes spelt as the ontology spells them, entities
    without a type given the one class that a property's domain or range names. All that is still wrong is dropped, until nothing is.
    """
    record: list[dict[str, str]] = []

    def note(code: str, t: Triplet, what: str) -> None:
        record.append({"issue": code, "triplet": f"({t.subject}, {t.predicate}, {t.object})", "remedy": what})

    kept = list(dict.fromkeys(_respelt(concepts, t, note) for t in triplets)) if repair else list(triplets)
    if repair:
        kept = _typed(concepts, types, kept, note)
    while True:
        wrong, _ = triplet_issues(concepts, types, kept)
        if not wrong:
            return kept, record
        for i, issue in wrong:
            note(issue.code, kept[i], "dropped")
        bad = {i for i, _ in wrong}
        kept = [t for i, t in enumerate(kept) if i not in bad]


def _respelt(concepts: Concepts, t: Triplet, note: Callable[[str, Triplet, str], None]) -> Triplet:
    """Names by the convention; predicate and class as the ontology spells them."""
    words = {snake(p): p for p in concepts.properties}
    predicate = (
        t.predicate if t.predicate in (*concepts.properties, IS_A) else words.get(snake(t.predicate), t.predicate)
    )
    predicate = (
        IS_A
        if snake(predicate) in ("is_a", "isa", "type", "instance_of") and predicate not in concepts.properties
        else predicate
    )
    p = _property(concepts, predicate)

    def entity(name: str) -> str:
        return name if concepts.called(name) in concepts.classes or not snake(name) else snake(name)

    target = (
        t.object if p is not None and p.data else concepts.called(t.object) if predicate == IS_A else entity(t.object)
    )
    made = Triplet(entity(t.subject), predicate, target)
    if made != t:
        note("name", t, f"({made.subject}, {made.predicate}, {made.object})")
    return made


def _typed(
    concepts: Concepts, types: Mapping[str, str], triplets: list[Triplet], note: Callable[[str, Triplet, str], None]
) -> list[Triplet]:
    """Adds the type of an entity that has none, where a property it stands in leaves one class only."""
    _, known = triplet_issues(concepts, types, triplets)
    added: dict[str, Triplet] = {}
    for t in triplets:
        p = _property(concepts, t.predicate)
        if p is None:
            continue
        for name, wanted in ((t.subject, p.domain), (t.object, () if p.data else p.range)):
            if (
                len(wanted) == 1
                and name not in known
                and name not in added
                and concepts.called(name) not in concepts.classes
                and is_snake(name)
            ):
                added[name] = Triplet(name, IS_A, concepts.called(wanted[0]))
                note("instance.untyped", t, f"added ({name}, {IS_A}, {wanted[0]})")
    return [*added.values(), *triplets]
