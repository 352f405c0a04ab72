"""PDF: text with boxes from pdfium; lines, columns, tables, headings and paragraphs from where the words stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data.corpus import Document
from interfuse.data.loaders.layout import Limits, Writer, clean, has_header

_BULLET = re.compile(r"(?:[•◦▪‣●∙·–*-]|\(?\d{1,3}[.)]|[a-z][.)])\s+(?=\S)")


@dataclass
class Run:
    """Words that stand side by side on one line. Points from the lower left corner; ``size`` of the type."""

    text: str
    left: float
    bottom: float
    right: float
    top: float
    size: float
    bold: bool = False


@dataclass
class Line:
    """Runs of one baseline within one column."""

    runs: list[Run] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(r.text for r in self.runs)

    @property
    def left(self) -> float:
        return self.runs[0].left

    @property
    def right(self) -> float:
        return max(r.right for r in self.runs)

    @property
    def top(self) -> float:
        return max(r.top for r in self.runs)

    @property
    def bottom(self) -> float:
        return min(r.bottom for r in self.runs)

    @property
    def size(self) -> float:
        return max(r.size for r in self.runs)


def read_pdf(data: bytes, name: str, limits: Limits) -> tuple[Document, list[int]]:
    """A PDF as a document, and the pages that hold pictures but no text (they need character recognition).

    Raises:
        InterfuseError: ``input.format`` for damaged or encrypted files, ``input.empty`` without text, ``input.limit``.
    """
    import pypdfium2 as pdfium

    try:
        opened = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        why = "the PDF is encrypted" if "assword" in str(error) else f"not a readable PDF: {error}"
        raise InterfuseError("input.format", why) from error
    writer = Writer(limits)
    pages: list[list[Run]] = []
    sizes: list[tuple[float, float]] = []
    try:
        for key, value in opened.get_metadata_dict(skip_empty=True).items():
            if key in ("Title", "Author", "Subject", "CreationDate"):
                writer.meta[key.casefold()] = clean(value)
        for number in range(len(opened)):
            try:
                page = opened[number]
                sizes.append(page.get_size())
                pages.append(_runs(page))
                page.close()
            except pdfium.PdfiumError as error:
                raise InterfuseError("input.format", f"page {number + 1} cannot be read: {error}") from error
    finally:
        opened.close()
    empty = [i + 1 for i, runs in enumerate(pages) if not runs]
    if len(empty) == len(pages):
        raise InterfuseError("input.empty", "no page holds text: the pages are pictures and need character recognition")
    if empty:
        writer.meta["pages without text"] = ", ".join(map(str, empty))
    write_pages(writer, pages, sizes)
    return writer.document(data, name, "pdf"), empty


def _runs(page: Any) -> list[Run]:
    """The runs of a page in the order of the file."""
    import ctypes

    import pypdfium2.raw as raw

    text = page.get_textpage()
    count = text.count_chars()
    runs: list[Run] = []
    rectangle = raw.FS_RECTF()
    word: list[str] = []
    box = [0.0, 0.0, 0.0, 0.0]
    size, bold, gap_at = 0.0, False, 0.0

    def flush() -> None:
        made = clean("".join(word))
        if made:
            runs.append(Run(made, box[0], box[1], box[2], box[3], size, bold))
        word.clear()

    handle = text.raw
    for i in range(count):
        code = raw.FPDFText_GetUnicode(handle, i)
        char = chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else ""
        if code in (2, 0xFFFE):  # pdfium's mark of a hyphen at a line's end
            char = "-"
        if char in ("\r", "\n"):
            flush()
            continue
        if not char or char.isspace():
            if word:
                word.append(" ")
            continue
        if not raw.FPDFText_GetLooseCharBox(handle, i, ctypes.byref(rectangle)):
            continue
        this = raw.FPDFText_GetFontSize(handle, i) or 1.0
        x0, x1, y0, y1 = rectangle.left, rectangle.right, rectangle.bottom, rectangle.top
        height = max(y1 - y0, this * 0.5)
        apart = bool(word) and (
            x0 - gap_at > 1.2 * max(size, height)
            or x0 < box[0] - height
            or y1 < box[1] - height * 0.3
            or y0 > box[3] + height * 0.3
        )
        if apart:
            flush()
        if not word:
            box = [x0, y0, x1, y1]
            size = this if this > 1.5 else height
            weight = raw.FPDFText_GetFontWeight(handle, i)
            bold = weight >= 600
        box = [min(box[0], x0), min(box[1], y0), max(box[2], x1), max(box[3], y1)]
        gap_at = x1
        word.append(char)
    flush()
    text.close()
    return runs


def write_pages(writer: Writer, pages: Sequence[list[Run]], sizes: Sequence[tuple[float, float]]) -> None:
    """Appends the elements of all pages; what repeats at the edge of most pages is left out and counted."""
    weights: dict[float, int] = {}
    for run in (r for page in pages for r in page):
        weights[round(run.size, 1)] = weights.get(round(run.size, 1), 0) + len(run.text)
    body = max(sorted(weights), key=lambda s: weights[s]) if weights else 10.0
    bigger = sorted((s for s in weights if s > body * 1.12), reverse=True)
    ranks: list[float] = []
    for s in bigger:
        if not ranks or s < ranks[-1] * 0.97:
            ranks.append(s)
    running = _running(pages, sizes)
    if running:
        writer.meta["running heads left out"] = str(len(running))
    for number, page in enumerate(pages, 1):
        kept = [r for r in page if _stamp(r, sizes[number - 1]) not in running]
        for block in _order(kept, sizes[number - 1][0]):
            _write(writer, block, number, body, ranks)


def _stamp(run: Run, size: tuple[float, float]) -> str:
    edge = run.bottom < size[1] * 0.09 or run.top > size[1] * 0.93
    return re.sub(r"\d+", "#", run.text) + f"@{round(run.bottom / 4)}" if edge else ""


def _running(pages: Sequence[list[Run]], sizes: Sequence[tuple[float, float]]) -> set[str]:
    counts: dict[str, int] = {}
    for page, size in zip(pages, sizes, strict=True):
        for stamp in sorted({_stamp(r, size) for r in page} - {""}):
            counts[stamp] = counts.get(stamp, 0) + 1
    return {s for s, n in counts.items() if n >= 3 and n > len(pages) / 2}


def _baselines(runs: Sequence[Run]) -> list[list[Run]]:
    """Rows of runs whose middles are at one height, from the top down; each row from the left."""
    rows: list[list[Run]] = []
    for run in sorted(runs, key=lambda r: (-(r.top + r.bottom) / 2, r.left)):
        middle = (run.top + run.bottom) / 2
        if rows:
            last = rows[-1]
            reference = (last[0].top + last[0].bottom) / 2
            if abs(reference - middle) < 0.45 * max(last[0].size, run.size):
                last.append(run)
                continue
        rows.append([run])
    return [sorted(row, key=lambda r: r.left) for row in rows]


@dataclass
class Block:
    """Lines of one column, or the cells of a table."""

    lines: list[Line] = field(default_factory=list)
    table: list[list[Run]] = field(default_factory=list)
    closed: bool = False


def _order(runs: Sequence[Run], width: float) -> list[Block]:
    """Blocks of a page in reading order: tables where rows align, columns where a gutter runs down, else from the top."""
    rows = _baselines(runs)
    blocks: list[Block] = []
    i = 0
    while i < len(rows):
        end = _table_end(rows, i)
        if end > i:
            blocks.append(Block(table=[list(row) for row in rows[i:end]]))
            i = end
            continue
        gutter, stop = _gutter(rows, i, width)
        if gutter:
            for side in (0, 1):
                part = [[r for r in row if (r.left >= gutter) == bool(side)] for row in rows[i:stop]]
                lines = [Line(p) for p in part if p]
                if lines:
                    blocks.append(Block(lines, closed=True))
            i = stop
            continue
        if blocks and blocks[-1].lines and not blocks[-1].closed:
            blocks[-1].lines.append(Line(rows[i]))
        else:
            blocks.append(Block([Line(rows[i])]))
        i += 1
    return blocks


def _table_end(rows: Sequence[list[Run]], start: int) -> int:
    """Where a table that begins in this row ends; ``start`` when there is none: at least two rows of short cells that align."""
    first = rows[start]
    if len(first) < 2:
        return start
    end = start + 1
    lefts = [r.left for r in first]
    while end < len(rows):
        row = rows[end]
        gap = rows[end - 1][0].bottom - row[0].top
        fits = sum(
            any(abs(r.left - x) < 4 or abs(r.right - q.right) < 4 for x, q in zip(lefts, first, strict=True))
            for r in row
        )
        if len(row) < 2 or fits < len(row) or gap > 3 * max(row[0].size, 8):
            break
        end += 1
    rows_in = rows[start:end]
    words = [len(r.text.split()) for row in rows_in for r in row]
    short = sum(words) / len(words) <= 5 and max(words) <= 14
    return end if end - start >= 2 and (short or len(first) > 3) else start


def _gutter(rows: Sequence[list[Run]], start: int, width: float) -> tuple[float, int]:
    """The left edge of a right column that runs beside a left one from this row on, and the row where both end."""
    inside = [r for row in rows[start:] for r in row]
    rights = sorted(r.left for r in inside if width * 0.3 < r.left < width * 0.75)
    if len(rights) < 3:
        return 0.0, start
    edge = max(rights, key=lambda x: sum(abs(x - y) < 3 for y in rights))
    edge = min(x for x in rights if abs(x - edge) < 3) - 0.5
    stop, both = start, 0
    for k, row in enumerate(rows[start:], start):
        if k > start and _table_end(rows, k) > k:
            break
        crossing = any(r.left < edge - 3 and r.right > edge + 1 for r in row)
        if crossing:
            break
        left, right = any(r.left < edge for r in row), any(r.left >= edge for r in row)
        both += left and right
        stop += 1
    sides = [r for row in rows[start:stop] for r in row]
    beside = sum(r.left >= edge for r in sides)
    if (both >= 2 and beside >= 3) or (beside >= 3 and len(sides) - beside >= 3 and stop - start >= 6):
        return edge, stop
    return 0.0, start


def _write(writer: Writer, block: Block, page: int, body: float, ranks: Sequence[float]) -> None:
    if block.table:
        _write_table(writer, block.table, page)
        return
    gaps = [
        a.bottom - b.top for a, b in zip(block.lines, block.lines[1:], strict=False) if abs(a.bottom - b.top) < 3 * body
    ]
    usual = sorted(gaps)[len(gaps) // 4] if gaps else 0.0
    group: list[Line] = []

    def flush() -> None:
        if group:
            _paragraph(writer, group, page, body, ranks)
            group.clear()

    for line in block.lines:
        if group:
            last = group[-1]
            gap = last.bottom - line.top
            other = abs(line.size - last.size) > 0.08 * body
            weight = (
                line.runs[0].bold != last.runs[0].bold and (line.runs[0].bold or last.runs[0].bold) and len(group) == 1
            )
            if gap > usual + 0.35 * body or other or weight or _BULLET.match(line.text) or gap < -3 * body:
                flush()
        group.append(line)
    flush()


def _paragraph(writer: Writer, lines: Sequence[Line], page: int, body: float, ranks: Sequence[float]) -> None:
    text = lines[0].text
    for line in lines[1:]:
        following = line.text
        if re.search(r"\w-\Z", text) and following[:1].islower():
            text = text[:-1] + following  # a word that was cut at the line's end
        else:
            text = f"{text} {following}"
    box = (
        min(x.left for x in lines),
        min(x.bottom for x in lines),
        max(x.right for x in lines),
        max(x.top for x in lines),
    )
    facts: dict[str, Any] = {"page": page, "box": tuple(round(v, 1) for v in box)}
    size = max(x.size for x in lines)
    bold = all(r.bold for x in lines for r in x.runs)
    level = next((i for i, s in enumerate(ranks, 1) if size >= s * 0.97), 0)
    if level and len(text) < 300:
        writer.add("heading", text, level=min(level, 6), **facts)
    elif bold and len(lines) == 1 and len(text) < 100 and not text.endswith((".", ":", ",", ";")):
        writer.add("heading", text, level=min(len(ranks) + 1, 6), **facts)
    elif (bullet := _BULLET.match(text)) is not None:
        writer.add("item", text[bullet.end() :], level=1, separator="\n", **facts)
    else:
        writer.add("paragraph", text, **facts)


def _write_table(writer: Writer, rows: Sequence[Sequence[Run]], page: int) -> None:
    """Cells by the column whose left or right edge they share."""
    first = max(rows, key=len)
    cells = []
    for row in rows:
        line = [""] * len(first)
        for run in row:
            column = min(
                range(len(first)), key=lambda c: min(abs(run.left - first[c].left), abs(run.right - first[c].right))
            )
            line[column] = f"{line[column]} {run.text}".strip()
        cells.append(line)
    box = (min(r.left for x in rows for r in x), min(r.bottom for x in rows for r in x), max(r.right for x in rows for r in x),
           max(r.top for x in rows for r in x))  # fmt: skip
    writer.table(cells, header=has_header(cells), page=page, box=tuple(round(v, 1) for v in box))
