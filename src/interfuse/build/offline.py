"""A graph from documents without a language model and without a network: rules on sentences, rows of tables, heads of mails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.build.reading import READING, read_by_rules, read_tables, reader_of
from interfuse.build.room import Candidate, Work
from interfuse.core.method import method


def prepare(work: Work, *, parser: str, tables: bool) -> Any:
    """The parser, and the names that ontology and earlier graph bring."""
    return reader_of(work, parser)


@method(per="chunk", needs=("documents",), batch=64, prepare=prepare, parts=READING)
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
    if tables:
        yield from read_tables(work)
    yield from read_by_rules(work)
