"""Losses of several distillations added up: ``kd + nd``, ``dist + trg``, a method under mixup."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from interfuse.core.errors import InterfuseError
from interfuse.core.method import Method, load, method
from interfuse.distill.hooks import Batch, Hooks, Needs, Run, Views

if TYPE_CHECKING:
    from interfuse.core.rooms import Call

#: hooks that only one part may have, and what parts do by them
ONCE = {
    "batch": "both change what the models are shown",
    "views": "both change what the models are shown",
    "export": "both save something else than the trained student",
}


@method()
@dataclass(frozen=True)
class Compose(Hooks):
    """``sum over parts of weight * (the part's own weighted loss)``; the parts see one forward pass of student and teachers."""

    parts: Annotated[
        list[dict[str, Any]],
        Field(min_length=1, description="the methods: {use: SLUG, weight: 1, and its own parameters}"),
    ]

    def needs(self) -> Needs:
        every = [part.needs() for _, part, _ in self._parts]
        taught = [n.teachers for n in every if n.teachers[1]]
        return Needs(
            labels=any(n.labels for n in every),
            teachers=(max(t[0] for t in taught), min(t[1] for t in taught)) if taught else (0, 0),
            live=any(n.live for n in every),
            student_features=tuple(dict.fromkeys(f for n in every for f in n.student_features)),
            teacher_features=tuple(dict.fromkeys(f for n in every for f in n.teacher_features)),
            validation=any(n.validation for n in every),
            batch=max((n.batch for n in every), default=1),
            own_labels=any(n.own_labels for n in every),
            raw_logits=any(n.raw_logits for n in every),
            mixes=any(n.mixes for n in every),
        )

    @functools.cached_property
    def _parts(self) -> list[tuple[str, Hooks, float]]:
        """Name, hooks and weight of every part.

        Raises:
            InterfuseError: ``param.value`` for parts that cannot stand together; what an unknown method or parameter raises.
        """
        found: list[tuple[str, Hooks, float]] = []
        for number, given in enumerate(self.parts):
            name, hooks, weight = _part(given, f"parts[{number}]")
            same = sum(n == name or n.startswith(f"{name}-") for n, _, _ in found)
            found.append((f"{name}-{same + 1}" if same else name, hooks, weight))
        for hook, what in ONCE.items():
            names = [name for name, hooks, _ in found if _has(hooks, hook)]
            if len(names) > 1:
                raise InterfuseError("param.value", f"{' and '.join(names)} {what}", where="parts")
        mixing = [name for name, hooks, _ in found if hooks.needs().mixes]
        strict = [name for name, hooks, _ in found if hooks.needs().own_labels]
        if mixing and strict:
            raise InterfuseError(
                "param.value", f"{mixing[0]} mixes labels, {strict[0]} looks at each example's own label", where="parts"
            )
        return found

    # -- every hook, part by part --------------------------------------------------------------------------------------

    def alone(self) -> tuple[str, str]:
        return "it is a composition itself", "Name its parts."

    def check(self, call: Call) -> None:
        for _, part, _ in self._parts:
            part.check(call)

    def setup(self, run: Run) -> None:
        for name, part, _ in self._parts:
            seen = _seen_by(run, name, part)
            part.setup(seen)
            run.steps = seen.steps

    def scan(self, run: Run) -> None:
        for name, part, _ in self._parts:
            part.scan(_seen_by(run, name, part))

    def select(self, run: Run, order: NDArray[np.int64]) -> NDArray[np.int64]:
        for name, part, _ in self._parts:
            if _has(part, "select"):
                seen = _seen_by(run, name, part)
                order = part.select(seen, order)
                run.steps = seen.steps
        return order

    def batch(self, run: Run, batch: Batch) -> Batch:
        for name, part, _ in self._parts:
            if _has(part, "batch"):
                batch = part.batch(_seen_by(run, name, part), batch)
        return batch

    def views(self, run: Run, batch: Batch) -> Views:
        own = self._one("views")
        if own is None:
            return super().views(run, batch)
        views = own[1].views(_seen_by(run, *own), batch)
        batch = views.batch
        batch.extra["views"] = {own[0]: views}
        taps = run.student_taps.features if run.student_taps else {}
        theirs = views.teacher_features or [{} for _ in run.teacher_taps]
        theirs = [{**taken.features, **given} for taken, given in zip(run.teacher_taps, theirs, strict=True)]
        return Views(batch, views.student, views.teachers, {**taps, **views.features}, theirs, views.more)

    def terms(self, run: Run, views: Views) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, part, _ in self._parts:
            said = part.terms(_seen_by(run, name, part), _views_of(views, name))
            found |= {f"{name}:{term}": value for term, value in said.items()}
        views.batch.extra["terms"] = list(found)
        return found

    def weights(self, run: Run, views: Views) -> dict[str, float | Tensor]:
        found: dict[str, float | Tensor] = {}
        for name, part, weight in self._parts:
            given = part.weights(_seen_by(run, name, part), _views_of(views, name))
            terms = [t for t in views.batch.extra["terms"] if t.startswith(f"{name}:")]
            found |= {t: weight * given.get(t[len(name) + 1 :], 1.0) for t in terms}
        return found

    def before_step(self, run: Run) -> None:
        self._each(run, "before_step")

    def after_step(self, run: Run) -> None:
        self._each(run, "after_step")

    def on_epoch_end(self, run: Run) -> None:
        self._each(run, "on_epoch_end")

    def _each(self, run: Run, hook: str) -> None:
        for name, part, _ in self._parts:
            if _has(part, hook):
                getattr(part, hook)(_seen_by(run, name, part))

    def export(self, run: Run) -> nn.Module:
        own = self._one("export")
        return super().export(run) if own is None else own[1].export(_seen_by(run, *own))

    def shell(self, call: Call, path: Path) -> nn.Module | None:
        own = self._one("shell")
        return super().shell(call, path) if own is None else own[1].shell(call, path)

    def _one(self, hook: str) -> tuple[str, Hooks] | None:
        """The part that brings a hook which only one may have."""
        return next(((name, part) for name, part, _ in self._parts if _has(part, hook)), None)

    def write(self, run: Run, folder: Path) -> None:
        for name, part, _ in self._parts:
            part.write(_seen_by(run, name, part), folder)


def _part(given: dict[str, Any], where: str) -> tuple[str, Hooks, float]:
    values = dict(given)
    use, weight = values.pop("use", None), values.pop("weight", 1.0)
    if not isinstance(use, str):
        raise InterfuseError("param.missing", "a part names its method: {use: SLUG, ...}", where=where)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
        raise InterfuseError("param.value", f"weight is {weight!r}, not a number >= 0", where=where)
    found: Method = load(use, room="distill")
    own = {f.name for f in dataclasses.fields(found.target)}  # type: ignore[arg-type]
    narrowed = dataclasses.replace(found, params={k: v for k, v in found.params.items() if k in own})
    hooks: Hooks = found.target(**narrowed.check(values, where=where))
    why, instead = hooks.alone()
    if why:
        raise InterfuseError("param.value", f"{use} cannot be a part: {why}", where=where, fix=instead)
    return found.entry.slug, hooks, float(weight)


def _has(part: Hooks, hook: str) -> bool:
    """Whether a method brings a hook of its own."""
    return getattr(type(part), hook) is not getattr(Hooks, hook)


def _seen_by(run: Run, name: str, part: Hooks) -> Run:
    """The run as a part sees it: its own modules, tensors and facts, and the layers it asked for."""
    if f"shapes/{name}" not in run.held:  # looking layers up would cost time in every step
        needs = part.needs()
        ours = run.student_taps.chosen(needs.student_features) if run.student_taps is not None else []
        theirs = [t.chosen(needs.teacher_features) for t in run.teacher_taps]
        shown = {n: run.student_shapes[n] for n in ours}
        taught = [{n: shapes[n] for n in names} for names, shapes in zip(theirs, run.teacher_shapes, strict=False)]
        run.held[f"shapes/{name}"] = shown, taught
    student_shapes, teacher_shapes = run.held[f"shapes/{name}"]
    tables: dict[str, Any] = {n: Within(getattr(run, n), name) for n in ("modules", "lr_scales", "tensors", "facts")}
    return dataclasses.replace(run, student_shapes=student_shapes, teacher_shapes=teacher_shapes, **tables)


def _views_of(views: Views, name: str) -> Views:
    found: Views = views.batch.extra.get("views", {}).get(name, views)
    return found


class Within(MutableMapping[str, Any]):
    """The entries of a table whose names begin with a part's, under their own names."""

    def __init__(self, table: MutableMapping[str, Any], name: str) -> None:
        self.table, self.prefix = table, f"{name}."

    def __getitem__(self, key: str) -> Any:
        return self.table[self.prefix + key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.table[self.prefix + key] = value

    def __delitem__(self, key: str) -> None:
        del self.table[self.prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (key[len(self.prefix) :] for key in list(self.table) if key.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __ior__(self, other: MutableMapping[str, Any]) -> Within:
        self.update(other)
        return self
