"""Texts aligned with a graph: sentences that name both ends of a statement become examples (Mintz et al. 2009).

Nobody says that such a sentence states the relation: the assumption of distant supervision, with its noise. Names that stand for several
entities are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from interfuse.data.chunks import Chunk, split
from interfuse.data.corpus import Document
from interfuse.data.graph import Graph
from interfuse.data.statements import ALIAS, LABEL, TYPE, Literal
from interfuse.kit.language import Parser
from interfuse.kit.mentions import gazetteer, matches


def aligned(graph: Graph, documents: Iterable[Document], parser: Parser) -> Iterator[dict[str, Any]]:
    """Rows ``{"text": sentence, "triples": [{"sub", "rel", "obj"}]}`` for the table of ``build/distant-supervision``, in the order of the texts.

    A sentence and a statement belong together when the sentence holds a label or alias of the subject and of the object, or the words of a
    value, in places that do not overlap; ends are written as the sentence has them.
    """
    of: dict[str, dict[str, None]] = {}  # name in lower case -> entities and values it stands for
    facts: dict[tuple[str, str], dict[str, None]] = {}  # (subject, object or value's words) -> relations
    for s in graph.statements():
        if s.predicate in (LABEL, ALIAS) and isinstance(s.object, Literal):
            of.setdefault(s.object.value.casefold(), {})[s.subject] = None
        elif s.predicate != TYPE:
            end = f'"{s.object.value}' if isinstance(s.object, Literal) else s.object
            facts.setdefault((s.subject, end), {})[graph.label(s.predicate)] = None
            if isinstance(s.object, Literal) and re.search(r"\w{2}", s.object.value):
                of.setdefault(s.object.value.casefold(), {})[end] = None
    table = gazetteer(
        (name, "") for name, things in sorted(of.items()) if len([t for t in things if not t.startswith('"')]) <= 1
    )
    for document in documents:
        texts = [text for chunk in split(document) for text in _blocks(chunk)]
        for text, sentences in zip(texts, parser.parse(texts), strict=True):
            for sentence in sentences:
                found: list[tuple[int, int, str]] = []
                at = 0
                for a, b, name, _ in matches(sentence, table):  # the longest from each word on; none within another
                    if a >= at:
                        found += [(a, b, thing) for thing in of[name]]
                        at = b
                triples = [
                    {"sub": sentence.text(a, b), "rel": relation, "obj": sentence.text(c, d)}
                    for a, b, subject in found
                    for c, d, end in found
                    if (b <= c or d <= a)
                    for relation in facts.get((subject, end), ())
                ]
                if triples:
                    words = sentence.words
                    yield {
                        "text": text[words[0].start : words[-1].end],
                        "triples": [dict(t) for t in dict.fromkeys(tuple(t.items()) for t in triples)],
                    }


def _blocks(chunk: Chunk) -> Iterator[str]:
    """The texts of a chunk in which sentences end: a heading, a paragraph, a row."""
    elements = chunk.document.elements
    for i in chunk.blocks:
        yield chunk.text[max(elements[i].start - chunk.start, 0) : elements[i].end - chunk.start]
    if not chunk.blocks:
        yield chunk.text
