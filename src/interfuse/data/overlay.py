"""Tensors that are computed while they are read, with a name, a type and a shape like stored ones.

A model with an adapter, an embedding in another order of tokens, the result of a merge that is never written: each is a set
of names over :class:`~interfuse.data.weights.Flat` values, used where :class:`~interfuse.data.weights.Weights` are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.data.formats.safetensors import KINDS, TensorInfo, code_of
from interfuse.data.weights import Flat

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Tensors(Protocol):
    """Named tensors that can be read in pieces: stored (:class:`Weights`) or computed (:class:`Overlay`)."""

    def __getitem__(self, name: str) -> TensorInfo: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: object) -> bool: ...
    def source(self, name: str) -> Flat:
        """One tensor, read in pieces."""

    def close(self) -> None:
        """Lets go of the files."""


class Computed(Protocol):
    """A model's tensors that are computed while they are read: an adapter on a base, a merge that is not written."""

    def open(self) -> Overlay:
        """The tensors; the caller closes them."""

    def fingerprint(self) -> str:
        """Changes when a number would."""


class Overlay(Mapping[str, TensorInfo]):
    """Some tensors of others replaced, added or left out.

    Args:
        under: the tensors that are passed on; None for none.
        flats: name -> a computed tensor and its element type, replacing or adding to those below.
        without: names that are left out.
        closing: called by :meth:`close`, besides closing ``under``.
    """

    def __init__(
        self,
        under: Tensors | None,
        flats: Mapping[str, tuple[Flat, torch.dtype | str]],
        *,
        without: tuple[str, ...] = (),
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        self._under, self._closing = under, closing
        self._flats = {name: flat for name, (flat, _) in flats.items()}
        kept = {name: under[name] for name in under if name not in without} if under is not None else {}
        made = {name: _info(name, flat, dtype) for name, (flat, dtype) in flats.items()}
        self._infos = {**kept, **made}

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __enter__(self) -> Overlay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def source(self, name: str) -> Flat:
        """One tensor, read in pieces.

        Raises:
            InterfuseError: ``input.missing`` if there is no tensor of this name.
        """
        if name in self._flats:
            return self._flats[name]
        if self._under is None or name not in self._infos:
            raise InterfuseError("input.missing", f"there is no tensor {name[:200]!r}", fix=did_you_mean(name, self))
        return self._under.source(name)

    def close(self) -> None:
        """Closes what lies below."""
        if self._under is not None:
            self._under.close()
        self._closing()


def _info(name: str, flat: Flat, dtype: torch.dtype | str) -> TensorInfo:
    code = code_of(dtype)
    return TensorInfo(name, code, tuple(flat.shape), None, 0, math.prod(flat.shape) * KINDS[code].itemsize)


def whole(flat: Flat) -> Tensor:
    """A tensor in memory, float32 of its own shape."""
    return flat.read(0, math.prod(flat.shape)).view(flat.shape)
