"""What a graph of typed triplets is worth: islands, and competency questions that it can answer (HyDRA, step 8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from interfuse.data.graph import Graph
from interfuse.data.ontology import Ontology, closure
from interfuse.data.statements import SUBCLASS
from interfuse.kit.typed_triplets import IS_A, Triplet, snake


def islands(triplets: Sequence[Triplet]) -> dict[str, Any]:
    """Entities, weakly connected components of them (by relations between entities), and the share outside the largest."""
    near: dict[str, dict[str, None]] = {t.subject: {} for t in triplets}
    for t in triplets:
        if t.predicate != IS_A and t.object in near:
            near[t.subject][t.object] = None
            near[t.object][t.subject] = None
    sizes, seen = list[int](), dict[str, None]()
    for start in near:
        if start not in seen:
            part = closure(start, lambda n: tuple(near[n]))
            seen.update(dict.fromkeys(part))
            sizes.append(len(part))
    return {
        "entities": len(near),
        "islands": len(sizes),
        "outside the largest": 1 - max(sizes) / len(near) if near else 0.0,
    }


def _terms(question: str, names: Sequence[str]) -> list[str]:
    """The names of the ontology whose words all stand in a question, plain plurals and endings aside; the longest first."""
    words = [w[:-1] if len(w) > 3 and w.endswith("s") else w for w in re.findall(r"[^\W_]+", question.casefold())]

    def inside(name: str) -> bool:
        parts = [p[:-1] if len(p) > 3 and p.endswith("s") else p for p in snake(name).split("_")]
        return bool(parts) and all(any(w == p or (len(p) > 4 and w.startswith(p[:-1])) for w in words) for p in parts)

    return sorted((n for n in names if inside(n)), key=lambda n: (-len(n), n))


def as_sparql(question: str, ontology: Ontology) -> str:
    """A question as a query of the ontology's own terms: a property it names, one of whose ends is of a class it names; else a class it
    names. Empty where it names neither."""
    class_of, property_of = ({ontology.label(i): i for i in items} for items in (ontology.classes, ontology.properties))
    classes, properties = _terms(question, list(class_of)), _terms(question, list(property_of))
    kinds = " ".join(f"<{class_of[c]}>" for c in (classes if properties else classes[:1]))
    of_kind = f"a/<{SUBCLASS}>* ?kind"
    if properties:
        ends = f" VALUES ?kind {{ {kinds} }} {{ ?x {of_kind} }} UNION {{ ?y {of_kind} }}" if classes else ""
        return f"SELECT DISTINCT ?x ?y WHERE {{ ?x <{property_of[properties[0]]}> ?y .{ends} }}"
    return f"SELECT DISTINCT ?x WHERE {{ VALUES ?kind {{ {kinds} }} ?x {of_kind} }}" if classes else ""


def coverage(questions: Sequence[str], ontology: Ontology, graph: Graph) -> dict[str, Any]:
    """Which questions a graph can answer: each is asked as :func:`as_sparql` says, and answerable when there is a row.

    Returns:
        ``asked``, ``in the ontology's terms``, ``answerable``, and per question its ``pattern`` and number of ``rows``.

    Raises:
        InterfuseError: ``needs.package`` for pyoxigraph.
    """
    rows: list[dict[str, Any]] = []
    for question in questions:
        pattern = as_sparql(question, ontology)
        count = sum(1 for _ in graph.query(pattern)) if pattern else 0
        rows.append({"question": question, "pattern": pattern, "rows": count})
    return {
        "asked": len(rows),
        "in the ontology's terms": sum(bool(r["pattern"]) for r in rows),
        "answerable": sum(r["rows"] > 0 for r in rows),
        "each": rows,
    }
