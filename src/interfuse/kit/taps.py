"""Feature capture: forward hooks on any module by layer name. A user's model is never edited or subclassed."""

from __future__ import annotations

import fnmatch
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch

from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.data.layer_outputs import INDEXED, PENULTIMATE, feature_of

__all__ = ["AUTO", "PENULTIMATE", "Taps", "as_vector", "block_lists", "blocks", "classifier_name", "layer_names"]

AUTO = "auto"


def classifier_name(module: torch.nn.Module) -> str:
    """The name of the last linear layer: the classifier of most models. :attr:`Taps.classifier` tells it of any that has run.

    Raises:
        InterfuseError: ``needs.capability`` when the model has no linear layer.
    """
    names = [name for name, child in module.named_modules() if isinstance(child, torch.nn.Linear)]
    if not names:
        raise InterfuseError("needs.capability", "the model has no linear layer to take penultimate features from")
    return names[-1]


def blocks(module: torch.nn.Module) -> list[str]:
    """Names of the model's main blocks, in order: the first of :func:`block_lists`."""
    return block_lists(module)[0]


def block_lists(module: torch.nn.Module) -> list[list[str]]:
    """Names of the members of every outermost list of two or more layers, in order; more than one where a model has several towers.

    Of lists side by side the last counts (patches are embedded before they are worked on), and none of embeddings alone. A member that is
    a list itself stands for its last layer. Without such a list the layers of the first sequence of two or more are taken, without that
    those of lists of one (a single block, or one that is gone through again and again).

    Raises:
        InterfuseError: ``needs.capability`` for a model without any.
    """
    lists = {
        n: m for n, m in module.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) and not _embeds(m)
    }
    several = [n for n, m in lists.items() if len(m) >= 2]
    if several:
        return [_members(lists[name], name) for name in _outermost(several)]
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.Sequential) and len(child) >= 2:
            return [[f"{name}.{key}" if name else key for key, _ in child.named_children()]]
    if lists:
        return [_members(lists[name], name) for name in _outermost(list(lists))]
    raise InterfuseError("needs.capability", "the model has no list of blocks, so layers cannot be chosen automatically",
                         fix="Name the layers.")  # fmt: skip


def _embeds(layers: torch.nn.ModuleList) -> bool:
    return all(isinstance(layer, torch.nn.Embedding) for layer in layers)


def _outermost(names: Sequence[str]) -> list[str]:
    """Of names in the order of the model those that are inside no other, the last of each parent's."""
    outer = [n for n in names if not any(n.startswith(f"{o}.") or not o for o in names if o != n)]
    return list({n.rpartition(".")[0]: n for n in outer}.values())


def _members(layers: torch.nn.ModuleList, name: str) -> list[str]:
    return [_last_of(child, f"{name}.{i}" if name else str(i)) for i, child in enumerate(layers)]


def _quarters(names: Sequence[str]) -> list[str]:
    """The layers at the quarter points, the last among them."""
    n = len(names)
    return [names[i] for i in sorted({max(0, -(-n * q // 4) - 1) for q in (1, 2, 3, 4)})]


def _last_of(module: torch.nn.Module, name: str) -> str:
    while isinstance(module, torch.nn.ModuleList) and len(module):
        name, module = f"{name}.{len(module) - 1}", module[-1]
    return name


def layer_names(module: torch.nn.Module, patterns: Sequence[str], *, auto: Sequence[str] | None = None) -> list[str]:
    """The layers that patterns name: exact names, globs, ``penultimate``, or ``auto`` (the quarter points of the blocks).

    A star stays within one level: ``encoder.layer.*`` names the layers, not what is inside them. Of a layer that gives several tensors
    the first of two or more axes is taken; ``NAME[1]`` takes the second thing it gives.

    Args:
        auto: what ``auto`` stands for, where a forward pass has shown it (:meth:`Taps.chosen`).

    Raises:
        InterfuseError: ``param.value`` listing close names when a pattern matches nothing.
    """
    known = [name for name, _ in module.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        if pattern == PENULTIMATE:
            hits = [PENULTIMATE]
        elif pattern == AUTO:
            hits = list(auto) if auto is not None else _quarters(blocks(module))
        else:
            depth = pattern.count(".")
            picked = INDEXED.fullmatch(pattern)
            exact = pattern in known or (picked is not None and picked[1] in known)
            hits = [pattern] if exact else fnmatch.filter([n for n in known if n.count(".") == depth], pattern)
        if not hits:
            raise InterfuseError("param.value", f"no layer matches {pattern!r}", fix=did_you_mean(pattern, known))
        found += [h for h in hits if h not in found]
    return found


class Taps:
    """Records what named layers give during forward passes.

    Use as a context manager; ``features`` maps name -> tensor of the last forward: [B, C, H, W], [B, N, D] or [B, D].

    The classifier, whose input ``penultimate`` is, is found in the first forward pass: the linear layer whose output are the model's
    logits. Where it gives logits of every token and the model takes one token's, ``penultimate`` is what that token's were made from,
    [B, D]. A model whose logits are no layer's output has its last linear layer taken for the classifier.

    Of texts the first pass also shows which axis of a layer's tensors is the batch and which the tokens: those of XLNet [L, B, D] and
    SqueezeBERT [B, D, L] are turned to [B, L, D].
    """

    def __init__(self, module: torch.nn.Module, patterns: Sequence[str]) -> None:
        self.names = layer_names(module, patterns)
        self.features: dict[str, torch.Tensor] = {}
        self._module = module
        self._head: _Head | None = None
        self._auto: list[str] | None = None
        self._astray = ""
        self._turned: dict[str, tuple[int, int]] = {}
        towers = [_quarters(names) for names in block_lists(module)] if AUTO in patterns else []
        towers = towers if len(towers) > 1 else []
        waits = towers[0] if towers else []
        self._handles = [self._attach(module, name) for name in self.names if name not in waits]
        self._watch_first_pass(patterns, towers)

    def _watch_first_pass(self, patterns: Sequence[str], towers: Sequence[Sequence[str]]) -> None:
        """Of several towers ``auto`` stands for the first whose layers take part (a model of texts may hold one for images that this task
        does not use), and for the last thing inside a block that is not called as a module; and the first axis of every feature must be
        the batch."""
        seen: dict[str, Any] = {}
        inside: dict[str, tuple[str, Any]] = {}

        def noting(name: str) -> Any:
            return lambda _, __, output: seen.__setitem__(name, output)

        def noting_inside(block: str, name: str) -> Any:
            return lambda _, __, output: inside.__setitem__(block, (name, output))

        def ended(module: Any, args: Any, given: Any, output: Any) -> None:
            for handle in (*watched, last):
                handle.remove()
            if towers:
                before = [name for name in self.names if name not in towers[0]]
                self._auto = list(next((names for names in towers if all(n in seen for n in names)), towers[0]))
                self.names = self.chosen(patterns)
                for name in (n for n in self.names if n not in before):
                    self._handles.append(self._attach(self._module, name))
                    if name in seen:
                        self.features[name] = feature_of(seen[name], name)
            hidden = {n: inside[n] for n in self.names if n not in self.features and n in inside}
            if hidden:
                auto = self._auto if self._auto is not None else _quarters(blocks(self._module))
                self._auto = [hidden[n][0] if n in hidden else n for n in auto]
                self.names = self.chosen(patterns)
                for name, held in hidden.values():
                    self._handles.append(self._attach(self._module, name))
                    self.features[name] = feature_of(held, name)
            logits = _logits(output)
            if logits is not None and logits.ndim:
                ids = next((x for x in (*args, *given.values()) if isinstance(x, torch.Tensor)), None)
                self._turned = _turns(self.features, len(logits), ids, getattr(self._module, "config", None))
                self.features |= {name: self._upright(self.features[name], name) for name in self._turned}
                self._astray = next((n for n, f in self.features.items() if len(f) != len(logits)), "")

        names = list(dict.fromkeys(n for tower in towers for n in tower))
        watched = [self._module.get_submodule(n).register_forward_hook(noting(n)) for n in names]
        for block in (names or _quarters(blocks(self._module))) if AUTO in patterns else ():
            children = [(n, m) for n, m in self._module.get_submodule(block).named_modules() if n]
            watched += [m.register_forward_hook(noting_inside(block, f"{block}.{n}")) for n, m in children]
        last = self._module.register_forward_hook(ended, with_kwargs=True)
        self._handles += [*watched, last]

    def chosen(self, patterns: Sequence[str]) -> list[str]:
        """The layers that patterns name, as :func:`layer_names`, with what ``auto`` stands for since the first forward pass."""
        return layer_names(self._module, patterns, auto=self._auto)

    def _attach(self, module: torch.nn.Module, name: str) -> Any:
        if name == PENULTIMATE:
            self._head = _Head(module, self.features)
            return self._head
        found = INDEXED.fullmatch(name)
        layer = module.get_submodule(found[1] if found is not None else name)
        return layer.register_forward_hook(lambda _, __, output: self.features.__setitem__(name, self._upright(feature_of(output, name), name)))  # fmt: skip

    def _upright(self, feature: torch.Tensor, name: str) -> torch.Tensor:
        return feature.transpose(*self._turned[name]) if name in self._turned else feature

    @property
    def classifier(self) -> str:
        """The name of the layer whose input ``penultimate`` is; before the first forward pass the last linear layer's."""
        found = self._head.name if self._head is not None else ""
        return found or classifier_name(self._module)

    @property
    def read(self) -> torch.Tensor:
        """All that the classifier read in the last forward pass, of every token [B, L, D] where it reads tokens, else [B, D]."""
        found = self._head.read if self._head is not None else None
        assert found is not None, "penultimate is tapped, and a forward pass was made"
        return found

    @property
    def by_token(self) -> bool:
        """Whether the classifier reads every token and the model takes the logits of one."""
        return self._head is not None and self._head.at is not None

    def taken(self, read: torch.Tensor) -> torch.Tensor:
        """Of something of :attr:`read`'s shape, what the model's logits come from: the one token's [B, D] where it takes one."""
        return self._head.taken(read) if self._head is not None else read

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every layer's last feature, without the batch.

        Raises:
            InterfuseError: ``needs.capability`` when a layer did not take part in the forward pass, or gives the batch on another axis.
        """
        for name in self.names:
            if name not in self.features:
                raise InterfuseError("needs.capability", f"the layer {name!r} takes no part in the forward pass", fix="Name layers that do.")  # fmt: skip
        if self._astray:
            raise InterfuseError("needs.capability", f"the first axis of what the layer {self._astray!r} gives is not the batch",
                                 fix="Name another layer, or penultimate.")  # fmt: skip
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


class _Head:
    """Finds a module's classifier in its first forward pass and records what it reads in every one."""

    def __init__(self, module: torch.nn.Module, features: dict[str, torch.Tensor]) -> None:
        self.features = features
        self.name = ""
        self.read: torch.Tensor | None = None
        self.at: torch.Tensor | None = None
        self._last = classifier_name(module)
        self._said: torch.Tensor | None = None
        self._seen: dict[int, deque[tuple[str, torch.Tensor, torch.Tensor]]] = {}
        linear = [(name, child) for name, child in module.named_modules() if isinstance(child, torch.nn.Linear)]
        self._handles = {name: child.register_forward_hook(self._noting(name)) for name, child in linear}
        # no bound method: a copy of the module must not copy what was seen
        self._handles["model"] = module.register_forward_hook(lambda _, __, output: self._ended(output))

    def _noting(self, name: str) -> Any:
        def note(layer: Any, args: Any, output: torch.Tensor) -> None:
            if self.name:
                self.read, self._said = args[0], output
            else:
                kept = self._seen.setdefault(-1 if name == self._last else layer.out_features, deque(maxlen=4))
                kept.append((name, args[0], output))

        return note

    def _ended(self, output: Any) -> None:
        logits = _logits(output)
        if not self.name:
            self._settle(logits)
        if self.read is None or self._said is None:
            return
        self.at = _token(self._said, logits)
        self.features[PENULTIMATE] = self.taken(self.read)
        self._said = None

    def _settle(self, logits: torch.Tensor | None) -> None:
        last = self._seen.get(-1, deque())
        width = logits.shape[-1] if isinstance(logits, torch.Tensor) and logits.ndim else 0
        found = [s for s in (*self._seen.get(width, ()), *last) if _gives(s[2], logits)] or last
        if not found:
            return  # the last linear layer takes no part
        self.name, self.read, self._said = found[-1]
        for name in [n for n in self._handles if n not in ("model", self.name)]:
            self._handles.pop(name).remove()
        self._seen.clear()

    def taken(self, read: torch.Tensor) -> torch.Tensor:
        return read if self.at is None else read[torch.arange(len(read), device=read.device), self.at]

    def remove(self) -> None:
        for handle in self._handles.values():
            handle.remove()


def _token(said: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor | None:
    """Which token's output [B, L, K] the logits [B, K] are, int64 [B]; None where they are not one token's."""
    if logits is None or said.ndim != 3 or logits.shape != (said.shape[0], said.shape[2]):
        return None
    same = (said.detach().to(logits.dtype) == logits.detach().unsqueeze(1)).all(dim=-1)
    return same.int().argmax(dim=1) if bool(same.any(dim=1).all()) else None


def _gives(said: torch.Tensor, logits: torch.Tensor | None) -> bool:
    """Whether a layer's output is a model's logits, or one token's of it."""
    if logits is None:
        return False
    if said.shape == logits.shape:
        return torch.equal(said.detach().to(logits.dtype), logits.detach())
    return _token(said, logits) is not None


def _turns(
    features: dict[str, torch.Tensor], batch: int, ids: torch.Tensor | None, config: Any
) -> dict[str, tuple[int, int]]:
    """Which axes of features [., ., .] of token ids [B, L] change places, so that they become [B, L, D]."""
    if ids is None or ids.ndim != 2 or ids.is_floating_point():
        return {}
    length, width = ids.shape[1], getattr(config, "hidden_size", None)
    found = {}
    for name, feature in features.items():
        if feature.ndim != 3:
            continue
        if length != batch and tuple(feature.shape[:2]) == (length, batch):
            found[name] = (0, 1)
        elif length != width and tuple(feature.shape) == (batch, width, length):
            found[name] = (1, 2)
    return found


def _logits(output: Any) -> torch.Tensor | None:
    """What a model gives as its logits; None where that is not known."""
    found = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    return found if isinstance(found, torch.Tensor) else None


def as_vector(feature: torch.Tensor) -> torch.Tensor:
    """A feature as one vector per sample [B, D]: maps and tokens are averaged over space."""
    if feature.ndim == 4:
        return feature.mean(dim=(2, 3))
    return feature.mean(dim=1) if feature.ndim == 3 else feature
