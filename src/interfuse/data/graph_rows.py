"""Statements as tables, in the columns of a graph's files: cut, joined and written without an object per statement.

The files that :func:`write_whole` makes are those of :meth:`interfuse.data.graph.Graph.save`, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interfuse.data import graph_files as files
from interfuse.data.graph_columns import Columns, build_columns
from interfuse.data.graph_log import Op
from interfuse.data.statements import STATUSES, TYPE, Evidence, Statement, term_of

if TYPE_CHECKING:
    import pyarrow as pa

#: columns of statements that :func:`coded` codes
CODED = ("subject", "predicate", "object")
#: in more pieces than these a table is put together before rows are taken from it
_PIECES = 16
#: columns of evidence that are no field of it
_PLACE = ("statement", "row")


@dataclass(frozen=True)
class Rows:
    """N statements with their evidence.

    Attributes:
        table: the columns of ``statements.parquet`` without ``op``, and others behind them (``hash``: :func:`hash_of` it). Rows [N].
        proof: the columns of ``evidence.parquet`` without ``statement`` and ``row``, in the order of the statements.
        counts: how many rows of ``proof`` each statement has, int64 [N].
    """

    table: pa.Table
    proof: pa.Table
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each statement's evidence begins, int64 [N+1]."""
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.counts)])

    def column(self, name: str) -> Any:
        """A column of ``table``."""
        return self.table.column(name)

    def slice(self, start: int, stop: int) -> Rows:
        """Some rows in a row; nothing is copied."""
        a, b = int(self.starts[start]), int(self.starts[stop])
        return Rows(self.table.slice(start, stop - start), self.proof.slice(a, b - a), self.counts[start:stop])

    def take(self, index: NDArray[np.int64]) -> Rows:
        """Some rows, by their places."""
        counts = self.counts[index]
        ends = np.cumsum(counts)
        inside = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
        places = np.repeat(self.starts[index], counts) + inside
        return Rows(_taken(self.table, index), _taken(self.proof, places), counts)

    def together(self) -> Rows:
        """The same rows, in one piece: what is then taken from them is not put together each time."""
        return Rows(self.table.combine_chunks(), self.proof.combine_chunks(), self.counts)

    def statements(self, *, proof: bool = True) -> list[Statement]:
        """The rows as objects, on request without their evidence."""
        proofs: list[Evidence] = []
        if proof:
            *values, premises = (self.proof.column(f.name).to_pylist() for f in fields(Evidence))
            proofs = [Evidence(*[*row, tuple(p or ())]) for *row, p in zip(*values, premises, strict=True)]
        rest = ("confidence", "kind", "status", "valid_from", "valid_to", "recorded_at", "retracted_at")
        columns: dict[str, list[Any]] = {n: words_of(self.table.column(n)) for n in CODED}
        columns.update({n: self.table.column(n).to_pylist() for n in ("qualifiers", *rest)})
        starts = self.starts.tolist()
        return [
            Statement(columns["subject"][i], columns["predicate"][i], term_of(columns["object"][i]),
                      tuple((q["predicate"], term_of(q["value"])) for q in columns["qualifiers"][i] or ()),
                      evidence=tuple(proofs[starts[i] : starts[i + 1]]), **{n: columns[n][i] for n in rest})
            for i in range(len(self))
        ]  # fmt: skip


def _taken(table: Any, index: NDArray[np.int64]) -> Any:
    """Some rows of a table. Arrow would put the pieces of every column together first."""
    import pyarrow as pa

    many = max((c.num_chunks for c in table.columns), default=0)
    if not 1 < many <= _PIECES or np.any(index[1:] < index[:-1]):
        return table.take(pa.array(index))
    parts, at = [], 0
    for batch in table.to_batches():
        low, high = np.searchsorted(index, (at, at + batch.num_rows)).tolist()
        if high > low:
            parts.append(batch.take(pa.array(index[low:high] - at)))
        at += batch.num_rows
    return pa.Table.from_batches(parts, schema=table.schema)


def words_of(column: Any) -> list[str]:
    """The words of a column, plain or coded."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    found: list[str] = []
    for chunk in column.chunks:
        codes, places = np.unique(chunk.indices.to_numpy(), return_inverse=True)
        words = chunk.dictionary.take(pa.array(codes)).to_pylist()
        found += [words[i] for i in places.tolist()]
    return found


def coded(rows: Rows) -> Rows:
    """The same rows, their subjects, predicates and objects as numbers of words: most occur many times."""
    import pyarrow as pa

    table = rows.table
    for name in CODED:
        place = table.schema.get_field_index(name)
        if not pa.types.is_dictionary(table.schema.field(place).type):
            table = table.set_column(place, name, table.column(place).dictionary_encode())
    return Rows(table, rows.proof, rows.counts)


def plain(rows: Rows) -> Rows:
    """The inverse of :func:`coded`: many pieces of coded columns are slow to join, as each brings all the words."""
    import pyarrow as pa

    table = rows.table
    for name in CODED:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table.column(place).cast(pa.string()))
    return Rows(table, rows.proof, rows.counts)


def packed(table: Any) -> Any:
    """A table in one piece, without words that no row has any more where these are the most."""
    import pyarrow as pa

    table = table.combine_chunks()
    for place, field in enumerate(table.schema):
        if not pa.types.is_dictionary(field.type) or not table.num_rows:
            continue
        column = table.column(place).combine_chunks()
        size = len(column.dictionary)
        if 2 * np.count_nonzero(np.bincount(column.indices.to_numpy(), minlength=size)) < size:
            table = table.set_column(place, field.name, column.cast(pa.string()).dictionary_encode())
    return table


def rows_of(statements: Sequence[Statement], hashed: Callable[[Statement], bytes], **more: Sequence[Any]) -> Rows:
    """Statements as rows, with the hash of each, and further columns of words."""
    import pyarrow as pa

    schema, proof_schema = _schemas()
    table, proof = files.columns_of([(0, s) for s in statements], 0)
    columns = [pa.array(table[n], type=schema.field(n).type) for n in schema.names]
    columns.append(pa.array([hashed(s) for s in statements], type=pa.binary(32)))
    columns += [pa.array(values, type=pa.string()) for values in more.values()]
    made = pa.table({n: proof[n] for n in proof_schema.names}, schema=proof_schema)
    counts = np.array([len(s.evidence) for s in statements], dtype=np.int64)
    return Rows(pa.Table.from_arrays(columns, names=[*schema.names, "hash", *more]), made, counts)


def _schemas() -> tuple[Any, Any]:
    import pyarrow as pa

    schema, proof, _ = files.schemas()
    return pa.schema([f for f in schema if f.name != "op"]), pa.schema([f for f in proof if f.name not in _PLACE])


def joined(parts: Iterable[Rows]) -> Rows:
    """Rows one after the other."""
    import pyarrow as pa

    parts = list(parts)
    return Rows(pa.concat_tables([p.table for p in parts]), pa.concat_tables([p.proof for p in parts]),
                np.concatenate([p.counts for p in parts]))  # fmt: skip


def spliced(rows: Rows, drop: NDArray[np.int64], new: Rows, places: Sequence[int]) -> Rows:
    """Rows without some (their places, ascending), and with new ones before the places that are given for them (ascending)."""
    parts: list[Rows] = []
    events = sorted([(int(p), 1, -1) for p in drop] + [(int(p), 0, i) for i, p in enumerate(places)])
    at = 0
    for place, dropped, i in events:
        if place > at:
            parts.append(rows.slice(at, place))
        parts += [] if dropped else [new.slice(i, i + 1)]
        at = place + dropped
    return joined([*parts, rows.slice(at, len(rows))])


def read_rows(statements: Path, evidence: Path, more: Any = None) -> Rows:
    """The rows of two tables of a graph's folder, with the columns of a third.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    table, proof = files.read_table(statements), files.read_table(evidence)
    counts = np.bincount(proof.column("row").to_numpy(), minlength=table.num_rows).astype(np.int64)
    table = table.drop_columns(["op"])
    for name in more.schema.names if more is not None else ():
        table = table.append_column(name, more.column(name))
    return Rows(table, proof.drop_columns(list(_PLACE)), counts)


def node_column(rows: Rows) -> Any:
    """The objects as nodes of the integer view are called: an IRI or blank node as it is, a literal as its text."""
    import pyarrow.compute as pc

    column = rows.column("object")
    return pc.if_else(pc.starts_with(column, "<"), pc.utf8_trim(column, "<>"), column)


def is_literal(rows: Rows) -> Any:
    """Which objects are literals."""
    import pyarrow.compute as pc

    return pc.starts_with(rows.column("object"), '"')


def write_rows(statements: Path, evidence: Path, rows: Rows, op: int) -> None:
    """What :func:`interfuse.data.graph_files.write_statements` writes."""
    import pyarrow as pa

    schema, proof_schema, _ = files.schemas()
    with (
        files.table_writer(statements, schema) as out,
        files.table_writer(evidence, proof_schema) as proof_out,
    ):
        for start in range(0, len(rows), files.ROWS):
            part = rows.slice(start, min(start + files.ROWS, len(rows)))
            table, proof = part.table.combine_chunks(), part.proof.combine_chunks()
            place = np.repeat(np.arange(len(part)), part.counts)
            given = {"op": pa.array(np.full(len(part), op, dtype=np.int32))}
            plain = {n: given[n] if n in given else table.column(n).cast(schema.field(n).type) for n in schema.names}
            out.write_table(pa.table(plain, schema=schema))
            told = {"statement": table.column("id").take(pa.array(place)), "row": pa.array(place + start)}
            proof_out.write_table(
                pa.table(
                    {n: told[n] if n in told else proof.column(n) for n in proof_schema.names}, schema=proof_schema
                )
            )


def write_node_table(path: Path, nodes: pa.Table) -> None:
    """What :func:`interfuse.data.graph_files.write_nodes` writes."""
    import pyarrow as pa

    schema = files.schemas()[2]
    with files.table_writer(path, schema) as out:
        for start in range(0, nodes.num_rows, files.ROWS):
            part = nodes.slice(start, files.ROWS).combine_chunks()
            out.write_table(pa.table({n: part.column(n) for n in schema.names}, schema=schema))


def write_log_rows(folder: Path, rows: Rows, ops: Sequence[Op]) -> None:
    """What :func:`interfuse.data.graph_files.write_log` writes, when the first operation adds all rows and no other adds any."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "operations.jsonl").open("w", encoding="utf-8") as file:
        for op in ops:
            row = op.as_json(whole=False)
            if op.kind == "add":
                row["count"] = len(rows)
            file.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")
    write_rows(folder / "assertions.parquet", folder / "evidence.parquet", rows, 1)


def _quads(rows: Rows) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.compute as pc

    graphs = pa.array([f"<{files.status_graph(s)}> .\n" for s in STATUSES])
    for start in range(0, len(rows), files.ROWS):
        part = rows.slice(start, min(start + files.ROWS, len(rows)))
        subject = part.column("subject")
        subject = pc.if_else(pc.starts_with(subject, "_:"), subject, pc.binary_join_element_wise("<", subject, ">", ""))
        predicate = pc.binary_join_element_wise("<", part.column("predicate"), ">", "")
        place = graphs.take(pc.index_in(part.column("status"), pa.array(STATUSES)).combine_chunks())
        made = pc.binary_join_element_wise(subject, predicate, part.column("object"), pa.chunked_array([place]), " ")
        whole = made.combine_chunks()  # its words stand one after the other in one buffer
        data, ends = whole.buffers()[2], np.frombuffer(whole.buffers()[1], dtype=np.int32)
        yield data.slice(ends[whole.offset], ends[whole.offset + len(whole)] - ends[whole.offset])


def write_quads(path: Path, rows: Rows) -> None:
    """What :func:`interfuse.data.graph_files.write_quads` writes, when nothing is withdrawn."""
    with path.open("wb") as file:
        file.writelines(_quads(rows))


def columns_of_rows(rows: Rows) -> Columns:
    """The integer view of a graph's statements in their order, none of which is withdrawn."""
    import pyarrow as pa
    import pyarrow.compute as pc

    many = pc.list_value_length(rows.column("qualifiers")).fill_null(0).to_numpy()
    told = [(int(i), q["predicate"], _node(q["value"]))
            for i in np.flatnonzero(many) for q in rows.column("qualifiers")[int(i)].as_py()]  # fmt: skip
    return build_columns(
        rows.column("subject"), rows.column("predicate"), node_column(rows), confidence=rows.column("confidence").to_numpy(),
        status=pc.index_in(rows.column("status"), pa.array(STATUSES)).to_numpy(), literal=is_literal(rows).to_numpy(),
        qualifiers=tuple(zip(*told, strict=True)) if told else None,  # type: ignore[arg-type]
    )  # fmt: skip


def _node(text: str) -> str:
    return text[1:-1] if text.startswith("<") else text


def counts_of(rows: Rows) -> dict[str, Any]:
    """What :meth:`interfuse.data.graph.Graph.stats` says of statements, of which none is withdrawn."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = {row["values"]: row["counts"] for row in pc.value_counts(rows.column("status")).to_pylist()}
    statuses = {s: int(found[s]) for s in STATUSES if s in found}
    things = pc.and_(pc.invert(is_literal(rows)), pc.not_equal(rows.column("predicate"), TYPE))
    others = node_column(rows).filter(things)
    names = pa.chunked_array([*rows.column("subject").chunks, *others.chunks], type=pa.string())
    return {
        "statements": len(rows), **{f"statements {k}": v for k, v in statuses.items()}, "with evidence": int(np.count_nonzero(rows.counts)),
        "entities": len(pc.unique(names)), "relations": len(pc.unique(rows.column("predicate"))),
        "documents": len(pc.unique(rows.proof.column("document"))),
    }  # fmt: skip
