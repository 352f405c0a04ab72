"""Statements of documents by a language model, each grounded in a quotation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from interfuse.build.asking import EXAMPLES, cost_of_asking, extract_chunks
from interfuse.build.room import Candidate, Work
from interfuse.build.tables import table_candidates
from interfuse.core.method import method


@method(
    per="chunk", needs=("documents", "lm"), batch=16, cost=cost_of_asking,
    parts=("interfuse.build.asking", "interfuse.build.tables", "interfuse.kit.document_prompts", "interfuse.kit.mended_replies", "interfuse.kit.quotes"),
)  # fmt: skip
def lm_extract(
    work: Work,
    *,
    max_tokens: Annotated[int, Field(ge=16, le=100_000, description="tokens of one reply at most")] = 1500,
    tries: Annotated[
        int, Field(ge=1, le=10, description="times a chunk is asked about when its reply cannot be used")
    ] = 2,
    nearly: Annotated[
        float,
        Field(
            gt=0, le=1, description="similarity of a quotation with a passage of the text from which it counts as found"
        ),
    ] = 0.9,
    tables: Annotated[bool, Field(description="rows of tables are read by rules and not paid for")] = True,
    examples: Annotated[
        int,
        Field(ge=0, le=len(EXAMPLES), description="worked examples shown before each question: small models need them"),
    ] = 0,
) -> Iterator[Candidate]:
    """One question per chunk; replies are mended record by record, and what its quotation does not support is dropped and counted.

    Raises:
        InterfuseError: ``budget.spent``, ``endpoint.failed`` or ``input.limit``.
    """
    rest = []
    for chunk in work.chunks:
        if any(chunk.columns) and tables:
            yield from table_candidates(chunk)
        else:
            rest.append(chunk)
    work.chunks = tuple(rest)
    if rest:
        yield from extract_chunks(work, max_tokens=max_tokens, tries=tries, nearly=nearly, examples=examples)
