"""A model's tensors, read lazily: names and shapes at once, numbers only where they are asked for.

Folders as ``transformers`` writes them (``model.safetensors``, or shards with ``model.safetensors.index.json``), a bare
``.safetensors`` file, or a state dict in memory behave alike. Pickled weights are never opened.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from interfuse.core.bulk import bulk
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.lazy import lazy
from interfuse.data.file_maps import FileMap
from interfuse.data.formats.safetensors import MAX_HEADER, TensorInfo, code_of, read_at, read_header, strict_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Endings of weight files that are, or may be, pickles.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
#: Bytes read at a time when numbers are converted: small enough to stay in a core's cache.
_PIECE = 1 << 19
#: Stored types that are read without ``torch``, and what their bytes are to NumPy.
PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class Flat(Protocol):
    """A tensor that can be read in pieces: stored, or computed while it is read (a delta, a permutation of rows)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""

    def read(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` of the flattened tensor: float32 [stop - start], in ``out`` if given."""


class Weights(Mapping[str, TensorInfo]):
    """Names, types and shapes of a model's tensors, and their numbers on demand.

    Iterating gives the names in file order. All methods may be called from several threads. Memory stays at a few
    hundred kilobytes per reading thread, whatever the model's size, except for what :meth:`tensor` hands out.
    Made by :meth:`open` or :meth:`from_state_dict`; closed by ``with`` or :meth:`close`.
    """

    def __init__(self, infos: list[TensorInfo], files: dict[Path, int], tensors: dict[str, Tensor], where: str) -> None:
        self._infos = {info.name: info for info in infos}
        self._files = files
        self._tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}
        self._views: dict[Path, FileMap] = {}
        self._scratch = threading.local()
        self._lock = threading.Lock()
        self.where = where

    @classmethod
    @bulk()
    def open(cls, path: str | Path) -> Weights:
        """Reads the headers of a model folder or of one ``.safetensors`` file; no weights yet.

        Args:
            path: a folder as ``save_pretrained`` writes it, or a file.

        Raises:
            InterfuseError: ``input.missing`` if there are no weights, ``unsafe.pickle`` if there are only pickles,
                ``unsafe.path`` if the index or a link leads out of the folder, ``input.format`` for damaged files.
        """
        path = Path(path)
        files: dict[Path, int] = {}
        try:
            weight_map, names = _find(path)
            infos: list[TensorInfo] = []
            for file in names:
                files[file] = _open(file)
                infos += read_header(files[file], file)
            if weight_map is not None:
                infos = _by_index(infos, weight_map, path / INDEX)
        except BaseException:
            for fd in files.values():
                os.close(fd)
            raise
        return cls(infos, files, {}, str(path))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Weights:
        """The tensors of a state dict as weights; they are shared, not copied, unless they are strided.

        Raises:
            InterfuseError: ``input.type`` for values that are not dense tensors with storage.
        """
        infos, tensors = [], {}
        for name, tensor in state.items():
            dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_quantized
            if not dense or tensor.device.type == "meta":
                kind = str(getattr(tensor, "device", type(tensor).__name__))
                raise InterfuseError(
                    "input.type", f"not a dense tensor with numbers but {kind}", where=f"tensor {name!r}"
                )
            kept = tensor.detach().contiguous()
            tensors[name] = kept
            infos.append(
                TensorInfo(name, code_of(kept.dtype), tuple(kept.shape), None, 0, kept.numel() * kept.element_size())
            )
        return cls(infos, {}, tensors, "memory")

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files. Tensors handed out before stay valid."""
        self._maps, self._views = {}, {}
        while self._files:
            os.close(self._files.popitem()[1])

    @property
    def files(self) -> tuple[Path, ...]:
        """The files the tensors lie in, in file order; none for a state dict."""
        return tuple(self._files)

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(info.nbytes for info in self._infos.values())

    def info(self, name: str) -> TensorInfo:
        """The record of one tensor.

        Raises:
            InterfuseError: ``input.missing`` if there is no tensor of this name.
        """
        if name not in self._infos:
            fix = did_you_mean(name, self._infos)
            raise InterfuseError("input.missing", f"there is no tensor {name[:200]!r}", where=self.where, fix=fix)
        return self._infos[name]

    def source(self, name: str) -> StoredTensor:
        """One tensor as something that is read in pieces."""
        return StoredTensor(self, self.info(name))

    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        """The whole tensor in its own type and shape.

        Without ``copy`` it is a view of the mapped file: nothing is read before it is used, and pages may be dropped
        by the system at any time. Writing into it changes private memory only, never the file. A tensor whose bytes are
        not aligned for its type is copied.
        """
        info = self.info(name)
        if info.file is None:
            kept = self._tensors[name]
            return kept.clone() if copy else kept
        if copy or info.offset % info.kind.itemsize or info.nbytes == 0:
            out = torch.empty(info.shape, dtype=info.dtype)
            if info.nbytes:
                self.read_bytes(info, 0, bytes_of(out))
            return out
        with self._lock:
            if info.file not in self._maps:
                self._maps[info.file] = mmap.mmap(self._fd(info), 0, access=mmap.ACCESS_COPY)
            mapped = self._maps[info.file]
        return torch.frombuffer(mapped, dtype=info.dtype, count=info.numel, offset=info.offset).view(info.shape)

    def read(self, name: str, start: int = 0, stop: int | None = None, out: Tensor | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` of the flattened tensor as float32, without touching the others.

        Types of more than 24 significant bits are rounded to the nearest float32, ties to even.

        Args:
            name: the tensor.
            start: first element.
            stop: one past the last element; the tensor's end if None.
            out: float32 [stop - start] to fill; a new one if None.

        Returns:
            float32 [stop - start].

        Raises:
            InterfuseError: ``input.missing``, ``input.shape`` if the range or ``out`` does not fit, ``input.type`` for
                complex numbers, ``input.format`` if the file has become unreadable.
        """
        info = self.info(name)
        return self.read_range(info, start, info.numel if stop is None else stop, out)

    def read_range(self, info: TensorInfo, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """As :meth:`read`, for a record of these weights."""
        count = stop - start
        if not 0 <= start <= stop <= info.numel:
            what = f"elements {start} to {stop} of a tensor of {info.numel}"
            raise InterfuseError("input.shape", what, where=f"tensor {info.name!r}")
        if out is None:
            out = torch.empty(count, dtype=torch.float32)
        elif out.dtype != torch.float32 or out.shape != (count,) or not out.is_contiguous():
            what = f"the buffer must be contiguous float32 [{count}], not {out.dtype} {list(out.shape)}"
            raise InterfuseError("input.shape", what, where=f"tensor {info.name!r}")
        if info.dtype.is_complex:
            raise InterfuseError("input.type", "complex numbers have no float32 value", where=f"tensor {info.name!r}")
        if info.file is None:
            return out.copy_(self._tensors[info.name].view(-1)[start:stop])
        size = info.dtype.itemsize
        if info.code == "BF16" and self.maps(info):
            self.read_array(info, start, stop, out.numpy())
            return out
        if info.dtype == torch.float32:
            if count:
                self.read_bytes(info, start * size, bytes_of(out))
            return out
        raw = self._piece()
        view, numbers, where = raw.data, torch.from_numpy(raw).view(info.dtype), f"{info.file}, tensor {info.name!r}"
        fd, first = self._fd(info), info.offset + start * size
        step = _PIECE // size
        for done in range(0, count, step):
            n = min(step, count - done)
            read_at(fd, view[: n * size], first + done * size, where)
            out[done : done + n].copy_(numbers[:n])
        return out

    def read_array(self, info: TensorInfo, start: int, stop: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """As :meth:`read_range` into a NumPy array, for stored tensors without ``torch``.

        Args:
            out: contiguous float32 [stop - start].
        """
        if info.file is None or info.code not in PLAIN or not 0 <= start <= stop <= info.numel:
            self.read_range(info, start, stop, torch.from_numpy(out))
            return out
        mapped = self.mapped(info, start, stop)
        if mapped is not None:
            _widen(mapped, info.code, out)
            return out
        size, where = info.kind.itemsize, f"{info.file}, tensor {info.name!r}"
        fd, first = self._fd(info), info.offset + start * size
        if info.code == "F32":
            if start < stop:
                read_at(fd, out.data.cast("B"), first, where)
            return out
        raw = self._piece()
        stored = raw.view(PLAIN[info.code])
        step = _PIECE // size
        for done in range(0, stop - start, step):
            n = min(step, stop - start - done)
            read_at(fd, raw[: n * size].data, first + done * size, where)
            _widen(stored[:n], info.code, out[done : done + n])
        return out

    def maps(self, info: TensorInfo) -> bool:
        """Whether :meth:`read_array` takes the tensor's numbers from the mapped file, so that reading them again costs little."""
        if info.file is None or info.code not in PLAIN or info.offset % info.kind.itemsize:
            return False
        found = self._views.get(info.file)
        if found is None:
            with self._lock:
                found = self._views.setdefault(info.file, FileMap(self._fd(info)))
        return found.usable

    def mapped(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any] | None:
        """Elements as they are stored, of the type :data:`PLAIN` names, without a copy; None where they must be read."""
        if start >= stop or not self.maps(info) or info.file is None:
            return None
        size = info.kind.itemsize
        first, last = info.offset + start * size, info.offset + stop * size
        found = self._views[info.file].read(self._fd(info), first, last, f"{info.file}, tensor {info.name!r}")
        return None if found is None else found.view(PLAIN[info.code])

    def read_bytes(self, info: TensorInfo, start: int, view: memoryview) -> None:
        """Fills ``view`` with the tensor's stored bytes from byte ``start`` on."""
        if info.file is None:
            tensor = self._tensors[info.name].view(-1).view(torch.uint8).cpu()
            view[:] = tensor[start : start + len(view)].numpy().data
        else:
            read_at(self._fd(info), view, info.offset + start, f"{info.file}, tensor {info.name!r}")

    def sha256(self) -> dict[str, str]:
        """The checksum of every file by its name, in file order; of a state dict, one over all tensors, as ``memory``."""
        sums = {}
        for file, fd in self._files.items():
            digest, size = hashlib.sha256(), os.fstat(fd).st_size
            view = memoryview(bytearray(min(size, 1 << 20)))
            for start in range(0, size, 1 << 20):
                part = view[: min(1 << 20, size - start)]
                read_at(fd, part, start, str(file))
                digest.update(part)
            sums[file.name] = digest.hexdigest()
        if self._tensors:
            digest = hashlib.sha256()
            for name, tensor in self._tensors.items():
                digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
                if tensor.numel():
                    digest.update(bytes_of(tensor.cpu()))
            sums["memory"] = digest.hexdigest()
        return sums

    def _fd(self, info: TensorInfo) -> int:
        if info.file not in self._files:
            raise InterfuseError("input.missing", "the weights are closed", where=self.where)
        return self._files[info.file]

    def _piece(self) -> NDArray[np.uint8]:
        """This thread's buffer for stored bytes, uint8 [_PIECE]."""
        piece: NDArray[np.uint8] | None = getattr(self._scratch, "piece", None)
        if piece is None:
            piece = self._scratch.piece = np.empty(_PIECE, dtype=np.uint8)
        return piece


class StoredTensor:
    """One tensor of some weights, as a :class:`Flat`."""

    def __init__(self, weights: Weights, info: TensorInfo) -> None:
        self.weights, self.info = weights, info

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.info.shape

    def read(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` as float32 [stop - start]."""
        return self.weights.read_range(self.info, start, stop, out)


class HeldTensor:
    """A stored tensor whose bytes are read once, for work that goes over it several times.

    Args:
        buffer: uint8, at least as many as the tensor has bytes: new memory costs more than reading into old.
    """

    def __init__(self, stored: StoredTensor, buffer: NDArray[np.uint8]) -> None:
        self.info, self.buffer = stored.info, buffer
        self._bytes = buffer[: self.info.nbytes]
        if self.info.nbytes:
            stored.weights.read_bytes(self.info, 0, self._bytes.data)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.info.shape

    def read(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` as float32 [stop - start]."""
        numbers = torch.from_numpy(self._bytes).view(self.info.dtype)[start:stop]
        return numbers.to(torch.float32, copy=True) if out is None else out.copy_(numbers)

    def array(self, start: int, stop: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same into a NumPy array, of :data:`PLAIN` types without ``torch``."""
        if self.info.code not in PLAIN:
            self.read(start, stop, torch.from_numpy(out))
        else:
            _widen(self._bytes.view(PLAIN[self.info.code])[start:stop], self.info.code, out)
        return out


def _widen(stored: NDArray[Any], code: str, out: NDArray[np.float32]) -> None:
    """Stored numbers of a plain type as float32."""
    if code == "BF16":  # the upper half of a float32
        bits = out.view(np.uint32)
        bits[:] = stored
        np.left_shift(bits, 16, out=bits)
    else:
        out[:] = stored


def read_array(flat: Flat, start: int, stop: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Elements ``start`` to ``stop`` of any tensor, into a contiguous float32 array [stop - start]; of stored ones without ``torch``."""
    if isinstance(flat, StoredTensor):
        return flat.weights.read_array(flat.info, start, stop, out)
    if isinstance(flat, HeldTensor):
        return flat.array(start, stop, out)
    flat.read(start, stop, torch.from_numpy(out))
    return out


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous, non-empty CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _find(path: Path) -> tuple[dict[str, str] | None, list[Path]]:
    """The index's map (None without an index) and the weight files, in order of their names."""
    if path.suffix.lower() in PICKLES and not path.is_dir():
        raise _pickle(path)
    if not path.is_dir():
        if path.is_file() and path.suffix != ".safetensors":
            raise InterfuseError("input.format", "the file's name does not end in .safetensors", where=str(path))
        return None, [path]
    if (path / SINGLE).is_file():
        return None, [_inside(path, SINGLE)]
    if (path / INDEX).is_file():
        weight_map = _read_index(_inside(path, INDEX))
        return weight_map, [_inside(path, name) for name in sorted(set(weight_map.values()))]
    entries = sorted(entry.name for entry in path.iterdir())
    found = [name for name in entries if name.endswith(".safetensors")]
    if len(found) == 1:
        return None, [_inside(path, found[0])]
    if found:
        fix = f"Name one of the files, or add {INDEX}."
        what = f"{len(found)} .safetensors files and no index that says which belong together"
        raise InterfuseError("input.missing", what, where=str(path), fix=fix)
    pickles = [name for name in entries if name.lower().endswith(PICKLES)]
    if pickles:
        raise _pickle(path / pickles[0])
    raise InterfuseError("input.missing", "the folder has no .safetensors weights", where=str(path))


def _pickle(path: Path) -> InterfuseError:
    fix = (
        "Convert it once, isolated and only if you trust its maker: load the model with transformers there, then "
        "model.save_pretrained(OUT), which writes safetensors; or take the publisher's safetensors revision."
    )
    return InterfuseError("unsafe.pickle", "weights in a pickle can run code when opened", where=str(path), fix=fix)


def _read_index(path: Path) -> dict[str, str]:
    fd = _open(path)
    try:
        size = os.fstat(fd).st_size
        if size > MAX_HEADER:
            raise InterfuseError(
                "input.format", f"the index has {size} bytes; the limit is {MAX_HEADER}", where=str(path)
            )
        raw = bytearray(size)
        read_at(fd, memoryview(raw), 0, str(path))
    finally:
        os.close(fd)
    index = strict_json(bytes(raw), str(path))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        what = "the index has no weight_map from tensor names to file names"
        raise InterfuseError("input.format", what, where=str(path))
    if not weight_map:
        raise InterfuseError("input.empty", "the index names no tensors", where=str(path))
    return weight_map


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder, refused if its name or a link leads elsewhere.

    A link is followed out of the folder in one case only: the hub's cache, where ``snapshots/<revision>/`` holds links
    into the ``blobs/`` beside it.
    """

    def refuse(what: str) -> InterfuseError:
        return InterfuseError("unsafe.path", what, where=f"{folder}: {name[:200]!r}")

    parts = PurePosixPath(name).parts + PureWindowsPath(name).parts
    leads_out = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in parts
    if not name or "\0" in name or leads_out or len(name) > 1000:
        raise refuse("a file name in the index leads out of the folder")
    if PurePosixPath(name).suffix.lower() in PICKLES:
        raise _pickle(folder / name)
    path = folder / name
    try:
        target, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise refuse(f"the path cannot be followed: {error}") from error
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not target.is_relative_to(home) and not target.is_relative_to(blobs):
        raise refuse("a link leads out of the folder")
    return path


def _open(path: Path) -> int:
    """An ordinary file, opened for reading."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        try:
            fd = os.open(path, flags)
        except OSError as error:
            if error.errno != errno.EMFILE or not _raise_file_limit():
                raise
            fd = os.open(path, flags)
    except FileNotFoundError as error:
        raise InterfuseError("input.missing", "the weight file is not there", where=str(path)) from error
    except OSError as error:
        fix = "Raise the limit of open files (ulimit -n)." if error.errno == errno.EMFILE else ""
        what = f"the file cannot be opened: {error.strerror}"
        raise InterfuseError("input.missing", what, where=str(path), fix=fix) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InterfuseError("input.format", "not an ordinary file", where=str(path))
    return fd


def _raise_file_limit() -> bool:
    """Many models of many shards need more open files than the usual soft limit of 1,024."""
    if sys.platform == "win32":
        return False
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True


def _by_index(infos: list[TensorInfo], weight_map: dict[str, str], index: Path) -> list[TensorInfo]:
    """The tensors the index asks for; those it does not mention are kept too, as ``transformers`` loads them.

    Raises:
        InterfuseError: ``input.format`` if a shard lacks a tensor the index puts there, ``input.duplicate`` if a tensor
            the index does not mention lies in two shards.
    """
    folder = index.parent
    kept: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in weight_map and folder / weight_map[info.name] != info.file:
            continue
        if info.name in kept:
            raise InterfuseError("input.duplicate", f"tensor {info.name[:200]!r} lies in two shards", where=str(folder))
        kept[info.name] = info
    for name, file in weight_map.items():
        if name not in kept:
            what = f"the index puts tensor {name[:200]!r} into a shard that does not hold it"
            raise InterfuseError("input.format", what, where=str(folder / file), fix="Fetch the model again.")
    return list(kept.values())
