"""The merge room: its contract, and one streaming engine for every method.

A method is one function of float32 numbers, ``method(part, *, parameters) -> Tensor``, whose traits say what it sees at once
(``scope``: ``element``, ``row`` or ``tensor``), whether it needs a base, and what it must know of whole tensors first
(``prepare``). The engine reads headers, checks that the models fit, streams block by block (``kit.streaming``), and writes a
folder that ``from_pretrained`` opens. It knows no architectures: names and shapes come from the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Call, Cost, Input, Room
from interfuse.core.safe import canonical_json
from interfuse.data.models import Model, copy_tokenizer, open_model
from interfuse.data.weight_writer import WeightWriter
from interfuse.data.weights import Flat, Weights
from interfuse.kit.counter_random import tensor_key, uniform
from interfuse.kit.encode import tokenizer_folder
from interfuse.kit.reductions import Difference
from interfuse.kit.streaming import Block, Job, Journal, stream_merge

Tensor = torch.Tensor
#: one number for all models, or one per model in their order
PerModel = float | list[float]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class MergeSettings:
    """Settings of every method of the room."""

    out_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(
            description="type of the numbers written (rounded to nearest even); auto is that of the base, or of the first model"
        ),
    ] = "auto"
    max_shard: Annotated[float, Field(gt=0, description="largest weight file, in gigabytes")] = 5.0
    max_memory: Annotated[
        float, Field(gt=0, description="memory for buffers, in gigabytes, besides the mapped files")
    ] = 2.0
    workers: Annotated[int, Field(ge=0, description="threads; 0 is one per processor")] = 0


@dataclass
class Part:
    """What a method sees of one output tensor: a block of it, rows of it, or all of it.

    Attributes:
        name: the tensor. shape: its whole shape. start: flat index of the block's first element.
        models: the models' numbers, float32, each [n], [rows, columns] or the whole shape according to the scope. They are
            buffers: they may be overwritten.
        base: the base's numbers, None without a base.
        facts: what the method's ``prepare`` returned.
        seed: the run's seed. labels: the models' fingerprints, which random masks are keyed by.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    models: list[Tensor]
    base: Tensor | None
    facts: Any
    seed: int = 0
    labels: Sequence[str] = field(default=())

    def deltas(self) -> list[Tensor]:
        """The task vectors ``model - base`` of the block; overwrites ``models``."""
        assert self.base is not None, "the trait base='required' guarantees a base"
        return [m.sub_(self.base) for m in self.models]

    def random(self, model: int) -> Tensor:
        """One uniform number in [0, 1) per element of the block, the same for any block size, order or machine."""
        flat = uniform(
            tensor_key(self.seed, self.labels[model], self.name), self.start, self.start + self.models[model].numel()
        )
        return flat.view(self.models[model].shape)


@dataclass(frozen=True)
class Whole:
    """What ``prepare`` sees: the sources of one tensor, readable in any pieces. Names are those of :class:`Part`."""

    name: str
    shape: tuple[int, ...]
    models: Sequence[Flat]
    base: Flat | None
    seed: int
    labels: Sequence[str]

    def deltas(self) -> list[Flat]:
        """The task vectors, subtracted while they are read."""
        assert self.base is not None, "the trait base='required' guarantees a base"
        return [Difference(m, self.base) for m in self.models]

    def random(self, model: int, start: int, stop: int) -> Tensor:
        """The numbers :meth:`Part.random` gives, for a flat range [stop - start]."""
        return uniform(tensor_key(self.seed, self.labels[model], self.name), start, stop)


def per_model(value: PerModel, count: int, name: str) -> list[float]:
    """A per-model parameter as one number per model.

    Raises:
        InterfuseError: ``param.value`` when a list has another length.
    """
    values = value if isinstance(value, list) else [value] * count
    if len(values) != count:
        raise InterfuseError(
            "param.value",
            f"{name} has {len(values)} numbers for {count} models",
            fix="Give one number, or one per model.",
        )
    return [float(v) for v in values]


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``sum_i w_i t_i``, computed in the order of the tensors; overwrites the first."""
    total = tensors[0].mul_(weights[0])
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def _settings(call: Call) -> MergeSettings:
    return MergeSettings(**{f.name: call.params[f.name] for f in dataclasses.fields(MergeSettings)})


def _own(call: Call) -> dict[str, Any]:
    shared = {f.name for f in dataclasses.fields(MergeSettings)}
    return {k: v for k, v in call.params.items() if k not in shared}


def _all(call: Call) -> list[Model]:
    base = call.inputs["base"]
    return [*([base] if base is not None else []), *call.inputs["models"]]


def check(call: Call) -> None:
    """Refuses what cannot be merged, from configurations and file headers alone."""
    traits, models = call.method.traits, call.inputs["models"]
    least, most = traits.get("models", (1, 1000))
    if not least <= len(models) <= most:
        wanted = str(least) if least == most else f"at least {least}" if most >= 1000 else f"{least} to {most}"
        raise InterfuseError(
            "param.value", f"{call.method.id} takes {wanted} models, {len(models)} are given", where="models"
        )
    wants = traits.get("base", "optional")
    if wants == "required" and call.inputs["base"] is None:
        raise InterfuseError("param.missing", f"{call.method.id} needs the base the models were made from", where="base",
                             fix="Add --base FOLDER (or base: NAME).")  # fmt: skip
    if wants == "none" and call.inputs["base"] is not None:
        raise InterfuseError("param.unknown", f"{call.method.id} takes no base", where="base", fix="Leave it out.")
    for name in _per_model(call):
        per_model(call.params[name], len(models), name)
    everyone = _all(call)
    for model in everyone[1:]:
        if model.config.get("model_type") != everyone[0].config.get("model_type"):
            raise InterfuseError("input.shape", f"the architectures differ: {everyone[0].config.get('model_type')} and "
                                 f"{model.config.get('model_type')}", where=f"{everyone[0].name}, {model.name}",
                                 fix="Merging needs one architecture; distillation does not.")  # fmt: skip
    if all(m.module is not None or (m.path is not None and m.path.is_dir()) for m in everyone):
        with _opened(everyone) as weights:
            _fit(everyone, weights)


@contextlib.contextmanager
def _opened(models: Sequence[Model]) -> Any:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(weights_of(m)) for m in models]


def weights_of(model: Model) -> Weights:
    """The lazily readable tensors of a model.

    Raises:
        InterfuseError: ``input.missing`` when the model has no weights yet (a bare configuration).
    """
    if model.module is not None:
        return Weights.from_state_dict(model.module.state_dict())
    if model.path is None:
        raise InterfuseError("input.missing", "a configuration has no weights to merge", where=model.name)
    return Weights.open(model.path)


def _fit(models: Sequence[Model], weights: Sequence[Weights]) -> None:
    """Raises ``input.shape`` with the first mismatches when two models do not have the same tensors."""
    first, rest = weights[0], list(zip(models[1:], weights[1:], strict=True))
    rows = []
    for model, other in rest:
        for name in first:
            if name not in other:
                rows.append(f"{name}: missing in {model.name}")
            elif other[name].shape != first[name].shape:
                rows.append(
                    f"{name}: {list(first[name].shape)} in {models[0].name}, {list(other[name].shape)} in {model.name}"
                )
        rows += [f"{name}: only in {model.name}" for name in other if name not in first]
    if rows:
        shown = "; ".join(rows[:8]) + (f"; and {len(rows) - 8} more" if len(rows) > 8 else "")
        raise InterfuseError("input.shape", f"the models' tensors differ: {shown}", where=", ".join(m.name for m in models),
                             fix="Use models of one base and one vocabulary.")  # fmt: skip


def estimate(call: Call) -> Cost:
    """Every byte of every source is read once per pass, every byte of one is written."""
    sizes = [
        sum(p.stat().st_size for p in m.path.glob("*.safetensors")) if m.path and m.path.is_dir() else 0
        for m in _all(call)
    ]
    passes = 2 if call.method.traits.get("prepare") else 1
    return Cost(passes * sum(sizes), max(sizes), 0, round((passes * sum(sizes) + max(sizes)) / 5e8, 1))


def promise(call: Call, path: Path) -> Model:
    """The merged model."""
    first = _all(call)[0]
    return dataclasses.replace(first, path=path, module=None, tokenizer=first.tokenizer or tokenizer_folder(first))


def run(call: Call, folder: Path) -> Mapping[str, Any]:
    """Streams the merge into ``folder`` as an ordinary model folder."""
    settings, models = _settings(call), _all(call)
    work = call.ctx.scratch or folder
    with _opened(models) as weights:
        _fit(models, weights)
        jobs, layout = _jobs(call, models, weights, settings)
        total = sum(info.nbytes for w in weights for info in w.values())
        work.mkdir(parents=True, exist_ok=True)
        with (
            Journal(work / "journal.jsonl", _journal_key(call, weights)) as journal,
            WeightWriter(work, layout, max_shard_bytes=int(settings.max_shard * 1e9), resumable=True) as writer,
            call.ctx.bar(f"merge {call.method.entry.slug}", float(sum(w.nbytes for w in weights[:1])), "bytes") as bar,
        ):
            if journal.done:
                call.ctx.log(f"resuming: {len(journal.done)} of {len(jobs)} tensors were done")
            seen = 0

            def progress(done: int, whole: int, tensor: str) -> None:
                nonlocal seen
                bar.advance(done - seen, tensor)
                seen = done

            stats = stream_merge(jobs, writer, workers=settings.workers or None, max_memory=int(settings.max_memory * 1e9),
                                 journal=journal, progress=progress)  # fmt: skip
    if work != folder:
        for file in sorted(work.glob("*.safetensors*")):
            os.replace(file, folder / file.name)
    for left in sorted(folder.glob("journal.jsonl*")):
        left.unlink()
    _write_config(models[0], folder, layout)
    _write_card(call, models, folder)
    return {
        "tensors": stats.tensors,
        "bytes_read": total,
        "bytes_written": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
    }


def _journal_key(call: Call, weights: Sequence[Weights]) -> str:
    from interfuse.core.rooms import key_of

    return key_of(call)


def _per_model(call: Call) -> list[str]:
    """The parameters that may have one value per model."""
    return [n for n in call.method.traits.get("per_model", ("weight",)) if call.params.get(n) is not None]


def _ordered(call: Call, models: Sequence[Model]) -> tuple[list[int], list[str], dict[str, Any]]:
    """Sources in the order of their fingerprints, so that the order they are named in never changes a bit; with the
    per-model parameters in that order. Methods whose trait is ``ordered`` keep the order given."""
    traits, own = call.method.traits, _own(call)
    labels = [m.fingerprint() for m in models]
    order = list(range(len(models)))
    if not traits.get("ordered", False):
        keys = [[per_model(own[n], len(models), n)[i] for n in _per_model(call) if n in own] for i in order]
        order.sort(key=lambda i: (labels[i], keys[i]))
    for name in _per_model(call):
        values = per_model(own[name], len(models), name)
        own[name] = [values[i] for i in order]
    return order, [labels[i] for i in order], own


def _jobs(
    call: Call, models: Sequence[Model], weights: Sequence[Weights], settings: MergeSettings
) -> tuple[list[Job], dict[str, Any]]:
    bases = 1 if call.inputs["base"] is not None else 0
    order, labels, own = _ordered(call, models[bases:])
    jobs, layout = [], {}
    for name, info in weights[0].items():
        if not info.dtype.is_floating_point:  # counters and index buffers are not knowledge: the first model's are kept
            jobs.append(Job(name, (weights[0].source(name),)))
            layout[name] = (info.dtype, info.shape)
            continue
        sources = tuple(w.source(name) for w in [*weights[:bases], *(weights[bases + i] for i in order)])
        layout[name] = (DTYPES.get(settings.out_dtype, info.dtype), info.shape)
        jobs.append(_job(call, name, info.shape, sources, bases, labels, own))
    return jobs, layout


def _job(
    call: Call,
    name: str,
    shape: tuple[int, ...],
    sources: tuple[Flat, ...],
    bases: int,
    labels: Sequence[str],
    own: Mapping[str, Any],
) -> Job:
    traits, target, seed = call.method.traits, call.method.target, call.ctx.seed

    def function(values: list[Tensor], block: Block) -> Tensor:
        base = values[0] if bases else None
        if traits.get("scope") == "tensor":  # whole-tensor arithmetic may hide or choke on what elements would pass on
            for i, value in enumerate(values):
                if not torch.isfinite(value).all():
                    which = "the base" if bases and i == 0 else f"model {labels[i - bases][:12]}"
                    raise InterfuseError("input.nan", f"{which} holds NaN or infinity", where=f"tensor {name}")
        merged: Tensor = target(Part(name, shape, block.start, values[bases:], base, block.facts, seed, labels), **own)
        return merged

    def ready(flat: Sequence[Flat]) -> Any:
        return traits["prepare"](Whole(name, shape, flat[bases:], flat[0] if bases else None, seed, labels), **own)

    scope = traits.get("scope", "element")
    if scope == "row" and len(shape) < 2:
        scope = "tensor"
    return Job(name, sources, function, scope, ready if "prepare" in traits else None, traits.get("temporaries", 2))


def _write_config(model: Model, folder: Path, layout: Mapping[str, Any]) -> None:
    config = {k: v for k, v in model.config.items() if k not in ("torch_dtype", "_name_or_path")}
    kinds = {dtype for dtype, _ in layout.values() if dtype.is_floating_point}
    if config and len(kinds) == 1:
        config["dtype"] = str(min(kinds, key=str)).removeprefix("torch.")
    if config:
        (folder / "config.json").write_bytes(canonical_json(json.loads(json.dumps(config, default=str))))
    source = tokenizer_folder(model)
    import shutil

    copy_tokenizer(source, folder, shutil.copyfile)


def _write_card(call: Call, models: Sequence[Model], folder: Path) -> None:
    """The model card hubs read: which models, which method, which parameters."""
    names = [re.sub(r"[^\w./@-]", "_", m.name) for m in models]
    lines = ["---", "library_name: transformers", "base_model:", *(f"- {n}" for n in names), "tags:", "- merge", "- interfuse", "---",
             f"# Merged with `{call.method.id}`", "", "| input | model |", "|---|---|"]  # fmt: skip
    lines += [
        f"| {'base' if call.inputs['base'] is m else 'model'} | {n} |" for m, n in zip(models, names, strict=True)
    ]
    lines += [
        "",
        "Parameters:",
        "",
        "```json",
        json.dumps(_own(call), indent=2, sort_keys=True, default=str),
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


ROOM = Room(
    name="merge",
    kind="model",
    inputs=(
        Input("models", open_model, many=True, positional=True, doc="the checkpoints to merge"),
        Input("base", open_model, required=False, doc="the model they were all made from"),
    ),
    settings=MergeSettings,
    run=run,
    promise=promise,
    check=check,
    estimate=estimate,
)
