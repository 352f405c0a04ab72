"""A graph's folder: tables anyone can read, N-Quads, and the log from which the whole graph is rebuilt.

graph.json                 counts, the digest, the base
statements.parquet  evidence.parquet  nodes.parquet      what holds now
graph.nq                   the same as plain N-Quads, one named graph per status
log/operations.jsonl  log/assertions.parquet  log/evidence.parquet      everything that was ever said
columns/                   the integer view, memory-mapped when it is opened
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import canonical_json, read_text
from interfuse.data.graph_log import Op
from interfuse.data.statements import NS, STATUSES, Evidence, Statement, term_of, text_of

if TYPE_CHECKING:
    import pyarrow

    from interfuse.data.graph_columns import Columns

META = "graph.json"
FORMAT = 1
ROWS = 50_000
_LOOKED_FOR = ("op", "subject", "predicate", "object", "document", "row")
#: numbers that grow by little are written as differences, names that hardly repeat as they are: smaller and quicker than by dictionary
_GROWING, _OWN_NAMES = ("row", "start", "end"), ("id", "statement")
_BLOCK = 500_000
_TEXTS = 500
_LIMIT = 2**33


def status_graph(status: str) -> str:
    """The named graph in which statements of a status stand."""
    return f"{NS}graph:{status}"


def schemas() -> tuple[Any, Any, Any]:
    """The columns of the tables of statements, of evidence and of nodes (Arrow schemas)."""
    import pyarrow as pa

    word = pa.string()
    statements = pa.schema([("op", pa.int32()), ("id", word), ("subject", word), ("predicate", word), ("object", word),
                            ("qualifiers", pa.list_(pa.struct([("predicate", word), ("value", word)]))), ("confidence", pa.float64()),
                            ("kind", word), ("status", word), ("valid_from", word), ("valid_to", word), ("recorded_at", word),
                            ("retracted_at", word)])  # fmt: skip
    evidence = pa.schema([("statement", word), ("row", pa.int64()), ("document", word), ("start", pa.int64()), ("end", pa.int64()),
                          ("page", pa.int32()), ("element", word), ("quote", word), ("method", word), ("model", word), ("prompt", word),
                          ("run", word), ("score", pa.float64()), ("place", word), ("premises", pa.list_(word))])  # fmt: skip
    nodes = pa.schema([("id", word), ("label", word), ("types", pa.list_(word)), ("statements", pa.int64())])
    return statements, evidence, nodes


def columns_of(rows: Sequence[tuple[int, Statement]], first: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """The columns of (operation, statement) rows and of their evidence; ``first`` is the number of the first row."""
    table: dict[str, list[Any]] = {
        "op": [op for op, _ in rows], "id": [s.id for _, s in rows], "subject": [s.subject for _, s in rows],
        "predicate": [s.predicate for _, s in rows], "object": [text_of(s.object) for _, s in rows],
        "qualifiers": [[{"predicate": p, "value": text_of(v)} for p, v in s.qualifiers] for _, s in rows],
    }  # fmt: skip
    for name in ("confidence", "kind", "status", "valid_from", "valid_to", "recorded_at", "retracted_at"):
        table[name] = [getattr(s, name) for _, s in rows]
    pairs = [(s.id, first + i, e) for i, (_, s) in enumerate(rows) for e in s.evidence]
    proof: dict[str, list[Any]] = {"statement": [p[0] for p in pairs], "row": [p[1] for p in pairs]}
    *names, _ = (f.name for f in fields(Evidence))  # the last, premises, are lists
    for name in names:
        proof[name] = [getattr(e, name) for _, _, e in pairs]
    proof["premises"] = [list(e.premises) for _, _, e in pairs]
    return table, proof


def table_writer(path: Path, schema: Any) -> Any:
    """A writer of one of a graph's tables. Readers may skip by the least and largest of the columns that rows are looked for by; of
    texts and numbers of one row they would learn nothing for the time it takes."""
    import pyarrow.parquet as pq

    looked_for = [name for name in _LOOKED_FOR if name in schema.names]
    growing = {name: "DELTA_BINARY_PACKED" for name in _GROWING if name in schema.names}
    repeated = [name for name in _leaves(schema) if name not in (*_GROWING, *_OWN_NAMES)]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        write_statistics=looked_for,
        use_dictionary=repeated,
        column_encoding=growing or None,
    )


def _leaves(columns: Any, before: str = "") -> Iterator[str]:
    """The columns of a table as parquet names them, those within lists and records one by one."""
    import pyarrow as pa

    for column in columns:
        name, kind = before + column.name, column.type
        if pa.types.is_list(kind):
            name, kind = f"{name}.list.element", kind.value_type
        if pa.types.is_struct(kind):
            yield from _leaves(kind, f"{name}.")
        else:
            yield name


def write_statements(statements: Path, evidence: Path, rows: Iterable[tuple[int, Statement]]) -> int:
    """Writes (operation, statement) rows as two parquet tables, a batch at a time; returns how many there were."""
    import pyarrow as pa

    schema, proof_schema, _ = schemas()
    done = 0
    with (
        table_writer(statements, schema) as out,
        table_writer(evidence, proof_schema) as proof_out,
    ):
        for batch in _batches(rows, ROWS):
            table, proof = columns_of(batch, done)
            out.write_table(pa.table(table, schema=schema))
            proof_out.write_table(pa.table(proof, schema=proof_schema))
            done += len(batch)
    return done


def write_columns(folder: Path, columns: Mapping[str, Any]) -> None:
    """Writes the tables of a graph that was said in one operation, without evidence, from Arrow columns [N] (some may be missing)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, proof, _ = schemas()
    count = len(columns["id"])
    given = {"kind": pa.array(["extractor"]).take(pa.array([0] * count)), **columns}
    (folder / "log").mkdir(exist_ok=True)
    for name, number in (("statements.parquet", 0), ("log/assertions.parquet", 1)):
        given["op"] = pa.array([number] * count, type=pa.int32())
        arrays = [given[f.name] if f.name in given else pa.nulls(count, f.type) for f in schema]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), folder / name, compression="zstd")
    for name in ("evidence.parquet", "log/evidence.parquet"):
        pq.write_table(proof.empty_table(), folder / name, compression="zstd")
    row = {"n": 1, "kind": "add", "note": "from columns", "count": count}
    (folder / "log" / "operations.jsonl").write_text(json.dumps(row, sort_keys=True) + "\n")


def write_nodes(path: Path, rows: Iterable[tuple[str, str, list[str], int]]) -> int:
    """Writes (id, label, types, number of statements) rows."""
    import pyarrow as pa

    schema = schemas()[2]
    done = 0
    with table_writer(path, schema) as out:
        for batch in _batches(rows, ROWS):
            out.write_table(
                pa.table({name: [row[i] for row in batch] for i, name in enumerate(schema.names)}, schema=schema)
            )
            done += len(batch)
    return done


def _batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_statements(statements: Path, evidence: Path) -> Iterator[tuple[int, Statement]]:
    """The inverse of :func:`write_statements`.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    table, proof = read_table(statements), read_table(evidence)
    found: dict[int, list[Evidence]] = {}
    names = [n for n in proof.schema.names if n not in ("statement", "row", "premises")]
    lists = [proof.column(n).to_pylist() for n in names]
    premises = proof.column("premises").to_pylist()
    for i, row in enumerate(proof.column("row").to_pylist()):
        made = Evidence(
            **{n: values[i] for n, values in zip(names, lists, strict=True)}, premises=tuple(premises[i] or ())
        )
        found.setdefault(row, []).append(made)
    done = 0
    rest = ("confidence", "kind", "status", "valid_from", "valid_to", "recorded_at", "retracted_at")
    for batch in table.to_batches(max_chunksize=ROWS):
        columns = {n: batch.column(n).to_pylist() for n in table.schema.names if n != "id"}
        for i in range(batch.num_rows):
            qualifiers = tuple((q["predicate"], term_of(q["value"])) for q in columns["qualifiers"][i] or ())
            statement = Statement(
                columns["subject"][i],
                columns["predicate"][i],
                term_of(columns["object"][i]),
                qualifiers,
                evidence=tuple(found.get(done + i, ())),
                **{n: columns[n][i] for n in rest},
            )
            yield columns["op"][i], statement
        done += batch.num_rows


def read_table(path: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """A parquet table (some of its columns), memory-mapped.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    import pyarrow
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InterfuseError("input.missing", "a table of the graph is not there", where=str(path))
    try:
        with pq.ParquetFile(path, memory_map=True) as file:  # read_table would import what datasets of many files need
            return file.read(list(columns) if columns is not None else None)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InterfuseError(
            "input.format", f"the table cannot be read: {str(error).splitlines()[0]}", where=str(path)
        ) from error


def write_log(folder: Path, ops: Sequence[Op]) -> None:
    """Writes ``log/``: operations as JSON lines, what they added as tables."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "operations.jsonl").open("w", encoding="utf-8") as file:
        for op in ops:
            row = op.as_json(whole=False)
            if op.kind == "add":
                row["count"] = len(op.statements)
            file.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")
    write_statements(
        folder / "assertions.parquet",
        folder / "evidence.parquet",
        ((op.number, s) for op in ops for s in op.statements),
    )


def read_log(folder: Path) -> list[Op]:
    """The inverse of :func:`write_log`.

    Raises:
        InterfuseError: ``input.missing``, ``input.format`` or ``artifact.damaged`` when tables and operations disagree.
    """
    said: dict[int, list[Statement]] = {}
    for number, statement in read_statements(folder / "assertions.parquet", folder / "evidence.parquet"):
        said.setdefault(number, []).append(statement)
    ops = []
    for place, row in read_lines(folder / "operations.jsonl"):
        count = row.pop("count", 0)
        statements = said.pop(row.get("n", 0), [])
        if count != len(statements):
            raise InterfuseError(
                "artifact.damaged",
                f"an operation added {count} statements, the table holds {len(statements)}",
                where=place,
            )
        ops.append(Op.of_json(row, statements))
    if said:
        raise InterfuseError("artifact.damaged", "the table holds statements of no operation", where=str(folder))
    return ops


def read_lines(path: Path, *, torn: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON objects of a file, one a line, with their place. ``torn``: a last line without its end is left out.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format`` with the line.
    """
    lines = read_text(path, limit=_LIMIT).split("\n")
    last = lines.pop()
    if last and not torn:
        lines.append(last)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            raise InterfuseError("input.format", f"not a JSON object: {error}", where=f"{path}:{number}") from error
        yield f"{path}:{number}", row


DOCUMENTS = "documents.parquet"
#: what :meth:`interfuse.data.graph.Graph.save` writes anew
_OWN = (META, "statements.parquet", "evidence.parquet", "nodes.parquet", "graph.nq", "log", "columns")


def copy_others(old: Path, new: Path) -> None:
    """Copies what else lies in a graph's folder (documents, contracts, a report) into a new one."""
    import shutil

    from interfuse.core.artifact import MANIFEST

    for place in sorted(old.iterdir()):
        if place.name in (*_OWN, MANIFEST) or place.is_symlink():
            continue
        if place.is_dir():
            shutil.copytree(place, new / place.name)
        else:
            shutil.copyfile(place, new / place.name)


def write_documents(folder: Path, documents: Iterable[tuple[str, str, str]]) -> int:
    """Keeps documents' texts beside a graph, so that its evidence can be shown: (id, name, text) rows."""
    import pyarrow as pa

    schema = _document_schema()
    done = 0
    with table_writer(folder / DOCUMENTS, schema) as out:
        for batch in _batches(documents, _TEXTS):
            out.write_table(pa.table({n: [row[i] for row in batch] for i, n in enumerate(schema.names)}, schema=schema))
            done += len(batch)
    return done


def write_documents_table(folder: Path, documents: pyarrow.Table) -> None:
    """What :func:`write_documents` writes, from a table of the same columns."""
    with table_writer(folder / DOCUMENTS, _document_schema()) as out:
        for start in range(0, documents.num_rows, _TEXTS):
            out.write_table(documents.slice(start, _TEXTS).combine_chunks())


def _document_schema() -> Any:
    import pyarrow as pa

    return pa.schema([("id", pa.string()), ("name", pa.string()), ("text", pa.large_string())])


def read_documents_table(folder: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """The table of the texts kept beside a graph: id, name, text (or some of these).

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    return read_table(folder / DOCUMENTS, columns)


def read_documents(folder: Path) -> dict[str, tuple[str, str]]:
    """The texts kept beside a graph: id -> (name, text); empty when there are none.

    Raises:
        InterfuseError: ``input.format``.
    """
    if not (folder / DOCUMENTS).is_file():
        return {}
    table = read_documents_table(folder)
    ids, names, texts = (table.column(n).to_pylist() for n in ("id", "name", "text"))
    return {i: (n, t) for i, n, t in zip(ids, names, texts, strict=True)}


def write_meta(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes ``graph.json``."""
    (folder / META).write_bytes(canonical_json({"format": FORMAT, **facts}))


def read_meta(folder: Path) -> dict[str, Any]:
    """Reads ``graph.json``.

    Raises:
        InterfuseError: ``input.missing`` when the folder holds no graph, ``input.format`` when it is of another version.
    """
    path = folder / META
    if not path.is_file():
        raise InterfuseError(
            "input.missing", "the folder holds no graph", where=str(folder), fix=f"A graph's folder has a {META}."
        )
    try:
        found = json.loads(read_text(path))
        if found["format"] != FORMAT:
            raise InterfuseError("input.format", f"the graph is of format {found['format']!r}, not {FORMAT}", where=str(path),
                                 fix="Another version of Interfuse wrote it.")  # fmt: skip
        return dict(found)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InterfuseError("input.format", "the file is not valid", where=str(path)) from error


def write_quads(path: Path, statements: Iterable[Statement]) -> None:
    """Writes plain N-Quads: one line per statement, in the named graph of its status; withdrawn ones are left out."""
    graphs = {status: f" <{status_graph(status)}> .\n" for status in STATUSES}
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for s in statements:
            if s.status != "withdrawn":
                file.write(f"{text_of(s.subject)} <{s.predicate}> {text_of(s.object)}{graphs[s.status]}")


def quads(columns: Columns, nodes: Any, relations: Any) -> Iterator[bytes]:
    """N-Quads of an integer view, many lines at a time.

    Args:
        nodes, relations: their terms in N-Triples (Arrow strings [V], [R]).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    graphs = pa.array([f"<{status_graph(s)}> .\n" for s in STATUSES])
    for start in range(0, len(columns), _BLOCK):
        part = slice(start, start + _BLOCK)
        text = pc.binary_join_element_wise(
            nodes.take(pa.array(columns.subject[part])), relations.take(pa.array(columns.predicate[part])),
            nodes.take(pa.array(columns.object[part])), graphs.take(pa.array(columns.status[part])), " ",
        )  # fmt: skip
        data = text.buffers()[2]
        yield data.to_pybytes() if data is not None else b""
