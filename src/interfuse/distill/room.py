"""The distill room: its contract, and one training loop for every method.

``accelerate`` carries device placement, mixed precision, gradient accumulation and data parallelism; the loop below adds what
distillation needs: several teachers, stored predictions, feature taps, per-term logging, and resume to identical bytes.
Losses are summed over valid samples (or tokens) and divided by their number in the *whole* accumulation window, so the
gradient does not depend on how a batch is cut.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Call, Cost, Input, Room
from interfuse.data.models import Model, build, device_of, open_model, read_config, save, size_of, tokenizer_folder
from interfuse.data.predictors import speaks_probabilities
from interfuse.data.seeding import seeded
from interfuse.data.tables import Table, open_table, overlap, with_places
from interfuse.distill.adding_up import Sums, add_up, named
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views
from interfuse.distill.teacher_cache import stored
from interfuse.kit.encode import IGNORE, KEEP_BYTES, Encoder, forward, targets
from interfuse.kit.heap import keep_freed
from interfuse.kit.taps import Taps, layer_names
from interfuse.kit.threads import threads_for
from interfuse.kit.train import TrainSettings, load_state, make_optimizer, save_state, set_lr

#: a training that can be resumed writes a checkpoint at the first end of an epoch after this many seconds
CHECKPOINT_SECONDS = 60.0
#: multiplications and additions per second assumed for estimates of time
ASSUMED_FLOPS = 2e10


@dataclasses.dataclass(frozen=True)
class DistillSettings(TrainSettings):
    """Settings of every method of the room."""

    teacher_cache: Annotated[
        Literal["auto", "disk", "off"],
        Field(
            description="keep the teachers' predictions in memory when the method allows it and they fit; keep them on disk as well, for other trainings; or always run the teachers"
        ),
    ] = "auto"


def _hooks(call: Call) -> Hooks:
    names = {f.name for f in dataclasses.fields(call.method.target)}  # type: ignore[arg-type]
    hooks: Hooks = call.method.target(**{k: v for k, v in call.params.items() if k in names})
    return hooks


def _settings(call: Call) -> DistillSettings:
    names = {f.name for f in dataclasses.fields(DistillSettings)}
    return DistillSettings(**{k: v for k, v in call.params.items() if k in names})


def check(call: Call) -> None:
    """Refuses what cannot work, before any weight is read."""
    hooks = _hooks(call)
    needs = hooks.needs()
    student: Model = call.inputs["student"]
    teachers: list[Model] = call.inputs["teacher"]
    data: Table = call.inputs["data"]
    least, most = needs.teachers
    if not least <= len(teachers) <= most:
        wanted = str(least) if least == most else f"{least} to {most}" if most < 100 else f"at least {least}"
        raise InterfuseError(
            "param.value",
            f"{call.method.id} takes {wanted} teacher{'s' * (most != 1)}, {len(teachers)} {'is' if len(teachers) == 1 else 'are'} given",
            where="teacher",
            fix="Add --teacher MODEL (or teacher: NAME)."
            if len(teachers) < least
            else "Leave the others out; distill/ensemble takes several.",
        )
    if needs.labels and "label" not in data.columns and student.task != "causal-lm":
        raise InterfuseError("input.missing", f"{call.method.id} needs labels, the table has none", where=data.name,
                             fix="Declare the column: columns: {label: NAME}.")  # fmt: skip
    if needs.tokens and student.task != "causal-lm":
        raise InterfuseError("input.type", f"{call.method.id} is for causal language models, the student is for {student.task}",
                             where=student.name)  # fmt: skip
    if needs.labels and "label" in data.columns and student.task != "causal-lm" and len(data) > 1:
        labels = data.labels()
        if (labels == labels[0]).all():
            raise InterfuseError("input.shape", f"every example has the class {data.classes[labels[0]] if data.classes else labels[0]!r}, so there is nothing to tell apart",
                                 where=data.name)  # fmt: skip
    settings = _settings(call)
    if settings.batch_size < needs.batch:
        raise InterfuseError("param.value", f"{call.method.id} compares samples of a batch, which must hold at least {needs.batch}",
                             where="batch_size")  # fmt: skip
    if len(data) < needs.batch:
        raise InterfuseError(
            "input.shape",
            f"{call.method.id} needs at least {needs.batch} examples, there are {len(data)}",
            where=data.name,
        )
    _check_validation(call, needs.validation)
    counted = student.task != "causal-lm" and student.labels is not None and bool(data.classes)
    if counted and len(data.classes) != student.labels:
        raise InterfuseError("input.shape", f"the student has {student.labels} classes, the table {len(data.classes)}",
                             where=f"{student.name}, {data.name}", fix=f"Set num_labels: {len(data.classes)}.")  # fmt: skip
    if student.task == "predictions":
        raise InterfuseError("input.type", "stored predictions cannot be trained", where=student.name)
    for teacher in teachers:
        if teacher.task == "predictions" and (needs.live or needs.teacher_features):
            why = (
                "looks into the teacher's layers" if needs.teacher_features else "runs the teacher itself in every step"
            )
            raise InterfuseError("needs.capability", f"{call.method.id} {why}; stored predictions cannot", where=teacher.name,
                                 fix="Give the teacher itself, or choose a method that needs its predictions only.")  # fmt: skip
        if needs.raw_logits and speaks_probabilities(teacher.module):
            raise InterfuseError("needs.capability", f"{call.method.id} compares raw logits, the teacher gives probabilities", where=teacher.name,
                                 fix="Give logits, set center: true if the method has it, or use a method on probabilities such as kd.")  # fmt: skip
        if (teacher.task == "causal-lm") != (student.task == "causal-lm"):
            raise InterfuseError("input.type", f"the teacher is for {teacher.task}, the student for {student.task}",
                                 where=f"{teacher.name}, {student.name}")  # fmt: skip
        if not needs.tokens and None not in (teacher.labels, student.labels) and teacher.labels != student.labels:
            code = "input.vocabulary" if student.task == "causal-lm" else "input.shape"
            raise InterfuseError(code, f"the teacher has {teacher.labels} classes, the student {student.labels}",
                                 where=f"{teacher.name}, {student.name}")  # fmt: skip
        Encoder(teacher, data)
    Encoder(student, data)
    hooks.check(call)


def _check_validation(call: Call, wanted: bool) -> None:
    held: Table | None = call.inputs.get("validation")
    data: Table = call.inputs["data"]
    if held is None:
        return
    if not wanted:
        raise InterfuseError("param.value", f"{call.method.id} has no use for validation examples", where="validation")
    if held.kind != data.kind or held.classes != data.classes:
        raise InterfuseError("input.shape", "validation and training examples differ in kind or classes",
                             where=f"{held.name}, {data.name}")  # fmt: skip
    both = overlap(held, data)
    if both:
        raise InterfuseError("input.leak", f"{len(both)} validation examples are trained on, the first is {both[0]}",
                             where=f"{held.name}, {data.name}")  # fmt: skip


def estimate(call: Call) -> Cost:
    """Rough cost: six operations per parameter and example for training, two for a teacher's prediction."""
    settings, data = _settings(call), call.inputs["data"]
    student, teachers = size_of(call.inputs["student"]), [size_of(t) for t in call.inputs["teacher"]]
    units = _units(call.inputs["student"], data, settings)
    work = 6.0 * student * units * settings.epochs + sum(2.0 * t * units for t in teachers)
    return Cost(
        4 * sum(teachers),
        4 * student,
        _hooks(call).calls(call),
        round(work / ASSUMED_FLOPS + 0.004 * settings.epochs * len(data) / settings.batch_size, 1),
    )


def _units(model: Model, data: Table, settings: DistillSettings) -> float:
    """Positions a model computes over one pass: patches, tokens or rows."""
    if data.kind in ("text", "prompt", "messages"):
        return len(data) * settings.max_length / 4
    size, patch = model.config.get("image_size"), model.config.get("patch_size", 4)
    if isinstance(size, int) and isinstance(patch, int):
        return len(data) * (size / patch) ** 2
    return float(len(data) * (int(np.prod(data.shape)) if data.shape else 1))


def promise(call: Call, path: Path) -> Model:
    """The trained student."""
    student: Model = call.inputs["student"]
    made = (path / "config.json").is_file()  # a method may have chosen another configuration than the given one
    return dataclasses.replace(student, path=path, module=None if student.task != "module" else _hooks(call).shell(call, path),
                               config=read_config(path) if made else student.config,
                               tokenizer=student.tokenizer or tokenizer_folder(student))  # fmt: skip


def run(call: Call, folder: Path) -> Mapping[str, Any]:
    """Trains the student with the method's hooks and writes it as a model folder, with ``training.csv`` beside it."""
    hooks = _hooks(call)
    if not len(call.inputs["data"]):  # a table that a step has made since the plan
        raise InterfuseError("input.empty", "the table has no rows", where=call.inputs["data"].name)
    student, facts = hooks.choose(call)
    call = dataclasses.replace(call, inputs={**call.inputs, "student": student})
    with threads_for(max(size_of(m) for m in [student, *call.inputs["teacher"]])):
        state = start(call, hooks)
        state.facts.update(facts)
        history = hooks.fit(state)
        history = train(state, hooks) if history is None else history
        module = hooks.export(state)
    save(module.cpu(), folder, tokenizer_from=tokenizer_folder(student), processor=student.processor)
    hooks.write(state, folder)
    if history:
        with (folder / "training.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(history)
    last = {k: v for k, v in history[-1].items() if k not in ("epoch",)} if history else {}
    return {"examples": len(state.data), "steps": state.steps, "parameters": sum(p.numel() for p in module.parameters()),
            "last_epoch": last, **state.facts}  # fmt: skip


def start(call: Call, hooks: Hooks) -> Run:
    """Loads everything, checks one dry batch, and prepares models, taps, extra modules and the optimiser."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    ctx, settings, needs = call.ctx, _settings(call), hooks.needs()
    device = device_of(ctx)
    if device.type == "cpu":
        keep_freed()
    precision = {"bfloat16": "bf16", "float16": "fp16"}.get(ctx.dtype, "no")
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    student_model: Model = call.inputs["student"]
    teacher_models: list[Model] = call.inputs["teacher"]
    data: Table = with_places(call.inputs["data"]) if needs.answers else call.inputs["data"]
    student = build(student_model, ctx, train=True).to(device)
    teachers = [build(t, ctx).to(device).eval().requires_grad_(False) for t in teacher_models]
    labels = torch.from_numpy(data.labels()) if "label" in data.columns else None
    encoder = Encoder(student_model, data, settings.max_length)
    state = Run(ctx, settings, student, student_model, teachers, teacher_models, data,
                encoder, [Encoder(t, data, settings.max_length, encoder) for t in teacher_models],
                labels, device, accelerator=accelerator, validation=call.inputs.get("validation"))  # fmt: skip
    if needs.student_features:
        state.student_taps = Taps(student, needs.student_features)
    if needs.teacher_features:
        layer_names(teachers[0], needs.teacher_features)
        state.teacher_taps = [Taps(t, needs.teacher_features) for t in teachers]
    _least_batch(state, needs)
    per_epoch = -(-len(data) // (settings.batch_size * settings.accumulate))
    state.steps = per_epoch * settings.epochs
    _dry_batch(state, same_shapes=not needs.tokens)
    _store_predictions(state, needs.live or bool(needs.teacher_features))
    if needs.tokens and not needs.live:
        state.stored = []  # the method has prepared what it needs of them: teachers do not run on batches
    with seeded(ctx.seed_for("setup")):
        hooks.setup(state)
    # one group per learning rate: each costs time of its own in every step
    of: dict[float, list[torch.nn.Parameter]] = {1.0: [p for p in student.parameters() if p.requires_grad]}
    for name, scale in state.lr_scales.items():
        of.setdefault(scale, []).extend(state.modules[name].parameters())
    groups: list[dict[str, Any]] = [{"params": ps, "lr_scale": scale} for scale, ps in of.items() if ps]
    if not groups:
        raise InterfuseError("needs.capability", "the student has no parameter that may be trained", where=student_model.name,
                             fix="Give a network with requires_grad_(True).")  # fmt: skip
    optimizer = make_optimizer(groups, settings)
    state.student, state.optimizers["main"] = accelerator.prepare(student), optimizer
    if accelerator.num_processes > 1 or accelerator.scaler is not None:
        state.optimizers["main"] = accelerator.prepare(optimizer)  # elsewhere the wrapper only costs time in every step
    return state


def _least_batch(state: Run, needs: Needs) -> int:
    """The fewest examples a batch may hold: two where the student normalises over the batch."""
    norm = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in state.student.modules())
    if norm and min(len(state.data), state.settings.batch_size) < 2:
        raise InterfuseError("input.shape", "the student normalises over a batch, and a batch of one example has no spread",
                             where=state.student_model.name, fix="Give at least two examples, and a batch_size of at least 2.")  # fmt: skip
    return max(needs.batch, 2 if norm else 1)


def _dry_batch(state: Run, *, same_shapes: bool = True) -> None:
    """One batch through every model without gradient: shapes and numbers are checked before the first epoch. What only the method
    itself does is tried by :func:`_first_step`."""
    batch = make_batch(state, np.arange(min(2, len(state.data))), live=True)
    shape: torch.Size | None = None
    rows = [
        (state.student, state.student_model, batch.student),
        *zip(state.teachers, state.teacher_models, batch.teachers, strict=True),
    ]
    with torch.no_grad():
        for module, model, inputs in rows:
            training = module.training
            try:
                logits = forward(module.eval(), model, inputs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise InterfuseError("input.shape", f"the model refuses the data: {str(error).splitlines()[0]}",
                                     where=f"{model.name}, {state.data.name}") from error  # fmt: skip
            module.train(training)
            if not torch.isfinite(logits).all():
                raise InterfuseError(
                    "input.nan",
                    "the model gives a logit that is not a number",
                    where=f"{model.name}, {state.data.name}",
                )
            shape = shape or logits.shape
            if same_shapes and logits.shape != shape:
                raise InterfuseError(
                    "input.shape",
                    f"logits are {tuple(logits.shape[1:])}, the student's {tuple(shape[1:])}",
                    where=model.name,
                )
    assert shape is not None, "there is always a student"
    state.outputs = int(shape[-1])
    if state.labels is not None and batch.labels is not None and int(state.labels.max()) >= state.classes:
        raise InterfuseError(
            "input.shape",
            f"a label is {int(state.labels.max())}, the student has {state.classes} classes",
            where=state.data.name,
        )
    state.student_shapes = state.student_taps.shapes() if state.student_taps else {}
    state.teacher_shapes = [taps.shapes() for taps in state.teacher_taps]


def _store_predictions(state: Run, live: bool) -> None:
    if live or not state.teachers or state.settings.teacher_cache == "off" or state.student_model.task == "causal-lm":
        return
    disk = state.settings.teacher_cache == "disk"
    if disk or len(state.teachers) * len(state.data) * max(state.classes, 1) * 4 <= KEEP_BYTES:
        teachers = zip(state.teacher_models, state.teachers, state.teacher_encoders, strict=True)
        state.stored = [stored(m, t, state.data, e, state.ctx, disk=disk) for m, t, e in teachers]


def make_batch(state: Run, positions: NDArray[np.int64], *, live: bool | None = None) -> Batch:
    """A batch on the device; teachers' inputs only when they will run."""
    live = state.stored is None if live is None else live

    def move(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v.to(state.device, non_blocking=True) for k, v in inputs.items()}

    student = state.encoder.encode(positions)
    labels = state.labels[torch.from_numpy(positions)] if state.labels is not None else None
    labels = targets(state.student_model, labels, student)
    moved = move(student)
    teachers = [
        dict(moved) if e.reads is not None and e.reads == state.encoder.reads else move(e.encode(positions))
        for e in (state.teacher_encoders if live else [])
    ]
    return Batch(positions, moved, teachers, labels.to(state.device) if labels is not None else None)


def default_views(state: Run, batch: Batch) -> Views:
    """The student's logits with gradient, the teachers' without, and the features that were asked for."""
    student = forward(state.student, state.student_model, batch.student)
    if state.stored is not None:
        index = torch.from_numpy(batch.positions)
        teachers = [t[index].to(state.device) for t in state.stored]
    else:
        with torch.no_grad():
            teachers = [
                forward(m, model, x)
                for m, model, x in zip(state.teachers, state.teacher_models, batch.teachers, strict=True)
            ]
    features = dict(state.student_taps.features) if state.student_taps else {}
    return Views(batch, student, teachers, features, [dict(t.features) for t in state.teacher_taps])


def train(state: Run, hooks: Hooks) -> list[dict[str, Any]]:
    """The loop. Returns one row per epoch: mean of every term, raw and weighted, and of the whole loss."""
    settings, accelerator, ctx = state.settings, state.accelerator, state.ctx
    modules = {"student": accelerator.unwrap_model(state.student), **state.modules}
    file = ctx.scratch / "training.safetensors" if ctx.scratch is not None else None
    restored = load_state(file, modules, state.optimizers) if file is not None else None
    history: list[dict[str, Any]] = []
    if restored is not None:
        facts, state.tensors = restored
        state.epoch, state.step, history = facts["epoch"], facts["step"], facts["history"]
        ctx.log(f"resuming after epoch {state.epoch} of {settings.epochs}")
    hooks.scan(state)
    saved, begun = time.monotonic(), state.epoch
    window, least = settings.batch_size * settings.accumulate, _least_batch(state, hooks.needs())
    world, rank = accelerator.num_processes, accelerator.process_index
    with ctx.bar(f"train {state.student_model.name}", settings.epochs * len(state.data), "examples") as bar:
        bar.advance(state.epoch * len(state.data))
        for epoch in range(state.epoch, settings.epochs):
            state.epoch = epoch
            order = hooks.select(state, ctx.rng(f"order/{epoch}").permutation(len(state.data)))
            sums: Sums = {}
            seen = 0
            with seeded(ctx.seed_for(f"noise/{epoch}")):
                for begin in range(0, len(order), window):
                    chunk = order[begin : begin + window]
                    micro = [
                        chunk[i : i + settings.batch_size][rank::world]
                        for i in range(0, len(chunk), settings.batch_size)
                    ]
                    micro = [m for m in micro if len(m) >= least]
                    step = _first_step if seen == 0 and epoch == begun else _step
                    seen += step(state, hooks, micro, sums) if micro else 0
                    bar.advance(len(chunk))
            state.epoch = epoch + 1
            hooks.on_epoch_end(state)
            history.append(_row(epoch, sums, seen, state))
            if (
                file is not None
                and state.epoch < settings.epochs
                and time.monotonic() - saved >= CHECKPOINT_SECONDS
                and accelerator.is_main_process
            ):
                save_state(
                    file,
                    modules,
                    state.optimizers,
                    state.tensors,
                    {"epoch": state.epoch, "step": state.step, "history": history},
                )
                saved = time.monotonic()
    return history


def _first_step(state: Run, hooks: Hooks, micro: list[NDArray[np.int64]], sums: Sums) -> int:
    """The first step: what a method's own batch, views, terms or gradients cannot do with these models and examples is refused by
    a code here, before any weight has changed; nothing is left of the attempt, since nothing was written.

    Raises:
        InterfuseError: ``needs.capability`` where the model has no such function, ``input.shape`` else.
    """
    before = state.step
    try:
        return _step(state, hooks, micro, sums)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        if state.step > before:
            raise
        code = "needs.capability" if isinstance(error, NotImplementedError | AttributeError) else "input.shape"
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise InterfuseError(code, f"{type(hooks).__name__} cannot learn from these models and examples: {what}",
                             where=f"{state.student_model.name}, {state.data.name}") from error  # fmt: skip


def _step(state: Run, hooks: Hooks, micro: list[NDArray[np.int64]], sums: Sums) -> int:
    """One optimiser step over a window of micro-batches; returns the number of samples or tokens that counted."""
    optimizer, accelerator, settings = state.optimizers["main"], state.accelerator, state.settings
    set_lr(optimizer, settings, state.step, state.steps)
    optimizer.zero_grad(set_to_none=True)
    if not state.student.training:
        state.student.train()
    batches = [make_batch(state, positions) for positions in micro]
    early = hooks.needs().tokens  # what is learnt may change with the texts, and is counted below
    if early:
        batches = [hooks.batch(state, b) for b in batches]
    total: float = sum(_count(b) for b in batches)
    if accelerator.num_processes > 1:
        total = (
            int(accelerator.reduce(torch.tensor(float(total), device=state.device), "sum")) / accelerator.num_processes
        )
    for batch in batches:
        batch = batch if early else hooks.batch(state, batch)
        with accelerator.autocast():
            views = hooks.views(state, batch)
            terms, weights = hooks.terms(state, views), hooks.weights(state, views)
        loss, parts = add_up(
            {name: _masked(value, batch) for name, value in terms.items()}, weights, max(total, 1), sums
        )
        hooks.backward(state, loss, parts)
    hooks.before_step(state)
    if settings.clip:
        accelerator.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], settings.clip)
    optimizer.step()
    state.step += 1
    hooks.after_step(state)
    return int(total)


def _count(batch: Batch) -> int:
    if batch.labels is not None and batch.labels.ndim == 2:
        return int((batch.labels != IGNORE).sum())
    return len(batch.positions)


def _masked(value: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Per-token terms count only where there is a next token to predict."""
    if batch.labels is not None and batch.labels.ndim == 2 and value.shape == batch.labels.shape:
        return value.masked_fill(batch.labels == IGNORE, 0.0)
    return value


def _row(epoch: int, sums: Sums, seen: int, state: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"epoch": epoch + 1}
    means = {name: value / max(seen, 1) for name, value in named(sums).items()}
    row["loss"] = sum(v for k, v in means.items() if k.startswith("weighted/"))
    for name, value in means.items():
        if not np.isfinite(value):
            raise InterfuseError("run.failed", f"the term {name.split('/')[1]!r} became {value} in epoch {epoch + 1}", where=state.student_model.name,
                                 fix="Lower the learning rate, or look at the term's inputs.")  # fmt: skip
        row[name] = value
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}


ROOM = Room(
    name="distill",
    kind="model",
    inputs=(
        Input("teacher", open_model, many=True, required=False, doc="the models to learn from"),
        Input(
            "student", open_model, doc="the model to train: a folder to go on from, or a configuration to start from"
        ),
        Input("data", open_table, doc="the examples to learn on"),
        Input(
            "validation",
            open_table,
            required=False,
            doc="examples held apart, for methods that tune themselves on them",
        ),
    ),
    settings=DistillSettings,
    run=run,
    promise=promise,
    check=check,
    estimate=estimate,
)
