"""From candidates in words to statements in IRIs, with evidence down to the character."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Mapping

from interfuse.build.keeping import key_of_work
from interfuse.build.room import Candidate, own_params
from interfuse.core.rooms import Call
from interfuse.data.chunks import Chunk
from interfuse.data.corpus import Document
from interfuse.data.statements import ALIAS, LABEL, NS, TYPE, Evidence, Literal, Statement, entity_id, relation_id

CLASS = NS + "class:"
#: what an entity is guessed to be -> (status, evidence) of each vote
Votes = dict[str, list[tuple[str, tuple[Evidence, ...]]]]
#: types that recognisers of names guess; they vote
GUESSES = ("person", "organization", "place", "group", "work", "event", "product", "language")


def document_iri(document: str) -> str:
    """The IRI of a document."""
    return f"{NS}document:{document}"


def element_iri(element: str) -> str:
    """The IRI of an element of a document."""
    return f"{NS}element:{element}"


def chunk_iri(chunk: str) -> str:
    """The IRI of a chunk."""
    return f"{NS}chunk:{chunk}"


class Assembler:
    """Makes the statements of candidates: the statement itself, and the labels and types of its two ends, all with its evidence.

    Args:
        chunks: by id. index: ``element`` or ``chunk``: what the text's own nodes are that point to every entity found in them, and back.
            homonyms: whether the type is part of an entity's name.
    """

    def __init__(self, call: Call, chunks: Mapping[str, Chunk], *, homonyms: bool = False) -> None:
        self.chunks, self.homonyms = chunks, homonyms
        self.index = str(call.method.traits.get("index", ""))
        self.method = f"{call.method.id}@{call.method.version()}"
        lm, self.ontology = call.inputs["lm"], call.inputs["ontology"]
        self.model = str(lm.name) if lm is not None else ""
        self.run = key_of_work(call, own_params(call))[:16]  # the same whatever other documents there are
        self._names: dict[tuple[str, str], str] = {}
        self.votes: list[
            tuple[str, str, str, tuple[Evidence, ...]]
        ] = []  # entity, what it is guessed to be, status, evidence
        self._starts: dict[str, tuple[list[int], list[int]]] = {}

    def node(self, label: str, kind: str = "") -> str:
        """The IRI of an entity."""
        return entity_id(label, kind if self.homonyms else "")

    def relation(self, name: str) -> str:
        """The IRI of a relation: the ontology's when it knows the name."""
        return self._named("relation", name)

    def kind(self, name: str) -> str:
        """The IRI of a class: the ontology's when it knows the name."""
        return self._named("class", name)

    def _named(self, what: str, name: str) -> str:
        key = (what, name)
        if key not in self._names:
            known = (
                (self.ontology.properties if what == "relation" else self.ontology.classes)
                if self.ontology is not None
                else {}
            )
            found = (
                [name]
                if name in known
                else [i for i in self.ontology.find(name) if i in known]
                if self.ontology is not None
                else []
            )
            self._names[key] = (
                found[0] if found else relation_id(name) if what == "relation" else relation_id(name, base=CLASS)
            )
        return self._names[key]

    def statements(self, found: Candidate) -> Iterator[Statement]:
        """The statements of a candidate."""
        proof = found.evidence
        if found.chunk:
            chunk = self.chunks[found.chunk]
            start, end = chunk.start + found.start, chunk.start + found.end
            proof = (self.evidence(chunk.document, start, end, found.prompt, found.confidence, chunk.page),)
        target = found.object if isinstance(found.object, Literal) else self.node(found.object, found.object_type)
        subject = self.node(found.subject, found.subject_type)
        if found.predicate:
            yield Statement(
                subject, self.relation(found.predicate), target,
                tuple((self.relation(p), v if isinstance(v, Literal) else self.node(v)) for p, v in found.qualifiers),
                found.confidence, found.kind, found.status, evidence=proof,
            )  # fmt: skip
        yield from self._about(subject, found.subject, found.subject_type, found, proof)
        if isinstance(target, str) and target != subject:
            yield from self._about(target, str(found.object), found.object_type, found, proof)
        if self.index and found.chunk and proof:
            place = (
                chunk_iri(found.chunk)
                if self.index == "chunk"
                else element_iri(proof[0].element)
                if proof[0].element
                else ""
            )
            for entity in dict.fromkeys((subject, *((target,) if isinstance(target, str) else ()))) if place else ():
                if self.index == "chunk":
                    yield Statement(entity, relation_id("source"), place, status=found.status, evidence=proof)
                yield Statement(place, relation_id("mentions"), entity, status=found.status, evidence=proof)
        for alias in found.aliases:
            yield Statement(subject, ALIAS, Literal(alias), status=found.status, evidence=proof)

    def _about(
        self, entity: str, label: str, kind: str, found: Candidate, proof: tuple[Evidence, ...]
    ) -> Iterator[Statement]:
        yield Statement(entity, LABEL, Literal(label), status=found.status, evidence=proof)
        if kind in GUESSES:
            self.votes.append((entity, kind, found.status, proof))
        elif kind:
            yield Statement(entity, TYPE, self.kind(kind), status=found.status, evidence=proof)

    def guesses(self) -> Iterator[Statement]:
        """The types that a recogniser of names guessed: for each entity the one that was guessed most often, with its evidence."""
        found: dict[str, Votes] = {}
        for entity, kind, status, proof in self.votes:
            found.setdefault(entity, {}).setdefault(kind, []).append((status, proof))
        for entity in sorted(found):
            yield from guesses_of(entity, found[entity], self)

    def evidence(
        self, document: Document, start: int, end: int, prompt: str = "", score: float | None = None, page: int = 0
    ) -> Evidence:
        """Characters of a document as evidence: its page, the smallest element around them, and a hash of the words."""
        element = self._element(document, start, end)
        place = document.elements[element] if element >= 0 else None
        quote = hashlib.sha256(document.text[start:end].encode("utf-8", "replace")).hexdigest()
        return Evidence(document.id, start, end, (place.page if place is not None and place.page else page) or None,
                        place.id if place is not None else "", quote, self.method, self.model, prompt, self.run, score,
                        _place(document, element, start, end) if element >= 0 else "")  # fmt: skip

    def _element(self, document: Document, start: int, end: int) -> int:
        if document.id not in self._starts:
            order = sorted(
                range(len(document.elements)), key=lambda i: (document.elements[i].start, -document.elements[i].end)
            )
            self._starts[document.id] = ([document.elements[i].start for i in order], order)
        starts, order = self._starts[document.id]
        at = bisect.bisect_right(starts, start)
        for i in reversed(order[max(0, at - 64) : at]):
            if document.elements[i].end >= end:
                return i
        return -1


def _place(document: Document, element: int, start: int, end: int) -> str:
    """What a reader of the format calls the place: of a sheet's row the cells that are meant, of others the element's own word."""
    here = document.elements[element]
    if here.kind != "row":
        return here.place
    cells: list[str] = []
    for i in range(element + 1, len(document.elements)):  # a row's cells stand behind it
        e = document.elements[i]
        if e.kind != "cell" or e.start >= end:
            break
        if e.end > start and "!" in e.place:
            cells.append(e.place)
    return (
        ":".join(dict.fromkeys((cells[0], cells[-1].rpartition("!")[2])))
        if len(cells) > 1
        else cells[0]
        if cells
        else here.place
    )


def guesses_of(entity: str, votes: Votes, assembler: Assembler) -> list[Statement]:
    """The type of an entity that was guessed most often, once for each vote; its confidence is its share of all votes."""
    best = max(sorted(votes), key=lambda k: len(votes[k]))
    share = round(len(votes[best]) / sum(map(len, votes.values())), 4)
    return [Statement(entity, TYPE, assembler.kind(best), (), share, "vote", status, evidence=proof)
            for status, proof in votes[best]]  # fmt: skip
