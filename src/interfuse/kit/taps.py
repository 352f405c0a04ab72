"""Feature capture: forward hooks on any module by layer name. A user's model is never edited or subclassed."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch

from interfuse.core.errors import InterfuseError, did_you_mean

PENULTIMATE, AUTO = "penultimate", "auto"


def classifier_name(module: torch.nn.Module) -> str:
    """The name of the last linear layer (the classifier), whose input are the penultimate features.

    Raises:
        InterfuseError: ``needs.capability`` when the model has no linear layer.
    """
    names = [name for name, child in module.named_modules() if isinstance(child, torch.nn.Linear)]
    if not names:
        raise InterfuseError("needs.capability", "the model has no linear layer to take penultimate features from")
    return names[-1]


def blocks(module: torch.nn.Module) -> list[str]:
    """Names of the model's main blocks, in order: the members of its outermost list of two or more layers."""
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.ModuleList) and len(child) >= 2:
            return [f"{name}.{i}" if name else str(i) for i in range(len(child))]
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.Sequential) and len(child) >= 2:
            return [f"{name}.{key}" if name else key for key, _ in child.named_children()]
    raise InterfuseError("needs.capability", "the model has no list of blocks, so layers cannot be chosen automatically",
                         fix="Name the layers.")  # fmt: skip


def layer_names(module: torch.nn.Module, patterns: Sequence[str]) -> list[str]:
    """The layers that patterns name: exact names, globs, ``penultimate``, or ``auto`` (the quarter points of the blocks).

    A star stays within one level: ``encoder.layer.*`` names the layers, not what is inside them.

    Raises:
        InterfuseError: ``param.value`` listing close names when a pattern matches nothing.
    """
    known = [name for name, _ in module.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        if pattern == PENULTIMATE:
            hits = [PENULTIMATE]
        elif pattern == AUTO:
            all_blocks = blocks(module)
            n = len(all_blocks)
            hits = [all_blocks[i] for i in sorted({max(0, -(-n * q // 4) - 1) for q in (1, 2, 3, 4)})]
        else:
            depth = pattern.count(".")
            hits = (
                [pattern] if pattern in known else fnmatch.filter([n for n in known if n.count(".") == depth], pattern)
            )
        if not hits:
            raise InterfuseError("param.value", f"no layer matches {pattern!r}", fix=did_you_mean(pattern, known))
        found += [h for h in hits if h not in found]
    return found


class Taps:
    """Records what named layers give during forward passes.

    Use as a context manager; ``features`` maps name -> tensor of the last forward: [B, C, H, W], [B, N, D] or [B, D].
    """

    def __init__(self, module: torch.nn.Module, patterns: Sequence[str]) -> None:
        self.names = layer_names(module, patterns)
        self.features: dict[str, torch.Tensor] = {}
        self._handles = [self._attach(module, name) for name in self.names]

    def _attach(self, module: torch.nn.Module, name: str) -> Any:
        if name == PENULTIMATE:
            layer = module.get_submodule(classifier_name(module))
            return layer.register_forward_pre_hook(lambda _, args: self.features.__setitem__(PENULTIMATE, args[0]))
        return module.get_submodule(name).register_forward_hook(
            lambda _, __, output: self.features.__setitem__(name, _tensor(output, name))
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every layer's last feature, without the batch.

        Raises:
            InterfuseError: ``needs.capability`` when a layer did not take part in the forward pass.
        """
        for name in self.names:
            if name not in self.features:
                raise InterfuseError("needs.capability", f"the layer {name!r} takes no part in the forward pass")
        return {name: tuple(self.features[name].shape[1:]) for name in self.names}

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Taps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _tensor(output: Any, name: str) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    first = next(
        (v for v in (output.values() if isinstance(output, dict) else output) if isinstance(v, torch.Tensor)), None
    )
    if first is None:
        raise InterfuseError("needs.capability", f"the layer {name!r} gives no tensor")
    return first


def as_vector(feature: torch.Tensor) -> torch.Tensor:
    """A feature as one vector per sample [B, D]: maps and tokens are averaged over space."""
    if feature.ndim == 4:
        return feature.mean(dim=(2, 3))
    return feature.mean(dim=1) if feature.ndim == 3 else feature
