"""Reading chunks without a language model: sentences with what is known of earlier ones, open relations, names of the ontology."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from interfuse.build.room import Candidate, Work
from interfuse.build.tables import table_candidates, value_of
from interfuse.data.chunks import Chunk
from interfuse.data.ontology import Ontology
from interfuse.data.statements import ALIAS, XSD, Literal
from interfuse.kit.guided import Wanted, guided_relations, topic_of, wanted_of
from interfuse.kit.language import Parser, Sentence, open_parser
from interfuse.kit.mentions import EMPTY, Mention, acronyms, find_mentions, gazetteer, iso_date
from interfuse.kit.open_relations import IS_A, Found, open_relations

T = TypeVar("T")
#: modules that a method's findings depend on when it reads by rules
READING = (
    "interfuse.kit.language",
    "interfuse.kit.mentions",
    "interfuse.kit.open_relations",
    "interfuse.build.reading",
    "interfuse.build.tables",
)


@dataclass
class Names:
    """A gazetteer and the ontology's words, made once."""

    ontology: Ontology | None = None
    table: dict[str, dict[tuple[str, ...], tuple[str, str]]] = field(default_factory=dict)
    relations: dict[str, tuple[str, ...]] = field(default_factory=dict)
    wanted: list[Wanted] = field(default_factory=list)


def names_of(work: Work, extra: Sequence[tuple[str, str]] = ()) -> Names:
    """The names that an ontology, an earlier graph and a list bring."""
    made = Names(work.ontology)
    entries = list(extra)
    if work.graph is not None:
        labels = {
            s.subject: s.object.value
            for s in work.graph.statements(p="http://www.w3.org/2000/01/rdf-schema#label")
            if isinstance(s.object, Literal)
        }
        entries += [(label, "") for label in labels.values()]
        entries += [(labels[s.subject], "") for s in work.graph.statements(p=ALIAS) if s.subject in labels]
    made.table = gazetteer(entries)
    relations: dict[str, list[str]] = {}
    for p in work.ontology.properties.values() if work.ontology is not None else ():
        for word in (p.label, *p.aliases):
            if word:
                relations.setdefault(word.casefold().strip(), []).append(p.label)
                relations.setdefault(f"{word.casefold().strip()} of", []).append(p.label)
    made.relations = {k: tuple(dict.fromkeys(v)) for k, v in relations.items()}
    made.wanted = wanted_of(
        (p.label, p.aliases)
        for p in (work.ontology.properties.values() if work.ontology is not None else ())
        if p.label
    )
    return made


#: kinds of elements that hold sentences
PROSE = ("paragraph", "item", "quote", "note", "caption", "cell")


def prose(chunk: Chunk) -> list[tuple[int, int]]:
    """(start, end) within the chunk of what holds sentences: paragraphs and items, not titles, heads of mails or code."""
    elements, made = chunk.document.elements, []
    for i in chunk.blocks:
        if elements[i].kind in PROSE:
            start, end = max(elements[i].start, chunk.start), min(elements[i].end, chunk.end)
            if end > start:
                made.append((start - chunk.start, end - chunk.start))
    if not chunk.blocks:
        made = [m.span() for m in re.finditer(r"\S(?:.|\n(?!\s*\n))*", chunk.text)]
    return made


def read_chunks(work: Work, parse: Callable[[list[str]], Iterable[T]]) -> Iterator[tuple[Chunk, int, T]]:
    """The prose of the chunks, block by block: (chunk, where the block starts in it, what ``parse`` gives for its text)."""
    places = [(c, start, end) for c in work.chunks if not any(c.columns) for start, end in prose(c)]
    texts = [c.text[start:end] for c, start, end in places]
    for (chunk, start, _), made in zip(places, parse(texts), strict=True):
        yield chunk, start, made


def reader_of(work: Work, parser: str, extra: Sequence[tuple[str, str]] = ()) -> tuple[Parser, Names]:
    """What :func:`read_by_rules` reads with: a parser, and the names that ontology, earlier graph and a list bring.

    Raises:
        InterfuseError: ``needs.package`` when spaCy is asked for and not installed.
    """
    opened = open_parser(parser)
    work.ctx.log(
        f"sentences are read by {opened.name}"
        + (" (install 'interfuse[nlp]' for a real parser)" if opened.name.startswith("rules") else "")
    )
    return opened, names_of(work, extra)


def read_tables(work: Work) -> Iterator[Candidate]:
    """The rows of the tables among the chunks; what is left to read is then ``work.chunks``."""
    for chunk in work.chunks:
        if any(chunk.columns):
            yield from table_candidates(chunk)
    work.chunks = tuple(c for c in work.chunks if not any(c.columns))


def read_by_rules(work: Work) -> Iterator[Candidate]:
    """The open relations of the chunks' prose (with an ontology, those it has a name for), by what :func:`reader_of` made."""
    opened, names = work.ready
    memories: dict[str, Memory] = {}
    for chunk, shift, sentences in read_chunks(work, opened.parse):
        yield from candidates(chunk, shift, sentences, memories.setdefault(chunk.id, Memory(names)), work)


@dataclass
class Memory:
    """What pronouns and definite nouns of a chunk may stand for: the subject of the sentence before, and the topic of the text."""

    names: Names
    topic: Mention | None = None
    topic_class: str = ""
    person: Mention | None = None
    last: Mention | None = None

    def resolve(self, sentence: Sentence, i: int) -> Mention | None:
        """The mention a word stands for."""
        word = sentence.words[i]
        low = word.text.casefold()
        if low in ("he", "she", "his", "her", "him", "himself", "herself"):
            return self.person
        if low in ("it", "its", "itself") or (
            low == "they" and self.last is not None and self.last.kind == "organization"
        ):
            return self.last or self.topic
        if (
            self.topic is not None
            and word.pos == "NOUN"
            and self.topic_class
            and word.lemma.casefold() == self.topic_class.split()[-1]
        ):
            before = [w.text.casefold() for w in sentence.words[max(0, i - 3) : i]]
            if "the" in before or "this" in before:
                return self.topic
        return None

    def learn(self, sentence: Sentence, found: Sequence[Found]) -> None:
        """Remembers the subject of a sentence and what it is said to be."""
        for f in found:
            if f.predicate == IS_A and self.topic is None and f.subject.source != "phrase":
                self.topic, self.topic_class = f.subject, f.class_word
        subjects = [f.subject for f in found if f.subject.source != "phrase"]
        if subjects:
            self.last = min(subjects, key=lambda m: m.first)
        people = [m for m in subjects if m.kind == "person"]
        if people:
            self.person = people[0]
        elif (
            self.last is not None and self.person is None and any(f.predicate in ("born in", "born on") for f in found)
        ):
            self.person = self.last


def candidates(
    chunk: Chunk, shift: int, sentences: Sequence[Sentence], memory: Memory, work: Work
) -> Iterator[Candidate]:
    """The open relations of a block of a chunk as candidates; with an ontology, those that it has a name for.

    Args:
        shift: where the block starts in the chunk. memory: of the chunk's blocks before.
    """
    names = memory.names
    aliases = dict(acronyms(chunk.text))
    for sentence in sentences:
        mentions = find_mentions(sentence, names.table)
        found = open_relations(sentence, mentions, lambda i, s=sentence: memory.resolve(s, i))  # type: ignore[misc]
        stated = [(f, r, c) for f in found for r, c in _relations(f, names)]
        if names.wanted:
            stated += _guided(sentence, mentions, memory, stated)
        memory.learn(sentence, found)
        for f, relation, confidence in stated:
            made = _candidate(f, relation, confidence, chunk, sentence, shift, names, aliases)
            if made is not None:
                yield made
            else:
                work.by_chunk[chunk.id]["dropped: empty words"] = (
                    work.by_chunk[chunk.id].get("dropped: empty words", 0) + 1
                )


def _guided(
    sentence: Sentence, mentions: Sequence[Mention], memory: Memory, stated: Sequence[tuple[Found, str, float]]
) -> list[tuple[Found, str, float]]:
    """The ontology's relations that are looked for by what it says of them, without those that are there already."""
    there = {(f.subject.label, r, f.object.label) for f, r, _ in stated}
    own = topic_of(sentence)
    made = []
    for g in guided_relations(sentence, mentions, memory.names.wanted, topic=memory.last or memory.topic,
                              resolve=lambda i: memory.resolve(sentence, i)):  # fmt: skip
        if (g.subject.label, g.name, g.object.label) not in there:
            target = replace(g.object, label=g.label)
            made.append((Found(g.subject, g.name, target, g.confidence, "guided"), g.name, g.confidence))
    if own is not None:
        memory.last = own
        memory.topic = memory.topic or own
    return made


def _relations(found: Found, names: Names) -> list[tuple[str, float]]:
    if names.ontology is None or not names.relations:
        return [(found.predicate, found.confidence)]
    hits = names.relations.get(found.predicate, ())
    return [(name, found.confidence) for name in hits] or ([("", found.confidence)] if found.predicate == IS_A else [])


def _candidate(found: Found, relation: str, confidence: float, chunk: Chunk, sentence: Sentence, shift: int, names: Names,
               aliases: dict[str, str]) -> Candidate | None:  # fmt: skip
    subject, target = found.subject.label, found.object.label
    kind = found.class_word if found.predicate == IS_A else ""
    for label in (subject, target):
        if label.casefold() in EMPTY or (len(label) < 2 and not label.isdigit()) or not re.search(r"\w", label):
            return None
    start, end = sentence.words[0].start + shift, sentence.words[-1].end + shift
    places = {
        "subject_at": _at(sentence, found.subject, subject, shift),
        "object_at": _at(sentence, found.object, target, shift),
    }
    more = {
        "chunk": chunk.id,
        "start": start,
        "end": end,
        "confidence": confidence,
        **{k: v for k, v in places.items() if v is not None},
    }
    if (found.predicate == IS_A and not relation) or (found.predicate == IS_A and names.ontology is None):
        if names.ontology is not None and not any(i in names.ontology.classes for i in names.ontology.find(kind)):
            return None
        return Candidate(subject, "", subject, kind, kind, aliases=_short(subject, aliases), **more)  # type: ignore[arg-type]
    value: Literal | None = None
    if found.object.kind in ("date", "number") or value_of(target) is not None:
        date = iso_date(target)
        value = (
            Literal(date, XSD + {4: "gYear", 7: "gYearMonth", 10: "date"}[len(date)])
            if date
            else value_of(target) or Literal(target)
        )
    return Candidate(subject, relation, value if value is not None else target, found.subject.kind, found.object.kind if value is None else "",
                     aliases=_short(subject, aliases), **more)  # type: ignore[arg-type]  # fmt: skip


def _short(label: str, aliases: dict[str, str]) -> tuple[str, ...]:
    return (aliases[label],) if label in aliases else ()


def _at(sentence: Sentence, mention: Mention, label: str, shift: int) -> tuple[int, int] | None:
    """Where a mention is in the chunk, when it is of this sentence."""
    if mention.last <= len(sentence.words) and sentence.text(mention.first, mention.last) == label:
        return sentence.words[mention.first].start + shift, sentence.words[mention.last - 1].end + shift
    return None
