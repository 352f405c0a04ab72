"""``list``, ``show`` and ``cite``: what there is, read from the cards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interfuse.cli.output import as_json, clean, console, emit, say, table
from interfuse.core import index
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.kit.verbs import json_option, quiet_option

if TYPE_CHECKING:
    from interfuse.core.method import Method
    from interfuse.core.rooms import Room


def _list(room: str | None) -> None:
    """List methods, recipes and maps; of one room, or of recipes or maps alone."""
    known = [*index.rooms(), "recipes", "maps"]
    if room is not None and room not in known:
        raise InterfuseError("method.unknown", f"there is no room {room!r}", fix=did_you_mean(room, known))
    rows = [e.row() for e in index.entries().values() if room in (None, e.room)]
    if as_json():
        emit(rows)
        return
    table(["id", "status", "takes -> makes", "title"],
          [[r["id"], r["status"], " -> ".join(filter(None, (r["takes"], r["makes"]))), r["title"]] for r in rows])  # fmt: skip
    say("interfuse show ID tells more.")


def _show(name: str) -> None:
    """Show a method, recipe or map: its card, parameters, inputs, claims and citation."""
    entry = index.find(name)
    card = entry.card
    method, room, note = _opened(entry)
    bibtex = card.bibtex(cite_key(entry))
    params = [_param_row(p) for p in method.params.values()] if method else []
    inputs = [{"name": i.name, "many": i.many, "required": i.required, "positional": i.positional, "doc": i.doc}
              for i in room.inputs] if room else []  # fmt: skip
    steps = _steps(entry)
    if as_json():
        emit({**entry.row(), "year": card.year, "authors": card.authors, "version": card.version,
              "experimental": card.experimental, "params": params, "inputs": inputs, "steps": steps,
              "claims": [dataclasses.asdict(c) for c in card.claims], "departs": list(card.departs), "bibtex": bibtex,
              "body": card.body, "note": note, "file": str(entry.recipe_path or "")})  # fmt: skip
        return
    row = entry.row()
    say(f"{entry.id}: {card.title}")
    say(f"status: {card.status}" + (" (experimental)" if card.experimental else ""))
    if card.paper:
        say("paper: " + ", ".join(str(v) for v in (card.authors, card.year, card.paper) if v))
    if row["takes"] or row["makes"]:
        say(f"takes: {row['takes']}\nmakes: {row['makes']}")
    if method and room:
        from interfuse.cli.flags import example

        say(f"example: {example(room, method)}")
    if entry.recipe_path:
        say(f"run it: interfuse run {entry.id}")
        say(f"file: {entry.recipe_path}")
    if note:
        say(f"note: {note}")
    if card.body.strip():
        from rich.markdown import Markdown

        say()
        console(page=True).print(Markdown(clean(card.body).replace("\t", "    "), hyperlinks=False), width=100)
    if inputs:
        table(["input", "given as", "required", "what"],
              [[i["name"], _given_as(i), i["required"], i["doc"]] for i in inputs], page=True)  # fmt: skip
    if params:
        table(["parameter", "type", "default", "range", "what"],
              [[p["name"], p["type"], p["default_text"], p["range"], p["doc"]] for p in params], page=True)  # fmt: skip
    if steps:
        table(["step", "method"], [[s["step"], s["use"]] for s in steps], page=True)
    if card.claims:
        table(["claim", "paper", "ours", "shown", "why"],
              [[c.what, c.paper, c.ours, c.shown, c.why] for c in card.claims], page=True)  # fmt: skip
    for line in card.departs:
        say(f"departs from the paper: {line}")
    if bibtex:
        say(f"\n{bibtex}")


def _opened(entry: index.Entry) -> tuple[Method | None, Room | None, str]:
    """Method and room of an entry; the reason when an optional package is missing."""
    if entry.kind != "method":
        return None, None, ""
    from interfuse.core.method import load
    from interfuse.core.rooms import load_room

    try:
        return load(entry.id), load_room(entry.room), ""
    except InterfuseError as error:
        if error.code != "needs.package":
            raise
        return None, None, f"{error.what}; {error.fix}"


def _param_row(param: Any) -> dict[str, Any]:
    from interfuse.cli.flags import default_text, flag_of
    from interfuse.core.rooms import jsonable

    return {"name": param.name, "flag": flag_of(param.name), "type": param.type_name, "required": param.required,
            "default": None if param.required else jsonable(param.default),
            "default_text": "" if param.required else default_text(param.default),
            "range": param.bounds, "doc": param.doc}  # fmt: skip


def _given_as(row: dict[str, Any]) -> str:
    from interfuse.cli.flags import flag_of

    name = row["name"].upper().replace("_", "-") if row["positional"] else flag_of(row["name"])
    return name + (" ..." if row["many"] else "")


def _steps(entry: index.Entry) -> list[dict[str, str]]:
    if entry.recipe_path is None:
        return []
    from interfuse.core.recipe import load_recipe

    return [{"step": s.name, "use": s.use} for s in load_recipe(entry.recipe_path).steps]


def cite_key(entry: index.Entry) -> str:
    """The BibTeX key of an entry: slug and year."""
    return f"{entry.slug}{entry.card.year or ''}"


def _cite(names: tuple[str, ...]) -> None:
    """Print the BibTeX of Interfuse, or of the methods named: ids, recipes, or folders of artifacts and runs."""
    found: dict[str, str] = {}
    without: list[str] = []
    for name in names:
        for entry in _cited(name):
            text = entry.card.bibtex(cite_key(entry))
            if text:
                found[entry.id] = text
            elif entry.id not in without:
                without.append(entry.id)
    if not names:
        found["interfuse"] = _own_bibtex()
    if as_json():
        emit({"bibtex": [{"id": key, "text": text} for key, text in found.items()], "without": without})
        return
    if found:
        say("\n\n".join(found.values()))
    if without:
        click.echo("without a paper: " + ", ".join(without), err=True)


def _cited(name: str) -> list[index.Entry]:
    """The methods (and the recipe itself) behind a name, in the order of use."""
    from interfuse.cli.reports import RUN, artifacts_of, run_mark
    from interfuse.core.artifact import open_artifact
    from interfuse.core.recipe import load_recipe

    path = Path(name)
    if path.is_dir() and ("/" not in name or name not in index.entries()):
        uses = [row["method"] for row in run_mark(path)["steps"]] if (path / RUN).is_file() else [
            str(open_artifact(folder).manifest.get("method", "")) for folder in artifacts_of(path)]  # fmt: skip
        return _unique(uses)
    if path.suffix in (".yaml", ".yml"):
        own = [e for e in index.entries().values() if e.recipe_path and e.recipe_path.resolve() == path.resolve()]
        return own + _unique([step.use for step in load_recipe(path).steps])
    entry = index.find(name)
    if entry.recipe_path is not None:
        return [entry, *_unique([step.use for step in load_recipe(entry.recipe_path).steps])]
    return [entry]


def _unique(uses: list[str]) -> list[index.Entry]:
    return [index.find(use) for use in dict.fromkeys(uses)]


def _own_bibtex() -> str:
    from importlib.metadata import version

    return (
        "@software{interfuse,\n  title = {Interfuse: knowledge fusion, measured},\n"
        f"  author = {{{{The Interfuse authors}}}},\n  version = {{{version('interfuse')}}}\n}}"
    )


COMMANDS = {
    "list": click.Command(
        "list", callback=_list, help=_list.__doc__,
        params=[click.Argument(["room"], required=False), json_option(), quiet_option()],
        epilog="\b\nExample:\n  interfuse list merge",
    ),
    "show": click.Command(
        "show", callback=_show, help=_show.__doc__,
        params=[click.Argument(["name"], metavar="ID"), json_option(), quiet_option()],
        epilog="\b\nExample:\n  interfuse show merge/linear",
    ),
    "cite": click.Command(
        "cite", callback=_cite, help=_cite.__doc__,
        params=[click.Argument(["names"], nargs=-1, metavar="[ID|RECIPE|FOLDER]..."), json_option(), quiet_option()],
        epilog="\b\nExample:\n  interfuse cite merge/linear > methods.bib",
    ),
}  # fmt: skip
