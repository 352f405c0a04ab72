"""Graph to text and back."""

from __future__ import annotations

import pytest

from interfuse.kit.verbalise import faithful, phrase, told

TRIPLES = [
    ("Rome", "isCapitalOf", "Italy"),
    ("Rome", "river", "the Tiber"),
    ("Oslo", "located in", "Norway"),
    ("Rome", "river", "Aniene"),
]


@pytest.mark.parametrize(
    ("relation", "want"),
    [("isCapitalOf", "[S] is capital of [O]"), ("capital_of", "[S] is capital of [O]"), ("director", "The director of [S] is [O]"),
     ("borders with", "[S] borders with [O]"), ("wrote", "The wrote of [S] is [O]"), ("", "[S] is related to [O]")],
)  # fmt: skip
def test_relations_become_sentences(relation: str, want: str) -> None:
    assert phrase(relation) == want
    assert phrase(relation, {relation: "[S] x [O]"}) == "[S] x [O]"


def test_a_text_says_every_triple_once() -> None:
    text = told([*TRIPLES, TRIPLES[0]])
    assert text == "Rome is capital of Italy. The river of Rome is the Tiber and Aniene. Oslo is located in Norway."
    found = faithful(text, TRIPLES)
    assert found.coverage == 1.0
    assert not found.foreign


def test_what_a_text_leaves_out_or_makes_up_is_found() -> None:
    found = faithful("Rome is the capital of Italy. In 1960 Oslo met Bergen. Norway is cold.", TRIPLES)
    assert found.said == (TRIPLES[0],)
    assert found.missing == tuple(TRIPLES[1:])
    assert found.foreign == ("1960", "Bergen")
    assert faithful("", []).coverage == 1.0
