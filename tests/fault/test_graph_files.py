"""Graph files that are torn, flipped or nonsense: a coded error or what could be read, never a crash."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from interfuse.core.errors import InterfuseError
from interfuse.data.formats.graphs import read_graph, write_graph
from interfuse.data.graph import Graph
from interfuse.data.statements import TYPE, Evidence, Literal, Statement, label_of, number, relation_id

TRIES = 60
CODES = (
    "input.format",
    "input.missing",
    "input.empty",
    "input.nan",
    "input.type",
    "input.limit",
    "param.value",
    "unsafe.address",
)


def small() -> Graph:
    graph = Graph()
    graph.add([
        Statement("urn:x:a", relation_id("knows"), "urn:x:b", ((relation_id("since"), number(1999)),), 0.5, evidence=(Evidence("d", 1, 2, 3),)),
        label_of('A "quoted" ü', "urn:x:a", language="en"), Statement("urn:x:b", relation_id("age"), number(7)), Statement("urn:x:a", TYPE, "urn:x:T"),
        Statement("urn:x:b", relation_id("says"), Literal("line\nbreak\t,;<&>")),
    ])  # fmt: skip
    return graph


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A cut, a few flipped bits, a piece twice, or noise in the middle."""
    kind, place = rng.randrange(4), rng.randrange(len(data))
    if kind == 0:
        return data[:place]
    if kind == 1:
        made = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
        return bytes(made)
    if kind == 2:
        return data[:place] + data[max(0, place - 40) :]
    return data[:place] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 30))) + data[place:]


@pytest.mark.parametrize("format", ["ttl", "nt", "nq", "trig", "rdf", "jsonld", "graphml", "csv", "tsv"])
def test_damaged_files_end_in_a_coded_error_or_are_read_as_far_as_they_go(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{format}"
    write_graph(path, small())
    whole = path.read_bytes()
    rng = random.Random(format)
    refused = 0
    for _ in range(TRIES):
        path.write_bytes(damaged(whole, rng))
        try:
            graph, _problems = read_graph(path)
            graph.digest()
        except InterfuseError as error:
            refused += 1
            if error.code not in CODES:
                raise
    assert refused > 0 or format in ("nt", "nq", "csv", "tsv", "graphml")


@pytest.mark.parametrize("format", ["tables", "graphrag", "neo4j"])
def test_damaged_folders_too(format: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_graph(folder, small(), format)
    rng = random.Random(format)
    for file in sorted(p for p in folder.iterdir() if p.suffix in (".parquet", ".csv")):
        whole = file.read_bytes()
        for _ in range(TRIES // 3):
            file.write_bytes(damaged(whole, rng))
            try:
                graph, _problems = read_graph(folder)
                graph.digest()
            except InterfuseError as error:
                if error.code not in CODES:
                    raise
        file.write_bytes(whole)


@pytest.mark.parametrize("text", [
    "[" * 100_000, '{"a":' * 50_000, '{"@id": 1e999}', '{"@context": {"@vocab": "x"}, "@id": "\\ud800"}', "\x00", "NaN", "{}", "[]", '""', "1",
])  # fmt: skip
def test_odd_json_ends_at_once(text: str, tmp_path: Path) -> None:
    for name in ("x.jsonld", "x.graphml", "x.ttl", "x.csv"):
        (tmp_path / name).write_text(text)
        try:
            read_graph(tmp_path / name)
        except InterfuseError as error:
            if error.code not in CODES:
                raise
