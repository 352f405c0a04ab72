"""The merge room: its contract, and one streaming engine for every method.

A method is one function of float32 numbers, ``method(part, *, parameters) -> Tensor``, whose traits say what it sees at once
(``scope``: ``element``, ``row``, ``matrix`` or ``tensor``), whether it needs a base, and what it must know of whole tensors first
(``prepare``; with the scope ``matrix`` also ``squares``: how many matrices [k, k] of the short side that holds at once). The engine reads headers, plans (:mod:`interfuse.merge.plan`: slices, parameters by layer and name), puts
vocabularies into one order, streams block by block (``kit.streaming``), and writes a folder that ``from_pretrained`` opens.
It knows no architectures: names and shapes come from the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import Method
from interfuse.core.rooms import Call, Cost, Input, Room, Source, key_of
from interfuse.data.formats.safetensors import KINDS
from interfuse.data.models import Model, open_model, read_config, tokenizer_folder
from interfuse.data.weight_writer import WeightWriter
from interfuse.data.weights import Flat
from interfuse.kit.counter_random import below, tensor_key, uniform
from interfuse.kit.reductions import Difference
from interfuse.kit.streaming import Block, Job, Journal, processors, stream_merge
from interfuse.merge.finish import finish, open_vocabulary
from interfuse.merge.looks import looking
from interfuse.merge.plan import Output
from interfuse.merge.prepare import (
    Prepared,
    check,
    everyone,
    leading,
    own_params,
    per_model_params,
    prepared,
    with_its_models,
)
from interfuse.merge.schedule import widen
from interfuse.merge.told import Told, as_given

if TYPE_CHECKING:
    from torch import Tensor

    from interfuse.data.tables import Table
    from interfuse.merge.calibrate import Found

#: float32 numbers of a method whose trait is ``arrays``
Array = Any
#: one number for all models, or one per model in their order
PerModel = float | list[float]
Share = Annotated[float, Field(ge=0, le=1)]
#: a share of elements that is kept, for all models or for each; 0 leaves a model out
PerModelShare = Share | list[Share]
Fraction = Annotated[float, Field(ge=0, lt=1)]
#: a share of elements that may be none
PerModelPart = Fraction | list[Fraction]

#: is given an output's name and what its method tells of it
Tell = Callable[[str, Mapping[str, Any]], None]

#: codes of the types that can be asked for
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class MergeSettings:
    """Settings of every method of the room."""

    out_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(
            description="type of the numbers written (rounded to nearest even); auto is that of the base, or of the first model"
        ),
    ] = "auto"
    output: Annotated[
        Literal["model", "lora"],
        Field(
            description="lora: LoRA adapters on one base make one LoRA adapter on it, which peft opens, and no whole model"
        ),
    ] = "model"
    lora_rank: Annotated[
        int | None,
        Field(
            ge=1,
            description="with output lora: largest rank of a matrix's change; none is the sum of the adapters' ranks",
        ),
    ] = None
    max_shard: Annotated[float, Field(gt=0, description="largest weight file, in gigabytes")] = 5.0
    max_memory: Annotated[
        float, Field(gt=0, description="memory for buffers, in gigabytes, besides the mapped files")
    ] = 2.0
    workers: Annotated[int, Field(ge=0, description="threads; 0 is one per processor")] = 0
    slices: Annotated[
        list[dict[str, Any]] | None,
        Field(
            description="layers of which models make the result: [{sources: [{model: 0, layers: [0, 8]}], parameters: {}}]"
        ),
    ] = None
    freeze: Annotated[
        list[str],
        Field(
            description="parts of names, such as lm_head: their tensors are not merged, the base's (or the first model's) are kept"
        ),
    ] = dataclasses.field(default_factory=list)
    tokens: Annotated[
        dict[str, Any] | None,
        Field(
            description="with tokenizer: where single tokens' rows come from, {TOKEN: {source: INDEX | base | zero, force: true}}"
        ),
    ] = None
    pad_to_multiple_of: Annotated[
        int | None, Field(ge=1, description="with tokenizer: the embedding's rows are rounded up to a multiple")
    ] = None
    chat_template: Annotated[
        str | None, Field(description="auto (the commonest of the sources), chatml, or the Jinja text itself")
    ] = None
    calibration_length: Annotated[int, Field(ge=2, description="longest calibration text, in tokens")] = 512
    calibration_batch: Annotated[
        int, Field(ge=1, description="calibration examples of equal length that are read together")
    ] = 8
    reuse_statistics: Annotated[
        bool, Field(description="keep what calibration finds in the cache folder, and take it from there")
    ] = True


@dataclass
class Part:
    """What a method sees of one output tensor: a block of it, rows of it, or all of it.

    Numbers are tensors, or NumPy arrays for methods whose trait is ``arrays``: those need no ``torch`` and start without it.

    Attributes:
        name: the tensor. shape: its whole shape. start: flat index of the block's first element.
        models: the models' numbers, float32, each [n], [rows, columns] or the whole shape according to the scope. They are
            buffers: they may be overwritten.
        base: the base's numbers, None without a base.
        facts: what the method's ``prepare`` returned.
        seed: the run's seed. labels: the models' fingerprints, which random masks are keyed by.
        sources: index of the model and name of its tensor, in the order of ``models``.
        statistics: what calibration found of the block, in that order; empty where there is nothing. found: its other facts.
        under: name of the base's tensor, "" without a base.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    models: list[Tensor]
    base: Tensor | None
    facts: Any
    seed: int = 0
    labels: Sequence[str] = field(default=())
    sources: Sequence[tuple[int, str]] = field(default=())
    statistics: list[Tensor] = field(default_factory=list)
    found: Any = None
    under: str = ""

    def deltas(self) -> list[Tensor]:
        """The task vectors ``model - base`` of the block; overwrites ``models``."""
        assert self.base is not None, "the trait base='required' guarantees a base"
        for model in self.models:
            model -= self.base
        return self.models

    def random(self, model: int) -> Tensor:
        """One uniform number in [0, 1) per element of the block, the same for any block size, order or machine."""
        flat = uniform(
            tensor_key(self.seed, self.labels[model], self.name), self.start, self.start + self.models[model].numel()
        )
        return flat.view(self.models[model].shape)

    def kept(self, model: int, probability: float) -> NDArray[np.bool_]:
        """``random(model) < probability``, several times as fast."""
        key = tensor_key(self.seed, self.labels[model], self.name)
        found = below(key, self.start, self.start + self.models[model].numel(), probability)
        return found.reshape(self.models[model].shape)


@dataclass(frozen=True)
class Whole:
    """What ``prepare`` sees: the sources of one tensor, readable in any pieces. Names are those of :class:`Part`.

    ``overall`` is what the method's ``overall`` found of this tensor among all of them.
    """

    name: str
    shape: tuple[int, ...]
    models: Sequence[Flat]
    base: Flat | None
    seed: int
    labels: Sequence[str]
    sources: Sequence[tuple[int, str]] = ()
    found: Any = None
    under: str = ""
    overall: Any = None

    def deltas(self) -> list[Flat]:
        """The task vectors, subtracted while they are read."""
        assert self.base is not None, "the trait base='required' guarantees a base"
        return [Difference(m, self.base) for m in self.models]

    def random(self, model: int, start: int, stop: int) -> Tensor:
        """The numbers :meth:`Part.random` gives, for a flat range [stop - start]."""
        return uniform(tensor_key(self.seed, self.labels[model], self.name), start, stop)

    def kept(self, model: int, start: int, stop: int, probability: float) -> NDArray[np.bool_]:
        """``random(model, start, stop) < probability``, several times as fast."""
        return below(tensor_key(self.seed, self.labels[model], self.name), start, stop, probability)


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


def shares(weights: Sequence[float], normalize: bool) -> list[float]:
    """The weights, divided by their sum if ``normalize``.

    Raises:
        InterfuseError: ``param.value`` when the weights sum to 0 and shall be normalised.
    """
    total = sum(weights) if normalize else 1.0
    if total == 0:
        raise InterfuseError(
            "param.value",
            "the weights sum to 0 and cannot be normalised",
            fix="Add --no-normalize (in a file normalize: false).",
        )
    return [w / total for w in weights]


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``sum_i w_i t_i``, computed in the order of the tensors (or arrays); overwrites them."""
    total, common = tensors[0], weights[0]
    same = all(weight == common for weight in weights)
    if not same:
        total *= common
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        if not same:
            tensor *= weight
        total += tensor
    if same and common != 1.0:
        total *= common
    return total


def from_base(part: Part, change: Tensor, scale: float = 1.0) -> Tensor:
    """``base + scale * change``; overwrites the change."""
    assert part.base is not None, "the trait base='required' guarantees a base"
    if scale != 1.0:
        change *= scale
    change += part.base
    return change


def _settings(call: Call) -> MergeSettings:
    return MergeSettings(**{f.name: call.params[f.name] for f in dataclasses.fields(MergeSettings)})


#: bytes read and written in a second, as estimates have it
BYTES_PER_SECOND = 5e8


def passes_of(method: Method, params: Mapping[str, Any]) -> int:
    """How many times a merge reads its sources."""
    if "passes" in method.traits:
        times: int = method.traits["passes"](params)
        return times
    return 2 if "prepare" in method.traits else 1


def estimate(call: Call) -> Cost:
    """Every byte of every source is read once per pass, every byte of one is written; and what looking at models at work costs."""
    sizes, small = [], 0
    for model in everyone(call):
        places = [model.path]
        if model.computed is not None:
            from interfuse.data.adapted import AdaptedModel  # needs torch

            if isinstance(model.computed, AdaptedModel):
                places = [model.computed.base, model.computed.adapter]
                small += _stored(model.computed.adapter)
        sizes.append(sum(_stored(place) for place in places))
    passes = passes_of(call.method, call.params)
    written = small if call.params["output"] == "lora" else max(sizes)
    merging = Cost(passes * sum(sizes), written, 0, round((passes * sum(sizes) + written) / BYTES_PER_SECOND, 1))
    return merging + looking(call)


def _stored(place: Path | None) -> int:
    """Bytes of the weights in a folder; 0 where it is not here."""
    return sum(p.stat().st_size for p in place.glob("*.safetensors")) if place is not None and place.is_dir() else 0


def promise(call: Call, path: Path) -> Model:
    """The merged model."""
    first = leading(call)
    if call.params["output"] == "lora":
        from interfuse.merge.adapters import promised

        return promised(call, path)
    config = read_config(path) if (path / "config.json").is_file() else first.config
    tokenizer = None if (path / "tokenizer_config.json").is_file() else first.tokenizer or tokenizer_folder(first)
    return dataclasses.replace(first, path=path, module=None, computed=None, config=config, tokenizer=tokenizer)


def run(call: Call, folder: Path) -> Mapping[str, Any]:
    """Streams the merge into ``folder`` as an ordinary model folder."""
    if call.params["output"] == "lora":
        from interfuse.merge.adapters import run as run_adapters

        return run_adapters(call, folder)
    settings = _settings(call)
    work = call.ctx.scratch or folder
    with contextlib.ExitStack() as stack:
        plan = stack.enter_context(prepared(call))
        _refuse_full(work, layout_of(call, plan))
        found_before = stack.enter_context(_calibrated(call, plan))
        labels, layout = [m.fingerprint() for m in call.inputs["models"]], layout_of(call, plan)
        plan.remarks += _own_remarks(call, plan, labels)
        for remark in plan.remarks:
            call.ctx.log(remark)
        try:
            overall = overall_of(call, plan, labels)
        except InterfuseError as error:
            raise with_its_models(error, call, plan) from error
        total = sum(w[name].nbytes for w in plan.weights for name in w)
        work.mkdir(parents=True, exist_ok=True)
        with (
            Journal(work / "journal.jsonl", key_of(call)) as journal,
            WeightWriter(work, layout, max_shard_bytes=int(settings.max_shard * 1e9), resumable=True) as writer,
            call.ctx.bar(f"merge {call.method.entry.slug}", float(_bytes(layout)), "bytes") as bar,
        ):
            told = stack.enter_context(Told(work / "journal.jsonl.told", journal.done))
            jobs = [make_job(call, plan, o, labels, found_before, overall=overall, tell=told) for o in plan.outputs]
            if journal.done:
                call.ctx.log(f"resuming: {len(journal.done)} of {len(jobs)} tensors were done")
            seen = 0

            def progress(done: int, whole: int, tensor: str) -> None:
                nonlocal seen
                bar.advance(done - seen, tensor)
                seen = done

            try:
                stats = stream_merge(jobs, writer, workers=settings.workers or None, max_memory=int(settings.max_memory * 1e9),
                                     journal=journal, progress=progress)  # fmt: skip
            except InterfuseError as error:
                raise with_its_models(error, call, plan) from error
            told.complete(jobs if "tells" in call.method.traits else ())
    if work != folder:
        for file in sorted(work.glob("*.safetensors*")):
            os.replace(file, folder / file.name)
    for left in sorted(folder.glob("journal.jsonl*")):
        left.unlink()
    found = finish(call, folder, plan, layout, leading(call), everyone(call), own_params(call), told.found)
    return {
        "tensors": stats.tensors,
        "bytes_read": total,
        "bytes_written": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
        **found,
        **({"calibration": dict(found_before.report)} if found_before is not None else {}),
    }


def _own_remarks(call: Call, plan: Prepared, labels: Sequence[str]) -> list[str]:
    """What the method itself has to say in the report (trait ``remarks``): of its parameters, each combination once, and of models that
    are all the same."""
    if "remarks" not in call.method.traits:
        return []
    owns = {
        json.dumps(o.own, sort_keys=True, default=str): o.own
        for o in plan.outputs
        if o.info.kind.floating and not o.kept
    }
    found: list[str] = call.method.traits["remarks"](list(owns.values()), len(labels) > 1 and len(set(labels)) == 1)
    return found


def _refuse_full(work: Path, layout: Mapping[str, Any]) -> None:
    """Raises ``output.space`` before anything is read, computed or made, when the disk cannot hold the result. The writer looks
    again; work that is gone on with has its room already."""
    place = next(p for p in (work, *work.parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if _bytes(layout) > free and not any(work.glob("*.safetensors")):
        raise InterfuseError("output.space", f"the weights need {_bytes(layout):,} bytes, the disk has {free:,}", where=str(work.parent),
                             fix="Free some room or write elsewhere.")  # fmt: skip


@contextlib.contextmanager
def _calibrated(call: Call, plan: Prepared) -> Iterator[Found | None]:
    """What calibration finds, for the methods that want it."""
    if "calibrate" not in call.method.traits:
        yield None
        return
    from interfuse.merge.calibrate import calibrated

    with calibrated(call, plan) as found:
        yield found


def _open_examples(source: Source, ctx: Ctx) -> Table:
    """Examples to look at models with: see :func:`interfuse.merge.calibrate.open_examples`."""
    from interfuse.merge.calibrate import open_examples

    return open_examples(source, ctx)


def _bytes(layout: Mapping[str, Any]) -> int:
    return sum(math.prod(shape) * KINDS[code].itemsize for code, shape in layout.values())


def in_order(call: Call, output: Output, labels: Sequence[str]) -> tuple[list[int], dict[str, Any]]:
    """Sources in the order of their fingerprints, so that the order they are named in never changes a bit; with the
    per-model parameters in that order. Methods whose trait is ``ordered`` keep the order given."""
    own, count = dict(output.own), len(output.sources)
    lists = {name: per_model(own[name], count, name) for name in per_model_params(call) if own.get(name) is not None}
    order = list(range(count))
    if not call.method.traits.get("ordered", False):
        order.sort(key=lambda i: (labels[output.sources[i][0]], output.sources[i][1], [v[i] for v in lists.values()]))
    return order, own | {name: [values[i] for i in order] for name, values in lists.items()}


def layout_of(call: Call, plan: Prepared) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Code of the type, and shape, of every output tensor. Counters and index buffers keep their type: they are copied."""
    wanted = _CODES.get(call.params["out_dtype"])
    return {o.name: (wanted if wanted and o.info.kind.floating else o.info.code, o.info.shape) for o in plan.outputs}


@dataclass(frozen=True)
class _Taken:
    """What goes into one output tensor: the fields of :class:`Whole`, the base first among ``sources`` (``under``: its name)."""

    sources: tuple[Flat, ...]
    labels: Sequence[str]
    order: Sequence[int]
    own: Mapping[str, Any]
    chosen: Sequence[tuple[int, str]]
    under: str

    def whole(self, call: Call, output: Output, flat: Sequence[Flat], found: Any, overall: Any) -> Whole:
        """As ``prepare`` sees it, read from ``flat``."""
        base, bases = (flat[0], 1) if self.under else (None, 0)
        return Whole(output.name, output.info.shape, flat[bases : len(self.sources)], base, call.ctx.seed, self.labels,
                     self.chosen, found, self.under, overall)  # fmt: skip


def _taken(call: Call, plan: Prepared, output: Output, labels: Sequence[str]) -> _Taken:
    order, own = in_order(call, output, labels)
    named = [*([output.base] if output.base else []), *(output.sources[i] for i in order)]
    sources = tuple(plan.weights[index].source(name) for index, name in named)
    mine = [labels[output.sources[i][0]] for i in order]
    return _Taken(sources, mine, order, own, [output.sources[i] for i in order], output.base[1] if output.base else "")


def overall_of(call: Call, plan: Prepared, labels: Sequence[str]) -> Mapping[str, Any]:
    """What the method must know of all tensors at once (its trait ``overall``), by output; computed once for the whole merge.

    The trait is a function of the :class:`Whole` tensors, their parameters and the number of threads, and gives a value for each
    of them, or nothing when the parameters need none.
    """
    if "overall" not in call.method.traits:
        return {}
    outputs = [o for o in plan.outputs if o.info.kind.floating and not o.kept]
    taken = [_taken(call, plan, o, labels) for o in outputs]
    wholes = [t.whole(call, o, t.sources, None, None) for t, o in zip(taken, outputs, strict=True)]
    threads = call.params["workers"] or processors()
    facts = call.method.traits["overall"](wholes, [t.own for t in taken], threads)
    return dict(zip([o.name for o in outputs], facts, strict=True)) if facts else {}


def make_job(
    call: Call,
    plan: Prepared,
    output: Output,
    labels: Sequence[str],
    found: Found | None = None,
    *,
    overall: Mapping[str, Any] | None = None,
    tell: Tell | None = None,
) -> Job:
    """How one output tensor is computed.

    Args:
        labels: the models' fingerprints. found: what calibration has found. overall: see :func:`overall_of`.
        tell: is given the output's name and what the method tells of it (its trait ``tells``) once it is known.
    """
    if (
        output.kept or not output.info.kind.floating
    ):  # counters are not knowledge: the base's or the first model's are kept
        index, name = output.base or output.sources[0]
        return Job(output.name, (plan.weights[index].source(name),))
    taken = _taken(call, plan, output, labels)
    beside = [found.beside[i](name) for i, name in taken.chosen if i in found.beside] if found is not None else []
    extra = tuple(flat for flat in beside if flat is not None)
    extra = extra if len(extra) == len(beside) else ()
    facts = found.facts if found is not None else None
    return _job(call, output, taken, extra, facts, (overall or {}).get(output.name), tell)


def _job(
    call: Call,
    output: Output,
    taken: _Taken,
    extra: tuple[Flat, ...],
    found: Any,
    overall: Any,
    tell: Tell | None,
) -> Job:
    traits, target, seed, own = call.method.traits, call.method.target, call.ctx.seed, taken.own
    name, shape, labels, sources = output.name, output.info.shape, taken.labels, taken.sources
    bases, end = int(bool(taken.under)), len(sources)

    def function(values: list[Tensor], block: Block) -> Tensor:
        base = values[0] if bases else None
        if traits.get("scope") == "tensor":  # whole-tensor arithmetic may hide or choke on what elements would pass on
            for i, value in enumerate(values[:end]):
                if not np.isfinite(value.numpy()).all():
                    which = "the base" if bases and i == 0 else f"model {labels[i - bases][:12]}"
                    raise InterfuseError("input.nan", f"{which} holds NaN or infinity", where=f"tensor {name}")
        part = Part(
            name,
            shape,
            block.start,
            values[bases:end],
            base,
            block.facts,
            seed,
            labels,
            taken.chosen,
            values[end:],
            found,
            taken.under,
        )
        merged: Tensor = target(part, **own)
        return merged

    def ready(flat: Sequence[Flat]) -> Any:
        try:
            facts = traits["prepare"](taken.whole(call, output, flat, found, overall), **own)
        except InterfuseError as error:
            if error.where:
                raise
            raise InterfuseError(error.code, error.what, where=f"tensor {name}", fix=error.fix) from error
        if tell is not None and "tells" in traits:
            tell(name, as_given(traits["tells"](facts, **own), taken.order))
        return facts

    scope = traits.get("scope", "element")
    if scope == "row" and len(shape) < 2:
        scope = "tensor"
    if scope == "matrix" and (len(shape) != 2 or 0 in shape):
        scope = "element"
    return Job(
        name,
        (*sources, *extra),
        function,
        scope,
        ready if "prepare" in traits else None,
        traits.get("temporaries", 2),
        traits.get("arrays", False),
        _preparing(call.method, shape, len(sources) - bases, own) if scope == "matrix" else 0,
    )


def _preparing(method: Method, shape: tuple[int, ...], count: int, own: Mapping[str, Any]) -> int:
    """Bytes that the preparation of a matrix takes, by the method's trait ``squares``; 0 for a method that prepares nothing."""
    if "prepare" not in method.traits:
        return 0
    if "squares" not in method.traits:
        raise InterfuseError("method.card", f"{method.id} prepares matrices and does not say how much memory that takes",
                             fix="@method(scope='matrix', prepare=..., squares=lambda count, **parameters: matrices [k, k] held at once).")  # fmt: skip
    from interfuse.kit.decompose import matrix_memory  # needs torch

    return matrix_memory(shape, method.traits["squares"](count, **own))


ROOM = Room(
    name="merge",
    kind="model",
    inputs=(
        Input("models", open_model, many=True, positional=True, doc="the checkpoints to merge"),
        Input("base", open_model, required=False, doc="the model they were all made from"),
        Input(
            "tokenizer",
            open_vocabulary,
            required=False,
            doc="base, union, or a folder: the tokens the result reads, rows matched by token",
        ),
        Input(
            "calibration",
            _open_examples,
            many=True,
            required=False,
            doc="examples for methods that look at the models at work: one table for all models, or one for each",
        ),
    ),
    settings=MergeSettings,
    unkeyed=("max_memory", "workers", "reuse_statistics"),
    widen=widen,
    run=run,
    promise=promise,
    check=check,
    estimate=estimate,
)
