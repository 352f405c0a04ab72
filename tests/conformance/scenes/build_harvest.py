"""Scenes of the methods that harvest models, rules, texts and papers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import rich.style  # noqa: F401  importing it draws a random number, which is no method's doing
import sklearn  # noqa: F401  importing it sets two variables of the environment

from tests import tiny_world as world
from tests.conformance.cases import Case
from tests.conformance.fixtures import Bad, Killed, Scene


def opens(path: Path) -> dict[str, Any]:
    """The graph by its own noun and its table by pyarrow: confidences and scores."""
    import pyarrow.parquet

    from interfuse.data.graph import Graph

    found = list(Graph.open(path).statements())
    table = pyarrow.parquet.read_table(path / "statements.parquet")
    assert table.num_rows == len(found), "the table and the graph differ"
    scores = [e.score for s in found for e in s.evidence if e.score is not None]
    return {"confidence": np.array([s.confidence for s in found]), "score": np.array(scores, dtype=np.float64)}


@contextlib.contextmanager
def killed_after_the_first_step() -> Iterator[None]:
    """Work dies once its first step is kept."""
    from interfuse.kit import kept_steps

    write = kept_steps.write_atomic

    def dies(path: Path, data: bytes) -> None:
        write(path, data)
        raise Killed

    with mock.patch.object(kept_steps, "write_atomic", dies):
        yield


def furnished(
    case: Case, path: Path, given: Mapping[str, Any], bad: Mapping[str, Sequence[Bad]], run: Callable[[Path, Mapping[str, Any]], Any], *,
    memory: Callable[[], dict[str, Any]] | None = None, na: Mapping[str, str] | None = None,
) -> Scene:  # fmt: skip
    """A scene from inputs, faults and what an oracle is shown: ``run(artifact, given)`` gives the method's numbers and its materials."""
    from interfuse.core.rooms import apply

    asked = {**given, **case.given}

    def compare(oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        out = path / f"seen-{case.slug}"
        if not out.is_dir():
            apply(case.method, out=out, seed=0, **asked)
        ours, seen = run(out, asked)
        theirs = oracle(**seen)
        assert set(theirs) == set(ours), f"the oracle gives {sorted(theirs)}, the method {sorted(ours)}"
        return [(name, ours[name], theirs[name]) for name in sorted(ours)]

    return Scene(given=asked, in_memory=memory or (lambda: dict(asked)), files=path / "inputs", opens=opens, bad=bad,
                 interrupted=killed_after_the_first_step, compare=compare, tolerance=1e-5, dtype="float64", not_applicable=na or {})  # fmt: skip


def graph_rows(path: Path, relation: str = "") -> list[Any]:
    """The statements of an artifact about one relation, labels of entities as names."""
    from interfuse.data.graph import Graph
    from interfuse.data.statements import relation_id

    graph = Graph.open(path)
    return [(graph.label(s.subject), s, s.object if not isinstance(s.object, str) else graph.label(s.object))
            for s in graph.statements(p=relation_id(relation) if relation else None)]  # fmt: skip


# ---------------------------------------------------------------------------------------------- one scene per method


def masked(case: Case, path: Path) -> Scene:
    """A masked model and two relations."""
    inputs = path / "inputs"
    lm = world.model(inputs, "masked")

    def run(out: Path, given: Mapping[str, Any]) -> Any:
        rows = {(name, a, b): s.evidence[0].score for name in given["relations"] for a, s, b in graph_rows(out, name)}
        facts = json.loads((out / "interfuse.json").read_text())["facts"]["method"]["relations"]
        ours = {"scores": np.array(list(rows.values())),
                "weights": np.array([p["weight"] for r in facts.values() for p in r["prompts"]])}  # fmt: skip
        return ours, {"folder": lm, "relations": given["relations"], "rows": list(rows), "temperature": 2.0}

    relation = world.RELATIONS["capital"]
    bad = {
        "refuses_wrong_shape": [Bad("seed of three", {"relations": {"a": {**relation, "seeds": [["x", "y"], ["x", "y", "z"]]}}}, ("input.shape",)),
                                Bad("a slot too few", {"relations": {"a": {**relation, "prompts": ["<ENT0> alone"]}}}, ("input.format",))],
        "refuses_empty": [Bad("no relation", {"relations": {}}, ("input.empty",)),
                          Bad("no seed", {"relations": {"a": {**relation, "seeds": []}}}, ("input.empty",))],
        "one_row": [Bad("one seed", {"relations": {"a": {**relation, "seeds": [["france", "paris"]]}}}, (), or_works=True)],
        "refuses_nan": [],
        "refuses_duplicates": [Bad("a slot twice", {"relations": {"a": {**relation, "prompts": ["<ENT0> and <ENT0>"]}}}, ("input.format",))],
        "refuses_missing_input": [Bad("no model", {"lm": None}, ("param.missing",)),
                                  Bad("no folder", {"lm": str(path / "nowhere")}, ("input.missing",))],
    }  # fmt: skip

    def memory() -> dict[str, Any]:
        from interfuse.core.ctx import Ctx
        from interfuse.core.rooms import Source
        from interfuse.data.models import open_model

        return {"relations": world.RELATIONS, **case.given, "lm": open_model(Source(lm), Ctx())}

    na = {"refuses_nan": "its inputs are a model and words, no numbers of the user's"}
    return furnished(case, path, {"lm": lm, "relations": world.RELATIONS}, bad, run, memory=memory, na=na)


def rules(case: Case, path: Path) -> Scene:
    """A graph of dishes and a rule about them."""
    meals = world.meals(path / "inputs" / "meals")

    def run(out: Path, given: Mapping[str, Any]) -> Any:
        rows = world.lines(out / "lint.jsonl")
        ours = {"scores": np.array([r["loglikelihood"] for r in rows]), "confidence": np.array([r["confidence"] for r in rows]),
                "head": np.array([sum(r["set"] == "head" for r in rows)]), "tail": np.array([sum(r["set"] == "tail" for r in rows)])}  # fmt: skip
        return ours, {"triples": [(a, s.predicate.split(":")[-1], b) for a, s, b in graph_rows(meals) if isinstance(s.object, str)],
                      "rows": rows, "beam": given["beam"], "keep": 0.75}  # fmt: skip

    rule = world.RULES[0]
    lonely = {**rule, "variables": {**rule["variables"], "D": {"type": "thing"}}}
    bad = {
        "refuses_wrong_shape": [Bad("variable in no premise", {"rules": [lonely]}, ("input.format",)),
                                Bad("two conclusions", {"rules": [{**rule, "conclusion": {"a(P, B)": "[P] a [B]", "b(P, B)": "[P] b [B]"}}]}, ("input.format",))],
        "refuses_empty": [Bad("no rule", {"rules": []}, ("input.empty",)), Bad("no premise", {"rules": [{**rule, "premise": {}}]}, ("input.format",))],
        "one_row": [Bad("one binding", {"beam": 1}, (), or_works=True)],
        "refuses_nan": [],
        "refuses_duplicates": [Bad("two rules of one name", {"rules": [rule, rule]}, ("input.duplicate",))],
        "refuses_missing_input": [Bad("neither model nor graph", {"graph": None}, ("param.missing",)),
                                  Bad("no graph there", {"graph": str(path / "nowhere")}, ("input.missing",))],
    }  # fmt: skip

    def memory() -> dict[str, Any]:
        return {"rules": world.RULES, **case.given, "graph": meals}

    na = {"refuses_nan": "its inputs are a graph and rules in words, no numbers"}
    return furnished(case, path, {"graph": meals, "rules": world.RULES}, bad, run, memory=memory, na=na)


def pairs(case: Case, path: Path) -> Scene:
    """A causal model and two pairs of things."""
    inputs = path / "inputs"
    lm = world.model(inputs, "causal")

    def run(out: Path, given: Mapping[str, Any]) -> Any:
        rows = world.lines(out / "comparisons.jsonl")
        ours = {"logprob": np.array([r["logprob"] for r in rows]), "for": np.array([r["entailed"] for r in rows]),
                "against": np.array([r["contradicted"] for r in rows]), "meets": np.ones(len(rows))}  # fmt: skip
        return ours, {"folder": lm, "rows": rows}

    bad = {
        "refuses_wrong_shape": [Bad("a row of four", {"pairs": [["a", "b", "c", "d"]]}, ("input.shape",)), Bad("a row of one", {"pairs": [["a"]]}, ("input.shape",))],
        "refuses_empty": [Bad("no pair", {"pairs": []}, ("input.empty",)), Bad("an empty thing", {"pairs": [["brick", " "]]}, ("input.shape",))],
        "one_row": [Bad("one pair", {"pairs": [["brick", "cup"]]}, (), or_works=True)],
        "refuses_nan": [],
        "refuses_duplicates": [Bad("a thing with itself", {"pairs": [["brick", "Brick"]]}, ("input.duplicate",))],
        "refuses_missing_input": [Bad("no model", {"lm": None}, ("param.missing",)), Bad("no critic", {"critic": str(path / "nowhere")}, ("input.missing",))],
    }  # fmt: skip
    na = {"refuses_nan": "its inputs are a model and pairs of words, no numbers"}
    return furnished(
        case, path, {"lm": lm, "pairs": world.PAIRS}, bad, run, memory=_memory(case, lm, pairs=world.PAIRS), na=na
    )


def _memory(case: Case, lm: str, **given: Any) -> Callable[[], dict[str, Any]]:
    def memory() -> dict[str, Any]:
        from interfuse.core.ctx import Ctx
        from interfuse.core.rooms import Source
        from interfuse.data.models import open_model

        return {**given, **case.given, "lm": open_model(Source(lm), Ctx())}

    return memory


def triples(case: Case, path: Path) -> Scene:
    """A causal model as teacher, a schema of two relations, and judged triples."""
    inputs = path / "inputs"
    lm = world.model(inputs, "causal")
    judged = world.judgements()
    tables = {"": judged, "few": judged[:20], "one": judged[:1], "one class": [{**r, "valid": 1} for r in judged],
              "strange": [{**r, "relation": "nothing"} for r in judged], "nan": [{**r, "valid": float("nan") if i == 7 else float(r["valid"])} for i, r in enumerate(judged)]}  # fmt: skip
    files = {
        name: world.parquet(inputs / f"judgements{name.replace(' ', '-')}.parquet", rows)
        for name, rows in tables.items()
    }
    given = {"lm": lm, "relations": world.SCHEMA, "heads": world.HEADS, "table": files[""]}

    def run(out: Path, given: Mapping[str, Any]) -> Any:
        facts = json.loads((out / "interfuse.json").read_text())["facts"]
        rows = [r for r in world.lines(out / "corpus.jsonl") if "Person" not in r["head"] + r["tail"]]
        bar = facts["method"]["thresholds"][f"{given['recall']:g}"]["threshold"]
        ours = {"p": np.array([r["p_valid"] for r in rows]), "kept": np.array([facts["candidates"]]),
                "train": np.array([len(world.lines(out / "train.jsonl"))])}  # fmt: skip
        return ours, {
            "critic": out / "critic.safetensors",
            "rows": rows,
            "schema": given["relations"],
            "threshold": bar,
            "corpus": world.lines(out / "corpus.jsonl"),
        }

    bad = {
        "refuses_wrong_shape": [Bad("an example of three", {"relations": {"is": {"examples": [["a", "b", "c"]]}}}, ("input.shape",))],
        "refuses_empty": [Bad("no relation", {"relations": {}}, ("input.empty",)), Bad("few judgements", {"table": files["few"]}, ("input.empty",)),
                          Bad("one class of judgements", {"table": files["one class"]}, ("input.empty",)), Bad("empty heads", {"heads": [" "]}, ("input.empty",))],
        "one_row": [Bad("one judgement", {"table": files["one"]}, ("input.empty",)), Bad("one head", {"heads": ["a stone"]}, (), or_works=True)],
        "refuses_nan": [Bad("a judgement that is none", {"table": files["nan"]}, ("input.nan",))],
        "refuses_duplicates": [Bad("a head twice", {"heads": ["a stone", "a stone"]}, (), or_works=True)],
        "refuses_missing_input": [Bad("no teacher", {"lm": None}, ("param.missing",)), Bad("a relation the schema has not", {"table": files["strange"]}, ("input.missing",))],
    }  # fmt: skip
    return furnished(
        case,
        path,
        given,
        bad,
        run,
        memory=_memory(case, lm, relations=world.SCHEMA, heads=world.HEADS, table=files[""]),
    )


def passages(case: Case, path: Path) -> Scene:
    """Three short texts, read by patterns."""
    folder = world.documents(path / "inputs" / "docs")
    (path / "inputs" / "blank").mkdir(exist_ok=True)
    (path / "inputs" / "blank" / "a.txt").write_text("\n")
    (path / "inputs" / "single").mkdir(exist_ok=True)
    (path / "inputs" / "single" / "a.txt").write_text("Iron is a metal of great strength.\n")

    def run(out: Path, given: Mapping[str, Any]) -> Any:
        rows = world.lines(out / "qa.jsonl")
        found = [(a, s, b) for a, s, b in graph_rows(out) if s.kind == "vote"]
        report = json.loads((out / "interfuse.json").read_text())["facts"]["method"]
        ours = {"spans": np.array([[r["start"], r["end"]] for r in rows]).ravel(), "confidence": np.array([s.confidence for _, s, _ in found]),
                "nodes": np.array([report["graph"]["nodes"]]), "path": np.array([len(report["bridge"]["paths"][0])])}  # fmt: skip
        return ours, {
            "texts": world.PASSAGES,
            "rows": rows,
            "topics": given["topics"],
            "triples": [(a, s.predicate.split(":")[-1].replace("-", " "), b) for a, s, b in found],
        }

    bad = {
        "refuses_wrong_shape": [Bad("one topic", {"topics": ["bone"]}, ("param.value",))],
        "refuses_empty": [Bad("no sentence", {"documents": str(path / "inputs" / "blank")}, ("input.empty",))],
        "one_row": [Bad("one sentence", {"documents": str(path / "inputs" / "single")}, (), or_works=True)],
        "refuses_nan": [],
        "refuses_duplicates": [],
        "refuses_missing_input": [Bad("no documents", {"documents": None}, ("param.missing",)), Bad("no folder", {"documents": str(path / "nowhere")}, ("input.missing",))],
    }  # fmt: skip
    na = {
        "refuses_nan": "its inputs are texts, which hold no numbers",
        "refuses_duplicates": "the same text twice is two documents that say the same",
    }
    return furnished(case, path, {"documents": folder, "topics": ["Collagen", "Human hair"]}, bad, run, na=na)


def papers(case: Case, path: Path) -> Scene:
    """Sixty papers of six years with citations and concepts."""
    inputs, rows = path / "inputs", world.papers()
    tables = {"": rows, "twice": [*rows, rows[3]], "no year": [{**r, "year": None if i == 4 else r["year"]} for i, r in enumerate(rows)], "one": rows[:1],
              "no concept": [{**r, "concepts": [f"only {i}"]} for i, r in enumerate(rows)], "bare": [{k: v for k, v in r.items() if k != "concepts"} for r in rows]}  # fmt: skip
    files = {
        name: world.parquet(inputs / f"papers{name.replace(' ', '-')}.parquet", table) for name, table in tables.items()
    }

    def run(out: Path, given: Mapping[str, Any]) -> Any:
        report = json.loads((out / "interfuse.json").read_text())["facts"]["method"]
        seen = []
        for a, s, b in graph_rows(out, "relevant to"):
            q = {p.split(":")[-1]: v.value for p, v in s.qualifiers}
            seen.append((a, b, q["window"], float(q["relevance"]), float(q["lift"])))
        seen.sort(key=lambda r: r[:3])
        force = report["driving force"]
        ours = {"relevance": np.array([r[3] for r in seen]), "lift": np.array([r[4] for r in seen]), "cross": np.array([f["cross"] for f in force]),
                "inner": np.array([f["inner"] for f in force])}  # fmt: skip
        return ours, {
            "rows": rows,
            "links": [r[:3] for r in seen],
            "domains": world.DOMAINS,
            "count": given["count"],
            "decay": 0.5,
            "steps": 4,
        }

    given = {"table": files[""], "domains": world.DOMAINS, "technique": "technique", "science": "science"}
    bad = {
        "refuses_wrong_shape": [Bad("years and count", {"window": 2}, ("param.value",)), Bad("a domain that is none", {"technique": "other"}, ("param.value",))],
        "refuses_empty": [Bad("no concept is left", {"table": files["no concept"]}, ("input.empty",))],
        "one_row": [Bad("one paper", {"table": files["one"]}, ("input.empty",))],
        "refuses_nan": [Bad("a paper without a year", {"table": files["no year"]}, ("input.nan",))],
        "refuses_duplicates": [Bad("a paper twice", {"table": files["twice"]}, ("input.duplicate",))],
        "refuses_missing_input": [Bad("no table", {"table": None}, ("param.missing",)), Bad("no column of concepts", {"table": files["bare"]}, ("input.missing",))],
    }  # fmt: skip
    na = {"resume_equals_one_go": "it reads one table and takes seconds: nothing is kept on the way"}
    return furnished(case, path, given, bad, run, na=na)


FURNISHED: dict[str, Callable[[Case, Path], Scene]] = {
    "masked": masked, "rules": rules, "pairs": pairs, "triples": triples, "passages": passages, "papers": papers,
}  # fmt: skip
