"""The measure room: figures worked by hand, laws of what was gained and lost, the page against its JSON, refusals."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import interfuse
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import Call, Source, apply, load_room, prepare
from interfuse.data.models import Model, open_model
from interfuse.data.reports import Report
from interfuse.data.tables import Table, from_dataset, open_table
from interfuse.kit import plots
from interfuse.kit.lineage import lineage
from interfuse.measure.classification import counts, words
from interfuse.measure.room import csv_bytes, predictions

VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8,
       "patch_size": 4, "num_channels": 1, "num_labels": 10}  # fmt: skip
RESNET = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic",
          "num_labels": 10}  # fmt: skip


class Answers(torch.nn.Module):
    """Says what it was told to say of the item whose number it reads."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[x[:, 0].long()]


def sure(classes: Sequence[int], count: int = 3, strength: float = 4.0) -> Answers:
    """A model that predicts these classes, all with the same confidence."""
    return Answers(strength * np.eye(count)[list(classes)])


def model(name: str, module: torch.nn.Module, **about: Any) -> Model:
    return Model(name, module=module, **about)


def table(labels: Sequence[Any], order: Sequence[int] | None = None, name: str = "toy") -> Table:
    """Items that are their own number, with ids, in some order."""
    order = list(range(len(labels))) if order is None else list(order)
    rows = {"x": [float(i) for i in order], "y": [str(labels[i]) for i in order], "key": [f"item-{i}" for i in order]}
    return from_dataset(Dataset.from_dict(rows), name, {"features": "x", "label": "y", "id": "key"})


def report(out: Path, *, seeds: Sequence[Sequence[Any]] = (), **inputs: Any) -> dict[str, Any]:
    """The report of one call."""
    made = apply("measure/classification", out=out, **inputs)
    assert isinstance(made, Report)
    return made.read()


def findings(replicas: Sequence[dict[str, Any]], **params: Any) -> Any:
    """What the method finds when every replica is one seed."""
    method, room = load("measure/classification"), load_room("measure")
    full = [{"validation": None, "against": [], **r} for r in replicas]
    call = Call(method, full[0], method.check({"resamples": 500, **params}), Ctx(), tuple(range(len(full))), full)
    room.check(call)
    return method.target(predictions(call), ctx=call.ctx, **call.params)


def code_of(**inputs: Any) -> str:
    with pytest.raises(InterfuseError) as caught:
        prepare(load_room("measure"), load("measure/classification"), inputs, Ctx())
    assert caught.value.what
    return caught.value.code


# ---------------------------------------------------------------------------------------------- by hand


LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
SOURCE = [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]  # right on items 0 1 2 4 5
FUSED = [0, 0, 1, 0, 1, 0, 1, 2, 2, 1]  # right on items 0 1 3 4 6 7 8


def test_a_toy_by_hand(tmp_path: Path) -> None:
    found = report(
        tmp_path / "r",
        models=[model("fused", sure(FUSED))],
        against=[model("source", sure(SOURCE))],
        data=table(LABELS),
    )
    source, fused = found["models"]
    assert (source["name"], source["role"], fused["name"], fused["role"]) == ("source", "source", "fused", "result")
    assert source["scores"]["accuracy"]["mean"] == 0.5
    assert fused["scores"]["accuracy"]["mean"] == 0.7
    assert "top5" not in fused["scores"]  # three classes
    p = np.exp(4) / (np.exp(4) + 2)  # of the class said; the others share the rest
    rest = (1 - p) / 2
    expected = {
        "nll": -(7 * np.log(p) + 3 * np.log(rest)) / 10,
        "brier": (7 * ((1 - p) ** 2 + 2 * rest**2) + 3 * (p**2 + (1 - rest) ** 2 + rest**2)) / 10,
        "ece": abs(0.7 - p),  # all confidences lie in one bin
        "adaptive_ece": abs(0.7 - p),
    }
    for name, value in expected.items():
        assert fused["scores"][name]["mean"] == pytest.approx(value, rel=1e-6), name
        assert fused["scores"][name]["n"] == 10
        assert fused["scores"][name]["sd"] is None  # one seed
    (against,) = found["comparisons"]
    assert [against[k]["items"] for k in ("gained", "kept", "lost", "never")] == [4, 3, 2, 1]
    assert against["delta"]["mean"] == pytest.approx(0.2)
    assert against["mcnemar_p"] == [pytest.approx(2 * (1 + 6 + 15) / 2**6)]  # 2 P(Bin(6, 1/2) <= 2)
    changes = {r["class"]: [r[k] for k in ("gained", "kept", "lost", "never")] for r in found["per_class"]["changes"]}
    assert changes == {"0": [1, 2, 1, 0], "1": [1, 1, 1, 0], "2": [2, 0, 0, 1]}
    recall = {(r["model"], r["class"]): (r["mean"], r["n"]) for r in found["per_class"]["recall"]}
    assert recall["fused", "0"] == (0.75, 4)
    assert recall["source", "2"] == (0, 3)
    assert found["confusion"]["fused"] == [[3, 1, 0], [1, 2, 0], [0, 1, 2]]
    assert found["best_source"] == "source"
    assert found["n"] == 10


def test_seeds_are_averaged_and_their_spread_is_told() -> None:
    data, source = table(LABELS), model("source", sure(SOURCE))
    found = findings(
        [{"models": [model("fused", sure(p))], "against": [source], "data": data} for p in (FUSED, LABELS)]
    )
    fixed, fused = found.figures["models"]
    assert fixed["fixed"]
    assert not fused["fixed"]
    score = fused["scores"]["accuracy"]
    assert score["seeds"] == [0.7, 1.0]
    assert score["mean"] == pytest.approx(0.85)
    assert score["sd"] == pytest.approx(0.3 / 2**0.5)
    assert fixed["scores"]["accuracy"]["sd"] == 0
    (against,) = found.figures["comparisons"]
    assert against["gained"]["seeds"] == [4, 5]
    assert against["gained"]["items"] == 4.5
    assert len(against["mcnemar_p"]) == 2


def test_a_uniform_model_is_at_chance_and_calibrated(tmp_path: Path) -> None:
    labels = [i % 4 for i in range(40)]
    found = report(tmp_path / "r", models=[model("uniform", Answers(np.zeros((40, 4))))], data=table(labels))
    scores = found["models"][0]["scores"]
    assert scores["accuracy"]["mean"] == 0.25
    assert scores["ece"]["mean"] == pytest.approx(0, abs=1e-9)
    assert scores["nll"]["mean"] == pytest.approx(np.log(4))
    assert found["comparisons"] == []
    assert found["best_source"] is None


def test_the_ensemble_is_the_mean_of_probabilities() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 10, 3)).astype(np.float32)
    found = findings([{"models": [model("m", sure(FUSED))], "against": [model("a", Answers(one)), model("b", Answers(two))],
                       "data": table(LABELS)}], ensemble=True)  # fmt: skip
    ensemble = found.contenders[-1]
    assert (ensemble.name, ensemble.role) == ("ensemble of sources", "reference")

    def softmax(z: Any) -> Any:
        return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)

    np.testing.assert_allclose(np.exp(ensemble.logits[0]), (softmax(one) + softmax(two)) / 2, rtol=1e-5)
    assert ensemble.parameters == 60
    assert {c["baseline"] for c in found.figures["comparisons"]} == {"a", "b", "ensemble of sources"}


def test_a_temperature_is_fitted_on_other_items() -> None:
    held = table([0, 1, 2, 0, 1, 2, 0, 1], name="held")
    held = dataclasses.replace(held, origin={"data": "elsewhere"}, columns={"features": "x", "label": "y"})
    bold = sure([0, 1, 2, 0, 1, 0, 1, 2, 0, 1], strength=9.0)
    found = findings([{"models": [model("bold", bold)], "data": table(LABELS), "validation": held}])
    (bold_row,) = found.figures["models"]
    after = bold_row["after_temperature"]
    # right on 5 of 8 held-out items: the temperature makes the confidence 5/8 = e^(9/T) / (e^(9/T) + 2)
    assert after["temperature"] == [pytest.approx(9 / np.log(2 * (5 / 8) / (3 / 8)), rel=1e-5)]
    assert after["nll"] < bold_row["scores"]["nll"]["mean"]


# ---------------------------------------------------------------------------------------------- laws


answers = st.lists(st.integers(0, 2), min_size=12, max_size=12)


@settings(max_examples=8)
@given(st.lists(st.tuples(answers, answers), min_size=1, max_size=3), answers)
def test_what_is_gained_and_lost_adds_up(runs: list[tuple[list[int], list[int]]], labels: list[int]) -> None:
    labels = [0, 1, 2, *labels[3:]]
    data = table(labels)
    found = findings([{"models": [model("m", sure(a))], "against": [model("s", sure([(x + 1) % 3 for x in a]) if a == b else sure(b))],
                       "data": data} for a, b in runs], resamples=100).figures  # fmt: skip
    (c,) = found["comparisons"]
    n = c["n"]
    assert c["gained"]["items"] - c["lost"]["items"] == pytest.approx(n * c["delta"]["mean"])
    assert sum(c[k]["items"] for k in ("gained", "kept", "lost", "never")) == pytest.approx(n)
    accuracy = {m["name"]: m["scores"]["accuracy"]["mean"] for m in found["models"]}
    assert accuracy["m"] - accuracy["s"] == pytest.approx(c["delta"]["mean"])
    for part in ("gained", "kept", "lost", "never"):
        assert sum(r[part] for r in found["per_class"]["changes"]) == pytest.approx(c[part]["items"])
        assert c[part]["low"] <= c[part]["items"] <= c[part]["high"]
    for m in found["models"]:
        for score in m["scores"].values():
            assert score["low"] <= score["mean"] + 1e-12
            assert score["mean"] <= score["high"] + 1e-12
    if c["delta"]["low"] <= 0 <= c["delta"]["high"]:
        assert c["verdict"] not in ("better", "worse")
    assert c["p_holm"] >= c["p"]


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1))
def test_never_better_when_the_interval_holds_nought(one: float, two: float, p: float) -> None:
    low, high = sorted((one, two))
    said = words(low, high, p)
    assert (said == "better") == (low > 0 and p <= 0.05)
    assert (said == "worse") == (high < 0 and p <= 0.05)


def test_rows_in_another_order_give_the_same_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 10, 3))
    inputs = {"models": [model("m", Answers(logits[0]))], "against": [model("s", Answers(logits[1]))]}
    report(tmp_path / "a", data=table(LABELS), **inputs)
    report(tmp_path / "b", data=table(LABELS, rng.permutation(10)), **inputs)
    names = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(names) >= 9
    for name in names:
        if name.name != "interfuse.json":  # which names the table by its content
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_better_and_worse_are_said_when_they_are_so() -> None:
    labels = [i % 3 for i in range(60)]
    wrong = [(y + 1) % 3 if i < 30 else y for i, y in enumerate(labels)]
    good, bad = model("good", sure(labels)), model("bad", sure([(y + 1) % 3 for y in labels]))
    same = model("same", sure(wrong, strength=5.0))
    found = findings(
        [{"models": [good, bad, same], "against": [model("source", sure(wrong))], "data": table(labels)}], margin=0.1
    )
    said = {c["model"]: c["verdict"] for c in found.figures["comparisons"]}
    assert said == {"good": "better", "bad": "worse", "same": "no difference shown: the interval contains 0"}
    assert found.notes[0].startswith(
        "Does fusion beat the best single source, source (0.500)? Yes for good (+50.0 points"
    )
    assert "not shown for same" in found.notes[0]
    assert "worse: bad" in found.notes[0]
    assert found.notes[1] == (
        "Of 60 items, beside source: good: 30 gained, 30 kept, 0 lost; bad: 0 gained, 0 kept, 30 lost; same: 0 gained, 30 kept, 0 lost."
    )
    gates = {c["model"]: c["margin"]["not_worse"] for c in found.figures["comparisons"]}
    assert gates == {"good": True, "bad": False, "same": True}


def test_the_first_note_says_no_when_no_model_is_shown_better() -> None:
    found = findings(
        [{"models": [model("m", sure(FUSED))], "against": [model("s", sure(SOURCE))], "data": table(LABELS)}]
    )
    assert found.notes[0].startswith("Does fusion beat the best single source, s (0.500)? No; not shown for m")
    assert any("Only 10 items" in note for note in found.notes)


# ---------------------------------------------------------------------------------------------- the files


class Page(HTMLParser):
    """Tags, text, and the cells of every table of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.values: list[tuple[float, str]] = []
        self.words: list[str] = []
        self._data: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        self._data = dict(attrs)["value"] if tag == "data" else None

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._data is not None:
            self.values.append((float(self._data), data))
            self._data = None
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip() + " "


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on real images: three small models with random weights."""
    out = tmp_path_factory.mktemp("measure") / "report"
    apply("measure/classification", models=[{"config": VIT}], against=[{"config": RESNET}, {"config": {**VIT, "hidden_size": 8}}],
          data={"data": "sklearn:digits", "limit": 300}, ensemble=True, resamples=500, out=out)  # fmt: skip
    return out


def test_the_page_says_what_the_json_says(made: Path) -> None:
    found = json.loads((made / "report.json").read_text())
    page = Page((made / "report.html").read_text())
    numbers = set()

    def walk(value: Any) -> None:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(item)
        if isinstance(value, int | float):
            numbers.update((float(value), float(value) * 100))

    walk(found)
    assert len(page.values) > 60
    for value, shown in page.values:
        assert value in numbers, f"{value} is in the page, not in the JSON"
        text = shown.replace("−", "-").replace(",", "")
        digits = len(text.split(".")[1]) if "." in text else 0
        assert text.startswith("<") or float(text) == pytest.approx(value, abs=0.51 * 10**-digits)
    for m in found["models"]:
        row = next(r for r in page.rows if r and r[0].strip() == m["name"])
        assert row[1].split()[0] == f"{m['scores']['accuracy']['mean']:.3f}"
    text = "".join(page.words)
    for note in found["notes"]:
        assert note in text


def test_the_page_is_whole_and_asks_nobody(made: Path) -> None:
    text = (made / "report.html").read_text()
    page = Page(text)
    assert not [t for t, _ in page.tags if t in ("script", "iframe", "object", "img", "link", "base", "form")]
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("href", "src", "xlink:href", "action"):
                assert value is not None
                assert value.startswith(("#", "plots/", "report.json")), (tag, value)
                assert value.startswith("#") or (made / value).is_file()
            assert not name.startswith("on")
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    pictures = [a for t, a in page.tags if t == "svg"]
    assert len(pictures) >= 9  # two scores, two of changes, classes, four of reliability, lineage
    assert all(len(a["aria-label"] or "") > 20 for a in pictures)
    assert "url(http" not in text
    assert "@import" not in text


def test_every_picture_has_its_numbers(made: Path) -> None:
    found = json.loads((made / "report.json").read_text())
    assert sorted(found["plots"].values()) == sorted(f"plots/{p.name}" for p in (made / "plots").iterdir())

    def rows(name: str) -> list[dict[str, str]]:
        with (made / found["plots"][name]).open(newline="") as file:
            return list(csv.DictReader(file))

    for row, c in zip(rows("changes"), found["comparisons"], strict=True):
        assert (row["model"], row["baseline"]) == (c["model"], c["baseline"])
        assert float(row["gained"]) - float(row["lost"]) == pytest.approx(c["n"] * c["delta"]["mean"], abs=1e-6)
    assert len(rows("scores")) == sum(len(m["scores"]) for m in found["models"])
    assert {(r["model"], float(r["recall"])) for r in rows("per_class")} == {
        (r["model"], r["mean"]) for r in found["per_class"]["recall"]
    }
    assert len(rows("lineage")) == len(found["lineage"]["edges"])


def test_the_log_has_every_item_and_gives_the_scores_again(made: Path) -> None:
    found = json.loads((made / "report.json").read_text())
    log = pyarrow.parquet.read_table(made / "items.parquet").to_pylist()
    assert list(log[0]) == ["id", "model", "seed", "label", "prediction", "correct", "p_true", "confidence"]
    assert len(log) == 300 * 4
    for m in found["models"]:
        own = [r for r in log if r["model"] == m["name"]]
        assert len({r["id"] for r in own}) == 300
        assert np.mean([r["correct"] for r in own]) == pytest.approx(m["scores"]["accuracy"]["mean"])
        assert -np.mean(np.log([r["p_true"] for r in own])) == pytest.approx(m["scores"]["nll"]["mean"])
        assert all(r["correct"] == (r["label"] == r["prediction"]) for r in own)


def test_names_stay_text(tmp_path: Path) -> None:
    evil = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "$\\frac{1}{0}$ --> {{ 7*7 }}", "=1+1"]
    labels = [evil[i % 4] for i in range(24)]
    codes = [sorted(evil).index(y) for y in labels]
    inputs = {
        "models": [model("<script>fused</script>\x1b[31m", sure(codes, 4))],
        "against": [model("=cmd|' /C calc'!A0", sure([0] * 24, 4))],
    }
    report(tmp_path / "r", data=table(labels, name="<b>data</b>"), **inputs)
    page = Page((tmp_path / "r" / "report.html").read_text())
    assert not [t for t, _ in page.tags if t in ("script", "img", "b")]
    assert not [n for _, a in page.tags for n in a if n.startswith("on")]
    text = "".join(page.words)
    assert "<script>alert(1)</script>" in text
    assert "{{ 7*7 }}" in text
    for file in (tmp_path / "r" / "plots").iterdir():
        with file.open(newline="") as lines:
            assert not [c for row in csv.reader(lines) for c in row if c[:1] in ("=", "+", "@")], file.name


def test_formulas_are_made_plain() -> None:
    assert csv_bytes(["a", "b"], [["=1+1", -0.5], ["plain", None]]) == b"a,b\n'=1+1,-0.5\nplain,\n"


def test_the_python_door_and_the_bytes(tmp_path: Path) -> None:
    inputs = [model("m", sure(FUSED))], [model("s", sure(SOURCE))], table(LABELS)
    first = interfuse.measure.classification(*inputs, out=tmp_path / "one")
    second = interfuse.measure.classification(*inputs, out=tmp_path / "two")
    assert first.fingerprint() == second.fingerprint()
    assert {p.name for p in first.path.iterdir()} == {
        "report.json",
        "items.parquet",
        "plots",
        "report.html",
        "interfuse.json",
    }
    for file in sorted(p for p in first.path.rglob("*") if p.is_file()):
        assert file.read_bytes() == (second.path / file.relative_to(first.path)).read_bytes(), file.name
    assert first.read()["table"]["rows"][1][:3] == ["m", "result", 0.7]


def test_the_lineage_runs_from_left_to_right_and_knows_folders(tmp_path: Path) -> None:
    data = {"data": "sklearn:digits", "limit": 40}
    source = apply("distill/none", student={"config": VIT}, data=data, epochs=1, out=tmp_path / "source").path
    fused = model(
        "fused", Answers(np.eye(10)), made_by="merge/linear", parents=(open_model(Source(str(source)), Ctx()),)
    )
    graph = lineage(
        [fused, from_dataset(Dataset.from_dict({"text": ["a"]}), "test")],
        into="report",
        made_by="measure/classification",
    )
    nodes, edges = graph["nodes"], graph["edges"]
    assert {(nodes[a]["name"], nodes[b]["name"]) for a, b in edges} == {
        ("vit", "source"), ("sklearn:digits", "source"), ("source", "fused"), ("fused", "report"), ("test", "report")}  # fmt: skip
    assert all(nodes[a]["layer"] < nodes[b]["layer"] for a, b in edges)
    assert next(n for n in nodes if n["name"] == "source")["made_by"] == "distill/none"
    text = "".join(Page(plots.lineage(graph).svg).words)
    assert all(n["name"] in text for n in nodes)


# ---------------------------------------------------------------------------------------------- roles, leaks, refusals


def test_what_was_not_made_from_the_sources_is_a_baseline() -> None:
    data, other = table(LABELS), table([0, 1], name="train")
    other = dataclasses.replace(other, origin={"data": "other"}, columns={"features": "x", "label": "y"})
    source = model("source", sure(SOURCE), made_by="distill/none", parents=(other,), key="s" * 64)
    middle = model("middle", sure(SOURCE), made_by="distill/kd", parents=(source, other), key="m" * 64)
    fused = model("fused", sure(FUSED), made_by="merge/linear", parents=(middle,), key="f" * 64)
    alone = model("alone", sure(LABELS), made_by="distill/none", parents=(other,), key="a" * 64)
    given = model("given", sure(FUSED, strength=3.0))
    found = findings([{"models": [fused, alone, given], "against": [source], "data": data}])
    assert {c.name: c.role for c in found.contenders} == {
        "source": "source",
        "fused": "result",
        "alone": "baseline",
        "given": "result",
    }
    assert "alone" not in found.notes[0]
    assert found.notes[1].startswith("Not made from the sources, so a baseline: alone")


def test_items_that_were_trained_on_are_refused_or_told() -> None:
    digits = {"data": "sklearn:digits", "split": {"train": 0.5, "test": 0.1}}

    def part(name: str) -> Table:
        return open_table(Source({"from": digits, "take": name}, name), Ctx())

    train, test = part("train"), part("test")
    vit = Model("vit", config=VIT, task="image-classification", made_by="distill/none", parents=(train,), key="k")
    grown = dataclasses.replace(vit, name="grown", made_by="merge/linear", parents=(vit,))
    prepare(load_room("measure"), load("measure/classification"), {"models": [grown], "data": test}, Ctx())
    assert code_of(models=[grown], data=train) == "input.leak"
    found = findings([{"models": [grown], "data": train}], allow_leak=True, resamples=100)
    assert f"grown was trained on {len(train)} of the {len(train)} items: its scores are too good." in found.notes
    assert code_of(models=[{"config": VIT}], data=test, validation=test) == "input.leak"
    with pytest.raises(InterfuseError, match="reads no validation table"):
        prepare(
            load_room("measure"),
            load("measure/cka"),
            {"models": [vit], "against": [grown], "data": test, "validation": train},
            Ctx(),
        )


def test_a_leak_is_known_from_the_artifact_itself(tmp_path: Path) -> None:
    data = {"data": "sklearn:digits", "limit": 40}
    made = apply("distill/none", student={"config": VIT}, data=data, epochs=1, out=tmp_path / "trained")
    assert code_of(models=[str(made.path)], data=data) == "input.leak"
    prepare(
        load_room("measure"),
        load("measure/classification"),
        {"models": [str(made.path)], "data": {"data": "sklearn:digits"}},
        Ctx(),
    )


def test_refusals_before_any_work() -> None:
    good = {"data": "sklearn:digits", "limit": 50}
    vit = {"config": VIT}
    assert code_of(models=[{"config": {**VIT, "num_labels": 7}}], data=good) == "input.shape"
    assert code_of(models=[vit], against=[{"config": {**RESNET, "num_labels": 3}}], data=good) == "input.shape"
    assert code_of(models=[vit], data={**good, "columns": {"image": "x"}, "shape": [8, 8]}) == "input.missing"
    assert code_of(models=[vit], data={**good, "limit": 1}) == "input.empty"
    assert code_of(models=[vit, vit], data=good) == "input.duplicate"
    assert code_of(models=[vit], against=[vit], data=good) == "input.duplicate"
    assert code_of(models=[vit], data=good, ensemble=True) == "param.missing"
    assert code_of(models=[vit], data=good, bin=3) == "param.unknown"
    assert code_of(models=[vit], data=good, bins=0) == "param.value"
    assert code_of(models=[{"config": {"model_type": "gpt2"}, "task": "causal-lm"}], data=good) == "input.type"
    names = {str(i): str(9 - i) for i in range(10)}
    assert code_of(models=[{"config": {**VIT, "id2label": names}}], data=good) == "input.shape"
    twice = Dataset.from_dict({"features": [0.0, 1.0], "label": ["a", "b"], "id": ["one", "one"]})
    assert code_of(models=[model("m", sure([0, 1]))], data=twice) == "input.duplicate"


def test_a_module_of_unknown_classes_is_refused_without_a_trace(tmp_path: Path) -> None:
    with pytest.raises(InterfuseError) as caught:
        apply("measure/classification", models=[model("m", sure(FUSED, 5))], data=table(LABELS), out=tmp_path / "r")
    assert caught.value.code == "input.shape"
    assert "m, toy" in caught.value.where
    assert not (tmp_path / "r").exists()


def test_two_models_of_one_name_are_told_apart() -> None:
    found = findings([{"models": [model("m", sure(FUSED)), model("m", sure(LABELS))], "data": table(LABELS)}])
    assert [c.name for c in found.contenders] == ["m (1)", "m (2)"]


def test_many_items_are_counted_to_the_last_one() -> None:
    row = {"model": "m", "gained": {"items": 1234.5}, "kept": {"items": 41207.0}, "lost": {"items": 0.0}}
    assert counts([row], "s", 50000) == "Of 50,000 items, beside s: m: 1,234.5 gained, 41,207 kept, 0 lost."


# ---------------------------------------------------------------------------------------------- what teachers know, layers


def test_flips_by_hand_most_promising_teacher_first(tmp_path: Path) -> None:
    labels = [0, 0, 1, 1, 2, 2]
    student = model("student", sure([0, 1, 1, 0, 2, 0]))  # right on items 0, 2 and 4
    strong, weak = model("strong", sure([0, 0, 1, 1, 2, 1])), model("weak", sure([1, 1, 0, 0, 0, 2]))
    made = interfuse.measure.flips([student], [strong, weak], table(labels), resamples=200, out=tmp_path / "r")
    read = made.read()
    first, second = read["pairs"]
    assert (first["baseline"], second["baseline"]) == ("strong", "weak")
    assert first["rho_pos"]["mean"] == pytest.approx(2 / 6)
    assert first["rho_neg"]["mean"] == 0
    assert [r["flips"] for r in first["per_class"]] == [1, 1, 0]
    assert first["entropy"] == pytest.approx(np.log(2))
    assert first["expertise"]["0.5"] == ["0"]
    assert (second["rho_pos"]["mean"], second["rho_neg"]["mean"]) == pytest.approx(
        (1 / 6, 3 / 6)
    )  # a weaker teacher has something
    assert second["accuracy_teacher"] - second["accuracy_student"] == pytest.approx(1 / 6 - 3 / 6)
    assert "may have most to learn from strong" in read["notes"][0]
    assert read["notes"][1].startswith("In that weak cannot be told from strong")
    assert first["behind_first"] is None
    assert second["behind_first"]["mean"] == pytest.approx(1 / 6)


def test_a_teacher_that_knows_more_is_told_from_one_that_knows_less() -> None:
    labels = [0, 1, 2] * 14
    wrong = [(k + 1) % 3 for k in labels]
    strong, weak = model("strong", sure(labels)), model("weak", sure(labels[:4] + wrong[4:]))
    read = interfuse.measure.flips([model("m", sure(wrong))], [weak, strong], table(labels), resamples=200).read()
    assert read["notes"][0].startswith("m has most to learn from strong: 100.0 percent")
    assert not any("cannot be told" in note for note in read["notes"])
    assert read["pairs"][1]["behind_first"]["low"] > 0.5


@pytest.mark.parametrize("method", ["flips", "cka"])
def test_what_compares_needs_something_to_compare_with(method: str) -> None:
    with pytest.raises(InterfuseError, match=r"param\.missing") as caught:
        apply(f"measure/{method}", models=[model("m", sure([0, 1, 0, 1]))], data=table([0, 1, 0, 1]))
    assert caught.value.where == "against"


class Turned(torch.nn.Module):
    """Two layers: one that can be turned and stretched, and a classifier."""

    def __init__(self, turn: torch.Tensor) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2)
        self.body.weight.data = turn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(x))
        return found


def test_layers_that_are_turned_and_stretched_are_alike(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.Philox(3))
    x = rng.normal(size=(40, 2))
    data = from_dataset(Dataset.from_dict({"x": x.tolist()}), "points", {"features": "x"})  # no labels
    plain, turned = torch.eye(2), 3 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    one_side = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    models = [model("turned", Turned(turned)), model("half", Turned(one_side))]
    said: list[str] = []
    read = interfuse.measure.cka(
        models, [model("plain", Turned(plain))], data, layers=["body", "nowhere"], batch=16, ctx=Ctx(log=said.append)
    ).read()
    assert [s for s in said if "nowhere" in s] == [
        f"{name}: no layer matches 'nowhere'" for name in ("plain", "turned", "half")
    ]
    alike = {p["model"]: p["cka"][0][0] for p in read["pairs"]}
    assert alike["turned"] == pytest.approx(1, abs=1e-5)
    assert alike["half"] < 0.95
    assert read["minibatches"] == 3
    with pytest.raises(InterfuseError, match=r"param\.value"):
        interfuse.measure.cka(models, [model("plain", Turned(plain))], data, layers=["nowhere"])
    few = dataclasses.replace(data, rows=data.rows[:3])
    with pytest.raises(InterfuseError, match="at least 4 items"):
        interfuse.measure.cka(models, [model("plain", Turned(plain))], few, layers=["body"])


def test_padding_says_nothing_of_a_text() -> None:
    from interfuse.measure.cka import as_rows

    feature = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rows = as_rows(feature, {"input_ids": torch.ones(2, 3), "attention_mask": mask})
    assert rows.tolist() == [[1, 2], [8, 9]]
    assert as_rows(feature, {"pixel_values": feature}).shape == (2, 6)
