"""Several graphs become one: entities linked, agreements counted, conflicts decided, and a report of what came from whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.data.graph import Graph
from interfuse.data.ontology import Ontology
from interfuse.data.statements import ALIAS, LABEL, NS, TYPE, Evidence, Statement, text_of
from interfuse.kit.linking import Judge, Linked, LinkSettings, link_graph

#: how a property with one value is decided when sources differ
POLICIES = ("keep", "vote", "weight", "latest", "confidence")


@dataclass(frozen=True)
class Policy:
    """What to do when sources differ about a property that has one value.

    Attributes:
        usual: one of :data:`POLICIES`. ``keep`` marks all as contested; ``vote`` takes what most sources say; ``weight`` sums the
            sources' ``weights`` (1 unless given); ``latest`` takes the latest beginning; ``confidence`` the surest. Ties stay contested.
        by_property: other choices for some properties; naming a property here also says that it has one value.
        functional: further properties that have one value; those of the ontology always count.
    """

    usual: str = "vote"
    by_property: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    functional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conflict:
    """A subject and property with several values: what each source said, and what was kept (empty: contested)."""

    subject: str
    predicate: str
    said: tuple[tuple[str, tuple[str, ...]], ...]
    kept: str
    policy: str


@dataclass(frozen=True)
class FuseReport:
    """What fusing gained and lost.

    Attributes:
        sources: name -> counts: ``given`` statements, ``kept``, ``agreed`` (others say so too), ``only here``, ``conflicted``, ``dropped``.
        statements: in the result. agreed: said by more than one source. merged: names that were joined into others.
        conflicts: every one. linked: how names were joined.
    """

    sources: Mapping[str, Mapping[str, int]]
    statements: int
    agreed: int
    merged: int
    conflicts: tuple[Conflict, ...]
    linked: Linked | None

    def as_dict(self, limit: int = 100) -> dict[str, Any]:
        """The report as plain JSON, with at most ``limit`` conflicts and undecided pairs in full."""
        links = self.linked
        return {
            "sources": {k: dict(v) for k, v in self.sources.items()}, "statements": self.statements, "agreed": self.agreed, "merged": self.merged,
            "conflicts": len(self.conflicts), "contested": sum(1 for c in self.conflicts if not c.kept),
            "examples": [{"subject": c.subject, "predicate": c.predicate, "said": [[v, list(w)] for v, w in c.said], "kept": c.kept,
                          "policy": c.policy} for c in self.conflicts[:limit]],
            "refused merges": dict(links.refused) if links else {}, "undecided": len(links.grey) if links else 0,
            "undecided pairs": [[x.a, x.b, x.score] for x in links.grey[:limit]] if links else [],
        }  # fmt: skip


def fuse(sources: Sequence[Graph], *, ontology: Ontology | None = None, policy: Policy | None = None, settings: LinkSettings | None = None,
         judge: Judge | None = None, linking: bool = True, name: str = "fused") -> tuple[Graph, FuseReport]:  # fmt: skip
    """One graph of several, from documents, models or anywhere; the sources are not changed.

    Statements without evidence get the source's name as evidence, so that a source can be withdrawn.

    Raises:
        InterfuseError: ``input.empty`` without sources, ``input.duplicate`` for two of one name, ``param.value`` for a policy.
    """
    policy = policy or Policy()
    if not sources:
        raise InterfuseError("input.empty", "there are no graphs to fuse")
    for word in (policy.usual, *policy.by_property.values()):
        if word not in POLICIES:
            raise InterfuseError("param.value", f"there is no policy {word!r}", fix=did_you_mean(word, POLICIES))
    names = [g.name for g in sources]
    twice = [n for i, n in enumerate(names) if n in names[:i]]
    if twice:
        raise InterfuseError(
            "input.duplicate", f"two sources are called {twice[0]!r}", fix="Give them names of their own."
        )
    graph = Graph(name)
    said: dict[str, list[str]] = {}  # source -> ids as given
    for source in sorted(sources, key=lambda g: g.name):
        rows = [
            s if s.evidence else replace(s, evidence=(Evidence(f"{NS}graph:{source.name}"),))
            for s in source.statements()
        ]
        graph.add(rows, note=f"from {source.name}")
        said[source.name] = [s.id for s in rows]
    linked = link_graph(graph, settings, ontology=ontology, judge=judge) if linking else None
    by_id: dict[str, list[str]] = {}
    for source_name, ids in said.items():
        for given in ids:
            now = graph.state._place.get(given, given)
            by_id.setdefault(now, [])
            if source_name not in by_id[now]:
                by_id[now].append(source_name)
    conflicts, lost = _decide(graph, by_id, ontology, policy)
    rows_of: dict[str, dict[str, int]] = {}
    for source_name, ids in said.items():
        here = sorted({graph.state._place.get(i, i) for i in ids})
        rows_of[source_name] = {
            "given": len(ids), "kept": sum(1 for i in here if i not in lost), "agreed": sum(1 for i in here if len(by_id[i]) > 1),
            "only here": sum(1 for i in here if len(by_id[i]) == 1 and i not in lost), "conflicted": sum(1 for i in here if i in conflicts),
            "dropped": sum(1 for i in here if i in lost),
        }  # fmt: skip
    report = FuseReport(
        rows_of,
        len(graph.statements()),
        sum(1 for v in by_id.values() if len(v) > 1),
        len(linked.merges()) if linked else 0,
        tuple(sorted({id(c): c for c in conflicts.values()}.values(), key=lambda c: (c.subject, c.predicate))),
        linked,
    )
    return graph, report


def _decide(
    graph: Graph, by_id: Mapping[str, Sequence[str]], ontology: Ontology | None, policy: Policy
) -> tuple[dict[str, Conflict], dict[str, None]]:
    """Decides where sources differ: conflicting statement -> its conflict, and the statements that lost."""
    single = dict.fromkeys((*policy.functional, *policy.by_property))
    if ontology is not None:
        single.update((p.iri, None) for p in ontology.properties.values() if "functional" in p.characteristics)
    conflicts: dict[str, Conflict] = {}
    lost: dict[str, None] = {}
    contested: list[str] = []
    for predicate in sorted(single):
        if predicate in (LABEL, ALIAS, TYPE):
            continue
        rows: dict[str, list[Statement]] = {}
        for s in graph.statements(p=predicate):
            rows.setdefault(s.subject, []).append(s)
        how = policy.by_property.get(predicate, policy.usual)
        for subject, options in [(s, part) for s, many in sorted(rows.items()) for part in _together(many)]:
            if len(options) < 2:
                continue
            scores = [_score(s, by_id.get(s.id, ()), how, policy) for s in options]
            best = max(scores)
            winner = options[scores.index(best)] if how != "keep" and scores.count(best) == 1 else None
            made = Conflict(subject, predicate, tuple((text_of(s.object), tuple(by_id.get(s.id, ()))) for s in options),
                            text_of(winner.object) if winner else "", how)  # fmt: skip
            for s in options:
                conflicts[s.id] = made
                if winner is None:
                    contested.append(s.id)
                elif s is not winner:
                    lost[s.id] = None
    if lost:
        graph.mark(lost, "withdrawn", "another value was kept")
    if contested:
        graph.mark(contested, "contested", "sources differ")
    return conflicts, lost


def _together(statements: Sequence[Statement]) -> list[list[Statement]]:
    """Statements whose times overlap, directly or through others: only these can be in each other's way."""
    parts: list[list[Statement]] = []
    end: str | None = ""
    for s in sorted(statements, key=lambda s: (s.valid_from or "", s.order)):
        if parts and (end is None or (s.valid_from or "") < end):
            parts[-1].append(s)
            end = None if end is None or s.valid_to is None else max(end, s.valid_to)
        else:
            parts.append([s])
            end = s.valid_to
    return [sorted(part, key=lambda s: s.order) for part in parts]


def _score(s: Statement, sources: Sequence[str], how: str, policy: Policy) -> tuple[float | str, ...]:
    if how == "vote":
        return (float(len(sources)),)
    if how == "weight":
        return (sum(policy.weights.get(n, 1.0) for n in sources),)
    if how == "latest":
        return (s.valid_from or s.recorded_at or "",)
    return (s.confidence,)
