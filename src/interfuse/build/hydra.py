"""A panel asks, an ontology grows until it can answer, and only what fits it becomes a graph: HyDRA (Kaiser et al. 2025)."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.build.asking import count_chunks
from interfuse.build.room import Candidate, Work
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Cost
from interfuse.data.chunks import Chunk, split
from interfuse.data.lm import LM
from interfuse.data.statements import SUBCLASS, XSD, Evidence, Statement
from interfuse.data.statements import Literal as Value
from interfuse.kit.asking import numbered, prepared
from interfuse.kit.contracts import Contract, Record, nothing
from interfuse.kit.document_prompts import about_document, corrected
from interfuse.kit.mended_replies import json_value, records
from interfuse.kit.ontology_growth import (
    Concepts,
    Operation,
    clusters,
    concepts_of,
    extended,
    issues,
    names_of,
    operation_issues,
    read_concepts,
    under_one_root,
    woven,
)
from interfuse.kit.ontology_questions import coverage, islands
from interfuse.kit.typed_triplets import IS_A, Triplet, remedied, triplet_issues

#: personas per group of knowledge holders, by its priority (step 1)
PERSONAS = {"high": 3, "medium": 2, "low": 1}
#: scope documents merged at a time, and the least characters of one (step 2)
SCOPES, LEAST_SCOPE = 6, 100
#: the longest reply that is asked for, in tokens
REPLY = 1024
#: words and marks of a piece of text that is read at once
PIECE = 400
#: what is expected of a panel before it is asked: personas, questions of a group of them, and repairs of the ontology
USUAL = {"personas": 12, "questions": 10, "repairs": 3}


@dataclass
class _Talk:
    """The model under contracts: what is wrong with an answer is told, and it is asked again."""

    lm: LM
    work: Work
    tries: int
    record: Record = field(default_factory=Record)

    def ask(self, name: str, request: str | list[dict[str, str]], read: Callable[[str], Any],
            wrong: Callable[[Any], Sequence[str]] = nothing) -> Any:  # fmt: skip
        """What ``read`` makes of the answer, when nothing is ``wrong`` with it; None when no try passed."""
        said: list[str] = []

        def step(prompt: list[dict[str, str]]) -> Any:
            said.append(self.lm.generate([prompt], max_tokens=REPLY, ctx=self.work.ctx)[0][0].text)
            self.work.count("requests")
            return read(said[-1])

        def correct(first: list[dict[str, str]], made: Any, problems: tuple[str, ...]) -> list[dict[str, str]]:
            return corrected(first, said[-1], problems)

        term = Contract[list[dict[str, str]], Any](
            name, post=lambda _, made: wrong(made), tries=self.tries, correct=correct
        )
        first = [{"role": "user", "content": request}] if isinstance(request, str) else request
        return term.run(step, first, self.record).value


def _cost(call: Any, params: Mapping[str, Any]) -> Cost:
    """Requests of a usual panel (:data:`USUAL`), and one per piece of text and epoch, each as often as it may be tried."""
    requests = int(params["epochs"]) * count_chunks(call, PIECE, lambda chunk: False)
    if call.inputs["ontology"] is None:
        own = [q for q in params["questions"] or () if q.strip()]
        questions = len(own)
        if not own:
            groups = -(-USUAL["personas"] // int(params["group"]))
            requests += (
                1 + USUAL["personas"] + 2 * groups + 1
            )  # panel, personas, scope and questions of each group, duplicates
            left = groups
            while left > 1:  # scope documents merged
                left = -(-left // SCOPES)
                requests += left
            questions = groups * USUAL["questions"]
        requests += -(-questions // int(params["batch"])) + USUAL["repairs"]
    return Cost(calls=requests * int(params["tries"]), seconds=float(requests))


@method(per="whole", needs=("documents", "lm"), cost=_cost,
        parts=("interfuse.kit.ontology_growth", "interfuse.kit.typed_triplets", "interfuse.kit.ontology_questions", "interfuse.kit.mended_replies"))  # fmt: skip
def hydra(
    work: Work, *,
    domain: Annotated[str, Field(description="what the graph is about, in a few words; may be empty with an ontology")] = "",
    questions: Annotated[list[str] | None, Field(description="competency questions of your own, in place of the panel's")] = None,
    group: Annotated[int, Field(ge=1, description="personas in a group of the panel")] = 4,
    batch: Annotated[int, Field(ge=1, description="questions per growth of the ontology")] = 4,
    epochs: Annotated[int, Field(ge=1, le=10, description="times the documents are read, until one adds nothing")] = 1,
    tries: Annotated[int, Field(ge=1, le=25, description="answers asked for at most until one keeps its contract")] = 5,
    contracts: Annotated[Literal["repair", "drop", "off"], Field(
        description="what happens to triplets that still break the ontology after all tries: mended where that is sure, dropped, or kept")] = "repair",
) -> Iterator[Candidate | Statement]:  # fmt: skip
    """Panel -> scope -> questions -> ontology -> repair -> triplets -> verification; each is kept beside the graph.

    An ``ontology`` that is given takes the place of everything before the triplets, ``questions`` the place of the panel.

    Raises:
        InterfuseError: ``param.missing`` without a domain, an ontology or questions; ``run.failed`` when no ontology came about.
    """
    assert work.lm is not None
    talk = _Talk(prepared(work.lm, work.ctx), work, tries)
    asked = [q.strip() for q in questions or () if q.strip()]
    if work.ontology is not None:
        concepts = concepts_of(work.ontology)
    else:
        if not domain.strip() and not asked:
            raise InterfuseError(
                "param.missing",
                "hydra needs a domain, competency questions or an ontology",
                fix="Say --domain 'what it is about'.",
            )
        asked = asked or _questions(talk, domain.strip(), group)
        concepts = _repaired(talk, _grown(talk, asked, batch))
        if not concepts.classes:
            raise InterfuseError("run.failed", "the model proposed no ontology that keeps its contract", where=work.lm.name,
                                 fix="Give an ontology, raise tries, or use a larger model.")  # fmt: skip
    ontology = concepts.ontology(domain or "hydra")
    work.save("concepts.json", json.dumps(concepts.as_dict(), indent=2, ensure_ascii=False) + "\n")
    if work.folder is not None:
        ontology.write(work.folder / "ontology.ttl")
    found = _triplets(talk, concepts, epochs, contracts)
    types = {t.subject: t.object for t, _ in found if t.predicate == IS_A}
    rows = [t for t, _ in found]
    broken, _ = triplet_issues(concepts, {}, rows)
    work.report("contracts", talk.record.as_dict())
    work.report("verification", {
        "violations": len(broken), "by kind": dict(sorted(Counter(issue.code for _, issue in broken).items())), **islands(rows),
        "classes as entities": sum(issue.code in ("type.class", "instance.class") for _, issue in broken),
        "questions": coverage(asked, concepts, rows),
    })  # fmt: skip
    proof = (Evidence("ontology", method="build/hydra", model=work.lm.name),)
    for s in ontology.statements():  # the hierarchy, by which the graph's own shapes hold
        if s.predicate == SUBCLASS:
            yield replace(s, evidence=proof)
    for t, chunk in found:
        yield from _candidates(t, chunk, concepts, types, work)


# ------------------------------------------------------------------------------------------------ panel, scope, questions


def _questions(talk: _Talk, domain: str, group: int) -> list[str]:
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


def _panel(talk: _Talk, domain: str) -> list[str]:
    """Personas of every group of people who know the domain, more of them where the priority is higher."""
    holders = talk.ask("panel", f"Which groups of people hold knowledge of this domain: {domain}? Answer with a JSON list of objects with the keys "
                       '"group", "priority" (high, medium or low) and "reason".', lambda text: records(text, ("group", "priority", "reason"), needed=("group", "priority")).rows,
                       lambda rows: () if any(_priority(r) for r in rows) else ("no object with a group and a priority of high, medium or low",))  # fmt: skip
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


def _scope(talk: _Talk, domain: str, groups: Sequence[Sequence[str]]) -> str:
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


def _unique(talk: _Talk, asked: list[str]) -> list[str]:
    """The questions without those the model marks as duplicates; of a set the first, which is the longest, stays."""
    if len(asked) < 2:
        return asked
    lines = "\n".join(f"{i + 1}. {q}" for i, q in enumerate(asked))

    def wrong(sets: Any) -> Sequence[str]:
        fine = isinstance(sets, list) and all(
            isinstance(s, list) and len(s) > 1 and all(isinstance(i, int) and 1 <= i <= len(asked) for i in s)
            for s in sets
        )
        return () if fine else ("the answer is not a JSON list of lists of two or more numbers of questions",)

    sets = talk.ask("duplicates", f"Which of these questions ask the same? A more specific question is no duplicate.\n{lines}\n"
                    "Answer with a JSON list of lists of their numbers, [] if there are none.", json_value, wrong)  # fmt: skip
    gone = {i for s in sets or () for i in s[1:]}
    return [q for i, q in enumerate(asked, 1) if i not in gone]


# ------------------------------------------------------------------------------------------------ the ontology


def _grown(talk: _Talk, asked: Sequence[str], batch: int) -> Concepts:
    """Step 4: the ontology grows by batches of questions; a batch that breaks its contract to the last is left out and counted."""
    state = Concepts()
    for start in range(0, len(asked), batch):
        lines = "\n".join(f"- {q}" for q in asked[start : start + batch])
        made = talk.ask("ontology", f"An ontology must be able to answer:\n{lines}\nIt has so far: {json.dumps(state.as_dict(), ensure_ascii=False)}\n"
                        'Return only new concepts, as a JSON object with "classes" [{"name", "description"}], "subclass_of" [{"child", "parent"}], '
                        '"object_properties" [{"name", "domain": [], "range": [], "characteristics": []}], "data_properties" [{"name", "domain": [], '
                        '"range": "xsd:integer"}]. Every class but one root is below another one.', lambda text: read_concepts(json_value(text)),
                        functools.partial(_issues_of, state))  # fmt: skip
        if made is None:
            talk.work.count("batches of questions left out")
        else:
            state = extended(state, made)
    return state


def _issues_of(state: Concepts, proposal: Concepts) -> list[str]:
    return [str(i) for i in issues(state, proposal)]


def _repaired(talk: _Talk, state: Concepts) -> Concepts:
    """Step 5: one connected hierarchy, by the model's operations or, when it has none that helps, under one root."""

    def propose(now: Concepts, parts: list[list[str]]) -> Operation | None:
        lines = "\n".join(f"{i}: {names_of(p)}" for i, p in enumerate(parts, 1))
        made = talk.ask("repair", f"The classes fall into {len(parts)} clusters:\n{lines}\nPropose one operation that connects or removes a cluster, as a JSON object "
                        'with "kind" (merge, bridge or prune), "clusters" (their numbers), "below" [{"child", "parent"}] and "classes" (to delete).',
                        _operation, lambda o: [str(i) for i in operation_issues(now, o)])  # fmt: skip
        return made if made is not None else under_one_root(now, parts)

    before = len(clusters(state))
    made, history = woven(state, propose)
    rows = [
        {"kind": o.kind, "clusters": list(o.clusters), "below": [list(p) for p in o.below], "classes": list(o.classes)}
        for o in history
    ]
    talk.work.save("repairs.json", json.dumps(rows, indent=2) + "\n")
    talk.work.report(
        "repairs", {"clusters before": before, "clusters after": len(clusters(made)), "operations": len(history)}
    )
    return made


def _operation(text: str) -> Operation:
    value = json_value(text)
    try:
        below = tuple((str(r["child"]), str(r["parent"])) for r in value.get("below") or ())
        return Operation(
            str(value["kind"]).casefold(),
            tuple(int(n) for n in value["clusters"]),
            below,
            tuple(map(str, value.get("classes") or ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InterfuseError(
            "input.format", "the reply is no operation with kind, clusters, below and classes"
        ) from error


# ------------------------------------------------------------------------------------------------ triplets


def _triplets(talk: _Talk, concepts: Concepts, epochs: int, contracts: str) -> list[tuple[Triplet, Chunk]]:
    """Step 6: what the pieces of text say, in the ontology's words, each triplet once."""
    work = talk.work
    pieces = [c for document in work.documents() for c in split(document, PIECE)]
    found: dict[Triplet, Chunk] = {}
    remedies: list[dict[str, str]] = []
    known = json.dumps(concepts.as_dict(), ensure_ascii=False)
    for epoch in range(epochs):
        before = len(found)
        with work.ctx.bar(f"read, epoch {epoch + 1}", float(len(pieces)), "chunks") as bar:
            for chunk in pieces:
                types = {t.subject: t.object for t in found if t.predicate == IS_A}
                new = _read(
                    talk, concepts, types, chunk, known, [t for t in found if found[t].id == chunk.id], contracts
                )
                if contracts != "off":
                    new, record = remedied(
                        concepts, types, [t for t in new if t not in found], repair=contracts == "repair"
                    )
                    remedies += record
                for t in new:
                    found.setdefault(t, chunk)
                bar.advance()
        if len(found) == before:
            break
    work.save("remedies.jsonl", "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in remedies))
    tally = Counter(f"{r['issue']}: {'dropped' if r['remedy'] == 'dropped' else 'mended'}" for r in remedies)
    work.report("remedies", dict(sorted(tally.items())))
    return list(found.items())


def _read(
    talk: _Talk,
    concepts: Concepts,
    types: Mapping[str, str],
    chunk: Chunk,
    known: str,
    had: Sequence[Triplet],
    contracts: str,
) -> list[Triplet]:
    """The triplets of one piece; the last answer's, when none kept the contract (what breaks it is looked after by the caller)."""
    last: list[Triplet] = []

    def read(text: str) -> list[Triplet]:
        rows = records(text, ("subject", "predicate", "object"))
        talk.work.count("records lost", rows.lost)
        last[:] = [Triplet(*(str(r[k]).strip() for k in ("subject", "predicate", "object"))) for r in rows.rows]
        return list(last)

    def wrong(rows: Any) -> Sequence[str]:
        return (
            ()
            if contracts == "off"
            else [str(i) for _, i in triplet_issues(concepts, types, [t for t in rows if t not in had])[0]]
        )

    request = about_document(
        'What does the document state, in the words of the ontology? Answer with a JSON list of objects with the keys "subject", "predicate" and "object". '
        f'First say of each entity, in snake_case, what it is: predicate "{IS_A}", object a class. Answer [] if nothing fits.', chunk.text,
        before=f"Ontology: {known}\nAlready known: {json.dumps([[t.subject, t.predicate, t.object] for t in had], ensure_ascii=False)}")  # fmt: skip
    made = talk.ask("triplets", request, read, wrong)
    return made if made is not None else last


def _candidates(
    t: Triplet, chunk: Chunk, concepts: Concepts, types: Mapping[str, str], work: Work
) -> Iterator[Candidate]:
    """A triplet with its evidence: where both names stand in the text, else the whole piece."""
    p = concepts.properties.get(t.predicate)
    subject, low = t.subject.replace("_", " "), chunk.text.casefold()
    spots = [
        (low.find(n), len(n)) for n in (subject.casefold(), t.object.replace("_", " ").casefold()) if n and n in low
    ]
    start, end = (min(s for s, _ in spots), max(s + n for s, n in spots)) if spots else (0, len(chunk.text))
    work.count("grounded in the text" if spots else "not found in the text")
    evidence = (
        Evidence(
            chunk.document.id,
            chunk.start + start,
            chunk.start + end,
            chunk.page or None,
            method="build/hydra",
            model=work.lm.name if work.lm else "",
        ),
    )
    kind = types.get(t.subject, "")
    if t.predicate == IS_A:
        yield Candidate(subject, "", subject, t.object, t.object, evidence=evidence, kind="contract")
    elif p is not None and p.data:
        yield Candidate(
            subject,
            t.predicate,
            Value(t.object, XSD + (p.range[0] if p.range else "string")),
            kind,
            evidence=evidence,
            kind="contract",
        )
    else:
        yield Candidate(
            subject,
            t.predicate,
            t.object.replace("_", " "),
            kind,
            types.get(t.object, ""),
            evidence=evidence,
            kind="contract",
        )
