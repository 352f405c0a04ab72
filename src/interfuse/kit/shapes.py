"""SHACL shapes compiled to SPARQL: a graph's contracts, checked where the graph lies.

Shapes come from SHACL files or from an ontology. The core constraints (class, datatype, nodeKind, counts, in, hasValue, pattern,
lengths, ranges, equals, disjoint, lessThan, uniqueLang, languageIn, closed, node, and; not, or, xone of what is said of a value alone)
over predicate, inverse, sequence and alternative paths become one query each. Shapes with other constraints (not, or, xone of
properties, qualified counts, SPARQL) are given to pyshacl.
Source: W3C SHACL (2017), sections 2 to 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data import graph_store
from interfuse.data.formats.rdf import read_rdf
from interfuse.data.graph import Graph
from interfuse.data.ontology import Ontology, read_ontology
from interfuse.data.statements import OWL, RDF, RDFS, SUBCLASS, TYPE, XSD, Literal, Statement, Term, term_of, text_of

SH = "http://www.w3.org/ns/shacl#"
#: constraints that are compiled; a shape with another one goes to pyshacl
COMPILED = (
    "class", "datatype", "nodeKind", "minCount", "maxCount", "in", "hasValue", "pattern", "flags", "minLength", "maxLength", "minInclusive",
    "maxInclusive", "minExclusive", "maxExclusive", "equals", "disjoint", "lessThan", "lessThanOrEquals", "uniqueLang", "languageIn", "closed",
    "ignoredProperties", "node", "and", "property", "not", "or", "xone",
)  # fmt: skip
#: constraints on a value alone; "not", "or" and "xone" of shapes that have no others are compiled
_ALONE = ("class", "datatype", "nodeKind", "in", "pattern", "flags", "minLength", "maxLength", "minInclusive", "maxInclusive", "minExclusive",
          "maxExclusive", "languageIn", "hasValue", "not", "or", "xone", "and", "node")  # fmt: skip
#: words about a shape that are no constraints
_ABOUT = ("path", "targetClass", "targetNode", "targetSubjectsOf", "targetObjectsOf", "severity", "message", "name", "description", "order",
          "group", "deactivated", "defaultValue")  # fmt: skip
#: where the pattern of an inner shape goes into its outer one's query
_SLOT = "\0"
_CASTS = ("integer", "decimal", "double", "float", "boolean", "dateTime", "date", "time")
_KINDS = {
    "IRI": "isIRI({v})", "BlankNode": "isBlank({v})", "Literal": "isLiteral({v})", "BlankNodeOrIRI": "(isIRI({v}) || isBlank({v}))",
    "IRIOrLiteral": "(isIRI({v}) || isLiteral({v}))", "BlankNodeOrLiteral": "(isBlank({v}) || isLiteral({v}))",
}  # fmt: skip


@dataclass(frozen=True)
class Violation:
    """A node that breaks a constraint.

    Attributes:
        focus: the node. path: the property's path in SPARQL, empty for the node itself. value: the offending value, if one.
        component: the constraint in SHACL's words (``MinCount``). shape: where it stands. message, severity: the shape's.
    """

    focus: str
    path: str
    value: Term | None
    component: str
    shape: str
    message: str = ""
    severity: str = "Violation"

    @property
    def order(self) -> tuple[str, ...]:
        return (self.focus, self.path, self.component, "" if self.value is None else text_of(self.value), self.shape)


@dataclass(frozen=True)
class Verdict:
    """What a check found. ``conforms``: no violations. ``others``: shapes that pyshacl looked at."""

    violations: tuple[Violation, ...]
    shapes: int
    others: tuple[str, ...] = ()

    @property
    def conforms(self) -> bool:
        return not self.violations

    def counts(self) -> dict[str, int]:
        """Violations by constraint."""
        found: dict[str, int] = {}
        for v in self.violations:
            found[v.component] = found.get(v.component, 0) + 1
        return dict(sorted(found.items()))


@dataclass(frozen=True)
class Shapes:
    """Shapes as statements; see :func:`read_shapes` and :func:`shapes_of`."""

    statements: tuple[Statement, ...] = field(repr=False)
    name: str = "shapes"

    def __add__(self, other: Shapes) -> Shapes:
        seen = {s.id: s for s in (*self.statements, *other.statements)}
        return Shapes(tuple(seen.values()), f"{self.name} and {other.name}")


def read_shapes(path: Path) -> Shapes:
    """Shapes of an RDF file.

    Raises:
        InterfuseError: ``input.missing``, ``input.format``, ``input.empty`` or ``needs.package``.
    """
    statements = tuple(read_rdf(path, strict=True)[0])
    if not any(s.predicate.startswith(SH) for s in statements):
        raise InterfuseError("input.empty", "the file holds no SHACL shapes", where=str(path))
    return Shapes(statements, path.stem)


def shapes_beside(folder: Path) -> list[Shapes]:
    """The contracts that are kept in a graph's folder: ``shapes.ttl``, and what ``ontology.ttl`` implies."""
    found = [read_shapes(folder / "shapes.ttl")] if (folder / "shapes.ttl").is_file() else []
    if (folder / "ontology.ttl").is_file():
        found.append(shapes_of(read_ontology(folder / "ontology.ttl")))
    return found


def shapes_of(ontology: Ontology) -> Shapes:
    """Shapes that an ontology implies: domains, ranges, datatypes, functional properties, disjoint classes, irreflexive properties.

    A property's subject must be of its domain (one of several), its values of its range or datatype; a functional property has at
    most one value.
    """
    made: list[Statement] = []
    count = 0

    def node(kind: str) -> str:
        nonlocal count
        count += 1
        return f"_:s{count}{kind}"

    def say(s: str, p: str, *objects: Term) -> None:
        made.extend(Statement(s, SH + p, o) for o in objects)

    def one_of(classes: Sequence[str]) -> str:
        parts = []
        for c in classes:
            part = node("c")
            say(part, "class", c)
            parts.append(part)
        return _list(parts, made, node)

    for p in ontology.properties.values():
        values = tuple(r for r in p.range)
        shape = node("p")
        if p.domain:
            subject = node("d")
            say(subject, "targetSubjectsOf", p.iri)
            made.append(Statement(subject, TYPE, SH + "NodeShape"))
            if len(p.domain) == 1:
                say(subject, "class", p.domain[0])
            else:
                say(subject, "or", one_of(p.domain))
        if values or "functional" in p.characteristics:
            made.append(Statement(shape, TYPE, SH + "NodeShape"))
            say(shape, "targetSubjectsOf", p.iri)
            inner = node("v")
            say(shape, "property", inner)
            say(inner, "path", p.iri)
            if "functional" in p.characteristics:
                say(inner, "maxCount", Literal("1", XSD + "integer"))
            if len(values) == 1:
                say(inner, "datatype" if _datatype(values[0]) else "class", values[0])
            elif values and not any(map(_datatype, values)):
                say(inner, "or", one_of(values))
    for c in ontology.classes.values():
        for other in c.disjoint:
            shape = node("x")
            made.append(Statement(shape, TYPE, SH + "NodeShape"))
            say(shape, "targetClass", c.iri)
            banned = node("n")
            say(shape, "not", banned)
            say(banned, "class", other)
    return Shapes(tuple(made), f"shapes of {ontology.name}")


def _datatype(iri: str) -> bool:
    return iri.startswith(XSD)


def _list(items: Sequence[str], made: list[Statement], node: Any) -> str:
    head = RDF + "nil"
    for item in reversed(items):
        cell = node("l")
        made.append(Statement(cell, RDF + "first", item))
        made.append(Statement(cell, RDF + "rest", head))
        head = cell
    return head


# ---------------------------------------------------------------------------------------------- compiling


@dataclass(frozen=True)
class Check:
    """One constraint as a query whose rows are violations: ``?this`` and, where it has one, ``?value`` (and ``?path`` if closed)."""

    component: str
    shape: str
    path: str
    query: str
    message: str = ""
    severity: str = "Violation"


class _Compiler:
    def __init__(self, shapes: Shapes, below: Mapping[str, Sequence[str]]) -> None:
        self.rows: dict[str, dict[str, list[Term]]] = {}
        for s in shapes.statements:
            self.rows.setdefault(s.subject, {}).setdefault(s.predicate, []).append(s.object)
        self.below = below
        self.used = 0

    def get(self, shape: str, word: str) -> list[Term]:
        return self.rows.get(shape, {}).get(SH + word, [])

    def one(self, shape: str, word: str) -> Term | None:
        return next(iter(self.get(shape, word)), None)

    def items(self, head: Term) -> list[Term]:
        found: list[Term] = []
        seen: dict[str, None] = {}
        node = str(head)
        while node != RDF + "nil" and node not in seen and node in self.rows:
            seen[node] = None
            found += self.rows[node].get(RDF + "first", [])
            node = str(next(iter(self.rows[node].get(RDF + "rest", [])), RDF + "nil"))
        return found

    def fresh(self) -> str:
        self.used += 1
        return f"?v{self.used}"

    def targets(self) -> dict[str, list[str]]:
        """Shapes with targets -> patterns that bind ``?node``."""
        found: dict[str, list[str]] = {}
        for shape, row in self.rows.items():
            patterns = [self.typed("?node", str(c)) for c in row.get(SH + "targetClass", ())]
            patterns += [f"VALUES ?node {{ {text_of(n)} }}" for n in row.get(SH + "targetNode", ())]
            patterns += [f"?node {text_of(p)} {self.fresh()} ." for p in row.get(SH + "targetSubjectsOf", ())]
            patterns += [f"{self.fresh()} {text_of(p)} ?node ." for p in row.get(SH + "targetObjectsOf", ())]
            kinds = row.get(TYPE, ())
            if any(k in kinds for k in (SH + "NodeShape", SH + "PropertyShape")) and any(
                k in kinds for k in (RDFS + "Class", OWL + "Class")
            ):
                patterns.append(self.typed("?node", shape))
            off = row.get(SH + "deactivated", ())
            if patterns and not any(isinstance(o, Literal) and o.value in ("true", "1") for o in off):
                found[shape] = patterns
        return found

    def typed(self, node: str, kind: str) -> str:
        kinds = self.below.get(kind, (kind,))
        if len(kinds) == 1:
            return f"{node} <{TYPE}> <{kind}> ."
        name = self.fresh()
        return f"VALUES {name} {{ {' '.join(f'<{k}>' for k in kinds)} }} {node} <{TYPE}> {name} ."

    def path(self, node: Term) -> str:
        """A SHACL path in SPARQL.

        Its ValueError says that it is of a kind that is not compiled.
        """
        if isinstance(node, Literal):
            raise ValueError("a path is a value")
        if not node.startswith("_:"):
            return f"<{node}>"
        row = self.rows.get(node, {})
        if SH + "inversePath" in row:
            return f"^{self.path(row[SH + 'inversePath'][0])}"
        if SH + "alternativePath" in row:
            return "(" + "|".join(self.path(p) for p in self.items(row[SH + "alternativePath"][0])) + ")"
        for word, mark in (("zeroOrMorePath", "*"), ("oneOrMorePath", "+"), ("zeroOrOnePath", "?")):
            if SH + word in row:
                return f"({self.path(row[SH + word][0])}){mark}"
        if RDF + "first" in row:
            return "(" + "/".join(self.path(p) for p in self.items(node)) + ")"
        raise ValueError("not a path")

    def inner(self, shape: str, word: str) -> list[list[str]]:
        """The shapes that "not", "node", "or", "xone" or "and" of a shape name, a list for each time it is said."""
        if word in ("not", "node"):
            return [[str(v)] for v in self.get(shape, word)]
        return [[str(m) for m in self.items(v)] for v in self.get(shape, word)]

    def alone(self, shape: str, word: str, seen: tuple[str, ...]) -> bool:
        """Whether the shapes it names this way say something of a value alone."""
        for name in (n for names in self.inner(shape, word) for n in names):
            if name in seen:
                return False
            for predicate in self.rows.get(name, {}):
                part = predicate.removeprefix(SH)
                if predicate.startswith(SH) and part not in _ALONE and part not in _ABOUT[1:]:
                    return False
                if part in ("not", "or", "xone", "and", "node") and not self.alone(name, part, (*seen, name)):
                    return False
        return True

    def wrong(self, shape: str, value: str, *, whole: bool = False) -> Iterator[tuple[str, str]]:
        """Constraints on a value alone: component, and an expression that is true where it is broken.

        ``whole``: "node" and "and" too, which are otherwise queries of their own.
        """
        for c in self.get(shape, "class"):
            yield "Class", f"NOT EXISTS {{ {self.typed(value, str(c))} }}"
        for d in self.get(shape, "datatype"):
            yield "Datatype", _wrong_datatype(value, str(d))
        for k in self.get(shape, "nodeKind"):
            yield "NodeKind", f"!{_KINDS[str(k).rsplit('#', 1)[-1]].format(v=value)}"
        for o in self.get(shape, "in"):
            yield "In", " && ".join(f"!sameTerm({value}, {text_of(t)})" for t in self.items(o)) or "true"
        flags = "".join(f.value for f in self.get(shape, "flags") if isinstance(f, Literal))
        for o in self.get(shape, "pattern"):
            word = text_of(Literal(o.value if isinstance(o, Literal) else str(o)))
            yield "Pattern", f'isBlank({value}) || !COALESCE(REGEX(STR({value}), {word}, "{flags}"), false)'
        for name, sign in (("minLength", "<"), ("maxLength", ">")):
            for o in self.get(shape, name):
                yield _title(name), f"isBlank({value}) || STRLEN(STR({value})) {sign} {text_of(o)}"
        for name, sign in (
            ("minInclusive", ">="),
            ("maxInclusive", "<="),
            ("minExclusive", ">"),
            ("maxExclusive", "<"),
        ):
            for o in self.get(shape, name):
                yield _title(name), f"!COALESCE({value} {sign} {text_of(o)}, false)"
        for o in self.get(shape, "languageIn"):
            wanted = (
                " || ".join(f'LANGMATCHES(LANG({value}), "{t.value}")' for t in self.items(o) if isinstance(t, Literal))
                or "false"
            )
            yield "LanguageIn", f"!COALESCE(isLiteral({value}) && ({wanted}), false)"
        if whole or self.one(shape, "path") is None:
            for o in self.get(shape, "hasValue"):
                yield "HasValue", f"!sameTerm({value}, {text_of(o)})"
        for word in ("not", "or", "xone", *(("and", "node") if whole else ())):
            for names in self.inner(shape, word):
                broken = [
                    "(" + (" || ".join(f"({x})" for _, x in self.wrong(n, value, whole=True)) or "false") + ")"
                    for n in names
                ]
                if word == "not":
                    yield "Not", f"!{broken[0]}"
                elif word == "or":
                    yield "Or", " && ".join(broken) or "true"
                elif word == "xone":
                    yield "Xone", " + ".join(f"IF({b}, 0, 1)" for b in broken or ["true"]) + " != 1"
                else:
                    yield _title(word), " || ".join(broken) or "false"

    def supported(self, shape: str, seen: tuple[str, ...] = ()) -> bool:
        """Whether a shape and all it names can be compiled."""
        if shape in seen:
            return False  # recursive shapes
        for predicate, values in self.rows.get(shape, {}).items():
            if not predicate.startswith(SH):
                continue
            word = predicate[len(SH) :]
            if word not in COMPILED and word not in _ABOUT:
                return False
            if word in ("not", "or", "xone"):
                if not self.alone(shape, word, (shape,)):
                    return False
                continue
            inner = (
                values
                if word in ("property", "node")
                else [m for v in values for m in self.items(v)]
                if word == "and"
                else []
            )
            if not all(self.supported(str(i), (*seen, shape)) for i in inner):
                return False
            if word == "path":
                try:
                    self.path(values[0])
                except (ValueError, RecursionError):
                    return False
        return True

    def checks(self, shape: str, target: str, focus: str = "?node", outer: Check | None = None) -> Iterator[Check]:
        """The queries of a shape whose focus nodes ``target`` binds to ``focus``."""
        word = self.one(shape, "path")
        path = self.path(word) if word is not None else ""
        message = next((m.value for m in self.get(shape, "message") if isinstance(m, Literal)), "")
        severity = str(self.one(shape, "severity") or SH + "Violation").rsplit("#", 1)[-1]
        value = self.fresh() if path else focus
        reach = f"{target} {focus} {path} {value} ." if path else target

        def check(component: str, pattern: str, shown: str = value, group: str = "", told: str = path) -> Check:
            if outer is not None:  # a part of another shape: what matters is whether the node conforms to it
                inside = f"{target} {{ SELECT {focus} WHERE {{ {pattern} }} {group} }}" if group else pattern
                return replace(outer, query=outer.query.replace(_SLOT, inside))
            second = f" ({shown} AS ?value)" if shown and shown != focus and not group else ""
            return Check(
                component,
                shape,
                told,
                f"SELECT DISTINCT ({focus} AS ?this){second} WHERE {{ {pattern} }} {group}".strip(),
                message,
                severity,
            )

        for component, expression in self.wrong(shape, value):
            yield check(component, f"{reach} FILTER({expression})")
        if path:
            for o in self.get(shape, "hasValue"):
                yield check("HasValue", f"{target} FILTER NOT EXISTS {{ {focus} {path} {text_of(o)} }}", "")
        if path:
            yield from self._of_paths(shape, target, focus, path, value, check)
        if any(isinstance(o, Literal) and o.value in ("true", "1") for o in self.get(shape, "closed")):
            allowed = [t for p in self.get(shape, "property") for t in self.get(str(p), "path")]
            allowed += [t for o in self.get(shape, "ignoredProperties") for t in self.items(o)]
            p, v = self.fresh(), self.fresh()
            names = ", ".join(text_of(t) for t in allowed if not isinstance(t, Literal) and not t.startswith("_:"))
            banned = f"FILTER({p} NOT IN ({names}))" if names else ""
            made = check("Closed", f"{target} {focus} {p} {v} . {banned}", v)
            yield (
                replace(made, path="?", query=made.query.replace(" WHERE", f" ({p} AS ?path) WHERE", 1))
                if outer is None
                else made
            )
        for inner in self.get(shape, "property"):
            yield from self.checks(str(inner), reach, value, outer)
        nested = [(str(n), "Node") for n in self.get(shape, "node")]
        nested += [(str(n), "And") for o in self.get(shape, "and") for n in self.items(o)]
        for inner_name, component in nested:
            yield from self.checks(inner_name, reach, value, check(component, _SLOT))

    def _of_paths(self, shape: str, target: str, focus: str, path: str, value: str, check: Any) -> Iterator[Check]:
        """Constraints that only properties have."""
        for o in self.get(shape, "minCount"):
            least = int(o.value) if isinstance(o, Literal) else 0
            if least == 1:
                yield check("MinCount", f"{target} FILTER NOT EXISTS {{ {focus} {path} {value} }}", "")
            elif least > 1:
                yield check(
                    "MinCount",
                    f"{target} OPTIONAL {{ {focus} {path} {value} }}",
                    "",
                    f"GROUP BY {focus} HAVING(COUNT(DISTINCT {value}) < {least})",
                )
        for o in self.get(shape, "maxCount"):
            most = int(o.value) if isinstance(o, Literal) else 0
            if most == 1:
                other = self.fresh()
                yield check(
                    "MaxCount", f"{target} {focus} {path} {value}, {other} . FILTER(!sameTerm({value}, {other}))", ""
                )
            else:
                yield check(
                    "MaxCount",
                    f"{target} {focus} {path} {value} .",
                    "",
                    f"GROUP BY {focus} HAVING(COUNT(DISTINCT {value}) > {most})",
                )
        for p in self.get(shape, "equals"):
            yield check(
                "Equals", f"{target} {focus} {path} {value} . FILTER NOT EXISTS {{ {focus} {text_of(p)} {value} }}"
            )
            yield check(
                "Equals", f"{target} {focus} {text_of(p)} {value} . FILTER NOT EXISTS {{ {focus} {path} {value} }}"
            )
        for p in self.get(shape, "disjoint"):
            yield check("Disjoint", f"{target} {focus} {path} {value} . {focus} {text_of(p)} {value} .")
        for name, sign in (("lessThan", "<"), ("lessThanOrEquals", "<=")):
            for p in self.get(shape, name):
                other = self.fresh()
                component = name[0].upper() + name[1:]
                yield check(
                    component,
                    f"{target} {focus} {path} {value} . {focus} {text_of(p)} {other} . FILTER(!COALESCE({value} {sign} {other}, false))",
                )
        for o in self.get(shape, "uniqueLang"):
            if isinstance(o, Literal) and o.value in ("true", "1"):
                other = self.fresh()
                yield check("UniqueLang", f"{target} {focus} {path} {value}, {other} . FILTER(!sameTerm({value}, {other}) && "
                                          f'LANG({value}) != "" && LCASE(LANG({value})) = LCASE(LANG({other})))', "")  # fmt: skip


def _title(word: str) -> str:
    return word[0].upper() + word[1:]


def _wrong_datatype(value: str, datatype: str) -> str:
    test = f"!isLiteral({value}) || DATATYPE({value}) != <{datatype}>"
    word = datatype.removeprefix(XSD)
    if datatype.startswith(XSD) and word in _CASTS:  # "abc"^^xsd:integer is no integer
        test += f" || !BOUND({value}) || !COALESCE(isLiteral(<{datatype}>(STR({value}))), false)"
    return test


def compile_shapes(shapes: Shapes, below: Mapping[str, Sequence[str]] | None = None) -> tuple[list[Check], list[str]]:
    """The queries of all shapes that have targets, and the shapes that must be left to pyshacl.

    Args:
        below: a class -> itself and its subclasses.
    """
    compiler = _Compiler(shapes, below or {})
    checks: list[Check] = []
    others: list[str] = []
    for shape, patterns in sorted(compiler.targets().items()):
        if not compiler.supported(shape):
            others.append(shape)
            continue
        for pattern in patterns:
            checks += compiler.checks(shape, pattern)
    return checks, others


# ---------------------------------------------------------------------------------------------- checking


def validate(graph: Graph, shapes: Shapes) -> Verdict:
    """Checks a graph's living statements against shapes.

    Raises:
        InterfuseError: ``needs.package`` for pyoxigraph, or for pyshacl where a shape needs it.
    """
    return check_store(graph.store(meta=False), shapes)


def check_store(store: Any, shapes: Shapes) -> Verdict:
    """As :func:`validate`, for a store of :mod:`interfuse.data.graph_store`."""
    checks, others = compile_shapes(shapes, _below(store))
    found: dict[tuple[Any, ...], Violation] = {}
    for check in checks:
        for row in graph_store.run(store, check.query):
            path = text_of(row["path"]) if row.get("path") is not None else check.path  # type: ignore[arg-type]
            focus = row["this"]
            name = focus.value if isinstance(focus, Literal) else str(focus)
            made = Violation(name, path, row.get("value"), check.component, check.shape, check.message, check.severity)
            if not check.path and made.value is None:
                made = Violation(name, "", focus, check.component, check.shape, check.message, check.severity)
            found.setdefault(made.order, made)
    for made in _by_pyshacl(store, shapes, others) if others else ():
        found.setdefault(made.order, made)
    return Verdict(
        tuple(sorted(found.values(), key=lambda v: v.order)),
        len({c.shape for c in checks}) + len(others),
        tuple(others),
    )


def _below(store: Any) -> dict[str, tuple[str, ...]]:
    """Classes with subclasses -> themselves and all below."""
    children: dict[str, list[str]] = {}
    for row in graph_store.run(store, f"SELECT ?a ?b {{ ?a <{SUBCLASS}> ?b FILTER(isIRI(?a) && isIRI(?b)) }}"):
        children.setdefault(str(row["b"]), []).append(str(row["a"]))
    from interfuse.data.ontology import closure

    return {c: tuple(sorted(closure(c, lambda x: children.get(x, ())))) for c in sorted(children)}


def _by_pyshacl(store: Any, shapes: Shapes, wanted: Iterable[str]) -> list[Violation]:
    """What pyshacl says of some shapes, on the store's plain triples."""
    try:
        import pyshacl
        import rdflib
    except ImportError as error:
        raise InterfuseError(
            "needs.package", "these shapes need the package pyshacl", fix="pip install 'interfuse[shacl]'"
        ) from error
    wanted = tuple(wanted)
    data = rdflib.Graph()
    triples = graph_store.run(store, "CONSTRUCT { ?s ?p ?o } WHERE { ?s ?p ?o }").rows
    data.parse(data="".join(f"{text_of(s)} {text_of(p)} {text_of(o)} .\n" for s, p, o in triples), format="nt")  # type: ignore[arg-type]
    chosen = rdflib.Graph()
    aimed = [SH + w for w in ("targetClass", "targetNode", "targetSubjectsOf", "targetObjectsOf")]
    kept = [s for s in shapes.statements if s.predicate not in aimed or s.subject in wanted]
    chosen.parse(
        data="".join(f"{text_of(s.subject)} {text_of(s.predicate)} {text_of(s.object)} .\n" for s in kept), format="nt"
    )
    _, report, _ = pyshacl.validate(data, shacl_graph=chosen, advanced=False, meta_shacl=False, inference="none")
    return read_report(report)


def read_report(report: Any) -> list[Violation]:
    """The violations of a SHACL report (an rdflib graph), as ours."""
    import rdflib

    sh = rdflib.Namespace(SH)

    def term(value: Any) -> Term | None:
        return None if value is None else term_of(value.n3())

    def path(node: Any) -> str:
        if node is None:
            return ""
        if isinstance(node, rdflib.BNode):
            inverse = report.value(node, sh.inversePath)
            return f"^{path(inverse)}" if inverse is not None else "(path)"
        return f"<{node}>"

    found = []
    inner = set(report.objects(None, sh.detail))  # reasons of another result
    for result in report.subjects(rdflib.RDF.type, sh.ValidationResult):
        if result in inner:
            continue
        component = re.sub(
            r"ConstraintComponent\Z", "", str(report.value(result, sh.sourceConstraintComponent)).rsplit("#", 1)[-1]
        )
        focus = report.value(result, sh.focusNode)
        shape = report.value(result, sh.sourceShape)
        name = f"_:{focus}" if isinstance(focus, rdflib.BNode) else str(focus)
        found.append(Violation(name, path(report.value(result, sh.resultPath)), term(report.value(result, sh.value)), component,
                               f"_:{shape}" if isinstance(shape, rdflib.BNode) else str(shape), str(report.value(result, sh.resultMessage) or ""),
                               str(report.value(result, sh.resultSeverity) or "").rsplit("#", 1)[-1]))  # fmt: skip
    return found
