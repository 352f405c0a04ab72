"""Language models measured: choices by hand, labels of three forms, bits per byte by hand, models that are no checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import interfuse
from interfuse.core.errors import InterfuseError


def tape(place: Path, name: str, scores: dict[tuple[str, str], list[float]]) -> str:
    """A recorded model that knows the scores of some continuations."""
    rows = [{"prompt": p, "continuation": c, "token_logprobs": v} for (p, c), v in scores.items()]
    (place / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return f"replies:{place / name}.jsonl"


def table(place: Path, rows: list[dict[str, Any]]) -> str:
    file = place / "table.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows))
    return str(file)


def test_choices_by_hand(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1 =", "choices": ["2", "three"], "label": "2"}, {"prompt": "Sky:\n", "choices": ["red", "blue", "up"], "label": "B"},
            {"prompt": "Snow is", "choices": ["white", "hot"], "label": "0"}]  # fmt: skip
    fused = {("1 + 1 =", " 2"): [-1.0], ("1 + 1 =", " three"): [-0.75, -0.75], ("Sky:", "\nred"): [-2.0], ("Sky:", "\nblue"): [-1.0], ("Sky:", "\nup"): [-3.0],
             ("Snow is", " white"): [-1.0], ("Snow is", " hot"): [-0.5]}  # fmt: skip
    one = {**fused, ("1 + 1 =", " 2"): [-4.0], ("Snow is", " hot"): [-5.0]}
    models = {"models": [tape(tmp_path, "fused", fused)], "against": [tape(tmp_path, "one", one)]}
    read = interfuse.measure.choice(**models, data=table(tmp_path, rows), resamples=200, out=tmp_path / "r").read()
    duel = read["comparisons"][0]
    assert [duel[k]["items"] for k in ("gained", "kept", "lost", "never")] == [1, 1, 1, 0]
    spread = [-2.0, -1.0, -3.0]
    expected = (
        math.log(1 + math.exp(-0.5)) + math.log(sum(math.exp(v) for v in spread)) + 1 + math.log(1 + math.exp(0.5))
    ) / 3
    scores = {m["name"]: m["scores"] for m in read["models"]}
    assert scores["fused"]["nll"]["mean"] == pytest.approx(expected, rel=1e-9)
    log = pq.read_table(tmp_path / "r" / "items.parquet").to_pydict()
    assert log["prediction"][log["model"].index("fused") :][:3] == ["A", "B", "B"]
    per_token = interfuse.measure.choice(**models, data=table(tmp_path, rows), normalize="token", resamples=200).read()
    assert per_token["models"][1]["name"] == "fused"
    assert per_token["models"][1]["scores"]["accuracy"]["mean"] == pytest.approx(1 / 3)  # "three" is likelier per token


def test_bits_per_byte_by_hand(tmp_path: Path) -> None:
    rows = [{"text": "héé"}, {"text": "ab"}, {"text": "c"}]
    fused = {("", "héé"): [-2.0, -1.0], ("", "ab"): [-1.0], ("", "c"): [-1.0]}
    one = {("", "héé"): [-1.0, -1.0], ("", "ab"): [-2.0], ("", "c"): [-1.0]}
    read = interfuse.measure.likelihood(
        [tape(tmp_path, "fused", fused)], [tape(tmp_path, "one", one)], table(tmp_path, rows), resamples=200
    ).read()
    found = {m["name"]: m for m in read["models"]}
    assert found["fused"]["bits_per_byte"]["mean"] == pytest.approx(5 / math.log(2) / 8)  # é takes two bytes
    assert found["fused"]["nats_per_token"] == pytest.approx(5 / 4)
    duel = read["comparisons"][0]
    assert (duel["likelier"], duel["same"], duel["less_likely"]) == (1, 1, 1)
    assert duel["delta"]["mean"] == pytest.approx(0, abs=1e-12)
    assert duel["verdict"] not in ("better", "worse")


def test_only_responses_count(tmp_path: Path) -> None:
    lm = tape(tmp_path, "m", {("Hi", " there"): [-1.0], ("Yo", " man"): [-2.0]})
    rows = [{"prompt": "Hi", "response": " there"}, {"prompt": "Yo", "response": " man"}]
    read = interfuse.measure.likelihood([lm], data=table(tmp_path, rows), resamples=200).read()
    assert read["models"][0]["bits_per_byte"]["mean"] == pytest.approx(3 / math.log(2) / 10)


@pytest.mark.parametrize(("row", "code"), [
    ({"choices": ["x"], "label": 0}, "input.empty"), ({"choices": ["x", "x"], "label": 0}, "input.duplicate"), ({"choices": ["x", "y"], "label": "C"}, "input.missing"),
    ({"choices": ["x", "y"], "label": 2}, "input.missing"), ({"choices": ["x", ""], "label": 0}, "input.empty"), ({"choices": ["x", "y"], "label": 0, "prompt": ""}, "input.missing"),
])  # fmt: skip
def test_questions_that_cannot_be_asked_are_refused_with_their_row(
    tmp_path: Path, row: dict[str, Any], code: str
) -> None:
    rows = [{"prompt": "a", "choices": ["x", "y"], "label": "0"}, {"prompt": "b", **row, "label": str(row["label"])}]
    with pytest.raises(InterfuseError) as error:
        interfuse.measure.choice([tape(tmp_path, "m", {("a", " x"): [-1.0]})], data=table(tmp_path, rows))
    assert error.value.code == code
    assert "row 1" in error.value.where


def test_an_endpoint_that_cannot_score_says_so(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "choices": ["x", "y"], "label": "0"}] * 2
    with pytest.raises(InterfuseError, match=r"needs\.capability"):
        interfuse.measure.choice([{"endpoint": "http://127.0.0.1:9/v1", "model": "m"}], data=table(tmp_path, rows))
