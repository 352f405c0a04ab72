"""Archives: looked at before they are unpacked, unpacked in memory within limits, never written to disk."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from interfuse.core.errors import InterfuseError
from interfuse.data.loaders.layout import Limits

_BLOCK = 1 << 20


def open_zip(data: bytes, limits: Limits) -> zipfile.ZipFile:
    """A zip file whose list of contents is within the limits.

    Raises:
        InterfuseError: ``input.format`` for damaged or encrypted ones, ``input.limit`` for bombs, ``unsafe.path``.
    """
    try:
        opened = zipfile.ZipFile(io.BytesIO(data))
        entries = opened.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise InterfuseError("input.format", f"not a readable archive: {error}") from error
    if len(entries) > limits.entries:
        raise InterfuseError("input.limit", f"the archive holds more than {limits.entries} files")
    total, taken = 0, 0
    for entry in entries:
        if entry.flag_bits & 1:
            raise InterfuseError("input.format", "the archive is encrypted")
        check_inner(entry.filename)
        if (entry.external_attr >> 16) & 0o170000 == 0o120000:
            raise InterfuseError("unsafe.path", f"the archive holds a link: {entry.filename[:100]!r}")
        total += entry.file_size
        taken += entry.compress_size
        if entry.file_size > 2**20 and entry.file_size > limits.ratio * max(entry.compress_size, 1):
            raise InterfuseError("input.limit", f"a file in the archive swells more than {limits.ratio:g}-fold")
    if total > limits.unpacked or (total > 2**20 and total > limits.ratio * max(len(data), 1)):
        raise InterfuseError("input.limit", f"the archive would unpack to {total} bytes from {len(data)}")
    return opened


def check_inner(name: str) -> None:
    """Refuses a name in an archive that would lead outside it.

    Raises:
        InterfuseError: ``unsafe.path``.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
        raise InterfuseError("unsafe.path", f"a name in the archive leads outside it: {name[:100]!r}")


def members(data: bytes, media: str, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the files in a zip or tar archive, in the order of their names.

    Raises:
        InterfuseError: as :func:`open_zip`; the limits hold while unpacking, whatever the archive's list says.
    """
    left = limits.unpacked
    if media == "zip":
        with open_zip(data, limits) as opened:
            for entry in sorted(opened.infolist(), key=lambda e: e.filename):
                if (
                    entry.is_dir()
                    or PurePosixPath(entry.filename).name.startswith((".", "~$"))
                    or "__MACOSX" in entry.filename
                ):
                    continue
                inner = read_member(opened, entry, min(left, limits.bytes))
                left -= len(inner)
                yield entry.filename, inner
        return
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as tar:
            for number, info in enumerate(tar):
                if number >= limits.entries:
                    raise InterfuseError("input.limit", f"the archive holds more than {limits.entries} files")
                check_inner(info.name)
                if info.issym() or info.islnk() or info.isdev():
                    raise InterfuseError("unsafe.path", f"the archive holds a link or device: {info.name[:100]!r}")
                if not info.isfile() or PurePosixPath(info.name).name.startswith("."):
                    continue
                if info.size > min(left, limits.bytes) or info.size > limits.ratio * max(len(data), 10_000):
                    raise InterfuseError("input.limit", "the archive would unpack to too many bytes")
                file = tar.extractfile(info)
                inner = file.read(info.size) if file is not None else b""
                left -= len(inner)
                yield info.name, inner
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise InterfuseError("input.format", f"not a readable archive: {error}") from error


def read_member(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    """The bytes of one file of a zip archive, read block by block up to a limit.

    Raises:
        InterfuseError: ``input.limit`` or ``input.format``.
    """
    try:
        with opened.open(entry) as file:
            blocks, size = [], 0
            while block := file.read(_BLOCK):
                size += len(block)
                if size > limit:
                    raise InterfuseError("input.limit", "a file in the archive is too large")
                blocks.append(block)
            return b"".join(blocks)
    except (zipfile.BadZipFile, OSError, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise InterfuseError("input.format", f"the archive is damaged: {error}") from error


def office_kind(data: bytes, limits: Limits) -> str:
    """What a zip file is: ``docx``, ``pptx``, ``xlsx``, ``ods``, ``epub`` or ``zip``; its XML parts are looked at.

    Raises:
        InterfuseError: ``input.format`` for XML that defines entities, or as :func:`open_zip`.
    """
    with open_zip(data, limits) as opened:
        names = [e.filename for e in opened.infolist()]
        kind = "zip"
        if "[Content_Types].xml" in names:
            for start, what in (("word/", "docx"), ("ppt/", "pptx"), ("xl/", "xlsx")):
                if any(n.startswith(start) for n in names):
                    kind = what
        elif "mimetype" in names:
            mark = read_member(opened, opened.getinfo("mimetype"), 1000)
            kind = "ods" if b"spreadsheet" in mark else "epub" if b"epub" in mark else "zip"
        if kind in ("docx", "pptx", "xlsx", "ods"):
            for entry in opened.infolist():
                if entry.filename.endswith((".xml", ".rels", ".vml")):
                    body = read_member(opened, entry, limits.bytes).replace(b"\0", b"")[:1_000_000].upper()
                    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
                        raise InterfuseError(
                            "input.format",
                            f"the part {entry.filename} defines entities, which no office program writes",
                        )
        return kind
