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


def said(place: Path, name: str, replies: dict[str, str]) -> str:
    """A recorded model that knows some replies."""
    rows = [{"prompt": p, "replies": [r]} for p, r in replies.items()]
    (place / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return f"replies:{place / name}.jsonl"


def test_answers_by_hand(tmp_path: Path) -> None:
    rows = [
        {"prompt": "6 x 3", "label": "18"},
        {"prompt": "1,000 + 1", "label": "1001"},
        {"prompt": "Capital of France", "label": "Paris"},
        {"prompt": "2 + 2", "label": "4"},
    ]
    short = {"6 x 3": "18", "1,000 + 1": "It is 1,001.0!", "Capital of France": "paris.", "2 + 2": "5"}
    long = {
        "6 x 3": "Wait, let me just verify: 18.",
        "1,000 + 1": "1001, double-check, 1002",
        "Capital of France": "Paris",
        "2 + 2": "waiter, 4",
    }
    read = interfuse.measure.answers(
        [said(tmp_path, "short", short)],
        [said(tmp_path, "long", long)],
        table(tmp_path, rows),
        resamples=200,
        out=tmp_path / "r",
    ).read()
    found = {m["name"]: m for m in read["models"]}
    means = {name: {k: v["mean"] for k, v in m["scores"].items()} for name, m in found.items()}
    assert means["short"]["accuracy"] == 0.75
    assert means["long"]["accuracy"] == 0.75
    assert means["short"]["reflective"] == 0
    assert means["long"]["reflective"] == 0.5  # a waiter does not wait
    assert means["short"]["tokens"] < means["long"]["tokens"]
    assert (found["short"]["on_front"], found["long"]["on_front"]) == (True, False)
    duel = read["comparisons"][0]
    assert [duel[k] for k in ("gained", "kept", "lost", "never")] == [1, 2, 1, 0]
    assert duel["length"]["mean"] == pytest.approx(means["short"]["tokens"] / means["long"]["tokens"])
    log = pq.read_table(tmp_path / "r" / "items.parquet").to_pydict()
    assert [c for c, m in zip(log["correct"], log["model"], strict=True) if m == "short"] == [True, True, True, False]


def test_where_the_answer_stands(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "Long ... #### 7"}, {"prompt": "b", "response": "#### 12"}]
    lm = said(tmp_path, "m", {"a": "so 3 #### 7 (sure: 8)", "b": "12"})
    ask = {"data": table(tmp_path, rows), "resamples": 200}
    read = interfuse.measure.answers([lm], pattern=r"#### (\S+)", **ask).read()
    assert read["models"][0]["scores"]["accuracy"]["mean"] == 0.5
    words = interfuse.measure.answers([lm], pattern=r"#### (\S+)", match="words", **ask).read()
    assert words["models"][0]["scores"]["accuracy"]["mean"] == 0.5
    for given, code in (
        ({"pattern": "("}, "param.value"),
        ({"pattern": "never (x)"}, "param.value"),
        ({"max_tokens": 0}, "param.value"),
    ):
        with pytest.raises(InterfuseError) as caught:
            interfuse.measure.answers([lm], **given, **ask)
        assert caught.value.code == code
    for row in ({"prompt": "a", "label": ""}, {"prompt": "", "label": "x"}, {"prompt": "a", "label": "x", "id": "1"}):
        with pytest.raises(InterfuseError) as caught:
            interfuse.measure.answers([lm], data=table(tmp_path, [row]))
        assert caught.value.code in ("input.missing", "input.empty")
    with pytest.raises(InterfuseError, match="no number"):
        interfuse.measure.answers(
            [lm], data=table(tmp_path, [{"prompt": "a", "label": "x"}, {"prompt": "b", "label": "y"}]), match="number"
        )


def test_answers_that_are_cut_off_are_told(tmp_path: Path) -> None:
    from tests.conformance.scenes.measure import question_table, speaker

    models = [speaker(tmp_path, "one"), speaker(tmp_path, "two")]
    read = interfuse.measure.answers(
        models[:1], models[1:], question_table(tmp_path, "answers"), max_tokens=2, resamples=200
    ).read()
    cut = read["models"][0]["scores"]["cut_off"]["mean"]
    assert cut > 0
    assert any(
        f"cut off at 2 tokens: {read['models'][0]['name']} {cut:.0%}".replace("%", " %") in note
        for note in read["notes"]
    )
