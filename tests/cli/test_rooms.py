"""Room verbs: generated flags, what they do, and how they refuse."""

from __future__ import annotations

import json
import shlex

import pytest

from interfuse.core import index


def test_room_alone_lists_methods(fake, cli, cli_json):
    shown = cli("toys").stdout
    assert "scale" in shown
    assert "Scaled sums of numbers" in shown
    assert "break-off" in shown
    assert "interfuse toys count" in shown
    assert [row["id"] for row in cli_json("toys")] == ["toys/break-off", "toys/scale"]


def test_room_help_names_methods_and_further_verbs(fake, cli):
    text = cli("toys", "--help").stdout
    assert "Scaled sums of numbers" in text
    assert "Count to three" in text
    assert "leave out" not in text


def test_further_verb_runs(fake, cli):
    assert cli("toys", "count").stdout == "three\n"
    assert cli("toys", "cuont").exit_code == 2


def test_method_help_has_description_ranges_defaults_example(fake, cli):
    text = cli("toys", "scale", "--help").stdout
    for words in ("Scaled sums of numbers (1999)", "Adds the numbers", "--factor float", "> 0 and <= 10; default: 2", "--top-k int",
                  "--rounded / --no-rounded", "default: yes", "plain | fancy", "interfuse toys scale [OPTIONS] NUMBERS...", "files with one number each", "--side-notes",
                  "interfuse toys scale A B --factor 2 -o out/"):  # fmt: skip
        assert words in " ".join(text.split()), words
    assert "Not for letters" not in text


def test_example_of_the_help_parses(fake, cli):
    line = next(s for s in cli("toys", "scale", "--help").stdout.splitlines() if s.strip().startswith("interfuse toys"))
    words = ["a" if w == "A" else "b" if w == "B" else w for w in shlex.split(line)[1:]]
    result = cli(*words, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert not (fake / "out").exists()


@pytest.mark.parametrize(
    "flags, value",
    [
        ([], 6.0),
        (["--factor", "0.5"], 2.0),
        (["--factor", "0.5", "--no-rounded"], 1.5),
        (["--top-k", "1"], 4.0),
        (["--top_k", "1"], None),
        (["--weights", "10,20"], 100.0),
        (["--weights", "[10, 20]"], 100.0),
        (["--weights", "none"], 6.0),
        (["--shifts", "1"], 10.0),
        (["--shifts", "1,2"], 12.0),
        (["--names", '{"x": 4}'], 10.0),
        (["--base", "b"], 10.0),
        (["--base", '{"value": 2}'], 10.0),
        (["--mode", "fancy", "--note", "none"], 6.0),
    ],
)
def test_flags_reach_the_method(fake, cli, flags, value):
    result = cli("toys", "scale", "a", "b", "-o", "out", *flags, "--json")
    if value is None:
        assert result.exit_code == 2
        assert "--top-k" in json.loads(result.stdout)["error"]["fix"]
        return
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["facts"]["value"] == value
    assert float((fake / "out" / "number.txt").read_text()) == value


@pytest.mark.parametrize(
    "flags, code, exit_code, words",
    [
        (["a", "--factor", "0"], "param.value", 2, "> 0"),
        (["a", "--factor", "many"], "param.value", 2, "float"),
        (["a", "--mode", "fany"], "param.value", 2, "plain"),
        (["a", "--weights", "[1,"], "param.value", 2, "JSON"),
        (["a", "--base", "{1"], "param.value", 2, "JSON"),
        (["a", "--factr", "1"], "param.unknown", 2, "--factor"),
        (["a", "--dtype", "float3"], "param.value", 2, "float32"),
        (["a", "--seed", "x"], "param.value", 2, "--seed"),
        (["a", "--base", "b", "--factor"], "param.value", 2, "argument"),
        ([], "param.missing", 2, "numbers"),
        (["c"], "input.missing", 3, "there is no such number"),
    ],
)
def test_mistakes_are_refused_before_work(fake, cli, flags, code, exit_code, words):
    result = cli("toys", "scale", *flags, "-o", "out", "--json") if flags[-1:] != ["--factor"] else cli(
        "toys", "scale", "--json", "-o", "out", *flags)  # fmt: skip
    assert result.exit_code == exit_code
    error = json.loads(result.stdout)["error"]
    assert error["code"] == code
    assert words in error["what"] + error["fix"]
    assert not (fake / "out").exists()


def test_required_parameter(fake, cli):
    result = cli("toys", "break-off", "a")
    assert result.exit_code == 2
    assert "param.missing" in result.stderr
    assert "'how'" in result.stderr


def test_unknown_method_has_a_suggestion(fake, cli):
    result = cli("toys", "scael")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Did you mean scale?" in result.stderr


@pytest.mark.parametrize("how, exit_code", [("budget", 4), ("crash", 1), ("failed", 1)])
def test_exit_codes_of_work_that_fails(fake, cli, how, exit_code):
    result = cli("toys", "break-off", "a", "--how", how, "-o", "out")
    assert result.exit_code == exit_code
    assert not (fake / "out").exists()


def test_unforeseen_errors_take_one_line_and_a_hint(fake, cli):
    result = cli("toys", "break-off", "a", "--how", "crash", "-o", "out", "-q")
    assert result.stderr.splitlines()[1:] == [  # after the line the fake room prints
        "ValueError: something unforeseen",
        "  fix: Add --debug to see where it happened.",
    ]
    assert "Traceback" in cli("toys", "break-off", "a", "--how", "crash", "-o", "out", "--debug").stderr


def test_coded_errors_say_code_what_where_fix(fake, cli):
    result = cli("toys", "break-off", "a", "--how", "failed", "-o", "out", "-q")
    assert [line.strip() for line in result.stderr.splitlines() if line.strip()][-3:] == [
        "run.failed: it broke",
        "where: the middle",
        "fix: Mend it.",
    ]
    error = json.loads(cli("toys", "break-off", "a", "--how", "failed", "-o", "out", "--json").stdout)["error"]
    assert error == {"code": "run.failed", "what": "it \x1b[31mbroke\x1b[0m", "where": "the middle", "fix": "Mend it."}


def test_dry_run_writes_nothing_and_prices(fake, cli, cli_json):
    before = sorted(p.name for p in fake.iterdir())
    plan = cli_json("toys", "scale", "a", "b", "--dry-run", "-o", "out")
    assert plan["cost"] == {
        "bytes_read": 1000,
        "bytes_written": 2_000_000,
        "calls": 3,
        "seconds": 75.0,
        "tokens": 0,
        "memory": 0,
    }
    assert plan["params"]["factor"] == 2.0
    text = cli("toys", "scale", "a", "b", "--dry-run", "-o", "out").stdout
    assert "read 1.0 kB, write 2.0 MB, at most 3 endpoint calls, about 1 min 15 s" in text
    assert sorted(p.name for p in fake.iterdir()) == before


def test_output_is_not_overwritten_without_force(fake, cli):
    assert cli("toys", "scale", "a", "-o", "out").exit_code == 0
    again = cli("toys", "scale", "b", "-o", "out")
    assert again.exit_code == 3
    assert "output.exists" in again.stderr
    assert cli("toys", "scale", "b", "-o", "out", "--dry-run").exit_code == 3
    assert (fake / "out" / "number.txt").read_text() == "2.0\n"
    assert cli("toys", "scale", "b", "-o", "out", "--force").exit_code == 0
    assert (fake / "out" / "number.txt").read_text() == "4.0\n"


def test_default_output_place(fake, cli_json):
    assert cli_json("toys", "scale", "a")["path"] == "runs/toys-scale"


def test_seed_and_dtype_reach_the_manifest(fake, cli):
    assert cli("toys", "scale", "a", "-o", "out", "--seed", "7", "--dtype", "bfloat16").exit_code == 0
    manifest = json.loads((fake / "out" / "interfuse.json").read_text())
    assert manifest["seeds"] == [7]
    assert manifest["dtype"] == "bfloat16"


def test_progress_is_plain_lines_on_stderr(fake, cli, monkeypatch):
    monkeypatch.setattr("interfuse.cli.progress.BRIEF", 0.0)
    result = cli("toys", "scale", "a", "b", "-o", "out")
    assert "adding: 2 numbers in" in result.stderr
    assert "where it should not" in result.stderr
    assert "adding" not in result.stdout
    assert "where it should not" not in result.stdout
    assert "adding" not in cli("toys", "scale", "a", "b", "-o", "out2", "--quiet").stderr


def test_broken_card_of_one_method_names_itself(fake, cli, monkeypatch):
    entry = index.Entry("toys/ghost", "method", index.entries()["toys/scale"].card_path, "interfuse.toys.ghost")
    monkeypatch.setattr(index, "entries", lambda: {"toys/ghost": entry})
    result = cli("toys", "ghost")
    assert result.exit_code == 3
    assert "method.card" in result.stderr


def test_a_rooms_default_method_may_go_unnamed(fake, cli):
    assert cli("toys", "scale", "a", "-o", "out").exit_code == 0
    result = cli("gauge", "out", "-o", "seen")
    assert result.exit_code == 0, result.stderr
    assert "What came out" in result.stdout
    assert "report: seen/report.html" in result.stdout
    wrong = cli("gauge", "lok", "-o", "seen2")
    assert wrong.exit_code == 2
    assert "Did you mean look?" in wrong.stderr
    assert cli("toys", "a").exit_code == 2


def test_help_begins_with_words_not_with_a_heading(fake, cli):
    from interfuse.cli.rooms import _first_words

    assert _first_words("# What it does\n\nScores every choice.\n\nMore.") == "Scores every choice."
    assert _first_words("") == ""


def test_a_device_that_is_not_there_is_told_by_a_dry_run_too(fake, cli):
    result = cli("toys", "scale", "a", "--device", "nosuch", "--dry-run")
    assert result.exit_code == 3
    assert "there is no device 'nosuch'" in result.stderr
