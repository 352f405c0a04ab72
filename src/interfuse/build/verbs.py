"""Further verbs of the room: ask, check, convert, compare, fuse, look at and undo graphs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interfuse.core.errors import InterfuseError
from interfuse.kit.verbs import print_value, shared_options, verb_context

if TYPE_CHECKING:
    from interfuse.data.graph import Graph
    from interfuse.data.statements import Statement, Term

PATH = click.Path(path_type=Path)


def _open(place: str) -> Any:
    from interfuse.core.rooms import Source
    from interfuse.data.graph import open_graph

    with contextlib.redirect_stdout(sys.stderr):
        return open_graph(Source(place), verb_context())


def _copy(place: str) -> Graph:
    """The graph at a place, read once where it is an endpoint."""
    from interfuse.data.graph import Graph

    found = _open(place)
    return found if isinstance(found, Graph) else found.local()


def _word(term: Term | None) -> str:
    from interfuse.data.statements import Literal

    return "" if term is None else term.value if isinstance(term, Literal) else term


def _said(s: Statement, graph: Graph) -> str:
    from interfuse.data.statements import Literal

    value = s.object.value if isinstance(s.object, Literal) else graph.label(s.object)
    place = next((e.place or f"page {e.page}" for e in s.evidence if e.place or e.page), "")
    proof = f"  [{len(s.evidence)} evidence{': ' if place else ''}{place}]" if s.evidence else ""
    return f"{graph.label(s.subject)} | {graph.label(s.predicate)} | {value}  ({s.status}, {s.confidence:g}){proof}"


def _query(graph: str, sparql: str, file: Path | None, meta: bool, limit: int) -> None:
    """Ask a graph in SPARQL."""
    from interfuse.core.safe import read_text

    text = read_text(file) if file is not None else sparql
    if not text:
        raise InterfuseError(
            "param.missing", "no query is given", fix="interfuse build query GRAPH 'SELECT ...', or --file QUERY.rq"
        )
    found = _open(graph).query(text, meta=meta)
    rows = [[_word(v) for v in row] for row in found.rows]

    def words() -> Iterable[str]:
        if found.columns == ("ask",):
            yield "yes" if found else "no"
            return
        yield "\t".join(found.columns)
        for row in rows[: limit or None]:
            yield "\t".join(row)
        if limit and len(rows) > limit:
            yield f"... {len(rows) - limit} more (--limit 0 shows all)"

    print_value({"columns": list(found.columns), "rows": rows}, words)


def _export(graph: str, out: Path, format: str, profile: str) -> None:
    """Write a graph in another format: by the ending of OUT, or --format for folders."""
    from interfuse.data.formats.graphs import left_out, write_graph

    found = _copy(graph)
    chosen = write_graph(out, found, format, profile=profile)
    left = left_out(found, chosen)

    def words() -> Iterable[str]:
        yield f"{len(found)} statements as {chosen}: {out}"
        yield from (f"left out, as {chosen} cannot hold them: {n} {what}" for what, n in left.items())

    print_value({"path": str(out), "format": chosen, "statements": len(found), "left out": left}, words)


def _import(source: str, out: Path | None, base: str | None, header: bool, strict: bool, force: bool) -> None:
    """Make a graph's folder of a file or folder in any known format."""
    from interfuse.core.artifact import refuse_taken
    from interfuse.data.formats.graphs import read_graph

    place = out or Path("runs") / Path(source).stem
    refuse_taken(place, force=force)
    if not Path(source).exists():
        raise InterfuseError("input.missing", "there is no such file or folder", where=source)
    graph, problems = read_graph(Path(source), base=base, header=header, strict=strict)
    graph.write(place, force=force, facts={"source": Path(source).name, "left out": problems.count})
    found = {"path": str(place), "statements": len(graph), "left out": problems.count, "problems": list(problems.shown)}

    def words() -> Iterable[str]:
        yield f"{len(graph)} statements: {place}"
        yield from (f"left out: {p}" for p in problems.shown[:10])
        if problems.count > 10:
            yield f"left out: {problems.count} in all"

    print_value(found, words)


def _check(graph: str, shapes: Sequence[Path], ontology: Path | None, limit: int, most: Sequence[str]) -> None:
    """Check a graph's contracts and health; fails on violations, or beyond --most."""
    from interfuse.data.ontology import read_ontology
    from interfuse.kit.graph_checks import figures
    from interfuse.kit.shapes import read_shapes, shapes_beside, shapes_of, validate

    found = _copy(graph)
    parts = [*shapes_beside(Path(graph)), *(read_shapes(p) for p in shapes)]
    parts += [shapes_of(read_ontology(ontology))] if ontology is not None else []
    figure: dict[str, float] = figures(found)
    violations: list[Any] = []
    for part in parts:
        violations += validate(found, part).violations
    figure["violations"] = len(violations)
    limits = {}
    for item in most:
        name, _, value = item.rpartition("=")
        if name not in figure or not value.replace(".", "", 1).isdigit():
            raise InterfuseError(
                "param.value", f"not a limit: {item!r}", fix="NAME=NUMBER, with a name of the table, such as islands=5"
            )
        limits[name] = float(value)
    over = [name for name, value in limits.items() if figure[name] > value]
    rows = [
        {"focus": v.focus, "path": v.path, "component": v.component, "value": _word(v.value), "message": v.message}
        for v in violations
    ]

    def words() -> Iterable[str]:
        for name, value in figure.items():
            yield f"{name:<28} {value:g}" + (f"   more than {limits[name]:g}" if name in over else "")
        for v in violations[: limit or None]:
            yield f"{found.label(v.focus)}: {v.component} {found.label(v.path.strip('<>^')) if v.path else ''} {_word(v.value)} {v.message}".rstrip()
        if limit and len(violations) > limit:
            yield f"... {len(violations) - limit} more"

    print_value({"figures": figure, "violations": rows, "over": over}, words)
    if over or (violations and "violations" not in limits):
        click.get_current_context().exit(1)


def _diff(first: str, second: str, limit: int) -> None:
    """What the second graph has more, less and otherwise than the first."""
    from interfuse.data.statements import to_json

    a, b = _copy(first), _copy(second)
    found = b.diff(a)

    def words() -> Iterable[str]:
        yield f"{len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed"
        yield from (f"+ {_said(s, b)}" for s in found.added[: limit or None])
        yield from (f"- {_said(s, a)}" for s in found.removed[: limit or None])
        yield from (f"~ {_said(before, a)}  ->  {_said(after, b)}" for before, after in found.changed[: limit or None])

    print_value({"added": [to_json(s) for s in found.added], "removed": [to_json(s) for s in found.removed],
            "changed": [[to_json(x), to_json(y)] for x, y in found.changed]}, words)  # fmt: skip


def _history(graph: str) -> None:
    """The operations that made a graph, with their numbers."""
    found = _open(graph)
    history = found.history()
    rows = [
        {**op.as_json(whole=False), "statements": len(op.statements), "in force": found.state.in_force(op.number)}
        for op in history
    ]

    def words() -> Iterable[str]:
        for row in rows:
            told = ", ".join(
                f"{k} {v}"
                for k, v in row.items()
                if k not in ("n", "kind", "statements", "in force", "pairs", "names", "ids")
            )
            counts = {
                "statements": row["statements"],
                **{k: len(row[k]) for k in ("pairs", "names", "ids") if k in row},
            }
            many = ", ".join(f"{v} {k}" for k, v in counts.items() if v)
            yield f"{row['n']:>5} {row['kind']:<9} {many} {told[:100]}{'' if row['in force'] else '  (undone)'}"

    print_value(rows, words)


def _undo(graph: str, op: int | None, reason: str) -> None:
    """Take an operation of a graph out of force: the last, or --op. Undoing an undo brings it back."""
    from interfuse.data.graph import Graph
    from interfuse.data.graph_files import read_meta

    if graph.startswith(("http://", "https://")):
        _open(graph).undo(op, reason)  # says what to do instead
    read_meta(Path(graph))
    with Graph.open(graph, write=True) as found:
        before = len(found)
        number = found.undo(op, reason)
        found.commit()
        undone = found.history()[number - 1].data["cancels"][0]
        after = len(found)
    print_value({"operation": number, "undone": undone, "statements": after, "before": before},
           lambda: [f"operation {undone} is undone (as operation {number}): {before} statements before, {after} now"])  # fmt: skip


def _fuse(
    graphs: Sequence[str],
    out: Path | None,
    ontology: Path | None,
    policy: str,
    functional: Sequence[str],
    apart: bool,
    force: bool,
) -> None:
    """Make one graph of several, and say what came from whom."""
    from interfuse.core.artifact import refuse_taken
    from interfuse.data.ontology import read_ontology
    from interfuse.kit.fusing import Policy, fuse

    place = out or Path("runs") / "fused"
    refuse_taken(place, force=force)
    sources = [_copy(g) for g in graphs]
    with contextlib.redirect_stdout(sys.stderr):
        made, report = fuse(sources, ontology=read_ontology(ontology) if ontology else None, policy=Policy(policy, functional=tuple(functional)),
                            linking=not apart, name=place.name)  # fmt: skip
        found = report.as_dict()
        made.write(place, force=force, facts=found)

    def words() -> Iterable[str]:
        yield f"{report.statements} statements, {report.agreed} said by several sources, {report.merged} names joined, {len(report.conflicts)} conflicts"
        for name, row in report.sources.items():
            yield f"{name}: " + ", ".join(f"{v} {k}" for k, v in row.items())
        for c in report.conflicts[:10]:
            yield f"conflict: {made.label(c.subject)} | {made.label(c.predicate)}: kept {c.kept or 'all, contested'}"
        yield str(place)

    print_value({"path": str(place), **found}, words)


def _align(graph: str, documents: str, out: Path, parser: str) -> None:
    """Sentences of documents that name both ends of a graph's statements, as the table that distant-supervision learns from."""
    import json

    from interfuse.core.artifact import refuse_taken
    from interfuse.core.rooms import Source
    from interfuse.core.safe import write_atomic
    from interfuse.data.corpus import open_corpus
    from interfuse.kit.aligned_texts import aligned
    from interfuse.kit.language import open_parser

    refuse_taken(out)
    known = _copy(graph)
    with contextlib.redirect_stdout(sys.stderr):
        corpus = open_corpus(Source(documents), verb_context())
        rows = list(aligned(known, corpus.documents(), open_parser(parser)))
    if not rows:
        raise InterfuseError("input.empty", "no sentence names both ends of a statement", where=documents)
    write_atomic(out, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode())
    triples = sum(len(r["triples"]) for r in rows)
    print_value(
        {"path": str(out), "sentences": len(rows), "triples": triples},
        lambda: [f"{triples} triples in {len(rows)} sentences: {out}"],
    )


def command(name: str, callback: Callable[..., None], params: list[click.Parameter], example: str) -> click.Command:
    """A verb of the room, with an example."""
    return click.Command(name, callback=callback, help=callback.__doc__, params=[*params, *shared_options()],
                         epilog=f"\b\nExample:\n  interfuse build {example}")  # fmt: skip


GRAPH = click.Argument(["graph"])
_FORCE = click.Option(["--force"], is_flag=True, help="Use the output folder even if something is there.")
_LIMIT = click.Option(["--limit"], type=int, default=50, show_default=True, help="Lines shown at most; 0 shows all.")
ONTOLOGY = click.Option(
    ["--ontology"], type=PATH, default=None, help="Classes and relations: Turtle, another RDF format, or JSON."
)
SHAPES = click.Option(["--shapes"], type=PATH, multiple=True, help="A SHACL file; repeat it for several.")

VERBS = {
    "align": command("align", _align, [
        GRAPH, click.Argument(["documents"]), click.Option(["-o", "--out"], type=PATH, required=True, help="The table to write, JSON lines."),
        click.Option(["--parser"], type=click.Choice(["auto", "spacy", "rules"]), default="auto", show_default=True, help="Who finds the sentences."),
    ], "align graph/ texts/ -o aligned.jsonl"),
    "query": command("query", _query, [
        GRAPH, click.Argument(["sparql"], default="", required=False), click.Option(["--file"], type=PATH, default=None, help="The query in a file."),
        click.Option(["--meta"], is_flag=True, help="Reifiers too: confidence, status, qualifiers, evidence."), _LIMIT,
    ], "query graph/ 'SELECT ?s ?o { ?s <urn:interfuse:relation:capital-of> ?o }'"),
    "export": command("export", _export, [
        GRAPH, click.Argument(["out"], type=PATH),
        click.Option(["--format"], default="", help="ttl, nt, nq, trig, rdf, jsonld, graphml, csv, tsv, tables, graphrag or neo4j [default: by the ending]"),
        click.Option(["--profile"], default="", help="For RDF: rdf12, rdf11-reified or plain [default: all the format can hold]"),
    ], "export graph/ facts.ttl --profile plain"),
    "import": command("import", _import, [
        click.Argument(["source"]), click.Option(["-o", "--out"], type=PATH, default=None, help="The folder to write."),
        click.Option(["--base"], default=None, help="What relative IRIs stand under."),
        click.Option(["--header"], is_flag=True, help="The first line of a TSV file names its columns."),
        click.Option(["--strict"], is_flag=True, help="A line that cannot be read ends the work."), _FORCE,
    ], "import facts.ttl -o graph/"),
    "check": command("check", _check, [
        GRAPH, SHAPES, ONTOLOGY, _LIMIT,
        click.Option(["--most"], multiple=True, metavar="NAME=NUMBER", help="A figure of the table that may not be larger; repeat it."),
    ], "check graph/ --ontology movies.ttl --most islands=3"),
    "diff": command("diff", _diff, [click.Argument(["first"]), click.Argument(["second"]), _LIMIT], "diff before/ after/"),
    "history": command("history", _history, [GRAPH], "history graph/"),
    "undo": command("undo", _undo, [
        GRAPH, click.Option(["--op"], type=int, default=None, help="Its number in the history."),
        click.Option(["--reason"], default="", help="Why, for the history."),
    ], "undo graph/ --op 3"),
    "fuse": command("fuse", _fuse, [
        click.Argument(["graphs"], nargs=-1, required=True), click.Option(["-o", "--out"], type=PATH, default=None, help="The folder to write."),
        ONTOLOGY, click.Option(["--policy"], default="vote", show_default=True, help="Where sources differ: keep, vote, weight, latest or confidence."),
        click.Option(["--functional"], multiple=True, help="The IRI of a property that has one value; repeat it."),
        click.Option(["--apart"], is_flag=True, help="Join no names."), _FORCE,
    ], "fuse wiki/ reports/ -o fused/"),
}  # fmt: skip
