"""The method index: listing folders is the registry. Nothing is imported until a method is used.

A method is ``<room>/<name>.py`` with its card ``<room>/<name>.md`` beside it; a recipe is ``recipes/<name>.yaml`` with
``recipes/<name>.md``; a map is ``docs/maps/<name>.md``. Packages of other people join through the entry point group
``interfuse.methods``, whose value names a package that is laid out the same way.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from interfuse.core.card import Card, read_card
from interfuse.core.errors import InterfuseError, did_you_mean

GROUP = "interfuse.methods"
#: packages of ``interfuse`` that are not rooms
NOT_ROOMS = ("core", "data", "kit", "cli", "web")


@dataclass(frozen=True)
class Entry:
    """One row of the index. ``id`` is ``room/slug``, ``recipes/slug`` or ``maps/slug``."""

    id: str
    kind: str  # method | recipe | map
    card_path: Path
    module: str = ""
    recipe_path: Path | None = None

    @property
    def room(self) -> str:
        return self.id.split("/")[0]

    @property
    def slug(self) -> str:
        return self.id.split("/")[1]

    @property
    def card(self) -> Card:
        return _card(self.card_path)

    def row(self) -> dict[str, str]:
        """The row ``interfuse list --json`` prints."""
        card = self.card
        takes, makes = card.takes, card.makes
        if self.kind == "method" and not (takes and makes):
            room = importlib.import_module(f"interfuse.{self.room}")
            takes, makes = takes or room.TAKES, makes or room.MAKES
        return {
            "id": self.id,
            "kind": self.kind,
            "status": card.status,
            "title": card.title,
            "paper": card.paper,
            "takes": takes,
            "makes": makes,
        }


@functools.cache
def _card(path: Path) -> Card:
    return read_card(path)


@functools.cache
def rooms() -> tuple[str, ...]:
    """The names of the rooms, in the order of the work: what comes in first, measuring last."""
    here = Path(__file__).parent.parent
    order = ("distill", "merge", "decode", "route", "build", "inject", "complete", "answer", "recommend", "edit",
             "synthesize", "measure")  # fmt: skip
    return tuple(name for name in order if (here / name / "room.py").is_file())


def shipped(kind: str) -> Path:
    """The folder of the recipes (``recipes``) or maps (``maps``): inside the wheel, or in the source tree."""
    here = Path(__file__).parent.parent
    inside = here / "_shipped" / kind
    return inside if inside.is_dir() else here.parent.parent / ("docs/maps" if kind == "maps" else kind)


def _methods(package: str, folder: Path) -> Iterator[Entry]:
    for room in rooms():
        for card in sorted((folder / room).glob("*.md")):
            yield _method(package, room, card)


def _method(package: str, room: str, card: Path) -> Entry:
    return Entry(f"{room}/{card.stem.replace('_', '-')}", "method", card, f"{package}.{room}.{card.stem}")


def _places(package: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.submodule_search_locations is None:  # one broken package must not close the house
        warnings.warn(f"the package {package!r} of the group {GROUP} cannot be found", stacklevel=3)
        return []
    return [Path(place) for place in spec.submodule_search_locations]


def own(room: str, slug: str) -> Entry | None:
    """The method of this package with this slug, found without looking at other methods, or at packages of other people."""
    card = Path(__file__).parent.parent / room / f"{slug.replace('-', '_')}.md"
    plain = re.fullmatch(r"[a-z0-9-]+", slug) and room in rooms()  # case counts here on every system of files
    return _method("interfuse", room, card) if plain and card.is_file() else None


@functools.cache
def entries() -> dict[str, Entry]:
    """Every method, recipe and map by id, in a fixed order.

    Raises:
        InterfuseError: ``input.duplicate`` when two packages bring the same id.
    """
    import importlib.metadata  # which looks through all packages there are

    found = list(_methods("interfuse", Path(__file__).parent.parent))
    for package in sorted({point.module for point in importlib.metadata.entry_points(group=GROUP)}):
        for place in _places(package):
            found += _methods(package, place)
    recipes, maps = shipped("recipes"), shipped("maps")
    for path in sorted(recipes.rglob("*.yaml")):
        card = path.with_suffix(".md")
        if card.is_file():
            slug = "-".join(path.relative_to(recipes).with_suffix("").parts)
            found.append(Entry(f"recipes/{slug}", "recipe", card, recipe_path=path))
    found += [Entry(f"maps/{path.stem}", "map", path) for path in sorted(maps.glob("*.md"))]
    table: dict[str, Entry] = {}
    for entry in found:
        if entry.id in table:
            raise InterfuseError("input.duplicate", f"{entry.id} is defined twice", where=str(entry.card_path))
        table[entry.id] = entry
    return table


def find(name: str, *, room: str = "") -> Entry:
    """The entry of an id, or of a bare slug when only one room has it (or within ``room``). A method of this package that is named
    with its room is found by itself.

    Raises:
        InterfuseError: ``method.unknown`` with a suggestion.
    """
    slug = name.replace("_", "-")
    place, _, rest = slug.rpartition("/")
    mine = own(place or room, rest) if not place or room in ("", place) else None
    if mine is not None:
        return mine
    table = entries()
    if "/" in name and slug in table and (not room or table[slug].room == room):
        return table[slug]
    matches = [e for e in table.values() if e.slug == slug and (not room or e.room == room)]
    if len(matches) == 1:
        return matches[0]
    known = [e.slug for e in table.values() if e.room == room] if room else [*table, *(e.slug for e in table.values())]
    fix = "It is in " + " and ".join(e.id for e in matches) + "." if matches else did_you_mean(slug, known)
    place = f"the room {room!r} has" if room else "there is"
    raise InterfuseError(
        "method.unknown", f"{place} no method, recipe or map {name!r}", fix=fix or "See: interfuse list"
    )


def load_module(entry: Entry) -> ModuleType:
    """Imports the module of a method.

    Raises:
        InterfuseError: ``method.card`` when a card has no code beside it, ``needs.package`` when an extra is missing.
    """
    try:
        return importlib.import_module(entry.module)
    except ModuleNotFoundError as error:
        if error.name == entry.module:
            raise InterfuseError("method.card", "the card has no code beside it", where=str(entry.card_path)) from error
        if error.name is None or error.name.startswith("interfuse."):
            raise
        raise InterfuseError(
            "needs.package", f"{entry.id} needs the package {error.name!r}", fix=f"pip install {error.name}"
        ) from error


def load_room_module(room: str) -> ModuleType:
    """Imports ``<room>/room.py``, which holds the room's contract as ``ROOM``."""
    return importlib.import_module(f"interfuse.{room}.room")
