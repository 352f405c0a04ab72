"""The harvesting methods at work on made-up models: what the critic and the ranker are for, causal search, endpoints, bad replies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import apply
from interfuse.data.graph import Graph
from interfuse.data.lm import Reply, Scored
from interfuse.data.statements import relation_id
from tests import tiny_world as world

DISHES = {f"dish{i}": f"part{i // 3}" for i in range(60)}


class Cook:
    """A made-up model that knows dishes: common ones come first, every fourth answer is wrong, and it can tell true from false."""

    name = "cook"

    def __init__(self, wise: bool = True) -> None:
        self.wise, self.asked = wise, 0

    def fingerprint(self) -> str:
        return f"cook-{self.wise}" + "0" * 40

    def generate(self, prompts: Sequence[Any], **options: Any) -> list[list[Reply]]:
        made = []
        for prompt in prompts:
            self.asked += 1
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            part = re.search(r"'(part\d+) is in", text)
            refused = (
                set(re.findall(r"dish\d+|part\d+", text.split("Do not generate")[1])) if "Do not" in text else set()
            )
            pool = [f"part{i}" for i in range(20)] if part is None else [d for d, p in DISHES.items() if p == part[1]]
            pool = [p for p in pool if p not in refused]
            wrong = [f"dish{(int(part[1][4:]) * 3 + 31) % 60}"] if part else ["spoon"]
            answers = [*pool[:3], *wrong] if part else [*pool[:8], *wrong]
            made.append([Reply("\n".join(f"{i}. {a}" for i, a in enumerate(answers, 1)), 9, 9, "stop")])
        return made

    def score(self, pairs: Sequence[tuple[str, str]], *, ctx: Ctx | None = None) -> list[Scored]:
        found = []
        for prompt, text in pairs:
            if text in (" yes", " no"):
                said = re.search(r"(part\d+) is in (dish\d+)", prompt)
                kind = re.search(r"Is (\w+?)\d* a (part|dish)", prompt)
                true = DISHES[said[2]] == said[1] if said else kind[1] == kind[2] if kind else True
                value = -0.05 if (text == " yes") == (true or not self.wise) else -3.0
            else:
                value = -0.1 * sum(int(n) for n in re.findall(r"dish(\d+)", text)) - 1.0
            found.append(Scored(value, 1, (value,)))
        return found


class Lister(Cook):
    """Like the cook, but goes on with lines; a request comes back as it was put, as from a small model."""

    def generate(self, prompts: Sequence[Any], *, n: int = 1, **options: Any) -> list[list[Reply]]:
        made = []
        for prompt in prompts:
            text = prompt if isinstance(prompt, str) else ""
            line = text.splitlines()[-1] if text else ""
            part = re.search(r"(part\d+) is in$", line)
            pool = [d for d, p in DISHES.items() if part and p == part[1]] or [f"part{i}" for i in range(20)]
            said = [f" {pool[k % len(pool)]}. And so on" if line.endswith(("is in", "dislikes")) else "'1. value.'" for k in range(n)]  # fmt: skip
            made.append([Reply(v, 9, 9, "stop") for v in said])
        return made


RULE = {"name": "cooking", "premise": {"dislikes(P, A)": "[P] dislikes [A]", "is_in(A, B)": "[A] is in [B]"},
        "conclusion": {"avoids(P, B)": "[P] avoids [B]"}, "variables": {"P": {"type": "person", "generic": True}, "A": {"type": "part"}, "B": {"type": "dish"}}}  # fmt: skip


def lint(out: Path, lm: Any, **params: Any) -> list[dict[str, Any]]:
    apply(
        "build/link-longtail",
        lm=lm,
        rules=[RULE],
        beam=20,
        ask=10,
        retries=0,
        out=out,
        ctx=Ctx(cache=out.parent / "cache"),
        **params,
    )
    return world.lines(out / "lint.jsonl")


def true_share(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([DISHES.get(r["values"]["B"]) == r["values"]["A"] for r in rows]))


def test_the_critic_keeps_the_tail_true_and_the_ranker_makes_it_rare(tmp_path: Path) -> None:
    full, blind, flat = (
        lint(tmp_path / "a", Cook()),
        lint(tmp_path / "b", Cook(), critic=False),
        lint(tmp_path / "c", Cook(), ranker=False),
    )
    assert true_share(full) == 1.0
    assert true_share(blind) < 0.9

    def number(rows: list[dict[str, Any]], part: str) -> float:
        return float(np.mean([int(r["values"]["B"][4:]) for r in rows if r["set"] == part]))

    assert number(full, "tail") > number(full, "head") + 2
    assert number(flat, "tail") == number(flat, "head")
    assert all(r["statement"].startswith("If PersonX dislikes part") for r in full)
    questions = world.lines(tmp_path / "a" / "probe.jsonl")
    assert {q["answer"] for q in questions} == {"yes", "no"}
    report = json.loads((tmp_path / "a" / "interfuse.json").read_text())["facts"]["method"]["rules"]["cooking"]
    assert report["head minus tail"] > 0
    assert report["steps"][1]["not true"] > 0
    statements = list(Graph.open(tmp_path / "a").statements(p=relation_id("avoids")))
    assert all(s.status == "model-claimed" and len(s.qualifiers) == 2 for s in statements)


def test_a_critic_that_believes_everything_lets_the_wrong_through(tmp_path: Path) -> None:
    assert true_share(lint(tmp_path / "a", Cook(wise=False))) < 0.9


def test_a_small_model_goes_on_with_lines_where_a_request_is_not_understood(tmp_path: Path) -> None:
    assert lint(tmp_path / "a", Lister(), style="request") == []
    rows = lint(tmp_path / "b", Lister(), style="lines", judge="questions")
    assert true_share(rows) == 1.0
    assert len({r["values"]["B"] for r in rows}) > 5
    facts = json.loads((tmp_path / "b" / "interfuse.json").read_text())["facts"]
    assert [facts["method"][k] for k in ("asked by", "judged by")] == ["lines", "questions"]
    assert lint(tmp_path / "d", Lister(), style="lines", judge="questions", least=0.999) == []
    apply("build/link-longtail", lm=world.model(tmp_path, "causal"), rules=[RULE], beam=2, ask=2, retries=0, critic=False, out=tmp_path / "c")  # fmt: skip
    facts = json.loads((tmp_path / "c" / "interfuse.json").read_text())["facts"]
    assert facts["method"]["asked by"] == "lines", "a model without a chat template is not asked by requests"


def test_what_was_paid_is_not_paid_again(tmp_path: Path) -> None:
    first, again = Cook(), Cook()
    rows = lint(tmp_path / "a", first)
    assert first.asked > 0
    assert lint(tmp_path / "b", again) == rows
    assert again.asked == 0


def test_a_causal_model_is_searched_with_and_without_subjects(tmp_path: Path) -> None:
    lm = world.model(tmp_path, "causal")
    spec = {
        "capital": {
            "prompts": ["The capital of <ENT0> is <ENT1>", "<ENT1> is the city of <ENT0>"],
            "seeds": world.FACTS[:3],
        }
    }
    graph = apply("build/bertnet", lm=lm, relations=spec, most=6, out=tmp_path / "free")
    assert len(list(graph.statements(p=relation_id("capital")))) > 0
    apply("build/bertnet", lm=lm, relations=spec, most=6, rescore=True, out=tmp_path / "again")
    orders = [[r[k] for r in world.lines(tmp_path / place / "tuples.jsonl")] for place, k in (("free", "search"), ("again", "score"))]  # fmt: skip
    assert all(len(o) > 2 and o == sorted(o, reverse=True) for o in orders)
    rows = [{tuple(r["entities"]): r["confidence"] for r in world.lines(tmp_path / p / "tuples.jsonl")} for p in ("free", "again")]  # fmt: skip
    assert rows[0] == rows[1], "the order alone changes"
    graph = apply(
        "build/bertnet", lm=lm, relations=spec, subjects=["kenya", "norway"], objects=1, out=tmp_path / "asked"
    )
    found = list(graph.statements(p=relation_id("capital")))
    assert sorted(graph.label(s.subject) for s in found) == ["kenya", "norway"]
    assert all(0 <= s.confidence <= 1 and s.evidence[0].model == "causal" for s in found)
    rows = world.lines(tmp_path / "asked" / "tuples.jsonl")
    weights = json.loads((tmp_path / "asked" / "interfuse.json").read_text())["facts"]["method"]["relations"]["capital"]
    used = [p["weight"] for p in weights["prompts"] if p["weight"] > 0]
    assert sorted(r["entities"][0] for r in rows) == ["kenya", "norway"]
    for row in rows:
        assert row["search"] < 0
        assert np.isclose(np.dot(used, row["prompts"]), row["score"])


def test_three_entities_become_a_statement_with_a_qualifier(tmp_path: Path) -> None:
    spec = {
        "r": {
            "prompts": ["<ENT0> likes <ENT1> and <ENT2>"],
            "seeds": [["alex", "water", "dinner"], ["chris", "flowers", "cups"]],
        }
    }
    graph = apply(
        "build/bertnet", lm=world.model(tmp_path, "masked"), relations=spec, most=5, subwords=1, out=tmp_path / "g"
    )
    found = list(graph.statements(p=relation_id("r")))
    assert found
    assert all([p for p, _ in s.qualifiers] == [relation_id("argument 2")] for s in found)


def test_one_seed_gives_equal_weights_and_no_confidence(tmp_path: Path) -> None:
    spec = {"r": {"prompts": ["<ENT0> likes <ENT1>", "<ENT1> of <ENT0>"], "seeds": [["alex", "water"]]}}
    graph = apply(
        "build/bertnet", lm=world.model(tmp_path, "masked"), relations=spec, most=3, subwords=1, out=tmp_path / "g"
    )
    facts = json.loads((tmp_path / "g" / "interfuse.json").read_text())["facts"]["method"]["relations"]["r"]
    assert [p["weight"] for p in facts["prompts"]] == [0.5, 0.5]
    assert {s.confidence for s in graph.statements(p=relation_id("r"))} == {0.5}


class Teacher:
    """A made-up model that answers requests of MechGPT, one pair good, one leaning on its passage, one invented."""

    name = "teacher"

    def fingerprint(self) -> str:
        return "teacher" + "0" * 40

    def generate(self, prompts: Sequence[Any], **options: Any) -> list[list[Reply]]:
        text = prompts[0][-1]["content"]
        passage = text.split("<<<\n")[1].split("\n>>>")[0] if "<<<" in text else ""
        if "question and answer" in text:
            said = (f"Question: What does the sentence say at length?\nAnswer: {passage}\n\nQuestion: What does this figure show us?\nAnswer: {passage}\n\n"
                    "Question: Who invented the aeroplane first?\nAnswer: Two brothers with bicycles and wings near a beach.")  # fmt: skip
        elif "what is known about" in text:
            said = "collagen | forms | fibre\nfibre | strengthens | beam\n"
        else:
            said = "collagen | is a | protein\nnonsense\n"
        return [[Reply(said, 9, 9, "stop")]]

    def score(self, pairs: Sequence[tuple[str, str]], *, ctx: Ctx | None = None) -> list[Scored]:
        raise InterfuseError("needs.capability", "it does not score")


def test_a_teachers_bad_pairs_are_dropped_and_its_graph_is_its_own_claim(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("Collagen is a protein that gives skin its strength.\n")
    made = {}
    for filters in (True, False):
        out = tmp_path / str(filters)
        graph = apply(
            "build/mechgpt",
            documents=str(folder),
            lm=Teacher(),
            filters=filters,
            topics=["collagen", "beam"],
            held_share=0.0,
            out=out,
            ctx=Ctx(cache=tmp_path / "c"),
        )
        made[filters] = world.lines(out / "qa.jsonl")
        facts = json.loads((out / "interfuse.json").read_text())["facts"]
    assert [r["question"] for r in made[True]] == ["What does the sentence say at length?"]
    assert len(made[False]) == 3
    assert facts["counts"]["lines that are no triple"] == 1
    assert facts["method"]["bridge"]["paths"] == [["collagen", "fibre", "beam"]]
    assert {s.status for s in graph.statements(p=relation_id("forms"))} == {"model-claimed"}
    assert (tmp_path / "True" / "qa-train.jsonl").read_text() == json.dumps(
        {"messages": [{"content": "What does the sentence say at length?", "role": "user"},
                      {"content": "Collagen is a protein that gives skin its strength.", "role": "assistant"}]}) + "\n"  # fmt: skip


def test_a_masked_model_is_refused_where_texts_are_asked_for(tmp_path: Path) -> None:
    lm = world.model(tmp_path, "masked")
    for method, given in (
        ("link-longtail", {"rules": [RULE]}),
        ("symbolic-kd", {"relations": world.SCHEMA, "heads": ["a"]}),
        ("neurocomparatives", {"pairs": world.PAIRS}),
    ):
        with pytest.raises(InterfuseError) as error:
            apply(f"build/{method}", lm=lm, out=tmp_path / method, **given)
        assert error.value.code == "input.type"


def test_token_probabilities_are_asked_of_local_models_only(tmp_path: Path) -> None:
    for method, given in (("bertnet", {"relations": world.RELATIONS}), ("neurocomparatives", {"pairs": world.PAIRS})):
        with pytest.raises(InterfuseError) as error:
            apply(f"build/{method}", lm=Cook(), out=tmp_path / method, **given)
        assert error.value.code == "needs.capability"


def test_concepts_from_texts_and_citations_to_nowhere_are_counted(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"p{i}",
            "year": 2000 + i // 4,
            "references": f"p{i - 1}; p{i + 3}; lost",
            "text": f"Dark matter halos and neural networks, case {i}.",
        }
        for i in range(12)
    ]
    graph = apply(
        "build/astro-kg",
        table=world.parquet(tmp_path / "p.parquet", rows),
        count=4,
        most_share=1.0,
        null=False,
        draws=0,
        out=tmp_path / "g",
    )
    facts = json.loads((tmp_path / "g" / "interfuse.json").read_text())["facts"]
    assert facts["counts"]["references to unknown papers"] == 12 + 3 + 1
    assert facts["counts"]["references to later papers"] > 0
    names = {graph.label(s.subject) for s in graph.statements(p=relation_id("relevant to"))}
    assert {"dark matter halo", "neural network"} <= names
