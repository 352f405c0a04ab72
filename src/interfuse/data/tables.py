"""Tables: examples with declared columns, from files of many formats or from scikit-learn, as ``datasets.Dataset``.

A table source in a recipe::

    digits:   {data: "sklearn:digits", split: {train: 0.5, transfer: 0.3, test: 0.2}}
    low:      {from: digits, take: train, classes: [0, 1, 2, 3, 4, 5]}
    mine:     {data: photos/}                                      # a folder with one folder per class
    reviews:  {data: reviews.parquet, columns: {text: body, label: stars}}

Columns have one of the roles ``image``, ``text``, ``features`` (one column or a list of number columns), ``label``, ``id``; for language
models also ``prompt`` and ``response``, ``messages`` (a conversation: rows of role and content), ``chosen`` and ``rejected`` (two
responses, of which the first is preferred), and ``choices`` (a list of answers, of which ``label`` names the right one by its place,
letter or text). A folder that a step has made is a table too, its columns as that step declared them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.artifact import MANIFEST, open_artifact
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.rooms import Source
from interfuse.core.safe import file_sha256, fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = ("image", "text", "features", "label", "id", "prompt", "response", "messages", "chosen", "rejected", "choices")
#: roles that a model can be given, one of which every table has
CONTENT = ("image", "text", "features", "messages", "prompt")
KEYS = (
    "data",
    "from",
    "columns",
    "split",
    "take",
    "split_seed",
    "classes",
    "distort",
    "limit",
    "shape",
    "scale",
    "labels",
)
#: the file that holds the rows of a table that a step has made
MADE = "examples.parquet"
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Table:
    """A view of rows with declared columns.

    Attributes:
        name: how reports call it.
        dataset: the whole table, memory-mapped Arrow.
        rows: indices of the rows of this view, in order (int64).
        columns: role -> column name (or names, for ``features``).
        classes: names of the classes, empty when there is no label column. codes: class index of every row of ``dataset``.
        origin: a description that fixes the content (files with hashes and every view step).
        shape: [H, W] or [C, H, W] of images that are stored as flat numbers; scale: divisor of their values.
        distort: distortion steps applied to images when they are read: ``(kind, amount)``.
    """

    name: str
    dataset: Dataset = field(repr=False, compare=False)
    rows: NDArray[np.int64] = field(repr=False, compare=False)
    columns: Mapping[str, Any]
    classes: tuple[str, ...]
    codes: NDArray[np.int64] = field(repr=False, compare=False)
    origin: Any = field(repr=False)
    shape: tuple[int, ...] = ()
    scale: float = 1.0
    distort: tuple[tuple[str, float], ...] = ()
    parts: Mapping[str, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)
    made_by: str = ""
    parents: tuple[Any, ...] = field(default=(), repr=False)
    key: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """The key of the step that makes it, or a digest of its files and view."""
        return self.key or fingerprint(self.origin)

    @property
    def kind(self) -> str:
        """``image``, ``text``, ``features``, ``messages`` or ``prompt``: what a model is given."""
        return next((role for role in CONTENT if role in self.columns), "none")

    def values(self, role: str) -> list[Any]:
        """The column of a role, one value per row.

        Raises:
            InterfuseError: ``input.missing`` when the table has no such column.
        """
        if role not in self.columns:
            raise InterfuseError(
                "input.missing",
                f"the table has no {role} column",
                where=self.name,
                fix=f"Declare it: columns: {{{role}: NAME}}.",
            )
        return list(self.dataset.select_columns([self.columns[role]]).with_format(None)[self.rows][self.columns[role]])

    def column(self, name: str) -> list[Any]:
        """The column of a name, one value per row.

        Raises:
            InterfuseError: ``input.missing`` with the columns there are.
        """
        if name not in self.dataset.column_names:
            raise InterfuseError("input.missing", f"the table has no column {name!r}", where=self.name,
                                 fix=did_you_mean(name, self.dataset.column_names))  # fmt: skip
        return list(self.dataset.select_columns([name]).with_format(None)[self.rows][name])

    def labels(self) -> NDArray[np.int64]:
        """Class indices of the rows, shape [N].

        Raises:
            InterfuseError: ``input.missing`` when the table has no label column.
        """
        if "label" not in self.columns:
            raise InterfuseError("input.missing", "the table has no label column", where=self.name,
                                 fix="Declare it: columns: {label: NAME}.")  # fmt: skip
        return self.codes[self.rows]

    def ids(self) -> list[str]:
        """One identifier per row: the id column, or the row's number in the whole table."""
        if "id" in self.columns:
            return [str(v) for v in self.dataset.select_columns([self.columns["id"]])[self.rows][self.columns["id"]]]
        return [str(i) for i in self.rows]


def _column(dataset: Dataset, name: str) -> list[Any]:
    return list(dataset.with_format(None)[name])


def open_table(source: Source, ctx: Ctx, *, content: bool = True) -> Table:
    """Opens a table: reads files' headers and label columns, checks the declared columns, computes the view.

    Args:
        content: a column must be declared that a model can be given; False where columns are asked for by their names.

    Raises:
        InterfuseError: ``input.missing``, ``input.empty``, ``input.nan``, ``input.duplicate``, ``input.format``, ``unsafe.pickle``,
            ``param.unknown`` or ``param.value``.
    """
    spec = source.spec
    if isinstance(spec, Table):
        return spec
    if isinstance(spec, str | Path):
        spec = {"data": str(spec)}
    if not isinstance(spec, Mapping):
        return from_dataset(spec, source.name or "table", content=content)
    for key in spec:
        if key not in KEYS:
            raise InterfuseError("param.unknown", f"a table source has no key {key!r}", where=source.name,
                                 fix=did_you_mean(key, KEYS))  # fmt: skip
    if "from" in spec:
        table = open_table(Source(spec["from"], source.name, source.folder), ctx, content=content)
        if "columns" in spec:
            raise InterfuseError("param.value", "'columns' belongs to the source with 'data'", where=source.name)
    elif "data" in spec:
        table = _read(spec, source, content)
    else:
        raise InterfuseError("param.missing", "a table source needs 'data' or 'from'", where=source.name)
    table = _view(table, spec, source.name or table.name)
    if not len(table):
        raise InterfuseError("input.empty", "the table has no rows", where=source.name or table.name)
    return table


def from_dataset(value: Any, name: str, columns: Mapping[str, Any] | None = None, *, content: bool = True) -> Table:
    """A table from a ``datasets.Dataset`` or a table of columns (lists or arrays) in memory.

    Raises:
        InterfuseError: ``input.type`` for anything else.
    """
    from datasets import Dataset

    if isinstance(value, Dataset):
        dataset = value
        origin: Any = {"dataset": _content_digest(dataset)}
    else:
        raise InterfuseError(
            "input.type",
            f"a table is a path, a table of keys or a datasets.Dataset, not {type(value).__name__}",
            fix="A frame of pandas: datasets.Dataset.from_pandas(frame); rows: datasets.Dataset.from_list(rows).",
        )
    return _declare(dataset, columns or {}, name, origin, content=content)


def overlap(one: Table, other: Table) -> list[str]:
    """The ids, as ``one`` has them, of the examples that two tables have in common: rows of the same content, or else the ids of two
    tables that have id columns."""
    if one.origin.get("data", one.origin) == other.origin.get("data", other.origin):
        common = np.isin(one.rows, other.rows)
        return [i for i, both in zip(one.ids(), common.tolist(), strict=True) if both]
    if "id" in one.columns and "id" in other.columns:
        known = set(other.ids())
        return [i for i in one.ids() if i in known]
    return []


def table_of_texts(texts: Sequence[str], name: str, origin: Any) -> Table:
    """A table of one text column. ``origin``: plain data that fixes the content."""
    from datasets import Dataset

    return _declare(Dataset.from_dict({"text": list(texts)}), {"text": "text"}, name, origin)


def with_places(table: Table) -> Table:
    """Prompts, or conversations that end with a question, with a place for an answer: what stands there says nothing."""
    import dataclasses

    if table.kind == "prompt" and "response" not in table.columns:
        return dataclasses.replace(table, columns={**table.columns, "response": table.columns["prompt"]})
    if table.kind != "messages" or all(m and m[-1]["role"] == "assistant" for m in table.values("messages")):
        return table
    from datasets import Dataset

    name = table.columns["messages"]
    turns = [[dict(m) for m in row] for row in _column(table.dataset, name)]
    turns = [t if t and t[-1]["role"] == "assistant" else [*t, {"role": "assistant", "content": "..."}] for t in turns]
    rest = {str(c): _column(table.dataset, str(c)) for c in table.columns.values() if c != name}
    return dataclasses.replace(table, dataset=Dataset.from_dict({**rest, name: turns}))


def _content_digest(dataset: Dataset) -> str:
    import hashlib

    digest = hashlib.sha256(str(dataset.features).encode())
    for batch in dataset.with_format("arrow").iter(batch_size=10_000):
        digest.update(repr(batch.to_pylist()).encode())
    return digest.hexdigest()


def _read(spec: Mapping[str, Any], source: Source, content: bool) -> Table:
    from datasets import Dataset

    where, name = str(spec["data"]), source.name or Path(str(spec["data"])).stem
    columns = dict(spec.get("columns") or {})
    for role in columns:
        if role not in ROLES:
            raise InterfuseError(
                "param.unknown", f"{role!r} is not a role of a column", where=name, fix=did_you_mean(role, ROLES)
            )
    shape = tuple(spec.get("shape") or ())
    if where.startswith("sklearn:"):
        dataset, columns, shape, scale, origin = _sklearn(where[8:], columns)
        return _declare(dataset, columns, name, origin, shape, float(spec.get("scale") or scale), spec.get("labels"))
    path = Path(where).expanduser()
    path = path if path.is_absolute() else source.folder / path
    if not path.exists():
        raise InterfuseError("input.missing", "there is no such file or folder", where=str(path))
    if (path / MANIFEST).is_file():
        dataset, made, origin = read_made(path)
        columns = columns or made
    elif path.is_dir():
        dataset, columns, origin = _image_folder(path, columns)
    elif path.suffix in (".pkl", ".pickle", ".npy", ".npz", ".pt", ".joblib"):
        raise InterfuseError(
            "unsafe.pickle",
            "the data is a pickle or may hold one",
            where=str(path),
            fix="Save it as parquet, CSV or JSONL.",
        )
    else:
        dataset = read_file(path)
        origin = {"file": path.name, "sha256": file_sha256(path)}
    assert isinstance(dataset, Dataset)
    return _declare(dataset, columns, name, origin, shape, float(spec.get("scale") or 1.0), spec.get("labels"), content)


def read_file(path: Path) -> Any:
    """One parquet, CSV, TSV, JSONL or Arrow file as a ``datasets.Dataset``; nothing is copied into a cache folder.

    Raises:
        InterfuseError: ``input.type`` or ``input.format``.
    """
    import pyarrow
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet
    from datasets import Dataset
    from datasets.table import InMemoryTable

    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path, memory_map=True)
        elif path.suffix in (".csv", ".tsv"):
            delimiter = "," if path.suffix == ".csv" else "\t"
            table = pyarrow.csv.read_csv(
                path, parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            )
        elif path.suffix in (".jsonl", ".ndjson", ".json"):
            table = pyarrow.json.read_json(path)
        elif path.suffix == ".arrow":
            table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        else:
            raise InterfuseError("input.type", f"cannot read {path.suffix!r} files as tables", where=str(path),
                                 fix="Known: .parquet, .csv, .tsv, .jsonl, .arrow, or a folder of images with class folders.")  # fmt: skip
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InterfuseError(
            "input.format", f"the file cannot be read: {str(error).splitlines()[0]}", where=str(path)
        ) from error
    return Dataset(InMemoryTable(table))


def read_made(path: Path) -> tuple[Any, dict[str, Any], Any]:
    """The rows of a table that a step has made, its declared columns, and what fixes its content.

    Raises:
        InterfuseError: ``input.type`` for an artifact of another kind, ``artifact.damaged``.
    """
    artifact = open_artifact(path)
    if artifact.kind != "table":
        raise InterfuseError("input.type", f"the folder holds a {artifact.kind}, not a table", where=str(path))
    columns = {str(role): str(name) for role, name in artifact.manifest["facts"]["columns"].items()}
    return read_file(path / MADE), columns, {"made": artifact.digest}


def _image_folder(path: Path, columns: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    from datasets import Dataset

    files = sorted(p for p in path.glob("*/*") if p.suffix.lower() in IMAGES)
    if not files:
        raise InterfuseError("input.empty", "no images in class folders (CLASS/picture.png)", where=str(path))
    rows = {
        "image": [str(p) for p in files],
        "label": [p.parent.name for p in files],
        "id": [str(p.relative_to(path)) for p in files],
    }
    origin = {"folder": [(str(p.relative_to(path)), file_sha256(p)) for p in files]}
    return Dataset.from_dict(rows), columns or {"image": "image", "label": "label", "id": "id"}, origin


def _sklearn(name: str, columns: dict[str, Any]) -> tuple[Any, dict[str, Any], tuple[int, ...], float, Any]:
    import sklearn
    import sklearn.datasets
    from datasets import Dataset

    loaders = {"digits": sklearn.datasets.load_digits, "breast_cancer": sklearn.datasets.load_breast_cancer,
               "wine": sklearn.datasets.load_wine, "iris": sklearn.datasets.load_iris}  # fmt: skip
    if name not in loaders:
        raise InterfuseError("input.missing", f"no packaged table sklearn:{name}", fix=did_you_mean(name, loaders))
    bunch = loaders[name]()
    names = [str(n) for n in bunch.target_names]
    rows = {"x": bunch.data.astype(np.float32).tolist(), "label": [names[t] for t in bunch.target]}
    role = "image" if name == "digits" else "features"
    shape = (8, 8) if name == "digits" else ()
    origin = {"sklearn": name, "version": sklearn.__version__}
    return (
        Dataset.from_dict(rows),
        columns or {role: "x", "label": "label"},
        shape,
        16.0 if name == "digits" else 1.0,
        origin,
    )


def _declare(dataset: Any, columns: Mapping[str, Any], name: str, origin: Any, shape: tuple[int, ...] = (), scale: float = 1.0,
             labels: Sequence[Any] | None = None, content: bool = True) -> Table:  # fmt: skip
    chosen = dict(columns) or {role: role for role in ROLES if role in dataset.column_names}
    for role, wanted in chosen.items():
        for column in wanted if isinstance(wanted, list) else [wanted]:
            if column not in dataset.column_names:
                raise InterfuseError("input.missing", f"there is no column {column!r} for {role}", where=name,
                                     fix=did_you_mean(str(column), dataset.column_names))  # fmt: skip
    if content and not set(CONTENT) & set(chosen):
        raise InterfuseError("input.missing", f"no column is declared as {', '.join(CONTENT[:-1])} or {CONTENT[-1]}", where=name,
                             fix="Declare one: columns: {text: NAME, label: NAME}, or {features: [NAME, NAME], label: NAME} for numbers. Columns: " + ", ".join(dataset.column_names))  # fmt: skip
    classes: tuple[str, ...] = ()
    codes = np.zeros(0, dtype=np.int64)
    if "label" in chosen:
        values = _column(dataset, chosen["label"])
        for row, value in enumerate(values):
            if value is None or value != value:
                raise InterfuseError(
                    "input.missing", "a label is empty", where=f"{name}: row {row}, column {chosen['label']}"
                )
        found = sorted(
            {str(v) for v in values},
            key=lambda v: (not v.lstrip("-").isdigit(), int(v) if v.lstrip("-").isdigit() else 0, v),
        )
        classes = tuple(str(v) for v in labels) if labels else tuple(found)
        unknown = [v for v in found if v not in classes]
        if unknown:
            raise InterfuseError(
                "input.missing", f"the label {unknown[0]!r} is not among the declared labels", where=name
            )
        place = {value: i for i, value in enumerate(classes)}
        codes = np.array([place[str(v)] for v in values], dtype=np.int64)
    if "id" in chosen:
        first: dict[str, int] = {}
        for row, value in enumerate(_column(dataset, chosen["id"])):
            if first.setdefault(str(value), row) != row:
                raise InterfuseError("input.duplicate", f"the id {str(value)!r} occurs twice", where=f"{name}: rows {first[str(value)]} and {row}",
                                     fix="Remove one of the rows, or declare no id column: rows are then named by number.")  # fmt: skip
    origin = {
        "data": origin,
        "columns": dict(sorted(chosen.items())),
        "shape": list(shape),
        "scale": scale,
        "classes": list(classes),
    }
    return Table(name, dataset, np.arange(len(dataset), dtype=np.int64), chosen, classes, codes, origin, shape, scale)


def _view(table: Table, spec: Mapping[str, Any], name: str) -> Table:
    import dataclasses

    keys = {k: spec[k] for k in ("split", "split_seed", "take", "classes", "distort", "limit") if k in spec}
    rows, parts, distort = table.rows, dict(table.parts), table.distort
    if "take" in spec:
        if "split" in spec:
            parts = _split(rows, table, spec, name)
        take = spec["take"] if isinstance(spec["take"], list) else [spec["take"]]
        for part in take:
            if part not in parts:
                raise InterfuseError(
                    "param.value", f"there is no part {part!r}", where=name, fix=did_you_mean(str(part), parts)
                )
        rows = np.sort(np.concatenate([parts[part] for part in take]))
        parts = {}
    if "classes" in spec:
        wanted = [str(c) for c in spec["classes"]]
        for value in wanted:
            if value not in table.classes:
                raise InterfuseError(
                    "param.value", f"there is no class {value!r}", where=name, fix=did_you_mean(value, table.classes)
                )
        keep = np.array([table.classes.index(c) for c in wanted])
        rows = rows[np.isin(table.codes[rows], keep)]
    if "limit" in spec:
        rows = rows[: int(spec["limit"])]
    if "take" not in spec:  # parts hold no row that the table itself does not
        parts = (
            _split(rows, table, spec, name) if "split" in spec else {k: v[np.isin(v, rows)] for k, v in parts.items()}
        )
    if "distort" in spec:
        from interfuse.data.images import DISTORTIONS

        for kind, amount in spec["distort"].items():
            if kind not in DISTORTIONS:
                raise InterfuseError(
                    "param.value", f"unknown distortion {kind!r}", where=name, fix=did_you_mean(kind, DISTORTIONS)
                )
            distort = (*distort, (kind, float(amount)))
    origin = (
        {**table.origin, "view": [*table.origin.get("view", []), json.loads(json.dumps(keys))]}
        if keys
        else table.origin
    )
    return dataclasses.replace(table, name=name, rows=rows, parts=parts, distort=distort, origin=origin)


def _split(rows: NDArray[np.int64], table: Table, spec: Mapping[str, Any], name: str) -> dict[str, NDArray[np.int64]]:
    """Disjoint parts of some rows by share, stratified by class where there are labels; the same seed gives the same parts."""
    shares, seed = spec["split"], int(spec.get("split_seed", 0))
    if (
        not isinstance(shares, Mapping)
        or not all(isinstance(v, int | float) and v > 0 for v in shares.values())
        or sum(shares.values()) > 1 + 1e-9
    ):
        raise InterfuseError("param.value", "'split' is a table of part: share, together at most 1", where=name)
    rng = Ctx(seed=seed).rng("split")
    groups = [rows]
    if "label" in table.columns:
        codes = table.codes[rows]
        groups = [rows[codes == c] for c in np.unique(codes)]
    parts: dict[str, list[NDArray[np.int64]]] = {part: [] for part in shares}
    for group in groups:
        order = rng.permutation(group)
        bounds = np.round(np.cumsum([0.0, *shares.values()]) * len(group)).astype(int)
        for part, low, high in zip(shares, bounds, bounds[1:], strict=False):
            parts[part].append(order[low:high])
    return {part: np.sort(np.concatenate(chunks)) for part, chunks in parts.items()}
