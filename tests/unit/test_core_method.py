"""The typed signature as schema: ranges, defaults, suggestions, functions and dataclasses alike."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.method import load, read_params, type_name
from tests.toy_rooms import Toy

if TYPE_CHECKING:
    from fractions import Fraction


def test_schema_of_a_function(toy: Toy) -> None:
    braid = load("braid")
    assert list(braid.params) == ["turns", "slack", "style", "marks"]  # neither inputs nor ctx
    turns = braid.params["turns"]
    assert (turns.type_name, turns.default, turns.required) == ("int", 3, False)
    assert (turns.doc, turns.bounds) == ("how many turns", ">= 1 and <= 1000")
    assert braid.params["slack"].bounds == ">= 0 and < 1"
    assert braid.params["style"].type_name == "flat | round"
    assert braid.traits == {"tight": True}


def test_schema_of_a_dataclass(toy: Toy) -> None:
    splice = load("splice")
    assert list(splice.params) == ["overlap", "weights", "name"]
    assert splice.params["overlap"].bounds == ">= 0"
    assert splice.params["weights"].default == [1.0]
    assert splice.check({"overlap": 2}) == {"overlap": 2, "weights": [1.0], "name": "splice"}


@pytest.mark.parametrize(
    "given, expected",
    [({"turns": 7}, 7), ({"turns": "7"}, 7), ({"turns": 7.0}, 7)],
)
def test_values_are_converted(toy: Toy, given: dict[str, Any], expected: Any) -> None:
    checked = load("braid").check(given)
    assert checked["turns"] == expected
    assert type(checked["turns"]) is int
    assert checked["slack"] == 0.25  # defaults filled in


@pytest.mark.parametrize(
    "given, says",
    [
        ({"turns": 0}, "greater than or equal to 1"),
        ({"turns": 1001}, "less than or equal to 1000"),
        ({"turns": 2.5}, "integer"),
        ({"turns": "many"}, "integer"),
        ({"turns": None}, "integer"),
        ({"slack": 1}, "less than 1"),
        ({"slack": float("nan")}, "less than 1"),
        ({"style": "spiral"}, "'flat' or 'round'"),
        ({"marks": [1]}, "string"),
        ({"marks": "x" * 10_000}, "list"),
    ],
)
def test_wrong_values(toy: Toy, given: dict[str, Any], says: str) -> None:
    with pytest.raises(InterfuseError, match=says) as caught:
        load("braid").check(given, where="line 3")
    error = caught.value
    assert (error.code, error.where) == ("param.value", "line 3")
    assert error.what.startswith(next(iter(given)))
    assert len(str(error)) < 1000
    if "turns" in given:
        assert "turns is int >= 1 and <= 1000. how many turns" in error.fix


def test_nan_is_refused_without_a_range() -> None:
    def f(x: Any, *, rate: float = 1.0) -> None: ...

    with pytest.raises(InterfuseError, match="not a number"):
        read_params(f)["rate"].check(float("nan"))
    assert read_params(f)["rate"].check(float("inf")) == float("inf")


def test_unknown_and_missing_parameters(toy: Toy) -> None:
    with pytest.raises(InterfuseError, match="Did you mean turns") as caught:
        load("braid").check({"turn": 3})
    assert caught.value.code == "param.unknown"
    with pytest.raises(InterfuseError, match="Did you mean strands"):
        load("braid").check({"strand": 3}, extra=("strands", "core"))
    toy.change("tie/braid", ", marks: list[str] | None = None", ", marks: list[str]")
    with pytest.raises(InterfuseError, match="needs the parameter 'marks'") as caught:
        load("braid").check({})
    assert caught.value.code == "param.missing"


def test_version_is_the_cards_and_the_codes(toy: Toy) -> None:
    first = load("braid").version()
    assert first.startswith("1+")
    assert load("braid").version() == first
    toy.change("tie/braid", "Braids strands", "Braids all strands")
    second = load("braid").version()
    assert second != first
    toy.change("tie/braid.md", "version: 1", "version: 2")
    assert load("braid").version() == second.replace("1+", "2+", 1)


def test_exactly_one_method_per_file(toy: Toy) -> None:
    toy.change("weigh/scale", "@method()\n", "")
    with pytest.raises(InterfuseError, match="holds 0 methods"):
        load("scale")
    toy.change("weigh/scale", "def scale", "@method()\ndef other(x, *, ctx): ...\n\n\n@method()\ndef scale")
    with pytest.raises(InterfuseError, match="holds 2 methods") as caught:
        load("scale")
    assert caught.value.code == "method.card"


def test_a_method_imported_from_elsewhere_does_not_count(toy: Toy) -> None:
    toy.change(
        "weigh/scale", "from interfuse.core.method", "from interfuse.tie.braid import braid\nfrom interfuse.core.method"
    )
    assert load("scale").target.__name__ == "scale"


def test_a_recipe_is_not_a_method(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    from interfuse.core import index

    entry = index.Entry("recipes/rope", "recipe", toy.work / "rope.md", recipe_path=toy.recipe)
    monkeypatch.setattr(index, "entries", lambda: {"recipes/rope": entry})
    with pytest.raises(InterfuseError, match="is a recipe, not a method") as caught:
        load("recipes/rope")
    assert caught.value.fix == "interfuse run recipes/rope"


def test_types_no_recipe_can_give_are_refused() -> None:
    def strange(x: Any, *, how: Callable[[int], int] | Path = Path(), what: type("Odd", (), {}) = 0) -> None: ...  # type: ignore

    with pytest.raises(InterfuseError, match="no recipe can give") as caught:
        read_params(strange)
    assert caught.value.code == "method.card"


def test_annotations_that_exist_for_checkers_only_are_refused() -> None:
    def hidden(x: Any, *, part: "Fraction") -> None: ...

    with pytest.raises(InterfuseError, match="cannot be resolved"):
        read_params(hidden)


def test_a_range_that_stands_twice_is_told_once() -> None:
    number = Annotated[float, Field(ge=0, le=1)]

    def twice(x: Any, *, share: number | list[number] = 0.5) -> None: ...

    param = read_params(twice)["share"]
    assert param.bounds == ">= 0 and <= 1"
    with pytest.raises(InterfuseError) as caught:
        param.check([1.5, 1.5])
    assert str(caught.value).count("less than or equal to 1") == 1


def test_required_dataclass_fields_and_ranges_inside_unions() -> None:
    @dataclass(frozen=True)
    class Settings:
        rate: Annotated[float, Field(gt=0, description="step size")]
        top: Annotated[int, Field(ge=1)] | None = None
        rows: list[Annotated[float, Field(le=1)]] = field(default_factory=list)

    found = read_params(Settings)
    assert found["rate"].required
    assert found["rate"].default is inspect.Parameter.empty
    assert found["top"].bounds == ">= 1"
    assert found["rows"].bounds == "<= 1"
    with pytest.raises(InterfuseError):
        found["rows"].check([0.5, 2.0])


@pytest.mark.parametrize(
    "annotation, words",
    [
        (int, "int"),
        (Annotated[float, Field(gt=0)], "float"),
        (list[int], "list of int"),
        (tuple[str, ...], "list of str"),
        (dict[str, float], "table of float"),
        (Literal["a", "b"], "a | b"),
        (int | None, "int (optional)"),
        (int | list[int], "int or list of int"),
        (Any, "Any"),
    ],
)
def test_type_names(annotation: Any, words: str) -> None:
    assert type_name(annotation) == words
