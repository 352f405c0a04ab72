"""Word and PowerPoint files (OOXML)."""

from __future__ import annotations

import io
import re
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data.corpus import Document
from interfuse.data.loaders.layout import Limits, Writer, clean, has_header

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def _properties(writer: Writer, core: Any) -> None:
    for key, value in (
        ("title", core.title),
        ("author", core.author),
        ("subject", core.subject),
        ("language", core.language),
    ):
        if value:
            writer.meta[key] = clean(str(value))
    for key, moment in (("created", core.created), ("modified", core.modified)):
        if moment is not None:
            writer.meta[key] = moment.isoformat()


def read_word(data: bytes, name: str, limits: Limits) -> Document:
    """A Word file: headings by style, paragraphs, lists, quotes, tables and footnotes; what was deleted in a review is left out.

    Raises:
        InterfuseError: ``input.format``, ``input.empty`` or ``input.limit``.
    """
    import docx
    from docx.table import Table
    from docx.text.paragraph import Paragraph

    try:
        opened = docx.Document(io.BytesIO(data))
        writer = Writer(limits)
        _properties(writer, opened.core_properties)
        for block in opened.iter_inner_content():
            if isinstance(block, Paragraph):
                _paragraph(writer, block)
            elif isinstance(block, Table):
                rows = _word_rows(block)
                if rows:
                    writer.table(rows, header=has_header(rows))
        for relation in opened.part.rels.values():
            if relation.reltype.endswith("/footnotes") and not relation.is_external:
                _footnotes(writer, relation.target_part.blob)
    except InterfuseError:
        raise
    except Exception as error:  # the library's own errors, of many classes
        raise InterfuseError("input.format", f"not a readable Word file: {str(error)[:200]}") from error
    return writer.document(data, name, "docx")


def _visible(node: Any) -> str:
    """The text below a node without what was deleted in a review."""
    words: list[str] = []
    for part in node.iter(f"{_W}t", f"{_W}tab", f"{_W}br", f"{_W}cr", f"{_W}noBreakHyphen"):
        tag = part.tag.rsplit("}", 1)[1]
        words.append(part.text or "" if tag == "t" else "-" if tag == "noBreakHyphen" else " ")
    return "".join(words)


def _paragraph(writer: Writer, block: Any) -> None:
    text = _visible(block._p)
    style = (block.style.name or "") if block.style is not None else ""
    heading = re.match(r"(?:Heading|heading|Überschrift|Titre) (\d)", style)
    listed = "List" in style or block._p.find(f"{_W}pPr/{_W}numPr") is not None
    if heading:
        writer.add("heading", text, level=int(heading.group(1)))
    elif style in ("Title", "Titel"):
        writer.add("heading", text, level=1)
    elif listed:
        depth = block._p.find(f"{_W}pPr/{_W}numPr/{_W}ilvl")
        writer.add("item", text, level=1 + int(depth.get(f"{_W}val", "0")) if depth is not None else 1, separator="\n")
    else:
        writer.add("quote" if "Quote" in style else "caption" if style == "Caption" else "paragraph", text)


def _word_rows(table: Any) -> list[list[str]]:
    rows = []
    for row in table.rows:
        cells, last = [], None
        for cell in row.cells:  # merged cells come once per column
            cells.append(clean(_visible(cell._tc)) if cell._tc is not last else "")
            last = cell._tc
        rows.append(cells)
    width = max(map(len, rows), default=0)
    return [r + [""] * (width - len(r)) for r in rows]


def _footnotes(writer: Writer, blob: bytes) -> None:
    from lxml import etree

    tree = etree.fromstring(blob, etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False))
    for note in tree.iter(f"{_W}footnote"):
        if note.get(f"{_W}type") is None:
            writer.add("note", _visible(note), place=f"footnote {note.get(f'{_W}id')}")


def read_slides(data: bytes, name: str, limits: Limits) -> Document:
    """A PowerPoint file: a page per slide; titles, text, tables and the speaker's notes.

    Raises:
        InterfuseError: ``input.format``, ``input.empty`` or ``input.limit``.
    """
    import pptx

    try:
        opened = pptx.Presentation(io.BytesIO(data))
        writer = Writer(limits)
        _properties(writer, opened.core_properties)
        for page, slide in enumerate(opened.slides, 1):
            title = slide.shapes.title
            if title is not None:
                writer.add("heading", title.text_frame.text, level=1, page=page)
            _shapes(writer, slide.shapes, title, page)
            if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
                writer.add("note", slide.notes_slide.notes_text_frame.text, page=page, place="notes")
    except InterfuseError:
        raise
    except Exception as error:  # the library's own errors, of many classes
        raise InterfuseError("input.format", f"not a readable PowerPoint file: {str(error)[:200]}") from error
    return writer.document(data, name, "pptx")


def _shapes(writer: Writer, shapes: Any, title: Any, page: int) -> None:
    stack = list(reversed(list(shapes)))
    while stack:
        shape = stack.pop()
        if title is not None and shape.shape_id == title.shape_id:
            continue
        if shape.shape_type is not None and "GROUP" in str(shape.shape_type):
            stack += reversed(list(shape.shapes))
        elif getattr(shape, "has_table", False):
            rows = [[c.text_frame.text for c in row.cells] for row in shape.table.rows]
            writer.table(rows, header=has_header(rows) or bool(shape.table.first_row), page=page)
        elif shape.has_text_frame:
            for paragraph in shape.text_frame.paragraphs:
                text = "".join(run.text for run in paragraph.runs)
                is_list = bool(getattr(shape, "is_placeholder", False)) and len(shape.text_frame.paragraphs) > 1
                writer.add(
                    "item" if is_list else "paragraph",
                    text,
                    page=page,
                    **({"level": paragraph.level + 1} if is_list else {}),
                )
