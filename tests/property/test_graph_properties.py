"""Graphs against their definition: any operations in any order, undone or not, give what the log says, computed anew."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from interfuse.data.formats.rdf import parse_rdf, write_rdf
from interfuse.data.graph import Graph
from interfuse.data.statements import STATUSES, Evidence, Literal, Statement, from_json, term_of, text_of, to_json
from tests.oracles.graph_oracle import holds

NAMES = [f"urn:x:{c}" for c in "abcd"]
names = st.sampled_from(NAMES)
documents = st.sampled_from(["A", "B", "C"])
proofs = st.builds(
    Evidence,
    documents,
    st.integers(0, 2),
    st.integers(2, 4),
    method=st.sampled_from(["", "m", "n"]),
    run=st.sampled_from(["", "r"]),
)
spoken = st.builds(
    Statement, names, st.sampled_from(["urn:x:p", "urn:x:q"]), names | st.builds(Literal, st.sampled_from(["1", "2"])),
    st.lists(st.tuples(st.just("urn:x:since"), names), max_size=1).map(tuple), st.sampled_from([0.25, 0.5, 1.0]),
    status=st.sampled_from(STATUSES), evidence=st.lists(proofs, max_size=2).map(tuple),
)  # fmt: skip
steps = st.lists(
    st.tuples(st.just("add"), st.lists(spoken, min_size=1, max_size=4)) | st.tuples(st.just("merge"), st.lists(st.tuples(names, names), min_size=1, max_size=3))
    | st.tuples(st.just("group"), st.lists(st.tuples(names, names), max_size=3)) | st.tuples(st.just("proven"), st.tuples(names, names, documents))
    | st.tuples(st.just("split"), names) | st.tuples(st.just("withdraw"), documents) | st.tuples(st.just("run"), st.sampled_from(["r", "m", "n"]))
    | st.tuples(st.just("take"), st.integers(0, 30)) | st.tuples(st.just("mark"), st.tuples(st.integers(0, 30), st.sampled_from(STATUSES)))
    | st.tuples(st.just("undo"), st.integers(0, 30)) | st.tuples(st.just("rest"), st.tuples(st.integers(0, 30), st.integers(0, 30), names)),
    min_size=1, max_size=14,
)  # fmt: skip


def carry_out(graph: Graph, kind: str, what: Any) -> None:
    ids = sorted(graph.state.ids())
    if kind == "add":
        graph.add(what)
    elif kind == "merge":
        graph.merge_all(what)
    elif kind == "group":
        graph.merge_all(what, group="link")
    elif kind == "proven":
        graph.merge(what[0], what[1], evidence=[Evidence(what[2])])
    elif kind == "split":
        graph.split(what)
    elif kind == "withdraw":
        graph.withdraw(document=what)
    elif kind == "run":
        graph.withdraw(**({"run": "r"} if what == "r" else {"method": what}))
    elif kind == "take" and ids:
        graph.withdraw(statement=ids[what % len(ids)])
    elif kind == "mark" and ids:
        graph.mark([ids[what[0] % len(ids)]], what[1])
    elif kind == "undo" and graph.history():
        graph.undo(1 + what % len(graph.history()))
    elif kind == "rest":  # something that rests on what was said before and on its like, in circles perhaps
        raw = sorted({s.id for op in graph.history() for s in op.statements})
        if raw:
            like = Statement(NAMES[what[1] % len(NAMES)], "urn:x:r", NAMES[what[1] % len(NAMES)]).id
            premises = (raw[what[0] % len(raw)], *([like] if what[1] % 2 else []))
            graph.add([Statement(what[2], "urn:x:r", what[2], evidence=(Evidence("rules", premises=premises),))])


def begun() -> Graph:
    """A graph in which every name occurs, each by another document."""
    graph = Graph()
    graph.add(
        [
            Statement(n, "urn:x:is", Literal(n), evidence=(Evidence("ABCA"[i]),) if i else ())
            for i, n in enumerate(NAMES)
        ]
    )
    return graph


@settings(max_examples=400, deadline=None)
@given(steps)
def test_a_graph_is_what_its_log_says(moves: list[tuple[str, Any]]) -> None:
    graph = begun()
    for kind, what in moves:
        carry_out(graph, kind, what)
    expected = holds(graph.history())
    found = {s.id: s for s in graph.statements(status=STATUSES)}
    assert found.keys() == expected.keys()
    for name, made in found.items():
        assert (made.status, made.confidence, made.kind, made.evidence) == (
            expected[name].status, expected[name].confidence, expected[name].kind, expected[name].evidence,
        )  # fmt: skip
    for s in found.values():  # the indexes tell the same
        assert s.id in {x.id for x in graph.statements(s.subject, status=STATUSES)}
        assert s.id in {x.id for x in graph.statements(p=s.predicate, o=s.object, status=STATUSES)}
    assert Graph.of(graph.history()).digest() == graph.digest()
    assert len(graph.columns()) == len(graph.statements())


@settings(max_examples=60, deadline=None)
@given(steps)
def test_everything_undone_from_the_last_to_the_first_passes_every_earlier_day(moves: list[tuple[str, Any]]) -> None:
    graph = begun()
    days = [graph.digest()]
    for kind, what in moves:
        if kind != "undo":
            before = len(graph.history())
            carry_out(graph, kind, what)
            if len(graph.history()) > before:
                days.append(graph.digest())
    for day in reversed(days[:-1]):
        graph.undo()
        assert graph.digest() == day


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
literals = st.builds(
    Literal, words, st.sampled_from(["http://www.w3.org/2001/XMLSchema#string", "urn:x:type"])
) | st.builds(Literal, words, language=st.sampled_from(["en", "DE-at"]))


@settings(max_examples=200, deadline=None)
@given(literals, literals)
def test_terms_and_statements_survive_every_way_of_writing(one: Literal, two: Literal) -> None:
    assert term_of(text_of(one)) == one
    said = Statement("urn:x:s", "urn:x:p", one, (("urn:x:q", two),), 0.5, evidence=(Evidence("d", 1, 2),))
    assert from_json(to_json(said)) == said
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("nq", "ttl"):
            path = Path(folder) / f"x.{ending}"
            write_rdf(path, [said])
            (again,), problems = parse_rdf(path.read_bytes(), f".{ending}")
            assert again == said
            assert not problems.count
