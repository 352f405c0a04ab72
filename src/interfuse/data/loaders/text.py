"""Plain text and Markdown, in whatever encoding."""

from __future__ import annotations

import codecs
import re

from interfuse.core.errors import InterfuseError
from interfuse.data.corpus import Document
from interfuse.data.loaders.layout import Limits, Writer, clean

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


def decode(data: bytes, declared: str = "") -> tuple[str, str]:
    """The text of some bytes and the encoding that was used: its mark, UTF-8, what is declared, or the likeliest one.

    Raises:
        InterfuseError: ``input.format`` when it is no text.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return data.decode(name, "replace"), name
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    if declared:
        try:
            return data.decode(declared), declared
        except (LookupError, UnicodeDecodeError):
            pass
    if data[:4096].count(0) > len(data[:4096]) // 20:
        raise InterfuseError("input.format", "the file is not text")
    try:
        data.replace(b"\x81", b"").decode("cp1252")
        broken = data.decode("utf-8", "replace").count("\ufffd")
        many = sum(b > 127 for b in data[:65536])
        if many and broken < many / 3:  # most of it is UTF-8: a few bytes are not
            return data.decode("utf-8", "replace"), "utf-8 with errors"
    except UnicodeDecodeError:
        pass
    from charset_normalizer import from_bytes

    start = data[: 2**20]
    letters = sum(chr(b).isalpha() or b > 127 for b in start)
    if sum(b > 127 for b in start) < 0.2 * letters and not any(b in start for b in (0x81, 0x8D, 0x8F, 0x90, 0x9D)):
        return data.decode("cp1252", "replace"), "cp1252"  # a few letters with marks: western Europe's
    best = from_bytes(start, threshold=0.3).best()
    name = best.encoding if best is not None else "cp1252"
    return data.decode(name, "replace"), name


def looks_like_text(data: bytes) -> bool:
    """Whether the first bytes are those of a text."""
    start = data[:8192]
    if any(start.startswith(mark) for mark, _ in _BOMS):
        return True
    return sum(b < 9 or 13 < b < 32 for b in start) <= max(1, len(start) // 100)


def read_text_file(data: bytes, name: str, limits: Limits) -> Document:
    """Paragraphs of a plain text: what stands between empty lines. Lines are kept as they are."""
    words, encoding = decode(data)
    writer = Writer(limits, meta={"encoding": encoding})
    for block in re.split(r"\n[ \t]*\n\s*", clean(words, lines=True)):
        if block.strip():
            writer.add("paragraph", block.strip("\n").rstrip(), raw=True)
    return writer.document(data, name, "text")


_FENCE = re.compile(r"(`{3,}|~{3,})")
_HEADING = re.compile(r"(#{1,6})[ \t]+(.*?)[ \t]*#*\Z")
_ITEM = re.compile(r"([ \t]*)(?:[-*+•]|\d{1,9}[.)])[ \t]+(.*)\Z")
_DIVIDER = re.compile(r"\|?[ \t]*:?-{3,}:?[ \t]*(\|[ \t]*:?-{3,}:?[ \t]*)*\|?[ \t]*\Z")
_LINK = re.compile(r"!?\[([^\[\]]{0,500})\]\(<?([^()\s<>]{1,2000})>?(?:\s+\"[^\"]{0,300}\")?\)")
_MARKS = re.compile(r"(\*\*|__|(?<![\w*])\*(?=\S)|(?<=\S)\*(?![\w*])|(?<!\w)_(?=\S)|(?<=\S)_(?!\w)|`)")


def read_markdown(data: bytes, name: str, limits: Limits) -> Document:
    """Headings, paragraphs, lists, quotes, code and tables of a Markdown text; links are kept with their places."""
    words, encoding = decode(data)
    writer = Writer(limits, meta={"encoding": encoding})
    write_markdown(writer, clean(words, lines=True))
    return writer.document(data, name, "markdown")


def write_markdown(writer: Writer, text: str) -> None:
    """Appends the elements of a Markdown text."""
    lines = text.split("\n")
    if lines and lines[0].strip() == "---" and "---" in [x.strip() for x in lines[1:60]]:  # front matter
        end = next(i for i in range(1, len(lines)) if lines[i].strip() == "---")
        for line in lines[1:end]:
            key, colon, value = line.partition(":")
            if colon and value.strip() and key.strip() in ("title", "author", "date", "lang"):
                writer.meta[key.strip()] = value.strip().strip("\"'")
        lines = lines[end + 1 :]
    i = 0
    paragraph: list[str] = []

    def flush() -> None:
        if paragraph:
            _inline(writer, "paragraph", " ".join(paragraph))
            paragraph.clear()

    while i < len(lines):
        line = lines[i]
        bare = line.strip()
        fence = _FENCE.match(bare)
        if fence:
            flush()
            end = next((j for j in range(i + 1, len(lines)) if lines[j].strip().startswith(fence.group(1))), len(lines))
            writer.add("code", "\n".join(lines[i + 1 : end]).strip("\n"), raw=True)
            i = end + 1
            continue
        following = lines[i + 1].strip() if i + 1 < len(lines) else ""
        if "|" in line and "|" in following and _DIVIDER.match(following):
            flush()
            end = i + 2
            while end < len(lines) and "|" in lines[end]:
                end += 1
            rows = [_cells(lines[j]) for j in (i, *range(i + 2, end))]
            width = max(map(len, rows))
            writer.table([[_plain(c) for c in r] + [""] * (width - len(r)) for r in rows], header=True)
            i = end
            continue
        heading, item = _HEADING.match(bare), _ITEM.match(line)
        if heading:
            flush()
            _inline(writer, "heading", heading.group(2), level=len(heading.group(1)))
        elif paragraph and re.fullmatch(r"=+|-{2,}", bare):
            title = " ".join(paragraph)
            paragraph.clear()
            _inline(writer, "heading", title, level=1 if bare[0] == "=" else 2)
        elif re.fullmatch(r"(?:[-*_][ \t]*){3,}", bare):
            flush()
        elif item:
            flush()
            body = [item.group(2)]
            while (
                i + 1 < len(lines)
                and lines[i + 1].strip()
                and lines[i + 1][:1] in " \t"
                and not _ITEM.match(lines[i + 1])
            ):
                i += 1
                body.append(lines[i].strip())
            _inline(writer, "item", " ".join(body), level=1 + len(item.group(1).expandtabs(4)) // 2, separator="\n")
        elif bare.startswith(">"):
            flush()
            body = [bare.lstrip("> ")]
            while i + 1 < len(lines) and lines[i + 1].strip().startswith(">"):
                i += 1
                body.append(lines[i].strip().lstrip("> "))
            _inline(writer, "quote", " ".join(body))
        elif bare:
            paragraph.append(bare)
        else:
            flush()
        i += 1
    flush()


def _cells(line: str) -> list[str]:
    return [
        c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    ]


def _plain(text: str) -> str:
    return _MARKS.sub("", _LINK.sub(r"\1", text))


def _inline(writer: Writer, kind: str, text: str, *, separator: str = "\n\n", **facts: int) -> None:
    """Appends an element without the marks of emphasis, and notes where links are."""
    links: list[tuple[str, str]] = []
    pieces, at = [], 0
    for found in _LINK.finditer(text):
        pieces += [_plain(text[at : found.start()]), "\x00" if found.group(1).strip() else ""]
        if found.group(1).strip():
            links.append((clean(_plain(found.group(1))), found.group(2)))
        at = found.end()
    parts = ("".join(pieces) + _plain(text[at:])).split("\x00")
    body, places = "", []
    for number, part in enumerate(parts):
        part = re.sub(r"\s+", " ", part)
        body += part.lstrip() if not body else part
        if number < len(links):
            places.append((len(body), len(body) + len(links[number][0]), links[number][1]))
            body += links[number][0]
    ready = clean(body)
    index = writer.add(kind, ready, separator=separator, raw=True, **facts)
    if index >= 0:
        start = writer.rows[index]["start"]
        for left, right, target in places:
            if ready[left:right] == body[left:right]:
                writer.links.append((start + left, start + right, target))
