"""Rows of a document's tables as candidates: a row is an entity named by its key column, the other cells are what it has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from interfuse.build.room import Candidate
from interfuse.data.chunks import Chunk
from interfuse.data.corpus import Element
from interfuse.data.statements import XSD, Literal
from interfuse.kit.language import singular
from interfuse.kit.mentions import iso_date

_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:[, ]\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?\Z")


def value_of(text: str) -> Literal | None:
    """A cell's text as a number, date, truth value or share, or None when it is words."""
    bare = text.strip()
    if bare.casefold() in ("true", "false", "yes", "no"):
        return Literal("true" if bare.casefold() in ("true", "yes") else "false", XSD + "boolean")
    if _NUMBER.match(bare):
        digits = _latin(bare.replace(",", "").replace(" ", "").replace("−", "-"))
        return Literal(digits, XSD + ("integer" if re.fullmatch(r"[-+]?\d+", digits) else "decimal"))
    date = iso_date(bare)
    if date:
        return Literal(date, XSD + {4: "gYear", 7: "gYearMonth", 10: "date"}[len(date)])
    if re.fullmatch(r"\d{4}-\d\d(?:-\d\d)?", bare):  # no calendar has it
        return Literal(bare)
    if re.fullmatch(r"[-+]?\d[\d.,]*\s*(?:%|[^\W\d_]{1,3}|°C|km²|m²)", bare) or re.fullmatch(
        r"(?:https?://|\S+@)\S+", bare
    ):
        return Literal(bare)
    return None


#: a decimal comma that can be nothing else (1.234,50 or 99,90 or 0,125), and a decimal point that can be nothing else
_COMMA = re.compile(r"[-+−]?(?:(?:\d{1,3}(?:[.\s']\d{3})+|0),\d+|\d+,\d{1,2}|\d{1,3},\d{4,})\Z")
_POINT = re.compile(r"[-+−]?(?:\d{1,3}(?:[,\s']\d{3})+|0)\.\d+\Z|[-+−]?\d+\.(?:\d{1,2}|\d{4,})\Z")
_WITH_COMMA = re.compile(r"[-+−]?(?:\d{1,3}(?:[.\s']\d{3})+|\d+)(?:,\d+)?\Z")
_DAY = re.compile(r"(\d{1,2})([./-])\s?(\d{1,2})\2\s?(\d{4})\Z")
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(:\d\d)?((?<=:\d\d)\.\d+)?(?: ?(Z|[+-](?:0\d|1[0-3]):[0-5]\d))?\Z"
)


@dataclass(frozen=True)
class Style:
    """How a column writes numbers and dates.

    Attributes:
        comma: 1,5 is one and a half. days: 3/4/2020 is the third of April; None: it may be the fourth of March, and stays as it is.
    """

    comma: bool = False
    days: bool | None = None


def style_of(cells: Sequence[str]) -> Style:
    """The style of a column: what its cells say that can be read in one way alone holds for the others."""
    bare = [c.strip() for c in cells]
    comma = any(_COMMA.match(c) for c in bare) and not any(_POINT.match(c) for c in bare)
    found = [m for m in map(_DAY.match, bare) if m is not None and m[2] != "."]
    first, second = any(int(m[1]) > 12 for m in found), any(int(m[3]) > 12 for m in found)
    return Style(comma, None if first == second else first)


def cell_value(text: str, style: Style | None = None) -> Literal | None:
    """A table's cell as a value: what :func:`value_of` knows, numbers with a decimal comma, dates written with the day or the month
    first, and moments. What else has digits and no letter (``12:30``, ``+47 555 01 234``), and what is a sentence or longer than
    twelve words, is a value too, as it stands; None is a name.
    """
    found = _typed(text, style or style_of([text]))
    bare = text.strip()
    if found is None and ((any(c.isdigit() for c in bare) and not any(c.isalpha() for c in bare)) or _told(bare)):
        return Literal(bare)
    return found


def _told(bare: str) -> bool:
    """Whether a cell tells something, in place of naming it."""
    words = len(bare.split())
    return words > 12 or (words > 3 and bare[-1] in ".!?" and any(w[:1].islower() for w in bare.split()))


def _typed(text: str, style: Style) -> Literal | None:
    bare = text.strip()
    if (style.comma and _WITH_COMMA.match(bare)) or _COMMA.match(bare):
        digits = _latin(re.sub(r"[.\s']", "", bare).replace(",", ".").replace("−", "-"))
        return Literal(digits, XSD + ("decimal" if "." in digits else "integer"))
    day = _DAY.match(bare)
    if day is not None:
        one, two, year = int(day[1]), int(day[3]), int(day[4])
        first = True if day[2] == "." else style.days
        try:
            return (
                None
                if first is None
                else Literal(date(year, *((two, one) if first else (one, two))).isoformat(), XSD + "date")
            )
        except ValueError:
            return None
    moment = _MOMENT.match(bare)
    if moment is not None:
        at = _latin(f"{moment[1]}T{moment[2]}{moment[3] or ':00'}")
        try:
            datetime.fromisoformat(at)
        except ValueError:
            return Literal(bare)
        return Literal(at + _latin((moment[4] or "") + (moment[5] or "")), XSD + "dateTime")
    return value_of(bare)


def _latin(text: str) -> str:
    """With the digits of any script as 0 to 9, as ``xsd`` has them."""
    return text if text.isascii() else "".join(str(int(c)) if c.isdecimal() else c for c in text)


def column_type(name: str) -> str:
    """The class that a key column's name says: ``Cities`` and ``City name`` give ``city``."""
    words = [
        w
        for w in re.findall(r"[^\W\d_]+", name.casefold())
        if w not in ("name", "names", "id", "code", "the", "label", "title")
    ]
    return " ".join([*words[:-1], singular(words[-1])]) if words else ""


def key_column(columns: list[str], rows: list[list[str]]) -> int:
    """The column that names the rows: words, not numbers, mostly different; ``name`` first, else the leftmost."""
    best, chosen = -1.0, 0
    for c, name in enumerate(columns):
        values = [r[c] for r in rows if c < len(r) and r[c]]
        if not values:
            continue
        style = style_of(values)
        words = sum(_typed(v, style) is None and len(v) > 1 and not _told(v.strip()) for v in values) / len(values)
        different = len(set(values)) / len(values)
        score = (
            words * 2
            + different
            + len(values) / len(rows)
            + 1.5
            * (len(values) > 0.9 * len(rows) and bool(re.search(r"\bname\b|\btitle\b|\blabel\b", name.casefold())))
            - 0.1 * c
        )
        if score > best:
            best, chosen = score, c
    return chosen


def table_candidates(chunk: Chunk, mapping: Mapping[str, str] | None = None, *, kind: str = "") -> Iterator[Candidate]:
    """Candidates of the rows of a chunk of a table.

    Args:
        mapping: column -> the name its relation shall have; ``key`` for the key column, an empty name leaves a column out.
        kind: class of the rows; usually the key column's name says it.
    """
    elements = chunk.document.elements
    names = list(chunk.columns)
    if not any(names):
        return
    by_row: dict[int, list[Element]] = {
        i: [] for i in chunk.blocks if elements[i].kind == "row" and elements[i].place != "header"
    }
    first = min(by_row, default=0)
    table = elements[first].parent if by_row else -1
    whole = [
        i for i, e in enumerate(elements) if e.kind == "row" and e.parent == table and e.place != "header"
    ]  # the key is chosen once per table
    cells: dict[int, list[Element]] = {i: [] for i in whole}
    for e in elements:
        if e.kind == "cell" and e.parent in cells:
            cells[e.parent].append(e)
    given = dict(mapping or {})
    named = [c for c in names if c]
    grid = [[next((chunk.document.of(x) for x in row if x.column == c), "") for c in named] for row in cells.values()]
    key = next((c for c in named if given.get(c) == "key"), named[key_column(named, grid)] if grid else named[0])
    styles = {c: style_of([row[i] for row in grid]) for i, c in enumerate(named)}
    for i in by_row:
        subject = next((x for x in cells[i] if x.column == key), None)
        if subject is None:
            continue
        label = chunk.document.of(subject)
        for cell in cells[i]:
            relation = given.get(cell.column, cell.column.casefold())
            if cell is subject or not relation or not cell.column:
                continue
            text = chunk.document.of(cell)
            if text.casefold() in ("-", "–", "n/a", "na", "none", "null", "unknown", "?"):
                continue
            value = cell_value(text, styles.get(cell.column))
            yield Candidate(
                label, relation, value if value is not None else text, kind or column_type(key), column_type(cell.column) if value is None else "",
                confidence=0.95, chunk=chunk.id, start=elements[i].start - chunk.start, end=elements[i].end - chunk.start,
                subject_at=(subject.start - chunk.start, subject.end - chunk.start), object_at=(cell.start - chunk.start, cell.end - chunk.start),
            )  # fmt: skip
