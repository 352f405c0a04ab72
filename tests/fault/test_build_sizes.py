"""Bad input at its real size, small on disk: bombs of archives and pages, PDFs of 100,000 objects, huge files, names that lead out, shuffled and
doubled names, two builds at once, a build that is killed."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

import interfuse
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.data.corpus import Document, Skipped, open_corpus
from interfuse.data.formats.graphs import read_graph
from interfuse.data.graph import Graph, open_graph
from interfuse.data.loaders.archives import check_inner
from interfuse.data.loaders.layout import Limits
from interfuse.data.loaders.process import Reader
from interfuse.data.loaders.reading import read
from interfuse.data.ontology import open_ontology
from interfuse.data.statements import ALIAS, TYPE, Evidence, Literal, Statement, entity_id, label_of
from interfuse.kit.linking import Mention, link, link_graph
from tests import documents as made

GIGABYTE = 2**30


def swollen(size: int, block: bytes) -> bytes:
    """A zlib stream that is ``size`` copies of a block of a megabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"\x78\xda" + one * size + last.flush() + b"\0\0\0\0"


def zip_of_a_gigabyte() -> bytes:
    """A zip file whose list says a gigabyte of zeros."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.txt", b"\0" * 2**20)
    raw = bytearray(out.getvalue())
    central = raw.index(b"PK\x01\x02")
    raw[central + 24 : central + 28] = GIGABYTE.to_bytes(4, "little")
    return bytes(raw)


def wide_nest() -> bytes:
    """Sixteen archives of sixteen archives of sixteen files of a megabyte, each file below the size from which its own swelling counts."""
    body, name = b"\0" * (2**20 - 1), "a.txt"
    for level in range(3):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if level == 0 else zipfile.ZIP_STORED) as opened:
            for i in range(16):
                opened.writestr(f"{i}{name}", body)
        body, name = out.getvalue(), ".zip"
    return body


def tar_of_a_gigabyte() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = GIGABYTE
        tar.fileobj.write(info.tobuf())  # type: ignore[union-attr]
    return out.getvalue()


@pytest.mark.parametrize("build", [zip_of_a_gigabyte, wide_nest, tar_of_a_gigabyte])
def test_archives_that_unpack_to_gigabytes_are_refused(build: Any, tmp_path: Path) -> None:
    name = "a.tar.gz" if build is tar_of_a_gigabyte else "a.zip"
    (tmp_path / name).write_bytes(build())
    assert (tmp_path / name).stat().st_size < 8_000_000
    reader = Reader(Limits(memory=256 * 2**20))
    try:
        began = time.monotonic()
        found = list(reader.read(name, tmp_path / name))
        assert time.monotonic() - began < 30
    finally:
        reader.close()
    assert found
    assert all(isinstance(f, Skipped) and f.code == "input.limit" for f in found)
    assert not any(
        "its reader ended" in f.why for f in found if isinstance(f, Skipped)
    )  # told by its list, not by memory
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_no_name_in_an_archive_leads_out(tmp_path: Path) -> None:
    parts = [
        "..",
        "/etc",
        "C:\\x",
        "~",
        "a\0b",
        "CON",
        "x" * 300,
        "\\\\host\\share",
        ".",
        "a/../../b",
        "nul.txt",
        "\u202e.txt",
        "a:b",
        "....//",
        " ",
    ]
    rng = random.Random(3)
    names = [*parts, *("/".join(rng.choices(parts, k=rng.randrange(2, 5))) for _ in range(200 - len(parts)))]
    refused = 0
    for name in names:
        try:
            check_inner(name)
        except InterfuseError as error:
            refused += error.code == "unsafe.path"
            continue
        assert Path(os.path.normpath(tmp_path / name)).is_relative_to(tmp_path)
    assert len(names) == 200
    assert refused > 100


def many_objects() -> bytes:
    return made.Pdf("Many").bytes([b"<< /Length 0 >>\nstream\n\nendstream"] * 100_000)


def stream_of_a_gigabyte() -> bytes:
    body = swollen(1024, b" " * 2**20)
    whole = made.pdf("Big", ["words"])
    start = whole.index(b"5 0 obj")
    end = whole.index(b"endobj", start)
    return (
        whole[:start]
        + b"5 0 obj\n<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream\n" % (len(body), body)
        + whole[end:]
    )


def with_program() -> bytes:
    made_pdf = made.pdf("Program", ["Oslo is the capital of Norway."])
    return made_pdf.replace(
        b"/Type /Catalog",
        b"/Type /Catalog /OpenAction << /S /JavaScript /JS (app.launchURL('http://evil.example/')) >>",
    )


@pytest.mark.parametrize("build", [many_objects, stream_of_a_gigabyte, with_program])
def test_large_and_live_pdfs_end_in_time(build: Any, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(build())
    reader = Reader(Limits())
    try:
        began = time.monotonic()
        found = list(reader.read("a.pdf", tmp_path / "a.pdf"))
        assert time.monotonic() - began < Limits().seconds + 10
    finally:
        reader.close()
    assert found
    for item in found:
        if isinstance(item, Document):
            assert "evil.example" not in item.text
            assert build is not stream_of_a_gigabyte or len(item.text) < 1000
        else:
            assert item.code.startswith("input.")
    assert build is not with_program or any("Oslo" in d.text for d in found if isinstance(d, Document))


def test_a_page_of_a_million_tags_and_pages_in_a_wrong_charset() -> None:
    began = time.process_time()
    assert list(read("a.html", b"<i>" * 10**6 + b"words", Limits()))
    assert time.process_time() - began < 10
    page = '<html><head><meta charset="{c}"></head><body><p>Åse kjøpte fløte til 5 €.</p><img src="data:text/html,evil"></body></html>'
    for said, real in (("utf-16", "utf-8"), ("shift_jis", "utf-8"), ("utf-8", "cp1252"), ("no-such-set", "utf-8")):
        (found,) = read("a.html", page.format(c=said).encode(real), Limits())
        assert isinstance(found, Document)
        assert "kj" in found.text
        assert "evil" not in found.text


def test_mixed_encodings_are_read_and_a_gigabyte_of_one_line_is_counted(tmp_path: Path) -> None:
    mixed = "Åse lives in Tromsø. ".encode() * 20 + "Bjørn lives in Ålesund. ".encode("latin-1") * 20
    (found,) = read("a.txt", mixed, Limits())
    assert isinstance(found, Document)
    assert "lives in" in found.text
    with open(tmp_path / "one-line.txt", "wb") as file:
        file.truncate(GIGABYTE)  # a hole: it takes no room
    (tmp_path / "good.txt").write_text("Oslo is a city.")
    corpus = open_corpus(Source(str(tmp_path)), Ctx())
    assert [d.name for d in corpus.documents()] == ["good.txt"]
    assert [(s.name, s.code) for s in corpus.skipped] == [("one-line.txt", "input.limit")]


@pytest.mark.parametrize("address", ["http://127.0.0.1/a", "http://169.254.169.254/latest/", "https://[::1]/a", "file:///etc/passwd", "http://u:p@10.0.0.1/a", "//host/a"])  # fmt: skip
def test_nothing_is_fetched_when_an_address_is_opened(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents and ontologies never are; a graph behind an address is asked only when it is queried, and only by HTTP."""
    import socket

    def no(*_: Any, **__: Any) -> None:
        raise AssertionError("somebody opens a connection")

    monkeypatch.setattr(socket.socket, "connect", no)
    for opener in (open_corpus, open_ontology, open_graph):
        if opener is open_graph and address.startswith("http") and "@" not in address:
            assert opener(Source(address), Ctx()).name
            continue
        with pytest.raises(InterfuseError):
            opener(Source(address), Ctx())


def test_triples_of_too_many_and_too_few_columns_are_counted(tmp_path: Path) -> None:
    good = ["a\tr\tb", "a\tr\ta", "a\tr\tb", "=x\tr\tNaN"]  # with a loop and a line that comes twice
    bad = ["a\tr", "a\tr\tb\tc\td", "alone", "\tr\tb"] * 30
    (tmp_path / "x.tsv").write_text("\n".join(good + bad) + "\n")
    graph, problems = read_graph(tmp_path / "x.tsv")
    assert len(graph.statements(p=None)) >= 3
    assert problems.count == 120
    assert len(problems.shown) == 100
    assert [p.split(":")[1] for p in problems.shown] == [str(n) for n in range(5, 105)]  # the first, each with its line
    with pytest.raises(InterfuseError, match=r"input\.format"):
        read_graph(tmp_path / "x.tsv", strict=True)


def tangled() -> list[Statement]:
    """Entities whose aliases go in circles, with types that exclude each other, from several documents."""
    names = [
        "Acme Works",
        "Acme Werke",
        "ACME WORKS",
        "Usines Acme",
        "Berg Hall",
        "Berghall",
        "Berg  Hall",
        "Nord Line",
        "Nord-Line",
    ]
    made_of: list[Statement] = []
    for d in range(3):
        for i, name in enumerate(names):
            proof = [Evidence(f"d{d}", i, i + 1)]
            me = entity_id(name, document=f"d{d}")
            made_of.append(label_of(name, me, evidence=proof))
            made_of.append(
                Statement(me, ALIAS, Literal(names[(i + 1) % 4] if i < 4 else names[i]), evidence=tuple(proof))
            )
            if i % 2:
                made_of.append(
                    Statement(me, TYPE, f"urn:x:{'Person' if d == 2 and i == 5 else 'Firm'}", evidence=tuple(proof))
                )
    return made_of


def test_circles_of_aliases_in_a_hundred_orders_give_one_graph() -> None:
    rng = random.Random(5)
    statements = tangled()
    digests, proofs = set(), set()
    for _ in range(100):
        graph = Graph()
        graph.add(rng.sample(statements, len(statements)))
        link_graph(graph)
        digests.add(graph.digest())
        proofs.add(sum(len(s.evidence) for s in graph))
    assert len(digests) == 1
    assert proofs == {len(statements)}  # nobody's words were lost


def test_a_hundred_thousand_copies_of_one_name_become_one() -> None:
    began = time.process_time()
    mentions = [Mention(f"m{i:06}", "Acme Works" if i % 2 else "ACME  works") for i in range(100_000)]
    clusters = link(mentions).clusters
    assert [len(c) for c in clusters] == [100_000]
    assert time.process_time() - began < 30


BUILDER = """
import sys, interfuse
from interfuse.core.ctx import Ctx
print(interfuse.build.offline(sys.argv[1], out=sys.argv[2], parser="rules", force=True, ctx=Ctx(cache=__import__("pathlib").Path(sys.argv[3]))).digest())
"""


def test_two_builds_share_a_cache_and_an_output(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02}.txt").write_text(f"Person{i} Berg was born in Oslo. Town{i} is a city in Norway.")
    runs = [
        subprocess.Popen([sys.executable, "-c", BUILDER, str(folder), str(tmp_path / "g"), str(tmp_path / "cache")],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]  # fmt: skip
    ended = [run.communicate(timeout=240) for run in runs]
    alone = interfuse.build.offline(
        str(folder), out=tmp_path / "alone", parser="rules", ctx=Ctx(cache=tmp_path / "other")
    )
    said = [out.strip() for (out, _), run in zip(ended, runs, strict=True) if run.returncode == 0]
    assert said
    assert set(said) == {alone.digest()}
    assert all(run.returncode == 0 or "output.busy" in err for (_, err), run in zip(ended, runs, strict=True))
    assert open_graph(Source(str(tmp_path / "g")), Ctx()).digest() == alone.digest()
    again = interfuse.build.offline(str(folder), out=tmp_path / "h", parser="rules", ctx=Ctx(cache=tmp_path / "cache"))
    assert again.digest() == alone.digest()


PAYING = """
import json, os, signal, sys
from pathlib import Path
import interfuse
from interfuse.core.ctx import Ctx
from interfuse.data.lm import Reply, words_of

class Paid:
    name = "paid"
    def __init__(self, log, die_at): self.log, self.die_at, self.calls = log, die_at, 0
    def fingerprint(self): return "paid"
    def generate(self, prompts, *, n=1, **_):
        made = []
        for p in prompts:
            self.calls += 1
            if self.calls == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            words = words_of(p)
            self.log.write(words.split(" Berg was")[0].rsplit(None, 1)[-1] + "\\n"); self.log.flush()
            name = words.split(" Berg was born in")[0].rsplit(None, 1)[-1]
            row = {"subject": f"{name} Berg", "relation": "born in", "object": "Oslo", "quote": f"{name} Berg was born in Oslo"}
            made.append([Reply(json.dumps({"statements": [row]}), 10, 10, "stop")] * n)
        return made
    def score(self, pairs, *, ctx=None): return []

folder, out, cache, log, die = sys.argv[1:]
with open(log, "a") as file:
    interfuse.build.lm_extract(folder, lm=Paid(file, int(die)), out=out, ctx=Ctx(cache=Path(cache)))
"""


def test_a_killed_build_repeats_no_call_that_was_answered(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(f"Person{i} Berg was born in Oslo.")

    def run(log: str, die: int) -> int:
        words = [
            sys.executable,
            "-c",
            PAYING,
            str(folder),
            str(tmp_path / "g"),
            str(tmp_path / "cache"),
            str(tmp_path / log),
            str(die),
        ]
        return subprocess.run(words, capture_output=True, text=True, timeout=240, check=False).returncode

    assert run("first", 17) == -signal.SIGKILL  # sixteen are asked at once: the second request dies
    assert not (tmp_path / "g").exists()
    assert run("second", 10**6) == 0
    first, second = ((tmp_path / name).read_text().split() for name in ("first", "second"))
    assert len(first) == 16
    assert not set(first) & set(second)
    assert len(set(first) | set(second)) == 40
    facts = json.loads((tmp_path / "g" / "interfuse.json").read_text())["facts"]
    assert facts["candidates"] == 40
