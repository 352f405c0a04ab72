"""KAG's index (Liang et al. 2024): entities and the texts that support them point to each other, and meaning connects what texts left apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.build.aligning import REQUESTS, align
from interfuse.build.asking import ASKING, FIELDS, NEEDED, ask, cost_of_asking, count_chunks, grounded, prompt_of
from interfuse.build.assembling import CLASS, chunk_iri, document_iri
from interfuse.build.reading import READING, read_by_rules, read_tables, reader_of
from interfuse.build.room import Candidate, Work
from interfuse.core.method import method
from interfuse.core.rooms import Call, Cost
from interfuse.data.chunks import Chunk
from interfuse.data.corpus import Document
from interfuse.data.statements import LABEL, TYPE, Evidence, Statement, relation_id
from interfuse.data.statements import Literal as Value
from interfuse.kit.document_prompts import about_document
from interfuse.kit.mended_replies import records

NAMES = (
    "List the entities that the document names, as JSON: {\"entities\": [{\"name\": ..., \"category\": ..., \"type\": ..., \"official_name\": ..., "
    "\"description\": ...}]}. \"name\" as the document writes it; \"category\" one of: {categories}; \"type\" a fine type of its own; "
    "\"official_name\" its full, usual name."
)  # fmt: skip
ENTITY_FIELDS = ("name", "category", "type", "official_name", "description")
ENTITIES: dict[str, Any] = {
    "type": "object",
    "properties": {"entities": {"type": "array", "items": {
        "type": "object", "properties": {f: {"type": "string"} for f in ENTITY_FIELDS}, "required": ["name", "category"]}}},
    "required": ["entities"],
}  # fmt: skip


def chunk_nodes(work: Work, document: Document, chunks: Sequence[Chunk], **params: Any) -> Iterator[Statement]:
    """A node per chunk, in order, with its text: the layer of raw chunks that retrieval falls back on."""
    del work, params
    last = ""
    for chunk in chunks:
        node = chunk_iri(chunk.id)
        proof = (Evidence(document.id, chunk.start, chunk.end, chunk.page or None, method="build/kag"),)
        yield Statement(node, TYPE, CLASS + "chunk", evidence=proof)
        yield Statement(node, LABEL, Value(" > ".join((document.name, *chunk.headings[-2:]))), evidence=proof)
        yield Statement(node, relation_id("text"), Value(chunk.text), evidence=proof)
        yield Statement(node, relation_id("part of"), document_iri(document.id), evidence=proof)
        if last:
            yield Statement(last, relation_id("next"), node, evidence=proof)
        last = node
    yield Statement(
        document_iri(document.id),
        LABEL,
        Value(document.name),
        evidence=(Evidence(document.id, 0, len(document.text), method="build/kag"),),
    )


def prepare(work: Work, *, parser: str, **_: Any) -> Any:
    """The parser and the names of ontology and earlier graph."""
    return reader_of(work, parser)


def _cost(call: Call, params: Mapping[str, Any]) -> Cost:
    """Names and triples of every chunk, then pairs of names that may belong together: no more requests than chunks."""
    if call.inputs["lm"] is None:
        return Cost()
    reading = cost_of_asking(call, params)
    chunks = count_chunks(call, call.params["chunk_tokens"], lambda chunk: False)  # names of tables are aligned too
    aligning = 2 * min(REQUESTS, max(1, chunks))
    return reading + reading + Cost(calls=aligning, seconds=aligning / 2)


@method(
    per="chunk", needs=("documents",), batch=16, prepare=prepare, document=chunk_nodes, index="chunk", finish=align, cost=_cost,
    parts=(*READING, *ASKING),
)  # fmt: skip
def kag(
    work: Work,
    *,
    categories: Annotated[
        list[str] | None, Field(description="classes of the schema, for the language model; others are called Others")
    ] = None,
    similar: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="likeness of two names of one type from which they are linked as similar, never merged; 1: off",
        ),
    ] = 0.9,
    parser: Annotated[
        Literal["auto", "spacy", "rules"], Field(description="who reads sentences where no language model does")
    ] = "auto",
    max_tokens: Annotated[
        int, Field(ge=16, le=100_000, description="tokens of one reply of the language model at most")
    ] = 1500,
) -> Iterator[Candidate]:
    """Entities, then triples given these, with official names as aliases; every entity points to the chunks that support it, and back.

    Raises:
        InterfuseError: ``needs.package``, ``budget.spent`` or ``endpoint.failed``.
    """
    yield from read_tables(work)
    if work.lm is None:
        yield from read_by_rules(work)
    else:
        yield from _by_model(work, categories or [], max_tokens)


def _by_model(work: Work, categories: Sequence[str], max_tokens: int) -> Iterator[Candidate]:
    chunks = {c.id: c for c in work.chunks}
    kinds = [
        *categories,
        *([c.label for c in work.ontology.classes.values() if c.label] if work.ontology is not None else []),
        "Others",
    ]

    def entities(name: str, reply: str) -> tuple[list[Any], list[str]]:
        got = records(reply, ENTITY_FIELDS, needed=("name",))
        return got.rows, [] if got.rows or "[]" in reply.replace(" ", "") else ["no entity could be read"]

    def triples(name: str, reply: str) -> tuple[list[Any], list[str]]:
        got = records(reply, FIELDS, needed=NEEDED)
        return got.rows, [] if got.rows or "[]" in reply.replace(" ", "") else ["no statement could be read"]

    task = NAMES.replace("{categories}", ", ".join(dict.fromkeys(kinds)))
    named = ask(work, {i: about_document(task, c.text, after="The entities, as JSON:") for i, c in chunks.items()}, entities,
                max_tokens=max_tokens, tries=2, schema=ENTITIES)  # fmt: skip
    asked = {}
    for i, c in chunks.items():
        listed = "; ".join(f"{r['name']} ({r.get('category') or r.get('type') or 'Others'})" for r in named[i][0])
        messages = prompt_of(c, work.ontology)
        messages[1]["content"] = f"Entities of the document: {listed}\n\n{messages[1]['content']}"
        asked[i] = messages
    found = ask(work, asked, triples, max_tokens=max_tokens, tries=2)
    for i, c in chunks.items():
        types: dict[str, str] = {}
        for row in named[i][0]:
            name = str(row["name"]).strip()
            at = c.text.find(name)
            if at < 0:
                work.by_chunk[i]["dropped: a name that is not in the text"] = (
                    work.by_chunk[i].get("dropped: a name that is not in the text", 0) + 1
                )
                continue
            category = str(row.get("category") or "Others")
            types[name.casefold()] = category if category in kinds else "Others"
            official = str(row.get("official_name") or "").strip()
            yield Candidate(name, "", name, types[name.casefold()].casefold(), "", chunk=i, start=at, end=at + len(name), prompt=named[i][1],
                            aliases=(official,) if official and official.casefold() != name.casefold() else ())  # fmt: skip
            if row.get("description"):
                yield Candidate(name, "description", Value(str(row["description"])[:500]), chunk=i, start=at, end=at + len(name), confidence=0.7,
                                status="model-claimed", prompt=named[i][1])  # fmt: skip
        for row in found[i][0]:
            row = {**row, "subject_type": types.get(str(row["subject"]).casefold(), row.get("subject_type")),
                   "object_type": types.get(str(row["object"]).casefold(), row.get("object_type"))}  # fmt: skip
            made = grounded(c, row, 0.9, work.ontology, found[i][1])
            if isinstance(made, str):
                work.by_chunk[i][f"dropped: {made}"] = work.by_chunk[i].get(f"dropped: {made}", 0) + 1
            else:
                yield made
