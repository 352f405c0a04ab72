"""Relations of an ontology, learnt from sentences with triples (Mintz et al. 2009)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.build.reading import READING, read_chunks, read_tables
from interfuse.build.room import Candidate, Work
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.data.chunks import Chunk
from interfuse.data.chunks import sentences as sentences_of
from interfuse.data.statements import XSD
from interfuse.data.statements import Literal as Value
from interfuse.kit.distant import examples_of, extract, plain, train
from interfuse.kit.guided import guided_relations, topic_of, wanted_of
from interfuse.kit.language import Sentence, open_parser
from interfuse.kit.mentions import Mention, find_mentions, iso_date

#: what is counted where a sentence was learnt from and read: what is found in it says nothing of other sentences
LEAK = "leak: sentences that the training table holds too"


def prepare(
    work: Work, *, parser: str, regularisation: float, threshold: float | None, guide: bool, tables: bool
) -> Any:
    """The parser, the trained extractor, its relations as :mod:`interfuse.kit.guided` looks for them, and the sentences it learnt from.

    Raises:
        InterfuseError: ``input.missing`` when the table has no sentences with triples.
    """
    examples = examples_of(work.table.dataset.select(work.table.rows.tolist()))
    if not examples:
        raise InterfuseError("input.missing", "the table holds no sentences with triples", where=work.table.name,
                             fix="Columns: sent (or text), and triples ([{sub, rel, obj}]), or subject, relation and object.")  # fmt: skip
    opened = open_parser(parser)
    made = train(examples, opened, c=regularisation, folds=3 if threshold is None else 0)
    work.ctx.log(f"{len(made.relations)} relations learnt from {len(examples)} sentences; threshold {made.threshold:g}")
    learnt = {plain(e.text[a:b]) for e in examples for a, b in sentences_of(e.text)}
    return opened, made, wanted_of((r, ()) for r in made.relations) if guide else [], learnt


@method(
    per="chunk", needs=("documents", "table"), batch=64, prepare=prepare,
    parts=(*READING, "interfuse.kit.distant"),
)  # fmt: skip
def distant_supervision(
    work: Work,
    *,
    parser: Annotated[
        Literal["auto", "spacy", "rules"],
        Field(description="who reads sentences: spaCy's small English model, or plain rules"),
    ] = "auto",
    regularisation: Annotated[float, Field(gt=0, description="inverse strength of the regularisation (C)")] = 1.0,
    threshold: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="probability from which a relation is given; none: found on left-out sentences, in three times the time",
        ),
    ] = 0.1,
    guide: Annotated[
        bool, Field(description="sentences in which nothing learnt is found are read by what the relations' names say")
    ] = True,
    tables: Annotated[bool, Field(description="rows of tables become entities with what stands in their cells")] = True,
) -> Iterator[Candidate]:
    """One logistic regression per relation on dependency paths and n-grams around mentions, and one that says whose relation it is.

    Sentences of the documents that it learnt from are counted (:data:`LEAK`), whatever their case and marks.

    Raises:
        InterfuseError: ``input.missing`` when the table has no sentences with triples, ``needs.package``.
    """
    opened, extractor, wanted, learnt = work.ready
    if tables:
        yield from read_tables(work)
    limit = extractor.threshold if threshold is None else threshold
    for chunk, shift, sentences in read_chunks(work, lambda texts: extract(extractor, opened, texts, threshold=limit)):
        topic: Mention | None = None
        for sentence, relations in sentences:
            if plain(chunk.text[sentence.words[0].start + shift : sentence.words[-1].end + shift]) in learnt:
                counts = work.by_chunk.get(chunk.id, work.tally)
                counts[LEAK] = counts.get(LEAK, 0) + 1
            for r in relations:
                yield _candidate(
                    chunk, shift, sentence, r.subject, r.name, r.object, r.label, r.probability, "probability"
                )
            if wanted and not relations:
                for g in guided_relations(sentence, find_mentions(sentence), wanted, topic=topic):
                    yield _candidate(
                        chunk, shift, sentence, g.subject, g.name, g.object, g.label, g.confidence / 2, "extractor"
                    )
            topic = topic or topic_of(sentence) if wanted else None


def _candidate(chunk: Chunk, shift: int, sentence: Sentence, subject: Mention, name: str, target: Mention, label: str, sure: float, kind: str) -> Candidate:  # fmt: skip
    words = sentence.words
    date = iso_date(label)
    value = Value(date, XSD + {4: "gYear", 7: "gYearMonth", 10: "date"}[len(date)]) if date else label
    places = {
        k: (words[m.first].start + shift, words[m.last - 1].end + shift)
        for k, m in (("subject_at", subject), ("object_at", target))
        if m.last <= len(words) and sentence.text(m.first, m.last) in (m.label, label)
    }
    return Candidate(
        subject.label, name, value, subject.kind, "" if date else target.kind, confidence=round(sure, 4), kind=kind, chunk=chunk.id,
        start=words[0].start + shift, end=words[-1].end + shift, subject_at=places.get("subject_at"), object_at=places.get("object_at"),
    )  # fmt: skip
