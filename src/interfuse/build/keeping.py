"""What a method found in a chunk, kept on disk by the chunk's content: nothing is read or paid for twice.

One file per method, version, parameters, model and ontology, to which lines are added; a line that was cut by a kill is passed over.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interfuse.core.rooms import Call
from interfuse.core.safe import code_sha256, fingerprint, jsonable
from interfuse.data.statements import Evidence, Literal, Statement, from_json, to_json


def key_of_work(call: Call, params: Mapping[str, Any]) -> str:
    """A key that changes with whatever a method's findings in a chunk depend on, besides the chunk."""
    parts = [importlib.import_module(name).__file__ for name in (*PARTS, *call.method.traits.get("parts", ()))]
    inputs = {n: call.inputs[n].fingerprint() for n in ("lm", "ontology", "table") if call.inputs.get(n) is not None}
    return fingerprint({
        "method": call.method.id, "version": call.method.version(), "params": jsonable(params), "inputs": inputs, "seed": call.ctx.seed if call.method.traits.get("random") else 0,
        "parts": [code_sha256(p) for p in parts if p],
    })[:40]  # fmt: skip


#: modules that every method's findings depend on
PARTS = ("interfuse.data.chunks", "interfuse.build.keeping")

#: what one chunk gave: found things, and counts
Found = tuple[list[Any], dict[str, float]]


class Kept:
    """Results by the key of their chunk.

    Args:
        file: where they are kept. It grows; :meth:`put` writes whole lines. None: in memory alone.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.rows: dict[str, memoryview] = {}
        data = file.read_bytes() if file is not None and file.is_file() else b""
        view, at = memoryview(data), 0
        while at < len(data):
            end = data.find(b"\n", at)
            end = len(data) if end < 0 else end
            if end - at > 80 and data.startswith(b'{"k":"', at) and data[end - 1] == ord("}"):
                self.rows[data[at + 6 : at + 70].decode("ascii", "replace")] = view[at:end]
            at = end + 1
        self._out: int | None = None

    def get(self, key: str) -> Found | None:
        """What was kept under a key, or None."""
        line = self.rows.get(key)
        if line is None:
            return None
        try:
            row = json.loads(bytes(line))
            return [read_found(x) for x in row["f"]], dict(row["n"])
        except (ValueError, KeyError, TypeError):
            return None  # damaged: it is read again

    def put(self, key: str, found: Sequence[Any], tally: Mapping[str, float]) -> None:
        """Keeps what was found in a chunk; it is on disk when this returns."""
        row = {"k": key, "n": dict(tally), "f": [write_found(x) for x in found]}
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        self.put_line(key, line)

    def put_line(self, key: str, line: bytes) -> None:
        """Keeps a line that was made elsewhere."""
        if self._out is None and self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._out = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(self._out, b"\n")  # after a line that was cut
        if self._out is not None:
            os.write(self._out, line + b"\n")
        self.rows[key] = memoryview(line)

    def close(self) -> None:
        """Makes what was added durable."""
        if self._out is not None:
            os.fsync(self._out)
            os.close(self._out)
            self._out = None


def write_found(item: Any) -> Any:
    """A candidate or statement as plain JSON."""
    if isinstance(item, Statement):
        return {"statement": to_json(item)}
    row: dict[str, Any] = {}
    for f in dataclasses.fields(item):
        value = getattr(item, f.name)
        if value != f.default and f.name != "chunk":
            row[f.name] = _plain(value)
    return row


def _plain(value: Any) -> Any:
    if isinstance(value, Literal):
        return {"value": value.value, "datatype": value.datatype, "language": value.language}
    if isinstance(value, Evidence):
        return jsonable(vars(value))
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _rich(value: Any) -> Any:
    return Literal(**value) if isinstance(value, dict) and "datatype" in value else value


def read_found(row: Mapping[str, Any]) -> Any:
    """The inverse of :func:`write_found`; a candidate's chunk is put in by the caller."""
    from interfuse.build.room import Candidate

    if "statement" in row:
        return from_json(row["statement"])
    changes = dict(row)
    for name in ("object",):
        changes[name] = _rich(changes[name])
    for name in ("subject_at", "object_at"):
        if name in changes:
            changes[name] = tuple(changes[name])
    if "aliases" in changes:
        changes["aliases"] = tuple(changes["aliases"])
    if "qualifiers" in changes:
        changes["qualifiers"] = tuple((p, _rich(v)) for p, v in changes["qualifiers"])
    if "evidence" in changes:
        changes["evidence"] = tuple(
            Evidence(**{**e, "premises": tuple(e.get("premises", ()))}) for e in changes["evidence"]
        )
    return Candidate(**changes)
