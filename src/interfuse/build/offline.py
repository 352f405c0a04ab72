"""A graph from documents without a language model and without a network: rules on sentences, rows of tables, heads of mails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.build.reading import Memory, candidates, names_of, read_chunks
from interfuse.build.room import Candidate, Work
from interfuse.build.tables import table_candidates
from interfuse.core.method import method
from interfuse.kit.language import open_parser


def prepare(work: Work, *, parser: str, tables: bool) -> Any:
    """The parser, and the names that ontology and earlier graph bring."""
    opened = open_parser(parser)
    work.ctx.log(
        f"sentences are read by {opened.name}"
        + (" (install 'interfuse[nlp]' for a real parser)" if opened.name.startswith("rules") else "")
    )
    return opened, names_of(work)


@method(
    per="chunk", needs=("documents",), batch=64, prepare=prepare,
    parts=("interfuse.kit.language", "interfuse.kit.mentions", "interfuse.kit.open_relations", "interfuse.build.reading", "interfuse.build.tables"),
)  # fmt: skip
def offline(
    work: Work,
    *,
    parser: Annotated[
        Literal["auto", "spacy", "rules"],
        Field(description="who reads sentences: spaCy's small English model, or plain rules"),
    ] = "auto",
    tables: Annotated[bool, Field(description="rows of tables become entities with what stands in their cells")] = True,
) -> Iterator[Candidate]:
    """Relations between names by the shape of sentences (verbs, copulas, appositions, possessives, lists, Hearst's patterns), with
    pronouns resolved by rules, and the rows of tables. With an ontology, relations that it has a name for.

    Raises:
        InterfuseError: ``needs.package`` when spaCy is asked for and not installed.
    """
    opened, names = work.ready
    for chunk in work.chunks:
        if chunk.columns and tables:
            yield from table_candidates(chunk)
    memories: dict[str, Memory] = {}
    for chunk, shift, sentences in read_chunks(work, opened.parse):
        memory = memories.setdefault(chunk.id, Memory(names))
        yield from candidates(chunk, shift, sentences, memory, work)
