"""Reading what strangers wrote: plain YAML with line numbers, contained paths, atomic files.

YAML is read from parser events, so nothing in a document can name a Python type: tags are refused, keys must be unique,
aliases are counted at their expanded size, and scalars follow the YAML 1.2 core schema (``no`` is a word, ``1e-5`` a number).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import mmap
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from interfuse.core.errors import InterfuseError

MAX_TEXT = 10 * 2**20
MAX_NODES = 100_000
MAX_DEPTH = 100
#: bytes mapped at a time: few calls, as each call may wait for the interpreter while a library is imported
_SPAN = 1 << 27
#: files of fewer bytes are read at once
_SMALL = 1 << 20
#: so many characters count as one more value, so that an alias of a long text is not free
CHARS_PER_NODE = 128

#: position of every value in a document: the path of keys and indices -> line number, from 1
Lines = Mapping[tuple[str | int, ...], int]

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]{1,300}\Z")
_BASED = re.compile(r"0o[0-7]{1,300}\Z|0x[0-9a-fA-F]{1,300}\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
#: names that mean a device on Windows, with any ending
_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])[ .]*(?:\..*)?\Z", re.IGNORECASE | re.DOTALL
)


def read_text(path: Path, *, limit: int = MAX_TEXT) -> str:
    """The text of a UTF-8 file, at most ``limit`` bytes; a byte-order mark is dropped.

    Raises:
        InterfuseError: ``input.missing`` (also for what is not a plain file), ``input.limit`` or ``input.format``.
    """
    try:
        return read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InterfuseError(
            "input.format", f"the file is not UTF-8 text (byte {error.start})", where=str(path)
        ) from error


def read_bytes(path: Path, *, limit: int = MAX_TEXT) -> bytes:
    """The bytes of a plain file, at most ``limit``.

    Raises:
        InterfuseError: ``input.missing`` (also for what is not a plain file) or ``input.limit``.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or device would never end
            raise InterfuseError("input.missing", "there is no such file", where=str(path))
        with path.open("rb") as file:
            data = file.read(min(limit, found.st_size) + 1)
        if len(data) > limit:
            raise InterfuseError("input.limit", f"the file is larger than {limit} bytes", where=str(path))
        return data
    except OSError as error:
        raise InterfuseError("input.missing", f"cannot read the file: {error.strerror}", where=str(path)) from error
    except ValueError as error:  # a NUL in the name
        raise InterfuseError("input.missing", "there is no such file", where=repr(str(path))) from error


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
    except UnicodeEncodeError as error:
        raise InterfuseError(
            "recipe.syntax", "the text holds half of a character (a surrogate)", where=where
        ) from error
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
        self.name(event, value, self.count - before + 1)
        return value

    def name(self, event: Any, value: Any, size: int) -> None:
        """Keeps what an anchor stands for; one that stands twice is refused, as PyYAML refuses it."""
        if event.anchor:
            if event.anchor in self.anchors:
                raise self.fail(event, f"the anchor &{event.anchor} stands twice")
            self.anchors[event.anchor] = (value, size)

    def value(self, event: Any, path: tuple[str | int, ...], depth: int) -> Any:
        import yaml

        if isinstance(event, yaml.ScalarEvent):
            self.grow(event, len(event.value) // CHARS_PER_NODE)
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
            self.name(child, key, 1)
            self.grow(child, len(key) // CHARS_PER_NODE)
            if key in mapping:
                raise self.fail(child, f"the key {key[:100]!r} occurs twice")
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
    if _BASED.match(text):
        return int(text, 0)
    if _SPECIAL.match(text):
        return float(text.replace(".", ""))
    if _FLOAT.match(text):
        number = float(text)
        return number if math.isfinite(number) else text  # too large for a double: left as it was written
    return text


def contained(root: Path, relative: str) -> Path:
    """``root / relative``, refused when it could lead outside ``root`` on any system, links included.

    Raises:
        InterfuseError: ``unsafe.path``.
    """
    windows = PureWindowsPath(relative)
    bad = (
        not relative
        or relative.startswith("~")
        or "\0" in relative
        or ":" in relative  # drives and alternate streams
        or len(relative.encode("utf-8", "surrogatepass")) > 1024
        or PurePosixPath(relative).is_absolute()
        or windows.root != ""
        or not windows.parts
        or any(_leaves(part) for part in windows.parts)
    )
    path = root / relative if not bad else root
    if not bad:
        try:
            bad = not path.resolve().is_relative_to(root.resolve())
        except (OSError, RuntimeError):  # a circle of links
            bad = True
    if bad:
        raise InterfuseError("unsafe.path", f"{relative[:200]!r} leads outside its folder", where=str(root))
    return path


def _leaves(part: str) -> bool:
    """Whether one part of a path climbs (Windows drops dots and blanks at an end), is a device, or is too long to exist."""
    climbs = not part.rstrip(" .")
    return climbs or _DEVICE.match(part) is not None or len(part.encode("utf-8", "surrogatepass")) > 255


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no NaN, two-space indent, UTF-8, newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it: tuples become lists, sets sorted lists, arrays nested lists, NaN and infinities their
    names, half characters question marks, anything unknown its ``str``."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half a character cannot be written
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, set | frozenset):
        return sorted((jsonable(v) for v in value), key=canonical_json)
    tolist = getattr(value, "tolist", None)  # arrays, tensors and their scalars
    return jsonable(tolist()) if callable(tolist) else str(value)


def fingerprint(value: Any) -> str:
    """A 64-digit SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    return sized_sha256(path)[0]


def sized_sha256(path: Path | str, most: int | None = None) -> tuple[str, int]:
    """The SHA-256 of a file's bytes ("" of one with more than ``most``, which is not read) and how many these are, found in one go."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        size = os.fstat(handle).st_size
        if most is not None and size > most:
            return "", size
        if size < _SMALL:
            data = os.read(handle, size + 1)
            if len(data) == size:
                return hashlib.sha256(data).hexdigest(), size
            os.lseek(handle, 0, os.SEEK_SET)  # it grew meanwhile
        with open(handle, "rb", buffering=0, closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), size
    finally:
        os.close(handle)


def code_sha256(path: Path | str) -> str:
    """The SHA-256 of a file of code, which is read once in a process unless it changes."""
    found = os.stat(path)
    return _code_sha256(str(path), found.st_size, found.st_mtime_ns, found.st_ino)


@functools.cache
def _code_sha256(path: str, *identity: int) -> str:
    return file_sha256(path)


def file_digest(path: Path, kind: str) -> str:
    """A file's digest as ``kind:digits``: ``sha256``, or ``xxh3`` (XXH3-128), which reads weights at memory speed.

    What is of no such kind is digested as ``sha256``.
    """
    if kind != "xxh3":
        return f"sha256:{file_sha256(path)}"
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, _SPAN):
            length = min(_SPAN, size - start)
            if sys.platform == "linux":  # a cold file is fetched in large requests
                os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start) as span:
                digest.update(span)
    return f"xxh3:{digest.hexdigest()}"


_written: dict[tuple[int, int, int, int], str] = {}


def note_digest(path: Path, digest: str) -> None:
    """Remembers the digest of a file that this process has just written, so that it need not be read again at once."""
    _written[_identity(path)] = digest


def written_digest(path: Path) -> str:
    """A file's digest: what its writer noted, if the very file has not changed since, else its SHA-256 as it is read now."""
    return _written.pop(_identity(path), "") or file_digest(path, "sha256")


def _identity(path: Path) -> tuple[int, int, int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


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
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_folder(path.parent)


def half_written(path: Path) -> list[Path]:
    """What killed processes left half-written beside ``path``."""
    return [p for p in path.parent.iterdir() if is_half_written(p, path)]


def is_half_written(left: Path, path: Path) -> bool:
    """Whether something beside ``path`` is, by its name, what a process writes before it stands at ``path``."""
    return left.name.startswith(f".{path.name}.tmp-")


def sweep(path: Path) -> None:
    """Removes what killed processes left half-written beside ``path``. The caller must hold the right to write there."""
    with contextlib.suppress(OSError):  # what cannot be removed now is removed by the next start
        for left in half_written(path):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()


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
        place = f" ({error.filename})" if error.filename else ""
        raise InterfuseError(
            "output.write", f"cannot write: {error.strerror or error}{place}", where=str(path)
        ) from error
