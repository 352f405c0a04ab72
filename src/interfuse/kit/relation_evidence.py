"""What a sentence says about the relation that a mention stands in, as short strings.

``direct by``: the mention stands after *by* under a form of *direct*; ``star >``: it is the object of *star*; ``write <``: its subject;
``album by``: after *by* under the noun; ``, director``: beside that noun; ``director _``: right after it; ``'s film``: its owner;
``_ film``: right before it, within what the sentence says its topic is. Lists are one mention after another: what holds of the first
holds of all. Sentences without dependencies give what stands left of the mention.
"""

from __future__ import annotations

from interfuse.kit.language import Sentence
from interfuse.kit.mentions import Mention

_LISTS = ("conj", "appos")
_NOUNS = ("NOUN", "PROPN", "NUM", "X", "SYM")


def head_of(sentence: Sentence, mention: Mention) -> int:
    """The word of a mention that the others hang on."""
    words = sentence.words
    for i in range(mention.last - 1, mention.first - 1, -1):
        if not mention.first <= words[i].head < mention.last or words[i].head == i:
            return i
    return mention.last - 1


def listed_with(sentence: Sentence, head: int) -> int:
    """The first word of the list that a word stands in: itself when it stands in none."""
    words = sentence.words
    for _ in range(30):
        up = words[head].head
        if up == head or up > head or words[up].pos not in _NOUNS:
            break
        if words[head].dep == "conj" or (words[head].dep == "appos" and words[head].pos == words[up].pos == "PROPN"):
            head = up
            continue
        break
    return head


def governors(sentence: Sentence, mention: Mention) -> list[tuple[str, int]]:
    """(evidence, the word that carries it) for a mention, surest first, each once."""
    found: dict[str, int] = {}
    words = sentence.words
    if sentence.parsed:
        head = head_of(sentence, mention)
        first = listed_with(sentence, head)
        for h in dict.fromkeys((first, head)):
            _from_head(sentence, h, found)
        for c in sentence.children[head]:
            if words[c].dep == "appos" and words[c].pos == "NOUN" and not mention.first <= c < mention.last:
                found.setdefault(f", {words[c].lemma.casefold()}", c)
    before = mention.first - 1
    while before >= 0 and words[before].text in ('"', "“", "'", "‘", "(", "the", "The", "a", "an"):
        before -= 1
    if before >= 0:
        word = words[before]
        if word.pos == "NOUN" and word.text.islower():
            found.setdefault(f"{word.lemma.casefold()} _", before)
        elif word.pos in ("ADP", "PART", "VERB", "AUX") and before:
            more = before - 1
            while more >= 0 and words[more].pos in ("DET", "PUNCT", "ADV", "ADJ") and before - more < 4:
                more -= 1
            if words[more].pos in ("NOUN", "VERB", "AUX") and word.pos in ("ADP", "PART"):
                found.setdefault(f"{words[more].lemma.casefold()} {word.text.casefold()}", more)
    after = mention.last
    if after < len(words) and words[after].pos == "NOUN" and words[after].text.islower():
        found.setdefault(f"_ {words[after].lemma.casefold()}", after)
    if after + 1 < len(words) and words[after].text in ("'s", "’s", "'", "’"):
        for i in range(after + 1, min(len(words), after + 5)):
            if words[i].pos == "NOUN":
                found.setdefault(f"'s {words[i].lemma.casefold()}", i)
                break
    return list(found.items())


def _from_head(sentence: Sentence, head: int, found: dict[str, int]) -> None:
    words = sentence.words
    word = words[head]
    up = word.head
    if up == head:
        return
    if word.dep == "pobj" and words[up].pos in ("ADP", "SCONJ", "VERB", "PART"):
        mark, over = words[up].text.casefold(), words[up].head
        if words[up].pos == "VERB":  # including X, starring X
            found.setdefault(f"{words[up].lemma.casefold()} >", up)
        for carrier in _sharing(sentence, over, up):
            name = words[carrier].lemma.casefold()
            found.setdefault(f"{name} {mark}", carrier)
            for c in sentence.children[carrier]:
                if words[c].dep in ("dobj", "attr", "nsubjpass", "oprd") and c < head and words[c].pos == "NOUN":
                    found.setdefault(f"{words[c].lemma.casefold()} {mark}", carrier)
    elif word.dep in ("dobj", "obj", "dative", "oprd"):
        for carrier in _sharing(sentence, up, head):
            found.setdefault(f"{words[carrier].lemma.casefold()} >", carrier)
    elif word.dep == "attr":
        for c in sentence.children[up]:
            if words[c].dep == "nsubj":
                found.setdefault(f"{words[c].lemma.casefold()} is", c)
        found.setdefault("is >", up)
    elif word.dep == "nsubj":
        for c in sentence.children[up]:
            if words[c].dep == "attr" and words[c].pos == "NOUN":
                found.setdefault(f"is {words[c].lemma.casefold()}", c)
        if words[up].lemma != "be":
            found.setdefault(f"{words[up].lemma.casefold()} <", up)
            for c in sentence.children[up]:
                if words[c].dep == "conj" and words[c].pos == "VERB":
                    found.setdefault(f"{words[c].lemma.casefold()} <", c)
    elif word.dep == "nsubjpass":
        found.setdefault(f"{words[up].lemma.casefold()} <<", up)
    elif word.dep == "appos":
        found.setdefault(f", {words[up].lemma.casefold()}", up)
    elif word.dep in ("compound", "nmod", "amod", "nummod"):
        found.setdefault(f"_ {words[up].lemma.casefold()}", up)
    elif word.dep == "poss":
        found.setdefault(f"'s {words[up].lemma.casefold()}", up)
    elif word.dep == "npadvmod":
        found.setdefault(f"{words[up].lemma.casefold()} at", up)


def _sharing(sentence: Sentence, verb: int, below: int) -> list[int]:
    """A word, and those it is listed with that have no such dependant of their own: ``written and directed by X``."""
    words, found = sentence.words, [verb]
    dep = words[below].dep
    while words[found[-1]].dep == "conj" and words[found[-1]].head != found[-1]:
        up = words[found[-1]].head
        own = [
            c
            for c in sentence.children[up]
            if words[c].dep == dep and words[c].text.casefold() == words[below].text.casefold()
        ]
        if own and dep in ("prep", "agent"):
            break
        if dep not in ("prep", "agent") and any(words[c].dep == dep for c in sentence.children[up]):
            break
        found.append(up)
        if len(found) > 6:
            break
    return found
