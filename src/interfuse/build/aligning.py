"""What of a graph's classes and names belongs together by meaning: KAG's alignment (Liang et al. 2024, section 2.4). Nothing is merged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from interfuse.build.asking import ask
from interfuse.build.assembling import CLASS
from interfuse.build.room import Work
from interfuse.data.graph import Graph
from interfuse.data.statements import TYPE, Evidence, Statement, relation_id
from interfuse.kit.language import singular
from interfuse.kit.mended_replies import records

#: relations of meaning by which phrases and concepts are aligned
ALIGNED = ("synonym", "isA", "isPartOf", "contains", "belongTo", "causes")
#: pairs of names in one request, and requests at most (and no more than there are chunks)
PAIRS, REQUESTS = 20, 10
#: rows of a product of names with names that are held at once
ROWS = 256
#: names that share a word or look alike so much are asked about; a word of more names than these says nothing
ALIKE, COMMON = 0.5, 20
FIELDS = ("subject", "relation", "object")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"relations": {"type": "array", "items": {
        "type": "object", "properties": {"subject": {"type": "string"}, "relation": {"enum": list(ALIGNED)}, "object": {"type": "string"}},
        "required": list(FIELDS)}}},
    "required": ["relations"],
}  # fmt: skip
TASK = (
    "Below are pairs of names of things or of kinds of things. Which of these relations of meaning holds between the two, if any?\n"
    "synonym: both name the same. isA: the subject is a kind or an instance of the object. isPartOf: the subject is a part of the object. "
    "contains: the subject holds the object. belongTo: the subject is owned by, or a member of, the object. causes: the subject brings the "
    "object about.\nAnswer as JSON {\"relations\": [{\"subject\": ..., \"relation\": ..., \"object\": ...}]}, both names as they are written here, "
    "in the order that makes the relation true. Leave out every pair that you are not sure of. Answer {\"relations\": []} if none is left.\n"
)  # fmt: skip


def similarity(a: str, b: str) -> float:
    """The cosine of two names' counts of three-letter pieces, in [0, 1]."""
    one, two = _pieces(a), _pieces(b)
    dot = sum(n * two.get(k, 0) for k, n in one.items())
    size = sum(n * n for n in one.values()) * sum(n * n for n in two.values())
    return float(dot / size**0.5) if size else 0.0


def _pieces(name: str) -> dict[str, int]:
    padded = f"  {name.casefold()}  "
    found: dict[str, int] = {}
    for i in range(len(padded) - 2):
        found[padded[i : i + 3]] = found.get(padded[i : i + 3], 0) + 1
    return found


def _products(names: Sequence[str]) -> Iterator[tuple[Any, Any, Any]]:
    """The cosines of all pairs of names that share a piece, some rows at a time: (indices of the first, of the second, cosines)."""
    from scipy.sparse import csr_matrix, diags

    places: dict[str, int] = {}
    counts, columns, ends = [], [], [0]
    for name in names:
        for piece, n in _pieces(name).items():
            columns.append(places.setdefault(piece, len(places)))
            counts.append(n)
        ends.append(len(columns))
    table = csr_matrix((np.array(counts, float), columns, ends), shape=(len(names), len(places)))
    table = diags(1 / np.sqrt(table.multiply(table).sum(axis=1).A1)) @ table
    turned = table.T.tocsr()
    for start in range(0, len(names), ROWS):
        found = (table[start : start + ROWS] @ turned).tocoo()
        later = found.col > found.row + start
        yield found.row[later] + start, found.col[later], found.data[later]


def alike(names: Sequence[str], least: float) -> list[tuple[int, int, float]]:
    """The pairs of names whose :func:`similarity` is at least so much, in order: (first, second, similarity)."""
    made = []
    for one, two, cosines in _products(names):
        near = np.flatnonzero(cosines > least - 1e-9)
        for i, j in sorted(zip(one[near].tolist(), two[near].tolist(), strict=True)):
            if (exact := similarity(names[i], names[j])) >= least:
                made.append((i, j, exact))
    return made


def likest(names: Sequence[str], most: int) -> list[tuple[str, str]]:
    """The pairs of names that look most alike, and of those that look equally alike the first by name.

    Args:
        most: pairs at most.
    """
    names = sorted(names)
    floor = 1e-9
    kept = np.zeros((0, 3))
    for one, two, cosines in _products(names) if names and most > 0 else ():
        mine = cosines > floor
        kept = np.vstack([kept, np.column_stack([one[mine], two[mine], cosines[mine]])])
        if len(kept) > most:
            floor = max(floor, float(np.partition(kept[:, 2], -most)[-most]) - 1e-9)
            kept = kept[kept[:, 2] > floor]
    pairs = [(names[int(i)], names[int(j)]) for i, j, _ in kept.tolist()]
    made = sorted(pairs, key=lambda p: (-similarity(*p), p))[:most]
    if len(made) < most:  # the others share nothing
        there = frozenset(made)
        others = (p for p in itertools.combinations(names, 2) if p not in there)
        made += itertools.islice(others, most - len(made))
    return made


def align(graph: Graph, work: Work, *, similar: float, max_tokens: int, **_: Any) -> Iterator[Statement]:
    """Concepts by the heads of their names (a fantasy film is a film), parts of class names, and names that look alike; with a language
    model, what it says of pairs of classes, of names, and of a name with a class. Nothing is merged.

    Raises:
        InterfuseError: ``budget.spent`` or ``endpoint.failed``.
    """
    classes: dict[str, dict[str, None]] = {}
    for s in graph.statements(p=TYPE):
        if isinstance(s.object, str) and s.object.startswith(CLASS):
            classes.setdefault(s.object.removeprefix(CLASS).replace("-", " "), {})[s.subject] = None
    made = 0
    for statement in itertools.chain(_heads(classes), _look_alike(graph, classes, similar)):
        made += 1
        yield statement
    work.report("aligned", made)
    if work.lm is not None:
        found = _by_meaning(graph, work, classes, max_tokens)
        work.report("aligned by meaning", len(found))
        yield from found


def _heads(classes: Mapping[str, Any]) -> Iterator[Statement]:
    for name in sorted(classes):
        words = name.split()
        for k in range(1, len(words)):
            above = " ".join([*words[k:-1], singular(words[-1])])
            if above in classes:
                yield Statement(_class(name), relation_id("isA"), _class(above), (), 0.9, "rule", "inferred",
                                evidence=(Evidence("rule:head-noun", method="build/kag"),))  # fmt: skip
                break


def _look_alike(graph: Graph, classes: Mapping[str, Mapping[str, None]], similar: float) -> Iterator[Statement]:
    if similar >= 1:
        return
    for kind in sorted(classes):
        blocks: dict[str, list[tuple[str, str]]] = {}
        for name, entity in [(graph.label(e), e) for e in sorted(classes[kind])] if _told(kind) else []:
            blocks.setdefault(name.casefold()[:2], []).append((name, entity))
        for block in blocks.values():
            for i, j, near in alike([name for name, _ in block], similar) if len(block) > 1 else ():
                x, y = block[i][1], block[j][1]
                if graph.called(x) != graph.called(y):
                    yield Statement(x, relation_id("similar"), y, (), round(near, 4), "similarity", "inferred",
                                    evidence=(Evidence("rule:similar-name", method="build/kag", score=round(near, 4)),))  # fmt: skip


def _by_meaning(
    graph: Graph, work: Work, classes: Mapping[str, Mapping[str, None]], max_tokens: int
) -> list[Statement]:
    """What the model says of the pairs that are worth a question."""
    assert work.lm is not None
    things: dict[str, str] = {}
    for kind in sorted(classes):
        for entity in sorted(classes[kind]) if _told(kind) else []:
            things.setdefault(graph.label(entity), entity)
    kinds = {k: _class(k) for k in sorted(classes) if _told(k) and k != "others"}
    room = PAIRS * min(REQUESTS, len(classes.get("chunk", ())) or 1)
    pairs, count = candidate_pairs(list(kinds), list(things), room)
    work.report("pairs of names", {"asked about": len(pairs), "left out": count - len(pairs)})
    batches = {f"pairs {i}": pairs[i : i + PAIRS] for i in range(0, len(pairs), PAIRS)}
    known = {name: {frozenset((a.casefold(), b.casefold())) for a, b in batch} for name, batch in batches.items()}

    def read(name: str, reply: str) -> tuple[list[Any], list[str]]:
        got = records(reply, FIELDS, needed=FIELDS)
        rows = [r for r in got.rows if r["relation"] in ALIGNED
                and frozenset((str(r["subject"]).casefold(), str(r["object"]).casefold())) in known[name]]  # fmt: skip
        work.count("alignments that were not asked about", len(got.rows) - len(rows))
        return rows, [] if rows or "[]" in reply.replace(" ", "") else [
            "no pair with one of the relations could be read"
        ]

    asked = {n: [{"role": "user", "content": TASK + "\n".join(f"{i}. {a} / {b}" for i, (a, b) in enumerate(batch, 1))}]
             for n, batch in batches.items()}  # fmt: skip
    answers = ask(work, asked, read, max_tokens=max_tokens, tries=2, schema=SCHEMA)
    called = {n.casefold(): e for n, e in [*things.items(), *kinds.items()]}
    found: dict[tuple[str, str, str], Statement] = {}
    for rows, prompt in answers.values():
        for row in rows:
            a, b = called[str(row["subject"]).casefold()], called[str(row["object"]).casefold()]
            if row["relation"] == "synonym":
                a, b = sorted((a, b))
            proof = (Evidence(f"model:{work.lm.name}", method="build/kag", model=work.lm.name, prompt=prompt),)
            found.setdefault((a, row["relation"], b), Statement(a, relation_id(row["relation"]), b, (), 0.7, "extractor", "model-claimed", evidence=proof))  # fmt: skip
    return list(found.values())


def candidate_pairs(kinds: Sequence[str], things: Sequence[str], most: int) -> tuple[list[tuple[str, str]], int]:
    """Pairs of names worth a question, the likeliest first by turns: classes with classes; names with names, or with a class, that share
    a word or look alike. And how many there are in all.

    Args:
        kinds: names of classes. things: names of entities. most: pairs that are given at most.
    """
    among = likest(kinds, most)
    words: dict[str, list[tuple[str, bool]]] = {}
    for name, kind in [*((k, True) for k in sorted(kinds)), *((t, False) for t in sorted(things))]:
        for word in dict.fromkeys([*(w for w in name.casefold().split() if len(w) > 2), f"{name.casefold()[:3]}..."]):
            words.setdefault(word, []).append((name, kind))
    near: dict[tuple[str, str], float] = {}
    for word, members in words.items():
        for (a, one), (b, two) in itertools.combinations(members if len(members) <= COMMON else [], 2):
            if a.casefold() != b.casefold() and not (one and two):
                alike = similarity(a, b)
                if not word.endswith("...") or alike >= ALIKE:
                    near[a, b] = alike
    between = sorted(near, key=lambda p: (-near[p], p))
    mixed = (p for two in itertools.zip_longest(among, between) for p in two if p is not None)
    return list(itertools.islice(mixed, most)), len(kinds) * (len(kinds) - 1) // 2 + len(near)


def _class(name: str) -> str:
    return CLASS + name.replace(" ", "-")


def _told(kind: str) -> bool:
    """Whether a class is of what the documents speak of, and not of the documents' own parts."""
    return kind not in ("chunk", "document")
