"""``run``, ``report``, ``verify`` and ``cite`` on a recipe of the fake rooms."""

from __future__ import annotations

import json
import shutil

import pytest


def test_dry_run_prints_plan_and_cost_and_writes_nothing(fake, cli, cli_json):
    result = cli("run", "sum.yaml", "--dry-run")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["total", "toys/scale", "0,1", "to", "do", "2.0", "kB", "4.0", "MB", "6", "2", "min", "30", "s"] in rows
    assert (
        "to do: read 4.0 kB, write 8.0 MB, at most 12 endpoint calls, about 5 min 0 s; output: runs/sum"
        in result.stdout
    )
    plan = cli_json("run", "sum.yaml", "--dry-run")
    assert [row["step"] for row in plan["plan"]] == ["total", "total", "again", "again", "found"]
    assert plan["cost"]["calls"] == 12
    assert not (fake / "runs").exists()


def test_run_prints_the_report(fake, cli):
    result = cli("run", "sum.yaml", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert "What came out" in result.stdout
    assert [line.split() for line in result.stdout.splitlines() if line.strip().startswith("total")] == [
        ["total", "0", "9"],
        ["total", "1", "9"],
    ]
    assert "- scaled-down red" in result.stdout
    assert "report: out/steps/found/all/report.html" in result.stdout
    assert "[1/5]" in result.stderr
    assert "to do:" in result.stderr
    assert "to do:" not in result.stdout


def test_second_run_does_nothing_again(fake, cli, cli_json):
    first = cli_json("run", "sum.yaml", "-o", "out")
    stamp = (fake / "out/steps/total/seed-0/number.txt").stat().st_mtime_ns
    again = cli_json("run", "sum.yaml", "-o", "out")
    assert [row["state"] for row in first["plan"]] == ["to do"] * 5
    assert [row["state"] for row in again["plan"]] == ["done"] * 5
    assert (fake / "out/steps/total/seed-0/number.txt").stat().st_mtime_ns == stamp
    assert "5 of" not in cli("run", "sum.yaml", "-o", "out").stderr
    assert again["steps"]["total"] == "out/steps/total/seed-0"
    assert again["reports"][0]["table"]["columns"] == ["name", "seed", "value"]
    fresh = cli_json("run", "sum.yaml", "-o", "out", "--fresh")
    assert [row["state"] for row in fresh["plan"]] == ["to do"] * 5


def test_seeds_override_the_recipe(fake, cli, cli_json):
    assert cli_json("run", "sum.yaml", "-o", "out", "--seed", 5, "--seed", 6)["seeds"] == [5, 6]
    assert cli("run", "sum.yaml", "--seed", 5, "--seed", 5).exit_code == 2


@pytest.mark.parametrize(
    "old, new, code, exit_code",
    [
        ("toys/scale, numbers: [one", "toys/scael, numbers: [one", "method.unknown", 2),
        ("factor: 3", "factr: 3", "param.unknown", 2),
        ("[one, two]", "[one, tow]", "recipe.key", 3),
        ("numbers: [one, two]", "numbers: [again]", "recipe.cycle", 3),
        ("seeds: [0, 1]", "seeds: !!python/object [0]", "recipe.syntax", 3),
        ("one: a", "one: nowhere", "input.missing", 3),
    ],
)
def test_bad_recipes_name_their_line(fake, cli, old, new, code, exit_code):
    recipe = fake / "sum.yaml"
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    result = cli("run", "sum.yaml", "-o", "out")
    assert result.exit_code == exit_code
    assert code in result.stderr
    assert "where: sum.yaml:" in result.stderr
    assert not (fake / "out").exists()


def test_unknown_recipe_and_foreign_folder(fake, cli):
    assert cli("run", "nope.yaml").exit_code == 3
    assert cli("run", "nope").exit_code == 2
    (fake / "out").mkdir()
    (fake / "out" / "mine.txt").write_text("mine")
    assert cli("run", "sum.yaml", "-o", "out").exit_code == 3
    assert sorted(p.name for p in (fake / "out").iterdir()) == ["mine.txt"]


def test_report_of_run_and_artifact(fake, cli, cli_json):
    assert cli("run", "sum.yaml", "-o", "out").exit_code == 0
    for place in ("out", "out/steps/found/all"):
        assert "What came out" in cli("report", place).stdout
        assert cli("report", place, "--html").stdout == "out/steps/found/all/report.html\n"
        assert cli_json("report", place)["reports"][0]["report"]["title"] == "What came out"
        assert cli_json("report", place, "--html")["html"] == ["out/steps/found/all/report.html"]
    noted = cli("report", "out/steps/total/seed-0")
    assert noted.exit_code == 0
    assert "made by toys/" in noted.stdout
    assert cli_json("report", "out/steps/total/seed-0")["facts"][0]["path"] == "out/steps/total/seed-0"
    missing = cli("report", "out/steps/total/seed-0", "--html")
    assert missing.exit_code == 3
    assert "there is no report" in missing.stderr
    assert cli("report", "a").exit_code == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"table": {"columns": 1, "rows": []}}', "[" * 100_000])
def test_damaged_report_is_a_coded_error(fake, cli, text):
    assert cli("run", "sum.yaml", "-o", "out").exit_code == 0
    (fake / "out/steps/found/all/report.json").write_text(text)
    result = cli("report", "out")
    assert result.exit_code == 3
    assert "input.format" in result.stderr


def test_verify_finds_damage_and_gaps(fake, cli, cli_json):
    assert cli("run", "sum.yaml", "-o", "out").exit_code == 0
    assert len(cli_json("verify", "out")["artifacts"]) == 5
    assert "ok: every byte" in cli("verify", "out/steps/total/seed-1").stdout
    file = fake / "out/steps/total/seed-1/number.txt"
    file.write_text("8.0\n")
    result = cli("verify", "out")
    assert result.exit_code == 3
    assert "out/steps/total/seed-1: number.txt has other bytes" in result.stderr
    error = json.loads(cli("verify", "out", "--json").stdout)["error"]
    assert error["code"] == "artifact.damaged"
    shutil.rmtree(file.parent)
    gap = cli("verify", "out")
    assert gap.exit_code == 3
    assert "total (seed 1)" in gap.stderr
    assert cli("verify", "nowhere").exit_code == 3


def test_cite(fake, cli, cli_json):
    text = cli("cite", "toys/scale").stdout
    assert "@misc{scale1999," in text
    assert "A. Author and B. Author" in text
    assert cli("cite", "sum.yaml").stdout == text
    assert "gauge/look" in cli("cite", "sum.yaml").stderr
    assert cli("run", "sum.yaml", "-o", "out").exit_code == 0
    assert cli("cite", "out").stdout == text
    assert cli("cite", "out/steps/total/seed-0").stdout == text
    assert "@software{interfuse," in cli("cite").stdout
    assert [row["id"] for row in cli_json("cite", "sum.yaml")["bibtex"]] == ["toys/scale"]
    assert cli("cite", "toys/scael").exit_code == 2


def test_show(fake, cli, cli_json):
    card = cli_json("show", "toys/scale")
    assert card["params"][0]["flag"] == "--factor"
    assert card["params"][0]["range"] == "> 0 and <= 10"
    assert [p["name"] for p in card["params"]][:3] == ["factor", "top_k", "rounded"]
    assert [i["name"] for i in card["inputs"]] == ["numbers", "base", "side_notes"]
    assert card["claims"][0]["ours"] == "3.0"
    text = cli("show", "scale").stdout
    for words in (
        "Scaled sums",
        "Not for letters",
        "> 0 and <= 10",
        "@misc{scale1999",
        "rounds by default",
        "--side-notes",
    ):
        assert words in text, words
    assert cli("show", "scael").exit_code == 2


def test_a_page_is_wrapped_and_a_listing_is_not_unless_columns_says_so(cli, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert max(map(len, cli("list", "measure").stdout.splitlines())) > 150
    page = cli("show", "distill/kd").stdout.split("departs from the paper")[0]
    assert 100 < max(map(len, page.splitlines())) <= 120
    monkeypatch.setenv("COLUMNS", "60")
    lines = cli("list", "measure").stdout.splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.split()[:1] == ["measure/classification"] for line in lines)  # a name stays whole


def test_list(fake, cli, cli_json):
    rows = cli_json("list")
    assert [row["id"] for row in rows] == ["toys/break-off", "toys/scale", "gauge/look"]
    assert all(list(row) == ["id", "kind", "status", "title", "paper", "takes", "makes"] for row in rows)
    assert rows[1]["takes"] == "numbers"
    assert [row["id"] for row in cli_json("list", "gauge")] == ["gauge/look"]
    assert "numbers -> a report" in cli("list").stdout
    assert cli_json("list", "recipes") == []
    wrong = cli("list", "toy")
    assert wrong.exit_code == 2
    assert "Did you mean toys?" in wrong.stderr
