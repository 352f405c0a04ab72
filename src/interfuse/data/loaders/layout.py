"""What all readers share: a text that grows piece by piece with its elements, tables, and the limits of reading."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from hashlib import sha256
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data.corpus import Document, Element

#: characters that are not seen: zero-width, soft hyphen, direction overrides, tags. Text may be hidden in them
HIDDEN = re.compile("[\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Limits:
    """What reading one file may cost.

    Attributes:
        bytes: of the file. text: characters that come out. seconds, memory (bytes): of one file's reader.
        entries, ratio, unpacked: files in an archive, how far they may swell, and their bytes in all.
        depth: archives in archives, mails in mails. cells: of one sheet.
    """

    bytes: int = 200 * 2**20
    text: int = 50_000_000
    seconds: float = 30.0
    memory: int = 512 * 2**20
    entries: int = 10_000
    ratio: float = 100.0
    unpacked: int = 2**30
    depth: int = 3
    cells: int = 5_000_000


def clean(text: str, *, lines: bool = False) -> str:
    """NFC, without control, hidden and half characters; white space becomes single blanks, or (``lines``) only line ends are made one."""
    text = unicodedata.normalize(
        "NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    )
    text = _CONTROL.sub(" ", HIDDEN.sub("", text))
    return text if lines else _SPACE.sub(" ", text).strip()


@dataclass
class Writer:
    """A document that is being written: pieces of text with a separator between them, each an element."""

    limits: Limits = field(default_factory=Limits)
    parts: list[str] = field(default_factory=list)
    length: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    links: list[tuple[int, int, str]] = field(default_factory=list)
    meta: dict[str, str] = field(default_factory=dict)
    data: list[Mapping[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def say(self, text: str, separator: str = "\n\n") -> tuple[int, int]:
        """Appends a piece and gives its place.

        Raises:
            InterfuseError: ``input.limit`` when the document grows too long.
        """
        if self.length and text:
            self.parts.append(separator)
            self.length += len(separator)
        start = self.length
        self.parts.append(text)
        self.length += len(text)
        if self.length > self.limits.text:
            raise InterfuseError("input.limit", f"more than {self.limits.text} characters of text")
        return start, self.length

    def add(self, kind: str, text: str, *, separator: str = "\n\n", raw: bool = False, **facts: Any) -> int:
        """Appends an element and gives its index; empty text adds nothing and gives -1."""
        text = text if raw else clean(text)
        if not text:
            return -1
        start, end = self.say(text, separator)
        self.rows.append({"kind": kind, "start": start, "end": end, **facts})
        return len(self.rows) - 1

    def table(self, cells: Sequence[Sequence[str]], *, header: bool, page: int = 0, places: Sequence[Sequence[str]] | None = None,
              **facts: Any) -> int:  # fmt: skip
        """Appends a table: rows of cell texts of equal length; with ``header`` the first row names the columns."""
        rows = [[clean(c) for c in row] for row in cells]
        if not any(any(r) for r in rows):
            return -1
        names = rows[0] if header else [""] * max(map(len, rows))
        self.rows.append({"kind": "table", "start": self.length, "end": 0, "page": page, **facts})
        table = len(self.rows) - 1
        first = True
        for r, row in enumerate(rows):
            if not any(row):
                continue
            self.rows.append({"kind": "row", "start": 0, "end": 0, "page": page, "parent": table,
                              "place": "header" if header and r == 0 else f"row {r + 1}"})  # fmt: skip
            index, begin = len(self.rows) - 1, -1
            for c, text in enumerate(row):
                start, end = self.say(text, ("\n\n" if first else "\n") if begin < 0 else " | ")
                if begin < 0 and text:
                    begin = start
                if not text and begin < 0:
                    continue
                first = False
                if text:
                    place = places[r][c] if places is not None else f"{column_name(c)}{r + 1}"
                    self.rows.append({"kind": "cell", "start": start, "end": end, "page": page, "parent": index, "place": place,
                                      "column": names[c] if c < len(names) else ""})  # fmt: skip
            self.rows[index]["start"], self.rows[index]["end"] = max(begin, 0), self.length
        inside = [x for x in self.rows[table + 1 :] if x["kind"] == "row"]
        self.rows[table]["start"], self.rows[table]["end"] = inside[0]["start"], inside[-1]["end"]
        return table

    def document(self, data: bytes, name: str, media: str, holder: str = "") -> Document:
        """The finished document.

        Raises:
            InterfuseError: ``input.empty`` when there is no text.
        """
        text, key = "".join(self.parts), sha256(data).hexdigest()
        if not text.strip():
            raise InterfuseError("input.empty", self.meta.get("why empty", "the file holds no text"))
        elements = tuple(
            Element(id=sha256(f"{key}/{i}".encode()).hexdigest()[:16], **row) for i, row in enumerate(self.rows)
        )
        return Document(
            key,
            name,
            media,
            text,
            elements,
            dict(sorted(self.meta.items())),
            tuple(self.links),
            tuple(self.data),
            holder,
        )


def column_name(index: int) -> str:
    """A spreadsheet's name of a column: 0 is A, 26 is AA."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(65 + rest) + name
    return name


def cell_text(value: Any) -> str:
    """A cell's value as text: dates in ISO 8601, whole numbers without a point."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(sep="T")
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if not isinstance(value, timedelta) else f"PT{value.total_seconds():g}S"


_NUMBER = re.compile(r"[-+−]?[\d.,\s]*\d[\d.,]*\s*%?\Z|\d{4}-\d\d(-\d\d)?\Z")


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table's first row names its columns: filled, different, no numbers, and unlike what stands below."""
    if len(rows) < 2:
        return False
    first = [c.strip() for c in rows[0]]
    named = [c for c in first if c]
    if len(named) < max(1, len(first) - 1) or len(set(named)) < len(named) or any(_NUMBER.match(c) for c in named):
        return False
    if any(len(c) > 60 for c in named):
        return False
    below = [[r[i].strip() for r in rows[1:] if i < len(r) and r[i].strip()] for i in range(len(first))]
    numeric = any(column and sum(bool(_NUMBER.match(v)) for v in column) > len(column) / 2 for column in below)
    repeated = any(len(column) > len(set(column)) for column in below)
    known = all(first[i] not in column for i, column in enumerate(below) if first[i])
    return known and (numeric or repeated or len(rows) > 2 or all(c[:1].isupper() or c.islower() for c in named))
