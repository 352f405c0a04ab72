"""Deleting a document equals never having had it, for every method that reads documents, with and without a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interfuse.core.artifact import open_artifact
from interfuse.core.ctx import Ctx
from interfuse.core.rooms import apply
from interfuse.data.lm import Reply, words_of
from tests.scripted_panel import QUESTIONS, ScriptedPanel
from tests.unit.test_build_documents import Scripted, write
from tests.unit.test_build_harvest import Teacher

#: what is deleted speaks of entities of its own and of those that stay, and would win counts of labels
TEXTS = {
    "a.txt": "Grieg was born in Bergen. Bergen lies in Norway. Speech Parsing is part of Graph Theory.",
    "b.txt": "Grieg was born in Bergen. Ibsen was born in Skien. GRIEG was born in Bergen. Markov Chain is used for Speech Parsing.",
    "c.txt": "Oslo lies in Norway. Oslo was founded in 1048. Graph Theory is used for Speech Parsing.",
}


def said(prompt: str) -> str:
    """One model for all methods: the names of a text, what is born or lies where, and how two concepts are tied."""
    shown = prompt.split("<document")[-1]
    if "List the entities" in prompt:
        return json.dumps(
            {
                "entities": [
                    {"name": n, "category": "Thing"}
                    for n in ("Grieg", "GRIEG", "Bergen", "Norway", "Oslo", "Ibsen")
                    if n in shown
                ]
            }
        )
    if "relations of meaning" in prompt:
        return json.dumps({"relations": [{"subject": a, "relation": "synonym", "object": b}
                                         for line in prompt.splitlines() if " / " in line for a, b in [line.split(". ")[1].split(" / ")]]})  # fmt: skip
    rows = [(s, r, o) for s, r, o in [("Grieg", "born in", "Bergen"), ("Ibsen", "born in", "Skien"), ("Oslo", "lies in", "Norway"), ("Bergen", "lies in", "Norway"),
            ("Markov Chain", "Used-for", "Speech Parsing"), ("Graph Theory", "Used-for", "Speech Parsing")] if s in shown and o in shown]  # fmt: skip
    return json.dumps({"statements": [{"subject": s, "relation": r, "object": o, "quote": s} for s, r, o in rows]})


class Tutor(Teacher):
    """A teacher who knows what each passage says."""

    def generate(self, prompts: Any, **options: Any) -> Any:
        (made,) = super().generate(prompts, **options)
        passage = words_of(prompts[0]).split("<<<\n")[1]
        lines = "".join(f"{w} | in | Norway\n" for w in ("Grieg", "Ibsen", "Oslo") if w in passage)
        return [[Reply(f"{made[0].text}\n{lines}", 9, 9, "stop")]]


RULES: dict[str, Any] = {"parser": "rules"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "offline": ("offline", RULES), "docs2kg": ("docs2kg", RULES), "docs2kg, a model": ("docs2kg", {**RULES, "lm": Scripted(said)}),
    "kag": ("kag", RULES), "kag, a model": ("kag", {**RULES, "lm": Scripted(said), "categories": ["Thing"]}),
    "lm-extract": ("lm-extract", {"lm": Scripted(said)}), "distant-supervision": ("distant-supervision", {**RULES, "table": ""}),
    "graphusion": ("graphusion", {"concepts": 5, "topics": 1}), "graphusion, a model": ("graphusion", {"concepts": 5, "topics": 1, "lm": Scripted(said)}),
    "mechgpt": ("mechgpt", {"passage": 40}), "mechgpt, a model": ("mechgpt", {"passage": 40, "lm": Tutor()}),
    "hydra": ("hydra", {"lm": ScriptedPanel(), "questions": QUESTIONS}),
}  # fmt: skip


def learnt_from(place: Path) -> str:
    """Sentences with triples, one of which stands in a document too."""
    names, towns = ("Ann", "Bo", "Carl", "Dora", "Erik", "Fia", "Gus", "Hana"), ("Oslo", "Turku", "Lund", "Vaasa")
    rows = [{"text": f"{n} was born in {t}.", "triples": [{"sub": n, "rel": "place of birth", "obj": t}]}
            for i, n in enumerate(names) for t in (towns[i % 4],)]  # fmt: skip
    rows += [{"text": "Grieg was  born in Bergen!", "triples": [{"sub": "Grieg", "rel": "place of birth", "obj": "Bergen"}]},
             *({"text": f"{t} lies in Norway.", "triples": [{"sub": t, "rel": "country", "obj": "Norway"}]} for t in towns)]  # fmt: skip
    file = place / "sentences.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.mark.parametrize("name", list(CASES))
def test_deleting_a_document_equals_never_having_had_it(tmp_path: Path, name: str) -> None:
    method, given = CASES[name]
    given = {**given, "table": {"data": learnt_from(tmp_path)}} if "table" in given else given

    def built(folder: Path, out: str, cache: str) -> tuple[str, dict[str, Any]]:
        graph = apply(
            f"build/{method}",
            documents=str(folder),
            out=tmp_path / out,
            force=True,
            ctx=Ctx(cache=tmp_path / cache),
            **given,
        )
        facts = dict(open_artifact(tmp_path / out).manifest["facts"])
        return graph.digest(), {k: facts[k] for k in ("statements", "counts", "method")}

    folder = write(tmp_path / "in", TEXTS)
    whole = built(folder, "g", "cache")
    (folder / "b.txt").unlink()
    after = built(folder, "g", "cache")
    never = built(write(tmp_path / "never", {k: v for k, v in TEXTS.items() if k != "b.txt"}), "n", "other")
    assert after == never
    assert whole[0] != after[0]
    if (
        method == "distant-supervision"
    ):  # the table's first words stand in two texts, in one of them twice, and the last in another
        leak = {k: v for k, v in whole[1]["counts"].items() if k.startswith("leak")}
        assert list(leak.values()) == [4]
    assert whole[1]["statements"] > after[1]["statements"] > 0
    (folder / "b.txt").write_text(TEXTS["b.txt"])
    assert built(folder, "g", "cache") == whole
