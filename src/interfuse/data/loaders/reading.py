"""From bytes to documents: what format it is, which reader reads it, and what it holds besides."""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data.corpus import Document, Skipped
from interfuse.data.loaders.archives import members, office_kind
from interfuse.data.loaders.layout import Limits
from interfuse.data.loaders.text import looks_like_text, read_markdown, read_text_file

#: what a name says of a text
BY_NAME = {
    ".md": "markdown", ".markdown": "markdown", ".mdx": "markdown", ".html": "html", ".htm": "html", ".xhtml": "html", ".csv": "csv",
    ".tsv": "csv", ".tab": "csv", ".eml": "mail", ".mbox": "mbox", ".txt": "text", ".text": "text", ".rst": "text", ".log": "text",
    ".json": "json", ".jsonl": "json", ".ndjson": "json",
}  # fmt: skip
#: formats that are read, for people
FORMATS = {
    "pdf": "PDF with a text layer", "html": "web pages", "mail": "mail (.eml) with attachments", "mbox": "mailboxes",
    "xlsx": "Excel (xlsx, xlsm, xls, xlsb)", "ods": "OpenDocument sheets", "csv": "comma- and tab-separated values", "json": "JSON and JSON lines", "docx": "Word",
    "pptx": "PowerPoint", "epub": "EPUB books", "markdown": "Markdown", "text": "plain text", "zip": "zip archives", "tar": "tar archives",
}  # fmt: skip
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")


def sniff(name: str, data: bytes, limits: Limits) -> str:
    """The format, by the first bytes before the name.

    Raises:
        InterfuseError: ``input.empty``, ``input.format`` when it is none that is read, or what a hostile archive is refused for.
    """
    suffix = PurePosixPath(name.casefold()).suffix
    if not data:
        raise InterfuseError("input.empty", "the file is empty")
    if len(data) > limits.bytes:
        raise InterfuseError("input.limit", f"the file is larger than {limits.bytes} bytes")
    if data[:1024].lstrip().startswith(b"%PDF-") or b"%PDF-" in data[:1024]:
        return "pdf"
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return office_kind(data, limits)
    if data.startswith(_OLE):
        if suffix in (".xls", ".xlsx") and b"W\0o\0r\0k\0b\0o\0o\0k\0" in data:
            return "xls"
        encrypted = b"E\0n\0c\0r\0y\0p\0t\0e\0d\0P\0a\0c\0k\0a\0g\0e\0" in data
        raise InterfuseError(
            "input.format",
            "the file is encrypted" if encrypted else "an Office file of before 2007: save it in the newer format",
        )
    if data.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or data[257:262] == b"ustar":
        return "tar"
    if data.startswith(_IMAGES):
        raise InterfuseError("input.format", "a picture: there is no character recognition here")
    if not looks_like_text(data):
        raise InterfuseError("input.format", "not a format that is read: " + ", ".join(FORMATS))
    if suffix in BY_NAME:
        return BY_NAME[suffix]
    start = data[:2048].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "html"
    if data.startswith(b"From ") and b"\nFrom:" in data[:4096]:
        return "mbox"
    return "text"


def read(
    name: str, data: bytes, limits: Limits, *, depth: int = 0, holder: str = "", reader: str = "light"
) -> Iterator[Document | Skipped]:
    """The documents of a file: itself and, after it, what it holds; what cannot be read is given as :class:`Skipped`.

    Args:
        reader: ``docling`` reads PDF, Word and slides by that library, which recognises scanned pages; it must be installed, with its models.
    """
    try:
        if depth > limits.depth:
            raise InterfuseError("input.limit", f"archives or mails within each other more than {limits.depth} deep")
        media = sniff(name, data, limits)
        if media in ("zip", "tar", "mbox", "epub"):
            from interfuse.data.loaders.mail import split_mailbox

            inside = (
                split_mailbox(data) if media == "mbox" else members(data, "zip" if media == "epub" else media, limits)
            )
            for inner, body in inside:
                if media == "epub" and not inner.endswith((".xhtml", ".html", ".htm")):
                    continue
                yield from read(f"{name}!/{inner}", body, limits, depth=depth + 1, holder=holder, reader=reader)
            return
        by_docling = reader == "docling" and media in ("pdf", "docx", "pptx")
        document, attached, empty = (
            (_by_docling(name, data, limits, media), [], []) if by_docling else _read(media, name, data, limits)
        )
        if holder:
            document = Document(**{**vars(document), "holder": holder})
        yield document
        if empty:
            yield Skipped(
                f"{name}#pages={','.join(map(str, empty))}",
                "input.empty",
                "pages without text: they need character recognition",
            )
        for inner, body in attached:
            yield from read(f"{name}!/{inner}", body, limits, depth=depth + 1, holder=document.id, reader=reader)
    except InterfuseError as error:
        yield Skipped(name, error.code, error.what)
    except ModuleNotFoundError as error:
        yield Skipped(
            name,
            "needs.package",
            f"reading it needs the package {error.name}: pip install {'docling' if reader == 'docling' else repr('interfuse[documents]')}",
        )
    except RecursionError:
        yield Skipped(name, "input.limit", "nested too deeply")
    except MemoryError:
        yield Skipped(name, "input.limit", "reading it takes too much memory")


#: where docling's models come from: nothing is downloaded while files are read
MODELS = "; if its models are missing: docling-tools models download, and DOCLING_ARTIFACTS_PATH names the folder they are in"


@functools.cache
def _docling() -> tuple[Any, Any]:
    """docling's class of streams and its converter, which loads models: one per process."""
    base, converter = (
        importlib.import_module(n) for n in ("docling.datamodel.base_models", "docling.document_converter")
    )
    return base.DocumentStream, converter.DocumentConverter()


def _by_docling(name: str, data: bytes, limits: Limits, media: str) -> Document:
    """A document by docling's models, as Markdown, page by page where it has pages."""
    from interfuse.data.loaders.layout import Writer, clean
    from interfuse.data.loaders.text import write_markdown

    stream, converter = _docling()
    writer = Writer(limits, meta={"read by": "docling"})
    try:
        made = converter.convert(stream(name=PurePosixPath(name).name, stream=io.BytesIO(data))).document
        pages = sorted(int(n) for n in made.pages)
        parts = [(n, made.export_to_markdown(page_no=n)) for n in pages] or [(0, made.export_to_markdown())]
    except MemoryError:
        raise
    except Exception as error:  # the library's own errors, of many classes
        raise InterfuseError("input.format", f"docling cannot read it: {str(error)[:200]}{MODELS if media == 'pdf' else ''}") from error  # fmt: skip
    for page, words in parts:
        before = len(writer.rows)
        write_markdown(writer, clean(words, lines=True))
        for row in writer.rows[before:]:
            row["page"] = page
    return writer.document(data, name, media)


def _read(media: str, name: str, data: bytes, limits: Limits) -> tuple[Document, list[tuple[str, bytes]], list[int]]:
    if media == "mail":
        from interfuse.data.loaders.mail import read_mail

        return *read_mail(data, name, limits), []
    if media == "pdf":
        from interfuse.data.loaders.pdf import read_pdf

        document, empty = read_pdf(data, name, limits)
        return document, [], empty
    if media == "html":
        from interfuse.data.loaders.html import read_html

        return read_html(data, name, limits), [], []
    if media in ("xlsx", "xls", "ods"):
        from interfuse.data.loaders.sheets import read_workbook

        return read_workbook(data, name, limits, media), [], []
    if media == "csv":
        from interfuse.data.loaders.sheets import read_delimited

        return read_delimited(data, name, limits), [], []
    if media == "json":
        from interfuse.data.loaders.sheets import read_json

        return read_json(data, name, limits), [], []
    if media in ("docx", "pptx"):
        from interfuse.data.loaders.office import read_slides, read_word

        return (read_word if media == "docx" else read_slides)(data, name, limits), [], []
    return (read_markdown if media == "markdown" else read_text_file)(data, name, limits), [], []
