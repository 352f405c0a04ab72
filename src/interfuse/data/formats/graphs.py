"""Graph files by name: which reader and which writer a path belongs to."""

from __future__ import annotations

from pathlib import Path

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.data.formats import graph_tables as tables
from interfuse.data.formats import graphrag
from interfuse.data.formats.graphml import read_graphml, write_graphml
from interfuse.data.formats.rdf import FORMATS, PROFILES, read_rdf, write_rdf
from interfuse.data.graph import Graph
from interfuse.data.graph_columns import Problems, read_columns_parquet, read_tsv

#: format -> what it is; the first are the endings of files, the last are folders
WRITERS = {
    "ttl": "Turtle", "nt": "N-Triples", "nq": "N-Quads", "trig": "TriG", "rdf": "RDF/XML", "jsonld": "JSON-LD", "graphml": "GraphML",
    "csv": "one line per statement", "tsv": "PyKEEN's triples", "tables": "a folder of parquet: statements, evidence, nodes",
    "graphrag": "a folder of GraphRAG's parquet", "neo4j": "a folder of Neo4j's import files and a Cypher script",
}  # fmt: skip


def read_graph(
    path: Path, *, base: str | None = None, header: bool = False, strict: bool = False
) -> tuple[Graph, Problems]:
    """A graph of a file or folder, and what could not be read of it.

    Raises:
        InterfuseError: ``input.type`` for an unknown ending, or what the reader raises.
    """
    ending = path.suffix.lower()
    if path.is_dir():
        return _folder(path)
    if ending in FORMATS:
        graph = Graph(path.stem)
        statements, problems = read_rdf(path, strict=strict, base=base)
        graph.add(statements, note=f"read from {path.name}")
        return graph, problems
    if ending == ".graphml":
        found = read_graphml(path)
    elif ending == ".csv":
        found = tables.read_csv(path)
    elif ending == ".tsv":
        columns = read_tsv(path, header=header, strict=strict)
        return Graph.from_columns(columns, path.stem), columns.problems
    elif ending == ".parquet":
        return Graph.from_columns(read_columns_parquet(path), path.stem), Problems()
    else:
        raise InterfuseError("input.type", f"cannot read {ending!r} as a graph", where=str(path),
                             fix="Known: " + ", ".join([*FORMATS, ".graphml", ".tsv", ".csv", ".parquet"]) + ".")  # fmt: skip
    if strict and found[1].count:
        raise InterfuseError(
            "input.format", f"{found[1].count} parts cannot be read: {found[1].shown[0]}", where=str(path)
        )
    return found


def _folder(path: Path) -> tuple[Graph, Problems]:
    if (path / "statements.parquet").is_file():
        return tables.read_tables(path)
    if any(path.glob("*entities.parquet")) or (path / "artifacts").is_dir():
        return graphrag.read_graphrag(path)
    if any(path.glob("*nodes*.csv")) or any(path.glob("*edges*.csv")):
        return tables.read_neo4j(path)
    raise InterfuseError("input.type", "the folder holds no graph that is known", where=str(path),
                         fix="Known: a graph's own folder, parquet tables, GraphRAG's tables, Neo4j's CSV files.")  # fmt: skip


def write_graph(path: Path, graph: Graph, format: str = "", *, profile: str = "") -> str:
    """Writes a graph in one of :data:`WRITERS` (by the path's ending when empty) and returns which.

    Args:
        profile: for RDF, one of ``PROFILES``; ``rdf12`` where the format can hold it, else ``rdf11-reified``.

    Raises:
        InterfuseError: ``param.value`` for an unknown format or profile, ``output.exists`` for a place that is taken.
    """
    chosen = format or path.suffix.lower().lstrip(".")
    if chosen not in WRITERS:
        raise InterfuseError("param.value", f"there is no format {chosen!r}", fix=did_you_mean(chosen, WRITERS))
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise InterfuseError(
            "output.exists", "something is there already", where=str(path), fix="Choose another place."
        )
    if profile and profile not in PROFILES:
        raise InterfuseError("param.value", f"there is no profile {profile!r}", fix=did_you_mean(profile, PROFILES))
    if chosen == "graphml":
        write_graphml(path, graph)
    elif chosen == "csv":
        tables.write_csv(path, graph)
    elif chosen == "tsv":
        tables.write_tsv(path, graph)
    elif chosen == "tables":
        tables.write_tables(path, graph)
    elif chosen == "graphrag":
        graphrag.write_graphrag(path, graph)
    elif chosen == "neo4j":
        tables.write_neo4j(path, graph)
    else:
        write_rdf(path, graph.statements(), profile or ("rdf11-reified" if chosen in ("jsonld", "rdf") else "rdf12"))
    return chosen


def left_out(graph: Graph, format: str) -> dict[str, int]:
    """What a format of :data:`WRITERS` cannot hold of a graph: kind -> how many; empty where everything is written."""
    found: dict[str, int] = {}
    if format == "graphrag":
        found = graphrag.left_out(graph)
    elif format == "tsv":
        columns = graph.columns()
        values = int(columns.literal[columns.object].sum())
        found = {"statements with a value": values, "qualifiers": len(columns.qualifier_value)}
    return {k: n for k, n in found.items() if n}
