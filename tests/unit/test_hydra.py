"""HyDRA: the numbers of the card, contracts under planted faults, what is kept, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import interfuse
from interfuse.core.artifact import open_artifact
from interfuse.core.ctx import Budget
from interfuse.core.errors import InterfuseError
from interfuse.data.graph import Graph
from interfuse.data.lm import RecordedLM
from interfuse.data.ontology import Class, Ontology, Property
from interfuse.data.statements import SUBCLASS, TYPE, Literal, Statement
from interfuse.kit.ontology_growth import (
    Concepts,
    Operation,
    Relating,
    applied,
    clusters,
    concepts_of,
    extended,
    issues,
    operation_issues,
    read_concepts,
    under_one_root,
    woven,
)  # fmt: skip
from interfuse.kit.ontology_questions import coverage, islands
from interfuse.kit.typed_triplets import Triplet, fits_datatype, is_snake, remedied, snake, triplet_issues
from tests.scripted_panel import GROWTH, QUESTIONS, ScriptedPanel

FIVE = Concepts(dict.fromkeys("ABCDE", ""), (("A", "B"), ("C", "D"), ("E", "D")))
PEOPLE = Concepts(
    dict.fromkeys(("Thing", "Person", "Author", "Poet", "Book"), ""), (("Person", "Thing"), ("Author", "Person"), ("Poet", "Author"), ("Book", "Thing")),
    {"wrote": Relating("wrote", ("Person",), ("Book",)), "bornIn": Relating("bornIn", ("Person",), ("gYear",), data=True)},
)  # fmt: skip
TEXTS = {
    "a.txt": "Grieg was born in Bergen. Bergen lies in Norway.",
    "b.txt": "Oslo lies in Norway. Oslo was founded in 1048.",
}


def codes(found: Any) -> list[str]:
    return [i.code for i in found]


# ------------------------------------------------------------------------------------------------ the card's numbers


def test_clusters_bridge_and_prune_as_on_the_card() -> None:
    assert [len(c) for c in clusters(FIVE)] == [3, 2]
    bridge = Operation("bridge", (1, 2), (("B", "D"),))
    assert operation_issues(FIVE, bridge) == []
    assert len(clusters(applied(FIVE, bridge))) == 1
    assert codes(operation_issues(FIVE, Operation("prune", (2,), classes=("A",)))) == [
        "operation.useless"
    ]  # leaves two
    assert operation_issues(FIVE, Operation("prune", (2,), classes=("A", "B"))) == []
    assert clusters(Concepts({"A": "", "B": ""})) == [["A"], ["B"]]  # alone, and clusters all the same


def test_a_type_may_be_refined_and_not_widened() -> None:
    found, after = triplet_issues(PEOPLE, {}, [Triplet("x", "isA", "Person"), Triplet("x", "isA", "Author")])
    assert (found, after) == ([], {"x": "Author"})
    found, after = triplet_issues(PEOPLE, {"x": "Author"}, [Triplet("x", "isA", "Person")])
    assert codes(i for _, i in found) == ["type.second"]
    assert after == {"x": "Author"}


def test_domains_hold_through_three_levels() -> None:
    rows = [Triplet("ann", "isA", "Poet"), Triplet("odes", "isA", "Book"), Triplet("ann", "wrote", "odes")]
    assert triplet_issues(PEOPLE, {}, rows)[0] == []
    assert codes(i for _, i in triplet_issues(PEOPLE, {}, [*rows, Triplet("odes", "wrote", "odes")])[0]) == ["domain"]


def test_circles_of_any_length_second_parents_and_second_roots_are_refused() -> None:
    three = read_concepts(
        {
            "classes": [{"name": n} for n in "ABC"],
            "subclass_of": [{"child": c, "parent": p} for c, p in ("AB", "BC", "CA")],
        }
    )
    assert "subclass.circle" in codes(issues(Concepts(), three))
    assert codes(issues(PEOPLE, read_concepts({"subclass_of": [{"child": "Poet", "parent": "Thing"}]}))) == [
        "subclass.second"
    ]
    assert codes(issues(PEOPLE, read_concepts({"classes": [{"name": "Stone"}]}))) == ["class.root"]
    assert codes(issues(PEOPLE, read_concepts({"classes": [{"name": "person"}, {"name": "ore"}]}))) == [
        "class.exists",
        "class.name",
    ]
    two = {
        "classes": [{"name": "Ore"}, {"name": "Gold"}],
        "subclass_of": [{"child": "Ore", "parent": "thing"}, {"child": "Gold", "parent": "ORE"}],
    }
    grown = extended(PEOPLE, read_concepts(two))
    assert grown.above("Gold") == ("Gold", "Ore", "Thing")


def test_properties_are_checked() -> None:
    def one(key: str, **row: Any) -> list[str]:
        return codes(issues(PEOPLE, read_concepts({key: [{"name": "p", **row}]})))

    assert one("object_properties", domain=["Person"], range=["Stone"]) == ["property.unknown"]
    assert one("object_properties", domain=["Person"]) == ["property.range"]
    assert one("object_properties", domain=["Person"], range=["Book"], characteristics=["odd"]) == [
        "property.characteristic"
    ]
    assert one("data_properties", domain=["Person"], range="xsd:year") == ["property.datatype"]
    assert codes(issues(PEOPLE, read_concepts({"object_properties": [{"name": "Wrote", "range": ["Book"]}]}))) == [
        "property.exists"
    ]
    for bad in ([], {"classes": "A"}, {"classes": ["A"]}, {"subclass_of": [{"child": "A"}]}):
        with pytest.raises(InterfuseError, match=r"input\.format"):
            read_concepts(bad)


def test_the_weaver_ends_with_one_cluster_and_mends_properties() -> None:
    made, history = woven(FIVE, under_one_root)
    assert len(history) == 1
    assert made.roots() == ["D"]
    stuck, history = woven(FIVE, lambda state, parts: Operation("merge", (1, 2)))
    assert (stuck, history) == (FIVE, [])
    pruned = applied(PEOPLE, Operation("prune", (1,), classes=("Book",)))
    assert list(pruned.properties) == ["bornIn"]  # wrote has lost its range


def test_an_ontology_goes_there_and_back() -> None:
    assert (
        concepts_of(PEOPLE.ontology()).as_dict()
        == Concepts(
            dict(sorted(PEOPLE.classes.items())), tuple(sorted(PEOPLE.below)), dict(sorted(PEOPLE.properties.items()))
        ).as_dict()
    )


# ------------------------------------------------------------------------------------------------ triplets


def test_what_is_sure_is_mended_and_the_rest_dropped() -> None:
    rows = [Triplet("Jane Austen", "Wrote", "Emma"), Triplet("Jane Austen", "bornIn", "1775"), Triplet("Book", "wrote", "emma"), Triplet("jane_austen", "bornIn", "soon"),
            Triplet("jane_austen", "knows", "emma")]  # fmt: skip
    kept, record = remedied(PEOPLE, {}, rows)
    assert triplet_issues(PEOPLE, {}, kept)[0] == []
    assert set(kept) == {
        Triplet("jane_austen", "isA", "Person"),
        Triplet("emma", "isA", "Book"),
        Triplet("jane_austen", "wrote", "emma"),
        Triplet("jane_austen", "bornIn", "1775"),
    }
    assert sorted(r["issue"] for r in record if r["remedy"] == "dropped") == [
        "datatype",
        "instance.class",
        "property.unknown",
    ]
    assert remedied(PEOPLE, {}, rows, repair=False)[0] == []


@pytest.mark.parametrize(("text", "kind", "fits"), [("1", "integer", True), ("1.5", "integer", False), ("1.5", "decimal", True), ("x", "double", False), ("2001-02-30", "date", False),
    ("2001-02-28", "date", True), ("true", "boolean", True), ("yes", "boolean", False), ("http://a.b", "anyURI", True), ("a b", "anyURI", False), ("x", "string", True)])  # fmt: skip
def test_datatypes(text: str, kind: str, fits: bool) -> None:
    assert fits_datatype(text, kind) is fits


def test_names_by_the_convention() -> None:
    assert [snake(n) for n in ("Jane Austen", "bornIn", "Ångström-Unit", "a_b")] == [
        "jane_austen",
        "born_in",
        "ångström_unit",
        "a_b",
    ]
    assert [is_snake(n) for n in ("jane_austen", "Jane", "a__b", "_a", "größe")] == [True, False, False, False, True]


def test_islands_and_questions() -> None:
    rows = [
        Triplet("a", "isA", "Poet"),
        Triplet("b", "isA", "Book"),
        Triplet("a", "wrote", "b"),
        Triplet("c", "isA", "Poet"),
        Triplet("c", "bornIn", "1775"),
    ]
    assert islands(rows) == {"entities": 3, "islands": 2, "outside the largest": pytest.approx(1 / 3)}
    ontology = PEOPLE.ontology()
    iri = {ontology.label(i): i for i in [*ontology.classes, *ontology.properties]} | {"isA": TYPE}
    graph = Graph.open(None)
    graph.add(s for s in ontology.statements() if s.predicate == SUBCLASS)
    graph.add(Statement(f"urn:x:{t.subject}", iri[t.predicate], iri.get(t.object, f"urn:x:{t.object}") if t.predicate != "bornIn" else Literal(t.object)) for t in rows)  # fmt: skip
    found = coverage(
        ["Who wrote which books?", "Which poets are there?", "What does it cost?", "Which things are stones?", "Which authors wrote books?",
         "Which thing wrote?", "Which poets were born in 1775?"], ontology, graph,
    )  # fmt: skip
    assert [r["rows"] for r in found["each"]] == [1, 2, 0, 3, 1, 1, 1]
    assert (found["asked"], found["in the ontology's terms"], found["answerable"]) == (7, 6, 6)
    again = [len(list(graph.query(r["pattern"]))) for r in found["each"] if r["pattern"]]
    assert again == [1, 2, 3, 1, 1, 1]


def test_a_property_may_be_called_as_a_class_is() -> None:
    ontology = Ontology(
        "films",
        {"urn:x:Director": Class("urn:x:Director", "director")},
        {"urn:x:director": Property("urn:x:director", "director")},
    )
    graph = Graph.open(None)
    graph.add([Statement("urn:x:film", "urn:x:director", "urn:x:ann"), Statement("urn:x:ann", TYPE, "urn:x:Director")])
    assert coverage(["Who is the director?"], ontology, graph)["answerable"] == 1


# ------------------------------------------------------------------------------------------------ the whole


def build(place: Path, lm: Any, **given: Any) -> tuple[dict[str, Any], Path]:
    (place / "texts").mkdir(exist_ok=True)
    for name, text in TEXTS.items():
        (place / "texts" / name).write_text(text)
    out = place / f"graph-{len(list(place.iterdir()))}"
    interfuse.build.hydra(
        str(place / "texts"),
        lm=lm,
        out=out,
        ctx=interfuse.Ctx(cache=place / "cache"),
        **{"domain": "towns and composers", **given},
    )
    return dict(open_artifact(out).manifest["facts"]), out


def test_from_a_domain_to_a_verified_graph(tmp_path: Path) -> None:
    facts, out = build(tmp_path, ScriptedPanel())
    verified = facts["method"]["verification"]
    assert verified["violations"] == 0
    assert verified["questions"]["answerable"] == 3
    assert verified["violations of shapes"] == 0
    assert facts["method"]["contracts"]["ontology"]["mended"] == 1  # the first proposal broke the contract
    assert json.loads((out / "questions.json").read_text()) == sorted(QUESTIONS, key=lambda q: (-len(q.split()), q))
    assert {c["name"] for c in json.loads((out / "concepts.json").read_text())["classes"]} == {
        c["name"] for c in GROWTH["classes"]
    }
    from interfuse.core.rooms import Source
    from interfuse.data.graph import open_graph
    from interfuse.data.ontology import read_ontology
    from interfuse.kit.shapes import shapes_of, validate

    graph = open_graph(Source(str(out)), interfuse.Ctx())
    assert not validate(graph, shapes_of(read_ontology(out / "ontology.ttl"))).violations
    born = [s for s in graph.statements() if s.predicate.endswith("bornin") or s.predicate.endswith("born-in")]
    assert len(born) == 1
    assert born[0].evidence[0].start == 0
    assert born[0].evidence[0].end == TEXTS["a.txt"].index("Bergen") + len("Bergen")


def test_triplets_without_a_subject_break_the_contract(tmp_path: Path) -> None:
    class Empty(ScriptedPanel):
        def __init__(self) -> None:
            super().__init__()
            self.told = 0

        def answer(self, messages: list[dict[str, str]]) -> str:
            told = "are not empty" in messages[-1]["content"]
            self.told += told
            if told or not messages[0]["content"].startswith("What does the document state"):
                return super().answer(messages)
            return json.dumps({"triplets": [{"subject": "", "predicate": "isA", "object": "Town"}] * 2})

    lm = Empty()
    facts, _ = build(tmp_path, lm)
    assert lm.told > 0, "it is told what is wrong, and asked again"
    assert facts["method"]["verification"]["entities"] > 0


def test_a_short_text_is_not_asked_for_forty_triplets(tmp_path: Path) -> None:
    lists: list[int] = []

    class Heard(ScriptedPanel):
        def generate(self, prompts: Any, **options: Any) -> Any:
            if "triplets" in (options.get("schema") or {}).get("properties", {}):
                lists.append(options["schema"]["properties"]["triplets"]["maxItems"])
            return super().generate(prompts, **options)

    build(tmp_path, Heard())
    assert lists == [10] * len(lists) != []
    (tmp_path / "texts" / "long.txt").write_text("Bergen is a town. " * 15 + "\n\n" + "Oslo is a town. " * 90)
    lists.clear()
    build(tmp_path, Heard())
    assert 10 < max(lists) <= 40


@pytest.mark.parametrize("contracts", ["repair", "drop", "off"])
def test_planted_faults_stay_out_of_the_graph_under_contracts(tmp_path: Path, contracts: str) -> None:
    lm = ScriptedPanel(1.0, seed=3, mends=0.0)
    facts, out = build(tmp_path, lm, contracts=contracts, tries=2)
    verified = facts["method"]["verification"]
    if contracts == "off":
        assert verified["violations"] > 0
        assert verified["violations of shapes"] > 0, "told by the graph itself"
    else:
        assert verified["violations"] == verified["violations of shapes"] == 0
        assert sum(facts["method"]["remedies"].values()) == len((out / "remedies.jsonl").read_text().splitlines()) > 0


def test_given_questions_and_ontologies_take_the_panels_place(tmp_path: Path) -> None:
    lm = ScriptedPanel()
    _, out = build(tmp_path, lm, questions=QUESTIONS[:1], domain="")
    assert not (out / "panel.json").exists()
    few = ScriptedPanel()
    facts, _ = build(tmp_path, few, ontology=str(out / "ontology.ttl"), domain="")
    assert few.asked == 2 < lm.asked
    assert facts["method"]["verification"]["violations"] == 0


def test_every_reply_of_json_is_asked_for_by_its_shape(tmp_path: Path) -> None:
    from interfuse.data.schema_decoding import run, stack_of

    shapes: dict[str, Any] = {}

    class Shaped(ScriptedPanel):
        def generate(self, prompts: Any, *, schema: Any = None, **options: Any) -> Any:
            words = prompts[0][-1]["content"] if "state, in" not in prompts[0][0]["content"] else "triplets"
            shapes[words] = schema
            return super().generate(prompts, **options)

    build(tmp_path, Shaped())
    told = {" ".join(sorted(s["properties"])): s for s in shapes.values() if s is not None}
    assert sorted(told) == ["classes data_properties object_properties subclass_of", "duplicates", "groups", "triplets"]
    assert all(stack_of(s) is not None for s in told.values()), "a model here is held to them, too"
    words = told["triplets"]["properties"]["triplets"]["items"]["properties"]["predicate"]["enum"]
    assert sorted(words) == ["bornIn", "foundedIn", "isA", "liesIn"]
    empty = '{"triplets": [{"subject": ""'
    assert run(stack_of(told["triplets"]), empty) is None, "a triplet without a subject cannot be written"


def test_a_model_here_keeps_to_the_budget_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    build(tmp_path, ScriptedPanel(record=tape))
    paid = len(tape.read_text().splitlines())
    play = RecordedLM(tape)
    asked: list[int] = []

    class Counted(RecordedLM):
        def generate(self, prompts: Any, **options: Any) -> Any:
            asked.append(len(prompts))
            return play.generate(prompts, **options)

    given = {"lm": Counted(tape), "domain": "towns and composers", "out": tmp_path / "again"}
    with pytest.raises(InterfuseError, match=r"budget\.spent"):
        interfuse.build.hydra(
            str(tmp_path / "texts"), ctx=interfuse.Ctx(cache=tmp_path / "c", budget=Budget(calls=7)), **given
        )
    assert sum(asked) == 7
    interfuse.build.hydra(
        str(tmp_path / "texts"), ctx=interfuse.Ctx(cache=tmp_path / "c", budget=Budget(calls=paid - 7)), **given
    )
    assert sum(asked) == paid


def test_an_endpoint_is_asked_about_several_pieces_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Counted(ScriptedPanel):
        def generate(self, prompts: Any, **options: Any) -> Any:
            sizes.append(len(prompts))
            return super().generate(prompts, **options)

    given = {"ontology": read_concepts(GROWTH).ontology(), "domain": ""}
    one, _ = build(tmp_path, Counted(0.5, seed=1), **given)
    assert max(sizes) == 1
    sizes.clear()
    monkeypatch.setattr("interfuse.build.panel.is_far", lambda lm: True)
    two, _ = build(tmp_path, Counted(0.5, seed=2), **given)
    assert sizes[0] == len(TEXTS)
    assert one["method"]["verification"] == two["method"]["verification"]

    class Down(Counted):
        def generate(self, prompts: Any, **options: Any) -> Any:
            if len(prompts) > 1:
                raise InterfuseError("endpoint.failed", "too many calls")
            return super().generate(prompts, **options)

    three, _ = build(tmp_path, Down(0.5, seed=3), **given)
    assert three["method"]["verification"] == one["method"]["verification"], "each is asked again by itself"


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InterfuseError, match=r"param\.missing"):
        build(tmp_path, ScriptedPanel(), domain=" ")

    class Silent(ScriptedPanel):
        def answer(self, messages: list[dict[str, str]]) -> str:
            return "no"

    silent = Silent()
    with pytest.raises(InterfuseError, match=r"run\.failed"):
        build(tmp_path, silent, tries=2)
    assert silent.asked < 40  # it ends


def test_a_model_that_cannot_be_reached_ends_the_build_with_its_own_error(tmp_path: Path) -> None:
    class Away(ScriptedPanel):
        def answer(self, messages: list[dict[str, str]]) -> str:
            self.calls = getattr(self, "calls", 0) + 1
            raise InterfuseError("endpoint.failed", "the endpoint gave no usable answer")

    away = Away()
    with pytest.raises(InterfuseError, match=r"endpoint\.failed"):
        build(tmp_path, away, tries=2)
    assert away.calls == 2  # the tries of one question, not of all
