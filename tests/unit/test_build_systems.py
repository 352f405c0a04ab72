"""Docs2KG, KAG's index, Graphusion and tables by mapping: what each promises of its graph."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import interfuse
from interfuse.build.aligning import alike, candidate_pairs, likest, similarity
from interfuse.build.docs2kg import continuous, sections
from interfuse.cli.main import app
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.data.formats.graphs import read_graph, write_graph
from interfuse.data.graph import Graph
from interfuse.data.statements import Evidence, Literal, Statement, entity_id, relation_id
from interfuse.kit.graph_walks import chunks_near, linked, personalised_pagerank, reciprocal_merge
from interfuse.web.explorer import open_explorer
from tests import documents as made
from tests.unit.test_build_documents import Scripted, write

TABLE = [["City", "Population"], ["Oslo", "709037"], ["Bergen", "291940"]]


def rows(graph: Graph, predicate: str) -> set[tuple[str, str]]:
    """Labels of both ends of a relation."""
    found = graph.statements(p=f"urn:interfuse:relation:{predicate}")
    return {
        (graph.label(s.subject), s.object.value if isinstance(s.object, Literal) else graph.label(s.object))
        for s in found
    }


def test_sections_of_the_card() -> None:
    assert sections([1, 2, 0, 2, 0, 1]) == [-1, 0, 1, 0, 3, -1]


def test_measures_and_categories_of_the_card() -> None:
    assert continuous([str(i) for i in (1, 2, 3, 4, 5, 6, 6, 6, 6, 6)])
    assert not continuous([str(i) for i in (1, 2, 3, 4, 5, 5, 5, 5, 5, 5)])
    assert not continuous(["1", "two", "3"])


def test_docs2kg_joins_layout_metadata_and_meaning(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.html").write_bytes(made.html("Cities", ["Oslo is the capital of Norway."], TABLE))
    (folder / "b.eml").write_bytes(
        made.mail("About Oslo", ["Oslo is a city in Norway."], {"c.csv": made.delimited(TABLE)})
    )
    meta = tmp_path / "meta.csv"
    meta.write_text("name,team,pages\na.html,North,3\nb.eml,North,7\n")
    graph = interfuse.build.docs2kg(
        str(folder), table={"data": str(meta)}, out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache")
    )
    assert ("b.eml", "Ada") in rows(graph, "sent-by")
    assert ("b.eml", "b.eml!/c.csv") in rows(graph, "has-attachment")
    assert rows(graph, "has-team") == {("a.html", "North"), ("b.eml", "North")}
    assert rows(graph, "pages") == {("a.html", "3"), ("b.eml", "7")}
    assert ("Cities", "Oslo is the capital of Norway.") in rows(graph, "has-element")
    mentions = rows(graph, "mentions")
    assert {("Oslo is the capital of Norway.", "Oslo"), ("Oslo | 709037", "Oslo")} <= mentions
    oslo = {
        s.object
        for s in graph.statements(p="urn:interfuse:relation:mentions")
        if isinstance(s.object, str) and graph.label(s.object) == "Oslo"
    }
    assert len(oslo) == 1, "one node for one city, whatever the format"


def test_kag_points_from_entities_to_chunks_and_back(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a.txt": "Oslo is the capital of Norway.", "b.txt": "Bergen is a city in Norway."})
    graph = interfuse.build.kag(str(folder), out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache"))
    source, mentions = rows(graph, "source"), rows(graph, "mentions")
    assert {(a, b) for b, a in source} == mentions
    assert {("Norway", "a.txt"), ("Norway", "b.txt"), ("Oslo", "a.txt"), ("Bergen", "b.txt")} <= source
    facts = [s for s in graph if s.predicate.endswith(("capital-of", "city-in"))]
    for s in facts:  # every fact's evidence lies in a chunk that its ends point to
        assert {e.document for e in s.evidence} <= {
            e.document for x in graph.statements(s.subject, "urn:interfuse:relation:source") for e in x.evidence
        }
    graph.withdraw(document=facts[0].evidence[0].document)
    assert not [s for s in graph if s.id == facts[0].id]


def test_kag_with_a_model_asks_names_then_triples(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a.txt": "WHO is an agency of the United Nations."})

    def say(prompt: str) -> str:
        if "List the entities" in prompt:
            return json.dumps({"entities": [{"name": "WHO", "category": "Agency", "official_name": "World Health Organization", "type": "body"},
                                            {"name": "United Nations", "category": "Agency"}, {"name": "Atlantis", "category": "Agency"}]})  # fmt: skip
        assert "WHO (Agency); United Nations (Agency)" in prompt
        return json.dumps(
            {
                "statements": [
                    {
                        "subject": "WHO",
                        "relation": "agency of",
                        "object": "United Nations",
                        "quote": "an agency of the United Nations",
                    }
                ]
            }
        )

    graph = interfuse.build.kag(
        str(folder), lm=Scripted(say), categories=["Agency"], out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache")
    )
    assert ("WHO", "United Nations") in rows(graph, "agency-of") or (
        "World Health Organization",
        "United Nations",
    ) in rows(graph, "agency-of")
    who = next(s.subject for s in graph.statements(p="urn:interfuse:relation:agency-of"))
    assert set(graph.labels(who)) >= {"WHO", "World Health Organization"}
    assert not [e for e in graph.entities() if graph.label(e) == "Atlantis"]


def test_kag_with_a_model_aligns_names_and_classes_by_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(
        tmp_path / "in", {"a.txt": "The heart valve opens into the heart. A bad valve leads to heart failure."}
    )
    kinds = {"heart valve": "Part", "heart": "Organ", "heart failure": "Disease"}
    told = [("heart valve", "isPartOf", "heart"), ("Part", "belongTo", "organ"), ("heart failure", "isA", "disease"), ("Heart", "synonym", "heart valve"),
            ("heart", "loves", "heart valve"), ("Atlantis", "isA", "heart")]  # fmt: skip

    def say(prompt: str) -> str:
        if "List the entities" in prompt:
            return json.dumps({"entities": [{"name": n, "category": c} for n, c in kinds.items()]})
        if "relations of meaning" in prompt:
            return json.dumps({"relations": [{"subject": a, "relation": r, "object": b} for a, r, b in told]})
        return '{"statements": []}'

    def built(lm: Any) -> tuple[Graph, dict[str, Any]]:
        place = tmp_path / f"g{len(list(tmp_path.iterdir()))}"
        made = interfuse.build.kag(str(folder), lm=lm, categories=[*kinds.values()], parser="rules", out=place, ctx=Ctx(cache=tmp_path / "cache"))  # fmt: skip
        return made, json.loads((place / "interfuse.json").read_text())["facts"]

    model = Scripted(say)
    graph, facts = built(model)
    assert rows(graph, "ispartof") == {("heart valve", "heart")}
    assert rows(graph, "belongto") == {("part", "organ")}
    assert rows(graph, "synonym") == {("heart", "heart valve")}
    assert {s.status for s in graph.statements(p="urn:interfuse:relation:synonym")} == {"model-claimed"}
    assert facts["method"]["aligned by meaning"] == 3, "a class that a name does not look like was not asked about"
    assert facts["counts"]["alignments that were not asked about"] == 3
    asked = [p for p in model.prompts if "relations of meaning" in p]
    assert len(asked) == 1
    assert "heart / heart valve" in asked[0]
    assert "disease / organ" in asked[0]
    monkeypatch.setattr("interfuse.build.aligning.PAIRS", 2)
    few = Scripted(say)
    _, facts = built(few)
    assert len([p for p in few.prompts if "relations of meaning" in p]) == 1, "no more requests than chunks"
    assert facts["method"]["pairs of names"]["asked about"] == 2
    plain, facts = built(None)
    assert "aligned by meaning" not in facts["method"]
    assert not [s for s in plain if s.status == "model-claimed"]


@pytest.mark.parametrize("count", [0, 1, 2, 12, 150])
def test_names_are_compared_as_pair_by_pair(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interfuse.build.aligning.ROWS", 7)
    rng = np.random.default_rng(count)
    words = ["red", "marine", "sea", "seal", "art", "arts", "zoo", "qqq", "x"]
    names = sorted({" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(count)})
    pairs = list(itertools.combinations(range(len(names)), 2))
    like = {(i, j): similarity(names[i], names[j]) for i, j in pairs}
    ordered = [(names[i], names[j]) for i, j in sorted(pairs, key=lambda p: (-like[p], names[p[0]], names[p[1]]))]
    for most in (0, 1, 20, len(pairs) + 1):
        assert likest(names[::-1], most) == ordered[:most]
        assert candidate_pairs(names, [], most) == (ordered[:most], len(pairs))
    for least in (0.3, 0.9, 1.0):
        assert alike(names, least) == [(i, j, like[i, j]) for i, j in pairs if like[i, j] >= least]


def test_many_classes_cost_no_more_than_their_product() -> None:
    names = [
        f"{a} {b} {c}"
        for a in ["red", "sea", "art", "zoo", "ice", "sun"]
        for b in ["bridge", "film", "school", "museum"]
        for c in range(60)
    ]
    began = time.process_time()
    pairs, count = candidate_pairs(names, [], 200)
    assert (len(pairs), count) == (200, len(names) * (len(names) - 1) // 2)
    assert time.process_time() - began < 5, "a million pairs, one by one, take half a minute"


def test_walks_and_merged_ranks_of_the_card() -> None:
    assert reciprocal_merge([["a", "b", "c"], ["b", "a"]]) == {"a": 1.5, "b": 1.5, "c": pytest.approx(1 / 3)}
    shares = personalised_pagerank(4, [(0, 1), (1, 2), (2, 3)], [1, 0, 0, 0], damping=0.1)
    assert shares.sum() == pytest.approx(1)
    assert shares[2] < 0.01 * shares[0]  # two hops weigh about one per cent
    with pytest.raises(ValueError, match="damping"):
        personalised_pagerank(2, [(0, 1)], [0, 0])


def test_from_a_question_to_the_texts_that_answer_it(tmp_path: Path) -> None:
    texts = {"a.txt": "Oslo is the capital of Norway.", "b.txt": "Norway is a member of the Nordic Council.", "c.txt": "Rome is a city in Italy.",
             "d.txt": "Norway Street is a street in Rome."}  # fmt: skip
    graph = interfuse.build.kag(
        str(write(tmp_path / "in", texts)), parser="rules", out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "c")
    )
    question = "Is OSLO near Norway Street, or Atlantis?"
    found = linked(graph, question)
    assert [(question[m.start : m.end], graph.label(m.entity)) for m in found] == [
        ("OSLO", "Oslo"),
        ("Norway Street", "Norway Street"),
    ]

    def near(*entities: str, **more: Any) -> list[str]:
        return [texts_of(graph, chunk) for chunk, _ in chunks_near(graph, entities, **more)]

    oslo = found[0].entity
    assert near(oslo)[:2] == [texts["a.txt"], texts["b.txt"]], "the second over a country that both texts name"
    assert texts["c.txt"] not in near(oslo)
    both = chunks_near(graph, {oslo: 1.0, found[1].entity: 3.0})
    assert texts_of(graph, both[0][0]) == texts["d.txt"]
    assert all(a >= b for (_, a), (_, b) in itertools.pairwise(both))
    far, short = dict(chunks_near(graph, [oslo], damping=0.5)), dict(chunks_near(graph, [oslo]))
    second = next(c for c in short if texts_of(graph, c) == texts["b.txt"])
    assert far[second] > short[second]
    assert chunks_near(graph, []) == []
    for ask in (lambda: chunks_near(graph, ["urn:x:nothing"]), lambda: chunks_near(Graph.open(None), [oslo])):
        with pytest.raises(InterfuseError, match=r"input\.missing"):
            ask()


def texts_of(graph: Graph, chunk: str) -> str:
    """The words of a chunk."""
    (said,) = graph.statements(chunk, "urn:interfuse:relation:text")
    assert isinstance(said.object, Literal)
    return said.object.value


WORDS = {
    "a.txt": "A Markov Chain is part of Hidden Models. The Long Short-Term Memory (LSTM) is well known. LSTM is used for Speech Parsing.",
    "b.txt": "Long Short-Term Memory is used for Speech Parsing. Hidden Models are part of Graph Theory.",
    "c.txt": "LSTM is a measure of Speech Parsing.",
}


def test_graphusion_merges_settles_and_infers(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", WORDS)
    graph = interfuse.build.graphusion(
        str(folder), concepts=30, topics=2, out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache")
    )
    assert rows(graph, "used-for") == {("Long Short-Term Memory", "Speech Parsing")}
    assert not rows(graph, "evaluate-for"), "the weaker of two relations has lost"
    inferred = [s for s in graph if s.status == "inferred" and "part-of" in s.predicate]
    assert [(graph.label(s.subject), graph.label(s.object)) for s in inferred if isinstance(s.object, str)] == [
        ("Markov Chain", "Graph Theory")
    ]
    log = [json.loads(x) for x in (tmp_path / "g" / "fusion.jsonl").read_text().splitlines()]
    assert {"what": "merged", "from": "LSTM", "to": "Long Short-Term Memory"} in log
    assert any(row["what"] == "lost" for row in log)


def test_what_something_is_to_another_is_not_its_kind(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "in",
        {"a.txt": "Graph Theory is a prerequisite of Markov Models. Markov Models are a type of Sequence Model."},
    )
    graph = interfuse.build.graphusion(
        str(folder), concepts=10, topics=1, out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache")
    )
    assert len(rows(graph, "is-a-prerequisite-of")) == 1
    assert "prerequisite" not in {b.casefold() for _, b in rows(graph, "hyponym-of")}


def test_what_graphusion_decides_can_be_undone(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", WORDS)
    made = interfuse.build.graphusion(
        str(folder), concepts=30, topics=2, out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache")
    )
    graph = Graph.open(tmp_path / "g")
    kinds = [op.kind for op in graph.history()]
    assert kinds[:2] == ["add", "merge"]
    assert kinds[-1] == "add"
    assert {"withdraw"} <= set(kinds[2:-1]) <= {"withdraw", "mark"}
    read = graph.at(1)  # as the texts write it, before any decision
    lstm, long = entity_id("LSTM"), entity_id("Long Short-Term Memory")
    assert graph.called(lstm) == graph.called(long)
    assert read.called(lstm) == lstm
    assert "LSTM" in [read.label(s.subject) for s in read.statements(p="urn:interfuse:relation:used-for")]
    assert rows(read, "evaluate-for")
    assert not rows(graph, "evaluate-for")
    for count in range(len(kinds), 1, -1):  # one decision after another, the last first
        assert graph.at(count - 1).digest() != graph.digest()
        graph.undo()
        assert graph.digest() == graph.at(count - 1).digest()
    assert graph.digest() == read.digest()
    assert len(read) > 0
    assert len(made) > 0
    again = Graph.open(tmp_path / "g")
    again.undo(2)  # the merge alone: both names stand for themselves again, what was decided otherwise stays
    assert again.called(lstm) == lstm
    assert again.called(long) == long
    left = {s.id for s in read.statements(lstm) if "evaluate-for" not in s.predicate}
    assert {s.id for s in again.statements(lstm)} == left
    assert not rows(again, "evaluate-for")


def test_graphusion_with_a_model_keeps_to_its_relations_and_texts(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "in",
        {"a.txt": "Markov Chain theory is used for Speech Parsing. Speech Parsing needs a Grammar Index."},
    )

    def say(prompt: str) -> str:
        good = {
            "subject": "Markov Chain theory",
            "relation": "used for",
            "object": "Speech Parsing",
            "quote": "Markov Chain theory is used for Speech Parsing",
        }
        return json.dumps(
            {
                "statements": [
                    good,
                    {**good, "relation": "likes"},
                    {**good, "object": "Atlantis", "quote": "no such words"},
                ]
            }
        )

    model = Scripted(say)
    graph = interfuse.build.graphusion(
        str(folder), lm=model, concepts=5, topics=1, out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache")
    )
    assert rows(graph, "used-for") == {("Markov Chain theory", "Speech Parsing")}
    assert any("fuse two lists" in p for p in model.prompts)


def test_graphusion_points_to_the_very_letters(tmp_path: Path) -> None:
    """Where a reply quotes nothing, and small letters are more than capitals."""
    said = "Straße, Maße, Grüße: Markov Chain theory is used for Speech Parsing."
    folder = write(tmp_path / "in", {"a.txt": said})
    row = {"subject": "markov chain theory", "relation": "used for", "object": "speech parsing", "quote": ""}
    graph = interfuse.build.graphusion(str(folder), lm=Scripted(lambda _: json.dumps({"statements": [row]})), concepts=5, topics=1,
                                       out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache"))  # fmt: skip
    (used,) = graph.statements(p="urn:interfuse:relation:used-for")
    assert {said[e.start : e.end] for e in used.evidence} == {"Markov Chain theory"}


def test_graphusion_asks_again_about_what_changed_alone(tmp_path: Path) -> None:
    concepts = [
        "Markov Chain",
        "Speech Parsing",
        "Grammar Index",
        "Graph Theory",
        "Neural Tagger",
        "Word Lattice",
        "Beam Search",
        "Topic Model",
    ]
    texts = {
        f"{i}.txt": f"{a} is used for {b}."
        for i, (a, b) in enumerate(zip(concepts, concepts[1:] + concepts[:1], strict=True))
    }
    folder = write(tmp_path / "in", texts)

    def say(prompt: str) -> str:
        shown = prompt.split("<document")[-1]
        rows = [{"subject": a, "relation": "Used-for", "object": b, "quote": f"{a} is used for {b}"}
                for a in concepts for b in concepts if f"{a} is used for {b}" in shown]  # fmt: skip
        return json.dumps({"statements": rows})

    def asked() -> tuple[int, int]:
        model = Scripted(say)
        interfuse.build.graphusion(
            str(folder), lm=model, topics=1, out=tmp_path / "g", force=True, ctx=Ctx(cache=tmp_path / "cache")
        )
        fusing = sum("fuse two lists" in p for p in model.prompts)
        return len(model.prompts) - fusing, fusing

    assert asked() == (8, 8)  # each document is a chunk that speaks of two concepts
    assert asked() == (0, 0)
    (folder / "2.txt").write_text("Grammar Index is used for Graph Theory. It rained.")
    assert asked() == (1, 2)  # the chunk, and the concepts whose texts hold it
    (folder / "5.txt").unlink()
    assert asked() == (0, 2)  # nothing is read again; the two concepts have fewer texts
    (folder / "5.txt").write_text(texts["5.txt"])
    assert asked() == (0, 0)


def given_rows(tmp_path: Path) -> str:
    file = tmp_path / "people.csv"
    file.write_text("name,employer,born,languages\nAda,Acme,1815-12-10,English;French\nBob,,1900,\n,Acme,1901,\n")
    return str(file)


def test_tables_by_mapping(tmp_path: Path) -> None:
    mapping: dict[str, Any] = {
        "employer": {"relation": "works for", "class": "company"},
        "born": "birth date",
        "languages": "speaks",
    }
    graph = interfuse.build.table_rows(
        table={"data": given_rows(tmp_path)},
        key="name",
        kind="person",
        columns=mapping,
        separator=";",
        out=tmp_path / "g",
    )
    assert rows(graph, "works-for") == {("Ada", "Acme")}
    assert rows(graph, "speaks") == {("Ada", "English"), ("Ada", "French")}
    assert rows(graph, "birth-date") == {("Ada", "1815-12-10"), ("Bob", "1900")}
    (proof,) = graph.statements(p="urn:interfuse:relation:works-for")[0].evidence
    assert proof.element == "row 1, employer"


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InterfuseError, match="Did you mean employer"):
        interfuse.build.table_rows(
            table={"data": given_rows(tmp_path)}, key="name", columns={"employr": "works for"}, out=tmp_path / "g"
        )


def test_evidence_keeps_the_sheet_and_the_cells(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "towns.xlsx").write_bytes(made.xlsx({"Notes": [["of two towns"]], "The Cities": TABLE}))
    (folder / "towns.csv").write_text("City,Mayor\nOslo,Anne Lindboe\nBergen,Marit Warncke\n")
    interfuse.build.offline(str(folder), parser="rules", out=tmp_path / "g", ctx=Ctx(cache=tmp_path / "cache"))
    graph = Graph.open(tmp_path / "g")

    def places(relation: str) -> set[str]:
        return {e.place for s in graph.statements(p=relation_id(relation)) for e in s.evidence}

    assert places("population") == {"The Cities!A2:B2", "The Cities!A3:B3"}
    assert places("mayor") == {"row 2", "row 3"}
    shown = open_explorer(tmp_path / "g")
    (one,) = [s for s in graph.statements(p=relation_id("population")) if graph.label(s.subject) == "Oslo"]
    assert [(e["place"], e["page"]) for e in shown.statement(one.id)["evidence"]] == [("The Cities!A2:B2", 2)]
    Graph().write(tmp_path / "none")
    told = CliRunner().invoke(app, ["build", "diff", str(tmp_path / "none"), str(tmp_path / "g"), "--limit", "0"])
    assert "[1 evidence: The Cities!A2:B2]" in told.stdout
    for name in ("g.nq", "g.csv", "g.jsonld"):
        write_graph(tmp_path / name, graph)
        assert read_graph(tmp_path / name)[0].digest() == graph.digest()


def test_a_graph_without_places_still_opens(tmp_path: Path) -> None:
    graph = Graph()
    graph.add([Statement("urn:x:a", "urn:x:p", "urn:x:b", evidence=(Evidence("d", 1, 4, 2, "cell"),))])
    graph.save(tmp_path / "g")
    for file in (tmp_path / "g" / "evidence.parquet", tmp_path / "g" / "log" / "evidence.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["place"]), file)
    assert Graph.open(tmp_path / "g").statements() == graph.statements()
    assert len(Graph.open(tmp_path / "g")) == 1
