"""Recipes: plain YAML that names sources, ordered steps and measurements.

::

    interfuse: 1
    seeds: [0, 1, 2]
    sources:
      digits: {data: "sklearn:digits"}
      small: {config: {model_type: vit, hidden_size: 32}}
    steps:
      teacher: {use: distill/none, student: small, data: digits, epochs: 20}

A step's keys besides ``use`` are the inputs of its room (names of sources or of other steps, or inline tables) and the
parameters of its method. What a step keeps beside its artifact's main thing, such as a table of examples, is named by
``{from: STEP, take: NAME}``. Every mistake is refused with the line it stands on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.index import find
from interfuse.core.rooms import Source, load_room
from interfuse.core.safe import Lines, load_yaml, read_text

KEYS = ("interfuse", "title", "description", "seeds", "sources", "steps")


@dataclass(frozen=True)
class Ref:
    """A mention of another step's result, or of a part that it keeps beside it."""

    step: str
    part: str = ""


@dataclass(frozen=True)
class Step:
    """One step. ``given`` holds the values as written; names of inputs are resolved by :meth:`Recipe.resolve`."""

    name: str
    use: str
    given: Mapping[str, Any]
    line: int


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read: its steps are in an order in which each comes after what it needs."""

    path: Path
    title: str
    seeds: tuple[int, ...]
    sources: Mapping[str, Any]
    steps: tuple[Step, ...]
    text: str = field(repr=False)

    def where(self, step: Step) -> str:
        return f"{self.path}:{step.line} (step {step.name})"

    def resolve(self, value: Any, where: str) -> Any:
        """An input's value as :class:`Source` or :class:`Ref` (or a list of these).

        Raises:
            InterfuseError: ``recipe.key`` when a name is neither a source nor a step.
        """
        if isinstance(value, list):
            return [self.resolve(v, where) for v in value]
        names = [s.name for s in self.steps]
        if isinstance(value, str):
            if value in names:
                return Ref(value)
            if value in self.sources:
                return Source(self._spec(value, where, ()), value, self.path.parent)
            raise InterfuseError(
                "recipe.key",
                f"{value!r} is neither a source nor a step",
                where=where,
                fix=did_you_mean(value, [*self.sources, *names]),
            )
        if isinstance(value, dict):
            if value.get("from") in names and value["from"] not in self.sources:
                return self._part(value, where)
            return Source(self._inline(value, where, ()), "", self.path.parent)
        raise InterfuseError("recipe.key", f"an input is a name or a table, not {value!r}", where=where)

    def _part(self, value: dict[str, Any], where: str) -> Ref:
        for key in value:
            if key not in ("from", "take"):
                raise InterfuseError("recipe.key", f"what a step keeps is named by from and take, not by {key!r}", where=where,
                                     fix=f"{{from: {value['from']}, take: NAME}}")  # fmt: skip
        if not isinstance(value.get("take", ""), str):
            raise InterfuseError("recipe.key", f"'take' names one part of a step, not {value['take']!r}", where=where)
        return Ref(value["from"], value.get("take", ""))

    def _spec(self, name: str, where: str, seen: tuple[str, ...]) -> Any:
        if name in seen:
            raise InterfuseError("recipe.cycle", "sources need each other: " + " -> ".join((*seen, name)), where=where)
        spec = self.sources[name]
        return self._inline(spec, where, (*seen, name)) if isinstance(spec, dict) else spec

    def _inline(self, spec: dict[str, Any], where: str, seen: tuple[str, ...]) -> dict[str, Any]:
        if "from" not in spec:
            return spec
        parent = spec["from"]
        if not isinstance(parent, str) or parent not in self.sources:
            raise InterfuseError(
                "recipe.key",
                f"'from' names no source: {parent!r}",
                where=where,
                fix=did_you_mean(str(parent), self.sources),
            )
        return {**spec, "from": self._spec(parent, where, seen)}


def load_recipe(path: Path | str, *, seeds: tuple[int, ...] = ()) -> Recipe:
    """Reads and checks a recipe file.

    Args:
        seeds: used instead of the recipe's own when given.

    Raises:
        InterfuseError: ``recipe.syntax``, ``recipe.key`` or ``recipe.cycle`` with file and line.
    """
    path = Path(path)
    text = read_text(path)
    raw, lines = load_yaml(text, where=str(path))
    fail = _failer(path, lines)
    if not isinstance(raw, dict):
        raise fail("a recipe is a table with the keys " + ", ".join(KEYS))
    for key in raw:
        if key not in KEYS:
            raise fail(f"unknown key {key!r}. {did_you_mean(key, KEYS)}", key)
    if raw.get("interfuse") != 1 or raw.get("interfuse") is True:
        raise fail("the first key must be 'interfuse: 1' (the recipe format)", "interfuse")
    for key, kind in (("sources", dict), ("steps", dict)):
        if not isinstance(raw.get(key, {}), kind):
            raise fail(f"{key!r} must be a table of names", key)
    if not raw.get("steps"):
        raise fail("the recipe has no steps", "steps")
    found = list(seeds) if seeds else raw.get("seeds", [0])
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(s, int) and not isinstance(s, bool) for s in found)
    ):
        raise fail("'seeds' must be a list of whole numbers", "seeds")
    if len(set(found)) != len(found):
        raise fail("'seeds' names one seed twice", "seeds")
    steps = {}
    sources = raw.get("sources", {})
    for name, body in raw["steps"].items():
        if name in sources:
            raise fail(f"{name!r} is both a source and a step", "steps", name)
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            raise fail(f"a step's name has letters, digits, - and _ only: {name!r}", "steps", name)
        if not isinstance(body, dict) or not isinstance(body.get("use"), str):
            raise fail(f"the step {name!r} needs 'use: room/method'", "steps", name)
        line = lines.get(("steps", name), lines[("steps",)])
        steps[name] = Step(name, body["use"], {k: v for k, v in body.items() if k != "use"}, line)
    recipe = Recipe(path, str(raw.get("title", path.stem)), tuple(found), sources, _ordered(steps, fail), text)
    for name in sources:
        recipe._spec(name, f"{path}:{lines.get(('sources', name), lines[('sources',)])}", ())
    return recipe


def _failer(path: Path, lines: Lines) -> Any:
    def fail(message: str, *keys: str, code: str = "recipe.key") -> InterfuseError:
        line = lines.get(keys) or lines.get(keys[:1]) or 1
        return InterfuseError(code, message, where=f"{path}:{line}")

    return fail


def names_in(value: Any) -> Iterator[str]:
    """Every string a value holds as itself, in lists or as ``from``: the candidates for mentions of steps."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from names_in(value.get("from"))
    elif isinstance(value, list):
        for item in value:
            yield from names_in(item)


def _inputs(step: Step) -> list[Any]:
    try:
        names = {i.name for i in load_room(find(step.use).room).inputs}
    except InterfuseError:  # an unknown method is reported by the plan
        return list(step.given.values())
    return [value for key, value in step.given.items() if key in names]


def _ordered(steps: dict[str, Step], fail: Any) -> tuple[Step, ...]:
    needs = {name: [n for v in step.given.values() for n in names_in(v) if n in steps] for name, step in steps.items()}
    try:
        order = tuple(TopologicalSorter(needs).static_order())
    except CycleError:  # a parameter's word may happen to be the name of a step: now only the rooms' inputs count
        needs = {name: [n for v in _inputs(step) for n in names_in(v) if n in steps] for name, step in steps.items()}
        try:
            order = tuple(TopologicalSorter(needs).static_order())
        except CycleError as error:
            circle = error.args[1]
            raise fail(
                "steps need each other: " + " -> ".join(circle), "steps", circle[0], code="recipe.cycle"
            ) from error
    written = {name: i for i, name in enumerate(steps)}
    rank: dict[str, int] = {}
    for name in order:  # keep the written order as far as needs allow
        rank[name] = max([written[name], *(rank[n] + 1 for n in needs[name])])
    return tuple(steps[n] for n in sorted(order, key=lambda n: (rank[n], written[n])))
