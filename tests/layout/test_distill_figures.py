"""The figures in the cards of the distill room are the recorded ones, and every claim has some or says why not."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from interfuse.core.card import read_card

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "src" / "interfuse" / "distill"
RESULTS = ROOT / "benchmarks" / "results"
PAPERS = ("tgeo-kd", "mix-kd", "trg", "kd3", "dhkd", "nd-kd", "fantastic-gains", "hard", "diswot", "ofa-kd", "bd-kd")
CLASSICAL = ("fitnets", "at", "sp", "rkd", "crd", "dkd", "dist", "dml", "logit-standardisation", "reviewkd")
#: numbers in the claims that are settings, or the bound a p is held against
SET = {"nd-kd": {"0.3"}, "fantastic-gains": {"0.9999", "0.99"}, "ofa-kd": {"1.5"}, "tgeo-kd": {"0.05"}, "dhkd": {"10"}}
DECIMAL = r"[+-]?\d+\.\d+"
INTERVAL = re.compile(rf"({DECIMAL}) \[({DECIMAL}), ({DECIMAL})\]")
P = re.compile(r"\bp (?:[a-z]+ )?(\d\.\d+)")


def rounds(shown: str, recorded: float) -> bool:
    """Whether a number is the recorded one at the places that are shown (results keep five of its digits)."""
    places = len(shown.partition(".")[2])
    return abs(float(shown) - recorded) <= 0.5 * 10**-places + 1e-5 * abs(recorded) + 1e-12


class Recorded:
    """Differences with their intervals, and every single number, of the results of a method."""

    def __init__(self, *results: Mapping[str, Any]) -> None:
        self.differences: list[tuple[float, float, float]] = []
        self.ps: list[float] = []
        self.above: set[tuple[int, int]] = set()
        self.numbers: list[float] = []
        for result in results:
            self.numbers.append(result.get("processor_seconds", 0.0))
            for row in result["comparisons"]:
                low, high = (row[k] if row[k] is not None else float("nan") for k in ("low", "high"))
                self.differences += [(row["difference"], low, high), (-row["difference"], -high, -low)]
                self.ps += [row["p"]] if row["p"] is not None else []
                above, seeds = row["seeds_above"], result["n"]
                self.above |= {(above, seeds), (seeds - above, seeds)}
                self.numbers += [row[k] for k in ("baseline", "candidate", "difference")]
            names = dict.fromkeys(k for row in result["rows"] for k in row)
            for name in names:
                found = [row[name] for row in result["rows"] if name in row]
                self.numbers += [sum(found) / len(found), min(found), max(found)]

    def wrong(self, text: str, settings: Collection[str] = ()) -> Iterator[str]:
        """Figures of a text that are not among the recorded ones."""
        for match in INTERVAL.finditer(text):
            if not any(all(map(rounds, match.groups(), row)) for row in self.differences):
                yield match[0]
        text = re.sub(rf" \[{DECIMAL}, {DECIMAL}\]", "", text)
        yield from (m[0] for m in P.finditer(text) if not any(rounds(m[1], p) for p in self.ps))
        text = P.sub("", text)
        for number, percent in re.findall(rf"(?<![\w.])({DECIMAL}|\d+(?= %))( %)?", text):
            scale = 100.0 if percent else 1.0
            bare = number.lstrip("+-")
            if bare not in settings and not any(rounds(bare, scale * abs(n)) for n in self.numbers):
                yield number + percent
        for above, seeds in re.findall(r"(\d+) of (\d+) seeds", text):
            if (int(above), int(seeds)) not in self.above:
                yield f"{above} of {seeds} seeds"


def of(method: str) -> Recorded:
    files = [RESULTS / f"distill-{method}.json", *sorted(RESULTS.glob(f"distill-{method}-*.json"))]
    return Recorded(*(json.loads(f.read_text("utf-8")) for f in files))


@pytest.mark.parametrize("method", PAPERS)
def test_a_papers_claims_have_the_recorded_figures(method: str) -> None:
    recorded = of(method)
    claims = read_card(CARDS / f"{method.replace('-', '_')}.md").claims
    assert claims
    for claim in claims:
        bare = "not measured" in claim.ours
        assert claim.ours, claim.what
        assert bare or claim.shown == "yes" or claim.why, f"{claim.what}: no reason"
        for text in ("" if bare else claim.ours, claim.why):
            assert not list(recorded.wrong(text, SET.get(method, ()))), claim.what


@pytest.mark.parametrize("method", CLASSICAL)
def test_a_classical_distillation_has_the_recorded_points(method: str) -> None:
    """Points against labels alone and against KD, with p, of the table of baselines."""
    rows = json.loads((RESULTS / "distill-baselines.json").read_text("utf-8"))["accuracy"]["convnext"]
    measured = [c for c in read_card(CARDS / f"{method.replace('-', '_')}.md").claims if "not measured" not in c.ours]
    assert measured
    for claim in measured:
        against = dict(re.findall(r"against (labels alone|KD) ([^;]*)", claim.ours))
        assert sorted(against) == ["KD", "labels alone"]
        for name, text in against.items():
            row = rows[method]["minus_kd" if name == "KD" else "minus_none"]
            shown = INTERVAL.search(text)
            assert shown
            assert all(rounds(s, 100 * row[k]) for s, k in zip(shown.groups(), ("difference", "low", "high"), strict=True)), text  # fmt: skip
            p = P.search(text)
            assert rounds(p[1], row["p"]) if p else row["p"] < 0.001, text
        assert claim.shown == "yes" or claim.why


def test_a_wrong_figure_is_found() -> None:
    row = {"difference": 0.0735, "low": 0.05453, "high": 0.0937, "baseline": 0.5729, "candidate": 0.6464, "p": 0.0019531, "seeds_above": 9}  # fmt: skip
    recorded = Recorded({"comparisons": [row], "rows": [{"a": 0.25}, {"a": 0.75}], "n": 10})
    assert not list(
        recorded.wrong("0.646 against 0.573, +0.0735 [0.055, 0.094], p 0.002, 9 of 10 seeds; a half is 50 %")
    )
    assert not list(recorded.wrong("-0.0735 [-0.094, -0.055], 1 of 10 seeds"))
    assert list(recorded.wrong("0.656, +0.0735 [0.056, 0.094], p 0.003, 8 of 10 seeds, 51 %")) == [
        "+0.0735 [0.056, 0.094]", "p 0.003", "0.656", "51 %", "8 of 10 seeds"]  # fmt: skip
