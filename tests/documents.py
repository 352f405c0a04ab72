"""Small real files of every format, written by code: a PDF with headings, columns and tables, a page, a mail with attachments ..."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from email.message import EmailMessage

Cells = Sequence[Sequence[str]]


class Pdf:
    """Writes a PDF with Helvetica text at given places. Points from the lower left corner of an A4 page."""

    def __init__(self, title: str = "") -> None:
        self.pages: list[list[str]] = []
        self.title = title
        self.page()

    def page(self) -> None:
        self.pages.append([])

    def text(self, x: float, y: float, words: str, size: float = 11, bold: bool = False) -> None:
        safe = words.encode("cp1252", "replace").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
        self.pages[-1].append(f"BT /F{2 if bold else 1} {size} Tf {x} {y} Td ({safe.decode('latin-1')}) Tj ET")

    def lines(self, x: float, y: float, words: str, width: int, size: float = 11) -> float:
        """Words broken into lines of so many characters; gives the height below the last one."""
        line = ""
        for word in words.split(" "):
            if line and len(line) + 1 + len(word) > width:
                self.text(x, y, line, size)
                y -= size * 1.25
                line = word
            else:
                line = f"{line} {word}" if line else word
        if line:
            self.text(x, y, line, size)
            y -= size * 1.25
        return y

    def bytes(self, extra: Sequence[bytes] = ()) -> bytes:
        objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b"",
                                b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
                                b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold /Encoding /WinAnsiEncoding >>"]  # fmt: skip
        kids = []
        for page in self.pages:
            stream = "\n".join(page).encode("latin-1")
            objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
            objects.append(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R "
                           b"/Resources << /Font << /F1 3 0 R /F2 4 0 R >> >> >>" % len(objects))  # fmt: skip
            kids.append(len(objects))
        objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(b"%d 0 R" % k for k in kids))
        objects += extra
        objects.append(b"<< /Title (%s) >>" % self.title.encode("latin-1", "replace"))
        out = io.BytesIO()
        out.write(b"%PDF-1.4\n")
        places = []
        for number, body in enumerate(objects, 1):
            places.append(out.tell())
            out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
        start = out.tell()
        out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
        out.write(b"".join(b"%010d 00000 n \n" % p for p in places))
        out.write(
            b"trailer << /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF\n"
            % (len(objects) + 1, len(objects), start)
        )
        return out.getvalue()


def pdf(title: str, paragraphs: Sequence[str], table: Cells = (), columns: int = 1) -> bytes:
    """A title, paragraphs in one or two columns, and a table below."""
    made = Pdf(title)
    made.text(60, 780, title, 20, bold=True)
    y = 745.0
    if columns == 2:
        half = (len(paragraphs) + 1) // 2
        ends = []
        for side, part in enumerate((paragraphs[:half], paragraphs[half:])):
            at = y
            for words in part:
                at = made.lines(60 + side * 250, at, words, 42, 10) - 8
            ends.append(at)
        y = min(ends)
    else:
        for words in paragraphs:
            if y < 120:
                made.page()
                y = 780
            y = made.lines(60, y, words, 85) - 10
    y -= 10
    for row in table:
        if y < 60:
            made.page()
            y = 780
        for c, cell in enumerate(row):
            made.text(60 + c * 115, y, cell, 10)
        y -= 16
    return made.bytes()


def html(title: str, paragraphs: Sequence[str], table: Cells = (), extra: str = "", head: str = "") -> bytes:
    """A page with a title, paragraphs and a table."""
    from html import escape

    rows = "".join("<tr>" + "".join(f"<{'th' if r == 0 else 'td'}>{escape(c)}</{'th' if r == 0 else 'td'}>" for c in row) + "</tr>"
                   for r, row in enumerate(table))  # fmt: skip
    body = "".join(f"<p>{escape(p)}</p>" for p in paragraphs)
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>{head}</head><body>'
            f"<nav>Home | About</nav><h1>{escape(title)}</h1>{body}<table>{rows}</table>{extra}"
            f"<script>var no = 1;</script></body></html>").encode()  # fmt: skip


def mail(
    subject: str, paragraphs: Sequence[str], attached: Mapping[str, bytes] = {}, sender: str = "Ada <ada@example.org>"
) -> bytes:
    """A mail with a plain body and attachments."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, "Bob <bob@example.org>", subject
    message["Date"] = "Mon, 05 Jan 2026 10:00:00 +0000"
    message.set_content("\n\n".join(paragraphs) + "\n")
    for name, body in attached.items():
        message.add_attachment(body, maintype="application", subtype="octet-stream", filename=name)
    return message.as_bytes()


def xlsx(sheets: Mapping[str, Sequence[Sequence[object]]]) -> bytes:
    """A workbook."""
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def docx(title: str, paragraphs: Sequence[str], table: Cells = ()) -> bytes:
    """A Word file with a heading, paragraphs and a table."""
    import docx as word

    document = word.Document()
    document.add_heading(title, 1)
    for words in paragraphs:
        document.add_paragraph(words)
    if table:
        made = document.add_table(len(table), len(table[0]))
        for r, row in enumerate(table):
            for c, cell in enumerate(row):
                made.cell(r, c).text = cell
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def pptx(slides: Sequence[tuple[str, Sequence[str]]]) -> bytes:
    """Slides of a title and points."""
    import pptx as slides_of

    deck = slides_of.Presentation()
    for title, points in slides:
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text_frame.text = points[0]
        for point in points[1:]:
            slide.placeholders[1].text_frame.add_paragraph().text = point
    out = io.BytesIO()
    deck.save(out)
    return out.getvalue()


def markdown(title: str, paragraphs: Sequence[str], table: Cells = ()) -> bytes:
    """A Markdown text with a heading, paragraphs and a table."""
    rows = [f"| {' | '.join(row)} |" for row in table]
    if rows:
        rows.insert(1, "|" + "---|" * len(table[0]))
    return "\n\n".join([f"# {title}", *paragraphs, "\n".join(rows)]).encode()


def delimited(rows: Cells, delimiter: str = ",") -> bytes:
    """Comma-separated values."""
    import csv

    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()
