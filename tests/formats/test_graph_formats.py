"""Graph formats: what is written is read again, by us without loss and by others; what cannot be read is counted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.formats.graph_tables import guarded, neo4j_word, unguarded
from interfuse.data.formats.graphs import WRITERS, left_out, read_graph, write_graph
from interfuse.data.formats.rdf import PROFILES, read_rdf, write_rdf
from interfuse.data.graph import Graph, open_graph
from interfuse.data.statements import TYPE, XSD, Evidence, Literal, Statement, entity_id, label_of, number, relation_id

ODD = [
    '=cmd|"/c calc"!A1',
    "<script>alert(1)</script>",
    "Ab;c, \"d\" 'e'",
    "`) DETACH DELETE n //",
    "tab\tand\nline",
    "漢字 🦆",
    "\x1b[31m",
    "'quoted",
]


def rich(*, xml: bool = False) -> Graph:
    """A graph with everything a statement can have, and awkward words in it (for ``xml`` without control characters)."""
    a, b, c = (entity_id(w, "Person") for w in ("Ada", "Bob", "Zoë"))
    knows, age, since = relation_id("knows"), relation_id("age"), relation_id("since")
    proof = Evidence("d" * 64, 10, 14, 3, "cell B2", "q" * 64, "rules@1", "model", "prompt", "run 1", 0.5)
    graph = Graph()
    graph.add([
        Statement(a, knows, b, ((since, Literal("1999", XSD + "gYear")), (relation_id("via"), c)), 0.75, "critic", "inferred",
                  "1999", "2001", "2020-01-01", None, (proof, Evidence("other", premises=("p1", "p2")))),
        Statement(b, knows, c, confidence=0.1, status="model-claimed", evidence=(proof,)), Statement(c, knows, a, status="contested"),
        Statement(a, age, number(36)), Statement(b, age, number(7)), Statement(c, age, number(8)), Statement(c, age, number(9)),
        Statement(a, relation_id("height"), number(1.7)), Statement(a, relation_id("alive"), number(False)),
        label_of("Ada", a, language="en"), label_of("Ada Lovelace", a), label_of("Bob", b),
        *(Statement(n, TYPE, relation_id("Person")) for n in (a, b)), Statement(c, TYPE, relation_id("9 odd `class`")),
        *(Statement(entity_id(f"odd {i}"), relation_id(f"says {w}"), Literal(w)) for i, w in enumerate(ODD) if not (xml and "\x1b" in w)),
        Statement(a, relation_id("`) DETACH DELETE n //"), b), Statement("_:b0", knows, a),
    ])  # fmt: skip
    return graph


@pytest.mark.parametrize("format", [f for f in WRITERS if f not in ("tsv", "graphrag")])
def test_what_is_written_is_read_again_without_loss(format: str, tmp_path: Path) -> None:
    graph = rich(xml=format == "rdf")
    path = tmp_path / ("out" if format in ("tables", "neo4j") else f"out.{format}")
    assert write_graph(path, graph, format) == format
    again, problems = read_graph(path)
    assert problems.count == 0, problems
    if format in ("ttl", "nt", "nq", "trig", "rdf", "jsonld"):  # blank nodes get other names
        assert len(again) == len(graph)
        assert len(again.diff(graph).added) <= 1
        assert {type(s.object) for s in again.diff(graph).added} <= {str}
    else:
        assert not again.diff(graph)
    with pytest.raises(InterfuseError, match=r"output\.exists"):
        write_graph(path, graph, format)


@pytest.mark.parametrize("ending", ["nt", "nq", "ttl", "trig", "jsonld", "rdf"])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_keeps_what_it_promises(ending: str, profile: str, tmp_path: Path) -> None:
    graph = rich(xml=ending == "rdf")
    path = tmp_path / f"x.{ending}"
    if profile == "rdf12" and ending in ("jsonld", "rdf"):
        with pytest.raises(InterfuseError, match=r"cannot hold RDF 1\.2"):
            write_rdf(path, graph.statements(), profile)
        return
    write_rdf(path, graph.statements(), profile)
    found, problems = read_rdf(path)
    assert not problems.count
    triples = {(s.predicate, s.object) for s in found}
    assert triples == {(s.predicate, s.object) for s in graph}
    if profile != "plain":
        whole = {s.id: s for s in found if s.subject != "_:b0"}
        for s in graph:
            if not s.subject.startswith("_:"):
                assert whole[s.id] == s
    elif ending in ("nq", "trig", "jsonld"):  # named graphs tell the status
        assert sorted(s.status for s in found) == sorted(s.status for s in graph)


def test_rdflib_reads_the_rdf_1_1_profiles_and_finds_the_same_triples(tmp_path: Path) -> None:
    rdflib = pytest.importorskip("rdflib")
    graph = rich(xml=True)
    with pytest.raises(InterfuseError, match="control character"):
        write_rdf(tmp_path / "x.rdf", rich().statements(), "plain")
    for ending, form in (("ttl", "turtle"), ("nt", "nt"), ("rdf", "xml"), ("jsonld", "json-ld")):
        path = tmp_path / f"x.{ending}"
        write_rdf(path, graph.statements(), "plain")
        # JSON-LD from named graphs
        other = rdflib.Dataset(default_union=True) if ending == "jsonld" else rdflib.Graph()
        other.parse(path, format=form)
        assert len(set(other.triples((None, None, None)))) == len(graph), ending


def test_networkx_reads_graphml_with_types(tmp_path: Path) -> None:
    networkx = pytest.importorskip("networkx")
    graph = rich()
    write_graph(tmp_path / "x.graphml", graph)
    other = networkx.read_graphml(tmp_path / "x.graphml", force_multigraph=True)
    ada = entity_id("Ada", "Person")
    assert other.nodes[ada][relation_id("height")] == 1.7
    assert other.nodes[ada][relation_id("alive")] is False
    assert other.number_of_edges() == sum(1 for s in graph if isinstance(s.object, str) and s.predicate != TYPE)
    assert {d["weight"] for *_, d in other.edges(data=True)} == {0.75, 0.1, 1.0}


def test_graphml_of_others_is_read_by_its_attributes(tmp_path: Path) -> None:
    text = """<?xml version='1.0' encoding='utf-8'?><graphml xmlns="http://graphml.graphdrawing.org/xmlns">
    <key id="d5" for="edge" attr.name="source_id" attr.type="string"/><key id="d4" for="edge" attr.name="description" attr.type="string"/>
    <key id="d3" for="edge" attr.name="weight" attr.type="double"/><key id="d2" for="node" attr.name="source_id" attr.type="string"/>
    <key id="d1" for="node" attr.name="description" attr.type="string"/><key id="d0" for="node" attr.name="entity_type" attr.type="string"/>
    <graph edgedefault="undirected"><node id="&quot;OSLO&quot;"><data key="d0">"CITY"</data><data key="d1">"A city."</data>
    <data key="d2">chunk-1&lt;SEP&gt;chunk-2</data></node><node id="&quot;NORWAY&quot;"/>
    <edge source="&quot;OSLO&quot;" target="&quot;NORWAY&quot;"><data key="d3">2.0</data><data key="d4">"capital"</data><data key="d5">chunk-1</data></edge>
    </graph></graphml>"""
    (tmp_path / "light.graphml").write_text(text, encoding="utf-8")
    graph, problems = read_graph(tmp_path / "light.graphml")
    assert not problems.count
    (oslo,) = graph.entities(relation_id("CITY"))
    assert graph.label(oslo) == "OSLO"
    (edge,) = graph.statements(oslo, relation_id("related to"))
    assert graph.label(str(edge.object)) == "NORWAY"
    assert [e.document for e in edge.evidence] == ["chunk-1"]
    assert {e.document for s in graph.statements(oslo, TYPE) for e in s.evidence} == {"chunk-1", "chunk-2"}


@pytest.mark.parametrize("text", [
    '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><graphml><graph><node id="&b;"/></graph></graphml>',
    '<!DOCTYPE x SYSTEM "file:///etc/passwd"><graphml><graph/></graphml>', "<graphml><graph>", "not xml", "", "<svg/>",
])  # fmt: skip
def test_bombs_and_broken_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.graphml").write_text(text)
    with pytest.raises(InterfuseError) as caught:
        read_graph(tmp_path / "x.graphml")
    assert caught.value.code == "input.format"


def test_graphrag_tables_go_in_and_out(tmp_path: Path) -> None:
    graph = rich()
    write_graph(tmp_path / "rag", graph, "graphrag")

    entities = pq.read_table(tmp_path / "rag" / "entities.parquet").to_pylist()
    relationships = pq.read_table(tmp_path / "rag" / "relationships.parquet").to_pylist()
    assert {"id", "title", "type", "description", "text_unit_ids", "degree"} <= set(entities[0])
    assert len({e["title"] for e in entities}) == len(entities)
    units = {u["id"]: u for u in pq.read_table(tmp_path / "rag" / "text_units.parquet").to_pylist()}
    assert all(e["id"] in units[u]["entity_ids"] for e in entities for u in e["text_unit_ids"])
    assert all(r["id"] in units[u]["relationship_ids"] for r in relationships for u in r["text_unit_ids"])
    assert len(relationships) == sum(1 for s in graph if isinstance(s.object, str) and s.predicate != TYPE)
    again, problems = read_graph(tmp_path / "rag")
    assert not problems.count
    ada = next(e for e in again.entities() if again.label(e) in ("Ada", "Ada Lovelace"))
    assert [again.label(t) for t in again.types(ada)] == ["person"]
    assert {s.predicate for s in again if isinstance(s.object, str)} == {
        s.predicate for s in graph if isinstance(s.object, str)
    }
    assert {
        (s.subject, s.predicate, s.object, s.confidence)
        for s in again
        if isinstance(s.object, str) and s.predicate != TYPE
    } == {
        (s.subject, s.predicate, s.object, s.confidence)
        for s in graph
        if isinstance(s.object, str) and s.predicate != TYPE
    }
    assert {e.document for s in again for e in s.evidence} == {
        e.document for s in graph for e in s.evidence if s.predicate != relation_id("age")
    }
    pq.write_table(pq.read_table(tmp_path / "rag" / "relationships.parquet"), tmp_path / "alone.parquet")
    (tmp_path / "rag" / "entities.parquet").unlink()
    with pytest.raises(InterfuseError):
        read_graph(tmp_path / "rag")


def test_graphrag_tables_hold_the_texts(tmp_path: Path) -> None:
    text = "Oslo is the capital of Norway. Bergen lies in Norway. Oslo is the capital of Norway."
    graph = Graph()
    graph.add([label_of("Oslo", "urn:x:oslo"), label_of("Norway", "urn:x:norway"),
               Statement("urn:x:oslo", "urn:x:capital", "urn:x:norway", evidence=(Evidence("d", 54, 84, method="offline"),)),
               Statement("urn:x:oslo", "urn:x:people", number(709037), evidence=(Evidence("d", 0, 4),))])  # fmt: skip
    graph.keep_documents({"d": ("notes.txt", text)})
    graph.write(tmp_path / "g")
    write_graph(tmp_path / "rag", Graph.open(tmp_path / "g"), "graphrag")
    assert left_out(graph, "graphrag") == {"values that are no label or description": 1}
    assert left_out(graph, "tsv") == {"statements with a value": 3}
    assert left_out(graph, "csv") == {}
    units = pq.read_table(tmp_path / "rag" / "text_units.parquet").to_pylist()
    assert {u["id"]: u["text"] for u in units} == {"d:0-4": "Oslo", "d:54-84": "Oslo is the capital of Norway."}
    (row,) = pq.read_table(tmp_path / "rag" / "documents.parquet").to_pylist()
    assert (row["title"], row["text"], row["text_unit_ids"]) == ("notes.txt", text, ["d:0-4", "d:54-84"])
    again, _ = read_graph(tmp_path / "rag")
    (capital,) = again.statements("urn:x:oslo", "urn:x:capital")
    assert [(e.document, e.start, e.end) for e in capital.evidence] == [
        ("d", 54, 84)
    ]  # the second of two equal sentences
    again.write(tmp_path / "again")
    assert Graph.open(tmp_path / "again").documents() == {"d": ("notes.txt", text)}
    # tables of GraphRAG itself: units found in their document, or put together where there are no documents
    for name in ("documents", "nothing"):
        foreign = tmp_path / name
        foreign.mkdir()
        pq.write_table(
            pa.Table.from_pylist([{"id": "1", "title": "OSLO"}, {"id": "2", "title": "NORWAY"}]),
            foreign / "entities.parquet",
        )
        pq.write_table(pa.Table.from_pylist([{"source": "OSLO", "target": "NORWAY", "description": "its capital", "weight": 7.0, "text_unit_ids": ["u2"]}]),
                       foreign / "relationships.parquet")  # fmt: skip
        told = [
            {"id": "u1", "text": "Bergen lies in Norway.", "document_ids": ["d"]},
            {"id": "u2", "text": "Oslo is", "document_ids": ["d"]},
        ]
        pq.write_table(pa.Table.from_pylist(told), foreign / "text_units.parquet")
        if name == "documents":
            pq.write_table(
                pa.Table.from_pylist([{"id": "d", "title": "notes.txt", "text": text}]), foreign / "documents.parquet"
            )
        graph, _ = read_graph(foreign)
        (one,) = graph.statements(p=relation_id("related to"))
        (e,) = one.evidence
        assert graph.documents()[e.document][1][e.start : e.end] == "Oslo is"
        assert len(graph.documents()["d"][1]) == (len(text) if name == "documents" else 31)


def test_neo4j_files_quote_everything_and_name_only_plain_words(tmp_path: Path) -> None:
    write_graph(tmp_path / "neo", rich(), "neo4j")
    with (tmp_path / "neo" / "nodes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][0] == "iri:ID"
    assert rows[0][-1] == ":LABEL"
    assert "age:long[]" in rows[0]
    assert "height:double" in rows[0]
    assert len({len(r) for r in rows}) == 1
    script = (tmp_path / "neo" / "load.cypher").read_text()
    import re

    assert all(re.fullmatch(r"[^\W\d]\w*", name) for name in re.findall(r"(?:SET n|r):`([^`]*)`", script))
    assert "DELETE n" not in script
    assert "r.json = row.json" in script  # qualifiers and places too
    assert "n.json = n.json + row.json" in script
    with (tmp_path / "neo" / "statements.csv").open(encoding="utf-8", newline="") as file:
        rest = list(csv.DictReader(file))
    assert all(json.loads(r["json"])["s"] == r["subject"] for r in rest)
    assert all(re.fullmatch(r"[^\W\d]\w*", neo4j_word(w)) for w in ODD)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "nodes.csv").write_text(
        "personId:ID,name,born:int,:LABEL\nk,Keanu,1964,Person;Actor\nx,Bad,nineteen,Person\n"
    )
    (foreign / "edges.csv").write_text(":START_ID,role,:END_ID,:TYPE\nk,Neo,m,ACTED_IN\n")
    graph, problems = read_graph(foreign)
    assert problems.count == 1
    assert "nodes.csv:3" in problems.shown[0]
    (keanu,) = graph.entities(relation_id("Actor"))
    (role,) = graph.statements(keanu, relation_id("ACTED_IN"))
    assert role.qualifiers == ((relation_id("role"), Literal("Neo")),)


def test_a_table_of_other_things_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "towns.csv").write_text("town,people\nOslo,709037\n")
    with pytest.raises(InterfuseError, match="no columns subject, predicate and object") as caught:
        read_graph(tmp_path / "towns.csv")
    assert "table-rows" in caught.value.fix


def test_formulas_are_neutral_in_csv_and_come_back(tmp_path: Path) -> None:
    for word in [*ODD, "+1", "-1", "@x", "", "plain", "''"]:
        assert unguarded(guarded(word)) == word
        assert not guarded(word).startswith(("=", "+", "-", "@"))
    write_graph(tmp_path / "x.csv", rich())
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        assert not [c for row in csv.reader(file) for c in row if c.startswith(("=", "+", "-", "@", "\t"))]
    (tmp_path / "plain.csv").write_text(
        'subject,predicate,object\nOslo,capital of,Norway\n,x,y\nhttp://a/b,c,"""7"""\n'
    )
    graph, problems = read_graph(tmp_path / "plain.csv")
    assert (len(graph), problems.count) == (2, 1)
    assert graph.statements("http://a/b")[0].object == Literal("7")


def test_pykeen_triples_come_back_as_they_were(tmp_path: Path) -> None:
    lines = sorted(["a b\tr/1\tc%20", "ä\tr/1\ta b", "=x\tis\ty", "http://x/y\tr:1\tz"])
    (tmp_path / "x.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    graph = open_graph(Source(str(tmp_path / "x.tsv")), Ctx())
    graph.write(tmp_path / "g")
    for number_, made in enumerate((graph, Graph.open(tmp_path / "g"))):
        assert made.label(made.statements()[0].subject)
        write_graph(tmp_path / f"{number_}.tsv", made)
        assert sorted((tmp_path / f"{number_}.tsv").read_text(encoding="utf-8").splitlines()) == lines
    assert (
        Graph.open(tmp_path / "g").digest() == Graph.of(Graph.open(tmp_path / "g").history()).digest() == graph.digest()
    )


def test_bad_lines_of_n_quads_are_counted_and_other_formats_name_the_line(tmp_path: Path) -> None:
    good = "<urn:x:a> <urn:x:p> <urn:x:b> .\n"
    (tmp_path / "x.nq").write_text(good + "nonsense\n" * 120 + '<urn:x:a> <urn:x:p> "x"@en .\n')
    graph, problems = read_graph(tmp_path / "x.nq")
    assert (len(graph), problems.count, len(problems.shown)) == (2, 120, 100)
    with pytest.raises(InterfuseError, match=r"input\.format"):
        read_graph(tmp_path / "x.nq", strict=True)
    (tmp_path / "x.ttl").write_text("@prefix x: <urn:x:> .\nx:a x:p x:b .\nx:a x:p ;;; oops\n")
    with pytest.raises(InterfuseError, match=r"x\.ttl"):
        read_graph(tmp_path / "x.ttl")


@pytest.mark.parametrize("context", ["http://example.org/c.jsonld", ["c.jsonld"], {"@import": "http://example.org/c"}])
def test_json_ld_contexts_elsewhere_are_never_fetched(context: object, tmp_path: Path) -> None:
    (tmp_path / "x.jsonld").write_text(json.dumps({"@context": context, "@id": "urn:x:a"}))
    with pytest.raises(InterfuseError, match=r"unsafe\.address"):
        read_graph(tmp_path / "x.jsonld")
