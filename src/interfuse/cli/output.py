"""What commands print: results on stdout (tables, or one JSON value with ``--json``), everything else on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def as_json() -> bool:
    """Whether ``--json`` was given."""
    return bool(click.get_current_context().meta.get("json"))


def quiet() -> bool:
    """Whether ``--quiet`` was given."""
    return bool(click.get_current_context().meta.get("quiet"))


def clean(text: object) -> str:
    """Text from files or people, without terminal control sequences and direction marks."""
    return _CONTROL.sub("", str(text))


def emit(value: Any) -> None:
    """Prints one JSON value on stdout, in ASCII, so that no terminal or locale can spoil it."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True, default=str))


def say(line: object = "") -> None:
    """Prints one line of a result, as it is: never wrapped, no control characters."""
    click.echo(clean(line))


def console(file: TextIO | None = None, *, page: bool = False) -> Console:
    """A rich console. Where nobody looks at a terminal lines are as wide as ``COLUMNS`` says, else not wrapped, or 120 wide on a ``page`` to read."""
    from rich.console import Console

    file = file or sys.stdout
    width = None if file.isatty() or os.environ.get("COLUMNS", "").isdigit() else 120 if page else 10_000
    return Console(file=file, highlight=False, markup=False, emoji=False, width=width)


def cell(value: Any) -> str:
    """A table cell: numbers with four digits, large ones to the last whole, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(v) for v in value)
    return clean(value)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    err: bool = False,
    right: Sequence[str] = (),
    page: bool = False,
) -> None:
    """Prints a table on stdout (or stderr); columns that hold only numbers are aligned to the right.

    Args:
        columns: headings. rows: cells, see :func:`cell`. right: headings of further columns to align to the right.
        page: part of a page to read, see :func:`console`.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    body = [list(row) for row in rows]
    out = console(sys.stderr if err else sys.stdout, page=page)
    shown = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=clean(title) or None, title_justify="left", title_style="bold"
    )
    for i, name in enumerate(columns):
        values = [row[i] for row in body if i < len(row) and row[i] is not None]
        numeric = bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        justify: Literal["left", "right"] = "right" if numeric or name in right else "left"
        whole = i == 0 and not any(" " in cell(v) for v in values)  # names to copy are not cut
        shown.add_column(Text(clean(name)), justify=justify, overflow="fold", no_wrap=whole)
    for row in body:
        shown.add_row(*(Text(cell(v)) for v in row))
    out.print(shown)


def size(count: float) -> str:
    """Bytes in words: ``1.5 GB`` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"


def duration(seconds: float) -> str:
    """A time in words: ``12 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
