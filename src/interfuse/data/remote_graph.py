"""A graph behind a SPARQL 1.1 endpoint (QLever, Virtuoso, Fuseki, GraphDB, Neptune, a store of one's own), asked as if it were here.

Statements stand there as :mod:`interfuse.data.formats.rdf` writes them in the profile ``rdf11-reified``, one named graph per status;
any other endpoint is read too, as plain statements. Reading is paged, writing batched; every request has a time limit, a size limit
and a bounded number of tries. The log of operations is not kept there: ``merge``, ``split``, ``mark``, ``infer``, ``history``, ``at``
and ``undo`` need a copy (:meth:`local`).
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint
from interfuse.data.formats.rdf import PREFIXES, STATEMENT, Row, assemble, reifier_lines
from interfuse.data.graph import NEAR, Diff, Graph
from interfuse.data.graph_columns import Columns
from interfuse.data.graph_files import status_graph
from interfuse.data.graph_log import Op
from interfuse.data.graph_store import Answers, check_query, names_graphs
from interfuse.data.statements import (
    ALIAS,
    LABEL,
    NS,
    PROV,
    RDF,
    STATUSES,
    TYPE,
    XSD_STRING,
    Evidence,
    Literal,
    Statement,
    Term,
    text_of,
)

_META = status_graph("statements")
_TRIES = 4


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another place than the named one is never asked."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class RemoteGraph:
    """A graph at an endpoint.

    Attributes:
        endpoint: the address for queries. update: the one for updates; the same when empty. name: how reports call it.
        key_env: the environment variable that holds ``user:password`` or a token; the key stands nowhere else.
        page: rows per request. seconds: time limit of one request. most: bytes of one answer at most.
    """

    endpoint: str
    update: str = ""
    name: str = "endpoint"
    key_env: str = ""
    page: int = 5_000
    batch: int = 500
    seconds: float = 60.0
    most: int = 2**28
    made_by: str = ""
    parents: tuple[Any, ...] = field(default=(), repr=False)
    key: str = ""
    _seen: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for address in (self.endpoint, self.update or self.endpoint):
            parts = urllib.parse.urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
                raise InterfuseError("unsafe.address", f"not the address of an endpoint: {address[:120]!r}",
                                     fix="http(s)://HOST/PATH; a key goes into the variable that key_env names.")  # fmt: skip

    # ------------------------------------------------------------------------------------------ asking

    def _ask(self, address: str, body: str, kind: str, accept: str) -> bytes:
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Accept": accept, "User-Agent": "interfuse"}
        if self.key_env:
            secret = os.environ.get(self.key_env, "")
            if not secret:
                raise InterfuseError("input.missing", f"the variable {self.key_env} is not set", where=self.name)
            basic = "Basic " + base64.b64encode(secret.encode()).decode()
            headers["Authorization"] = basic if ":" in secret else f"Bearer {secret}"
        opener = urllib.request.build_opener(_NoRedirect)
        said = ""
        for turn in range(_TRIES):
            if turn:
                time.sleep(min(8.0, 0.25 * 2**turn))
            request = urllib.request.Request(address, body.encode("utf-8"), headers, method="POST")
            try:
                with opener.open(request, timeout=self.seconds) as answer:
                    data: bytes = answer.read(self.most + 1)
                if len(data) > self.most:
                    raise InterfuseError(
                        "input.limit", f"the answer has more than {self.most} bytes", where=self.endpoint
                    )
                if answer.length:
                    raise ConnectionError("the answer ends before its end")
                return data
            except urllib.error.HTTPError as error:
                with error:
                    said = f"{error.code}: {error.read(300).decode('utf-8', 'replace').strip()}"
                if error.code not in (408, 429, 500, 502, 503, 504):
                    break
            except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException, OSError) as error:
                said = f"{type(error).__name__}: {error}"
        raise InterfuseError("endpoint.failed", f"the endpoint did not answer ({said[:300]})", where=self.endpoint)

    def query(self, sparql: str, *, meta: bool = False) -> Answers:
        """Answers to a SELECT or ASK query, as :meth:`interfuse.data.graph.Graph.query` gives them.

        Where statements stand in our named graphs, the default graph is the triples of these (with ``meta`` the reifiers too), by the
        protocol's ``default-graph-uri``, whatever the endpoint's own is; elsewhere it is the endpoint's. A query that names graphs itself
        (``FROM``, ``FROM NAMED``) goes out without, as the protocol's would take their place.

        Raises:
            InterfuseError: ``endpoint.failed``, ``input.limit``, ``input.format`` or ``unsafe.address``.
        """
        check_query(sparql)
        if not self.ours or names_graphs(sparql):
            return self._answers(sparql)
        graphs = [status_graph(s) for s in STATUSES]
        named = [("named-graph-uri", g) for g in (*graphs, _META)]
        scope = urllib.parse.urlencode(
            [("default-graph-uri", g) for g in (*graphs, *([_META] if meta else []))] + named
        )
        return self._answers(sparql, f"{self.endpoint}{'&' if '?' in self.endpoint else '?'}{scope}")

    def _answers(self, sparql: str, address: str = "") -> Answers:
        """The answers of the endpoint as it is."""
        head = "".join(
            f"PREFIX {k}: <{v}>\n" for k, v in PREFIXES.items() if f"PREFIX {k}:".lower() not in sparql.lower()
        )
        data = self._ask(
            address or self.endpoint, head + sparql, "application/sparql-query", "application/sparql-results+json"
        )
        try:
            found = json.loads(data.decode("utf-8"))
            if "boolean" in found:
                return Answers(
                    ("ask",),
                    ((Literal("true" if found["boolean"] else "false", "http://www.w3.org/2001/XMLSchema#boolean"),),),
                )
            names = tuple(str(v) for v in found["head"]["vars"])
            return Answers(
                names, tuple(tuple(_term(row.get(v)) for v in names) for row in found["results"]["bindings"])
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InterfuseError(
                "endpoint.failed", f"the answer is not SPARQL JSON: {type(error).__name__}", where=self.endpoint
            ) from error

    def _pages(self, pattern: str, columns: str, order: str) -> Iterator[tuple[Term | None, ...]]:
        start = 0
        while True:
            rows = self._answers(
                f"SELECT {columns} WHERE {{ {pattern} }} ORDER BY {order} LIMIT {self.page} OFFSET {start}"
            ).rows
            yield from rows
            if len(rows) < self.page:
                return
            start += self.page

    @property
    def ours(self) -> bool:
        """Whether the endpoint keeps statements in our named graphs."""
        if "ours" not in self._seen:
            graphs = " ".join(f"<{status_graph(s)}>" for s in (*STATUSES, "statements"))
            self._seen["ours"] = bool(self._answers(f"ASK {{ VALUES ?g {{ {graphs} }} GRAPH ?g {{ ?s ?p ?o }} }}"))
        return bool(self._seen["ours"])

    # ------------------------------------------------------------------------------------------ looking

    def statements(self, s: str | None = None, p: str | None = None, o: Term | None = None, *, min_confidence: float = 0.0,
                   status: str | Sequence[str] | None = None, as_of: str | None = None, known_at: str | None = None) -> list[Statement]:  # fmt: skip
        """As :meth:`interfuse.data.graph.Graph.statements`."""
        found = self._found(s, p, o)
        small = Graph(self.name)
        small.add(found)
        return small.statements(min_confidence=min_confidence, status=status, as_of=as_of, known_at=known_at)

    def _found(self, s: str | None, p: str | None, o: Term | None) -> list[Statement]:
        fixed = [(v, t) for v, t in (("s", s), ("p", p), ("o", o)) if t is not None]
        bind = " ".join(f"VALUES ?{v} {{ {text_of(t)} }}" for v, t in fixed)
        rows: list[Row] = []
        if not self.ours:
            for subject, predicate, object in self._pages(f"{bind} ?s ?p ?o", "?s ?p ?o", "?s ?p ?o"):
                rows.append((str(subject), str(predicate), object or "", ""))
            return assemble([r for r in rows if not r[0].startswith("_:")])[0]
        graphs = " ".join(f"<{status_graph(x)}>" for x in STATUSES)
        for graph, subject, predicate, object in self._pages(
            f"{bind} VALUES ?g {{ {graphs} }} GRAPH ?g {{ ?s ?p ?o }}", "?g ?s ?p ?o", "?g ?s ?p ?o"
        ):
            rows.append((str(subject), str(predicate), object or "", str(graph)))
        node = f"?r <{RDF}subject> ?s ; <{RDF}predicate> ?p ; <{RDF}object> ?o ."
        own = f"{bind} GRAPH <{_META}> {{ {node} ?r ?a ?b }}"
        proof = f"{bind} GRAPH <{_META}> {{ {node} ?r <{PROV}wasDerivedFrom> ?e . ?e ?a ?b }}"
        for pattern, first in ((own, "?r"), (proof, "?e")):
            for name, predicate, object in self._pages(pattern, f"DISTINCT {first} ?a ?b", f"{first} ?a ?b"):
                rows.append((str(name), str(predicate), object or "", _META))
        return assemble(rows)[0]

    def __iter__(self) -> Iterator[Statement]:
        return iter(self.statements())

    def __len__(self) -> int:
        pattern = f"GRAPH <{_META}> {{ ?r <{RDF}subject> ?s }}" if self.ours else "?s ?p ?o"
        return int(self._answers(f"SELECT (COUNT(*) AS ?n) WHERE {{ {pattern} }}").values()[0] or 0)

    def __bool__(self) -> bool:
        return True

    def get(self, statement: str) -> Statement | None:
        """The statement of an id."""
        if not self.ours:
            return next((s for s in self.statements() if s.id == statement), None)
        found = self._answers(
            f"SELECT ?s ?p ?o {{ GRAPH <{_META}> {{ <{STATEMENT}{statement}> <{RDF}subject> ?s ; <{RDF}predicate> ?p ; <{RDF}object> ?o }} }}"
        )
        for s, p, o in found.rows:
            made = next((x for x in self._found(str(s), str(p), o) if x.id == statement), None)
            if made is not None:
                return made
        return None

    def evidence(self, statement: str | Statement) -> tuple[Evidence, ...]:
        """Where a statement comes from."""
        found = self.get(statement if isinstance(statement, str) else statement.id)
        return found.evidence if found is not None else ()

    def neighbourhood(self, entity: str, hops: int = 1, *, limit: int = NEAR) -> list[Statement]:
        """As :meth:`interfuse.data.graph.Graph.neighbourhood`."""
        small = Graph(self.name)
        front, known = [entity], {entity: None}
        for _ in range(hops):
            coming: dict[str, None] = {}
            for node in front:
                if len(small) >= limit:
                    break
                rows = self._found(node, None, None) + self._found(None, None, node)
                small.add(rows)
                coming.update(
                    (n, None) for r in rows for n in (r.subject, r.object) if isinstance(n, str) and n not in known
                )
            known.update(coming)
            front = sorted(coming)
        return small.neighbourhood(entity, hops, limit=limit)

    def label(self, entity: str) -> str:
        """The label, or the end of the name."""
        return self._small(entity).label(entity)

    def labels(self, entity: str) -> list[str]:
        """Labels and aliases."""
        return self._small(entity).labels(entity)

    def aliases(self, entity: str) -> list[str]:
        """Other names in words."""
        return self._small(entity).aliases(entity)

    def types(self, entity: str) -> list[str]:
        """Classes of an entity."""
        return sorted(str(s.object) for s in self._found(entity, TYPE, None) if isinstance(s.object, str))

    def _small(self, entity: str) -> Graph:
        small = Graph(self.name)
        small.add([*self._found(entity, LABEL, None), *self._found(entity, ALIAS, None)])
        return small

    def entities(self, type: str | None = None) -> list[str]:
        """Names that occur, or those of a class, sorted."""
        return self.local().entities(type)

    def called(self, entity: str) -> str:
        """The name itself: an endpoint keeps no merges."""
        return entity

    def names(self, entity: str) -> list[str]:
        """The name itself."""
        return [entity]

    def documents(self) -> dict[str, tuple[str, str]]:
        """None: an endpoint keeps no texts."""
        return {}

    def keep_documents(self, texts: Mapping[str, tuple[str, str]]) -> None:
        """Not here: ``needs.capability``."""
        raise InterfuseError("needs.capability", "an endpoint keeps no texts", where=self.name)

    def stats(self) -> dict[str, Any]:
        """As :meth:`interfuse.data.graph.Graph.stats`."""
        return self.local().stats()

    def columns(self) -> Columns:
        """The graph as integers."""
        return self.local().columns()

    def local(self) -> Graph:
        """A copy in memory, which has everything a graph has."""
        graph = Graph(self.name)
        graph.add(self.statements(status=STATUSES), note=f"from {self.name}")
        return graph

    def diff(self, other: Graph | RemoteGraph) -> Diff:
        """As :meth:`interfuse.data.graph.Graph.diff`."""
        return self.local().diff(other.local() if isinstance(other, RemoteGraph) else other)

    def store(self, *, meta: bool = True) -> Any:
        """A copy in an embedded store."""
        return self.local().store(meta=meta)

    def write(self, path: Path | str, *, force: bool = False, facts: Mapping[str, Any] | None = None) -> Path:
        """Writes a copy as a graph's folder."""
        return self.local().write(path, force=force, facts=facts)

    def digest(self) -> str:
        """As :meth:`interfuse.data.graph.Graph.digest`; reads everything."""
        return self.local().digest()

    def fingerprint(self) -> str:
        """The key of the step that makes it, or a digest of what is there now."""
        return self.key or fingerprint({"endpoint": self.endpoint, "digest": self.digest()})

    # ------------------------------------------------------------------------------------------ saying

    def _update(self, sparql: str) -> None:
        self._ask(self.update or self.endpoint, sparql, "application/sparql-update", "*/*")
        self._seen.clear()

    def add(self, statements: Iterable[Statement], *, note: str = "") -> int:
        """Adds statements, a batch per request, and returns how many; what is there already gains evidence.

        A request that fails leaves the earlier batches; adding again adds nothing twice.

        Raises:
            InterfuseError: as :meth:`interfuse.data.graph.Graph.add`, or ``endpoint.failed``.
        """
        rows = [s.checked() for s in statements]
        for start in range(0, len(rows), self.batch):
            part = Graph(self.name)
            part.add(rows[start : start + self.batch])
            new = part.statements(status=STATUSES)
            known = self._known(new)
            part.add(known)
            self._replace(known, [s for s in (part.get(x.id) for x in new) if s is not None])
        return len(rows)

    def _known(self, statements: Sequence[Statement]) -> list[Statement]:
        """Those of some statements that are there, as they are there."""
        if not self.ours or not statements:
            return []
        names = " ".join(f"<{STATEMENT}{s.id}>" for s in statements)
        rows: list[Row] = []
        for pattern in (f"VALUES ?r {{ {names} }} GRAPH <{_META}> {{ ?r ?a ?b }}",
                        f"VALUES ?x {{ {names} }} GRAPH <{_META}> {{ ?x <{PROV}wasDerivedFrom> ?r . ?r ?a ?b }}"):  # fmt: skip
            rows += [(str(r), str(a), b or "", _META) for r, a, b in self._pages(pattern, "?r ?a ?b", "?r ?a ?b")]
        return assemble(rows)[0]

    def _replace(self, old: Sequence[Statement], new: Sequence[Statement]) -> None:
        parts = []
        if old:
            parts.append(f"DELETE DATA {{ {_quads(old)} }}")
        if new:
            parts.append(f"INSERT DATA {{ {_quads(new)} }}")
        if parts:
            self._update(" ;\n".join(parts))

    def withdraw(self, *, document: str | Sequence[str], reason: str = "") -> int:
        """Takes the evidence of documents back, and statements that had no other; returns how many statements it concerned.

        Statements that rest on others as premises are not followed there, and figures (confidence, times) stay those of all who
        had said it; a copy (:meth:`local`) made before knows better.
        """
        names = [document] if isinstance(document, str) else list(document)
        values = " ".join(text_of(Literal(n)) for n in names)
        pattern = f"VALUES ?d {{ {values} }} GRAPH <{_META}> {{ ?r <{PROV}wasDerivedFrom>/<{NS}document> ?d ; <{RDF}subject> ?s }}"
        ids = [str(r).removeprefix(STATEMENT) for r, _ in self._pages(pattern, "DISTINCT ?r ?s", "?r ?s")]
        found: dict[str, Statement] = {}
        for start in range(0, len(ids), self.batch):
            stubs = [_Stub(i) for i in ids[start : start + self.batch]]
            old = self._known(stubs)  # type: ignore[arg-type]
            small = Graph(self.name)
            small.add(old)
            small.withdraw(document=names)
            self._replace(old, small.statements(status=STATUSES))
            found.update((s.id, s) for s in old)
        return len(found)

    def _refuse(self, what: str) -> NoReturn:
        raise InterfuseError("needs.capability", f"an endpoint keeps no log of operations, which {what} needs", where=self.name,
                             fix="Take a copy with local(), change it, and write it to a new endpoint.")  # fmt: skip

    def merge(self, a: str, b: str, reason: str = "", **_: Any) -> int:
        """Not here: ``needs.capability``."""
        self._refuse("merge")

    def split(self, entity: str, reason: str = "") -> int:
        """Not here: ``needs.capability``."""
        self._refuse("split")

    def merge_all(self, pairs: Iterable[tuple[str, str]], reason: str = "", **_: Any) -> int:
        """Not here: ``needs.capability``."""
        self._refuse("merge_all")

    def mark(self, statements: Iterable[str], status: str, reason: str = "") -> int:
        """Not here: ``needs.capability``."""
        self._refuse("mark")

    def infer(self, rules: Mapping[str, Any]) -> int:
        """Not here: ``needs.capability``."""
        self._refuse("infer")

    def note(self, **data: Any) -> int:
        """Not here: ``needs.capability``."""
        self._refuse("note")

    def undo(self, op: int | None = None, reason: str = "") -> int:
        """Not here: ``needs.capability``."""
        self._refuse("undo")

    def history(self) -> list[Op]:
        """Not here: ``needs.capability``."""
        self._refuse("history")

    def at(self, op: int) -> Graph:
        """Not here: ``needs.capability``."""
        self._refuse("at")

    def compacted(self) -> Graph:
        """A copy in memory: what an endpoint holds has no past."""
        return self.local()


@dataclass(frozen=True)
class _Stub:
    """A statement of which only the id is known."""

    id: str


def _quads(statements: Iterable[Statement]) -> str:
    parts: dict[str, list[str]] = {}
    for s in statements:
        if s.status != "withdrawn":
            parts.setdefault(status_graph(s.status), []).append(
                f"{text_of(s.subject)} {text_of(s.predicate)} {text_of(s.object)} ."
            )
        parts.setdefault(_META, []).extend(f"{a} {b} {c} ." for a, b, c in reifier_lines(s, "rdf11-reified"))
    return "\n".join(f"GRAPH <{g}> {{ {chr(10).join(rows)} }}" for g, rows in sorted(parts.items()))


def _term(value: Mapping[str, str] | None) -> Term | None:
    if value is None:
        return None
    if value["type"] == "uri":
        return value["value"]
    if value["type"] == "bnode":
        return f"_:{value['value']}"
    return Literal(value["value"], value.get("datatype", XSD_STRING), value.get("xml:lang", ""))
