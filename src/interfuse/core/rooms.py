"""What a room promises: its inputs, its engine, and how one call of a method is checked, priced and carried out."""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from interfuse.core import index
from interfuse.core.artifact import MANIFEST, Artifact, environment, refuse_taken, save_artifact
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.method import Method, Param, load
from interfuse.core.safe import fingerprint
from interfuse.core.safe import jsonable as jsonable

#: opening inputs loads large libraries, of which some are broken when two threads load them at once
_OPENING = threading.RLock()


class Noun(Protocol):
    """A model, table, graph ... : has a name for reports and a fingerprint of its content.

    What a room promises to make is a frozen dataclass that also has the fields ``made_by``, ``parents`` and ``key``; with
    a ``key``, that is its fingerprint.
    """

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str:
        """A digest that changes when the content does."""
        ...


@dataclass(frozen=True)
class Source:
    """What a recipe, a flag or a caller names as an input, before it is opened.

    Attributes:
        spec: a path or id (str), a table of keys from a recipe, or a Python object.
        name: how reports call it. folder: where relative paths start.
    """

    spec: Any
    name: str = ""
    folder: Path = Path()


@dataclass(frozen=True)
class Input:
    """One input of a room.

    Attributes:
        name: the recipe key; the flag is ``--name``. ``positional``: the command line takes it as plain arguments.
        open: turns a :class:`Source` into a noun, reading as little as possible; raises coded errors.
    """

    name: str
    open: Callable[[Source, Ctx], Any]
    many: bool = False
    required: bool = True
    positional: bool = False
    doc: str = ""


@dataclass(frozen=True)
class Cost:
    """What a step will cost: bytes read and written, endpoint calls, a rough time in seconds; and where models look at examples
    before the work, the tokens they read and the most memory that takes, in bytes."""

    bytes_read: int = 0
    bytes_written: int = 0
    calls: int = 0
    seconds: float = 0.0
    tokens: int = 0
    memory: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes_read + other.bytes_read, self.bytes_written + other.bytes_written, self.calls + other.calls,
                    self.seconds + other.seconds, self.tokens + other.tokens, max(self.memory, other.memory))  # fmt: skip


@dataclass
class Call:
    """One application of a method. ``replicas`` holds the inputs of every seed for rooms that work across seeds."""

    method: Method
    inputs: Mapping[str, Any]
    params: Mapping[str, Any]
    ctx: Ctx
    seeds: Sequence[int] = ()
    replicas: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Room:
    """A room's contract.

    Attributes:
        run: does the work: fills the folder it is given and returns facts for the manifest.
        check: raises coded errors before any work starts. estimate: the cost, from sizes and a short look at the inputs, before every run.
        promise: the noun that ``run`` will have made at a path, known before the work as far as the plan needs it.
        parts: further nouns that will lie beside it, by name, promised likewise: a recipe takes one with ``{from: STEP, take: NAME}``.
        across_seeds: one call sees the inputs of all seeds.
        settings: a dataclass whose fields are parameters of every method of the room.
        unkeyed: settings that change how work is done and no byte of what it makes: threads, memory. They stand in no key and no
            manifest, so that work that was stopped under some goes on under others.
        widen: changes what a parameter of a method may be given as, for rooms that understand more than the method does.
        renews: (call, path, force) -> whether what stands at the path is an earlier result of the same work, which the call's result may
            replace without being asked (``force``) to; raises or tells when that would lose something.
    """

    name: str
    kind: str
    inputs: tuple[Input, ...]
    run: Callable[[Call, Path], Mapping[str, Any]]
    promise: Callable[[Call, Path], Any]
    check: Callable[[Call], None] = field(default=lambda call: None)
    estimate: Callable[[Call], Cost] = field(default=lambda call: Cost())
    across_seeds: bool = False
    settings: type | None = None
    unkeyed: tuple[str, ...] = ()
    widen: Callable[[Param], Param] = field(default=lambda param: param)
    parts: Callable[[Call, Path], Mapping[str, Any]] = field(default=lambda call, path: {})
    renews: Callable[[Call, Path, bool], bool] | None = None

    def open_inputs(self, given: Mapping[str, Any], ctx: Ctx, where: str = "") -> dict[str, Any]:
        """Opens every input. ``given`` maps input names to a :class:`Source`, a noun, or lists of these."""
        opened: dict[str, Any] = {}
        for name in given:
            if name not in {i.name for i in self.inputs}:
                raise InterfuseError(
                    "param.unknown",
                    f"the room {self.name} has no input {name!r}",
                    where=where,
                    fix=did_you_mean(name, [i.name for i in self.inputs]),
                )
        for item in self.inputs:
            value = given.get(item.name)
            if value is None or (isinstance(value, list | tuple) and not value):
                if item.required:
                    raise InterfuseError(
                        "param.missing", f"the input {item.name!r} is not given", where=where, fix=item.doc
                    )
                opened[item.name] = [] if item.many else None
                continue
            values = value if isinstance(value, list | tuple) else [value]
            if len(values) > 1 and not item.many:
                raise InterfuseError(
                    "param.value", f"the input {item.name!r} takes one source, {len(values)} are given", where=where
                )
            nouns = [item.open(v if isinstance(v, Source) else Source(v), ctx) for v in values]
            opened[item.name] = nouns if item.many else nouns[0]
        return opened


def load_room(name: str) -> Room:
    """The contract of a room.

    Raises:
        InterfuseError: ``method.unknown`` when there is no such room.
    """
    if name not in index.rooms():
        raise InterfuseError("method.unknown", f"there is no room {name!r}", fix=did_you_mean(name, index.rooms()))
    return index.load_room_module(name).ROOM


def split(room: Room, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separates a step's keys into inputs of the room and parameters of the method."""
    names = {i.name for i in room.inputs}
    return {k: v for k, v in values.items() if k in names}, {k: v for k, v in values.items() if k not in names}


def prepare(room: Room, method: Method, given: Mapping[str, Any], ctx: Ctx, *, where: str = "") -> Call:
    """A checked call: inputs opened, parameters converted, the room's own checks passed. No work has been done."""
    inputs, params = split(room, given)
    checked = method.check(params, where=where, extra=tuple(i.name for i in room.inputs))
    opened = room.open_inputs(inputs, ctx, where)
    call = Call(method, opened, checked, ctx, (ctx.seed,), (opened,))
    room.check(call)
    return call


def manifest_of(room: Room, call: Call, key: str) -> dict[str, Any]:
    """What ``interfuse.json`` says of a call, without times or places."""

    def lineage(value: Any) -> Any:
        return (
            [lineage(v) for v in value]
            if isinstance(value, list)
            else {"name": value.name, "fingerprint": value.fingerprint()}
        )

    return {
        "kind": room.kind,
        "method": call.method.id,
        "version": call.method.version(),
        "params": _keyed(call),
        "inputs": [
            {k: lineage(v) for k, v in replica.items() if v is not None and v != []} for replica in call.replicas
        ],
        "seeds": list(call.seeds),
        "dtype": call.ctx.dtype,
        "key": key,
        "environment": environment(),
    }


def _keyed(call: Call) -> Any:
    """The parameters that what is made may depend on."""
    return jsonable({name: value for name, value in call.params.items() if name not in call.method.unkeyed})


def key_of(call: Call) -> str:
    """The key of a call: it changes with the method's version, a parameter (but those the room leaves out of keys), an
    input's content or a seed."""

    def prints(value: Any) -> Any:
        return (
            [prints(v) for v in value]
            if isinstance(value, list)
            else None
            if value is None
            else [value.name, value.fingerprint()]
        )

    return fingerprint({
        "method": call.method.id, "version": call.method.version(), "params": _keyed(call), "dtype": call.ctx.dtype,
        "seeds": list(call.seeds), "inputs": [{k: prints(v) for k, v in r.items()} for r in call.replicas],
    })  # fmt: skip


def carry_out(room: Room, call: Call, path: Path, key: str, *, force: bool = False) -> Artifact:
    """Does the work of a checked call and saves its artifact atomically.

    Unfinished work keeps its state in a hidden folder beside ``path`` that only the same key goes on with.

    Raises:
        InterfuseError: ``output.exists``, ``output.busy``, ``output.space`` or ``output.write``, or whatever stops the work.
    """
    scratch = path.parent / f".scratch-{path.name}-{key[:12]}"
    local = replace(call, ctx=call.ctx.with_(scratch=scratch))

    def work(folder: Path) -> Mapping[str, Any]:
        drop_scratch(path, but=scratch)  # the lock is held here: nobody is using it
        return room.run(local, folder)

    try:
        made = save_artifact(path, work, manifest_of(room, local, key), force=force)
    except InterfuseError as error:
        if error.code.startswith("input."):  # the same input would be refused again: there is nothing to go on with
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    return made


def prepare_at(
    room: Room, method: Method, given: Mapping[str, Any], ctx: Ctx, out: Path | None, *, force: bool = False
) -> tuple[Call, bool]:
    """A checked call whose result may go to ``out``, and whether it replaces what is there.

    Raises:
        InterfuseError: as :func:`prepare`, or ``output.exists``, before inputs are opened where that is enough.
    """
    again = room.renews if out is not None and (out / MANIFEST).is_file() else None
    if out is not None and again is None:
        refuse_taken(out, force=force)
    call = prepare(room, method, given, ctx)
    if out is not None and again is not None:
        force = again(call, out, force) or force
        refuse_taken(out, force=force)
    return call, force


def drop_scratch(path: Path, *, but: Path | None = None) -> None:
    """Removes the state of unfinished work at ``path`` that no run will go on with."""
    for left in path.parent.glob(".scratch-*"):
        if left != but and left.name.startswith(f".scratch-{path.name}-"):
            shutil.rmtree(left, ignore_errors=True)


def apply(
    method_name: str,
    *,
    room: str = "",
    out: str | Path | None = None,
    ctx: Ctx | None = None,
    seed: int | None = None,
    force: bool = False,
    **given: Any,
) -> Any:
    """Runs one method and returns the noun it makes.

    Args:
        method_name: an id (``merge/ties``) or, with ``room``, a slug.
        out: the folder of the artifact; a fresh temporary folder when None.
        ctx: device, budget, log ...; ``seed`` is used instead of its seed when given.
        given: the room's inputs and the method's parameters by name.

    Raises:
        InterfuseError: with the code of whatever was wrong, before work starts.
    """
    chosen = load(method_name, room=room)
    door_room = load_room(chosen.entry.room)
    ctx = ctx or Ctx()
    ctx = ctx if seed is None else ctx.with_(seed=seed)
    with _OPENING:
        call, force = prepare_at(door_room, chosen, given, ctx, Path(out) if out is not None else None, force=force)
    place = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="interfuse-")) / chosen.entry.slug
    carry_out(door_room, call, place, key_of(call), force=force)
    return door_room.promise(call, place)


class Function:
    """A method as a function of its room's package: ``interfuse.merge.ties([a, b], base=c, density=0.3)``. Plain arguments are the room's
    inputs in order. Signature and the list of parameters in its documentation are read when somebody asks for them: they take torch."""

    def __init__(self, room: str, name: str) -> None:
        self.room, self.slug = room, name.replace("_", "-")
        self.__name__, self.__qualname__, self.__module__ = name, f"{room}.{name}", f"interfuse.{room}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = [i.name for i in load_room(self.room).inputs]
        if len(args) > len(names):
            raise TypeError(f"{self.__name__}() takes at most {len(names)} plain arguments: {', '.join(names)}")
        return apply(self.slug, room=self.room, **dict(zip(names, args, strict=False)), **kwargs)

    def __repr__(self) -> str:
        return f"<interfuse.{self.__qualname__}>"

    @property
    def __signature__(self) -> inspect.Signature:
        kinds, shared = inspect.Parameter, inspect.signature(apply).parameters
        room, method = load_room(self.room), load(self.slug, room=self.room)
        rows = [
            kinds(i.name, kinds.POSITIONAL_OR_KEYWORD, default=kinds.empty if i.required else None) for i in room.inputs
        ]
        rows += [kinds(p.name, kinds.KEYWORD_ONLY, default=p.default) for p in method.params.values()]
        rows += [shared[name] for name in ("out", "ctx", "seed", "force") if name not in {r.name for r in rows}]
        # an input that may be left out can stand before one that may not: all can be given by name
        return inspect.Signature(rows, __validate_parameters__=False)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        entry = index.entries()[f"{self.room}/{self.slug}"]
        lines = [entry.card.body.strip(), "", "Inputs, in this order or by name:"]
        try:
            room, method = load_room(self.room), load(self.slug, room=self.room)
        except InterfuseError as error:  # a package is missing
            return f"{entry.card.body.strip()}\n\n{error}\n"
        lines += [f"    {i.name}: {i.doc}" + (" (required)" if i.required else "") for i in room.inputs]
        lines += ["", "Parameters:"]
        for param in method.params.values():
            default = "required" if param.required else f"default {param.default!r}"
            lines.append(
                f"    {param.name}: {param.doc} ({' '.join(filter(None, (param.type_name, param.bounds)))}; {default})"
            )
        return "\n".join([*lines, "", "Further: out, ctx, seed and force, see interfuse.apply.", ""])


class _Door(ModuleType):
    """A room's package. Importing a method's module must not hide the method's function of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        file = getattr(value, "__file__", None) if isinstance(value, ModuleType) else None
        if file is None or not Path(file).with_suffix(".md").is_file():
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        room = self.__name__.rpartition(".")[2]
        methods = [e.slug.replace("-", "_") for e in index.entries().values() if e.room == room and e.kind == "method"]
        return sorted({*super().__dir__(), *methods})


def door(package: str) -> Callable[[str], Any]:
    """A room package's ``__getattr__``: its methods as functions, imported when first used (:class:`Function`)."""
    room_name = package.rsplit(".", 1)[1]
    sys.modules[package].__class__ = _Door

    def __getattr__(attribute: str) -> Any:
        slug = attribute.replace("_", "-")
        known = index.own(room_name, slug) is not None or f"{room_name}/{slug}" in index.entries()
        if attribute.startswith("_") or not known:
            raise AttributeError(
                f"the room {room_name} has no method {attribute!r}. "
                + did_you_mean(slug, [e.slug for e in index.entries().values() if e.room == room_name])
            )
        return Function(room_name, attribute)

    return __getattr__


def room_module(name: str) -> ModuleType:
    """The light package of a room (its docstring, ``TAKES`` and ``MAKES``)."""
    return importlib.import_module(f"interfuse.{name}")
