"""The study of merging: its grid, what it refuses, that it goes on where it stopped, and that its report follows from its cells."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.data.models import Model
from interfuse.merge import study as engine
from interfuse.merge.study import cells, check_family, identifier, merged, read_study, run_study
from interfuse.merge.study_digits import CHANGES, examples, make_family
from tests.conformance.fixtures import digits, image_table
from tests.tiny_models import tiny

GRID = """
study: 1
title: Tiny
seeds: [0, 1]
make: {sizes: {small: 6, large: 10}, bases: {weak: 1, strong: 3}, expert_epochs: 1}
held_in: [mirrored, flipped, turned]
held_out: [dimmed]
experts: [2, 3]
subsets: 2
methods:
  average: {use: linear}
  ties: {use: merge/ties, density: [0.2, 1.0], scale: 1.0}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "grid.yaml").write_text(GRID)
    return folder, run_study(folder / "grid.yaml", folder / "out", Ctx())


def test_every_cell_is_there_once_and_paired(done):
    folder, report = done
    study = read_study(folder / "grid.yaml")
    rows = [json.loads(line) for line in (folder / "out" / "cells.jsonl").read_text().splitlines()]
    assert len(rows) == len({r["id"] for r in rows}) == report["cells"] == 2 * 4 * (2 + 1) * 2
    assert report["merges"] == 2 * 4 * 3 * (1 + 2)
    for n in (2, 3):  # both methods merge the same sets, for every family and seed
        sets = {(r["size"], r["quality"], r["seed"], r["method"]): set() for r in rows}
        for r in rows:
            if r["n"] == n:
                sets[r["size"], r["quality"], r["seed"], r["method"]].add(tuple(r["experts_merged"]))
        assert len({frozenset(s) for s in sets.values()}) == 1
        assert len(next(iter(sets.values()))) == (2 if n == 2 else 1)
    assert {tuple(sorted(r["setting"].items())) for r in rows if r["method"] == "ties"} <= {(("density", d), ("scale", 1.0)) for d in (0.2, 1.0)}  # fmt: skip
    assert study.sets(2) == study.sets(2)


def test_numbers_are_those_of_plain_averages(done):
    """One cell again by hand: parameters averaged, accuracies divided by the experts'."""
    folder, _ = done
    study = read_study(folder / "grid.yaml")
    rows = [json.loads(line) for line in (folder / "out" / "cells.jsonl").read_text().splitlines()]
    row = next(
        r
        for r in rows
        if (r["size"], r["quality"], r["seed"], r["n"], r["method"]) == ("large", "strong", 1, 3, "average")
    )
    family = make_family(study, "large", "strong", 1)
    states = [family.experts[t].module.state_dict() for t in row["experts_merged"]]
    net = make_family(study, "large", "strong", 1).base.module
    net.load_state_dict({k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]})

    def accuracy(module, task):
        x, y = examples(task, "test")
        with torch.no_grad():
            return float((module(x).argmax(1) == y).float().mean())

    for task in row["experts_merged"]:
        assert row["held_in"][task] == pytest.approx(accuracy(net, task), abs=0.006)  # one picture may tip over
        assert row["experts"][task] == pytest.approx(accuracy(family.experts[task].module, task))
    assert row["held_out"]["dimmed"] == pytest.approx(accuracy(net, "dimmed"), abs=0.006)
    shares = [row["held_in"][t] / row["experts"][t] for t in row["experts_merged"]]
    assert row["held_in_normalised"] == pytest.approx(np.mean(shares))
    assert row["held_out_normalised"] == pytest.approx(row["held_out"]["dimmed"] / row["base"]["dimmed"])


def test_the_report_follows_from_the_cells(done):
    folder, report = done
    out = folder / "out"
    rows = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    strong, weak = ([np.mean([r["held_in_normalised"] for r in rows if (r["size"], r["quality"], r["n"], r["seed"]) == ("small", q, 2, s)])
                     for s in (0, 1)] for q in ("strong", "weak"))  # fmt: skip
    claim = report["claims"]["1 strong base above weak base, small, 2 experts"]
    assert claim["value"] == pytest.approx(np.mean(strong) - np.mean(weak))
    assert claim["low"] <= claim["value"] <= claim["high"]
    assert len([k for k in report["claims"] if k[0] == "4"]) == 4 + 2
    assert set(report["answers"]) == {"merge or multitask", "which setting", "how many experts"}
    table = list(csv.DictReader((out / "cells.csv").open()))
    assert len(table) == len(rows)
    curve = list(csv.DictReader((out / "curves" / "held-in-strong.csv").open()))
    assert {(r["size"], r["experts"]) for r in curve} == {(s, n) for s in ("small", "large") for n in ("2", "3")}
    small = np.mean(
        [
            [t["held_in_normalised"]["value"]]
            for t in report["table"]
            if (t["size"], t["quality"], t["experts"]) == ("small", "strong", 2)
        ]
    )
    assert float(next(r["mean"] for r in curve if r["size"] == "small" and r["experts"] == "2")) == pytest.approx(small)
    html = (out / "report.html").read_text()
    assert html.count("<svg") == 12
    assert "curves/held-out-large-weak.csv" in html


def test_it_goes_on_where_it_stopped(done, tmp_path, monkeypatch):
    folder, _ = done
    whole = (folder / "out" / "cells.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_text("".join(lines[:37]) + lines[37][:50])  # killed while it wrote
    made = []
    real = engine.run_cell
    monkeypatch.setattr(engine, "run_cell", lambda *a: made.append(a) or real(*a))
    run_study(folder / "grid.yaml", tmp_path, Ctx())
    assert (tmp_path / "cells.jsonl").read_text() == whole
    assert len(made) == len(lines) - 37
    for name in ("report.json", "report.html", "cells.csv", "study.json"):
        assert (tmp_path / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_another_grid_makes_its_cells_anew(done, tmp_path):
    folder, _ = done
    (tmp_path / "grid.yaml").write_text(GRID.replace("expert_epochs: 1", "expert_epochs: 2"))
    one, two = read_study(folder / "grid.yaml"), read_study(tmp_path / "grid.yaml")
    assert not {identifier(one, c) for c in cells(one)} & {identifier(two, c) for c in cells(two)}


def test_every_change_is_a_task_of_its_own():
    seen = {name: examples(name, "test")[0] for name in CHANGES}
    names = list(seen)
    for i, a in enumerate(names):
        assert seen[a].shape == (400, 64)
        assert float(seen[a].min()) >= 0
        assert float(seen[a].max()) <= 1
        assert all(not seen[a].equal(seen[b]) for b in names[i + 1 :])
    assert set(map(bytes, examples("plain", "choose")[0].numpy())).isdisjoint(
        map(bytes, examples("plain", "test")[0].numpy())
    )


BAD = [
    (("study: 1", "study: 2"), "recipe.key", "study: 1"),
    (("subsets: 2", "subset: 2"), "recipe.key", "subsets"),
    (("held_out: [dimmed]", "held_out: [turned]"), "input.leak", "turned"),
    (("[mirrored, flipped, turned]", "[mirrored, flipped, flipped]"), "input.duplicate", "flipped"),
    (("experts: [2, 3]", "experts: [2, 4]"), "param.value", "4"),
    (("{use: linear}", "{used: linear}"), "recipe.key", "use"),
    (("{use: linear}", "{use: lineer}"), "method.unknown", "linear"),
    (("density: [0.2, 1.0]", "density: [0.2, 1.5]"), "param.value", "density"),
    (("density: [0.2, 1.0]", "dencity: 1.0"), "param.unknown", "density"),
    (("{use: linear}", "{use: slerp}"), "param.value", "2 models"),
    (("make: {", "families: []\nmake: {"), "recipe.key", "either"),
    (("methods:", "methods: {}\nmore:"), "recipe.key", "more"),
    (("flipped, turned", "flipped, turnd"), "recipe.key", "turned"),
    (("expert_epochs: 1", "expert_epoch: 1"), "recipe.key", "expert_epochs"),
    (("study: 1", "study: [1"), "recipe.syntax", ""),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "says"), BAD)
def test_wrong_grids_are_refused_before_work(change, code, says, tmp_path):
    text = GRID.replace(*change)
    assert text != GRID
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(InterfuseError) as caught:
        run_study(tmp_path / "grid.yaml", tmp_path / "out", Ctx())
    assert caught.value.code == code, caught.value
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_expert_that_knows_nothing_is_named(done, monkeypatch, tmp_path):
    folder, _ = done
    study = read_study(folder / "grid.yaml")
    family = make_family(study, "small", "weak", 0)
    hopeless = engine.Task("mirrored", lambda m: np.zeros(3), lambda m: np.zeros(3))
    with pytest.raises(InterfuseError, match="mirrored") as caught:
        engine.run_cell(
            study,
            family,
            dict.fromkeys((*study.held_in, *study.held_out), hopeless),
            ("mirrored", "flipped"),
            "average",
            {},
            Ctx(),
        )
    assert caught.value.code == "input.shape"


def test_experts_are_different_models_of_one_base():
    def net(width, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Model("m", module=torch.nn.Sequential(torch.nn.Linear(3, width)))

    check_family(net(4, 0), {"a": net(4, 1), "b": net(4, 2)})
    for experts, code in (
        ({"a": net(4, 1), "b": net(4, 1)}, "input.duplicate"),
        ({"a": net(4, 1), "b": net(5, 2)}, "input.shape"),
    ):
        with pytest.raises(InterfuseError) as caught:
            check_family(net(4, 0), experts)
        assert caught.value.code == code
        assert "'b'" in caught.value.what


OWN = """
study: 1
families:
- {name: mine, size: tiny, quality: given, base: llama-base, experts: {one: llama-x, two: llama-y}}
tasks:
  one: {choose: {data: a.parquet}, test: {data: b.parquet}}
  two: {choose: {data: b.parquet}, test: {data: a.parquet}}
  new: {choose: {data: a.parquet}, test: {data: b.parquet}}
held_in: [one, two]
held_out: [new]
experts: [2]
methods: {average: {use: linear}, ties: {use: ties, density: [0.5, 1.0]}}
"""


def test_models_of_ones_own(tmp_path, monkeypatch):
    """Language models in folders, scored by the probability of a text's tokens."""
    from tests import tiny_texts

    for name in ("base", "x", "y"):
        tiny_texts.tokenizer(tiny(tmp_path, "llama", name))
    texts = tiny_texts.sentences(8)[0]
    for file, rows in (("a", texts[:4]), ("b", texts[4:])):
        Dataset.from_dict({"text": rows}).to_parquet(tmp_path / f"{file}.parquet")
    (tmp_path / "grid.yaml").write_text(OWN)
    report = run_study(tmp_path / "grid.yaml", tmp_path / "out", Ctx())
    row = json.loads((tmp_path / "out" / "cells.jsonl").read_text().splitlines()[0])
    import transformers

    state = [transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"llama-{n}") for n in ("x", "y")]
    mean = state[0]
    with torch.no_grad():
        for p, q in zip(mean.parameters(), state[1].parameters(), strict=True):
            p.copy_((p + q) / 2)
        tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama-x")
        scores = []
        for text in texts[4:]:
            ids = tokens(text, return_tensors="pt")["input_ids"]
            scores.append(float(torch.exp(-mean(input_ids=ids, labels=ids).loss)))
    assert row["held_in"]["one"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert row["held_out"]["new"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert set(report["claims"]) == {"3 held-out above the base, tiny given, 2 experts"}
    for change, code in ((("two: llama-y", "two: llama-x"), "input.duplicate"), (("test: {data: b.parquet}}\n  two", "test: {data: a.parquet}}\n  two"), "input.leak"),
                         (("  new: {", "  newer: {"), "input.missing"), ((", two: llama-y", ""), "input.missing"), (("size: tiny", "sise: tiny"), "recipe.key")):  # fmt: skip
        assert change[0] in OWN
        (tmp_path / "grid.yaml").write_text(OWN.replace(*change))
        with pytest.raises(InterfuseError) as caught:
            run_study(tmp_path / "grid.yaml", tmp_path / "no", Ctx())
        assert caught.value.code == code, caught.value


def test_labelled_tables_are_scored_right_or_wrong(tmp_path):
    from interfuse.core.rooms import Source
    from interfuse.data.models import open_model
    from interfuse.data.tables import open_table
    from tests.conformance.fixtures import checkpoint

    table = open_table(Source(image_table(tmp_path)), Ctx())
    model = open_model(Source(checkpoint(tmp_path, "vit", "base")), Ctx())
    score = engine.score_of(table, Ctx())(model)
    assert score.shape == (len(digits()[1]),)
    assert set(np.unique(score)) <= {0.0, 1.0}


def test_the_verb(done, capsys):
    from click.testing import CliRunner

    from interfuse.merge.verbs import VERBS

    folder, report = done
    result = CliRunner().invoke(VERBS["study"], [str(folder / "grid.yaml"), "-o", str(folder / "out"), "--json"])
    assert json.loads(result.stdout)["claims"] == json.loads(json.dumps(report["claims"]))
    plain = CliRunner().invoke(VERBS["study"], [str(folder / "grid.yaml"), "-o", str(folder / "out")])
    assert "report: " in plain.stdout
    assert "strong base above weak base" in plain.stdout
    dry = CliRunner().invoke(VERBS["study"], [str(folder / "grid.yaml"), "--dry-run"])
    assert dry.stdout.startswith("48 cells, 72 merges")
    study = read_study(folder / "grid.yaml")
    volume = by_hand(study)
    assert f"{volume:,} bytes read and computed in about" in dry.stdout
    assert study.volume() == {"bytes": volume, "seconds": round(volume / 5e8, 1)}
    assert "embeddings, norms and output heads" in report["merged"]
    assert report["merged"] in (folder / "out" / "report.html").read_text()


def by_hand(study):
    """What all merges of a grid of nets read and compute: the weights of every net made, counted once for each time."""
    total = 0
    for size, quality in study.labels:
        for seed in study.seeds:
            one = sum(p.nbytes for p in make_family(study, size, quality, seed).base.module.parameters())
            for name, (slug, _) in study.methods.items():
                passes = {"linear": 1, "ties": 2}[slug]
                bases = 0 if slug == "linear" else 1
                for count in study.counts:
                    merges = len(study.sets(count)) * len(study.settings(name))
                    total += merges * one * (passes * (count + bases) + 1)
    return total


def test_merged_models_keep_their_kind(done):
    folder, _ = done
    study = read_study(folder / "grid.yaml")
    family = make_family(study, "small", "weak", 0)
    before = {k: v.clone() for k, v in family.base.module.state_dict().items()}
    made = merged(family, ["mirrored"], "ties", {"density": 1.0}, Ctx())
    for k, v in made.module.state_dict().items():
        torch.testing.assert_close(v, family.experts["mirrored"].module.state_dict()[k], rtol=1e-6, atol=1e-7)
        assert family.base.module.state_dict()[k].equal(before[k])


LOOKING = (
    GRID.replace("seeds: [0, 1]", "seeds: [0]").replace("[0.2, 1.0], scale: 1.0}", "1.0}")
    + """
  fisher: {use: fisher, fisher_norm: [none, model]}
  regmean: {use: regmean}
  aim: {use: aim, keep: 0.4}
  sens: {use: sens}
  acm: {use: acm}
"""
)


def test_methods_that_look_at_models_at_work(tmp_path, monkeypatch):
    """Every expert is looked at with its own task's pictures, once; the merge is that of the room's own method."""
    import interfuse
    from interfuse.merge import calibrate

    (tmp_path / "grid.yaml").write_text(LOOKING)
    study = read_study(tmp_path / "grid.yaml")
    passes, real = [], calibrate.run_pass
    monkeypatch.setattr(calibrate, "run_pass", lambda loaded, table, *a, **k: passes.append((len(loaded), table.name)) or real(loaded, table, *a, **k))  # fmt: skip
    run_study(tmp_path / "grid.yaml", tmp_path / "out", Ctx(cache=tmp_path / "cache"))
    rows = [json.loads(line) for line in (tmp_path / "out" / "cells.jsonl").read_text().splitlines()]
    assert len(rows) == study.cost()["cells"] == 4 * 3 * 7
    assert study.cost()["looks"] == sum(count for count, _ in passes)
    assert any(name == "mirrored: calibrate, flipped: calibrate, turned: calibrate" for _, name in passes)  # aim's base
    family = make_family(study, "large", "strong", 0)
    tasks = engine_tasks(study)
    names = ("mirrored", "flipped", "turned")
    made = merged(
        family,
        names,
        "fisher",
        {"fisher_norm": "model"},
        Ctx(cache=tmp_path / "cache"),
        [tasks[n].calibrate for n in names],
    )
    own = interfuse.merge.fisher([family.experts[n].module for n in names], calibration=[tasks[n].calibrate for n in names], fisher_norm="model",
                                 reuse_statistics=False, out=tmp_path / "own")  # fmt: skip
    from safetensors.torch import load_file

    for name, value in load_file(own.path / "model.safetensors").items():
        torch.testing.assert_close(made.module.state_dict()[name], value)


def engine_tasks(study):
    from interfuse.merge.study_digits import tasks

    return tasks(study)


def test_tables_to_look_with_are_named_and_not_those_of_the_test(tmp_path, monkeypatch):
    from tests import tiny_texts

    for name in ("base", "x", "y"):
        tiny_texts.tokenizer(tiny(tmp_path, "llama", name))
    texts = tiny_texts.sentences(12)[0]
    for file, rows in (("a", texts[:4]), ("b", texts[4:8]), ("c", texts[8:])):
        Dataset.from_dict({"text": rows}).to_parquet(tmp_path / f"{file}.parquet")
    good = OWN.replace("{choose", "{calibrate: {data: c.parquet}, choose").replace(
        "ties: {use: ties, density: [0.5, 1.0]}", "fisher: {use: fisher}, aim: {use: aim, calibration_length: 32}"
    )
    (tmp_path / "grid.yaml").write_text(good)
    report = run_study(tmp_path / "grid.yaml", tmp_path / "out", Ctx(cache=tmp_path / "cache"))
    assert report["cells"] == 3
    grids = {
        "recipe.key": [(good.replace("one: {calibrate: {data: c.parquet}, ", "one: {"), "grid.yaml:12"), (good.replace("calibrate:", "calibrat:", 1), "calibrat")],
        "input.leak": [(good.replace("one: {calibrate: {data: c.parquet}", "one: {calibrate: {data: b.parquet}"), "one")],
        "input.shape": [(good.replace("one: {calibrate: {data: c.parquet}", "one: {calibrate: {data: c.parquet, columns: {text: text, id: text}}"), "columns")],
    }  # fmt: skip
    for code, cases in grids.items():
        for text, says in cases:
            assert text != good
            (tmp_path / "grid.yaml").write_text(text)
            with pytest.raises(InterfuseError) as caught:
                run_study(tmp_path / "grid.yaml", tmp_path / "no", Ctx(cache=tmp_path / "cache"))
            assert caught.value.code == code, caught.value
            assert says in str(caught.value), caught.value
