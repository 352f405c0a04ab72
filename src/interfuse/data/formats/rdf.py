"""RDF: N-Triples, N-Quads, Turtle, TriG, RDF/XML and JSON-LD, in three profiles of how much is said of each statement.

- ``rdf12``: triples, and for each a reifier (``<urn:interfuse:statement:ID> rdf:reifies <<( s p o )>>``) with qualifiers,
  confidence, status, times and PROV links to evidence. RDF 1.2; nothing is lost.
- ``rdf11-reified``: the same with ``rdf:Statement``; for readers that know RDF 1.1. Nothing is lost.
- ``plain``: the triples alone, each in the named graph of its status where the format has named graphs.

JSON-LD cannot hold RDF 1.2 triple terms, so ``rdf12`` is refused there. Contexts of JSON-LD that lie elsewhere are never fetched.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.safe import read_bytes
from interfuse.data.graph_columns import SHOWN, Problems
from interfuse.data.graph_files import status_graph
from interfuse.data.statements import (
    NS,
    PROV,
    RDF,
    STATUSES,
    TYPE,
    XSD,
    XSD_STRING,
    Evidence,
    Literal,
    Statement,
    Term,
    check_name,
    text_of,
)

PROFILES = ("rdf12", "rdf11-reified", "plain")
#: ending -> (name in pyoxigraph, whether it has named graphs)
FORMATS = {
    ".nt": ("N_TRIPLES", False), ".nq": ("N_QUADS", True), ".ttl": ("TURTLE", False), ".trig": ("TRIG", True),
    ".rdf": ("RDF_XML", False), ".owl": ("RDF_XML", False), ".jsonld": ("JSON_LD", True), ".n3": ("N3", False),
}  # fmt: skip
STATEMENT = NS + "statement:"
PREFIXES = {"rdf": RDF, "rdfs": "http://www.w3.org/2000/01/rdf-schema#", "owl": "http://www.w3.org/2002/07/owl#", "xsd": XSD,
            "skos": "http://www.w3.org/2004/02/skos/core#", "prov": PROV, "if": NS}  # fmt: skip
MAX_BYTES = 2**33
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_REIFIES = RDF + "reifies"
_TIMES = {"valid_from": "validFrom", "valid_to": "validTo", "recorded_at": "recordedAt", "retracted_at": "retractedAt"}
_WORDS = ("document", "element", "place", "quote", "method", "model", "prompt", "run")


def oxigraph() -> Any:
    """The package pyoxigraph.

    Raises:
        InterfuseError: ``needs.package``.
    """
    try:
        import pyoxigraph
    except ImportError as error:
        raise InterfuseError(
            "needs.package", "graphs in RDF need the package pyoxigraph", fix="pip install 'interfuse[graph]'"
        ) from error
    return pyoxigraph


def format_of(path: Path) -> str:
    """The ending that names a file's format.

    Raises:
        InterfuseError: ``input.type``.
    """
    if path.suffix.lower() in FORMATS:
        return path.suffix.lower()
    raise InterfuseError(
        "input.type", f"{path.suffix!r} is no RDF format", where=str(path), fix=did_you_mean(path.suffix, FORMATS)
    )


# ---------------------------------------------------------------------------------------------- writing


def reifier_lines(statement: Statement, profile: str) -> Iterator[tuple[str, str, str]]:
    """What a profile says of a statement besides its triple: subject, predicate and object in N-Triples."""
    node = f"<{STATEMENT}{statement.id}>"
    s, p, o = text_of(statement.subject), text_of(statement.predicate), text_of(statement.object)
    if profile == "rdf12":
        yield node, f"<{_REIFIES}>", f"<<( {s} {p} {o} )>>"
    else:
        yield node, f"<{TYPE}>", f"<{RDF}Statement>"
        yield node, f"<{RDF}subject>", s
        yield node, f"<{RDF}predicate>", p
        yield node, f"<{RDF}object>", o
    yield node, f"<{NS}confidence>", f'"{statement.confidence!r}"^^<{XSD}double>'
    yield node, f"<{NS}kind>", text_of(Literal(statement.kind))
    yield node, f"<{NS}status>", text_of(Literal(statement.status))
    for name, word in _TIMES.items():
        value = getattr(statement, name)
        if value is not None:
            yield node, f"<{NS}{word}>", text_of(Literal(value))
    for predicate, value in statement.qualifiers:
        yield node, text_of(predicate), text_of(value)
    for number, item in enumerate(statement.evidence):
        proof = f"<{NS}evidence:{statement.id}:{number}>"
        yield node, f"<{PROV}wasDerivedFrom>", proof
        for word in _WORDS:
            if getattr(item, word):
                yield proof, f"<{NS}{word}>", text_of(Literal(getattr(item, word)))
        for word in ("start", "end", "page"):
            value = getattr(item, word)
            if value is not None:
                yield proof, f"<{NS}{word}>", f'"{value}"^^<{XSD}integer>'
        if item.score is not None:
            yield proof, f"<{NS}score>", f'"{item.score!r}"^^<{XSD}double>'
        for premise in item.premises:
            yield proof, f"<{NS}premise>", f"<{STATEMENT}{premise}>"


def lines(statements: Iterable[Statement], profile: str = "rdf12", *, named: bool = True) -> Iterator[str]:
    """N-Quads (``named``) or N-Triples of statements, one line each. Withdrawn statements have no triple, only a reifier."""
    for s in statements:
        if s.status != "withdrawn":
            place = f" <{status_graph(s.status)}>" if named else ""
            yield f"{text_of(s.subject)} {text_of(s.predicate)} {text_of(s.object)}{place} .\n"
        if profile != "plain":
            place = f" <{status_graph('statements')}>" if named else ""
            for a, b, c in reifier_lines(s, profile):
                yield f"{a} {b} {c}{place} .\n"


def write_rdf(path: Path, statements: Iterable[Statement], profile: str = "rdf12") -> None:
    """Writes statements in the format of the file's ending.

    Raises:
        InterfuseError: ``input.type``, ``param.value`` for a profile the format cannot hold, or ``needs.package``.
    """
    ending = format_of(path)
    if profile not in PROFILES:
        raise InterfuseError("param.value", f"there is no profile {profile!r}", fix=did_you_mean(profile, PROFILES))
    name, named = FORMATS[ending]
    if profile == "rdf12" and ending in (".jsonld", ".rdf", ".owl", ".n3"):
        raise InterfuseError(
            "param.value",
            f"{ending} cannot hold RDF 1.2",
            where=str(path),
            fix="Use the profile rdf11-reified or plain.",
        )
    if ending in (".nt", ".nq"):
        with path.open("w", encoding="utf-8", newline="\n") as out:
            out.writelines(lines(statements, profile, named=named))
        return
    ox = oxigraph()
    kind = getattr(ox.RdfFormat, name)
    if ending in (".rdf", ".owl"):
        statements = list(statements)
        odd = next((s for s in statements if isinstance(s.object, Literal) and _NOT_XML.search(s.object.value)), None)
        if odd is not None:
            raise InterfuseError("input.format", "a value holds a control character, which XML cannot hold", where=odd.subject,
                                 fix="Use another format.")  # fmt: skip
    source = ox.RdfFormat.N_QUADS if named else ox.RdfFormat.N_TRIPLES
    parts = ox.parse(input=_Pieces(lines(statements, profile, named=named)), format=source)
    with path.open("wb") as sink:
        ox.serialize((q if named else q.triple for q in parts), sink, format=kind, prefixes=PREFIXES)


class _Pieces(io.RawIOBase):
    """Lines as a stream of bytes, so that no format needs the whole text in memory."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        parts, have = [self._rest], len(self._rest)
        while have < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            parts.append(piece.encode("utf-8"))
            have += len(parts[-1])
        data = b"".join(parts)
        self._rest = data[size:]
        buffer[: len(data[:size])] = data[:size]
        return len(data[:size])

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self._rest + "".join(self._pieces).encode("utf-8")
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])


# ---------------------------------------------------------------------------------------------- reading


@dataclass
class _Reifier:
    """What has been read of one statement's node."""

    triple: tuple[Any, Any, Any] | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[str, Any]] = field(default_factory=list)


def read_rdf(path: Path, *, strict: bool = False, base: str | None = None) -> tuple[list[Statement], Problems]:
    """Statements of a file in any of the formats and profiles; blank nodes get names from the file's own.

    N-Triples and N-Quads are read line by line: bad lines are left out, the first hundred are described and all are counted. In
    the other formats an error ends the file.

    Raises:
        InterfuseError: ``input.missing``, ``input.type``, ``input.format``, ``input.limit``, ``unsafe.address`` for a JSON-LD
            context elsewhere, or ``needs.package``.
    """
    ending = format_of(path)
    data = read_bytes(path, limit=MAX_BYTES)
    return parse_rdf(data, ending, where=str(path), strict=strict, base=base)


def parse_rdf(
    data: bytes, ending: str, *, where: str = "", strict: bool = False, base: str | None = None
) -> tuple[list[Statement], Problems]:
    """Statements of a text in the format of an ending; see :func:`read_rdf`.

    Raises:
        InterfuseError: as :func:`read_rdf`.
    """
    ox = oxigraph()
    kind = getattr(ox.RdfFormat, FORMATS[ending][0])
    if ending == ".jsonld":
        _no_remote_context(data, where)
    shown: list[str] = []
    count = 0
    quads: list[Any] = []
    try:
        quads = list(ox.parse(input=data, format=kind, base_iri=base))
    except (SyntaxError, ValueError, OSError) as error:
        if strict or ending not in (".nt", ".nq"):
            raise InterfuseError("input.format", _first_line(error), where=f"{where}{_place(error)}") from error
        for number, line in enumerate(data.split(b"\n"), 1):
            try:
                quads += list(ox.parse(input=line, format=kind))
            except (SyntaxError, ValueError, OSError) as problem:
                count += 1
                if len(shown) < SHOWN:
                    shown.append(f"{where}:{number}: {_first_line(problem)}")
    statements, skipped = _assemble(quads, ox)
    for note in skipped:
        count += 1
        if len(shown) < SHOWN:
            shown.append(f"{where}: {note}")
    if strict and skipped:
        raise InterfuseError("input.format", skipped[0], where=where)
    return statements, Problems(tuple(shown), count)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _place(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    return f":{line}" if line else ""


def _no_remote_context(data: bytes, where: str) -> None:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InterfuseError("input.format", f"not JSON: {_first_line(error)}", where=where) from error
    todo = [(value, "")]
    while todo:
        item, key = todo.pop()
        if key in ("@context", "@import") and isinstance(item, str):
            raise InterfuseError("unsafe.address", f"the JSON-LD context lies elsewhere: {item[:120]!r}", where=where,
                                 fix="Put the context into the file.")  # fmt: skip
        if isinstance(item, Mapping):
            todo += [(v, k) for k, v in item.items()]
        elif isinstance(item, list):
            todo += [(v, key) for v in item]


def convert(ox: Any) -> Callable[[Any], Term]:
    """A function from pyoxigraph's terms to ours.

    Its ValueError says that a term is none of ours (a triple term).
    """
    literal, named, blank = ox.Literal, ox.NamedNode, ox.BlankNode

    def term(value: Any) -> Term:
        if isinstance(value, named):
            return str(value.value)
        if isinstance(value, literal):
            return Literal(value.value, value.datatype.value if value.datatype else XSD_STRING, value.language or "")
        if isinstance(value, blank):
            return f"_:{value.value}"
        raise ValueError("a triple stands where a name or value should")

    return term


def _assemble(quads: Iterable[Any], ox: Any) -> tuple[list[Statement], list[str]]:
    """Statements from pyoxigraph's quads."""
    term = convert(ox)
    about: dict[str, _Reifier] = {}
    skipped: list[str] = []
    rows: list[Row] = []
    for quad in quads:
        graph = getattr(quad, "graph_name", None)
        graph = str(graph.value) if isinstance(graph, ox.NamedNode) else ""
        predicate = str(quad.predicate.value)
        if predicate == _REIFIES and isinstance(quad.object, ox.Triple):
            try:
                about.setdefault(str(term(quad.subject)), _Reifier()).triple = tuple(
                    term(t) for t in (quad.object.subject, quad.object.predicate, quad.object.object)
                )  # type: ignore[assignment]
            except ValueError as error:
                skipped.append(str(error))
            continue
        try:
            rows.append((str(term(quad.subject)), predicate, term(quad.object), graph))
        except ValueError as error:
            skipped.append(str(error))
    made, odd = assemble(rows, about)
    return made, skipped + odd


#: subject, predicate, object and named graph ("": none)
Row = tuple[str, str, Term, str]


def assemble(rest: Sequence[Row], about: dict[str, _Reifier] | None = None) -> tuple[list[Statement], list[str]]:
    """Statements from triples in named graphs, and what reifiers among them say of them; what makes no statement, in words."""
    about = {} if about is None else about
    plain: dict[tuple[str, str, Term], str] = {}
    proofs: dict[str, list[tuple[str, Term]]] = {}
    skipped: list[str] = []
    statuses = {status_graph(s): s for s in STATUSES}
    for s, p, o, _ in rest:
        if p == TYPE and o == RDF + "Statement":
            about.setdefault(s, _Reifier())
    derived = {
        str(o) for s, p, o, _ in rest if s in about and p == PROV + "wasDerivedFrom" and not isinstance(o, Literal)
    }
    for s, p, o, graph in rest:
        if s in about:
            if p in (RDF + "subject", RDF + "predicate", RDF + "object") and about[s].triple is None:
                about[s].parts[p[len(RDF) :]] = o
            elif not (p == TYPE and o == RDF + "Statement"):
                about[s].rows.append((p, o))
        elif s in derived:
            proofs.setdefault(s, []).append((p, o))
        else:
            status = statuses.get(graph, "stated")
            key = (s, p, o)
            if key not in plain or STATUSES.index(status) < STATUSES.index(plain[key]):
                plain[key] = status
    made: list[Statement] = []
    said: dict[tuple[str, str, Term], None] = {}
    for node, reifier in about.items():
        try:
            made.append(_statement(node, reifier, proofs).checked())
            said[(made[-1].subject, made[-1].predicate, made[-1].object)] = None
        except (InterfuseError, ValueError, KeyError) as error:
            skipped.append(f"{node}: {_first_line(error)}")
    for (s, p, o), status in plain.items():
        if (s, p, o) not in said:
            try:
                made.append(Statement(s, p, o, status=status).checked())
            except InterfuseError as error:
                skipped.append(error.what)
    return made, skipped


def _statement(node: str, reifier: _Reifier, proofs: Mapping[str, list[tuple[str, Term]]]) -> Statement:
    if reifier.triple is not None:
        s, p, o = reifier.triple
    else:
        s, p, o = (reifier.parts[word] for word in ("subject", "predicate", "object"))
    values: dict[str, Any] = {}
    qualifiers: list[tuple[str, Term]] = []
    evidence: list[tuple[int, Evidence]] = []
    times = {NS + word: name for name, word in _TIMES.items()}
    for predicate, value in reifier.rows:
        text = value.value if isinstance(value, Literal) else value
        if predicate == NS + "confidence":
            values["confidence"] = float(text)
        elif predicate in (NS + "kind", NS + "status"):
            values[predicate[len(NS) :]] = text
        elif predicate in times:
            values[times[predicate]] = text
        elif predicate == PROV + "wasDerivedFrom" and isinstance(value, str) and value in proofs:
            tail = re.search(r":(\d{1,9})\Z", value)
            evidence.append((int(tail[1]) if tail else len(evidence), _evidence(proofs[value])))
        else:
            qualifiers.append((predicate, value))
    if isinstance(s, Literal) or isinstance(p, Literal):
        raise ValueError("a value stands where a name should")
    check_name(s)
    order = [e for _, e in sorted(evidence, key=lambda pair: (pair[0], pair[1].order))]
    return Statement(s, p, o, tuple(qualifiers), evidence=tuple(order), **values)


def _evidence(rows: list[tuple[str, Term]]) -> Evidence:
    values: dict[str, Any] = {}
    premises: list[str] = []
    for predicate, value in rows:
        word = predicate[len(NS) :] if predicate.startswith(NS) else ""
        text = value.value if isinstance(value, Literal) else value
        if word in _WORDS:
            values[word] = text
        elif word in ("start", "end", "page"):
            values[word] = int(text)
        elif word == "score":
            values[word] = float(text)
        elif word == "premise":
            premises.append(text.removeprefix(STATEMENT))
    return Evidence(**{"document": "", **values}, premises=tuple(sorted(premises)))
