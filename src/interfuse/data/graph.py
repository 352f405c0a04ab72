"""Graphs: statements with qualifiers, confidence, status and evidence, every change of which can be undone.

    graph = Graph()
    graph.add([Statement(entity_id("Oslo"), relation_id("capital of"), entity_id("Norway"), evidence=(Evidence("sha", 10, 14),))])
    graph.merge(entity_id("Oslo"), entity_id("Christiania"), reason="renamed in 1925")
    graph.query("SELECT ?city { ?city <urn:interfuse:relation:capital-of> ?country }").values()
    graph.undo()

Labels, aliases and types of entities are statements too (``rdfs:label``, ``skos:altLabel``, ``rdf:type``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interfuse.core.artifact import MANIFEST, open_artifact, save_artifact
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.rooms import Source
from interfuse.core.safe import fingerprint
from interfuse.data import graph_files as files
from interfuse.data.graph_columns import Columns, build_columns, named, open_columns, texts, word_of
from interfuse.data.graph_log import Op, State
from interfuse.data.statements import (
    ALIAS,
    LABEL,
    RELATION,
    STATUSES,
    TYPE,
    Evidence,
    Literal,
    Statement,
    Term,
    evidence_json,
    term_of,
    text_of,
    to_json,
)
from interfuse.data.statements import entity_id as entity_id
from interfuse.data.statements import relation_id as relation_id

if TYPE_CHECKING:
    from interfuse.data.graph_journal import Journal
    from interfuse.data.graph_store import Answers
    from interfuse.data.remote_graph import RemoteGraph

#: the largest neighbourhood that is collected unless told otherwise, in statements
NEAR = 10_000


@dataclass(frozen=True)
class Diff:
    """What a graph has more (``added``), less (``removed``) and otherwise (``changed``: before, after) than another."""

    added: tuple[Statement, ...] = ()
    removed: tuple[Statement, ...] = ()
    changed: tuple[tuple[Statement, Statement], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass
class _Held:
    """What changes in a graph."""

    state: State | None = None
    columns: Columns | None = None  # of the present version, while ``fresh`` says so
    columns_version: int = -1
    stores: dict[bool, tuple[int, Any]] = field(default_factory=dict)  # with reifiers or without: version, store
    digest: str = ""
    digest_version: int = -1
    whole: bytes = b""  # the hashes of the statements, 32 bytes each, in their order, when the digest was taken
    said: dict[int, bytes] = field(default_factory=dict)  # likewise of what each operation added
    journal: Journal | None = None
    documents: dict[str, tuple[str, str]] = field(default_factory=dict)  # texts that came with it


@dataclass(frozen=True)
class Graph:
    """A graph in memory, with or without a folder it was read from.

    Attributes:
        name: how reports call it. path: its folder; nothing of it is read before it is needed.
        made_by, parents, key: the step that makes it, what that step takes, and the step's key (see ``core.run``).
    """

    name: str = "graph"
    path: Path | None = None
    made_by: str = ""
    parents: tuple[Any, ...] = field(default=(), repr=False)
    key: str = ""
    _held: _Held = field(default_factory=_Held, repr=False, compare=False)

    # ------------------------------------------------------------------------------------------ opening, saving

    @staticmethod
    def open(path: Path | str | None = None, *, name: str = "", write: bool = False) -> Graph:
        """A new graph in memory, or the one in a folder.

        Args:
            write: operations go to disk at once and ``commit`` renews the folder (which may not exist yet); without it changes
                stay in memory. One writer at a time.

        Raises:
            InterfuseError: ``input.missing`` or ``input.format``; with ``write`` also ``output.busy``.
        """
        if path is None:
            return Graph(name or "graph")
        path = Path(path)
        graph = Graph(name or path.name, path)
        if write:
            from interfuse.data.graph_journal import Journal

            journal = Journal(path)
            try:
                if not path.exists():
                    graph._held.state = _new_state()
                for op in journal.unfinished(graph._log_digest()):
                    graph.state.apply(op)
            except BaseException:
                journal.close()
                raise
            graph._held.journal = journal
        else:
            files.read_meta(path)
        return graph

    @staticmethod
    def from_columns(columns: Columns, name: str = "graph") -> Graph:
        """A graph of the statements of an integer view; names that are no IRIs get one. Objects are made when they are needed."""
        graph = Graph(name)
        graph._held.columns, graph._held.columns_version = named(columns), 0
        return graph

    @staticmethod
    def of(ops: Iterable[Op], name: str = "graph") -> Graph:
        """A graph rebuilt from operations."""
        graph = Graph(name)
        state = graph._held.state = _new_state()
        for op in ops:
            state.apply(op)
        return graph

    @property
    def state(self) -> State:
        """What holds now; reads the log of the folder when it is first needed."""
        held = self._held
        if held.state is None:
            state = _new_state()
            if self.path is not None:
                files.read_meta(self.path)
                for op in files.read_log(self.path / "log"):
                    state.apply(op)
                if held.columns_version == 0:
                    held.columns_version = state.version
            elif held.columns is not None:
                state.apply(Op(1, "add", {"note": "from columns"}, tuple(_statements_of(held.columns))))
                held.columns_version = state.version
            held.state = state
        return held.state

    def save(self, folder: Path | str) -> dict[str, Any]:
        """Fills an existing folder with the graph's files and returns its figures. For rooms; :meth:`write` is atomic."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        columns = self.columns()
        if self._held.state is None and self.path is None and not len(columns.qualifier_value):
            return self._save_columns(folder, columns)
        state = self.state
        order = self._sorted()
        facts = {**self.stats(), "digest": self.digest(), "log": self._log_digest()}
        files.write_statements(folder / "statements.parquet", folder / "evidence.parquet", ((0, s) for s in order))
        files.write_nodes(
            folder / "nodes.parquet", ((e, self.label(e), self.types(e), n) for e, n in self._node_counts(order))
        )
        files.write_quads(folder / "graph.nq", order)
        files.write_log(folder / "log", state.ops)
        columns.save(folder / "columns")
        if self._held.documents:
            files.write_documents(folder, ((i, n, t) for i, (n, t) in sorted(self._held.documents.items())))
        files.write_meta(folder, facts)
        return facts

    def _save_columns(self, folder: Path, columns: Columns) -> dict[str, Any]:
        """As :meth:`save`, for a graph that has only columns yet: column by column."""
        import pyarrow as pa

        whole, log = hashlib.sha256(), hashlib.sha256()
        ids: list[str] = []
        rows: list[bytes] = []
        for statement in _statements_of(columns):
            ids.append(statement.id)
            whole.update(hash_of({**to_json(statement), "q": []}))
            rows.append(hash_of(to_json(statement)))
        op = Op(1, "add", {"note": "from columns"})
        log.update(line_of_op(op, b"".join(rows)))
        nodes, relations = texts(columns)
        subject, predicate = (
            columns.nodes.take(pa.array(columns.subject)),
            columns.relations.take(pa.array(columns.predicate)),
        )
        table = {
            "id": pa.array(ids), "subject": subject, "predicate": predicate, "object": nodes.take(pa.array(columns.object)),
            "confidence": pa.array(columns.confidence.astype(float)), "status": pa.array(STATUSES).take(pa.array(columns.status)),
        }  # fmt: skip
        files.write_columns(folder, table)
        with (folder / "graph.nq").open("wb") as out:
            for block in files.quads(columns, nodes, relations):
                out.write(block)
        degree = [int(n) for n in np.diff(columns.indptr) + np.diff(columns.object_indptr)]
        names = columns.nodes.to_pylist()
        files.write_nodes(
            folder / "nodes.parquet",
            ((n, word_of(n), [], d) for n, d, skip in zip(names, degree, columns.literal, strict=True) if not skip),
        )
        columns.save(folder / "columns")
        counts = np.bincount(columns.status, minlength=len(STATUSES)).tolist()
        facts = {
            "statements": len(columns), **{f"statements {s}": n for s, n in zip(STATUSES, counts, strict=True) if n}, "with evidence": 0,
            "entities": int(len(names) - np.count_nonzero(columns.literal)), "relations": len(columns.relations), "documents": 0,
            "merged names": 0, "operations": 1, "digest": whole.hexdigest(), "log": log.hexdigest(),
        }  # fmt: skip
        files.write_meta(folder, facts)
        return facts

    def write(self, path: Path | str, *, force: bool = False, facts: Mapping[str, Any] | None = None) -> Path:
        """Writes the graph's folder in one step, with a manifest.

        Raises:
            InterfuseError: ``output.exists``, ``output.busy``, ``output.space`` or ``output.write``.
        """
        manifest = {"kind": "graph", "method": self.made_by or "graph", "params": {}, "inputs": [], "key": self.key}
        save_artifact(path, lambda folder: {**self.save(folder), **dict(facts or {})}, manifest, force=force)
        return Path(path)

    def commit(self) -> None:
        """Renews the folder of a graph that is open for writing; other files in it (documents, reports) and its lineage stay.

        The manifest then counts, as ``operations after``, what was said since the step that made it.

        Raises:
            InterfuseError: ``param.value`` when it is not open for writing, or as :meth:`write`.
        """
        journal = self._held.journal
        if journal is None or self.path is None:
            raise InterfuseError("param.value", "the graph is not open for writing", fix="Graph.open(path, write=True)")
        old = self.path if (self.path / MANIFEST).is_file() else None
        manifest: dict[str, Any] = {"kind": "graph", "method": self.made_by or "graph"}
        if old is not None:
            manifest = dict(open_artifact(old).manifest)
        facts = dict(manifest.pop("facts", {}))
        if old is not None:
            own = len(self.state.ops) - int(files.read_meta(old)["operations"])
            manifest["operations after"] = int(manifest.get("operations after", 0)) + own
        for name in ("files", "digest", "format"):
            manifest.pop(name, None)
        manifest["key"] = fingerprint(
            {"was": manifest.get("key", ""), "log": self._log_digest()}
        )  # it is not what the step made any more

        def fill(folder: Path) -> dict[str, Any]:
            if old is not None:
                files.copy_others(old, folder)
            return {**facts, **self.save(folder)}

        save_artifact(self.path, fill, manifest, force=True)
        journal.drop(self._log_digest())

    def close(self) -> None:
        """Gives up writing. What was not committed stays in the journal for the next writer."""
        if self._held.journal is not None:
            clean = (
                self.path is not None
                and (self.path / files.META).is_file()
                and files.read_meta(self.path).get("log") == self._log_digest()
            )
            self._held.journal.close(keep=not clean)
            self._held.journal = None

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------ saying

    def _do(self, kind: str, data: Mapping[str, Any], statements: Sequence[Statement] = ()) -> int:
        op = Op(
            len(self.state.ops) + 1, kind, {k: v for k, v in data.items() if v not in (None, "", [])}, tuple(statements)
        )
        self.state.apply(op)
        if self._held.journal is not None:
            self._held.journal.append(op)
        return op.number

    def add(self, statements: Iterable[Statement], *, note: str = "") -> int:
        """Adds statements and returns the operation's number. What is there already gains evidence.

        Raises:
            InterfuseError: ``input.format``, ``input.nan`` or ``param.value``; nothing is added then.
        """
        return self._do("add", {"note": note}, [s.checked() for s in statements])

    def withdraw(self, *, document: str | Sequence[str] = (), run: str | Sequence[str] = (), method: str | Sequence[str] = (),
                 model: str | Sequence[str] = (), statement: str | Sequence[str] = (), reason: str = "") -> int:  # fmt: skip
        """Takes evidence back: of documents, runs, methods or models, or whole statements by id; returns the operation's number.

        Statements live while one evidence lives; those that rest on premises die with them. What is added later lives again.

        Raises:
            InterfuseError: ``param.missing`` unless exactly one kind is given.
        """
        given = {"document": document, "run": run, "method": method, "model": model, "statement": statement}
        given = {k: [v] if isinstance(v, str) else list(v) for k, v in given.items() if v}
        if len(given) != 1:
            raise InterfuseError("param.missing", "withdraw takes one of document, run, method, model, statement")
        ((by, names),) = given.items()
        if by == "statement":
            names = [raw for name in names for raw in self.state.given(name)]
        return self._do("withdraw", {"by": by, "names": names, "reason": reason})

    def merge(self, a: str, b: str, reason: str = "", *, evidence: Sequence[Evidence] = ()) -> int:
        """Says that two names stand for the same thing; returns the operation's number.

        Statements are shown under the smaller name of those that occur. With evidence, the merge lives as long as it does.
        """
        return self.merge_all([(a, b)], reason, evidence=evidence)

    def merge_all(
        self, pairs: Iterable[tuple[str, str]], reason: str = "", *, group: str = "", evidence: Sequence[Evidence] = ()
    ) -> int:
        """Many merges as one operation. A later one of the same ``group`` takes the place of this one."""
        return self._do("merge", {"pairs": [[a, b] for a, b in pairs], "reason": reason, "group": group,
                                  "evidence": [evidence_json(e) for e in evidence]})  # fmt: skip

    def split(self, entity: str, reason: str = "") -> int:
        """Takes one name out of those it was merged with; the others stay together."""
        return self._do("split", {**self.state.cut(entity), "reason": reason})

    def mark(self, statements: Iterable[str], status: str, reason: str = "") -> int:
        """Gives statements (ids) another status, from now on and whatever sources say.

        Raises:
            InterfuseError: ``param.value``.
        """
        return self._do(
            "mark",
            {"ids": [raw for name in statements for raw in self.state.given(name)], "status": status, "reason": reason},
        )

    def infer(self, rules: Mapping[str, Any]) -> int:
        """Statements that follow by rules (see :mod:`interfuse.data.inference`), kept up to date; replaces earlier rules."""
        return self._do("infer", {**rules, "group": "infer"})

    def note(self, **data: Any) -> int:
        """Keeps something of one's own in the log (plain JSON)."""
        return self._do("note", {"data": data})

    def undo(self, op: int | None = None, reason: str = "") -> int:
        """Takes an operation out of force (the last one that is, when None); undoing an undo brings it back.

        Raises:
            InterfuseError: ``param.value`` when there is no such operation.
        """
        if op is None:
            open_ops = [
                o.number for o in self.state.ops if o.kind not in ("undo", "note") and self.state.in_force(o.number)
            ]
            if not open_ops:
                raise InterfuseError("param.value", "there is nothing to undo")
            op = open_ops[-1]
        return self._do("undo", {"cancels": [op], "reason": reason})

    def history(self) -> list[Op]:
        """All operations, the first first."""
        return list(self.state.ops)

    def at(self, op: int) -> Graph:
        """The graph as it was after an operation."""
        return Graph.of(self.state.ops[:op], f"{self.name}@{op}")

    def compacted(self) -> Graph:
        """A graph that holds what holds now and has no past."""
        graph = Graph(self.name)
        graph.add([s for s in self._sorted() if s.id not in self.state.derived()])
        for op in self.state.ops:
            if op.kind == "infer" and self.state.in_force(op.number):
                graph.infer(op.data)
        return graph

    # ------------------------------------------------------------------------------------------ looking

    def statements(self, s: str | None = None, p: str | None = None, o: Term | None = None, *, min_confidence: float = 0.0,
                   status: str | Sequence[str] | None = None, as_of: str | None = None, known_at: str | None = None) -> list[Statement]:  # fmt: skip
        """Statements with this subject, predicate and object, sorted.

        Args:
            s, p, o: None matches any; names from before a merge find what they stand for now.
            status: one or several of ``STATUSES``; None: all but withdrawn.
            as_of: a date or time (ISO 8601): only what is true then. known_at: only what had been said and not taken back then.
        """
        state = self.state
        s, p = (None if n is None else state.called(n) for n in (s, p))
        o = state.called(o) if isinstance(o, str) else o
        wanted = (
            tuple(x for x in STATUSES if x != "withdrawn")
            if status is None
            else (status,)
            if isinstance(status, str)
            else tuple(status)
        )
        found = []
        for name in state.ids(s, p, o):
            made = state.get(name)
            if made is None or made.confidence < min_confidence or made.status not in wanted:
                continue
            if as_of is not None and (
                (made.valid_from or "") > as_of or (made.valid_to is not None and made.valid_to <= as_of)
            ):
                continue
            if known_at is not None and (
                (made.recorded_at or "") > known_at or (made.retracted_at is not None and made.retracted_at <= known_at)
            ):
                continue
            found.append(made)
        return sorted(found, key=lambda x: x.order)

    def __len__(self) -> int:
        held = self._held
        if held.state is None and held.columns is not None:
            return len(held.columns)
        if held.state is None and self.path is not None:
            return int(files.read_meta(self.path)["statements"])
        return sum(1 for _ in self.state.ids())

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Statement]:
        return iter(self.statements())

    def get(self, statement: str) -> Statement | None:
        """The statement of an id; ids from before a merge find it too."""
        return self.state.get(statement)

    def evidence(self, statement: str | Statement) -> tuple[Evidence, ...]:
        """Where a statement comes from."""
        found = self.state.get(statement if isinstance(statement, str) else statement.id)
        return found.evidence if found is not None else ()

    def neighbourhood(self, entity: str, hops: int = 1, *, limit: int = NEAR) -> list[Statement]:
        """Statements within some steps of an entity in either direction, nearest first, at most ``limit``."""
        state = self.state
        seen: dict[str, Statement] = {}
        front, known = [state.called(entity)], {state.called(entity)}
        for _ in range(hops):
            coming: list[str] = []
            for node in front:
                for made in sorted(
                    (m for n in (*state.ids(s=node), *state.ids(o=node)) if (m := state.get(n)) is not None),
                    key=lambda x: x.order,
                ):
                    if made.id in seen or made.status == "withdrawn":
                        continue
                    if len(seen) >= limit:
                        return list(seen.values())
                    seen[made.id] = made
                    for other in (made.subject, made.object):
                        if isinstance(other, str) and other not in known:
                            known.add(other)
                            coming.append(other)
            front = coming
        return list(seen.values())

    def _words(self, entity: str, predicate: str) -> list[tuple[int, float, str]]:
        found = self.statements(entity, predicate)
        return sorted((-len(s.evidence), -s.confidence, s.object.value) for s in found if isinstance(s.object, Literal))

    def label(self, entity: str) -> str:
        """The best-supported label, or the end of the name."""
        words = self._words(entity, LABEL) if self.state.called(entity) in self.state._by[0] else []
        return words[0][2] if words else end_of(entity)

    def labels(self, entity: str) -> list[str]:
        """Labels and aliases, the best-supported first."""
        return list(dict.fromkeys(w for predicate in (LABEL, ALIAS) for _, _, w in self._words(entity, predicate)))

    def aliases(self, entity: str) -> list[str]:
        """Other names in words."""
        return [w for _, _, w in self._words(entity, ALIAS)]

    def types(self, entity: str) -> list[str]:
        """Classes of an entity."""
        return [s.object for s in self.statements(entity, TYPE) if isinstance(s.object, str)]

    def entities(self, type: str | None = None) -> list[str]:
        """Names that occur as subject or object (of a class), sorted; classes themselves are left out unless they are subjects."""
        if type is not None:
            return sorted({s.subject for s in self.statements(p=TYPE, o=type)})
        found: dict[str, None] = {}
        for s in self.statements():
            found[s.subject] = None
            if isinstance(s.object, str) and s.predicate != TYPE:
                found[s.object] = None
        return sorted(found)

    def called(self, entity: str) -> str:
        """The name that stands for an entity now."""
        return self.state.called(entity)

    def names(self, entity: str) -> list[str]:
        """All names that were merged into the entity's, itself included."""
        return self.state.component(self.state.called(entity))

    def diff(self, other: Graph | RemoteGraph) -> Diff:
        """What this graph has more, less and otherwise than another."""
        mine, theirs = ({s.id: s for s in g.statements(status=STATUSES)} for g in (self, other))
        return Diff(
            tuple(sorted((s for i, s in mine.items() if i not in theirs), key=lambda s: s.order)),
            tuple(sorted((s for i, s in theirs.items() if i not in mine), key=lambda s: s.order)),
            tuple(
                sorted(
                    ((theirs[i], s) for i, s in mine.items() if i in theirs and theirs[i] != s),
                    key=lambda pair: pair[1].order,
                )
            ),
        )

    def documents(self) -> dict[str, tuple[str, str]]:
        """The texts kept with the graph: document's id -> (name, text); empty when there are none."""
        if self._held.documents or self.path is None:
            return dict(self._held.documents)
        return files.read_documents(self.path)

    def keep_documents(self, texts: Mapping[str, tuple[str, str]]) -> None:
        """Keeps texts with a graph in memory, id -> (name, text); they are written with it."""
        self._held.documents.update(texts)

    def stats(self) -> dict[str, Any]:
        """Counts: statements by status, entities, relations, documents, merged names, operations."""
        statuses = dict.fromkeys(STATUSES, 0)
        relations: dict[str, int] = {}
        documents: dict[str, None] = {}
        grounded = 0
        for made in self.statements(status=STATUSES):
            statuses[made.status] += 1
            relations[made.predicate] = relations.get(made.predicate, 0) + 1
            documents.update((e.document, None) for e in made.evidence)
            grounded += bool(made.evidence)
        return {
            "statements": sum(statuses.values()), **{f"statements {k}": v for k, v in statuses.items() if v}, "with evidence": grounded,
            "entities": len(self.entities()), "relations": len(relations), "documents": len(documents),
            "merged names": len(self.state._called), "operations": len(self.state.ops),
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------ other views

    def _sorted(self) -> list[Statement]:
        return self.statements(status=STATUSES)

    def _node_counts(self, statements: Sequence[Statement]) -> list[tuple[str, int]]:
        counts: dict[str, int] = {}
        for s in statements:
            counts[s.subject] = counts.get(s.subject, 0) + 1
            if isinstance(s.object, str):
                counts[s.object] = counts.get(s.object, 0) + 1
        return sorted(counts.items())

    def columns(self) -> Columns:
        """The graph as integers (withdrawn statements left out); from a folder it is mapped into memory, not read."""
        held = self._held
        if held.columns is None and held.state is None and self.path is not None:
            files.read_meta(self.path)
            held.columns, held.columns_version = open_columns(self.path / "columns"), 0
        if held.columns is not None and (held.state is None or held.columns_version == held.state.version):
            return held.columns
        rows = self.statements()
        qualifiers = [(i, p, _node(v)) for i, s in enumerate(rows) for p, v in s.qualifiers]
        held.columns = build_columns(
            [s.subject for s in rows], [s.predicate for s in rows], [_node(s.object) for s in rows],
            confidence=[s.confidence for s in rows], status=[STATUSES.index(s.status) for s in rows],
            literal=[isinstance(s.object, Literal) for s in rows],
            qualifiers=tuple(zip(*qualifiers, strict=True)) if qualifiers else None,  # type: ignore[arg-type]
        )  # fmt: skip
        held.columns_version = self.state.version
        return held.columns

    def store(self, *, meta: bool = True) -> Any:
        """The graph in an embedded pyoxigraph store, kept until the graph changes; ``meta``: with reifiers (RDF 1.2).

        Raises:
            InterfuseError: ``needs.package``.
        """
        from interfuse.data import graph_store

        held = self._held
        bare = held.state is None and self.path is None and held.columns is not None
        unread = not meta and held.state is None and self.path is not None
        version = -1 if unread else 0 if bare else self.state.version
        kept = held.stores.get(True) or held.stores.get(meta)
        if kept is not None and kept[0] == version:
            return kept[1]
        if unread and self.path is not None:
            made = graph_store.load_file(self.path / "graph.nq")
            held.stores[False] = (-1, made)  # of the folder, until the log is read
            return made
        if bare and held.columns is not None:
            made = graph_store.load_columns(held.columns)
        else:
            made = graph_store.load(self._sorted(), profile="rdf12" if meta else "plain")
        held.stores = {k: v for k, v in held.stores.items() if v[0] == version}
        held.stores[meta or bare] = (version, made)
        return made

    def query(self, sparql: str, *, meta: bool = False) -> Answers:
        """Answers to a SPARQL query; see :func:`interfuse.data.graph_store.run`.

        Raises:
            InterfuseError: ``needs.package``, ``input.format`` or ``unsafe.address``.
        """
        from interfuse.data import graph_store

        return graph_store.run(self.store(meta=meta), sparql, meta=meta)

    def digest(self) -> str:
        """A SHA-256 of all that holds, evidence included, whatever the order and the way it came about."""
        held = self._held
        if held.state is None and self.path is not None:
            return str(files.read_meta(self.path)["digest"])
        version = self.state.version
        if held.digest_version != version:
            held.whole = b"".join(map(whole_hash, self._sorted()))
            held.digest, held.digest_version = hashlib.sha256(held.whole).hexdigest(), version
        return held.digest

    def _log_digest(self) -> str:
        """A digest of the operations."""
        if self._held.state is None and self.path is not None and (self.path / files.META).is_file():
            return str(files.read_meta(self.path)["log"])
        made = hashlib.sha256()
        for op in self.state.ops:
            self._held.said[op.number] = b"".join(hash_of(to_json(s)) for s in op.statements)
            made.update(line_of_op(op, self._held.said[op.number]))
        return made.hexdigest()

    def fingerprint(self) -> str:
        """The key of the step that makes it, or the digest of its content."""
        return self.key or self.digest()


#: keys of a graph source in a recipe
KEYS = ("data", "base", "header", "strict", "endpoint", "update", "key_env")


def open_graph(source: Source, ctx: Ctx) -> Graph | RemoteGraph:
    """Opens a graph for a room's input.

    A source is a graph, the address of a SPARQL endpoint, a folder that :meth:`Graph.write` made, a file (RDF in any format, ``.graphml``, ``.tsv``, ``.csv``,
    ``.parquet``), a folder of GraphRAG's tables or Neo4j's files, ``{data: PATH, base: IRI, header: false, strict: false}``, or
    ``{endpoint: ADDRESS, update: ADDRESS, key_env: VARIABLE}`` for a SPARQL endpoint.

    Raises:
        InterfuseError: ``input.missing``, ``input.type``, ``input.format``, ``input.empty``, ``param.unknown`` or ``needs.package``.
    """
    spec = source.spec
    from interfuse.data.remote_graph import RemoteGraph

    if isinstance(spec, Graph | RemoteGraph):
        return spec
    if isinstance(spec, str | Path):
        spec = {"endpoint" if str(spec).startswith(("http://", "https://")) else "data": str(spec)}
    if not isinstance(spec, Mapping):
        raise InterfuseError(
            "input.type", f"a graph is a path or a table of keys, not {type(spec).__name__}", where=source.name
        )
    for key in spec:
        if key not in KEYS:
            raise InterfuseError(
                "param.unknown", f"a graph source has no key {key!r}", where=source.name, fix=did_you_mean(key, KEYS)
            )
    if "endpoint" in spec:
        update, key_env = str(spec.get("update", "")), str(spec.get("key_env", ""))
        return RemoteGraph(str(spec["endpoint"]), update, source.name or "endpoint", key_env)
    if "data" not in spec:
        raise InterfuseError("param.missing", "a graph source needs 'data'", where=source.name)
    path = Path(str(spec["data"])).expanduser()
    path = path if path.is_absolute() else source.folder / path
    if not path.exists():
        raise InterfuseError("input.missing", "there is no such file or folder", where=str(path))
    name = source.name or path.stem
    if (path / files.META).is_file():
        return Graph.open(path, name=name)
    from interfuse.data.formats.graphs import read_graph

    made, problems = read_graph(
        path, base=spec.get("base"), header=bool(spec.get("header", False)), strict=bool(spec.get("strict", False))
    )
    for line in problems.shown:
        ctx.log(f"left out: {line}")
    if problems.count > len(problems.shown):
        ctx.log(f"left out: {problems.count - len(problems.shown)} more")
    return dataclasses.replace(made, name=name)


def end_of(name: str) -> str:
    """What a name that has no label is called: its end."""
    word = word_of(name)
    if name.startswith(RELATION):
        return word.replace("-", " ")
    return word if word != name else name.rstrip("/#").replace("#", "/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]


def _new_state() -> State:
    from interfuse.data.inference import infer

    return State(infer)


def _line(row: Mapping[str, Any]) -> bytes:
    """The one byte form of a row in a digest."""
    return json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def hash_of(row: Mapping[str, Any]) -> bytes:
    """SHA-256 of a statement as said (plain JSON), 32 bytes; a digest is taken of these, so that one that changed costs only its own."""
    return hashlib.sha256(_line(row)).digest()


def whole_hash(s: Statement) -> bytes:
    """The same of a statement as it holds: the order of its qualifiers does not matter."""
    return hash_of({**to_json(s), "q": sorted([p, text_of(v)] for p, v in s.qualifiers)})


def line_of_op(op: Op, hashes: bytes) -> bytes:
    """What an operation adds to the digest of a log, given the hashes of what it said."""
    return _line({**op.as_json(whole=False), "statements": hashlib.sha256(hashes).hexdigest()})


def _node(term: Term) -> str:
    return text_of(term) if isinstance(term, Literal) else term


def _statements_of(columns: Columns) -> Iterator[Statement]:
    """Statements of an integer view, as objects, in its order."""
    node_texts, relation_texts = texts(columns)
    nodes = [term_of(t) for t in node_texts.to_pylist()]
    relations = [str(term_of(t)) for t in relation_texts.to_pylist()]
    pointers = columns.qualifier_indptr
    for i, (s, p, o) in enumerate(columns.triples().tolist()):
        qualifiers = tuple((relations[columns.qualifier_relation[q]], nodes[columns.qualifier_value[q]])
                           for q in range(int(pointers[i]), int(pointers[i + 1])))  # fmt: skip
        yield Statement(str(nodes[s]), relations[p], nodes[o], qualifiers, float(columns.confidence[i]),
                        status=STATUSES[int(columns.status[i])]).checked()  # fmt: skip
