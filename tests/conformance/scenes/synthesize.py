"""The synthesize room: language models that play by a script, recorded; tables of a few prompts."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from tests import tiny_texts
from tests.conformance.cases import Case
from tests.conformance.fixtures import Bad, Killed, Scene, room
from tests.scripted_writer import Play, Scripted, record

QUESTIONS = [
    ("What is 2 plus 3?", "It is 5"), ("What is 10 minus 4?", "#### 6"), ("Which number follows 1,999?", "2000"),
    ("How much is 3 times 7?", "21"), ("What is 9 plus 9?", "18"), ("Halve 50.", "25"),
]  # fmt: skip


def code(text: str) -> int:
    """A text as a number."""
    return zlib.crc32(text.encode())


# ------------------------------------------------------------------------------------------------ the plays


def _reasons(prompt: str, sample: int) -> str:
    """A rationale in JSON; broken at first for one prompt, and always for another."""
    if "3 times 7" in prompt:
        return "no JSON at all"
    if "9 plus 9" in prompt and "cannot be used" not in prompt:
        return "Let me think."
    return json.dumps({"rationale": f"reason {code(prompt) % 97}", "answer": f"answer {code(prompt) % 89}"})


SUBJECTS = [
    "rivers",
    "stars",
    "bread",
    "music",
    "trees",
    "clocks",
    "stones",
    "letters",
    "wolves",
    "bridges",
    "salt",
    "ships",
]
DEEDS = ["Explain how {a} and {b} are alike", "List five facts about {a} without {b}", "Write a short poem on {a} near {b}",
         "Compare the cost of {a} with {b}", "Describe {a} to a child who knows {b}", "Draw a picture of {a} and {b}"]  # fmt: skip


def _tasks(prompt: str, sample: int) -> str:
    """Tasks, of which some are too short, forbidden, or said again; an answer to a task."""
    if "Write" not in prompt or "Tasks of the collection" not in prompt:
        return f"Answer {code(prompt) % 101}."
    at = code(prompt)
    made = [DEEDS[(at + 5 * i) % 6].format(a=SUBJECTS[(at // 7 + i) % 12], b=SUBJECTS[(at // 11 + 3 * i) % 12]) for i in range(3)]  # fmt: skip
    return json.dumps({"tasks": [{"instruction": t} for t in (*made, "Do it", made[0] + " now")]})


def _lessons(prompt: str, sample: int) -> str:
    """Questions about a cell, the last two nearly the same; an answer, one of them refused."""
    if "Write" in prompt and "questions" in prompt:
        at = code(prompt)
        made = [f"Why do {SUBJECTS[(at + i) % 12]} matter for {SUBJECTS[(at // 13 + 2 * i) % 12]} in case {at % 50}?" for i in range(3)]  # fmt: skip
        return json.dumps({"questions": [{"question": q} for q in (*made, made[-1])]})
    return "I'm sorry, I cannot help with that." if code(prompt) % 5 == 0 else f"Because of {code(prompt) % 97}."


def _student(prompt: str, sample: int) -> str:
    return "" if sample == 2 and "Halve" in prompt else f"My answer is {(code(prompt) + 31 * sample) % 9}"


def _judge(prompt: str, sample: int) -> str:
    score = code(prompt) % 10 + 1
    told: Any = f"{score}/10" if score == 3 else 77 if score == 4 else score
    return json.dumps({"critique": f"point {code(prompt) % 13}", "score": told})


def _solver(prompt: str, sample: int) -> str:
    right = dict(QUESTIONS)
    asked = next(q for q in right if q in prompt)
    if "The answer is" in prompt:
        return f"Told so: {right[asked]}" if code(asked) % 2 else "I still say 0"
    known = float(right[asked].split()[-1])
    off = (code(asked) + sample) % 3 if asked != "Halve 50." else 1
    return f"I count {known:g}, then {known + off:g}"


# ------------------------------------------------------------------------------------------------ tables


def table(path: Path, kind: str, change: str = "") -> str:
    """A parquet file of questions, tasks or sentences, whole or with a fault."""
    from datasets import Dataset

    file = path / f"{kind}{'-' + change if change else ''}.parquet"
    if not file.is_file():
        prompts = [q for q, _ in QUESTIONS] if kind == "questions" else ["Explain why the sea is salty.", "Name the largest stars of winter."]  # fmt: skip
        columns: dict[str, list[Any]] = {"prompt": prompts}
        if kind == "questions":
            columns["response"] = [a for _, a in QUESTIONS]
        if kind == "sentences":
            columns = {"text": tiny_texts.sentences(8)[0]}
        ids = [f"p{i}" for i in range(len(next(iter(columns.values()))))]
        columns["id"] = [*ids[:-1], ids[0]] if change == "twice" else ids
        rows = Dataset.from_dict(columns)
        if change in ("empty", "one"):
            rows = rows.select(range(change == "one"))
        if change == "numbers":
            rows = Dataset.from_dict({"features": [[1.0, 2.0], [3.0, 4.0]]})
        path.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(file)
    return str(file)


def played(path: Path, case: Case, given: Mapping[str, Any], plays: Mapping[str, Play], sure: Callable[[str, str], float]) -> dict[str, str]:  # fmt: skip
    """Recordings of what the case's models say under seeds 0 and 1 and for one row, by input."""
    from interfuse.core.errors import InterfuseError
    from interfuse.core.rooms import apply

    files = {name: path / "inputs" / f"{case.slug}-{name}.jsonl" for name in plays}
    if not all(f.is_file() for f in files.values()):
        rounds = []
        one = {**given, "data": table(path / "inputs", "questions", "one")} if "data" in given and case.slug != "expansion" else given  # fmt: skip
        for seed, asked in ((0, given), (1, given), (0, one)):
            rounds.append({name: Scripted(play, sure, samples=4) for name, play in plays.items()})
            with tempfile.TemporaryDirectory() as out, contextlib.suppress(InterfuseError):
                apply(case.method, out=Path(out) / "made", seed=seed, **{**asked, **rounds[-1]})
        for name in plays:
            record(path / "inputs" / f"{case.slug}-{name}-seed-0.jsonl", rounds[0][name])
            record(files[name], *(r[name] for r in rounds))
    return {name: f"replies:{file}" for name, file in files.items()}


def opens(folder: Path) -> dict[str, NDArray[Any]]:
    """Every column by pyarrow: numbers as they are, texts as their lengths."""
    import pyarrow.parquet

    found: dict[str, NDArray[Any]] = {}
    for name, values in pyarrow.parquet.read_table(folder / "examples.parquet").to_pydict().items():
        flat = [v for row in values for v in row] if isinstance(values[0], list) else values
        flat = [v for row in flat for v in row] if isinstance(flat[0], list) else flat
        found[name] = np.array([len(v) if isinstance(v, str) else v for v in flat])
    return found


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows that were made."""
    import pyarrow.parquet

    return list(pyarrow.parquet.read_table(folder / "examples.parquet").to_pylist())


@contextlib.contextmanager
def killed_after_the_first_reply() -> Iterator[None]:
    """Work dies once its first reply is kept."""
    from interfuse.data import lm

    write = lm.write_atomic

    def dies(path: Path, data: bytes) -> None:
        write(path, data)
        raise Killed

    with mock.patch.object(lm, "write_atomic", dies):
        yield


# ------------------------------------------------------------------------------------------------ the scene

#: method -> (kind of table, plays by input, columns that an oracle is compared in)
PLAYS: dict[str, tuple[str, dict[str, Play], tuple[str, ...]]] = {
    "labeling": ("questions", {"lm": _reasons}, ("prompt", "response", "rationale")),
    "expansion": ("tasks", {"lm": _tasks}, ("prompt", "response")),
    "curation": ("", {"lm": _lessons, "verifier": _lessons}, ("prompt", "response", "quality")),
    "feedback": ("questions", {"lm": _judge, "student": _student}, ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")),
    "self-knowledge": ("questions", {"lm": _solver}, ("prompt", "response")),
}  # fmt: skip


def _sure(prompt: str, text: str) -> float:
    return -0.1 - (code(prompt) % 7) / 2 if text == " yes" else -1.0


@room("synthesize")
def synthesize(case: Case, shared: Path) -> Scene:
    """Recorded replies for every method; a tiny model for the one that looks inside."""
    path = shared / "synthesize"
    inputs = path / "inputs"
    if case.slug == "feature":
        return _feature(case, path)
    kind, plays, columns = PLAYS[case.slug]
    given: dict[str, Any] = dict(case.given)
    if kind:
        given["data"] = table(inputs, kind)
    given |= played(path, case, given, plays, _sure)

    def memory() -> dict[str, Any]:
        from datasets import Dataset

        from interfuse.data.lm import RecordedLM

        held: dict[str, Any] = {n: RecordedLM(Path(given[n].removeprefix("replies:"))) for n in plays}
        return {**given, **held, **({"data": Dataset.from_parquet(given["data"], keep_in_memory=True)} if kind else {})}

    def compare(oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        from interfuse.core.rooms import apply

        out = path / f"seen-{case.slug}"
        if not out.is_dir():
            apply(case.method, out=out, seed=0, **given)
        said = {n: [json.loads(line) for line in (inputs / f"{case.slug}-{n}-seed-0.jsonl").read_text().splitlines()] for n in plays}  # fmt: skip
        theirs = oracle(said=said, questions=QUESTIONS, **case.given)
        ours = read(out)
        return [("rows", len(ours), len(theirs))] + [
            (f"{name} {i}", *(code(r[name]) if isinstance(r[name], str) else r[name] for r in (mine, yours)))
            for i, (mine, yours) in enumerate(zip(ours, theirs, strict=False)) for name in columns
        ]  # fmt: skip

    return Scene(given, memory, inputs, opens, _bad(case, path, kind), killed_after_the_first_reply, compare, dtype="float64",
                 not_applicable={"refuses_nan": "its inputs are words; a score that is no number is a broken reply"})  # fmt: skip


def _bad(case: Case, path: Path, kind: str) -> dict[str, list[Bad]]:
    from tests.conformance.scenes.decode import classifier

    inputs = path / "inputs"
    bad = {
        "refuses_wrong_shape": [Bad("a model that writes no text", {"lm": classifier(path)}, ("input.type",))],
        "refuses_missing_input": [
            Bad("no model", {"lm": None}, ("param.missing",)),
            Bad("no folder", {"lm": str(path / "nowhere")}, ("input.missing",)),
        ],
    }
    if not kind:
        axes = {"topic": ["salt", "stars"]}
        return {
            **bad,
            "refuses_empty": [
                Bad("an axis of no values", {"axes": {"topic": []}}, ("input.empty",)),
                Bad("nothing to ask about", {"axes": {}}, ("param.missing",)),
            ],
            "one_row": [Bad("a prompt that was not recorded", {"axes": axes}, ("input.missing",))],
            "refuses_duplicates": [Bad("a value twice", {"axes": {"topic": ["salt", "salt"]}}, ("input.duplicate",))],
        }
    bad["refuses_wrong_shape"].append(
        Bad("a table of numbers", {"data": table(inputs, kind, "numbers")}, ("input.missing",))
    )
    bad["refuses_missing_input"].append(Bad("no table", {"data": None}, ("param.missing",)))
    return {
        **bad,
        "refuses_empty": [Bad("a table of no rows", {"data": table(inputs, kind, "empty")}, ("input.empty",))],
        "one_row": [Bad("a table of one row", {"data": table(inputs, kind, "one")}, ("input.empty", "input.missing"), or_works=True)],
        "refuses_duplicates": [Bad("an id twice", {"data": table(inputs, kind, "twice")}, ("input.duplicate",))],
    }  # fmt: skip


def _feature(case: Case, path: Path) -> Scene:
    from tests.conformance.scenes.decode import speaker

    inputs = path / "inputs"
    given = {"lm": speaker(inputs, "teacher"), "data": table(inputs, "sentences"), **case.given}

    def memory() -> dict[str, Any]:
        from datasets import Dataset

        from interfuse.core.ctx import Ctx
        from interfuse.core.rooms import Source
        from interfuse.data.lm import open_lm

        return {**given, "lm": open_lm(Source(given["lm"]), Ctx()), "data": Dataset.from_parquet(given["data"], keep_in_memory=True)}  # fmt: skip

    def compare(oracle: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        from interfuse.core.rooms import apply

        out = path / "seen-feature"
        if not out.is_dir():
            apply(case.method, out=out, seed=0, **given)
        theirs = oracle(folder=given["lm"], texts=tiny_texts.sentences(8)[0], **case.given)
        return [(f"{name} {i}", row[name], yours[name]) for i, (row, yours) in enumerate(zip(read(out), theirs, strict=True)) for name in yours]  # fmt: skip

    bad = _bad(case, path, "sentences")
    bad["refuses_wrong_shape"].append(
        Bad("replies that were recorded", {"lm": record(inputs / "none.jsonl", Scripted(_student))}, ("needs.capability",))
    )  # fmt: skip
    return Scene(given, memory, inputs, opens, bad, None, compare, tolerance=2e-3, dtype="float64",
                 not_applicable={"resume_equals_one_go": "parts are kept in the cache of teachers, where any later work finds them",
                                 "refuses_nan": "its inputs are words and a model; a NaN of the model is kept as it is said"})  # fmt: skip
