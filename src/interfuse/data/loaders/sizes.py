"""How much text files hold, told without reading them: some pages of a PDF, what an archive says of its members, what stands between the
tags of an Office file, the size of plain files."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from interfuse.data.loaders.archives import open_zip
from interfuse.data.loaders.layout import Limits
from interfuse.data.loaders.reading import BY_NAME, sniff

if TYPE_CHECKING:
    from interfuse.data.corpus import Corpus, File

#: pages of a PDF that are looked at; characters of a page that docling may find where there is no text layer
PAGES, PAGE = 8, 3000
#: files of one kind that are looked into; the others are as these are
LOOKED = 50
#: the parts that hold text
_TEXT = {
    "epub": re.compile(r".*\.x?html?"), "docx": re.compile(r"word/(?:document|footnotes|endnotes|comments|header\d*|footer\d*)\.xml"),
    "pptx": re.compile(r"ppt/(?:slides|notesSlides)/\w+\.xml"), "xlsx": re.compile(r"xl/(?:sharedStrings|worksheets/\w+)\.xml"),
    "ods": re.compile(r"content\.xml"),
}  # fmt: skip
#: bytes that are unpacked of a part and of all parts of a file; the rest is as these are
PART, PARTS = 1_000_000, 8_000_000
#: a cell of a sheet whose text stands among the shared ones; what of a part is no text; where a text ends
_SHARED = re.compile(rb'<c\b[^<>]{0,200}\bt="s"[^<>]{0,200}>\s{0,9}<v>\d{0,9}</v>')
_MARKUP = re.compile(rb"<(?:f|w:instrText|w:delText)\b[^<>]*>[^<]*</|<[^>]*>?|\n\s*")
_END = re.compile(rb"</(?:w:p|a:p|c|p|li|h\d|text:p|si)>")
#: documents, and characters of text at most
Size = tuple[int, int]


def text_size(name: str, data: bytes, limits: Limits, reader: str = "light") -> Size:
    """How many documents a file holds and how many characters these may have; of archives nothing is unpacked but a list of contents.

    Raises:
        InterfuseError: as reading it does.
    """
    media = sniff(name, data, limits)
    if media == "pdf":
        return 1, _pdf(data, PAGE if reader == "docling" else 0)
    if media == "tar":
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as tar:
            inside = [i.size for _, i in zip(range(limits.entries), tar, strict=False) if i.isfile()]
        return max(1, len(inside)), min(sum(inside), limits.unpacked)
    if media not in ("zip", "epub", "docx", "pptx", "xlsx", "ods"):
        return 1, len(data)
    with open_zip(data, limits) as opened:
        entries = [e for e in opened.infolist() if not e.is_dir()]
        if media == "zip":
            return max(1, len(entries)), sum(e.file_size for e in entries)
        parts = [e for e in entries if _TEXT[media].fullmatch(e.filename)]
        return max(1, len(parts)) if media == "epub" else 1, _between_tags(opened, parts)


def _between_tags(opened: zipfile.ZipFile, parts: Sequence[zipfile.ZipInfo]) -> int:
    """Characters between the tags of parts, and two after every paragraph or cell; a cell that names a shared text has a mean one's."""
    left = PARTS
    # bytes looked at, characters, bytes in all: of shared texts, of the others
    shares = {True: [0, 0, 0], False: [0, 0, 0]}
    texts = cells = 0.0
    for part in parts:
        share = shares[part.filename.endswith("sharedStrings.xml")]
        share[2] += part.file_size
        with opened.open(part) as stream:
            body = stream.read(min(PART, left))
        left -= len(body)
        scale = part.file_size / max(len(body), 1)
        cells += len(_SHARED.findall(body)) * scale
        texts += body.count(b"</si>") * scale
        words = _MARKUP.sub(b"", _SHARED.sub(b"</c>", body))
        share[0] += len(body)
        share[1] += len(words.decode("utf-8", "ignore")) + 2 * len(_END.findall(body))
    shared, others = (round(share[1] * share[2] / max(share[0], 1)) for share in (shares[True], shares[False]))
    return others + round(shared * cells / max(texts, 1.0))


def _pdf(data: bytes, least: int) -> int:
    """Characters of a PDF: its pages are as some from all over are, with ``least`` characters each at least."""
    import pypdfium2 as pdfium

    opened = pdfium.PdfDocument(data)
    count = len(opened)
    looked = sorted({i * count // min(count, PAGES) for i in range(min(count, PAGES))})
    found = 0
    for number in looked:
        page = opened[number]
        found += page.get_textpage().count_chars()
        page.close()
    return count * max(least, -(-found // max(len(looked), 1)))


def text_sizes(corpus: Corpus) -> dict[str, Size]:
    """Documents and characters of every file of a corpus, by its name; kept with the corpus.

    Plain files have their size. Of the other ones :data:`LOOKED` of a kind are looked into, in the process that reads files, within the
    limits of reading; the others have as much of their bytes. A file that cannot be looked into counts as text.
    """
    if corpus.sizes is None:
        corpus.sizes = _sizes(corpus)
    return corpus.sizes


def _sizes(corpus: Corpus) -> dict[str, Size]:
    from interfuse.data.loaders.process import Reader

    made = {f.name: (1, f.size) for f in corpus.files}
    kinds: dict[str, list[File]] = {}
    for file in corpus.files:
        kind = PurePosixPath(file.name.casefold()).suffix
        if file.path is not None and file.size <= corpus.limits.bytes and kind not in BY_NAME:
            kinds.setdefault(kind, []).append(file)
    reader = Reader(corpus.limits, corpus.reader)
    try:
        for files in kinds.values():
            looked = _from_all_over(files)
            for file in looked:
                assert file.path is not None
                made[file.name] = reader.size(file.name, file.path) or made[file.name]
            there = frozenset(f.name for f in looked)
            bytes_ = sum(f.size for f in looked) or 1
            documents, characters = (sum(made[f.name][i] for f in looked) for i in (0, 1))
            for file in files:
                if file.name not in there:
                    share = file.size / bytes_
                    made[file.name] = max(1, round(documents * share)), round(characters * share)
    finally:
        reader.close()
    return made


def _from_all_over(files: Sequence[File]) -> list[File]:
    count = min(len(files), LOOKED)
    return [files[i * len(files) // count] for i in range(count)]
