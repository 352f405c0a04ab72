"""Building again after some documents changed, at the cost of these: the folder is that of a fresh build, byte for byte.

What a build made is kept in the cache, by everything that it depends on but the documents' contents: the graph's own tables, which
rows came from which document, the votes of recognisers of names, and what linking went through. When a tenth of the files at most has
changed, only their documents are read; their rows take the place of the old ones, statements that lost or gained a source are
combined anew, names are linked again where something near them changed, and the tables are cut and joined, not made anew. Tables and
text files are then written as a whole, which costs little beside any reading. What is kept is left as it was while so few of the files
have changed since that bringing them up to date again costs less than keeping anew.

Whatever is missing, damaged or of other code makes a build from nothing. Nothing is kept of builds that look at all documents, that
extend an earlier graph, or that keep out what breaks the contracts of an ontology: they put the whole graph together each time. Where
contracts are only reported, they are checked on the graph that was brought up to date.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interfuse.build.assembling import Assembler, guesses_of
from interfuse.build.keeping import key_of_work
from interfuse.build.origins import roots_of
from interfuse.build.room import Work, own_params, settings_of
from interfuse.core.errors import InterfuseError
from interfuse.core.lazy import kept_out
from interfuse.core.rooms import Call
from interfuse.core.safe import code_sha256, file_digest, fingerprint, jsonable
from interfuse.data.corpus import Corpus, Document, Skipped
from interfuse.data.graph import Graph, end_of, hash_of, line_of_op, whole_hash
from interfuse.data.graph_files import (
    DOCUMENTS,
    read_documents_table,
    read_table,
    schemas,
    write_documents_table,
    write_meta,
)
from interfuse.data.graph_log import Op
from interfuse.data.graph_rows import (
    Rows,
    coded,
    columns_of_rows,
    counts_of,
    joined,
    packed,
    plain,
    read_rows,
    rows_of,
    spliced,
    words_of,
    write_log_rows,
    write_node_table,
    write_quads,
    write_rows,
)
from interfuse.data.statements import ALIAS, LABEL, TEXTS, TYPE, Literal, Statement, combined, to_json
from interfuse.kit.linking import Linked, Mention, most_said
from interfuse.kit.relinking import TABLES, LinkState, among, relink, state_of

if TYPE_CHECKING:
    import pyarrow as pa

#: More of the files than this changed: the build from nothing is as quick. States that are kept in a cache; seconds after which an
#: unfinished one is nobody's.
SHARE, KEPT, STALE = 0.1, 12, 3600.0
#: No more of the files than this changed since a state was kept, no more of the evidence stands at statements that they touch, and they
#: were opened in so many seconds: the state stays, and they are brought up to date again the next time.
FEW, QUICK = 0.002, 0.1
#: A state of no more bytes is kept as it lies in memory: packing and unpacking it would be a seventh of the work on one document.
PLAIN = 2**27
#: packages and modules whose code decides what a state holds
_CODE = ("interfuse.data", "interfuse.data.loaders", "interfuse.kit.linking", "interfuse.kit.relinking", "interfuse.build.room",
         "interfuse.build.assembling", "interfuse.build.renewing", "interfuse.build.keeping")  # fmt: skip


@dataclass
class Source:
    """What came from one document.

    Attributes:
        id, name: of the document. rows, votes: how many statements and votes. found: how many things the method found.
        tally: its counts for the report.
    """

    id: str
    name: str
    rows: int = 0
    votes: int = 0
    found: int = 0
    tally: dict[str, float] = field(default_factory=dict)


def renewable(call: Call) -> bool:
    """Whether what a call makes can be kept and brought up to date."""
    traits, settings, inputs = call.method.traits, settings_of(call), call.inputs
    alone = traits.get("per") == "chunk" and "finish" not in traits
    gated = inputs["ontology"] is not None and settings.contracts == "enforce"
    return (
        alone
        and not gated
        and inputs["graph"] is None
        and inputs["documents"] is not None
        and settings.engine == "local"
    )


def place_of(call: Call) -> Path:
    """Where the state of a build is kept: it changes with whatever its result depends on, besides the documents' contents."""
    corpus: Corpus = call.inputs["documents"]
    settings = {k: v for k, v in dataclasses.asdict(settings_of(call)).items() if k not in ("engine", "workers")}
    key = fingerprint({
        "work": key_of_work(call, own_params(call)), "settings": jsonable(settings), "reader": corpus.reader, "roots": roots_of(corpus),
        "limits": jsonable(dataclasses.asdict(corpus.limits)), "code": [code_sha256(p) for p in _code()], "versions": _versions(),
    })  # fmt: skip
    return call.ctx.cache.expanduser() / "build" / f"state-{key[:40]}"


@functools.cache
def _versions() -> list[str]:
    return [importlib.metadata.version(n) for n in ("pyarrow", "numpy")]


@functools.cache
def _code() -> list[Path]:
    found = []
    for name in _CODE:
        file = Path(str(importlib.import_module(name).__file__))
        found += sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]
    return found


# ---------------------------------------------------------------------------------------------------- what is kept


@dataclass
class Kept:
    """A state as it was read.

    Attributes:
        place: where it is. facts: ``files`` (name, digest), ``documents`` (:class:`Source`), ``skipped`` and ``direct``: how many rows of ``said`` came
            from documents; what follows was voted for.
        said: what was said, with columns ``hash`` and ``now`` (the id under which it holds, where that is another one). holds: what holds. votes: types that
            were guessed, ``kind`` being what they were guessed as.
    """

    place: Path
    facts: dict[str, Any]
    said: Rows
    holds: Rows
    votes: Rows
    nodes: pa.Table
    texts: pa.Table
    links: LinkState | None

    @functools.cached_property
    def sources(self) -> list[Source]:
        """What came from which document."""
        return [Source(**row) for row in self.facts["documents"]]


@contextlib.contextmanager
def plain_memory() -> Iterator[None]:
    """While it is open, Arrow takes memory from the C library. Its own pool takes stretches so large that their first touch costs more
    than all the work on one document."""
    import pyarrow as pa

    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def open_kept(place: Path) -> Kept | None:
    """The state at a place, or None when there is none that is whole."""
    try:
        digest, _, told_of = (place / "state.json").read_bytes().partition(b"\n")
        if hashlib.sha256(told_of).hexdigest().encode() != digest:
            return None
        facts = json.loads(told_of)
        _without_pandas()
        if any(file_digest(place / name, "xxh3") != digest for name, digest in facts["digests"].items()):
            return None
        told = {name: _arrow(place / f"{name}.arrow") for name in facts["tables"]}
        said, holds, votes = (_rows(told[n], told[f"{n}-proof"]) for n in ("said", "holds", "votes"))
        links = LinkState(*(told[n] for n in TABLES)) if facts["linked"] else None
        return Kept(place, facts, said, holds, votes, told["nodes"], read_documents_table(place), links)
    except (OSError, ValueError, KeyError, TypeError, InterfuseError):
        return None


@functools.cache
def _without_pandas() -> None:
    """In a process of our own, Arrow does not look whether what it is given is of pandas, which it would import for that."""
    with kept_out("pandas"):
        import pyarrow as pa

        pa.array([""])


def _arrow(path: Path) -> Any:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _rows(table: Any, proof: Any) -> Rows:
    counts = table.column("proofs").to_numpy().astype(np.int64)
    return Rows(table.drop_columns(["proofs"]), proof, counts)


def _write_arrow(path: Path, table: Any, compression: str | None) -> None:
    import pyarrow as pa

    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as out,
    ):
        out.write_table(table)


@dataclass
class Made:
    """A graph's tables, as :class:`Kept` has them."""

    said: Rows
    direct: int
    holds: Rows
    votes: Rows
    nodes: pa.Table
    links: LinkState | None


def _keep(place: Path, corpus: Corpus, sources: Sequence[Source], made: Made, graph: Path) -> None:
    """Keeps the state of a graph that was written to a folder; a disk that is full or read-only keeps nothing."""
    import pyarrow as pa

    tables = {"nodes": made.nodes}
    for name in ("said", "holds", "votes"):
        rows: Rows = getattr(made, name)
        tables[name], tables[f"{name}-proof"] = rows.table.append_column("proofs", pa.array(rows.counts)), rows.proof
    tables.update({name: getattr(made.links, name) for name in TABLES} if made.links is not None else {})
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".state-", dir=place.parent))
        try:
            plainly = sum(table.nbytes for table in tables.values()) <= PLAIN
            for name, table in tables.items():
                _write_arrow(folder / f"{name}.arrow", packed(table), None if plainly else "lz4")
            shutil.copyfile(graph / DOCUMENTS, folder / DOCUMENTS)
            facts = {
                "files": {f.name: f.sha256 for f in corpus.files}, "documents": [vars(s) for s in sources], "direct": made.direct,
                "skipped": [vars(s) for s in corpus.skipped], "linked": made.links is not None,
                "tables": list(tables), "digests": {p.name: file_digest(p, "xxh3") for p in sorted(folder.iterdir())},
            }  # fmt: skip
            told_of = json.dumps(facts).encode()
            (folder / "state.json").write_bytes(hashlib.sha256(told_of).hexdigest().encode() + b"\n" + told_of)
            if place.exists():  # what is read at this moment stays whole: it loses its name first
                old = folder.with_name(f"{folder.name}-old")
                os.rename(place, old)
                shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, place)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        states = sorted(place.parent.glob("state-*"), key=lambda p: p.stat().st_mtime_ns)
        torn = [p for p in place.parent.glob(".state-*") if time.time() - p.stat().st_mtime > STALE]  # left by a kill
        for old in [*states[:-KEPT], *torn]:
            shutil.rmtree(old, ignore_errors=True)


def keep_new(
    call: Call, folder: Path, graph: Graph, sources: Sequence[Source], assembler: Assembler, linked: Linked | None
) -> None:
    """Keeps the state of a graph that was built from nothing and saved to ``folder``."""
    import pyarrow as pa

    said = graph.history()[0].statements
    if any(s.status == "withdrawn" for s in said):
        return
    state, held, log = graph.state, graph._held, folder / "log"
    more = pa.table(
        {
            "hash": _hashes(held.said[1]),
            "now": pa.array([_other(state._place[s.id], s.id) for s in said], type=pa.string()),
        }
    )
    links = state_of(linked.parts, linked.merges()) if linked is not None and linked.parts is not None else None
    made = Made(
        coded(read_rows(log / "assertions.parquet", log / "evidence.parquet", more)), sum(s.rows for s in sources),
        read_rows(folder / "statements.parquet", folder / "evidence.parquet", pa.table({"hash": _hashes(held.whole)})),
        _vote_rows(assembler), read_table(folder / "nodes.parquet"), links,
    )  # fmt: skip
    _keep(place_of(call), call.inputs["documents"], sources, made, folder)


def _hashes(joined_: bytes) -> Any:
    import pyarrow as pa

    return pa.Array.from_buffers(pa.binary(32), len(joined_) // 32, [None, pa.py_buffer(joined_)])


def _bytes(hashes: Any) -> bytes:
    whole = hashes.combine_chunks()
    return whole.buffers()[1].slice(whole.offset * 32, len(whole) * 32).to_pybytes() if len(whole) else b""


def _other(now: str, given: str) -> str | None:
    """What the column ``now`` says: nothing where a statement holds under its own id."""
    return None if now == given else now


def _now(rows: Rows) -> Any:
    """The ids under which rows hold."""
    import pyarrow.compute as pc

    return pc.coalesce(rows.column("now"), rows.column("id"))


def _vote_rows(assembler: Assembler) -> Rows:
    return coded(
        rows_of([_vote(assembler, *v) for v in assembler.votes], lambda s: bytes(32))
    )  # nothing is digested of them


def _vote(assembler: Assembler, entity: str, kind: str, status: str, proof: tuple[Any, ...]) -> Statement:
    return Statement(entity, TYPE, assembler.kind(kind), (), 1.0, kind, status, evidence=proof)


# ---------------------------------------------------------------------------------------------------- what changed


@dataclass
class Change:
    """What is otherwise: documents that are new or read anew (``documents``), and of all files what their documents are now. ``small``:
    that so few files changed and were opened so quickly that what is kept may stay."""

    documents: list[Document]
    order: list[tuple[str, str]]  # (id, name) of every document, in order
    skipped: list[Skipped]
    small: bool = False


def changed(corpus: Corpus, kept: Kept) -> Change | None:
    """What has changed since, or None when it is too much. Reads the files that changed, and those whose documents count now, or do
    not any more, because another file with the same bytes came or went."""
    began, was = time.perf_counter(), kept.facts["files"]
    now = {f.name: f for f in corpus.files}
    anew = {f.name for f in corpus.files if was.get(f.name) != f.sha256}
    away = {name for name in was if name not in now}
    old_documents, old_skipped = _by_file(kept, was)
    while True:
        if len(anew) + len(away) > max(1, SHARE * len(now)):
            return None
        corpus.skipped.clear()
        read: dict[str, list[Document | Skipped]] = {name: [] for name in sorted(anew)}
        for document in corpus.documents([f for f in corpus.files if f.name in anew]):
            read[_owner(document.name, read)].append(document)
        for item in corpus.skipped:
            read[_owner(item.name, read)].append(item)
        made = Change([], [], [])
        more = _counted(corpus, made, read, old_documents, old_skipped)
        if not more:
            few = len(anew) + len(away) <= FEW * len(now)
            return dataclasses.replace(made, small=few and time.perf_counter() - began < QUICK)
        anew = anew | more


def _counted(corpus: Corpus, made: Change, read: Mapping[str, Sequence[Document | Skipped]], documents: Mapping[str, Sequence[Source]],
             skipped: Mapping[str, Sequence[Skipped]]) -> set[str]:  # fmt: skip
    """Fills ``made``; returns the files that have to be read too, because equal bytes elsewhere came or went."""
    seen: dict[str, str] = {}
    more: set[str] = set()
    for file in corpus.files:
        if file.name in read:
            for item in read[file.name]:
                if isinstance(item, Document) and item.id not in seen:
                    seen[item.id] = item.name
                    made.documents.append(item)
                    made.order.append((item.id, item.name))
                elif isinstance(item, Document) or item.id:
                    made.skipped.append(
                        Skipped(item.name, "input.duplicate", f"the same bytes as {seen[item.id]}", item.id)
                    )
                else:
                    made.skipped.append(item)
            continue
        mine = {s.id: s.name for s in documents.get(file.name, ())}
        if any(i in seen for i in mine):
            more.add(file.name)
        for item in skipped.get(file.name, ()):
            if item.id and item.why != f"the same bytes as {seen.get(item.id) or mine.get(item.id)}":
                more.add(file.name)
            made.skipped.append(item)
        seen.update(mine)
        made.order += [(s.id, s.name) for s in documents.get(file.name, ())]
    return more


def _by_file(kept: Kept, files: Mapping[str, Any]) -> tuple[dict[str, list[Source]], dict[str, list[Skipped]]]:
    documents: dict[str, list[Source]] = {}
    skipped: dict[str, list[Skipped]] = {}
    for source in kept.sources:
        documents.setdefault(_owner(source.name, files), []).append(source)
    for row in kept.facts["skipped"]:
        skipped.setdefault(_owner(row["name"], files), []).append(Skipped(**row))
    return documents, skipped


def _owner(name: str, files: Mapping[str, Any]) -> str:
    """The file that a document is, or is in: ``mail.eml`` of ``mail.eml!/a.pdf``."""
    at = len(name)
    while at >= 0:
        if name[:at] in files:
            return name[:at]
        at = name.rfind("!/", 0, at)
    raise KeyError(name)


# ---------------------------------------------------------------------------------------------------- the new graph


def said_anew(kept: Kept, order: Sequence[tuple[str, str]], new: Mapping[str, Source], rows: Rows, votes: Rows,
              assembler: Assembler) -> tuple[Rows, int, Rows, Rows, Rows]:  # fmt: skip
    """What is said now, how much of it by documents, and the votes; and of what was said, the rows that went and that came.

    Args:
        new: what came from documents that were read, in the order of ``rows`` and ``votes``.
    """
    places: dict[str, tuple[int, int, int, int]] = {}
    a = v = 0
    for source in kept.sources:
        places[source.id] = (a, a + source.rows, v, v + source.votes)
        a, v = a + source.rows, v + source.votes
    fresh: dict[str, tuple[int, int, int, int]] = {}
    a = v = 0
    for name, source in new.items():
        fresh[name] = (a, a + source.rows, v, v + source.votes)
        a, v = a + source.rows, v + source.votes
    staying = {i for i, _ in order if i not in new}
    direct = kept.said.slice(0, kept.facts["direct"])
    guessed = kept.said.slice(kept.facts["direct"], len(kept.said))
    said_parts, vote_parts = [rows.slice(0, 0)], [votes.slice(0, 0)]
    for start, stop, vote_start, vote_stop, old in _runs(order, places, fresh):
        said_parts.append((direct if old else rows).slice(start, stop))
        vote_parts.append((kept.votes if old else votes).slice(vote_start, vote_stop))
    gone = [direct.slice(0, 0)] + [direct.slice(p[0], p[1]) for i, p in places.items() if i not in staying]
    votes_gone = [kept.votes.slice(p[2], p[3]) for i, p in places.items() if i not in staying]
    all_votes = joined(vote_parts)
    voted = sorted({*_words(votes, "subject"), *(w for p in votes_gone for w in _words(p, "subject"))})
    told: dict[str, dict[str, list[Any]]] = {}
    mine = all_votes.take(np.flatnonzero(among(all_votes.column("subject"), voted).to_numpy()))
    for s in mine.statements():
        told.setdefault(s.subject, {}).setdefault(s.kind, []).append((s.status, s.evidence))
    guesses = [s for entity in sorted(told) for s in guesses_of(entity, told[entity], assembler)]
    drop = np.flatnonzero(among(guessed.column("subject"), voted).to_numpy())
    subjects = words_of(guessed.column("subject"))
    made = _said_rows(guesses)
    places_of = [bisect.bisect_left(subjects, s.subject) for s in guesses]
    guessed_now = coded(spliced(plain(guessed), drop, plain(made), places_of).together())
    documents = joined(said_parts)
    return (joined([documents, guessed_now]), len(documents), all_votes, joined([*gone, guessed.take(drop)]),
            joined([rows, made]))  # fmt: skip


def _said_rows(statements: Sequence[Statement]) -> Rows:
    return coded(rows_of(statements, lambda s: hash_of(to_json(s)), now=[None for _ in statements]))


def _runs(order: Sequence[tuple[str, str]], places: Mapping[str, tuple[int, int, int, int]],
          fresh: Mapping[str, tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int, int, bool]]:  # fmt: skip
    """The rows of the documents in order, as few slices: (start, stop, first and last vote, whether they are old)."""
    last: tuple[int, int, int, int, bool] | None = None
    for name, _ in order:
        old = name not in fresh
        p = places[name] if old else fresh[name]
        if last is not None and last[4] == old and last[1] == p[0] and last[3] == p[2]:
            last = (last[0], p[1], last[2], p[3], old)
            continue
        if last is not None:
            yield last
        last = (*p, old)
    if last is not None:
        yield last


def _words(rows: Rows, column: str) -> list[str]:
    return list(dict.fromkeys(words_of(rows.column(column))))


def _ends(rows: Rows) -> list[str]:
    """Subjects and objects that are names."""
    return list(
        dict.fromkeys(
            [*_words(rows, "subject"), *(o[1:-1] if o[0] == "<" else o for o in _words(rows, "object") if o[0] != '"')]
        )
    )


def objects_among(rows: Rows | pa.Table, names: Iterable[str]) -> Any:
    """Which rows have one of these names as their object, bool [N]."""
    return among(rows.column("object"), (n if n.startswith("_:") else f"<{n}>" for n in names))


class Mentions:
    """The mentions of names, found in what is said when they are asked for; see :func:`interfuse.kit.linking.mentions_of`."""

    def __init__(self, said: Rows) -> None:
        self.said, self.known = said, {}  # type: ignore[var-annotated]

    def __call__(self, ids: Sequence[str]) -> dict[str, Mention]:
        import pyarrow.compute as pc

        wanted = {i for i in ids if i not in self.known}
        if wanted:
            said = self.said.table.select(["subject", "predicate", "object"])
            named = pc.and_(among(said.column("subject"), wanted), among(said.column("predicate"), (LABEL,)))
            labelled = {*words_of(said.column("subject").filter(named))}  # others are no mentions
            rows = said.filter(pc.or_(among(said.column("subject"), labelled), objects_among(said, labelled)))
            words: dict[str, list[str]] = {}
            also: dict[str, list[str]] = {}
            types: dict[str, dict[str, None]] = {}
            near: dict[str, dict[str, None]] = {}
            for s, p, o in zip(*(words_of(rows.column(n)) for n in ("subject", "predicate", "object")), strict=True):
                name = "" if o[0] == '"' else o[1:-1] if o[0] == "<" else o
                if p in (LABEL, ALIAS) and not name:
                    (words if p == LABEL else also).setdefault(s, []).append(o)
                elif p == TYPE and name:
                    types.setdefault(s, {})[name] = None
                elif name:
                    near.setdefault(s, {})[name] = None
                    near.setdefault(name, {})[s] = None
            for i in sorted(wanted):
                labels = Counter[str]()  # literals of several languages may have one value
                for o, n in Counter(words.get(i, ())).items():
                    labels[_value(o)] += n
                self.known[i] = None if not labels or i.startswith(TEXTS) else Mention(
                    i, most_said(labels), tuple(sorted({*labels, *(_value(o) for o in also.get(i, ()))})), tuple(sorted(types.get(i, ()))),
                    tuple(sorted(near.get(i, ()))), sum(labels.values()))  # fmt: skip
        return {i: m for i in ids if (m := self.known[i]) is not None}


def _value(text: str) -> str:
    from interfuse.data.statements import term_of

    found = term_of(text)
    return found.value if isinstance(found, Literal) else found


def holds_anew(old: Rows, said: Rows, gone: Rows, came: Rows, called: Mapping[str, str],
               renamed: Mapping[str, tuple[str, str]]) -> tuple[Rows, Rows, list[str], int]:  # fmt: skip
    """What is said (with its column ``now`` brought up to date) and what holds; the names in statements that hold no more, or do now; and
    how much evidence stands at these now.

    Args:
        called: what merged names are called now. renamed: names that are called otherwise, as they were and are.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    touched = {*_now(gone).to_pylist()}
    names = {*renamed, *(n for pair in renamed.values() for n in pair)}
    moved = among(said.column("id"), set(came.column("id").to_pylist()))
    if names:
        qualified = pc.greater(pc.list_value_length(said.column("qualifiers")).fill_null(0), 0)
        for mask in (
            among(said.column("subject"), names),
            objects_among(said, names),
            among(said.column("predicate"), names),
            qualified,
        ):
            moved = pc.or_(moved, mask)
    index = np.flatnonzero(moved.to_numpy())
    some = said.take(index)
    ids, were = some.column("id").to_pylist(), _now(some).to_pylist()
    first: dict[str, int] = {}  # what is said often is called alike each time
    for i, given in enumerate(ids):
        first.setdefault(given, i)
    once = some.take(np.array([*first.values()], dtype=np.int64)).statements(proof=False)
    called_now = [_called(s, called).id for s in once]
    place = dict(zip(first, called_now, strict=True))
    now = [place[i] for i in ids]
    touched.update(were, now)
    column = pc.replace_with_mask(
        said.column("now").combine_chunks(),
        moved.combine_chunks(),
        pa.array([_other(n, i) for n, i in zip(now, ids, strict=True)], type=pa.string()),
    )
    table = said.table.set_column(said.table.schema.get_field_index("now"), "now", column)
    said = Rows(table, said.proof, said.counts)
    own = pc.and_(pc.is_null(said.column("now")), among(said.column("id"), touched))
    concerned = said.take(np.flatnonzero(pc.or_(own, among(said.column("now"), touched)).to_numpy()))
    parts: dict[str, list[tuple[str, int, Statement]]] = {}
    own_ids, held = concerned.column("id").to_pylist(), _now(concerned).to_pylist()
    for i, (s, given, name) in enumerate(zip(concerned.statements(), own_ids, held, strict=True)):
        parts.setdefault(name, []).append((given, i, s if given == name else _called(s, called)))
    made = sorted(
        (combined([s for _, _, s in sorted(p, key=lambda x: x[:2])]) for p in parts.values()), key=lambda s: s.order
    )
    drop = np.flatnonzero(among(old.column("id"), touched).to_numpy())
    new = rows_of(made, whole_hash)
    names_now = sorted({*_ends(old.take(drop)), *_ends(new)})
    return said, spliced(old, drop, new, [_place(old, s.order) for s in made]).together(), names_now, new.proof.num_rows


def _called(statement: Statement, called: Mapping[str, str]) -> Statement:
    terms = [t for t in statement.terms() if not isinstance(t, Literal)]
    if not any(t in called for t in terms):
        return statement

    def now(term: Any) -> Any:
        return term if isinstance(term, Literal) else called.get(term, term)

    return dataclasses.replace(statement, subject=now(statement.subject), predicate=now(statement.predicate), object=now(statement.object),
                               qualifiers=tuple((now(p), now(v)) for p, v in statement.qualifiers))  # fmt: skip


def _place(rows: Rows, order: tuple[str, ...]) -> int:
    """Where a statement belongs among sorted ones."""
    subject, predicate, target, name = (rows.column(n) for n in ("subject", "predicate", "object", "id"))
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        o = target[middle].as_py()
        if (
            subject[middle].as_py(),
            predicate[middle].as_py(),
            o[1:-1] if o[0] == "<" else o,
            name[middle].as_py(),
        ) < order:
            low = middle + 1
        else:
            high = middle
    return low


def nodes_anew(old: pa.Table, holds: Rows, names: Sequence[str]) -> pa.Table:
    """The table of nodes, after statements with these names came or went."""
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = pc.or_(among(holds.column("subject"), names), objects_among(holds, names))
    rows = holds.take(np.flatnonzero(mask.to_numpy()))
    counts: dict[str, int] = {}
    words: dict[str, list[tuple[int, float, str]]] = {}
    types: dict[str, list[str]] = {}
    wanted = set(names)
    columns = (rows.column(n).to_pylist() for n in ("subject", "predicate", "object", "confidence"))
    for s, p, o, sure, proofs in zip(*columns, rows.counts.tolist(), strict=True):
        target = "" if o[0] == '"' else o[1:-1] if o[0] == "<" else o
        for name in (s, target):
            if name in wanted:
                counts[name] = counts.get(name, 0) + 1
        if s in wanted and p == LABEL and not target:
            words.setdefault(s, []).append((-proofs, -sure, _value(o)))
        elif s in wanted and p == TYPE and target:
            types.setdefault(s, []).append(target)
    made = pa.table({"id": sorted(counts), "label": [min(words[n])[2] if n in words else end_of(n) for n in sorted(counts)],
                     "types": [types.get(n, []) for n in sorted(counts)], "statements": [counts[n] for n in sorted(counts)]},
                    schema=schemas()[2])  # fmt: skip
    kept = old.filter(pc.invert(among(old.column("id"), names)))
    ids, parts, at = kept.column("id"), [], 0
    for i, name in enumerate(sorted(counts)):
        place = bisect.bisect_left(ids, name, key=lambda word: word.as_py())
        parts += [kept.slice(at, place - at), made.slice(i, 1)]
        at = place
    return pa.concat_tables([*parts, kept.slice(at)])


def _write_documents(folder: Path, old: pa.Table, change: Change) -> None:
    """Keeps the texts of all documents; those that did not change are never made objects."""
    import pyarrow as pa

    fresh = {d.id: i for i, d in enumerate(change.documents, old.num_rows)}
    place = {**{name: i for i, name in enumerate(old.column("id").to_pylist())}, **fresh}
    texts = pa.chunked_array(
        [*old.column("text").chunks, pa.array([d.text for d in change.documents], old.schema.field("text").type)]
    )
    order = pa.array([place[i] for i, _ in change.order])
    write_documents_table(
        folder,
        pa.table(
            {"id": [i for i, _ in change.order], "name": [n for _, n in change.order], "text": texts.take(order)},
            old.schema,
        ),
    )


def renew(call: Call, work: Work, folder: Path, kept: Kept, change: Change, read: Iterable[tuple[Source, list[Statement]]],
          assembler: Assembler) -> dict[str, Any]:  # fmt: skip
    """Writes the graph as it is after a change, and keeps its state unless the change is small.

    Args:
        read: what came from each document of the change, in their order; ``assembler`` has then seen all of it.
    """
    corpus: Corpus = call.inputs["documents"]
    new: dict[str, Source] = {}
    statements: list[Statement] = []
    for source, found in read:
        new[source.id] = source
        statements += [s.checked() for s in found]
    if any(s.status == "withdrawn" for s in statements):
        raise InterfuseError("run.failed", "a build says nothing that is withdrawn", where=call.method.id)
    votes = _vote_rows(assembler)
    said, direct, votes, gone, came = said_anew(kept, change.order, new, _said_rows(statements), votes, assembler)
    links = kept.links
    renamed: dict[str, tuple[str, str]] = {}
    if links is not None:
        ends = list(dict.fromkeys([*_ends(gone), *_ends(came)]))
        links, renamed = relink(links, ends, Mentions(said), ontology=work.ontology)
    pairs = links.merges() if links is not None else []
    said, holds, names, touched = holds_anew(kept.holds, said, gone, came, {b: a for a, b in pairs}, renamed)
    nodes = nodes_anew(kept.nodes, holds, names)
    ops = [Op(1, "add")]
    if links is not None:
        data = {"pairs": [list(p) for p in pairs], "reason": "linked by name", "group": "link"}
        ops.append(Op(2, "merge", {k: v for k, v in data.items() if v}))
    hashes = [_bytes(rows.column("hash")) for rows in (said, holds)]
    log = hashlib.sha256(
        b"".join([line_of_op(ops[0], hashes[0]), *(line_of_op(op, b"") for op in ops[1:])])
    ).hexdigest()
    write_rows(folder / "statements.parquet", folder / "evidence.parquet", holds, 0)
    write_node_table(folder / "nodes.parquet", nodes)
    write_quads(folder / "graph.nq", holds)
    write_log_rows(folder / "log", said, ops)
    columns_of_rows(holds).save(folder / "columns")
    write_meta(folder, {**counts_of(holds), "merged names": len(pairs), "operations": len(ops),
                        "digest": hashlib.sha256(hashes[1]).hexdigest(), "log": log})  # fmt: skip
    _write_documents(folder, kept.texts, change)
    old = {s.id: s for s in kept.sources}
    named = ((new.get(i) or old[i], n) for i, n in change.order)
    sources = [s if s.name == n else dataclasses.replace(s, name=n) for s, n in named]
    corpus.skipped[:] = change.skipped
    work.tally.clear()
    for source in sources:
        for what, amount in source.tally.items():
            work.tally[what] = work.tally.get(what, 0) + amount
    if change.small and touched <= FEW * holds.proof.num_rows:
        with contextlib.suppress(OSError):
            os.utime(kept.place)  # of the states in the cache those that were used last stay
    else:
        _keep(kept.place, corpus, sources, Made(said, direct, holds, votes, nodes, links), folder)
    linked = {"names linked": len(pairs)} if links is not None else {}
    return {"candidates": sum(s.found for s in sources), "statements": len(holds), **linked}
