"""Spreadsheets, delimited text and JSON: every sheet a page, every region a table whose columns have names, values with real dates."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data.corpus import Document
from interfuse.data.loaders.layout import Limits, Writer, cell_text, clean, column_name, has_header
from interfuse.data.loaders.text import decode


def read_workbook(data: bytes, name: str, limits: Limits, media: str) -> Document:
    """A workbook (xlsx, xls, ods ...). Merged cells are filled in, but for a title that stands alone in its row; formulas are read as the values that were saved.

    Raises:
        InterfuseError: ``input.format`` for damaged or encrypted files, ``input.limit``, ``input.empty``.
    """
    import python_calamine as calamine

    try:
        book = calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        writer = Writer(limits)
        for page, meta in enumerate(book.sheets_metadata, 1):
            if "Sheet" not in str(meta.typ) and "Work" not in str(meta.typ):
                continue
            if "Hidden" in str(meta.visible):
                writer.meta["hidden sheets left out"] = ", ".join(
                    filter(None, (writer.meta.get("hidden sheets left out", ""), meta.name))
                )
                continue
            _sheet(writer, book.get_sheet_by_name(meta.name), meta.name, page, limits)
    except InterfuseError:
        raise
    except Exception as error:  # the library's own errors, of many classes
        why = (
            "encrypted"
            if "assword" in str(error) or "ncrypt" in str(error)
            else f"not a readable workbook: {str(error)[:200]}"
        )
        raise InterfuseError("input.format", why) from error
    return writer.document(data, name, media)


def _sheet(writer: Writer, sheet: object, title: str, page: int, limits: Limits) -> None:
    height, width = int(getattr(sheet, "total_height", 0)), int(getattr(sheet, "total_width", 0))
    if height * width > limits.cells:
        raise InterfuseError("input.limit", f"the sheet {title!r} spans more than {limits.cells} cells")
    values = sheet.to_python(skip_empty_area=False)  # type: ignore[attr-defined]
    grid = [[cell_text(v) for v in row] for row in values]
    for (top, left), (bottom, right) in getattr(sheet, "merged_cell_ranges", None) or []:
        if top < len(grid) and left < len(grid[top]):
            across = set(range(left, right + 1))
            if top == bottom and not any(c.strip() for i, c in enumerate(grid[top]) if i not in across):
                continue  # alone in its row: a title above what follows, not a row of equal cells
            for r in range(top, min(bottom, len(grid) - 1) + 1):
                for c in range(left, min(right, len(grid[r]) - 1) + 1):
                    grid[r][c] = grid[r][c] or grid[top][left]
    if not any(any(row) for row in grid):
        return
    writer.add("heading", title, level=1, page=page, place=clean(title))
    write_grid(writer, grid, page, clean(title))


def write_grid(writer: Writer, grid: Sequence[Sequence[str]], page: int = 0, sheet: str = "") -> None:
    """Appends the tables of a sheet: blocks of rows between empty ones; a lone cell is a paragraph."""
    begin = 0
    for r in range(len(grid) + 1):
        if r < len(grid) and any(c.strip() for c in grid[r]):
            continue
        if r > begin:
            _region(writer, grid[begin:r], begin, page, sheet)
        begin = r + 1


def _region(writer: Writer, rows: Sequence[Sequence[str]], top: int, page: int, sheet: str) -> None:
    width = max(map(len, rows))
    full = [[*row, *[""] * (width - len(row))] for row in rows]
    used = [c for c in range(width) if any(row[c].strip() for row in full)]
    mark = f"{sheet}!" if sheet else ""
    while full and len([c for c in used if full[0][c].strip()]) == 1 and len(used) > 1:  # a title above the table
        c = next(c for c in used if full[0][c].strip())
        writer.add("paragraph", full[0][c], page=page, place=f"{mark}{column_name(c)}{top + 1}")
        full, top = full[1:], top + 1
    if not full:
        return
    cells = [[row[c] for c in used] for row in full]
    places = [[f"{mark}{column_name(c)}{top + r + 1}" for c in used] for r in range(len(full))]
    if len(used) == 1 and len(full) == 1:
        writer.add("paragraph", cells[0][0], page=page, place=places[0][0])
        return
    writer.table(cells, header=has_header(cells), page=page, places=places, place=sheet)


def read_delimited(data: bytes, name: str, limits: Limits) -> Document:
    """Comma-, tab-, semicolon- or bar-separated values."""
    words, encoding = decode(data)
    words = clean(words, lines=True)
    start = "\n".join(words[:65536].split("\n")[:50])
    counts = {d: [len(r) for r in csv.reader(io.StringIO(start), delimiter=d)] for d in ",\t;|"}
    delimiter = max(counts, key=lambda d: (_steady(counts[d]), -",\t;|".index(d)))
    writer = Writer(limits, meta={"encoding": encoding, "delimiter": {"\t": "tab"}.get(delimiter, delimiter)})
    before = csv.field_size_limit(min(limits.text, 2**31 - 1))
    try:
        grid: list[list[str]] = []
        total = 0
        for row in csv.reader(io.StringIO(words), delimiter=delimiter):
            total += len(row)
            if total > limits.cells:
                raise InterfuseError("input.limit", f"more than {limits.cells} cells")
            grid.append(row)
    except csv.Error as error:
        raise InterfuseError("input.format", f"not delimited text: {error}") from error
    finally:
        csv.field_size_limit(before)
    write_grid(writer, grid)
    return writer.document(data, name, "csv")


def read_json(data: bytes, name: str, limits: Limits) -> Document:
    """JSON, or JSON lines: records are rows of a table whose columns are their keys, other texts are paragraphs.

    Tables within a record are further columns (``port city``, and ``port`` for its name), records within it further tables; lists are written out in their cell.

    Raises:
        InterfuseError: ``input.format`` when it is no JSON, ``input.limit``, ``input.empty``.
    """
    words, encoding = decode(data)
    writer = Writer(limits, meta={"encoding": encoding})
    try:
        _json(writer, json.loads(words))
    except ValueError as whole:
        lines = [(i, x) for i, x in enumerate(words.split("\n"), 1) if x.strip()]
        try:
            _json(writer, [json.loads(x) for _, x in lines] if len(lines) > 1 else json.loads(words))
        except ValueError:
            raise InterfuseError("input.format", f"not JSON: {whole}") from whole
    return writer.document(data, name, "json")


def _json(writer: Writer, value: Any) -> None:
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        tables = _flat(value, flat)
        if flat:
            writer.table([list(flat), list(flat.values())], header=True)
        for key, rows in tables:
            writer.add("heading", key, level=1)
            _json(writer, rows)
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        pairs: list[tuple[dict[str, str], list[tuple[str, list[Any]]]]] = []
        for row in value:
            cells: dict[str, str] = {}
            pairs.append((cells, _flat(row, cells)))
        columns = list(dict.fromkeys(k for flat, _ in pairs for k in flat))
        if len(columns) * len(pairs) > writer.limits.cells:
            raise InterfuseError("input.limit", f"more than {writer.limits.cells} cells")
        if columns:
            writer.table([columns, *([flat.get(c, "") for c in columns] for flat, _ in pairs)], header=True)
        for _, tables in pairs:
            for _, rows in tables:
                _json(writer, rows)
    elif isinstance(value, list):
        for one in value:
            _json(writer, one)
    else:
        writer.add("paragraph", cell_text(value))


def _flat(row: Mapping[str, Any], into: dict[str, str], before: str = "") -> list[tuple[str, list[Any]]]:
    """The cells of a record; gives the records that stand in it."""
    tables = []
    for key, value in row.items():
        column = f"{before}{key}".replace("_", " ")
        if before and str(key).casefold() in ("name", "label", "title") and before.strip() not in into:
            column = before.strip()  # who a table within a record stands for
        if isinstance(value, Mapping):
            tables += _flat(value, into, f"{column} ")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            tables.append((column, value))
        else:
            parts = value if isinstance(value, list) else [value]
            said = ", ".join(json.dumps(v, ensure_ascii=False) if isinstance(v, list) else cell_text(v) for v in parts)
            had = into.get(column, "")  # of a key that reads alike, such as a_b and "a b"
            into[column] = f"{had}, {said}" if had and said and had != said else had or said
    return tables


def _steady(widths: Sequence[int]) -> tuple[float, int]:
    """How well a delimiter explains some lines: the share of lines with the commonest width above one."""
    wide = [w for w in widths if w > 1]
    if not wide:
        return (0.0, 0)
    common = max(sorted(set(wide)), key=wide.count)
    return (wide.count(common) / len(widths), common)
