"""Several processes at one place: one winner, the others are told, readers see the old or the new."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interfuse.core.artifact import open_artifact, save_artifact, verify
from interfuse.core.errors import InterfuseError
from interfuse.core.run import run
from tests.toy_rooms import Toy, forked, lean, outcome, tree

SAID = {"": 0, "output.busy": 10, "output.exists": 11}


def at_once(works: list[Callable[[], Any]]) -> list[int]:
    """Starts all in forked children that wait for one signal, and returns what each said."""
    read, write = os.pipe()

    def child(work: Callable[[], Any]) -> None:
        os.close(write)
        os.read(read, 1)  # ends when the parent closes its end
        code = ""
        try:
            work()
        except InterfuseError as error:
            code = error.code
        os._exit(SAID.get(code, 1))

    pids = [forked(lambda work=work: child(work)) for work in works]
    os.close(read)
    os.close(write)
    return [outcome(pid) for pid in pids]


def save(path: Path, mine: int, *, force: bool = False, wait: float = 0.0) -> None:
    def write(folder: Path) -> dict[str, int]:
        for name in "abc":
            (folder / name).write_bytes(f"{mine:05d}".encode() * 500)
            time.sleep(wait)
        return {"mine": mine}

    save_artifact(path, write, {"kind": "any", "mine": mine}, force=force)


def whole(path: Path) -> int:
    artifact = verify(path)
    mine = artifact.manifest["mine"]
    assert artifact.manifest["facts"] == {"mine": mine}
    return int(mine)


@pytest.mark.parametrize("count", [2, 16])
@pytest.mark.parametrize("wait", [0.0, 0.02])
@lean
def test_one_winner(quick: Path, count: int, wait: float) -> None:
    for turn in range(3):
        path = quick / str(turn) / "out"
        said = at_once([lambda n=n, path=path: save(path, n, wait=wait) for n in range(count)])
        assert said.count(0) == 1
        assert set(said) <= set(SAID.values())
        assert whole(path) == said.index(0)
        assert sorted(p.name for p in path.parent.iterdir()) == [".out.lock", "out"]


@lean
def test_all_may_win_in_turn_when_overwriting_but_nothing_is_torn(quick: Path) -> None:
    path = quick / "out"
    for _ in range(4):
        said = at_once([lambda n=n: save(path, n, force=True) for n in range(16)])
        winners = [n for n, s in enumerate(said) if s == 0]
        assert winners
        assert set(said) <= {0, SAID["output.busy"]}
        assert whole(path) in winners
    assert sorted(p.name for p in quick.iterdir()) == [".out.lock", "out"]


@lean
def test_readers_always_see_the_old_or_the_new(quick: Path) -> None:
    """Two writers replace the artifact 120 times in all while three readers open and verify it without a pause."""
    path = quick / "out"
    save(path, 0)
    stop = quick / "stop"

    def writer(first: int) -> None:
        for n in range(60):
            while True:
                try:
                    save(path, first + n, force=True)
                    break
                except InterfuseError as error:
                    assert error.code == "output.busy"  # noqa: PT017
        stop.touch()

    def reader() -> None:
        seen = set()
        reads = 0
        while not stop.exists() or reads < 20:
            seen.add(whole(path))
            seen.add(open_artifact(path).manifest["mine"])
            reads += 1
        assert len(seen) > 5

    assert at_once([lambda: writer(1000), lambda: writer(2000), reader, reader, reader]) == [0] * 5
    assert sorted(p.name for p in quick.iterdir()) == [".out.lock", "out", "stop"]


@pytest.mark.parametrize("count", [2, 16])
@lean
def test_runs_into_one_folder(toy: Toy, count: int) -> None:
    run(toy.recipe, "clean")
    toy.log.unlink()
    os.environ["TOY_WAIT"] = "0.05"
    said = at_once([lambda: run(toy.recipe, "out")] * count)
    assert 0 in said
    assert set(said) <= {0, SAID["output.busy"]}
    if count == 2 and said.count(0) == 2:
        assert len(toy.started()) == 7  # the second came after the first had ended, and found all done
    assert len(toy.started()) == len(set(toy.started())) == 7
    assert tree(Path("out")) == tree(Path("clean"))


@lean
def test_a_dead_process_keeps_no_lock(quick: Path) -> None:
    path = quick / "out"
    pid = forked(lambda: save(path, 1, wait=5))
    until = time.monotonic() + 10
    while not list(quick.glob(".out.tmp-*/a")):
        assert time.monotonic() < until
        time.sleep(0.002)
    with pytest.raises(InterfuseError) as caught:
        save(path, 2)
    assert caught.value.code == "output.busy"
    os.kill(pid, 9)
    outcome(pid)
    save(path, 3)
    assert whole(path) == 3
    assert sorted(p.name for p in quick.iterdir()) == [".out.lock", "out"]
