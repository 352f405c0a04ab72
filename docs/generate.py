"""Makes the pages that come from the code: rooms, methods, recipes, command line, errors. A hook of mkdocs.

Nothing made here is kept in the tree. :func:`pages` gives the generated pages by their place; in a written page the line
``<!-- table: NAME -->`` stands for a table of :func:`tables`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from interfuse.cli.catalogue import cite_key
from interfuse.cli.flags import default_text, example, flag_of
from interfuse.cli.main import VERBS, app
from interfuse.core import index
from interfuse.core.errors import CODES, InterfuseError
from interfuse.core.method import Method, Param, load, read_params
from interfuse.core.recipe import load_recipe
from interfuse.core.rooms import Room, load_room, room_module

ROOT = Path(__file__).resolve().parents[1]
#: pages of the root folder that the site shows as well
ROOT_PAGES = {"contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}
EXIT = {1: "1 failed", 2: "2 usage", 3: "3 bad input", 4: "4 out of budget"}


# ---------------------------------------------------------------------------------------------- Markdown


def cell(value: object) -> str:
    """Text that stays within one cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; empty text when there are no rows."""
    body = ["| " + " | ".join(cell(v) for v in row) + " |" for row in rows]
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(head + body) if body else ""


def lowered(body: str) -> str:
    """Markdown with every heading one level deeper, so that the page keeps its one title."""
    inside, lines = False, []
    for line in body.split("\n"):
        inside ^= line.startswith("```")
        lines.append("#" + line if line.startswith("#") and not inside else line)
    return "\n".join(lines)


def prose(docstring: str) -> str:
    """A docstring as Markdown: a double colon before an indented block is one colon."""
    return re.sub(r"::(?=\n\n[ \t])", ":", inspect.cleandoc(docstring))


def joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


# ---------------------------------------------------------------------------------------------- parts of pages


def params_table(params: Iterable[Param]) -> str:
    """The parameters with their flags, types, defaults and ranges."""
    rows = [[f"`{p.name}`", f"`{flag_of(p.name)}`", p.type_name, "required" if p.required else f"`{default_text(p.default)}`",
             p.bounds, p.doc] for p in params]  # fmt: skip
    return table(["parameter", "flag", "type", "default", "range", "what"], rows)


def inputs_table(room: Room) -> str:
    """The inputs of a room as recipes and the command line name them."""
    rows = []
    for item in room.inputs:
        given = item.name.upper().replace("_", "-") if item.positional else f"`{flag_of(item.name)}`"
        rows.append([f"`{item.name}`", given, "yes" if item.required else "no", "yes" if item.many else "no", item.doc])
    return table(["input", "on the command line", "required", "several", "what"], rows)


def of_kind(kind: str, room: str = "") -> list[index.Entry]:
    return [e for e in index.entries().values() if e.kind == kind and room in ("", e.room)]


@functools.cache
def loaded(name: str) -> tuple[Method | None, str]:
    """A method with its code; a sentence instead when a package it needs is not installed."""
    try:
        return load(name), ""
    except InterfuseError as error:
        if error.code != "needs.package":
            raise
        return None, error.what


def shared_names(room: Room) -> set[str]:
    return set(read_params(room.settings)) if room.settings is not None else set()


# ---------------------------------------------------------------------------------------------- pages


def method_page(entry: index.Entry) -> str:
    """One method: what it does and when not to use it, how it is called, what was claimed and what was measured."""
    card, row, room = entry.card, entry.row(), load_room(entry.room)
    method, note = loaded(entry.id)
    paper = ", ".join(str(v) for v in (card.authors, card.year) if v)
    facts = [f"**Status:** {card.status}" + (" (experimental)" if card.experimental else ""),
             f"**Takes:** {row['takes']}", f"**Makes:** {row['makes']}"]  # fmt: skip
    if card.paper:
        facts.insert(1, f"**Paper:** [{cell(paper) or card.paper}]({card.paper})")
    parts = [f"# {entry.id}", f"*{card.title}*", "  \n".join(facts), lowered(card.body)]
    if note:
        parts.append(f"The parameters are not shown: {note}.")
    if method is not None:
        own = [p for name, p in method.params.items() if name not in shared_names(room)]
        room_page = f"[room {entry.room}](../../rooms/{entry.room}.md)"
        call = f"interfuse.{entry.room}.{entry.slug.replace('-', '_')}(...)"
        parts += ["## How to call it", f"```text\n{example(room, method)}\n```",
                  f"In Python `{call}`, in a recipe `use: {entry.id}`. Inputs and shared settings: see the {room_page}.",
                  "## Parameters", params_table(own) or "It has no parameters of its own."]  # fmt: skip
    if card.claims:
        parts += ["## Claimed and measured",
                  table(["claim", "in the paper", "here", "shown", "why"],
                        [[c.what, c.paper, c.ours, c.shown, c.why] for c in card.claims])]  # fmt: skip
    if card.departs:
        parts += ["## Departs from the paper", "\n".join(f"- {cell(line)}" for line in card.departs)]
    if card.paper:
        parts += ["## Citation", f"```bibtex\n{card.bibtex(cite_key(entry))}\n```"]
    return joined(parts)


def room_page(name: str) -> str:
    """One room: when to use it, its methods, inputs and the settings they share."""
    room, module = load_room(name), room_module(name)
    title, _, rest = prose(module.__doc__ or name).partition("\n\n")
    methods = [[f"[{e.slug}](../methods/{e.room}/{e.slug}.md)", e.card.status, e.row()["takes"], e.card.title]
               for e in of_kind("method", name)]  # fmt: skip
    settings = read_params(room.settings).values() if room.settings is not None else ()
    return joined([
        f"# The room {name}", f"**{title}**", rest, f"**Takes:** {module.TAKES}  \n**Makes:** {module.MAKES}",
        "## Methods", table(["method", "status", "takes", "title"], methods),
        "## Inputs", inputs_table(room),
        *(["## Settings of every method", params_table(settings)] if settings else []),
    ])  # fmt: skip


def recipe_page(entry: index.Entry) -> str:
    """One recipe: its card, its steps and its text."""
    assert entry.recipe_path is not None
    card, row = entry.card, entry.row()
    steps = [[f"`{s.name}`", f"`{s.use}`"] for s in load_recipe(entry.recipe_path).steps]
    return joined([
        f"# {entry.id}", f"*{card.title}*",
        f"**Status:** {card.status}  \n**Takes:** {row['takes']}  \n**Makes:** {row['makes']}", lowered(card.body),
        "## Run it", f"```text\ninterfuse run {entry.id}\n```",
        "## Steps", table(["step", "method"], steps),
        "## The recipe", f"```yaml\n{entry.recipe_path.read_text(encoding='utf-8').rstrip()}\n```",
    ])  # fmt: skip


def help_text(command: click.Command, path: str, parent: click.Context | None = None) -> str:
    """What ``path --help`` prints, 100 columns wide."""
    context = click.Context(
        command, info_name=path.split()[-1], parent=parent, max_content_width=100, terminal_width=100
    )
    return command.get_help(context)


def command_line() -> str:
    """Every verb's help page, as the program prints it."""
    top = click.Context(app, info_name="interfuse", max_content_width=100, terminal_width=100)
    parts = ["# The command line", "One command, `interfuse`; its verbs are the rooms and a few helpers. Every page below is "
             "what `--help` prints. The flags of one method are on the method's page.",
             "Results go to stdout, progress to stderr; `--json` prints one JSON value instead, errors too. "
             "See [errors](errors.md) for codes and exit statuses.",
             "## interfuse", f"```text\n{help_text(app, 'interfuse')}\n```"]  # fmt: skip
    for name in [*VERBS, *index.rooms()]:
        command = app.get_command(top, name)
        assert command is not None
        parts += [f"## interfuse {name}", f"```text\n{help_text(command, f'interfuse {name}', top)}\n```"]
        extra = getattr(command, "extra", dict)()
        group = click.Context(command, info_name=name, parent=top)
        for verb, further in extra.items():
            parts += [
                f"### interfuse {name} {verb}",
                f"```text\n{help_text(further, f'interfuse {name} {verb}', group)}\n```",
            ]
    first = next((e for e in of_kind("method") if loaded(e.id)[0] is not None), None)
    if first is not None:
        group = click.Context(app.get_command(top, first.room), info_name=first.room, parent=top)  # type: ignore[arg-type]
        command = group.command.get_command(group, first.slug)  # type: ignore[attr-defined]
        parts += [f"## A method, for example {first.id}",
                  "Inputs and parameters differ from method to method; the options below them are the same for all.",
                  f"```text\n{help_text(command, f'interfuse {first.room} {first.slug}', group)}\n```"]  # fmt: skip
    return joined(parts)


def errors_page() -> str:
    """The table of error codes."""
    rows = [[f"`{code}`", EXIT[status], meaning] for code, (status, meaning) in CODES.items()]
    return joined([
        "# Errors", "Every error that is raised on purpose is an `interfuse.InterfuseError` with a code, what happened, where, and "
        "what to do. A code never changes its meaning; words may improve. Input is checked before work starts, so an error of "
        "status 2 or 3 leaves nothing half done.",
        "On the command line the code is printed in front, with `--json` as "
        '`{"error": {"code": ..., "what": ..., "where": ..., "fix": ...}}`; `--debug` adds the traceback. '
        "An interrupted command ends with 130.",
        table(["code", "exit status", "meaning"], rows),
    ])  # fmt: skip


@functools.cache
def tables() -> dict[str, str]:
    """The tables that written pages take up."""
    rooms = [[f"[{name}](rooms/{name}.md)", room_module(name).TAKES, room_module(name).MAKES] for name in index.rooms()]
    methods = [
        [f"[{e.id}](methods/{e.id}.md)", e.card.status, e.row()["takes"], e.card.title] for e in of_kind("method")
    ]
    recipes = [[f"[{e.id}]({e.id}.md)", e.card.status, e.card.title, e.row()["makes"]] for e in of_kind("recipe")]
    return {
        "rooms": table(["room", "takes", "makes"], rooms),
        "methods": table(["method", "status", "takes", "title"], methods),
        "recipes": table(["recipe", "status", "title", "makes"], recipes),
    }


@functools.cache
def pages() -> dict[str, str]:
    """Every generated page: its place below docs/ and its Markdown."""
    made = {f"rooms/{name}.md": room_page(name) for name in index.rooms()}
    made |= {f"methods/{e.id}.md": method_page(e) for e in of_kind("method")}
    made |= {f"{e.id}.md": recipe_page(e) for e in of_kind("recipe")}
    made |= {"cli.md": command_line(), "errors.md": errors_page()}
    return made | {place: (ROOT / name).read_text(encoding="utf-8") for place, name in ROOT_PAGES.items()}


def filled(markdown: str) -> str:
    """A written page with its tables; an unknown table is an error."""
    return re.sub(r"<!-- table: (\w+) -->", lambda found: tables()[found[1]], markdown)


# ---------------------------------------------------------------------------------------------- hooks of mkdocs


def on_config(config: Any) -> Any:
    """Adds the generated pages to the navigation."""
    sections: dict[str, list[Any]] = {"Rooms": [f"rooms/{name}.md" for name in index.rooms()],
                                      "Methods": [f"methods/{e.id}.md" for e in of_kind("method")],
                                      "Recipes": ["recipes.md", *(f"{e.id}.md" for e in of_kind("recipe"))],
                                      "Maps": [f"{e.id}.md" for e in of_kind("map")]}  # fmt: skip
    config.nav = [
        {name: sections[name]} if isinstance(item, dict) and (name := next(iter(item))) in sections else item
        for item in config.nav
        if not (isinstance(item, dict) and not sections.get(next(iter(item)), ["written"]))
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages themselves."""
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in the tables."""
    return filled(markdown)
