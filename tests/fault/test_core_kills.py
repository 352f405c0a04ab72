"""SIGKILL at any moment: the old artifact or the new one, never a half; a resumed run ends with the same bytes.

Children are forked, so that nothing is imported again; a kill costs a few milliseconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interfuse.core.artifact import open_artifact, save_artifact, verify
from interfuse.core.errors import InterfuseError
from interfuse.core.run import run
from interfuse.core.safe import sweep, write_atomic
from tests.toy_rooms import RECIPE, Toy, forked, lean, outcome, tree

KILLS = 200


def save_round(path: Path, number: int) -> None:
    """Saves an artifact whose every file tells its round."""

    def write(folder: Path) -> dict[str, int]:
        for name in ("a.bin", "b.bin", "sub/c.bin"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(f"{number:04d} ".encode() * 2_000)
        return {"round": number}

    save_artifact(path, write, {"kind": "any", "number": number}, force=True)


def round_of(path: Path) -> int:
    """The round of a whole artifact; fails on one that mixes two."""
    artifact = verify(path)
    number = artifact.manifest["number"]
    assert artifact.manifest["facts"] == {"round": number}
    assert {(path / name).read_bytes() for name in artifact.manifest["files"]} == {f"{number:04d} ".encode() * 2_000}
    return int(number)


def leftovers(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p.name not in (path.name, f".{path.name}.lock"))


def kill_after(pid: int, seconds: float) -> bool:
    """Whether the child was still alive to be killed."""
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return outcome(pid) == -signal.SIGKILL


def seconds_of(work: Callable[[], Any], times: int = 3) -> float:
    """How long a forked piece of work takes, fork included."""
    began = time.monotonic()
    for _ in range(times):
        assert outcome(forked(work)) == 0
    return (time.monotonic() - began) / times


@lean
def test_random_kills_during_save_leave_the_old_artifact_or_the_new(quick: Path) -> None:
    path = quick / "out"
    save_round(path, 0)
    usual = seconds_of(lambda: save_round(path, 0))
    rng = random.Random(0)
    current = killed = torn = tries = 0
    while killed < KILLS:
        tries += 1
        assert tries < 20 * KILLS
        goal = current + 1
        killed += kill_after(forked(lambda goal=goal: save_round(path, goal)), rng.uniform(0, usual))
        torn += bool(leftovers(path))
        found = round_of(path)
        assert found in (current, goal)
        current = found
        if tries % 25 == 0:
            save_round(path, current)
            assert leftovers(path) == []
    assert torn > KILLS / 10  # else the kills came too early or too late to prove anything
    save_round(path, 9999)
    assert round_of(path) == 9999
    assert leftovers(path) == []


@lean
def test_random_kills_while_a_file_is_written_leave_the_old_or_the_new(quick: Path) -> None:
    path = quick / "file.bin"
    texts = [str(n).encode() * 1_000_000 for n in (1, 2)]
    write_atomic(path, texts[0])
    usual = seconds_of(lambda: write_atomic(path, texts[0]))
    rng = random.Random(3)
    killed = replaced = 0
    while killed < 60:
        new = texts[killed % 2]
        killed += kill_after(forked(lambda new=new: write_atomic(path, new)), rng.uniform(0, usual))
        found = path.read_bytes()
        assert found in texts
        replaced += found == new
    assert replaced
    sweep(path)
    assert sorted(p.name for p in quick.iterdir()) == ["file.bin"]


#: every call through which a save touches the disk
CALLS = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir", "chmod", "close")


def kill_at(number: int) -> None:
    """In a child: SIGKILL right before the given call to the system."""
    count = iter(range(10**9))
    for name in CALLS:
        real = getattr(os, name)

        def call(*args: Any, real: Any = real, **kwargs: Any) -> Any:
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(os, name, call)


@pytest.mark.parametrize("start", ["nothing", "empty folder", "old artifact", "killed between the renames"])
@lean
def test_a_kill_at_every_single_call_to_the_system(quick: Path, start: str) -> None:
    seen: set[int] = set()
    for number in range(200):
        path = quick / str(number) / "out"
        path.parent.mkdir()
        old: set[int] = set()
        if start == "empty folder":
            path.mkdir()
        elif start != "nothing":
            save_round(path, 1)
            old = {1}
            if start == "killed between the renames":
                path.rename(path.parent / ".out.old")

        def work(path: Path = path, number: int = number) -> None:
            kill_at(number)
            save_round(path, 2)

        status = outcome(forked(work))
        assert status in (0, -signal.SIGKILL)
        try:
            found = round_of(path)
            assert found in {2, *old}
            seen.add(found)
        except InterfuseError as error:  # nothing was there before, and nothing is there now
            assert error.code == "input.missing"  # noqa: PT017
            assert not old
            assert not path.exists() or not any(path.iterdir())
            seen.add(0)
        save_round(path, 3)
        assert round_of(path) == 3
        assert leftovers(path) == []
        if status == 0:
            break
    assert number > 15
    assert seen == ({1, 2} if old else {0, 2})


def test_a_reader_brings_back_what_a_kill_has_put_aside(quick: Path) -> None:
    path = quick / "out"
    save_round(path, 1)
    path.rename(quick / ".out.old")
    assert open_artifact(path).manifest["number"] == 1
    assert path.is_dir()


@lean
def test_random_kills_during_run_end_with_the_same_bytes(toy: Toy) -> None:
    """At least 200 kills over runs of seven steps. Whatever is finished when the kill comes is never begun again."""
    recipe = toy.write(RECIPE.replace("turns: 4", "turns: 9"))
    run(recipe, "clean")
    expected = tree(Path("clean"))
    steps = [place.parent for place in sorted(Path("clean").glob("steps/*/*/interfuse.json"))]
    assert len(steps) == 7
    usual = seconds_of(lambda: run(recipe, f"time-{os.getpid()}"))
    rng = random.Random(1)
    killed = resumed = finished = 0
    for turn in range(10_000):
        if killed >= KILLS:
            break
        out = Path(f"out-{turn}")
        while True:
            toy.log.unlink(missing_ok=True)
            done = [place.relative_to("clean") for place in steps if is_whole(out / place.relative_to("clean"))]
            resumed += bool(done)
            dead = kill_after(forked(lambda out=out: run(recipe, out)), rng.uniform(0.1, 1) * usual)
            killed += dead
            begun = [line.replace(".scratch-", "").rsplit("-", 1)[0] for line in toy.started()]
            assert not set(begun) & {str(place.relative_to("steps")) for place in done}
            assert len(begun) == len(set(begun))
            if not dead:
                break
        run(recipe, out)
        assert tree(out) == expected
        assert list(out.rglob(".scratch-*")) == list(out.rglob(".*.tmp-*")) == list(out.rglob(".*.old")) == []
        finished += 1
    assert finished >= 3
    assert resumed > KILLS / 4  # else every run began at the beginning


@lean
def test_a_run_killed_at_any_call_before_its_first_step_is_gone_on_with(toy: Toy) -> None:
    """Also between the first byte of its mark and the mark's name."""
    run(toy.recipe, "clean")
    torn = 0
    for number in range(12):
        out = Path(f"out-{number}")

        def work(out: Path = out, number: int = number) -> None:
            kill_at(number)
            run(toy.recipe, out)

        assert outcome(forked(work)) == -signal.SIGKILL
        torn += out.is_dir() and any(out.iterdir()) and not (out / "run.json").exists()
        run(toy.recipe, out)
        assert tree(out) == tree(Path("clean"))
    assert torn >= 2


def is_whole(path: Path) -> bool:
    try:
        verify(path)
    except InterfuseError:
        return False
    return True


@lean
def test_unfinished_steps_go_on_where_they_were(toy: Toy) -> None:
    """The second run takes the turns of the first from the scratch folder: they are marked to tell."""
    out = Path("out")
    slow = "        if saved is not None:\n            write_atomic"
    toy.change("tie/braid", slow, slow.replace("if saved", "import time\n        time.sleep(0.02)\n        if saved"))
    pid = forked(lambda: run(toy.recipe, out))
    scratch = out / "steps" / "thick"
    until = time.monotonic() + 20
    while not any(scratch.glob(".scratch-seed-1-*/turn-2")):
        assert time.monotonic() < until
        time.sleep(0.001)
    assert kill_after(pid, 0)
    (saved,) = scratch.glob(".scratch-seed-1-*")
    first = (saved / "turn-0").read_bytes()
    (saved / "turn-0").write_bytes(b"M" * len(first))
    run(toy.recipe, out)
    assert (scratch / "seed-1" / "parts" / "0.bin").read_bytes() == b"M" * len(first)
    assert not saved.exists()


@lean
def test_the_check_for_halves_can_fail(quick: Path) -> None:
    """The same kills on a saver that writes in place: a half is found."""

    def careless(number: int) -> None:
        import shutil

        sys.setswitchinterval(1e-5)
        path = quick / "out"
        shutil.rmtree(path, ignore_errors=True)
        save_round(quick / "draft", number)
        shutil.copytree(quick / "draft", path)

    careless(0)
    usual = seconds_of(lambda: careless(0))
    rng = random.Random(2)
    for _ in range(400):
        kill_after(forked(lambda: careless(1)), rng.uniform(0, usual))
        if not is_whole(quick / "out"):
            return
        careless(0)
    pytest.fail("a saver that writes in place was never caught")
