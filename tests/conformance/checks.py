"""The checks every method must pass. A check is a function of a workspace that raises AssertionError (or lets an error out).

Each has at least one planted fault in ``broken.py`` that it must catch.
"""

# ruff: noqa: PT017, PT018  (assertions with words, outside of test functions)
from __future__ import annotations

import inspect
import json
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.fields import FieldInfo

from interfuse.core import index
from interfuse.core.artifact import MANIFEST, verify
from interfuse.core.errors import InterfuseError
from interfuse.core.method import Method, load
from interfuse.core.rooms import apply, load_room
from tests.conformance.workspace import Workspace, digests

Check = Callable[[Workspace], None]
#: name -> check, in the order they run
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def _same(ours: Mapping[str, str], theirs: Mapping[str, str], what: str) -> None:
    wrong = sorted(n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n))
    assert ours and not wrong, f"{what}: {', '.join(wrong) or 'no files at all'}"


# ------------------------------------------------------------------------------------------------ the result


@check
def runs_for_real(ws: Workspace) -> None:
    """It does its work on the tiny input, and the work shows: there are files beside the manifest."""
    assert len(digests(ws.first())) >= 2, "the artifact holds nothing but its manifest"


@check
def output_of_declared_kind(ws: Workspace) -> None:
    """The manifest names the room's kind and the method, and the noun that is given back opens as such."""
    manifest = json.loads((ws.first() / MANIFEST).read_text())
    room = load_room(ws.case.room)
    assert manifest["kind"] == room.kind, f"the manifest says {manifest['kind']}, the room makes {room.kind}"
    assert manifest["method"] == ws.case.method
    noun = ws.notes["noun"]
    assert noun.path == ws.first() and len(noun.fingerprint()) >= 32, "the noun does not name the artifact"


@check
def output_finite(ws: Workspace) -> None:
    """No number of the artifact is NaN or infinite."""
    for name, array in ws.opened().items():
        array = np.asarray(array)
        assert array.dtype.kind not in "fc" or np.isfinite(array).all(), f"{name} is not finite"


@check
def dtype_kept(ws: Workspace) -> None:
    """Floating numbers of the artifact have the dtype of what went in."""
    for name, array in ws.opened().items():
        dtype = np.asarray(array).dtype
        assert dtype.kind != "f" or str(dtype) == ws.scene.dtype, f"{name} is {dtype}, not {ws.scene.dtype}"


@check
def opens_in_its_ecosystem(ws: Workspace) -> None:
    """The artifact opens with the tools its users have, and holds something."""
    opened = ws.opened()
    assert opened and sum(np.asarray(v).size for v in opened.values()) > 1, "it opens, but there is nothing in it"


@check
def artifact_verifies(ws: Workspace) -> None:
    """Every file is in the manifest with its hash; lineage, parameters and environment are there."""
    manifest = verify(ws.first()).manifest
    method = load(ws.case.method)
    assert set(manifest["params"]) == set(method.params) - set(method.unkeyed), (
        "the manifest does not hold every parameter"
    )
    assert manifest["version"] == method.version() and manifest["environment"]["torch"]
    given = [i.name for i in load_room(ws.case.room).inputs if i.name in ws.given()]
    assert set(manifest["inputs"][0]) == set(given), "the lineage does not name every input"
    assert str(ws.shared.root) not in json.dumps(manifest), "the manifest holds a path of this machine"


@check
def matches_oracle(ws: Workspace) -> None:
    """The method's numbers are those of its slow oracle in tests/oracles."""
    scene = ws.scene
    assert scene.compare is not None, "the room's fixture says how an oracle is compared"
    oracle = find_oracle(ws.case.room, ws.case.oracle)
    pairs = scene.compare(oracle)
    assert pairs, "nothing was compared"
    for name, ours, theirs in pairs:
        theirs = np.asarray(theirs, dtype=np.float64)
        assert np.isfinite(theirs).all(), f"{name}: the oracle is not finite"
        np.testing.assert_allclose(ours, theirs, rtol=scene.tolerance, atol=scene.tolerance * 1e-2, err_msg=name)


def find_oracle(room: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of the one file ``tests/oracles/<room>*_oracle.py`` that has it."""
    import importlib

    assert name, "the case names no oracle: oracle=..."
    files = sorted((Path(__file__).parents[1] / "oracles").glob(f"{room}*_oracle.py"))
    modules = [importlib.import_module(f"tests.oracles.{f.stem}") for f in files]
    found = [vars(m)[name] for m in modules if name in vars(m) and vars(m)[name].__module__ == m.__name__]
    assert len(found) == 1, f"{len(found)} oracles are named {name!r} in {[f.name for f in files]}"
    return typing.cast(Callable[..., Any], found[0])


# ------------------------------------------------------------------------------------------------ the same again


@check
def same_seed_same_bytes(ws: Workspace) -> None:
    """Two runs with one seed give the same bytes in every file."""
    _same(digests(ws.first()), digests(ws.second()), "differs between two runs with the same seed")


@check
def same_bytes_in_another_process(ws: Workspace) -> None:
    """A process with another hash seed, and inputs in another folder, gives the same bytes."""
    _same(digests(ws.first()), ws.shared.in_another_process(ws.label or ws.case.method), "differs in another process")


@check
def seed_matters_as_declared(ws: Workspace) -> None:
    """Another seed gives another result, or the same one if the case says ``random=False``."""
    one, two = digests(ws.first()), digests(ws.seed_one())
    one.pop(MANIFEST), two.pop(MANIFEST)
    if ws.case.random:
        assert one != two, "another seed gives the same bytes; say random=False if that is meant"
    else:
        _same(one, two, "random=False, yet another seed gives other bytes")


@check
def resume_equals_one_go(ws: Workspace) -> None:
    """Killed in the middle and carried on gives the bytes of one go."""
    _same(digests(ws.first()), digests(ws.resumed()), "differs after a resume")
    assert any("resum" in line for line in ws.notes["resume log"]), "the second run did not go on, it began again"


# ------------------------------------------------------------------------------------------------ what must not change


@check
def inputs_untouched(ws: Workspace) -> None:
    """Files are as they were; so are modules (weights, flags, hooks) and tables in memory."""
    ws.first()
    _same(ws.notes["inputs before"], ws.notes["inputs after"], "input files changed")
    before, after = ws.in_memory()
    for name in before:
        assert before[name] == after[name], f"the object given as {name!r} is not as it was"


@check
def global_state_untouched(ws: Workspace) -> None:
    """Random states, default dtype, gradient mode, threads, working folder and environment are as they were."""
    ws.first()
    before, after = ws.notes["world before"], ws.notes["world after"]
    for name in before:
        assert before[name] == after[name], f"{name} changed: {before[name]:.2000} -> {after[name]:.2000}"


# ------------------------------------------------------------------------------------------------ bad input


def _refused(ws: Workspace, name: str, given: Mapping[str, Any], codes: tuple[str, ...], or_works: bool = False) -> str:
    """Applies the method; it must raise an InterfuseError of one of the codes and leave nothing. Gives its whole text."""
    out = ws.place("bad-" + name.replace(" ", "-").replace("/", "-"))
    assert not out.parent.exists(), f"two bad inputs are called {name!r}"
    out.parent.mkdir(parents=True)
    try:
        apply(ws.case.method, out=out, seed=0, **given)
    except InterfuseError as error:
        assert error.code in codes, f"{name}: the code is {error.code}, not {' or '.join(codes)}\n{error}"
        assert error.what, f"{name}: the error says nothing"
        left = [p.name for p in out.parent.iterdir() if not (p.name.startswith(".") and p.name.endswith(".lock"))]
        assert not left, f"{name}: {left} was left behind"
        return str(error)
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__} without a code: {error}") from error
    assert or_works, f"{name}: it was not refused"
    verify(out)
    for tensor, array in ws.scene.opens(out).items():
        assert np.asarray(array).dtype.kind not in "fc" or np.isfinite(array).all(), f"{name}: {tensor} is not finite"
    return ""


def _bad(ws: Workspace, check_name: str) -> None:
    bad = ws.scene.bad.get(check_name, ())
    assert bad, f"the room's fixture has no bad input for {check_name}"
    for item in bad:
        _refused(ws, item.label, ws.given(item.given), item.codes, item.or_works)


@check
def refuses_wrong_shape(ws: Workspace) -> None:
    """Shapes and counts that do not fit each other."""
    _bad(ws, "refuses_wrong_shape")


@check
def refuses_empty(ws: Workspace) -> None:
    """Nothing to work on."""
    _bad(ws, "refuses_empty")


@check
def one_row(ws: Workspace) -> None:
    """One row works, or is refused with a code."""
    _bad(ws, "one_row")


@check
def refuses_nan(ws: Workspace) -> None:
    """A number that is none."""
    _bad(ws, "refuses_nan")


@check
def refuses_duplicates(ws: Workspace) -> None:
    """A name or identifier that occurs twice."""
    _bad(ws, "refuses_duplicates")


@check
def refuses_missing_input(ws: Workspace) -> None:
    """A required input that is not given."""
    _bad(ws, "refuses_missing_input")


@check
def refuses_unknown_parameter(ws: Workspace) -> None:
    """A misspelt parameter, and a misspelt input, are refused with the right name suggested."""
    names = [*load(ws.case.method).params, *(i.name for i in load_room(ws.case.room).inputs)]
    for name in dict.fromkeys((names[0], names[-1], *(i.name for i in load_room(ws.case.room).inputs))):
        said = _refused(ws, f"unknown {name}x", {**ws.given(), name + "x": 1}, ("param.unknown",))
        assert "Did you mean" in said and name in said, f"{name}x: no suggestion of {name!r} in {said!r}"


@check
def refuses_out_of_range(ws: Workspace) -> None:
    """Every number with a declared range is refused just outside it."""
    for name, param in load(ws.case.method).params.items():
        for number, value in enumerate(just_outside(param.annotation)):
            said = _refused(ws, f"{name} {number}", {**ws.given(), name: value}, ("param.value",))
            assert name in said, f"the error does not name {name}: {said}"


def just_outside(annotation: Any) -> Iterator[Any]:
    """Values of the right type just outside every range that an annotation declares, inside its lists too."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        whole = int in _leaves(args[0]) and float not in _leaves(args[0])
        step = 1 if whole else 1e-6
        kinds: set[str] = set()
        for info in args[1:]:
            for bound in info.metadata if isinstance(info, FieldInfo) else [info]:
                for key, sign, closed in (("ge", -1, True), ("gt", -1, False), ("le", 1, True), ("lt", 1, False)):
                    limit = getattr(bound, key, None)
                    if isinstance(limit, int | float) and key not in kinds:
                        kinds.add(key)
                        value = limit + sign * step * max(1.0, abs(limit)) if closed else limit
                        yield int(value) if whole and float(value).is_integer() else float(value)
        yield from just_outside(args[0])
    elif origin in (list, tuple):
        yield from ([value] for arg in args for value in just_outside(arg))
    elif origin is dict:
        yield from ({"any": value} for value in just_outside(args[1]))
    else:
        for arg in args if origin is not typing.Literal else ():
            yield from just_outside(arg)


def _leaves(annotation: Any) -> list[Any]:
    args = typing.get_args(annotation)
    return [leaf for arg in args for leaf in _leaves(arg)] if args else [annotation]


# ------------------------------------------------------------------------------------------------ what is said about it


@check
def parameters_documented(ws: Workspace) -> None:
    """Every parameter has a type, a description, and a default within its own range."""
    method = load(ws.case.method)
    for name, param in method.params.items():
        assert param.annotation is not Any, f"{name} has no type"
        assert len(param.doc) >= 5 and param.doc != name, f"{name} has no description"
        if not param.required and param.default is not None:
            checked = param.check(param.default)
            assert checked == param.default or (isinstance(checked, float) and math.isclose(checked, param.default))


@check
def docstrings_present(ws: Workspace) -> None:
    """The module, the method and its Python door say what they are."""
    method = load(ws.case.method)
    module = inspect.getmodule(method.target)
    for what, thing in (("module", module), ("method", method.target), ("door", _door(ws))):
        text = inspect.getdoc(thing) or ""
        assert len(text.split()) >= 5, f"the {what} has no docstring"
        assert not text.startswith(f"{getattr(thing, '__name__', '')}("), f"the {what}'s docstring is a bare signature"


def _door(ws: Workspace) -> Any:
    import interfuse

    return getattr(getattr(interfuse, ws.case.room), ws.case.slug.replace("-", "_"))


@check
def card_complete(ws: Workspace) -> None:
    """Title, what it takes and makes, the paper with authors and year, the idea, and when not to use it; and its status is
    not above what is there to support it: ``checked`` needs an oracle, ``reproduced`` a claim that was measured and shown."""
    method: Method = load(ws.case.method)
    card, row = method.card, method.entry.row()
    assert all(row[key] for key in ("title", "takes", "makes", "status")), f"the row of the list has a gap: {row}"
    if card.paper:
        assert card.paper.startswith("https://") and card.authors and card.year, "paper without link, authors or year"
        assert "@misc" in card.bibtex(ws.case.slug)
    assert "When not to use it" in card.body, "the card does not say when not to use it"
    assert len(card.body.split()) >= 30, "the card does not explain the idea"
    if card.status in ("checked", "reproduced"):
        assert ws.case.oracle, f"the status is {card.status}, but the case names no oracle"
        find_oracle(ws.case.room, ws.case.oracle)
        na = {**ws.scene.not_applicable, **ws.case.na}
        assert "matches_oracle" not in na, f"the status is {card.status}, but the oracle is not compared"
    if card.status == "reproduced":
        shown = [c for c in card.claims if c.shown == "yes" and c.ours != "not measured yet"]
        assert shown, "the status is reproduced, but no claim of the card is measured and shown"


@check
def python_door_works(ws: Workspace) -> None:
    """``interfuse.<room>.<method>(...)`` makes the artifact that ``apply`` makes."""
    verify(ws.second())
    assert index.find(ws.case.method).id == ws.case.method
    manifest = json.loads((ws.second() / MANIFEST).read_text())
    assert manifest["method"] == ws.case.method


@check
def command_line_helps(ws: Workspace) -> None:
    """``interfuse <room> <method> --help`` names a flag for every input and parameter."""
    from click.testing import CliRunner

    from interfuse.cli.main import app

    result = CliRunner().invoke(app, [ws.case.room, ws.case.slug, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    flags = [f"--{name.replace('_', '-')}" for name in load(ws.case.method).params]
    flags += [f"--{i.name.replace('_', '-')}" for i in load_room(ws.case.room).inputs if not i.positional]
    words = result.output.replace(",", " ").split()
    missing = [flag for flag in flags if not any(w == flag or w.startswith(flag + "/") for w in words)]
    assert not missing, f"the help page does not name {missing}"
