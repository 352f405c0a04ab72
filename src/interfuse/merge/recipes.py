"""mergekit's YAML files, run by the merge room: every merge of a file is a call, and only the last one is written."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from interfuse.core.artifact import refuse_taken
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import Call, Source, carry_out, key_of, prepare
from interfuse.core.safe import writing_errors
from interfuse.data.formats.mergekit import Stage, read_mergekit
from interfuse.data.formats.mergekit_methods import SINGLE
from interfuse.data.models import Model, locate, open_model, tokenizer_folder
from interfuse.data.tables import Table
from interfuse.data.vocabulary import Vocabulary
from interfuse.merge.finish import open_vocabulary, write_surroundings
from interfuse.merge.prepare import everyone, leading, prepared
from interfuse.merge.room import ROOM, layout_of, promise
from interfuse.merge.unwritten import Unwritten


def recipe_call(path: str | Path, ctx: Ctx | None = None) -> tuple[Call, list[str]]:
    """Reads a mergekit file and checks every merge of it, from headers and tokenizers alone.

    Model names are folders (from the working folder, else from the file's), ids, or names of earlier merges in the file.

    Returns:
        The last merge's call, and what was accepted without effect.

    Raises:
        InterfuseError: ``recipe.syntax``, ``recipe.key`` or ``recipe.cycle`` with file and line, or what a call raises.
    """
    path, ctx = Path(path), ctx or Ctx()
    made: dict[str, Model] = {}
    notes: list[str] = []
    stages = read_mergekit(path)
    call: Call | None = None
    for stage in stages:
        where = f"{path}:{stage.line}"
        try:
            call = _call(stage, path, made, ctx)
            if stage is not stages[-1]:
                made[stage.name] = _unwritten(stage, call)
        except InterfuseError as error:
            line = _line(stage, error)
            place = (
                error.where
                if error.where.startswith(f"{path}:")
                else f"{path}:{line}"
                if line is not None
                else f"{where}: {error.where}"
                if error.where
                else where
            )
            raise InterfuseError(error.code, error.what, where=place, fix=error.fix) from error
        notes += [f"{stage.name}: {note}" if stage.name else note for note in stage.notes]
    assert call is not None, "a file holds at least one merge"
    return call, notes


def _line(stage: Stage, error: InterfuseError) -> int | None:
    """The line of what is refused: a model that is not there, a number out of its parameter's range, a condition that fits no tensor."""
    if error.code == "input.missing":
        return next((line for name, value, line in stage.spots if name == "model" and value == error.where), None)
    if error.code != "param.value":
        return None
    known = load(stage.method, room="merge").params
    for name, value, line in stage.spots:
        if error.where == f"{name}: {value}":
            return line
        if name in known and name not in SINGLE and error.what.startswith(f"{name} = "):
            try:
                known[name].check(value)
            except InterfuseError:
                return line
    return None


def _call(stage: Stage, path: Path, made: dict[str, Model], ctx: Ctx) -> Call:
    folder = path.parent

    def opened(name: str) -> Model:
        if name in made:
            return made[name]
        under, _, adapter = name.partition("+")
        if adapter and under in made:
            from interfuse.data.adapted import adapted_result

            return adapted_result(made[under], locate(adapter, _place(adapter, folder)), name)
        main = under.partition("@")[0]
        if main in made:
            raise InterfuseError("recipe.key", f"{main!r} is a merge of the same file and has no revisions", where=name,
                                 fix=f"Write {main}{'+' * bool(adapter)}{adapter}, or name one of the two otherwise.")  # fmt: skip
        return open_model(Source(name, folder=_place(main, folder)), ctx)

    given: dict[str, Any] = {"models": [opened(name) for name in stage.models], **stage.params}
    if stage.base is not None:
        given["base"] = opened(stage.base)
    if stage.tokenizer is not None:
        given["tokenizer"] = _vocabulary(stage.tokenizer, folder, opened, ctx)
    if stage.calibration:
        given["calibration"] = [_examples(spec, path, line, ctx) for spec, line in stage.calibration]
    return prepare(ROOM, load(stage.method, room="merge"), given, ctx)


def _place(name: str, folder: Path) -> Path:
    """Where a model or adapter is looked for: in the working folder, else beside the recipe."""
    return folder if (folder / name).is_dir() and not Path(name).is_dir() else Path()


def _examples(spec: Any, path: Path, line: int, ctx: Ctx) -> Table:
    """A table of examples, its file looked for from the working folder, else from the recipe's."""
    from interfuse.merge.calibrate import open_examples

    file = spec.get("data") if isinstance(spec, dict) else spec
    beside = not (isinstance(file, str) and Path(file).expanduser().exists())
    try:
        return open_examples(Source(spec, folder=path.parent if beside else Path()), ctx)
    except InterfuseError as error:
        place = f"{path}:{line}" + (f": {error.where}" if error.where else "")
        raise InterfuseError(error.code, error.what, where=place, fix=error.fix) from error


def _vocabulary(word: str, folder: Path, opened: Any, ctx: Ctx) -> Vocabulary:
    if word in ("base", "union"):
        return Vocabulary(word)
    try:
        place = tokenizer_folder(opened(word))
    except InterfuseError:
        place = None  # a folder that holds a tokenizer and no model
    return (
        Vocabulary(Path(word).name, place) if place is not None else open_vocabulary(Source(word, folder=folder), ctx)
    )


def _unwritten(stage: Stage, call: Call) -> Model:
    """The result of a merge that later merges of the file read.

    What would stand beside its weights is written as for any result, since its tokenizer may be that of no source: into a temporary
    folder that goes with the result.
    """
    first, computed = leading(call), Unwritten(call)
    with writing_errors(Path(tempfile.gettempdir())):
        folder = Path(tempfile.mkdtemp(prefix="interfuse-"))
    removed = weakref.finalize(computed, shutil.rmtree, folder, ignore_errors=True)
    with prepared(call) as plan, writing_errors(folder):
        write_surroundings(call, folder, plan, layout_of(call, plan), first, everyone(call))
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else first.config
    place: Path | None = folder
    if call.inputs["tokenizer"] is None and not call.params["chat_template"]:
        removed()
        place = tokenizer_folder(first)
    return dataclasses.replace(first, name=stage.name, path=None, module=None, config=config, tokenizer=place,
                               computed=computed, made_by=call.method.id, parents=(), key="")  # fmt: skip


def merge_recipe(
    path: str | Path, out: str | Path, *, ctx: Ctx | None = None, seed: int | None = None, force: bool = False
) -> Model:
    """Runs a mergekit file.

    Args:
        path: the YAML file. out: the folder of the merged model.

    Returns:
        The merged model.

    Raises:
        InterfuseError: as :func:`recipe_call`, before work starts; or whatever stops the work.
    """
    ctx = ctx or Ctx()
    ctx = ctx if seed is None else ctx.with_(seed=seed)
    refuse_taken(Path(out), force=force)
    call, notes = recipe_call(path, ctx)
    for note in notes:
        ctx.log(note)
    carry_out(ROOM, call, Path(out), key_of(call), force=force)
    return promise(call, Path(out))
