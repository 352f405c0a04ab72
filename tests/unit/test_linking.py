"""Linking, fusing, contracts: what is joined, what is kept apart, and that order never matters."""

from __future__ import annotations

import itertools
import random

import pytest

from interfuse.core.errors import InterfuseError
from interfuse.data.graph import Graph
from interfuse.data.ontology import Class, Ontology, Property
from interfuse.data.statements import LABEL, TYPE, XSD, Evidence, Literal, Statement, entity_id, label_of, number
from interfuse.kit.contracts import Contract, Record, contract, gate, summary
from interfuse.kit.fusing import Policy, fuse
from interfuse.kit.linking import LinkSettings, Mention, acronym_of, cluster, entropy, folded, link, link_graph, numbers
from interfuse.kit.shapes import shapes_of

X = "urn:x:"


def joined(*mentions: Mention, **rest: object) -> set[tuple[str, ...]]:
    return set(link(mentions, **rest).clusters)  # type: ignore[arg-type]


def named(*labels: str) -> list[Mention]:
    return [Mention(f"{i}", label) for i, label in enumerate(labels)]


@pytest.mark.parametrize("a, b", [
    ("Łódź", "LODZ"), ("The Beatles", "Beatles"), ("Straße des 17. Juni", "Strasse des 17 Juni"), ("Einstein's theory", "Einstein theory"),
    ("Barack Obama", "Barrack Obama"), ("Jonathan Smith", "Johnathan Smith"), ("International Business Machines", "International Busines Machines"),
    ("World War II", "World War  ii"), ("Massachusetts", "Massachusets"), ("Obama, Barack", "Barack Obama"),
])  # fmt: skip
def test_spellings_of_one_name_are_joined(a: str, b: str) -> None:
    assert joined(*named(a, b)) == {("0", "1")}


@pytest.mark.parametrize("a, b", [
    ("World War I", "World War II"), ("Boeing 747", "Boeing 737"), ("Java", "Lava"), ("Iran", "Iraq"), ("John Smith", "Jane Smith"),
    ("Windows 95", "Windows 98"), ("aaaaaaaa", "aaaaaaab"), ("North Korea", "South Korea"), ("Henry IV", "Henry VI"), ("1984", "1985"),
    ("Austria", "Australia"), ("George Bush", "George Busch Gardens"), ("University of York", "University of New York"), ("", "x"),
])  # fmt: skip
def test_names_of_two_things_stay_apart(a: str, b: str) -> None:
    assert not joined(*named(a, b))


def test_what_keys_are_made_of() -> None:
    assert folded("The  Größe-Company, Inc.") == "grosse"
    assert folded("The The") == "the the"
    assert numbers("henry viii and 007 or 7") == ("7", "7", "viii")
    assert acronym_of("International Business Machines") == "IBM"
    assert acronym_of("Bank of America") == "BA"
    assert entropy("abab") == pytest.approx(1.0)


def test_types_acronyms_and_aliases() -> None:
    paris = [
        Mention("city", "Paris", types=(X + "City",)),
        Mention("person", "Paris", types=(X + "Person",)),
        Mention("untyped", "Paris"),
    ]
    assert not joined(*paris)  # the untyped one could be either
    assert joined(paris[0], paris[2]) == {("city", "untyped")}
    ontology = Ontology.of([Class(X + "Capital", parents=(X + "City",), disjoint=(X + "Person",)), Class(X + "Person")])
    assert joined(paris[0], Mention("capital", "Paris", types=(X + "Capital",)), ontology=ontology) == {
        ("capital", "city")
    }
    un = Mention("un", "United Nations", near=("ny",))
    assert joined(un, Mention("short", "U.N.", near=("ny",))) == {("short", "un")}
    assert not joined(un, Mention("short", "UN", near=("elsewhere",)))
    assert joined(un, Mention("onu", "ONU", aliases=("United Nations",))) == {("onu", "un")}
    assert not joined(
        un,
        Mention("un2", "United Nations", types=("a",)),
        Mention("un3", "United Nations", types=("b",)),
        Mention("onu", "ONU", aliases=("United Nations",)),
    )


def test_a_chain_of_weak_links_does_not_join_its_ends() -> None:
    """Correlation clustering against the optimum found by trying every partition."""
    rng = random.Random(0)
    gaps = []
    for _ in range(60):
        count = rng.randrange(3, 7)
        weights = {pair: rng.uniform(-1, 1) for pair in itertools.combinations(range(count), 2) if rng.random() < 0.8}

        def value(place: list[int], weights: dict[tuple[int, int], float] = weights) -> float:
            return sum(w for (i, j), w in weights.items() if place[i] == place[j])

        best = max(value(list(p)) for p in itertools.product(range(count), repeat=count))
        found = value(cluster(count, weights))
        assert found >= 0
        gaps.append(best - found)
        order = list(range(count))
        rng.shuffle(order)
        turned = {(min(order[i], order[j]), max(order[i], order[j])): w for (i, j), w in weights.items()}
        assert value([cluster(count, turned)[order[i]] for i in range(count)]) == pytest.approx(found)
    assert sum(g < 1e-9 for g in gaps) >= 50
    assert cluster(3, {(0, 1): 0.4, (1, 2): 0.3, (0, 2): -0.5}) == [0, 0, 2]
    assert cluster(2, {(0, 1): -1.0}) == [0, 1]


def test_linking_does_not_depend_on_order_and_a_judge_is_asked_only_in_the_grey() -> None:
    rng = random.Random(1)
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"]
    labels = [" ".join(rng.sample(words, 2)) for _ in range(40)]
    labels += [label[:3] + label[4:] for label in labels[:20]] + [label.upper() for label in labels[20:30]]
    mentions = [Mention(f"m{i:03}", label, types=(X + "T",) if i % 3 else ()) for i, label in enumerate(labels)]
    asked: list[tuple[str, str]] = []

    def judge(a: Mention, b: Mention) -> bool | None:
        asked.append((a.label, b.label))
        return {0: None, 1: True, 2: False}[len(a.label + b.label) % 3]

    first = link(rng.sample(mentions, len(mentions)), judge=judge)
    assert first.clusters
    asked_once = sorted(asked)
    for _ in range(20):
        asked.clear()
        again = link(rng.sample(mentions, len(mentions)), judge=judge)
        assert again == first
        assert sorted(asked) == asked_once
    assert link(mentions, LinkSettings(accept=1.0, grey=1.0)).clusters
    with pytest.raises(InterfuseError, match=r"input\.duplicate"):
        link([mentions[0], mentions[0]])


def test_linking_a_graph_is_one_operation_that_a_later_one_replaces() -> None:
    def graph(*documents: str) -> Graph:
        made = Graph()
        for d in documents:
            for label in {"A": ["Barack Obama", "Hawaii"], "B": ["Barrack Obama", "Hawai"], "C": ["BARACK OBAMA"]}[d]:
                made.add([label_of(label, entity_id(label, document=d), evidence=[Evidence(d)])])
        return made

    whole = graph("A", "B", "C")
    link_graph(whole)
    assert len(whole.names(entity_id("Barack Obama", document="A"))) == 3
    whole.withdraw(document="B")
    link_graph(whole)
    alone = graph("C", "A")
    link_graph(alone)
    assert whole.digest() == alone.digest()


def sources() -> list[Graph]:
    def graph(name: str, capital: str, people: int, year: str) -> Graph:
        made = Graph(name)
        norway = entity_id("Norway", key=name)
        made.add([
            label_of("Norway" if name != "b" else "Norwey", norway), Statement(norway, TYPE, X + "Country"),
            Statement(norway, X + "capital", entity_id(capital), confidence=0.5 if capital == "Oslo" else 0.9, valid_from=year),
            label_of(capital, entity_id(capital)), Statement(norway, X + "people", number(people)), Statement(norway, X + f"only{name}", number(1)),
        ])  # fmt: skip
        return made

    return [graph("a", "Oslo", 5, "1925"), graph("b", "Oslo", 5, "1926"), graph("c", "Kristiania", 6, "1877")]


def test_fusing_says_what_came_from_whom_and_decides_by_policy() -> None:
    functional = Ontology.of([], [Property(X + "capital", characteristics=("functional",))])
    graph, report = fuse(sources(), ontology=functional, settings=LinkSettings(accept=0.9))
    country = graph.entities(X + "Country")
    assert len(country) == 1
    assert [graph.label(str(s.object)) for s in graph.statements(p=X + "capital")] == ["Oslo"]
    assert report.merged == 2
    rows = report.sources
    assert rows["a"] == {"given": 6, "kept": 6, "agreed": 5, "only here": 1, "conflicted": 1, "dropped": 0}
    assert rows["c"]["dropped"] == 1
    assert rows["c"]["agreed"] == 2
    (conflict,) = report.conflicts
    assert dict(conflict.said) == {f"<{entity_id('Oslo')}>": ("a", "b"), f"<{entity_id('Kristiania')}>": ("c",)}
    assert conflict.kept == f"<{entity_id('Oslo')}>"
    assert report.as_dict()["contested"] == 0
    for policy, wanted in [
        (Policy("latest"), "Oslo"), (Policy("confidence"), "Kristiania"), (Policy("weight", weights={"c": 5.0}), "Kristiania"),
        (Policy("vote", by_property={X + "capital": "keep"}), None),
    ]:  # fmt: skip
        other, _ = fuse(sources(), ontology=functional, policy=policy)
        kept = other.statements(p=X + "capital", status="stated")
        assert [other.label(str(s.object)) for s in kept] == ([wanted] if wanted else [])
        assert len(other.statements(p=X + "capital", status="contested")) == (0 if wanted else 2)
    digests = {fuse(order, ontology=functional)[0].digest() for order in itertools.permutations(sources())}
    assert len(digests) == 1
    graph.withdraw(document="urn:interfuse:graph:b")
    assert not graph.statements(p=X + "onlyb")
    for bad, code in (([], "input.empty"), ([Graph("x"), Graph("x")], "input.duplicate")):
        with pytest.raises(InterfuseError, match=code):
            fuse(bad)
    with pytest.raises(InterfuseError, match="no policy"):
        fuse(sources(), policy=Policy("coin"))


def test_a_contract_refuses_asks_again_with_reasons_and_falls_back() -> None:
    seen: list[str] = []

    def step(prompt: str) -> str:
        seen.append(prompt)
        if "crash" in prompt:
            raise InterfuseError("budget.spent", "no more")
        if "odd" in prompt:
            raise InterfuseError("endpoint.failed", "half a reply")
        return "good" if "must be good" in prompt else "bad"

    record = Record()
    terms = Contract[str, str](
        "words", pre=lambda p: ["empty"] if not p else [], post=lambda p, r: [] if r == "good" else ["it must be good"],
        correct=lambda first, last, problems: f"{first}: {'; '.join(problems)}", tries=2,
    )  # fmt: skip
    outcome = terms.run(step, "say", record)
    assert (outcome.ok, outcome.value, len(outcome.attempts)) == (True, "good", 2)
    assert outcome.attempts[0].problems == ("it must be good",)
    refused = terms.run(step, "", record)
    assert (refused.ok, refused.refused, refused.attempts) == (False, ("empty",), ())
    failed = terms.run(step, "odd", record)
    assert not failed.ok
    assert "half a reply" in failed.attempts[1].problems[0]
    with pytest.raises(InterfuseError, match=r"budget\.spent"):
        terms.run(step, "crash", record)
    assert record.as_dict()["words"] == {
        "runs": 3,
        "refused": 1,
        "passed": 1,
        "passed at once": 0,
        "mended": 1,
        "failed": 1,
        "fallen": 0,
        "tries": 4,
    }

    @contract(post=lambda x, y: [] if y > 3 else ["too small"], tries=2)
    def double(x: int) -> int:
        return 2 * x

    assert double(2) == 4
    with pytest.raises(InterfuseError, match="double did not keep its contract: too small"):
        double(1)
    assert contract(post=lambda x, y: ["never"], fallback=lambda x, problems: -x)(lambda x: x)(7) == -7


def test_the_gate_lets_in_what_breaks_nothing_and_never_half_writes() -> None:
    ontology = Ontology.of([Class(X + "Person", disjoint=(X + "City",)), Class(X + "City")],
                           [Property(X + "age", range=(XSD + "integer",), characteristics=("functional",)), Property(X + "knows", domain=(X + "Person",), range=(X + "Person",))])  # fmt: skip
    shapes = shapes_of(ontology)
    graph = Graph()
    graph.add(
        [
            Statement(X + "ada", TYPE, X + "Person"),
            Statement(X + "ada", X + "age", number(36)),
            Statement(X + "old", X + "age", Literal("?")),
        ]
    )
    before = graph.digest()
    batch = [
        Statement(X + "ada", X + "age", number(37)), Statement(X + "bob", TYPE, X + "Person"), Statement(X + "ada", X + "knows", X + "bob"),
        Statement(X + "ada", X + "knows", X + "oslo"), Statement(X + "bob", X + "age", Literal("nine")), Statement(X + "ada", LABEL, Literal("Ada")),
    ]  # fmt: skip
    done = gate(graph, batch, shapes, whole=True)
    assert done.op == 0
    assert len(done.rejected) == len(batch)
    assert graph.digest() == before
    done = gate(graph, batch, shapes, note="batch")
    assert [s.id for s in done.accepted] == [batch[1].id, batch[2].id, batch[5].id]
    assert {v.component for _, found in done.rejected for v in found} == {"MaxCount", "Class", "Datatype"}
    assert len(graph) == 6
    assert "MaxCount" in " ".join(summary(done.violations))
    graph.undo(done.op)
    assert graph.digest() == before
