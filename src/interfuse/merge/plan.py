"""The plan of a merge: for every output tensor the tensors it is made of and the parameters that hold for it.

It follows from headers alone. Architectures are not known by name: the layer of a tensor is the first number in its path
(``model.layers.3.mlp``), layers that share the part before it are one stack, and everything else lies outside the layers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interfuse.core.bulk import bulk
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.method import Param
from interfuse.data.formats.safetensors import TensorInfo
from interfuse.data.overlay import Tensors
from interfuse.merge.schedule import at, listed, refuse_idle, varies

_NUMBER = re.compile(r"(?:^|(?<=\.))(\d+)(?=\.)")
#: tensors that come before the layers; all others outside the layers come after them
_BEFORE = re.compile(r"(?:^|[._])(?:embed(?!_out)|embeddings|wte|wpe|shared)")
#: how many mismatches a message shows
_SHOWN = 8
#: keys of a slice, and of each of its sources
SLICE, SOURCE = ("sources", "base", "parameters", "module"), ("model", "layers")


@dataclass(frozen=True)
class Output:
    """One tensor of the result.

    Attributes:
        name: its name. info: its type and shape, those of the base or of the first source.
        sources: for every source the model's index and the name of its tensor.
        base: the same for the base; the index is -1 for the base that was given as such.
        own: the method's parameters for this tensor: numbers, or one per source.
        kept: it is not merged: the base's, or the first source's, is copied.
    """

    name: str
    info: TensorInfo
    sources: tuple[tuple[int, str], ...]
    base: tuple[int, str] | None
    own: Mapping[str, Any]
    kept: bool = False


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of the result. Layers are counted from ``first``; ``count`` None is all layers of every stack.

    Attributes:
        sources: (model's index, first layer) of every source. base: the same of the base, None without one.
        own: parameters of the method for these layers. module: the part of the model it is about, "" for all of it.
    """

    sources: tuple[tuple[int, int], ...]
    base: tuple[int, int] | None
    count: int | None
    own: Mapping[str, Any]
    module: str = ""

    @functools.cached_property
    def moving(self) -> list[str]:
        """The parameters that differ from tensor to tensor."""
        return [key for key, value in self.own.items() if varies(value)]


@functools.lru_cache(maxsize=1 << 18)
def layer_of(name: str) -> tuple[str, int, str] | None:
    """A tensor's stack, layer and place within the layer; None outside the layers."""
    found = _NUMBER.search(name)
    return (name[: found.start()], int(found[1]), name[found.end() :]) if found else None


def stacks(names: Sequence[str]) -> dict[str, int]:
    """The stacks of layers, ``model.layers.`` -> number of layers."""
    found: dict[str, int] = {}
    for name in names:
        place = layer_of(name)
        if place is not None:
            found[place[0]] = max(found.get(place[0], 0), place[1] + 1)
    return found


def read_slices(
    given: Sequence[Mapping[str, Any]] | None,
    models: int,
    has_base: bool,
    own: Mapping[str, Any],
    per_model: Sequence[str],
    known: Mapping[str, Param],
) -> list[Slice]:
    """The slices of a recipe, checked; without any, one slice of everything.

    Args:
        given: tables ``{sources: [{model: 0, layers: [0, 24]}], base: {model: 1, layers: [0, 24]}, parameters: {}, module: ""}``;
            ``layers`` may be left out for all layers, ``base`` too: it is then the base that was given, its layers those of
            the first source.
        models: how many models there are. own: the call's parameters; a list for the models is reduced to those of the
            slice. per_model: which of them may be such lists. known: what ``parameters`` may hold.

    Raises:
        InterfuseError: ``param.value``.
    """
    if given is None:
        base = (-1, 0) if has_base else None
        return [Slice(tuple((i, 0) for i in range(models)), base, None, own)]
    slices = []
    for number, item in enumerate(given):
        where = f"slice {number + 1}"
        _known(item, SLICE, where)
        if not item.get("sources"):
            raise InterfuseError("param.value", "a slice needs sources", where=where)
        sources = [_source(s, models, where) for s in item["sources"]]
        counts = [count for _, _, count in sources]
        if "base" in item:
            base_of = _source({"model": -1, **item["base"]}, models, where)
            counts.append(base_of[2])
            base = base_of[:2]
        else:
            base = (-1, sources[0][1]) if has_base else None
        if len(set(counts)) > 1:
            raise InterfuseError("param.value", f"the sources have {', '.join(map(str, counts))} layers", where=where,
                                 fix="All sources of a slice must have as many layers.")  # fmt: skip
        given_here = item.get("parameters", {})
        _known(given_here, list(known), where)
        here = {key: known[key].check(value, where) for key, value in given_here.items()}
        mine = {k: [v[i] for i, _, _ in sources] if k in per_model and listed(v) else v for k, v in own.items()}
        for key in per_model:
            if listed(here.get(key)) and len(here[key]) != len(sources):
                raise InterfuseError(
                    "param.value", f"{key} has {len(here[key])} values for {len(sources)} sources", where=where
                )
        slices.append(Slice(tuple(s[:2] for s in sources), base, counts[0], {**mine, **here}, item.get("module", "")))
    return slices


def _known(table: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise InterfuseError("param.value", f"a table is wanted, not {table!r}", where=where)
    for key in table:
        if key not in keys:
            raise InterfuseError("param.unknown", f"unknown key {key!r}", where=where, fix=did_you_mean(key, keys))


def _source(item: Any, models: int, where: str) -> tuple[int, int, int | None]:
    """Model, first layer, number of layers."""
    _known(item, SOURCE, where)
    model, layers = item.get("model"), item.get("layers")
    if not isinstance(model, int) or isinstance(model, bool) or not -1 <= model < models:
        raise InterfuseError(
            "param.value", f"there is no model {model!r}", where=where, fix="Models are counted from 0."
        )
    if layers is None:
        return model, 0, None
    whole = isinstance(layers, list | tuple) and len(layers) == 2 and all(type(v) is int for v in layers)
    if not whole or not 0 <= layers[0] < layers[1]:
        raise InterfuseError("param.value", f"layers are [first, end), not {layers!r}", where=where)
    return model, layers[0], layers[1] - layers[0]


@bulk()
def plan_outputs(
    weights: Sequence[Tensors],
    base: Tensors | None,
    slices: Sequence[Slice],
    defaults: Mapping[str, Any],
    names: Sequence[str],
) -> list[Output]:
    """Every tensor of the result, in the order of the file of the base (or of the first source).

    Args:
        weights: the models' tensors. base: the base's. names: what the models and the base (last) are called in errors.
        defaults: the value of a parameter where no rule of its schedule fits.

    Raises:
        InterfuseError: ``input.shape`` with the first mismatches, ``input.vocabulary`` when only the numbers of tokens differ,
            ``param.value`` for a layer that is not there or a rule that fits nothing.
    """
    everyone = [*weights, *([base] if base is not None else [])]
    outputs: list[Output] = []
    places: list[tuple[str, int | None]] = []
    modules = list(dict.fromkeys(part.module for part in slices))
    first = slices[0].base or slices[0].sources[0]
    tensors = _pick(weights, base, first[0])
    left = list(tensors)
    if not left:
        raise InterfuseError("input.empty", "the model has no tensors", where=names[first[0]])
    for number, module in enumerate(modules):
        inside = [n for n in left if not module or module in n.split(".")]
        if not inside:
            raise InterfuseError("param.value", f"no tensor belongs to the module {module!r}",
                                 fix=did_you_mean(module, [p for n in left for p in n.split(".")]))  # fmt: skip
        if number == len(modules) - 1:  # what no module claims stays with the last one
            inside = left
        claimed = dict.fromkeys(inside)
        left = [n for n in left if n not in claimed]
        for out, place in _module(weights, base, [s for s in slices if s.module == module], inside, defaults, names):
            outputs.append(out)
            places += [place, *((n, place[1]) for _, n in out.sources if n != out.name)]
    _refuse_strangers(everyone, slices, outputs, names)
    refuse_idle((v for s in slices for v in s.own.values()), list(dict.fromkeys(places)))
    return outputs


def frozen(outputs: Sequence[Output], parts: Sequence[str]) -> list[Output]:
    """The outputs, those with one of the parts in their names to be kept as they are.

    Raises:
        InterfuseError: ``param.value`` for a part of no name.
    """
    refuse_idle([[{"filter": part, "value": 0}] for part in parts], [(o.name, None) for o in outputs])
    return [dataclasses.replace(o, kept=True) if any(p in o.name for p in parts) else o for o in outputs]


def _pick(weights: Sequence[Tensors], base: Tensors | None, index: int) -> Tensors:
    if index >= 0:
        return weights[index]
    assert base is not None, "an index of -1 is only made for a base that is there"
    return base


def _module(
    weights: Sequence[Tensors],
    base: Tensors | None,
    slices: Sequence[Slice],
    inside: Sequence[str],
    defaults: Mapping[str, Any],
    names: Sequence[str],
) -> list[tuple[Output, tuple[str, int | None]]]:
    """The outputs of one module with the name and layer that rules are compared with."""
    sizes, wrong = stacks(inside), []
    found = []

    def add(part: Slice, name: str, tail: tuple[str, str] | None, offset: int, layer: int | None, t: float) -> None:
        """One output; ``tail`` is the name around the number of the layer, None outside the layers."""

        def called(first: int) -> str:
            return name if tail is None else f"{tail[0]}{first + offset}{tail[1]}"

        sources = tuple((i, called(first)) for i, first in part.sources)
        under = (part.base[0], called(part.base[1])) if part.base is not None else None
        reference = _pick(weights, base, (under or sources[0])[0])
        known = (under or sources[0])[1]
        if known not in reference:
            where = names[(under or sources[0])[0]]
            wrong.append(f"{known}: missing in {where}")
            return
        info = reference[known]
        for index, other in [*sources, *([under] if under else [])]:
            theirs = _pick(weights, base, index)
            if other not in theirs:
                wrong.append(f"{other}: missing in {names[index]}")
            elif theirs[other].shape != info.shape:
                wrong.append(
                    f"{other}: {list(info.shape)} in {names[(under or sources[0])[0]]}, {list(theirs[other].shape)} in {names[index]}"
                )
        own = dict(part.own)
        for key in part.moving:
            own[key] = _resolve(own[key], defaults.get(key), name, [n for _, n in sources], layer, t)
        found.append((Output(name, info, sources, under, own), (name, layer)))

    if len(slices) == 1 and slices[0].count is None:
        for name in inside:
            place = layer_of(name)
            t = 0.0 if place is None else _along(place[1], sizes[place[0]])
            add(slices[0], name, None, 0, place[1] if place else None, t)
    else:
        if len(sizes) != 1:
            raise InterfuseError("param.value", f"slices need one stack of layers, there are {len(sizes)}: {', '.join(sizes)}",
                                 fix="Say which part they are of: module: NAME.")  # fmt: skip
        ((stack, size),) = sizes.items()
        for part in slices:
            for index, first in [*part.sources, *([part.base] if part.base else [])]:
                held = stacks(list(_pick(weights, base, index))).get(stack, 0)
                if first + (part.count or size) > held:
                    raise InterfuseError("param.value", f"layers {first} to {first + (part.count or size)} of {names[index]}, "
                                         f"which has {held}", where=stack.rstrip("."))  # fmt: skip
        outside = [n for n in inside if layer_of(n) is None]
        for name in [n for n in outside if _BEFORE.search(n)]:
            add(slices[0], name, None, 0, None, 0.0)
        layer = 0
        held_by: dict[int, dict[int, list[str]]] = {}
        for part in slices:
            index, first = part.base or part.sources[0]
            if index not in held_by:
                held_by[index] = _by_layer(_pick(weights, base, index), stack)
            count = part.count or size
            for offset in range(count):
                for tail in held_by[index].get(first + offset, ()):
                    add(part, f"{stack}{layer}{tail}", (stack, tail), offset, layer, _along(offset, count))
                layer += 1
        for name in [n for n in outside if not _BEFORE.search(n)]:
            add(slices[-1], name, None, 0, None, 0.0)
    if wrong:
        _refuse(wrong, names)
    return found


def _by_layer(tensors: Tensors, stack: str) -> dict[int, list[str]]:
    """The ends of the names in every layer of a stack."""
    found: dict[int, list[str]] = {}
    for name in tensors:
        place = layer_of(name)
        if place is not None and place[0] == stack:
            found.setdefault(place[1], []).append(place[2])
    return found


def _along(layer: int, count: int) -> float:
    """``t = layer / (layers - 1)``; 1 for a single layer."""
    return layer / (count - 1) if count > 1 else 1.0


def _resolve(value: Any, default: Any, name: str, sources: Sequence[str], layer: int | None, t: float) -> Any:
    """A parameter's value for one tensor; of a list each value by the name of its own source."""
    if listed(value):
        fallback = default if isinstance(default, list) else [default] * len(value)
        found = [at(v, n, layer, t) for v, n in zip(value, sources, strict=False)]
        found += value[len(found) :]
        return [d if v is None else v for v, d in zip(found, fallback, strict=True)]
    chosen = at(value, name, layer, t)
    return default if chosen is None else chosen


def _refuse_strangers(
    everyone: Sequence[Tensors], slices: Sequence[Slice], outputs: Sequence[Output], names: Sequence[str]
) -> None:
    """Without slices every tensor of every model must have been used."""
    if any(part.count is not None for part in slices):
        return
    used = {n for out in outputs for _, n in (*out.sources, *([out.base] if out.base else []))}
    wrong = [f"{n}: only in {name}" for held, name in zip(everyone, names, strict=True) for n in held if n not in used]
    if wrong:
        _refuse(wrong, names)


def _refuse(rows: Sequence[str], names: Sequence[str]) -> None:
    """Raises ``input.shape`` with the first mismatches, a line each."""
    raise InterfuseError("input.shape", f"the models' tensors differ:{listing(rows)}", where=", ".join(names),
                         fix="Use models of one base and one vocabulary.")  # fmt: skip


def listing(rows: Sequence[str]) -> str:
    """The first rows of a message, a line each, and how many more there are."""
    return "".join(f"\n  {row}" for row in rows[:_SHOWN]) + (f"\n  and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")  # fmt: skip


def mismatches(one: Tensors, two: Tensors, names: tuple[str, str]) -> list[str]:
    """The tensors two models do not share, as rows: what has other shapes, then what one lacks, of both in turn."""
    shared = [n for n in one if n in two and one[n].shape != two[n].shape]
    rows = [f"{n}: {list(one[n].shape)} in {names[0]}, {list(two[n].shape)} in {names[1]}" for n in shared]
    lacking = [
        [f"{n}: {list(mine[n].shape)} in {name}, missing in {other}" for n in mine if n not in theirs]
        for mine, theirs, name, other in ((one, two, *names), (two, one, *names[::-1]))
    ]
    for pair in itertools.zip_longest(*lacking):
        rows += [row for row in pair if row is not None]
    return rows
