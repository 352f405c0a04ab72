"""The build room: its contract, and one engine for every method.

A method is a function ``method(work, *, parameters) -> Iterator[Candidate | Statement]`` with the traits

- ``per``: ``"chunk"``, then it is called with a few chunks at a time (``work.chunks``; ``batch`` says how many at most) and what it
  gives for a chunk may depend on nothing but that chunk, the model, the ontology and the parameters: the engine keeps it, and
  never asks twice; or ``"whole"``, then it is called once and looks after itself (``work.ctx.scratch`` is its own folder);
- ``needs``: which of ``documents``, ``lm``, ``ontology``, ``graph``, ``table`` it cannot do without;
- ``masked``: the language model may be a masked one, a :class:`~interfuse.data.models.Model` then instead of an ``LM``;
- ``parts``: modules besides its own whose change makes kept results stale.

The engine loads and chunks documents, calls the method, turns candidates (labels as they are written) into statements (IRIs, with
evidence down to characters), checks them, and saves a graph with the report of what came from whom. Names stay labels until the
end, so that entities can be linked over all documents in an order that does not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import read_params
from interfuse.core.rooms import Call, Cost, Input, Room, Source, key_of
from interfuse.core.safe import fingerprint, jsonable, write_atomic
from interfuse.data.chunks import Chunk, split
from interfuse.data.corpus import Corpus, open_corpus

if TYPE_CHECKING:
    from interfuse.data.graph import Graph
    from interfuse.data.lm import LM
    from interfuse.data.statements import Evidence, Literal, Statement

NEEDS = ("documents", "lm", "ontology", "graph", "table")


@dataclass(frozen=True)
class BuildSettings:
    """Settings of every method of the room."""

    chunk_tokens: Annotated[
        int, Field(ge=16, le=100_000, description="words and marks of a chunk at most; long chunks lose facts")
    ] = 400
    min_confidence: Annotated[
        float, Field(ge=0, le=1, description="statements whose confidence is lower are dropped and counted")
    ] = 0.0
    homonyms: Annotated[bool, Field(description="entities of one name but of different types stay apart")] = False


@dataclass(frozen=True)
class Candidate:
    """What a method found, in words.

    Attributes:
        subject, object: labels as written (the object may be a literal); predicate: the relation's name.
        subject_type, object_type: names of classes, empty when unknown.
        qualifiers: (relation, label or literal) pairs.
        confidence: in [0, 1]; ``kind`` says of what kind. status: ``stated``, ``inferred`` or ``model-claimed``.
        chunk: id of the chunk; start, end: the characters of that chunk that say so; subject_at, object_at: (start, end) of the
            two mentions in the chunk, where known.
        evidence: given instead of a chunk, by methods that read no documents.
        aliases: other names of the subject that the text gives.
    """

    subject: str
    predicate: str
    object: str | Literal
    subject_type: str = ""
    object_type: str = ""
    qualifiers: tuple[tuple[str, str | Literal], ...] = ()
    confidence: float = 1.0
    kind: str = "extractor"
    status: str = "stated"
    chunk: str = ""
    start: int = 0
    end: int = 0
    subject_at: tuple[int, int] | None = None
    object_at: tuple[int, int] | None = None
    prompt: str = ""
    evidence: tuple[Evidence, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass
class Work:
    """What a method may use.

    Attributes:
        chunks: the chunks to read now (``per="chunk"``). corpus: all documents (``per="whole"``).
        lm, ontology, graph, table: the inputs, None when not given. ``graph`` is an earlier graph, only read.
        ctx: seed, budget, cache, scratch, log.
        tally: counts for the report; see :meth:`count`.
        folder: the artifact's folder, where a method may keep files beside the graph; see :meth:`save`.
    """

    ctx: Ctx
    chunks: Sequence[Chunk] = ()
    corpus: Corpus | None = None
    lm: LM | None = None
    ontology: Any = None
    graph: Graph | None = None
    table: Any = None
    tally: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def save(self, name: str, content: str | bytes) -> None:
        """Keeps a file of the method's own beside the graph, such as ``candidates.jsonl``."""
        if self.folder is not None:
            write_atomic(self.folder / name, content.encode() if isinstance(content, str) else content)

    def count(self, what: str, amount: float = 1) -> None:
        """Adds to a count that the report shows, such as ``dropped: no quote``."""
        self.tally[what] = self.tally.get(what, 0) + amount

    def report(self, name: str, value: Any) -> None:
        """Puts a JSON value into the graph's report, in the section ``method``."""
        self.facts[name] = jsonable(value)


def settings_of(call: Call) -> BuildSettings:
    """The room's settings of a call."""
    return BuildSettings(**{f.name: call.params[f.name] for f in dataclasses.fields(BuildSettings)})


def own_params(call: Call) -> dict[str, Any]:
    """The parameters that are the method's own."""
    return {name: call.params[name] for name in read_params(call.method.target)}


def check(call: Call) -> None:
    """What the method cannot do without must be given.

    Raises:
        InterfuseError: ``param.missing``.
    """
    for name in call.method.traits.get("needs", ()):
        if call.inputs.get(name) is None:
            doc = next(i.doc for i in ROOM.inputs if i.name == name)
            raise InterfuseError("param.missing", f"{call.method.id} needs the input {name!r}", fix=doc)
    if call.inputs.get("lm") is not None and not call.method.traits.get("masked"):
        from interfuse.data.lm import LM

        if not isinstance(call.inputs["lm"], LM):
            raise InterfuseError("input.type", f"{call.method.id} asks a model for texts, and a masked model makes none",
                                 where=call.inputs["lm"].name, fix="Name a causal or sequence-to-sequence model.")  # fmt: skip


def estimate(call: Call) -> Cost:
    """Bytes of the documents, and what the method's trait ``cost`` says of its calls."""
    corpus = call.inputs["documents"]
    size = sum(f.size for f in corpus.files) if corpus is not None else 0
    own = call.method.traits.get("cost")
    return Cost(size, size, 0, round(size / 2e4, 1)) + (own(call, own_params(call)) if own else Cost())


def run(call: Call, folder: Path) -> Mapping[str, Any]:
    """Builds the graph into ``folder``."""
    from interfuse.data.graph import Graph

    work = Work(call.ctx, corpus=call.inputs["documents"], lm=call.inputs["lm"], ontology=call.inputs["ontology"],
                graph=call.inputs["graph"], table=call.inputs["table"], folder=folder)  # fmt: skip
    chunks: dict[str, Chunk] = {}
    if call.method.traits.get("per") == "chunk":
        found: Iterable[Candidate | Statement] = _by_chunk(call, work, chunks)
    else:
        found = call.method.target(work, **own_params(call))
    settings = settings_of(call)
    graph = Graph.open(None)
    made = 0
    for item in found:
        if item.confidence < settings.min_confidence:
            work.count("dropped: low confidence")
            continue
        made += 1
        graph.add(list(statements_of(item, chunks, call)) if isinstance(item, Candidate) else [item])
    graph.save(folder)
    corpus = call.inputs["documents"]
    return {
        "candidates": made,
        "counts": dict(sorted(work.tally.items())),
        "skipped": [vars(s) for s in corpus.skipped] if corpus is not None else [],
        "method": work.facts,
    }


def _by_chunk(call: Call, work: Work, chunks: dict[str, Chunk]) -> Iterator[Candidate | Statement]:
    size = int(call.method.traits.get("batch", 1))
    tokens = settings_of(call).chunk_tokens
    assert work.corpus is not None
    batch: list[Chunk] = []

    def flush() -> Iterator[Candidate | Statement]:
        if batch:
            yield from call.method.target(dataclasses.replace(work, chunks=tuple(batch)), **own_params(call))
            batch.clear()

    for document in work.corpus.documents():
        work.count("documents")
        for chunk in split(document, tokens):
            chunks[chunk.id] = chunk
            batch.append(chunk)
            work.count("chunks")
            if len(batch) == size:
                yield from flush()
    yield from flush()


def statements_of(found: Candidate, chunks: Mapping[str, Chunk], call: Call) -> Iterator[Statement]:
    """The statements of a candidate: itself, and the labels and types of its two ends, all with its evidence."""
    from interfuse.data.statements import ALIAS, LABEL, NS, TYPE, Evidence, Literal, Statement, entity_id, relation_id

    proof = found.evidence
    if found.chunk:
        chunk = chunks[found.chunk]
        start, end = chunk.start + found.start, chunk.start + found.end
        lm = call.inputs["lm"]
        proof = (Evidence(chunk.document.id, start, end, chunk.page or None, "",
                          fingerprint(chunk.document.text[start:end]), f"{call.method.id}@{call.method.version()}",
                          str(lm.name) if lm is not None else "", found.prompt, key_of(call)[:16], found.confidence),)  # fmt: skip
    homonyms = settings_of(call).homonyms

    def node(label: str, kind: str) -> str:
        made: str = entity_id(label, kind if homonyms else "")
        return made

    def about(label: str, kind: str) -> Iterator[Statement]:
        entity = node(label, kind)
        yield Statement(entity, LABEL, Literal(label), status=found.status, evidence=proof)
        if kind:
            yield Statement(entity, TYPE, relation_id(kind, base=NS + "class:"), status=found.status, evidence=proof)

    target = found.object if isinstance(found.object, Literal) else node(found.object, found.object_type)
    yield Statement(
        node(found.subject, found.subject_type), relation_id(found.predicate), target,
        tuple((relation_id(p), v if isinstance(v, Literal) else node(v, "")) for p, v in found.qualifiers),
        found.confidence, found.kind, found.status, evidence=proof,
    )  # fmt: skip
    yield from about(found.subject, found.subject_type)
    if not isinstance(found.object, Literal):
        yield from about(found.object, found.object_type)
    for alias in found.aliases:
        yield Statement(
            node(found.subject, found.subject_type), ALIAS, Literal(alias), status=found.status, evidence=proof
        )


def promise(call: Call, path: Path) -> Any:
    """The graph at a path, known by its key before it is built."""
    from interfuse.data.graph import Graph

    return Graph(path.name, path)


def _open_lm(source: Source, ctx: Ctx) -> Any:
    from interfuse.data.lm import open_lm
    from interfuse.data.models import open_model

    try:
        return open_lm(source, ctx)
    except InterfuseError as error:
        if error.code != "input.type":
            raise
        model = open_model(source, ctx)
        if model.task != "masked-lm":
            raise
        return model  # for the methods that take one: see check


def _open_graph(source: Source, ctx: Ctx) -> Any:
    from interfuse.data.graph import open_graph

    return open_graph(source, ctx)


def _open_ontology(source: Source, ctx: Ctx) -> Any:
    from interfuse.data.ontology import open_ontology

    return open_ontology(source, ctx)


def _open_table(source: Source, ctx: Ctx) -> Any:
    from interfuse.data.tables import open_table

    return open_table(source, ctx, content=False)


ROOM = Room(
    name="build",
    kind="graph",
    inputs=(
        Input("documents", open_corpus, required=False, positional=True, doc="a folder or file of documents"),
        Input("lm", _open_lm, required=False, doc="a language model: a folder, an endpoint, or replies:FILE.jsonl"),
        Input("ontology", _open_ontology, required=False, doc="classes and relations that are wanted: Turtle or JSON"),
        Input("graph", _open_graph, required=False, doc="an earlier graph, to be extended or fused with"),
        Input("table", _open_table, required=False, doc="rows with declared columns"),
    ),
    settings=BuildSettings,
    run=run,
    promise=promise,
    check=check,
    estimate=estimate,
)
