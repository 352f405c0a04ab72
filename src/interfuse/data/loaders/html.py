"""Web pages: headings, paragraphs, lists, tables, links, and the facts a page states for machines (JSON-LD)."""

from __future__ import annotations

import json
import re
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data.corpus import Document
from interfuse.data.loaders.layout import Limits, Writer, clean, has_header
from interfuse.data.loaders.text import decode

_SKIP = (
    "script",
    "style",
    "nav",
    "noscript",
    "template",
    "svg",
    "math",
    "iframe",
    "object",
    "head",
    "button",
    "select",
    "form",
    "canvas",
)
_BLOCKS = {"p": "paragraph", "li": "item", "blockquote": "quote", "pre": "code", "dt": "item", "dd": "paragraph",
           "figcaption": "caption", "caption": "caption", **{f"h{i}": "heading" for i in range(1, 7)}}  # fmt: skip
_BREAKS = ("div", "section", "article", "main", "header", "footer", "aside", "ul", "ol", "dl", "table", "figure", "body", "html", "hr",
           "address", "details", "summary", "fieldset", "center")  # fmt: skip
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset=[\"']?([A-Za-z0-9_:-]{1,40})", re.IGNORECASE)
_UNSEEN = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])|opacity\s*:\s*0(?![.\d])", re.IGNORECASE
)


def read_html(data: bytes, name: str, limits: Limits) -> Document:
    """A web page as a document; what a reader would not see is left out and counted."""
    declared = _CHARSET.search(data[:4096])
    words, encoding = decode(data, declared.group(1).decode("ascii") if declared else "")
    writer = Writer(limits, meta={"encoding": encoding})
    write_html(writer, words)
    return writer.document(data, name, "html")


def write_html(writer: Writer, words: str) -> None:
    """Appends the elements of a page.

    Raises:
        InterfuseError: ``input.format`` when it cannot be parsed, ``needs.package`` without lxml.
    """
    from lxml import etree
    from lxml import html as lxml_html

    words = re.sub(r"<\?xml[^>]{0,200}\?>", "", words[:1000]) + words[1000:]
    if not words.strip():
        return
    parser = lxml_html.HTMLParser(no_network=True, remove_comments=True, remove_pis=True, huge_tree=False)
    try:
        tree = lxml_html.document_fromstring(words, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise InterfuseError("input.format", f"not a web page: {error}") from error
    _head(writer, tree)
    _Walk(writer).walk(tree)


def _head(writer: Writer, tree: Any) -> None:
    title = tree.find(".//title")
    if title is not None and title.text:
        writer.meta["title"] = clean(title.text)
    if tree.get("lang"):
        writer.meta["language"] = clean(tree.get("lang"))[:35]
    for meta in tree.iter("meta"):
        key = (meta.get("name") or meta.get("property") or "").casefold()
        if key in ("author", "description", "date", "article:published_time", "og:title") and meta.get("content"):
            writer.meta[key] = clean(meta.get("content"))
    for script in tree.iter("script"):
        if (script.get("type") or "").casefold() == "application/ld+json" and script.text:
            try:
                found = json.loads(script.text[:1_000_000])
            except (ValueError, RecursionError):
                writer.meta["unreadable data"] = "JSON-LD"
                continue
            writer.data += [x for x in (found if isinstance(found, list) else [found]) if isinstance(x, dict)]


class _Walk:
    """Goes through a tree without recursion."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.buffer: list[tuple[str, str]] = []  # text, link target
        self.kind, self.level, self.lists = "paragraph", 0, 0
        self.hidden = 0
        self.quote = 0

    def walk(self, tree: Any) -> None:
        stack: list[tuple[Any, bool]] = [(tree, False)]
        link: list[str] = []
        while stack:
            node, leaving = stack.pop()
            if isinstance(node, str):
                self.buffer.append((node, link[-1] if link else ""))
                continue
            tag = node.tag if isinstance(node.tag, str) else ""
            if leaving:
                if tag == "a":
                    link.pop()
                elif tag in ("ul", "ol"):
                    self.flush()
                    self.lists -= 1
                elif tag == "blockquote":
                    self.flush()
                    self.quote -= 1
                elif tag in _BLOCKS or tag in _BREAKS:
                    self.flush()
                continue
            if not tag or tag in _SKIP or self.unseen(node):
                continue
            if tag == "table" and node.find(".//table") is None:
                self.flush()
                self.table(node)
                continue
            if tag == "br":
                self.buffer.append(("\n" if self.kind == "code" else " ", ""))
            elif tag == "a":
                link.append(node.get("href") or "")
            elif tag in ("ul", "ol"):
                self.flush()
                self.lists += 1
            elif tag in _BLOCKS:
                self.flush()
                if tag == "blockquote":
                    self.quote += 1
                self.kind = "quote" if self.quote and tag == "p" else _BLOCKS[tag]
                self.level = int(tag[1]) if self.kind == "heading" else self.lists if self.kind == "item" else 0
            elif tag in _BREAKS or tag in ("td", "th"):
                self.flush()
            stack.append((node, True))
            for child in reversed(node):
                if child.tail:
                    stack.append((child.tail, False))
                stack.append((child, False))
            if node.text:
                stack.append((node.text, False))
        self.flush()
        if self.hidden:
            self.writer.meta["hidden elements left out"] = str(self.hidden)

    def unseen(self, node: Any) -> bool:
        hidden = (
            node.get("hidden") is not None
            or node.get("aria-hidden") == "true"
            or _UNSEEN.search(node.get("style") or "")
        )
        self.hidden += bool(hidden)
        return bool(hidden)

    def flush(self) -> None:
        """Writes what was gathered as one element."""
        buffer, self.buffer = self.buffer, []
        kind, level, self.kind, self.level = self.kind, self.level, "quote" if self.quote else "paragraph", 0
        if kind == "code":
            self.writer.add("code", clean("".join(t for t, _ in buffer), lines=True).strip("\n"), raw=True)
            return
        body, places = "", []
        for text, target in buffer:
            text = re.sub(r"\s+", " ", clean(text, lines=True))
            if not body or body.endswith(" "):
                text = text.lstrip()
            if not text:
                continue
            if target and text.strip():
                lead = len(text) - len(text.lstrip())
                places.append((len(body) + lead, len(body) + len(text.rstrip()), target))
            body += text
        ready = body.rstrip()
        index = self.writer.add(
            kind, ready, raw=True, separator="\n" if kind == "item" else "\n\n", **({"level": level} if level else {})
        )
        if index >= 0:
            start = self.writer.rows[index]["start"]
            self.writer.links += [
                (start + a, start + b, t)
                for a, b, t in places
                if b <= len(ready) and not t.startswith(("javascript:", "data:"))
            ]

    def table(self, node: Any) -> None:
        """Writes a table with spans filled in."""
        caption = node.find("caption")
        if caption is not None:
            self.writer.add("caption", "".join(caption.itertext()))
        grid: list[list[str]] = []
        filled: dict[tuple[int, int], str] = {}
        header = False
        for r, row in enumerate(node.iter("tr")):
            line: list[str] = []
            cells = [c for c in row if c.tag in ("td", "th")]
            header = header or (r == 0 and bool(cells) and all(c.tag == "th" for c in cells))
            queue = list(cells)
            while queue or (r, len(line)) in filled:
                if (r, len(line)) in filled:
                    line.append(filled[r, len(line)])
                    continue
                cell = queue.pop(0)
                text = "" if self.unseen(cell) else clean(" ".join(t for t in self.texts(cell)))
                across, down = _span(cell.get("colspan")), _span(cell.get("rowspan"))
                for d in range(1, down):
                    for a in range(across):
                        filled[r + d, len(line) + a] = text
                line += [text] * across
            grid.append(line)
            if sum(map(len, grid)) > self.writer.limits.cells:
                raise InterfuseError("input.limit", f"a table has more than {self.writer.limits.cells} cells")
        width = max(map(len, grid), default=0)
        rows = [line + [""] * (width - len(line)) for line in grid if any(line)]
        if rows:
            self.writer.table(rows, header=header or has_header(rows))

    def texts(self, cell: Any) -> list[str]:
        """The texts of a cell that are seen, in order."""
        found: list[str] = []
        stack: list[Any] = [cell]
        while stack:
            node = stack.pop()
            if isinstance(node, str):
                found.append(node)
                continue
            if not isinstance(node.tag, str) or node.tag in _SKIP or (node is not cell and self.unseen(node)):
                continue
            for child in reversed(node):
                if child.tail:
                    stack.append(child.tail)
                stack.append(child)
            if node.text:
                stack.append(node.text)
        return found


def _span(value: str | None) -> int:
    return max(1, min(int(value), 200)) if value and value.isdigit() and len(value) < 6 else 1
