"""Ontologies, what follows from them, and shapes: compiled to SPARQL they say what pyshacl says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from interfuse.core.errors import InterfuseError
from interfuse.data.graph import Graph
from interfuse.data.ontology import Class, Ontology, Property, read_ontology
from interfuse.data.statements import TYPE, XSD, Evidence, Literal, Statement, number
from interfuse.kit.shapes import Shapes, compile_shapes, read_report, read_shapes, shapes_of, validate
from tests.shared_data import shared_data

X = "urn:x:"


def small() -> Ontology:
    return Ontology.of(
        [Class(X + "Person", "person", ("human being",)), Class(X + "Woman", parents=(X + "Person",), disjoint=(X + "Place",)),
         Class(X + "City", "city", parents=(X + "Place",)), Class(X + "Place", parents=(X + "Thing",))],
        [Property(X + "knows", "knows", characteristics=("symmetric",), domain=(X + "Person",), range=(X + "Person",)),
         Property(X + "within", "is in", characteristics=("transitive",), domain=(X + "Place",), range=(X + "Place",)),
         Property(X + "capital", inverse=X + "capitalOf", parents=(X + "city",), characteristics=("functional",)),
         Property(X + "born", "born in", ("place of birth",), domain=(X + "Person", X + "Animal"), range=(X + "Place",), examples=("Ada was born in London.",)),
         Property(X + "age", range=(XSD + "integer",), data=True, characteristics=("functional",))],
    )  # fmt: skip


def test_an_ontology_knows_its_hierarchy_and_its_words() -> None:
    made = small()
    assert made.ancestors(X + "City") == (X + "City", X + "Place", X + "Thing")
    assert made.is_a(X + "Woman", X + "Person")
    assert not made.is_a(X + "Person", X + "Woman")
    assert made.disjoint(X + "City", X + "Woman")
    assert made.disjoint(X + "Woman", X + "Place")
    assert not made.disjoint(X + "City", X + "Person")
    assert made.find("Place of Birth") == (X + "born",)
    assert made.fits(X + "born", [X + "Woman"], [X + "City"])
    assert not made.fits(X + "born", [X + "City"], [X + "City"])
    assert made.fits(X + "born", [], [])
    circle = Ontology.of([Class(X + "a", parents=(X + "b",)), Class(X + "b", parents=(X + "a",))])
    assert circle.ancestors(X + "a") == (X + "a", X + "b")
    with pytest.raises(InterfuseError, match="defined twice"):
        Ontology.of([Class(X + "a"), Class(X + "a")])


def test_an_ontology_goes_to_owl_and_back(tmp_path: Path) -> None:
    made = small()
    made.write(tmp_path / "o.ttl")
    again = read_ontology(tmp_path / "o.ttl")
    assert again.classes == made.classes
    assert again.properties == made.properties
    (tmp_path / "empty.ttl").write_text("<urn:x:a> <urn:x:b> 1 .")
    with pytest.raises(InterfuseError, match=r"input\.empty"):
        read_ontology(tmp_path / "empty.ttl")


def test_text2kgbench_ontologies_are_the_same_from_json_and_owl() -> None:
    folder = shared_data("text2kgbench-tekgen")
    names = [p.name.removesuffix("_ontology.json") for p in sorted((folder / "ontologies").glob("*.json"))]
    pairs = [(folder / "ontologies" / f"{n}_ontology.json", folder / "owl" / f"ont_{n}.ttl") for n in names]
    assert len(pairs) >= 8
    for one, other in pairs:
        a, b = read_ontology(one), read_ontology(other)
        for mine, theirs in ((a.classes, b.classes), (a.properties, b.properties)):
            labels, others = ({i.label for i in items.values() if i.label} for items in (mine, theirs))
            same = len(labels & others) / min(len(labels), len(others))  # the benchmark's own files differ in places
            assert same == 1 if one.name.startswith(("10_", "1_")) else same > 0.5


def test_what_follows_names_its_premises_and_goes_with_them() -> None:
    ontology = small()
    graph = Graph()

    def proof(d: str) -> tuple[Evidence, ...]:
        return (Evidence(d),)

    graph.add([
        Statement(X + "ada", X + "knows", X + "bob", confidence=0.5, evidence=proof("A")),
        Statement(X + "soho", X + "within", X + "london", evidence=proof("A")), Statement(X + "london", X + "within", X + "england", evidence=proof("B")),
        Statement(X + "uk", X + "capital", X + "london", evidence=proof("A")), Statement(X + "ada", TYPE, X + "Woman", evidence=proof("A")),
    ])  # fmt: skip
    graph.infer(ontology.rules())
    inferred = {
        (s.subject[6:], s.predicate[6:] if s.predicate != TYPE else "a", str(s.object)[6:]): s
        for s in graph.statements(status="inferred")
    }
    assert set(inferred) == {
        ("bob", "knows", "ada"), ("ada", "a", "Person"), ("bob", "a", "Person"), ("soho", "within", "england"), ("uk", "city", "london"),
        ("london", "capitalOf", "uk"), *((p, "a", c) for p in ("soho", "london", "england") for c in ("Place", "Thing")),
    }  # fmt: skip
    chain = inferred[("soho", "within", "england")]
    premises = [graph.get(i) for i in chain.evidence[0].premises]
    assert {(p.subject, p.object) for p in premises if p} == {(X + "soho", X + "london"), (X + "london", X + "england")}
    assert inferred[("bob", "knows", "ada")].confidence == 0.5
    assert graph.query(f"ASK {{ <{X}soho> <{X}within> <{X}england> }}")
    before = graph.digest()
    gone = graph.withdraw(document="B")
    assert not graph.statements(X + "soho", X + "within", X + "england")
    assert not graph.statements(X + "england", TYPE)
    graph.undo(gone)
    assert graph.digest() == before
    alone = Graph()
    alone.infer(ontology.rules())
    for s in reversed(graph.statements(status="stated")):
        alone.add([s])
    assert alone.digest() == before
    graph.mark([chain.id], "contested")
    assert [s.id for s in graph.statements(status="contested")] == [chain.id]
    graph.withdraw(statement=chain.id)
    assert graph.get(chain.id) is None
    graph.undo()
    graph.undo()
    assert graph.digest() == before
    graph.merge(X + "london", X + "england")
    assert graph.called(X + "london") == X + "england"
    assert [s.status for s in graph.statements(X + "soho", X + "within", X + "england")] == ["stated"]
    with pytest.raises(InterfuseError, match="no table"):
        graph.infer({"rules": {"magic": []}})


SHAPES = """
@prefix sh: <http://www.w3.org/ns/shacl#> . @prefix x: <urn:x:> . @prefix xsd: <http://www.w3.org/2001/XMLSchema#> .
@prefix rdf: <http://www.w3.org/1999/02/22-rdf-syntax-ns#> .
x:PersonShape a sh:NodeShape ; sh:targetClass x:Person ; sh:property x:AgeShape ;
  sh:property [ sh:path x:name ; sh:minCount 1 ; sh:maxCount 2 ; sh:datatype xsd:string ; sh:minLength 2 ; sh:maxLength 6 ; sh:pattern "^[A-Z]" ] ;
  sh:property [ sh:path x:knows ; sh:class x:Person ; sh:nodeKind sh:IRI ; sh:node x:Named ; sh:minCount 2 ] ;
  sh:property [ sh:path ( x:knows x:name ) ; sh:minCount 1 ] ; sh:property [ sh:path [ sh:inversePath x:knows ] ; sh:maxCount 3 ] ;
  sh:property [ sh:path [ sh:alternativePath ( x:name x:nick ) ] ; sh:maxCount 2 ] .
x:AgeShape sh:path x:age ; sh:maxCount 1 ; sh:datatype xsd:integer ; sh:minInclusive 0 ; sh:maxExclusive 120 ; sh:message "an age is a small number" .
x:Named a sh:NodeShape ; sh:property [ sh:path x:name ; sh:minCount 1 ] ; sh:property [ sh:path x:tag ; sh:maxCount 1 ] .
x:Colours a sh:NodeShape ; sh:targetSubjectsOf x:colour ; sh:property [ sh:path x:colour ; sh:in ( "red" x:blue 3 ) ; sh:hasValue "red" ] .
x:Labels a sh:NodeShape ; sh:targetObjectsOf x:knows ; sh:property [ sh:path x:label ; sh:uniqueLang true ; sh:languageIn ( "en" "de" ) ] ;
  sh:property [ sh:path x:name ; sh:disjoint x:nick ] ; sh:property [ sh:path x:from ; sh:lessThan x:to ] ; sh:property [ sh:path x:nick ; sh:equals x:tag ] .
x:Closed a sh:NodeShape ; sh:targetNode x:p1, x:p2, x:missing ; sh:closed true ; sh:ignoredProperties ( rdf:type x:knows ) ;
  sh:property [ sh:path x:name ] ; sh:property [ sh:path x:age ] .
x:Both a sh:NodeShape ; sh:targetClass x:Robot ; sh:nodeKind sh:IRI ; sh:class x:Person ; sh:and ( x:Named [ sh:property [ sh:path x:age ; sh:minCount 1 ] ] ) .
x:Logic a sh:NodeShape ; sh:targetClass x:Robot, x:Boss ; sh:not [ sh:class x:Boss ] ; sh:or ( [ sh:class x:Person ] [ sh:nodeKind sh:BlankNode ] ) ;
  sh:property [ sh:path x:age ; sh:or ( [ sh:datatype xsd:integer ; sh:minInclusive 5 ] [ sh:datatype xsd:string ; sh:minLength 2 ] [ sh:in ( 2.5 ) ] ) ] ;
  sh:property [ sh:path x:name ; sh:xone ( [ sh:datatype xsd:string ] [ sh:pattern "^A" ] [ sh:hasValue "Dan" ] ) ] ;
  sh:property [ sh:path x:colour ; sh:not [ sh:or ( [ sh:hasValue "red" ] [ sh:and ( [ sh:nodeKind sh:IRI ] [ sh:not [ sh:class x:Person ] ] ) ] ) ] ] .
x:Off a sh:NodeShape ; sh:targetClass x:Person ; sh:deactivated true ; sh:property [ sh:path x:never ; sh:minCount 1 ] .
"""


def crowd(seed: int) -> Graph:
    """People with all sorts of mistakes."""
    rng = random.Random(seed)
    values: dict[str, list[Literal | str]] = {
        "name": [Literal(w) for w in ("Ada", "bob", "X", "Christopher", "Dan")] + [Literal("Eva", language="en"), number(3)],
        "nick": [Literal(w) for w in ("Ada", "Bo", "Dan")], "tag": [Literal("Ada"), Literal("Bo")],
        "age": [number(n) for n in (-1, 5, 119, 120)] + [Literal("abc", XSD + "integer"), Literal("7"), number(2.5)],
        "colour": [Literal("red"), Literal("green"), X + "blue", number(3), Literal("3", XSD + "decimal")],
        "label": [Literal("a", language="en"), Literal("b", language="en"), Literal("c", language="fr"), Literal("d", language="de-at"), Literal("e")],
        "from": [number(1), number(5)], "to": [number(3), number(9), Literal("x")],
        "knows": [*(f"{X}p{i}" for i in range(8)), Literal("nobody"), "_:blank"],
    }  # fmt: skip
    made = [Statement(X + "Boss", "http://www.w3.org/2000/01/rdf-schema#subClassOf", X + "Person")]
    for i in range(8):
        made.append(Statement(f"{X}p{i}", TYPE, rng.choice([X + "Person", X + "Boss", X + "Robot"])))
        for word, options in values.items():
            made += [
                Statement(f"{X}p{i}", X + word, o)
                for o in rng.sample(options, rng.choice([0, 1, 1, 2, 3][: len(options)]))
            ]
    made.append(Statement("_:blank", TYPE, X + "Robot"))
    graph = Graph()
    graph.add(made)
    return graph


@pytest.mark.parametrize("seed", range(8))
def test_compiled_shapes_say_what_pyshacl_says(seed: int, tmp_path: Path) -> None:
    pyshacl = pytest.importorskip("pyshacl")
    import rdflib

    (tmp_path / "s.ttl").write_text(SHAPES)
    shapes = read_shapes(tmp_path / "s.ttl")
    graph = crowd(seed)
    verdict = validate(graph, shapes)
    assert not verdict.others
    data = rdflib.Graph().parse(data="".join(f"{line} .\n" for line in _triples(graph)), format="nt")
    _, report, _ = pyshacl.validate(
        data, shacl_graph=rdflib.Graph().parse(data=SHAPES, format="turtle"), advanced=False, inference="none"
    )
    expected = read_report(report)
    assert len(expected) > 20

    def keys(found: object) -> set[tuple[str, ...]]:
        made = set()
        for v in found:  # type: ignore[attr-defined]
            focus = "_:" if v.focus.startswith("_:") else v.focus
            value = (
                ""
                if v.value is None
                else str(v.value)
                if not (isinstance(v.value, str) and v.value.startswith("_:"))
                else "_:"
            )
            complex_ = "(" in v.path or "|" in v.path
            made.add(
                (
                    focus,
                    "(path)" if complex_ else v.path,
                    v.component,
                    "" if v.component in ("MinCount", "MaxCount", "UniqueLang", "HasValue") else value,
                )
            )
        return made

    assert keys(verdict.violations) == keys(expected)


def _triples(graph: Graph) -> list[str]:
    from interfuse.data.statements import text_of

    return [f"{text_of(s.subject)} {text_of(s.predicate)} {text_of(s.object)}" for s in graph]


def test_what_cannot_be_compiled_is_given_to_pyshacl(tmp_path: Path) -> None:
    pytest.importorskip("pyshacl")
    (tmp_path / "s.ttl").write_text("""
        @prefix sh: <http://www.w3.org/ns/shacl#> . @prefix x: <urn:x:> .
        x:Hard a sh:NodeShape ; sh:targetClass x:Person ; sh:not [ sh:property [ sh:path x:nick ; sh:minCount 1 ] ] .
        x:Easy a sh:NodeShape ; sh:targetClass x:Person ; sh:property [ sh:path x:name ; sh:minCount 1 ] .
    """)
    graph = Graph()
    graph.add([Statement(X + "a", TYPE, X + "Person"), Statement(X + "a", X + "nick", Literal("A"))])
    verdict = validate(graph, read_shapes(tmp_path / "s.ttl"))
    assert verdict.others == (X + "Hard",)
    assert [(v.focus, v.component) for v in verdict.violations] == [(X + "a", "Not"), (X + "a", "MinCount")]


def test_shapes_of_an_ontology_find_wrong_ends_and_second_values() -> None:
    shapes = shapes_of(small())
    graph = Graph()
    graph.add([
        Statement(X + "ada", TYPE, X + "Woman"), Statement(X + "ada", TYPE, X + "City"), Statement(X + "ada", X + "knows", X + "london"),
        Statement(X + "ada", X + "age", Literal("old")), Statement(X + "bob", X + "age", number(1)), Statement(X + "bob", X + "age", number(2)),
        Statement(X + "rock", X + "born", X + "london"), Statement(X + "london", TYPE, X + "City"),
        Statement(X + "Woman", "http://www.w3.org/2000/01/rdf-schema#subClassOf", X + "Person"),
        Statement(X + "City", "http://www.w3.org/2000/01/rdf-schema#subClassOf", X + "Place"),
    ])  # fmt: skip
    verdict = validate(graph, shapes)
    found = {(v.focus[6:], v.component) for v in verdict.violations}
    assert found == {("ada", "Class"), ("ada", "Datatype"), ("bob", "MaxCount"), ("rock", "Or"), ("ada", "Not")}
    assert not verdict.others
    assert not verdict.conforms
    assert verdict.counts()["Class"] == 1
    graph.withdraw(statement=[s.id for s in graph if (s.subject, s.predicate) != (X + "london", TYPE)])
    assert validate(graph, shapes).conforms
    checks, others = compile_shapes(Shapes(()))
    assert not checks
    assert not others
