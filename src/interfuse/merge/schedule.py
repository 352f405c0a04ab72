"""Parameters that differ from tensor to tensor: by layer, by name, or both.

Wherever a method of the room takes a number, a recipe or a flag may also give

- ``{gradient: [0, 0.5, 1]}``: values at equal distances over the layers, linear between them. The place is
  ``t = layer / (layers - 1)``, counted within a slice where there are slices; tensors outside the layers are at 0 and the
  layer of a slice of one is at 1, as in mergekit;
- a list of rules, of which the first that fits counts: ``[{filter: self_attn, value: 0.3}, {regex: "mlp\\.(up|gate)",
  value: {gradient: [0, 1]}}, {layer: ">=20", value: 0}, {value: 0.5}]``. ``filter`` is a part of the tensor's name (``*``:
  every name); a rule without a condition is the default; where no rule fits, the method's own default counts.

A parameter with one value per model takes a list of such values.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import WrapValidator

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.method import Param

CONDITIONS = ("filter", "regex", "layer")
_RULE = (*CONDITIONS, "value")
_LAYER = re.compile(r"\s*(<=|>=|==|<|>)\s*(\d+)\s*\Z|\s*(\d+)\s*-\s*(\d+)\s*\Z|\s*(\d+)\s*\Z")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
}  # fmt: skip


def widen(param: Param) -> Param:
    """The parameter, taking schedules too where it takes numbers. Every number in them keeps the parameter's range."""
    if not _takes_floats(param.annotation):
        return param
    many = _takes_lists(param.annotation)

    def check(value: Any, single: Callable[[Any], Any]) -> Any:
        if isinstance(value, str) and value[:1] in ("[", "{"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"not valid JSON: {error}") from error
        if _is_schedule(value):
            return _checked(value, single)
        if many and isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
            return [_checked(v, single) if _is_schedule(v) else single(v) for v in value]
        return single(value)

    return dataclasses.replace(param, annotation=Annotated[param.annotation, WrapValidator(check)])


def _takes_floats(annotation: Any) -> bool:
    return annotation is float or any(_takes_floats(a) for a in get_args(annotation))


def _takes_lists(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(_takes_lists(a) for a in get_args(annotation))


def _is_schedule(value: Any) -> bool:
    rules = isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "gradient" not in v for v in value)
    return rules or isinstance(value, dict)


def _checked(value: Any, single: Callable[[Any], Any]) -> Any:
    """A schedule of numbers that ``single`` has accepted, as plain data."""
    if isinstance(value, dict):
        if list(value) != ["gradient"] or not isinstance(value["gradient"], list) or not value["gradient"]:
            raise ValueError(f"a value by layer is {{gradient: [numbers]}}, not {value!r}")
        return {"gradient": [_number(v, single) for v in value["gradient"]]}
    rules = []
    for rule in value:
        unknown = [key for key in rule if key not in _RULE]
        if unknown or "value" not in rule or sum(key in rule for key in CONDITIONS) > 1:
            hint = f" {did_you_mean(unknown[0], _RULE)}" if unknown else ""
            raise ValueError(
                f"a rule has a value and at most one of {', '.join(CONDITIONS)}, not {sorted(rule)}.{hint}"
            )
        kept = rule["value"]
        made = {"value": _checked(kept, single) if isinstance(kept, dict) else _number(kept, single)}
        for key in CONDITIONS:
            if rule.get(key) is not None:
                made[key] = _condition(key, str(rule[key]))
        rules.append(made)
    return rules


def _number(value: Any, single: Callable[[Any], Any]) -> Any:
    number = single(value)
    if isinstance(number, list) or (isinstance(number, float) and math.isnan(number)):
        raise ValueError(f"a schedule holds numbers, not {value!r}")
    return number


def _condition(key: str, text: str) -> str:
    if key == "regex":
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"{text!r} is not a regular expression: {error}") from error
    if key == "layer" and not _LAYER.match(text):
        raise ValueError(f"a condition on the layer is '>=20', '4-7' or '3', not {text!r}")
    return text


def at(value: Any, name: str, layer: int | None, t: float) -> Any:
    """A schedule's value for one tensor; None where no rule fits. What is no schedule is its own value."""
    if isinstance(value, dict):
        return _interpolate(value["gradient"], t)
    if not isinstance(value, list) or listed(value):
        return value
    for rule in value:
        if _applies(rule, name, layer):
            return at(rule["value"], name, layer, t)
    return None


def _interpolate(values: Sequence[float], t: float) -> float:
    place = t * (len(values) - 1)
    low = min(int(place), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return (1 - (place - low)) * values[low] + (place - low) * values[high]


def _applies(rule: Mapping[str, Any], name: str, layer: int | None) -> bool:
    if "filter" in rule:
        return rule["filter"] == "*" or rule["filter"] in name
    if "regex" in rule:
        return re.search(rule["regex"], name) is not None
    if "layer" in rule:
        found = _LAYER.match(rule["layer"])
        assert found is not None, "checked when it was given"
        sign, bound, first, last, exact = found.groups()
        if layer is None:
            return False
        if sign:
            return _COMPARE[sign](layer, int(bound))
        return int(first) <= layer <= int(last) if first else layer == int(exact)
    return True


def listed(value: Any) -> bool:
    """Whether a value is a list for the models and not a list of rules."""
    return isinstance(value, list) and not (bool(value) and isinstance(value[0], dict) and "value" in value[0])


def varies(value: Any) -> bool:
    """Whether a parameter's value is a schedule, or a list for the models that holds one."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict | list) for v in value))


def rules_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every rule within a value."""
    if isinstance(value, dict):
        if "value" in value:
            yield value
        return
    for item in value if isinstance(value, list) else ():
        yield from rules_in(item)


def refuse_idle(values: Iterable[Any], tensors: Sequence[tuple[str, int | None]]) -> None:
    """Raises ``param.value`` for a rule whose condition fits none of the tensors (name and layer)."""
    known: dict[tuple[tuple[str, Any], ...], bool] = {}
    for value in values:
        for rule in rules_in(value):
            key = tuple((k, rule[k]) for k in CONDITIONS if k in rule)
            if key not in known:
                known[key] = any(_applies(rule, name, layer) for name, layer in tensors)
            if not known[key]:
                words = [part for name, _ in tensors for part in name.split(".") if not part.isdigit()]
                (kind, text), *_ = key
                raise InterfuseError("param.value", f"the {kind} {text!r} fits no tensor of the models", where=f"{kind}: {text}",
                                     fix=did_you_mean(str(text), words))  # fmt: skip
