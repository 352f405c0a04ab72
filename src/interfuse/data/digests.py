"""Digests of weight files, taken at memory speed and, where one can, while libraries are still being imported.

A merge's key and its order of sources depend on every byte of every source. XXH3-128 (Collet 2021) reads as fast as memory
delivers: it tells changed files apart, it is no signature. Weights that a merge writes are listed with the same digest in the artifact.
The digest of a large file is remembered beside the file's identity (place, inode, size, times of change to the nanosecond), as
version control systems do, so that a model of many gigabytes is read for its digest once and not at every command.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import file_digest, write_atomic

_KEPT = 512
#: Where digests are remembered between processes, of files of at least so many bytes, how many, and how long a file must have
#: been left alone before its digest is (a change within the clock's tick could go unseen otherwise).
NOTES = Path("~/.cache/interfuse/digests")
_LARGE, _NOTES_KEPT, _SETTLED = 1 << 26, 2000, 2_000_000_000

Key = tuple[str, int, int]
_lock = threading.Lock()
_known: OrderedDict[Key, Future[str]] = OrderedDict()


def weight_digest(path: Path) -> str:
    """``xxh3:`` and 32 hexadecimal digits of a file's bytes; remembered while its size and time of change stay the same.

    Raises:
        OSError: the file cannot be read.
    """
    mine, found = _claim(path)
    if mine:
        _fill(path, found)
    try:
        return found.result()
    except OSError:
        with _lock:
            _known.pop(_key(path), None)
        raise


def begin(words: Iterable[str]) -> None:
    """Starts, in the background, on the weights of the model folders among the words of a command line."""
    files: list[Path] = []
    for word in words:
        place = word.split("=", 1)[1] if word.startswith("--") and "=" in word else word
        with contextlib.suppress(OSError, ValueError):
            if place and (Path(place) / "config.json").is_file():
                files += sorted(Path(place).glob("*.safetensors"))
    if files:
        threading.Thread(target=_ahead, args=(list(dict.fromkeys(files)),), daemon=True).start()


def _ahead(files: list[Path]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            mine, found = _claim(file)
            if mine:
                _fill(file, found)


def _key(path: Path) -> Key:
    stat = path.stat()
    return os.path.realpath(path), stat.st_size, stat.st_mtime_ns


def _claim(path: Path) -> tuple[bool, Future[str]]:
    """The digest to be, and whether it is the caller's work to fill it in."""
    key = _key(path)
    with _lock:
        if key in _known:
            return False, _known[key]
        found: Future[str] = Future()
        _known[key] = found
        while len(_known) > _KEPT:
            _known.popitem(last=False)
        return True, found


def _fill(path: Path, found: Future[str]) -> None:
    try:
        note = _note_of(path)
        known = _read_note(note)
        if not known:
            known = file_digest(path, "xxh3")
            if note is not None and note == _note_of(path):
                _write_note(note, known)
        found.set_result(known)
    except BaseException as error:
        found.set_exception(error)


def _note_of(path: Path) -> Path | None:
    """The file in which the digest of a large file at rest is remembered."""
    stat = path.stat()
    if stat.st_size < _LARGE or time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < _SETTLED:
        return None
    identity = (
        f"{os.path.realpath(path)}\0{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    )
    return NOTES.expanduser() / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()


def _read_note(note: Path | None) -> str:
    with contextlib.suppress(OSError, ValueError):
        text = note.read_text(encoding="ascii").strip() if note is not None else ""
        return text if len(text) == 37 and text.startswith("xxh3:") else ""
    return ""


def _write_note(note: Path, digest: str) -> None:
    with contextlib.suppress(OSError, InterfuseError):  # a full or read-only disk: read again next time
        write_atomic(note, digest.encode())
        notes = sorted(note.parent.iterdir(), key=lambda p: p.stat().st_mtime_ns)
        for old in notes[:-_NOTES_KEPT]:
            old.unlink()
