"""The operations of a graph and what follows from them.

A graph is its log: additions, withdrawals, merges, splits, marks and inferences, never changed, only followed by others. What
holds now (:class:`State`) is computed from the operations in force, so that any one of them can be undone, the order of additions
and merges does not matter, and a graph without a document is the graph it would have been had the document never been read.

- An entity's merges are edges between names; the entity is called by the smallest name of its connected part that still occurs.
- Evidence dies by withdrawal; an assertion that was given evidence dies with the last of it; a merge likewise.
- An operation is in force unless one in force cancels it (``undo``, or a newer one of its ``group``).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.data.statements import (
    STATUSES,
    Evidence,
    Literal,
    Statement,
    Term,
    check_name,
    combined,
    from_json,
    text_of,
    to_json,
)

KINDS = ("add", "withdraw", "merge", "split", "mark", "infer", "undo", "note")
#: what a withdrawal may name
WITHDRAWN_BY = ("document", "run", "method", "model", "statement")


@dataclass(frozen=True)
class Op:
    """One operation of the log.

    Attributes:
        number: from 1, without gaps. kind: one of :data:`KINDS`. data: what it says, as plain JSON.
        statements: what an ``add`` brought.
    """

    number: int
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    statements: tuple[Statement, ...] = field(default=(), repr=False)

    def as_json(self, *, whole: bool = True) -> dict[str, Any]:
        """The operation as plain JSON; ``whole`` keeps its statements."""
        row: dict[str, Any] = {"n": self.number, "kind": self.kind, **self.data}
        if whole and self.kind == "add":
            row["statements"] = [to_json(s) for s in self.statements]
        return row

    @staticmethod
    def of_json(row: Mapping[str, Any], statements: Sequence[Statement] | None = None) -> Op:
        """The inverse of :meth:`as_json`.

        Raises:
            InterfuseError: ``input.format``.
        """
        data = {k: v for k, v in row.items() if k not in ("n", "kind", "statements")}
        if not isinstance(row.get("n"), int) or row.get("kind") not in KINDS:
            raise InterfuseError("input.format", "not an operation of a graph")
        made = tuple(from_json(s) for s in row.get("statements", ())) if statements is None else tuple(statements)
        return Op(row["n"], row["kind"], data, made)


#: computes what follows from statements: (rules as JSON, statements) -> statements with premises
Inference = Callable[[Mapping[str, Any], Iterable[Statement]], list[Statement]]


#: by subject, by predicate, by object's text: ids
Index = tuple[dict[str, dict[str, None]], dict[str, dict[str, None]], dict[str, dict[str, None]]]


class State:
    """What holds after some operations. Every operation costs about what it touches, not the size of the graph."""

    def __init__(self, inference: Inference | None = None) -> None:
        self.ops: list[Op] = []
        self.version = 0
        self._infer = inference
        self._cancels: dict[int, list[int]] = {}  # operation -> those that cancel it
        self._groups: dict[str, list[int]] = {}  # group -> its operations
        self._raw: dict[str, list[tuple[int, Statement]]] = {}  # id as given -> assertions
        self._mentions: dict[str, dict[str, None]] = {}  # name -> ids as given that mention it
        self._sources: dict[tuple[str, str], dict[str, None]] = {}  # (document|run|..., name) -> ids as given
        self._premises: dict[str, dict[str, None]] = {}  # id -> ids as given that rest on it
        self._gone: dict[tuple[str, str], list[int]] = {}  # what was withdrawn -> by which operations
        self._marks: dict[str, list[tuple[int, str]]] = {}
        self._edges: dict[str, dict[tuple[str, int], None]] = {}  # name -> (other name, operation)
        self._proof: dict[int, tuple[Evidence, ...]] = {}  # evidence of merges
        self._live: dict[str, tuple[Statement, ...]] = {}  # id as given -> its living assertions
        self._uses: dict[str, int] = {}  # name -> living ids that mention it
        self._called: dict[str, str] = {}  # merged name -> the name that stands for it
        self._place: dict[str, str] = {}  # id as given -> id now
        self._here: dict[str, dict[str, None]] = {}  # id now -> ids as given
        self._made: dict[str, Statement] = {}  # id now -> the statement, when looked at
        self._keys: dict[str, tuple[str, str, str]] = {}  # id now -> subject, predicate, object's text
        self._by: Index = ({}, {}, {})  # subject, predicate, object's text -> ids now
        self._derived: dict[str, Statement] = {}
        self._derived_by: Index = ({}, {}, {})
        self._fresh = True
        self._force: list[bool] = [False]  # by number

    # ------------------------------------------------------------------------------------------ operations

    def apply(self, op: Op) -> None:
        """Carries out one operation; its number must be the next one.

        Raises:
            InterfuseError: ``input.format`` for an operation that makes no sense here; nothing has changed then.
        """
        if op.number != len(self.ops) + 1:
            raise InterfuseError("input.format", f"operation {op.number} follows operation {len(self.ops)}")
        if op.kind not in KINDS:
            raise InterfuseError(
                "input.format", f"a graph has no operation {op.kind!r}", fix=did_you_mean(op.kind, KINDS)
            )
        targets = [int(n) for n in op.data.get("cancels", ())]
        if any(not 1 <= n < op.number for n in targets):
            raise InterfuseError(
                "param.value", f"there is no operation {targets} to undo", fix=f"The last one is {len(self.ops)}."
            )
        if op.kind == "mark" and op.data.get("status") not in STATUSES:
            raise InterfuseError(
                "param.value",
                f"a status is not {op.data.get('status')!r}",
                fix=did_you_mean(str(op.data.get("status")), STATUSES),
            )
        if op.kind == "withdraw" and op.data.get("by") not in WITHDRAWN_BY:
            raise InterfuseError(
                "param.value",
                f"nothing is withdrawn by {op.data.get('by')!r}",
                fix=did_you_mean(str(op.data.get("by")), WITHDRAWN_BY),
            )
        if op.kind == "infer" and self._infer is not None:
            self._infer(op.data, ())
        pairs = [(str(a), str(b)) for a, b in op.data.get("pairs", ())]
        for pair in pairs:
            check_name(pair[0])
            check_name(pair[1])
        group = op.data.get("group")
        if group is not None:  # a newer one of its group stands for the older ones
            targets += [n for n in self._groups.get(group, ()) if n not in targets]
        before = {n: self.in_force(n) for n in sorted(self._reach(targets), reverse=True)}
        self.ops.append(op)
        self._force.append(True)
        self.version += 1
        for n in targets:
            self._cancels.setdefault(n, []).append(op.number)
        if group is not None:
            self._groups.setdefault(group, []).append(op.number)
        for n in before:  # the latest first: what cancels an operation comes after it
            self._force[n] = not any(self._force[k] for k in self._cancels.get(n, ()))
        touched: dict[str, None] = {}
        names: dict[str, None] = {}
        self._index(op, pairs)
        self._concerned(op, touched, names)
        for n, was in before.items():
            if self.in_force(n) != was:
                self._concerned(self.ops[n - 1], touched, names)
        self._update(touched, names)

    def _reach(self, numbers: Sequence[int]) -> list[int]:
        """The operations whose force may change with these: themselves and what they cancel, to any depth."""
        found: dict[int, None] = {}
        todo = list(numbers)
        while todo:
            n = todo.pop()
            if n not in found:
                found[n] = None
                todo += [int(k) for k in self.ops[n - 1].data.get("cancels", ())]
                group = self.ops[n - 1].data.get("group")
                if group is not None:
                    todo += [k for k in self._groups[group] if k < n]
        return list(found)

    def in_force(self, number: int) -> bool:
        """Whether an operation counts: none in force cancels it."""
        return self._force[number]

    def _index(self, op: Op, pairs: Sequence[tuple[str, str]]) -> None:
        if op.kind == "add":
            for statement in op.statements:
                known = self._raw.get(statement.id)
                if known is None:
                    known = self._raw[statement.id] = []
                    for term in statement.terms():
                        if not isinstance(term, Literal):
                            self._mentions.setdefault(term, {})[statement.id] = None
                known.append((op.number, statement))
                for item in statement.evidence:
                    for source in _sources(item):
                        self._sources.setdefault(source, {})[statement.id] = None
                    for premise in item.premises:
                        self._premises.setdefault(premise, {})[statement.id] = None
        elif op.kind == "withdraw":
            for name in op.data["names"]:
                self._gone.setdefault((op.data["by"], name), []).append(op.number)
        elif op.kind == "mark":
            for name in op.data["ids"]:
                self._marks.setdefault(name, []).append((op.number, op.data["status"]))
        for number, a, b in op.data.get("cut", ()):
            self._gone.setdefault(("cut", _edge_key(number, a, b)), []).append(op.number)
        if op.kind in ("merge", "split"):
            if op.data.get("evidence"):
                self._proof[op.number] = from_json(
                    {"s": "x:x", "p": "x:x", "o": "<x:x>", "evidence": op.data["evidence"]}
                ).evidence
                for item in self._proof[op.number]:
                    for source in _sources(item):
                        self._sources.setdefault(source, {})[f"merge {op.number}"] = None
            for a, b in pairs:
                if a != b:
                    self._edges.setdefault(a, {})[(b, op.number)] = None
                    self._edges.setdefault(b, {})[(a, op.number)] = None

    def _concerned(self, op: Op, touched: dict[str, None], names: dict[str, None]) -> None:
        """Collects the ids as given and the names that an operation may change."""
        if op.kind == "add":
            touched.update((s.id, None) for s in op.statements)
        elif op.kind == "withdraw":
            for name in op.data["names"]:
                if op.data["by"] == "statement":
                    if name in self._raw:
                        touched[name] = None
                    self._fresh = False
                for found in self._sources.get((op.data["by"], name), ()):
                    if found.startswith("merge "):
                        names.update((n, None) for pair in self.ops[int(found[6:]) - 1].data["pairs"] for n in pair)
                    else:
                        touched[found] = None
        elif op.kind == "mark":
            self._fresh = False
            for name in op.data["ids"]:
                if name in self._raw:
                    touched[name] = None
        elif op.kind == "infer":
            self._fresh = False
        if op.kind in ("merge", "split"):
            names.update((str(n), None) for pair in op.data.get("pairs", ()) for n in pair)
            for cut in op.data.get("cut", ()):
                names.update((str(n), None) for n in cut[1:])

    # ------------------------------------------------------------------------------------------ what lives

    def _alive(self, item: Evidence, number: int, sure: Mapping[str, bool]) -> bool:
        for source in _sources(item):
            if any(n > number and self.in_force(n) for n in self._gone.get(source, ())):
                return False
        return all(sure[p] if p in sure else self._holds(p) for p in item.premises)

    def _holds(self, name: str) -> bool:
        if name in self._raw:
            return name in self._live
        return any(given in self._live for given in self._here.get(name, ()))

    def _assertions(self, name: str, sure: Mapping[str, bool]) -> tuple[Statement, ...]:
        """The living assertions of an id as given, with their living evidence."""
        kept = []
        gone = self._gone.get(("statement", name), ())
        for number, statement in self._raw.get(name, ()):
            if not self.in_force(number) or any(n > number and self.in_force(n) for n in gone):
                continue
            if statement.evidence and (self._gone or any(e.premises for e in statement.evidence)):
                proof = tuple(e for e in statement.evidence if self._alive(e, number, sure))
                if not proof:
                    continue
                if len(proof) < len(statement.evidence):
                    statement = dataclasses.replace(statement, evidence=proof)
            kept.append(statement)
        return tuple(kept)

    def _resting(self, touched: Mapping[str, None]) -> dict[str, None]:
        """Ids as given that rest, through premises, on one of these."""
        if not self._premises:
            return {}
        found: dict[str, None] = {}
        todo = list(touched)
        while todo:
            name = todo.pop()
            for key in (name, self._place.get(name, name)):
                for dependent in self._premises.get(key, ()):
                    if dependent not in found:
                        found[dependent] = None
                        todo.append(dependent)
        return found

    def _update(self, touched: dict[str, None], names: dict[str, None]) -> None:
        """Brings everything up to date after an operation concerned these ids and names."""
        resting = self._resting(touched)
        for name in touched:
            if name not in resting:
                self._live_again(name, self._assertions(name, {}), names)
        # what rests on premises: first none of it holds, then what is supported is taken back until nothing changes
        sure = dict.fromkeys(resting, False)
        for name in resting:
            touched[name] = None
        growing = bool(resting)
        while growing:
            growing = False
            for name in resting:
                if not sure[name] and self._assertions(name, sure):
                    sure[name] = growing = True
        for name in resting:
            self._live_again(name, self._assertions(name, sure), names)
        for name in self._rename(names):
            touched.update(self._mentions.get(name, ()))
        for name in touched:
            self._settle(name)

    def _live_again(self, name: str, now: tuple[Statement, ...], names: dict[str, None]) -> None:
        was = name in self._live
        if now:
            self._live[name] = now
        elif was:
            del self._live[name]
        if was == bool(now):
            return
        step = 1 if now else -1
        for term in dict.fromkeys(self._raw[name][0][1].terms()):
            if not isinstance(term, Literal):
                count = self._uses.get(term, 0) + step
                if count:
                    self._uses[term] = count
                else:
                    self._uses.pop(term, None)
                if term in self._edges and count in (0, 1):
                    names[term] = None

    # ------------------------------------------------------------------------------------------ merged names

    def _near(self, name: str) -> Iterator[str]:
        """The living names one merge away."""
        for other, number in self._edges.get(name, ()):
            if other in self._uses and self._edge(name, other, number):
                yield other

    def _edge(self, a: str, b: str, number: int) -> bool:
        if not self.in_force(number):
            return False
        if any(self.in_force(n) for n in self._gone.get(("cut", _edge_key(number, a, b)), ())):
            return False
        proof = self._proof.get(number)
        return proof is None or any(self._alive(e, number, {}) for e in proof)

    def component(self, name: str) -> list[str]:
        """All living names that stand for the same entity, sorted; the name itself when it stands alone."""
        found = {name: None}
        todo = [name] if name in self._uses else []
        while todo:
            for other in self._near(todo.pop()):
                if other not in found:
                    found[other] = None
                    todo.append(other)
        return sorted(found)

    def _rename(self, names: Mapping[str, None]) -> list[str]:
        """Recomputes what merged names are called by; returns those whose call changed."""
        changed: dict[str, None] = {}
        todo = list(names)
        done: dict[str, None] = {}
        for name in list(todo):  # those that had been in one part with it may stand apart now
            todo += [other for other, _ in self._edges.get(name, ())]
        for name in todo:
            if name in done:
                continue
            parts = self.component(name)
            chosen = parts[0]
            for part in parts:
                done[part] = None
                if self._called.get(part, part) != chosen:
                    changed[part] = None
                    if part == chosen:
                        self._called.pop(part, None)
                    else:
                        self._called[part] = chosen
        return list(changed)

    def called(self, name: str) -> str:
        """The name that stands for an entity now."""
        return self._called.get(name, name)

    def _settle(self, name: str) -> None:
        """Puts an id as given where it belongs now."""
        old = self._place.pop(name, None)
        if old is not None:
            here = self._here[old]
            here.pop(name, None)
            self._made.pop(old, None)
            if not here:
                del self._here[old]
                self._unlist(old)
        if name not in self._live:
            self._fresh = False
            return
        core = self._core(name)
        now = core.id
        self._place[name] = now
        self._made.pop(now, None)
        self._fresh = False
        if now in self._here:
            self._here[now][name] = None
            return
        self._here[now] = {name: None}
        keys = self._keys[now] = (core.subject, core.predicate, text_of(core.object))
        for table, key in zip(self._by, keys, strict=True):
            table.setdefault(key, {})[now] = None

    def _unlist(self, old: str) -> None:
        for table, key in zip(self._by, self._keys.pop(old), strict=True):
            table[key].pop(old, None)
            if not table[key]:
                del table[key]

    def _core(self, name: str) -> Statement:
        return self.renamed(self._live[name][0])

    def renamed(self, statement: Statement) -> Statement:
        """A statement with every name replaced by the one that stands for it now."""
        if not self._called or not any(t in self._called for t in statement.terms() if not isinstance(t, Literal)):
            return statement

        def now(term: Term) -> Any:
            return term if isinstance(term, Literal) else self._called.get(term, term)

        return dataclasses.replace(
            statement, subject=now(statement.subject), predicate=now(statement.predicate), object=now(statement.object),
            qualifiers=tuple((now(p), now(v)) for p, v in statement.qualifiers),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ looking

    def get(self, name: str) -> Statement | None:
        """The statement of an id, as it holds now; an id as given before a merge finds it too."""
        name = self._place.get(name, name)
        if name in self._here:
            made = self._made.get(name)
            if made is None:
                parts = [self.renamed(s) for given in sorted(self._here[name]) for s in self._live[given]]
                made = combined(parts)
                marks = [m for key in self._here[name] for m in self._marks.get(key, ()) if self.in_force(m[0])]
                if marks:
                    made = dataclasses.replace(made, status=max(marks)[1])
                self._made[name] = made
            return made
        return self.derived().get(name)

    def ids(self, s: str | None = None, p: str | None = None, o: Term | None = None) -> Iterator[str]:
        """Ids of the statements with this subject, predicate and object (None: any), inferred ones last."""
        wanted = [(i, key) for i, key in enumerate((s, p, None if o is None else text_of(o))) if key is not None]
        derived = self.derived()
        if not wanted:
            yield from self._here
            yield from derived
            return
        for index in (self._by, self._derived_by):
            tables = [index[i].get(key, {}) for i, key in wanted]
            smallest = min(tables, key=len)
            yield from (name for name in smallest if all(name in t for t in tables))

    def derived(self) -> dict[str, Statement]:
        """What the inference in force finds, by id; computed when it is first looked at after a change."""
        if not self._fresh:
            self._fresh = True
            self._derived = {}
            rules = [op for op in self.ops if op.kind == "infer" and self.in_force(op.number)]
            if rules and self._infer is not None:
                found = self._infer(rules[-1].data, (s for s in map(self.get, list(self._here)) if s is not None))
                self._derived = {
                    s.id: self._marked(s) for s in found if s.id not in self._here and not self._withdrawn(s.id)
                }
            self._derived_by = ({}, {}, {})
            for name, made in self._derived.items():
                for table, key in zip(
                    self._derived_by, (made.subject, made.predicate, text_of(made.object)), strict=True
                ):
                    table.setdefault(key, {})[name] = None
        return self._derived

    def _marked(self, made: Statement) -> Statement:
        marks = [m for m in self._marks.get(made.id, ()) if self.in_force(m[0])]
        return dataclasses.replace(made, status=max(marks)[1]) if marks else made

    def _withdrawn(self, name: str) -> bool:
        return any(self.in_force(n) for n in self._gone.get(("statement", name), ()))

    def given(self, name: str) -> list[str]:
        """The ids as given of an id now (its own when it is one, or is inferred)."""
        return sorted(self._here[name]) if name in self._here else [name]

    def names(self) -> Iterator[str]:
        """Every name that occurs in a living statement, as given."""
        yield from self._uses

    def cut(self, entity: str) -> dict[str, Any]:
        """What a split of one entity from the others has to say: the merges it undoes, and those that keep the rest together."""
        rest = [n for n in self.component(entity) if n != entity]
        edges = sorted((n, entity, other) for other, n in self._edges.get(entity, ()) if self._edge(entity, other, n))
        return {
            "entity": entity,
            "cut": [list(e) for e in edges],
            "pairs": [[a, b] for a, b in itertools.pairwise(rest)],
        }


def _edge_key(number: int, a: str, b: str) -> str:
    return "\n".join([str(number), *sorted((a, b))])


def _sources(item: Evidence) -> Iterator[tuple[str, str]]:
    yield ("document", item.document)
    if item.run:
        yield ("run", item.run)
    if item.method:
        yield ("method", item.method)
    if item.model:
        yield ("model", item.model)
