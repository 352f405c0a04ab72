"""Graphusion (Yang et al. 2024): concepts by topics, triples around each, and one fusion over all documents."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from interfuse.build.around_concepts import TRIES, by_model, phrases_of
from interfuse.build.asking import count_chunks
from interfuse.build.reading import Memory, Names, prose
from interfuse.build.room import Candidate, Work
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call, Cost
from interfuse.data.chunks import Chunk, split
from interfuse.data.statements import LABEL, TYPE, Evidence, Literal, Statement
from interfuse.kit.language import Sentence, open_parser
from interfuse.kit.mentions import find_mentions
from interfuse.kit.open_relations import IS_A, open_relations
from interfuse.kit.triple_fusion import Claim, Settled, class_tf_idf, infer, one_name, settle, support

if TYPE_CHECKING:
    from interfuse.data.graph import Graph

Triple = tuple[str, str, str]
#: words and marks of a chunk
TOKENS = 400

#: the paper's relations: symmetric, transitive, and the words by which rules find them ("<" turns the ends round)
RELATIONS: dict[str, dict[str, Any]] = {
    "Compare": {"symmetric": True, "words": ["compare with", "compared with", "compared to", "compare to", "outperform", "differ from"]},
    "Part-of": {"transitive": True, "words": ["part of", "component of", "belong to", "<consist of", "<contain", "<include", "<comprise", "step of"]},
    "Conjunction": {"symmetric": True, "words": ["combine with", "combined with", "use with", "used with"]},
    "Evaluate-for": {"words": ["evaluate", "measure", "metric for", "evaluated on", "<evaluated by", "<evaluated with", "<measured by", "measure of"]},
    "Is-a-Prerequisite-of": {"transitive": True, "words": ["prerequisite of", "prerequisite for", "basis of", "foundation of", "basis for", "needed for",
                             "required for", "<require", "<based on", "<build on", "<rely on", "<depend on", "precede"]},
    "Used-for": {"words": ["used for", "used in", "use for", "applied to", "apply to", "method for", "technique for", "algorithm for", "solve", "improve", "<use"]},
    "Hyponym-Of": {"transitive": True, "words": [IS_A, "type of", "kind of", "form of", "variant of", "instance of", "example of"]},
}  # fmt: skip


def seeds_of(parsed: Sequence[Sequence[Sentence]], count: int, topics: int, seed: int) -> list[tuple[str, float]]:
    """Concepts worth having: the phrases of one to four words with most weight in a topic.

    Topics are clusters (k-means) of documents by TF-IDF reduced by SVD; weights are class TF-IDF. A phrase within a longer one that
    has at least 80 % of its count is left out.
    """
    phrases = [Counter(p for s in one for p in phrases_of(s)) for one in parsed]
    if len(phrases) > 2 * topics and topics > 1:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfTransformer

        names = sorted({p for one in phrases for p in one})
        place = {p: i for i, p in enumerate(names)}
        counts = np.zeros((len(phrases), max(len(names), 2)))
        for row, one in enumerate(phrases):
            for p, n in one.items():
                counts[row, place[p]] = n
        weighted = TfidfTransformer().fit_transform(counts)
        size = min(20, len(phrases) - 1, counts.shape[1] - 1)
        reduced = TruncatedSVD(max(1, size), random_state=seed % 2**31).fit_transform(weighted)
        groups = KMeans(topics, n_init=3, random_state=seed % 2**31).fit_predict(reduced).tolist()
    else:
        groups = list(range(len(phrases)))
    classes: dict[int, Counter[str]] = {}
    for group, one in zip(groups, phrases, strict=True):
        classes.setdefault(group, Counter()).update(one)
    total: Counter[str] = Counter()
    for one in phrases:
        total.update(one)
    best: dict[str, float] = {}
    for weights in class_tf_idf([classes[g] for g in sorted(classes)]):
        for phrase, weight in weights.items():
            best[phrase] = max(best.get(phrase, 0.0), weight)
    chosen = [
        p
        for p in best
        if not any(f" {p} " in f" {q} " and p != q and total[q] >= 0.8 * total[p] for q in best if len(q) > len(p))
    ]
    return sorted(((p, best[p]) for p in chosen), key=lambda x: (-x[1], x[0]))[:count]


def _cost(call: Call, params: Mapping[str, Any]) -> Cost:
    if call.inputs["lm"] is None:
        return Cost()
    questions = count_chunks(call, TOKENS, lambda chunk: False) + int(params["concepts"])
    return Cost(calls=TRIES * questions, seconds=float(questions))


@dataclass(frozen=True)
class Decisions:
    """What fusion decides, by names as they are written: ``merges`` (from, to), what ``settled``, how texts write each triple, triples
    whose ends are one concept (``loops``), and the places of each triple."""

    merges: list[tuple[str, str]]
    settled: Settled
    written: dict[Triple, list[Triple]]
    loops: list[Triple]
    proofs: dict[Triple, list[Evidence]]


def decide(graph: Graph, work: Work, **_: Any) -> Iterator[Statement]:
    """Carries the decisions out, each kind as an operation of the graph's log that can be undone: names are merged, what lost is
    withdrawn, what is close is marked as contested; what follows is given back, to be added last."""
    made: Decisions = work.ready
    names = work.names
    assert names is not None

    def statement(triple: Triple) -> Statement:
        h, r, t = triple
        return Statement(names.node(h, "concept"), names.relation(r), names.node(t, "concept"))

    def there(triples: Iterable[Triple]) -> list[str]:
        """Ids of those that stand in the graph; what an earlier graph says too is left as it is."""
        ids = dict.fromkeys(statement(w).id for k in triples for w in made.written.get(k, (k,)))
        return [i for i in ids if graph.get(i) is not None and (work.graph is None or work.graph.get(i) is None)]

    lost, close = there([*sorted(made.settled.lost), *sorted(made.loops)]), there(sorted(made.settled.contested))
    pairs = [(names.node(a, "concept"), names.node(b, "concept")) for a, b in made.merges]
    if pairs:
        graph.merge_all(pairs, "names of one concept", group="concepts")
    if lost:
        left = {x for i in lost if (s := graph.get(i)) is not None for x in (s.subject, str(s.object))}
        graph.withdraw(
            statement=lost, reason="another relation between the two has more support, or they are one concept"
        )
        # a concept of which nothing else is said goes with it
        bare = [
            s.id
            for x in sorted(left)
            if all(s.predicate in (LABEL, TYPE) for s in graph.neighbourhood(x))
            for s in graph.statements(x)
        ]
        bare = [i for i in bare if work.graph is None or work.graph.get(i) is None]
        if bare:
            graph.withdraw(statement=bare, reason="nothing else is said of the concept")
    if close:
        graph.mark(close, "contested", "several relations between the two have nearly the same support")
    for best in dict.fromkeys(
        b for _, b in made.merges
    ):  # the chosen name is shown, also where an acronym is written more often
        if graph.label(node := names.node(best, "concept")) != best:
            proof = [e for s in graph.statements(node, LABEL) for e in s.evidence]
            yield Statement(node, LABEL, Literal(best), evidence=tuple(dict.fromkeys(proof)))
    for triple, premises in sorted(made.settled.inferred.items()):
        proof = [e for p in premises for e in made.proofs.get(p, ())[:1]]
        yield dataclasses.replace(
            statement(triple), confidence=0.5, kind="rule", status="inferred", evidence=tuple(dict.fromkeys(proof))
        )


@method(per="whole", needs=("documents",), random=True, link=False, extends=True, cost=_cost, finish=decide)
def graphusion(
    work: Work,
    *,
    relations: Annotated[
        dict[str, dict[str, Any]] | None,
        Field(
            description="relation -> {symmetric, transitive, words (by which rules find it; < turns the ends), definition}; empty: the paper's seven"
        ),
    ] = None,
    concepts: Annotated[int, Field(ge=1, le=10_000, description="concepts that are looked at")] = 100,
    topics: Annotated[int, Field(ge=1, le=1000, description="clusters of documents from which concepts are taken")] = 8,
    delta: Annotated[
        float,
        Field(ge=0, description="support that the stronger of two relations must have more; else both are contested"),
    ] = 0.5,
    merge: Annotated[bool, Field(description="names of one concept are joined over all documents")] = True,
    settle_conflicts: Annotated[bool, Field(description="at most one relation between two concepts")] = True,
    novel: Annotated[bool, Field(description="relations that follow by transitive ones are added, as inferred")] = True,
    context: Annotated[
        int,
        Field(
            ge=200, description="characters of text shown to the language model when it fuses the triplets of a concept"
        ),
    ] = 14_500,
    max_tokens: Annotated[int, Field(ge=16, le=100_000, description="tokens of one reply at most")] = 1500,
) -> Iterator[Candidate]:
    """Concepts by topics, candidate triplets (by the language model, or by rules), and global fusion: names are merged, conflicts are
    settled by support, and what follows is added.

    Raises:
        InterfuseError: ``param.value`` for relations that are none, ``input.empty`` without concepts, ``budget.spent``.
    """
    known = relations or RELATIONS
    symmetric = [n for n, r in known.items() if r.get("symmetric")]
    chunks = [c for d in work.documents() for c in split(d, TOKENS)]
    places = [(c, a, b) for c in chunks for a, b in prose(c)]
    parser = open_parser()
    parsed = list(parser.parse([c.text[a:b] for c, a, b in places]))
    found = seeds_of(parsed, concepts, topics, work.ctx.seed_for("topics"))
    if not found:
        raise InterfuseError(
            "input.empty", "the documents hold no concepts", fix="Are they in English? Scanned pages hold no text."
        )
    work.save(
        "seeds.json",
        json.dumps([{"concept": c, "weight": round(w, 4)} for c, w in found], indent=1, ensure_ascii=False),
    )
    claims = (
        by_model(work, chunks, zip(places, parsed, strict=True), [c for c, _ in found], known, context, max_tokens)
        if work.lm is not None
        else _by_rules(places, parsed, known)
    )
    work.count("candidate triplets", len(claims))
    called, merges = one_name(((c.head, c.tail) for c, _ in claims), (c.text for c in chunks)) if merge else ({}, [])

    def joined(c: Claim) -> Triple:
        """The triple by the names of its concepts; ends of symmetric relations stand in alphabetical order."""
        head, tail = called.get(c.head, c.head), called.get(c.tail, c.tail)
        return (tail, c.relation, head) if c.relation in symmetric and tail < head else (head, c.relation, tail)

    proofs: dict[Triple, list[Evidence]] = {}
    written: dict[Triple, dict[Triple, list[Evidence]]] = {}  # triple -> the same as texts write it -> where
    loops: dict[Triple, list[Evidence]] = {}
    for c, e in claims:
        key = joined(c)
        turned = key[0] != called.get(c.head, c.head)
        own = (c.tail, c.relation, c.head) if turned else (c.head, c.relation, c.tail)
        if key[0] != key[2]:
            proofs.setdefault(key, []).append(e)
            written.setdefault(key, {}).setdefault(own, []).append(e)
        elif c.head != c.tail:
            loops.setdefault(own, []).append(e)
    fused = [Claim(*joined(c), c.confidence, 1.0, e.document) for c, e in claims if joined(c)[0] != joined(c)[2]]
    settled = settle(fused, symmetric=symmetric, delta=delta if settle_conflicts else 0.0, single=settle_conflicts)
    amounts = support(fused, symmetric)
    if not settle_conflicts:
        settled.kept.update({k: amounts[k] for k in (*settled.contested, *settled.lost)})
        settled.contested.clear()
        settled.lost.clear()
    if novel:
        infer(settled, [n for n, r in known.items() if r.get("transitive")])
    log: list[dict[str, Any]] = [{"what": "merged", "from": a, "to": b} for a, b in merges]
    log += [{"what": "lost", "triple": list(k), "to": list(w)} for k, w in sorted(settled.lost.items())]
    log += [
        {"what": "contested", "triple": list(k), "support": round(v, 4)} for k, v in sorted(settled.contested.items())
    ]
    work.save("fusion.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in log))
    for name in ("kept", "contested", "lost", "inferred"):
        work.count(f"triplets {name}", len(getattr(settled, name)))
    work.count("names merged", len(merges))
    work.ready = Decisions(merges, settled, {k: list(written[k]) for k in written}, list(loops), proofs)
    for key in sorted(amounts):  # names stay as they are written: joining them is an operation of its own, see decide
        sure = round(1 - float(np.exp(-amounts[key])), 4)
        for (h, r, t), spots in sorted(written[key].items()):
            yield Candidate(h, r, t, "concept", "concept", confidence=sure, kind="support", evidence=tuple(spots))
    for (h, r, t), spots in sorted(loops.items()):
        yield Candidate(h, r, t, "concept", "concept", confidence=0.5, kind="support", evidence=tuple(spots))


def _by_rules(
    places: Sequence[tuple[Chunk, int, int]],
    parsed: Sequence[Sequence[Sentence]],
    known: Mapping[str, Mapping[str, Any]],
) -> list[tuple[Claim, Evidence]]:
    """Triplets by the words of the relations, from the shape of sentences."""
    words: dict[str, tuple[str, bool]] = {}
    for name, row in known.items():
        for word in (name.casefold().replace("-", " "), *row.get("words", ())):
            words.setdefault(word.removeprefix("<"), (name, word.startswith("<")))
    made = []
    for (chunk, start, _), sentences in zip(places, parsed, strict=True):
        memory = Memory(Names())
        for s in sentences:
            found = open_relations(s, find_mentions(s), lambda i, s=s, memory=memory: memory.resolve(s, i))  # type: ignore[misc]
            memory.learn(s, found)
            nouns = {f.predicate.rsplit(" ", 1)[0] for f in found if f.predicate in words}
            for f in found:
                no_kind = f.predicate == IS_A and f.class_word.casefold() in nouns  # X is a prerequisite of Y
                if no_kind or f.predicate not in words or f.object.kind in ("date", "number"):
                    continue
                name, turned = words[f.predicate]
                target = f.class_word if f.predicate == IS_A else f.object.label
                head, tail = (target, f.subject.label) if turned else (f.subject.label, target)
                a, b = chunk.start + start + s.words[0].start, chunk.start + start + s.words[-1].end
                made.append(
                    (
                        Claim(head, name, tail, f.confidence),
                        Evidence(
                            chunk.document.id, a, b, chunk.page or None, method="build/graphusion", score=f.confidence
                        ),
                    )
                )
    return made
