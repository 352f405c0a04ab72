"""Where the documents of a build lay, so that another folder of the same name is not taken for them.

A graph's manifest names no places: it is the same on every machine. The places stand in the cache, one line per build, by the
build's key; a line that was cut by a kill is passed over. When there are many, those noted last stay: a build whose line is gone is known by
what its documents hold.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from interfuse.core.rooms import Call, key_of
from interfuse.core.safe import fingerprint, write_atomic
from interfuse.data.corpus import Corpus
from interfuse.data.graph_files import DOCUMENTS, read_documents_table

#: lines after which only half of them stay; seconds to wait for another process that notes its own
_MOST, _WAIT = 8192, 10.0


def roots_of(corpus: Corpus) -> list[str]:
    """The folders that a corpus's files lie in, links resolved; the corpus's name for texts that are no files."""
    roots = {f.place.removesuffix(f.name) if f.place is not None else "" for f in corpus.files}
    return sorted(os.path.realpath(r) if r else corpus.name for r in roots)


def remember(call: Call) -> None:
    """Notes where the documents of a call lie; a disk that is full or read-only notes nothing."""
    corpus: Corpus | None = call.inputs["documents"]
    if corpus is None:
        return
    row, file = _row(key_of(call), _place(corpus)), _file(call)
    if row in _rows(file)[-(_MOST // 2) :]:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock"), timeout=_WAIT):
            rows = _rows(file)
            if len(rows) < _MOST:
                with file.open("a", encoding="ascii") as out:
                    out.write(f"\n{row}\n")  # after a line that was cut
            else:  # those noted last stay
                stay = [r for r in rows if r != row][1 - _MOST // 2 :]
                write_atomic(file, "".join(f"{r}\n" for r in [*stay, row]).encode("ascii", "replace"))


def same_documents(call: Call, path: Path, was: Mapping[str, Any]) -> bool:
    """Whether the graph at a path was made of the call's documents as they were earlier, and not of another folder's.

    They are when they lie where those lay, or hold the same: all of it, or at least half of the documents byte for byte (of those that
    are files of their own, not parts of an archive).

    Args:
        was: the graph's manifest.
    """
    corpus: Corpus | None = call.inputs["documents"]
    if corpus is None or not (path / DOCUMENTS).is_file() or _known(call, str(was.get("key")), _place(corpus)):
        return True
    if corpus.fingerprint() in [i["documents"]["fingerprint"] for i in was["inputs"] if i.get("documents")]:
        return True
    digests = {f.name: f.sha256 for f in corpus.files}
    table = read_documents_table(path, ("name", "id"))
    rows = [
        (n, i) for n, i in zip(*(table.column(c).to_pylist() for c in ("name", "id")), strict=True) if "!/" not in n
    ]
    return bool(rows) and 2 * sum(digests.get(n) == i for n, i in rows) >= len(rows)


def _place(corpus: Corpus) -> str:
    return fingerprint(roots_of(corpus))


def _known(call: Call, key: str, place: str) -> bool:
    """Whether a build of a key was made of documents at a place."""
    return _row(key, place) in _rows(_file(call))


def _rows(file: Path) -> list[str]:
    """The lines of a file that are whole."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.endswith("}")]


def _row(key: str, place: str) -> str:
    return json.dumps({"key": key, "place": place})


def _file(call: Call) -> Path:
    return call.ctx.cache.expanduser() / "build" / "places.jsonl"
