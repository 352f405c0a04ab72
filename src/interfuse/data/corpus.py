"""Corpora: documents from files of many formats, as one normalised text each, with elements at exact character positions.

Whatever a file's format, ``document.text[element.start:element.end]`` is the element's own text: a heading, a paragraph, a cell.
Files are found at once and read when they are needed; a bad file is skipped, counted and named, and never stops the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.rooms import Source
from interfuse.core.safe import fingerprint, jsonable, sized_sha256

if TYPE_CHECKING:
    from interfuse.data.loaders.layout import Limits

KEYS = ("documents", "include", "exclude", "max_files", "max_bytes", "max_seconds", "max_memory", "texts", "reader")
MAX_FILES = 1_000_000


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
    """A file that was not read: its name, the code of an error, why in words, and the document's id where its bytes occurred before."""

    name: str
    code: str
    why: str
    id: str = ""


@dataclass(frozen=True)
class File:
    """A file of a corpus: its name within it, its bytes' SHA-256 and size, and where it is (or its text)."""

    name: str
    sha256: str
    size: int
    place: str | None = field(default=None, compare=False)
    text: str | None = field(default=None, repr=False)

    @property
    def path(self) -> Path | None:
        """Where it is."""
        return None if self.place is None else Path(self.place)


@dataclass
class Corpus:
    """Documents that are read when they are needed.

    Attributes:
        name: how reports call it. files: in the order of their names.
        limits: of reading one file. reader: ``light`` or ``docling``. skipped: files that could not be read; filled while :meth:`documents` goes on.
        sizes: what :func:`interfuse.data.loaders.sizes.text_sizes` found, once it was asked.
    """

    name: str
    files: tuple[File, ...]
    limits: Limits
    skipped: list[Skipped] = field(default_factory=list)
    reader: str = "light"
    sizes: dict[str, tuple[int, int]] | None = field(default=None, init=False, repr=False, compare=False)
    _print: tuple[Any, str, str] | None = field(default=None, init=False, repr=False, compare=False)

    def fingerprint(self) -> str:
        """A digest of names and contents."""
        if self._print is None or self._print[0] is not self.files or self._print[1] != self.reader:
            rows = json.dumps([[f.name, f.sha256] for f in self.files]).encode()
            self._print = (self.files, self.reader, fingerprint([self.reader, hashlib.sha256(rows).hexdigest()]))
        return self._print[2]

    def documents(self, files: Sequence[File] | None = None) -> Iterator[Document]:
        """Reads the documents one by one (of ``files``, or of all), what they hold right after them.

        A document whose bytes occurred before is skipped and counted.
        """
        from interfuse.data.loaders.process import Reader
        from interfuse.data.loaders.reading import read, sniff

        if files is None:
            self.skipped.clear()
        seen: dict[str, str] = {}
        reader = Reader(self.limits, self.reader)
        try:
            for file in self.files if files is None else files:
                found: Iterable[Document | Skipped]
                path = file.path
                if path is None:
                    found = read(file.name, (file.text or "").encode("utf-8", "replace"), self.limits)
                elif (blocked := self._blocked(file, path)) is not None:
                    found = [blocked]
                else:
                    head = path.open("rb")
                    with head:
                        start = head.read(8192)
                    plain = not start.startswith((b"PK", b"%PDF")) and _plain(file.name, start, sniff)
                    found = read(file.name, path.read_bytes(), self.limits) if plain else reader.read(file.name, path)
                for item in found:
                    if isinstance(item, Document) and item.id in seen:
                        item = Skipped(item.name, "input.duplicate", f"the same bytes as {seen[item.id]}", item.id)
                    if isinstance(item, Skipped):
                        self.skipped.append(item)
                    else:
                        seen[item.id] = item.name
                        yield item
        finally:
            reader.close()

    def _blocked(self, file: File, path: Path) -> Skipped | None:
        if file.size > self.limits.bytes:
            return Skipped(file.name, "input.limit", f"the file is larger than {self.limits.bytes} bytes")
        return None if path.is_file() else Skipped(file.name, "input.missing", "the file is gone")


def _plain(name: str, start: bytes, sniff: Any) -> bool:
    """Whether a file is plain text or Markdown, which this process may read itself."""
    from interfuse.data.loaders.layout import Limits

    try:
        return sniff(name, start, Limits()) in ("text", "markdown", "csv")
    except InterfuseError:
        return False


def open_corpus(source: Source, ctx: Ctx) -> Corpus:
    """Opens a folder, a file, a table ``{name: text}``, or a corpus; or a table of keys::

        documents:  FOLDER             # or a file, or a list of these
        include:    ["*.pdf", "*.html"]
        exclude:    ["drafts/*"]
        reader:     docling            # optional: for scanned pages, when docling and its models are installed
        max_bytes:  209715200          # of one file; max_files: of the folder; max_seconds and max_memory (bytes): of reading one

    Hidden files, and links that lead out of the folder, are left out.

    Raises:
        InterfuseError: ``input.missing``, ``input.empty``, ``input.type``, ``param.unknown`` or ``input.limit``.
    """
    from interfuse.data.loaders.layout import Limits

    spec = source.spec
    if isinstance(spec, Corpus):
        return spec
    if isinstance(spec, Mapping) and spec and not any(k in KEYS for k in spec):
        spec = {"texts": spec}
    options = dict(spec) if isinstance(spec, Mapping) else {"documents": spec}
    for key in options:
        if key not in KEYS:
            raise InterfuseError("param.unknown", f"a corpus has no key {key!r}", fix=did_you_mean(key, KEYS))
    reader = str(options.get("reader", "light"))
    if reader not in ("light", "docling"):
        raise InterfuseError(
            "param.value",
            f"documents are read by light or docling, not {reader!r}",
            fix=did_you_mean(reader, ("light", "docling")),
        )
    usual = (
        Limits() if reader == "light" else Limits(seconds=600.0, memory=8 * 2**30)
    )  # docling loads models and looks at pictures
    limits = replace(
        usual,
        bytes=int(options.get("max_bytes", usual.bytes)),
        seconds=float(options.get("max_seconds", usual.seconds)),
        memory=int(options.get("max_memory", usual.memory)),
    )
    if "texts" in options:
        rows = [(str(k), str(v)) for k, v in options["texts"].items()]
        files = [File(k, hashlib.sha256(v.encode("utf-8", "replace")).hexdigest(), len(v), None, v) for k, v in rows]
        return _corpus(source.name or "texts", files, limits)
    places = options.get("documents")
    places = [places] if isinstance(places, str | os.PathLike) else places
    if not isinstance(places, Sequence) or not all(isinstance(p, str | os.PathLike) for p in places):
        raise InterfuseError(
            "input.type", "documents are named by a folder or a file, or by a list of these", where=source.name
        )
    files = []
    most = int(options.get("max_files", MAX_FILES))
    include, exclude = (tuple(options.get(k) or ()) for k in ("include", "exclude"))
    for given in places:
        place = source.folder / Path(given).expanduser()
        if not place.exists():
            raise InterfuseError("input.missing", "there is no such folder or file", where=str(place))
        for path, name in _walk(place):
            if (include and not any(fnmatch(name, g) for g in include)) or any(fnmatch(name, g) for g in exclude):
                continue
            if len(files) >= most:
                raise InterfuseError("input.limit", f"more than {most} files", where=str(place), fix="Raise max_files.")
            files.append(_file(path, name, limits))
    first = Path(places[0]).name if places else ""
    return replace(_corpus(source.name or first or "documents", files, limits), reader=reader)


def _walk(place: Path) -> Iterator[tuple[str, str]]:
    """Paths of files and their names below a place, "/" between folders."""
    if place.is_file():
        yield str(place), place.name
        return
    root, folders = place.resolve(), [(str(place), "")]
    while folders:
        folder, before = folders.pop()
        entries: list[os.DirEntry[str]] = []
        with contextlib.suppress(OSError), os.scandir(folder) as found:  # one that cannot be looked into holds nothing
            entries = list(found)
        for entry in entries:
            name, path = entry.name, entry.path
            if name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append((path, f"{before}{name}/"))
            elif name.startswith("~$"):
                continue
            elif entry.is_symlink():
                if os.path.isfile(path) and Path(path).resolve().is_relative_to(root):
                    yield path, before + name
            elif entry.is_file(follow_symlinks=False):
                yield path, before + name


def _file(path: str, name: str, limits: Any) -> File:
    digest, size = sized_sha256(path, limits.bytes)
    return File(name, digest or fingerprint(["too large", size]), size, path)


def _corpus(name: str, files: Sequence[File], limits: Any) -> Corpus:
    if not files:
        raise InterfuseError("input.empty", "there are no documents", where=name)
    names = [f.name for f in files]
    if len({*names}) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InterfuseError("input.duplicate", f"two files are called {twice!r}", where=name)
    return Corpus(name, tuple(sorted(files, key=lambda f: f.name)), limits)
