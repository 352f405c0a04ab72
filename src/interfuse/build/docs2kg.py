"""Docs2KG (Sun et al. 2024): one graph of layout, metadata and meaning, whose layers share nodes, from documents of any format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.build.asking import ASKING, cost_of_asking, extract_chunks
from interfuse.build.assembling import CLASS, document_iri, element_iri
from interfuse.build.reading import READING, read_by_rules, read_tables, reader_of
from interfuse.build.room import Candidate, Work
from interfuse.build.tables import value_of
from interfuse.core.method import method
from interfuse.core.rooms import Call, Cost
from interfuse.data.chunks import Chunk
from interfuse.data.corpus import Document
from interfuse.data.statements import LABEL, TYPE, XSD, Evidence, Statement, entity_id, relation_id
from interfuse.data.statements import Literal as Value

#: fields of a mail's head that name people
PEOPLE = ("from", "to", "cc")


def sections(levels: Sequence[int]) -> list[int]:
    """The heading that each element stands under: the last one before it of a smaller level; -1 at the top.

    Args:
        levels: of headings, from 1; 0 for elements that are no headings.
    """
    stack: list[tuple[int, int]] = []
    found = []
    for i, level in enumerate(levels):
        if level:
            while stack and stack[-1][0] >= level:
                stack.pop()
            found.append(stack[-1][1] if stack else -1)
            stack.append((level, i))
        else:
            found.append(stack[-1][1] if stack else -1)
    return found


def continuous(values: Sequence[str]) -> bool:
    """Whether a column of metadata is a measure: numbers, more than half of them different (section 3)."""
    numbers = [v for v in values if re.fullmatch(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", v.strip())]
    return bool(values) and len(numbers) == len(values) and len(set(numbers)) / len(values) > 0.5


def layout(work: Work, document: Document, chunks: Sequence[Chunk], **params: Any) -> Iterator[Statement]:
    """The layers of layout and metadata of one document."""
    del chunks, params
    node = document_iri(document.id)
    whole = (Evidence(document.id, 0, len(document.text), method="build/docs2kg"),)

    def say(subject: str, name: str, target: str | Value, proof: tuple[Evidence, ...] = whole) -> Statement:
        return Statement(subject, relation_id(name), target, evidence=proof)

    yield Statement(node, TYPE, CLASS + "document", evidence=whole)
    yield Statement(node, LABEL, Value(document.name), evidence=whole)
    yield say(node, "media type", Value(document.media))
    if document.holder:
        yield say(document_iri(document.holder), "has attachment", node)
    for key, text in document.meta.items():
        if key in PEOPLE and document.media == "mail":
            for person in re.findall(r"(?:\"?([^\"<>,;]+?)\"?\s*)?<?([\w.+-]+@[\w.-]+)>?", text):
                name = (person[0] or person[1]).strip()
                yield say(node, {"from": "sent by", "to": "sent to", "cc": "copied to"}[key], entity_id(name))
                yield Statement(entity_id(name), LABEL, Value(name), evidence=whole)
                yield say(entity_id(name), "mail address", Value(person[1]))
        else:
            yield say(node, key, Value(text))
    last: dict[int, str] = {}
    under = sections([e.level if e.kind == "heading" else 0 for e in document.elements])
    for i, element in enumerate(document.elements):
        mine = element_iri(element.id)
        proof = (
            Evidence(document.id, element.start, element.end, element.page or None, element.id, method="build/docs2kg"),
        )
        yield Statement(mine, TYPE, CLASS + element.kind, evidence=proof)
        yield Statement(mine, LABEL, Value(document.of(element)[:120]), evidence=proof)
        holder = element.parent if element.parent >= 0 else under[i]
        yield say(element_iri(document.elements[holder].id) if holder >= 0 else node, "has element", mine, proof)
        if element.page:
            yield say(mine, "on page", Value(str(element.page), XSD + "integer"), proof)
        if element.place:
            yield say(mine, "at", Value(element.place), proof)
        if holder in last:
            yield say(last[holder], "next", mine, proof)
        last[holder] = mine
    for start, end, target in document.links:
        proof = (Evidence(document.id, start, end, method="build/docs2kg"),)
        yield say(node, "links to", Value(target), proof)
    for item in document.data:
        yield from _stated(item, whole)
    yield from _metadata(work, document, node, whole)


def _stated(item: Mapping[str, Any], proof: tuple[Evidence, ...], depth: int = 0) -> Iterator[Statement]:
    """What a page states for machines (JSON-LD): flat facts of named things; no context is fetched."""
    name = item.get("name")
    if not isinstance(name, str) or depth > 4:
        return
    me = entity_id(name)
    yield Statement(me, LABEL, Value(name), evidence=proof)
    if isinstance(item.get("@type"), str):
        yield Statement(me, TYPE, relation_id(str(item["@type"]), base=CLASS), evidence=proof)
    for key, value in item.items():
        if key.startswith("@") or key == "name":
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping) and isinstance(one.get("name"), str):
                yield Statement(me, relation_id(key), entity_id(str(one["name"])), evidence=proof)
                yield from _stated(one, proof, depth + 1)
            elif isinstance(one, str | int | float) and str(one).strip():
                yield Statement(me, relation_id(key), value_of(str(one)) or Value(str(one)), evidence=proof)


def _metadata(work: Work, document: Document, node: str, proof: tuple[Evidence, ...]) -> Iterator[Statement]:
    """A row of the metadata table: measures become properties, everything else nodes that documents share."""
    if work.table is None or "name" not in work.table.dataset.column_names:
        return
    rows = work.table.dataset.with_format(None)[work.table.rows]
    for i, name in enumerate(rows["name"]):
        if str(name) not in (document.name, document.name.rsplit("/", 1)[-1]):
            continue
        for column, values in rows.items():
            if column == "name" or values[i] is None or not str(values[i]).strip():
                continue
            text = str(values[i]).strip()
            if continuous([str(v) for v in values if v is not None]):
                yield Statement(node, relation_id(column), value_of(text) or Value(text), evidence=proof)
            else:
                target = entity_id(text, key=f"{column}={text}")
                yield Statement(node, relation_id(f"has {column}"), target, evidence=proof)
                yield Statement(target, LABEL, Value(text), evidence=proof)
                yield Statement(target, TYPE, relation_id(column, base=CLASS), evidence=proof)


def prepare(work: Work, *, entities: list[str] | None, parser: str, **_: Any) -> Any:
    """The parser, and the names that the list, the ontology and an earlier graph bring."""
    pairs = [tuple(e.rsplit("=", 1)) if "=" in e else (e, "") for e in entities or ()]
    return reader_of(work, parser, [(p[0].strip(), p[1].strip()) for p in pairs])


def _cost(call: Call, params: Mapping[str, Any]) -> Cost:
    return cost_of_asking(call, params) if call.inputs["lm"] is not None else Cost()


@method(
    per="chunk", needs=("documents",), batch=32, prepare=prepare, document=layout, index="element", cost=_cost,
    parts=(*READING, *ASKING),
)  # fmt: skip
def docs2kg(
    work: Work,
    *,
    entities: Annotated[list[str] | None, Field(description="names to be found, each alone or as name=type")] = None,
    parser: Annotated[
        Literal["auto", "spacy", "rules"], Field(description="who reads sentences where no language model does")
    ] = "auto",
    max_tokens: Annotated[
        int, Field(ge=16, le=100_000, description="tokens of one reply of the language model at most")
    ] = 1500,
) -> Iterator[Candidate]:
    """The layer of meaning: rows of tables, and relations in the text by the language model when there is one, else by rules.
    Layout and metadata come with every document, and every element points to what it mentions.

    Raises:
        InterfuseError: ``needs.package``, ``budget.spent`` or ``endpoint.failed``.
    """
    yield from read_tables(work)
    if work.lm is None:
        yield from read_by_rules(work)
    else:
        yield from extract_chunks(work, max_tokens=max_tokens, tries=2, nearly=0.9)
