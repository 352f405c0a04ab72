"""The graph explorer: search, neighbourhoods, statements with their evidence in the source text, contract failures.

One page, served on this machine alone or written as one file. The page's script builds everything from text nodes, so that no
label can become markup; its policy forbids it to load anything from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data.graph import Graph
from interfuse.data.statements import ALIAS, LABEL, STATUSES, TYPE, Evidence, Literal, Statement
from interfuse.kit.shapes import Shapes, Verdict, validate

#: what the page shows at once, at most
SHOWN, HITS = 400, 60
#: characters of a document around a quotation
AROUND = 240
#: statements that one file holds, at most
WHOLE = 20_000


class Explorer:
    """What the page asks of a graph, as plain JSON.

    Args:
        documents: id -> (name, text); evidence in others is shown without its text.
        shapes: contracts whose failures are shown.
    """

    def __init__(
        self, graph: Graph, *, documents: Mapping[str, tuple[str, str]] | None = None, shapes: Shapes | None = None
    ) -> None:
        self.graph = graph
        self.documents = dict(documents or {})
        self._statements = [s for s in graph.statements() if isinstance(s, Statement)]
        self._labels: dict[str, str] = {}
        self._types: dict[str, list[str]] = {}
        words: dict[str, list[tuple[int, str]]] = {}
        self._sources: dict[str, int] = {}
        for s in self._statements:
            if s.predicate in (LABEL, ALIAS) and isinstance(s.object, Literal):
                words.setdefault(s.subject, []).append((0 if s.predicate == LABEL else 1, s.object.value))
            if s.predicate == TYPE and isinstance(s.object, str):
                self._types.setdefault(s.subject, []).append(s.object)
            for document in dict.fromkeys(e.document for e in s.evidence):
                self._sources[document] = self._sources.get(document, 0) + 1
        self._words = words
        self._order = sorted(self._sources, key=lambda d: (-self._sources[d], d))
        self._index = {d: i for i, d in enumerate(self._order)}
        self.verdict: Verdict | None = validate(graph, shapes) if shapes is not None else None

    def label(self, name: str) -> str:
        """The words for a name."""
        if name not in self._labels:
            self._labels[name] = self.graph.label(name)
        return self._labels[name]

    def node(self, name: str) -> dict[str, Any]:
        """An entity as the page draws it."""
        return {"id": name, "label": self.label(name), "types": [self.label(t) for t in self._types.get(name, ())]}

    def edge(self, s: Statement) -> dict[str, Any]:
        """A statement as the page draws it."""
        value = s.object.value if isinstance(s.object, Literal) else None
        return {
            "id": s.id, "s": s.subject, "p": self.label(s.predicate), "o": s.object if value is None else None, "value": value,
            "confidence": round(s.confidence, 4), "status": s.status,
            "sources": [self._index[d] for d in dict.fromkeys(e.document for e in s.evidence)],
        }  # fmt: skip

    def stats(self) -> dict[str, Any]:
        """Figures, sources with their number of statements, and how many contract failures there are."""
        return {
            "name": self.graph.name, "counts": self.graph.stats(), "statuses": list(STATUSES),
            "sources": [{"id": d, "name": self.documents[d][0] if d in self.documents else d, "statements": self._sources[d]} for d in self._order],
            "failures": None if self.verdict is None else len(self.verdict.violations),
        }  # fmt: skip

    def search(self, words: str) -> list[dict[str, Any]]:
        """Entities whose label or alias holds all words, the best first."""
        parts = words.casefold().split()
        if not parts:
            return [self.node(n) for n in _busiest(self._statements)[:HITS]]
        found: dict[str, tuple[int, int, str]] = {}
        for name, labels in self._words.items():
            for rank, label in labels:
                text = label.casefold()
                if all(p in text for p in parts):
                    score = (0 if text == words.casefold() else 1 if text.startswith(parts[0]) else 2, rank, len(label))
                    best = (score[0] * 2 + score[1], score[2], name)
                    if name not in found or best < found[name]:
                        found[name] = best
        if words in self.graph.state._uses:
            found[words] = (-1, 0, words)
        return [self.node(n) for n in sorted(found, key=lambda n: found[n])[:HITS]]

    def around(self, name: str, hops: int = 1) -> dict[str, Any]:
        """An entity, the statements near it and the entities in them."""
        rows = list(self.graph.neighbourhood(name, max(1, min(3, hops)), limit=SHOWN))
        nodes = {self.graph.called(name): None}
        for s in rows:
            nodes[s.subject] = None
            if isinstance(s.object, str):
                nodes[s.object] = None
        return {"centre": self.graph.called(name), "nodes": [self.node(n) for n in nodes], "edges": [self.edge(s) for s in rows],
                "names": self.graph.names(name)}  # fmt: skip

    def statement(self, name: str) -> dict[str, Any]:
        """A statement with everything known of it.

        Raises:
            InterfuseError: ``input.missing``.
        """
        s = self.graph.get(name)
        if s is None:
            raise InterfuseError("input.missing", "the graph has no such statement", where=name[:80])
        return {
            **self.edge(s), "subject": self.node(s.subject), "object": self.node(s.object) if isinstance(s.object, str) else None,
            "kind": s.kind, "qualifiers": [[self.label(p), v.value if isinstance(v, Literal) else self.label(v)] for p, v in s.qualifiers],
            "times": {k: getattr(s, k) for k in ("valid_from", "valid_to", "recorded_at", "retracted_at") if getattr(s, k)},
            "evidence": [self.proof(e) for e in s.evidence],
        }  # fmt: skip

    def proof(self, e: Evidence) -> dict[str, Any]:
        """One piece of evidence: its place, and the text before, within and after its span where the document is at hand."""
        row: dict[str, Any] = {
            "document": e.document, "name": e.document, "source": self._index.get(e.document), "start": e.start, "end": e.end, "page": e.page,
            "element": e.element, "place": e.place, "method": e.method, "model": e.model, "score": e.score, "premises": list(e.premises),
        }  # fmt: skip
        if e.document in self.documents:
            row["name"], text = self.documents[e.document]
            if e.end > e.start and e.end <= len(text):
                quoted = text[e.start : e.end]
                row |= {"before": text[max(0, e.start - AROUND) : e.start], "quote": quoted, "after": text[e.end : e.end + AROUND],
                        "intact": not e.quote or e.quote == hashlib.sha256(quoted.encode()).hexdigest()}  # fmt: skip
        return row

    def failures(self) -> list[dict[str, Any]]:
        """Contract failures, each with its node."""
        if self.verdict is None:
            return []
        return [
            {"node": self.node(v.focus), "path": self.label(v.path.strip("<>^")) if v.path else "", "component": v.component,
             "value": "" if v.value is None else v.value.value if isinstance(v.value, Literal) else self.label(v.value), "message": v.message}
            for v in self.verdict.violations[:WHOLE]
        ]  # fmt: skip

    def chosen(self, around: str = "", most: int | None = None) -> list[Statement]:
        """The statements that one file shall hold: all; or the nearest to a node (its IRI or a name); or those of the busiest entities first.

        Args:
            most: how many at most; :data:`WHOLE` when None.

        Raises:
            InterfuseError: ``input.missing`` for a node that is not there, ``input.limit`` for a graph too large when nothing was chosen,
                ``param.value`` for a number that one file cannot hold.
        """
        if most is not None and not 1 <= most <= WHOLE:
            raise InterfuseError("param.value", f"one file holds 1 to {WHOLE} statements, not {most}", where="--most")
        if around:
            hits = self.search(around)
            if not hits:
                raise InterfuseError(
                    "input.missing",
                    "the graph has no such node",
                    where=around[:80],
                    fix="Name an IRI, or words of a label.",
                )
            found = self.graph.neighbourhood(hits[0]["id"], 100, limit=most or WHOLE)
            return sorted(found, key=lambda s: s.order)
        if most is None:
            if len(self._statements) > WHOLE:
                raise InterfuseError("input.limit", f"the graph has {len(self._statements)} statements, one file holds {WHOLE}",
                                     fix="Serve it (interfuse build show GRAPH), or write a part: --around NODE, --most N.")  # fmt: skip
            return self._statements
        of: dict[str, list[Statement]] = {}
        for s in self._statements:
            for end in dict.fromkeys(
                (s.subject, s.object if isinstance(s.object, str) and s.predicate != TYPE else s.subject)
            ):
                of.setdefault(end, []).append(s)
        taken: dict[str, Statement] = {}
        for name in sorted(of, key=lambda n: (-sum(isinstance(s.object, str) for s in of[n]), n)):
            for s in of[name]:
                if len(taken) == most:
                    break
                taken[s.id] = s
        return sorted(taken.values(), key=lambda s: s.order)

    def whole(self, around: str = "", most: int | None = None) -> dict[str, Any]:
        """Everything the page may ask for, for a file that stands alone; or a part of it, see :meth:`chosen`.

        Raises:
            InterfuseError: as :meth:`chosen`.
        """
        statements = self.chosen(around, most)
        nodes: dict[str, None] = {}
        for s in statements:
            nodes[s.subject] = None
            if isinstance(s.object, str):
                nodes[s.object] = None
        part = len(statements) if len(statements) < len(self._statements) else None
        return {
            "stats": {**self.stats(), "part": part}, "nodes": [self.node(n) for n in sorted(nodes)],
            "statements": [self.statement(s.id) for s in statements],
            "names": {n: [w for _, w in sorted(self._words.get(n, ()))] for n in sorted(nodes) if n in self._words}, "failures": self.failures(),
            "first": _busiest(statements)[:HITS],
        }  # fmt: skip


def _busiest(statements: Iterable[Statement]) -> list[str]:
    """Nodes of statements between two, the busiest first; what things are counts for none."""
    degree: dict[str, int] = {}
    for s in statements:
        if isinstance(s.object, str) and s.predicate != TYPE:
            degree[s.subject] = degree.get(s.subject, 0) + 1
            degree[s.object] = degree.get(s.object, 0) + 1
    return sorted(degree, key=lambda n: (-degree[n], n))


def open_explorer(
    path: Path | str, *, documents: Path | None = None, shapes: Sequence[Path] = (), ontology: Path | None = None
) -> Explorer:
    """An explorer of a graph's folder or file, or of a copy of what an endpoint holds.

    Args:
        documents: a folder of the documents, when the graph's folder does not keep their texts (``documents.parquet``).
        shapes: SHACL files. ontology: a file whose implied shapes are checked too; the folder's own ``shapes.ttl`` and ``ontology.ttl`` always are.

    Raises:
        InterfuseError: as the readers of these.
    """
    from interfuse.core.ctx import Ctx
    from interfuse.core.rooms import Source
    from interfuse.data.graph import open_graph
    from interfuse.data.ontology import read_ontology
    from interfuse.kit.shapes import read_shapes, shapes_beside, shapes_of

    opened = open_graph(Source(str(path)), Ctx())
    graph = opened if isinstance(opened, Graph) else opened.local()
    texts: dict[str, tuple[str, str]] = {}
    if documents is not None:
        from interfuse.data.corpus import open_corpus

        corpus = open_corpus(Source(str(documents)), Ctx())
        texts = {d.id: (d.name, d.text) for d in corpus.documents()}
    else:
        texts = graph.documents()
    parts = [*shapes_beside(Path(path)), *(read_shapes(p) for p in shapes)]
    parts += [shapes_of(read_ontology(ontology))] if ontology is not None else []
    joined = None
    for part in parts:
        joined = part if joined is None else joined + part
    return Explorer(graph, documents=texts, shapes=joined)


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def page(data: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """The page and its policy. With ``data`` it stands alone; without, it asks the server it came from."""
    here = Path(__file__).parent
    script, style = ((here / f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    held = (
        ""
        if data is None
        else json.dumps(data, ensure_ascii=True, sort_keys=True).replace("<", "\\u003c").replace("&", "\\u0026")
    )
    policy = (f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src {chr(39)}self{chr(39)}; img-src 'none'; "
              "base-uri 'none'; form-action 'none'")  # fmt: skip
    body = (here / "explorer.html").read_text(encoding="utf-8")
    filled = body.replace(
        "%POLICY%", policy if data is None else policy.replace("connect-src 'self'", "connect-src 'none'")
    )
    filled = filled.replace("%STYLE%", style).replace("%SCRIPT%", script)
    return filled.replace("%DATA%", held), policy + "; frame-ancestors 'none'"


def export(explorer: Explorer, path: Path, *, around: str = "", most: int | None = None) -> int:
    """Writes the page with its data as one file, or with a part of it (see :meth:`Explorer.chosen`), and gives the number of statements.

    Raises:
        InterfuseError: as :meth:`Explorer.chosen`, ``output.space`` or ``output.write``.
    """
    from interfuse.core.safe import write_atomic

    data = explorer.whole(around, most)
    write_atomic(path, page(data)[0].encode())
    return len(data["statements"])
