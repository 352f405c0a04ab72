"""Traces: one row per token as parquet, and a page that colours the tokens by what was decided at each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import pyarrow as pa
import pyarrow.parquet as pq

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.kit.page import Grid, Picture, Section, render

#: columns that every trace has, with their types
SCHEMA: dict[str, pa.DataType] = {
    "prompt": pa.int64(), "sample": pa.int64(), "step": pa.int64(), "token_id": pa.int64(), "token": pa.string(),
    "logprob": pa.float64(), "entropy": pa.float64(),
}  # fmt: skip
_TOP = pa.list_(pa.struct([("token", pa.string()), ("logprob", pa.float64())]))
#: what a page is coloured by when nothing is asked for: the first of these that a trace has
DECISIONS = ("intervened", "expert", "writer", "alpha", "weight 1", "plausible", "entropy")
_WIDTH, _ROW, _LETTER, _TEXTS = 1040, 26, 8.1, 40


class Trace:
    """Collects the rows of a run; give it to ``generate(trace=...)``, then :meth:`save` it.

    Args:
        about: what the file's metadata says: method, parameters.
    """

    def __init__(self, **about: Any) -> None:
        self.about, self.rows = about, list[Mapping[str, Any]]()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Adds the row of one token."""
        self.rows.append(row)

    def table(self) -> pa.Table:
        """All rows: the columns of :data:`SCHEMA`, the method's own numbers, and ``top NAME`` per stream.

        Raises:
            InterfuseError: ``input.empty`` when nothing was traced.
        """
        if not self.rows:
            raise InterfuseError("input.empty", "no token was traced")
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        fields = [pa.field(n, SCHEMA.get(n) or (_TOP if n.startswith("top ") else pa.float64())) for n in names]
        columns = []
        for f in fields:
            values = [row.get(f.name) for row in self.rows]
            columns.append(
                pa.array([float(v) if v is not None and f.type == pa.float64() else v for v in values], type=f.type)
            )
        meta = {b"interfuse": json.dumps(self.about, default=str, sort_keys=True).encode()}
        return pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=meta))

    def save(self, path: Path) -> Path:
        """Writes the parquet file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.table(), path)
        return path


def read_trace(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a trace and what it says of itself.

    Raises:
        InterfuseError: ``input.missing``, ``input.format`` or ``input.empty``.
    """
    if not path.is_file():
        raise InterfuseError("input.missing", "there is no such trace", where=str(path))
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {}).get(b"interfuse", b"{}"))
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise InterfuseError("input.format", "the file is no parquet trace", where=str(path)) from error
    if not set(SCHEMA) <= set(table.column_names):
        raise InterfuseError("input.format", "the file is no trace of a fused model: it lacks columns", where=str(path),
                             fix="Traces are written by: interfuse decode generate --trace RUN.parquet.")  # fmt: skip
    if not table.num_rows:
        raise InterfuseError("input.empty", "the trace holds no tokens", where=str(path))
    return table.to_pylist(), about


def explain(path: Path, *, by: str = "") -> str:
    """The page of a trace: every text with its tokens coloured, what the colour means, and all numbers.

    Args:
        by: the column that colours; found from the method when empty.

    Raises:
        InterfuseError: those of :func:`read_trace`, ``param.value`` for a column that is not there.
    """
    rows, about = read_trace(path)
    numbers = [n for n, v in rows[0].items() if isinstance(v, float) and n not in ("logprob",)]
    column = by or next((d for d in DECISIONS if d in numbers), "entropy")
    if column not in [*numbers, "logprob"]:
        raise InterfuseError("param.value", f"the trace has no numbers {column!r}", fix=did_you_mean(column, numbers))
    values = [float(r[column]) for r in rows if r[column] is not None and math.isfinite(float(r[column]))]
    low, high = min(values), max(values)
    texts: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        texts.setdefault((row["prompt"], row["sample"]), []).append(row)
    pictures = []
    for (prompt, sample), tokens in list(texts.items())[:_TEXTS]:
        svg = tokens_svg(tokens, column, low, high)
        mean = sum(float(t[column]) for t in tokens) / len(tokens)
        pictures.append(Picture(f"text-{prompt}-{sample}", f"prompt {prompt}" + (f", sample {sample}" if sample else ""), svg,
                                f"{len(tokens)} tokens coloured by {column}", f"{len(tokens)} tokens, mean {column} {mean:.3f}", width=_WIDTH))  # fmt: skip
    summary = [
        [n, min(v), sum(v) / len(v), max(v)] for n in numbers if (v := [float(r[n]) for r in rows if r[n] is not None])
    ]
    tops = [n for n in rows[0] if n.startswith("top ")]
    detail = [
        [
            r["prompt"],
            r["step"],
            _shown(str(r["token"])),
            *(round(float(r[n]), 4) for n in numbers),
            *(_words(r[n]) for n in tops),
        ]
        for r in rows[:400]
    ]
    left_out = len(texts) - len(pictures)
    notes = [
        f"{len(rows)} tokens of {len(texts)} texts; a token is the darker the higher its {column}, from {low:.3g} to {high:.3g}."
    ]
    notes += [f"{left_out} further texts are in the file and not drawn."] if left_out > 0 else []
    params = {k: v for k, v in dict(about.get("params") or {}).items() if isinstance(v, int | float | str | bool)}
    return render(
        "What was decided at each token", notes=notes, facts=[(k, str(v)) for k, v in params.items()][:12],
        sections=[
            Section("Texts", "Point at a token to read its numbers.", pictures=pictures),
            Section("Numbers", grids=[Grid(["column", "least", "mean", "most"], summary)]),
            Section("Tokens", "The first 400, with the likeliest tokens of each stream.", folded=True,
                    grids=[Grid(["prompt", "step", "token", *numbers, *tops], detail)]),
        ],
        made_by=str(about.get("method") or ""),
    )  # fmt: skip


def _words(top: Sequence[Mapping[str, Any]] | None) -> str:
    return ", ".join(f"{_shown(str(t['token']))} {math.exp(float(t['logprob'])):.2f}" for t in (top or ())[:3])


def _shown(token: str) -> str:
    """A token as it can be seen: spaces and control characters are made visible."""
    marks = {"\n": "⏎", "\t": "⇥", " ": "·"}
    return "".join(marks.get(c, c if c.isprintable() else "�") for c in token) or "∅"


def tokens_svg(tokens: Sequence[Mapping[str, Any]], column: str, low: float, high: float) -> str:
    """The tokens of one text as an SVG: a coloured box each, with its numbers as a tooltip. Every string is escaped."""
    boxes, x, y = [], 0.0, 0
    for token in tokens:
        words = _shown(str(token["token"]))
        wide = max(len(words), 1) * _LETTER + 8
        if x + wide > _WIDTH and x:
            x, y = 0.0, y + _ROW
        value = float(token[column])
        share = (value - low) / (high - low) if high > low and math.isfinite(value) else 0.0
        tip = "\n".join(f"{n}: {v:.4g}" for n, v in token.items() if isinstance(v, float))
        tip = f"step {token['step']}, id {token['token_id']}\n{tip}"
        boxes.append(
            f'<g><title>{escape(tip)}</title><rect x="{x:.1f}" y="{y}" width="{wide - 2:.1f}" height="{_ROW - 4}" rx="3" '
            f'style="fill: var(--result)" fill-opacity="{0.06 + 0.6 * share:.3f}"/>'
            f'<text x="{x + 3:.1f}" y="{y + 15}" font-size="13" style="fill: var(--ink); font-family: ui-monospace, monospace !important">'
            f"{escape(words)}</text></g>"
        )
        x += wide
    label = quoteattr(f"tokens coloured by {column}")
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + _ROW}" role="img" aria-label={label}>{"".join(boxes)}</svg>'
