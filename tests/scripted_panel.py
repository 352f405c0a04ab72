"""A language model that plays HyDRA's part by script: it answers by what it is asked, with faults planted at a rate."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interfuse.data.lm import Prompt, Reply

PANEL = [
    {"group": "composers", "priority": "medium", "reason": "they write"},
    {"group": "city clerks", "priority": "low", "reason": "they file"},
]
QUESTIONS = [
    "Which composer was born in which town?",
    "Which town lies in which country?",
    "In which year was a town founded?",
]
GROWTH = {
    "classes": [{"name": n, "description": ""} for n in ("Thing", "Person", "Composer", "Place", "Town", "Country")],
    "subclass_of": [{"child": c, "parent": p} for c, p in (("Person", "Thing"), ("Composer", "Person"), ("Place", "Thing"), ("Town", "Place"), ("Country", "Place"))],
    "object_properties": [{"name": "bornIn", "domain": ["Person"], "range": ["Place"], "characteristics": []}, {"name": "liesIn", "domain": ["Place"], "range": ["Country"], "characteristics": []}],
    "data_properties": [{"name": "foundedIn", "domain": ["Place"], "range": "xsd:gYear"}],
}  # fmt: skip
NONE: dict[str, list[Any]] = {"classes": [], "subclass_of": [], "object_properties": [], "data_properties": []}
FAULTS = ("predicate", "class", "untyped", "range")


def facts(text: str) -> list[tuple[str, str, str]]:
    """The triplets that the sentences of ``text`` state: ``X was born in Y.``, ``Y lies in Z.``, ``Y was founded in N.``"""
    found = []
    for s, o in re.findall(r"(\w+) was born in (\w+)\.", text):
        found += [(s.lower(), "isA", "Composer"), (o.lower(), "isA", "Town"), (s.lower(), "bornIn", o.lower())]
    for s, o in re.findall(r"(\w+) lies in (\w+)\.", text):
        found += [(s.lower(), "isA", "Town"), (o.lower(), "isA", "Country"), (s.lower(), "liesIn", o.lower())]
    for s, o in re.findall(r"(\w+) was founded in (\d+)\.", text):
        found += [(s.lower(), "isA", "Town"), (s.lower(), "foundedIn", o)]
    return list(dict.fromkeys(found))


class ScriptedPanel:
    """Answers every request of the method.

    Args:
        rate: share of relations that are spoilt in a first answer. mends: share of them put right when told.
        record: a file to which every prompt and reply is added, to be played again.
    """

    name = "scripted"

    def __init__(self, rate: float = 0.0, *, seed: int = 0, mends: float = 1.0, record: Path | None = None) -> None:
        self.rate, self.mends, self.record = rate, mends, record
        self.rng = np.random.Generator(np.random.Philox(seed))
        self.seed, self.asked = seed, 0

    def fingerprint(self) -> str:
        return f"scripted {self.rate} {self.seed} {self.mends}"

    def generate(self, prompts: Sequence[Prompt], *, n: int = 1, **options: Any) -> list[list[Reply]]:
        found = []
        for prompt in prompts:
            self.asked += 1
            text = self.answer(
                [dict(m) for m in prompt] if not isinstance(prompt, str) else [{"role": "user", "content": prompt}]
            )
            if self.record is not None:
                with self.record.open("a") as file:
                    file.write(json.dumps({"prompt": prompt, "replies": [text]}, ensure_ascii=False) + "\n")
            found.append([Reply(text, 1, 1, "stop")] * n)
        return found

    def score(self, pairs: Any, *, ctx: Any = None) -> Any:
        raise NotImplementedError

    def answer(self, messages: list[dict[str, str]]) -> str:
        """What the model says."""
        again = len([m for m in messages if m["role"] == "assistant"])
        first = "\n".join(m["content"] for m in messages if m["role"] in ("system", "user"))
        if "Which groups of people" in first:
            return "```json\n" + json.dumps(PANEL) + "\n```"
        if "personas of the group" in first:
            return "1. Ada, writes songs\n2. Bo, conducts"
        if "short document on the scope" in first or "Merge the documents" in first:
            return "The graph holds composers and towns, where they were born and lie, and when towns were founded. Nothing else belongs to it."
        if "Write competency questions" in first:
            return "\n".join(f"{i}. {q}" for i, q in enumerate(QUESTIONS, 1))
        if "ask the same" in first:
            return "[]"
        if "Return only new concepts" in first:
            if '"classes": [{"name": "Thing"' in first.split("It has so far: ")[1]:
                return json.dumps(NONE)
            if not again:  # a first try that breaks the contract: a class without a superclass, a property over nothing
                wrong = {
                    **GROWTH,
                    "subclass_of": GROWTH["subclass_of"][:-1],
                    "data_properties": [{"name": "foundedIn", "domain": ["City"], "range": "year"}],
                }
                return "Of course: " + json.dumps(wrong)
            return json.dumps(GROWTH)
        if "What does the document state" in first:
            return self._triplets(messages, again)
        return "I do not know."

    def _triplets(self, messages: list[dict[str, str]], again: int) -> str:
        rows = facts(messages[1]["content"].split("<document")[-1])
        made = []
        for s, p, o in rows:
            if (
                p != "isA"
                and self.rate
                and self.rng.random() < self.rate
                and (not again or self.rng.random() > self.mends)
            ):
                fault = FAULTS[int(self.rng.integers(len(FAULTS)))]
                bad = {
                    "predicate": (s, "knows", o),
                    "class": ("Town", p, o),
                    "untyped": (f"{s}_{self.asked}", p, o),
                    "range": (o if p != "foundedIn" else s, p, s),
                }[fault]
                made.append(bad)
            else:
                made.append((s, p, o))
        return json.dumps([{"subject": s, "predicate": p, "object": o} for s, p, o in made])
