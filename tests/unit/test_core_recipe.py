"""Recipes: every mistake is refused with the line it stands on; the order follows needs, then the page."""

from pathlib import Path

import pytest

from interfuse.core.errors import InterfuseError
from interfuse.core.recipe import Ref, load_recipe
from interfuse.core.rooms import Source
from tests.toy_rooms import RECIPE, Toy


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


GOOD = """\
interfuse: 1
title: A title
seeds: [3, 1]
sources:
  red: red.txt
  wide: {from: red, part: x}
  wider: {from: wide, part: y}
steps:
  one:
    use: tie/braid
    strands: [red, two]
  two: {use: tie/braid, strands: wider}
"""


def test_reads_and_orders(tmp_path: Path) -> None:
    found = load_recipe(recipe(tmp_path, GOOD))
    assert (found.title, found.seeds, found.text) == ("A title", (3, 1), GOOD)
    assert [s.name for s in found.steps] == ["two", "one"]
    two, one = found.steps
    assert (one.use, one.given, one.line) == ("tie/braid", {"strands": ["red", "two"]}, 9)
    assert found.where(two) == f"{found.path}:12 (step two)"
    assert found.resolve(["red", "two"], "") == [Source("red.txt", "red", tmp_path), Ref("two")]
    assert found.resolve({"file": "x"}, "") == Source({"file": "x"}, "", tmp_path)
    wider = found.resolve("wider", "").spec
    assert wider == {"from": {"from": "red.txt", "part": "x"}, "part": "y"}


def test_defaults(tmp_path: Path) -> None:
    found = load_recipe(recipe(tmp_path, "interfuse: 1\nsteps: {a: {use: b/c}}\n"))
    assert (found.title, found.seeds, found.sources) == ("r", (0,), {})
    assert load_recipe(found.path, seeds=(5, 6)).seeds == (5, 6)


def test_written_order_is_kept_where_needs_allow(tmp_path: Path) -> None:
    text = "interfuse: 1\nsteps:\n" + "".join(
        f"  {name}: {{use: x/y, of: [{needs}]}}\n"
        for name, needs in [("d", ""), ("b", "a"), ("c", ""), ("a", "d"), ("e", "b, a")]
    )
    order = [s.name for s in load_recipe(recipe(tmp_path, text)).steps]
    assert order == ["d", "c", "a", "b", "e"]


@pytest.mark.parametrize(
    "old, new, line, code, says",
    [
        ("interfuse: 1\n", "", 1, "recipe.key", "interfuse: 1"),
        ("interfuse: 1", "interfuse: 2", 1, "recipe.key", "interfuse: 1"),
        ("interfuse: 1", "interfuse: true", 1, "recipe.key", "interfuse: 1"),
        ("title: A title", "tittle: A title", 2, "recipe.key", "Did you mean title"),
        ("seeds: [3, 1]", "seeds: 3", 3, "recipe.key", "list of whole numbers"),
        ("seeds: [3, 1]", "seeds: []", 3, "recipe.key", "list of whole numbers"),
        ("seeds: [3, 1]", "seeds: [3, 1.5]", 3, "recipe.key", "list of whole numbers"),
        ("seeds: [3, 1]", "seeds: [true]", 3, "recipe.key", "list of whole numbers"),
        ("seeds: [3, 1]", "seeds: [3, 3]", 3, "recipe.key", "one seed twice"),
        ("seeds: [3, 1]", "seeds: [3, 1]\nseeds: [2]", 4, "recipe.syntax", "occurs twice"),
        ("  red: red.txt", "  red: !!python/name:os.system", 5, "recipe.syntax", "tags"),
        ("{from: red, part: x}", "{from: rde, part: x}", 6, "recipe.key", "Did you mean red"),
        ("{from: red, part: x}", "{from: [red], part: x}", 6, "recipe.key", "'from' names no source"),
        ("{from: red, part: x}", "{from: wider, part: x}", 6, "recipe.cycle", "wide -> wider -> wide"),
        ("{from: red, part: x}", "{from: wide}", 6, "recipe.cycle", "wide -> wide"),
        ("  one:\n", "  red:\n", 9, "recipe.key", "both a source and a step"),
        ("  one:\n", "  o/e:\n", 9, "recipe.key", "letters, digits"),
        ("  one:\n", "  ..:\n", 9, "recipe.key", "letters, digits"),
        ("  one:\n", "  '':\n", 9, "recipe.key", "letters, digits"),
        ("    use: tie/braid\n", "", 9, "recipe.key", "needs 'use: room/method'"),
        ("    use: tie/braid\n", "    use: [tie/braid]\n", 9, "recipe.key", "needs 'use: room/method'"),
        ("  two: {use: tie/braid, strands: wider}", "  two: tie/braid", 12, "recipe.key", "needs 'use"),
        ("strands: wider", "strands: one", 9, "recipe.cycle", "one -> two -> one|two -> one -> two"),
        ("strands: wider", "strands: [[two]]", 12, "recipe.cycle", "two -> two"),
        ("sources:", "sources: &s", None, "", ""),
        ("    strands: [red, two]", "   strands: [red, two]", 11, "recipe.syntax", "not valid YAML"),
    ],
)  # fmt: skip
def test_refusals_with_line(tmp_path: Path, old: str, new: str, line: int | None, code: str, says: str) -> None:
    assert GOOD.count(old) == 1
    path = recipe(tmp_path, GOOD.replace(old, new))
    if not code:
        load_recipe(path)
        return
    with pytest.raises(InterfuseError, match=says) as caught:
        load_recipe(path)
    assert (caught.value.code, caught.value.where) == (code, f"{path}:{line}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "interfuse: 1\n",
        "interfuse: 1\nsteps: {}\n",
        "interfuse: 1\nsteps: [a]\n",
        "interfuse: 1\nsources:\nsteps: {a: {use: b}}",
    ],
)
def test_recipes_without_work(tmp_path: Path, text: str) -> None:
    with pytest.raises(InterfuseError) as caught:
        load_recipe(recipe(tmp_path, text))
    assert caught.value.code == "recipe.key"


def test_steps_from_an_alias_still_have_a_line(tmp_path: Path) -> None:
    path = recipe(tmp_path, "interfuse: 1\ndescription: &d {a: {use: x/y}}\nsteps: *d\n")
    assert load_recipe(path).steps[0].line == 3


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(InterfuseError) as caught:
        load_recipe(tmp_path / "none.yaml")
    assert caught.value.code == "input.missing"


def test_names_nobody_knows(tmp_path: Path) -> None:
    found = load_recipe(recipe(tmp_path, GOOD))
    with pytest.raises(InterfuseError, match="Did you mean wide") as caught:
        found.resolve("wid", "here")
    assert (caught.value.code, caught.value.where) == ("recipe.key", "here")
    for odd in (5, None, True):
        with pytest.raises(InterfuseError, match="a name or a table"):
            found.resolve(odd, "here")


def test_a_parameter_that_spells_a_steps_name_is_no_need(toy: Toy) -> None:
    """``style: round`` in the step ``round`` is a word, not a circle; an input of that name would be one."""
    text = RECIPE.replace("thin:", "round:").replace("thin", "round").replace("turns: 2", "turns: 2, style: round")
    found = load_recipe(toy.write(text))
    assert [s.name for s in found.steps] == ["round", "thick", "joined", "weights"]
    with pytest.raises(InterfuseError, match="round -> round"):
        load_recipe(toy.write(text.replace("strands: red", "strands: round")))
