"""The verbs of the rooms: ``interfuse merge ties A B --base C -o out/``, generated from room and signature."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interfuse.cli.options import context, work_options
from interfuse.cli.output import as_json, duration, emit, say, size, table
from interfuse.core import index
from interfuse.core.bulk import bulk
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.data.digests import begin
from interfuse.kit.verbs import CONTEXT, json_option

if TYPE_CHECKING:
    from interfuse.core.method import Method
    from interfuse.core.rooms import Cost, Room

_KINDS = {"lm": "fused language model"}  # kinds of artifacts that read otherwise in a sentence


class RoomGroup(click.Group):
    """A room: its methods are commands, made from their signatures when they are used."""

    def entries(self) -> list[index.Entry]:
        """The methods of the room."""
        return [e for e in index.entries().values() if e.kind == "method" and e.room == self.name]

    def extra(self) -> dict[str, click.Command]:
        """The room's own further verbs, ``VERBS`` of ``interfuse/<room>/verbs.py`` when that file is there, and those that open pages."""
        folders = importlib.import_module(f"interfuse.{self.name}").__path__
        if not any((Path(folder) / "verbs.py").is_file() for folder in folders):
            return {}
        from interfuse.web.verbs import VERBS

        return {**importlib.import_module(f"interfuse.{self.name}.verbs").VERBS, **VERBS.get(self.name or "", {})}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [e.slug for e in self.entries()] + list(self.extra())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        slug = cmd_name.replace("_", "-")
        entry = index.own(self.name or "", slug) or next((e for e in self.entries() if e.slug == slug), None)
        return method_command(entry) if entry else self.extra().get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        mine = index.own(self.name or "", name.replace("_", "-"))  # nothing else needs to be known then
        known = [name] if mine else self.list_commands(ctx)
        default = vars(importlib.import_module(f"interfuse.{self.name}")).get("DEFAULT")
        if default in known and name not in known and Path(name).exists():
            args, name = [default, *args], default  # interfuse measure out/ --against A
        if default in known and name not in known and Path(name).suffix in (".yml", ".yaml"):
            raise InterfuseError("input.missing", "there is no such file", where=name)
        if not name.startswith("-") and name.replace("_", "-") not in known and name not in known:
            raise InterfuseError("method.unknown", f"the room {self.name} has no method {name!r}", where=ctx.command_path,
                                 fix=f"{did_you_mean(name, known)} See: interfuse {self.name}".strip())  # fmt: skip
        if not {"--help", "-h"} & set(args):
            begin(args[1:])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        methods = [(e.slug, e.card.title) for e in self.entries()]
        if methods:
            with formatter.section("Methods"):
                formatter.write_dl(methods)
        extra = self.extra()
        if extra:
            with formatter.section("Further verbs"):
                formatter.write_dl([(name, c.get_short_help_str(80)) for name, c in extra.items()])


def room_group(name: str) -> RoomGroup:
    """The command of a room; no method is imported."""
    text = importlib.import_module(f"interfuse.{name}").__doc__ or name

    @click.pass_context
    def listing(ctx: click.Context) -> None:
        ctx.meta[CONTEXT] = context  # for the room's further verbs, which know nothing of this package
        if ctx.invoked_subcommand is not None:
            return
        rows = [e.row() for e in group.entries()]
        if as_json():
            emit(rows)
            return
        table(["method", "status", "title"], [[r["id"].split("/")[1], r["status"], r["title"]] for r in rows])
        for verb, command in group.extra().items():
            say(f"also: interfuse {name} {verb}    {command.get_short_help_str(80)}")
        say(f"interfuse {name} METHOD --help shows a method's flags.")

    group = RoomGroup(name, callback=listing, invoke_without_command=True, params=[json_option()],
                      help=text.split("\n\n")[0], epilog=f"interfuse {name} METHOD --help shows a method's flags.")  # fmt: skip
    return group


class MethodCommand(click.Command):
    """A method's command; its help names inputs and parameters before the flags every method has."""

    def __init__(self, sections: dict[str, list[tuple[str, str]]], **rest: Any) -> None:
        super().__init__(**rest)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = [name for rows in self.sections.values() for name, _ in rows]
        for title, rows in self.sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        records = [p.get_help_record(ctx) for p in self.get_params(ctx) if isinstance(p, click.Option)]
        rest = [r for r in records if r is not None and r[0] not in shown]
        with formatter.section("Options"):
            formatter.write_dl(rest)


def method_command(entry: index.Entry) -> MethodCommand:
    """The command of one method: imports it, reads its signature, makes its flags."""
    from interfuse.cli.flags import example, input_param, param_option
    from interfuse.core.method import load
    from interfuse.core.rooms import load_room

    with _no_collection():
        method, room = load(entry.id), load_room(entry.room)
    inputs = [input_param(i) for i in room.inputs]
    params = [param_option(p) for p in method.params.values()]
    taken = {o for p in (*inputs, *params) for o in (*p.opts, *p.secondary_opts)}
    work = [p for p in work_options(out_help=f"The artifact's folder [default: {default_out(entry)}]")
            if not taken & {*p.opts, *p.secondary_opts}]  # fmt: skip
    blank = click.Context(click.Command(entry.slug))
    sections = {
        "Inputs": [_record(p, blank, i.doc + (" [required]" if i.required else ""))
                   for p, i in zip(inputs, room.inputs, strict=True)],
        "Parameters": [_record(p, blank) for p in params],
    }  # fmt: skip
    card = entry.card
    about = [card.title + (f" ({card.year})" if card.year else ""), _first_words(card.body)]
    about += [f"Status: {card.status}" + (f". Paper: {card.paper}" if card.paper else "")]

    def call(**values: Any) -> None:
        _call(method, room, values)

    return MethodCommand(
        sections, name=entry.slug, params=[*inputs, *params, *work], callback=call,
        help="\n\n".join(a for a in about if a), short_help=card.title,
        epilog=f"\b\nExample:\n  {example(room, method)}",
    )  # fmt: skip


def _first_words(body: str) -> str:
    """The first paragraph of a card's text that is no heading."""
    return next((part for part in body.strip().split("\n\n") if not part.startswith("#")), "")


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """What is made while libraries are imported stays: looking through it for garbage takes a tenth of the time for nothing."""
    with bulk():
        try:
            yield
        finally:
            gc.freeze()


def _record(param: click.Parameter, ctx: click.Context, words: str = "") -> tuple[str, str]:
    """A line of the help page; click has nothing to say of plain arguments."""
    record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
    return record if record is not None else (param.make_metavar(ctx), words.strip())


def default_out(entry: index.Entry) -> Path:
    """Where an artifact goes when nobody says."""
    return Path("runs") / f"{entry.room}-{entry.slug}"


def _call(method: Method, room: Room, values: dict[str, Any]) -> None:
    from interfuse.cli.flags import given_inputs, given_params
    from interfuse.cli.reports import print_report, report_rows
    from interfuse.core.artifact import open_artifact
    from interfuse.core.rooms import apply, key_of, manifest_of, prepare_at

    ctx = context(values.get("seed", 0), values.get("device", "auto"), values.get("dtype", "float32"),
                  values.get("budget_calls"), values.get("budget_tokens"))  # fmt: skip
    if ctx.device not in ("auto", "cpu"):  # told before anything is opened, of a dry run too
        from interfuse.data.models import device_of

        device_of(ctx)
    out, force = values.get("out") or default_out(method.entry), bool(values.get("force"))
    given = {**given_params(method, values), **given_inputs(room, values)}
    with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the result
        if values.get("dry_run"):
            call, _ = prepare_at(room, method, given, ctx, out, force=force)
            facts, cost = manifest_of(room, call, key_of(call)), room.estimate(call)
        else:
            began = time.monotonic()
            apply(method.id, out=out, ctx=ctx, force=force, **given)
            seconds = time.monotonic() - began
    if values.get("dry_run"):
        _print_plan(facts, cost, out)
        return
    artifact = open_artifact(out)
    if as_json():
        emit({"path": str(out), "kind": artifact.kind, "method": method.id, "digest": artifact.digest,
              "facts": artifact.manifest["facts"], "seconds": round(seconds, 3), "reports": report_rows([out])})  # fmt: skip
        return
    print_report(out)
    say(f"{method.id} made a {_KINDS.get(artifact.kind, artifact.kind)} in {duration(seconds)}: {out}")


def _print_plan(facts: dict[str, Any], cost: Cost, out: Path) -> None:
    if as_json():
        emit({"dry_run": True, "out": str(out), **facts, "cost": dataclasses.asdict(cost)})
        return
    say(f"{facts['method']} {facts['version']} would make a {facts['kind']} at {out}")
    rows = [[name, n["name"], n["fingerprint"][:12]] for name, v in facts["inputs"][0].items()
            for n in (v if isinstance(v, list) else [v])]  # fmt: skip
    table(["input", "name", "fingerprint"], rows)
    if facts["params"]:
        table(["parameter", "value"], [[k, str(v)] for k, v in facts["params"].items()])
    say("cost: " + cost_words(cost))


def cost_words(cost: Cost) -> str:
    """A cost in words."""
    looking = f"{cost.tokens:,} tokens through models, " if cost.tokens else ""
    looking += f"{size(cost.memory)} of memory, " if cost.memory else ""
    calls = f"at most {cost.calls:,}" if cost.calls else "no"
    return (f"read {size(cost.bytes_read)}, write {size(cost.bytes_written)}, {looking}{calls} endpoint calls, "
            f"about {duration(cost.seconds)}")  # fmt: skip
