"""Graph files by their ending: which reader a file belongs to."""

from __future__ import annotations

from pathlib import Path

from interfuse.core.errors import InterfuseError
from interfuse.data.formats.rdf import FORMATS, read_rdf
from interfuse.data.graph import Graph
from interfuse.data.graph_columns import Problems, read_columns_parquet, read_tsv


def read_graph(
    path: Path, *, base: str | None = None, header: bool = False, strict: bool = False
) -> tuple[Graph, Problems]:
    """A graph of a file, and what could not be read of it.

    Raises:
        InterfuseError: ``input.type`` for an unknown ending, or what the reader raises.
    """
    ending = path.suffix.lower()
    if ending in FORMATS:
        graph = Graph(path.stem)
        statements, problems = read_rdf(path, strict=strict, base=base)
        graph.add(statements, note=f"read from {path.name}")
        return graph, problems
    if ending in (".tsv", ".csv"):
        columns = read_tsv(path, delimiter="\t" if ending == ".tsv" else ",", header=header, strict=strict)
        return Graph.from_columns(columns, path.stem), columns.problems
    if ending == ".parquet":
        return Graph.from_columns(read_columns_parquet(path), path.stem), Problems()
    raise InterfuseError("input.type", f"cannot read {ending!r} as a graph", where=str(path),
                         fix="Known: " + ", ".join([*FORMATS, ".tsv", ".csv", ".parquet"]) + ".")  # fmt: skip
