"""A graph as integers: sorted columns, compressed sparse rows in both directions, qualifiers. For learning, and for millions.

Built from TSV or tables without making a Python object per statement, saved as plain ``.npy`` and Arrow files, and opened again
by mapping them into memory, whatever their size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

_ARRAYS = ("subject", "predicate", "object", "confidence", "status", "indptr", "by_object", "object_indptr", "qualifier_indptr",
           "qualifier_relation", "qualifier_value", "literal")  # fmt: skip
#: so few rows are not worth the import of a library that sorts integers faster
_FEW = 1 << 18
#: malformed lines that are described; the rest are counted
SHOWN = 100


@dataclass(frozen=True)
class Problems:
    """What was wrong with lines that were left out: the first hundred in words, and how many there were."""

    shown: tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class Columns:
    """N statements over V nodes and R relations, sorted by subject, predicate, object (indices, which follow the sorted names).

    Attributes:
        nodes, relations: their names, sorted (Arrow strings [V], [R]). A literal's name is its N-Triples text.
        subject, predicate, object: int32 [N]. confidence: float32 [N]. status: uint8 [N], an index into ``STATUSES``.
        indptr: int64 [V+1]; the statements of subject ``i`` are rows ``indptr[i]:indptr[i+1]``.
        by_object: int32 [N], rows sorted by object; object_indptr: int64 [V+1].
        qualifier_indptr: int64 [N+1]; qualifier_relation, qualifier_value: int32 [Q].
        literal: bool [V], which nodes are literals. duplicates: rows that were left out because they said nothing new.
        problems: lines that could not be read.
    """

    nodes: pa.Array = field(repr=False)
    relations: pa.Array = field(repr=False)
    subject: NDArray[np.int32] = field(repr=False)
    predicate: NDArray[np.int32] = field(repr=False)
    object: NDArray[np.int32] = field(repr=False)
    confidence: NDArray[np.float32] = field(repr=False)
    status: NDArray[np.uint8] = field(repr=False)
    indptr: NDArray[np.int64] = field(repr=False)
    by_object: NDArray[np.int32] = field(repr=False)
    object_indptr: NDArray[np.int64] = field(repr=False)
    qualifier_indptr: NDArray[np.int64] = field(repr=False)
    qualifier_relation: NDArray[np.int32] = field(repr=False)
    qualifier_value: NDArray[np.int32] = field(repr=False)
    literal: NDArray[np.bool_] = field(repr=False)
    duplicates: int = 0
    problems: Problems = Problems()

    def __len__(self) -> int:
        return len(self.subject)

    def triples(self) -> NDArray[np.int32]:
        """Subject, predicate and object indices, int32 [N, 3]."""
        return np.stack([self.subject, self.predicate, self.object], axis=1)

    def node(self, name: str) -> int:
        """The index of a node.

        Raises:
            InterfuseError: ``input.missing``.
        """
        return _find(self.nodes, name)

    def relation(self, name: str) -> int:
        """The index of a relation.

        Raises:
            InterfuseError: ``input.missing``.
        """
        return _find(self.relations, name)

    def rows_of(self, node: int) -> NDArray[np.int64]:
        """The rows with a node as subject or object, sorted, int64 [M]."""
        out = np.arange(self.indptr[node], self.indptr[node + 1])
        back = self.by_object[self.object_indptr[node] : self.object_indptr[node + 1]].astype(np.int64)
        return np.union1d(out, back)

    def digest(self) -> str:
        """A digest of names and rows."""
        import hashlib

        made = hashlib.sha256()
        for array in (self.nodes, self.relations):
            for buffer in array.buffers()[1:]:
                made.update(buffer if buffer is not None else b"")
        for name in _ARRAYS:
            made.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return fingerprint({"columns": made.hexdigest()})

    def save(self, folder: Path) -> None:
        """Writes plain files that :func:`open_columns` maps into memory."""
        import pyarrow as pa

        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", np.ascontiguousarray(getattr(self, name)), allow_pickle=False)
        for name in ("nodes", "relations"):
            table = pa.table({"name": getattr(self, name)})
            with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
                out.write_table(table)


def open_columns(folder: Path) -> Columns:
    """Maps a saved view into memory; nothing is copied.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    import pyarrow as pa

    made: dict[str, Any] = {}
    try:
        for name in _ARRAYS:
            made[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("nodes", "relations"):
            column = pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).read_all().column("name")
            made[name] = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    except FileNotFoundError as error:
        raise InterfuseError("input.missing", "a file of the columnar view is not there", where=str(folder)) from error
    except (ValueError, OSError, EOFError, pa.ArrowException) as error:
        raise InterfuseError(
            "input.format", f"the columnar view cannot be read: {type(error).__name__}", where=str(folder)
        ) from error
    return Columns(**made)


def build_columns(subject: Any, predicate: Any, object: Any, *, confidence: Any = None, status: Any = None, literal: Any = None,
                  qualifiers: tuple[Any, Any, Any] | None = None, problems: Problems = Problems()) -> Columns:  # fmt: skip
    """Sorted columns from names.

    Args:
        subject, predicate, object: names, one per row (Arrow arrays, plain or dictionary-encoded, or lists) [N].
        confidence: float [N], 1 when None. status: uint8 [N]. literal: which objects are literals, bool [N].
        qualifiers: row (int), relation name and value name of every qualifier [Q]; values that are literals are those whose name
            begins with a quotation mark when ``literal`` is given.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    q_rows = np.asarray(qualifiers[0] if qualifiers else [], dtype=np.int64)
    nodes, (s, o, values) = _encoded(subject, object, qualifiers[2] if qualifiers else [])
    relations, (p, others) = _encoded(predicate, qualifiers[1] if qualifiers else [])
    count = len(s)
    flags = np.zeros(len(nodes), dtype=bool)
    if literal is not None:
        flags[o[np.asarray(literal, dtype=bool)]] = True
        if len(values):
            flags[values] |= np.asarray(pc.starts_with(nodes.take(pa.array(values)), '"'))
    sure = np.ones(count, dtype=np.float32) if confidence is None else np.asarray(confidence, dtype=np.float32)
    state = np.ones(count, dtype=np.uint8) if status is None else np.asarray(status, dtype=np.uint8)
    order = _order(s, p, o, len(nodes), len(relations))
    s, p, o, sure, state = s[order], p[order], o[order], sure[order], state[order]
    duplicates = 0
    if not len(q_rows) and count:  # with qualifiers, equal triples may be different statements
        fresh = np.ones(count, dtype=bool)
        fresh[1:] = (s[1:] != s[:-1]) | (o[1:] != o[:-1]) | (p[1:] != p[:-1])
        duplicates = int(count - np.count_nonzero(fresh))
        if duplicates:
            sure = np.maximum.reduceat(sure, np.flatnonzero(fresh))
            s, p, o, state = s[fresh], p[fresh], o[fresh], state[fresh]
            count = len(s)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    rows = place[q_rows] if len(q_rows) else q_rows
    q_order = np.lexsort((values, others, rows)) if len(rows) else np.zeros(0, dtype=np.int64)
    back = _stable(o, len(nodes))
    return Columns(
        nodes, relations, s, p, o, sure, state, _pointers(s, len(nodes)), back.astype(np.int32), _pointers(o, len(nodes)),
        _pointers(rows, count), others[q_order], values[q_order], flags, duplicates,
        problems,
    )  # fmt: skip


def _pieces(values: Any) -> list[tuple[NDArray[np.int64], pa.Array]]:
    """Codes and the names they stand for, chunk by chunk."""
    import pyarrow as pa

    if not isinstance(values, pa.Array | pa.ChunkedArray):
        values = pa.array(list(values), type=pa.string())
    made = []
    for chunk in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
        coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        if coded.null_count:
            raise InterfuseError("input.missing", "a name is empty")
        if len(coded):
            made.append((coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.cast(pa.string())))
    return made


def _encoded(*columns: Any) -> tuple[pa.Array, list[NDArray[np.int32]]]:
    """All names of some columns once, sorted by code point, and each column as places among them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    pieces = [_pieces(values) for values in columns]
    # chunk by chunk into one table of names: put together first, the chunks' own dictionaries could pass what one array holds
    joined = pa.chunked_array([names for column in pieces for _, names in column], type=pa.string()).dictionary_encode()
    unique = joined.chunk(0).dictionary if joined.num_chunks else pa.array([], type=pa.string())
    order = pc.sort_indices(unique)
    rank = np.empty(len(unique), dtype=np.int32)
    rank[order.to_numpy()] = np.arange(len(unique), dtype=np.int32)
    here, made = iter(joined.chunks), []
    for column in pieces:
        parts = [rank[next(here).indices.to_numpy(zero_copy_only=False)][codes] for codes, _ in column]
        made.append(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32))
    return unique.take(order), made


def _order(
    s: NDArray[np.int32], p: NDArray[np.int32], o: NDArray[np.int32], nodes: int, relations: int
) -> NDArray[np.int64]:
    """Rows sorted by subject, predicate, object; equal rows keep their order."""
    if nodes and relations and nodes * nodes * relations < 2**63:
        key = (s.astype(np.int64) * relations + p) * nodes + o
        return np.argsort(key, kind="stable")
    return np.lexsort((o, p, s))


def _stable(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Rows sorted by a small integer, stably."""
    if len(values) < _FEW and "scipy.sparse" not in sys.modules:  # importing it takes longer than it saves
        return np.argsort(values, kind="stable")
    from scipy.sparse import csr_matrix

    if not len(values):
        return np.zeros(0, dtype=np.int64)
    rows = np.arange(len(values), dtype=np.int32)
    table = csr_matrix((rows, values, np.arange(len(values) + 1, dtype=np.int64)), shape=(len(values), count)).tocsc()
    return np.asarray(table.data, dtype=np.int64)


def _pointers(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Where each of ``count`` values begins among sorted rows, int64 [count+1]."""
    made = np.zeros(count + 1, dtype=np.int64)
    if len(values):
        np.cumsum(np.bincount(values, minlength=count), out=made[1:])
    return made


def _find(names: pa.Array, name: str) -> int:
    low, high = 0, len(names)
    while low < high:
        middle = (low + high) // 2
        if names[middle].as_py().encode() < name.encode():
            low = middle + 1
        else:
            high = middle
    if low < len(names) and names[low].as_py() == name:
        return low
    raise InterfuseError("input.missing", f"the graph has no {name!r}")


def read_tsv(path: Path, *, delimiter: str = "\t", header: bool = False, strict: bool = False) -> Columns:
    """Triples from a file of subject, predicate, object (PyKEEN's TSV), without quoting.

    Lines with another number of fields, or with an empty one, are left out: the first hundred are described, all are counted.

    Raises:
        InterfuseError: ``input.missing``, ``input.empty``, ``input.format`` (not UTF-8, or a bad line and ``strict``).
    """
    import pyarrow as pa
    import pyarrow.csv

    count = 0

    def bad(row: Any) -> str:
        nonlocal count
        count += 1
        return "skip"

    word = pa.dictionary(pa.int32(), pa.string())
    names = ["s", "p", "o"]
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=int(header), block_size=2**21),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=False, invalid_row_handler=bad),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, word), strings_can_be_null=False
            ),
        )
    except FileNotFoundError as error:
        raise InterfuseError("input.missing", "there is no such file", where=str(path)) from error
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            raise InterfuseError("input.empty", "the file has no lines", where=str(path)) from error
        raise InterfuseError(
            "input.format", f"the file cannot be read: {str(error).splitlines()[0]}", where=str(path)
        ) from error
    table, nameless = _without_empty(table)
    count += nameless
    shown = _bad_lines(path, delimiter, header) if count else ()
    if strict and count:
        raise InterfuseError(
            "input.format", f"{count} lines are not subject, predicate, object: {shown[0]}", where=str(path)
        )
    if not table.num_rows:
        raise InterfuseError("input.empty", f"the file has no triples ({count} bad lines)", where=str(path))
    return build_columns(table.column("s"), table.column("p"), table.column("o"), problems=Problems(shown, count))


def _bad_lines(path: Path, delimiter: str, header: bool) -> tuple[str, ...]:
    """What is wrong with the first hundred bad lines, each with its number; the reader works in several threads and does not tell."""
    shown: list[str] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip("\n").split(delimiter)
            if (len(fields) == 3 and all(fields)) or line == "\n" or (header and number == 1):
                continue
            wrong = "an empty name" if len(fields) == 3 else f"{len(fields)} fields instead of 3"
            shown.append(f"{path.name}:{number}: {wrong}: {line.rstrip()[:80]!r}")
            if len(shown) == SHOWN:
                break
    return tuple(shown)


def _without_empty(table: Any) -> tuple[Any, int]:
    """A table of dictionary columns without the rows that have an empty word, and how many these were."""
    import pyarrow.compute as pc

    empty = None
    for column in table.columns:
        if any(pc.any(pc.equal(chunk.dictionary, "")).as_py() for chunk in column.chunks):
            here = pc.equal(column.cast("string"), "")
            empty = here if empty is None else pc.or_(empty, here)
    if empty is None:
        return table, 0
    return table.filter(pc.invert(empty)), int(pc.sum(empty).as_py())


def read_columns_parquet(path: Path, columns: Sequence[str] = ("subject", "predicate", "object")) -> Columns:
    """Triples from three columns of a parquet file.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=list(columns), read_dictionary=list(columns))
    except FileNotFoundError as error:
        raise InterfuseError("input.missing", "there is no such file", where=str(path)) from error
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InterfuseError(
            "input.format", f"the table cannot be read: {str(error).splitlines()[0]}", where=str(path)
        ) from error
    return build_columns(*(table.column(name) for name in columns))


#: what an IRI looks like, as :func:`interfuse.data.statements.check_name` sees it
_IRI = r"^[A-Za-z][A-Za-z0-9+.\-]*:[^\x00-\x20<>\"{}|^`\\]+$"


def texts(columns: Columns) -> tuple[pa.Array, pa.Array]:
    """Names of nodes and relations as N-Triples terms [V], [R]. The names must be IRIs, blank nodes or literals' texts."""
    import pyarrow.compute as pc

    def terms(names: Any) -> Any:
        return pc.if_else(
            pc.match_substring_regex(names, r'^(?:"|_:)'), names, pc.binary_join_element_wise("<", names, ">", "")
        )

    return terms(columns.nodes), terms(columns.relations)


def named(columns: Columns) -> Columns:
    """The same graph in which every name is an IRI, a blank node or a literal's text.

    Other names are percent-encoded behind ``urn:interfuse:entity:`` and ``urn:interfuse:relation:``; :func:`word_of` undoes it.
    """
    from urllib.parse import quote

    import pyarrow as pa
    import pyarrow.compute as pc

    from interfuse.data.statements import ENTITY, RELATION

    changed = False

    def fit(names: Any, base: str, kept: Any) -> Any:
        nonlocal changed
        good = pc.or_(pc.match_substring_regex(names, _IRI), kept)
        if pc.all(good).as_py():
            return names
        changed = True
        return pa.array([n if ok else base + quote(n, safe="")
                         for n, ok in zip(names.to_pylist(), good.to_pylist(), strict=True)], type=pa.string())  # fmt: skip

    blank = pc.match_substring_regex(columns.nodes, "^_:[A-Za-z0-9_]+$")
    nodes = fit(columns.nodes, ENTITY, pc.or_(blank, pa.array(columns.literal)))
    relations = fit(columns.relations, RELATION, pa.array(np.zeros(len(columns.relations), dtype=bool)))
    if not changed:
        return columns
    rows = np.repeat(np.arange(len(columns)), np.diff(columns.qualifier_indptr))
    coded = [(columns.subject, nodes), (columns.predicate, relations), (columns.object, nodes)]
    made = build_columns(
        *(pa.DictionaryArray.from_arrays(pa.array(codes), names) for codes, names in coded), confidence=columns.confidence,
        status=columns.status, literal=columns.literal[columns.object], problems=columns.problems,
        qualifiers=(rows, relations.take(pa.array(columns.qualifier_relation)), nodes.take(pa.array(columns.qualifier_value)))
        if len(rows) else None,
    )  # fmt: skip
    return replace(made, duplicates=columns.duplicates)


def word_of(name: str) -> str:
    """What a name that :func:`named` made stood for; other names as they are."""
    from urllib.parse import unquote

    from interfuse.data.statements import ENTITY, RELATION

    for base in (ENTITY, RELATION):
        if name.startswith(base):
            return unquote(name[len(base) :])
    return name


def same(a: Columns, b: Columns) -> bool:
    """Whether two views hold the same names and rows."""
    return all(
        getattr(a, f.name).equals(getattr(b, f.name)) if f.name in ("nodes", "relations")
        else np.array_equal(getattr(a, f.name), getattr(b, f.name))
        for f in fields(a) if f.name not in ("duplicates", "problems")
    )  # fmt: skip
