"""The safetensors container: 8 bytes of header length, a JSON header, the tensors' bytes without gaps.

The header is parsed here, and not by a library, because every size and offset in it is an attacker's to choose: nothing
is believed before it agrees with the length of the file. Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from interfuse.core.errors import InterfuseError
from interfuse.core.lazy import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch")

#: Largest header that is read, in bytes (the reference implementation's limit).
MAX_HEADER = 100_000_000


class Kind(NamedTuple):
    """An element type: its name in ``torch``, bytes per element, and whether it is a real floating-point type."""

    name: str
    itemsize: int
    floating: bool = False


#: Element types by their code in the header.
KINDS: dict[str, Kind] = {
    "BOOL": Kind("bool", 1),
    "U8": Kind("uint8", 1),
    "I8": Kind("int8", 1),
    "F8_E4M3": Kind("float8_e4m3fn", 1, True),
    "F8_E5M2": Kind("float8_e5m2", 1, True),
    "F8_E8M0": Kind("float8_e8m0fnu", 1, True),
    "U16": Kind("uint16", 2),
    "I16": Kind("int16", 2),
    "F16": Kind("float16", 2, True),
    "BF16": Kind("bfloat16", 2, True),
    "U32": Kind("uint32", 4),
    "I32": Kind("int32", 4),
    "F32": Kind("float32", 4, True),
    "U64": Kind("uint64", 8),
    "I64": Kind("int64", 8),
    "F64": Kind("float64", 8, True),
    "C64": Kind("complex64", 8),
}
_CODES: dict[str, str] = {kind.name: code for code, kind in KINDS.items()}


def code_of(dtype: torch.dtype | str) -> str:
    """The code of an element type; a code stands for itself.

    Raises:
        InterfuseError: ``input.type`` for types that safetensors files do not hold.
    """
    found = dtype if isinstance(dtype, str) else _CODES.get(str(dtype).removeprefix("torch."), "")
    if found not in KINDS:
        raise InterfuseError("input.type", f"safetensors files do not hold numbers of type {dtype}")
    return found


def dtype_of(code: str) -> torch.dtype:
    """The ``torch`` type of a code."""
    found: torch.dtype = getattr(torch, KINDS[code].name)
    return found


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and what it is.

    Attributes:
        name: the tensor's name.
        code: the code of its element type, a key of :data:`KINDS`.
        shape: its shape; ``()`` is a single number.
        file: the file that holds it; None for tensors in memory.
        offset: its first byte, counted from the start of the file.
        nbytes: its size in bytes.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    file: Path | None
    offset: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype:
        """Its element type."""
        return dtype_of(self.code)

    @property
    def kind(self) -> Kind:
        """What the element type is like, without ``torch``."""
        return KINDS[self.code]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def read_at(fd: int, view: memoryview, offset: int, where: str = "") -> None:
    """Fills ``view`` with the bytes of an open file from ``offset`` on.

    Raises:
        InterfuseError: ``input.format`` if the file ends before, or cannot be read.
    """
    done = 0
    while done < len(view):
        try:
            if sys.platform == "linux":
                n = os.preadv(fd, [view[done:]], offset + done)
            else:
                with _SEEK:
                    os.lseek(fd, offset + done, os.SEEK_SET)
                    chunk = os.read(fd, min(len(view) - done, 1 << 24))
                n = len(chunk)
                view[done : done + n] = chunk
        except OSError as error:
            raise InterfuseError("input.format", f"the file cannot be read: {error.strerror}", where=where) from error
        if n == 0:
            raise InterfuseError("input.format", "the file is shorter than it says", where=where, fix=_AGAIN)
        done += n


_SEEK = threading.Lock()
_ENTRY = frozenset({"dtype", "shape", "data_offsets"})
_LIMIT = 1 << 63
_AGAIN = "Fetch the file again and compare its checksum with the publisher's."


def strict_json(raw: bytes, where: str) -> Any:
    """JSON without duplicate keys, NaN or Infinity, from UTF-8 bytes.

    Raises:
        InterfuseError: ``input.format``.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def number(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=number)
    except RecursionError as error:
        raise InterfuseError("input.format", "the JSON is nested too deeply", where=where) from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InterfuseError("input.format", f"not valid JSON: {error}", where=where, fix=_AGAIN) from error
    return value


def read_header(fd: int, path: Path) -> list[TensorInfo]:
    """The tensors of an open safetensors file, in the order of their bytes.

    Args:
        fd: the open file.
        path: its name, for the records and for messages.

    Raises:
        InterfuseError: ``input.format`` if the header is too large, is not JSON, has duplicate names, or if types, shapes
            and offsets do not describe the file's bytes exactly once, without hole or overlap.
    """
    where = str(path)
    size = os.fstat(fd).st_size

    def refuse(what: str, tensor: str = "") -> InterfuseError:
        place = f"{where}, tensor {tensor[:200]!r}" if tensor else where
        return InterfuseError("input.format", what, where=place, fix=_AGAIN)

    if size < 8:
        raise refuse("the file is too short to be safetensors")
    start = bytearray(8)
    read_at(fd, memoryview(start), 0, where)
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER:
        raise refuse(f"the header claims {length} bytes; the limit is {MAX_HEADER}")
    if length < 2 or 8 + length > size:
        raise refuse(f"the header claims {length} bytes of a file of {size}")
    raw = bytearray(length)
    read_at(fd, memoryview(raw), 8, where)
    if raw[:1] != b"{":
        raise refuse("the header is not a JSON object")
    header = strict_json(bytes(raw), where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refuse("__metadata__ is not a map from text to text")
    tensors = [_record(name, entry, path, 8 + length, refuse) for name, entry in header.items()]
    tensors.sort(key=lambda info: (info.offset, info.nbytes))  # stable: empty tensors stay in header order
    position = 8 + length
    for info in tensors:
        if info.offset != position:
            kind = "overlaps the one before" if info.offset < position else "leaves a hole before it"
            raise refuse(f"the tensor's bytes start at {info.offset}, not at {position}: it {kind}", info.name)
        position += info.nbytes
    if position != size:
        raise refuse(f"the tensors end at byte {position}, the file at {size}")
    return tensors


def _record(name: str, entry: Any, path: Path, base: int, refuse: Any) -> TensorInfo:
    """One header entry, checked on its own."""
    if not _is_text(name):
        raise refuse("a tensor's name is not valid Unicode", repr(name))
    if not isinstance(entry, dict) or entry.keys() != _ENTRY:
        raise refuse("the entry must have exactly dtype, shape and data_offsets", name)
    code = entry["dtype"]
    if not isinstance(code, str) or code not in KINDS:
        raise refuse(f"unknown dtype {str(code)[:40]!r}", name)
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_counts(shape) or len(shape) > 64:
        raise refuse("the shape is not a list of sizes", name)
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse("data_offsets is not a pair begin <= end", name)
    begin, end = offsets
    needed = KINDS[code].itemsize * math.prod(shape)
    if needed >= 1 << 63:
        raise refuse("the shape has more elements than any file", name)
    if end - begin != needed:
        raise refuse(f"shape and dtype need {needed} bytes, data_offsets give {end - begin}", name)
    return TensorInfo(name, code, tuple(shape), path, base + begin, needed)


def _is_text(word: str) -> bool:
    if word.isascii():
        return True
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_counts(value: Any) -> bool:
    """Whether the value is a list of integers in [0, 2**63)."""
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110 - a header has a hundred thousand of these short lists, and a generator costs as much as three items
        if type(item) is not int or not 0 <= item < _LIMIT:
            return False
    return True


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The header of a file holding these tensors one after the other: length, JSON, spaces up to a multiple of 8.

    Args:
        tensors: name, code of the element type and shape, in file order.
        metadata: texts kept under ``__metadata__``.

    Returns:
        The bytes before the first tensor.

    Raises:
        InterfuseError: ``input.limit`` for too many tensors.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, code, shape in tensors:
        end = position + KINDS[code].itemsize * math.prod(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER:
        raise InterfuseError("input.limit", f"the header would take {len(raw)} bytes; the limit is {MAX_HEADER}")
    return len(raw).to_bytes(8, "little") + raw
