"""A graph in an embedded SPARQL store (pyoxigraph), and answers to queries as plain values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interfuse.core.errors import InterfuseError
from interfuse.data.formats.rdf import PREFIXES, convert, lines, oxigraph
from interfuse.data.graph_files import status_graph
from interfuse.data.statements import STATUSES, Literal, Statement, Term

if TYPE_CHECKING:
    from interfuse.data.graph_columns import Columns

_CHUNK = 200_000


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


def load_columns(columns: Columns, *, names: Any = None, store: Any = None) -> Any:
    """A store from integer columns: the text is joined column by column and given to the store's own bulk loader.

    Args:
        names: term texts of nodes and relations when they are not IRIs: a pair of Arrow arrays.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ox = oxigraph()
    store = ox.Store() if store is None else store
    nodes, relations = names if names is not None else texts(columns)
    graphs = pa.array([f" <{status_graph(s)}> .\n" for s in STATUSES])
    for start in range(0, len(columns), _CHUNK):
        part = slice(start, start + _CHUNK)
        text = pc.binary_join_element_wise(
            nodes.take(pa.array(columns.subject[part])), relations.take(pa.array(columns.predicate[part])),
            nodes.take(pa.array(columns.object[part])), graphs.take(pa.array(columns.status[part])), " ",
        )  # fmt: skip
        data = text.buffers()[2]
        store.bulk_load(input=data.to_pybytes() if data is not None else b"", format=ox.RdfFormat.N_QUADS, lenient=True)
    return store


def texts(columns: Columns) -> tuple[Any, Any]:
    """Nodes and relations as N-Triples terms; names that are not IRIs get one.

    A name is taken as it is when it has a colon and none of the signs an IRI cannot hold, or is a literal's text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from interfuse.data.statements import entity_id, relation_id

    good = r"^[A-Za-z][A-Za-z0-9+.\-]*:[^\x00-\x20<>\"{}|^`\\]+$"

    def as_terms(names: Any, literal: Any, make: Any) -> Any:
        named = pc.match_substring_regex(names, good)
        made = pc.binary_join_element_wise("<", names, ">", "")
        if not pc.all(named).as_py():
            odd = pc.and_not(pc.invert(named), literal)
            values = [
                f"<{make(n)}>" if o and not n.startswith("_:") else n
                for n, o in zip(names.to_pylist(), odd.to_pylist(), strict=True)
            ]
            made = pc.if_else(named, made, pa.array(values, type=pa.string()))
        return made

    none = pa.array([False]).take(pa.array([0] * len(columns.relations)))
    return as_terms(columns.nodes, pa.array(columns.literal), entity_id), as_terms(columns.relations, none, relation_id)


def check_query(sparql: str) -> None:
    """Refuses queries that would ask other servers.

    Raises:
        InterfuseError: ``unsafe.address``.
    """
    bare = sparql
    if '"""' not in sparql and "'''" not in sparql:  # what may not be a quotation is looked into
        bare = re.sub(r"\\.|<[^<>\s]*>|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|#[^\n]*", " ", sparql)
    if re.search(r"(?<![\w?$:])SERVICE\b", bare, re.IGNORECASE):
        raise InterfuseError("unsafe.address", "a query may not ask other servers (SERVICE)")


def run(store: Any, sparql: str, *, meta: bool = False, prefixes: bool = True) -> Answers:
    """Answers to a SPARQL 1.1/1.2 query (SELECT, ASK, CONSTRUCT, DESCRIBE).

    The default graph holds the triples of every status but withdrawn; with ``meta`` the reifiers too. The prefixes rdf, rdfs,
    owl, xsd, skos, prov and ``if:`` (``urn:interfuse:``) are known.

    Raises:
        InterfuseError: ``input.format`` for a query that cannot be read, ``unsafe.address`` for one with SERVICE.
    """
    ox = oxigraph()
    check_query(sparql)
    graphs = [ox.NamedNode(status_graph(s)) for s in STATUSES] + (
        [ox.NamedNode(status_graph("statements"))] if meta else []
    )
    try:
        found = (
            store.query(sparql, default_graph=graphs, prefixes=PREFIXES)
            if prefixes
            else store.query(sparql, default_graph=graphs)
        )
        return _answers(found, ox)
    except (SyntaxError, ValueError, OSError) as error:
        raise InterfuseError(
            "input.format", f"the query cannot be answered: {str(error).splitlines()[0]}", where=sparql.strip()[:80]
        ) from error


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
