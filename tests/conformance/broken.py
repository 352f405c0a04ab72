"""Faults planted on purpose: for every check at least one method, room or spine that the check must catch.

A fault is a name, the check that must see it, a pattern its complaint must match (so that it is caught for the right reason),
and a way to plant it. Methods are planted as ``distill/planted``: a sound copy of knowledge distillation, but for the fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import itertools
import os
import random
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
from pydantic import Field

import interfuse
from interfuse.core import index
from interfuse.core import method as methods
from interfuse.core import rooms as core_rooms
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Room
from interfuse.distill import room as engine
from interfuse.distill.hooks import Hooks, Needs, Run, Views, hard_loss
from interfuse.kit.losses import forward_kl
from tests.conformance.cases import Case

ID = "distill/planted"
Plant = Callable[[], contextlib.AbstractContextManager[Case]]


@dataclass(frozen=True)
class Fault:
    """What is wrong, which check must say so, and in words that match ``says``."""

    name: str
    check: str
    says: str
    plant: Plant


FAULTS: list[Fault] = []

CARD = """---
title: Knowledge distillation, planted
authors: Geoffrey Hinton, Oriol Vinyals, Jeff Dean
year: 2015
paper: https://arxiv.org/abs/1503.02531
status: checked
---
The student matches the teacher's class probabilities at a raised temperature; this copy exists for tests of the tests, which
plant one fault in it at a time and ask whether the battery sees it.

**When not to use it.** Ever, but for that.
"""


@dataclass(frozen=True)
class Planted(Hooks):
    """Knowledge distillation, sound: what every planted method starts from."""

    alpha: Annotated[float, Field(ge=0, le=1, description="weight of the teacher")] = 0.9
    tau: Annotated[float, Field(gt=0, description="temperature")] = 4.0

    def needs(self) -> Needs:
        return Needs(labels=True, teachers=(1, 1))

    def terms(self, run: Run, views: Views) -> dict[str, torch.Tensor]:
        return {"kd": forward_kl(views.student, views.teachers[0], tau=self.tau), "ce": hard_loss(views)}

    def weights(self, run: Run, views: Views) -> dict[str, float | torch.Tensor]:
        return {"kd": self.alpha, "ce": 1 - self.alpha}


def _method(doc: str = "Knowledge distillation with a fault planted in it.", **hooks: Any) -> type:
    """A sound method with some hooks replaced; ``weights_of`` changes the teacher's weight."""
    made = dataclass(frozen=True)(type("PlantedFault", (Planted,), {"__doc__": doc, "__module__": __name__, **hooks}))
    return method()(made)


@contextlib.contextmanager
def planted(target: type, card: str = CARD, **line: Any) -> Iterator[Case]:
    """A method in the index, with its module and card, as if it lay in the room's folder."""
    name = "tests.conformance._planted"
    module = ModuleType(name, "A method planted by the tests of the battery, sound but for one fault.")
    module.__file__ = __file__
    target.__module__ = name
    setattr(module, target.__name__, target)
    sys.modules[name] = module
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planted.md"
        path.write_text(card)
        real = index.entries()
        found = {**real, ID: index.Entry(ID, "method", path, name)}
        with mock.patch.object(index, "entries", return_value=found):
            yield Case(ID, **{"inputs": "images", "oracle": "kd_loss", "given": {"teachers": 1}, **line})


@contextlib.contextmanager
def sound() -> Iterator[Case]:
    """Nothing is wrong: every check must pass."""
    with planted(_method()) as case:
        yield case


SOUND = Fault("nothing", "", "", sound)


def bad_method(name: str, check: str, says: str, *, card: str = CARD, line: Mapping[str, Any] | None = None, **hooks: Any) -> None:  # fmt: skip
    """A fault in a method's hooks or card."""

    @contextlib.contextmanager
    def plant() -> Iterator[Case]:
        with planted(_method(**hooks), card, **(line or {})) as case:
            yield case

    FAULTS.append(Fault(name, check, says, plant))


def bad_house(name: str, check: str, says: str, change: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
    """A fault in the room's engine or in the spine, under a sound method."""

    @contextlib.contextmanager
    def plant() -> Iterator[Case]:
        with planted(_method()) as case, change():
            yield case

    FAULTS.append(Fault(name, check, says, plant))


def _room(**changes: Any) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    return lambda: mock.patch.object(engine, "ROOM", dataclasses.replace(engine.ROOM, **changes))


def _weighing(factor: Callable[[Run], float]) -> dict[str, Any]:
    """A hook that multiplies the teacher's weight."""
    return {"weights": lambda self, run, views: {"kd": self.alpha * factor(run), "ce": 1 - self.alpha}}


# ------------------------------------------------------------------------------------------------ the result


def _run_then(after: Callable[[Path], None]) -> Callable[..., Any]:
    def run(call: Any, folder: Path) -> Any:
        facts = REAL.run(call, folder)
        after(folder)
        return facts

    return run


REAL: Room = engine.ROOM

bad_house("a room that does nothing", "runs_for_real", "nothing but its manifest", _room(run=lambda call, folder: {}))
bad_house("a promise of another place", "output_of_declared_kind", "does not name the artifact",
          _room(promise=lambda call, path: REAL.promise(call, path.parent)))  # fmt: skip
bad_house("a manifest of another kind", "output_of_declared_kind", "the manifest says thing", lambda: mock.patch.object(
    core_rooms, "manifest_of", lambda *a, **k: {**REAL_MANIFEST(*a, **k), "kind": "thing"}))  # fmt: skip
REAL_MANIFEST = core_rooms.manifest_of


def _poisoned(self: Any, run: Run) -> torch.nn.Module:
    with torch.no_grad():
        next(iter(run.student.parameters())).view(-1)[3] = float("nan")
    return run.student


bad_method("NaN in a weight", "output_finite", "is not finite", export=_poisoned)
bad_method("half precision at the end", "dtype_kept", "is float16", export=lambda self, run: run.student.half())
bad_method("double precision at the end", "dtype_kept", "is float64", export=lambda self, run: run.student.double())


def _rename_tensors(folder: Path) -> None:
    import safetensors.torch

    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({f"wrapped.{k}": v for k, v in tensors.items()}, file, metadata={"format": "pt"})


def _swap_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


bad_house("tensors under foreign names", "opens_in_its_ecosystem", "missing_keys", _room(run=_run_then(_rename_tensors)))  # fmt: skip
bad_house("weights in a file nobody looks for", "opens_in_its_ecosystem", "model.safetensors", _room(run=_run_then(_swap_weights)))  # fmt: skip


def _late(path: Any, *args: Any, **rest: Any) -> Any:
    made = REAL_SAVE(path, *args, **rest)
    (Path(path) / "late.txt").write_text("too late")
    return made


REAL_SAVE = core_rooms.save_artifact
bad_house("a file after the manifest", "artifact_verifies", "late.txt is not in the manifest", lambda: mock.patch.object(core_rooms, "save_artifact", _late))  # fmt: skip
bad_house("a path of this machine in the manifest", "artifact_verifies", "holds a path", _room(
    run=lambda call, folder: {**REAL.run(call, folder), "where": str(call.inputs["teacher"][0].path)}))  # fmt: skip
bad_house("parameters left out", "artifact_verifies", "every parameter", lambda: mock.patch.object(
    core_rooms, "manifest_of", lambda *a, **k: {**REAL_MANIFEST(*a, **k), "params": {}}))  # fmt: skip
bad_house("lineage left out", "artifact_verifies", "lineage", lambda: mock.patch.object(
    core_rooms, "manifest_of", lambda *a, **k: {**REAL_MANIFEST(*a, **k), "inputs": [{}]}))  # fmt: skip

bad_method("tau squared forgotten", "matches_oracle", "kd", terms=lambda self, run, views: {
    "kd": forward_kl(views.student, views.teachers[0], tau=self.tau, scaled=False), "ce": hard_loss(views)})  # fmt: skip
bad_method("the other direction of KL", "matches_oracle", "kd", terms=lambda self, run, views: {
    "kd": forward_kl(views.teachers[0], views.student, tau=self.tau), "ce": hard_loss(views)})  # fmt: skip
bad_method("a term too many", "matches_oracle", "the oracle names the terms", terms=lambda self, run, views: {
    **Planted.terms(self, run, views), "secret": hard_loss(views)})  # fmt: skip
bad_method("weights the wrong way round", "matches_oracle", "ce|kd", weights=lambda self, run, views: {"kd": 1 - self.alpha, "ce": self.alpha})  # fmt: skip
bad_method("no oracle of this name", "matches_oracle", "0 oracles are named", line={"oracle": "kd_lost"})

# ------------------------------------------------------------------------------------------------ the same again

_COUNT = itertools.count(1)


def _fraction(text: str) -> float:
    """Between 0 and 1, another one for another text: two processes do not agree by chance."""
    return zlib.crc32(text.encode()) / 2**32


bad_method("a counter that outlives the run", "same_seed_same_bytes", "two runs", **_weighing(lambda run: 1 / next(_COUNT)))  # fmt: skip
bad_method("fresh entropy", "same_seed_same_bytes", "two runs", **_weighing(lambda run: np.random.default_rng().random()))  # fmt: skip
bad_method("string hashes", "same_bytes_in_another_process", "another process", **_weighing(
    lambda run: _fraction(str(hash("teacher")))))  # fmt: skip
bad_method("an order of a set", "same_bytes_in_another_process", "another process", **_weighing(
    lambda run: _fraction(",".join({f"layer{i}" for i in range(50)}))))  # fmt: skip
bad_method("the place of an input", "same_bytes_in_another_process", "another process", **_weighing(
    lambda run: _fraction(str(run.teacher_models[0].path))))  # fmt: skip
bad_house("deaf to the seed", "seed_matters_as_declared", "another seed gives the same bytes", lambda: mock.patch.object(
    Ctx, "seed_for", lambda self, name: len(name)))  # fmt: skip
bad_method("said not to be random", "seed_matters_as_declared", "random=False", line={"random": False})


def _forgetful(run: Run) -> float:
    run.facts["steps seen"] = run.facts.get("steps seen", 0) + 1  # facts are not part of a checkpoint
    return 1.0 / run.facts["steps seen"]


bad_method("state a checkpoint does not hold", "resume_equals_one_go", "after a resume", **_weighing(_forgetful))
bad_house("a checkpoint nobody reads", "resume_equals_one_go", "began again", lambda: mock.patch.object(engine, "load_state", return_value=None))  # fmt: skip
bad_house("a checkpoint nobody writes", "resume_equals_one_go", "not interrupted", lambda: mock.patch.object(engine, "load_state", _finish_first))  # fmt: skip


def _finish_first(*args: Any) -> None:
    engine.CHECKPOINT_SECONDS = 1e9  # restored by the scene


# ------------------------------------------------------------------------------------------------ what must not change


def _teach_the_teacher(self: Any, run: Run) -> None:
    with torch.no_grad():
        next(iter(run.teachers[0].parameters())).mul_(1.01)


def _take_notes(self: Any, run: Run) -> None:
    if run.teacher_models[0].path is not None:
        (run.teacher_models[0].path / "notes.log").write_text(str(run.steps))


def _retag(self: Any, run: Run) -> None:
    if run.teacher_models[0].module is not None:
        run.teacher_models[0].module.eval()


def _hook_up(self: Any, run: Run) -> None:
    if run.teacher_models[0].module is not None:
        run.teacher_models[0].module.register_forward_hook(lambda *a: None)


def _scribble(folder: Path) -> None:
    (folder / "notes.log").write_text("seen")


bad_method("a teacher that learns", "inputs_untouched", "'teacher'", setup=_teach_the_teacher)
bad_method("a note in an input's folder", "inputs_untouched", "input files changed", setup=_take_notes)
bad_method("a module left in another mode", "inputs_untouched", "'teacher'", setup=_retag)
bad_method("a hook left behind", "inputs_untouched", "'teacher'", setup=_hook_up)
bad_house("a student trained in place", "inputs_untouched", "'student'", lambda: mock.patch.object(engine, "build", _in_place))  # fmt: skip
REAL_BUILD = engine.build


def _in_place(model: Any, ctx: Any, *, train: bool = False) -> torch.nn.Module:
    return model.module.train(train) if model.module is not None and train else REAL_BUILD(model, ctx, train=train)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Puts back whatever a fault does to the world."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    place, dtype, threads = os.getcwd(), torch.get_default_dtype(), torch.get_num_threads()
    with mock.patch.dict(os.environ), np.errstate():
        yield
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    random.setstate(state[2])
    os.chdir(place)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)


def bad_manners(what: str, does: Callable[[], Any]) -> None:
    def run(call: Any, folder: Path) -> Any:
        facts = REAL.run(call, folder)
        does()
        return facts

    @contextlib.contextmanager
    def change() -> Iterator[None]:
        with _restored(), _room(run=run)():
            yield

    bad_house(f"left changed: {what}", "global_state_untouched", f"^{what}", change)


def _seeds_within_a_fence() -> None:
    """What would be dropped at random in every step is the same from here on; the state is restored all the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)


bad_manners("torch's random state", lambda: torch.manual_seed(5))
bad_manners("seeds of global generators", _seeds_within_a_fence)
bad_manners("NumPy's random state", lambda: np.random.seed(5))  # noqa: NPY002
bad_manners("Python's random state", lambda: random.seed(5))
bad_manners("default dtype", lambda: torch.set_default_dtype(torch.float64))
bad_manners("gradient mode", lambda: torch.set_grad_enabled(False))
bad_manners("threads", lambda: torch.set_num_threads(torch.get_num_threads() + 1))
bad_manners("deterministic algorithms", lambda: torch.use_deterministic_algorithms(True))
bad_manners("NumPy's error handling", lambda: np.seterr(over="raise"))
bad_manners("working folder", lambda: os.chdir(tempfile.gettempdir()))
bad_manners("environment", lambda: os.environ.update(TOKENIZERS_PARALLELISM="maybe"))

# ------------------------------------------------------------------------------------------------ bad input


def _without_codes(call: Callable[..., Any]) -> Callable[..., Any]:
    """Errors deep inside, without a code."""

    @functools.wraps(call)
    def wrapped(*args: Any, **rest: Any) -> Any:
        try:
            return call(*args, **rest)
        except InterfuseError as error:
            raise ValueError(error.what) from error

    return wrapped


def _coarse_room() -> contextlib.AbstractContextManager[Any]:
    inputs = tuple(dataclasses.replace(i, open=_without_codes(i.open)) for i in REAL.inputs)
    return _room(inputs=inputs, check=_without_codes(REAL.check), run=_without_codes(REAL.run))()


@contextlib.contextmanager
def _careless_room() -> Iterator[None]:
    """It looks at nothing and always makes the same thing."""
    from datasets import Dataset

    from interfuse.data import tables

    digits = Dataset.from_dict({"image": [[[0.5] * 8] * 8] * 4, "label": list("0123")})

    def open_whatever(source: Any, ctx: Any) -> Any:
        return tables.from_dataset(digits, "whatever")

    inputs = tuple(
        dataclasses.replace(i, required=False, open=open_whatever if i.name == "data" else i.open) for i in REAL.inputs
    )

    def run(call: Any, folder: Path) -> dict[str, Any]:
        (folder / "model.txt").write_text("a model")
        return {}

    rest = {"check": lambda call: None, "promise": lambda call, path: call.inputs["data"]}
    with _room(inputs=inputs, run=run, **rest)():
        yield


def _half_written(path: Any, write: Callable[[Path], Any], manifest: Any, **rest: Any) -> Any:
    Path(path).mkdir(parents=True, exist_ok=True)
    (Path(path) / "config.json").write_text("{}")
    return write(Path(path))


def _leave_temporary(path: Any, write: Callable[[Path], Any], manifest: Any, **rest: Any) -> Any:
    (Path(path).parent / ".artifact.tmp-1").mkdir(parents=True)
    return write(Path(path).parent / ".artifact.tmp-1")


SEEN_REFUSED = ("refuses_wrong_shape", "refuses_empty", "refuses_nan", "refuses_duplicates")
for _check in SEEN_REFUSED:
    bad_house(f"errors without a code ({_check})", _check, "ValueError without a code", _coarse_room)
    bad_house(f"a room that looks at nothing ({_check})", _check, "was not refused", _careless_room)
bad_house("a half-written artifact", "refuses_nan", "left behind", lambda: mock.patch.object(core_rooms, "save_artifact", _half_written))  # fmt: skip
bad_house("a temporary folder left", "refuses_nan", "left behind", lambda: mock.patch.object(core_rooms, "save_artifact", _leave_temporary))  # fmt: skip
bad_house("the wrong code", "refuses_wrong_shape", "the code is input.type", _room(check=lambda call: _deny()))


def _deny() -> None:
    raise InterfuseError("input.type", "no")


bad_house("inputs that are not required", "refuses_missing_input", "without a code|was not refused", _room(
    inputs=tuple(dataclasses.replace(i, required=False) for i in REAL.inputs)))  # fmt: skip
bad_house("a room that needs nothing", "refuses_missing_input", "was not refused", _careless_room)


def _needs_two(self: Any, run: Run, order: Any) -> Any:
    return order[: int(1 / (len(run.data) - 1)) or None]


def _all_one(self: Any, run: Run) -> torch.nn.Module:
    if len(run.data) == 1:
        _poisoned(self, run)
    return run.student


bad_method("a division by rows less one", "one_row", "ZeroDivisionError without a code", select=_needs_two, line={"given": {"teachers": 1, "student": "vit"}})  # fmt: skip
bad_method("NaN from one row", "one_row", "is not finite", export=_all_one, line={"given": {"teachers": ["resnet"], "student": "vit"}})  # fmt: skip


def _lenient(self: Any, values: Mapping[str, Any], **_: Any) -> dict[str, Any]:
    return REAL_CHECK(self, {k: v for k, v in values.items() if k in self.params})


REAL_CHECK = methods.Method.check
bad_house("unknown parameters pass", "refuses_unknown_parameter", "was not refused", lambda: mock.patch.object(methods.Method, "check", _lenient))  # fmt: skip
bad_house("no suggestion", "refuses_unknown_parameter", "no suggestion", lambda: mock.patch.object(methods, "did_you_mean", return_value=""))  # fmt: skip
bad_house("ranges nobody checks", "refuses_out_of_range", "was not refused|the code is", lambda: mock.patch.object(
    methods.Param, "check", lambda self, value, where="": value))  # fmt: skip


def _closed(self: Any, value: Any, where: str = "") -> Any:
    """Lets the limits themselves pass, also where they are excluded."""
    edges = {"lr": 0.0}
    return value if edges.get(self.name) == value else REAL_PARAM_CHECK(self, value, where)


REAL_PARAM_CHECK = methods.Param.check
bad_house("an excluded limit passes", "refuses_out_of_range", "lr .*was not refused", lambda: mock.patch.object(methods.Param, "check", _closed))  # fmt: skip

# ------------------------------------------------------------------------------------------------ what is said about it


def _with_parameter(annotation: Any, default: Any) -> dict[str, Any]:
    return {"extra": default, "__annotations__": {"extra": annotation}}


bad_method("a parameter without description", "parameters_documented", "extra has no description", **_with_parameter(float, 1.0))  # fmt: skip
bad_method("a parameter without type", "parameters_documented", "extra has no type", **_with_parameter(Any, 1.0))
bad_method("a default outside its range", "parameters_documented", "extra = 2", **_with_parameter(
    Annotated[float, Field(le=1, description="a share of the whole")], 2.0))  # fmt: skip
bad_method("no docstring", "docstrings_present", "the method's docstring is a bare signature", doc="")
bad_method("no advice against it", "card_complete", "when not to use", card=CARD.replace("When not", "When"))
bad_method("no idea on the card", "card_complete", "explain the idea", card=CARD.split("The student")[0] + "**When not to use it.** Never.\n")  # fmt: skip
bad_method("a paper without authors", "card_complete", "without link, authors or year", card=CARD.replace("authors: G", "makes: G"))  # fmt: skip
bad_method("checked without an oracle", "card_complete", "names no oracle", line={"oracle": ""})
bad_method("checked but not compared", "card_complete", "not compared", line={"na": {"matches_oracle": "too hard for us to do"}})  # fmt: skip
bad_method("reproduced without figures", "card_complete", "no claim", card=CARD.replace("checked", "reproduced"))


def _shadowed() -> contextlib.AbstractContextManager[Any]:
    """Importing a module hides the function of the same name, as it would without care."""
    return mock.patch.dict(vars(importlib.import_module("interfuse.distill")), {"planted": ModuleType("planted")})


def _other_door() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.dict(vars(importlib.import_module("interfuse.distill")), {"planted": interfuse.distill.kd})


bad_house("a module that hides the door", "python_door_works", "not callable", _shadowed)
bad_house("a door to another method", "python_door_works", "", _other_door)


def _shy() -> contextlib.AbstractContextManager[Any]:
    import click

    flags = importlib.import_module("interfuse.cli.flags")
    real = flags.param_option

    def option(param: Any) -> click.Option:
        return real(param) if param.name != "tau" else click.Option(["--temperature-of-it"])

    return mock.patch.object(flags, "param_option", option)


def _broken_help() -> contextlib.AbstractContextManager[Any]:
    flags = importlib.import_module("interfuse.cli.flags")
    return mock.patch.object(flags, "param_option", _without_codes(lambda param: _deny()))


bad_house("a parameter without flag", "command_line_helps", "--tau", _shy)
bad_house("a help page that fails", "command_line_helps", "", _broken_help)

__all__ = ["FAULTS", "SOUND", "Fault"]
