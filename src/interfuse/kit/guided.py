"""Relations of an ontology in a sentence: each property is looked for by what its name, and English, say of its objects.

For every mention the signs around it (:mod:`interfuse.kit.relation_evidence`) are compared with those of each property
(:mod:`interfuse.kit.relation_words`); its kind of name must fit the property, and values of closed lists are looked up. The subject is
what the sign's verb or noun says it is about, else what the sentence defines, else what the text is about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from interfuse.kit.language import Sentence
from interfuse.kit.mentions import EMPTY, Mention, gazetteer, iso_date, kind_of, matches, title_runs, topic_span
from interfuse.kit.open_relations import Reader, covering
from interfuse.kit.relation_evidence import governors
from interfuse.kit.relation_words import WORKS, Speech, closed_list, speech_of

_WORK = frozenset(WORKS.split())
_TITLED = _WORK - {
    "journal",
    "magazine",
    "newspaper",
    "ballet",
    "opera",
    "piece",
    "work",
    "symphony",
    "collection",
    "play",
    "appear",
    "series",
} | {"publish", "direct", "illustrate", "star", "premiere", "starring"}
_RANKS = frozenset([*closed_list("ranks"), "sir", "dr.", "mr.", "mrs.", "honorary", "chief"])
_QUOTES = ('"', "“", "”", "«", "»")
_STARTS = ("ADP", "SCONJ", "ADV", "VERB", "NUM")


@dataclass(frozen=True)
class Wanted:
    """A property to be found.

    Attributes:
        name: as the ontology writes it. speech: how it is spoken of. table: its closed list as a gazetteer, or None.
    """

    name: str
    speech: Speech
    table: Mapping[str, Mapping[tuple[str, ...], tuple[str, str]]] | None = None


@dataclass(frozen=True)
class Guided:
    """A relation found: ``label`` is the object as it is to be written (a value of a closed list), ``carrier`` the word that says it."""

    subject: Mention
    name: str
    object: Mention
    label: str
    confidence: float


def wanted_of(properties: Iterable[tuple[str, Sequence[str]]]) -> list[Wanted]:
    """Properties, each as (name, aliases), ready to be looked for; aliases add their signs."""
    made = []
    for name, aliases in properties:
        speech = speech_of(name)
        for alias in aliases:
            more = speech_of(alias)
            speech = Speech(
                {**more.signs, **speech.signs}, speech.kinds or more.kinds, speech.values or more.values,
                speech.dates or more.dates, speech.phrase, speech.alone,
            )  # fmt: skip
        values = closed_list(speech.values)
        made.append(Wanted(name, speech, gazetteer((w, v) for w, v in values.items()) if values else None))
    return made


def topic_of(sentence: Sentence) -> Mention | None:
    """What a sentence is about: what it defines, with the article that a title begins with; else the subject of its main verb; else the
    owner of something (``In Hugh Primas's works, ...``)."""
    words = sentence.words
    if not words:
        return None
    quoted = words[0].text in _QUOTES and next(
        (i for i in range(1, min(16, len(words))) if words[i].text in _QUOTES), 0
    )
    if quoted and quoted > 1:
        return _mention(sentence, 1, quoted - (words[quoted - 1].text in (",", ".")))
    if (
        len(words) > 4 and words[0].text == "(" and words[2].text == ")" and words[1].text.isdigit()
    ):  # (20729) 1999 XS143
        last = next((i for i in range(3, len(words)) if words[i].pos in ("AUX", "VERB")), 3)
        if last > 3:
            return _mention(sentence, 0, last)
    span = topic_span(sentence)
    opening = words[0].pos in _STARTS and not (len(words) > 1 and words[0].pos != "ADP" and words[1].text[:1].isupper())
    if span is not None and not opening:
        first, last = _cut(sentence, *span)
        while first and words[first - 1].text[:1].isupper() and words[first - 1].pos not in ("ADP", "PUNCT", "SCONJ"):
            first -= 1  # "You Can't Kill ...": what looks like a pronoun belongs to the title
        if words[first].text == "The" and last - first > 1 and not _titled(sentence):
            first += 1
        while last - first > 1 and words[first].text.casefold() in _RANKS and not _titled(sentence):
            first += 1
        if _names(sentence, first, last):
            return _mention(sentence, first, last)
    runs = title_runs(sentence)
    if sentence.parsed:
        root = next((i for i, w in enumerate(words) if w.head == i), 0)
        for c in sentence.children[root]:
            if words[c].dep in ("nsubj", "nsubjpass") and words[c].pos == "PROPN":
                first, last = next(((a, b) for a, b in runs if a <= c < b), (c, c + 1))
                return _mention(sentence, *_cut(sentence, first, last))
    for i, word in enumerate(words[:-1]):
        if words[i + 1].text in ("'s", "’s") and word.pos == "PROPN":
            first, last = next(((a, b) for a, b in runs if b == i + 1), (i, i + 1))
            return _mention(sentence, first, last)
    return None


def _mention(sentence: Sentence, first: int, last: int) -> Mention:
    return Mention(first, last, sentence.text(first, last), kind_of(sentence, first, last), "topic")


def _cut(sentence: Sentence, first: int, last: int) -> tuple[int, int]:
    """A topic without the thing it owns (``Plautus's comedies``), how it is spoken, and adverbs after it."""
    words = sentence.words
    for k in range(first + 1, last):
        if (words[k].text in ("'s", "’s") and k + 1 < len(words) and words[k + 1].text.islower()) or words[
            k
        ].text.startswith("/"):
            last = k
            break
    while last - first > 1 and words[last - 1].pos == "ADV":
        last -= 1
    return first, last


def _amid_brackets(sentence: Sentence) -> bool:
    """Whether a sentence begins within brackets that an earlier one opened."""
    for word in sentence.words:
        if word.text in ("(", "["):
            return False
        if word.text in (")", "]"):
            return True
    return False


def _titled(sentence: Sentence) -> bool:
    """Whether a sentence speaks of a work, whose title may begin with an article."""
    return any(w.lemma.casefold() in _TITLED for w in sentence.words)


def _names(sentence: Sentence, first: int, last: int) -> bool:
    words = sentence.words[first:last]
    if (
        not words
        or " ".join(w.text for w in words).casefold() in EMPTY
        or re.fullmatch(r"[\d\W]+", "".join(w.text for w in words))
    ):
        return False
    if words[0].pos in ("DET", "PRON") and all(w.text.islower() for w in words[1:]):
        return False  # The film
    return any(w.text[:1].isupper() or w.text[:1].isdigit() for w in words) and not (
        words[-1].pos == "NOUN" and words[-1].text.islower() and words[0].text[:1].islower()
    )


def guided_relations(
    sentence: Sentence,
    mentions: Sequence[Mention],
    wanted: Sequence[Wanted],
    *,
    topic: Mention | None = None,
    resolve: Callable[[int], Mention | None] = lambda i: None,
) -> list[Guided]:
    """The wanted relations of a sentence, each pair of ends and name once.

    Args:
        topic: what the text is about, for sentences that name nothing. resolve: gives the mention that a pronoun or definite noun stands for.
    """
    own = topic_of(sentence) if not _amid_brackets(sentence) or topic is None else None
    best: dict[tuple[str, int, int], Guided] = {}
    reader = Reader(sentence) if sentence.parsed else None

    def keep(name: str, o: Mention, label: str, sure: float, carrier: int, sign: str) -> None:
        subject = _subject(sentence, mentions, reader, carrier, sign, o, own, resolve)
        if subject is None and own is None:
            subject = topic
        if subject is None or subject.label.casefold() == label.casefold() or subject.kind in ("date", "number"):
            return
        key = (name, o.first, o.last)
        if key not in best or best[key].confidence < sure:
            best[key] = Guided(subject, name, o, label, round(sure, 4))

    signs: dict[tuple[int, int], list[tuple[str, int]]] = {}
    ends: dict[tuple[int, int], Mention] = {}
    for m in mentions:
        chosen = m if m.kind == "date" else covering(sentence, list(mentions), m.last - 1)
        if chosen is not None:
            ends.setdefault((chosen.first, chosen.last), chosen)
    for span, m in ends.items():
        signs[span] = governors(sentence, m)
    for w in wanted:
        speech = w.speech
        listed: list[tuple[int, int]] = []
        if w.table is not None:
            for first, last, _, value in matches(sentence, w.table):
                text = sentence.text(first, last)
                label = value if value != text.casefold() else text
                if own is not None and own.first < last and first < own.last:
                    continue  # a word of the topic's own name
                listed.append((first, last))
                if speech.whole:
                    first, last, label = _whole(sentence, first, last, label)
                    text = label
                o = Mention(first, last, text, "", "list")
                found = governors(sentence, o)
                sure, carrier, sign = max(
                    ((speech.signs[s], i, s) for s, i in found if s in speech.signs), default=(0.0, -1, "")
                )
                if sure or speech.alone:
                    keep(w.name, o, label, max(sure, 0.5), carrier, sign)
        for span, m in ends.items():
            fit = _fit(sentence, m, speech)
            if not fit or (speech.alone and any(a < m.last and m.first < b for a, b in listed)):
                continue
            sure, carrier, sign = max(
                ((speech.signs[s], i, s) for s, i in signs[span] if s in speech.signs), default=(0.0, -1, "")
            )
            if (
                not sure
                and speech.heads
                and {m.label.split()[0].casefold(), m.label.split()[-1].casefold()} & set(speech.heads)
                and len(m.label.split()) > 1
            ):
                sure = 0.5
            if not sure:
                continue
            if (
                m.source == "phrase" and any(x.text[:1].isupper() for x in sentence.words[m.first : m.last]) is False
            ) or speech.phrase:
                m = core_of(sentence, m)
            if speech.drop:
                last = m.last
                while last - m.first > 1 and sentence.words[last - 1].lemma.casefold() in speech.drop:
                    last -= 1
                m = Mention(m.first, last, sentence.text(m.first, last), m.kind, m.source)
                if sentence.words[last - 1].lemma.casefold() in speech.drop or m.last - m.first > 3:
                    continue
            keep(w.name, m, m.label, sure * fit, carrier, sign)
    return _without_parts(list(best.values()))


def _fit(sentence: Sentence, m: Mention, speech: Speech) -> float:
    """How well a mention fits what a property is about: 0 when it cannot be its object."""
    if speech.dates:
        return float(m.kind == "date" and bool(iso_date(m.label)))
    if m.kind == "date" or (m.kind == "number" and not (speech.phrase and not speech.kinds)):
        return 0.0
    named = any(w.text[:1].isupper() for w in sentence.words[m.first : m.last])
    if not named and not speech.phrase:
        return 0.0
    return 1.0 if not speech.kinds or m.kind in speech.kinds else 0.7


def core_of(sentence: Sentence, m: Mention) -> Mention:
    """A phrase without what only narrows it: ``retired American sprinter`` is a sprinter, ``rank of General`` General."""
    words, first, last = sentence.words, m.first, m.last
    people = closed_list("countries")
    for k in range(first, last - 1):
        if words[k].text in ("of", "as") and words[k - 1].lemma.casefold() in (
            "rank",
            "post",
            "position",
            "office",
            "title",
        ):
            first = k + 1
    for k in range(first + 1, last - 1):
        if words[k].pos == "CCONJ" and words[k + 1].pos != "PROPN":
            last = k
            break
    while first < last - 1 and (
        words[first].text.casefold() in people or words[first].text in (",", "-") or words[first].lemma.casefold() in _NARROW
        or words[first].pos in ("DET", "NUM")
    ):  # fmt: skip
        first += 1
    return (
        Mention(first, last, sentence.text(first, last), m.kind, m.source) if (first, last) != (m.first, m.last) else m
    )


_NARROW = frozenset(
    [
        "retired",
        "former",
        "professional",
        "famous",
        "noted",
        "prominent",
        "late",
        "great",
        "young",
        "international",
        "olympic",
        "acclaimed",
        "award-winning",
        "leading",
        "renowned",
        "popular",
        "new",
        "first",
    ]
)


def _whole(sentence: Sentence, first: int, last: int, label: str) -> tuple[int, int, str]:
    """The capitalised name that a word ends: ``Army`` in ``People's Liberation Army``."""
    words = sentence.words
    if not words[first].text[:1].isupper():
        return first, last, label
    at = first
    while (
        at
        and (
            words[at - 1].text[:1].isupper()
            or (words[at - 1].text in ("'s", "’s") and at > 1 and words[at - 2].text[:1].isupper())
        )
        and words[at - 1].pos not in ("DET", "PRON")
    ):
        at -= 1
    while last < len(words) and words[last].text[:1].isupper() and words[last].pos == "PROPN":
        last += 1
    return (
        (at, last, sentence.text(at, last))
        if at < first or (label != sentence.text(at, last) and last - first > 1)
        else (first, last, label)
    )


def _without_parts(found: list[Guided]) -> list[Guided]:
    """Of two objects of one relation where one lies in the other, the longer one stays."""
    kept = []
    for g in found:
        inside = any(
            h is not g and h.name == g.name and h.object.first <= g.object.first and g.object.last <= h.object.last
            and (h.object.last - h.object.first) > (g.object.last - g.object.first)
            for h in found
        )  # fmt: skip
        if not inside:
            kept.append(g)
    return kept


def _subject(
    sentence: Sentence, mentions: Sequence[Mention], reader: Reader | None, carrier: int, sign: str, o: Mention, own: Mention | None,
    resolve: Callable[[int], Mention | None],
) -> Mention | None:  # fmt: skip
    words = sentence.words
    places: list[int] = []
    if reader is not None and carrier >= 0:
        if words[carrier].pos in ("VERB", "AUX"):
            places = reader.kids(carrier, "nsubj", "nsubjpass")
            if any(o.first <= s < o.last for s in places) or any(
                words[c].dep == "nsubj" and words[c].head == carrier and _listed(reader, c, o) for c in places
            ):
                places = reader.kids(carrier, "dobj", "obj")  # X wrote it: what was written
        else:
            if not sign.endswith(" of"):
                places = [t for c in reader.kids(carrier, "prep") if words[c].text == "of" for t in reader.pobjects(c)]
            if words[carrier].lemma.casefold() not in _WORK:
                places += reader.kids(carrier, "poss")
    for i in places:
        if o.first <= i < o.last:
            continue
        if own is not None and own.first <= i < own.last:
            return own
        stood_for = resolve(i)  # of an earlier sentence, whose places are not of this one
        if stood_for is not None:
            return stood_for
        m = covering(sentence, list(mentions), i)
        if m is None or (m.first < o.last and o.first < m.last):
            continue
        if _names(sentence, m.first, m.last) and words[m.last - 1].pos in ("PROPN", "NUM", "X"):
            return m
    return None if own is None or (own.first < o.last and o.first < own.last) else own


def _listed(reader: Reader, first: int, o: Mention) -> bool:
    return any(o.first <= i < o.last for i in reader.joined(first))
