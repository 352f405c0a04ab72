"""The Graph noun: statements, evidence, merging, withdrawing, undoing, folders."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import pytest

from interfuse.core.artifact import verify
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.graph import Graph, open_graph
from interfuse.data.graph_columns import read_tsv, same
from interfuse.data.statements import (
    LABEL,
    TYPE,
    Evidence,
    Literal,
    Statement,
    entity_id,
    label_of,
    number,
    relation_id,
    term_of,
    text_of,
)

OSLO, KRISTIANIA, NORWAY = (entity_id(w) for w in ("Oslo", "Kristiania", "Norway"))
CAPITAL, SINCE = relation_id("capital of"), relation_id("since")


def said(s: str, p: str, o: str | Literal, *documents: str, **rest: object) -> Statement:
    return Statement(s, p, o, evidence=tuple(Evidence(d, 3, 9, method="m") for d in documents), **rest)  # type: ignore[arg-type]


def people(document: str, count: int = 20) -> list[Statement]:
    """Statements of a document about people, some of whom other documents know too."""
    rng = random.Random(document)
    made = []
    for _ in range(count):
        a, b = (entity_id(f"person {rng.randrange(12)}") for _ in range(2))
        made.append(
            said(a, relation_id(rng.choice(["knows", "likes"])), b, document, confidence=rng.choice([0.5, 0.75, 1.0]))
        )
    return made


def test_a_statement_is_known_by_what_it_says_not_by_who_says_it() -> None:
    a = said(OSLO, CAPITAL, NORWAY, "A", qualifiers=((SINCE, number(1814)), (relation_id("by"), Literal("law"))))
    b = said(
        OSLO,
        CAPITAL,
        NORWAY,
        "B",
        qualifiers=((relation_id("by"), Literal("law")), (SINCE, number(1814))),
        confidence=0.5,
    )
    assert a.id == b.id
    assert a.id != said(OSLO, CAPITAL, NORWAY, "A").id
    assert said(OSLO, LABEL, Literal("x")).id != said(OSLO, LABEL, Literal("x", language="en")).id
    graph = Graph()
    graph.add([a])
    graph.add([b])
    (found,) = graph.statements(OSLO)
    assert [e.document for e in found.evidence] == ["A", "B"]
    assert found.confidence == 1.0


@pytest.mark.parametrize("bad, code", [
    ({"subject": "Oslo"}, "input.format"), ({"subject": "urn:a b"}, "input.format"), ({"predicate": "_:x"}, "input.format"),
    ({"subject": "urn:x<y"}, "input.format"), ({"object": Literal("\ud800")}, "input.format"), ({"object": "no iri"}, "input.format"),
    ({"object": Literal("x", language="not a language")}, "input.format"), ({"confidence": math.nan}, "input.nan"),
    ({"confidence": 1.5}, "param.value"), ({"status": "sure"}, "input.format"), ({"evidence": (Evidence(""),)}, "input.format"),
    ({"evidence": (Evidence("d", 5, 2),)}, "input.format"), ({"qualifiers": (("x", "urn:x:y"),)}, "input.format"),
])  # fmt: skip
def test_malformed_statements_are_refused_and_nothing_of_their_batch_is_added(
    bad: dict[str, object], code: str
) -> None:
    graph = Graph()
    graph.add(people("A"))
    before = graph.digest()
    with pytest.raises(InterfuseError) as caught:
        graph.add([said(OSLO, CAPITAL, NORWAY), dataclasses.replace(said(OSLO, CAPITAL, NORWAY), **bad)])
    assert caught.value.code == code
    assert graph.digest() == before


@pytest.mark.parametrize(
    "value", ["", "plain", 'quo"te', "back\\slash", "\t\n\r\b\f\x01\x7f", "ärger 漢字 🦆", "\\u0041", '"^^<x>']
)
def test_terms_survive_being_written(value: str) -> None:
    for term in (Literal(value), Literal(value, language="DE"), Literal(value, "urn:x:type")):
        assert term_of(text_of(term)) == term


def test_a_document_taken_out_leaves_the_graph_as_if_it_had_never_been_read() -> None:
    alone = Graph()
    alone.add(people("A"))
    both = Graph()
    both.add(people("B"))
    both.add(people("A"))
    assert both.digest() != alone.digest()
    taken = both.withdraw(document="B")
    assert both.digest() == alone.digest()
    again = both.add(people("B"))  # read anew after it was withdrawn
    whole = both.digest()
    both.undo(again)
    assert both.digest() == alone.digest()
    both.undo(taken)
    assert both.digest() == whole


def test_what_rests_on_premises_dies_with_them_in_circles_too() -> None:
    graph = Graph()
    first, second = said("urn:x:a", CAPITAL, "urn:x:b", "A"), said("urn:x:b", CAPITAL, "urn:x:c", "B")

    def rule(*premises: Statement) -> Evidence:
        return Evidence("rules", premises=tuple(p.id for p in premises))

    third = Statement("urn:x:a", CAPITAL, "urn:x:c", status="inferred", evidence=(rule(first, second),))
    fourth = Statement("urn:x:c", CAPITAL, "urn:x:d", status="inferred", evidence=(rule(third),))
    third = dataclasses.replace(third, evidence=(*third.evidence, rule(fourth)))  # each supports the other
    graph.add([first, second, third, fourth])
    assert len(graph) == 4
    gone = graph.withdraw(document="B")
    assert [s.id for s in graph] == [first.id]
    graph.undo(gone)
    assert len(graph) == 4


def test_merges_and_splits_are_exact_and_undone() -> None:
    graph = Graph()
    graph.add([said(OSLO, CAPITAL, NORWAY, "A"), said(KRISTIANIA, CAPITAL, NORWAY, "B"), label_of("Oslo", OSLO)])
    before = graph.digest()
    names = [OSLO, KRISTIANIA, "urn:x:christiania"]
    graph.add([said(names[2], LABEL, Literal("Christiania"), "C")])
    apart = graph.digest()
    graph.merge(OSLO, KRISTIANIA, "renamed in 1925")
    graph.merge(names[2], OSLO, "spelling")
    assert graph.names(KRISTIANIA) == sorted(names)
    assert len(graph.statements(p=CAPITAL)) == 1
    assert [e.document for e in graph.statements(p=CAPITAL)[0].evidence] == ["A", "B"]
    merged = graph.digest()
    graph.split(OSLO)  # the middle of the chain: the two others stay together
    assert graph.names(KRISTIANIA) == sorted([KRISTIANIA, names[2]])
    assert graph.names(OSLO) == [OSLO]
    graph.undo()
    assert graph.digest() == merged
    graph.merge(names[2], KRISTIANIA, "closes a circle")
    assert graph.digest() == merged
    for op in (3, 7, 4):  # in any order
        graph.undo(op)
    assert graph.digest() == apart
    graph.withdraw(document="C")
    assert graph.digest() == before


def test_a_hundred_orders_give_one_graph() -> None:
    """Additions and merges, circles of aliases included, commute."""
    names = [entity_id(f"person {i}") for i in range(12)]
    moves: list[tuple[str, object]] = [("add", people(d, 8)) for d in "ABCDE"]
    moves += [("merge", pair) for pair in [(0, 1), (1, 2), (2, 0), (3, 3), (4, 5), (5, 4), (7, 11)]]
    digests = set()
    for shuffle in range(100):
        graph = Graph()
        for kind, what in random.Random(shuffle).sample(moves, len(moves)):
            if kind == "add":
                graph.add(what)  # type: ignore[arg-type]
            else:
                graph.merge(names[what[0]], names[what[1]])  # type: ignore[index]
        digests.add(graph.digest())
    assert len(digests) == 1


def test_a_merge_with_evidence_goes_with_its_document_and_a_missing_name_joins_nobody() -> None:
    graph = Graph()
    graph.add(
        [
            said("urn:x:a", TYPE, "urn:x:T", "A"),
            said("urn:x:b", TYPE, "urn:x:T", "B"),
            said("urn:x:c", TYPE, "urn:x:T", "C"),
        ]
    )
    graph.merge("urn:x:a", "urn:x:b", evidence=[Evidence("B")])
    graph.merge("urn:x:b", "urn:x:c")
    assert graph.names("urn:x:c") == ["urn:x:a", "urn:x:b", "urn:x:c"]
    graph.withdraw(document="B")
    assert [s.subject for s in graph] == ["urn:x:a", "urn:x:c"]


def test_a_later_group_of_merges_takes_the_place_of_the_earlier() -> None:
    graph = Graph()
    graph.add([said(f"urn:x:{c}", TYPE, "urn:x:T", "A") for c in "abcd"])
    graph.merge_all([("urn:x:a", "urn:x:b")], group="link")
    graph.merge_all([("urn:x:c", "urn:x:d")], group="link")
    assert graph.names("urn:x:b") == ["urn:x:b"]
    assert graph.names("urn:x:d") == ["urn:x:c", "urn:x:d"]
    graph.undo()
    assert graph.names("urn:x:b") == ["urn:x:a", "urn:x:b"]


def test_every_operation_is_undone_and_every_day_comes_back() -> None:
    graph = Graph()
    digests = [graph.digest()]
    for step in (
        lambda: graph.add(people("A")),
        lambda: graph.merge(entity_id("person 1"), entity_id("person 2")),
        lambda: graph.mark([graph.statements()[0].id], "contested"),
        lambda: graph.add(people("B")),
        lambda: graph.withdraw(document="A"),
        lambda: graph.withdraw(statement=graph.statements()[-1].id),
        lambda: graph.split(graph.called(entity_id("person 1"))),
    ):
        step()
        digests.append(graph.digest())
    for number_, digest in enumerate(digests):
        assert graph.at(number_).digest() == digest
    for digest in reversed(digests[:-1]):
        graph.undo()
        assert graph.digest() == digest
    for op in range(8, 15):  # undoing the undoing
        graph.undo(op)
    assert graph.digest() == digests[-1]
    with pytest.raises(InterfuseError, match="no operation"):
        graph.undo(99)


def test_looking_by_status_confidence_and_time() -> None:
    graph = Graph()
    graph.add([
        said(OSLO, LABEL, Literal("Oslo"), valid_from="1925-01-01"), said(OSLO, LABEL, Literal("Kristiania"), valid_to="1925-01-01"),
        said(OSLO, CAPITAL, NORWAY, confidence=0.4, recorded_at="2020", retracted_at="2021"),
        said(OSLO, CAPITAL, entity_id("Sweden"), status="withdrawn"),
    ])  # fmt: skip
    assert [s.object for s in graph.statements(p=LABEL, as_of="1900-05-01")] == [Literal("Kristiania")]
    assert [s.object for s in graph.statements(p=LABEL, as_of="1925-01-01")] == [Literal("Oslo")]
    assert len(graph.statements(min_confidence=0.5)) == 2
    assert len(graph.statements(p=CAPITAL, known_at="2020-06")) == 1
    assert not graph.statements(p=CAPITAL, known_at="2022")
    assert [s.object for s in graph.statements(status="withdrawn")] == [entity_id("Sweden")]
    assert {s.id for s in graph.neighbourhood(NORWAY)} == {s.id for s in graph.statements(p=CAPITAL)}
    assert len(graph.neighbourhood(NORWAY, 2)) == 3
    assert graph.label(NORWAY) == "norway-912d5b7e65"


def test_a_folder_holds_everything(tmp_path: Path) -> None:
    graph = Graph()
    graph.add([*people("A"), said(OSLO, CAPITAL, NORWAY, "A", qualifiers=((SINCE, number(1814)),), valid_from="1814", kind="critic"),
               Statement(OSLO, LABEL, Literal('O"slo\n', language="no"),
                         evidence=(Evidence("d", 1, 2, 3, "cell", "q", "me", "mo", "pr", "ru", 0.25, "Sheet!B3", ("p",)),))])  # fmt: skip
    graph.merge(entity_id("person 3"), entity_id("person 4"))
    graph.write(tmp_path / "g")
    verify(tmp_path / "g")
    for name in ("graph.nq", "statements.parquet", "evidence.parquet", "nodes.parquet", "log/operations.jsonl"):
        assert (tmp_path / "g" / name).is_file()
    read = open_graph(Source(str(tmp_path / "g")), Ctx())
    assert read.digest() == graph.digest() == read.fingerprint()
    assert not read.diff(graph)
    assert len(read.history()) == 2
    assert same(read.columns(), graph.columns())
    count = "SELECT (COUNT(*) AS ?n) { ?s ?p ?o }"
    fresh = Graph.open(tmp_path / "g")
    assert fresh.query(count).values() == graph.query(count).values()  # before the log is read
    fresh.add([said(OSLO, CAPITAL, OSLO)])
    assert fresh.query(count).values() != graph.query(count).values()
    read.undo()
    assert read.diff(graph)
    again = Graph.of(graph.history())
    again.write(tmp_path / "h")
    for file in sorted(p for p in (tmp_path / "g").rglob("*") if p.is_file()):
        assert file.read_bytes() == (tmp_path / "h" / file.relative_to(tmp_path / "g")).read_bytes(), file


def test_columns_are_sorted_rows_in_both_directions_with_qualifiers() -> None:
    graph = Graph()
    graph.add(
        [
            *people("A", 40),
            said(OSLO, CAPITAL, NORWAY, "A", qualifiers=((SINCE, number(1814)),)),
            label_of("Oslo", OSLO),
        ]
    )
    columns = graph.columns()
    names, relations = columns.nodes.to_pylist(), columns.relations.to_pylist()
    assert names == sorted(names)
    rows = {(names[s], relations[p], names[o]) for s, p, o in columns.triples().tolist()}
    assert rows == {
        (s.subject, s.predicate, text_of(s.object) if isinstance(s.object, Literal) else s.object) for s in graph
    }
    for node, name in enumerate(names):
        out = {(names[s], names[o]) for s, _, o in columns.triples()[columns.rows_of(node)].tolist()}
        assert out == {(a, b) for a, _, b in rows if name in (a, b)}
    (row,) = [i for i in range(len(columns)) if columns.qualifier_indptr[i] < columns.qualifier_indptr[i + 1]]
    place = columns.qualifier_indptr[row]
    assert relations[columns.qualifier_relation[place]] == SINCE
    assert names[columns.qualifier_value[place]] == text_of(number(1814))
    assert [n.startswith('"') for n in names] == columns.literal.tolist()
    back = Graph.from_columns(columns)
    assert {s.id for s in back} == {s.id for s in graph}


def test_lines_that_are_no_triples_are_counted_and_the_first_hundred_described(tmp_path: Path) -> None:
    file = tmp_path / "facts.tsv"
    good = "".join(f'a{i}\tlikes\tb "{i % 7}\n' for i in range(50))
    file.write_text(
        good + "only\ttwo\n" * 150 + "a\tb\tc\td\n" + 'a1\tlikes\tb "1\n' + "self\tlikes\tself\n", encoding="utf-8"
    )
    columns = read_tsv(file)
    assert (len(columns), columns.duplicates, columns.problems.count, len(columns.problems.shown)) == (51, 1, 151, 100)
    assert columns.problems.shown[0] == "facts.tsv:51: 2 fields instead of 3: 'only\\ttwo'"
    notes: list[str] = []
    graph = open_graph(Source(str(file)), Ctx(log=notes.append))
    assert len(graph) == 51
    assert notes[-1] == "left out: 51 more"
    assert graph.query("SELECT (COUNT(*) AS ?n) { ?s ?p ?o }").values() == ["51"]
    assert len(graph.statements(p=relation_id("likes"))) == 51
    with pytest.raises(InterfuseError, match="151 lines"):
        open_graph(Source({"data": str(file), "strict": True}), Ctx())


def test_queries_see_living_triples_and_ask_nobody_else() -> None:
    graph = Graph()
    graph.add(
        [
            said(OSLO, CAPITAL, NORWAY, "A", confidence=0.7),
            label_of("service", OSLO),
            said(OSLO, CAPITAL, OSLO, status="withdrawn"),
        ]
    )
    assert graph.query(f"SELECT ?o {{ <{OSLO}> <{CAPITAL}> ?o }}").values() == [NORWAY]
    assert graph.query('ASK { ?s rdfs:label "service" }')
    assert not graph.query("ASK { ?s rdfs:label 1 }")
    found = graph.query(
        "SELECT ?c ?d { ?r rdf:reifies <<( ?s ?p ?o )>> ; if:confidence ?c ; prov:wasDerivedFrom/if:document ?d }",
        meta=True,
    )
    assert found.values("d") == ["A"]
    assert found.values("c") == ["0.7"]
    assert len(graph.query("CONSTRUCT { ?o ?p ?s } { ?s ?p ?o FILTER(isIRI(?o)) }")) == 1
    for bad in ("SELECT * { SERVICE <http://127.0.0.1:9/> { ?a ?b ?c } }", "SELECT * { service silent ?x { ?a ?b ?c } }",
                'SELECT * { BIND("""\n""" AS ?x) SERVICE <http://127.0.0.1:9/> { ?a ?b "x" } }',
                "PREFIX e: <urn:e:> SELECT * { e:a\\# ?p ?o SERVICE <http://127.0.0.1:9/> { ?a ?b ?c } }"):  # fmt: skip
        with pytest.raises(InterfuseError, match=r"unsafe.address"):
            graph.query(bad)
    with pytest.raises(InterfuseError, match="cannot be answered"):
        graph.query("SELECT nothing")
