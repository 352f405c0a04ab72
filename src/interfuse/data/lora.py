"""LoRA adapters as changes of a model that are computed while they are read (Hu et al. 2021, equation 3).

An adapter folder as ``peft`` writes it (``adapter_config.json``, ``adapter_model.safetensors``) on a base gives tensors
``W + s B A`` without writing the merged model anywhere: ``s = alpha / r``, or ``alpha / sqrt(r)`` for rank-stabilised
adapters (Kalajdzievski 2023); DoRA's magnitudes (Liu et al. 2024, equation 5); transposed layers; embeddings; and whole
tensors (``modules_to_save``, biases) that replace the base's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.safe import read_text, write_atomic
from interfuse.data.overlay import Overlay, Tensors, whole
from interfuse.data.weights import Flat, Weights

CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"
#: Rows computed together; always the same ones, so that a number does not depend on how a tensor is cut into blocks.
_ROWS = 32
_PART = re.compile(r"(.*?)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(?:\.(?!weight)\w+)?(?:\.weight)?\Z")


@dataclass(frozen=True)
class Adapter:
    """An adapter's settings and tensors.

    Attributes:
        path: its folder. config: ``adapter_config.json``.
        pairs: module -> A [r, in] and B [out, r]; of embeddings transposed, A [vocabulary, r] and B [r, d] by that name.
        magnitudes: module -> DoRA's norms [out].
        replaced: name -> a whole tensor that takes the place of the base's.
    """

    path: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    magnitudes: Mapping[str, Tensor]
    replaced: Mapping[str, Flat]
    embeddings: tuple[str, ...] = ()

    def factor(self, module: str, rank: int) -> float:
        """``alpha / r`` or ``alpha / sqrt(r)`` of one module."""
        alpha = float(self.config.get("lora_alpha", 8))
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})\Z", module):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a LoRA adapter.

    Raises:
        InterfuseError: ``input.missing``, ``input.format``, or ``needs.capability`` for adapters of another kind.
    """
    path = folder / CONFIG
    try:
        config = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InterfuseError("input.format", f"{CONFIG} is not JSON", where=str(path)) from error
    if not isinstance(config, dict):
        raise InterfuseError("input.format", f"{CONFIG} is not a table", where=str(path))
    if config.get("peft_type", "LORA") != "LORA":
        raise InterfuseError("needs.capability", f"the adapter is of the kind {config['peft_type']}, not LORA", where=str(path),
                             fix="Merge it into its model with peft first.")  # fmt: skip
    return config


def open_adapter(folder: Path) -> Adapter:
    """Reads an adapter: its small matrices into memory, whole replaced tensors lazily.

    Raises:
        InterfuseError: as :func:`read_adapter_config`; ``input.format`` when a matrix lacks its partner.
    """
    config = read_adapter_config(folder)
    if not (folder / MODEL).is_file():
        pickled = next((p for p in sorted(folder.glob("adapter_model.*"))), None)
        code = "unsafe.pickle" if pickled is not None else "input.missing"
        raise InterfuseError(code, f"the adapter has no {MODEL}", where=str(folder),
                             fix="Save it once more with peft, which writes safetensors.")  # fmt: skip
    weights = Weights.open(folder / MODEL)
    parts: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Flat] = {}
    for name in weights:
        plain = name.removeprefix("base_model.model.")
        found = _PART.match(plain)
        if found:
            parts.setdefault(found[1], {})[found[2]] = whole(weights.source(name))
        elif ".lora_" in plain:
            raise InterfuseError("input.format", f"unknown tensor {name!r} in the adapter", where=str(folder))
        else:
            clean = re.sub(r"\.(modules_to_save|base_layer)(\.default)?(?=\.)", "", plain)
            if ".original_module." not in clean:
                replaced[clean] = weights.source(name)
    pairs, magnitudes, embeddings = {}, {}, []
    for module, held in parts.items():
        if "magnitude_vector" in held:
            magnitudes[module] = held["magnitude_vector"].reshape(-1)
        embedded = "embedding_A" in held
        a, b = (held.get("embedding_A" if embedded else "A"), held.get("embedding_B" if embedded else "B"))
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            ranks = [list(x.shape) for x in (a, b) if x is not None]
            raise InterfuseError("input.format", f"the adapter's matrices of {module} are {ranks}, not A [r, in] and B [out, r]",
                                 where=str(folder), fix="Convolutions are not supported: merge them with peft first.")  # fmt: skip
        pairs[module] = (a, b)
        if embedded:
            embeddings.append(module)
    return Adapter(folder, config, pairs, magnitudes, replaced, tuple(embeddings))


class Adapted:
    """One tensor of a base with a low-rank change: ``W + s L R``, ``L`` [rows, r] and ``R`` [r, columns], float32."""

    def __init__(self, base: Flat, left: Tensor, right: Tensor, factor: float, magnitude: Tensor | None = None) -> None:
        self.base, self.left, self.right, self.factor, self.magnitude = base, left, right, factor, magnitude

    @property
    def shape(self) -> tuple[int, ...]:
        """The base tensor's shape."""
        return self.base.shape

    def read(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements ``start`` to ``stop``, float32 [stop - start]."""
        out = torch.empty(stop - start, dtype=torch.float32) if out is None else out
        rows, columns = self.shape
        step = _ROWS * columns
        for first in range(start // step * step, stop, step):
            top = first // columns
            bottom = min(top + _ROWS, rows)
            values = torch.matmul(self.left[top:bottom], self.right).mul_(self.factor)
            values.add_(self.base.read(top * columns, bottom * columns).view(-1, columns))
            if self.magnitude is not None:  # DoRA: each output's direction, times its own length
                norm = torch.linalg.vector_norm(values, dim=1, keepdim=True, dtype=torch.float64).float()
                values.mul_(self.magnitude[top:bottom, None] / norm)
            low, high = max(start, first), min(stop, bottom * columns)
            out[low - start : high - start] = values.view(-1)[low - first : high - first]
        return out


def apply_adapter(base: Tensors, adapter: Adapter) -> Overlay:
    """The tensors of a base with an adapter on it; numbers are computed while they are read.

    Raises:
        InterfuseError: ``input.shape`` when the adapter was made for another base: a module is not there or has another shape.
    """
    flats: dict[str, tuple[Flat, torch.dtype | str]] = {}
    for plain, flat in adapter.replaced.items():
        name = _find(base, plain, adapter.path)
        if flat.shape[1:] != base[name].shape[1:]:  # the vocabulary may have grown
            raise _misfit(adapter.path, f"its {plain} is {list(flat.shape)}, the base's {list(base[name].shape)}")
        flats[name] = (flat, base[name].dtype)
    for module, (a, b) in adapter.pairs.items():
        name = _find(base, f"{module}.weight", adapter.path)
        under = flats[name][0] if name in flats else base.source(name)
        turned = bool(adapter.config.get("fan_in_fan_out")) or module in adapter.embeddings  # stored [in, out]
        left, right = (a.T.contiguous(), b.T.contiguous()) if turned else (b, a)
        shape = (left.shape[0], right.shape[1])
        if turned and under.shape != shape and under.shape == shape[::-1]:
            left, right, turned, shape = b, a, False, shape[::-1]  # the flag is set for a layer that is not transposed
        if under.shape != shape:
            raise _misfit(
                adapter.path, f"its change of {module} is {list(shape)}, the base's {name} {list(under.shape)}"
            )
        magnitude = adapter.magnitudes.get(module)
        if magnitude is not None and turned:
            raise InterfuseError("needs.capability", f"DoRA on the transposed layer {module}", where=str(adapter.path),
                                 fix="Merge it into its model with peft first.")  # fmt: skip
        factor = adapter.factor(module, a.shape[0])
        flats[name] = (Adapted(under, left, right, factor, magnitude), base[name].dtype)
    return Overlay(base, flats)


@dataclass(frozen=True)
class Change:
    """How an adapter changes one tensor.

    Attributes:
        module: the layer, as the adapter names it.
        pair: A [r, in] and B [out, r] of a change ``factor B A`` and nothing else; None for any other change.
        factor: what their product is multiplied by. turned: the tensor is stored [in, out].
        whole: the adapter replaces the tensor, or changes an embedding: there is no pair of a linear layer to be had.
    """

    module: str
    pair: tuple[Tensor, Tensor] | None = None
    factor: float = 1.0
    turned: bool = False
    whole: bool = False


def changes_of(base: Tensors, adapter: Adapter) -> dict[str, Change]:
    """The base's tensors that an adapter changes, and how.

    Raises:
        InterfuseError: ``input.shape`` when the adapter has a module that the base has not.
    """
    found: dict[str, Change] = {}
    for module, (a, b) in adapter.pairs.items():
        name = _find(base, f"{module}.weight", adapter.path)
        shape = (b.shape[0], a.shape[1])
        turned = bool(adapter.config.get("fan_in_fan_out")) and base[name].shape == shape[::-1]
        plain = module not in adapter.magnitudes
        factor = adapter.factor(module, a.shape[0])
        found[name] = Change(module, (a, b) if plain else None, factor, turned, module in adapter.embeddings)
    for plain_name in adapter.replaced:
        found[_find(base, plain_name, adapter.path)] = Change(plain_name.rpartition(".")[0], whole=True)
    return found


def _find(base: Tensors, name: str, where: Path) -> str:
    """The base's name of a tensor; the outermost module's name may be missing in one of the two."""
    if name in base:
        return name
    tail = name.split(".", 1)[-1]
    found = [known for known in base if known == tail or known.endswith("." + name)]
    if len(found) == 1:
        return found[0]
    raise _misfit(where, f"the base has no {name}. {did_you_mean(name, base)}")


def _misfit(where: Path, what: str) -> InterfuseError:
    return InterfuseError("input.shape", f"the adapter does not fit this base: {what}", where=str(where),
                          fix="Give the model the adapter was trained on: its adapter_config.json names it.")  # fmt: skip


def write_adapter(
    folder: Path,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    replaced: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> None:
    """Writes an adapter that ``peft`` opens.

    Args:
        folder: an existing folder.
        pairs: module -> A [r, in], B [out, r]. replaced: whole tensors by name.
        settings: fields of ``adapter_config.json`` beside those that follow from the tensors.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for module, (a, b) in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
    tensors |= {f"base_model.model.{name}": tensor.contiguous() for name, tensor in replaced.items()}
    ranks = {module: a.shape[0] for module, (a, _) in pairs.items()}
    rank = max(ranks.values(), default=1)
    saved = sorted({name.rsplit(".", 1)[0].split(".")[-1] for name in replaced})
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(ranks), "bias": "none",
        "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: r for m, r in ranks.items() if r != rank},
        "lora_dropout": 0.0, "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": saved or None, **settings,
    }  # fmt: skip
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    write_atomic(folder / MODEL, save(tensors, metadata={"format": "pt"}))
