"""``run``, ``report`` and ``verify``."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interfuse.cli.options import context, work_options
from interfuse.cli.output import as_json, clean, duration, emit, quiet, say, size, table
from interfuse.cli.reports import (
    artifacts_of,
    facts_of,
    html_of,
    print_facts,
    print_report,
    read_report,
    report_rows,
    run_mark,
)
from interfuse.core.errors import InterfuseError
from interfuse.kit.verbs import json_option, quiet_option

if TYPE_CHECKING:
    from interfuse.core.run import Plan


def _run(
    recipe: str,
    out: Path | None,
    dry_run: bool,
    seed: tuple[int, ...],
    fresh: bool,
    force: bool,
    device: str,
    dtype: str,
    budget_calls: float | None,
    budget_tokens: float | None,
) -> None:
    """Run a recipe: a file, or an id such as recipes/quickstart.

    Plan and cost come first. A step that is already there with the right content is not done again, so a run that was
    stopped goes on where it was. What its measurements found is printed at the end.
    """
    from interfuse.core.recipe import load_recipe
    from interfuse.core.run import locate, make_plan, run_plan

    if len(set(seed)) != len(seed):
        raise InterfuseError("param.value", "--seed names one seed twice", where="--seed")
    ctx = context(0, device, dtype, budget_calls, budget_tokens)
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the result
        loaded = load_recipe(locate(recipe), seeds=seed)
        place = out or Path("runs") / loaded.path.stem
        plan = make_plan(loaded, place, ctx, force=force, fresh=fresh)
        before = plan.rows()
    if dry_run:
        if as_json():
            emit({"dry_run": True, "recipe": str(loaded.path), "out": str(place), "seeds": list(loaded.seeds),
                  "plan": before, "cost": dataclasses.asdict(plan.cost)})  # fmt: skip
        else:
            _print_plan(plan)
        return
    with contextlib.redirect_stdout(sys.stderr):
        if not quiet():
            _print_plan(plan, err=True)
        made = run_plan(plan, ctx.log)
    seconds = time.monotonic() - began
    paths = [item.path for item in plan.work]
    if as_json():
        emit({"recipe": str(loaded.path), "out": str(place), "seeds": list(loaded.seeds), "plan": before,
              "steps": {name: str(path) for name, path in made.items()}, "seconds": round(seconds, 3),
              "reports": report_rows(paths)})  # fmt: skip
        return
    for item in plan.work:
        if item.room.kind == "report":
            print_report(item.path)
    say(f"{len(plan.work)} artifacts in {duration(seconds)}: {place}")


def _print_plan(plan: Plan, *, err: bool = False) -> None:
    """One row per step; seeds together, costs added up."""
    from interfuse.cli.rooms import cost_words
    from interfuse.core.rooms import Cost

    rows = []
    for name in dict.fromkeys(item.step.name for item in plan.work):
        items = [item for item in plan.work if item.step.name == name]
        cost = sum((item.cost for item in items), Cost())
        done = sum(item.done for item in items)
        state = "done" if done == len(items) else "to do" if not done else f"{done} of {len(items)} done"
        seeds = [seed for item in items for seed in item.call.seeds]
        rows.append([name, items[0].call.method.id, ",".join(map(str, seeds)), state, size(cost.bytes_read),
                     size(cost.bytes_written), cost.calls, duration(cost.seconds)])  # fmt: skip
    columns = ["step", "method", "seeds", "state", "read", "write", "calls", "about"]
    table(columns, rows, title=plan.recipe.title, err=err, right=("read", "write", "about"))
    click.echo(clean(f"to do: {cost_words(plan.cost)}; output: {plan.out}"), err=err)


def _report(path: Path, html: bool) -> None:
    """Print the reports of an artifact or of a run; of one without reports, what was noted when it was made."""
    artifacts = artifacts_of(path)
    found = [folder for folder in artifacts if read_report(folder) is not None]
    if not found and artifacts and not html:
        if as_json():
            emit({"path": str(path), "reports": [], "facts": [facts_of(folder) for folder in artifacts]})
            return
        for folder in artifacts:
            if len(artifacts) > 1:
                say(folder)
            print_facts(folder)
        return
    if not found:
        raise InterfuseError("input.missing", "there is no report", where=str(path),
                             fix="Measure it: interfuse measure lists the ways.")  # fmt: skip
    if html:
        pages = [page for page in map(html_of, found) if page]
        if not pages:
            raise InterfuseError("input.missing", "the report has no page", where=str(path),
                                 fix="interfuse report without --html prints it.")  # fmt: skip
        if as_json():
            emit({"path": str(path), "html": [str(page) for page in pages]})
        else:
            for page in pages:
                say(page)
        return
    if as_json():
        emit({"path": str(path), "reports": report_rows(found, whole=True)})
        return
    for folder in found:
        if len(found) > 1:
            say(folder)
        print_report(folder)


def _verify(path: Path) -> None:
    """Check every byte of an artifact, or of all artifacts of a run."""
    from interfuse.core.artifact import MANIFEST, verify

    rows: list[dict[str, Any]] = []
    damage: list[InterfuseError] = []
    folders = artifacts_of(path)
    expected: dict[str, str] = {}
    if not (path / MANIFEST).is_file():
        for row in run_mark(path)["steps"]:
            expected[f"{row['step']} (seed {', '.join(map(str, row['seeds']))})"] = row["key"]
    for folder in folders:
        try:
            artifact = verify(folder)
        except InterfuseError as error:
            damage.append(error)
            continue
        files = artifact.manifest["files"]
        rows.append({"path": str(folder), "kind": artifact.kind, "method": artifact.manifest.get("method"),
                     "files": len(files), "bytes": sum(f["bytes"] for f in files.values()), "digest": artifact.digest,
                     "key": str(artifact.manifest.get("key", ""))})  # fmt: skip
    missing = _missing(path, expected, rows) if expected and not damage else []
    if damage:
        what = "; ".join(f"{error.where}: {error.what}" for error in damage[:20])
        raise InterfuseError("artifact.damaged", what, where=str(path), fix="Make it again: run it once more.")
    if missing:
        raise InterfuseError("input.missing", "the run is not whole; not there: " + ", ".join(missing[:20]),
                             where=str(path), fix="Run the recipe again; what is done is kept.")  # fmt: skip
    if as_json():
        emit({"path": str(path), "ok": True, "artifacts": rows})
        return
    columns = ["artifact", "kind", "method", "files", "bytes", "digest"]
    table(columns, [[r["path"], r["kind"], r["method"], r["files"], r["bytes"], r["digest"][:12]] for r in rows])
    say("ok: every byte is as it was written")


def _missing(path: Path, expected: dict[str, str], rows: list[dict[str, Any]]) -> list[str]:
    """Artifacts the run's plan names that are not there, or were made from something else."""
    there = {row["key"][:12] for row in rows}
    return [name for name, key in expected.items() if key[:12] not in there]


RECIPE_FLAGS = [click.Option(["--fresh"], is_flag=True, help="Make every step again, even what is done.")]
PATH = click.Argument(["path"], type=click.Path(path_type=Path))

COMMANDS = {
    "run": click.Command(
        "run", callback=_run, help=_run.__doc__,
        params=[click.Argument(["recipe"]), *RECIPE_FLAGS,
                *work_options(many_seeds=True, out_help="The run's folder [default: runs/NAME]")],
        epilog="\b\nExample:\n  interfuse run recipes/quickstart -o runs/quickstart --dry-run",
    ),
    "report": click.Command(
        "report", callback=_report, help=_report.__doc__,
        params=[PATH, click.Option(["--html"], is_flag=True, help="Print the place of the page alone."),
                json_option(), quiet_option()],
        epilog="\b\nExample:\n  interfuse report runs/quickstart",
    ),
    "verify": click.Command(
        "verify", callback=_verify, help=_verify.__doc__, params=[PATH, json_option(), quiet_option()],
        epilog="\b\nExample:\n  interfuse verify runs/quickstart",
    ),
}  # fmt: skip
