"""Critics, near duplicates, rules, comparisons, requests, question pairs and small graphs: by hand and at their limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interfuse.core.errors import InterfuseError
from interfuse.data.lm import Scored
from interfuse.kit import rule_asking
from interfuse.kit.asking import numbered
from interfuse.kit.commonsense import (
    NAMES,
    PHRASES,
    by_head,
    clean_head,
    clean_tail,
    likely,
    read_schema,
    request,
    training_text,
    with_names,
    without_names,
)
from interfuse.kit.comparatives import Comparison, is_uncountable, outvoted, plural, prompt_of, says_of, taken_apart
from interfuse.kit.concept_walks import driving_force, windows
from interfuse.kit.critics import Critic, cut_at_recall, cuts, held_out, precision_at_recall, train_critic
from interfuse.kit.near_duplicates import best_of_each, clusters, distinct, jaccard, rouge_l, shingles
from interfuse.kit.ontological import bridge, joined, measures, network, read_triples, similarity
from interfuse.kit.qa_pairs import (
    Pair,
    as_messages,
    by_patterns,
    read_pairs,
    support,
    why_not,
    without_doubles,
)
from interfuse.kit.rule_asking import answered, expected, first_value, lines, opened
from interfuse.kit.rule_search import (
    Predicate,
    accumulated,
    lowered,
    most_kept,
    probes,
    ranked,
    read_rule,
    search_order,
    snapped,
    usable,
)
from interfuse.kit.sifting import Funnel, Proposal, judged
from tests.tiny_world import RULES

# ------------------------------------------------------------------------------------------------ critics


def test_cuts_by_hand() -> None:
    p, valid = [0.9, 0.8, 0.7, 0.6, 0.4], [1, 1, 0, 1, 0]
    rows = cuts(p, valid)
    assert [(round(c.recall, 3), round(c.precision, 3), c.kept) for c in rows] == [
        (1, 0.6, 5), (1, 0.75, 4), (0.667, 0.667, 3), (0.667, 1, 2), (0.333, 1, 1), (0, 1, 0)]  # fmt: skip
    assert cut_at_recall(p, valid, 0.8).threshold == 0.6
    assert cut_at_recall(p, valid, 1.0).kept == 5
    assert cut_at_recall(p, valid, 0.5).threshold == 0.8
    assert precision_at_recall(p, valid, 0.6) == 1.0
    for bad, code in (([1, 1, 1, 1, 1], "input.empty"), ([1, 0], "input.shape")):
        with pytest.raises(InterfuseError) as error:
            cuts(p, bad)
        assert error.value.code == code
    with pytest.raises(InterfuseError):
        cut_at_recall(p, valid, 0.0)


def test_a_critic_learns_is_calibrated_and_comes_back_from_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    things, qualities = ["stone", "brick", "anvil", "feather", "leaf", "petal"], ["heavy", "light"]
    texts, valid, numbers, groups = [], [], [], []
    for i in range(400):
        thing, quality = things[i % 6], qualities[int(rng.integers(2))]
        truth = (thing in things[:3]) == (quality == "heavy")
        texts.append(f"a {thing} of kind {i % 40} is {quality}")
        valid.append(truth if rng.random() < 0.9 else not truth)
        numbers.append([rng.normal()])
        groups.append(f"{thing} {i % 40}")
    critic = train_critic(texts, valid, numbers, groups=groups, rng=rng, strength=10.0)
    p = critic(texts, numbers)
    assert ((p > 0.5) == np.array(valid)).mean() > 0.8
    assert abs(p.mean() - np.mean(valid)) < 0.05
    critic.save(tmp_path / "critic.safetensors")
    np.testing.assert_array_equal(Critic.load(tmp_path / "critic.safetensors")(texts[:9], numbers[:9]), p[:9])
    assert not len(critic([], None))
    with pytest.raises(InterfuseError) as error:
        critic(texts[:3])
    assert error.value.code == "input.shape"
    with pytest.raises(InterfuseError) as error:
        train_critic(texts[:50], valid[:50], rng=rng)
    assert error.value.code == "input.empty"
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    for name, code in (("bad.safetensors", "input.format"), ("none", "input.missing")):
        with pytest.raises(InterfuseError) as error:
            Critic.load(tmp_path / name)
        assert error.value.code == code


def test_groups_are_held_back_whole() -> None:
    groups = [f"g{i % 10}" for i in range(100)]
    mask = held_out(groups, 0.3, np.random.default_rng(0))
    assert len({g for g, m in zip(groups, mask, strict=True) if m}) == 3
    assert not {g for g, m in zip(groups, mask, strict=True) if m} & {
        g for g, m in zip(groups, mask, strict=True) if not m
    }


# ------------------------------------------------------------------------------------------------ near duplicates


def test_near_duplicates_against_comparing_all() -> None:
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(["red", "blue", "cat", "dog", "runs", "sits"], 6)) for _ in range(60)]
    texts += [texts[0] + "!", texts[5].upper()]
    kept: list[int] = []
    for i, text in enumerate(texts):
        if all(jaccard(shingles(text), shingles(texts[k])) < 0.5 for k in kept):
            kept.append(i)
    assert distinct(texts, threshold=0.5) == kept
    assert 60 not in distinct(texts, threshold=0.99)


def test_clusters_and_their_best() -> None:
    texts = ["bricks are heavier", "bricks are heavier.", "feathers float in water", "Bricks are heavier"]
    labels = clusters(texts)
    assert labels.tolist() == [0, 0, 1, 0]
    assert best_of_each(labels, [1, 5, 2, 5]) == [1, 2]
    assert clusters(["one"]).tolist() == [0]
    vectors = [[1, 0], [0.99, 0.1], [0, 1]]
    assert clusters(["a", "b", "c"], embeddings=vectors, distance=0.1).tolist() == [0, 0, 1]
    with pytest.raises(InterfuseError):
        clusters(["a", "b"], embeddings=[[1.0, float("nan")], [0.0, 1.0]])
    assert rouge_l("almond milk", "almond") == pytest.approx(2 / 3)
    assert rouge_l("", "x") == 0.0


def test_the_funnel_keeps_an_account() -> None:
    funnel = Funnel()
    for batch in (
        [Proposal(("a",), score=1.0), Proposal(("b",), score=3.0)],
        [Proposal(("a",), score=2.0), Proposal(("c",), score=9.0)],
    ):
        seen = judged(batch, [0.2 if p.key == ("c",) else 0.9 for p in batch])
        funnel.keep("critic", seen, lambda p: "" if (p.p_valid or 0.0) > 0.5 else "the critic doubts it")
    one = funnel.unique("same", [Proposal(("a",), score=1.0), Proposal(("a",), score=2.0)], lambda p: p.key)
    assert [p.score for p in one] == [2.0]
    assert funnel.rows() == [
        {"stage": "critic", "in": 4, "out": 3, "dropped": {"the critic doubts it": 1}}, {"stage": "same", "in": 2, "out": 1, "dropped": {"the same again": 1}},
    ]  # fmt: skip
    with pytest.raises(InterfuseError, match=r"input\.nan"):
        judged(one, [float("nan")])


# ------------------------------------------------------------------------------------------------ rules


def test_arithmetic_of_link() -> None:
    assert accumulated([0.9, 0.8, 0.7]) == pytest.approx(0.8)
    assert most_kept(37, 200) == 28
    assert most_kept(37, 10) == 10
    for value, want in ((0.83, 0.80), (0.97, 0.85), (0.85, 0.85), (0.0, 0.0), (0.8, 0.8)):
        assert snapped(value) == pytest.approx(want)
    passed, bar = lowered([0.79, 0.6, 0.81])
    assert passed.tolist() == [False, False, True]
    assert bar == pytest.approx(0.80)
    passed, bar = lowered([0.1, 0.2])
    assert not passed.any()
    assert bar == pytest.approx(0.75)


def test_ranks_of_head_and_tail() -> None:
    bindings = [(("A", "almond"), ("B", b)) for b in ("almond milk", "cake", "soup", "tea")]
    scores = [-1.0, -1.2, -3.0, -2.0]
    assert [dict(b)["B"] for b in ranked(bindings, scores, "B", tail=False, first=False, beam=9)] == [
        "almond milk",
        "cake",
        "tea",
    ]
    assert [dict(b)["B"] for b in ranked(bindings, scores, "B", tail=False, first=False, beam=9, repetition=1.0)] == [
        "cake",
        "almond milk",
        "tea",
    ]
    assert [dict(b)["B"] for b in ranked(bindings, scores, "B", tail=True, first=False, beam=2)] == ["soup", "tea"]
    assert [dict(b)["B"] for b in ranked(bindings, scores, "B", tail=True, first=True, beam=1)] == [
        "soup",
        "tea",
        "cake",
        "almond milk",
    ]


def test_the_order_goes_along_premises() -> None:
    rule = read_rule(RULES[0])
    assert [v for v, _ in search_order(rule)] == ["A", "B", "C"]
    assert [[p.name for p in ties] for _, ties in search_order(rule)] == [
        ["is_allergic_to"],
        ["is_part_of"],
        ["is_served_in"],
    ]
    values = {"P": "PersonX", "A": "nuts", "B": "cake", "C": "inns"}
    assert (
        rule.statement(values)
        == "If PersonX is allergic to nuts and nuts is part of cake and cake is served in inns, then PersonX avoids cake."
    )
    assert [q["answer"] for q in probes(rule, values, "tail")] == ["yes", "yes", "no"]
    backwards = read_rule({
        "premise": {"lived(P, X)": "[P] lived in [X]", "died(P, Y)": "[P] died in [Y]"}, "conclusion": {"before(X, Y)": "[X] before [Y]"},
        "variables": {"P": {"type": "person", "generic": True}, "X": {"type": "year", "factual": True}, "Y": "year"}})  # fmt: skip
    assert [v for v, _ in search_order(backwards)] == ["X", "Y"]
    assert usable("peanut", rule.variables["A"])
    for wrong in ("", "ingredient", "x" * 65, "some A here", "!!"):
        assert not usable(wrong, rule.variables["A"])


@pytest.mark.parametrize(
    "change",
    [
        {"premise": {"p(P, Q)": "[P] p [Q]"}}, {"premise": {"is allergic": "[P]"}}, {"variables": {"P": "person", "A": "x", "B": "y", "C": "z"}},
        {"premise": {"p(P, A)": "[P] likes nuts", "q(A, B)": "[A] q [B]", "r(B, C)": "[B] r [C]"}},
        {"premise": {"p(P, A)": "[P] p [A]", "q(B, C)": "[B] q [C]"}, "conclusion": {"c(P, A)": "[P] c [A]"}},
        {"conclusion": {}}, {"premise": ["p(P, A)"]}, {"examples": [{"A": "nuts", "B": "cake"}]}, {"examples": [{"A": "a", "B": " ", "C": "c"}]},
        {"examples": {"A": "nuts", "B": "cake", "C": "inns"}}, {"examples": ["nuts"]},
    ],
)  # fmt: skip
def test_rules_that_cannot_be_searched_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InterfuseError) as error:
        read_rule({**RULES[0], **change})
    assert error.value.code == "input.format"


def test_a_variable_is_asked_for_by_lines_and_judged_after_examples() -> None:
    shown = [
        {"A": "nuts", "B": "cake", "C": "inns"},
        {"A": "milk", "B": "soup", "C": "bars"},
        {"A": "milk", "B": "tea", "C": "inns"},
    ]
    rule = read_rule({**RULES[0], "examples": shown})
    (_, first), (_, second), _ = search_order(rule)
    a, b = rule.variables["A"], rule.variables["B"]
    assert lines(rule, first, {"P": "PersonX"}, a) == (
        "PersonX is allergic to nuts.\nPersonX is allergic to milk.\nPersonX is allergic to"
    )
    assert lines(rule, second, {"P": "PersonX", "A": "rye"}, b, ["bread"]) == (
        "nuts is part of cake.\nmilk is part of soup.\nmilk is part of tea.\nrye is part of bread.\nrye is part of"
    )
    backwards = (Predicate("is_part_of", ("A", "B"), "[A] is part of [B]"),)
    assert opened(backwards, {"B": "bread"}, a) == "___ is part of bread. Ingredient:"
    for text, want in (
        (" rye bread. It is", "rye bread"),
        ("St.Gallen\nnuts", "St.Gallen"),
        (" cake, which", "cake"),
        (" \n", ""),
        (" 'tea' (hot)", "tea"),
    ):
        assert first_value(text) == want
    typed, true = answered(rule, second, b)
    assert "Is cake a dish?\nAnswer: yes" in typed
    assert "Is nuts a dish?\nAnswer: no" in typed
    assert "nuts is part of cake?\nAnswer: yes" in true
    assert "nuts is part of soup?\nAnswer: no" in true
    assert "milk is part of tea?\nAnswer: no" not in true, "the next example's value may be true as well"
    assert answered(rule, first, a)[1].count("no") == 0, "what is said of anybody cannot be made wrong"
    assert answered(read_rule(RULES[0]), first, a) == ("", "")
    assert rule_asking.request(b, "rye is part of B", 3, ["tea"]).endswith(
        "where B is a dish. Do not generate these values: tea."
    )


class Likely:
    """Scores by a table of the last line's beginning and the continuation; all else is unlikely."""

    def __init__(self, table: dict[tuple[str, str], float]) -> None:
        self.table, self.prompts = table, list[str]()

    def score(self, pairs: list[tuple[str, str]], **options: object) -> list[Scored]:
        self.prompts += [p for p, _ in pairs]
        logs = [math.log(self.table.get((p.splitlines()[-1], t.strip(" .")), 0.001)) for p, t in pairs]
        return [Scored(v, 1, (v,)) for v in logs]


def test_values_are_judged_by_how_much_they_are_expected() -> None:
    shown = [{"A": "nuts", "B": "cake", "C": "inns"}, {"A": "milk", "B": "soup", "C": "bars"}]
    rule = read_rule({**RULES[0], "examples": shown})
    (_, first), (_, second), _ = search_order(rule)
    a, b = rule.variables["A"], rule.variables["B"]
    lm: Any = Likely({
        ("rye is part of", "bread"): 0.6, ("nuts is part of", "bread"): 0.1, ("bread is a", "dish"): 0.3,
        ("bread is a", "ingredient"): 0.1, ("bread is a", "person"): 0.1, ("bread is a", "place"): 0.1,
    })  # fmt: skip
    bindings = [{"P": "PersonX", "A": "rye"}, {"P": "PersonX", "A": "nuts"}, {"P": "PersonX", "A": "milk"}]
    judged = expected(lm, rule, second, b, bindings, [["bread"], ["bread"], []])
    assert [t.tolist() for t, _ in judged] == [pytest.approx([0.5]), pytest.approx([0.5]), []]
    assert [t.tolist() for _, t in judged] == [pytest.approx([0.6]), pytest.approx([0.1]), []]
    [own] = [p for p in lm.prompts if p.endswith("nuts is part of")]
    assert "cake" not in own, "an example does not tell its own value"
    [(typed, true)] = expected(lm, rule, first, a, [{"P": "PersonX"}], [["bread"]])
    assert true.tolist() == typed.tolist(), "of anybody anything of the type may be said"


# ------------------------------------------------------------------------------------------------ comparisons


def test_words_of_comparisons() -> None:
    for noun, want in (
        ("brick", "bricks"),
        ("city", "cities"),
        ("box", "boxes"),
        ("water", "water"),
        ("orange juice", "orange juice"),
        ("wolf", "wolves"),
        ("toy car", "toy cars"),
        ("nails", "nails"),
        ("black holes", "black holes"),
        ("species", "species"),
        ("class", "classes"),
        ("walrus", "walruses"),
        ("camera lens", "camera lenses"),
        ("rhinoceros", "rhinoceroses"),
    ):
        assert plural(noun) == want
    assert plural(plural("sheep")) == "sheep"
    assert not is_uncountable("sheep"), "they are, not is"
    assert is_uncountable("orange juice")
    assert prompt_of("Brick", "feather") == "Compared to bricks, feathers"


@pytest.mark.parametrize(
    ("said", "want"),
    [
        ("are typically lighter", ("are", "typically", "lighter", "")),
        ("can often be more expensive to buy.", ("can", "often", "more expensive", "to buy")),
        ("are generally heavier than stones", "says than"),
        ("are typically", "breaks off"),
        ("are typically full of water", "has no comparative"),
        ("typically lighter", "has no auxiliary"),
    ],
)
def test_the_form_of_a_comparison(said: str, want: object) -> None:
    found = taken_apart("brick", "feather", said)
    assert (
        found == want
        if isinstance(found, str)
        else (found.auxiliary, found.adverb, found.comparative, found.aspect) == want
    )


def of(comparative: str, aspect: str = "", swap: bool = False) -> Comparison:
    ends = ("feather", "brick") if swap else ("brick", "feather")
    return Comparison(*ends, "", "are", "often", comparative, aspect)


@pytest.mark.parametrize(
    ("one", "other", "want"),
    [
        (of("heavier"), of("heavier"), "entails"),
        (of("heavier"), of("lighter"), "contradicts"),
        (of("heavier"), of("lighter", swap=True), "entails"),
        (of("heavier"), of("heavier", swap=True), "contradicts"),
        (of("more costly"), of("less costly"), "contradicts"),
        (of("heavier"), of("greener"), "neutral"),
        (of("heavier", "in winter"), of("lighter", "in summer"), "neutral"),
    ],
)
def test_what_comparisons_say_of_each_other(one: Comparison, other: Comparison, want: str) -> None:
    assert says_of(one, other) == want


def test_votes() -> None:
    items = [of("heavier"), of("lighter"), of("greener")]
    assert outvoted(items, [3, 5, 1]) == [(3, 5), (5, 3), (1, 0)]
    sure, none = np.ones((3, 3)), np.zeros((3, 3))
    assert outvoted(items, [3, 5, 1], entail=sure, contradict=none) == [(9, 0), (9, 0), (9, 0)]


# ------------------------------------------------------------------------------------------------ commonsense requests


def test_names_go_in_and_come_out_as_whole_words() -> None:
    assert with_names("PersonX thanks PersonY", ["Alex", "Chris"]) == "Alex thanks Chris"
    assert without_names("Alexander thanks Alex", ["Alex"]) == "Alexander thanks PersonX"
    assert (
        without_names(with_names("PersonX and PersonY, PersonX's", NAMES[:2]), NAMES[:2])
        == "PersonX and PersonY, PersonX's"
    )


def test_requests_and_what_comes_back() -> None:
    schema = read_schema({"xWant": {"examples": [["PersonX is tired", "to sleep"], ["PersonX eats", "to drink"]]}})
    assert schema[0].phrase == PHRASES["xWant"]
    text = request(schema[0], "PersonX runs", np.random.default_rng(0))
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "3. Alex runs as a result, Alex wants" or lines[
        -1
    ] == "3. Alex runs as a result, PersonX wants".replace("PersonX", "Alex")
    assert clean_tail(" to call Chris.\nmore") == "to call PersonY"
    assert clean_tail("ok") == ""
    assert clean_head("PersonX buys bread.\n2.", "PersonX") == "PersonX buys bread"
    assert clean_head("Somebody {x}") == ""
    assert likely([("a b", -1.0), ("c d", -5.0), ("e f", -2.0), ("g h", -3.0), ("i j", -4.0), ("a b", -0.5)]) == [
        "a b",
        "e f",
        "g h",
        "i j",
    ]
    assert likely([("a", None), ("b", -1.0)]) == ["a", "b"]
    assert training_text("h", "r", "t") == {
        "prompt": "<head> h </head> <relation> r </relation> [GEN]",
        "completion": " t.",
    }


def test_heads_are_split_without_a_leak() -> None:
    heads = [f"h{i % 20}" for i in range(100)]
    side = by_head(heads, np.random.default_rng(0))
    assert len(side) == 20
    assert [list(side.values()).count(s) for s in ("train", "val", "test")] == [16, 2, 2]


# ------------------------------------------------------------------------------------------------ questions and small graphs


def test_questions_by_patterns() -> None:
    text = "The heart is an organ that pumps blood. Berlin is located in Germany. Coal is used for heating. Roads are wet because it rained. It is red."
    from interfuse.data.chunks import sentences

    made = by_patterns(text, sentences(text))
    assert [p.question for p, _ in made] == [
        "What is the heart?",
        "Where is Berlin located?",
        "What is Coal used for?",
        "Why is it that Roads are wet?",
    ]
    assert [(t.subject, t.relation, t.object) for _, t in made if t] == [
        ("heart", "is a", "organ"),
        ("Berlin", "located in", "Germany"),
        ("Coal", "used for", "heating"),
    ]
    for pair, _ in made:
        assert text[pair.start : pair.end].rstrip(".") == pair.answer.rstrip(".")


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (Pair("What is iron?", "Iron is a metal of great strength."), ""),
        (Pair("What is iron?", "Gold is worth more than silver ever was."), "the passage does not say so"),
        (Pair("What does this figure show?", "Iron is a metal of great strength."), "leans on the passage"),
        (Pair("Iron?", "Iron is a metal of great strength."), "question too short or too long"),
        (Pair("What is iron?", "A metal."), "answer too short or too long"),
        (Pair("What is this iron metal?", "What is this iron metal"), "the answer is the question"),
        (Pair("What is iron?", "Iron is a metal of what strength?"), "the answer is a question"),
        (Pair("", "x"), "empty"),
    ],
)
def test_pairs_that_are_unfit(pair: Pair, why: str) -> None:
    assert why_not(pair, "Iron is a metal of great strength.") == why


def test_replies_are_read_and_written_in_the_forms_of_trainers() -> None:
    reply = "Sure!\nQuestion: What is iron?\nAnswer: A metal\nof strength.\n\n2. Q: Where is Rome?\nA: In Italy.\n"
    pairs = read_pairs(reply)
    assert pairs == [Pair("What is iron?", "A metal of strength."), Pair("Where is Rome?", "In Italy.")]
    assert as_messages(pairs[0])["messages"][1] == {"role": "assistant", "content": "A metal of strength."}
    assert without_doubles([*pairs, Pair("what is IRON", "x")]) == [0, 1]
    assert support("Iron has strength", "iron of great strength") == 1.0
    assert numbered("1. a cat\n2) 'dog'.\n- bird\nnothing\n") == ["a cat", "dog", "bird"]


def test_small_graphs_are_read_joined_and_bridged() -> None:
    reply = "1. silk | is made of | protein\n- (bone, contains, collagen)\nprotein -- part of --> tendon\nI hope this helps\nsilk | is | silk\n"
    triples, lost = read_triples(reply)
    assert triples == [
        ("silk", "is made of", "protein"),
        ("bone", "contains", "collagen"),
        ("protein", "part of", "tendon"),
    ]
    assert lost == 2
    assert similarity("Neural networks", "neural network") == 1.0
    assert similarity("type 1", "type 2") == 0.0
    edges = [("beam", "holds", "roof"), ("beams", "carry", "load"), ("beam", "is", "beams"), ("beam", "carry", "load")]
    made, stands = joined(edges)
    assert stands == {"beams": "beam"}
    before, after = network(edges), network(made)
    between = before.number_of_edges("beam", "beams")
    assert after.degree("beam") == before.degree("beam") + before.degree("beams") - 2 * between
    left, right = [("a", "r", f"a{i}") for i in range(4)], [("b", "r", f"b{i}") for i in range(4)]
    found = bridge(
        [*left, *right, ("a1", "meets", "x"), ("x", "meets", "b2")], "a", "b", confidence=[1.0] * 8 + [0.5, 0.9]
    )
    assert found.paths == (("a", "a1", "x", "b2", "b"),)
    assert found.between[0][0] in ("a1", "x", "b2")
    assert found.support == (0.5,)
    apart = bridge([*left, *right], "a", "b")
    assert apart.paths == ()
    assert apart.nearest is not None
    assert measures([])["nodes"] == 0
    assert measures(left)["components"] == 1


def test_the_interval_over_papers_lies_around_the_mean() -> None:
    """Concepts of few papers are absent from many draws: that must not pull the interval away from the estimate."""
    rng = np.random.default_rng(3)
    years = np.sort(rng.integers(0, 4, 160)).astype(float)
    m = np.zeros((160, 24))
    m[np.arange(160), rng.integers(0, 24, 160)] = 1
    edges = [(i, int(j)) for i in range(1, 160) for j in set(rng.integers(0, i, 4).tolist())]
    forces = driving_force(
        years, edges, m, range(8), range(8, 24), windows(years, count=40), draws=80, null=False, rng=rng
    )
    assert all(f.low < f.cross < f.high for f in forces)
