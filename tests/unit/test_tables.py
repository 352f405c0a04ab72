"""Tables for language models: the roles of prompts, responses, conversations and choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.images import distort
from interfuse.data.tables import Table, open_table


def test_columns_of_language_models_are_found_by_their_names(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{i}?", "response": str(i), "choices": [str(i), "no"], "label": 0, "id": f"q{i}"} for i in range(6)
    ]
    (tmp_path / "qa.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    table = open_table(Source({"data": "qa.jsonl", "split": {"a": 0.5, "b": 0.5}}, "qa", tmp_path), Ctx())
    part = open_table(Source({"from": table, "take": "b"}, "b"), Ctx())
    assert table.kind == "prompt"
    assert set(table.columns) == {"prompt", "response", "choices", "label", "id"}
    assert [f"q{v}" for v in part.values("response")] == part.ids()
    assert table.values("choices")[2] == ["2", "no"]
    with pytest.raises(InterfuseError, match=r"input\.missing.*no messages column"):
        table.values("messages")


def test_a_conversation_is_read_as_it_is(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"talk": talk}) + "\n")
    table = open_table(Source({"data": "chat.jsonl", "columns": {"messages": "talk"}}, "chat", tmp_path), Ctx())
    assert table.kind == "messages"
    assert table.values("messages") == [talk]


def test_an_ink_box_fills_the_image_but_for_a_margin() -> None:
    image = np.zeros((1, 8, 8), dtype=np.float32)
    image[0, 2:6, 3:5] = 1.0
    rng = np.random.default_rng(0)
    found = distort(image, (("ink-box", 0.5),), rng)
    assert found.shape == image.shape
    assert found[0, 2:6, 2:6].min() > 0.9, "ink reaches to the margin on every side"
    assert found[0, 0].max() < 0.2
    assert found[0, :, 0].max() < 0.2
    blank = np.zeros((3, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(distort(blank, (("ink-box", 0.5),), rng), blank)


def test_parts_hold_no_row_that_the_table_leaves_out() -> None:
    def taken(table: dict[str, Any], part: str, **more: Any) -> Table:
        return open_table(Source({"from": table, "take": part, **more}, "part"), Ctx())

    split = {"split": {"train": 0.75, "test": 0.25}}
    few = {"data": "sklearn:digits", "limit": 100, **split}
    train, test = taken(few, "train"), taken(few, "test")
    assert len(train.rows) + len(test.rows) == 100
    assert max([*train.rows, *test.rows]) == 99
    assert abs(len(train.rows) - 75) <= 5
    two = {"data": "sklearn:digits", "classes": [0, 1], **split}
    assert set(taken(two, "train").codes[taken(two, "train").rows]) == {0, 1}
    whole = {"data": "sklearn:digits", **split}
    later = {"from": whole, "classes": [3], "limit": 40}
    assert len(taken(later, "train").rows) + len(taken(later, "test").rows) == 40
    assert len(taken(whole, "train", limit=7).rows) == 7
