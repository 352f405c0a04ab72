"""The typed signature of a method is its schema: for flags, recipe keys, checks and docs.

A method is a function (or a frozen dataclass) marked with :func:`method`. Its keyword-only arguments (or its fields) are
the parameters; their types may carry ``pydantic.Field`` with ranges and a description::

    @method(needs_base=True)
    def ties(base, deltas, *, density: Annotated[float, Field(gt=0, le=1, description="share kept")] = 0.2): ...
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from interfuse.core import index
from interfuse.core.card import Card
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.safe import code_sha256, fingerprint

T = TypeVar("T", bound=Callable[..., Any])
_MARK = "__interfuse_traits__"


def method(**traits: Any) -> Callable[[T], T]:
    """Marks the one public function or frozen dataclass of a method file. ``traits`` are facts its room's engine reads."""

    def mark(target: T) -> T:
        setattr(target, _MARK, traits)
        return target

    return mark


@dataclass(frozen=True)
class Param:
    """One parameter: name, annotation, default (``inspect.Parameter.empty`` when required), description and range in words."""

    name: str
    annotation: Any
    default: Any
    doc: str = ""
    bounds: str = ""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def type_name(self) -> str:
        """The type in words a reader of help pages knows."""
        return type_name(self.annotation)

    @functools.cached_property
    def _reader(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation)

    def check(self, value: Any, where: str = "") -> Any:
        """The value, converted to the declared type.

        Raises:
            InterfuseError: ``param.value`` saying what was expected.
        """
        try:
            checked = self._reader.validate_python(value)
        except ValidationError as error:
            raise self._wrong(value, "; ".join(dict.fromkeys(e["msg"] for e in error.errors())), where) from error
        if isinstance(checked, float) and math.isnan(checked):
            raise self._wrong(value, "it is not a number", where)
        return checked

    def _wrong(self, value: Any, detail: str, where: str) -> InterfuseError:
        bounds = f" {self.bounds}" if self.bounds else ""
        return InterfuseError("param.value", f"{self.name} = {reprlib.repr(value)}: {detail}", where=where,
                              fix=f"{self.name} is {self.type_name}{bounds}. {self.doc}".strip())  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A method that has been imported: its entry in the index, its code, parameters and traits.

    ``unkeyed`` names the parameters that change how work is done and no byte of what it makes (its room says which).
    """

    entry: index.Entry
    target: Callable[..., Any]
    params: Mapping[str, Param]
    traits: Mapping[str, Any] = field(default_factory=dict)
    unkeyed: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def card(self) -> Card:
        return self.entry.card

    def version(self) -> str:
        """The card's version and a hash of the method's file and of its room's engine: part of every step's key."""
        files = [inspect.getsourcefile(self.target), inspect.getsourcefile(index.load_room_module(self.entry.room))]
        return f"{self.card.version}+{fingerprint([code_sha256(f) for f in files if f])[:12]}"

    def check(self, values: Mapping[str, Any], *, where: str = "", extra: tuple[str, ...] = ()) -> dict[str, Any]:
        """All parameters, defaults filled in, each converted and checked.

        Args:
            values: what was given. ``extra``: names that are not parameters but allowed beside them, for suggestions.

        Raises:
            InterfuseError: ``param.unknown``, ``param.missing`` or ``param.value``.
        """
        for name in values:
            if name not in self.params:
                raise InterfuseError(
                    "param.unknown",
                    f"{self.id} has no parameter {name!r}",
                    where=where,
                    fix=did_you_mean(name, [*self.params, *extra]),
                )
        checked = {}
        for name, param in self.params.items():
            if name in values:
                checked[name] = param.check(values[name], where)
            elif param.required:
                raise InterfuseError(
                    "param.missing", f"{self.id} needs the parameter {name!r}", where=where, fix=param.doc
                )
            else:
                checked[name] = param.default
        return checked


def type_name(annotation: Any) -> str:
    """An annotation in words: ``float``, ``list of int``, ``one of a | b``."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(args[0])
    if origin is typing.Literal:
        return " | ".join(str(a) for a in args)
    if origin in (list, tuple) and args:
        return "list of " + type_name(args[0])
    if origin is dict and args:
        return "table of " + type_name(args[1])
    if args:
        return " or ".join(type_name(a) for a in args if a is not type(None)) + (
            " (optional)" if type(None) in args else ""
        )
    return getattr(annotation, "__name__", str(annotation))


def _plain(annotation: Any) -> bool:
    """Whether an annotation is made of the types that recipes are made of, so that there is no need to ask pydantic whether it can read it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Annotated, list, dict, typing.Union, types.UnionType):
        return all(map(_plain, args[:1] if origin is typing.Annotated else args))
    return origin is typing.Literal or any(annotation is t for t in (bool, int, float, str, types.NoneType, Path, Any))


def _infos(annotation: Any) -> list[FieldInfo]:
    """The fields' descriptions and ranges of an annotation, those within a union or list included."""
    found = [m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, FieldInfo)]
    return found + [info for part in typing.get_args(annotation) for info in _infos(part)]


def _bounds(meta: Any) -> str:
    words = {"Gt": ("gt", "> "), "Ge": ("ge", ">= "), "Lt": ("lt", "< "), "Le": ("le", "<= ")}
    parts = [
        words[type(m).__name__][1] + f"{getattr(m, words[type(m).__name__][0]):g}"
        for m in meta
        if type(m).__name__ in words
    ]
    return " and ".join(dict.fromkeys(parts))  # a number and a list of them have the same


@functools.cache
def read_params(target: Callable[..., Any]) -> Mapping[str, Param]:
    """The parameters of a marked function (keyword-only arguments but ``ctx``) or dataclass (fields)."""
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    except NameError as error:
        raise InterfuseError("method.card", f"an annotation cannot be resolved: {error}", where=str(target)) from error
    found = {}
    for p in inspect.signature(target).parameters.values():
        if (p.kind is not p.KEYWORD_ONLY and not dataclasses.is_dataclass(target)) or p.name == "ctx":
            continue
        annotation = hints.get(p.name, Any)
        infos = _infos(annotation)
        doc = next((i.description for i in infos if i.description), "")
        default = p.default
        if type(default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
            factory = next(f.default_factory for f in dataclasses.fields(target) if f.name == p.name)  # type: ignore[arg-type]
            default = factory() if callable(factory) else default
        found[p.name] = Param(p.name, annotation, default, doc, _bounds([m for i in infos for m in i.metadata]))
        try:
            if not _plain(annotation):
                _ = found[p.name]._reader
        except PydanticSchemaGenerationError as error:
            raise InterfuseError(
                "method.card", f"the parameter {p.name!r} has a type no recipe can give", where=str(target)
            ) from error
    return MappingProxyType(found)


def load(name: str, *, room: str = "") -> Method:
    """Imports the method of an id or slug.

    Raises:
        InterfuseError: ``method.unknown`` with a suggestion, ``method.card`` when the file does not hold exactly one method.
    """
    entry = index.find(name, room=room)
    if entry.kind != "method":
        raise InterfuseError(
            "method.unknown", f"{entry.id} is a {entry.kind}, not a method", fix=f"interfuse run {entry.id}"
        )
    module = index.load_module(entry)
    marked = [
        v
        for v in vars(module).values()
        if getattr(v, "__module__", "") == module.__name__ and _MARK in getattr(v, "__dict__", {})
    ]
    if len(marked) != 1:
        raise InterfuseError("method.card", f"the module holds {len(marked)} methods, not one", where=entry.module)
    room_of = index.load_room_module(entry.room).ROOM
    shared = read_params(room_of.settings) if room_of.settings is not None else {}
    own = {name: room_of.widen(param) for name, param in read_params(marked[0]).items()}
    return Method(entry, marked[0], {**shared, **own}, getattr(marked[0], _MARK), room_of.unkeyed)
