"""Further verbs of the room on the command line: train a teacher, rank students, compare methods over seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.kit.verbs import shared_options, verb_context

PATH = click.Path(path_type=Path)


class _Same(click.Command):
    """Another name of a method's command, with the same flags."""

    def __init__(self, method: str, **rest: Any) -> None:
        super().__init__(**rest)
        self.method = method

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        group = parent.command if parent is not None else None
        target = (
            group.get_command(parent, self.method) if isinstance(group, click.Group) and parent is not None else None
        )
        if target is None:
            raise InterfuseError("method.unknown", f"{self.name} is a verb of interfuse distill")
        return target.make_context(info_name, args, parent, **extra)


def _value(text: str, where: str) -> Any:
    """A source as text: a path or name, or a table in JSON."""
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InterfuseError("param.value", f"this is not valid JSON: {error}", where=where) from error


def _table(text: str, where: str) -> dict[str, Any]:
    """A table in JSON, or a YAML file that holds one."""
    value = _value(text, where)
    if isinstance(value, str):
        from interfuse.core.safe import load_yaml, read_text

        if not Path(value).is_file():
            raise InterfuseError(
                "input.missing", "there is no such file, and it is no table in JSON", where=where, fix=value
            )
        value, _ = load_yaml(read_text(Path(value)), where=value)
    if not isinstance(value, dict):
        raise InterfuseError("param.value", "this is no table from names to values", where=where)
    return value


def _space(text: str) -> dict[str, Any]:
    """A search space: a table in JSON, or a YAML file that holds it (as it is, or under ``grid``)."""
    value = _table(text, "--space")
    grid = value.get("grid", value)
    if not isinstance(grid, dict):
        raise InterfuseError("param.value", "a space is a table from a field to its values", where="--space")
    return grid


# -- search ----------------------------------------------------------------------------------------------------------


def _search(
    teacher: str, student: str, data: str, space: str, seed: int, top: int, out: Path | None, **given: Any
) -> None:
    """Rank the students of a space for a teacher, without training any (DisWOT); the winner's configuration as YAML."""
    import yaml

    from interfuse.core.method import load
    from interfuse.core.rooms import Source, load_room, prepare
    from interfuse.distill.diswot import DisWOT

    chosen = {k: v for k, v in given.items() if v is not None}
    inputs = {"teacher": [Source(_value(teacher, "--teacher"))], "student": Source(_value(student, "--student")),
              "data": Source(_value(data, "--data"))}  # fmt: skip
    call = prepare(load_room("distill"), load("distill/diswot"), {**inputs, "space": _space(space), **chosen}, verb_context(seed))  # fmt: skip
    hooks = DisWOT(**{k: v for k, v in call.params.items() if k in DisWOT.__dataclass_fields__})
    rows = hooks.rank(call)
    student_yaml = yaml.safe_dump({"config": {**dict(call.inputs["student"].config), **rows[0]["config"]}}, sort_keys=True)  # fmt: skip
    if out is not None:
        if out.exists():
            raise InterfuseError("output.exists", "the file is there already", where=str(out))
        out.write_text(student_yaml, encoding="utf-8")
    if click.get_current_context().meta.get("json"):
        click.echo(json.dumps({"ranking": rows, "student": yaml.safe_load(student_yaml)}, indent=2))
        return
    click.echo("score     sd        semantic  relation  parameters  configuration")
    for row in rows[:top]:
        numbers = "  ".join(f"{row[k]:8.4f}" for k in ("score", "sd", "semantic", "relation"))
        click.echo(f"{numbers}  {row['parameters']:>10}  {row['config']}")
    if len(rows) > 1 and rows[0]["score"] - rows[1]["score"] <= max(rows[0]["sd"], rows[1]["sd"]):
        click.echo("The first two differ by less than the spread over initialisations: a tie.")
    click.echo(student_yaml if out is None else f"the best student: {out}")


# -- compare ---------------------------------------------------------------------------------------------------------


def _compare(
    methods: Sequence[str], teacher: Sequence[str], student: str, data: str, test: str, seeds: int, baseline: str,
    common: Sequence[str], out: Path | None,
) -> None:  # fmt: skip
    """Train with several methods over several seeds and set them side by side on held-out examples.

    METHODS are slugs with parameters: none, kd, dist:tau=2,beta=1, or, for lists and compositions, a table in JSON or a YAML file
    of parameters after the colon: 'compose:{"parts": [{"use": "kd"}, {"use": "sp"}]}', compose:both.yaml. The first is the
    baseline unless --baseline names another. Differences are paired over the same seeds and test items; intervals allow for other
    seeds and other items; 'better' is said only when the interval excludes 0 and p, adjusted for the number of methods
    compared (Holm), is at most 0.05.
    """
    rows = compare([_recipe(m) for m in methods], [_value(t, "--teacher") for t in teacher], _value(student, "--student"),
                   _value(data, "--data"), _value(test, "--test"), seeds=seeds, baseline=baseline or methods[0],
                   common=dict(_pair(c) for c in common), ctx=verb_context())  # fmt: skip
    if out is not None:
        out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if click.get_current_context().meta.get("json"):
        click.echo(json.dumps(rows, indent=2))
        return
    wide = max(28, *(len(row["method"]) for row in rows))
    click.echo(
        f"{'method':<{wide}} accuracy  sd      difference [95 % interval]     p       lost    step ms  ratio  memory MB  said"
    )
    for row in rows:
        d, ratio = row["difference"], row["step_ratio"]
        apart = f"{d['estimate']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]" if d else ""
        p = f"{d['p']:.4f}" if d else ""
        click.echo(f"{row['method']:<{wide}} {row['accuracy']:.4f}    {row['sd']:.4f}  {apart:<30} {p:<6}  {row['negative_flips']:.4f}  {row['step_ms']:7.2f}  "
                   f"{'' if ratio is None else format(ratio, '.2f'):>5}  {row['memory_mb']:9.2f}  {row['said']}")  # fmt: skip
    click.echo("lost: items the baseline has right and the method wrong. ratio: a step over a plain student step and the teacher's prediction"
               " (over the student step alone where predictions are stored).")  # fmt: skip


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InterfuseError("param.value", f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _recipe(text: str) -> tuple[str, str, dict[str, Any]]:
    """``kd:tau=2,alpha=0.5``, ``compose:{JSON}`` or ``compose:FILE.yaml`` as (its text, the slug, parameters)."""
    slug, _, rest = text.partition(":")
    if rest.startswith("{") or rest.endswith((".yaml", ".yml")):
        return text, slug, _table(rest, slug)
    return text, slug, dict(_pair(p) for p in rest.split(",") if p)


def compare(
    methods: Sequence[tuple[str, str, Mapping[str, Any]]], teachers: Sequence[Any], student: Any, data: Any, test: Any, *,
    seeds: int = 5, baseline: str = "", common: Mapping[str, Any] | None = None, ctx: Ctx | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Methods by seeds on the same test items: one row per method.

    Args:
        methods: (name, slug, parameters). baseline: a name. common: parameters of all methods.

    Returns:
        Rows with ``method``, ``accuracy``, ``sd`` over seeds, ``difference`` to the baseline (``estimate``, ``low``, ``high`` for other seeds and
        items, see :func:`interfuse.kit.resample.compare_runs`, and ``p`` after Holm over the methods; None for the baseline), ``negative_flips``
        (share of test items the baseline had right and the method has wrong, mean over seeds), ``positive_flips``, ``step_ms``,
        ``step_ratio`` (over a plain student step and the teachers' prediction; over the student step alone where predictions are
        stored; None without labels), ``memory_mb`` (see :func:`step_memory`), ``said``.

    Raises:
        InterfuseError: ``param.value`` for fewer than two seeds or a baseline that is not among the methods; what training raises.
    """
    import tempfile

    import numpy as np

    from interfuse.core.method import load
    from interfuse.core.rooms import Source, apply, load_room, prepare
    from interfuse.data.tables import open_table, overlap
    from interfuse.kit.calibration import flips
    from interfuse.kit.encode import Encoder, predict
    from interfuse.kit.resample import compare_runs
    from interfuse.kit.stats import holm, verdict
    from interfuse.kit.train import TrainSettings

    ctx = ctx or Ctx()
    names = [name for name, _, _ in methods]
    if baseline not in names or len(dict.fromkeys(names)) != len(names):
        raise InterfuseError("param.value", f"the baseline {baseline!r} is not one of the methods, or a method is named twice", fix=", ".join(names))  # fmt: skip
    if seeds < 2:
        raise InterfuseError("param.value", "a comparison needs at least two seeds", where="seeds")
    held = open_table(test if isinstance(test, Source) else Source(test), ctx)
    labels = held.labels()
    trained_on = overlap(held, open_table(data if isinstance(data, Source) else Source(data), ctx))
    if trained_on:
        ctx.log(f"{len(trained_on)} of the {len(held)} test examples are trained on: accuracies are too good")
    calls = {}
    for name, slug, params in methods:
        method = load(slug, room="distill")
        takes = teachers and _teachers(method, {**(common or {}), **params})
        given = {
            "student": student,
            "data": data,
            **(common or {}),
            **params,
            **({"teacher": list(teachers)} if takes else {}),
        }
        prepare(load_room("distill"), method, given, ctx)  # refuses before any training
        calls[name] = (method, given)
    said: dict[str, Any] = {}
    cost: dict[str, tuple[float, float | None, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for number, (name, (method, given)) in enumerate(calls.items()):
            runs = []
            for seed in range(seeds):
                ctx.log(f"{name}, seed {seed}")
                model = apply(method.id, out=Path(place) / f"{number}-{seed}", ctx=ctx.with_(seed=seed), **given)
                encoder = Encoder(model, held, given.get("max_length", TrainSettings.max_length))
                runs.append(predict(model, held, ctx, encoder=encoder).argmax(axis=1))
            said[name] = np.stack(runs)
            cost[name] = _step_cost(prepare(load_room("distill"), method, given, ctx), given)
    rights = {name: (answers == labels).astype(np.float64) for name, answers in said.items()}
    found = {name: compare_runs(rights[baseline], right) for name, right in rights.items() if name != baseline}
    adjusted = dict(zip(found, holm([f.p for f in found.values()]).tolist(), strict=True)) if found else {}
    rows = []
    for name, answers in said.items():
        right = rights[name]
        each = [flips(b, a, labels) for b, a in zip(said[baseline], answers, strict=True)]
        delta = found[name].delta if name in found else None
        rows.append({
            "method": name, "accuracy": float(right.mean()), "sd": float(right.mean(axis=1).std(ddof=1)),
            "difference": {"estimate": delta.estimate, "low": delta.low, "high": delta.high, "p": adjusted[name]} if delta else None,
            "negative_flips": float(np.mean([f.negative_rate for f in each])),
            "positive_flips": float(np.mean([f.positive_rate for f in each])),
            "step_ms": cost[name][0], "step_ratio": cost[name][1], "memory_mb": cost[name][2],
            "said": _said(verdict(delta.low, delta.high), adjusted[name], len(found)) if delta else "baseline",
        })  # fmt: skip
    return rows


def _teachers(method: Any, given: Mapping[str, Any]) -> int:
    """How many teachers a method takes at most with these parameters."""
    from interfuse.core.rooms import load_room, split

    checked = method.check(split(load_room("distill"), given)[1])
    hooks = method.target(**{k: v for k, v in checked.items() if k in method.target.__dataclass_fields__})
    return int(hooks.needs().teachers[1])


def _said(words: str, p: float, compared: int) -> str:
    """What an interval allows to be said, unless the number of comparisons makes it a thing of chance."""
    from interfuse.kit.stats import by_chance

    if by_chance(words, p):
        return f"no difference shown: p is {p:.3f} for one of {compared} comparisons"
    return words


def _step_cost(call: Any, given: Mapping[str, Any]) -> tuple[float, float | None, float]:
    """Median milliseconds of a training step, its ratio to a plain step, and megabytes it holds.

    Args:
        given: what ``call`` was prepared from; a plain step takes its student, data and the settings every method has.
    """
    import dataclasses
    import importlib
    import statistics

    import numpy as np
    import torch

    from interfuse.core.method import load
    from interfuse.core.rooms import load_room, prepare
    from interfuse.data.models import build
    from interfuse.kit.encode import forward

    engine = importlib.import_module("interfuse.distill.room")
    hooks = engine._hooks(call)
    shared = {"student", "data", *(f.name for f in dataclasses.fields(engine.DistillSettings))}
    plain = None
    if "label" in call.inputs["data"].columns:
        plain = prepare(load_room("distill"), load("distill/none"), {k: v for k, v in given.items() if k in shared}, call.ctx)  # fmt: skip
    with engine.threads_for(0):
        state = engine.start(call, hooks)
        hooks.scan(state)
        state.steps = max(state.steps, 50)
        size = state.settings.batch_size
        order = hooks.select(state, np.arange(len(state.data)))[:size]
        held = step_memory(state, lambda: engine._step(state, hooks, [order], {}))
        beside = None
        if plain is not None:
            plain_hooks = engine._hooks(plain)
            beside = engine.start(plain, plain_hooks)
            beside.steps = state.steps
        teachers = []
        if beside is not None and state.stored is None:  # its own: a method may train or drop those it was given
            teachers = [(build(m, call.ctx).to(state.device).eval(), m, e)
                        for m, e in zip(state.teacher_models, state.teacher_encoders, strict=True)]  # fmt: skip
        times, ratios = [], []
        for turn in range(13):
            began = time.perf_counter()
            engine._step(state, hooks, [order], {})
            mine = time.perf_counter() - began
            if beside is not None:
                began = time.perf_counter()
                engine._step(beside, plain_hooks, [order], {})
                with torch.no_grad():
                    for module, model, encoder in teachers:
                        forward(module, model, {k: v.to(state.device) for k, v in encoder.encode(order).items()})
                ratios.append(mine / (time.perf_counter() - began))
            times.append(1e3 * mine)
            if not turn:  # first steps make what later ones reuse
                times.clear()
                ratios.clear()
    return statistics.median(times), statistics.median(ratios) if ratios else None, held


def step_memory(state: Any, step: Callable[[], Any]) -> float:
    """Megabytes a step holds: weights, buffers and gradients, optimiser state, what is kept for the gradients, and what the method
    stores beside them (predictions of teachers, memories, statistics). The examples themselves are not counted.

    Args:
        state: the engine's run. step: does one step of it.
    """
    import torch

    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        step()
    modules = (state.student, *state.teachers, *state.modules.values())
    weights = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    beside = _tensors([state.stored, state.tensors, state.held])
    grown = [
        v
        for o in state.optimizers.values()
        for s in o.state.values()
        for v in s.values()
        if isinstance(v, torch.Tensor)
    ]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in [*weights, *grown, *beside]}
    gradients = sum(p.numel() * p.element_size() for o in state.optimizers.values() for g in o.param_groups for p in g["params"])  # fmt: skip
    return float(sum({**kept, **held}.values()) + gradients) / 1e6


def _tensors(value: Any) -> list[Any]:
    """Every tensor in nested tables, lists and modules; arrays as tensors that share their memory."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, np.ndarray):
        return [torch.from_numpy(value)] if value.dtype.kind in "biuf" and value.flags.writeable else []
    if isinstance(value, torch.nn.Module):
        return [*value.parameters(), *value.buffers()]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in inner for tensor in _tensors(item)]


def _options(*rows: tuple[str, str, dict[str, Any]]) -> list[click.Parameter]:
    return [click.Option([flag], help=words, **more) for flag, words, more in rows]


VERBS: dict[str, click.Command] = {
    "teacher": _Same("none", name="teacher", short_help="Train a teacher: distill none with the same flags."),
    "search": click.Command(
        "search", callback=_search, help=_search.__doc__, short_help="Rank students for a teacher without training.",
        params=[*_options(
            ("--teacher", "Its architecture is enough.", {"required": True}), ("--student", "Configuration to vary, as JSON.", {"required": True}),
            ("--data", "Labelled examples.", {"required": True}), ("--space", "JSON, or a YAML file: field -> values.", {"required": True}),
            ("--max-parameters", "Budget.", {"type": float}), ("--max-flops", "Budget per example.", {"type": float}),
            ("--inits", "Initialisations to average over.", {"type": int}), ("--semantic", "auto, channel or class.", {}),
            ("--top", "Rows to print.", {"type": int, "default": 5, "show_default": True}),
            ("--seed", "All randomness comes from it.", {"type": int, "default": 0, "show_default": True})),
            click.Option(["-o", "--out"], type=PATH, help="Write the best student's configuration here (YAML)."), *shared_options()],
    ),
    "compare": click.Command(
        "compare", callback=_compare, help=_compare.__doc__, short_help="Methods by seeds, paired, with intervals.",
        params=[click.Argument(["methods"], nargs=-1, required=True), *_options(
            ("--teacher", "A teacher; repeat it for several.", {"multiple": True}), ("--student", "Folder, or configuration as JSON.", {"required": True}),
            ("--data", "Examples to train on.", {"required": True}), ("--test", "Labelled examples to measure on.", {"required": True}),
            ("--seeds", "How many seeds.", {"type": int, "default": 5, "show_default": True}), ("--baseline", "Method to compare with.", {"default": ""}),
            ("--common", "NAME=VALUE for all methods; repeat it.", {"multiple": True})),
            click.Option(["-o", "--out"], type=PATH, help="Write the table here (JSON)."), *shared_options()],
    ),
}  # fmt: skip
