"""Transcripts with markers, and steering profiles found in them, as inputs of the room."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.core.safe import fingerprint, read_text

COLUMNS = ("text", "transcript", "content", "output", "response")


@dataclass(frozen=True)
class Transcripts:
    """Texts in which markers occur. ``name``: how reports call them."""

    name: str
    texts: tuple[str, ...] = field(repr=False)

    def fingerprint(self) -> str:
        """Of the texts."""
        return fingerprint(list(self.texts))


@dataclass(frozen=True)
class Profile:
    """A steering profile: which experts, found where. ``facts`` is what the artifact of the method ``rice`` keeps."""

    name: str
    facts: Mapping[str, Any] = field(repr=False)

    def fingerprint(self) -> str:
        """Of the profile."""
        return fingerprint(dict(self.facts))


def open_transcripts(source: Source, ctx: Ctx) -> Transcripts:
    """Opens texts: ``{"texts": [...]}``, a ``.jsonl`` or ``.parquet`` file with a column ``text`` (or ``transcript``, ``output``), or a ``.txt`` file
    of one text per paragraph.

    Raises:
        InterfuseError: ``input.missing``, ``input.empty``, ``input.format`` or ``input.type``.
    """
    spec = source.spec
    if isinstance(spec, Transcripts):
        return spec
    if isinstance(spec, Mapping) and set(spec) == {"texts"}:
        return _texts(source.name or "transcripts", list(spec["texts"]), "transcripts")
    if not isinstance(spec, str | Path):
        raise InterfuseError(
            "input.type", f"transcripts are a file, or a table of texts, not {type(spec).__name__}", where=source.name
        )
    path = source.folder / Path(spec).expanduser()
    if not path.is_file():
        raise InterfuseError("input.missing", "there is no such file of transcripts", where=str(path))
    name = source.name or path.stem
    if path.suffix == ".txt":
        return _texts(name, [part.strip() for part in read_text(path).split("\n\n") if part.strip()], str(path))
    if path.suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        column = next((c for c in COLUMNS if c in table.column_names), None)
        if column is None:
            raise InterfuseError("input.missing", f"none of the columns {', '.join(COLUMNS)} is there", where=str(path))
        return _texts(name, table[column].to_pylist(), str(path))
    texts = []
    for number, line in enumerate(read_text(path, limit=1 << 30).splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InterfuseError("input.format", "a line is not JSON", where=f"{path}:{number}") from error
            value = (
                row
                if isinstance(row, str)
                else next((row[c] for c in COLUMNS if isinstance(row, dict) and c in row), None)
            )
            if not isinstance(value, str):
                raise InterfuseError(
                    "input.missing", f"a line has none of {', '.join(COLUMNS)}", where=f"{path}:{number}"
                )
            texts.append(value)
    return _texts(name, texts, str(path))


def _texts(name: str, texts: Sequence[Any], where: str) -> Transcripts:
    if not texts:
        raise InterfuseError("input.empty", "there are no transcripts", where=where)
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InterfuseError("input.empty", "a transcript holds no text", where=f"{where}: row {i}")
    return Transcripts(name, tuple(texts))


def open_profile(source: Source, ctx: Ctx) -> Profile:
    """Opens a profile: a table, a JSON file, or the artifact of the method ``rice``.

    Raises:
        InterfuseError: ``input.missing`` or ``input.format``.
    """
    spec = source.spec
    if isinstance(spec, Profile):
        return spec
    if isinstance(spec, Mapping):
        return Profile(source.name or "profile", dict(spec))
    path = source.folder / Path(str(spec)).expanduser()
    path = path / "facts.json" if path.is_dir() else path
    if not path.is_file():
        raise InterfuseError("input.missing", "there is no such steering profile", where=str(path))
    try:
        facts = json.loads(read_text(path))
        if not isinstance(facts, dict) or "chosen" not in facts:
            raise ValueError("not a profile")
    except (ValueError, RecursionError) as error:
        raise InterfuseError("input.format", "the file is no steering profile", where=str(path)) from error
    return Profile(source.name or path.stem, facts)
