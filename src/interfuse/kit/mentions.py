"""Mentions: the spans of a sentence that can stand at an end of a statement, with a guess of what they are.

Names from the parser, noun phrases, runs of capitalised words (titles), quoted words, dates and numbers, words of a gazetteer,
and what stands before "is a ..." at a sentence's beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from interfuse.kit.language import Sentence, Word, singular

#: spaCy's kinds of names -> ours
KINDS = {
    "PERSON": "person", "ORG": "organization", "GPE": "place", "LOC": "place", "FAC": "place", "NORP": "group", "DATE": "date",
    "TIME": "date", "WORK_OF_ART": "work", "EVENT": "event", "PRODUCT": "product", "LANGUAGE": "language", "LAW": "work",
    "QUANTITY": "number", "CARDINAL": "number", "ORDINAL": "number", "MONEY": "number", "PERCENT": "number",
}  # fmt: skip
_CONNECT = frozenset(
    [
        "of",
        "the",
        "and",
        "in",
        "on",
        "at",
        "for",
        "to",
        "a",
        "an",
        "de",
        "la",
        "le",
        "du",
        "des",
        "von",
        "van",
        "der",
        "den",
        "da",
        "di",
        "del",
        "'s",
        "’s",
        "&",
        "-",
        ":",
        "/",
        "no",
        ".",
        "'",
        "et",
        "y",
    ]
)
_STRICT = frozenset(
    ["of", "the", "de", "la", "le", "du", "des", "von", "van", "der", "den", "da", "di", "del", "&", "-", ".", "'", "y"]
)
#: words that name nothing by themselves
EMPTY = frozenset(
    [
        "it",
        "he",
        "she",
        "they",
        "we",
        "you",
        "i",
        "this",
        "that",
        "these",
        "those",
        "who",
        "which",
        "what",
        "there",
        "here",
        "one",
        "ones",
        "some",
        "any",
        "all",
        "other",
        "others",
        "another",
        "such",
        "same",
        "own",
        "it's",
        "him",
        "her",
        "them",
        "his",
        "its",
        "their",
        "my",
        "your",
        "our",
        "himself",
        "herself",
        "itself",
        "themselves",
        "someone",
        "something",
        "anything",
        "everything",
        "nothing",
        "way",
        "thing",
        "things",
        "kind",
        "type",
        "sort",
        "part",
        "lot",
        "number",
        "time",
        "case",
        "fact",
        "example",
        "end",
        "use",
        "first",
        "second",
        "last",
    ]
)
EMPTY |= frozenset(
    [
        "me",
        "us",
        "many",
        "none",
        "the",
        "a",
        "an",
        "and",
        "or",
        "of",
        "in",
        "on",
        "at",
        "by",
        "for",
        "with",
        "from",
        "to",
        "as",
        "is",
        "was",
        "be",
        "not",
        "yes",
        "no",
    ]
)
_DATE = re.compile(
    r"(?:\d{1,2}(?:st|nd|rd|th)?\s+(?:of\s+)?)?(?:January|February|March|April|May|June|July|August|September|October|November|December)"
    r"(?:\s+\d{1,2}(?:st|nd|rd|th)?)?(?:,?\s+\d{4})?|\b[12]\d{3}\b|\b\d{4}-\d{2}-\d{2}\b"
)
#: English months in their order; the system's language does not change them.
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_MONTHS = {month: number for number, month in enumerate(MONTHS, 1)}


@dataclass(frozen=True)
class Mention:
    """Words [first, last) of a sentence. ``source`` says what found it; ``kind`` is a class guess, empty when unknown."""

    first: int
    last: int
    label: str
    kind: str = ""
    source: str = ""


def trim(sentence: Sentence, first: int, last: int) -> tuple[int, int]:
    """A phrase without articles, possessives and marks at its ends."""
    words = sentence.words
    while first < last and (
        words[first].pos in ("DET", "PRON", "PUNCT", "CCONJ", "ADP", "SCONJ", "SPACE", "PART", "AUX") or words[first].text in "\"'“”‘’(«"
    ) and not (words[first].text[0].isupper() and first > 0 and words[first].pos != "PRON"):  # fmt: skip
        first += 1
    while first < last and (
        words[last - 1].pos in ("PUNCT", "ADP", "CCONJ", "SPACE", "DET")
        or words[last - 1].text in ("'s", "’s", ")", '"')
    ):
        last -= 1
    return first, last


def gazetteer(names: Iterable[tuple[str, str]]) -> dict[str, dict[tuple[str, ...], tuple[str, str]]]:
    """Names for lookup: first word in lower case -> words -> (name, kind)."""
    table: dict[str, dict[tuple[str, ...], tuple[str, str]]] = {}
    for name, kind in names:
        words = tuple(re.findall(r"['’]s\b|\w+|[^\w\s]", name.casefold()))
        if words and not (len(words) == 1 and (len(words[0]) < 3 or words[0] in EMPTY)):
            table.setdefault(words[0], {}).setdefault(words, (name, kind))
    return table


def matches(
    sentence: Sentence, table: Mapping[str, Mapping[tuple[str, ...], tuple[str, str]]]
) -> list[tuple[int, int, str, str]]:
    """The longest names of a gazetteer from each word on: (first, last, name, kind)."""
    low = [w.text.casefold() for w in sentence.words]
    found = []
    for i, word in enumerate(low):
        best: tuple[int, int, str, str] | None = None
        for words, (name, kind) in table.get(word, {}).items():
            if tuple(low[i : i + len(words)]) == words and (best is None or i + len(words) > best[1]):
                best = (i, i + len(words), name, kind)
        if best is not None:
            found.append(best)
    return found


def title_runs(sentence: Sentence, *, loose: bool = False) -> list[tuple[int, int]]:
    """Runs of capitalised words with ``of``, ``de``, ``von`` ... between them; ``loose``: with any small words, as titles have them."""
    words, found, i = sentence.words, [], 0

    def big(w: Word) -> bool:
        return w.text[0].isupper() or (w.text[0].isdigit() and not _DATE.fullmatch(w.text))

    while i < len(words):
        if not words[i].text[0].isupper() or words[i].pos in ("PRON",):
            i += 1
            continue
        j = last = i + 1
        while j < len(words) and j - last < 3:
            if big(words[j]) and not (words[j].text[0].isdigit() and j > last):
                last = j + 1
            elif words[j].text.casefold() not in (_CONNECT if loose else _STRICT) or (
                words[j].text == "." and len(words[j - 1].text) > 3
            ):
                break
            j += 1
        first = i
        if (
            words[first].text.casefold()
            in ("the", "a", "an", "in", "on", "at", "after", "before", "during", "when", "while")
            and first == 0
        ):
            first += 1
        if last > first and any(words[k].text[0].isupper() for k in range(first, last)):
            found.append((first, last))
        i = last
    return found


def topic_span(sentence: Sentence) -> tuple[int, int] | None:
    """What a definition defines: the words before a bracket, a comma or the verb at a sentence's beginning."""
    words = sentence.words
    end = 0
    while end < len(words) and end < 14:
        word = words[end]
        if word.text in ("(", "[", ",", ";", "–", "—") or (
            (word.pos == "AUX" or (word.pos == "VERB" and word.tag in ("", "VBD", "VBZ", "VBP")))
            and not word.text[0].isupper()
        ):
            break
        end += 1
    if not 0 < end < len(words) or end == 14:
        return None
    first, last = trim(sentence, 0, end)
    start = 0 if words[0].text[0].isupper() and words[0].pos not in ("DET", "PRON", "ADP", "SCONJ") else first
    return (start, last) if last > start and words[start].text.casefold() not in EMPTY else None


def kind_of(sentence: Sentence, first: int, last: int) -> str:
    """The kind of name that most of a span's words are part of; dates and numbers by their form."""
    text = sentence.text(first, last)
    if _DATE.fullmatch(text):
        return "date"
    if re.fullmatch(r"[-+]?[\d.,]*\d%?", text):
        return "number"
    names = [w.name for w in sentence.words[first:last] if w.name]
    return KINDS.get(max(sorted(set(names)), key=names.count), "") if len(names) * 2 > last - first else ""


def find_mentions(sentence: Sentence, table: Mapping[str, Mapping[tuple[str, ...], tuple[str, str]]] | None = None, *, fine: bool = False) -> list[Mention]:  # fmt: skip
    """All mentions of a sentence by place.

    Args:
        table: a gazetteer. fine: also parts of noun phrases (``animated fantasy film`` gives ``fantasy film``, ``fantasy``).
    """
    words, made = sentence.words, {}

    def put(first: int, last: int, source: str, label: str = "", kind: str = "") -> None:
        first, last = trim(sentence, first, last)
        if last <= first or last - first > 14 or ((first, last) in made and not label):
            return
        text = sentence.text(first, last)
        if text.casefold() in EMPTY or not any(c.isalnum() for c in text) or words[last - 1].pos == "PRON":
            return
        made[first, last] = Mention(first, last, label or text, kind or kind_of(sentence, first, last), source)

    for first, last, name, kind in matches(sentence, table) if table else ():
        put(first, last, "gazetteer", name, kind)
    i = 0
    while i < len(words):
        if words[i].begins:
            j = i + 1
            while j < len(words) and words[j].name and not words[j].begins:
                j += 1
            put(i, j, "name")
            i = j
        else:
            i += 1
    for first, last in title_runs(sentence, loose=fine):
        put(first, last, "title")
    span = topic_span(sentence)
    if span is not None:
        put(*span, "topic")
    for first, last in sentence.phrases:
        put(first, last, "phrase")
        if fine:
            a, b = trim(sentence, first, last)
            for k in range(a, b):
                if words[k].pos in ("NOUN", "PROPN", "ADJ", "NUM", "VERB"):
                    put(k, b, "part")
                    put(k, k + 1, "part")
    opened = -1
    for i, word in enumerate(words):
        if word.text in ('"', "“", "”", "«", "»"):
            if opened >= 0 and 0 < i - opened - 1 <= 12:
                put(opened + 1, i, "quoted")
                opened = -1
            else:
                opened = i
    for i, word in enumerate(words):
        if re.fullmatch(r"[12]\d{3}", word.text) or word.text in _MONTHS:
            j = i + 1
            while (
                j < len(words)
                and (words[j].text.isdigit() or words[j].text in _MONTHS or words[j].text == ",")
                and j - i < 4
            ):
                j += 1
            k = (
                i - 1
                if i and words[i - 1].text.isdigit() and len(words[i - 1].text) <= 2 and word.text in _MONTHS
                else i
            )
            put(k, j, "date")
    return [made[key] for key in sorted(made)]


def iso_date(text: str) -> str:
    """A written date in ISO 8601 (year, month or day precise), empty when it is none, and for a day that no calendar has."""
    found = re.fullmatch(
        r"(?:in |on |c\. )?(?:(\d{1,2})(?:st|nd|rd|th)?\s+(?:of\s+)?)?([A-Z][a-z]+)\s+(?:(\d{1,2})(?:st|nd|rd|th)?,?\s+)?(\d{4})",
        text.strip(),
    )
    if found and found[2] in _MONTHS:
        day = found[1] or found[3]
        return _in_calendar(f"{found[4]}-{_MONTHS[found[2]]:02d}" + (f"-{int(day):02d}" if day else ""))
    if re.fullmatch(r"[12]\d{3}(?:-\d\d(?:-\d\d)?)?", text.strip()):
        return _in_calendar(text.strip())
    return ""


def _in_calendar(text: str) -> str:
    """A date that is written as ISO 8601 has it, empty when there is no such month or day."""
    try:
        date.fromisoformat(text + "0000-01-01"[len(text) :])
    except ValueError:
        return ""
    return text


def acronyms(text: str) -> list[tuple[str, str]]:
    """Pairs (long form, short form) written as ``Long Form (LF)`` whose capitals or first letters agree (Schwartz and Hearst 2003)."""
    pairs = []
    for found in re.finditer(r"\(([A-Z][A-Za-z]{0,3}[A-Z]?[A-Za-z0-9.&-]{0,6})\)", text):
        short = found.group(1)
        letters = [c.casefold() for c in short if c.isalnum()]
        if len(letters) < 2 or sum(c.isupper() for c in short) < 2:
            continue
        before = text[max(0, found.start() - 120) : found.start()].rstrip()
        i, j = len(before) - 1, len(letters) - 1
        while j >= 0 and i >= 0:
            while i >= 0 and (before[i].casefold() != letters[j] or (j == 0 and i > 0 and before[i - 1].isalnum())):
                i -= 1
            if i < 0:
                break
            i, j = i - 1, j - 1
        if j < 0:
            long = before[i + 1 :].strip()
            if (
                len(long.split()) <= min(len(letters) + 5, len(letters) * 2)
                and len(long) > len(short)
                and "." not in long
            ):
                pairs.append((long, short))
    return pairs


def class_name(words: Sequence[Word]) -> str:
    """The class that a noun phrase names: its last nouns, the last one singular (``animated fantasy films`` gives ``fantasy film``)."""
    nouns: list[str] = []
    for word in reversed(words):
        if word.pos in ("NOUN", "PROPN") and (word.pos == "NOUN" or not nouns):
            nouns.insert(0, word.text.casefold() if word.pos == "NOUN" else word.text)
        else:
            break
    if nouns:
        nouns[-1] = singular(nouns[-1])
    return " ".join(nouns[-2:])
