"""A graph in an embedded SPARQL store (pyoxigraph), and answers to queries as plain values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interfuse.core.errors import InterfuseError
from interfuse.data.formats.rdf import PREFIXES, convert, lines, oxigraph
from interfuse.data.graph_columns import texts
from interfuse.data.graph_files import quads, status_graph
from interfuse.data.statements import STATUSES, Literal, Statement, Term

if TYPE_CHECKING:
    from interfuse.data.graph_columns import Columns

_CHUNK = 200_000
_CODE = re.compile(r"\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})")


@dataclass(frozen=True)
class Answers:
    """The rows of a query. ``columns``: the variables. ``rows``: one value or None per variable.

    The answer to ASK is one row ``(Literal("true"),)``; CONSTRUCT and DESCRIBE give columns subject, predicate, object.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Term | None, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Term | None]]:
        for row in self.rows:
            yield dict(zip(self.columns, row, strict=True))

    def __bool__(self) -> bool:
        if self.columns == ("ask",):
            value = self.rows[0][0]
            return isinstance(value, Literal) and value.value == "true"
        return bool(self.rows)

    def values(self, column: str | None = None) -> list[str | None]:
        """One column as words: IRIs, and the text of literals."""
        place = self.columns.index(column) if column else 0
        return [v.value if isinstance(v, Literal) else v for v in (row[place] for row in self.rows)]


def load(statements: Iterable[Statement], *, profile: str = "rdf12", store: Any = None) -> Any:
    """A store with these statements: triples in the named graph of their status, reifiers in one of their own.

    Raises:
        InterfuseError: ``needs.package``.
    """
    ox = oxigraph()
    store = ox.Store() if store is None else store
    block: list[str] = []
    for line in lines(statements, profile):
        block.append(line)
        if len(block) >= _CHUNK:
            store.bulk_load(input="".join(block).encode(), format=ox.RdfFormat.N_QUADS)
            block = []
    if block:
        store.bulk_load(input="".join(block).encode(), format=ox.RdfFormat.N_QUADS)
    return store


def load_file(path: Path) -> Any:
    """A store of a graph's ``graph.nq``.

    Raises:
        InterfuseError: ``input.missing``, ``input.format`` or ``needs.package``.
    """
    ox = oxigraph()
    store = ox.Store()
    try:
        store.bulk_load(path=str(path), format=ox.RdfFormat.N_QUADS)
    except FileNotFoundError as error:
        raise InterfuseError("input.missing", "there is no such file", where=str(path)) from error
    except (SyntaxError, ValueError, OSError) as error:
        raise InterfuseError(
            "input.format", f"the file cannot be read: {str(error).splitlines()[0]}", where=str(path)
        ) from error
    return store


def load_columns(columns: Columns, *, store: Any = None) -> Any:
    """A store from integer columns: the text is joined column by column and given to the store's own bulk loader."""
    ox = oxigraph()
    store = ox.Store() if store is None else store
    for block in quads(columns, *texts(columns)):
        store.bulk_load(input=block, format=ox.RdfFormat.N_QUADS, lenient=True)
    return store


def _spelt_out(sparql: str) -> str:
    """A query whose letters may be written as codes, with the letters."""
    return _CODE.sub(lambda m: chr(min(int(m[1] or m[2], 16), 0x10FFFF)), sparql)


def check_query(sparql: str) -> None:
    """Refuses queries that would ask other servers.

    Raises:
        InterfuseError: ``unsafe.address``.
    """
    bare = _spelt_out(sparql)
    if '"""' not in sparql and "'''" not in sparql:  # what may not be a quotation is looked into
        bare = re.sub(r"\\.|<[^<>\s]*>|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|#[^\n]*", " ", bare)
    if re.search(r"(?<![\w?$:])SERVICE\b", bare, re.IGNORECASE):
        raise InterfuseError("unsafe.address", "a query may not ask other servers (SERVICE)")


_QUOTED = re.compile(
    r"\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|<[^<>\s]*>|#[^\n]*",
    re.DOTALL,
)


def names_graphs(sparql: str) -> bool:
    """Whether a query says itself from which graphs it is to be answered (``FROM``, ``FROM NAMED``)."""
    bare = _QUOTED.sub(" ", _spelt_out(sparql))
    return re.search(r"(?<![\w?$:@.-])FROM(?![\w:.-])", bare, re.IGNORECASE) is not None


def run(store: Any, sparql: str, *, meta: bool = False, prefixes: bool = True) -> Answers:
    """Answers to a SPARQL 1.1/1.2 query (SELECT, ASK, CONSTRUCT, DESCRIBE).

    The default graph holds the triples of every status but withdrawn; with ``meta`` the reifiers too. A query that names graphs itself
    (``FROM``, ``FROM NAMED``) is answered from these alone. The prefixes rdf, rdfs,
    owl, xsd, skos, prov and ``if:`` (``urn:interfuse:``) are known.

    Raises:
        InterfuseError: ``input.format`` for a query that cannot be read, ``unsafe.address`` for one with SERVICE.
    """
    ox = oxigraph()
    check_query(sparql)
    graphs = [ox.NamedNode(status_graph(s)) for s in STATUSES] + (
        [ox.NamedNode(status_graph("statements"))] if meta else []
    )
    given: dict[str, Any] = {} if names_graphs(sparql) else {"default_graph": graphs}
    given |= {"prefixes": PREFIXES} if prefixes else {}
    try:
        found = store.query(sparql, **given)
        return _answers(found, ox)
    except (SyntaxError, ValueError, OSError) as error:
        why = str(error).splitlines()[0]
        raise InterfuseError(
            "input.format", f"the query cannot be answered: {why.partition(': expected one of')[0]}", where=sparql.strip()[:80],
            fix="SPARQL's SELECT, ASK, CONSTRUCT and DESCRIBE are answered; a graph is changed by what makes it, not by queries.",
        ) from error  # fmt: skip


def _answers(found: Any, ox: Any) -> Answers:
    change = convert(ox)

    def value(term: Any) -> Term | None:
        if term is None:
            return None
        return Literal(str(term)) if isinstance(term, ox.Triple) else change(term)

    if isinstance(found, ox.QueryBoolean):
        return Answers(
            ("ask",), ((Literal("true" if found else "false", "http://www.w3.org/2001/XMLSchema#boolean"),),)
        )
    if isinstance(found, ox.QuerySolutions):
        names = tuple(v.value for v in found.variables)
        return Answers(names, tuple(tuple(value(row[i]) for i in range(len(names))) for row in found))
    rows: Sequence[Any] = list(found)
    return Answers(
        ("subject", "predicate", "object"), tuple((value(t.subject), value(t.predicate), value(t.object)) for t in rows)
    )
