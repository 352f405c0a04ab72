"""Chunks: pieces of a document that are read at once, cut where its structure or a sentence ends.

A section's paragraphs are gathered up to a budget of tokens (words and marks); a paragraph longer than that is cut between
sentences, a sentence longer than that between words. Rows of a table are gathered likewise, and each piece knows the table's
columns. Nothing overlaps: what stands before a piece is given beside it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from interfuse.data.corpus import Document

#: part of every chunk's id; it changes when the cutting does
VERSION = "2"
TOKEN = re.compile(r"\w+|[^\w\s]")
#: kinds of elements that are cut as one block
BLOCKS = ("heading", "paragraph", "item", "quote", "code", "field", "note", "row", "caption")

_ABBREVIATIONS = (
    "mr mrs ms dr prof sr jr st mt ft no vs etc e.g i.e cf al fig vol pp p ed eds inc ltd co corp dept est approx "
    "jan feb mar apr jun jul aug sep sept oct nov dec gen col lt sgt capt rev hon pres gov sen rep u.s u.k ph.d b.a m.a"
)
_SHORT = frozenset(_ABBREVIATIONS.split())
_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s|\Z)|[。！？]|\n[ \t]*\n""")
#: a short word with a capital behind a copula or a number (a symbol, a unit), and a stop
_SYMBOL = re.compile(r"(?i:\b(?:is|are|was|were|be|symbols?)|=|(\d))\s+([A-Z][a-z]{0,2})\.(?=\s|\Z)")
#: how a sentence begins: with a small word, or with a name and its verb
_SMALL = re.compile(
    r"\s+(?:The|An?|Its?|In|On|At|He|She|They|His|Her|Their|This|That|These|Those|There|When|While|If|As|For|From|By|With|After|Before)\b"
)
_NAMED = re.compile(
    r"\s+[A-Z][\w’'-]*(?:\s+[A-Z][\w’'-]*){0,2}\s+(?:is|are|was|were|has|had|have|can|could|may|might|will|would|does|did|must|[a-z]+ed"
    r"|(?!as\b|this\b|plus\b|versus\b|across\b)[a-z]+s)\b"
)
_NOTHING = re.compile(r"\s*\Z")
_BEFORE_NAMES = "mr mrs ms dr st mt ft gen col lt sgt rev sen gov vs no fig vol eds ed est"
_TITLES = frozenset(_BEFORE_NAMES.split())
_RELATIVE = re.compile(r"\b(?:who|whose|whom|which)\b[^.!?]*\Z", re.IGNORECASE)
_NEXT = re.compile(r"""\s*["'“‘«(\[]*(\S)""")


@dataclass(frozen=True)
class Chunk:
    """A piece of a document that is read at once.

    Attributes:
        id: of document, place and :data:`VERSION`. key: of the text and its context alone: the same in an edited document.
        start, end: characters of the document's text. left: the sentence before it, for context only: nothing is taken from there.
        headings: titles it stands under, outermost first. page: from 1, or 0 where there are none.
        columns: names of a table's columns. blocks: indices of the elements in it.
    """

    id: str
    key: str
    document: Document = field(repr=False)
    start: int
    end: int
    left: str = ""
    headings: tuple[str, ...] = ()
    page: int = 0
    columns: tuple[str, ...] = ()
    blocks: tuple[int, ...] = field(default=(), repr=False)

    @property
    def text(self) -> str:
        return self.document.text[self.start : self.end]


@dataclass(frozen=True)
class _Block:
    start: int
    end: int
    tokens: int
    index: int = -1
    heading: bool = False
    table: int = -1
    page: int = 0


def token_count(text: str) -> int:
    """Words and marks of a text."""
    return len(TOKEN.findall(text))


def stops_after_symbols(text: str, start: int = 0, end: int | None = None) -> list[int]:
    """Where sentences of ``text[start:end]`` end with a symbol that looks like an initial or an abbreviation: positions behind the stop.

    ``The symbol of potassium is K. Potassium was found in 1807.`` has two sentences, ``The author is J. Smith.`` one: what stands
    behind a copula or a number is a symbol when a sentence begins behind its stop (a small word with a capital; behind a copula also a
    name and its verb), or nothing does.
    """
    end = len(text) if end is None else end
    found = []
    for mark in _SYMBOL.finditer(text, start, end):
        if mark.group(2).casefold() in _TITLES or _RELATIVE.search(text[max(start, mark.start() - 60) : mark.start()]):
            continue
        named = _NAMED.match(text, mark.end(), end) and not mark.group(1)  # in 1807 H. Davy was ...
        if named or _SMALL.match(text, mark.end(), end) or _NOTHING.match(text, mark.end(), end):
            found.append(mark.end())
    return found


def sentences(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """(start, end) of the sentences of ``text[start:end]``, without the space around them; an empty line ends one too.

    A full stop after an abbreviation, an initial or a number with more to come does not end a sentence; after a symbol it may, see
    :func:`stops_after_symbols`.
    """
    end = len(text) if end is None else end
    found: list[tuple[int, int]] = []
    begin = start
    after_symbols = frozenset(stops_after_symbols(text, start, end))
    for mark in _END.finditer(text, start, end):
        stop = mark.end()
        if mark.group().startswith(".") and stop not in after_symbols:
            word = re.search(r"\S*\Z", text[max(begin, mark.start() - 24) : mark.start()])
            before = word.group().strip("\"'“‘«([").casefold() if word else ""
            following = _NEXT.match(text, stop, end)
            first = following.group(1) if following else ""
            initial = len(before) == 1 and before.isalpha() and before != "i"
            if len(mark.group()) == 1 and first and (before in _SHORT or initial):
                continue
            if first and first.islower():
                continue
        _keep(found, text, begin, stop)
        begin = stop
    _keep(found, text, begin, end)
    return found


def _keep(found: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        found.append((start, end))


def split(document: Document, tokens: int = 400) -> Iterator[Chunk]:
    """The chunks of a document, in order; every character that is not white space lies in exactly one.

    Args:
        tokens: words and marks of a chunk, at most.
    """
    path: list[tuple[int, str]] = []
    group: list[_Block] = []
    for block in _blocks(document, tokens):
        element = document.elements[block.index] if block.index >= 0 else None
        full = sum(b.tokens for b in group) + block.tokens > tokens
        only_titles = all(b.heading for b in group)
        if group and (
            full
            or (block.heading and not only_titles)
            or block.table != group[-1].table
            or (block.page != group[-1].page and not only_titles)
        ):
            yield _piece(document, group, path)
            group = []
        if block.heading and element is not None:
            while path and path[-1][0] >= element.level:
                path.pop()
            path.append((element.level, document.of(element).strip()))
        group.append(block)
    if group:
        yield _piece(document, group, path)


def _blocks(document: Document, tokens: int) -> Iterator[_Block]:
    text, at = document.text, 0
    tables = {i for i, e in enumerate(document.elements) if e.kind == "table"}
    for index, element in enumerate(document.elements):
        if element.kind not in BLOCKS or element.start < at:
            continue
        yield from _cut(text, at, element.start, tokens)
        table = element.parent if element.kind == "row" and element.parent in tables else -1
        yield from _cut(text, element.start, element.end, tokens, index, element.kind == "heading", table, element.page)
        at = max(at, element.end)
    yield from _cut(text, at, len(text), tokens)


def _cut(text: str, start: int, end: int, tokens: int, index: int = -1, heading: bool = False, table: int = -1,
         page: int = 0) -> Iterator[_Block]:  # fmt: skip
    """One block, or several when it is longer than the budget (or, without an element, when it holds paragraphs)."""
    if not text[start:end].strip():
        return
    whole: list[tuple[int, int]] = []
    _keep(whole, text, start, end)
    (start, end), count = whole[0], token_count(text[start:end])
    if count <= tokens and (index >= 0 or "\n\n" not in text[start:end]):
        yield _Block(start, end, count, index, heading, table, page)
        return
    if index < 0:
        for left, right in _paragraphs(text, start, end):
            yield from _gather(text, left, right, tokens, index, heading, table, page)
        return
    yield from _gather(text, start, end, tokens, index, heading, table, page)


def _paragraphs(text: str, start: int, end: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    begin = start
    for gap in re.compile(r"\n[ \t]*\n\s*").finditer(text, start, end):
        _keep(found, text, begin, gap.start())
        begin = gap.end()
    _keep(found, text, begin, end)
    return found


def _gather(
    text: str, start: int, end: int, tokens: int, index: int, heading: bool, table: int, page: int
) -> Iterator[_Block]:
    begin, last, total = -1, -1, 0
    for left, right in _short_enough(text, sentences(text, start, end), tokens):
        count = token_count(text[left:right])
        if begin >= 0 and total + count > tokens:
            yield _Block(begin, last, total, index, heading, table, page)
            begin, total = -1, 0
        begin, last, total = (left if begin < 0 else begin), right, total + count
    if begin >= 0:
        yield _Block(begin, last, total, index, heading, table, page)


def _short_enough(text: str, spans: Sequence[tuple[int, int]], tokens: int) -> Iterator[tuple[int, int]]:
    """Sentences, those that are longer than the budget cut between words."""
    for left, right in spans:
        marks = [m.span() for m in TOKEN.finditer(text, left, right)]
        if len(marks) <= tokens:
            yield left, right
            continue
        for i in range(0, len(marks), tokens):
            part = marks[i : i + tokens]
            yield part[0][0], part[-1][1]


def _piece(document: Document, group: Sequence[_Block], path: Sequence[tuple[int, str]]) -> Chunk:
    text, start, end = document.text, group[0].start, group[-1].end
    before = sentences(text, max(0, start - 400), start)
    left = text[before[-1][0] : before[-1][1]] if before else ""
    table = group[0].table
    names = (
        tuple(e.column for e in document.elements if e.kind == "cell" and e.parent == group[0].index)
        if table >= 0
        else ()
    )
    titles = tuple(t for _, t in path)
    page = next((b.page for b in group if b.page), 0)
    blocks = tuple(dict.fromkeys(b.index for b in group if b.index >= 0))
    parts = [VERSION, text[start:end], left, *titles, "\x1e", *names]
    key = hashlib.sha256("\x1f".join(parts).encode("utf-8", "replace")).hexdigest()
    own = hashlib.sha256(f"{document.id}\0{start}\0{end}\0{VERSION}".encode()).hexdigest()[:32]
    return Chunk(own, key, document, start, end, left, titles, page, names, blocks)
