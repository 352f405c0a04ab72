"""Statements: who says what of what, how surely, since when, and where it is written down to the character.

The unit of a :class:`~interfuse.data.graph.Graph`. Subject and predicate are IRIs (or blank nodes ``_:x``), the object is one of
these or a :class:`Literal`. Qualifiers hold what an n-ary fact has besides (RDF reifiers). Two statements are the same when
subject, predicate, object and qualifiers are; their evidence is then kept side by side.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from interfuse.core.errors import InterfuseError, did_you_mean

XSD = "http://www.w3.org/2001/XMLSchema#"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
RDFS = "http://www.w3.org/2000/01/rdf-schema#"
OWL = "http://www.w3.org/2002/07/owl#"
SKOS = "http://www.w3.org/2004/02/skos/core#"
PROV = "http://www.w3.org/ns/prov#"
#: the names this library gives: ``urn:interfuse:confidence``, ``urn:interfuse:statement:ID`` ...
NS = "urn:interfuse:"
#: where entities stand that have no IRI of their own
ENTITY = NS + "entity:"
RELATION = NS + "relation:"
#: where documents and their parts stand: their labels are what they say, not what they are called, and join nothing
TEXTS = (NS + "document:", NS + "chunk:", NS + "element:")

XSD_STRING = XSD + "string"
LANG_STRING = RDF + "langString"
TYPE = RDF + "type"
LABEL = RDFS + "label"
ALIAS = SKOS + "altLabel"
SUBCLASS = RDFS + "subClassOf"
SAME = OWL + "sameAs"

#: what a statement's status may be, the strongest first: when two sources differ, the first of these is shown
STATUSES = ("contested", "stated", "inferred", "model-claimed", "withdrawn")

_IRI = re.compile('[A-Za-z][A-Za-z0-9+.-]*:[^\\x00-\\x20<>"{}|^`\\\\\\ud800-\\udfff]+\\Z')
_BLANK = re.compile(r"_:[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?\Z")
_LANGUAGE = re.compile(r"[a-zA-Z]{1,8}(?:-[a-zA-Z0-9]{1,8})*\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_ESCAPED = re.compile('["\\\\\\x00-\\x1f\\x7f]')


@dataclass(frozen=True)
class Evidence:
    """One place that supports a statement.

    Attributes:
        document: its id (SHA-256 of its bytes), or the name of a model, a table or a rule set.
        start, end: characters of the document's normalised text, half-open. page: from 1. element: id of the layout element or cell.
        place: what a reader of the format would say, such as ``Cities!A2:B2`` or ``row 2``, where it has more than characters.
        quote: SHA-256 of the quoted text. method, model, prompt, run: what read it there (``prompt`` is a hash).
        score: of the extractor, on its own scale. premises: ids of the statements it follows from; it dies with any of them.
    """

    document: str
    start: int = 0
    end: int = 0
    page: int | None = None
    element: str = ""
    quote: str = ""
    method: str = ""
    model: str = ""
    prompt: str = ""
    run: str = ""
    score: float | None = None
    place: str = ""
    premises: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts evidence by place, then by what read it."""
        return (self.document, self.start, self.end, -1 if self.page is None else self.page, self.element, self.method, self.model,
                self.prompt, self.run, self.quote, self.score is None, self.score or 0.0, self.place, self.premises)  # fmt: skip


@dataclass(frozen=True, order=True)
class Literal:
    """A value: its text, its datatype's IRI and, for words, a language tag (lower case; the datatype is then rdf:langString)."""

    value: str
    datatype: str = XSD_STRING
    language: str = ""

    def __post_init__(self) -> None:
        if self.language:
            object.__setattr__(self, "language", self.language.lower())
            object.__setattr__(self, "datatype", LANG_STRING)


Term = str | Literal


@dataclass(frozen=True)
class Statement:
    """One statement with everything known about it.

    Attributes:
        subject, predicate, object: IRIs, blank nodes (``_:x``), or a literal as object.
        qualifiers: (predicate, value) pairs of the statement itself; their order does not matter.
        confidence: in [0, 1]; ``kind`` says what it is: ``extractor``, ``critic``, ``probability``, ``vote`` ...
        status: one of :data:`STATUSES`.
        valid_from, valid_to: when it is true in the world, ISO 8601, half-open. recorded_at, retracted_at: when a source said
            so and took it back.
        evidence: where it comes from. A statement that was given evidence lives as long as one of them does.
    """

    subject: str
    predicate: str
    object: Term
    qualifiers: tuple[tuple[str, Term], ...] = ()
    confidence: float = 1.0
    kind: str = "extractor"
    status: str = "stated"
    valid_from: str | None = None
    valid_to: str | None = None
    recorded_at: str | None = None
    retracted_at: str | None = None
    evidence: tuple[Evidence, ...] = field(default=(), repr=False)

    @cached_property
    def id(self) -> str:
        """32 hexadecimal digits of subject, predicate, object and qualifiers (BLAKE2b)."""
        parts = [text_of(self.subject), text_of(self.predicate), text_of(self.object)]
        if self.qualifiers:
            parts += sorted(f"{text_of(p)} {text_of(v)}" for p, v in self.qualifiers)
        return hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    @property
    def order(self) -> tuple[str, ...]:
        """Sorts statements by subject, predicate, object and id."""
        return (
            self.subject,
            self.predicate,
            text_of(self.object) if isinstance(self.object, Literal) else self.object,
            self.id,
        )

    def terms(self) -> Iterable[Term]:
        """Subject, predicate, object, then qualifiers' predicates and values."""
        yield self.subject
        yield self.predicate
        yield self.object
        for predicate, value in self.qualifiers:
            yield predicate
            yield value

    def checked(self) -> Statement:
        """Itself, with every field looked at.

        Raises:
            InterfuseError: ``input.format`` for a malformed term, span or status, ``input.nan`` or ``param.value`` for a confidence.
        """
        check_name(self.subject)
        check_name(self.predicate, blank=False)
        check_term(self.object)
        for predicate, value in self.qualifiers:
            check_name(predicate, blank=False)
            check_term(value)
        if not math.isfinite(self.confidence):
            raise InterfuseError("input.nan", "a confidence is not a number", where=self.subject)
        if not 0.0 <= self.confidence <= 1.0:
            raise InterfuseError(
                "param.value", f"a confidence lies in [0, 1], not {self.confidence:g}", where=self.subject
            )
        if self.status not in STATUSES:
            raise InterfuseError("input.format", f"a status is not {self.status!r}", where=self.subject,
                                 fix=did_you_mean(self.status, STATUSES))  # fmt: skip
        for item in self.evidence:
            if not item.document:
                raise InterfuseError("input.format", "evidence names no document", where=self.subject)
            if not 0 <= item.start <= item.end:
                raise InterfuseError(
                    "input.format", f"a span ends before it starts: {item.start} to {item.end}", where=item.document
                )
            if item.score is not None and not math.isfinite(item.score):
                raise InterfuseError("input.nan", "a score is not a number", where=item.document)
        return self


def check_name(name: str, *, blank: bool = True) -> None:
    """Refuses what is neither an absolute IRI nor (where allowed) a blank node.

    Raises:
        InterfuseError: ``input.format``.
    """
    if isinstance(name, str) and (_IRI.match(name) or (blank and _BLANK.match(name))):
        return
    raise InterfuseError("input.format", f"not an absolute IRI: {str(name)[:120]!r}",
                         fix="Make one of any words with entity_id(label) or relation_id(label).")  # fmt: skip


def check_term(term: Term) -> None:
    """Refuses malformed names, half characters, and datatypes or languages that are none.

    Raises:
        InterfuseError: ``input.format``.
    """
    if not isinstance(term, Literal):
        check_name(term)
        return
    if _SURROGATE.search(term.value):
        raise InterfuseError(
            "input.format", "a value holds half of a character (a surrogate)", where=ascii(term.value[:60])
        )
    if term.datatype != XSD_STRING:
        check_name(term.datatype, blank=False)
    if term.language and not _LANGUAGE.match(term.language):
        raise InterfuseError("input.format", f"{term.language!r} is not a language tag", where=term.value[:60])


def _escape(match: re.Match[str]) -> str:
    found = match.group()
    return _ESCAPES.get(found) or f"\\u{ord(found):04X}"


def text_of(term: Term) -> str:
    """A term in N-Triples: ``<iri>``, ``_:x``, ``"words"@en``, ``"7"^^<datatype>``."""
    if isinstance(term, Literal):
        body = '"' + _ESCAPED.sub(_escape, term.value) + '"'
        if term.language:
            return f"{body}@{term.language}"
        return body if term.datatype == XSD_STRING else f"{body}^^<{term.datatype}>"
    return term if term.startswith("_:") else f"<{term}>"


_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"(?:@([a-zA-Z0-9-]+)|\^\^<([^>]*)>)?\Z', re.DOTALL)
_UNESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_PLAIN = {"t": "\t", "n": "\n", "r": "\r", "b": "\b", "f": "\f"}


def term_of(text: str) -> Term:
    """The inverse of :func:`text_of`.

    Raises:
        InterfuseError: ``input.format``.
    """
    if text.startswith("<") and text.endswith(">"):
        return text[1:-1]
    if text.startswith("_:"):
        return text
    found = _TEXT.match(text)
    if found is None:
        raise InterfuseError("input.format", f"not a term: {text[:120]!r}")
    value, language, datatype = found.groups()
    if "\\" in value:
        value = _UNESCAPE.sub(
            lambda m: chr(int(m[1][1:], 16)) if m[1][0] in "uU" and len(m[1]) > 1 else _PLAIN.get(m[1], m[1]), value
        )
    return Literal(value, datatype or XSD_STRING, language or "")


def slug(label: str, limit: int = 48) -> str:
    """Letters and digits of a label in lower case, joined by hyphens; letters of every script are kept."""
    folded = unicodedata.normalize("NFKC", label).casefold()
    return "-".join(re.findall(r"[^\W_]+", folded))[:limit].strip("-")


def key_of_label(label: str) -> str:
    """What two spellings of one label share: compatibility forms, case, punctuation and spacing removed."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", label).casefold()))


def entity_id(label: str, type: str = "", *, base: str = ENTITY, document: str = "", key: str = "") -> str:
    """The IRI of an entity: base, slug of its label, and a short hash of type, canonical key and document.

    The same words give the same IRI in every run and on every machine. Entities of two documents share an IRI unless the
    ``document`` is given, which leaves deciding about them to linking.

    Args:
        key: what identifies it instead of its label (an ISBN, a row's key).
    """
    digest = hashlib.blake2b(
        "\n".join([type, key or key_of_label(label) or label, document]).encode("utf-8", "replace"), digest_size=5
    )
    return f"{base}{slug(label)}-{digest.hexdigest()}"


def relation_id(label: str, *, base: str = RELATION) -> str:
    """The IRI of a relation or class that has only a name: ``was born in`` gives ``urn:interfuse:relation:was-born-in``."""
    made = slug(label, 80)
    return base + (made or hashlib.blake2b(label.encode("utf-8", "replace"), digest_size=5).hexdigest())


def number(value: float | int | bool) -> Literal:
    """A number or truth value as a literal of its XSD type.

    Raises:
        InterfuseError: ``input.nan``.
    """
    if isinstance(value, bool):
        return Literal("true" if value else "false", XSD + "boolean")
    if isinstance(value, int):
        return Literal(str(value), XSD + "integer")
    if not math.isfinite(value):
        raise InterfuseError("input.nan", "a value is not a number")
    return Literal(repr(float(value)), XSD + "double")


def label_of(label: str, entity: str, *, evidence: Sequence[Evidence] = (), language: str = "") -> Statement:
    """The statement that gives an entity its label."""
    return Statement(entity, LABEL, Literal(label, language=language), evidence=tuple(evidence))


def combined(statements: Sequence[Statement]) -> Statement:
    """One statement out of several that say the same (subject, predicate, object and qualifiers are the first's).

    The result does not depend on their order: the highest confidence, the strongest status (:data:`STATUSES`), all evidence, the
    earliest beginnings and the latest ends; it is retracted only when every source has retracted it.
    """
    first = statements[0]
    if len(statements) == 1 and len(first.evidence) < 2:
        return first
    surest = max(statements, key=lambda s: (s.confidence, s.kind))
    proof = {e: None for s in statements for e in s.evidence}
    ends = [s.retracted_at for s in statements]
    return Statement(
        first.subject, first.predicate, first.object, first.qualifiers, surest.confidence, surest.kind,
        min((s.status for s in statements), key=STATUSES.index),
        min((s.valid_from for s in statements if s.valid_from is not None), default=None),
        max((s.valid_to for s in statements if s.valid_to is not None), default=None),
        min((s.recorded_at for s in statements if s.recorded_at is not None), default=None),
        max((e for e in ends if e is not None), default=None) if None not in ends else None,
        tuple(sorted(proof, key=lambda e: e.order)),
    )  # fmt: skip


def to_json(statement: Statement) -> dict[str, Any]:
    """A statement as plain JSON; fields at their defaults are left out."""
    row: dict[str, Any] = {"s": statement.subject, "p": statement.predicate, "o": text_of(statement.object)}
    if statement.qualifiers:
        row["q"] = [[p, text_of(v)] for p, v in statement.qualifiers]
    for name, usual in (("confidence", 1.0), ("kind", "extractor"), ("status", "stated"), ("valid_from", None), ("valid_to", None),
                        ("recorded_at", None), ("retracted_at", None)):  # fmt: skip
        value = getattr(statement, name)
        if value != usual:
            row[name] = value
    if statement.evidence:
        row["evidence"] = [evidence_json(e) for e in statement.evidence]
    return row


def evidence_json(item: Evidence) -> dict[str, Any]:
    """Evidence as plain JSON; fields at their defaults are left out."""
    row = {k: v for k, v in vars(item).items() if v not in (None, "", ()) and not (k in ("start", "end") and v == 0)}
    if item.premises:
        row["premises"] = list(item.premises)
    return row


def from_json(row: Mapping[str, Any]) -> Statement:
    """The inverse of :func:`to_json`; fields are looked at.

    Raises:
        InterfuseError: ``input.format``.
    """
    try:
        rest = {k: v for k, v in row.items() if k not in ("s", "p", "o", "q", "evidence")}
        proof = tuple(Evidence(**{**e, "premises": tuple(e.get("premises", ()))}) for e in row.get("evidence", ()))
        qualifiers = tuple((str(p), term_of(v)) for p, v in row.get("q", ()))
        return Statement(row["s"], row["p"], term_of(row["o"]), qualifiers, evidence=proof, **rest).checked()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InterfuseError("input.format", f"not a statement: {type(error).__name__}: {error}") from error
