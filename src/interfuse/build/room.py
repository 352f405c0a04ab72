"""The build room: its contract, and one engine for every method.

A method is a function ``method(work, *, parameters) -> Iterator[Candidate | Statement]`` with the traits

- ``per``: ``"chunk"``, then it is called with a few chunks at a time (``work.chunks``; ``batch`` says how many at most) and what it
  gives for a chunk may depend on nothing but that chunk, the model, the ontology and the parameters: the engine keeps it, and
  never asks twice; or ``"whole"``, then it is called once and looks after itself (``work.ctx.scratch`` is its own folder);
- ``needs``: which of ``documents``, ``lm``, ``ontology``, ``graph``, ``table`` it cannot do without;
- ``masked``: the language model may be a masked one, a :class:`~interfuse.data.models.Model` then instead of an ``LM``;
- ``random``: what it finds in a chunk depends on the seed;
- ``prepare``: a function ``(work, *, parameters)`` that is called once before the first chunk is read; see ``Work.ready``;
- ``document``: a function ``(work, document, chunks, *, parameters)`` that gives further statements of each document, such as its layout;
- ``finish``: a function ``(graph, work, *, parameters)`` that gives statements which follow from the whole graph, at the end, and may
  merge, mark and withdraw, each an operation that can be undone;
- ``index``: ``element`` or ``chunk``: nodes of the text that point to the entities found in them;
- ``link``: whether names are linked over documents (usually when ``per`` is ``"chunk"``); ``extends``: whether an earlier graph
  that is given becomes part of the new one (likewise);
- ``parts``: modules besides its own whose change makes kept results stale.

The engine loads and chunks documents, calls the method, turns candidates (labels as they are written) into statements (IRIs, with
evidence down to characters), checks them, and saves a graph with the report of what came from whom. Names stay labels until the
end, so that entities can be linked over all documents in an order that does not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from interfuse.core.bulk import bulk
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import read_params
from interfuse.core.rooms import Call, Cost, Input, Room, Source, key_of
from interfuse.core.safe import jsonable, write_atomic
from interfuse.data.chunks import Chunk, split
from interfuse.data.corpus import Corpus, Document, open_corpus

if TYPE_CHECKING:
    from interfuse.build.assembling import Assembler
    from interfuse.build.keeping import Kept
    from interfuse.build.renewing import Source as Source_
    from interfuse.data.graph import Graph
    from interfuse.data.lm import LM
    from interfuse.data.statements import Evidence, Statement
    from interfuse.data.statements import Literal as Value
    from interfuse.kit.linking import Linked

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
    link: Annotated[
        bool, Field(description="names of one thing are joined over all documents (methods that read documents)")
    ] = True
    contracts: Annotated[
        Literal["off", "report", "enforce"],
        Field(description="with an ontology: violations are counted, or what causes them is kept out"),
    ] = "report"
    engine: Annotated[
        Literal["local", "ray"],
        Field(
            description="who reads: this process, or workers of ray, on this machine or a cluster; the graph is the same"
        ),
    ] = "local"
    workers: Annotated[int | None, Field(ge=1, le=10_000, description="workers of ray; none: one per processor")] = None
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
    object: str | Value
    subject_type: str = ""
    object_type: str = ""
    qualifiers: tuple[tuple[str, str | Value], ...] = ()
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
        ready: what the method's trait ``prepare(work, **parameters)`` returned; it is called once, and only when a chunk is read. A
            method that looks at all documents may leave here what its ``finish`` needs.
        names: gives names their IRIs as the engine does (``node``, ``relation``, ``kind``), for ``finish``.
        by_chunk: counts of each chunk (by its id), where they shall be kept with it. at: the document that is worked on;
            by_document: its counts. asked: how many chunks the method was called for.
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
    ready: Any = None
    names: Assembler | None = None
    by_chunk: dict[str, dict[str, float]] = field(default_factory=dict)
    texts: list[tuple[str, str, str]] = field(default_factory=list)
    at: str = ""
    by_document: dict[str, dict[str, float]] = field(default_factory=dict)
    asked: int = 0

    def documents(self) -> Iterator[Document]:
        """The documents of the corpus, whose texts are then kept beside the graph (``per="whole"``)."""
        for document in self.corpus.documents() if self.corpus is not None else ():
            self.texts.append((document.id, document.name, document.text))
            self.count("documents")
            yield document

    def save(self, name: str, content: str | bytes) -> None:
        """Keeps a file of the method's own beside the graph, such as ``candidates.jsonl``."""
        if self.folder is not None:
            write_atomic(self.folder / name, content.encode() if isinstance(content, str) else content)

    def count(self, what: str, amount: float = 1) -> None:
        """Adds to a count that the report shows, such as ``dropped: no quote``."""
        self.tally[what] = self.tally.get(what, 0) + amount
        if self.at:
            own = self.by_document.setdefault(self.at, {})
            own[what] = own.get(what, 0) + amount

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
    if settings_of(call).engine == "ray" and call.method.traits.get("per") != "chunk":
        raise InterfuseError("param.value", f"{call.method.id} looks at all documents at once and cannot be spread over workers", fix="Leave engine out.")  # fmt: skip
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
    """Bytes of the documents, characters that they may hold, and what the method's trait ``cost`` says of its calls at most: only an
    endpoint's are counted."""
    from interfuse.data.loaders.sizes import text_sizes

    corpus = call.inputs["documents"]
    size = sum(f.size for f in corpus.files) if corpus is not None else 0
    text = sum(characters for _, characters in text_sizes(corpus).values()) if corpus is not None else 0
    cost, own = Cost(size, text, 0, round(text / 2e4, 1)), call.method.traits.get("cost")
    if own is None or call.inputs.get("lm") is None:
        return cost
    from interfuse.data.lm import is_far

    asked: Cost = own(call, own_params(call))
    return cost + (asked if is_far(call.inputs["lm"]) else dataclasses.replace(asked, calls=0))


def run(call: Call, folder: Path) -> Mapping[str, Any]:
    """Builds the graph into ``folder``."""
    from interfuse.build.origins import remember
    from interfuse.build.renewing import plain_memory, renewable

    corpus: Corpus | None = call.inputs["documents"]
    work = Work(call.ctx, corpus=corpus, lm=call.inputs["lm"], ontology=call.inputs["ontology"],
                graph=call.inputs["graph"], table=call.inputs["table"], folder=folder)  # fmt: skip
    settings = settings_of(call)
    by_chunk = call.method.traits.get("per") == "chunk"
    facts = None
    if by_chunk and renewable(call):
        with plain_memory(), bulk():
            facts = _renewed(call, work, folder)
    if facts is None:
        facts = _anew(call, work, folder, settings, by_chunk)
    if work.ontology is not None and not (folder / "ontology.ttl").exists():  # a method may have written its own
        work.ontology.write(folder / "ontology.ttl")
    remember(call)
    skipped = sorted((s.name, s.code, s.why) for s in corpus.skipped) if corpus is not None else []
    if skipped:
        call.ctx.log(
            f"{len(skipped)} files or parts were skipped: "
            + "; ".join(f"{n} ({w})" for n, _, w in skipped[:5])
            + ("; interfuse report, with the graph's folder, lists all of them" if len(skipped) > 5 else "")
        )
    lost = int(work.tally.get("replies that could not be used", 0))
    if lost:
        call.ctx.log(f"{lost} replies of the language model could not be used")
    if not facts["statements"]:
        call.ctx.log("nothing was found: the graph holds no statement")
    return {
        **facts,
        "counts": dict(sorted(work.tally.items())),
        "skipped": [{"name": n, "code": c, "why": w} for n, c, w in skipped],
        "method": work.facts,
    }


def _anew(call: Call, work: Work, folder: Path, settings: BuildSettings, by_chunk: bool) -> dict[str, Any]:
    """Puts the whole graph together and saves it."""
    from interfuse.build.assembling import Assembler
    from interfuse.build.renewing import keep_new, renewable
    from interfuse.data.graph import Graph
    from interfuse.data.graph_files import write_documents

    chunks: dict[str, Chunk] = {}
    texts: list[tuple[str, str, str]] = []
    work.names = assembler = Assembler(call, chunks, homonyms=settings.homonyms)
    found = _by_chunk(call, work, chunks, texts) if by_chunk else call.method.target(work, **own_params(call))
    graph = Graph.open(None)
    if work.graph is not None and call.method.traits.get("extends", by_chunk):
        graph.add(
            work.graph.statements(status=("contested", "stated", "inferred", "model-claimed")), note=work.graph.name
        )
    sources: dict[str, Source_] = {}
    batch: list[Statement] = []
    made = 0
    for name, source, statements in _assembled(found, work, settings, assembler):
        batch += statements
        made += source.found
        sources[name] = source
    batch += assembler.guesses()
    facts, linked = _finish(call, work, graph, batch, settings, by_chunk)
    graph.save(folder)
    write_documents(folder, texts if by_chunk else work.texts)
    if by_chunk and renewable(call):
        keep_new(call, folder, graph, _sources(texts, sources, work), assembler, linked)
    return {"candidates": made, "statements": len(graph), **facts}


def _assembled(found: Iterable[Candidate | Statement], work: Work, settings: BuildSettings,
               assembler: Assembler) -> Iterator[tuple[str, Source_, list[Statement]]]:  # fmt: skip
    """What was found as statements, document by document (all at once where a method looks at all documents)."""
    from interfuse.build.renewing import Source as Source_

    source, statements, votes = Source_("", ""), list[Any](), 0
    for item in found:
        if work.at != source.id:
            yield (
                source.id,
                dataclasses.replace(source, rows=len(statements), votes=len(assembler.votes) - votes),
                statements,
            )
            source, statements, votes = Source_(work.at, ""), [], len(assembler.votes)
        if item.confidence < settings.min_confidence:
            work.count("dropped: low confidence")
            continue
        source.found += 1
        statements += assembler.statements(item) if isinstance(item, Candidate) else [item]
    yield source.id, dataclasses.replace(source, rows=len(statements), votes=len(assembler.votes) - votes), statements


def _sources(texts: Sequence[tuple[str, str, str]], found: Mapping[str, Source_], work: Work) -> list[Source_]:
    """What came from each document that was read, in order."""
    from interfuse.build.renewing import Source as Source_

    return [
        dataclasses.replace(found.get(i) or Source_(i, n), name=n, tally=work.by_document.get(i, {}))
        for i, n, _ in texts
    ]


def _renewed(call: Call, work: Work, folder: Path) -> dict[str, Any] | None:
    """The graph of an earlier build brought up to date; None when there is none, or too much has changed."""
    from interfuse.build.assembling import Assembler
    from interfuse.build.renewing import changed, open_kept, place_of, renew
    from interfuse.data.graph import Graph

    assert work.corpus is not None
    kept = open_kept(place_of(call))
    change = changed(work.corpus, kept) if kept is not None else None
    if kept is None or change is None:
        return None
    call.ctx.log(f"{len(change.order) - len(change.documents)} of {len(change.order)} documents are as they were")
    settings = settings_of(call)
    chunks: dict[str, Chunk] = {}
    texts: list[tuple[str, str, str]] = []
    assembler = Assembler(call, chunks, homonyms=settings.homonyms)
    items = _by_chunk(call, work, chunks, texts, change.documents)
    found = {name: (source, statements) for name, source, statements in _assembled(items, work, settings, assembler)}
    read = [(source, found[source.id][1] if source.id in found else [])
            for source in _sources(texts, {k: v[0] for k, v in found.items()}, work)]  # fmt: skip
    facts = renew(call, work, folder, kept, change, read, assembler)
    if _checked(call):
        facts["violations of contracts"] = _violations(Graph(folder.name, folder), work)
    count = int(work.tally.get("chunks", 0))
    call.ctx.log(f"resuming: {count - work.asked} of {count} chunks were read before")
    return facts


def _finish(
    call: Call, work: Work, graph: Graph, batch: list[Statement], settings: BuildSettings, by_chunk: bool
) -> tuple[dict[str, Any], Linked | None]:
    """Adds what was found, links names, and looks whether the ontology's contracts hold."""
    facts: dict[str, Any] = {}
    if _checked(call) and settings.contracts == "enforce":
        from interfuse.kit.contracts import gate
        from interfuse.kit.shapes import shapes_of

        gated = gate(graph, batch, shapes_of(work.ontology))
        facts["kept out by contracts"] = len(gated.rejected)
    else:
        graph.add(batch)
    linked: Linked | None = None
    if settings.link and call.method.traits.get("link", by_chunk):
        from interfuse.kit.linking import link_graph

        linked = link_graph(graph, ontology=work.ontology)
        facts["names linked"] = len(linked.merges())
    if "finish" in call.method.traits:
        further = list(call.method.traits["finish"](graph, work, **own_params(call)))
        if further:
            graph.add(further)
    if _checked(call):
        facts["violations of contracts"] = _violations(graph, work)
    return facts, linked


def _checked(call: Call) -> bool:
    """Whether it is looked whether the contracts of an ontology hold."""
    return call.inputs["ontology"] is not None and settings_of(call).contracts != "off"


def _violations(graph: Graph, work: Work) -> int:
    from interfuse.kit.shapes import shapes_of, validate

    return len(validate(graph, shapes_of(work.ontology)).violations)


def _by_chunk(
    call: Call,
    work: Work,
    chunks: dict[str, Chunk],
    texts: list[tuple[str, str, str]],
    documents: Sequence[Document] | None = None,
) -> Iterator[Candidate | Statement]:
    """What the method finds, chunk by chunk in the order of the documents (all, or these); what was found before is not asked again."""
    from interfuse.build.keeping import Kept, key_of_work

    size, settings = int(call.method.traits.get("batch", 1)), settings_of(call)
    assert work.corpus is not None
    kept = Kept(call.ctx.cache.expanduser() / "build" / f"{key_of_work(call, own_params(call))}.jsonl")
    reader = ChunkReader(call, kept)
    waiting: list[tuple[Chunk, bool]] = []
    ahead: list[tuple[str, list[Statement]]] = []  # what documents say as a whole, until their first chunk is read
    new, before = 0, len(kept.rows)
    spread_out = settings.engine == "ray"
    source: Iterable[Document]
    if documents is not None:
        source, spread_out = documents, False
    elif spread_out:
        from interfuse.build.spreading import spread

        source = spread(call, work.corpus, kept, settings.chunk_tokens, settings.workers)
    else:
        source = work.corpus.documents()
    try:
        with call.ctx.bar(f"build {call.method.entry.slug}", float(len(work.corpus.files)), "files") as bar:
            last = ""
            for document in source:
                work.at = document.id
                work.count("documents")
                work.count(f"documents: {document.media}")
                texts.append((document.id, document.name, document.text))
                file = document.name.split("!/")[0]
                bar.advance(float(file != last), document.name)
                last = file
                own = list(split(document, settings.chunk_tokens))
                if "document" in call.method.traits:
                    ahead.append(
                        (document.id, list(call.method.traits["document"](work, document, own, **own_params(call))))
                    )
                for chunk in own:
                    if ahead:
                        reader.ahead[chunk.id], ahead = ahead, []
                    chunks[chunk.id] = chunk
                    work.at = document.id
                    work.count("chunks")
                    there = chunk.key in kept.rows
                    waiting.append((chunk, there))
                    new += not there
                    if new == size or len(waiting) >= 4 * size + 64:
                        yield from reader.read(waiting, work)
                        waiting, new = [], 0
            yield from reader.read(waiting, work)
            for name, statements in ahead:
                work.at = name
                yield from statements
    finally:
        kept.close()
        if spread_out:
            call.ctx.log(f"{len(kept.rows) - before} chunks were read by workers")
        elif reader.hits and before and documents is None:
            call.ctx.log(f"resuming: {reader.hits} of {reader.hits + reader.asked} chunks were read before")


class ChunkReader:
    """Calls the method for chunks that were not read before.

    Attributes:
        ahead: chunk's id -> documents (ids) and what they say as a whole, before what is found in the chunk.
    """

    def __init__(self, call: Call, kept: Kept) -> None:
        self.call, self.kept = call, kept
        self.ahead: dict[str, list[tuple[str, list[Statement]]]] = {}
        self.hits, self.asked = 0, 0
        self.ready: Any = None

    def read(self, waiting: Sequence[tuple[Chunk, bool]], work: Work) -> Iterator[Candidate | Statement]:
        """What is found in the chunks, in their order."""
        first = {c.key: c for c, there in reversed(waiting) if not there}
        ask = [c for c, there in waiting if not there and first[c.key] is c]
        if ask:
            self._ask(ask, work)
        for chunk, there in waiting:
            row = self.kept.get(chunk.key)
            if row is None:  # a kept line that turned out to be damaged
                self._ask([chunk], work)
                row = self.kept.get(chunk.key)
                assert row is not None
            self.hits += there
            for name, statements in self.ahead.pop(chunk.id, ()):
                work.at = name
                yield from statements
            work.at = chunk.document.id
            for name, amount in row[1].items():
                work.count(name, amount)
            for item in row[0]:
                yield (
                    dataclasses.replace(item, chunk=chunk.id)
                    if isinstance(item, Candidate) and not item.evidence
                    else item
                )

    def _ask(self, chunks: Sequence[Chunk], work: Work) -> None:
        prepare, own = self.call.method.traits.get("prepare"), own_params(self.call)
        if prepare is not None and self.ready is None:
            self.ready = prepare(work, **own)
        self.asked += len(chunks)
        work.asked += len(chunks)
        tallies: dict[str, dict[str, float]] = {c.id: {} for c in chunks}
        lone = chunks[0].id if len(chunks) == 1 else ""
        view = dataclasses.replace(work, chunks=tuple(chunks), ready=self.ready, tally={}, by_chunk=tallies)
        found: dict[str, list[Any]] = {c.id: [] for c in chunks}
        for item in self.call.method.target(view, **own):
            name = item.chunk if isinstance(item, Candidate) and item.chunk else lone
            if name not in found:
                raise InterfuseError(
                    "run.failed", f"{self.call.method.id} gives a statement without its chunk", where=item.predicate
                )
            found[name].append(item)
        if view.tally:
            for name, amount in view.tally.items():
                tallies[chunks[0].id][name] = tallies[chunks[0].id].get(name, 0) + amount
        for chunk in chunks:
            self.kept.put(chunk.key, found[chunk.id], tallies[chunk.id])


def promise(call: Call, path: Path) -> Any:
    """The graph at a path, known by its key before it is built."""
    from interfuse.data.graph import Graph

    return Graph(path.name, path)


def renews(call: Call, path: Path, force: bool) -> bool:
    """Whether a path holds what an earlier run of the same build made: the same method, parameters and seed, and inputs of the same
    names, whose content may have changed. Of its documents at least half are still there by name: another folder may be called the same.

    Raises:
        InterfuseError: ``output.exists`` when the documents are other ones of the same names, or when operations that were made since
            (merges, undos), or files that were put there, would be lost, unless that is asked for.
    """
    from interfuse.build.origins import same_documents
    from interfuse.core.artifact import MANIFEST, open_artifact
    from interfuse.data.graph_journal import waiting

    def names(inputs: Mapping[str, Any], name: Callable[[Any], str]) -> dict[str, list[str]]:
        given = {k: v if isinstance(v, list) else [v] for k, v in inputs.items() if v is not None}
        return {k: [name(n) for n in v] for k, v in given.items() if v}

    try:
        was = open_artifact(path).manifest
    except InterfuseError:
        return False
    now = [ROOM.kind, call.method.id, jsonable(call.params), list(call.seeds), call.ctx.dtype]
    same = now == [was.get(k) for k in ("kind", "method", "params", "seeds", "dtype")]
    same = same and [names(r, lambda n: str(n.name)) for r in call.replicas] == [
        names(i, lambda n: str(n["name"])) for i in was["inputs"]
    ]
    same = same and (force or _still_there(call.inputs["documents"], path))
    if same and not force and not same_documents(call, path, was):
        raise InterfuseError("output.exists", "the graph there was made of other documents, in a folder and files of the same names", where=str(path),
                             fix="Choose another place with -o, or add --force to replace it (also when the folder was moved and most of it has changed).")  # fmt: skip
    own = int(was.get("operations after", 0)) + waiting(path)
    if own and same and not force:
        raise InterfuseError("output.exists", f"{own} operations were made on the graph since it was built, and a build would lose them", where=str(path),
                             fix="interfuse build history shows them. Choose another place with -o, or add --force to lose them.")  # fmt: skip
    written = (MANIFEST, *was["files"])
    others = sorted(p.name for p in path.rglob("*") if not p.is_dir() and p.relative_to(path).as_posix() not in written)
    if others and same and not force:
        raise InterfuseError("output.exists", f"{len(others)} files there are not of the build, which would lose them: {', '.join(others[:3])}", where=str(path),
                             fix="Put them elsewhere, choose another place with -o, or add --force to lose them.")  # fmt: skip
    if own and force:
        call.ctx.log(f"{own} operations that were made on the graph since it was built are lost")
    return same


def _still_there(corpus: Corpus | None, path: Path) -> bool:
    """Whether at least half of the documents whose texts lie at a path are of files that a corpus has, by their names."""
    from interfuse.data.graph_files import DOCUMENTS, read_documents_table

    if corpus is None or not (path / DOCUMENTS).is_file():
        return True
    files = {f.name for f in corpus.files}
    before = read_documents_table(path, ("name",)).column("name").to_pylist()
    return 2 * sum(name.partition("!/")[0] in files for name in before) >= len(before)


def parts(call: Call, path: Path) -> dict[str, Any]:
    """The tables that a method keeps beside its graph: its trait ``tables``, ``name -> (file, role -> column)``; ``rows`` says how many
    rows they may have together."""
    from interfuse.data.made_tables import promised

    rows = call.method.traits.get("rows")
    most = int(rows(call, own_params(call))) if rows is not None else 1
    return {name: promised(name, path, columns, most, [key_of(call), name], file)
            for name, (file, columns) in call.method.traits.get("tables", {}).items()}  # fmt: skip


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
    parts=parts,
    check=check,
    estimate=estimate,
    renews=renews,
)
