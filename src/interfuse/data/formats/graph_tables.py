"""Graphs as tables: CSV and parquet that lose nothing, PyKEEN's TSV, Neo4j's import files.

CSV cells that a spreadsheet would take for a formula get an apostrophe in front, which reading takes off again. Cells of PyKEEN's TSV and
of Neo4j's files stay as they are: these programs would take the apostrophe for a part of the value.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.data import graph_files as files
from interfuse.data.graph import Graph
from interfuse.data.graph_columns import SHOWN, Problems, word_of
from interfuse.data.statements import (
    LABEL,
    TYPE,
    XSD,
    Literal,
    Statement,
    Term,
    entity_id,
    from_json,
    number,
    relation_id,
    text_of,
    to_json,
)

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def guarded(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return "'" + cell if cell.startswith(_FORMULA) else cell


def unguarded(cell: str) -> str:
    """The inverse of :func:`guarded`."""
    return cell[1:] if cell.startswith("'") else cell


# ---------------------------------------------------------------------------------------------- CSV, parquet


def write_tables(folder: Path, graph: Graph) -> None:
    """Writes ``statements.parquet``, ``evidence.parquet`` and ``nodes.parquet``: what holds now, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = graph.statements()
    files.write_statements(folder / "statements.parquet", folder / "evidence.parquet", ((0, s) for s in rows))
    counts: dict[str, int] = {}
    for s in rows:
        for end in (s.subject, s.object):
            if isinstance(end, str):
                counts[end] = counts.get(end, 0) + 1
    files.write_nodes(
        folder / "nodes.parquet", ((n, graph.label(n), graph.types(n), c) for n, c in sorted(counts.items()))
    )


def read_tables(folder: Path) -> tuple[Graph, Problems]:
    """The inverse of :func:`write_tables`.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    graph = Graph(folder.name)
    graph.add(
        [s for _, s in files.read_statements(folder / "statements.parquet", folder / "evidence.parquet")],
        note=f"read from {folder.name}",
    )
    return graph, Problems()


_CSV = ("subject", "predicate", "object", "confidence", "status", "documents", "json")


def write_csv(path: Path, graph: Graph) -> None:
    """Writes one line per statement: terms in N-Triples, figures, and the whole statement as JSON in the last column."""
    with path.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(_CSV)
        for s in graph.statements():
            documents = " ".join(dict.fromkeys(e.document for e in s.evidence))
            rows.writerow([guarded(c) for c in (text_of(s.subject), text_of(s.predicate), text_of(s.object), repr(s.confidence), s.status,
                                                documents, json.dumps(to_json(s)))])  # fmt: skip


def read_csv(path: Path) -> tuple[Graph, Problems]:
    """A graph of a CSV file with a header that names subject, predicate, object (or :func:`write_csv`'s ``json``).

    Raises:
        InterfuseError: ``input.missing``, ``input.format`` or ``input.empty``.
    """
    made: list[Statement] = []
    shown: list[str] = []
    count = 0
    for number_, row in _csv_rows(path):
        if "json" not in row and not {"subject", "predicate", "object"} <= set(row):
            raise InterfuseError("input.format", "the table is none of statements: no columns subject, predicate and object", where=str(path),
                                 fix="Rows about things: interfuse build table-rows --table FILE --key COLUMN, or interfuse build FILE.")  # fmt: skip
        try:
            if row.get("json"):
                made.append(from_json(json.loads(unguarded(row["json"]))))
            else:
                made.append(_plain(row).checked())
        except (InterfuseError, ValueError, KeyError, RecursionError) as error:
            count += 1
            if len(shown) < SHOWN:
                shown.append(f"{path.name}:{number_}: {str(error).splitlines()[0]}")
    graph = Graph(path.stem)
    graph.add(made, note=f"read from {path.name}")
    return graph, Problems(tuple(shown), count)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(2**27)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                yield reader.line_num, {str(k): v if isinstance(v, str) else "" for k, v in row.items()}
    except FileNotFoundError as error:
        raise InterfuseError("input.missing", "there is no such file", where=str(path)) from error
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InterfuseError("input.format", f"the file cannot be read: {error}", where=str(path)) from error


def _plain(row: Mapping[str, str]) -> Statement:
    subject, predicate, object = (unguarded(row[k]) for k in ("subject", "predicate", "object"))
    if not (subject and predicate and object):
        raise InterfuseError("input.format", "a cell of subject, predicate or object is empty")
    sure = float(row["confidence"]) if row.get("confidence") else 1.0
    return Statement(
        str(_term(subject, entity_id)), str(_term(predicate, relation_id)), _term(object, entity_id), confidence=sure
    )


def _term(cell: str, make: Any) -> Term:
    from interfuse.data.statements import term_of

    if cell.startswith("<") or (cell.startswith('"') and len(cell) > 1):
        return term_of(cell)
    if re.match(r"(?:https?|urn):\S+\Z", cell) or cell.startswith("_:"):
        return cell
    return str(make(cell))


def write_tsv(path: Path, graph: Graph) -> int:
    """Writes PyKEEN's TSV: subject, predicate and object without a header; returns the lines. Literals are left out.

    Names that :func:`interfuse.data.graph_columns.named` made are written as they were before.

    Raises:
        InterfuseError: ``input.format`` for a name with a tab or line break in it.
    """
    columns = graph.columns()
    nodes = [word_of(n) for n in columns.nodes.to_pylist()]
    relations = [word_of(n) for n in columns.relations.to_pylist()]
    for name in (*nodes, *relations):
        if not name.startswith('"') and re.search(r"[\t\n\r]", name):
            raise InterfuseError(
                "input.format", "a name holds a tab or a line break, which TSV cannot hold", where=repr(name[:80])
            )
    done = 0
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for s, p, o in columns.triples().tolist():
            if not columns.literal[o]:
                out.write(f"{nodes[s]}\t{relations[p]}\t{nodes[o]}\n")
                done += 1
    return done


# ---------------------------------------------------------------------------------------------- Neo4j


def neo4j_word(word: str) -> str:
    """A label, type or property name that needs no quoting: letters, digits and underscores, no digit in front."""
    made = re.sub(r"\W+", "_", word).strip("_")
    return made if made and not made[0].isdigit() else f"_{made}"


def _cell(value: str) -> str:
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\ufffd", value)


_NEO = {XSD + "integer": "long", XSD + "double": "double", XSD + "boolean": "boolean"}


def write_neo4j(folder: Path, graph: Graph) -> None:
    """Writes ``nodes.csv`` and ``edges.csv`` for ``neo4j-admin database import`` and ``load.cypher`` for a running database.

    Labels are an entity's classes, types its relations, both as :func:`neo4j_word`; values are typed properties (lists when some
    entity has several). Edges carry the statement's id, confidence, status, documents and, as ``json``, all of it (qualifiers, evidence);
    ``statements.csv`` holds the statements that are not edges, which the script puts into their node's list ``json``. The script was not run
    on a Neo4j database here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, dict[str, list[Literal]]] = {}
    edges: list[Statement] = []
    nodes: dict[str, None] = {}
    rest: list[Statement] = []
    for s in graph.statements():
        nodes[s.subject] = None
        if isinstance(s.object, Literal):
            values.setdefault(s.subject, {}).setdefault(neo4j_word(graph.label(s.predicate)), []).append(s.object)
            rest.append(s)
        elif s.predicate == TYPE:
            rest.append(s)
        else:
            nodes[s.object] = None
            edges.append(s)
    columns = sorted({k for row in values.values() for k in row} - {"iri", "name"})
    kinds: dict[str, str] = {}
    for column in columns:
        found = {_NEO.get(v.datatype, "string") for row in values.values() for v in row.get(column, ())}
        kind = found.pop() if len(found) == 1 else "string"
        many = any(len(row.get(column, ())) > 1 for row in values.values())
        kinds[column] = kind + ("[]" if many else "")
    labels = {n: [neo4j_word(graph.label(t)) for t in graph.types(n)] for n in nodes}
    with (folder / "nodes.csv").open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["iri:ID", "name", *(f"{c}:{kinds[c]}" for c in columns), ":LABEL"])
        for node in sorted(nodes):
            cells = [";".join(_cell(v.value).replace(";", ",") if "[]" in kinds[c] else _cell(v.value) for v in values.get(node, {}).get(c, ()))
                     for c in columns]  # fmt: skip
            rows.writerow([node, _cell(graph.label(node)), *cells, ";".join(["Entity", *labels[node]])])
    with (folder / "edges.csv").open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(
            [":START_ID", ":END_ID", ":TYPE", "statement", "confidence:double", "status", "documents", "json"]
        )
        for s in edges:
            documents = " ".join(dict.fromkeys(e.document for e in s.evidence))
            rows.writerow(
                [
                    s.subject,
                    s.object,
                    neo4j_word(graph.label(s.predicate)),
                    s.id,
                    repr(s.confidence),
                    s.status,
                    documents,
                    json.dumps(to_json(s)),
                ]
            )
    with (folder / "statements.csv").open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["subject", "json"])
        rows.writerows([s.subject, json.dumps(to_json(s))] for s in rest)
    (folder / "load.cypher").write_text(_cypher(labels, columns, kinds, edges, graph), encoding="utf-8")


def _cypher(
    labels: Mapping[str, list[str]],
    columns: Sequence[str],
    kinds: Mapping[str, str],
    edges: Sequence[Statement],
    graph: Graph,
) -> str:
    change = {"long": "toInteger({})", "double": "toFloat({})", "boolean": "toBoolean({})", "string": "{}"}

    def value(column: str) -> str:
        cell = f"row.`{column}:{kinds[column]}`"
        if kinds[column].endswith("[]"):
            inner = change[kinds[column][:-2]].format("x")
            return f"CASE WHEN {cell} IS NULL THEN NULL ELSE [x IN split({cell}, ';') | {inner}] END"
        return change[kinds[column]].format(cell)

    parts = [
        "// Put nodes.csv, edges.csv and statements.csv into the database's import folder, then run this script.",
        "CREATE CONSTRAINT entity_iri IF NOT EXISTS FOR (n:Entity) REQUIRE n.iri IS UNIQUE;",
        "LOAD CSV WITH HEADERS FROM 'file:///nodes.csv' AS row\nMERGE (n:Entity {iri: row.`iri:ID`})\nSET n.name = row.name, n.json = []"
        + "".join(f",\n    n.`{c}` = {value(c)}" for c in columns) + ";",
    ]  # fmt: skip
    for label in sorted({name for names in labels.values() for name in names}):
        parts.append(
            f"LOAD CSV WITH HEADERS FROM 'file:///nodes.csv' AS row\nWITH row WHERE '{label}' IN split(row.`:LABEL`, ';')\n"
            f"MATCH (n:Entity {{iri: row.`iri:ID`}}) SET n:`{label}`;"
        )
    for kind in sorted({neo4j_word(graph.label(s.predicate)) for s in edges}):
        parts.append(
            f"LOAD CSV WITH HEADERS FROM 'file:///edges.csv' AS row\nWITH row WHERE row.`:TYPE` = '{kind}'\n"
            "MATCH (a:Entity {iri: row.`:START_ID`}), (b:Entity {iri: row.`:END_ID`})\n"
            f"MERGE (a)-[r:`{kind}` {{statement: row.statement}}]->(b)\n"
            "SET r.confidence = toFloat(row.`confidence:double`), r.status = row.status, r.documents = row.documents, r.json = row.json;"
        )
    parts.append(
        "LOAD CSV WITH HEADERS FROM 'file:///statements.csv' AS row\n"
        "MATCH (n:Entity {iri: row.subject}) SET n.json = n.json + row.json;"
    )
    return "\n".join(parts) + "\n"


def read_neo4j(folder: Path) -> tuple[Graph, Problems]:
    """A graph of property-graph CSV with Neo4j's headers (``:ID``, ``:LABEL``, ``:START_ID``, ``:END_ID``, ``:TYPE``); files that
    :func:`write_neo4j` made are read without loss.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    made: list[Statement] = []
    shown: list[str] = []
    count = 0
    whole = (folder / "statements.csv").is_file()

    def fail(place: str, error: Exception) -> None:
        nonlocal count
        count += 1
        if len(shown) < SHOWN:
            shown.append(f"{place}: {str(error).splitlines()[0]}")

    names: dict[str, str] = {}
    for file in [] if whole else sorted(folder.glob("*nodes*.csv")):
        for number_, row in _csv_rows(file):
            try:
                made += [s.checked() for s in _node_of(row, names)]
            except (InterfuseError, ValueError, KeyError) as error:
                fail(f"{file.name}:{number_}", error)
    for file in ([folder / "statements.csv"] if whole else []) + sorted(p for p in folder.glob("*edges*.csv")):
        for number_, row in _csv_rows(file):
            try:
                made.append(from_json(json.loads(row["json"])) if row.get("json") else _edge_of(row, names).checked())
            except (InterfuseError, ValueError, KeyError, RecursionError) as error:
                fail(f"{file.name}:{number_}", error)
    if not made and not count:
        raise InterfuseError("input.missing", "the folder has no nodes and edges in CSV", where=str(folder))
    graph = Graph(folder.name)
    graph.add(made, note="read from Neo4j's tables")
    return graph, Problems(tuple(shown), count)


def _header(row: Mapping[str, str], pattern: str) -> str:
    """The column whose header ends so."""
    for column in row:
        if re.search(pattern, column):
            return column
    raise InterfuseError("input.format", f"no column is headed {pattern.split('(')[0]}")


def _node_of(row: Mapping[str, str], names: dict[str, str]) -> list[Statement]:
    key = _header(row, r":ID(\(.*\))?\Z")
    label = row.get("name") or row.get("name:string") or row[key]
    kinds = [k for k in re.split(";", row.get(":LABEL", "")) if k]
    name = names[row[key]] = row[key] if ":" in row[key] else entity_id(label, kinds[0] if kinds else "", key=row[key])
    found = [Statement(name, LABEL, Literal(label))]
    found += [Statement(name, TYPE, relation_id(k)) for k in kinds]
    for column, cell in row.items():
        word, _, kind = column.partition(":")
        if not word or not cell or column == key or word == "name" or kind.startswith("ID"):
            continue
        for part in cell.split(";") if kind.endswith("[]") else [cell]:
            found.append(Statement(name, relation_id(word), _typed(part, kind.removesuffix("[]"))))
    return found


def _edge_of(row: Mapping[str, str], names: Mapping[str, str]) -> Statement:
    start, end = (row[_header(row, rf"{mark}(\(.*\))?\Z")] for mark in (":START_ID", ":END_ID"))
    ends = [names.get(n, n if ":" in n else entity_id(n)) for n in (start, end)]
    qualifiers = tuple((relation_id(k.partition(":")[0]), _typed(v, k.partition(":")[2])) for k, v in sorted(row.items())
                       if v and not k.startswith(":"))  # fmt: skip
    return Statement(ends[0], relation_id(row[":TYPE"]), ends[1], qualifiers)


def _typed(text: str, kind: str) -> Literal:
    if kind in ("int", "long", "short", "byte"):
        return number(int(text))
    if kind in ("float", "double"):
        return number(float(text))
    return Literal(text.lower(), XSD + "boolean") if kind == "boolean" else Literal(text)
