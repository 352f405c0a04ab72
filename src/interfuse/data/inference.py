"""What follows from statements by the rules of an ontology, each conclusion with its premises.

Rules: subclass and subproperty, inverse, symmetric and transitive properties, domain and range typing. Conclusions have status
``inferred``, the confidence of their weakest premise, and evidence that names the rule and the ids of the premises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data.statements import NS, SUBCLASS, TYPE, Evidence, Literal, Statement, Term

#: the document that conclusions cite
RULES = NS + "rules"
TABLES = ("subclass", "subproperty", "inverse", "symmetric", "transitive", "domain", "range")
#: more conclusions than this are an error, not a result
LIMIT = 5_000_000


def infer(rules: Mapping[str, Any], statements: Iterable[Statement]) -> list[Statement]:
    """Statements that follow and are not among the given ones, sorted.

    Args:
        rules: ``{"rules": {table: rows}}`` as :meth:`interfuse.data.ontology.Ontology.rules` makes it.

    Raises:
        InterfuseError: ``param.value`` for an unknown table, ``input.limit`` for more than five million conclusions.
    """
    tables = rules.get("rules", {})
    for name in tables:
        if name not in TABLES:
            raise InterfuseError(
                "param.value", f"there is no table of rules {name!r}", fix="Known: " + ", ".join(TABLES)
            )
    up = _pairs(tables, "subclass")
    over = _pairs(tables, "subproperty")
    turned: dict[str, list[str]] = {}
    for p, q in tables.get("inverse", ()):
        turned.setdefault(p, []).append(q)
        turned.setdefault(q, []).append(p)
    for (p,) in tables.get("symmetric", ()):
        turned.setdefault(p, []).append(p)
    chains = {p: None for (p,) in tables.get("transitive", ())}
    domains, ranges = _pairs(tables, "domain"), _pairs(tables, "range")
    known: dict[tuple[str, str, Term], Statement] = {}
    given = sorted(
        (s for s in statements if s.status not in ("withdrawn", "contested")),
        key=lambda s: s.order,
    )
    todo = deque(given)
    for x in given:
        known.setdefault((x.subject, x.predicate, x.object), x)
    ahead: dict[
        tuple[str, str], dict[str, Statement]
    ] = {}  # (predicate, subject) -> object -> statement, for transitive ones
    behind: dict[tuple[str, str], dict[str, Statement]] = {}
    made: list[Statement] = []

    def conclude(s: str, p: str, o: Term, rule: str, *premises: Statement) -> None:
        key = (s, p, o)
        if key in known:
            return
        sure = min(x.confidence for x in premises)
        proof = Evidence(RULES, method=f"rule:{rule}", premises=tuple(sorted(x.id for x in premises)))
        new = Statement(s, p, o, confidence=sure, kind="inference", status="inferred", evidence=(proof,))
        known[key] = new
        made.append(new)
        todo.append(new)
        if len(made) > LIMIT:
            raise InterfuseError(
                "input.limit", f"more than {LIMIT} statements follow", where=p, fix="Leave out a transitive rule."
            )

    while todo:
        x = todo.popleft()
        s, p, o = x.subject, x.predicate, x.object
        for q in over.get(p, ()):
            conclude(s, q, o, "subproperty", x)
        for c in domains.get(p, ()):
            conclude(s, TYPE, c, "domain", x)
        if isinstance(o, Literal):
            continue
        if p == TYPE:
            for c in up.get(o, ()):
                conclude(s, TYPE, c, "subclass", x)
        elif p == SUBCLASS:
            for c in up.get(o, ()):
                conclude(s, SUBCLASS, c, "subclass", x)
        for c in ranges.get(p, ()):
            conclude(o, TYPE, c, "range", x)
        for q in turned.get(p, ()):
            conclude(o, q, s, "symmetric" if q == p else "inverse", x)
        if p in chains:
            ahead.setdefault((p, s), {})[o] = x
            behind.setdefault((p, o), {})[s] = x
            for other, y in list(ahead.get((p, o), {}).items()):
                if other != s:
                    conclude(s, p, other, "transitive", x, y)
            for other, y in list(behind.get((p, s), {}).items()):
                if other != o:
                    conclude(other, p, o, "transitive", y, x)
    return sorted(made, key=lambda x: x.order)


def _pairs(tables: Mapping[str, Any], name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for a, b in tables.get(name, ()):
        if a != b:
            found.setdefault(a, []).append(b)
    return found
