"""Calibration passes: one runner shows collectors what models read, give and feel (gradients) on examples, batch by batch.

A collector says which modules' inputs or outputs, or which parameters' gradients, it wants to see, and keeps running totals in
float64. Examples of equal length share a batch, so that no batch holds padding and no total depends on how examples were put
together; gradients are seen one example at a time. Hooks are put on and taken off by the runner: a model is never edited.
Totals of unfinished passes are kept, so that a pass goes on where it was killed (:func:`run_pass`), and finished statistics
are files under a hash of everything they depend on (:class:`Kept`).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import canonical_json, fingerprint, write_atomic
from interfuse.data.models import Model, build, device_of, open_tokenizer
from interfuse.data.tables import Table
from interfuse.data.weights import Weights
from interfuse.kit.encode import IGNORE, Batch, Encoder, normalised, targets
from interfuse.kit.threads import threads_for
from interfuse.kit.train import load_state, save_state

#: texts are put into batches of equal length within so many examples
_WINDOW = 1024
_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Wants:
    """What a collector asks to see: inputs and outputs of modules, gradients of parameters (all by name). ``loss``: the loss
    that gradients are of is each example's own; without parameters no gradient is computed."""

    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    parameters: Sequence[str] = ()


@dataclass(frozen=True)
class Seen:
    """One batch as one model saw it.

    Attributes:
        rows: the examples' positions in the table.
        inputs, outputs: by module name, [B, ..., channels]. logits: [B, K], or [B, L-1, V] of a causal language model.
        gradients: of the loss of the one example, by parameter name; None where it does not depend on the parameter.
        weights: the parameters themselves, by name.
    """

    rows: Sequence[int]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    logits: Tensor
    gradients: Mapping[str, Tensor | None] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)


class Collector(Protocol):
    """Running totals over the examples of a pass."""

    def wants(self) -> Wants:
        """What it asks to see."""

    def see(self, seen: Sequence[Seen]) -> None:
        """Adds a batch, as each model of the pass saw it."""

    def state(self) -> dict[str, Tensor]:
        """The totals themselves, not copies: they are written to disk now and then, and filled when a pass goes on."""


# ------------------------------------------------------------------------------------------------ models and examples


@dataclass
class Loaded:
    """A model ready for passes: its module in evaluation mode, computing in float32 (or float64 where the context says so)."""

    model: Model
    module: nn.Module
    device: torch.device
    _tokenizer: Any = field(default=None, repr=False)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The floating parameters by name; tied ones once."""
        return {n: p for n, p in self.module.named_parameters() if p.is_floating_point()}

    @property
    def linear(self) -> dict[str, bool]:
        """The matrix multiplications by module name: whether the weight is stored as [in, out] (as GPT-2 does)."""
        from transformers.pytorch_utils import Conv1D

        kinds = {n: isinstance(m, Conv1D) for n, m in self.module.named_modules() if isinstance(m, nn.Linear | Conv1D)}
        return {name: kind for name, kind in kinds.items() if name}

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = open_tokenizer(self.model)
        return self._tokenizer


def load(model: Model, ctx: Ctx) -> Loaded:
    """Loads a model for passes.

    Raises:
        InterfuseError: ``needs.capability`` for quantised weights, a model that gives no logits, or seq2seq and masked language
            models; what :func:`~interfuse.data.models.build` raises.
    """
    if model.config.get("quantization_config"):
        raise InterfuseError("needs.capability", "the weights are quantised, so there are no gradients or inputs of weights to see",
                             where=model.name, fix="Name the model before it was quantised.")  # fmt: skip
    if model.task in ("predictions", "masked-lm", "seq2seq-lm"):
        raise InterfuseError("needs.capability", f"calibration knows no loss for {model.task}", where=model.name,
                             fix="Causal language models and classifiers can be calibrated.")  # fmt: skip
    dtype = torch.float64 if ctx.dtype == "float64" else torch.float32
    # no dropout, no update of running means: evaluation mode, with gradients where they are asked for
    module = build(model, ctx.with_(dtype="float64" if dtype == torch.float64 else "float32"))
    device = device_of(ctx)
    module = module.to(device, dtype).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return Loaded(model, module, device)


def examples(loaded: Loaded, table: Table, *, part: str, max_length: int, batch_size: int) -> Iterator[tuple[list[int], Batch]]:  # fmt: skip
    """Batches of examples without padding, with their positions in the table.

    Args:
        part: ``full``: the columns ``prompt``, ``text`` and ``response``, those there are, one after another as they stand;
            ``prompt``: that column alone.

    Raises:
        InterfuseError: ``input.missing`` (an empty text, or no column ``prompt``), ``input.type`` when the model reads no texts,
            ``input.limit`` when every text is cut off.
    """
    if table.kind not in ("text", "prompt"):
        encoder = Encoder(loaded.model, table, max_length)
        for positions, batch in encoder.batches(np.arange(len(table)), batch_size):
            yield positions.tolist(), batch
        return
    if loaded.model.task not in ("causal-lm", "text-classification"):
        raise InterfuseError("input.type", f"the model is for {loaded.model.task}, the table holds texts", where=f"{loaded.model.name}, {table.name}")  # fmt: skip
    texts, cut = texts_of(table, part), 0
    for begin in range(0, len(texts), _WINDOW):
        window = texts[begin : begin + _WINDOW]
        ids: list[list[int]] = loaded.tokenizer(window, truncation=True, max_length=max_length)["input_ids"]
        cut += sum(len(i) >= max_length for i in ids)
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        start = 0
        while start < len(order):
            length = len(ids[order[start]])
            stop = start + 1
            while stop < len(order) and stop - start < batch_size and len(ids[order[stop]]) == length:
                stop += 1
            rows = order[start:stop]
            if length < 2 and loaded.model.task == "causal-lm":
                raise InterfuseError("input.empty", "the text is one token, so there is nothing to predict",
                                     where=f"{table.name}: row {table.rows[begin + rows[0]]}")  # fmt: skip
            stacked = torch.tensor([ids[r] for r in rows])
            yield [begin + r for r in rows], {"input_ids": stacked, "attention_mask": torch.ones_like(stacked)}
            start = stop
    if cut == len(texts):
        raise InterfuseError("input.limit", f"every text is cut off at {max_length} tokens", where=table.name,
                             fix="Raise max_length, or give shorter texts.")  # fmt: skip


def texts_of(table: Table, part: str) -> list[str]:
    """The texts of a table's rows: what they are asked (``prompt``), or all of it (``full``).

    Raises:
        InterfuseError: ``input.missing``.
    """
    columns = [table.columns[role] for role in ("prompt", "text", "response") if role in table.columns]
    if part == "prompt":
        if "prompt" not in table.columns:
            raise InterfuseError("input.missing", "the table has no column for the prompts", where=table.name,
                                 fix="Declare it: columns: {prompt: NAME, response: NAME}; or take the whole texts (full).")  # fmt: skip
        columns = columns[:1]
    read = table.dataset.select_columns(columns)[table.rows]
    for column in columns:
        for row, value in zip(table.rows.tolist(), read[column], strict=True):
            if not isinstance(value, str) or not value:
                raise InterfuseError(
                    "input.missing", "the text is empty", where=f"{table.name}: row {row}, column {column}"
                )
    return ["".join(parts) for parts in zip(*(read[c] for c in columns), strict=True)]


# ------------------------------------------------------------------------------------------------ the runner


class _Hooks:
    """Notes inputs and outputs of named modules while it is open."""

    def __init__(self, module: nn.Module, wants: Wants) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._handles = []
        for name in dict.fromkeys(wants.inputs):
            hook = self._reader(name)
            self._handles.append(module.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
        for name in dict.fromkeys(wants.outputs):
            self._handles.append(module.get_submodule(name).register_forward_hook(self._writer(name)))

    def _reader(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            found = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            if found is not None:
                self.inputs[name] = found.detach()

        return note

    def _writer(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_: nn.Module, args: Any, output: Any) -> None:
            values = output.values() if isinstance(output, dict) else output
            found = output if isinstance(output, Tensor) else next((v for v in values if isinstance(v, Tensor)), None)
            if found is not None:
                self.outputs[name] = found.detach()

        return note

    def __enter__(self) -> _Hooks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()


def loss_of(loaded: Loaded, logits: Tensor, batch: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
    """Mean cross-entropy of the next tokens, or of the labels [B], in nats.

    Raises:
        InterfuseError: ``input.missing`` when a classifier's examples have no labels, ``input.shape`` when a label is none of
            the model's classes.
    """
    wanted = targets(loaded.model, labels, batch)
    if wanted is None:
        raise InterfuseError("input.missing", "the loss of a classifier needs labels", where=loaded.model.name,
                             fix="Declare a label column in the calibration table.")  # fmt: skip
    classes = logits.shape[-1]
    if int(wanted.max()) >= classes:
        raise InterfuseError(
            "input.shape", f"a label is {int(wanted.max())}, the model has {classes} classes", where=loaded.model.name
        )
    return F.cross_entropy(logits.reshape(-1, classes), wanted.reshape(-1), ignore_index=IGNORE)


def run_pass(
    models: Sequence[Loaded],
    table: Table,
    collector: Collector,
    ctx: Ctx,
    *,
    part: str = "full",
    max_length: int = 512,
    batch_size: int = 8,
    state: Path | None = None,
    losses: Callable[[Loaded, Tensor, Mapping[str, Tensor], Tensor | None], list[tuple[float, Tensor]]] | None = None,
) -> None:
    """Shows a collector every example, as all models see it.

    Args:
        models: they see the same batches. state: a file in which totals are kept now and then; a pass that finds it goes on.
        part, max_length, batch_size: see :func:`examples`.
        losses: from model, logits, batch and labels to weights and losses whose gradients are shown one after another, the
            collector's totals being weighted by ``sqrt(weight)`` on gradients; without it one loss of weight 1.

    Raises:
        InterfuseError: ``input.nan`` naming the example whose loss or logits are not finite, and what :func:`examples` and
            :func:`loss_of` raise.
    """
    wants = collector.wants()
    gradients = bool(wants.parameters)
    done, saved = _resume(collector, state), time.monotonic()
    labels = table.labels() if "label" in table.columns else None
    size = sum(p.numel() for p in models[0].module.parameters())
    chosen = [{n: m.parameters[n] for n in wants.parameters} for m in models]
    try:
        for parameters in chosen:
            for parameter in parameters.values():
                parameter.requires_grad_(True)
        with threads_for(size), ctx.bar("calibrate", len(table), "examples") as bar:
            walk = examples(
                models[0], table, part=part, max_length=max_length, batch_size=1 if gradients else batch_size
            )
            for number, (rows, batch) in enumerate(walk):
                bar.advance(len(rows))
                if number < done:
                    continue
                own = None if labels is None else torch.from_numpy(labels[rows])
                with torch.set_grad_enabled(gradients):
                    views = [_forward(m, batch, wants, table, rows) for m in models]
                if not gradients:
                    collector.see([seen for seen, _ in views])
                else:
                    _backward(models, chosen, views, own, collector, table, losses)
                if state is not None and time.monotonic() - saved > _SAVE_SECONDS:
                    save_state(state, {}, {}, collector.state(), {"done": number + 1})
                    saved = time.monotonic()
    finally:
        for parameters in chosen:
            for parameter in parameters.values():
                parameter.requires_grad_(False)
    if state is not None:
        state.unlink(missing_ok=True)


def _resume(collector: Collector, state: Path | None) -> int:
    kept = load_state(state, {}, {}) if state is not None else None
    if kept is None:
        return 0
    facts, tensors = kept
    mine = collector.state()
    if any(name not in tensors or tensors[name].shape != value.shape for name, value in mine.items()):
        return 0
    for name, value in mine.items():
        value.copy_(tensors[name])
    return int(facts["done"])


def _forward(loaded: Loaded, batch: Batch, wants: Wants, table: Table, rows: Sequence[int]) -> tuple[Seen, Batch]:
    dtype = next(p.dtype for p in loaded.module.parameters() if p.is_floating_point())
    batch = dict(normalised(loaded.model, batch))
    held = {k: v.to(loaded.device, dtype if v.is_floating_point() else None) for k, v in batch.items()}
    with _Hooks(loaded.module, wants) as hooks:
        if loaded.model.task == "module":
            output = loaded.module(next(iter(held.values())))
        elif loaded.model.task.endswith("-lm"):
            output = loaded.module(**held, use_cache=False)
        else:
            output = loaded.module(**held)
    logits = output if isinstance(output, Tensor) else output.logits
    logits = logits[:, :-1] if loaded.model.task == "causal-lm" else logits
    if not torch.isfinite(logits).all():
        bad = int(torch.nonzero(~torch.isfinite(logits.flatten(1)).all(1))[0])
        raise _not_finite("gives a logit", loaded, table, rows[bad])
    return Seen(rows, hooks.inputs, hooks.outputs, logits), held


def _backward(
    models: Sequence[Loaded],
    chosen: Sequence[Mapping[str, nn.Parameter]],
    views: Sequence[tuple[Seen, Batch]],
    labels: Tensor | None,
    collector: Collector,
    table: Table,
    losses: Callable[..., list[tuple[float, Tensor]]] | None,
) -> None:
    """Shows the gradients of one example; several weighted losses are shown one after another."""
    if len(models) != 1:
        raise InterfuseError("param.value", "gradients are collected of one model at a time")
    (loaded,), (parameters,), ((seen, batch),) = models, chosen, views
    own = labels.to(loaded.device) if labels is not None else None
    with torch.enable_grad():
        found = (
            [(1.0, loss_of(loaded, seen.logits, batch, own))]
            if losses is None
            else losses(loaded, seen.logits, batch, own)
        )
    for number, (weight, loss) in enumerate(found):
        if not torch.isfinite(loss):
            raise _not_finite("has a loss", loaded, table, seen.rows[0])
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), retain_graph=number + 1 < len(found), allow_unused=True
        )
        scale = weight**0.5
        held = {n: g if g is None or scale == 1 else g * scale for n, g in zip(parameters, gradients, strict=True)}
        with torch.no_grad():
            collector.see([Seen(seen.rows, seen.inputs, seen.outputs, seen.logits.detach(), held, parameters)])


def _not_finite(what: str, loaded: Loaded, table: Table, row: int) -> InterfuseError:
    return InterfuseError("input.nan", f"the model {what} that is not a number", where=f"{loaded.model.name}, {table.name}: row {table.rows[row]}")  # fmt: skip


def look(loaded: Loaded, batch: Batch, wants: Wants, table: Table) -> Seen:
    """One batch as a model sees it, without gradients: for shapes, and for which modules read the same tensor."""
    with torch.no_grad():
        return _forward(loaded, batch, wants, table, [0])[0]


# ------------------------------------------------------------------------------------------------ statistics on disk


def within(sizes: Mapping[str, int], budget: int) -> list[list[str]]:
    """The names in order, cut into groups whose sizes sum to at most the budget (a single larger one stands alone)."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = budget
        groups[-1].append(name)
        room -= size
    return groups


class Kept:
    """Finished statistics: tensors and plain facts by name, in files.

    Iterating is not needed: ``name in kept``, :meth:`tensor` (whole, in its own type) and ``kept.weights(name).source(name)``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.facts: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))["facts"]
            self._files = [Weights.open(f) for f in sorted(folder.glob("*.safetensors"))]
        except (OSError, ValueError, KeyError, TypeError, InterfuseError) as error:
            raise InterfuseError("artifact.damaged", "the statistics cannot be read", where=str(folder),
                                 fix="Delete the folder; they are made again.") from error  # fmt: skip
        self._where = {name: file for file in self._files for name in file}

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        """The tensors' names."""
        return list(self._where)

    def weights(self, name: str) -> Weights:
        """The file that holds a tensor."""
        return self._where[name]

    def tensor(self, name: str) -> Tensor:
        """A whole tensor in its own type."""
        return self._where[name].tensor(name, copy=True)

    def close(self) -> None:
        """Lets go of the files."""
        for file in self._files:
            file.close()


#: from the group's number, its names and a file for unfinished totals to the group's tensors
Make = Callable[[int, Sequence[str], Path], Mapping[str, Tensor]]


def keep(
    place: Path, about: Mapping[str, Any], groups: Callable[[], tuple[Sequence[Sequence[str]], Make, Mapping[str, Any]]]
) -> Kept:
    """Statistics under a hash of ``about``, made when they are not there; one process makes them, others wait.

    Args:
        place: the folder of all statistics. about: everything the numbers depend on, as plain data.
        groups: called only when there is work: names in groups that fit into memory together, what makes one group, facts.

    Raises:
        InterfuseError: ``artifact.damaged``; ``output.write`` or ``output.space``; what ``groups`` and its work raise.
    """
    key = fingerprint(dict(about))[:32]
    folder, unfinished = place / key, place / f"{key}.part"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(str(place / f"{key}.lock")):
        if not folder.is_dir():
            unfinished.mkdir(exist_ok=True)
            named, make, facts = groups()
            for number, names in enumerate(named):
                file = unfinished / f"{number:05}.safetensors"
                if not file.is_file():
                    made = {n: t.contiguous() for n, t in make(number, names, unfinished / "totals").items()}
                    write_atomic(file, safetensors.torch.save(made, metadata={"key": key}))
            write_atomic(unfinished / "about.json", canonical_json({"about": dict(about), "facts": dict(facts)}))
            (unfinished / "totals").unlink(missing_ok=True)
            os.replace(unfinished, folder)
    (place / f"{key}.lock").unlink(missing_ok=True)
    return Kept(folder)


def forget(place: Path) -> None:
    """Removes a folder of statistics."""
    shutil.rmtree(place, ignore_errors=True)
