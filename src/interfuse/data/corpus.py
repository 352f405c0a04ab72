"""Corpora: documents from files of many formats, as one normalised text each, with elements at exact character positions.

Whatever a file's format, ``document.text[element.start:element.end]`` is the element's own text: a heading, a paragraph, a cell.
Files are found at once and read when they are needed; a bad file is skipped, counted and named, and never stops the others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.rooms import Source
from interfuse.core.safe import fingerprint, jsonable

KEYS = ("documents", "include", "exclude", "max_files", "max_bytes", "texts")


@dataclass(frozen=True)
class Element:
    """A part of a document.

    Attributes:
        id: the same for the same document and place in it.
        kind: ``heading``, ``paragraph``, ``item`` (of a list), ``table``, ``row``, ``cell``, ``code``, ``quote``, ``field``
            (of a mail's head) or ``note``.
        start, end: characters of the document's text, end excluded.
        level: of a heading, from 1; nesting of an item.
        page: from 1; slides and sheets count as pages; 0 where the format has none.
        place: what a reader of the format would say: ``Sheet1!B3``, ``row 2``.
        parent: index of the element that holds it, -1 at the top. box: left, top, right, bottom in points, where known.
        column: of a table's cell, the name of its column.
    """

    id: str
    kind: str
    start: int
    end: int
    level: int = 0
    page: int = 0
    place: str = ""
    parent: int = -1
    box: tuple[float, ...] = ()
    column: str = ""


@dataclass(frozen=True)
class Document:
    """One document as text.

    Attributes:
        id: SHA-256 of the file's bytes. name: its path below the corpus; what a mail or archive holds is ``mail.eml!/a.pdf``.
        media: its format (``pdf``, ``html``, ``mail``, ``xlsx``, ...). text: NFC, lines end with ``\\n``.
        elements: in reading order. meta: title, author, language, sender ... as the file says.
        links: (start, end, target) of its hyperlinks. data: facts that the file states for machines (JSON-LD of a page).
        holder: id of the document that holds it.
    """

    id: str
    name: str
    media: str
    text: str
    elements: tuple[Element, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    links: tuple[tuple[int, int, str], ...] = ()
    data: tuple[Mapping[str, Any], ...] = ()
    holder: str = ""

    def of(self, element: Element) -> str:
        """The text of an element."""
        return self.text[element.start : element.end]

    def fingerprint(self) -> str:
        """A digest of the text and of every position."""
        return fingerprint([self.id, self.text, jsonable([vars(e) for e in self.elements])])


@dataclass(frozen=True)
class Skipped:
    """A file that was not read: its name, the code of an error, and why in words."""

    name: str
    code: str
    why: str


@dataclass(frozen=True)
class File:
    """A file of a corpus: its name within it, its bytes' SHA-256 and size, and where it is (or its text)."""

    name: str
    sha256: str
    size: int
    path: Path | None = field(default=None, compare=False)
    text: str | None = field(default=None, repr=False)


@dataclass
class Corpus:
    """Documents that are read when they are needed.

    Attributes:
        name: how reports call it. files: in the order of their names.
        skipped: files that could not be read; it grows while :meth:`documents` goes on.
    """

    name: str
    files: tuple[File, ...]
    skipped: list[Skipped] = field(default_factory=list)

    def fingerprint(self) -> str:
        """A digest of names and contents."""
        return fingerprint([[f.name, f.sha256] for f in self.files])

    def documents(self, files: Sequence[File] | None = None) -> Iterator[Document]:
        """Reads the documents one by one (of ``files``, or of all), what they hold right after them."""
        for file in self.files if files is None else files:
            try:
                text = file.text if file.text is not None else Path(str(file.path)).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                self.skipped.append(Skipped(file.name, "input.format", str(error)))
                continue
            yield Document(file.sha256, file.name, "text", text)


def open_corpus(source: Source, ctx: Ctx) -> Corpus:
    """Opens a folder, a file, ``{documents: FOLDER, include: [...], exclude: [...]}``, a table ``{name: text}``, or a corpus.

    Raises:
        InterfuseError: ``input.missing``, ``input.empty``, ``input.type``, ``param.unknown`` or ``input.limit``.
    """
    spec = source.spec
    if isinstance(spec, Corpus):
        return spec
    if isinstance(spec, Mapping) and spec and not any(k in KEYS for k in spec):
        spec = {"texts": spec}
    options = dict(spec) if isinstance(spec, Mapping) else {"documents": spec}
    for key in options:
        if key not in KEYS:
            raise InterfuseError("param.unknown", f"a corpus has no key {key!r}", fix=did_you_mean(key, KEYS))
    if "texts" in options:
        files = [
            File(str(k), hashlib.sha256(str(v).encode("utf-8", "replace")).hexdigest(), len(str(v)), None, str(v))
            for k, v in options["texts"].items()
        ]
        return _corpus(source.name or "texts", files)
    where = options.get("documents")
    if not isinstance(where, str | os.PathLike):
        raise InterfuseError("input.type", "documents are named by a folder or a file", where=source.name)
    place = source.folder / Path(where).expanduser()
    if not place.exists():
        raise InterfuseError("input.missing", "there is no such folder or file", where=str(place))
    found = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    files = []
    for path in found:
        data = path.read_bytes()
        name = path.name if path == place else path.relative_to(place).as_posix()
        files.append(File(name, hashlib.sha256(data).hexdigest(), len(data), path))
    return _corpus(source.name or place.name, files)


def _corpus(name: str, files: Sequence[File]) -> Corpus:
    if not files:
        raise InterfuseError("input.empty", "there are no documents", where=name)
    return Corpus(name, tuple(sorted(files, key=lambda f: f.name)))
