"""Asking a language model about chunks: prompts with fences, replies mended record by record, quotations found or dropped, all counted."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from interfuse.build.room import Candidate, Work
from interfuse.build.tables import value_of
from interfuse.core.rooms import Call, Cost
from interfuse.data.chunks import Chunk, sentences, split
from interfuse.data.loaders.sizes import text_sizes
from interfuse.data.ontology import Ontology
from interfuse.kit.asking import as_read
from interfuse.kit.document_prompts import about_document, corrected
from interfuse.kit.mended_replies import records
from interfuse.kit.quotes import find_quote

#: modules that a method's findings depend on when it asks a language model
ASKING = (
    "interfuse.build.asking",
    "interfuse.kit.document_prompts",
    "interfuse.kit.mended_replies",
    "interfuse.kit.quotes",
)
FIELDS = ("subject", "relation", "object", "subject_type", "object_type", "quote")
NEEDED = ("subject", "relation", "object")
#: what a model is made to answer with, where its server can
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"statements": {"type": "array", "items": {
        "type": "object", "properties": {f: {"type": "string"} for f in FIELDS}, "required": [*NEEDED, "quote"]}}},
    "required": ["statements"],
}  # fmt: skip
#: relations of an ontology, at most, that a reply may only choose from: servers that are strict take no longer lists as they are
MOST_CHOICES = 250
TASK = (
    "You read documents and write down what they state, as JSON: {\"statements\": [{\"subject\": ..., \"subject_type\": ..., \"relation\": ..., "
    "\"object\": ..., \"object_type\": ..., \"quote\": ...}]}. Subject and object are names as the document writes them, never pronouns. "
    "\"quote\" is copied from the document, word for word: the shortest passage that states it. Write only what is stated. "
    "When nothing is stated, answer {\"statements\": []}."
)  # fmt: skip

#: what stands after a document
AFTER = "The statements, as JSON:"
#: documents with what they state, in invented names, shown to models that are too small to go by words alone
EXAMPLES: tuple[tuple[str, tuple[tuple[str, str, str, str, str, str], ...]], ...] = (
    ("Lake Marn lies in Verland. The painter Ada Holt was born in Tarm.", (
        ("Lake Marn", "lies in", "Verland", "lake", "country", "Lake Marn lies in Verland"),
        ("Ada Holt", "born in", "Tarm", "painter", "town", "Ada Holt was born in Tarm"))),
    ("Quillon Works was founded by Tom Brandt. It makes clocks in Pellworth.", (
        ("Quillon Works", "founded by", "Tom Brandt", "company", "person", "Quillon Works was founded by Tom Brandt"),
        ("Quillon Works", "makes clocks in", "Pellworth", "company", "town", "It makes clocks in Pellworth"))),
    ("The Oss is a river of Morland. Greta Lind invented the wind harp.", (
        ("Oss", "river of", "Morland", "river", "country", "The Oss is a river of Morland"),
        ("Greta Lind", "invented", "wind harp", "person", "instrument", "Greta Lind invented the wind harp"))),
)  # fmt: skip


def shown(messages: Sequence[dict[str, str]], count: int) -> list[dict[str, str]]:
    """A prompt with some of :data:`EXAMPLES` before the question, as turns of the conversation."""
    turns: list[dict[str, str]] = []
    for text, rows in EXAMPLES[:count]:
        said = {"statements": [dict(zip(FIELDS, row, strict=True)) for row in rows]}
        turns += [about_document("", text, after=AFTER)[1], {"role": "assistant", "content": json.dumps(said)}]
    return [messages[0], *turns, *messages[1:]]


def ontology_words(ontology: Ontology | None, limit: int = 6000) -> str:
    """An ontology for a prompt: its relations with domain and range, and its classes."""
    if ontology is None:
        return ""
    lines = ["Use only these relations (subject type -> object type):"]
    for p in ontology.properties.values():
        domain = " or ".join(ontology.label(d) for d in p.domain) or "anything"
        target = " or ".join(ontology.label(r) for r in p.range) or "anything"
        lines.append(
            f"- {p.label or ontology.label(p.iri)}: {domain} -> {target}"
            + (f" ({p.comment[:120]})" if p.comment else "")
        )
    if ontology.classes:
        lines.append("Types: " + ", ".join(ontology.label(c) for c in ontology.classes))
    return "\n".join(lines)[:limit]


def schema_of(ontology: Ontology | None) -> dict[str, Any]:
    """The shape of a reply: with an ontology of up to :data:`MOST_CHOICES` relations, a statement's relation is one of them."""
    if ontology is None or not 0 < len(ontology.properties) <= MOST_CHOICES:
        return SCHEMA
    schema = copy.deepcopy(SCHEMA)
    names = dict.fromkeys(ontology.label(iri) for iri in ontology.properties)
    schema["properties"]["statements"]["items"]["properties"]["relation"] = {"enum": list(names)}
    return schema


def prompt_of(chunk: Chunk, ontology: Ontology | None, task: str = TASK) -> list[dict[str, str]]:
    """The messages for one chunk."""
    before = ontology_words(ontology)
    place = " > ".join(chunk.headings[-3:])
    context = f"The document stands under the titles: {place}" if place else ""
    return about_document(task, chunk.text, before="\n\n".join(p for p in (before, context) if p), after=AFTER)


def ask(work: Work, prompts: Mapping[str, Sequence[Mapping[str, str]]], read: Callable[[str, str], tuple[list[Any], list[str]]], *,
        max_tokens: int, tries: int, temperature: float = 0.0, schema: Mapping[str, Any] | None = SCHEMA) -> dict[str, tuple[list[Any], str]]:  # fmt: skip
    """Asks the model once per name, and again with what was wrong where nothing could be used.

    Args:
        prompts: by name. read: (name, reply) -> (what it holds, problems; none: it is done).

    Returns:
        by name, what was read and the hash of the prompt that gave it. A reply that could not be used is not kept in the cache.

    Raises:
        InterfuseError: ``budget.spent``, ``endpoint.failed`` or ``input.limit``.
    """
    from interfuse.data.lm import cached

    assert work.lm is not None
    lm = cached(work.lm, work.ctx)
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": work.ctx.seed_for("ask") % 2**31 if temperature else 0,
        "schema": schema,
    }
    waiting = {name: [dict(m) for m in messages] for name, messages in prompts.items()}
    done: dict[str, tuple[list[Any], str]] = {}
    for number in range(1, tries + 1):
        if not waiting:
            break
        names = list(waiting)
        replies = lm.generate([as_read(work.lm, waiting[n]) for n in names], ctx=work.ctx, **options)
        again: dict[str, list[dict[str, str]]] = {}
        for name, (reply, *_) in zip(names, replies, strict=True):
            found, problems = read(name, reply.text)
            digest = hashlib.sha256(
                json.dumps(waiting[name], ensure_ascii=False).encode("utf-8", "replace")
            ).hexdigest()[:16]
            if problems and not found:
                lm.forget(as_read(work.lm, waiting[name]), **options)
                again[name] = corrected(waiting[name], reply.text, problems)
                _count(work, name, "replies that could not be used")
            if not problems or found or number == tries:
                done[name] = (found, digest)
        waiting = {n: m for n, m in again.items() if n not in done}
    return done


def _count(work: Work, chunk: str, what: str, amount: float = 1) -> None:
    row = work.by_chunk.get(chunk, work.tally)
    row[what] = row.get(what, 0) + amount


def extract_chunks(
    work: Work,
    *,
    max_tokens: int,
    tries: int,
    nearly: float,
    task: str = TASK,
    status: str = "stated",
    examples: int = 0,
) -> Iterator[Candidate]:
    """Statements of the chunks, each grounded in a quotation that stands in its chunk; ``examples`` are shown before the question."""
    by_id = {c.id: c for c in work.chunks}

    def read(name: str, reply: str) -> tuple[list[Any], list[str]]:
        found = records(reply, FIELDS, needed=NEEDED)
        for what, amount in (("records lost in replies", found.lost), ("records mended", found.mended)):
            if amount:
                _count(work, name, what, amount)
        empty = not found.rows and not found.lost and "statements" in reply and "[]" in reply.replace(" ", "")
        return found.rows, [] if found.rows or empty else [
            'no statement could be read from it; the form is {"statements": [{...}]}'
        ]

    answers = ask(
        work,
        {c.id: shown(prompt_of(c, work.ontology, task), examples) for c in work.chunks},
        read,
        max_tokens=max_tokens,
        tries=tries,
        schema=schema_of(work.ontology),
    )
    for name, (rows, digest) in answers.items():
        for row in rows:
            made = grounded(by_id[name], row, nearly, work.ontology, digest, status)
            if isinstance(made, str):
                _count(work, name, f"dropped: {made}")
            else:
                yield made


def grounded(
    chunk: Chunk,
    row: Mapping[str, Any],
    nearly: float,
    ontology: Ontology | None,
    prompt: str = "",
    status: str = "stated",
) -> Candidate | str:
    """A record as a candidate, or why it is dropped: its quotation must stand in the chunk, its relation in the ontology."""
    words = {k: str(row.get(k) or "").strip() for k in FIELDS}
    if any(len(words[k]) > 300 for k in NEEDED) or words["subject"].casefold() == words["object"].casefold():
        return "no statement"
    place = find_quote(chunk.text, words["quote"], nearly=nearly) if words["quote"] else None
    if place is None:
        place = _sentence_with(chunk.text, words["subject"], words["object"])
        if place is None:
            return "the quotation is not in the text"
    relation = words["relation"]
    if ontology is not None:
        known = [i for i in ontology.find(relation.replace("_", " ")) if i in ontology.properties]
        if not known and relation not in ontology.properties:
            return "a relation that the ontology does not have"
    value = value_of(words["object"])
    return Candidate(
        words["subject"], relation.replace("_", " "), value if value is not None else words["object"], words["subject_type"].casefold(),
        "" if value is not None else words["object_type"].casefold(), confidence=round(0.9 * place[2], 4), chunk=chunk.id, start=place[0], end=place[1],
        prompt=prompt, status=status,
    )  # fmt: skip


def _sentence_with(text: str, subject: str, target: str) -> tuple[int, int, float] | None:
    """The first sentence that holds both words."""
    for start, end in sentences(text):
        low = text[start:end].casefold()
        if subject.casefold() in low and target.casefold() in low:
            return start, end, 0.8
    return None


#: bytes of documents that are read to count what will be asked about; beyond, the rest is estimated from these
COUNTED = 1_000_000
#: bytes of a word or mark where nothing better is known
BYTES = 4


def read_by_rule(chunk: Chunk) -> bool:
    """Whether a chunk is of a table, whose rows are read without a model."""
    return any(chunk.columns)


def count_chunks(call: Call, tokens: int, free: Callable[[Chunk], bool] = read_by_rule) -> int:
    """How many chunks of the documents a model will be asked about.

    They are counted, file by file, where the documents are small; of larger ones a megabyte of files from all over is read, and every
    other document counts once, and by the characters that its file may hold (see :mod:`interfuse.data.loaders.sizes`) as often more as
    these did. What docling would read is not read for this: its PDFs are estimated by their pages, the rest is read as usual.

    Args:
        tokens: words and marks of a chunk at most. free: whether nothing is asked about a chunk.
    """
    corpus = call.inputs["documents"]
    if corpus is None or not corpus.files:
        return 0
    sizes = text_sizes(corpus)
    total = sum(f.size for f in corpus.files)
    share = min(1.0, COUNTED / max(total, 1))
    count = max(1, int(len(corpus.files) * share))
    looked = [corpus.files[i * len(corpus.files) // count] for i in range(count)] if share < 1 else list(corpus.files)
    small, size = [], 0
    for file in looked:
        size += max(file.size, sizes[file.name][1])
        if size <= COUNTED and not (corpus.reader == "docling" and file.name.casefold().endswith(".pdf")):
            small.append(file)
    fresh = dataclasses.replace(corpus, skipped=[], reader="light")
    found = sum(not free(c) for document in fresh.documents(small) for c in split(document, tokens)) if small else 0
    seen = {f.name: sizes[f.name] for f in small}
    documents, characters = (sum(s[i] for s in seen.values()) for i in (0, 1))
    more = max((found - documents) / max(characters, 1), 1 / (BYTES * tokens))
    return found + sum(n + int(size * more) for name, (n, size) in sizes.items() if name not in seen)


def cost_of_asking(call: Call, params: Mapping[str, Any]) -> Cost:
    """Calls that a build will make at most: one per chunk and try."""
    chunks = count_chunks(
        call, call.params["chunk_tokens"], read_by_rule if params.get("tables", True) else lambda c: False
    )
    return Cost(calls=chunks * int(params.get("tries", 2)), seconds=float(chunks))
