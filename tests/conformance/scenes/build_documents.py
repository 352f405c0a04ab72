"""Documents for the build room: a handful of files about cities and composers, with what a method needs beside them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import sklearn.linear_model  # noqa: F401  (importing it sets variables of the environment, once)
from numpy.typing import NDArray

from tests import documents as made
from tests.conformance.cases import Case
from tests.conformance.fixtures import Bad, Killed, Scene

TEXTS = [
    "Oslo is the capital of Norway. It was founded by Harald Hardrada.",
    "Edvard Grieg, a Norwegian composer, was born in Bergen. He wrote music for Peer Gynt.",
    "The World Health Organization (WHO) is an agency of the United Nations. WHO was founded in 1948.",
]
TABLE = [["City", "Country", "Population"], ["Oslo", "Norway", "709037"], ["Stockholm", "Sweden", "975551"]]


def folder_of(path: Path) -> Path:
    """A folder of mixed files."""
    folder = path / "documents"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("\n\n".join(TEXTS[:2]))
        (folder / "b.html").write_bytes(made.html("Agencies", TEXTS[2:], TABLE))
        (folder / "c.csv").write_bytes(made.delimited(TABLE))
        (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    return folder


def sentences_table(path: Path) -> str:
    """Sentences with triples, enough to learn two relations from."""
    file = path / "sentences.jsonl"
    if not file.is_file():
        names = [
            "Ann Berg",
            "Bo Dahl",
            "Carl Ek",
            "Dora Falk",
            "Erik Holm",
            "Fia Lind",
            "Gus Moe",
            "Hana Nord",
            "Ivar Ost",
            "Jon Roe",
        ]
        towns = ["Oslo", "Bergen", "Turku", "Malmo", "Aarhus", "Odense", "Lund", "Tromso", "Espoo", "Vaasa"]
        rows = [{"text": f"{n}, a composer, was born in {t} and lived there.", "triples": [{"sub": n, "rel": "place of birth", "obj": t}]}
                for n, t in zip(names, towns, strict=True)]  # fmt: skip
        rows += [{"text": f"The hall of {t} was founded by {n} long ago.", "triples": [{"sub": t, "rel": "founded by", "obj": n}]}
                 for n, t in zip(names, towns, strict=True)]  # fmt: skip
        file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def numbers(folder: Path) -> Mapping[str, NDArray[Any]]:
    """Every number of the graph's statements, as pandas' reader gives them."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "statements.parquet")
    return {name: np.asarray(table.column(name).to_numpy(zero_copy_only=False)) for name in table.column_names if str(table.schema.field(name).type) in ("double", "float")}  # fmt: skip


@contextlib.contextmanager
def killed_before_saving() -> Iterator[None]:
    """The engine dies when all is read and nothing is saved."""

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with mock.patch("interfuse.data.graph.Graph.save", die):
        yield


#: slug -> what an oracle is compared with
COMPARED: dict[str, Callable[[Mapping[str, Any], Callable[..., Any]], list[tuple[str, Any, Any]]]] = {}


def documents(case: Case, path: Path) -> Scene:
    """A folder of documents; ``table=True``: sentences with triples too."""
    given = dict(case.given)
    place = path / "build"
    folder = folder_of(place)
    if given.pop("table", False):
        given["table"] = {"data": sentences_table(place)}
    given = {"documents": str(folder), **given}
    empty, one = place / "empty", place / "one"
    empty.mkdir(exist_ok=True)
    one.mkdir(exist_ok=True)
    (one / "a.txt").write_text(TEXTS[0])

    def in_memory() -> dict[str, Any]:
        return {**given, "documents": {"a.txt": "\n\n".join(TEXTS[:2])}}

    bad = {
        "refuses_empty": [Bad("an empty folder", {"documents": str(empty)}, ("input.empty",))],
        "one_row": [Bad("one document", {"documents": str(one)}, ("input.empty",), or_works=True)],
        "refuses_missing_input": [Bad("no documents", {"documents": None}, ("param.missing",)),
                                  Bad("a folder that is not there", {"documents": str(place / "no")}, ("input.missing",))],
    }  # fmt: skip
    compare = COMPARED.get(case.slug)
    return Scene(
        given, in_memory, place, numbers, bad, killed_before_saving,
        (lambda oracle: compare(given, oracle)) if compare is not None else None,
        dtype="float64",
        not_applicable={
            "refuses_wrong_shape": "documents of any size and shape are read",
            "refuses_nan": "documents are words, and words are never NaN",
            "refuses_duplicates": "a document that comes twice is read once and counted",
            **({} if compare is not None else {"matches_oracle": "patterns of sentences have no closed form to compare with"}),
        },
    )  # fmt: skip


FURNISHED = {"documents": documents}
