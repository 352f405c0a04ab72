"""The room's verbs for graphs, from import to undo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from interfuse.build import origins
from interfuse.cli.main import app
from interfuse.core.artifact import verify
from interfuse.data.graph import Graph
from interfuse.data.statements import XSD, Evidence, Literal, Statement, entity_id, label_of, relation_id

FACTS = """@prefix x: <urn:x:> . @prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
x:oslo x:capitalOf x:norway ; rdfs:label "Oslo" . x:rome x:capitalOf x:italy ; rdfs:label "it" . x:oslo x:people "many" .
"""


def call(*words: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == code, done.output
    return done.stdout


def refused(error: str, *words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code in (2, 3), done.output
    assert done.stderr.startswith(error), done.stderr
    return done.stderr


def told(*words: str | Path, code: int = 0) -> object:
    return json.loads(call(*words, "--json", code=code))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "facts.ttl").write_text(FACTS)
    call("build", "import", tmp_path / "facts.ttl", "-o", tmp_path / "g")
    return tmp_path / "g"


def test_import_query_and_export(graph: Path, tmp_path: Path) -> None:
    verify(graph)
    out = call("build", "query", graph, "SELECT ?c { ?c <urn:x:capitalOf> ?l } ORDER BY ?c", "--limit", "1")
    assert out.splitlines() == ["c", "urn:x:oslo", "... 1 more (--limit 0 shows all)"]
    assert call("build", "query", graph, "ASK { <urn:x:oslo> ?p ?o }").strip() == "yes"
    (tmp_path / "q.rq").write_text("SELECT (COUNT(*) AS ?n) { ?s ?p ?o }")
    assert told("build", "query", graph, "--file", tmp_path / "q.rq") == {"columns": ["n"], "rows": [["5"]]}
    for name in ("a.nq", "a.jsonld", "a.graphml", "a.csv"):
        assert "5 statements" in call("build", "export", graph, tmp_path / name)
    call("build", "export", graph, tmp_path / "neo", "--format", "neo4j")
    assert told("build", "import", tmp_path / "neo", "-o", tmp_path / "again")["statements"] == 5  # type: ignore[index,call-overload]
    assert told("build", "diff", graph, tmp_path / "again") == {"added": [], "removed": [], "changed": []}
    for words, error in (
        (("query", graph), "param.missing"), (("query", graph, "SELECT"), "input.format"), (("export", graph, tmp_path / "x.docx"), "param.value"),
        (("import", tmp_path / "nothing", "-o", tmp_path / "y"), "input.missing"), (("import", tmp_path / "facts.ttl", "-o", graph), "output.exists"),
        (("export", graph, tmp_path / "x.ttl", "--profile", "rdf13"), "param.value"), (("query", tmp_path, "ASK {}"), "input.type"),
    ):  # fmt: skip
        refused(error, "build", *words)


def test_check_counts_and_fails(graph: Path, tmp_path: Path) -> None:
    found = told("build", "check", graph)
    assert found["figures"] == {  # type: ignore[index,call-overload]
        "statements": 5, "grounded share": 0.0, "entities": 4, "islands": 2, "stop-word nodes": 1, "classes used as instances": 0,
        "shared labels": 0, "busiest share": 0.5, "violations": 0,
    }  # fmt: skip
    assert told("build", "check", graph, "--most", "islands=1", "--most", "entities=9", code=1)["over"] == ["islands"]  # type: ignore[index,call-overload]
    (tmp_path / "o.ttl").write_text(
        f"@prefix owl: <http://www.w3.org/2002/07/owl#> . <urn:x:people> a owl:DatatypeProperty ; "
        f"<http://www.w3.org/2000/01/rdf-schema#range> <{XSD}integer> ."
    )
    out = call("build", "check", graph, "--ontology", tmp_path / "o.ttl", code=1)
    assert "Oslo: Datatype people many" in out
    call("build", "check", graph, "--ontology", tmp_path / "o.ttl", "--most", "violations=1")
    (graph / "ontology.ttl").write_bytes((tmp_path / "o.ttl").read_bytes())  # a graph's own contracts count always
    assert "Datatype" in call("build", "check", graph, code=1)
    call("build", "show", graph, "-o", tmp_path / "x.html")
    assert '"component": "Datatype"' in (tmp_path / "x.html").read_text()
    refused("param.value", "build", "check", graph, "--most", "isles=1")


def test_history_undo_and_diff(graph: Path, tmp_path: Path) -> None:
    from interfuse.core.artifact import save_artifact

    def fill(folder: Path) -> dict[str, str]:
        Graph.open(graph).save(folder)
        (folder / "documents.parquet").write_bytes(b"texts")
        (folder / "plots").mkdir()
        (folder / "plots" / "a.csv").write_text("1")
        return {"told": "by the room"}

    save_artifact(tmp_path / "made", fill, {"kind": "graph", "method": "build/offline", "inputs": ["x"], "key": "k"})
    with Graph.open(tmp_path / "made", write=True) as opened:
        opened.merge("urn:x:oslo", "urn:x:rome")
        opened.commit()
    manifest = verify(tmp_path / "made").manifest  # what the room kept there stays
    assert (manifest["method"], manifest["inputs"], manifest["facts"]["told"]) == (
        "build/offline",
        ["x"],
        "by the room",
    )
    assert manifest["key"] != "k"
    assert (tmp_path / "made" / "documents.parquet").read_bytes() == b"texts"
    assert (tmp_path / "made" / "plots" / "a.csv").read_text() == "1"
    with Graph.open(graph, write=True) as opened:
        opened.merge("urn:x:oslo", "urn:x:rome", "a mistake")
        opened.commit()
    assert "merge" in call("build", "history", graph)
    done = told("build", "undo", graph, "--reason", "two cities")
    assert done == {"operation": 3, "undone": 2, "statements": 5, "before": 5}
    verify(graph)
    rows = told("build", "history", graph)
    assert [r["in force"] for r in rows] == [True, False, True]  # type: ignore[attr-defined]
    call("build", "undo", graph, "--op", "1")
    out = call("build", "diff", graph, tmp_path / "facts.ttl")
    assert out.startswith("5 added, 0 removed, 0 changed")
    assert "+ Oslo | people | many" in out
    refused("param.value", "build", "undo", graph, "--op", "77")


def test_a_build_renews_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notes, out = tmp_path / "notes", tmp_path / "g"
    notes.mkdir()
    (notes / "a.txt").write_text("Oslo is the capital of Norway.")
    words = ("build", notes, "--parser", "rules", "-o")
    call(*words, out)
    first = len(Graph.open(out))
    (notes / "b.txt").write_text("Rome is the capital of Italy.")
    call(*words, out)  # the same build: no --force
    assert len(Graph.open(out)) > first
    call(*words, tmp_path / "fresh")
    assert Graph.open(out).digest() == Graph.open(tmp_path / "fresh").digest()
    call(*words, out, "--dry-run")
    verify(out)
    refused("output.exists", *words, out, "--chunk-tokens", "50")  # another build
    refused("output.exists", "build", "docs2kg", notes, "-o", out)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.txt").write_text("Oslo is the capital of Norway.")
    refused("output.exists", "build", tmp_path / "others", "--parser", "rules", "-o", out)
    same = tmp_path / "others" / "notes"  # of the same name, with other files
    same.mkdir()
    (same / "c.txt").write_text("Paris is the capital of France.")
    refused("output.exists", "build", same, "--parser", "rules", "-o", out)
    for name, text in (("a.txt", "Paris is the capital of France."), ("b.txt", "Bonn is a city in Germany.")):
        (same / name).write_text(text)  # and with files of the same names, which hold something else
    (same / "c.txt").unlink()
    before = Graph.open(out).digest()
    assert "other documents" in refused("output.exists", *(same if w == notes else w for w in words), out)
    assert "other documents" in refused("output.exists", *(same if w == notes else w for w in words), out, "--dry-run")
    assert Graph.open(out).digest() == before
    call("build", "show", out, "-o", out / "page.html")
    assert "page.html" in refused("output.exists", *words, out)
    (out / "page.html").unlink()
    with Graph.open(out, write=True) as opened:
        opened.merge("urn:x:a", "urn:x:b")  # said, not committed
    assert "1 operations were made" in refused("output.exists", *words, out)
    with Graph.open(out, write=True) as opened:
        opened.undo()
        opened.commit()
    assert "2 operations were made" in refused("output.exists", *words, out)
    kept_texts = out / "documents.parquet"
    kept_texts.write_bytes(b"x" * kept_texts.stat().st_size)
    call(*words, out, "--force")  # whatever became of what is replaced
    call(*words, out)
    call("build", "undo", out)
    kept = Graph.open(out).digest()
    assert "1 operations were made" in refused("output.exists", *words, out)
    assert Graph.open(out).digest() == kept
    done = CliRunner().invoke(app, [str(w) for w in (*words, out, "--force")])
    assert done.exit_code == 0
    assert "1 operations that were made on the graph since it was built are lost" in done.stderr
    assert Graph.open(out).digest() == Graph.open(tmp_path / "fresh").digest()
    call(*words, out)


def test_a_folder_is_known_by_its_place_or_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notes, out = tmp_path / "notes", tmp_path / "g"
    notes.mkdir()
    (notes / "a.txt").write_text("Oslo is the capital of Norway.")
    call("build", notes, "--parser", "rules", "-o", out)
    (notes / "a.txt").write_text("Rome is the capital of Italy.")  # the only document, in the same place
    call("build", notes, "--parser", "rules", "-o", out)
    (tmp_path / "moved").mkdir()
    moved = notes.rename(tmp_path / "moved" / "notes")  # another place, the same documents
    (moved / "b.txt").write_text("Bonn is a city in Germany.")
    call("build", moved, "--parser", "rules", "-o", out)
    for name in ("a.txt", "b.txt"):
        (moved / name).write_text(f"Paris is the capital of France, says {name}.")
    places = next((tmp_path / "cache").rglob("places.jsonl"))
    places.write_text(places.read_text() + '{"key": "cut')
    call("build", moved, "--parser", "rules", "-o", out)
    again = moved.rename(notes)
    for name in ("a.txt", "b.txt"):
        (again / name).write_text(f"Cairo is the capital of Egypt, says {name}.")
    assert "other documents" in refused("output.exists", "build", again, "--parser", "rules", "-o", out)
    call("build", again, "--parser", "rules", "-o", out, "--force")


def test_places_that_were_noted_long_ago_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(origins, "_MOST", 4)
    notes, old = tmp_path / "notes", tmp_path / "old"
    notes.mkdir()
    for i in range(8):
        (notes / "a.txt").write_text(f"Town{i} is the capital of Norway.")
        call("build", notes, "--parser", "rules", "-o", tmp_path / "g", *(["--force"] if i == 5 else []))
        if not i:
            call("build", notes, "--parser", "rules", "-o", old)
        if i == 4:
            places = next((tmp_path / "cache").rglob("places.jsonl"))
            places.write_text(places.read_text() + '{"key": "cut')
    rows = [line for line in places.read_text().splitlines() if line]
    assert [json.loads(row).keys() for row in rows] == [{"key", "place"}] * 2
    call("build", notes, "--parser", "rules", "-o", tmp_path / "g")  # the last is among them
    (notes / "a.txt").write_text("Rome is the capital of Italy.")
    call("build", notes, "--parser", "rules", "-o", tmp_path / "g")
    assert "other documents" in refused("output.exists", "build", notes, "--parser", "rules", "-o", old)


def test_fuse_writes_one_graph_and_says_who_said_what(tmp_path: Path) -> None:
    for name, capital in (("a", "Oslo"), ("b", "Oslo"), ("c", "Bergen")):
        graph = Graph(name)
        graph.add([label_of("Norway", f"urn:{name}:norway"), label_of(capital, entity_id(capital)),
                   Statement(f"urn:{name}:norway", relation_id("capital"), entity_id(capital), evidence=(Evidence(name),))])  # fmt: skip
        graph.write(tmp_path / name)
    words = (
        "build",
        "fuse",
        *(tmp_path / n for n in "abc"),
        "-o",
        tmp_path / "all",
        "--functional",
        relation_id("capital"),
    )
    found = told(*words)
    assert found["conflicts"] == 1  # type: ignore[index,call-overload]
    assert found["sources"]["c"]["dropped"] == 1  # type: ignore[index,call-overload]
    made = Graph.open(tmp_path / "all")
    assert [s.object for s in made.statements(p=relation_id("capital"))] == [entity_id("Oslo")]
    assert verify(tmp_path / "all").manifest["facts"]["agreed"] == 3
    refused("output.exists", *words)


def test_show_writes_one_page(graph: Path, tmp_path: Path) -> None:
    assert "5 statements in one page" in call("build", "show", graph, "-o", tmp_path / "x.html")
    assert Literal("Oslo").value in (tmp_path / "x.html").read_text()
    refused("output.exists", "build", "show", graph, "-o", tmp_path / "x.html")
    assert "2 of 5 statements in one page" in call("build", "show", graph, "--most", "2", "-o", tmp_path / "y.html")
    call("build", "show", graph, "--around", "oslo", "-o", tmp_path / "z.html")
    assert "urn:x:italy" not in (tmp_path / "z.html").read_text()
    refused("param.value", "build", "show", graph, "--most", "2")


def test_plain_texts_are_aligned_with_a_graph(tmp_path: Path) -> None:
    (tmp_path / "names.ttl").write_text(
        "@prefix x: <urn:x:> . @prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> . "
        'x:oslo x:capitalOf x:norway ; rdfs:label "Oslo" ; x:founded "1048" . x:norway rdfs:label "Norway", "Kingdom of Norway" . '
        'x:rome x:capitalOf x:italy ; rdfs:label "Rome" . x:italy rdfs:label "Italy" . x:other x:capitalOf x:norway ; rdfs:label "Rome" .'
    )
    call("build", "import", tmp_path / "names.ttl", "-o", tmp_path / "known")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(
        "Oslo lies by the sea. Few doubt that Oslo rules the Kingdom of Norway. Oslo is from 1048. Rome is in Italy."
    )
    (texts / "b.md").write_text("# Oslo\n\nNorway is cold.\n\nOslo, in Norway, is the Oslo of Norway.\n")
    call("build", "align", tmp_path / "known", texts, "--parser", "rules", "-o", tmp_path / "rows.jsonl")
    rows = [json.loads(x) for x in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == [  # Rome is the name of two, and one end is not enough
        {"text": "Few doubt that Oslo rules the Kingdom of Norway.", "triples": [{"sub": "Oslo", "rel": "capitalOf", "obj": "Kingdom of Norway"}]},
        {"text": "Oslo is from 1048.", "triples": [{"sub": "Oslo", "rel": "founded", "obj": "1048"}]},
        {"text": "Oslo, in Norway, is the Oslo of Norway.", "triples": [{"sub": "Oslo", "rel": "capitalOf", "obj": "Norway"}]},  # once, and no title in it
    ]  # fmt: skip
    words = (
        "build",
        "distant-supervision",
        texts,
        "--table",
        tmp_path / "rows.jsonl",
        "--parser",
        "rules",
        "-o",
        tmp_path / "learnt",
    )
    call(*words)
    (texts / "a.txt").write_text("Nothing is said.")
    (texts / "b.md").unlink()
    refused("input.empty", "build", "align", tmp_path / "known", texts, "-o", tmp_path / "none.jsonl")
