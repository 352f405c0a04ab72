"""Graphs open for writing: two writers, a kill at any moment, a torn journal, damaged folders."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from interfuse.core.artifact import verify
from interfuse.core.errors import InterfuseError
from interfuse.data.graph import Graph
from interfuse.data.statements import Evidence, Literal, Statement
from tests.toy_rooms import forked, lean, outcome


def fact(number: int) -> Statement:
    return Statement(
        f"urn:x:{number}", "urn:x:p", Literal(str(number)), evidence=(Evidence(f"doc {number}", 0, number),)
    )


def write_rounds(path: Path, tally: Path, count: int) -> None:
    """Says one fact after the other, notes each that is safely said, and commits now and then."""
    with Graph.open(path, write=True) as graph:
        for number in range(len(graph.history()), count):
            graph.add([fact(number)])
            with tally.open("a") as file:
                file.write(f"{number}\n")
            if number % 4 == 3:
                graph.commit()


@lean
def test_what_was_said_before_a_kill_is_there_after_it_and_the_folder_is_whole(quick: Path) -> None:
    path, tally = quick / "graph", quick / "tally"
    rng = random.Random(0)
    kills = 0
    for goal in range(12, 1000, 12):
        pid = forked(lambda goal=goal: write_rounds(path, tally, goal))  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.25))
        os.kill(pid, signal.SIGKILL)
        kills += outcome(pid) == -signal.SIGKILL
        safe = len(tally.read_text().split("\n")) - 1 if tally.exists() else 0
        if (path / "graph.json").is_file():
            verify(path)
            committed = Graph.open(path)
            assert committed.digest() == Graph.of(committed.history()).digest()
        with Graph.open(path, write=True) as graph:
            assert safe <= len(graph.history()) <= safe + 1
            assert graph.digest() == Graph.of(graph.history()).digest()
            done = len(graph.history())
        tally.write_text("".join(f"{n}\n" for n in range(done)))
        if kills == 12:
            break
    assert kills == 12
    with Graph.open(path, write=True) as graph:
        graph.commit()
        assert graph.digest() == Graph.open(path).digest()
        once = Graph()
        once.add(fact(n) for n in range(len(graph.history())))
        assert graph.digest() == once.digest()
    assert not (quick / ".graph.journal").exists()


def test_a_second_writer_is_refused_and_readers_see_the_last_commit(tmp_path: Path) -> None:
    with Graph.open(tmp_path / "g", write=True) as graph:
        graph.add([fact(1)])
        graph.commit()
        graph.add([fact(2)])
        assert len(Graph.open(tmp_path / "g")) == 1
        with pytest.raises(InterfuseError, match=r"output\.busy"):
            Graph.open(tmp_path / "g", write=True)
        with pytest.raises(InterfuseError, match=r"output\.busy"):
            raise_in_child(tmp_path / "g")
    with Graph.open(tmp_path / "g", write=True) as graph:  # the first one did not commit, but it did say it
        assert len(graph) == 2
    assert len(Graph.open(tmp_path / "g")) == 1


def raise_in_child(path: Path) -> None:
    def attempt() -> None:
        Graph.open(path, write=True)

    if outcome(forked(attempt)) != 0:
        raise InterfuseError("output.busy", "the child was refused")


def test_a_torn_last_line_is_dropped_and_a_damaged_one_named(tmp_path: Path) -> None:
    graph = Graph.open(tmp_path / "g", write=True)
    graph.add([fact(1)])
    graph.add([fact(2)])
    graph._held.journal.close()  # type: ignore[union-attr]
    journal = tmp_path / ".g.journal"
    whole = journal.read_bytes()
    for end in range(len(whole) - 1, whole.rfind(b"\n", 0, -1), -37):
        journal.write_bytes(whole[:end])
        with Graph.open(tmp_path / "g", write=True) as again:
            assert len(again) == 1
            again._held.journal.append(graph.history()[1])  # type: ignore[union-attr]
        assert journal.read_bytes() == whole
    lines = whole.split(b"\n")
    for bad in (
        b"{",
        b"[]",
        json.dumps({"n": 9, "kind": "add"}).encode(),
        json.dumps({"n": 1, "kind": "sing"}).encode(),
    ):
        journal.write_bytes(b"\n".join([lines[0], bad, lines[2], b""]))
        with pytest.raises(InterfuseError) as caught:
            Graph.open(tmp_path / "g", write=True)
        assert caught.value.code == "input.format"
    with pytest.raises(InterfuseError):  # and the lock was given back each time
        Graph.open(tmp_path / "g", write=True)


def test_a_damaged_folder_ends_in_a_coded_error(tmp_path: Path) -> None:
    graph = Graph()
    graph.add(fact(n) for n in range(20))
    graph.write(tmp_path / "g")
    files = sorted(
        p for p in (tmp_path / "g").rglob("*") if p.is_file() and p.name not in ("interfuse.json", "graph.nq")
    )
    assert len(files) > 15
    rng = random.Random(0)
    for file in files:
        whole = file.read_bytes()
        for broken in (b"", whole[: len(whole) // 2], bytes(rng.randrange(256) for _ in range(64)), None):
            file.unlink() if broken is None else file.write_bytes(broken)
            code = "none: what was read was whole"
            try:
                opened = Graph.open(tmp_path / "g")
                opened.columns()
                opened.statements()
            except InterfuseError as error:
                code = error.code
            assert code.split(".")[0] in ("input", "artifact", "none: what was read was whole")
            with pytest.raises(InterfuseError):
                verify(tmp_path / "g")
        file.write_bytes(whole)
    verify(tmp_path / "g")
