"""Ontologies: classes and properties with hierarchy, domains, ranges, characteristics, labels; to and from OWL/RDFS.

Used by prompts and matchers (labels, aliases, examples), by inference (:meth:`Ontology.rules`) and by contracts (shapes).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.core.safe import fingerprint, read_text
from interfuse.data.statements import (
    ALIAS,
    LABEL,
    NS,
    OWL,
    RDF,
    RDFS,
    SKOS,
    SUBCLASS,
    TYPE,
    XSD,
    Literal,
    Statement,
    key_of_label,
    relation_id,
    text_of,
)

#: what a property can be, and the OWL class that says so
CHARACTERISTICS = {
    "functional": OWL + "FunctionalProperty", "inverse functional": OWL + "InverseFunctionalProperty", "symmetric": OWL + "SymmetricProperty",
    "asymmetric": OWL + "AsymmetricProperty", "transitive": OWL + "TransitiveProperty", "reflexive": OWL + "ReflexiveProperty",
    "irreflexive": OWL + "IrreflexiveProperty",
}  # fmt: skip
SUBPROPERTY, DOMAIN, RANGE = RDFS + "subPropertyOf", RDFS + "domain", RDFS + "range"
INVERSE, DISJOINT = OWL + "inverseOf", OWL + "disjointWith"
EXAMPLE, COMMENT = SKOS + "example", RDFS + "comment"
_OBJECT, _DATA = OWL + "ObjectProperty", OWL + "DatatypeProperty"


@dataclass(frozen=True)
class Class:
    """A class. ``parents``: its direct superclasses. ``disjoint``: classes it shares no member with."""

    iri: str
    label: str = ""
    aliases: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    disjoint: tuple[str, ...] = ()
    comment: str = ""


@dataclass(frozen=True)
class Property:
    """A property.

    Attributes:
        domain, range: classes (a datatype's IRI as range makes it a data property); empty says anything.
        inverse: the property that says it the other way round. characteristics: of :data:`CHARACTERISTICS`.
        examples: sentences or pairs that show it.
    """

    iri: str
    label: str = ""
    aliases: tuple[str, ...] = ()
    domain: tuple[str, ...] = ()
    range: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    inverse: str = ""
    characteristics: tuple[str, ...] = ()
    comment: str = ""
    examples: tuple[str, ...] = ()
    data: bool = False


@dataclass(frozen=True)
class Ontology:
    """Classes and properties by IRI, in a fixed order."""

    name: str = "ontology"
    classes: Mapping[str, Class] = field(default_factory=dict)
    properties: Mapping[str, Property] = field(default_factory=dict)

    @staticmethod
    def of(classes: Iterable[Class] = (), properties: Iterable[Property] = (), name: str = "ontology") -> Ontology:
        """An ontology of classes and properties; those only mentioned as parents, domains or ranges are added.

        Raises:
            InterfuseError: ``input.duplicate`` for an IRI defined twice, ``param.value`` for an unknown characteristic.
        """
        made: dict[str, Class] = {}
        props: dict[str, Property] = {}
        for item in classes:
            if item.iri in made:
                raise InterfuseError("input.duplicate", "a class is defined twice", where=item.iri)
            made[item.iri] = item
        for prop in properties:
            if prop.iri in props:
                raise InterfuseError("input.duplicate", "a property is defined twice", where=prop.iri)
            for word in prop.characteristics:
                if word not in CHARACTERISTICS:
                    raise InterfuseError(
                        "param.value",
                        f"a property is not {word!r}",
                        where=prop.iri,
                        fix="Known: " + ", ".join(CHARACTERISTICS),
                    )
            props[prop.iri] = prop
        mentioned = [p for c in list(made.values()) for p in (*c.parents, *c.disjoint)]
        mentioned += [c for p in props.values() for c in (*p.domain, *p.range) if not _is_datatype(c)]
        for iri in mentioned:
            made.setdefault(iri, Class(iri))
        for iri in [i for p in list(props.values()) for i in (*p.parents, *([p.inverse] if p.inverse else []))]:
            props.setdefault(iri, Property(iri))
        return Ontology(name, dict(sorted(made.items())), dict(sorted(props.items())))

    @cached_property
    def _above(self) -> dict[str, tuple[str, ...]]:
        return {
            iri: closure(iri, lambda c: self.classes[c].parents if c in self.classes else ()) for iri in self.classes
        }

    def ancestors(self, iri: str) -> tuple[str, ...]:
        """A class and all its superclasses, itself first; circles are harmless."""
        return self._above.get(iri, (iri,))

    def is_a(self, iri: str, other: str) -> bool:
        """Whether a class is another one or below it."""
        return other in self.ancestors(iri)

    def disjoint(self, a: str, b: str) -> bool:
        """Whether nothing can be of both classes."""
        up, over = self.ancestors(a), self.ancestors(b)
        return any(y in self._apart.get(x, ()) for x in up for y in over)

    @cached_property
    def _apart(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, dict[str, None]] = {}
        for c in self.classes.values():
            for other in c.disjoint:
                found.setdefault(c.iri, {})[other] = None
                found.setdefault(other, {})[c.iri] = None
        return {k: tuple(v) for k, v in found.items()}

    @cached_property
    def words(self) -> dict[str, tuple[str, ...]]:
        """Normalised label or alias -> IRIs of classes and properties that are called so."""
        found: dict[str, dict[str, None]] = {}
        items: list[Class | Property] = [*self.classes.values(), *self.properties.values()]
        for item in items:
            for word in (item.label, *item.aliases):
                if word:
                    found.setdefault(key_of_label(word), {})[item.iri] = None
        return {k: tuple(v) for k, v in found.items()}

    def find(self, word: str) -> tuple[str, ...]:
        """What is called so, whatever case and punctuation."""
        return self.words.get(key_of_label(word), ())

    def label(self, iri: str) -> str:
        """The label of a class or property, or the end of its IRI."""
        item = self.classes.get(iri) or self.properties.get(iri)
        return (
            item.label
            if item is not None and item.label
            else iri.replace("#", "/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
        )

    def fits(self, prop: str, subject_types: Sequence[str], object_types: Sequence[str]) -> bool:
        """Whether a property may join things of these classes. No types, or none declared, fit anything."""
        item = self.properties.get(prop)
        if item is None:
            return False
        for wanted, have in ((item.domain, subject_types), (item.range, object_types)):
            wanted = tuple(w for w in wanted if not _is_datatype(w))
            if wanted and have and not any(self.is_a(h, w) for h in have for w in wanted):
                return False
        return True

    def statements(self) -> list[Statement]:
        """The ontology in OWL and RDFS."""
        made: list[Statement] = []

        def say(s: str, p: str, *objects: str | Literal) -> None:
            made.extend(Statement(s, p, o) for o in objects)

        for c in self.classes.values():
            say(c.iri, TYPE, OWL + "Class")
            _words(c, say)
            say(c.iri, SUBCLASS, *c.parents)
            say(c.iri, DISJOINT, *c.disjoint)
        for p in self.properties.values():
            say(p.iri, TYPE, _DATA if p.data else _OBJECT, *(CHARACTERISTICS[w] for w in p.characteristics))
            _words(p, say)
            for predicate, many in ((DOMAIN, p.domain), (RANGE, p.range)):
                if len(many) > 1:  # several mean "one of these", which is a union in OWL
                    say(p.iri, predicate, *_union(p.iri, predicate, many, say))
                else:
                    say(p.iri, predicate, *many)
            say(p.iri, SUBPROPERTY, *p.parents)
            say(p.iri, INVERSE, *([p.inverse] if p.inverse else []))
            say(p.iri, EXAMPLE, *(Literal(e) for e in p.examples))
        return made

    @staticmethod
    def from_statements(statements: Iterable[Statement], name: str = "ontology") -> Ontology:
        """The classes and properties that statements in OWL or RDFS declare; anything else is left aside."""
        rows: dict[str, dict[str, list[str | Literal]]] = {}
        for s in statements:
            rows.setdefault(s.subject, {}).setdefault(s.predicate, []).append(s.object)
        words = {v: k for k, v in CHARACTERISTICS.items()}
        classes: list[Class] = []
        properties: list[Property] = []
        for iri, row in rows.items():
            kinds = {str(k) for k in row.get(TYPE, ()) if isinstance(k, str)}
            if iri.startswith("_:"):
                continue
            if OWL + "Class" in kinds or RDFS + "Class" in kinds:
                classes.append(
                    Class(
                        iri,
                        _text(row, LABEL),
                        _texts(row, ALIAS),
                        _iris(row, SUBCLASS),
                        _iris(row, DISJOINT),
                        _text(row, COMMENT),
                    )
                )
            elif kinds & {_OBJECT, _DATA, RDF + "Property", *words}:
                domain, range = (
                    tuple(m for c in row.get(p, ()) if isinstance(c, str) for m in _members(c, rows))
                    for p in (DOMAIN, RANGE)
                )
                properties.append(Property(
                    iri, _text(row, LABEL), _texts(row, ALIAS), domain, range, _iris(row, SUBPROPERTY), next(iter(_iris(row, INVERSE)), ""),
                    tuple(sorted(words[k] for k in kinds if k in words)), _text(row, COMMENT), _texts(row, EXAMPLE),
                    _DATA in kinds or (bool(range) and all(_is_datatype(r) for r in range)),
                ))  # fmt: skip
        return Ontology.of(classes, properties, name)

    def fingerprint(self) -> str:
        """A digest of every class and property."""
        return fingerprint(
            {
                "classes": [vars(c) for c in self.classes.values()],
                "properties": [vars(p) for p in self.properties.values()],
            }
        )

    def rules(self) -> dict[str, Any]:
        """Tables for :meth:`interfuse.data.graph.Graph.infer`: what may be concluded from the ontology."""
        tables: dict[str, list[list[str]]] = {
            "subclass": [[c.iri, p] for c in self.classes.values() for p in c.parents],
            "subproperty": [[p.iri, q] for p in self.properties.values() for q in p.parents],
            "inverse": [[p.iri, p.inverse] for p in self.properties.values() if p.inverse],
            "symmetric": [[p.iri] for p in self.properties.values() if "symmetric" in p.characteristics],
            "transitive": [[p.iri] for p in self.properties.values() if "transitive" in p.characteristics],
            "domain": [[p.iri, p.domain[0]] for p in self.properties.values() if len(p.domain) == 1],
            "range": [
                [p.iri, p.range[0]]
                for p in self.properties.values()
                if len(p.range) == 1 and not _is_datatype(p.range[0])
            ],
        }
        return {"rules": {k: v for k, v in tables.items() if v}}

    def write(self, path: Path) -> None:
        """Writes Turtle or another RDF format by the path's ending.

        Raises:
            InterfuseError: ``input.type`` or ``needs.package``.
        """
        from interfuse.data.formats.rdf import write_rdf

        write_rdf(path, self.statements(), "plain")


def open_ontology(source: Source, ctx: Ctx) -> Ontology:
    """Opens an ontology for a room's input: an :class:`Ontology`, or a file that :func:`read_ontology` reads.

    Raises:
        InterfuseError: as :func:`read_ontology`; ``input.type`` for anything else.
    """
    spec = source.spec
    if isinstance(spec, Ontology):
        return spec
    if isinstance(spec, Mapping) and set(spec) == {"data"}:
        spec = spec["data"]
    if not isinstance(spec, str | Path):
        raise InterfuseError("input.type", f"an ontology is a file, not {type(spec).__name__}", where=source.name)
    path = Path(str(spec)).expanduser()
    path = path if path.is_absolute() else source.folder / path
    if not path.is_file():
        raise InterfuseError("input.missing", "there is no such file", where=str(path))
    return read_ontology(path)


def closure(start: str, step: Any) -> tuple[str, ...]:
    """A thing and all that is reached from it, nearest first."""
    found = {start: None}
    front = [start]
    while front:
        front = [b for a in front for b in step(a) if b not in found]
        found.update(dict.fromkeys(front))
    return tuple(found)


def read_ontology(path: Path) -> Ontology:
    """An ontology of an OWL/RDFS file, or of Text2KGBench's JSON (``concepts`` and ``relations``).

    Raises:
        InterfuseError: ``input.missing``, ``input.type``, ``input.format``, ``input.empty`` or ``needs.package``.
    """
    if path.suffix.lower() == ".json":
        made = _bench(path)
    else:
        from interfuse.data.formats.rdf import read_rdf

        made = Ontology.from_statements(read_rdf(path)[0], path.stem)
    if not made.classes and not made.properties:
        raise InterfuseError("input.empty", "the file declares no classes and no properties", where=str(path))
    return made


def _bench(path: Path) -> Ontology:
    try:
        value = json.loads(read_text(path))
        base = f"{NS}{value['id']}:"
        concepts = {
            base + c["qid"]: c["label"] for c in reversed(value["concepts"])
        }  # some are listed twice: the first counts
        classes = [Class(iri, label) for iri, label in sorted(concepts.items())]
        known = {c.iri for c in classes}
        properties: dict[str, Property] = {}
        for r in value["relations"]:
            domain, range = ((base + r[k],) if r.get(k) and base + r[k] in known else () for k in ("domain", "range"))
            iri = base + r["pid"] if r.get("pid") else relation_id(r["label"])
            properties.setdefault(iri, Property(iri, r["label"], domain=domain, range=range, data=not r.get("range")))
        return Ontology.of(classes, properties.values(), str(value.get("title") or value["id"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InterfuseError(
            "input.format", f"not an ontology: {type(error).__name__}: {error}", where=str(path)
        ) from error


def _is_datatype(iri: str) -> bool:
    return iri.startswith(XSD) or iri in (RDF + "langString", RDFS + "Literal")


def _words(item: Class | Property, say: Any) -> None:
    say(item.iri, LABEL, *([Literal(item.label)] if item.label else []))
    say(item.iri, ALIAS, *(Literal(a) for a in item.aliases))
    say(item.iri, COMMENT, *([Literal(item.comment)] if item.comment else []))


def _union(iri: str, predicate: str, many: Sequence[str], say: Any) -> list[str]:
    """A class that is the union of several, as blank nodes with names of their own."""
    import hashlib

    key = hashlib.blake2b(f"{iri}\n{predicate}".encode(), digest_size=6).hexdigest()
    nodes = [f"_:u{key}n{i}" for i in range(len(many))]
    say(f"_:u{key}", TYPE, OWL + "Class")
    say(f"_:u{key}", OWL + "unionOf", nodes[0])
    for i, member in enumerate(many):
        say(nodes[i], RDF + "first", member)
        say(nodes[i], RDF + "rest", nodes[i + 1] if i + 1 < len(many) else RDF + "nil")
    return [f"_:u{key}"]


def _members(iri: str, rows: Mapping[str, Mapping[str, Sequence[str | Literal]]]) -> list[str]:
    if not iri.startswith("_:"):
        return [iri]
    head = next((str(o) for o in rows.get(iri, {}).get(OWL + "unionOf", ())), RDF + "nil")
    found: list[str] = []
    seen: dict[str, None] = {}
    while head != RDF + "nil" and head not in seen:
        seen[head] = None
        found += [
            str(o) for o in rows.get(head, {}).get(RDF + "first", ()) if isinstance(o, str) and not o.startswith("_:")
        ]
        head = next((str(o) for o in rows.get(head, {}).get(RDF + "rest", ())), RDF + "nil")
    return found


def _texts(row: Mapping[str, Sequence[str | Literal]], predicate: str) -> tuple[str, ...]:
    found = [o for o in row.get(predicate, ()) if isinstance(o, Literal)]
    return tuple(o.value for o in sorted(found, key=lambda o: (o.language not in ("", "en"), o.language, text_of(o))))


def _text(row: Mapping[str, Sequence[str | Literal]], predicate: str) -> str:
    return next(iter(_texts(row, predicate)), "")


def _iris(row: Mapping[str, Sequence[str | Literal]], predicate: str) -> tuple[str, ...]:
    return tuple(sorted(o for o in row.get(predicate, ()) if isinstance(o, str) and not o.startswith("_:")))
