"""A study of merging: methods x number of experts x size x quality of the base, on trained and on unseen tasks.

Yadav et al. 2024, *What Matters for Model Merging at Scale?*. A grid file names families (a base and one expert per task), tasks
with examples for choosing and for testing, and methods with settings to choose from::

    study: 1
    title: What matters when digits are merged
    seeds: [0, 1, 2, 3, 4]
    make: {sizes: {small: 12, large: 48}, bases: {weak: 2, strong: 40}, expert_epochs: 30}
    held_in: [mirrored, flipped, turned, negative]
    held_out: [transposed, dimmed]
    experts: [2, 4]
    subsets: 3
    methods:
      average: {use: linear}
      ties: {use: ties, density: [0.1, 0.3], scale: [0.5, 1.0]}

``make`` trains families of small classifiers here (:mod:`interfuse.merge.study_digits`). Models of one's own stand under
``families`` in its place, with tables under ``tasks``. Every cell has an identifier; finished cells are kept and skipped.
All methods of a cell merge the same experts and are tuned with their whole grids on the same choosing examples; test examples are
looked at once, with the settings chosen. Methods that look at models at work see each expert at its own task's table ``calibrate``
(with ``make``: at pictures the expert was trained on); those that take one table for all see the merged tasks' one after another.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.method import load
from interfuse.core.rooms import Call, Source, prepare
from interfuse.core.safe import canonical_json, fingerprint, jsonable, load_yaml, read_text, write_atomic
from interfuse.data.models import Model, open_model, tokenizer_folder
from interfuse.data.overlay import whole
from interfuse.data.tables import Table, open_table
from interfuse.kit import passes
from interfuse.kit.encode import predict
from interfuse.kit.threads import threads_for
from interfuse.merge.prepare import weights_of
from interfuse.merge.room import BYTES_PER_SECOND, ROOM, passes_of
from interfuse.merge.unwritten import Unwritten

KEYS = ("study", "title", "seeds", "make", "families", "tasks", "held_in", "held_out", "experts", "subsets", "methods")
TASK = ("choose", "test", "calibrate")
FAMILY = ("name", "size", "quality", "base", "experts", "multitask")
#: from a model to the score of every example, higher is better
Score = Callable[[Model], NDArray[np.float64]]


@dataclass(frozen=True)
class Task:
    """A task: how well a model does on examples to choose by, and on examples to test on; ``calibrate``: what its expert is looked at
    with."""

    name: str
    choose: Score
    test: Score
    calibrate: Table | None = None


@dataclass(frozen=True)
class Family:
    """A base with one expert per held-in task. ``multitask``: a model trained on all of them at once, if there is one."""

    name: str
    size: str
    quality: str
    seed: int
    base: Model
    experts: Mapping[str, Model]
    multitask: Model | None = None


@dataclass(frozen=True)
class Study:
    """A grid that has been read and checked.

    Attributes:
        methods: name -> slug and the values to choose from by parameter. counts: numbers of experts. subsets: how many random
            sets of experts of each number. families: their labels (size, quality) in order, without seeds.
    """

    path: Path
    title: str
    seeds: tuple[int, ...]
    held_in: tuple[str, ...]
    held_out: tuple[str, ...]
    counts: tuple[int, ...]
    subsets: int
    methods: Mapping[str, tuple[str, Mapping[str, tuple[Any, ...]]]]
    make: Mapping[str, Any] | None
    given: tuple[Mapping[str, Any], ...] = ()
    tables: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, method: str) -> list[dict[str, Any]]:
        """All combinations of a method's values."""
        values = self.methods[method][1]
        return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]

    def sets(self, count: int) -> list[tuple[str, ...]]:
        """The sets of ``count`` experts, the same for every family and method."""
        if count == len(self.held_in):
            return [self.held_in]
        found: dict[tuple[str, ...], None] = {}
        rng = Ctx(seed=0).rng(f"experts {count}")
        for _ in range(100 * self.subsets):
            places = sorted(rng.permutation(len(self.held_in))[:count].tolist())
            found[tuple(self.held_in[i] for i in places)] = None
            if len(found) == self.subsets:
                break
        return list(found)

    @property
    def labels(self) -> list[tuple[str, str]]:
        """Sizes and qualities of the families."""
        if self.make is not None:
            return [(s, q) for s in self.make["sizes"] for q in self.make["bases"]]
        return list(dict.fromkeys((str(f["size"]), str(f["quality"])) for f in self.given))

    def cost(self) -> dict[str, int]:
        """How many cells and merges the grid has; and how many times a model reads a table of examples for those that look at models at
        work, every statistic being kept and made once."""
        families = len(self.seeds) * len(self.labels)
        cells = families * sum(len(self.sets(n)) for n in self.counts)
        made = {"cells": cells * len(self.methods), "merges": cells * sum(len(self.settings(m)) for m in self.methods)}
        return made | ({"looks": families * looks} if (looks := self._looks()) else {})

    def volume(self) -> dict[str, float]:
        """Bytes that all merges together read and compute, as one merge's estimate has them (every source once per pass), and the seconds
        that takes; training, scoring and looking at models are not in it. Models that are not here count nothing."""
        total = 0
        for size, quality in self.labels:
            base, experts, times = self._sizes(size, quality)
            for names in (names for count in self.counts for names in self.sets(count)):
                for name, (slug, _) in self.methods.items():
                    method = load(slug, room="merge")
                    read = sum(experts[n] for n in names)
                    read += base if method.traits.get("base", "optional") != "none" else 0
                    for setting in self.settings(name):
                        total += times * (read * passes_of(method, method.check(setting)) + base)
        return {"bytes": total, "seconds": round(total / BYTES_PER_SECOND, 1)}

    def _sizes(self, size: str, quality: str) -> tuple[int, dict[str, int], int]:
        """Bytes of a base and of its experts, and how many such families there are."""
        if self.make is not None:
            from interfuse.merge.study_digits import weights_of_net

            one = 4 * weights_of_net(int(self.make["sizes"][size]))
            return one, dict.fromkeys(self.held_in, one), len(self.seeds)
        family = next(f for f in self.given if (str(f["size"]), str(f["quality"])) == (size, quality))
        at = {n: self._bytes_at(family.get("experts", {}).get(n)) for n in self.held_in}
        return self._bytes_at(family.get("base")), at, len(self.seeds)

    def _bytes_at(self, spec: Any) -> int:
        places = [p for p in (self.path.parent / spec, Path(spec)) if p.is_dir()] if isinstance(spec, str) else []
        return sum(f.stat().st_size for f in places[0].glob("*.safetensors")) if places else 0

    def _looks(self) -> int:
        """Different passes of one table through one model, of one family."""
        seen: dict[tuple[Any, ...], int] = {}
        for name, (slug, _) in self.methods.items():
            method = load(slug, room="merge")
            if "looks" not in method.traits:
                continue
            for names in (names for count in self.counts for names in self.sets(count)):
                for setting in self.settings(name):
                    call = Call(
                        method, {"models": names, "base": None, "calibration": names}, method.check(setting), Ctx()
                    )
                    for look in method.traits["looks"](call):
                        models = tuple((*names, "base")[i] for i in look.models)
                        told = names if method.traits.get("tables") == 1 else names[look.examples]
                        seen[slug, models, told, look.gradients, look.part, look.totals] = len(models)
        return sum(seen.values())


def read_study(path: Path) -> Study:
    """Reads a grid file.

    Raises:
        InterfuseError: ``recipe.syntax`` or ``recipe.key`` with file and line; ``input.leak`` for a task both held in and out,
            ``param.value`` for a number of experts that the tasks do not give, ``method.unknown``, ``param.unknown``.
    """
    raw, lines = load_yaml(read_text(path), where=str(path))

    def fail(what: str, *key: str, fix: str = "", code: str = "recipe.key") -> InterfuseError:
        return InterfuseError(code, what, where=f"{path}:{lines.get(key, 1)}", fix=fix)

    if not isinstance(raw, Mapping) or raw.get("study") != 1:
        raise fail("a grid begins with the line study: 1")
    for key in raw:
        if key not in KEYS:
            raise fail(f"unknown key {key!r}", str(key), fix=did_you_mean(str(key), KEYS))
    for key in ("held_in", "experts", "methods"):
        if not raw.get(key):
            raise fail(f"the grid needs {key!r}")
    if ("make" in raw) == ("families" in raw):
        raise fail("the grid needs either 'make' or 'families' (with 'tasks')")
    inside, outside = tuple(map(str, raw["held_in"])), tuple(map(str, raw.get("held_out") or ()))
    for name in inside:
        if name in outside:
            raise fail(f"the task {name!r} is both trained on and held out", "held_out", code="input.leak")
        if inside.count(name) > 1:
            raise fail(f"the task {name!r} is named twice", "held_in", code="input.duplicate")
    counts = tuple(raw["experts"]) if isinstance(raw["experts"], list) else (raw["experts"],)
    for count in counts:
        if not isinstance(count, int) or not 1 <= count <= len(inside):
            raise fail(f"{count!r} experts cannot be taken of {len(inside)} tasks", "experts", code="param.value")
    methods = {}
    for name, item in raw["methods"].items():
        if not isinstance(item, Mapping) or "use" not in item:
            raise fail(f"the method {name!r} needs 'use'", "methods", str(name))
        slug = str(item["use"]).removeprefix("merge/")
        method = load(slug, room="merge")
        values = {k: tuple(v) if isinstance(v, list) else (v,) for k, v in item.items() if k != "use"}
        for k, v in values.items():
            for one in v:
                method.check({k: one}, where=f"{path}: {name}")
        least, most = method.traits.get("models", (1, 1000))
        for count in counts:
            if not least <= count <= most:
                wanted = f"{least}" if least == most else f"{least} or more" if most >= 1000 else f"{least} to {most}"
                raise fail(
                    f"{slug} merges {wanted} models, the grid asks for {count}",
                    "methods",
                    str(name),
                    code="param.value",
                )
        if "calibrate" in method.traits and "make" not in raw:
            for task in inside:
                spec = (raw.get("tasks") or {}).get(task)
                if isinstance(spec, Mapping) and "calibrate" not in spec:
                    raise fail(f"{slug} looks at models at work: the task {task!r} has no table 'calibrate'", "methods", str(name),
                               fix=f"Add it under tasks: {task}: {{calibrate: {{data: FILE}}, ...}}.")  # fmt: skip
        methods[str(name)] = (slug, values)
    return Study(path, str(raw.get("title") or path.stem), tuple(raw.get("seeds") or (0,)), inside, outside, counts,
                 int(raw.get("subsets", 3)), methods, raw.get("make"), tuple(raw.get("families") or ()), raw.get("tasks") or {})  # fmt: skip


# ------------------------------------------------------------------------------------------------ models and tasks of one's own


def score_of(table: Table, ctx: Ctx, max_length: int = 512) -> Score:
    """Right (1) or wrong (0) for every labelled example; of texts for a causal language model, the mean probability of a token."""

    def score(model: Model) -> NDArray[np.float64]:
        if model.task == "causal-lm":
            loaded = passes.load(model, ctx)
            found = np.zeros(len(table))
            for rows, batch in passes.examples(loaded, table, part="full", max_length=max_length, batch_size=1):
                with torch.no_grad():
                    logits = loaded.module(**batch, use_cache=False).logits[:, :-1]
                found[rows[0]] = float(torch.exp(-passes.loss_of(loaded, logits, batch, None)))
            return found
        logits = predict(model, table, ctx)
        return np.asarray(logits.argmax(1) == table.labels(), dtype=np.float64)

    return score


def families_given(study: Study, ctx: Ctx) -> tuple[list[Family], dict[str, Task]]:
    """Families and tasks that the grid names by files.

    Raises:
        InterfuseError: ``recipe.key``, ``input.missing`` (an expert or a task's table), ``input.duplicate`` (two experts are the same
            model), ``input.shape`` (an expert has other tensors than its base), ``input.leak`` (a task is chosen and tested on the
            same examples).
    """
    folder = study.path.parent
    tasks = {}
    for name in (*study.held_in, *study.held_out):
        if name not in study.tables:
            raise InterfuseError("input.missing", f"the task {name!r} has no table under tasks", where=str(study.path))
        spec = study.tables[name]
        if not isinstance(spec, Mapping) or not {"choose", "test"} <= set(spec):
            raise InterfuseError(
                "recipe.key", f"the task {name!r} needs tables 'choose' and 'test'", where=str(study.path)
            )
        for key in spec:
            if key not in TASK:
                raise InterfuseError("recipe.key", f"the task {name!r} has no table {key!r}", where=str(study.path), fix=did_you_mean(str(key), TASK))  # fmt: skip
        choose, test = (open_table(Source(spec[k], f"{name}: {k}", folder), ctx) for k in ("choose", "test"))
        if choose.fingerprint() == test.fingerprint():
            raise InterfuseError("input.leak", "settings would be chosen on the examples they are tested on", where=name,
                                 fix="Give two tables, or two parts of one split.")  # fmt: skip
        looked = (
            open_table(Source(spec["calibrate"], f"{name}: calibrate", folder), ctx) if "calibrate" in spec else None
        )
        if looked is not None and looked.fingerprint() == test.fingerprint():
            raise InterfuseError("input.leak", "models would be looked at on the examples they are tested on", where=name,
                                 fix="Give two tables, or two parts of one split.")  # fmt: skip
        tasks[name] = Task(name, score_of(choose, ctx), score_of(test, ctx), looked)
    found = []
    for item in study.given:
        for key in item:
            if key not in FAMILY:
                raise InterfuseError("recipe.key", f"a family has no key {key!r}", where=str(study.path), fix=did_you_mean(str(key), FAMILY))  # fmt: skip
        base = open_model(Source(item["base"], "base", folder), ctx)
        experts = {}
        for name in study.held_in:
            if name not in item.get("experts", {}):
                raise InterfuseError("input.missing", f"the family {item.get('name')} has no expert for {name!r}", where=str(study.path))  # fmt: skip
            experts[name] = open_model(Source(item["experts"][name], name, folder), ctx)
        check_family(base, experts)
        whole_ = item.get("multitask")
        many = open_model(Source(whole_, "multitask", folder), ctx) if whole_ else None
        found.append(Family(str(item.get("name", "family")), str(item["size"]), str(item["quality"]), study.seeds[0], base, experts, many))  # fmt: skip
    return found, tasks


def check_family(base: Model, experts: Mapping[str, Model]) -> None:
    """Experts are different models with their base's tensors.

    Raises:
        InterfuseError: ``input.duplicate``, ``input.shape``; both name them.
    """
    seen: dict[str, str] = {}
    shapes = {n: info.shape for n, info in ((n, weights_of(base)[n]) for n in weights_of(base))}
    for name, expert in experts.items():
        print_ = expert.fingerprint()
        if print_ in seen:
            raise InterfuseError("input.duplicate", f"the experts for {seen[print_]!r} and {name!r} are the same model")
        seen[print_] = name
        held = weights_of(expert)
        wrong = sorted(n for n in {*shapes, *held} if n not in held or shapes.get(n) != held[n].shape)
        if wrong:
            raise InterfuseError("input.shape", f"the expert for {name!r} has other tensors than its base: {', '.join(wrong[:5])}",
                                 where=expert.name, fix="All experts of a family are fine-tuned from its base.")  # fmt: skip


# ------------------------------------------------------------------------------------------------ cells


def merged(
    family: Family,
    names: Sequence[str],
    slug: str,
    setting: Mapping[str, Any],
    ctx: Ctx,
    tables: Sequence[Table | None] = (),
) -> Model:
    """The merge of a family's experts, in memory. ``tables``: what each expert is looked at with, by methods that do so.

    Raises:
        InterfuseError: ``input.shape`` when one table is wanted and the experts' tables do not go together.
    """
    method = load(slug, room="merge")
    given: dict[str, Any] = {"models": [family.experts[n] for n in names], **setting}
    if "calibrate" in method.traits:
        known = [t for t in tables if t is not None]
        given["calibration"] = [joined(known)] if method.traits.get("tables") == 1 else known
    if method.traits.get("base", "optional") != "none":
        given["base"] = family.base
    made = Unwritten(prepare(ROOM, method, given, ctx))
    if family.base.module is None:
        return Model(
            "merged", None, family.base.config, family.base.task, computed=made, tokenizer=tokenizer_folder(family.base),
            processor=family.base.processor
        )  # fmt: skip
    module = copy.deepcopy(family.base.module)
    with made.open() as tensors:
        module.load_state_dict({n: whole(tensors.source(n)).to(tensors[n].dtype) for n in tensors})
    return Model("merged", None, family.base.config, family.base.task, module=module.eval())


def joined(tables: Sequence[Table]) -> Table:
    """The rows of several tables of the same columns, one table after another.

    Raises:
        InterfuseError: ``input.shape``.
    """
    from datasets import concatenate_datasets

    first = tables[0]
    for table in tables[1:]:
        for mine, other in ((first.columns, table.columns), (first.classes, table.classes), ((first.shape, first.scale, first.distort), (table.shape, table.scale, table.distort))):  # fmt: skip
            if mine != other:
                raise InterfuseError("input.shape", f"the tables have other columns or classes: {mine} and {other}", where=f"{first.name}, {table.name}",
                                     fix="Tables that one method looks at together declare the same columns.")  # fmt: skip
    columns = list(dict.fromkeys(c for v in first.columns.values() for c in (v if isinstance(v, list) else [v])))
    parts = [t.dataset.select(t.rows).select_columns(columns) for t in tables]
    codes = np.concatenate([t.codes[t.rows] for t in tables]) if "label" in first.columns else first.codes
    origin = {"joined": [t.fingerprint() for t in tables]}
    return dataclasses.replace(first, name=", ".join(t.name for t in tables), dataset=concatenate_datasets(parts), codes=codes,
                               rows=np.arange(sum(len(t) for t in tables)), origin=origin, key="", parts={})  # fmt: skip


def cells(study: Study) -> Iterator[tuple[str, str, int, int, tuple[str, ...], str]]:
    """Size, quality, seed, number of experts, the experts, method: the grid in order."""
    for seed in study.seeds:
        for size, quality in study.labels:
            for count in study.counts:
                for names in study.sets(count):
                    for method in study.methods:
                        yield size, quality, seed, count, names, method


def identifier(study: Study, cell: Sequence[Any]) -> str:
    """A cell's identifier: a hash of everything that decides its numbers."""
    slug, values = study.methods[cell[-1]]
    return fingerprint({
        "cell": jsonable(list(cell)), "method": load(slug, room="merge").version(), "values": jsonable(values), "make": jsonable(study.make),
        "held_out": study.held_out, "tables": jsonable(study.tables), "families": jsonable(study.given),
    })[:24]  # fmt: skip


def run_cell(study: Study, family: Family, tasks: Mapping[str, Task], names: tuple[str, ...], method: str, known: dict[str, float],
             ctx: Ctx) -> dict[str, Any]:  # fmt: skip
    """One row: the setting chosen, raw and normalised test scores on the merged tasks and on unseen ones.

    Args:
        known: scores of sources by key, filled as they are needed.

    Raises:
        InterfuseError: ``input.shape`` when an expert scores 0 on its own task, so that nothing can be divided by it.
    """

    def source(kind: str, model: Model, task: str, part: str) -> float:
        key = f"{family.size}/{family.quality}/{family.seed}/{kind}/{task}/{part}"
        if key not in known:
            known[key] = float((tasks[task].choose if part == "choose" else tasks[task].test)(model).mean())
        return known[key]

    def by(score: float, expert: float, task: str) -> float:
        if expert <= 0:
            raise InterfuseError("input.shape", f"the expert for {task!r} scores 0 on its own task", where=f"{family.name}, seed {family.seed}",
                                 fix="Train it longer, or leave the task out.")  # fmt: skip
        return score / expert

    slug = study.methods[method][0]
    best: tuple[float, dict[str, Any], Model] | None = None
    settings = study.settings(method)
    for setting in settings:
        model = merged(family, names, slug, setting, ctx, [tasks[t].calibrate for t in names])
        held = [by(float(tasks[t].choose(model).mean()), source(f"expert {t}", family.experts[t], t, "choose"), t) for t in names] if len(settings) > 1 else [0.0]  # fmt: skip
        if best is None or float(np.mean(held)) > best[0]:
            best = (float(np.mean(held)), setting, model)
    assert best is not None, "a method has at least one setting"
    _, setting, model = best
    inside = {t: float(tasks[t].test(model).mean()) for t in names}
    outside = {t: float(tasks[t].test(model).mean()) for t in study.held_out}
    experts = {t: source(f"expert {t}", family.experts[t], t, "test") for t in names}
    base = {t: source("base", family.base, t, "test") for t in (*names, *study.held_out)}
    many = {t: source("multitask", family.multitask, t, "test") for t in (*names, *study.held_out)} if family.multitask is not None else {}  # fmt: skip
    floor = {t: max(base[t], 1e-9) for t in study.held_out}
    return {
        "setting": setting,
        "held_in": inside,
        "held_out": outside,
        "experts": experts,
        "base": base,
        "multitask": many,
        "held_in_normalised": float(np.mean([by(inside[t], experts[t], t) for t in names])),
        "held_out_normalised": float(np.mean([outside[t] / floor[t] for t in study.held_out])) if outside else None,
        "multitask_held_in": float(np.mean([many[t] / experts[t] for t in names])) if many else None,
        "multitask_held_out": float(np.mean([many[t] / floor[t] for t in study.held_out]))
        if many and outside
        else None,
    }


def run_study(path: Path, out: Path, ctx: Ctx) -> dict[str, Any]:
    """Runs every cell that is not done and writes ``cells.jsonl``, tables, curves and a page into ``out``.

    Returns:
        The report (see :mod:`interfuse.merge.study_report`).

    Raises:
        InterfuseError: as :func:`read_study`, :func:`families_given`, :func:`run_cell`; ``output.write``.
    """
    from interfuse.merge.study_digits import make_family
    from interfuse.merge.study_digits import tasks as digit_tasks
    from interfuse.merge.study_report import write_report

    study = read_study(path)
    given, tables = families_given(study, ctx) if study.make is None else ([], digit_tasks(study))
    out.mkdir(parents=True, exist_ok=True)
    file = out / "cells.jsonl"
    rows = _finished(file)
    known: dict[str, float] = {}
    family: Family | None = None
    with (
        threads_for(1)
        if study.make is not None
        else contextlib.nullcontext(),  # more threads would only wait for each other
        ctx.bar("study", float(study.cost()["cells"]), "cells") as bar,
        file.open("a", encoding="utf-8") as log,
    ):
        for cell in cells(study):
            size, quality, seed, count, names, method = cell
            key = identifier(study, cell)
            if key not in rows:
                if family is None or (family.size, family.quality, family.seed) != (size, quality, seed):
                    family = next((f for f in given if (f.size, f.quality) == (size, quality)), None) or make_family(study, size, quality, seed)  # fmt: skip
                made = run_cell(study, family, tables, names, method, known, ctx.with_(seed=seed))
                rows[key] = {"id": key, "size": size, "quality": quality, "seed": seed, "n": count, "experts_merged": list(names), "method": method, **made}  # fmt: skip
                log.write(json.dumps(jsonable(rows[key])) + "\n")
                log.flush()
            bar.advance(1.0, f"{size} {quality}, {count} experts, {method}")
    wanted = [rows[identifier(study, cell)] for cell in cells(study)]
    write_atomic(out / "study.json", canonical_json({"title": study.title, "grid": jsonable(study.make or study.given), "seeds": list(study.seeds),
                                                     "methods": jsonable(study.methods), **study.cost()}))  # fmt: skip
    return write_report(study, wanted, out)


def _finished(file: Path) -> dict[str, dict[str, Any]]:
    """The cells that are done; a torn last line is dropped."""
    if not file.is_file():
        return {}
    rows, good = {}, []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        rows[row["id"]] = row
        good.append(line)
    write_atomic(file, "".join(f"{line}\n" for line in good).encode())
    return rows
