"""A model under contracts, and a panel of personas that asks what a graph must be able to answer: the first half of HyDRA (Kaiser et al. 2025)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interfuse.build.room import Work
from interfuse.core.errors import InterfuseError
from interfuse.data.lm import LM, is_far
from interfuse.kit.asking import as_read, numbered
from interfuse.kit.contracts import Contract, Record, nothing
from interfuse.kit.document_prompts import about_document, corrected
from interfuse.kit.mended_replies import json_value, records
from interfuse.kit.ontology_growth import names_of

#: personas per group of knowledge holders, by its priority (step 1)
PERSONAS = {"high": 3, "medium": 2, "low": 1}
#: scope documents merged at a time, and the least characters of one (step 2)
SCOPES, LEAST_SCOPE = 6, 100
#: the longest reply that is asked for, in tokens
REPLY = 1024
_GROUP = {"group": {"type": "string"}, "priority": {"enum": list(PERSONAS)}, "reason": {"type": "string"}}


def shaped(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a reply that is one list under a name."""
    return {"type": "object", "properties": {name: {"type": "array", "items": item}}, "required": [name]}


def of_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object that has all of some parts."""
    return {"type": "object", "properties": dict(parts), "required": list(parts)}


@dataclass
class Talk:
    """The model under contracts: what is wrong with an answer is told, and it is asked again."""

    lm: LM
    work: Work
    tries: int
    record: Record = field(default_factory=Record)

    def ask(self, name: str, request: str | list[dict[str, str]], read: Callable[[str], Any],
            wrong: Callable[[Any], Sequence[str]] = nothing, schema: Mapping[str, Any] | None = None) -> Any:  # fmt: skip
        """What ``read`` makes of the answer, which has the shape of ``schema`` where the model can be held to it, when nothing is ``wrong``
        with it; None when no try passed. The model's own error when it has not answered once."""
        said: list[str] = []
        silent: list[InterfuseError] = []

        def step(prompt: list[dict[str, str]]) -> Any:
            asked = as_read(self.work.lm or self.lm, prompt)
            try:
                reply = self.lm.generate([asked], max_tokens=REPLY, schema=schema, ctx=self.work.ctx)[0][0]
            except InterfuseError as error:
                silent.append(error)
                raise
            said.append(reply.text)
            self.work.count("requests")
            return read(said[-1])

        def correct(first: list[dict[str, str]], made: Any, problems: tuple[str, ...]) -> list[dict[str, str]]:
            return corrected(first, said[-1], problems) if said else first

        term = Contract[list[dict[str, str]], Any](
            name, post=lambda _, made: wrong(made), tries=self.tries, correct=correct
        )
        first = [{"role": "user", "content": request}] if isinstance(request, str) else request
        outcome = term.run(step, first, self.record)
        if silent and not said:
            raise silent[-1]
        return outcome.value

    def ahead(self, requests: Sequence[tuple[list[dict[str, str]], Mapping[str, Any]]]) -> None:
        """Of an endpoint the first answers to many requests, each with its schema, are brought several at a time and kept for :meth:`ask`.

        A call that fails is left for :meth:`ask` to try again.

        Raises:
            InterfuseError: ``budget.spent``.
        """
        if not is_far(self.lm):
            return
        groups: dict[str, list[int]] = {}
        for i, (_, schema) in enumerate(requests):
            groups.setdefault(json.dumps(schema, sort_keys=True), []).append(i)
        for places in groups.values():
            asked = [as_read(self.work.lm or self.lm, requests[i][0]) for i in places]
            try:
                self.lm.generate(asked, max_tokens=REPLY, schema=requests[places[0]][1], ctx=self.work.ctx)
            except InterfuseError as error:
                if error.code != "endpoint.failed":
                    raise
                self.work.ctx.log(f"some answers are asked for again: {error.what}")


def questions(talk: Talk, domain: str, group: int) -> list[str]:
    """Steps 1 to 3: the competency questions of a panel, without duplicates."""
    panel = _panel(talk, domain)
    order = talk.work.ctx.rng("panel").permutation(len(panel))
    groups = [[panel[i] for i in order[k : k + group]] for k in range(0, len(panel), group)]
    scope = _scope(talk, domain, groups)
    found: dict[str, None] = {}
    for members in groups:
        asked = talk.ask("questions", about_document(
            f"You are {names_of(members)}. The document is the scope of the domain {domain}. Write competency questions that a knowledge graph of "
            "this domain must answer, as a numbered list.", scope), numbered,
            lambda q: () if q else ("no question was written as a numbered list",))  # fmt: skip
        found.update(dict.fromkeys(q for q in asked or () if "?" in q))
    unique = _unique(talk, sorted(found, key=lambda q: (-len(q.split()), q)))
    for name, value in (("panel.json", panel), ("scope.json", scope), ("questions.json", unique)):
        talk.work.save(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    return unique


def _panel(talk: Talk, domain: str) -> list[str]:
    """Personas of every group of people who know the domain, more of them where the priority is higher."""
    holders = talk.ask("panel", f"Which groups of people hold knowledge of this domain: {domain}? Answer with a JSON object "
                       '{"groups": [{"group": ..., "priority": "high, medium or low", "reason": ...}]}.', lambda text: records(text, ("group", "priority", "reason"), needed=("group", "priority")).rows,
                       lambda rows: () if any(_priority(r) for r in rows) else ("no object with a group and a priority of high, medium or low",),
                       shaped("groups", of_parts(_GROUP)))  # fmt: skip
    panel: dict[str, None] = {}
    for row in holders or ():
        wanted, mine = PERSONAS.get(_priority(row), 0), dict[str, None]()
        for _ in range(wanted):
            more = talk.ask("personas", f"Describe {wanted} personas of the group {row['group']} in the domain {domain}, as a numbered list of one line each. "
                            f"Already found: {names_of(mine)}.", numbered)  # fmt: skip
            mine.update(dict.fromkeys(more or ()))
            if len(mine) >= wanted:
                break
        panel.update(dict.fromkeys(list(mine)[:wanted]))
    return list(panel) or [f"an expert of {domain}"]


def _priority(row: Mapping[str, Any]) -> str:
    found = str(row.get("priority", "")).casefold()
    return found if found in PERSONAS and row.get("group") else ""


def _scope(talk: Talk, domain: str, groups: Sequence[Sequence[str]]) -> str:
    """One scope document per group, merged six at a time until one is left."""

    def long_enough(text: str) -> Sequence[str]:
        return () if len(text.strip()) >= LEAST_SCOPE else (f"the document has fewer than {LEAST_SCOPE} characters",)

    texts = [talk.ask("scope", f"You are {names_of(members)}. Write a short document on the scope of a knowledge graph of the domain {domain}: "
                      "what belongs to it, what does not.", str, long_enough) for members in groups]  # fmt: skip
    texts = [t for t in texts if t] or [domain]
    while len(texts) > 1:
        parts = [texts[i : i + SCOPES] for i in range(0, len(texts), SCOPES)]
        merged = [talk.ask("scope", about_document("Merge the documents on the scope of a domain into one.", "\n\n".join(part)), str, long_enough)
                  if len(part) > 1 else part[0] for part in parts]  # fmt: skip
        texts = [m or "\n\n".join(part) for m, part in zip(merged, parts, strict=True)]
    return str(texts[0])


def _unique(talk: Talk, asked: list[str]) -> list[str]:
    """The questions without those the model marks as duplicates; of a set the first, which is the longest, stays."""
    if len(asked) < 2:
        return asked
    lines = "\n".join(f"{i + 1}. {q}" for i, q in enumerate(asked))

    def wrong(sets: Any) -> Sequence[str]:
        fine = isinstance(sets, list) and all(
            isinstance(s, list) and len(s) > 1 and all(isinstance(i, int) and 1 <= i <= len(asked) for i in s)
            for s in sets
        )
        return () if fine else ("there is no list of lists of two or more numbers of questions in the answer",)

    def read(text: str) -> Any:
        value = json_value(text)
        return value.get("duplicates") if isinstance(value, dict) else value

    sets = talk.ask("duplicates", f"Which of these questions ask the same? A more specific question is no duplicate.\n{lines}\n"
                    'Answer with a JSON object {"duplicates": [[1, 2], ...]}, each list the numbers of questions that ask the same, [] if there are none.',
                    read, wrong, shaped("duplicates", {"type": "array", "items": {"type": "integer"}}))  # fmt: skip
    gone = {i for s in sets or () for i in s[1:]}
    return [q for i, q in enumerate(asked, 1) if i not in gone]
