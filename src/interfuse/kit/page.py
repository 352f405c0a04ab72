"""One self-contained HTML page from any report: title, notes, tables, pictures, folded details.

The page asks nobody for anything: pictures are inline SVG, styles are inside, scripts are none and forbidden by its own
policy. Every string is escaped by the template; only the SVG of :mod:`interfuse.kit.plots` goes in as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: what a name's dot in a table may say, in words; each has a colour in the page and in the pictures
TONES = ("source", "result", "baseline", "reference")


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, as one cell of a table.

    Attributes:
        value, low, high: None where there is none. digits: after the point. signed: with its sign.
        least: values below it are shown as "< least".
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    digits: int = 3
    signed: bool = False
    least: float | None = None

    @property
    def text(self) -> str:
        if self.value is not None and self.least is not None and self.value < self.least:
            return f"< {self.least:g}"
        return number(self.value, self.digits, signed=self.signed)

    @property
    def interval(self) -> str:
        """``0.883 – 0.938``, signed ``−0.021 to +0.032``; empty without one."""
        if self.low is None or self.high is None:
            return ""
        return between(self.low, self.high, self.digits, signed=self.signed)


@dataclass(frozen=True)
class Name:
    """A cell that names something with a role: ``tone`` is one of :data:`TONES`."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Grid:
    """A table. Cells are text, numbers, None, :class:`Name` or :class:`Estimate`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture: inline SVG with its words.

    Attributes:
        name: unique on the page. svg: made by :mod:`interfuse.kit.plots`, whose strings are escaped.
        alt: what it shows, for those who do not see it. csv: the file with its numbers, relative to the page.
        width: points it was drawn in; wide pictures scroll on small screens instead of shrinking past reading, small ones
            stand side by side. tone: one of :data:`TONES`, shown as a dot before the title.
    """

    name: str
    title: str
    svg: str
    alt: str
    caption: str = ""
    csv: str = ""
    width: float = 400.0
    tone: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page; ``folded`` ones open on a click. ``csv``: a file with the numbers of all its pictures."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    grids: Sequence[Grid] = ()
    folded: bool = False
    csv: str = ""


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number with a fixed count of digits after the point and a true minus sign; a dash for none.

    >>> number(-0.0581, signed=True)
    '−0.058'
    """
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    if not any(c in "123456789" for c in text):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def between(low: float, high: float, digits: int = 3, *, signed: bool = False) -> str:
    """An interval: ``0.883 – 0.938``, signed ``−0.021 to +0.032``."""
    return (" to " if signed else " – ").join(number(v, digits, signed=signed) for v in (low, high))


def p_value(value: float) -> str:
    """A p-value in words' length: ``0.031``, ``< 0.001``."""
    return "< 0.001" if value < 0.001 else number(value)


def render(
    title: str,
    *,
    notes: Sequence[str] = (),
    sections: Sequence[Section] = (),
    facts: Sequence[tuple[str, str]] = (),
    legend: Sequence[tuple[str, str]] = (),
    made_by: str = "",
) -> str:
    """The whole page as text; the same arguments give the same bytes.

    Args:
        title: heading. notes: sentences, the first is the answer and stands out. facts: pairs of a word and its value.
        legend: pairs of one of :data:`TONES` and what it stands for. made_by: id of the method.
    """
    return str(
        _template().render(
            title=title, notes=list(notes), sections=sections, facts=list(facts), legend=list(legend), made_by=made_by
        )
    )


@functools.cache
def _template() -> Any:
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    kinds = (Estimate, Name)
    env.globals["kind"] = lambda cell: next((k.__name__ for k in kinds if isinstance(cell, k)), "plain")
    env.filters["number"] = lambda cell: f"{cell:,}" if isinstance(cell, int) else number(cell)
    return env.get_template("page.html.jinja")
