"""The explorer: nothing but reading, from here, by whom it was opened for; labels never become markup; and it works in a browser."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from interfuse.core.errors import InterfuseError
from interfuse.data.graph import Graph
from interfuse.data.graph_files import read_documents, write_documents
from interfuse.data.ontology import Ontology, Property
from interfuse.data.statements import TYPE, XSD, Evidence, Literal, Statement, entity_id, label_of, number, relation_id
from interfuse.kit.shapes import shapes_of
from interfuse.web.explorer import Explorer, export, open_explorer, page
from interfuse.web.server import make_server
from tests.browser_pipe import opened

TEXTS = {
    "d" * 64: (
        "nobel.html",
        "Marie Curie was born in Warsaw in 1867. <b>She</b> discovered polonium & radium together with Pierre Curie.",
    ),
    "e" * 64: ("table.xlsx", "Marie Curie\tWarsaw\tPoland"),
}
#: labels that would be markup, script or something else if they were not text
HOSTILE = [
    f"{open_}{i}" for i in range(10) for open_ in (
        "<script>alert(1)</script>", "</script><script>alert(1)//", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "javascript:alert(1)",
    )
]  # fmt: skip


def curie() -> Explorer:
    marie, warsaw = entity_id("Marie Curie"), entity_id("Warsaw")

    def proof(document: str, words: str) -> Evidence:
        start = TEXTS[document][1].index(words)
        return Evidence(
            document,
            start,
            start + len(words),
            1,
            quote=hashlib.sha256(words.encode()).hexdigest(),
            method="rules@1",
            score=0.5,
        )

    one, two = TEXTS
    graph = Graph("curie")
    graph.add([
        label_of("Marie Curie", marie), label_of("Warsaw", warsaw), Statement(marie, TYPE, relation_id("Person")),
        Statement(marie, relation_id("born in"), warsaw, ((relation_id("in"), number(1867)),), 0.9, evidence=(proof(one, "born in Warsaw"), proof(two, "Curie\tWarsaw"))),
        Statement(marie, relation_id("discovered"), Literal("polonium"), evidence=(proof(one, "polonium & radium"),)),
        Statement(marie, relation_id("age"), Literal("old"), evidence=(Evidence("elsewhere", 3, 9),)),
        *(label_of(w, entity_id(f"odd {i}")) for i, w in enumerate(HOSTILE)),
        *(Statement(entity_id(f"odd {i}"), relation_id("near"), marie) for i in range(len(HOSTILE))),
    ])  # fmt: skip
    shapes = shapes_of(Ontology.of([], [Property(relation_id("age"), range=(XSD + "integer",), data=True)]))
    return Explorer(graph, documents=TEXTS, shapes=shapes)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    server, address = make_server(curie())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield address
    server.shutdown()
    server.server_close()
    thread.join()


def ask(address: str, path: str | None = None, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request(method, parts.path if path is None else path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body


def test_only_the_right_address_host_origin_and_method_are_answered(served: str) -> None:
    token = urlsplit(served).path
    port = urlsplit(served).port
    assert served.startswith("http://127.0.0.1:")
    assert len(token) > 30
    status, headers, body = ask(served)
    assert status == 200
    assert "<title>Graph</title>" in body
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    for path in ("/", "/x/", token[:-2] + "/", "/favicon.ico", token + "../", token + "nothing", "/" + quote("%00")):
        assert ask(served, path)[0] == 404
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port}.evil.example",
        "",
        f"[::1]:{port}",
    ):
        assert ask(served, Host=host)[0] == 421
    assert ask(served, Host=f"localhost:{port}")[0] == 200
    assert ask(served, Origin="http://evil.example")[0] == 421
    assert ask(served, Origin="null")[0] == 421
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
        assert ask(served, method=method)[0] == 405
    assert ask(served, token + "search?q=" + "x" * 9000)[0] == 414


def test_the_server_tells_of_neighbours_statements_evidence_and_failures(served: str) -> None:
    token = urlsplit(served).path

    def get(what: str) -> object:
        return json.loads(ask(served, token + what)[2])

    hits = get("search?q=curie")
    assert [h["label"] for h in hits] == ["Marie Curie"]  # type: ignore[union-attr,index]
    around = get("around?hops=999&id=" + quote(entity_id("Marie Curie")))
    edges = around["edges"]  # type: ignore[index,call-overload]
    born = next(e for e in edges if e["p"] == "born in")
    found = get("statement?id=" + born["id"])
    first = found["evidence"][0]  # type: ignore[index,call-overload]
    assert (first["name"], first["quote"], first["intact"]) == ("nobel.html", "born in Warsaw", True)
    assert first["before"].endswith("Marie Curie was ")
    assert found["qualifiers"] == [["in", "1867"]]  # type: ignore[index,call-overload]
    unknown = next(e for e in edges if e["p"] == "age")
    assert "quote" not in get("statement?id=" + unknown["id"])["evidence"][0]  # type: ignore[index,call-overload]
    assert [f["component"] for f in get("failures")] == ["Datatype"]  # type: ignore[union-attr,index]
    assert get("stats")["failures"] == 1  # type: ignore[index,call-overload]
    assert "error" in get("statement?id=nothing")  # type: ignore[operator]


def test_a_file_that_stands_alone_holds_no_markup_of_labels_and_asks_for_nothing(tmp_path: Path) -> None:
    export(curie(), tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<script", text)) == 2
    assert "<img" not in text
    assert "<svg" not in text
    assert not re.search(r"<(?:a|img|link|script|iframe|svg|base|form|body|input)\b[^>]*\s(?:src|href|on\w+)\s*=", text)
    assert "connect-src 'none'" in text
    held = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert held is not None
    assert {n["label"] for n in json.loads(held[1])["nodes"]} >= set(HOSTILE)
    graph = Graph("towns")
    graph.add([Statement(entity_id(f"town {i}"), TYPE, entity_id("town")) for i in range(9)])
    graph.add([Statement(entity_id(n), relation_id("near"), entity_id("Oslo")) for n in ("Moss", "Ski")])
    shown = Explorer(graph)
    assert shown.whole()["first"] == [n["id"] for n in shown.search("")]
    assert shown.whole()["first"][0] == entity_id("Oslo"), "a class is not what a page opens with"
    assert "http://" not in text.replace("http://www.w3.org", "")
    again = page(curie().whole())[0]
    assert again == text
    script = (Path(page.__code__.co_filename).parent / "explorer.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)


def test_a_folder_keeps_its_documents_and_shapes(tmp_path: Path) -> None:
    explorer = curie()
    explorer.graph.write(tmp_path / "g")
    write_documents(tmp_path / "g", ((i, n, t) for i, (n, t) in TEXTS.items()))
    assert read_documents(tmp_path / "g") == TEXTS
    assert read_documents(tmp_path) == {}
    again = open_explorer(tmp_path / "g")
    assert again.whole()["statements"] == explorer.whole()["statements"]
    changed = Explorer(explorer.graph, documents={"d" * 64: ("nobel.html", "x" * 200)})
    assert not any(e["intact"] for s in changed.whole()["statements"] for e in s["evidence"] if "intact" in e)
    import interfuse.web.explorer as module

    whole, module.WHOLE = module.WHOLE, 3
    try:
        with pytest.raises(InterfuseError, match=r"input\.limit"):
            explorer.whole()
    finally:
        module.WHOLE = whole


def test_one_file_may_hold_a_part(tmp_path: Path) -> None:
    explorer = curie()
    every = [s["id"] for s in explorer.whole()["statements"]]
    near = explorer.whole("warsaw", 5)
    assert near["stats"]["part"] == len(near["statements"]) == 5
    first = {s.id for s in explorer.graph.neighbourhood(entity_id("Warsaw"), 1)}
    assert first < {s["id"] for s in near["statements"]} < set(every)
    assert [s["id"] for s in explorer.whole(entity_id("Warsaw"), 9)["statements"]] == [
        s["id"] for s in explorer.whole("warsaw", 9)["statements"]
    ]
    busiest = explorer.whole(most=7)
    assert len(busiest["statements"]) == 7
    assert all(entity_id("Marie Curie") in (s["s"], s["o"]) for s in busiest["statements"])
    assert {n["id"] for n in busiest["nodes"]} >= {entity_id("Marie Curie")}
    assert explorer.whole()["stats"]["part"] is None
    assert export(explorer, tmp_path / "x.html", most=7) == 7
    for words, code in ((("nowhere", None), "input.missing"), (("", 0), "param.value"), (("", 10**9), "param.value")):
        with pytest.raises(InterfuseError) as caught:
            explorer.whole(*words)
        assert caught.value.code == code


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1300,800",
]  # fmt: skip
#: what the picture shows of colours: pixels that are not grey
COLOURED = """(() => { const c = document.getElementById("canvas"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data; let n = 0;
for (let i = 0; i < d.length; i += 4) if (d[i + 3] && Math.max(d[i], d[i + 1], d[i + 2]) - Math.min(d[i], d[i + 1], d[i + 2]) > 60) n++; return n; })()"""
#: the places of the picture's nodes on the screen, in the order of their distance from a node in the middle: where the cursor becomes a hand
NODES = """(() => { const c = document.getElementById("canvas"), b = c.getBoundingClientRect(), found = [];
for (let y = b.top + 4; y < b.bottom; y += 6) for (let x = b.left + 4; x < b.right; x += 6) {
  c.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y }));
  if (c.style.cursor === "pointer") found.push([x, y]);
} return found; })()"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_a_person_searches_clicks_and_switches_a_source_off(served: str, tmp_path: Path) -> None:
    export(curie(), tmp_path / "x.html")
    with opened(str(CHROMIUM), FLAGS, tmp_path / "profile") as page:
        for start in (served, f"file://{tmp_path / 'x.html'}"):
            page.send("Page.navigate", url=start)
            page.until("document.body && document.body.dataset.ready === 'yes'")
            page.click_on("document.getElementById('search')")
            page.type("wars")
            page.until("document.querySelectorAll('#hits button').length === 1")
            assert page.value("document.querySelector('#hits button').textContent").strip() == "Warsaw"
            page.click_on("document.querySelector('#hits button')")
            page.until(
                "document.querySelector('#detail h3') && document.querySelector('#detail h3').textContent === 'Warsaw'"
            )
            assert page.value("location.hash").startswith("#e=")
            statement = (
                "[...document.querySelectorAll('#detail .row button')].find((b) => b.textContent.includes('born in'))"
            )
            page.click_on(statement)
            page.until("[...document.querySelectorAll('#detail mark')].some((m) => m.textContent === 'born in Warsaw')")
            assert page.value("location.hash").startswith("#s=")
            page.click_on(
                "[...document.querySelectorAll('#detail button')].find((b) => b.textContent === 'Marie Curie')"
            )  # the neighbour
            page.until(
                "document.querySelector('#detail h3') && document.querySelector('#detail h3').textContent === 'Marie Curie'"
            )
            # in the picture: a node that is not the centre
            page.until("(() => { const c = document.getElementById('canvas'); return c.width > 0; })()")
            last = None
            for _ in range(60):  # until the nodes stand still
                seen = page.value(NODES)
                if seen and seen == last:
                    break
                last = seen
                time.sleep(0.2)
            middle = page.value(
                "(() => { const b = document.getElementById('canvas').getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; })()"
            )
            others = [p for p in seen if abs(p[0] - middle[0]) + abs(p[1] - middle[1]) > 60]
            assert others
            page.click(*others[0])
            page.until("document.querySelector('#detail h3').textContent !== 'Marie Curie'")
            # the colours of a source go and come
            before = page.until(COLOURED)
            for off in (True, False):
                for i in range(page.value("document.querySelectorAll('#sources li').length")):
                    page.click_on(f"document.querySelectorAll('#sources li')[{i}]")
                assert page.value("document.querySelectorAll('#sources li.off').length > 0") is off
                page.until(f"{COLOURED} {'<' if off else '>'} {before} / 2")
        assert not page.says


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_it_works_in_a_real_browser(served: str, tmp_path: Path) -> None:
    explorer = curie()
    export(explorer, tmp_path / "x.html")
    born = next(s for s in explorer.graph.statements(p=relation_id("born in")))
    flags = [*FLAGS, "--virtual-time-budget=4000"]

    def browse(url: str, *more: str) -> str:
        done = subprocess.run(
            [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", *more, url],
            capture_output=True,
            timeout=120,
            check=False,
        )
        return done.stdout.decode("utf-8", "replace")

    for start in (served, f"file://{tmp_path / 'x.html'}"):
        seen = browse(f"{start}#s={born.id}", "--dump-dom")
        assert 'data-ready="yes"' in seen
        assert "<mark>born in Warsaw</mark>" in seen
        assert "nobel.html" in seen
        assert "table.xlsx" in seen
        assert "Contracts (1 failures)" in seen
        assert "alert(1)&lt;/script&gt;" in seen
        assert "<img" not in seen
    shot = tmp_path / "shot.png"
    browse(f"file://{tmp_path / 'x.html'}#failures", f"--screenshot={shot}")
    from PIL import Image

    picture = Image.open(shot)
    assert picture.size == (1300, 800)
    assert len(picture.convert("RGB").getcolors(2**24) or []) > 50
