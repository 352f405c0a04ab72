"""Maps of surveys: what they name is there, and no cell is left out or told twice."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

from interfuse.core import index
from interfuse.core.method import load, read_params

MAPS = [entry for entry in index.entries().values() if entry.kind == "map"]
CELLS = {
    "llm-kg-roadmap": [
        *(f"A{i}" for i in range(1, 8)),
        *(f"B{i}" for i in range(1, 14)),
        *(f"C{i}" for i in range(1, 6)),
    ]
}
ID = re.compile(rf"`((?:{'|'.join(index.rooms())}|recipes)/[a-z0-9-]+)`")


@pytest.mark.parametrize("entry", MAPS, ids=lambda e: e.slug)
def test_what_a_map_names_is_there(entry: index.Entry) -> None:
    named = ID.findall(entry.card.body)
    assert named
    for name in named:
        assert index.find(name).id == name
    for module in re.findall(r"`(interfuse\.[a-z_.]+)`", entry.card.body):
        importlib.import_module(module)


@pytest.mark.parametrize("slug", CELLS)
def test_every_cell_stands_once_and_says_who_covers_it(slug: str) -> None:
    rows = re.findall(r"^\| ([A-C]\d+) [^|]+\|[^|]+\| ([^|]+) \|$", index.find(f"maps/{slug}").card.body, re.MULTILINE)
    assert [cell for cell, _ in rows] == CELLS[slug]
    for cell, covered in rows:
        assert "`" in covered or "not covered yet" in covered, cell
        if cell in BUILDING:
            assert "not covered yet" not in covered, cell


#: the cells of construction
BUILDING = ("B5", "B6", "B7", "B8", "B9", "B11")


def there(name: str, around: list[str]) -> bool:
    """Whether a part exists: a method, recipe, module or verb; or what one of those told beside it has: a parameter, a function, a file."""
    if re.fullmatch(r"[a-z]+/[a-z0-9-]+", name):
        return index.find(name).id == name
    if name.startswith("interfuse."):
        return importlib.import_module(name).__name__ == name
    if name.startswith("interfuse "):
        room, verb = name.split()[1:]
        return verb in importlib.import_module(f"interfuse.{room}.verbs").VERBS
    methods = [load(n) for n in around if re.fullmatch(r"[a-z]+/[a-z0-9-]+", n) and not n.startswith("recipes/")]
    modules = [importlib.import_module(n) for n in around if n.startswith("interfuse.")]
    files = [inspect.getsource(inspect.getmodule(m.target)) for m in methods]  # type: ignore[arg-type]
    return (
        any(name in read_params(m.target) for m in methods)
        or any(name in vars(m) for m in modules)
        or ("." in name and any(f'"{name}"' in text for text in files))
    )


@pytest.mark.parametrize("slug", CELLS)
def test_every_part_that_a_cell_names_is_there(slug: str) -> None:
    rows = re.findall(r"^\| ([A-C]\d+) (.+) \|$", index.find(f"maps/{slug}").card.body, re.MULTILINE)
    for cell, words in rows:
        named = re.findall(r"`([^`]+)`", words)
        missing = [n for n in named if not there(n, named)]
        assert not missing, (cell, missing)
    assert not there("nothing", ["build/offline", "interfuse.kit.linking"])
