"""Rows of a relational table as entities, by a mapping of columns to relations and classes (after R2RML, Das et al. 2012)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from interfuse.build.room import Candidate, Work
from interfuse.build.tables import cell_value, column_type, style_of
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.method import method
from interfuse.data.loaders.layout import cell_text
from interfuse.data.statements import Evidence


@method(per="whole", needs=("table",), link=False)
def table_rows(
    work: Work,
    *,
    key: Annotated[str, Field(description="the column that names a row's entity")],
    kind: Annotated[str, Field(description="class of the entities; empty: what the key column's name says")] = "",
    columns: Annotated[
        dict[str, str | dict[str, str]] | None,
        Field(
            description="column -> relation, or {relation, class}: with a class its cells are entities; unset: every column, by its own name"
        ),
    ] = None,
    separator: Annotated[str, Field(description="what stands between several values of one cell; empty: nothing")] = "",
) -> Iterator[Candidate]:
    """One entity per key; a cell is a value, or an entity where the mapping gives a class or it holds words.

    Raises:
        InterfuseError: ``input.missing`` for a column that is not there, ``input.empty`` without rows.
    """
    table = work.table
    names = list(table.dataset.column_names)
    mapping: dict[str, Any] = (
        dict(columns) if columns is not None else {n: n.casefold().replace("_", " ") for n in names if n != key}
    )
    for name in (key, *mapping):
        if name not in names:
            raise InterfuseError(
                "input.missing", f"the table has no column {name!r}", where=table.name, fix=did_you_mean(name, names)
            )
    rows = table.dataset.with_format(None)[table.rows]
    if not rows[key]:
        raise InterfuseError("input.empty", "the table has no rows", where=table.name)
    kind = kind or column_type(key)
    styles = {c: style_of([_text(v) for v in rows[c]]) for c in mapping}
    for i, label in enumerate(rows[key]):
        subject = _text(label)
        if not subject:
            work.count("rows without a key")
            continue
        for column, target in mapping.items():
            relation, wanted = (
                (target, "") if isinstance(target, str) else (target.get("relation", column), target.get("class", ""))
            )
            whole = _text(rows[column][i])
            for text in [p.strip() for p in whole.split(separator)] if separator else [whole]:
                if not text:
                    continue
                value = None if wanted else cell_value(text, styles[column])
                quote = hashlib.sha256(f"{subject}\t{column}\t{text}".encode("utf-8", "replace")).hexdigest()
                proof = Evidence(
                    f"table:{table.name}", element=f"row {i + 1}, {column}", quote=quote, method="build/table-rows"
                )
                yield Candidate(subject, relation, value if value is not None else text, kind, wanted or ("" if value is not None else column_type(column)),
                                kind="table", evidence=(proof,))  # fmt: skip


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return " ".join(cell_text(value).split())
