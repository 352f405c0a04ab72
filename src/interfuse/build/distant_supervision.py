"""Relations of an ontology, learnt from sentences with triples (Mintz et al. 2009)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.build.reading import read_chunks
from interfuse.build.room import Candidate, Work
from interfuse.build.tables import table_candidates
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.data.statements import XSD
from interfuse.data.statements import Literal as Value
from interfuse.kit.distant import examples_of, extract, train
from interfuse.kit.language import open_parser
from interfuse.kit.mentions import iso_date


def prepare(work: Work, *, parser: str, regularisation: float, threshold: float | None, tables: bool) -> Any:
    """The trained extractor.

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
    return opened, made


@method(
    per="chunk", needs=("documents", "table"), batch=64, prepare=prepare,
    parts=("interfuse.kit.language", "interfuse.kit.mentions", "interfuse.kit.distant", "interfuse.build.reading", "interfuse.build.tables"),
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
    tables: Annotated[bool, Field(description="rows of tables become entities with what stands in their cells")] = True,
) -> Iterator[Candidate]:
    """One logistic regression per relation on dependency paths and n-grams around mentions, and one that says whose relation it is.

    Raises:
        InterfuseError: ``input.missing`` when the table has no sentences with triples, ``needs.package``.
    """
    opened, extractor = work.ready
    for chunk in work.chunks:
        if chunk.columns and tables:
            yield from table_candidates(chunk)
    limit = extractor.threshold if threshold is None else threshold
    for chunk, shift, sentences in read_chunks(work, lambda texts: extract(extractor, opened, texts, threshold=limit)):
        for sentence, relations in sentences:
            start, end = sentence.words[0].start + shift, sentence.words[-1].end + shift
            for r in relations:
                words = sentence.words
                date = iso_date(r.label) if r.object.kind == "date" else ""
                value = Value(date, XSD + {4: "gYear", 7: "gYearMonth", 10: "date"}[len(date)]) if date else r.label
                yield Candidate(
                    r.subject.label, r.name, value, r.subject.kind, "" if date else r.object.kind, confidence=round(r.probability, 4),
                    kind="probability", chunk=chunk.id, start=start, end=end,
                    subject_at=(words[r.subject.first].start + shift, words[r.subject.last - 1].end + shift),
                    object_at=(words[r.object.first].start + shift, words[r.object.last - 1].end + shift),
                )  # fmt: skip
