"""GraphML: entities as nodes with typed attributes, relations as edges; values are attributes of their node.

Every edge and node also carries its statements as JSON (attribute ``interfuse``), so that reading the file again loses nothing.
Files of others (networkx, Gephi, LightRAG, nano-graphrag) are read by their attributes. A DTD is refused: no entity is expanded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import read_bytes
from interfuse.data.graph import Graph
from interfuse.data.graph_columns import SHOWN, Problems
from interfuse.data.statements import (
    LABEL,
    TYPE,
    XSD,
    Evidence,
    Literal,
    Statement,
    check_name,
    entity_id,
    from_json,
    number,
    relation_id,
    to_json,
)

LIMIT = 2**31
OWN = "interfuse"
_ODD = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_KINDS = {XSD + "integer": "long", XSD + "double": "double", XSD + "decimal": "double", XSD + "boolean": "boolean"}
#: attributes that hold an edge's relation, an entity's label or its class in files of others, the most telling first
RELATION_NAMES = ("predicate", "relation", "label", "type", "rel_type", "keywords", "name")
LABEL_NAMES = ("label", "name", "title", "entity_name", "d_label")
TYPE_NAMES = ("entity_type", "type", "class", "category")


def clean(text: str) -> str:
    """Text as XML 1.0 may hold it: other characters become U+FFFD."""
    return _ODD.sub("\ufffd", text)


def write_graphml(path: Path, graph: Graph) -> None:
    """Writes a graph; nodes and edges stream, in sorted order."""
    statements = graph.statements()
    own: dict[str, list[Statement]] = {}
    edges: list[Statement] = []
    keys: dict[str, str] = {}
    for s in statements:
        if isinstance(s.object, str) and s.predicate != TYPE:
            edges.append(s)
            own.setdefault(s.subject, [])
            own.setdefault(s.object, [])
        else:
            own.setdefault(s.subject, []).append(s)
            if isinstance(s.object, Literal):
                kind = _KINDS.get(s.object.datatype, "string")
                keys[s.predicate] = kind if keys.get(s.predicate, kind) == kind else "string"
    many = _repeated(own)
    names = {p: f"p{i}" for i, p in enumerate(sorted(keys))}
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write('<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n')
        for key, name, where, kind in [
            ("label", "label", "node", "string"), ("types", "types", "node", "string"), (OWN, OWN, "node", "string"),
            ("predicate", "predicate", "edge", "string"), ("edge_label", "label", "edge", "string"), ("weight", "weight", "edge", "double"),
            ("status", "status", "edge", "string"), ("documents", "documents", "edge", "long"), (f"{OWN}_edge", OWN, "edge", "string"),
            *((names[p], p, "node", "string" if p in many else keys[p]) for p in sorted(keys)),
        ]:  # fmt: skip
            out.write(f'<key id="{key}" for="{where}" attr.name={quoteattr(clean(name))} attr.type="{kind}"/>\n')
        out.write('<graph edgedefault="directed">\n')
        for node in sorted(own):
            data = [("label", graph.label(node)), ("types", " ".join(graph.types(node)))]
            values: dict[str, list[str]] = {}
            for s in own[node]:
                if isinstance(s.object, Literal):
                    values.setdefault(s.predicate, []).append(s.object.value)
            data += [
                (names[p], v[0] if p not in many else json.dumps(v, ensure_ascii=False))
                for p, v in sorted(values.items())
            ]
            data.append((OWN, json.dumps([to_json(s) for s in own[node]])))
            out.write(f"<node id={quoteattr(clean(node))}>{_data(data)}</node>\n")
        for s in edges:
            data = [("predicate", s.predicate), ("edge_label", graph.label(s.predicate)), ("weight", repr(s.confidence)), ("status", s.status),
                    ("documents", str(len({e.document for e in s.evidence}))), (f"{OWN}_edge", json.dumps(to_json(s)))]  # fmt: skip
            out.write(
                f'<edge id="{s.id}" source={quoteattr(clean(s.subject))} target={quoteattr(clean(str(s.object)))}>{_data(data)}</edge>\n'
            )
        out.write("</graph>\n</graphml>\n")


def _data(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f'<data key="{key}">{escape(clean(value))}</data>' for key, value in pairs if value)


def _repeated(own: dict[str, list[Statement]]) -> dict[str, None]:
    """Predicates of which some node has several values."""
    found: dict[str, None] = {}
    for statements in own.values():
        seen: dict[str, None] = {}
        for s in statements:
            if isinstance(s.object, Literal):
                if s.predicate in seen:
                    found[s.predicate] = None
                seen[s.predicate] = None
    return found


class _Reader:
    """What a GraphML file says, read by expat as it comes."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, str]] = {}
        self.nodes: dict[str, dict[str, str]] = {}
        self.edges: list[tuple[str, str, dict[str, str]]] = []
        self.kinds: dict[str, str] = {}
        self._at: dict[str, str] | None = None
        self._key = ""
        self._text: list[str] | None = None
        self.seen_graph = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        tag = tag.rsplit(":", 1)[-1]
        if tag == "key" and "id" in attributes:
            name = attributes.get("attr.name", attributes["id"])
            self.keys[attributes["id"]] = (name, attributes.get("attr.type", "string"))
            self.kinds[name] = attributes.get("attr.type", "string")
        elif tag == "graph":
            self.seen_graph = True
        elif tag == "node" and "id" in attributes:
            self._at = self.nodes.setdefault(attributes["id"], {})
        elif tag == "edge" and "source" in attributes and "target" in attributes:
            self._at = {}
            self.edges.append((attributes["source"], attributes["target"], self._at))
        elif tag == "data" and self._at is not None:
            self._key = self.keys.get(attributes.get("key", ""), (attributes.get("key", ""), ""))[0]
            self._text = []

    def text(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def end(self, tag: str) -> None:
        tag = tag.rsplit(":", 1)[-1]
        if tag == "data" and self._text is not None and self._at is not None:
            self._at[self._key] = "".join(self._text)
            self._text = None
        elif tag in ("node", "edge"):
            self._at = None


def _no_dtd(*_: Any) -> None:
    raise InterfuseError(
        "input.format", "the file has a document type declaration, which can name other files or grow without end"
    )


def read_graphml(path: Path) -> tuple[Graph, Problems]:
    """A graph of a GraphML file.

    Raises:
        InterfuseError: ``input.missing``, ``input.limit`` or ``input.format``.
    """
    reader, parser = _Reader(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = reader.text, _no_dtd
    parser.buffer_text = True
    try:
        parser.Parse(read_bytes(path, limit=LIMIT), True)
    except expat.ExpatError as error:
        raise InterfuseError("input.format", f"not XML: {error}", where=str(path)) from error
    if not reader.seen_graph:
        raise InterfuseError("input.format", "the file holds no GraphML graph", where=str(path))
    shown: list[str] = []
    count = 0
    made: list[Statement] = []
    names = {node: _name(node, data) for node, data in reader.nodes.items()}

    def keep(rows: Iterable[dict[str, Any]], make: Any, place: str) -> None:
        nonlocal count
        for row in rows:
            try:
                made.append(make(row).checked())
            except (InterfuseError, ValueError, TypeError, KeyError) as error:
                count += 1
                if len(shown) < SHOWN:
                    shown.append(f"{path.name}: {place}: {str(error).splitlines()[0]}")

    for node, data in reader.nodes.items():
        if OWN in data:
            keep(_json(data[OWN]), from_json, f"node {node}")
        else:
            keep(_of_node(names[node], node, data, reader.kinds), lambda row: row["statement"], f"node {node}")
    for source, target, data in reader.edges:
        if OWN in data:
            keep(_json(data[OWN]), from_json, f"edge {source} to {target}")
        else:
            ends = {"from": names.get(source) or _name(source, {}), "to": names.get(target) or _name(target, {})}
            keep(
                [{**ends, "data": data}],
                lambda row: _of_edge(row["from"], row["to"], row["data"]),
                f"edge {source} to {target}",
            )
    graph = Graph(path.stem)
    graph.add(made, note=f"read from {path.name}")
    return graph, Problems(tuple(shown), count)


def _json(text: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return [{}]
    return [v if isinstance(v, dict) else {} for v in (value if isinstance(value, list) else [value])]


def _name(node: str, data: dict[str, str]) -> str:
    try:
        check_name(node)
        return node
    except InterfuseError:
        kind = next((data[n] for n in TYPE_NAMES if data.get(n)), "")
        return entity_id(next((data[n] for n in LABEL_NAMES if data.get(n)), node), kind.strip('"'), key=node)


def _of_node(name: str, node: str, data: dict[str, str], kinds: dict[str, str]) -> list[dict[str, Any]]:
    label = next((data[n] for n in LABEL_NAMES if data.get(n)), node).strip('"')
    proof = _proof(data)
    rows = [Statement(name, LABEL, Literal(label), evidence=proof)] if label != name else []
    for key, value in data.items():
        if (
            not value
            or (key in LABEL_NAMES and value.strip('"') == label)
            or key in ("source_id", "file_path", "types")
        ):
            continue
        if key in TYPE_NAMES:
            rows.append(Statement(name, TYPE, relation_id(value.strip('"')), evidence=proof))
        else:
            rows.append(Statement(name, _predicate(key), _value(value, kinds.get(key, "string")), evidence=proof))
    return [{"statement": s} for s in rows]


def _of_edge(source: str, target: str, data: dict[str, str]) -> Statement:
    word = (
        next((data[n] for n in RELATION_NAMES if data.get(n)), "related to").strip('"').split("<SEP>")[0].split(",")[0]
    )
    qualifiers = tuple(
        (_predicate(k), Literal(v))
        for k, v in sorted(data.items())
        if v and k not in (*RELATION_NAMES, "source_id", "weight", "file_path")
    )
    return Statement(source, _predicate(word), target, qualifiers, evidence=_proof(data))


def _proof(data: dict[str, str]) -> tuple[Evidence, ...]:
    places = [p for p in data.get("source_id", "").split("<SEP>") if p]
    return tuple(Evidence(p) for p in dict.fromkeys(places))


def _predicate(word: str) -> str:
    try:
        check_name(word, blank=False)
        return word
    except InterfuseError:
        return relation_id(word)


def _value(text: str, kind: str) -> Literal:
    try:
        if kind in ("int", "long"):
            return number(int(text))
        if kind in ("float", "double"):
            return number(float(text))
    except (ValueError, InterfuseError):
        return Literal(text)
    return Literal(text.lower(), XSD + "boolean") if kind == "boolean" else Literal(text)
