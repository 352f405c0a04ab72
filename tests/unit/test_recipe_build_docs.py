"""The recipe for a folder of mixed files, on a tiny folder whose facts are known."""

from __future__ import annotations

from pathlib import Path

from benchmarks.build_docs import found_in, measured
from benchmarks.mixed_files import Thing, Topic, write_files
from benchmarks.shipped_recipe import shipped
from interfuse.core import index
from interfuse.core.ctx import Ctx
from interfuse.core.run import run
from interfuse.data.graph import Graph

TOPICS = [
    Topic("places", "Notes on places", ("Country", "Population", "Area"), tuple(
        Thing(((f"{capital} is the capital of {name}.", capital, "capital of", name), (f"The currency of {name} is the {money}.", money, "currency of", name)),
              (name, people, area))
        for name, capital, money, people, area in (("Norway", "Oslo", "Krone", "5314336", "324220"), ("Peru", "Lima", "Sol", "31989256", "1285220"),
                                                   ("Ghana", "Accra", "Cedi", "29767108", "239460"))
    )),
    Topic("elements", "Notes on elements", ("Element", "Atomic number", "Discovery year"), tuple(
        Thing(((f"{symbol} is the symbol of {name}.", symbol, "symbol of", name), (f"{name} was discovered by {who}.", name, "discovered by", who)), (name, number, year))
        for name, symbol, who, number, year in (("Thallium", "Tl", "William Crookes", "81", "1861"), ("Uranium", "U", "Martin Klaproth", "92", "1789"),
                                                ("Cerium", "Ce", "Jakob Berzelius", "58", "1803"))
    )),
    Topic("cities", "Notes on cities", ("City", "Population"), tuple(
        Thing(((f"{name} is located in {land}.", name, "located in", land),), (name, people))
        for name, land, people in (("Bergen", "Norway", "213585"), ("Cusco", "Peru", "312140"), ("Kumasi", "Ghana", "1468609"))
    )),
]  # fmt: skip


def test_the_recipe_finds_the_facts_of_every_topic(tmp_path: Path) -> None:
    (tmp_path / "build-docs.ttl").write_text((index.shipped("recipes") / "build-docs.ttl").read_text())
    facts = write_files(tmp_path / "mixed-files", TOPICS, ("html", "xlsx", "txt"))
    assert {f.file for f in facts} == {
        f"{t}.{e}" for t in ("places", "elements", "cities") for e in ("html", "xlsx", "txt")
    }
    recipe = shipped("build-docs.yaml", tmp_path, {})
    made = run(recipe, tmp_path / "out", ctx=Ctx(cache=tmp_path / "cache"))
    rows = measured(facts, found_in(Graph.open(made["facts"]), made["facts"]))
    for row in rows.values():
        for name in ("edge recall", "edge precision", "provenance recall"):
            assert row[name]["right"] == row[name]["of"] > 0, (rows, name)
    layers = Graph.open(made["layers"])
    assert {s.object for s in Graph.open(made["facts"]) if "relation:" in s.predicate} <= {s.object for s in layers}
    assert layers.statements(p="urn:interfuse:relation:mentions")
