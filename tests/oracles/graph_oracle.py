"""What a graph holds after some operations, by its definition: everything is computed anew, slowly, from the log."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from interfuse.data.graph_log import Op
from interfuse.data.statements import STATUSES, Evidence, Literal, Statement


def in_force(ops: Sequence[Op]) -> dict[int, bool]:
    """An operation counts unless a later one that counts cancels it, by name or as the newer one of its group."""
    force: dict[int, bool] = {}
    for op in reversed(ops):
        force[op.number] = not any(
            force[later.number]
            and (op.number in later.data.get("cancels", ()) or (later.data.get("group") and later.data["group"] == op.data.get("group")))
            for later in ops if later.number > op.number
        )  # fmt: skip
    return force


def holds(ops: Sequence[Op]) -> dict[str, Statement]:
    """Statements by id."""
    force = in_force(ops)
    withdrawals = [op for op in ops if op.kind == "withdraw" and force[op.number]]

    def gone(number: int, kind: str, name: str) -> bool:
        return any(w.number > number and w.data["by"] == kind and name in w.data["names"] for w in withdrawals)

    def lives(number: int, e: Evidence, known: set[str]) -> bool:
        taken = any(
            getattr(e, kind) and gone(number, kind, getattr(e, kind)) for kind in ("document", "run", "method", "model")
        )
        return not taken and all(p in known for p in e.premises)

    said = [
        (op.number, s)
        for op in ops
        if op.kind == "add" and force[op.number]
        for s in op.statements
        if not gone(op.number, "statement", s.id)
    ]
    alive: set[str] = set()  # the least set in which everything is supported
    while True:
        now = {s.id for n, s in said if not s.evidence or any(lives(n, e, alive) for e in s.evidence)}
        if now == alive:
            break
        alive = now
    kept = []
    for n, s in said:
        proof = tuple(e for e in s.evidence if lives(n, e, alive))
        if proof or not s.evidence:
            kept.append(dataclasses.replace(s, evidence=proof))
    names = {t for s in kept for t in s.terms() if not isinstance(t, Literal)}
    cuts = {(c[0], *sorted(c[1:])) for op in ops if force[op.number] for c in op.data.get("cut", ())}
    edges = []
    for op in ops:
        if op.kind in ("merge", "split") and force[op.number]:
            proof = [Evidence(**e) for e in op.data.get("evidence", ())]
            if not proof or any(lives(op.number, e, alive) for e in proof):
                edges += [
                    (a, b)
                    for a, b in op.data.get("pairs", ())
                    if (op.number, *sorted((a, b))) not in cuts and a in names and b in names
                ]
    called = {n: n for n in names}
    changed = True
    while changed:
        changed = False
        for a, b in edges:
            low = min(called[a], called[b])
            if called[a] != low or called[b] != low:
                called[a] = called[b] = low
                changed = True

    def now_called(term: str | Literal) -> str | Literal:
        return term if isinstance(term, Literal) else called[term]

    groups: dict[str, list[tuple[str, Statement]]] = {}
    for s in kept:
        made = dataclasses.replace(s, subject=now_called(s.subject), predicate=now_called(s.predicate), object=now_called(s.object),
                                   qualifiers=tuple((now_called(p), now_called(v)) for p, v in s.qualifiers))  # fmt: skip
        groups.setdefault(made.id, []).append((s.id, made))
    result = {}
    for name, rows in groups.items():
        parts = [s for _, s in rows]
        marks = [
            (op.number, op.data["status"])
            for op in ops
            if op.kind == "mark" and force[op.number]
            for i in op.data["ids"]
            if i in [r for r, _ in rows]
        ]
        status = max(marks)[1] if marks else min((s.status for s in parts), key=STATUSES.index)
        sure = max((s.confidence, s.kind) for s in parts)
        proof = {e for s in parts for e in s.evidence}
        result[name] = dataclasses.replace(parts[0], confidence=sure[0], kind=sure[1], status=status,
                                           evidence=tuple(sorted(proof, key=lambda e: e.order)))  # fmt: skip
    return result
