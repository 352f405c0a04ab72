"""What a graph of typed triplets is worth: islands, and competency questions that it can answer (HyDRA, step 8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from interfuse.data.ontology import closure
from interfuse.kit.ontology_growth import Concepts
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


def coverage(questions: Sequence[str], concepts: Concepts, triplets: Sequence[Triplet]) -> dict[str, Any]:
    """Which questions the graph can answer: each becomes a pattern of the ontology's own terms (a property it names, between the
    classes it names; else a class it names), and is answerable when at least one triplet fits.

    Returns:
        ``asked``, ``in the ontology's terms``, ``answerable``, and per question its ``pattern`` and number of ``rows``.
    """
    types = {t.subject: t.object for t in triplets if t.predicate == IS_A}
    rows: list[dict[str, Any]] = []
    for question in questions:
        classes, properties = _terms(question, list(concepts.classes)), _terms(question, list(concepts.properties))

        def fits(entity: str, wanted: Sequence[str] = tuple(classes)) -> bool:
            return not wanted or any(c in concepts.above(types.get(entity, "")) for c in wanted)

        if properties:
            hits = [t for t in triplets if t.predicate == properties[0] and (fits(t.subject) or fits(t.object))]
            pattern = f"?x {properties[0]} ?y"
        else:
            hits = [t for t in triplets if t.predicate == IS_A and classes and classes[0] in concepts.above(t.object)]
            pattern = f"?x {IS_A} {classes[0]}" if classes else ""
        rows.append({"question": question, "pattern": pattern, "rows": len(hits)})
    return {
        "asked": len(rows),
        "in the ontology's terms": sum(bool(r["pattern"]) for r in rows),
        "answerable": sum(r["rows"] > 0 for r in rows),
        "each": rows,
    }
