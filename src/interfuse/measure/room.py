"""The room's contract and its one engine: predict once per model and seed, let the method score, write the report.

A method is a function ``method(seen: Predictions, *, ctx, ...) -> Findings``. The engine opens and checks the inputs, runs
the models, keeps the per-item log and writes the files; which scores and comparisons are made is the method's affair. Its trait
``reading`` says what it reads off a model: the logits of a classifier where it has none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Call, Cost, Input, Room
from interfuse.core.safe import canonical_json
from interfuse.data.lm import open_speaker
from interfuse.data.models import Model, size_of
from interfuse.data.reports import Report
from interfuse.data.tables import Table, open_table, overlap

Logits = NDArray[np.float64]
#: how text begins that a spreadsheet takes for a formula
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
#: what a role's colour stands for
LEGEND = {"source": "source", "result": "result: made from the sources", "baseline": "baseline: not made from them",
          "reference": "reference: all sources at once"}  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One model as the engine saw it.

    Attributes:
        name: unique in the report.
        role: ``result`` (a model to be measured), ``baseline`` (one that was not made from the sources), ``source`` (what they are
            compared with) or ``reference`` (added by the method).
        logits: ``[seeds, items, classes]``, or the columns that the method's reading gives. held: the same for the validation items, None without them.
        fixed: the same weights under every seed. parameters: how many numbers the model holds.
        columns: what the columns stand for, where each model has its own (see :class:`Named`).
    """

    name: str
    role: str
    logits: Logits = field(repr=False)
    fixed: bool = False
    parameters: int = 0
    held: Logits | None = field(default=None, repr=False)
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """What a method scores. Items are in the order of their ids, so the order of the table's rows never matters.

    Attributes:
        ids: ``[items]``. labels: class numbers ``[items]``. classes: their names. seeds: one per row of the logits.
        contenders: sources first, in the order given. held_labels: labels of the validation items, None without them.
        seen_before: contender -> how many of the items it was trained on, where that is known and not 0.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    seeds: tuple[int, ...]
    contenders: tuple[Contender, ...]
    held_labels: NDArray[np.int64] | None = None
    seen_before: Mapping[str, int] = field(default_factory=dict)

    def role(self, name: str) -> tuple[Contender, ...]:
        """The contenders of one role."""
        return tuple(c for c in self.contenders if c.role == name)

    def cautions(self, items: str, figures: str = "figures") -> list[str]:
        """What a reader must know of few items, and of models that were trained on some, in the method's words for items and figures."""
        count = len(self.ids)
        few = [f"Only {count} {items}: intervals are too narrow and verdicts unsure."] if count < 20 else []
        return few + [
            f"{name} was trained on {known} of the {count} {items}: its {figures} are too good."
            for name, known in self.seen_before.items()
        ]


@dataclass(frozen=True)
class Named:
    """What a reading gives where every model has columns of its own: ``values`` [items, columns], and ``names`` of what stands in them."""

    values: Logits = field(repr=False)
    names: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a method reads off a model.

    Attributes:
        tasks: of the models it takes.
        gold: what is right, and the classes' names; raises coded errors for a table it cannot use.
        predict: ``(model, table, ctx, params) -> [items, columns]``, finite or minus infinity, plain or :class:`Named`.
        rows: the columns of the per-item log for one contender and seed, from what ``predict`` gave and the labels.
    """

    tasks: tuple[str, ...]
    gold: Callable[[Table], tuple[NDArray[np.int64], tuple[str, ...]]]
    predict: Callable[[Model, Table, Ctx, Mapping[str, Any]], Logits | Named]
    rows: Callable[[Logits, NDArray[np.int64], tuple[str, ...]], Mapping[str, Any]]


@dataclass(frozen=True)
class Findings:
    """What a method found.

    Attributes:
        title: of the report. notes: sentences for its top, the most important first.
        table: ``{"columns": [...], "rows": [[...]]}``, the report's main table.
        figures: everything else that goes into ``report.json``.
        contenders: those of the predictions and the references the method added; they go into the per-item log.
        plots: name -> (columns, rows) of the CSV behind a picture.
        sections: of the page, see :mod:`interfuse.kit.page`.
    """

    title: str
    notes: Sequence[str]
    table: Mapping[str, Any]
    figures: Mapping[str, Any]
    contenders: Sequence[Contender]
    plots: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]
    sections: Sequence[Any]


def _classes(table: Table) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    return table.labels(), table.classes  # refuses a table without labels; opening it has refused ids that occur twice


def _logits(model: Model, table: Table, ctx: Ctx, params: Mapping[str, Any]) -> Logits:
    from interfuse.kit.encode import predict

    found = predict(model, table, ctx).astype(np.float64)
    if found.ndim != 2 or found.shape[1] != len(table.classes):
        raise _misfit(model.name, found.shape[-1], table)
    return found


def guesses(logits: Logits, labels: NDArray[np.int64], classes: tuple[str, ...]) -> dict[str, Any]:
    """The per-item log of a classifier: what was right, what was guessed, how sure it was."""
    from scipy.special import softmax

    probs, guess, names = softmax(logits, axis=1), logits.argmax(axis=1), np.array(classes, dtype=object)
    return {"label": names[labels], "prediction": names[guess], "correct": guess == labels,
            "p_true": probs[np.arange(len(labels)), labels], "confidence": probs.max(axis=1)}  # fmt: skip


CLASSES = Reading(("image-classification", "text-classification", "module"), _classes, _logits, guesses)


def reading_of(call: Call) -> Reading:
    """What the method reads off a model."""
    found: Reading = call.method.traits.get("reading", CLASSES)
    return found


# ---------------------------------------------------------------------------------------------- before the work


def _roles(replica: Mapping[str, Any]) -> list[tuple[str, Model]]:
    """Every model once, with its role; one that is both a source and to be measured counts as a source.

    A model whose making is known from the recipe and used none of the sources is a ``baseline``.
    """
    from interfuse.kit.lineage import ancestors

    prints = [m.fingerprint() for m in replica["against"]]
    found = [("source", m) for m in replica["against"]]
    for model in replica["models"]:
        if model.fingerprint() not in prints:
            apart = prints and model.made_by and not any(a.fingerprint() in prints for a in ancestors(model))
            found.append(("baseline" if apart else "result", model))
    return found


def _names(models: Sequence[Model]) -> list[str]:
    """Names for the report: a name that two models share is told apart by its folder, or by a number."""
    names = [m.name for m in models]
    for i, model in enumerate(models):
        if names.count(model.name) > 1 and model.path is not None:
            names[i] = f"{model.path.resolve().parent.name}/{model.name}"
    return [n if names.count(n) == 1 else f"{n} ({names[: i + 1].count(n)})" for i, n in enumerate(names)]


def check(call: Call) -> None:
    """Raises coded errors before any model is run. A method may add its own through the trait ``before(inputs, params)``; one that reads
    validation items has the trait ``tempered``."""
    if call.inputs.get("validation") is not None and not call.method.traits.get("tempered"):
        raise InterfuseError("param.unknown", f"{call.method.id} fits no temperature and reads no validation table", where="validation", fix="Leave it out.")  # fmt: skip
    before = call.method.traits.get("before")
    if before is not None:
        before(call.inputs, call.params)
    reading = reading_of(call)
    for replica in call.replicas:
        table: Table = replica["data"]
        _check_table(table, reading)
        if table.fingerprint() != call.inputs["data"].fingerprint():
            raise InterfuseError("input.shape", "the items differ between seeds", where=table.name,
                                 fix="Measure on one table: it must not be made by a step with a seed of its own.")  # fmt: skip
        held: Table | None = replica.get("validation")
        if held is not None:
            _check_table(held, reading)
            if reading is CLASSES and held.classes != table.classes:
                raise InterfuseError("input.shape", "the validation table has other classes", where=f"{held.name}, {table.name}")  # fmt: skip
            if overlap(held, table):
                raise InterfuseError("input.leak", "validation items are also measured on", where=f"{held.name}, {table.name}",
                                     fix="Use disjoint parts of the table.")  # fmt: skip
        roles = _roles(replica)
        for given in (replica["models"], replica["against"]):
            prints = [m.fingerprint() for m in given]
            for i, model in enumerate(given):
                if prints[i] in prints[:i]:
                    raise InterfuseError("input.duplicate", "the same model is given twice", where=model.name)
        if all(role == "source" for role, _ in roles):
            raise InterfuseError("input.duplicate", "the models to measure are the sources themselves", where=roles[0][1].name,
                                 fix="Name the fused models as models, the sources as against.")  # fmt: skip
        for _, model in roles:
            _check_model(model, table, reading)
        if not call.params.get("allow_leak", False):
            _refuse_leak(roles, table)


def _check_table(table: Table, reading: Reading) -> None:
    reading.gold(table)
    if len(table) < 2:
        raise InterfuseError("input.empty", "one item leaves no spread to measure", where=table.name)


def _check_model(model: Model, table: Table, reading: Reading) -> None:
    if model.task not in reading.tasks:
        raise InterfuseError(
            "input.type",
            f"a model for {' or '.join(reading.tasks)} is needed, this is one for {model.task}",
            where=model.name,
        )
    if reading is not CLASSES:
        return
    if model.labels is not None and model.labels != len(table.classes):
        raise _misfit(model.name, model.labels, table)
    names = model.config.get("id2label")
    if names:
        order = [str(name) for _, name in sorted(names.items(), key=lambda pair: int(pair[0]))]
        if sorted(order) == sorted(table.classes) and tuple(order) != table.classes:
            raise InterfuseError("input.shape", "model and table name the same classes in another order", where=f"{model.name}, {table.name}",
                                 fix=f"Add the model's order to the table's source: labels: [{', '.join(order)}].")  # fmt: skip


def _misfit(name: str, count: int, table: Table) -> InterfuseError:
    return InterfuseError("input.shape", f"the model knows {count} classes, the table {len(table.classes)}", where=f"{name}, {table.name}",
                          fix="Declare the table's classes with labels: [...], or measure on a table with the model's classes.")  # fmt: skip


def _trained_on(model: Model, table: Table) -> tuple[int, str]:
    """How many of the table's items the model, or what it was made from, was trained on, and through which table."""
    from interfuse.kit.lineage import ancestors, recorded

    worst = (0, "")
    for noun in ancestors(model):
        if isinstance(noun, Table):
            worst = max(worst, (len(overlap(noun, table)), noun.name))
    for replica in recorded(model).get("inputs", []):
        for value in replica.values():
            for row in value if isinstance(value, list) else [value]:
                if row["fingerprint"] == table.fingerprint():
                    worst = max(worst, (len(table), str(row["name"])))
    return worst


def _refuse_leak(roles: Sequence[tuple[str, Model]], table: Table) -> None:
    for _, model in roles:
        count, through = _trained_on(model, table)
        if count:
            raise InterfuseError("input.leak", f"{count} of the {len(table)} items were also trained on", where=f"{model.name}, through {through}",
                                 fix="Measure on a part that no step trains on; or say allow_leak, and the report will say so.")  # fmt: skip


def estimate(call: Call) -> Cost:
    """One pass of every model over the items, or one for every token it may write: about two operations per parameter each."""
    total = 0
    steps = call.params.get("max_tokens", 1)
    items = sum(len(t) for t in (call.inputs["data"], call.inputs.get("validation")) if t is not None)
    done: dict[str, None] = {}
    for replica, seed in zip(call.replicas, call.seeds, strict=True):
        for _, model in _roles(replica):
            slot = _slot(model, seed)
            if slot not in done:
                done[slot] = None
                total += size_of(model)
    return Cost(
        bytes_read=4 * total, bytes_written=200 * items * len(done), seconds=2.0 * total * items * steps / 2e9 + 2.0
    )


def promise(call: Call, path: Path) -> Report:
    """The report that will be at ``path``."""
    return Report(path.name, path)


# ---------------------------------------------------------------------------------------------- the work


def _slot(model: Model, seed: int) -> str:
    """What decides a model's logits: its content, and the seed when its weights are still to be drawn."""
    drawn = model.path is None and model.module is None
    return f"{model.fingerprint()}/{seed}" if drawn else model.fingerprint()


def _by_id(table: Table) -> Table:
    """The table with its rows in the order of their ids."""
    ids = table.ids()
    order = sorted(
        range(len(ids)), key=lambda i: (not ids[i].isdecimal(), len(ids[i]) if ids[i].isdecimal() else 0, ids[i])
    )
    return replace(table, rows=table.rows[np.array(order, dtype=np.int64)])


def predictions(call: Call) -> Predictions:
    """Runs every model over the items, each model once per seed; a model that several roles or seeds share runs once."""
    reading = reading_of(call)
    table = _by_id(call.inputs["data"])
    validation = call.inputs.get("validation")
    held = None if validation is None else _by_id(validation)
    known: dict[tuple[str, str], Named] = {}

    def read(model: Model, seed: int, items: Table, which: str) -> Named:
        slot = (_slot(model, seed), which)
        if slot not in known:
            found = reading.predict(model, items, call.ctx.with_(seed=seed), call.params)
            known[slot] = found if isinstance(found, Named) else Named(found, ())
        return known[slot]

    def stacked(models: Sequence[tuple[Model, int]], items: Table, which: str) -> Logits:
        return np.stack([read(m, s, items, which).values for m, s in models])

    roles = [_roles(replica) for replica in call.replicas]
    names = _names([m for _, m in roles[0]])
    contenders, before = [], {}
    for i, (role, model) in enumerate(roles[0]):
        of_seeds = [(r[i][1], s) for r, s in zip(roles, call.seeds, strict=True)]
        contenders.append(
            Contender(
                names[i],
                role,
                stacked(of_seeds, table, "items"),
                len(dict.fromkeys(_slot(m, s) for m, s in of_seeds)) == 1,
                size_of(model),
                None if held is None else stacked(of_seeds, held, "validation"),
                read(*of_seeds[0], table, "items").names,
            )
        )
        count = _trained_on(model, table)[0]
        if count:
            before[names[i]] = count
    labels, classes = reading.gold(table)
    return Predictions(tuple(table.ids()), labels, classes, tuple(call.seeds), tuple(contenders),
                       None if held is None else reading.gold(held)[0], before)  # fmt: skip


def run(call: Call, folder: Path) -> dict[str, Any]:
    """Predicts, scores and writes the report into ``folder``; returns the facts of the manifest."""
    from interfuse.kit import page, plots
    from interfuse.kit.lineage import lineage

    seen = predictions(call)
    found: Findings = call.method.target(seen, ctx=call.ctx, **call.params)
    graph = lineage([m for _, m in _roles(call.inputs)] + [call.inputs["data"]], into="report", made_by=call.method.id)
    columns, rows = (
        ("parent", "child"),
        [[graph["nodes"][a]["name"], graph["nodes"][b]["name"]] for a, b in graph["edges"]],
    )
    tables = {**found.plots, "lineage": (columns, rows)}
    report = {
        **found.figures,
        "format": 1,
        "title": found.title,
        "method": call.method.id,
        "notes": list(found.notes),
        "table": found.table,
        "data": {"name": call.inputs["data"].name, "n": len(seen.ids), "classes": list(seen.classes)},
        "n": len(seen.ids),
        "seeds": list(seen.seeds),
        "lineage": graph,
        "plots": {name: f"plots/{name}.csv" for name in sorted(tables)},
    }
    (folder / "report.json").write_bytes(canonical_json(tidy(report)))
    (folder / "items.parquet").write_bytes(items_parquet(seen, found.contenders, reading_of(call)))
    (folder / "plots").mkdir()
    for name, (heads, body) in tables.items():
        (folder / "plots" / f"{name}.csv").write_bytes(csv_bytes(heads, body))
    picture = plots.lineage(graph, {model.name: role for role, model in _roles(call.inputs)})
    at = next((i for i, s in enumerate(found.sections) if s.folded), len(found.sections))
    sections = [*found.sections[:at], page.Section("How it was made", pictures=[picture]), *found.sections[at:]]
    facts = [("items", f"{len(seen.ids):,}"), *([("classes", str(len(seen.classes)))] if seen.classes else []), ("models", str(len(found.contenders))),
             ("seeds", ", ".join(map(str, seen.seeds))), ("data", call.inputs["data"].name)]  # fmt: skip
    legend = [(tone, LEGEND[tone]) for tone in page.TONES if any(c.role == tone for c in found.contenders)]
    html = page.render(
        found.title, notes=found.notes, sections=sections, facts=facts, legend=legend, made_by=call.method.id
    )
    (folder / "report.html").write_bytes(html.encode())
    return {"n": len(seen.ids), "models": [c.name for c in found.contenders]}


def tidy(value: Any) -> Any:
    """A value as JSON holds it: numbers to 12 significant digits, None for NaN and the infinities."""
    if isinstance(value, Mapping):
        return {str(k): tidy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.12g}") if np.isfinite(value) else None
    return value


def csv_bytes(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A CSV file; text that a spreadsheet would take for a formula is made plain with a leading apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            [
                "" if v is None else f"'{v}" if isinstance(v, str) and v.startswith(FORMULAS) else v
                for v in tidy(list(row))
            ]
        )
    return out.getvalue().encode()


def items_parquet(seen: Predictions, contenders: Sequence[Contender], reading: Reading) -> bytes:
    """The per-item log: one row per item, model and seed, as parquet without anything that varies between runs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [
        {"id": np.array(seen.ids, dtype=object), "model": np.full(len(seen.ids), c.name, dtype=object),
         "seed": np.full(len(seen.ids), seed, np.int64), **reading.rows(c.logits[s], seen.labels, seen.classes)}
        for c in contenders for s, seed in enumerate(seen.seeds)
    ]  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(
        pa.table({key: np.concatenate([p[key] for p in parts]) for key in parts[0]}), sink, compression="zstd"
    )
    return sink.getvalue()


ROOM = Room(
    "measure",
    kind="report",
    inputs=(
        Input("models", open_speaker, many=True, positional=True, doc="the models to measure"),
        Input("against", open_speaker, many=True, required=False, doc="the sources to compare with, item by item"),
        Input("data", open_table, doc="items that no model was trained on: labelled examples, questions or texts"),
        Input(
            "validation",
            open_table,
            required=False,
            doc="other labelled items, to fit temperatures on (classification and choice)",
        ),
    ),
    run=run,
    promise=promise,
    check=check,
    estimate=estimate,
    across_seeds=True,
)
