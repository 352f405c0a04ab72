"""A disk that is full, forbidden or failing, at every single place where something is written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interfuse.core.artifact import save_artifact, verify
from interfuse.core.errors import InterfuseError
from interfuse.core.run import run
from interfuse.core.safe import write_atomic
from tests.toy_rooms import Toy, forked, lean, outcome, tree

CODES = {errno.ENOSPC: "output.space", errno.EACCES: "output.write", errno.EIO: "output.write"}
#: what a child says with its exit status
DONE, SPACE, WRITE, OTHER = 0, 50, 51, 52
STATUS = {"output.space": SPACE, "output.write": WRITE}


def write_files(folder: Path) -> dict[str, int]:
    (folder / "sub").mkdir()
    for name in ("a.bin", "sub/b.bin"):
        with (folder / name).open("wb") as file:
            file.write(b"new " * 10_000)
    return {"number": 2}


def save_new(path: Path) -> None:
    save_artifact(path, write_files, {"kind": "any", "number": 2}, force=True)


def save_old(path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "a.bin").write_bytes(b"old")

    save_artifact(path, write, {"kind": "any", "number": 1}, force=True)


def hidden(folder: Path) -> list[str]:
    """What is left over below a folder: everything hidden but locks."""
    return [p.name for p in folder.rglob(".*") if not p.name.endswith(".lock")]


def told(work: Callable[[], Any]) -> int:
    """Runs ``work`` in a forked child and returns what came of it: done, a coded error, or anything else."""

    def child() -> None:
        try:
            work()
        except InterfuseError as error:
            os._exit(STATUS.get(error.code, OTHER))
        os._exit(DONE)

    return outcome(forked(child))


#: events of the interpreter's audit through which files are changed; opening counts when it is for writing
EVENTS = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "tempfile.mkstemp",
    "tempfile.mkdtemp",
)


def fail_at(number: int, code: int, root: Path) -> None:
    """In a child: the given change to files below ``root`` fails. Audit hooks see each one, in whatever library it is."""
    count = iter(range(10**9))

    def strike() -> None:
        if next(count) == number:
            raise OSError(code, os.strerror(code))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS:
            strike()
        elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            place = "" if isinstance(args[0], int) else os.path.abspath(os.fsdecode(args[0]))
            if place.startswith(str(root)):
                strike()

    real_sync = os.fsync

    def sync(handle: int) -> None:
        strike()
        real_sync(handle)

    os.fsync = sync  # the audit does not report it
    sys.addaudithook(hook)


@pytest.mark.parametrize(
    "start, code",
    [("old artifact", errno.ENOSPC), ("old artifact", errno.EACCES), ("old artifact", errno.EIO),
     ("nothing", errno.ENOSPC), ("killed between the renames", errno.EIO)],
    ids=lambda v: errno.errorcode.get(v, v),
)  # fmt: skip
@lean
def test_every_write_of_a_save_may_fail_once(quick: Path, start: str, code: int) -> None:
    seen: list[int] = []
    for number in range(100):
        path = quick / str(number) / "out"
        path.parent.mkdir()
        if start != "nothing":
            save_old(path)
        if start == "killed between the renames":
            path.rename(path.parent / ".out.old")

        def work(path: Path = path, number: int = number) -> None:
            fail_at(number, code, quick)
            save_new(path)

        status = told(work)
        seen.append(status)
        assert status in (DONE, STATUS[CODES[code]])
        if status == DONE:  # no error, or one while clearing up, which is no reason to refuse what is saved
            assert verify(path).manifest["number"] == 2
        elif start == "nothing":
            assert not path.exists()
        else:
            assert verify(path).manifest["number"] == 1
        save_new(path)  # the next start
        assert verify(path).manifest["number"] == 2
        assert hidden(path.parent) == []
        if seen[-8:] == [DONE] * 8:
            break
    assert sum(s != DONE for s in seen) >= 12
    assert len(seen) < 100


@pytest.mark.parametrize("code", CODES, ids=lambda c: errno.errorcode[c])
@lean
def test_every_write_of_a_file_may_fail_once(quick: Path, code: int) -> None:
    statuses = []
    for number in range(12):
        path = quick / str(number) / "file.json"
        write_atomic(path, b"old")

        def work(path: Path = path, number: int = number) -> None:
            fail_at(number, code, quick)
            write_atomic(path, b"new")

        statuses.append(told(work))
        assert path.read_bytes() == (b"new" if statuses[-1] == DONE else path.read_bytes())
        assert path.read_bytes() in (b"old", b"new")
        assert hidden(path.parent) == []
    assert statuses[-1] == DONE
    assert statuses.count(STATUS[CODES[code]]) >= 4
    assert not set(statuses) - {DONE, STATUS[CODES[code]]}


@lean
def test_every_write_of_a_run_may_fail_once(toy: Toy) -> None:
    """After any failure the next run ends with the bytes of one that never failed. The three errors take turns."""
    recipe = toy.write("interfuse: 1\nsources: {red: red.txt}\nsteps:\n  thin: {use: tie/braid, strands: red, turns: 2}\n"
                       "  joined: {use: splice, strands: thin}\n")  # fmt: skip
    run(recipe, "clean")
    expected = tree(Path("clean"))
    seen: list[int] = []
    for number in range(200):
        out = Path(f"out-{number}")
        code = list(CODES)[number % 3]

        def work(out: Path = out, number: int = number, code: int = code) -> None:
            fail_at(number, code, toy.work)
            run(recipe, out)

        seen.append(told(work))
        assert seen[-1] in (DONE, STATUS[CODES[code]])
        for manifest in out.glob("steps/*/*/interfuse.json"):
            verify(manifest.parent)
        run(recipe, out)
        assert tree(out) == expected
        assert [name for name in hidden(out) if ".tmp-" in name or name.endswith(".old")] == []
        if seen[-8:] == [DONE] * 8:
            break
    assert sum(s != DONE for s in seen) >= 30
    assert len(seen) < 200


@pytest.mark.parametrize("limit", [0, 1, 3, 3000, 39_999])
def test_a_limit_on_file_size_is_a_full_disk(quick: Path, limit: int) -> None:
    """The real thing, from the system: a write ends in the middle."""
    path = quick / "out"
    save_old(path)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        save_new(path)

    assert told(work) == SPACE
    assert verify(path).manifest["number"] == 1
    assert hidden(quick) == []
    save_new(path)
    assert verify(path).manifest["number"] == 2


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by the administrator")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_real_small_disk(tiny: Path) -> None:
    path = tiny / "out"
    save_old(path)
    for size in (2_000_000, 1_040_000, 1_500_000):

        def write(folder: Path, size: int = size) -> None:
            (folder / "big.bin").write_bytes(b"x" * size)

        with pytest.raises(InterfuseError, match="the disk is full") as caught:
            save_artifact(path, write, {"kind": "any"}, force=True)
        assert caught.value.code == "output.space"
        assert verify(path).manifest["number"] == 1
        assert hidden(tiny) == []
    with pytest.raises(InterfuseError, match="the disk is full"):
        write_atomic(tiny / "file", b"x" * 2_000_000)
    assert not (tiny / "file").exists()
    assert hidden(tiny) == []
    save_new(path)
    assert verify(path).manifest["number"] == 2


def test_a_run_on_a_small_disk_goes_on_when_there_is_room(tiny: Path, toy: Toy) -> None:
    (tiny / "ballast").write_bytes(b"x" * 1_000_000)
    with pytest.raises(InterfuseError) as caught:
        run(toy.recipe, tiny / "out")
    assert caught.value.code == "output.space"
    for manifest in (tiny / "out").glob("steps/*/*/interfuse.json"):
        verify(manifest.parent)
    (tiny / "ballast").unlink()
    run(toy.recipe, tiny / "out")
    run(toy.recipe, "clean")
    assert tree(tiny / "out") == tree(Path("clean"))


def test_a_read_only_disk(tiny: Path) -> None:
    save_old(tiny / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(tiny)], check=True)
    assert verify(tiny / "out").manifest["number"] == 1  # reading needs no writing
    with pytest.raises(InterfuseError) as caught:
        save_new(tiny / "out")
    assert caught.value.code == "output.write"
    with pytest.raises(InterfuseError) as caught:
        save_new(tiny / "deeper" / "out")
    assert caught.value.code == "output.write"


@pytest.mark.parametrize("blocked", ["a file in the way", "a folder in the way of the lock"])
def test_things_in_the_way(quick: Path, blocked: str) -> None:
    if blocked == "a file in the way":
        (quick / "file").write_text("x")
        place = quick / "file" / "out"
    else:
        (quick / ".out.lock").mkdir()
        place = quick / "out"
    with pytest.raises(InterfuseError) as caught:
        save_new(place)
    assert caught.value.code == "output.write"
