"""Ontologies: classes and relations that are wanted, with their names, hierarchy, domains and ranges.

Read from OWL/RDFS in any RDF form that pyoxigraph reads, from Text2KGBench's JSON, or from plain JSON or YAML::

    classes:   {Person: {}, Author: {is: Person, aliases: [writer]}, Book: {}}
    relations: {author: {domain: Book, range: Author, aliases: [written by]}, published: {domain: Book, range: date}}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.rooms import Source
from interfuse.core.safe import fingerprint, load_yaml, read_text

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
RDFS = "http://www.w3.org/2000/01/rdf-schema#"
OWL = "http://www.w3.org/2002/07/owl#"
SKOS = "http://www.w3.org/2004/02/skos/core#"
XSD = "http://www.w3.org/2001/XMLSchema#"
CLASS_BASE, RELATION_BASE = "urn:interfuse:class:", "urn:interfuse:relation:"
#: short names of literal ranges
LITERALS = {
    "literal": XSD + "string", "string": XSD + "string", "text": XSD + "string", "date": XSD + "date", "dateTime": XSD + "dateTime",
    "year": XSD + "gYear", "gYear": XSD + "gYear", "integer": XSD + "integer", "int": XSD + "integer", "decimal": XSD + "decimal",
    "number": XSD + "double", "float": XSD + "double", "double": XSD + "double", "boolean": XSD + "boolean", "anyURI": XSD + "anyURI",
}  # fmt: skip
SUFFIXES = {".ttl": "text/turtle", ".nt": "application/n-triples", ".owl": "application/rdf+xml", ".rdf": "application/rdf+xml",
            ".xml": "application/rdf+xml", ".jsonld": "application/ld+json", ".n3": "text/n3", ".trig": "application/trig",
            ".nq": "application/n-quads"}  # fmt: skip
TRAITS = ("symmetric", "transitive", "functional", "inverse_functional", "asymmetric", "irreflexive", "reflexive")


@dataclass(frozen=True)
class Kind:
    """A class. ``name`` is its label; ``parents`` are names of its direct superclasses."""

    name: str
    iri: str
    parents: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class Relation:
    """A relation.

    Attributes:
        domain, range: names of classes, any of which will do; empty: anything.
        literal: the datatype's IRI when its objects are values, else empty.
        traits: of :data:`TRAITS`. inverse: name of the inverse relation. examples: sentences or pairs for prompts.
    """

    name: str
    iri: str
    domain: tuple[str, ...] = ()
    range: tuple[str, ...] = ()
    literal: str = ""
    traits: tuple[str, ...] = ()
    inverse: str = ""
    aliases: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class Ontology:
    """Classes and relations by name, in the order they were written."""

    name: str
    classes: Mapping[str, Kind] = field(default_factory=dict)
    relations: Mapping[str, Relation] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """A digest of everything in it."""
        return fingerprint(
            [
                [dataclasses.asdict(k) for k in self.classes.values()],
                [dataclasses.asdict(r) for r in self.relations.values()],
            ]
        )

    def ancestors(self, name: str) -> tuple[str, ...]:
        """The class itself and everything above it, nearest first. Names that are no classes stand alone."""
        found = {name: None}
        front = [name]
        while front:
            coming = [p for n in front if n in self.classes for p in self.classes[n].parents if p not in found]
            found.update(dict.fromkeys(coming))
            front = coming
        return tuple(found)

    def fits(self, kind: str, wanted: Sequence[str]) -> bool:
        """Whether a class is one of the wanted ones or below one; anything fits where nothing is wanted."""
        return not wanted or any(a in wanted for a in self.ancestors(kind))

    def relation(self, word: str) -> Relation | None:
        """The relation of a name or alias, whatever its case, spaces and underscores."""
        return self.relations.get(_index(self.relations.values()).get(_key(word), ""))

    def kind(self, word: str) -> Kind | None:
        """The class of a name or alias."""
        return self.classes.get(_index(self.classes.values()).get(_key(word), ""))

    def prefixed(self) -> str:
        """The ontology as Turtle (OWL)."""
        return to_turtle(self)


def _key(word: str) -> str:
    return "".join(c for c in word.casefold() if c.isalnum())


def _index(items: Iterable[Kind | Relation]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in items:
        for word in (item.name, item.iri.replace("#", "/").rsplit("/", 1)[-1].rsplit(":", 1)[-1], *item.aliases):
            found.setdefault(_key(word), item.name)
    return found


def name_iri(name: str, base: str) -> str:
    """An IRI for a name that has none: words joined by hyphens."""
    words = "".join(c if c.isalnum() else " " for c in name.casefold()).split()
    return base + "-".join(words)


def build_ontology(raw: Any, name: str = "ontology", where: str = "") -> Ontology:
    """An ontology from plain data: ``{classes: ..., relations: ...}``, or Text2KGBench's ``{concepts: [...], relations: [...]}``.

    Raises:
        InterfuseError: ``input.format``, ``input.duplicate``, ``input.empty``, or as :func:`checked`.
    """
    try:
        if isinstance(raw, Mapping) and "concepts" in raw:
            return checked(_from_benchmark(raw, name), where)
        if not isinstance(raw, Mapping) or not {"classes", "relations"} & set(raw):
            raise InterfuseError("input.format", "an ontology has the keys 'classes' and 'relations'", where=where)
        classes = {str(k): _kind(str(k), v) for k, v in _pairs(raw.get("classes", {}))}
        relations = {str(k): _relation(str(k), v) for k, v in _pairs(raw.get("relations", {}))}
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise InterfuseError("input.format", f"the ontology cannot be read: {error}", where=where) from error
    return checked(Ontology(name, classes, relations), where)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    return (
        list(value.items())
        if isinstance(value, Mapping)
        else [(v, {}) if isinstance(v, str) else (v["name"], v) for v in value]
    )


def _list(value: Any) -> tuple[str, ...]:
    return () if value in (None, "") else (str(value),) if isinstance(value, str) else tuple(str(v) for v in value)


def _kind(name: str, given: Any) -> Kind:
    given = given or {}
    return Kind(name, str(given.get("iri") or name_iri(name, CLASS_BASE)), _list(given.get("is")), _list(given.get("aliases")),
                str(given.get("description", "")))  # fmt: skip


def _relation(name: str, given: Any) -> Relation:
    given = given or {}
    ranges = _list(given.get("range"))
    literal = next((LITERALS.get(r, r if r.startswith(XSD) else "") for r in ranges), "")
    return Relation(name, str(given.get("iri") or name_iri(name, RELATION_BASE)), _list(given.get("domain")),
                    () if literal else ranges, literal, tuple(t for t in TRAITS if given.get(t)), str(given.get("inverse", "")),
                    _list(given.get("aliases")), str(given.get("description", "")))  # fmt: skip


def _from_benchmark(raw: Mapping[str, Any], name: str) -> Ontology:
    by_id = {c["qid"]: c["label"] for c in raw["concepts"]}
    base = "http://www.wikidata.org/"
    classes = {c["label"]: Kind(c["label"], f"{base}entity/{c['qid']}") for c in raw["concepts"]}
    relations: dict[str, Relation] = {}
    for r in raw["relations"]:
        domain, target = by_id.get(r["domain"]), by_id.get(r["range"])
        relations.setdefault(r["label"].strip(), Relation(
            r["label"].strip(), f"{base}prop/direct/{r['pid']}", (domain,) if domain else (), (target,) if target else (),
            "" if r["range"] else XSD + "string"))  # fmt: skip
    return Ontology(str(raw.get("title") or name), classes, relations)


def checked(ontology: Ontology, where: str = "") -> Ontology:
    """The ontology itself, if it holds together.

    Raises:
        InterfuseError: ``input.empty`` without classes and relations, ``input.missing`` for a class that is named but not
            there, ``input.format`` for a hierarchy that goes round, ``input.duplicate`` for two relations of one name.
    """
    if not ontology.classes and not ontology.relations:
        raise InterfuseError("input.empty", "the ontology has neither classes nor relations", where=where)
    known = list(ontology.classes)
    for item in ontology.classes.values():
        for parent in item.parents:
            if parent not in ontology.classes:
                raise InterfuseError("input.missing", f"the class {item.name!r} is below {parent!r}, which is not there",
                                     where=where, fix=did_you_mean(parent, known))  # fmt: skip
        above = [p for p in item.parents if item.name in ontology.ancestors(p)]
        if above:
            raise InterfuseError(
                "input.format", f"the class {item.name!r} is above itself (through {above[0]!r})", where=where
            )
    for relation in ontology.relations.values():
        for kind in (*relation.domain, *relation.range):
            if known and kind not in ontology.classes:
                raise InterfuseError("input.missing", f"the relation {relation.name!r} names the class {kind!r}, which is not there",
                                     where=where, fix=did_you_mean(kind, known))  # fmt: skip
    seen: dict[str, str] = {}
    for relation in ontology.relations.values():
        other = seen.setdefault(_key(relation.name), relation.name)
        if other != relation.name:
            raise InterfuseError(
                "input.duplicate", f"two relations are called {other!r} and {relation.name!r}", where=where
            )
    return ontology


def open_ontology(source: Source, ctx: Ctx) -> Ontology:
    """Opens an ontology: a file, plain data, or an :class:`Ontology`.

    Raises:
        InterfuseError: ``input.missing``, ``input.format``, ``needs.package``, or as :func:`checked`.
    """
    spec = source.spec
    if isinstance(spec, Ontology):
        return spec
    if isinstance(spec, Mapping):
        return build_ontology(spec, source.name or "ontology", source.name)
    path = source.folder / Path(str(spec)).expanduser()
    name, kind = source.name or path.stem, SUFFIXES.get(path.suffix.lower())
    text = read_text(path)
    if kind:
        return checked(from_rdf(text, kind, name, str(path)), str(path))
    if path.suffix.lower() == ".json":
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InterfuseError("input.format", f"not valid JSON: {error}", where=str(path)) from error
        return build_ontology(raw, name, str(path))
    return build_ontology(load_yaml(text, where=str(path))[0], name, str(path))


def from_rdf(text: str, media: str, name: str, where: str = "") -> Ontology:
    """An ontology from OWL or RDFS.

    Raises:
        InterfuseError: ``input.format`` or ``needs.package``.
    """
    try:
        import pyoxigraph as ox
    except ModuleNotFoundError as error:
        raise InterfuseError(
            "needs.package", "reading RDF needs pyoxigraph", fix="pip install 'interfuse[graph]'"
        ) from error
    found: dict[tuple[str, str], list[str]] = {}
    subjects: dict[str, None] = {}
    try:
        for quad in ox.parse(
            text.encode(), format=ox.RdfFormat.from_media_type(media), base_iri="urn:interfuse:document"
        ):
            subject = getattr(quad.subject, "value", str(quad.subject))
            subjects[subject] = None
            found.setdefault((subject, quad.predicate.value), []).append(
                getattr(quad.object, "value", str(quad.object))
            )
    except (SyntaxError, ValueError) as error:
        raise InterfuseError("input.format", f"not valid RDF: {error}", where=where) from error

    def get(subject: str, *predicates: str) -> list[str]:
        return [v for p in predicates for v in found.get((subject, p), [])]

    def label(iri: str) -> str:
        words = get(iri, RDFS + "label", SKOS + "prefLabel")
        return words[0] if words else iri.replace("#", "/").rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]

    def members(iri: str) -> list[str]:
        """A class, or the classes of its owl:unionOf list."""
        head = get(iri, OWL + "unionOf")
        if not head:
            return [iri]
        names: list[str] = []
        node = head[0]
        while node != RDF + "nil" and len(names) < 1000:
            names += get(node, RDF + "first")
            node = next(iter(get(node, RDF + "rest")), RDF + "nil")
        return names

    kinds = {s: get(s, RDF + "type") for s in subjects}
    class_iris = [
        s for s, k in kinds.items() if (OWL + "Class" in k or RDFS + "Class" in k) and not get(s, OWL + "unionOf")
    ]
    literal = {s for s, k in kinds.items() if OWL + "DatatypeProperty" in k}
    props = [
        s for s, k in kinds.items() if {OWL + "ObjectProperty", OWL + "DatatypeProperty", RDF + "Property"} & set(k)
    ]
    names = {iri: label(iri) for iri in class_iris}
    classes = {}
    for iri in class_iris:
        parents = tuple(dict.fromkeys(names[p] for p in get(iri, RDFS + "subClassOf") if p in names and p != iri))
        classes[names[iri]] = Kind(
            names[iri], iri, parents, tuple(get(iri, SKOS + "altLabel")), " ".join(get(iri, RDFS + "comment"))
        )
    relations = {}
    for iri in props:
        ranges = [m for r in get(iri, RDFS + "range") for m in members(r)]
        datatype = next((r for r in ranges if r.startswith(XSD) or r == RDFS + "Literal"), "")
        wide = {"symmetric": "SymmetricProperty", "transitive": "TransitiveProperty", "functional": "FunctionalProperty",
                "inverse_functional": "InverseFunctionalProperty", "asymmetric": "AsymmetricProperty",
                "irreflexive": "IrreflexiveProperty", "reflexive": "ReflexiveProperty"}  # fmt: skip
        relations[label(iri)] = Relation(
            label(iri), iri, tuple(dict.fromkeys(names[m] for d in get(iri, RDFS + "domain") for m in members(d) if m in names)),
            tuple(dict.fromkeys(names[r] for r in ranges if r in names)),
            (XSD + "string" if datatype == RDFS + "Literal" else datatype) or (XSD + "string" if iri in literal else ""),
            tuple(t for t in TRAITS if OWL + wide[t] in kinds[iri]), next((label(i) for i in get(iri, OWL + "inverseOf")), ""),
            tuple(get(iri, SKOS + "altLabel")), " ".join(get(iri, RDFS + "comment")),
        )  # fmt: skip
    return Ontology(name, classes, relations)


def to_turtle(ontology: Ontology) -> str:
    """The ontology as OWL in Turtle, which Protege and others open."""

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    lines = [
        f"@prefix owl: <{OWL}> .",
        f"@prefix rdfs: <{RDFS}> .",
        f"@prefix skos: <{SKOS}> .",
        f"@prefix xsd: <{XSD}> .",
        "",
    ]

    def told(iri: str, kind: str, facts: Sequence[tuple[str, str]]) -> None:
        rows = [f"<{iri}> a {kind}", *(f"    {p} {o}" for p, o in facts)]
        lines.append(" ;\n".join(rows) + " .")

    def union(names: Sequence[str]) -> str:
        iris = [
            f"<{ontology.classes[n].iri}>" if n in ontology.classes else f"<{name_iri(n, CLASS_BASE)}>" for n in names
        ]
        return iris[0] if len(iris) == 1 else f"[ a owl:Class ; owl:unionOf ( {' '.join(iris)} ) ]"

    for k in ontology.classes.values():
        facts = [
            ("rdfs:label", quoted(k.name)),
            *(("rdfs:subClassOf", f"<{ontology.classes[p].iri}>") for p in k.parents),
        ]
        facts += [("skos:altLabel", quoted(a)) for a in k.aliases] + (
            [("rdfs:comment", quoted(k.description))] if k.description else []
        )
        told(k.iri, "owl:Class", facts)
    for r in ontology.relations.values():
        kinds = ["owl:DatatypeProperty" if r.literal else "owl:ObjectProperty"]
        kinds += ["owl:" + "".join(w.title() for w in t.split("_")) + "Property" for t in r.traits]
        facts = [("rdfs:label", quoted(r.name))] + [("skos:altLabel", quoted(a)) for a in r.aliases]
        facts += [("rdfs:domain", union(r.domain))] if r.domain else []
        facts += (
            [("rdfs:range", f"<{r.literal}>")] if r.literal else [("rdfs:range", union(r.range))] if r.range else []
        )
        facts += (
            [("owl:inverseOf", f"<{ontology.relations[r.inverse].iri}>")] if r.inverse in ontology.relations else []
        )
        told(r.iri, ", ".join(kinds), facts + ([("rdfs:comment", quoted(r.description))] if r.description else []))
    return "\n".join(lines) + "\n"
