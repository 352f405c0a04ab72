"""An ontology that grows by checked proposals and is woven into one hierarchy (Kaiser et al. 2025, arXiv 2507.15917, HyDRA).

Everything here is deterministic: a proposal is looked at and either has issues, in words that can be sent back to whoever made it,
or is added. :func:`clusters`, :func:`operation_issues` and :func:`applied` are the paper's Weaver. Classes go by name; two names that
differ in case alone are the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data.ontology import CHARACTERISTICS, Class, Ontology, Property, closure
from interfuse.data.statements import NS, XSD, relation_id

#: where classes stand that have only a name
CLASS = NS + "class:"
#: what a data property may hold
DATATYPES = ("string", "integer", "decimal", "double", "boolean", "date", "dateTime", "gYear", "anyURI")


@dataclass(frozen=True)
class Issue:
    """What is wrong with a proposal: a code, where in it, what, and how to mend it."""

    code: str
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True)
class Relating:
    """A proposed property: an object property ranges over classes, a data property over one of :data:`DATATYPES`."""

    name: str
    domain: tuple[str, ...] = ()
    range: tuple[str, ...] = ()
    characteristics: tuple[str, ...] = ()
    description: str = ""
    data: bool = False


@dataclass(frozen=True)
class Concepts:
    """Classes, what is below what, and properties: a proposal, or all that has been accepted so far.

    Attributes:
        classes: name -> description. below: (subclass, superclass) pairs. properties: by name.
    """

    classes: Mapping[str, str] = field(default_factory=dict)
    below: tuple[tuple[str, str], ...] = ()
    properties: Mapping[str, Relating] = field(default_factory=dict)

    @property
    def parents(self) -> dict[str, str]:
        """Subclass -> superclass."""
        return dict(self.below)

    def above(self, name: str) -> tuple[str, ...]:
        """A class and all classes above it, itself first; circles are harmless."""
        up = self.parents
        return closure(name, lambda c: (up[c],) if c in up else ())

    def called(self, name: str) -> str:
        """The accepted spelling of a class's name, or the name itself."""
        return next((c for c in self.classes if c.casefold() == name.casefold()), name)

    def roots(self) -> list[str]:
        """Classes with no superclass, in their order."""
        up = self.parents
        return [c for c in self.classes if c not in up]

    def as_dict(self) -> dict[str, Any]:
        """As JSON, in the form that :func:`read_concepts` reads."""
        return {
            "classes": [{"name": n, "description": d} for n, d in self.classes.items()],
            "subclass_of": [{"child": c, "parent": p} for c, p in self.below],
            "object_properties": [{"name": p.name, "domain": list(p.domain), "range": list(p.range), "characteristics": list(p.characteristics)}
                                  for p in self.properties.values() if not p.data],
            "data_properties": [{"name": p.name, "domain": list(p.domain), "range": p.range[0] if p.range else "string"}
                                for p in self.properties.values() if p.data],
        }  # fmt: skip

    def ontology(self, name: str = "ontology") -> Ontology:
        """As an ontology whose IRIs are those that statements of the room build get for these names."""

        def iri(c: str) -> str:
            return relation_id(c, base=CLASS)

        up = self.parents
        classes = [
            Class(iri(c), c, parents=(iri(up[c]),) if c in up else (), comment=d) for c, d in self.classes.items()
        ]
        properties = [Property(relation_id(p.name), p.name, domain=tuple(map(iri, p.domain)), data=p.data, characteristics=p.characteristics,
                               range=tuple(XSD + r for r in p.range) if p.data else tuple(map(iri, p.range)), comment=p.description)
                      for p in self.properties.values()]  # fmt: skip
        return Ontology.of(classes, properties, name)


def concepts_of(ontology: Ontology) -> Concepts:
    """An ontology as concepts, by label. Of several superclasses the first is kept."""
    label = ontology.label
    classes = {label(c.iri): c.comment for c in ontology.classes.values()}
    below = tuple((label(c.iri), label(c.parents[0])) for c in ontology.classes.values() if c.parents)
    made = {}
    for p in ontology.properties.values():
        made[label(p.iri)] = Relating(label(p.iri), tuple(map(label, p.domain)), tuple(r.removeprefix(XSD) if p.data else label(r) for r in p.range),
                                      p.characteristics, p.comment, p.data)  # fmt: skip
    return Concepts(classes, below, made)


def read_concepts(value: Any) -> Concepts:
    """A proposal from JSON: ``classes``, ``subclass_of``, ``object_properties``, ``data_properties``, each a list of objects.

    Raises:
        InterfuseError: ``input.format`` naming the part that is of another form.
    """
    if not isinstance(value, Mapping):
        raise InterfuseError("input.format", "the reply is not a JSON object with classes and properties")

    def rows(key: str) -> list[Mapping[str, Any]]:
        found = value.get(key) or []
        if not isinstance(found, list) or not all(isinstance(r, Mapping) for r in found):
            raise InterfuseError("input.format", f"{key} is not a list of objects", where=key)
        return found

    def word(row: Mapping[str, Any], key: str, where: str) -> str:
        text = row.get(key)
        if not isinstance(text, str) or not text.strip():
            raise InterfuseError("input.format", f"an entry has no {key}", where=where)
        return text.strip()

    def words(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
        found = row.get(key) or []
        return tuple(str(w).strip() for w in (found if isinstance(found, list) else [found]) if str(w).strip())

    classes = {word(r, "name", "classes"): str(r.get("description") or "") for r in rows("classes")}
    below = tuple((word(r, "child", "subclass_of"), word(r, "parent", "subclass_of")) for r in rows("subclass_of"))
    properties = {}
    for key, data in (("object_properties", False), ("data_properties", True)):
        for r in rows(key):
            ranges = (
                tuple(w.removeprefix("xsd:").removeprefix(XSD) for w in words(r, "range"))
                if data
                else words(r, "range")
            )
            name = word(r, "name", key)
            properties[name] = Relating(
                name, words(r, "domain"), ranges, words(r, "characteristics"), str(r.get("description") or ""), data
            )
    return Concepts(classes, below, properties)


def issues(state: Concepts, proposal: Concepts) -> list[Issue]:
    """What is wrong with adding a proposal to what is there (step 4 of the paper). With issues of classes, only these are told.

    A class has at most one superclass, there is one root, no circle of any length, and properties join classes that exist.
    """
    found: list[Issue] = []
    known = {c.casefold() for c in state.classes}
    for name in proposal.classes:
        if name.casefold() in known:
            found.append(
                Issue("class.exists", f"classes/{name}", "a class of this name exists", "return new concepts only")
            )
        elif not name[0].isupper():
            found.append(Issue("class.name", f"classes/{name}", "the name of a class begins with a capital letter"))
    if found:
        return found
    merged = _sum(state, proposal)
    up: dict[str, str] = dict(state.parents)
    for child, parent in proposal.below:
        path, one, other = f"subclass_of/{child}<{parent}", merged.called(child), merged.called(parent)
        lost = [c for c in (one, other) if c not in merged.classes]
        if lost:
            found.append(Issue("subclass.unknown", path, f"there is no class {lost[0]}", "define it under classes"))
        elif one == other:
            found.append(Issue("subclass.self", path, "a class is not below itself"))
        elif up.get(one, other) != other:
            found.append(
                Issue("subclass.second", path, f"{one} is already below {up[one]}", "a class has one superclass")
            )
        elif one in closure(other, lambda c: (up[c],) if c in up else ()):
            found.append(
                Issue("subclass.circle", path, f"{other} is already below {one}", "the hierarchy has no circles")
            )
        else:
            up[one] = other
    roots = [c for c in merged.classes if c not in up]
    if len(roots) > 1:
        extra = [r for r in roots if r in proposal.classes and (state.classes or r != roots[0])]
        for name in extra or roots[1:]:
            found.append(
                Issue(
                    "class.root",
                    f"classes/{name}",
                    "the class has no superclass, and there is one root only",
                    f"put it below a class such as {roots[0]}",
                )
            )
    found += [i for p in proposal.properties.values() for i in _property_issues(p, state, merged)]
    return found


def _property_issues(p: Relating, state: Concepts, merged: Concepts) -> list[Issue]:
    path, found = f"{'data' if p.data else 'object'}_properties/{p.name}", []
    if p.name.casefold() in {n.casefold() for n in state.properties}:
        found.append(Issue("property.exists", path, "a property of this name exists", "return new concepts only"))
    for side, names in (("domain", p.domain), *((("range", p.range),) if not p.data else ())):
        found += [
            Issue("property.unknown", f"{path}/{side}", f"there is no class {c}", "define it under classes")
            for c in names
            if merged.called(c) not in merged.classes
        ]
    if not p.data and not p.range:
        found.append(Issue("property.range", path, "an object property needs classes as its range"))
    if p.data and (len(p.range) != 1 or p.range[0] not in DATATYPES):
        found.append(
            Issue(
                "property.datatype",
                f"{path}/range",
                f"{', '.join(p.range) or 'nothing'} is not a datatype",
                "one of " + ", ".join(DATATYPES),
            )
        )
    found += [
        Issue("property.characteristic", path, f"a property is not {w}", "one of " + ", ".join(CHARACTERISTICS))
        for w in p.characteristics
        if w not in CHARACTERISTICS
    ]
    return found


def _sum(state: Concepts, proposal: Concepts) -> Concepts:
    return Concepts(
        {**state.classes, **proposal.classes},
        (*state.below, *proposal.below),
        {**state.properties, **proposal.properties},
    )


def extended(state: Concepts, proposal: Concepts) -> Concepts:
    """State and proposal together, names spelt as they were first.

    Raises:
        InterfuseError: ``param.value`` when the proposal has issues.
    """
    wrong = issues(state, proposal)
    if wrong:
        raise InterfuseError("param.value", f"the proposal has {len(wrong)} issues: {'; '.join(map(str, wrong[:5]))}")
    made = _sum(state, proposal)
    below = dict.fromkeys((made.called(c), made.called(p)) for c, p in made.below)
    spelt = {n: replace(p, domain=tuple(map(made.called, p.domain)), range=p.range if p.data else tuple(map(made.called, p.range)))
             for n, p in made.properties.items()}  # fmt: skip
    return Concepts(made.classes, tuple(below), spelt)


# ------------------------------------------------------------------------------------------------ the Weaver


def clusters(state: Concepts) -> list[list[str]]:
    """Connected parts of the hierarchy taken as undirected, the largest first; a class that stands alone is one (step 5)."""
    near: dict[str, dict[str, None]] = {c: {} for c in state.classes}
    for child, parent in state.below:
        near[child][parent] = None
        near[parent][child] = None
    seen: dict[str, None] = {}
    found = []
    for start in state.classes:
        if start not in seen:
            part = list(closure(start, lambda c: tuple(near[c])))
            seen.update(dict.fromkeys(part))
            order = {c: i for i, c in enumerate(state.classes)}
            found.append(sorted(part, key=order.__getitem__))
    return sorted(found, key=len, reverse=True)


@dataclass(frozen=True)
class Operation:
    """One repair: ``merge`` two clusters by relations between their classes, ``bridge`` two clusters, or ``prune`` classes of one.

    Attributes:
        clusters: their numbers, from 1. below: new (subclass, superclass) pairs. classes: those to delete.
    """

    kind: str
    clusters: tuple[int, ...]
    below: tuple[tuple[str, str], ...] = ()
    classes: tuple[str, ...] = ()


def applied(state: Concepts, operation: Operation) -> Concepts:
    """The state after an operation. Properties lose classes that vanish; one that loses all of a side vanishes with them."""
    gone = {c.casefold() for c in operation.classes} if operation.kind == "prune" else set()
    classes = {c: d for c, d in state.classes.items() if c.casefold() not in gone}
    new = tuple((state.called(c), state.called(p)) for c, p in operation.below)
    below = tuple(dict.fromkeys((c, p) for c, p in (*state.below, *new) if c in classes and p in classes))
    properties = {}
    for name, p in state.properties.items():
        domain, rang = (tuple(c for c in side if c in classes) for side in (p.domain, p.range))
        if (domain or not p.domain) and (p.data or rang or not p.range):
            properties[name] = replace(p, domain=domain, range=p.range if p.data else rang)
    return Concepts(classes, below, properties)


def operation_issues(state: Concepts, operation: Operation) -> list[Issue]:
    """What is wrong with an operation; a dry run must lower the number of clusters and leave a hierarchy without circles."""
    parts, found = clusters(state), []
    needed = 1 if operation.kind == "prune" else 2
    if operation.kind not in ("merge", "bridge", "prune"):
        return [Issue("operation.kind", "kind", f"{operation.kind!r} is no operation", "merge, bridge or prune")]
    if len(dict.fromkeys(operation.clusters)) != needed or not all(1 <= n <= len(parts) for n in operation.clusters):
        found.append(
            Issue(
                "operation.clusters",
                "clusters",
                f"{operation.kind} takes {needed} clusters, numbered 1 to {len(parts)}",
            )
        )
    if operation.kind == "prune":
        inside = parts[operation.clusters[0] - 1] if not found else list(state.classes)
        found += [
            Issue("operation.class", f"classes/{c}", "the class is not in the cluster")
            for c in operation.classes
            if state.called(c) not in inside
        ]
        if not operation.classes:
            found.append(Issue("operation.empty", "classes", "no class is named"))
    up = state.parents
    for child, parent in operation.below:
        one, other, path = state.called(child), state.called(parent), f"below/{child}<{parent}"
        lost = [c for c in (one, other) if c not in state.classes]
        if lost:
            found.append(Issue("operation.class", path, f"there is no class {lost[0]}"))
        elif one in up and up[one] != other:
            found.append(
                Issue(
                    "subclass.second",
                    path,
                    f"{one} is already below {up[one]}",
                    "put the other cluster's root below a class",
                )
            )
        elif one in closure(other, lambda c: (up[c],) if c in up else ()):
            found.append(Issue("subclass.circle", path, f"{other} is already below {one}"))
        else:
            up[one] = other
    if not found and len(clusters(applied(state, operation))) >= len(parts):
        found.append(
            Issue(
                "operation.useless",
                "operation",
                f"there would still be {len(clusters(applied(state, operation)))} clusters",
            )
        )
    return found


def woven(
    state: Concepts, propose: Callable[[Concepts, list[list[str]]], Operation | None]
) -> tuple[Concepts, list[Operation]]:
    """Repairs until there is one cluster, or until ``propose`` gives up (None): each step must lower their number, so it ends."""
    history: list[Operation] = []
    while len(parts := clusters(state)) > 1:
        step = propose(state, parts)
        if step is None or operation_issues(state, step):
            break
        state = applied(state, step)
        history.append(step)
    return state, history


def under_one_root(state: Concepts, parts: Sequence[Sequence[str]]) -> Operation:
    """The repair that needs nobody: the root of the second cluster goes below the root of the first."""
    up = state.parents
    top = [next(c for c in part if c not in up) for part in parts[:2]]
    return Operation("bridge", (1, 2), ((top[1], top[0]),))


def names_of(items: Iterable[str]) -> str:
    """Names for a prompt."""
    return ", ".join(items) or "none yet"
