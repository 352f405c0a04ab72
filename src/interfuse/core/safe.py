"""Reading what strangers wrote: plain YAML with line numbers, contained paths, atomic files.

YAML is read from parser events, so nothing in a document can name a Python type: tags are refused, keys must be unique,
aliases are counted at their expanded size, and scalars follow the YAML 1.2 core schema (``no`` is a word, ``1e-5`` a number).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from interfuse.core.errors import InterfuseError

MAX_TEXT = 10 * 2**20
MAX_NODES = 100_000
MAX_DEPTH = 100

#: position of every value in a document: the path of keys and indices -> line number, from 1
Lines = Mapping[tuple[str | int, ...], int]

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]{1,300}\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")


def read_text(path: Path, *, limit: int = MAX_TEXT) -> str:
    """The text of a UTF-8 file, at most ``limit`` bytes; a byte-order mark is dropped.

    Raises:
        InterfuseError: ``input.missing``, ``input.limit`` or ``input.format``.
    """
    try:
        if path.stat().st_size > limit:
            raise InterfuseError("input.limit", f"the file is larger than {limit} bytes", where=str(path))
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise InterfuseError("input.missing", "there is no such file", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise InterfuseError(
            "input.format", f"the file is not UTF-8 text (byte {error.start})", where=str(path)
        ) from error


def load_yaml(text: str, *, where: str = "YAML") -> tuple[Any, Lines]:
    """Plain YAML as Python dictionaries, lists, strings, numbers, booleans and None, with the line of every value.

    Raises:
        InterfuseError: ``recipe.syntax`` for anything that is not plain data, naming the line.
    """
    import yaml

    if len(text) > MAX_TEXT:
        raise InterfuseError("recipe.syntax", f"the text is longer than {MAX_TEXT} characters", where=where)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        events = yaml.parse(text, Loader=loader)
        builder = _Builder(events, where, lines)
        value = builder.document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InterfuseError("recipe.syntax", f"not valid YAML: {problem}", where=f"{where}{line}") from error
    except RecursionError as error:
        raise InterfuseError("recipe.syntax", f"nested deeper than {MAX_DEPTH}", where=where) from error
    return value, lines


class _Builder:
    """Turns parser events into plain values."""

    def __init__(self, events: Iterator[Any], where: str, lines: dict[tuple[str | int, ...], int]) -> None:
        self.events, self.where, self.lines = events, where, lines
        self.count = 0
        self.anchors: dict[str, tuple[Any, int]] = {}

    def line(self, event: Any) -> int:
        return int(event.start_mark.line) + 1

    def fail(self, event: Any, message: str) -> InterfuseError:
        return InterfuseError("recipe.syntax", message, where=f"{self.where}:{self.line(event)}")

    def grow(self, event: Any, nodes: int = 1) -> None:
        self.count += nodes
        if self.count > MAX_NODES:
            raise self.fail(event, f"more than {MAX_NODES} values")

    def document(self) -> Any:
        import yaml

        value: Any = None
        seen = False
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    raise self.fail(event, "more than one document in the file")
                seen = True
                value = self.node(next(self.events), (), 0)
        return value

    def node(self, event: Any, path: tuple[str | int, ...], depth: int) -> Any:
        import yaml

        if depth > MAX_DEPTH:
            raise self.fail(event, f"nested deeper than {MAX_DEPTH}")
        self.lines[path] = self.line(event)
        self.grow(event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise self.fail(event, f"unknown anchor *{event.anchor}")
            value, size = self.anchors[event.anchor]
            self.grow(event, size)
            return value
        if event.tag is not None:
            raise self.fail(event, f"tags such as {event.tag} are refused: a recipe is data, never code")
        before = self.count
        value = self.value(event, path, depth)
        if event.anchor:
            self.anchors[event.anchor] = (value, self.count - before + 1)
        return value

    def value(self, event: Any, path: tuple[str | int, ...], depth: int) -> Any:
        import yaml

        if isinstance(event, yaml.ScalarEvent):
            return event.value if event.style else _scalar(event.value)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(child := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node(child, (*path, len(items)), depth + 1))
            return items
        mapping: dict[str, Any] = {}
        while not isinstance(child := next(self.events), yaml.MappingEndEvent):
            if not isinstance(child, yaml.ScalarEvent) or child.tag is not None:
                raise self.fail(child, "keys must be plain words")
            key = child.value
            if key in mapping:
                raise self.fail(child, f"the key {key!r} occurs twice")
            mapping[key] = self.node(next(self.events), (*path, key), depth + 1)
            self.lines[(*path, key)] = self.line(child)
        return mapping


def _scalar(text: str) -> Any:
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text) or _SPECIAL.match(text):
        return float(
            text.replace(".inf", "inf")
            .replace(".Inf", "inf")
            .replace(".INF", "inf")
            .replace(".nan", "nan")
            .replace(".NaN", "nan")
            .replace(".NAN", "nan")
        )
    return text


def contained(root: Path, relative: str) -> Path:
    """``root / relative``, refused when it could lead outside ``root`` on any system, links included.

    Raises:
        InterfuseError: ``unsafe.path``.
    """
    bad = (
        not relative
        or "\0" in relative
        or len(relative.encode("utf-8", "surrogatepass")) > 1024
        or PurePosixPath(relative).is_absolute()
        or PureWindowsPath(relative).drive != ""
        or PureWindowsPath(relative).root != ""
        or ".." in PureWindowsPath(relative).parts
        or relative.startswith("~")
    )
    path = root / relative
    if not bad:
        try:
            bad = not path.resolve().is_relative_to(root.resolve())
        except OSError:
            bad = True
    if bad:
        raise InterfuseError("unsafe.path", f"{relative!r} leads outside its folder", where=str(root))
    return path


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no NaN, two-space indent, UTF-8, newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def fingerprint(value: Any) -> str:
    """A 64-digit SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that a crash at any moment leaves the old content or the new, never a part.

    Raises:
        InterfuseError: ``output.space`` or ``output.write``; the old file is untouched then.
    """
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames within a folder durable (where the system lets a folder be opened)."""
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors while writing into coded ones that name the place."""
    import errno

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InterfuseError(
                "output.space",
                "the disk is full",
                where=str(path),
                fix="Free room and run it again; finished steps are kept.",
            ) from error
        raise InterfuseError("output.write", f"cannot write: {error.strerror}", where=str(path)) from error
