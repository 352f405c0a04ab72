"""Relations of an ontology found by what its names and English say of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from interfuse.kit.guided import guided_relations, topic_of, wanted_of
from interfuse.kit.language import Sentence, open_parser
from interfuse.kit.mentions import find_mentions
from interfuse.kit.relation_evidence import governors
from interfuse.kit.relation_words import SPEECH, closed_list, signs_of_name, speech_of

PARSER = open_parser("spacy")


def parsed(text: str) -> Sentence:
    return next(iter(PARSER.parse([text])))[0]


def found(text: str, properties: Sequence[str]) -> set[tuple[str, str, str]]:
    sentence = parsed(text)
    wanted = wanted_of((p, ()) for p in properties)
    return {(g.subject.label, g.name, g.label) for g in guided_relations(sentence, find_mentions(sentence), wanted)}


@pytest.mark.parametrize(
    ("text", "properties", "facts"),
    [
        (
            "Alien is a 1979 British film directed by Ridley Scott, starring Tom Skerritt and Sigourney Weaver.",
            ["director", "cast member", "publication date", "country of origin"],
            {
                ("Alien", "director", "Ridley Scott"),
                ("Alien", "cast member", "Tom Skerritt"),
                ("Alien", "cast member", "Sigourney Weaver"),
                ("Alien", "publication date", "1979"),
                ("Alien", "country of origin", "United Kingdom"),
            },
        ),
        ("Diane Warren wrote Golden Road.", ["lyrics by"], {("Golden Road", "lyrics by", "Diane Warren")}),
        ("The Isar is a tributary of the Danube.", ["mouth of the watercourse"], {("Isar", "mouth of the watercourse", "Danube")}),
        ("Anna Berg is a retired Norwegian swimmer.", ["occupation"], {("Anna Berg", "occupation", "swimmer")}),
        ("The bridge was painted green.", ["director", "author"], set()),
        # a property that is in no list, by its own name
        ("Acme Works was audited by Hana Nord.", ["audited by"], {("Acme Works", "audited by", "Hana Nord")}),
        ("Hana Nord, the curator, was born in Oslo.", ["place of birth"], {("Hana Nord", "place of birth", "Oslo")}),
    ],
)  # fmt: skip
def test_facts_of_sentences(text: str, properties: list[str], facts: set[tuple[str, str, str]]) -> None:
    assert found(text, properties) == facts


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ('"Spinning Around" is a song by Kylie Minogue.', "Spinning Around"),
        ("The Danube is a river in Europe.", "Danube"),
        ("The Right That Failed is a film released by Metro Pictures.", "The Right That Failed"),
        ("Pascal Vahirua's career was long.", "Pascal Vahirua"),
        ("Corporal Joseph Vittori (1929 - 1951) was a soldier.", "Joseph Vittori"),
        ("The film was long.", ""),
    ],
)
def test_what_a_sentence_is_about(text: str, topic: str) -> None:
    made = topic_of(parsed(text))
    assert (made.label if made is not None else "") == topic


def test_what_holds_of_the_first_of_a_list_holds_of_all() -> None:
    sentence = parsed("The opera was written and composed by Ann Berg, Bo Dahl and Carl Ek.")
    mentions = {m.label: m for m in find_mentions(sentence)}
    for name in ("Ann Berg", "Bo Dahl", "Carl Ek"):
        signs = {s for s, _ in governors(sentence, mentions[name])}
        assert {"compose by", "write by"} <= signs, (name, signs)


def test_names_give_signs_and_lists_are_whole() -> None:
    assert signs_of_name("founded by")["found by"] > 0.5
    assert ", curator" in signs_of_name("curator")
    assert "translate by" in signs_of_name("translator")
    assert signs_of_name("") == {}
    assert closed_list("countries")["swiss"] == "Switzerland"
    assert not closed_list("no such list")
    for speech in SPEECH.values():
        assert not speech.values or closed_list(speech.values), speech
        assert all(0 < v <= 1 for v in speech.signs.values())
    assert speech_of("Date of first flight").dates


def test_a_sentence_may_speak_of_what_an_earlier_one_named() -> None:
    long = parsed(
        "At the end of a very long and winding road there stands, on a hill above the town of Bergen, Alpha Hall."
    )
    earlier = find_mentions(long)[-1]
    assert earlier.label == "Alpha Hall"
    sentence = parsed("It was designed by Ann Berg.")
    wanted = wanted_of([("architect", ())])
    said = guided_relations(sentence, find_mentions(sentence), wanted, topic=earlier)
    assert [(g.subject.label, g.label) for g in said] == [("Alpha Hall", "Ann Berg")]
    said = guided_relations(sentence, find_mentions(sentence), wanted, resolve=lambda i: earlier if i == 0 else None)
    assert [(g.subject.label, g.label) for g in said] == [("Alpha Hall", "Ann Berg")]
    assert not guided_relations(sentence, find_mentions(sentence), wanted)


def test_no_mention_is_a_word_that_names_nothing() -> None:
    from interfuse.kit.graph_checks import NO_NAMES
    from interfuse.kit.mentions import EMPTY

    assert NO_NAMES <= EMPTY
