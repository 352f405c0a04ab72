"""Asking a language model for triplets around concepts, chunk by chunk, and to fuse those of a concept with what a graph holds already.

A chunk's question says nothing but the chunk, the concepts that it speaks of and the relations; a concept's question says nothing but
the triplets and the texts of that concept. Replies are kept by their question, so that after a change of one document only its own
chunks, and the concepts that it speaks of, are asked about again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from interfuse.build.asking import FIELDS, ask
from interfuse.build.room import Work
from interfuse.data.chunks import Chunk
from interfuse.data.statements import Evidence, Literal, relation_id
from interfuse.kit.document_prompts import about_document
from interfuse.kit.language import Sentence
from interfuse.kit.mended_replies import records
from interfuse.kit.mentions import EMPTY, find_mentions
from interfuse.kit.quotes import find_quote
from interfuse.kit.triple_fusion import Claim

#: times that one thing is asked at most; concepts of a chunk that are named to the model at most
TRIES, NAMED = 2, 20
TASK = (
    "You build a graph of concepts. Given a text about {concepts}, write the relations between concepts that it states, as JSON "
    '{{"statements": [{{"subject": ..., "relation": ..., "object": ..., "quote": ...}}]}}. Relations, with their direction:\n{relations}\n'
    "Use only these. The direction matters, except for symmetric ones. Concepts are short noun phrases. Without such a relation: "
    '{{"statements": []}}.'
)
FUSE = (
    "You fuse two lists of triples about {seed!r}. Keep one name for the same concept, the more meaningful one; at most one relation between two "
    "concepts, settled by the texts; add triples between concepts that are not linked yet when the texts support them. Relations:\n{relations}\n"
    'Answer as JSON {{"statements": [{{"subject": ..., "relation": ..., "object": ...}}]}}.'
)
#: a chunk, where a part of its prose starts and ends in it, and the sentences there
Read = tuple[tuple[Chunk, int, int], Sequence[Sentence]]
Row = Mapping[str, Any]


def phrases_of(sentence: Sentence) -> Iterator[str]:
    """The phrases of one to four words that may be concepts, names as they are written, others in small letters and singular."""
    for m in find_mentions(sentence):
        if m.kind not in ("date", "number") and m.last - m.first <= 4:
            words = sentence.words[m.first : m.last]
            label = " ".join(
                w.text
                if w.pos == "PROPN"
                else (w.lemma if w.pos == "NOUN" and k == len(words) - 1 else w.text).casefold()
                for k, w in enumerate(words)
            )
            if label.casefold() not in EMPTY and len(label) > 2:
                yield label


def by_model(work: Work, chunks: Sequence[Chunk], read: Iterable[Read], seeds: Sequence[str], known: Mapping[str, Row], context: int,
             max_tokens: int) -> list[tuple[Claim, Evidence]]:  # fmt: skip
    """Candidate triplets of every chunk that speaks of a concept, then per concept the model's fusion with what the graph already holds.

    Args:
        read: the prose of the chunks. seeds: the concepts. known: relation -> what is said of it.
        context: characters of text shown with a concept.

    Raises:
        InterfuseError: ``budget.spent`` or ``endpoint.failed``.
    """
    about = {q: [c for c in chunks if q.casefold() in c.text.casefold()] for q in seeds}
    spoken = {c.id for found in about.values() for c in found}
    phrases: dict[str, Counter[str]] = {c.id: Counter() for c in chunks}
    for (c, _, _), sentences in read:
        phrases[c.id].update(p for s in sentences for p in phrases_of(s))
    told, names = _told(known), {n.casefold().replace("_", "-"): n for n in known}

    def rows_of(name: str, reply: str) -> tuple[list[Any], list[str]]:
        got = records(reply, FIELDS, needed=FIELDS[:3])
        work.count("records lost in replies", got.lost)
        rows = [
            {**r, "relation": names.get(str(r["relation"]).casefold().replace(" ", "-").replace("_", "-"), "")}
            for r in got.rows
        ]
        kept = [r for r in rows if r["relation"]]
        work.count("dropped: not one of the relations", len(rows) - len(kept))
        return kept, [] if kept or "[]" in reply.replace(" ", "") else [
            "no triplet with one of the relations could be read"
        ]

    questions = {}
    for c in chunks:
        if c.id in spoken:
            concepts = ", ".join(repr(p) for p, _ in phrases[c.id].most_common(NAMED)) or "concepts"
            questions[c.id] = about_document(TASK.format(concepts=concepts, relations=told), c.text, after="The relations, as JSON:")  # fmt: skip
    found = ask(work, questions, rows_of, max_tokens=max_tokens, tries=TRIES)
    first = [(row, c) for c in chunks if c.id in found for row in found[c.id][0]]
    fusing = {}
    prior = _prior(work, known)
    for q in seeds:
        lines = dict.fromkeys(_line(r) for r, _ in first if q.casefold() in (str(r["subject"]).casefold(), str(r["object"]).casefold()))  # fmt: skip
        if about[q] and lines:
            second = prior.get(q.casefold(), ["(none)"])
            both = "First list:\n" + "\n".join(lines) + "\nSecond list:\n" + "\n".join(second)
            texts = "\n\n".join(c.text for c in about[q])[:context]
            fusing[q] = about_document(FUSE.format(seed=q, relations=told), texts, before=both, after="The fused list, as JSON:")  # fmt: skip
    fused = ask(work, fusing, rows_of, max_tokens=max_tokens, tries=TRIES)
    claims = [(row, [c], 0.8) for row, c in first]
    claims += [(row, about[q], 0.6) for q in fusing for row in fused[q][0]]
    made = []
    for row, places, sure in claims:
        head, tail = str(row["subject"]).strip(), str(row["object"]).strip()
        proof = _proof(work, row, head, tail, places, sure)
        if proof is None:
            work.count("dropped: no text holds both concepts")
            continue
        made.append((Claim(head, row["relation"], tail, sure), proof))
    return made


def _proof(work: Work, row: Row, head: str, tail: str, places: Sequence[Chunk], sure: float) -> Evidence | None:
    """Where the first of the chunks says it: its quotation, else the first concept in a chunk that holds both."""
    for c in places:
        quote = str(row.get("quote") or "")
        place = find_quote(c.text, quote) if quote else None
        if place is None and find_quote(c.text, tail, nearly=1.0) is not None:
            place = find_quote(c.text, head, nearly=1.0)
        if place is not None:
            return Evidence(c.document.id, c.start + place[0], c.start + place[1], c.page or None, method="build/graphusion",
                            model=str(work.lm.name if work.lm else ""), score=sure)  # fmt: skip
    return None


def _prior(work: Work, known: Mapping[str, Row]) -> dict[str, list[str]]:
    """What the earlier graph says of each concept, as lines."""
    found: dict[str, list[str]] = {}
    iris = {relation_id(n): n for n in known}
    for s in work.graph.statements() if work.graph is not None else ():
        if s.predicate in iris and not isinstance(s.object, Literal):
            assert work.graph is not None
            ends = work.graph.label(s.subject), work.graph.label(s.object)
            for end in ends:
                found.setdefault(end.casefold(), []).append(f"({ends[0]}, {iris[s.predicate]}, {ends[1]})")
    return found


def _line(row: Row) -> str:
    return f"({row['subject']}, {row['relation']}, {row['object']})"


def _told(relations: Mapping[str, Row]) -> str:
    return "\n".join(
        f"- {n}{' (symmetric)' if r.get('symmetric') else ''}{': ' + str(r['definition']) if r.get('definition') else ''}"
        for n, r in relations.items()
    )
