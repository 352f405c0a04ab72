"""How a layer is named, and which of the things that it gives is its feature."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

from interfuse.core.errors import InterfuseError

#: layer name that stands for what the classifier reads; in a saved model ``penultimate:NAME`` names the classifier
PENULTIMATE = "penultimate"
#: one of several things that a layer gives, as ``stages.1[0]``
INDEXED = re.compile(r"(.*[^.])\[(\d+)\]")


def feature_of(output: Any, name: str) -> torch.Tensor:
    """The tensor [B, ...] that a layer called ``name`` gave.

    Of several things the first tensor of two or more axes, or the one that ``NAME[i]`` asks for; where none of them is a tensor, but
    one holds some (a block that gives its hidden states in a tuple, beside their height and width), that tuple's.

    Raises:
        InterfuseError: ``needs.capability`` when there is none, or several of one shape; ``param.value`` when there is no i-th.
    """
    if isinstance(output, torch.Tensor) and output.ndim >= 2:
        return output
    given = _things(output)
    chosen = INDEXED.fullmatch(name)
    if chosen is not None:
        index = int(chosen[2])
        if index >= len(given) or not isinstance(given[index], torch.Tensor):
            kinds = ", ".join(f"[{i}] {_kind(v)}" for i, v in enumerate(given))
            raise InterfuseError("param.value", f"the layer {chosen[1]!r} gives no tensor number {index}", where=name, fix=f"It gives {kinds}.")  # fmt: skip
        found: torch.Tensor = given[index]
        return found
    features = [(i, v) for i, v in enumerate(given) if isinstance(v, torch.Tensor) and v.ndim >= 2]
    if not features:
        inside = [v for v in given if isinstance(v, tuple | list)]
        if inside:
            return feature_of(inside[0], name)
        raise InterfuseError("needs.capability", f"the layer {name!r} gives no tensor [B, ...]")
    first = features[0][1]
    alike = [features[0][0], *(i for i, v in features if v is not first and v.shape == first.shape)]
    if len(alike) > 1:
        raise InterfuseError("needs.capability", f"the layer {name!r} gives {len(alike)} tensors of one shape", where=name,
                             fix=f"Name one: {', '.join(f'{name}[{i}]' for i in alike)}.")  # fmt: skip
    return first


def _things(output: Any) -> list[Any]:
    if isinstance(output, torch.Tensor) or not isinstance(output, Iterable):
        return []
    return list(output.values() if isinstance(output, dict) else output)


def _kind(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
