"""Verbs that open pages: room -> verb -> command; the command line adds them to the room's own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from interfuse.build.verbs import GRAPH, ONTOLOGY, PATH, SHAPES, command
from interfuse.core.errors import InterfuseError
from interfuse.kit.verbs import print_value


def _show(
    graph: str,
    documents: Path | None,
    shapes: Sequence[Path],
    ontology: Path | None,
    out: Path | None,
    around: str,
    most: int | None,
    port: int,
    no_browser: bool,
) -> None:
    """Look at a graph and its evidence in the browser; -o writes one file."""
    from interfuse.web.explorer import export, open_explorer
    from interfuse.web.server import make_server

    if out is not None and out.exists():
        raise InterfuseError(
            "output.exists", "something is there already", where=str(out), fix="Choose another file with -o."
        )
    explorer = open_explorer(graph, documents=documents, shapes=shapes, ontology=ontology)
    if out is not None:
        count, of = export(explorer, out, around=around, most=most), len(explorer.graph.statements())
        print_value(
            {"path": str(out), "statements": count, "of": of},
            lambda: [f"{count} {f'of {of} ' if count < of else ''}statements in one page: {out}"],
        )
        return
    if around or most is not None:
        raise InterfuseError("param.value", "--around and --most choose what one file holds", fix="Add -o FILE.html.")
    server, address = make_server(explorer, port)
    print_value({"address": address}, lambda: [f"{address}  (only on this machine; Ctrl-C ends it)"])
    sys.stdout.flush()
    if not no_browser:
        import webbrowser

        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    server.server_close()


VERBS = {
    "build": {
        "show": command("show", _show, [
            GRAPH, click.Option(["--documents"], type=PATH, default=None, help="The folder of the documents."),
            SHAPES, ONTOLOGY, click.Option(["-o", "--out"], type=PATH, default=None, help="Write one HTML file instead of serving."),
            click.Option(["--around"], default="", metavar="NODE", help="With -o: the statements nearest to this node (an IRI, or words of its name)."),
            click.Option(["--most"], type=int, default=None, metavar="N", help="With -o: statements at most, of the busiest entities or the nearest first [at most 20000]"),
            click.Option(["--port"], type=int, default=0, help="[default: a free one]"),
            click.Option(["--no-browser"], is_flag=True, help="Print the address, open nothing."),
        ], "show graph/"),
    },
}  # fmt: skip
