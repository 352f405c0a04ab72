"""GraphRAG's parquet: entities, relationships, text units and documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data import graph_files as files
from interfuse.data.graph import Graph
from interfuse.data.graph_columns import SHOWN, Problems
from interfuse.data.statements import (
    LABEL,
    TYPE,
    Evidence,
    Literal,
    Statement,
    check_name,
    entity_id,
    number,
    relation_id,
)

DESCRIPTION = relation_id("description")
RELATED = relation_id("related to")
_SPAN = re.compile(r":(\d{1,12})-(\d{1,12})\Z")


def read_graphrag(folder: Path) -> tuple[Graph, Problems]:
    """A graph of GraphRAG's ``entities.parquet`` and ``relationships.parquet`` (versions 1 to 3, with or without ``text_units`` and
    ``documents``).

    Descriptions become values, text units evidence (document, element, and characters where the texts are there), weights qualifiers. Files
    that :func:`write_graphrag` made keep names and relations. The texts of documents come with the graph; without ``documents.parquet`` those
    of a document's units, one after the other.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    tables = {name: _table(folder, name) for name in ("entities", "relationships", "text_units", "documents")}
    if tables["entities"] is None or tables["relationships"] is None:
        raise InterfuseError(
            "input.missing", "the folder has no entities.parquet and relationships.parquet", where=str(folder)
        )
    texts, units = _places(tables["text_units"] or (), tables["documents"])

    def proof(row: Mapping[str, Any]) -> tuple[Evidence, ...]:
        places = [str(u) for u in (row.get("text_unit_ids") or ())]
        return tuple(
            Evidence(d, a, b, element=u, method="graphrag")
            for u in dict.fromkeys(places)
            for d, a, b in units.get(u) or [(u, 0, 0)]
        )

    names: dict[str, str] = {}
    made: list[Statement] = []
    shown: list[str] = []
    count = 0
    for row in tables["entities"]:
        title = str(row.get("title") or row.get("name") or "")
        if not title:
            count += 1
            shown.append("entities.parquet: an entity without a title")
            continue
        kind = str(row.get("type") or "")
        name = names[title] = _iri(row.get("id")) or entity_id(title, kind)
        made.append(Statement(name, LABEL, Literal(title), evidence=proof(row)))
        if kind:
            made.append(Statement(name, TYPE, relation_id(kind), evidence=proof(row)))
        if row.get("description"):
            made.append(Statement(name, DESCRIPTION, Literal(str(row["description"])), evidence=proof(row)))
    for row in tables["relationships"]:
        source, target = (names.get(str(row.get(k))) for k in ("source", "target"))
        if source is None or target is None:
            count += 1
            shown.append(f"relationships.parquet: an end is no entity: {row.get('source')!r} to {row.get('target')!r}")
            continue
        relation = _iri(row.get("relation"))
        if relation:  # of write_graphrag: the weight is the confidence, and the description is made of the three unless it is another
            told = str(row.get("description") or "")
            own = told and not (told.startswith(f"{row['source']} ") and told.endswith(f" {row['target']}"))
            sure = min(1.0, max(0.0, float(row.get("weight") or 0.0)))
            made.append(Statement(source, relation, target, ((DESCRIPTION, Literal(told)),) if own else (), sure, evidence=proof(row)))  # fmt: skip
            continue
        qualifiers = [(relation_id(k), Literal(str(row[k])) if isinstance(row[k], str) else number(float(row[k])))
                      for k in ("description", "weight") if row.get(k)]  # fmt: skip
        made.append(Statement(source, RELATED, target, tuple(qualifiers), evidence=proof(row)))
    graph = Graph(folder.name)
    graph.add(made, note="read from GraphRAG's tables")
    graph.keep_documents(texts)
    return graph, Problems(tuple(shown[:SHOWN]), count)


def _iri(name: Any) -> str:
    """A name as a graph has it, else nothing: GraphRAG's own ids are numbers."""
    try:
        check_name(str(name or ""))
    except InterfuseError:
        return ""
    return str(name)


def _places(rows: Iterable[Mapping[str, Any]], documents: Sequence[Mapping[str, Any]] | None) -> tuple[dict[str, tuple[str, str]], dict[str, list[tuple[str, int, int]]]]:  # fmt: skip
    """Texts of documents (id -> name, text), and the places of units (document, start, end; 0, 0 where the text is not found)."""
    texts = {
        str(d["id"]): (str(d.get("title") or d["id"]), str(d.get("text") or d.get("raw_content") or ""))
        for d in documents or ()
    }
    units: dict[str, list[tuple[str, int, int]]] = {}
    for row in rows:
        unit, said = str(row["id"]), str(row.get("text") or "")
        holders = row.get("document_ids")
        for d in [row.get("document_id")] if holders is None else holders:
            if not d:
                continue
            name, text = texts.get(str(d), (str(d), ""))
            own = _SPAN.search(unit)
            start = int(own[1]) if own else -1
            if not said:
                start = -1
            elif text[max(start, 0) : max(start, 0) + len(said)] != said or start < 0:
                start = text.find(said)
                if start < 0 and documents is None:
                    text = f"{text}\n\n{said}" if text else said
                    start = len(text) - len(said)
                    texts[str(d)] = (name, text)
            units.setdefault(unit, []).append((str(d), start, start + len(said)) if start >= 0 else (str(d), 0, 0))
    return {d: row for d, row in texts.items() if row[1]}, units


def _table(folder: Path, name: str) -> list[dict[str, Any]] | None:
    for file in (
        folder / f"{name}.parquet",
        folder / f"create_final_{name}.parquet",
        folder / "artifacts" / f"create_final_{name}.parquet",
    ):
        if file.is_file():
            return list(files.read_table(file).to_pylist())
    return None


def write_graphrag(folder: Path, graph: Graph) -> None:
    """Writes GraphRAG's ``entities``, ``relationships``, ``text_units`` and ``documents`` as parquet (the columns of version 2).

    An edge's description says subject, relation and object in words, and a further column ``relation`` is its IRI; text units are the
    evidence's places, with their text where the graph keeps its documents. What does not fit is told by :func:`left_out`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    texts = graph.documents()
    ends: dict[str, list[Statement]] = {}
    edges: list[Statement] = []
    for s in graph.statements():
        ends.setdefault(s.subject, []).append(s)
        if isinstance(s.object, str) and s.predicate != TYPE:
            ends.setdefault(s.object, []).append(s)
            edges.append(s)
    titles: dict[str, str] = {}
    taken: dict[str, None] = {}
    for node in sorted(ends):  # titles are keys there: two entities of one label are told apart
        title = graph.label(node)
        titles[node] = title if title not in taken else f"{title} ({node})"
        taken[titles[node]] = None
    degree = {n: sum(1 for s in rows if s.predicate != TYPE and isinstance(s.object, str)) for n, rows in ends.items()}

    def units(statements: Iterable[Statement]) -> list[str]:
        return sorted({_unit(e) for s in statements for e in s.evidence})

    entities: list[dict[str, Any]] = [
        {"id": n, "human_readable_id": i, "title": titles[n], "type": graph.label(types[0]) if (types := graph.types(n)) else "",
         "description": _words(ends[n], DESCRIPTION), "text_unit_ids": units(ends[n]), "frequency": len(units(ends[n])),
         "degree": degree[n], "x": 0.0, "y": 0.0}
        for i, n in enumerate(sorted(ends))
    ]  # fmt: skip
    relationships: list[dict[str, Any]] = [
        {"id": s.id, "human_readable_id": i, "source": titles[s.subject], "target": titles[str(s.object)],
         "description": _description(s, titles, graph), "weight": s.confidence,
         "combined_degree": degree[s.subject] + degree[str(s.object)], "text_unit_ids": units([s]), "relation": s.predicate}
        for i, s in enumerate(edges)
    ]  # fmt: skip
    places = {_unit(e): e for s in graph.statements() for e in s.evidence}
    said_at: dict[str, tuple[list[str], list[str]]] = {u: ([], []) for u in places}
    for rows, column in ((entities, 0), (relationships, 1)):
        for row in rows:
            for unit in row["text_unit_ids"]:
                said_at[unit][column].append(row["id"])
    text_units: list[dict[str, Any]] = []
    holds: dict[str, list[str]] = {}
    for i, (u, e) in enumerate(sorted(places.items())):
        said = texts[e.document][1][e.start : e.end] if e.document in texts else ""
        holds.setdefault(e.document, []).append(u)
        text_units.append({"id": u, "human_readable_id": i, "text": said, "n_tokens": len(said.split()), "document_ids": [e.document],
                           "entity_ids": said_at[u][0], "relationship_ids": said_at[u][1], "covariate_ids": []})  # fmt: skip
    documents = [
        {"id": d, "human_readable_id": i, "title": texts[d][0], "text": texts[d][1], "text_unit_ids": holds.get(d, []), "creation_date": ""}
        for i, d in enumerate(sorted(texts))
    ]  # fmt: skip
    for name, rows, schema in (
        ("entities", entities, {"id": "s", "human_readable_id": "i", "title": "s", "type": "s", "description": "s", "text_unit_ids": "l",
                                "frequency": "i", "degree": "i", "x": "f", "y": "f"}),
        ("relationships", relationships, {"id": "s", "human_readable_id": "i", "source": "s", "target": "s", "description": "s",
                                          "weight": "f", "combined_degree": "i", "text_unit_ids": "l", "relation": "s"}),
        ("text_units", text_units, {"id": "s", "human_readable_id": "i", "text": "s", "n_tokens": "i", "document_ids": "l",
                                    "entity_ids": "l", "relationship_ids": "l", "covariate_ids": "l"}),
        ("documents", documents, {"id": "s", "human_readable_id": "i", "title": "s", "text": "s", "text_unit_ids": "l", "creation_date": "s"}),
    ):  # fmt: skip
        if name == "documents" and not rows:
            continue
        kinds = {"s": pa.string(), "i": pa.int64(), "f": pa.float64(), "l": pa.list_(pa.string())}
        table = pa.Table.from_pylist(rows, schema=pa.schema([(n, kinds[k]) for n, k in schema.items()]))
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")


def left_out(graph: Graph) -> dict[str, int]:
    """What :func:`write_graphrag` leaves out of a graph: kind -> how many."""
    values = further = qualifiers = 0
    kinds: dict[str, None] = {}
    for s in graph.statements():
        if isinstance(s.object, Literal):
            values += s.predicate not in (LABEL, DESCRIPTION)
        elif s.predicate == TYPE:
            further += s.subject in kinds
            kinds[s.subject] = None
        qualifiers += sum(1 for p, _ in s.qualifiers if p != DESCRIPTION)
    return {
        "values that are no label or description": values,
        "classes after an entity's first": further,
        "qualifiers": qualifiers,
    }


def _unit(item: Evidence) -> str:
    return item.element if item.element and item.method == "graphrag" else f"{item.document}:{item.start}-{item.end}"


def _words(statements: Sequence[Statement], predicate: str) -> str:
    return " ".join(s.object.value for s in statements if s.predicate == predicate and isinstance(s.object, Literal))


def _description(s: Statement, titles: Mapping[str, str], graph: Graph) -> str:
    told = [v.value for p, v in s.qualifiers if p == DESCRIPTION and isinstance(v, Literal)]
    return (
        told[0] if told else f"{titles[s.subject]} {graph.label(s.predicate).replace('-', ' ')} {titles[str(s.object)]}"
    )
