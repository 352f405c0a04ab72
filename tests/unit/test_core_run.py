"""Runs: the plan comes first and writes nothing; keys follow the content; what is done is not done again."""

import json
from pathlib import Path
from typing import Any

import pytest

from interfuse.core.artifact import lock, verify
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.recipe import load_recipe
from interfuse.core.run import Plan, locate, make_plan, run, run_plan
from tests.toy_rooms import RECIPE, Toy, tree


def plan_of(toy: Toy, text: str = RECIPE, seeds: tuple[int, ...] = (), **options: Any) -> Plan:
    ctx = options.pop("ctx", Ctx())
    return make_plan(load_recipe(toy.write(text), seeds=seeds), Path("out"), ctx, **options)


def keys(plan: Plan) -> dict[str, str]:
    return {item.label: item.key for item in plan.work}


def test_a_plan_tells_order_cost_and_state(toy: Toy) -> None:
    plan = plan_of(toy)
    assert [item.label for item in plan.work] == [
        "thin (seed 0)", "thin (seed 1)", "thick (seed 0)", "thick (seed 1)", "joined (seed 0)", "joined (seed 1)", "weights"
    ]  # fmt: skip
    assert plan.cost.calls == 6
    row = plan.rows()[0]
    assert (row["step"], row["method"], row["seeds"], row["state"], row["bytes_read"]) == (
        "thin",
        "tie/braid",
        [0],
        "to do",
        10,
    )


def test_planning_writes_nothing_and_does_nothing(toy: Toy) -> None:
    before = tree(toy.work)
    plan_of(toy)
    assert tree(toy.work) == before
    assert {p.name for p in toy.work.iterdir()} == {"red.txt", "blue.txt", "rope.yaml"}
    assert toy.started() == []


def test_a_run_makes_everything_and_a_second_one_nothing(toy: Toy) -> None:
    made = run(toy.recipe, "out")
    assert list(made) == ["thin", "thick", "joined", "weights"]
    assert made["thin"] == Path("out/steps/thin/seed-0")
    assert made["weights"] == Path("out/steps/weights/all")
    assert len(toy.started()) == 7
    first = tree(Path("out"))
    lines: list[str] = []
    run(toy.recipe, "out", ctx=Ctx(log=lines.append))
    assert len(toy.started()) == 7
    assert tree(Path("out")) == first
    assert [line.rsplit(": ", 1)[1] for line in lines] == ["done before"] * 7
    assert all(item.done for item in plan_of(toy).work)
    assert plan_of(toy).cost.calls == 0
    rows = [json.loads(line) for line in Path("out/journal.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == ["thin", "thin", "thick", "thick", "joined", "joined", "weights"]


def test_results_are_right(toy: Toy) -> None:
    """Inputs arrive in the order they are written, of the right seed; a room across seeds sees all of them."""
    run(toy.recipe, "out")
    for seed in (0, 1):
        thick, thin, joined = (
            Path(f"out/steps/{s}/seed-{seed}/rope.bin").read_bytes() for s in ("thick", "thin", "joined")
        )
        assert joined == thick[1:] + thin[1:]
    assert Path("out/steps/thin/seed-0/rope.bin").read_bytes() != Path("out/steps/thin/seed-1/rope.bin").read_bytes()
    weights = verify("out/steps/weights/all").manifest
    assert weights["seeds"] == [0, 1]
    assert weights["facts"]["weights"] == [[864, 1728, 2590]] * 2
    assert [row["name"] for row in weights["inputs"][1]["ropes"]] == ["thin", "thick", "joined"]


def test_same_bytes_anywhere(toy: Toy) -> None:
    run(toy.recipe, "out")
    run(toy.recipe, toy.work / "other" / "place")
    assert tree(Path("out")) == tree(Path("other/place"))


ALL = {"thin", "thick", "joined", "weights"}
#: change -> the steps whose keys change, and no others
CHANGES: dict[str, tuple[Any, set[str]]] = {
    "a parameter": (lambda t: RECIPE.replace("turns: 4", "turns: 5"), {"thick", "joined", "weights"}),
    "a parameter of the last step": (lambda t: RECIPE.replace("unit: kg", "unit: t"), {"weights"}),
    "the default, written out": (lambda t: RECIPE.replace("turns: 2", "turns: 2, slack: 0.25"), set()),
    "the same number in other clothes": (lambda t: RECIPE.replace("slack: 0.5", "slack: 5e-1"), set()),
    "an input's order": (lambda t: RECIPE.replace("[thin, blue]", "[blue, thin]"), {"thick", "joined", "weights"}),
    "an input's content": (
        lambda t: (t.work / "blue.txt").write_text("navy") and RECIPE,
        {"thick", "joined", "weights"},
    ),
    "the first input's content": (lambda t: (t.work / "red.txt").write_text("pink") and RECIPE, ALL),
    "a method's code": (lambda t: t.change("tie/splice", "end to end", "at the ends") or RECIPE, {"joined", "weights"}),
    "a method's version": (lambda t: t.change("weigh/scale.md", "version: 1", "version: 2") or RECIPE, {"weights"}),
    "a card's words": (lambda t: t.change("weigh/scale.md", "is a toy", "is a fine toy") or RECIPE, set()),
    "title and comments": (lambda t: RECIPE.replace("title: Ropes", "title: Cords  # new"), set()),
    "the order of steps on the page": (lambda t: _shuffled(), set()),
    "a further step": (lambda t: RECIPE + "  more: {use: splice, strands: red}\n", set()),
    "a further source": (lambda t: RECIPE.replace("sources:\n", "sources:\n  green: green.txt\n"), set()),
}


def _shuffled() -> str:
    head, steps = RECIPE.split("steps:\n")
    return head + "steps:\n" + "".join(reversed(steps.splitlines(keepends=True)))


@pytest.mark.parametrize("change", CHANGES)
def test_keys_change_exactly_when_the_content_does(toy: Toy, change: str) -> None:
    before = keys(plan_of(toy))
    make, expected = CHANGES[change]
    after = keys(plan_of(toy, make(toy)))
    assert {label.split()[0] for label in before if before[label] != after[label]} == expected


def test_keys_and_seeds(toy: Toy) -> None:
    both, one = keys(plan_of(toy)), keys(plan_of(toy, seeds=(1,)))
    assert both["thin (seed 0)"] != both["thin (seed 1)"] == one["thin (seed 1)"]
    assert both["weights"] != one["weights (seed 1)"]
    assert keys(plan_of(toy, ctx=Ctx(seed=77, device="cpu"))) == both  # the recipe's seeds count; the device does not
    assert all(
        a != b for a, b in zip(keys(plan_of(toy, ctx=Ctx(dtype="float64"))).values(), both.values(), strict=True)
    )


def test_only_what_changed_is_done_again(toy: Toy) -> None:
    run(toy.recipe, "out")
    (toy.work / "blue.txt").write_text("navy")
    run(toy.recipe, "out")
    assert len(toy.started()) == 7 + 5
    again = [line.split("/")[0] for line in toy.started()[7:]]
    assert again == ["thick", "thick", "joined", "joined", "weights"]
    run(toy.recipe, "clean")
    assert tree(Path("out")) == tree(Path("clean"))


def test_fresh_makes_everything_again(toy: Toy) -> None:
    run(toy.recipe, "out")
    first = tree(Path("out"))
    run(toy.recipe, "out", fresh=True)
    assert len(toy.started()) == 14
    assert tree(Path("out")) == first


def test_other_seeds_join(toy: Toy) -> None:
    run(toy.recipe, "out", seeds=[0])
    run(toy.recipe, "out", seeds=[0, 1, 2])
    assert len(toy.started()) == 4 + 7
    with pytest.raises(InterfuseError, match="one seed twice"):
        run(toy.recipe, "out", seeds=[1, 1])
    loaded = load_recipe(toy.recipe)
    assert len(run(loaded, "more", seeds=[4])) == 4
    assert Path("more/steps/thin/seed-4").is_dir()


@pytest.mark.parametrize("damage", ["bytes", "missing", "manifest", "added", "keyless", "file"])
def test_a_damaged_step_is_made_again(toy: Toy, damage: str) -> None:
    run(toy.recipe, "out")
    first = tree(Path("out"))
    place = Path("out/steps/thick/seed-1")
    if damage == "bytes":
        (place / "rope.bin").write_bytes((place / "rope.bin").read_bytes()[::-1])
    elif damage == "missing":
        (place / "rope.bin").unlink()
    elif damage == "manifest":
        (place / "interfuse.json").write_text("{}")
    elif damage == "added":
        (place / "new").write_text("x")
    else:
        import shutil

        from interfuse.core.artifact import save_artifact

        shutil.rmtree(place)
        if damage == "keyless":
            save_artifact(place, lambda folder: None, {"kind": "rope"})
        else:
            place.write_text("a file")
    run(toy.recipe, "out")
    assert [line.split("-0")[0].split("-1")[0] for line in toy.started()[7:]] == ["thick/.scratch-seed"]
    assert tree(Path("out")) == first


BAD = {
    "method": ("use: splice", "use: splise", "method.unknown", 10),
    "parameter": ("overlap: 1", "overlaps: 1", "param.unknown", 10),
    "value": ("turns: 2", "turns: 0", "param.value", 8),
    "name": ("[thin, blue]", "[thin, bleu]", "recipe.key", 9),
    "source": ("red: red.txt", "red: rot.txt", "input.missing", 8),
    "input missing": ("strands: red, ", "", "param.missing", 8),
    "too many": ("core: red", "core: [red, blue]", "param.value", 9),
    "number as input": ("core: red", "core: 5", "recipe.key", 9),
    "nan": ("slack: 0.5", "slack: .nan", "param.value", 9),
}


@pytest.mark.parametrize("bad", BAD)
def test_mistakes_are_refused_before_any_step_runs(toy: Toy, bad: str) -> None:
    old, new, code, line = BAD[bad]
    assert RECIPE.count(old) == 1
    path = toy.write(RECIPE.replace(old, new))
    with pytest.raises(InterfuseError) as caught:
        run(path, "out")
    assert caught.value.code == code
    assert caught.value.where.startswith(f"{path}:{line} (step ")
    assert toy.started() == []
    assert not Path("out").exists()


def test_a_foreign_folder_is_not_used(toy: Toy) -> None:
    Path("out").mkdir()
    Path("out/mine").write_text("x")
    with pytest.raises(InterfuseError, match="not a run") as caught:
        run(toy.recipe, "out")
    assert caught.value.code == "output.exists"
    run(toy.recipe, "out", force=True)
    assert Path("out/mine").read_text() == "x"
    Path("file").write_text("x")
    for force in (False, True):
        with pytest.raises(InterfuseError) as caught:
            run(toy.recipe, "file", force=force)
        assert caught.value.code == "output.exists"


def test_a_busy_folder(toy: Toy) -> None:
    with lock(Path("out")), pytest.raises(InterfuseError) as caught:
        run(toy.recipe, "out")
    assert caught.value.code == "output.busy"
    assert toy.started() == []


def test_what_another_process_finished_meanwhile_is_kept(toy: Toy) -> None:
    late = plan_of(toy)
    run(toy.recipe, "out")
    run_plan(late)
    assert len(toy.started()) == 7


def test_an_error_inside_a_method_is_named_and_the_rest_is_kept(toy: Toy) -> None:
    toy.change("tie/splice", "return [", "raise ZeroDivisionError('by zero')\n        return [")
    with pytest.raises(InterfuseError, match="ZeroDivisionError: by zero") as caught:
        run(toy.recipe, "out")
    assert (caught.value.code, caught.value.where) == ("run.failed", "step joined (seed 0)")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    verify("out/steps/thick/seed-1")
    assert not Path("out/steps/joined/seed-0").exists()
    toy.change("tie/splice", "raise ZeroDivisionError('by zero')\n        ", "")
    run(toy.recipe, "out")
    assert len(toy.started()) == 4 + 1 + 3


def test_coded_errors_keep_their_code(toy: Toy) -> None:
    toy.change("tie/braid", "    chunks = []\n", "    ctx.budget.spend(calls=3)\n    chunks = []\n")
    from interfuse.core.ctx import Budget

    with pytest.raises(InterfuseError, match="the budget is 4") as caught:
        run(toy.recipe, "out", ctx=Ctx(budget=Budget(calls=4)))
    assert (caught.value.code, caught.value.where) == ("budget.spent", "step thin (seed 1)")


def test_unfinished_work_goes_on_and_old_scratch_is_dropped(toy: Toy) -> None:
    toy.change(
        "tie/braid", "        if saved is not None:\n", "        assert turn < 2\n        if saved is not None:\n"
    )
    with pytest.raises(InterfuseError, match="AssertionError"):
        run(toy.recipe, "out")
    place = Path("out/steps/thick")
    (old,) = place.glob(".scratch-seed-0-*")
    assert sorted(p.name for p in old.iterdir()) == ["turn-0", "turn-1"]
    toy.change("tie/braid", "        assert turn < 2\n", "")  # another version: other keys
    run(toy.recipe, "out")
    assert list(place.glob(".scratch-*")) == []
    run(toy.recipe, "clean")
    assert tree(Path("out")) == tree(Path("clean"))


def test_a_torn_journal_harms_only_its_own_line(toy: Toy) -> None:
    Path("out").mkdir()
    Path("out/run.json").write_text("{}")
    Path("out/journal.jsonl").write_text('{"step": "to')
    run(toy.recipe, "out")
    lines = Path("out/journal.jsonl").read_text().splitlines()
    assert lines[0] == '{"step": "to'
    assert [json.loads(line)["step"] for line in lines[1:]] == [
        "thin",
        "thin",
        "thick",
        "thick",
        "joined",
        "joined",
        "weights",
    ]


def test_leftovers_of_a_killed_run_are_gone_after_the_next(toy: Toy) -> None:
    Path("out/steps/thin").mkdir(parents=True)
    Path("out/run.json").write_text("{}")
    for name in ("out/.run.json.tmp-1", "out/steps/thin/.scratch-seed-0-abc"):
        Path(name).mkdir()
    Path("out/.run.json.tmp-2").write_text("x")
    run(toy.recipe, "out")
    assert sorted(p.name for p in Path("out").iterdir()) == ["journal.jsonl", "run.json", "steps"]
    assert sorted(p.name for p in Path("out/steps/thin").iterdir()) == [
        ".seed-0.lock",
        ".seed-1.lock",
        "seed-0",
        "seed-1",
    ]


def test_the_mark_says_what_the_folder_is(toy: Toy) -> None:
    run(toy.recipe, "out")
    mark = json.loads(Path("out/run.json").read_text())
    assert (mark["interfuse"], mark["title"], mark["recipe"], mark["seeds"]) == (1, "Ropes", RECIPE, [0, 1])
    assert mark["steps"][-1]["step"] == "weights"


def test_locate(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    from interfuse.core import index

    entry = index.Entry("recipes/quick", "recipe", toy.work / "quick.md", recipe_path=toy.recipe)
    method = index.Entry("tie/braid", "method", toy.rooms / "tie" / "braid.md", "interfuse.tie.braid")
    monkeypatch.setattr(index, "entries", lambda: {e.id: e for e in (entry, method)})
    (toy.work / "recipes" / "quick").mkdir(parents=True)  # a folder of that name does not hide it
    assert locate("recipes/quick") == locate("quick") == toy.recipe
    assert locate("some/where.yaml") == Path("some/where.yaml")
    with pytest.raises(InterfuseError, match="not a recipe"):
        locate("tie/braid")
    with pytest.raises(InterfuseError, match="Did you mean"):
        locate("recipes/quik")
