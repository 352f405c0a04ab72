"""Open relations: who does what to whom, from the shape of sentences, without a list of relations.

With dependencies: verbs with subjects, objects and prepositions, passives, copulas, appositions, possessives, relative and reduced
clauses, lists, and Hearst's patterns. Without them: a phrase, a verb group, a phrase (Fader et al. 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from interfuse.kit.language import Sentence
from interfuse.kit.mentions import EMPTY, Mention, class_name

#: the relation of an entity to its class
IS_A = "is a"
_SUBJECTS = ("nsubj", "nsubjpass")
_OBJECTS = ("dobj", "obj", "attr", "oprd", "dative")
_PREPOSITIONS = ("prep", "agent")
_HEARST = ("such", "including", "like", "especially", "particularly", "notably")


@dataclass(frozen=True)
class Triple:
    """Heads of subject and object (indices of words), the relation in words, and how sure its pattern is."""

    subject: int
    predicate: str
    object: int
    confidence: float
    kind: str = ""
    negated: bool = False


class Reader:
    """Reads one parsed sentence."""

    def __init__(self, sentence: Sentence) -> None:
        self.sentence, self.words = sentence, sentence.words

    def kids(self, i: int, *deps: str) -> list[int]:
        return [c for c in self.sentence.children[i] if not deps or self.words[c].dep in deps]

    def joined(self, i: int) -> list[int]:
        """A word and those that are listed with it."""
        found, front = [i], [i]
        while front:
            front = [
                c for f in front for c in self.kids(f, "conj") if self.words[c].pos in ("NOUN", "PROPN", "NUM", "PRON")
            ]
            found += front
        return found

    def subjects(self, verb: int) -> list[tuple[int, str]]:
        """Subjects of a verb with their dependency; a clause without one takes its governor's."""
        own = [(s, self.words[c].dep) for c in self.kids(verb, *_SUBJECTS) for s in self.joined(c)]
        if own:
            return [(self.antecedent(s, verb), dep) for s, dep in own]
        word = self.words[verb]
        if word.dep == "conj" and word.head != verb and self.words[word.head].pos in ("VERB", "AUX"):
            passive = (
                word.tag == "VBN"
                and not self.kids(verb, "aux", "auxpass")
                and any(d == "nsubjpass" for _, d in self.subjects(word.head))
            )
            return [
                (s, "nsubjpass" if passive else "nsubj" if self.kids(verb, "dobj") else d)
                for s, d in self.subjects(word.head)
            ]
        if word.dep in ("acl", "relcl") and word.head != verb:
            head = self.up(word.head)
            return [(head, "nsubjpass" if word.tag == "VBN" else "nsubj")]
        if word.dep in ("xcomp", "advcl") and word.head != verb and self.words[word.head].pos in ("VERB", "AUX"):
            return self.subjects(word.head)
        return []

    def up(self, noun: int) -> int:
        """The subject that a noun says what it is: in ``X is a film directed by Y``, the film is X."""
        word = self.words[noun]
        if word.dep == "attr" and self.words[word.head].lemma == "be":
            own = self.kids(word.head, "nsubj")
            if own:
                return own[0]
        if word.dep == "appos" and word.head != noun:
            return self.up(word.head)
        return noun

    def antecedent(self, i: int, verb: int) -> int:
        """The noun that a relative pronoun stands for."""
        word = self.words[i]
        if word.text.casefold() in ("who", "which", "that", "whom") and self.words[verb].dep == "relcl":
            return self.up(self.words[verb].head)
        return i

    def triples(self) -> Iterator[Triple]:
        """All triples of the sentence."""
        for i, word in enumerate(self.words):
            if word.pos in ("VERB", "AUX") and not (word.pos == "AUX" and word.dep in ("aux", "auxpass")):
                yield from self.verb(i)
            if word.pos in ("NOUN", "PROPN"):
                yield from self.noun(i)

    def verb(self, i: int) -> Iterator[Triple]:
        word = self.words[i]
        negated = bool(self.kids(i, "neg"))
        unsure = any(
            self.words[c].text.casefold() in ("may", "might", "could", "would", "should", "can")
            for c in self.kids(i, "aux")
        )
        sure = 0.5 if unsure else 1.0
        particle = "".join(f" {self.words[c].text.casefold()}" for c in self.kids(i, "prt"))
        for subject, dep in self.subjects(i):
            passive = dep == "nsubjpass"
            name = (
                word.text.casefold()
                if passive or (word.tag == "VBN" and not self.kids(i, "aux"))
                else word.lemma.casefold()
            ) + particle
            if not passive:
                for target in (t for c in self.kids(i, "dobj", "obj") for t in self.joined(c)):
                    yield Triple(subject, name, target, 0.75 * sure, "verb", negated)
                    yield from self.after(target, subject, name, sure, negated)
            if word.lemma == "be":
                for c in self.kids(i, "attr"):
                    yield from self.copula(subject, c, sure, negated)
            for c in self.kids(i, *_PREPOSITIONS):
                for target in self.pobjects(c):
                    yield Triple(
                        subject, f"{name} {self.words[c].text.casefold()}", target, 0.8 * sure, "preposition", negated
                    )

    def after(self, target: int, subject: int, name: str, sure: float, negated: bool) -> Iterator[Triple]:
        """``has a population of N``: the noun is part of the relation."""
        if self.words[target].pos == "NOUN" and name in ("have", "win", "receive", "hold"):
            for c in self.kids(target, "prep"):
                if self.words[c].text == "of" or name == "win":
                    for o in self.pobjects(c):
                        yield Triple(subject, self.words[target].lemma.casefold(), o, 0.7 * sure, "light verb", negated)

    def pobjects(self, preposition: int) -> list[int]:
        return [t for c in self.kids(preposition, "pobj") for t in self.joined(c)]

    def copula(self, subject: int, attribute: int, sure: float, negated: bool) -> Iterator[Triple]:
        word = self.words[attribute]
        if self.words[subject].pos == "NOUN" and word.pos in ("PROPN", "NUM"):
            yield from self.turned(subject, attribute, sure, negated)
        made = False
        for c in self.kids(attribute, "prep"):
            if word.pos == "NOUN":
                for o in self.pobjects(c):
                    made = True
                    yield Triple(
                        subject,
                        f"{self.role(attribute)} {self.words[c].text.casefold()}",
                        o,
                        0.85 * sure,
                        "role",
                        negated,
                    )
        for c in self.kids(attribute, "poss"):
            yield Triple(subject, f"{self.role(attribute)} of", c, 0.85 * sure, "role", negated)
        for c in self.kids(attribute, "relcl", "acl"):
            del c  # clauses are read as verbs of their own
        if word.pos == "NOUN":
            yield Triple(subject, IS_A, attribute, (0.6 if made else 0.9) * sure, "class", negated)
        elif word.pos == "PROPN":
            yield Triple(subject, "is", attribute, 0.6 * sure, "same", negated)

    def turned(self, subject: int, attribute: int, sure: float, negated: bool) -> Iterator[Triple]:
        """``The capital of Norway is Oslo`` and ``Norway's capital is Oslo``; a number is what the thing has (``the population of``)."""
        holders = [
            o for c in self.kids(subject, "prep") if self.words[c].text == "of" for o in self.pobjects(c)
        ] + self.kids(subject, "poss")
        for holder in holders:
            if self.words[attribute].pos == "NUM":
                yield Triple(holder, self.role(subject), attribute, 0.85 * sure, "role", negated)
            else:
                yield Triple(attribute, f"{self.role(subject)} of", holder, 0.85 * sure, "role", negated)

    def role(self, noun: int) -> str:
        """A noun with the compounds and adjectives that belong to it: ``prime minister``, ``national capital``."""
        before = [
            c
            for c in self.kids(noun, "compound", "amod")
            if c < noun and self.words[c].pos in ("NOUN", "ADJ") and self.words[c].tag not in ("JJS",)
        ]
        return " ".join(
            [*(self.words[c].text.casefold() for c in before[-1:] if c == noun - 1), self.words[noun].lemma.casefold()]
        )

    def noun(self, i: int) -> Iterator[Triple]:
        word = self.words[i]
        for c in self.kids(i, "appos"):
            yield from self.apposed(i, c)
        for c in self.kids(i, "poss"):
            if (
                word.pos == "PROPN" and i and self.words[i - 1].pos == "NOUN" and self.words[i - 1].head == i
            ):  # Norway's capital Oslo
                yield Triple(i, f"{self.words[i - 1].lemma.casefold()} of", c, 0.75, "possessive")
        for c in self.kids(i, "prep"):
            mark = self.words[c].text.casefold()
            if mark in _HEARST and word.pos == "NOUN":
                for o in self.pobjects(c):
                    yield Triple(o, IS_A, i, 0.75, "hearst")

    def apposed(self, i: int, c: int) -> Iterator[Triple]:
        """``Oslo, the capital of Norway`` and ``the capital of Norway, Oslo``."""
        one, two = self.words[i], self.words[c]
        if one.pos == "PROPN" and two.pos == "NOUN":
            yield from self.copula(i, c, 0.9, False)
        elif one.pos == "NOUN" and two.pos == "PROPN":
            yield from self.copula(c, i, 0.9, False)


def surface_triples(sentence: Sentence) -> Iterator[Triple]:
    """Phrase, verb group, phrase: for sentences without dependencies. Heads are the phrases' last words."""
    words, phrases = sentence.words, sentence.phrases
    for k, (first, last) in enumerate(phrases[:-1]):
        begin, end = last, phrases[k + 1][0]
        if words[first].pos in ("CCONJ",) or (first and words[first - 1].pos == "ADP"):
            first = next((a for a, b in reversed(phrases[:k]) if b <= first - 1), first)
        inside = words[begin:end]
        if not inside or len(inside) > 5 or any(w.pos in ("PUNCT", "CCONJ", "SCONJ", "PRON") for w in inside):
            continue
        verbs = [w for w in inside if w.pos in ("VERB", "AUX")]
        if not verbs:
            continue
        negated = any(w.text.casefold() in ("not", "never") for w in inside)
        main = [w for w in inside if w.pos == "VERB"]
        preposition = inside[-1].text.casefold() if inside[-1].pos == "ADP" else ""
        subject, target = last - 1, phrases[k + 1][1] - 1
        subject = _start_of_subject(sentence, k)
        if main:
            passive = any(w.lemma == "be" for w in verbs[:-1]) or (verbs[0].lemma == "be" and len(verbs) > 1)
            name = main[-1].text.casefold() if passive else main[-1].lemma
            yield Triple(subject, f"{name} {preposition}".strip(), target, 0.55, "surface", negated)
        elif verbs[-1].lemma == "be":
            after = words[phrases[k + 1][1]].text.casefold() if phrases[k + 1][1] < len(words) else ""
            if (
                after in ("of", "in")
                and k + 2 < len(phrases)
                and phrases[k + 2][0] == phrases[k + 1][1] + 1
                and words[target].pos == "NOUN"
            ):
                yield Triple(
                    subject,
                    f"{words[target].lemma.casefold()} {after}",
                    phrases[k + 2][1] - 1,
                    0.65,
                    "surface",
                    negated,
                )
            if words[target].pos == "NOUN":
                yield Triple(subject, IS_A, target, 0.6, "class", negated)


def _start_of_subject(sentence: Sentence, k: int) -> int:
    """The phrase that a prepositional phrase before the verb belongs to: ``the bridge over the river was built``."""
    while k > 0 and sentence.phrases[k][0] > 0 and sentence.words[sentence.phrases[k][0] - 1].pos == "ADP" \
            and sentence.phrases[k - 1][1] == sentence.phrases[k][0] - 1:  # fmt: skip
        k -= 1
    return sentence.phrases[k][1] - 1


@dataclass(frozen=True)
class Found:
    """A triple whose ends are mentions."""

    subject: Mention
    predicate: str
    object: Mention
    confidence: float
    kind: str
    class_word: str = ""


def open_relations(
    sentence: Sentence, mentions: list[Mention], resolve: Callable[[int], Mention | None] = lambda i: None
) -> list[Found]:
    """The open relations of a sentence whose two ends are mentions, each once, the surest pattern of each.

    Args:
        resolve: gives the mention that a pronoun or definite noun (index of its word) stands for, or None.
    """
    triples = Reader(sentence).triples() if sentence.parsed else surface_triples(sentence)
    best: dict[tuple[int, int, str, int, int], Found] = {}
    for t in triples:
        if t.negated:
            continue
        subject = resolve(t.subject) or covering(sentence, mentions, t.subject)
        target = resolve(t.object) or covering(sentence, mentions, t.object)
        if subject is None or target is None or (subject.first, subject.last) == (target.first, target.last):
            continue
        if subject.kind in ("date", "number") or subject.label.casefold() in EMPTY or target.label.casefold() in EMPTY:
            continue
        name = ""
        if t.predicate == IS_A:
            inside = sentence.words[target.first : target.last]
            cut = next((k for k, w in enumerate(inside) if w.text == "of"), len(inside))
            name = class_name(inside[:cut])
            if not name or name in EMPTY:
                continue
        made = Found(subject, t.predicate, target, t.confidence, t.kind, name)
        key = (subject.first, subject.last, t.predicate, target.first, target.last)
        if key not in best or best[key].confidence < made.confidence:
            best[key] = made
    return list(best.values())


def covering(sentence: Sentence, mentions: list[Mention], word: int) -> Mention | None:
    """The mention that a word is the head of: the longest name or title around it, else the phrase."""
    if not 0 <= word < len(sentence.words) or sentence.words[word].pos in ("PRON", "DET"):
        return None
    around = [m for m in mentions if m.first <= word < m.last and m.source not in ("part",)]
    if not around:
        return None
    named = [m for m in around if m.source in ("gazetteer", "name", "title", "quoted", "date")]
    named += [
        m for m in around if m.source == "topic" and sentence.words[m.first].text[0].isupper()
        and not any(w.pos == "NOUN" and w.text.islower() for w in sentence.words[m.first : m.last])
    ]  # fmt: skip
    chosen = max(named or around, key=lambda m: (m.last - m.first, -m.first))
    words = sentence.words
    if not named and chosen.last < len(words) and words[chosen.last].text == "of":  # the head of the fjord
        more = [b for a, b in sentence.phrases if a == chosen.last + 1]
        if more and more[0] - chosen.first <= 8:
            return Mention(chosen.first, more[0], sentence.text(chosen.first, more[0]), chosen.kind, "phrase")
    return chosen
