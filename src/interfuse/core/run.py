"""Running a recipe: plan with cost, content-keyed steps, resume, atomic results.

A step's key is a hash of its method's version, its parameters, the fingerprints of its inputs and the seed. A finished
artifact with the right key and intact bytes is never made again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interfuse.core.artifact import lock, verify
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError, did_you_mean
from interfuse.core.method import load
from interfuse.core.recipe import Recipe, Ref, Step
from interfuse.core.rooms import Call, Cost, Room, Source, carry_out, drop_scratch, jsonable, key_of, load_room, split
from interfuse.core.safe import canonical_json, fingerprint, is_half_written, sweep, write_atomic, writing_errors

MARK = "run.json"
Opener = Callable[[Source, Ctx], Any]


@dataclass
class Planned:
    """One artifact to make: a step for one seed, or for all seeds at once."""

    step: Step
    room: Room
    call: Call
    key: str
    path: Path
    cost: Cost
    done: bool = False

    @property
    def label(self) -> str:
        return self.step.name + (f" (seed {self.call.seeds[0]})" if len(self.call.seeds) == 1 else "")


@dataclass
class Plan:
    """All the work of a recipe, in order, checked and priced; nothing has been written."""

    recipe: Recipe
    out: Path
    work: list[Planned] = field(default_factory=list)
    fresh: bool = False

    @property
    def cost(self) -> Cost:
        return sum((p.cost for p in self.work if not p.done), Cost())

    def rows(self) -> list[dict[str, Any]]:
        """One row per artifact: step, method, seeds, state, cost."""
        return [{"step": p.step.name, "method": p.call.method.id, "seeds": list(p.call.seeds), "key": p.key[:12],
                 "state": "done" if p.done else "to do", **dataclasses.asdict(p.cost)} for p in self.work]  # fmt: skip


def make_plan(recipe: Recipe, out: Path, ctx: Ctx, *, force: bool = False, fresh: bool = False) -> Plan:
    """Opens every input, checks every step and computes every key; writes nothing.

    Args:
        out: the run's folder. ``force``: use it even if something else is there. ``fresh``: make everything again.

    Raises:
        InterfuseError: with the code of the first thing that is wrong, naming step and line.
    """
    _refuse_foreign(out, force)
    plan = Plan(recipe, out, fresh=fresh)
    made: dict[tuple[str, int, str], Any] = {}
    opened: dict[tuple[str, Opener, int], Any] = {}
    for step in recipe.steps:
        where = recipe.where(step)
        try:
            method = load(step.use)
            room = load_room(method.entry.room)
            inputs, params = split(room, step.given)
            checked = method.check(params, extra=tuple(i.name for i in room.inputs))
            sources = {name: recipe.resolve(value, where) for name, value in inputs.items()}
            replicas = []
            for seed in recipe.seeds:
                local = ctx.with_(seed=seed)
                given = {k: _bind(v, seed, made, opened, room, k, local) for k, v in sources.items()}
                replicas.append(room.open_inputs(given, local))
            groups = [recipe.seeds] if room.across_seeds else [(s,) for s in recipe.seeds]
            for group in groups:
                chosen = [r for r, s in zip(replicas, recipe.seeds, strict=True) if s in group]
                call = Call(method, chosen[0], checked, ctx.with_(seed=group[0]), group, chosen)
                room.check(call)
                key = key_of(call)
                path = out / "steps" / step.name / ("all" if room.across_seeds else f"seed-{group[0]}")
                item = Planned(step, room, call, key, path, room.estimate(call), not fresh and _is_done(path, key))
                plan.work.append(item)
                kept = room.parts(call, path)
                for seed in group:
                    made[(step.name, seed, "")] = _named(room.promise(call, path), item)
                    made.update({(step.name, seed, name): _named(noun, item, name) for name, noun in kept.items()})
        except InterfuseError as error:
            if error.where.startswith(str(recipe.path)):
                raise
            place = where if not error.where else f"{where}: {error.where}"
            raise InterfuseError(error.code, error.what, where=place, fix=error.fix) from error
    return plan


def _bind(
    value: Any,
    seed: int,
    made: dict[tuple[str, int, str], Any],
    opened: dict[tuple[str, Opener, int], Any],
    room: Room,
    name: str,
    ctx: Ctx,
) -> Any:
    if isinstance(value, list):
        return [_bind(v, seed, made, opened, room, name, ctx) for v in value]
    if isinstance(value, Ref):
        if (value.step, seed, value.part) not in made:
            kept = [part for step, _, part in made if step == value.step and part]
            raise InterfuseError("recipe.key", f"the step {value.step} keeps nothing called {value.part!r}", where=name,
                                 fix=did_you_mean(value.part, kept) if kept else "It keeps nothing but its result.")  # fmt: skip
        return made[(value.step, seed, value.part)]
    item = next(i for i in room.inputs if i.name == name)
    slot = (fingerprint(jsonable({"spec": value.spec, "name": value.name})), item.open, seed)
    if slot not in opened:
        opened[slot] = item.open(value, ctx)
    return opened[slot]


def _named(noun: Any, item: Planned, part: str = "") -> Any:
    parents = tuple(
        n
        for r in item.call.replicas[:1]
        for v in r.values()
        for n in (v if isinstance(v, list) else [v])
        if n is not None
    )
    name, key = (f"{item.step.name} {part}", f"{item.key} {part}") if part else (item.step.name, item.key)
    return dataclasses.replace(noun, name=name, made_by=item.call.method.id, parents=parents, key=key)


def _is_done(path: Path, key: str) -> bool:
    try:
        return verify(path).manifest.get("key") == key
    except InterfuseError:
        return False


def _refuse_foreign(out: Path, force: bool) -> None:
    with writing_errors(out):
        if not out.exists() or (out / MARK).is_file():
            return
        if out.is_dir() and (force or all(is_half_written(p, out / MARK) for p in out.iterdir())):
            return  # empty, or a run that was killed before it had its mark
        if (out / MARK).is_file():
            return  # another run has put its mark since
    raise InterfuseError(
        "output.exists",
        "something that is not a run of Interfuse is there",
        where=str(out),
        fix="Choose another place with -o, or add --force to use the folder (in Python: out=, force=True).",
    )


def run_plan(plan: Plan, tell: Callable[[str], None] = lambda line: None) -> dict[str, Path]:
    """Carries out a plan; finished steps are skipped, a killed run goes on where it stopped.

    Returns:
        step name -> folder of its artifact (of the first seed where there are several).

    Raises:
        InterfuseError: ``output.busy``, or whatever stopped a step, naming the step.
    """
    with lock(plan.out):
        sweep(plan.out / MARK)
        mark = {"interfuse": 1, "title": plan.recipe.title, "recipe": plan.recipe.text, "seeds": list(plan.recipe.seeds),
                "steps": [{k: r[k] for k in ("step", "method", "seeds", "key")} for r in plan.rows()]}  # fmt: skip
        write_atomic(plan.out / MARK, canonical_json(mark))
        for number, item in enumerate(plan.work, 1):
            head = f"[{number}/{len(plan.work)}] {item.label}: {item.call.method.id}"
            if item.done or (not plan.fresh and _is_done(item.path, item.key)):
                drop_scratch(item.path)
                tell(f"{head}: done before")
                continue
            began = time.monotonic()
            tell(head)
            _carry_out(item)
            _journal(
                plan.out,
                {
                    "step": item.step.name,
                    "seeds": list(item.call.seeds),
                    "key": item.key,
                    "seconds": round(time.monotonic() - began, 3),
                    "ended": int(time.time()),
                },
            )
    first = {p.step.name: p.path for p in reversed(plan.work)}
    return {step.name: first[step.name] for step in plan.recipe.steps}


def _carry_out(item: Planned) -> None:
    try:
        carry_out(item.room, item.call, item.path, item.key, force=True)
    except InterfuseError as error:
        raise InterfuseError(
            error.code,
            error.what,
            where=f"step {item.label}" + (f": {error.where}" if error.where else ""),
            fix=error.fix,
        ) from error
    except Exception as error:
        raise InterfuseError(
            "run.failed", f"{type(error).__name__}: {error}", where=f"step {item.label}",
            fix="Run it again: what is finished is kept.",
        ) from error  # fmt: skip
    item.done = True


def _journal(out: Path, row: dict[str, Any]) -> None:
    """One line per finished step; a line that a kill has torn is ended first."""
    with writing_errors(out), (out / "journal.jsonl").open("a+b") as file:
        if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    ctx: Ctx | None = None,
    seeds: Sequence[int] = (),
    force: bool = False,
    fresh: bool = False,
) -> dict[str, Path]:
    """Plans and runs a recipe (a path, or an id such as ``recipes/quickstart``).

    Returns:
        step name -> folder of its artifact.
    """
    from interfuse.core.recipe import load_recipe

    path = recipe.path if isinstance(recipe, Recipe) else locate(recipe)
    loaded = recipe if isinstance(recipe, Recipe) and not seeds else load_recipe(path, seeds=tuple(seeds))
    place = Path(out) if out is not None else Path("runs") / loaded.path.stem
    context = ctx or Ctx()
    return run_plan(make_plan(loaded, place, context, force=force, fresh=fresh), context.log)


def locate(name: str | Path) -> Path:
    """The file of a recipe named by path or by id."""
    from interfuse.core import index

    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    entry = index.find(str(name), room="" if "/" in str(name) else "recipes")
    if entry.recipe_path is None:
        raise InterfuseError(
            "method.unknown", f"{entry.id} is a {entry.kind}, not a recipe", fix=f"interfuse show {entry.id}"
        )
    return entry.recipe_path


__all__ = ["Plan", "Planned", "Source", "locate", "make_plan", "run", "run_plan"]
