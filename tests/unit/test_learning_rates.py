"""Learning rates of the distillation benchmarks: a grid grows until its best rate lies inside, and the recorded choices do."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("learning_rates")


def test_a_grid_grows_until_the_best_rate_has_neighbours(rates: Any) -> None:
    for target in (0.0002, 0.004, 0.02, 0.25):
        scores = {rate: -abs(math.log(rate / target)) for rate in (0.01, 0.03)}
        while (further := rates.untried(scores)) is not None:
            scores[further] = -abs(math.log(further / target))
        assert not rates.at_the_edge(scores)
        assert abs(math.log(rates.best(scores) / target)) <= math.log(10**0.5)
        assert len(scores) <= 7


def test_equals_a_rate_that_failed_and_the_ends_of_the_ladder(rates: Any) -> None:
    assert rates.best({0.01: 0.9, 0.03: 0.9, 0.003: 0.9}) == 0.01
    assert rates.untried({0.01: 0.9, 0.03: 0.9}) == 0.003
    assert rates.untried({0.01: 0.9, 0.03: 0.9, 0.003: 0.9}) is None
    assert rates.untried({0.01: float("nan"), 0.03: 0.1}) == 0.1
    assert rates.untried({0.3: 0.1, 1.0: 0.2}) is None  # nothing lies beyond
    assert rates.at_the_edge({0.3: 0.1, 1.0: 0.2})


def test_a_study_grows_the_rates_of_the_best_option_alone(rates: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    papers = importlib.import_module("distill_papers_a")
    assert rates  # its folder is on the path
    asked: list[dict[str, Any]] = []

    def experiment(seed: Any) -> dict[str, float]:
        asked.append(seed.chosen["a"])
        options = seed.chosen["a"]
        return {"a": -abs(math.log(options["lr"] / 0.2)) - abs(options["k"] - 2), "b": 0.5}

    found, tried = papers.choose(experiment, papers.same("a", "b"), {"a": papers.rates(k=(1, 2))}, tmp_path)
    assert found == {"a": {"lr": 0.3, "k": 2}, "b": {"lr": 0.01}}
    assert [(o["lr"], o["k"]) for o in tried["a"]] == [(0.01, 1), (0.01, 2), (0.03, 1), (0.03, 2), (0.1, 2), (0.3, 2), (1.0, 2)]  # fmt: skip
    assert [o["lr"] for o in tried["b"]] == [0.01, 0.03, 0.003]
    assert all(number == 0 or asked[number] == asked[number - 1] for number in range(1, len(asked), 2))  # two seeds


def test_the_rate_of_an_outer_step_grows_as_well(rates: Any) -> None:
    papers = importlib.import_module("distill_papers_a")
    assert rates  # its folder is on the path
    options = [{"lr": lr, "outer_lr": outer} for lr in (0.01, 0.03) for outer in (0.001, 0.01)]

    def score(option: dict[str, float]) -> float:
        return -abs(math.log(option["lr"] / 0.025)) - abs(math.log(option["outer_lr"] / 0.0004))

    while further := papers.beyond(options, [score(o) for o in options]):
        options += further
    assert [(o["lr"], o["outer_lr"]) for o in options[4:]] == [(0.1, 0.001), (0.03, 0.0003), (0.01, 0.0003), (0.1, 0.0003), (0.03, 0.0001)]  # fmt: skip


def test_no_classical_distillation_is_judged_at_the_edge_of_its_rates(rates: Any) -> None:
    found = json.loads((RESULTS / "distill-baselines.json").read_text())
    rows = {"teachers": found["teachers"], **{k: v for table in found["accuracy"].values() for k, v in table.items()}}
    edges = [name for name, row in rows.items() if rates.at_the_edge({float(k): v for k, v in row["held"].items()})]
    assert not edges
    assert all(row["held"][str(row["lr"])] == max(row["held"].values()) for row in rows.values())


@pytest.mark.parametrize("result", sorted(RESULTS.glob("distill-*.json")), ids=lambda p: p.stem)
def test_no_study_whose_grid_grew_is_judged_at_the_edge(rates: Any, result: Path) -> None:
    tuning = json.loads(result.read_text()).get("tuning", {})
    for name, tried in tuning.get("scores", {}).items():
        if not isinstance(tried[0], dict):
            continue  # recorded with two rates for every condition
        best = tuning["chosen"][name]
        line = {o["lr"]: o["score"] for o in tried if all(o[k] == v for k, v in best.items() if k != "lr")}
        assert not rates.at_the_edge(line), name
