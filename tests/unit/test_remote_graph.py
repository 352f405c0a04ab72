"""The same graph behind a SPARQL endpoint: a small one on this machine, which can be told to misbehave."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from interfuse.cli.main import app
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data import remote_graph
from interfuse.data.graph import Graph, open_graph
from interfuse.data.graph_store import names_graphs
from interfuse.data.remote_graph import RemoteGraph
from interfuse.data.statements import LABEL, TYPE, Evidence, Literal, Statement, label_of, number

pyoxigraph = pytest.importorskip("pyoxigraph")
X = "urn:x:"


class Endpoint:
    """A SPARQL 1.1 endpoint over a store in memory. ``faults``: what the next answers are instead. ``union``: whether the default
    graph holds what stands in named graphs, where the request names none."""

    def __init__(self, *, union: bool = True) -> None:
        self.union = union
        self.store: Any = pyoxigraph.Store()
        self.faults: list[str] = []
        self.asked: list[tuple[str, str]] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                kind = self.headers["Content-Type"].split(";")[0]
                outer.asked.append((self.headers.get("Authorization", ""), body))
                fault = outer.faults.pop(0) if outer.faults else ""
                status, data = 200, b""
                if fault.isdigit():
                    status, data = int(fault), b"not now"
                elif fault == "slow":
                    threading.Event().wait(0.5)
                elif fault == "cut":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"head"')
                    return
                elif fault == "huge":
                    data = b"x" * 5000
                elif fault:
                    data = fault.encode()
                elif kind == "application/sparql-update":
                    with lock:
                        outer.store.update(body)
                else:
                    try:
                        asked = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                        scope: dict[str, Any] = {} if " FROM " in body else {"use_default_graph_as_union": outer.union}
                        if "default-graph-uri" in asked or "named-graph-uri" in asked:  # section 2.1.4 of the protocol
                            scope = {
                                "default_graph": [pyoxigraph.NamedNode(n) for n in asked.get("default-graph-uri", ())],
                                "named_graphs": [pyoxigraph.NamedNode(n) for n in asked.get("named-graph-uri", ())],
                            }
                        found = outer.store.query(body, **scope)
                        data = found.serialize(format=pyoxigraph.QueryResultsFormat.JSON)
                    except SyntaxError as error:
                        status, data = 400, str(error).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/sparql"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(params=["union", "apart"])
def endpoint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(remote_graph.time, "sleep", lambda seconds: None)
    made = Endpoint(union=request.param == "union")
    yield made
    made.server.shutdown()
    made.server.server_close()


def rows() -> list[Statement]:
    proof = (Evidence("A", 1, 5, 2, "cell", "q", "m", "mo", "p", "r", 0.5), Evidence("B"))
    return [
        Statement(X + "a", X + "knows", X + "b", ((X + "since", number(1999)),), 0.5, "critic", "inferred", "1999", None, "2020", None, proof),
        Statement(X + "a", X + "knows", X + "b", evidence=proof[:1]), Statement(X + "b", X + "knows", X + "c", evidence=(Evidence("A"),)),
        label_of('odd "label"\n', X + "a", language="en"), Statement(X + "a", TYPE, X + "T", status="contested"),
        Statement(X + "a", X + "not", X + "c", status="withdrawn"),
    ]  # fmt: skip


def test_what_is_there_is_what_would_be_here(endpoint: Endpoint) -> None:
    here = Graph()
    there = RemoteGraph(endpoint.address, page=3, batch=2)
    for graph in (here, there):
        graph.add(rows())
        graph.add([Statement(X + "b", X + "knows", X + "c", evidence=(Evidence("C", 3, 4),))])
        graph.add(rows()[:2])
    assert there.digest() == here.digest()
    assert len(there) == len(here) == 6
    for look in (
        lambda g: g.statements(X + "a"), lambda g: g.statements(p=X + "knows", min_confidence=0.6), lambda g: g.statements(status="withdrawn"),
        lambda g: g.statements(o=X + "c"), lambda g: g.statements(p=LABEL, o=Literal('odd "label"\n', language="en")),
        lambda g: g.neighbourhood(X + "b"), lambda g: g.neighbourhood(X + "b", 2), lambda g: g.label(X + "a"), lambda g: g.types(X + "a"),
        lambda g: g.evidence(rows()[0].id), lambda g: g.get("nothing"), lambda g: g.entities(), lambda g: g.statements(as_of="1950"),
        lambda g: len(g.columns()), lambda g: g.query(f"SELECT ?o {{ <{X}b> <{X}knows> ?o }}").rows, lambda g: bool(g.query(f"ASK {{ <{X}b> ?p ?o }}")),
    ):  # fmt: skip
        assert look(there) == look(here)
    here.withdraw(document="A")
    assert there.withdraw(document="A") == 3
    assert there.digest() == here.digest()
    opened = open_graph(Source({"endpoint": endpoint.address}, "far"), Ctx())
    assert opened.name == "far"
    assert opened.digest() == here.digest()
    asked = CliRunner().invoke(
        app, ["build", "query", endpoint.address, f"SELECT ?o {{ <{X}b> <{X}knows> ?o }}", "--json"]
    )
    assert json.loads(asked.stdout)["rows"] == [[X + "c"]]
    for change in (lambda: there.merge(X + "a", X + "b"), lambda: there.undo(), lambda: there.split(X + "a")):
        with pytest.raises(InterfuseError, match=r"needs\.capability"):
            change()


COUNT = "SELECT (COUNT(*) AS ?n) { ?s ?p ?o }"


def test_the_same_query_has_the_same_answer(endpoint: Endpoint, tmp_path: Path) -> None:
    here, there = Graph(), RemoteGraph(endpoint.address)
    for graph in (here, there):
        graph.add(rows())
    own = "SELECT ?s ?o { GRAPH <urn:interfuse:graph:contested> { ?s ?p ?o } }"
    for query in (COUNT, own, f"SELECT ?p ?o {{ <{X}a> ?p ?o }} ORDER BY ?p ?o"):
        assert there.query(query).rows == here.query(query).rows
    assert int(there.query(COUNT, meta=True).values()[0] or 0) > 2 * int(there.query(COUNT).values()[0] or 0) > 0
    marked = f"SELECT ?c {{ ?r rdf:subject <{X}b> ; if:confidence ?c }}"
    assert len(there.query(marked, meta=True)) == 1
    assert not there.query(marked)


def test_every_verb_takes_the_address_of_an_endpoint(endpoint: Endpoint, tmp_path: Path) -> None:
    here = Graph()
    here.add(rows())
    there = RemoteGraph(endpoint.address)
    there.add(rows()[1:])
    assert [s.id for s in here.diff(there).added] == [rows()[0].id] == [s.id for s in there.diff(here).removed]
    assert not here.diff(there).removed
    assert there.diff(there.local()) == Graph().diff(Graph())
    here.write(tmp_path / "here")
    for words in (["diff", str(tmp_path / "here"), endpoint.address], ["diff", endpoint.address, str(tmp_path / "here")],
                  ["show", endpoint.address, "-o", str(tmp_path / "page.html")], ["export", endpoint.address, str(tmp_path / "g.csv")],
                  ["check", endpoint.address], ["fuse", endpoint.address, str(tmp_path / "here"), "-o", str(tmp_path / "both")]):  # fmt: skip
        done = CliRunner().invoke(app, ["build", *words])
        assert done.exit_code == 0, done.output
    assert f'"{X}b"' in (tmp_path / "page.html").read_text()
    for words in (["history", endpoint.address], ["undo", endpoint.address]):
        refused = CliRunner().invoke(app, ["build", *words])
        assert "needs.capability" in refused.output
        assert "local()" in refused.output
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Oslo is the capital of Norway.")
    words = [
        "build",
        str(tmp_path / "in"),
        "--graph",
        endpoint.address,
        "--parser",
        "rules",
        "-o",
        str(tmp_path / "more"),
    ]
    done = CliRunner().invoke(app, words, env={"XDG_CACHE_HOME": str(tmp_path)})
    assert done.exit_code == 0, done.output
    assert {s.id for s in there.local()} <= {s.id for s in Graph.open(tmp_path / "more")}
    for change in (lambda: there.mark([], "stated"), lambda: there.infer({}), lambda: there.history(), lambda: there.at(1), lambda: there.note(),
                   lambda: there.merge_all([])):  # fmt: skip
        with pytest.raises(InterfuseError, match=r"needs\.capability"):
            change()
    missing = [n for n in vars(Graph) if not n.startswith("_") and n not in vars(RemoteGraph)]
    assert missing == [
        "path",
        "open",
        "from_columns",
        "of",
        "state",
        "save",
        "commit",
        "close",
    ]  # of a folder, or of the log


def test_a_query_that_names_graphs_is_answered_from_these(endpoint: Endpoint) -> None:
    here, there = Graph(), RemoteGraph(endpoint.address)
    for graph in (here, there):
        graph.add(rows())
    for query, count in (
        ("SELECT ?s { ?s ?p ?o }", 5),
        ("SELECT ?s FROM <urn:interfuse:graph:inferred> { ?s ?p ?o }", 1),
        ("SELECT ?s FROM NAMED <urn:interfuse:graph:contested> { GRAPH ?g { ?s ?p ?o } }", 1),
        ("SELECT ?s FROM NAMED <urn:interfuse:graph:contested> { ?s ?p ?o }", 0),
        ("SELECT ?s FROM <urn:x:nothing> { ?s ?p ?o }", 0),
    ):
        assert len(there.query(query)) == len(here.query(query)) == count, query


def test_words_that_look_like_a_dataset_are_none() -> None:
    for query in ("SELECT * FROM <urn:g> { ?s ?p ?o }", "select * # x\nfrom named g:a { ?s ?p ?o }", "ASK FROM :g { }", "SELECT * \\u0046ROM <g> {}"):  # fmt: skip
        assert names_graphs(query), query
    for query in ("SELECT ?from { ?s :from ?from }", "SELECT * { ?s <urn:FROM> ' FROM <g> ' }", "ASK { ?s from:a ?o ; from.x:b ?p } # FROM <g>",
                  "SELECT * { ?s ?p \"\"\"a \" FROM <g>\"\"\" ; x:moved-from ?o, 'it\\'s FROM ' }"):  # fmt: skip
        assert not names_graphs(query), query


def test_an_endpoint_of_others_is_read_as_it_is(endpoint: Endpoint) -> None:
    endpoint.store.update(
        f'INSERT DATA {{ <{X}a> <{X}p> <{X}b> , "7"^^<http://www.w3.org/2001/XMLSchema#integer> . GRAPH <{X}g> {{ <{X}b> <{X}p> "x"@en }} }}'
    )
    there = RemoteGraph(endpoint.address)
    assert {(s.subject, s.object, s.status) for s in there} == {
        (X + "a", X + "b", "stated"), (X + "a", number(7), "stated"),
        *([(X + "b", Literal("x", language="en"), "stated")] if endpoint.union else []),  # its default graph, whatever that is
    }  # fmt: skip
    assert len(there) == (3 if endpoint.union else 2)
    assert there.get(there.statements()[0].id) == there.statements()[0]


def test_faults_are_tried_again_a_few_times_and_then_told(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    there = RemoteGraph(endpoint.address, most=4000, seconds=0.3)
    query = "ASK { ?s ?p ?o }"
    assert not there.ours  # asked once, before the first query
    for faults in (["503", "429"], ["cut"], ["slow", "500"]):
        endpoint.faults[:] = list(faults)
        endpoint.asked.clear()
        assert not there.query(query)
        assert len(endpoint.asked) == len(faults) + 1
    for faults, code, times in (
        (["503"] * 9, "endpoint.failed", 4), (["400"], "endpoint.failed", 1), (["302"], "endpoint.failed", 1), (["huge"], "input.limit", 1),
        (["not json"], "endpoint.failed", 1), (['{"head": 1}'], "endpoint.failed", 1), (["[]"], "endpoint.failed", 1), (["\xff"], "endpoint.failed", 1),
    ):  # fmt: skip
        endpoint.faults[:] = list(faults)
        endpoint.asked.clear()
        with pytest.raises(InterfuseError) as caught:
            there.query(query)
        assert caught.value.code == code
        assert len(endpoint.asked) == times
        endpoint.faults.clear()
    with pytest.raises(InterfuseError, match=r"unsafe\.address"):
        there.query("SELECT * { SERVICE <http://127.0.0.1/> { ?s ?p ?o } }")
    for address in ("file:///etc/passwd", "http://user:word@host/", "ftp://host/x", "", "http:///x"):
        with pytest.raises(InterfuseError, match=r"unsafe\.address"):
            RemoteGraph(address)
    secret = RemoteGraph(endpoint.address, key_env="GRAPH_KEY_FOR_TESTS")
    with pytest.raises(InterfuseError, match="GRAPH_KEY_FOR_TESTS is not set"):
        secret.query(query)
    monkeypatch.setenv("GRAPH_KEY_FOR_TESTS", "word")
    endpoint.asked.clear()
    secret.query(query)
    assert endpoint.asked[0][0] == "Bearer word"
    assert "word" not in repr(secret)
    endpoint.faults[:] = ["500"] * 9
    with pytest.raises(InterfuseError) as caught:
        secret.query(query)
    assert "word" not in str(caught.value)
