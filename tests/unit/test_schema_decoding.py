"""Whatever a model would rather say, its reply has the schema's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from interfuse.build.asking import SCHEMA
from interfuse.data.schema_decoding import Shaped, Vocabulary, Written, run, stack_of, step
from tests.tiny_tokenizers import tokenizer

MIXED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["town", "river", 'a "hill"']},
        "years": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "big": {"type": "boolean"},
    },
}


def written(schema: dict[str, Any], scheme: str, seed: int, rows: int = 2, most: int = 1500) -> list[tuple[str, bool]]:
    """What a model of random wishes writes under a schema, and whether it came to an end."""
    tokens = tokenizer(scheme)
    vocabulary = Vocabulary(tokens)
    assert vocabulary.writes_json
    stack = stack_of(schema)
    assert stack is not None
    end = tokens.convert_tokens_to_ids("</s>")
    shaped = Shaped(vocabulary, stack, 1, [end])
    rng = torch.Generator().manual_seed(seed)
    ids = torch.full((rows, 1), 5)
    ended = [False] * rows
    for _ in range(most):
        scores = shaped(ids, torch.randn((rows, len(tokens)), generator=rng))
        nexts = scores.argmax(dim=1)
        assert torch.isfinite(scores.gather(1, nexts[:, None])).all()
        ids = torch.cat([ids, nexts[:, None]], dim=1)
        ended = [e or int(n) == end for e, n in zip(ended, nexts, strict=True)]
        if all(ended):
            break
    texts = [tokens.decode([t for t in row[1:].tolist() if t != end]) for row in ids]
    return list(zip(texts, ended, strict=True))


@pytest.mark.parametrize("scheme", ["bytes", "marker"])
def test_random_wishes_become_json_of_the_shape(scheme: str) -> None:
    for seed in range(3):
        for text, ended in written(MIXED, scheme, seed):
            assert ended
            row = json.loads(text)
            assert list(row) == ["name", "kind", "years", "big"]
            assert len(row["name"]) <= 12
            assert row["kind"] in MIXED["properties"]["kind"]["enum"]
            assert len(row["years"]) <= 3
            assert all(isinstance(y, int) for y in row["years"])
            assert isinstance(row["big"], bool)


def test_a_text_of_some_length_is_never_empty_or_blank() -> None:
    schema = {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 3}, "maxItems": 6}
    said = [w for seed in range(12) for text, _ in written(schema, "bytes", seed) for w in json.loads(text)]
    assert len(said) > 10
    assert all(w.strip() for w in said)
    for wrong in ('[""', '[" a', '["\\n'):
        assert run(stack_of(schema), wrong) is None, wrong
    assert run(stack_of({"type": "string"}), '""') == ()


def test_a_list_of_different_items_ends_when_it_says_one_again() -> None:
    pair = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "array", "items": {"enum": ["u"]}}},
    }
    for scheme in ("bytes", "marker"):
        for seed in range(4):
            for text, ended in written({"type": "array", "items": pair, "uniqueItems": True}, scheme, seed):
                assert ended
                said = [json.dumps(item) for item in json.loads(text)]
                assert len(set(said)) >= len(said) - 2, "one is said again, and perhaps one begun with it"
    stack = stack_of({"type": "array", "items": {"enum": ["x", "y"]}, "uniqueItems": True})
    assert stack is not None
    reply = Written(stack)
    for token in ('["x"', ', "y"', ', "x"'):
        reply.add(token)
    assert reply.stack is not None
    assert step(reply.stack, ",") is None
    assert step(reply.stack, "]") == ()
    begun = Written(stack)
    for token in ('["x', '", "x", "', 'y"'):  # a token has begun one more, which is finished
        begun.add(token)
    assert begun.stack is not None
    assert step(begun.stack, ",") is None
    assert step(begun.stack, "]") == ()


def test_a_reply_that_is_cut_is_the_beginning_of_one() -> None:
    for text, _ in written(SCHEMA, "bytes", 4, most=60):
        assert run(stack_of(SCHEMA), text) is not None
        assert text.startswith('{"statements": [')


def test_what_does_not_fit_is_refused_and_unknown_shapes_are_not_enforced() -> None:
    stack = stack_of(MIXED)
    assert run(stack, '{"name": "a\\"b", "kind": "river", "years": [1, 20], "big": true}') == ()
    for wrong in (
        '{"name": 3',
        '{"kind"',
        '{"name": "a", "kind": "sea"',
        '{"name": "a\nb"',
        '{"name": "abcdefghijklmnop"',
        '{"name": "a", "kind": "town", "years": [,',
    ):
        assert run(stack, wrong) is None, wrong
    assert run((), "x") is None
    assert stack_of({"type": "object"}) is None
    assert stack_of({"oneOf": []}) is None
