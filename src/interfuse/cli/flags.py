"""From schema to flags: a room's inputs and a method's typed parameters as click options, and their texts as values."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from interfuse.core.errors import InterfuseError
from interfuse.core.method import Method, Param
from interfuse.core.rooms import Input, Room, Source
from interfuse.core.safe import load_yaml, read_text

_NOT = object()


def flag_of(name: str) -> str:
    """The flag of a parameter or input: ``top_k`` -> ``--top-k``."""
    return "--" + name.replace("_", "-")


def alternatives(annotation: Any) -> tuple[list[Any], bool]:
    """The types an annotation admits, without ``Annotated`` and ``None``, and whether None is one of them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        found: list[Any] = []
        optional = False
        for item in typing.get_args(annotation):
            inner, none = alternatives(item)
            found += inner
            optional = optional or none
        return found, optional
    return ([], True) if annotation in (None, type(None)) else ([annotation], False)


def is_switch(annotation: Any) -> bool:
    """Whether the flag is ``--x/--no-x``."""
    return alternatives(annotation)[0] == [bool]


def read_value(text: str, annotation: Any, name: str = "value") -> Any:
    """The text of a flag as a value of the annotated type, as far as the text allows; pydantic has the last word.

    Lists are comma-separated or JSON, tables are JSON or written as in recipes, ``none`` is None where that is allowed. Tables, and lists of lists or tables,
    may stand in a YAML or JSON file that is named instead, alone or under the parameter's name.

    Raises:
        InterfuseError: ``param.value`` when the text looks like JSON and is not; ``input.format`` or ``input.missing`` of a file.
    """
    found, optional = alternatives(annotation)
    if optional and text.lower() in ("none", "null"):
        return None
    if text.endswith((".yaml", ".yml", ".json")) and any(_nested(a) for a in found):
        value, _ = load_yaml(read_text(Path(text)), where=text)
        return value[name] if isinstance(value, dict) and list(value) == [name] else value
    if (
        text[:1] not in ("[", "{")
        and found
        and all(_is_table(a) or any(map(_is_table, typing.get_args(a))) for a in found)
    ):
        raise InterfuseError("param.value", f"{name} is {text[:60]!r}, which is no JSON and no YAML or JSON file", where=flag_of(name),
                             fix="Give JSON, or write it into a file and give the file's name: it ends with .yaml or .json.")  # fmt: skip
    if text[:1] in ("[", "{") and any(_holds(a) for a in found):
        return _written(text, name)
    for kind in sorted(found, key=lambda a: _rank(a, text)):
        value = _as(text, kind, name)
        if value is not _NOT:
            return value
    return text


def _written(text: str, name: str) -> Any:
    """A list or table written as JSON, or as recipes write it: ``{endpoint: "http://...", model: NAME}``."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            value, _ = load_yaml(text, where=flag_of(name))
            if not isinstance(value, dict) or None not in value.values():  # {a:1} is a key without a value
                return value
        except InterfuseError:
            pass  # what JSON said of it is plainer
        raise InterfuseError("param.value", f"{name} is not valid JSON: {error}", where=flag_of(name)) from error


def _is_table(kind: Any) -> bool:
    kind = typing.get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _nested(kind: Any) -> bool:
    """Whether a type holds tables, or lists below its surface, so that commas alone cannot write it."""
    if typing.get_origin(kind) in (None, typing.Literal):
        return _is_table(kind)
    inner = [a for i in typing.get_args(kind) if i not in (Any, Ellipsis) for a in alternatives(i)[0]]
    return _is_table(kind) or any(_holds(a) for a in inner if a is not Any)


def _holds(kind: Any) -> bool:
    return kind is Any or (typing.get_origin(kind) or kind) not in (str, int, float, bool, Path, typing.Literal)


def _rank(kind: Any, text: str) -> int:
    origin = typing.get_origin(kind) or kind
    if origin in (list, tuple, Sequence):
        return 4 if "," in text else 7
    order = {typing.Literal: 0, bool: 1, int: 2, float: 3, Path: 6, str: 6}
    return order.get(origin, 5)


def _as(text: str, kind: Any, name: str) -> Any:
    origin, args = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Literal:
        return next((a for a in args if str(a) == text), _NOT)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), _NOT)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return _NOT
    if origin in (list, tuple, Sequence):
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        each = (
            [args[i] for i in range(len(parts))]
            if _fixed(origin, args, len(parts))
            else [args[0] if args else str] * len(parts)
        )
        return [read_value(part, item, name) for part, item in zip(parts, each, strict=True)]
    if kind is Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text if kind in (str, Path) else _NOT


def _fixed(origin: Any, args: tuple[Any, ...], count: int) -> bool:
    return origin is tuple and Ellipsis not in args and len(args) == count


def default_text(value: Any) -> str:
    """A default as one would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and all(isinstance(v, str | int | float) for v in value):
        return ",".join(str(v) for v in value) or "empty"
    if isinstance(value, Mapping):
        return json.dumps(dict(value), default=str)
    return f"{value:g}" if isinstance(value, float) else str(value)


def param_help(param: Param) -> str:
    """Description, range and default of a parameter in one line."""
    facts = [param.bounds] if param.bounds else []
    if any(_nested(a) for a in alternatives(param.annotation)[0]):
        facts.insert(0, "JSON, or the name of a .yaml or .json file")
    facts.append("required" if param.required else f"default: {default_text(param.default)}")
    return f"{param.doc} [{'; '.join(facts)}]".strip()


def param_option(param: Param) -> click.Option:
    """The flag of one parameter. Nothing given stays None; :func:`given_params` tells it from a given value."""
    flag = flag_of(param.name)
    if is_switch(param.annotation):
        return click.Option([f"{flag}/--no-{flag[2:]}", f"param_{param.name}"], default=None, help=param_help(param))
    return click.Option(
        [flag, f"param_{param.name}"],
        default=None,
        type=str,
        metavar=param.type_name.removesuffix(" (optional)"),
        help=param_help(param),
    )


def given_params(method: Method, values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that were given on the command line, as values.

    Raises:
        InterfuseError: ``param.value``.
    """
    found = {}
    for name, param in method.params.items():
        text = values.get(f"param_{name}")
        if text is not None:
            found[name] = read_value(text, param.annotation, name) if isinstance(text, str) else text
    return found


def input_param(item: Input) -> click.Parameter:
    """The argument or flag of one input. Whether it must be given is checked by the room, with its own words."""
    key = f"input_{item.name}"
    if item.positional:
        metavar = item.name.upper().replace("_", "-") + ("..." if item.many else "")
        return click.Argument([key], nargs=-1 if item.many else 1, required=False, metavar=metavar)
    words = item.doc + ("; repeat it for several" if item.many else "") + (" [required]" if item.required else "")
    return click.Option(
        [flag_of(item.name), key], multiple=item.many, default=None, type=str,
        metavar=item.name.upper().replace("_", "-"), help=words.strip(),
    )  # fmt: skip


def given_inputs(room: Room, values: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that were given on the command line, as sources. A text in braces is a table, as in a recipe.

    Raises:
        InterfuseError: ``param.value`` when a table is not valid JSON.
    """
    found: dict[str, Any] = {}
    for item in room.inputs:
        value = values.get(f"input_{item.name}")
        if value is None or value == ():
            continue
        found[item.name] = [_source(v, item.name) for v in value] if item.many else _source(value, item.name)
    return found


def _source(text: str, name: str) -> Source:
    return Source(_written(text, name) if text.startswith("{") else text)


def example(room: Room, method: Method) -> str:
    """One command line that calls the method with all it needs: its card's, or what its inputs and parameters say."""
    words = ["interfuse", room.name, method.entry.slug]
    if method.card.example:
        return " ".join([*words, method.card.example, "-o", "out/"])
    for item in (i for i in room.inputs if i.positional):
        words += ["A", "B"][: _count(item, method)]
    for item in (i for i in room.inputs if not i.positional):
        words += [flag_of(item.name), item.name.upper().replace("_", "-")] * _count(item, method)
    shared = {f.name for f in dataclasses.fields(room.settings)} if room.settings is not None else set()
    shown = [p for p in method.params.values() if p.required]
    optional = [
        p
        for p in method.params.values()
        if not p.required and isinstance(p.default, int | float | str) and p.default != ""
    ]
    plain = [p for p in optional if not isinstance(p.default, bool)]
    for param in shown or sorted(plain, key=lambda p: p.name in shared)[:1]:  # its own before those of the room
        value = "VALUE" if param.required or param.default == "" else default_text(param.default)
        words += [flag_of(param.name), value]
    return " ".join([*words, "-o", "out/"])


def _count(item: Input, method: Method) -> int:
    """How many sources an example gives an input: those the room, the method's trait or the words of its card ask for."""
    trait, takes = method.traits.get(item.name), method.card.takes
    if isinstance(trait, tuple):  # least and most
        return max(int(trait[0]), min(int(trait[1]), 2))
    needs = method.traits.get("needs", ())
    needed = isinstance(needs, tuple) and item.name in needs
    if not (item.required or trait == "required" or needed or re.search(rf"\b{item.name}s?\b", takes)):
        return 0
    return 2 if item.many and (item.positional or re.search(rf"\btwo\b.*\b{item.name}s\b", takes)) else 1
