"""Writing a model's weights when every shape is known beforehand, in any order, from several threads.

Shards get their final names and sizes before the first number is computed, and each tensor is written at its final
offset, so no shard is ever held in memory. A file's header length stays zero until the file is complete: a torn output is
refused by every safetensors reader instead of loading as zeros.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import xxhash

from interfuse.core.errors import InterfuseError
from interfuse.core.lazy import lazy
from interfuse.core.safe import note_digest
from interfuse.data.formats.safetensors import KINDS, build_header, code_of, dtype_of
from interfuse.data.weights import INDEX, SINGLE, bytes_of
from interfuse.data.write_behind import LEAST, WriteBehind

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

#: Output tensors: name -> (element type or its code, shape), in the model's order.
Layout = Mapping[str, "tuple[torch.dtype | str, tuple[int, ...]]"]
#: The same with codes.
Coded = Mapping[str, tuple[str, tuple[int, ...]]]
_WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json(\.part)?)?")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TensorSink(Protocol):
    """Where computed tensors go: files (:class:`WeightWriter`) or memory (:class:`MemoryWriter`)."""

    @property
    def layout(self) -> Coded:
        """The tensors that are expected."""

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Stores consecutive elements, already of the tensor's type, from flat element ``start`` on."""

    def write_raw(self, name: str, start: int, data: memoryview) -> None:
        """The same from the elements' bytes; ``start`` counts elements."""

    def is_present(self, name: str, checksum: str) -> bool:
        """Whether the tensor is already there, left complete by an interrupted run."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the output: its name, its header, and where each of its tensors starts."""

    name: str
    header: bytes
    offsets: dict[str, int]
    size: int


def plan_shards(layout: Layout, max_shard_bytes: int = 5_000_000_000) -> list[Shard]:
    """Cuts the tensors, in order, into files of at most ``max_shard_bytes`` of numbers.

    A tensor larger than the limit has a file of its own. Within a file, types of larger elements come first, so that
    every tensor is aligned for its type.

    Raises:
        InterfuseError: ``input.empty`` without tensors, ``param.value`` for a limit below 1 byte.
    """
    if not layout:
        raise InterfuseError("input.empty", "there are no tensors to write")
    if max_shard_bytes < 1:
        raise InterfuseError("param.value", f"max_shard_bytes must be positive, not {max_shard_bytes}")
    coded = _coded_layout(layout)
    groups: list[list[str]] = [[]]
    filled = 0
    for name in coded:
        size = _nbytes(coded, name)
        if groups[-1] and filled + size > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    shards = []
    for number, names in enumerate(groups, 1):
        file = SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        names.sort(key=lambda name: -KINDS[coded[name][0]].itemsize)  # stable
        header = build_header([(name, *coded[name]) for name in names], {"format": "pt"})
        position, offsets = len(header), {}
        for name in names:
            offsets[name] = position
            position += _nbytes(coded, name)
        shards.append(Shard(file, header, offsets, position))
    return shards


class WeightWriter:
    """A model folder's weight files, written in any order from several threads.

    Leaving the ``with`` block without an error completes the files (:meth:`close`); leaving it with one removes them, or
    keeps them if they are resumable.

    Args:
        folder: where to write; made if missing.
        layout: the tensors, in the model's order.
        max_shard_bytes: largest number of bytes of numbers in one file.
        resumable: keep unfinished files, and take over (or, if their layout differs, replace) the ones that are there.
            Only for a working folder: a finished model in it counts as a leftover too.

    Raises:
        InterfuseError: ``output.exists`` if a file of the same name is there and is not such a leftover,
            ``output.space`` if the disk has not enough room, ``output.write`` if it cannot be written.
    """

    def __init__(
        self, folder: str | Path, layout: Layout, *, max_shard_bytes: int = 5_000_000_000, resumable: bool = False
    ) -> None:
        self.folder, self.layout, self.resumable = Path(folder), _coded_layout(layout), resumable
        self.shards = plan_shards(layout, max_shard_bytes)
        self._fds: dict[str, int] = {}
        self._place = {name: (shard.name, at) for shard in self.shards for name, at in shard.offsets.items()}
        self._missing = {name: _nbytes(self.layout, name) for name in self.layout}
        self._lock = threading.Lock()
        #: Whether every file was already there: only then can a journal's records be about them.
        self.taken_over = True
        with _coded(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._clear_place()
        self._check_room()
        self._behind: WriteBehind | None = None
        try:
            for shard in self.shards:
                self._allocate(shard)
        except BaseException:
            self.abort()
            raise
        if sum(shard.size for shard in self.shards) >= LEAST and sys.platform != "win32":
            self._behind = WriteBehind({s.name: (self._fds[s.name], s.header, s.size) for s in self.shards})

    def __enter__(self) -> WeightWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _clear_place(self) -> None:
        """Weight files that would be read in place of, or beside, the ones to be written are refused or removed."""
        mine = {shard.name for shard in self.shards}
        for path in sorted(self.folder.iterdir()):
            if path.name in mine or not _WEIGHT_FILE.fullmatch(path.name):
                continue
            if not self.resumable:
                fix = "Choose another folder or remove the file."
                raise InterfuseError("output.exists", "other weights are already there", where=str(path), fix=fix)
            with _coded(path):
                path.unlink()

    def _check_room(self) -> None:
        needed = 0
        for shard in self.shards:
            path = self.folder / shard.name
            there = os.lstat(path).st_blocks * 512 if sys.platform != "win32" and path.is_file() else 0
            needed += max(0, shard.size - there)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            what = f"the weights need {needed:,} more bytes, the disk has {free:,}"
            raise InterfuseError("output.space", what, where=str(self.folder), fix="Free some room or write elsewhere.")

    def _allocate(self, shard: Shard) -> None:
        """Makes one file at full size, without its header's length, or takes over a leftover of the same layout."""
        path = self.folder / shard.name
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        with _coded(path):
            if path.is_symlink() or path.exists():
                if not self.resumable or path.is_symlink() or not path.is_file():
                    fix = "Choose another folder or remove the file."
                    raise InterfuseError("output.exists", "the weight file is already there", where=str(path), fix=fix)
                fd = self._fds[shard.name] = os.open(path, flags)
                os.lseek(fd, 8, os.SEEK_SET)
                body = os.read(fd, len(shard.header) - 8)
                if os.fstat(fd).st_size == shard.size and body == shard.header[8:]:
                    _write_at(fd, memoryview(bytes(8)), 0)  # unsealed until complete again
                    return
                os.ftruncate(fd, 0)
            else:
                fd = self._fds[shard.name] = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
            self.taken_over = False
            if sys.platform == "linux":
                os.posix_fallocate(fd, 0, shard.size)
            else:
                os.ftruncate(fd, shard.size)
            _write_at(fd, memoryview(shard.header)[8:], 8)

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Writes consecutive elements of one tensor at their final place; safe to call from several threads.

        Args:
            name: the tensor.
            start: flat index of the first element.
            values: contiguous, of the tensor's type.

        Raises:
            InterfuseError: ``input.shape`` or ``input.type`` if the values do not fit, ``output.space``, ``output.write``.
        """
        _check_type(name, dtype_of(self.layout[name][0]), values)
        self.write_raw(name, start, bytes_of(values) if values.numel() else memoryview(b""))

    def write_raw(self, name: str, start: int, data: memoryview) -> None:
        """As :meth:`write`, from the elements' bytes."""
        code, shape = self.layout[name]
        size = KINDS[code].itemsize
        _check_fit(name, math.prod(shape), start, len(data) // size)
        if not len(data):
            return
        file, offset = self._place[name]
        with _coded(self.folder / file):
            first = offset + start * size
            _write_at(self._fds[file], data, first)
        if self._behind is not None:
            self._behind.wrote(file, first, first + len(data), data)
        with self._lock:
            self._missing[name] -= len(data)

    def is_present(self, name: str, checksum: str) -> bool:
        """Whether an interrupted run has left this tensor complete; if so it counts as written."""
        if not self.taken_over or self.checksum(name) != checksum:
            return False
        with self._lock:
            self._missing[name] = 0
        file, offset = self._place[name]
        if self._behind is not None and (size := _nbytes(self.layout, name)):
            self._behind.wrote(file, offset, offset + size)
        return True

    def checksum(self, name: str) -> str:
        """The checksum of one tensor's bytes as they are in the file now."""
        file, offset = self._place[name]
        size, digest = _nbytes(self.layout, name), xxhash.xxh3_128()
        with _coded(self.folder / file):
            for start in range(0, size, 1 << 20):
                digest.update(_read_at(self._fds[file], min(1 << 20, size - start), offset + start))
        return digest.hexdigest()

    def close(self) -> list[Path]:
        """Completes the files: numbers to disk, then the headers' lengths, then the index.

        Returns:
            The paths written, the index last.

        Raises:
            InterfuseError: ``run.failed`` if a tensor was not written completely, ``output.space``, ``output.write``.
        """
        if not self._fds:
            return []
        torn = [name for name, missing in self._missing.items() if missing]
        if torn:
            self.abort()
            what = f"{len(torn)} tensors were not written exactly once, the first {torn[0]!r}"
            raise InterfuseError("run.failed", what, where=str(self.folder))
        try:
            for shard in self.shards:
                with _coded(self.folder / shard.name):
                    os.fsync(self._fds[shard.name])
            digests: dict[str, str] = {}
            if self._behind is not None:
                with _coded(self.folder):
                    digests = self._behind.finish()
            for shard in self.shards:
                with _coded(self.folder / shard.name):
                    fd = self._fds[shard.name]
                    _write_at(fd, memoryview(shard.header)[:8], 0)
                    os.fsync(fd)
                    if shard.name in digests:
                        note_digest(self.folder / shard.name, digests[shard.name])
            paths = [self.folder / shard.name for shard in self.shards]
            if len(self.shards) > 1:
                paths.append(self._write_index())
            _sync_folder(self.folder)
        except BaseException:
            self.abort()
            raise
        self._release()
        return paths

    def _write_index(self) -> Path:
        names = {name: self._place[name][0] for name in sorted(self.layout)}
        total = sum(_nbytes(self.layout, name) for name in self.layout)
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=2, ensure_ascii=False) + "\n"
        path, part = self.folder / INDEX, self.folder / (INDEX + ".part")
        with _coded(path), open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with _coded(path):
            os.replace(part, path)
        return path

    def abort(self) -> None:
        """Closes the files without completing them, and removes them unless they are resumable."""
        opened = list(self._fds)
        self._release()
        if opened and not self.resumable:
            for name in [*opened, INDEX, INDEX + ".part"]:  # none of them was there before
                (self.folder / name).unlink(missing_ok=True)

    def _release(self) -> None:
        if self._behind is not None:
            self._behind.cancel()
            self._behind = None
        while self._fds:
            os.close(self._fds.popitem()[1])


class MemoryWriter:
    """A state dict that is filled in any order; the counterpart of :class:`WeightWriter` for models in memory."""

    def __init__(self, layout: Layout) -> None:
        self.layout = _coded_layout(layout)
        self.state = {name: torch.empty(shape, dtype=dtype_of(code)) for name, (code, shape) in self.layout.items()}

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Stores consecutive elements of one tensor from flat element ``start`` on."""
        _check_type(name, self.state[name].dtype, values)
        self.write_raw(name, start, bytes_of(values) if values.numel() else memoryview(b""))

    def write_raw(self, name: str, start: int, data: memoryview) -> None:
        """As :meth:`write`, from the elements' bytes."""
        kept = self.state[name]
        _check_fit(name, kept.numel(), start, len(data) // kept.element_size())
        if len(data):
            first = start * kept.element_size()
            bytes_of(kept)[first : first + len(data)] = data

    def is_present(self, name: str, checksum: str) -> bool:
        """Never: memory does not outlive an interruption."""
        return False


def _nbytes(layout: Coded, name: str) -> int:
    code, shape = layout[name]
    return KINDS[code].itemsize * math.prod(shape)


def _coded_layout(layout: Layout) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (code_of(dtype), tuple(shape)) for name, (dtype, shape) in layout.items()}


def _check_type(name: str, dtype: torch.dtype, values: Tensor) -> None:
    if values.dtype != dtype:
        raise InterfuseError("input.type", f"values are {values.dtype}, the tensor {dtype}", where=f"tensor {name!r}")
    if not values.is_contiguous():
        raise InterfuseError("input.shape", "the values are not contiguous", where=f"tensor {name!r}")


def _check_fit(name: str, numel: int, start: int, count: int) -> None:
    if start < 0 or start + count > numel:
        what = f"{count} values from element {start} on do not fit {numel} elements"
        raise InterfuseError("input.shape", what, where=f"tensor {name!r}")


@contextmanager
def _coded(path: Path) -> Iterator[None]:
    """Turns errors of the operating system into coded ones."""
    try:
        yield
    except OSError as error:
        code = "output.space" if error.errno in _FULL else "output.write"
        raise InterfuseError(code, f"writing failed: {error.strerror or error}", where=str(path)) from error


_SEEK = threading.Lock()


def _write_at(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        if sys.platform != "win32":
            done += os.pwrite(fd, view[done:], offset + done)
        else:
            with _SEEK:
                os.lseek(fd, offset + done, os.SEEK_SET)
                done += os.write(fd, view[done:])


def _read_at(fd: int, count: int, offset: int) -> bytes:
    if sys.platform != "win32":
        return os.pread(fd, count, offset)
    with _SEEK:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, count)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    with _coded(folder):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
