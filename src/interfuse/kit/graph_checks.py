"""Figures of a graph's health: what is grounded, what stands alone, what can hardly be an entity."""

from __future__ import annotations

from interfuse.data.graph import Graph
from interfuse.data.statements import ALIAS, LABEL, TYPE, Literal
from interfuse.kit.linking import folded, root_of

#: words that no entity is called by; extractors make nodes of them
NO_NAMES = frozenset({"he", "she", "it", "they", "we", "i", "you", "him", "her", "them", "us", "me", "his", "its", "their", "this", "that", "these",
                      "those", "who", "which", "what", "there", "here", "the", "a", "an", "one", "some", "many", "all", "none", "and", "or", "of",
                      "in", "on", "at", "by", "for", "with", "from", "to", "as", "is", "was", "be", "not", "yes", "no", "someone", "something"})  # fmt: skip


def figures(graph: Graph) -> dict[str, float]:
    """Counts: statements, grounded share, entities, islands (parts without a path between them), stop-word nodes, classes that are
    used as instances, labels shared by several entities, and the share of all edges at the busiest entity."""
    statements = graph.statements()
    edges = [s for s in statements if isinstance(s.object, str) and s.predicate != TYPE]
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        parent.setdefault(name, name)
        return root_of(parent, name)

    degree: dict[str, int] = {}
    for s in edges:
        assert isinstance(s.object, str)
        parent[top(s.subject)] = top(s.object)
        for end in (s.subject, s.object):
            degree[end] = degree.get(end, 0) + 1
    labels: dict[str, list[str]] = {}
    classes: dict[str, None] = {}
    for s in statements:
        if s.predicate == LABEL and isinstance(s.object, Literal):
            labels.setdefault(s.subject, []).append(s.object.value)
        if s.predicate == TYPE and isinstance(s.object, str):
            classes[s.object] = None
        if s.predicate not in (LABEL, ALIAS):
            top(s.subject)
    shared: dict[str, dict[str, None]] = {}
    for name, words in labels.items():
        for word in words:
            shared.setdefault(folded(word), {})[name] = None
    grounded = sum(1 for s in statements if s.evidence)
    return {
        "statements": len(statements),
        "grounded share": grounded / len(statements) if statements else 0.0,
        "entities": len(parent),
        "islands": len({top(n) for n in list(parent)}),
        "stop-word nodes": sum(
            1 for words in labels.values() if any(w.casefold().strip() in NO_NAMES or not w.strip() for w in words)
        ),
        "classes used as instances": sum(1 for c in classes if degree.get(c)),
        "shared labels": sum(1 for names in shared.values() if len(names) > 1),
        "busiest share": max(degree.values()) / len(edges) if edges else 0.0,
    }
