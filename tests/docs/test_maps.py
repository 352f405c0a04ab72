"""Maps of surveys: what they name is there, and no cell is left out or told twice."""

from __future__ import annotations

import importlib
import re

import pytest

from interfuse.core import index

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
