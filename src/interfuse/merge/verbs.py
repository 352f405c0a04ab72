"""Further verbs of the room on the command line: mergekit files, and looking at merges."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from interfuse.kit.verbs import print_value, shared_options, verb_context

PATH = click.Path(path_type=Path)


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _lines(found: dict[str, Any]) -> Iterable[str]:
    yield f"{found['method']}: {', '.join(found['models'])}" + (f"; base {found['base']}" if found["base"] else "")
    yield f"{found['tensors']} tensors, {found['layers']} layers, {_size(found['bytes'])}; {found['parameter sets']} sets of parameters"
    cost = found["cost"]
    yield f"cost: read {_size(cost['bytes_read'])}, write {_size(cost['bytes_written'])}, about {cost['seconds']:.1f} s"
    if cost["tokens"]:
        yield f"calibration: {cost['tokens']:,} tokens through models, {_size(cost['memory'])} of memory"
    words = found["vocabulary"]
    if words:
        yield f"vocabulary: {words['tokens']} tokens in {words['rows']} rows; missing rows from: " + ", ".join(
            f"{kind} {count}" for kind, count in words["missing rows from"].items() if count
        )
    for note in [*found.get("notes", ()), *found["remarks"]]:
        yield f"note: {note}"


def _recipe(file: Path, out: Path | None, dry_run: bool, seed: int, force: bool) -> None:
    """Run a mergekit YAML file: interfuse merge RECIPE.yml -o OUT does the same."""
    from interfuse.core.artifact import open_artifact, refuse_taken
    from interfuse.merge.inspect import lint
    from interfuse.merge.recipes import merge_recipe

    place = out or Path("runs") / file.stem
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the result
        if dry_run:
            refuse_taken(place, force=force)
            found = lint(file, verb_context(seed))
        else:
            merge_recipe(file, place, ctx=verb_context(seed), force=force)
    if dry_run:
        print_value({"dry_run": True, "out": str(place), **found}, lambda: [*_lines(found), f"output: {place}"])
        return
    artifact = open_artifact(place)
    seconds = round(time.monotonic() - began, 3)
    made = {"path": str(place), "kind": artifact.kind, "method": artifact.manifest["method"], "digest": artifact.digest,
            "facts": artifact.manifest["facts"], "seconds": seconds}  # fmt: skip
    print_value(made, lambda: [f"{made['method']} made a {made['kind']} in {seconds:.1f} s: {place}"])


def _lint(file: Path) -> None:
    """Check a mergekit YAML file and print its plan; no weights are read."""
    from interfuse.merge.inspect import lint

    found = lint(file, verb_context())
    print_value(found, lambda: [*_lines(found), "ok"])


def _diff(first: str, second: str, tensors: bool, top: int) -> None:
    """How two models differ, per layer or per tensor."""
    from interfuse.core.rooms import Source
    from interfuse.data.models import open_model
    from interfuse.merge.inspect import by_layer, difference
    from interfuse.merge.prepare import weights_of

    ctx = verb_context()
    a, b = (weights_of(open_model(Source(name), ctx)) for name in (first, second))
    rows = difference(a, b)
    groups = by_layer(rows)
    clean = [{k: v for k, v in row.items() if k[0] != "_"} for row in rows]

    def words() -> Iterable[str]:
        if tensors:
            shown = sorted(clean, key=lambda r: -float(r.get("relative", float("inf"))))[: top or None]
            for r in shown:
                yield f"{r['tensor']}: " + (r["note"] if "note" in r else
                    f"relative {r['relative']:.3g}, cosine {r['cosine']:.6f}, largest {r['largest']:.3g}, changed {r['changed']:.1%}")  # fmt: skip
            return
        most = max((g["relative"] for g in groups), default=0.0) or 1.0
        width = max((len(g["part"]) for g in groups), default=1)
        yield f"{'part':<{width}}   relative (the difference's norm over the first's)"
        for g in groups:
            bar = "#" * round(40 * g["relative"] / most)
            yield f"{g['part']:<{width}}  {g['relative']:9.3g}  {bar}" + (
                f"  ({g['notes']} not comparable)" if g["notes"] else ""
            )

    print_value({"first": first, "second": second, "layers": groups, "tensors": clean}, words)


def _explain(out: Path, tensor: str | None, model: Sequence[Path], base: Path | None) -> None:
    """What each source gave a merge, layer by layer; or what made one TENSOR. Numbers need the sources' folders."""
    from interfuse.merge.inspect import explain, explain_all

    if tensor is None:
        table = explain_all(out, models=model, base=base)
        print_value(table, lambda: _layers(table))
        return
    found = explain(out, tensor, models=model, base=base)

    def words() -> Iterable[str]:
        yield f"{found['tensor']}: {found['method']}"
        for source in found["sources"]:
            yield f"  from {source['model']}: {source['tensor']}"
        if found["base"]:
            yield f"  base {found['base']['model']}: {found['base']['tensor']}"
        for name, value in found["parameters"].items():
            yield f"  {name} = {value}"
        for name, value in found["told"].items():
            yield f"  computed {name}: {_numbers(value)}"
        numbers = found.get("numbers")
        if numbers is None:
            yield "  norms and conflicts: name the sources with --model A --model B --base C"
            return
        yield f"  norms of {numbers['of']}: {_numbers(numbers['norms'])}"
        yield f"  norm of the result: {numbers['norm of the result']:.4g}; cosines with it: " + ", ".join(
            f"{c:.4f}" for c in numbers["cosines with the result"]
        )
        yield f"  signs differ at {numbers['sign conflicts']:.1%} of the elements"

    print_value(found, words)


def _numbers(value: float | Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in (value if isinstance(value, Sequence) else [value]))


def _layers(found: dict[str, Any]) -> Iterable[str]:
    """A row for every layer."""
    yield f"{found['method']}: {', '.join(found['models'])}; numbers of each source in this order"
    rows = [*found["layers"], found["whole"]]
    told = list(dict.fromkeys(name for row in rows for name in row["told"]))
    heads = ["part", *(f"mean {name}" for name in told)]
    if not found["of"] and not told:
        yield "norms, cosines, conflicts and what was kept: name the sources with --model A --model B --base C"
        return
    if found["of"]:
        heads += [f"norms of {found['of']}", "of the result", "mean cosine", "conflicts", "kept"]
    lines = [heads]
    for row in rows:
        cells = [row["part"], *(_numbers(row["told"].get(name, [])) for name in told)]
        if found["of"]:
            cosines = [c for i, line in enumerate(row["cosines"]) for c in line[:i]]
            mean = f"{sum(cosines) / len(cosines):+.3f}" if cosines else ""
            cells += [_numbers(row["norms"]), f"{row['norm of the result']:.4g}", mean, f"{row['sign conflicts']:.1%}",
                      ", ".join(f"{k:+.3f}" for k in row["kept"])]  # fmt: skip
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    if found["of"]:
        yield "conflicts: elements at which sources differ in sign; kept: how much of each source's change is in the result, 1 is all of it"
    if found["other shapes"]:
        yield f"without the numbers of {', '.join(found['other shapes'])}: a source has another vocabulary"
    if not found["of"]:
        yield "norms, cosines, conflicts and what was kept: name the sources with --model A --model B --base C"


def _verify(out: Path, no_load: bool) -> None:
    """Check a merge: every byte, finite numbers, that it loads, and that a language model generates."""
    from interfuse.merge.inspect import verify_merge

    with contextlib.redirect_stdout(sys.stderr):
        found = verify_merge(out, generate=not no_load)
    print_value(
        found,
        lambda: [
            f"ok: {found['tensors']} finite tensors, the model loads"
            + (f" and generates {found['generated']}" if found["generated"] else "")
        ],
    )


def _extract(model: str, base: str | None, out: Path | None, rank: int, save_rest: bool, force: bool) -> None:
    """The change from a base to a model as a LoRA adapter that peft opens."""
    from interfuse.core.errors import InterfuseError
    from interfuse.core.rooms import Source
    from interfuse.data.models import open_model
    from interfuse.merge.inspect import extract_lora

    if base is None:
        raise InterfuseError("param.missing", "extract-lora needs the base the model was made from", where="--base")
    place, ctx = out or Path("runs") / "extract-lora", verb_context()
    with contextlib.redirect_stdout(sys.stderr):
        found = extract_lora(
            open_model(Source(model), ctx),
            open_model(Source(base), ctx),
            place,
            rank=rank,
            save_rest=save_rest,
            force=force,
        )
    print_value(
        found,
        lambda: [
            f"{found['matrices']} matrices of rank {rank} or less hold {found['share']:.2%} of the squared change: {place}"
        ],
    )


def _study(grid: Path, out: Path | None, dry_run: bool) -> None:
    """What matters when models are merged: methods x experts x sizes x bases, on trained and unseen tasks."""
    from interfuse.merge.study import read_study, run_study

    place = out or Path("runs") / f"study-{grid.stem}"
    with contextlib.redirect_stdout(sys.stderr):
        found: dict[str, Any]
        if dry_run:
            study = read_study(grid)
            found = {**study.cost(), **study.volume()}
        else:
            found = run_study(grid, place, verb_context())

    def words() -> Iterable[str]:
        if dry_run:
            looks = f", {found['looks']} times a model reads a table of examples" if "looks" in found else ""
            volume = f", {found['bytes']:,} bytes read and computed in about {found['seconds']:g} s, besides training and scoring"
            yield f"{found['cells']} cells, {found['merges']} merges{looks}{volume}: {place}"
            return
        for name, claim in found["claims"].items():
            told = "shown" if claim["low"] > 0 else "the reverse" if claim["high"] < 0 else "not told from chance"
            yield f"{name}: {claim['value']:+.3f} ({claim['low']:+.3f} to {claim['high']:+.3f}), {told}"
        yield from found["answers"].values()
        yield f"report: {place / 'report.html'}"

    print_value({"out": str(place), **found}, words)


def _command(name: str, callback: Callable[..., None], params: list[click.Parameter], example: str) -> click.Command:
    return click.Command(name, callback=callback, help=callback.__doc__, params=[*params, *shared_options()],
                         epilog=f"\b\nExample:\n  interfuse merge {example}")  # fmt: skip


_OUT = click.Option(["-o", "--out"], type=PATH, default=None, help="The folder to write.")
_FORCE = click.Option(["--force"], is_flag=True, help="Use the output folder even if something is there.")

VERBS = {
    "recipe": _command("recipe", _recipe, [
        click.Argument(["file"], type=PATH), _OUT,
        click.Option(["--dry-run"], is_flag=True, help="Check everything, print the plan, write nothing."),
        click.Option(["--seed"], type=int, default=0, show_default=True, help="All randomness comes from it."), _FORCE,
    ], "RECIPE.yml -o out/"),
    "lint": _command("lint", _lint, [click.Argument(["file"], type=PATH)], "lint RECIPE.yml"),
    "study": _command("study", _study, [
        click.Argument(["grid"], type=PATH), _OUT,
        click.Option(["--dry-run"], is_flag=True, help="Check the grid and count its merges."),
    ], "study GRID.yaml -o study/"),
    "diff": _command("diff", _diff, [
        click.Argument(["first"]), click.Argument(["second"]),
        click.Option(["--tensors"], is_flag=True, help="One line per tensor, the most changed first."),
        click.Option(["--top"], type=int, default=0, help="Only so many of them."),
    ], "diff A B"),
    "explain": _command("explain", _explain, [
        click.Argument(["out"], type=PATH), click.Argument(["tensor"], required=False),
        click.Option(["--model"], type=PATH, multiple=True, help="A source's folder; repeat it in the order of the merge."),
        click.Option(["--base"], type=PATH, default=None, help="The base's folder."),
    ], "explain out/ --model A --model B --base C"),
    "verify": _command("verify", _verify, [
        click.Argument(["out"], type=PATH), click.Option(["--no-generate", "no_load"], is_flag=True, help="Do not generate."),
    ], "verify out/"),
    "extract-lora": _command("extract-lora", _extract, [
        click.Argument(["model"]), click.Option(["--base"], default=None, help="The base the model was made from."), _OUT,
        click.Option(["--rank"], type=int, default=16, show_default=True, help="Largest rank of a matrix's change."),
        click.Option(["--save-rest"], is_flag=True, help="Keep changed norms, biases and embeddings whole in the adapter."), _FORCE,
    ], "extract-lora MODEL --base BASE --rank 16 -o adapter/"),
}  # fmt: skip
