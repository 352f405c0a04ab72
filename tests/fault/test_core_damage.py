"""Torn and flipped artifacts are found, every one; recipes made to exhaust a machine are refused at once."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from interfuse.core.artifact import MANIFEST, open_artifact, save_artifact, verify
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import load_yaml, read_text
from tests.toy_rooms import forked, outcome

FLIPS = 2000
DAMAGE = ("artifact.damaged", "unsafe.path", "input.missing")


@pytest.fixture
def whole(quick: Path) -> Path:
    def write(folder: Path) -> dict[str, float]:
        (folder / "weights.bin").write_bytes(random.Random(0).randbytes(300))
        (folder / "sub").mkdir()
        (folder / "sub" / "notes.txt").write_text("a few words\n")
        (folder / "empty").write_bytes(b"")
        return {"loss": 0.25}

    save_artifact(quick / "out", write, {"kind": "model", "method": "x/y", "params": {"k": [1, 2]}, "key": "k"})
    return quick / "out"


def refused(call: Callable[[Path], object], path: Path) -> bool:
    """Whether the damage is found. Anything but a coded error fails the test."""
    try:
        call(path)
    except InterfuseError as error:
        assert error.code in DAMAGE  # noqa: PT017
        return True
    return False


def test_every_bit_flip_is_found(whole: Path) -> None:
    rng = random.Random(1)
    files = {p: p.read_bytes() for p in sorted(whole.rglob("*")) if p.is_file() and p.stat().st_size}
    spots = [(p, i) for p, data in files.items() for i in range(len(data))]
    missed = []
    for turn in range(FLIPS):
        path, index = rng.choice(spots)
        data = bytearray(files[path])
        data[index] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        if turn % 5 == 0:
            refused(open_artifact, whole)  # reads sizes and the manifest only: it may pass, it must not crash
        if not refused(verify, whole):
            missed.append((path.name, index))
        path.write_bytes(files[path])
    assert missed == []
    verify(whole)


def test_every_truncation_is_found_by_opening(whole: Path) -> None:
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            assert refused(open_artifact, whole), (path.name, length)
        path.write_bytes(data + b"\n")
        assert refused(open_artifact, whole)
        path.write_bytes(data)
    verify(whole)


def test_random_bytes_in_place_of_a_manifest(whole: Path) -> None:
    rng = random.Random(2)
    data = (whole / MANIFEST).read_bytes()
    for _ in range(500):
        cut = sorted(rng.randrange(len(data)) for _ in range(2))
        junk = rng.choice([b"", b"{", b"null", b"\xff\xfe", b"[" * 50, b'"', b"1e999", b"NaN", rng.randbytes(8)])
        (whole / MANIFEST).write_bytes(data[: cut[0]] + junk + data[cut[1] :])
        same = (whole / MANIFEST).read_bytes() == data
        assert refused(open_artifact, whole) != same
    (whole / MANIFEST).write_bytes(b"[" * 1_000_000)
    assert refused(open_artifact, whole)


@pytest.mark.parametrize(
    "change", ["removed", "swapped", "folder", "link outside", "pipe", "added", "added deep", "added link"]
)
def test_other_damage(whole: Path, change: str) -> None:
    file = whole / "weights.bin"
    data = file.read_bytes()
    if change == "added":
        (whole / "model.bin").write_bytes(b"")
    elif change == "added deep":
        (whole / "sub" / "deeper").mkdir()
        (whole / "sub" / "deeper" / ".x").write_bytes(b"")
    elif change == "added link":
        (whole / "link").symlink_to("/etc")
    elif change == "swapped":
        file.write_bytes(data[::-1])
    else:
        file.unlink()
        if change == "folder":
            file.mkdir()
        elif change == "pipe":
            os.mkfifo(file)
        elif change == "link outside":
            (whole.parent / "same").write_bytes(data)
            file.symlink_to(whole.parent / "same")
    began = time.monotonic()
    assert refused(verify, whole)
    assert time.monotonic() - began < 1


def test_a_copy_is_as_good_and_a_half_copy_is_not(whole: Path) -> None:
    copy = whole.parent / "copy"
    shutil.copytree(whole, copy)
    assert verify(copy).digest == verify(whole).digest
    (copy / "sub" / "notes.txt").unlink()
    assert refused(open_artifact, copy)


def laughs() -> str:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    return text + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))


def tables() -> str:
    text = "a0: &a0 {k: x}\n"
    return text + "".join(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}\n" for n in range(1, 60))


#: made when needed: together they are large
BOMBS: dict[str, Callable[[], str]] = {
    "billion laughs": laughs,
    "billion laughs in tables": tables,
    "one long text, many aliases": lambda: "t: &t " + "x" * 5_000_000 + "\nu: [" + "*t, " * 40_000 + "]\n",
    "long keys, many aliases": lambda: "t: &t {" + "k" * 900 + ": 1}\nu: [" + "*t, " * 20_000 + "]\n",
    "deep brackets": lambda: "[" * 5_000_000,
    "deep braces": lambda: "{a: " * 1_000_000,
    "deep dashes": lambda: "- " * 1_000_000 + "x",
    "deep indents": lambda: "\n".join(" " * n + "k:" for n in range(4_000)),
    "many values": lambda: "a: [" + "1, " * 500_000 + "]",
    "many keys": lambda: "\n".join(f"k{n}: 1" for n in range(150_000)),
    "many anchors": lambda: "\n".join(f"k{n}: &a{n} 1" for n in range(110_000)),
    "too long": lambda: "#" * (10 * 2**20 + 1),
    "long comment": lambda: "# " + "x" * (10 * 2**20 - 100) + "\na: [",
    "huge number": lambda: "a: " + "9" * 5_000_000 + "\nb: [",
    "huge float": lambda: "a: " + "9" * 2_000_000 + "." + "9" * 2_000_000 + "e" + "9" * 1000 + "\nb: [",
    "many documents": lambda: "---\na: 1\n" * 200_000,
    "many tags": lambda: "%TAG !a! !\n" * 100_000,
    "quotes": lambda: "a: " + "'" * 3_000_001,
    "question marks": lambda: "? " * 1_000_000,
    "blank": lambda: " " * (10 * 2**20 - 10) + "\t[",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_fast_and_in_little_memory(quick: Path, name: str) -> None:
    path = quick / "r.yaml"
    path.write_text(BOMBS[name]())

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (8, 8))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(InterfuseError) as caught:
            load_yaml(read_text(path))
        assert caught.value.code in ("recipe.syntax", "input.limit")
        assert len(str(caught.value)) < 2000
        used = resource.getrusage(resource.RUSAGE_SELF)
        assert used.ru_utime + used.ru_stime < 5  # a forked child begins at zero
        assert used.ru_maxrss - before < 600 * 1024

    assert outcome(forked(work)) == 0


def test_the_largest_document_allowed_is_read() -> None:
    """The limits do not refuse what is merely large."""
    value, lines = load_yaml("rows: [" + "1, " * 99_000 + "]")
    assert len(value["rows"]) == 99_000
    assert lines[("rows", 98_999)] == 1
    assert len(load_yaml(json.dumps("x" * 9_000_000))[0]) == 9_000_000
