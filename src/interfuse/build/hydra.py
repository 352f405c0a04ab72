"""A panel asks, an ontology grows until it can answer, and only what fits it becomes a graph: HyDRA (Kaiser et al. 2025)."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from interfuse.build.asking import count_chunks
from interfuse.build.panel import SCOPES, Talk, of_parts, shaped
from interfuse.build.panel import questions as panel_questions
from interfuse.build.room import Candidate, Work
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Cost
from interfuse.data.chunks import Chunk, split
from interfuse.data.graph import Graph
from interfuse.data.lm import cached
from interfuse.data.statements import SUBCLASS, XSD, Evidence, Statement
from interfuse.data.statements import Literal as Value
from interfuse.kit.document_prompts import about_document
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
from interfuse.kit.shapes import shapes_of, validate
from interfuse.kit.typed_triplets import IS_A, Triplet, remedied, triplet_issues

#: words and marks of a piece of text that is read at once
PIECE = 400
#: triplets that a local model may write of a piece of text: one per two words, within these bounds (small models repeat themselves to the end)
FEWEST, MOST = 10, 40
#: pieces whose first answers an endpoint is asked for at a time
AHEAD = 64
#: what is expected of a panel before it is asked: personas, questions of a group of them, and repairs of the ontology
USUAL = {"personas": 12, "questions": 10, "repairs": 3}
_WORD: dict[str, Any] = {"type": "string", "minLength": 1}
_BELOW = {"type": "array", "items": of_parts({"child": _WORD, "parent": _WORD})}
_WORDS = {"type": "array", "items": _WORD}
#: the shapes of an ontology's growth and of its repair
GROWTH = of_parts({
    "classes": {"type": "array", "items": of_parts({"name": _WORD, "description": _WORD})},
    "subclass_of": _BELOW,
    "object_properties": {"type": "array", "items": of_parts({"name": _WORD, "domain": _WORDS, "range": _WORDS, "characteristics": _WORDS})},
    "data_properties": {"type": "array", "items": of_parts({"name": _WORD, "domain": _WORDS, "range": _WORD})},
})  # fmt: skip
REPAIR = of_parts({"kind": {"enum": ["merge", "bridge", "prune"]}, "clusters": {"type": "array", "items": {"type": "integer"}}, "below": _BELOW, "classes": _WORDS})  # fmt: skip


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


def verify(graph: Graph, work: Work, **_: Any) -> Iterator[Statement]:
    """What the graph says as it will be kept: every question is asked of it as SPARQL, and the ontology's shapes (SHACL) are checked on it.

    Without the package pyoxigraph this is left out, which the log says: a graph that was paid for is kept all the same.
    """
    asked, ontology = work.ready
    try:
        broken = validate(graph, shapes_of(ontology)).violations
        found = {"violations of shapes": len(broken), "questions": coverage(asked, ontology, graph)}
    except InterfuseError as error:
        if error.code != "needs.package":
            raise
        work.ctx.log(f"questions and shapes are not asked of the graph: {error.what}")
        found = {}
    work.report("verification", {**work.facts["verification"], **found})
    yield from ()


@method(per="whole", needs=("documents", "lm"), cost=_cost, finish=verify,
        parts=("interfuse.build.panel", "interfuse.kit.ontology_growth", "interfuse.kit.typed_triplets", "interfuse.kit.ontology_questions", "interfuse.kit.mended_replies"))  # fmt: skip
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
    talk = Talk(cached(work.lm, work.ctx), work, tries)
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
        asked = asked or panel_questions(talk, domain.strip(), group)
        concepts = _repaired(talk, _grown(talk, asked, batch))
        if not concepts.classes:
            raise InterfuseError("run.failed", "the model proposed no ontology that keeps its contract", where=work.lm.name,
                                 fix="Give an ontology, raise tries, or use a larger model.")  # fmt: skip
    ontology = work.ontology if work.ontology is not None else concepts.ontology(domain or "hydra")
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
    })  # fmt: skip
    work.ready = asked, ontology
    proof = (Evidence("ontology", method="build/hydra", model=work.lm.name),)
    for s in ontology.statements():  # the hierarchy, by which the graph's own shapes hold
        if s.predicate == SUBCLASS:
            yield replace(s, evidence=proof)
    for t, chunk in found:
        yield from _candidates(t, chunk, concepts, types, work)


# ------------------------------------------------------------------------------------------------ the ontology


def _grown(talk: Talk, asked: Sequence[str], batch: int) -> Concepts:
    """Step 4: the ontology grows by batches of questions; a batch that breaks its contract to the last is left out and counted."""
    state = Concepts()
    for start in range(0, len(asked), batch):
        lines = "\n".join(f"- {q}" for q in asked[start : start + batch])
        made = talk.ask("ontology", f"An ontology must be able to answer:\n{lines}\nIt has so far: {json.dumps(state.as_dict(), ensure_ascii=False)}\n"
                        'Return only new concepts, as a JSON object with "classes" [{"name", "description"}], "subclass_of" [{"child", "parent"}], '
                        '"object_properties" [{"name", "domain": [], "range": [], "characteristics": []}], "data_properties" [{"name", "domain": [], '
                        '"range": "xsd:integer"}]. Every class but one root is below another one.', lambda text: read_concepts(json_value(text)),
                        functools.partial(_issues_of, state), GROWTH)  # fmt: skip
        if made is None:
            talk.work.count("batches of questions left out")
        else:
            state = extended(state, made)
    return state


def _issues_of(state: Concepts, proposal: Concepts) -> list[str]:
    return [str(i) for i in issues(state, proposal)]


def _repaired(talk: Talk, state: Concepts) -> Concepts:
    """Step 5: one connected hierarchy, by the model's operations or, when it has none that helps, under one root."""

    def propose(now: Concepts, parts: list[list[str]]) -> Operation | None:
        lines = "\n".join(f"{i}: {names_of(p)}" for i, p in enumerate(parts, 1))
        made = talk.ask("repair", f"The classes fall into {len(parts)} clusters:\n{lines}\nPropose one operation that connects or removes a cluster, as a JSON object "
                        'with "kind" (merge, bridge or prune), "clusters" (their numbers), "below" [{"child", "parent"}] and "classes" (to delete).',
                        _operation, lambda o: [str(i) for i in operation_issues(now, o)], REPAIR)  # fmt: skip
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


def _triplets(talk: Talk, concepts: Concepts, epochs: int, contracts: str) -> list[tuple[Triplet, Chunk]]:
    """Step 6: what the pieces of text say, in the ontology's words, each triplet once."""
    work = talk.work
    pieces = [c for document in work.documents() for c in split(document, PIECE)]
    found: dict[Triplet, Chunk] = {}
    types: dict[str, str] = {}
    remedies: list[dict[str, str]] = []
    known = json.dumps(concepts.as_dict(), ensure_ascii=False)
    for epoch in range(epochs):
        before = len(found)
        had: dict[str, list[Triplet]] = {}
        for t, chunk in found.items():
            had.setdefault(chunk.id, []).append(t)
        with work.ctx.bar(f"read, epoch {epoch + 1}", float(len(pieces)), "chunks") as bar:
            for start in range(0, len(pieces), AHEAD):
                some = pieces[start : start + AHEAD]
                requests = [_request(concepts, c, known, had.get(c.id, ()), contracts) for c in some]
                talk.ahead(requests)
                for chunk, request in zip(some, requests, strict=True):
                    new = _read(talk, concepts, types, request, had.get(chunk.id, ()), contracts)
                    if contracts != "off":
                        fresh = [t for t in new if t not in found]
                        new, record = remedied(concepts, types, fresh, repair=contracts == "repair")
                        remedies += record
                    for t in new:
                        if t not in found and t.predicate == IS_A:
                            types[t.subject] = t.object
                        found.setdefault(t, chunk)
                    bar.advance()
        if len(found) == before:
            break
    work.save("remedies.jsonl", "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in remedies))
    tally = Counter(f"{r['issue']}: {'dropped' if r['remedy'] == 'dropped' else 'mended'}" for r in remedies)
    work.report("remedies", dict(sorted(tally.items())))
    return list(found.items())


def _request(
    concepts: Concepts, chunk: Chunk, known: str, had: Sequence[Triplet], contracts: str
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """What is asked about one piece, and the schema of the answer."""
    request = about_document(
        'What does the document state, in the words of the ontology? Answer with a JSON object {"triplets": [{"subject": ..., "predicate": ..., "object": ...}]}. '
        f'First say of each entity, in snake_case, what it is: predicate "{IS_A}", object a class. Answer {{"triplets": []}} if nothing fits.', chunk.text,
        before=f"Ontology: {known}\nAlready known: {json.dumps([[t.subject, t.predicate, t.object] for t in had], ensure_ascii=False)}")  # fmt: skip
    known_words = {"enum": [IS_A, *concepts.properties]} if contracts != "off" else _WORD
    form = shaped("triplets", of_parts({"subject": _WORD, "predicate": known_words, "object": _WORD}))
    most = min(MOST, max(FEWEST, len(chunk.text.split()) // 2))
    form["properties"]["triplets"] |= {"maxItems": most, "uniqueItems": True}
    return request, form


def _read(
    talk: Talk,
    concepts: Concepts,
    types: Mapping[str, str],
    request: tuple[list[dict[str, str]], dict[str, Any]],
    had: Sequence[Triplet],
    contracts: str,
) -> list[Triplet]:
    """The triplets of one piece; the last answer's, when none kept the contract (what breaks it is looked after by the caller)."""
    last: list[Triplet] = []
    lost = 0

    def read(text: str) -> list[Triplet]:
        nonlocal lost
        rows = records(text, ("subject", "predicate", "object"))
        lost = rows.lost
        talk.work.count("records lost", rows.lost)
        last[:] = [Triplet(*(str(r[k]).strip() for k in ("subject", "predicate", "object"))) for r in rows.rows]
        return list(last)

    def wrong(rows: Any) -> Sequence[str]:
        if contracts == "off":
            return ()
        if not rows and lost:
            return ("no triplet has a subject, a predicate and an object that are not empty",)
        return [str(i) for _, i in triplet_issues(concepts, types, [t for t in rows if t not in had])[0]]

    made = talk.ask("triplets", request[0], read, wrong, request[1])
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
