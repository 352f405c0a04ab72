"""Where the battery works: runs of one case, made once and looked at by many checks."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from interfuse.core.ctx import Ctx
from interfuse.core.rooms import apply
from tests.conformance.cases import Case
from tests.conformance.fixtures import SCENES, Killed, Scene

ROOT = Path(__file__).resolve().parents[2]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder by its relative name; empty when there is no folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def world() -> dict[str, str]:
    """Everything global that a method could have touched, as text."""
    return {
        "torch's random state": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "NumPy's random state": hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest(),  # noqa: NPY002
        "Python's random state": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
        "default dtype": str(torch.get_default_dtype()),
        "gradient mode": str((torch.is_grad_enabled(), torch.is_inference_mode_enabled())),
        "threads": str(torch.get_num_threads()),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "NumPy's error handling": str(sorted(np.geterr().items())),
        "working folder": os.getcwd(),
        "environment": json.dumps({k: v for k, v in sorted(os.environ.items()) if not k.startswith("PYTEST_")}),
    }


@contextmanager
def seeds_noted() -> Iterator[list[str]]:
    """Inside the block, who sets a global generator to a number of their own: ``data/seeding.py`` alone may, which restores it, and so
    would hide what is done within it. Libraries may, since what they draw is fenced in there."""
    found: list[str] = []
    places: list[tuple[Any, str]] = [(torch, "manual_seed"), (torch, "seed"), (torch.random, "manual_seed"), (np.random, "seed"), (random, "seed")]  # fmt: skip
    before = [getattr(place, name) for place, name in places]

    def noting(call: Any, what: str) -> Any:
        def wrapped(*args: Any, **given: Any) -> Any:
            file = Path(sys._getframe(1).f_code.co_filename)
            if "site-packages" not in file.parts and file.parts[-2:] != ("data", "seeding.py"):
                found.append(f"{what} in {file.name}")
            return call(*args, **given)

        return wrapped

    for (place, name), call in zip(places, before, strict=True):
        setattr(place, name, noting(call, f"{place.__name__}.{name}"))
    try:
        yield found
    finally:
        for (place, name), call in zip(places, before, strict=True):
            setattr(place, name, call)


def object_digest(value: Any) -> Any:
    """What an object in memory holds, flags and hooks of modules included."""
    if isinstance(value, torch.nn.Module):
        tensors = {
            k: hashlib.sha256(t.detach().cpu().numpy().tobytes()).hexdigest() for k, t in value.state_dict().items()
        }
        flags = {k: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for k, m in value.named_modules()}
        return tensors, flags, {k: (p.requires_grad, str(p.dtype), p.grad is None) for k, p in value.named_parameters()}
    module = getattr(value, "module", None)
    if isinstance(module, torch.nn.Module):  # a model that holds one
        return object_digest(module)
    if isinstance(value, list | tuple):
        return [object_digest(v) for v in value]
    if isinstance(value, Mapping):
        return {k: object_digest(v) for k, v in value.items()}
    to_dict = getattr(value, "to_dict", None)
    return hashlib.sha256(repr(to_dict() if callable(to_dict) else value).encode()).hexdigest()


@dataclass
class Shared:
    """What all cases of a session share: the inputs on disk, and another process that runs the same cases."""

    root: Path
    cases: Sequence[Case] = ()
    faults: Sequence[str] = ()
    _others: dict[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None

    def scene(self, case: Case) -> Scene:
        return SCENES[case.room](case, self.root / "inputs")

    def start_other_process(self) -> None:
        """Starts running every case (and every planted fault) in a process with another hash seed; inputs stand elsewhere."""
        for case in self.cases:
            self.scene(case)
        shutil.copytree(self.root / "inputs", self.root / "elsewhere" / "inputs")
        job = {
            "root": str(self.root / "elsewhere"),
            "methods": [c.method for c in self.cases],
            "faults": list(self.faults),
        }
        own = os.environ.get("PYTHONHASHSEED", "random")
        changed = {
            "PYTHONHASHSEED": str(int(own) + 1 if own.isdigit() else 4242),
            "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.elsewhere", json.dumps(job)],
            env={**os.environ, **changed}, cwd=self.root, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def in_another_process(self, label: str) -> dict[str, str]:
        """The digests of the artifact of a case or fault, made in the other process."""
        if self._process is None:
            self.start_other_process()
        assert self._process is not None
        while label not in self._others:
            line = _json_line(self._process.stdout)
            if line is None:
                raise AssertionError(f"the other process ended (status {self._process.wait()}) before {label}")
            self._others[line["label"]] = line
        found = self._others[label]
        assert not found["error"], f"in another process: {found['error']}"
        return dict(found["files"])

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _json_line(stream: IO[str] | None) -> Any:
    for text in stream or ():
        if text.startswith('{"label"'):
            return json.loads(text)
    return None


@dataclass
class Workspace:
    """The runs of one case. ``root`` is a folder of its own; ``label`` is what the other process calls it, if not its method."""

    case: Case
    shared: Shared
    root: Path
    label: str = ""
    _runs: dict[str, Path] = field(default_factory=dict)
    _scene: Scene | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def scene(self) -> Scene:
        if self._scene is None:
            self._scene = self.shared.scene(self.case)
        return self._scene

    def given(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The scene's inputs and parameters with some of them replaced, those that are None left out."""
        given = {**self.scene.given, **(changes or {})}
        return {k: v for k, v in given.items() if v is not None}

    def place(self, tag: str) -> Path:
        """Where an artifact will be: in a folder of its own, so that what is left beside it can be seen."""
        return self.root / tag / "artifact"

    def first(self) -> Path:
        """The artifact of the case with seed 0; the state of the world is noted before and after."""
        if "first" not in self._runs:
            out, scene = self.place("first"), self.scene
            self.notes["inputs before"] = digests(scene.files)
            self.notes["world before"] = {**world(), "seeds of global generators": ""}
            with seeds_noted() as seeds:
                self.notes["noun"] = apply(self.case.method, out=out, seed=0, **self.given())
            self.notes["world after"] = {**world(), "seeds of global generators": ", ".join(dict.fromkeys(seeds))}
            self.notes["inputs after"] = digests(scene.files)
            self._runs["first"] = out
        return self._runs["first"]

    def opened(self) -> Mapping[str, Any]:
        """The numbers of the first artifact, as its ecosystem opens them."""
        out = self.first()
        if "opened" not in self.notes:
            self.notes["opened"] = self.scene.opens(out)
        return self.notes["opened"]  # type: ignore[no-any-return]

    def second(self) -> Path:
        """The same again, through ``interfuse.<room>.<method>``."""
        if "second" not in self._runs:
            import interfuse

            door = getattr(getattr(interfuse, self.case.room), self.case.slug.replace("-", "_"))
            door(out=self.place("second"), seed=0, **self.given())
            self._runs["second"] = self.place("second")
        return self._runs["second"]

    def seed_one(self) -> Path:
        """The case with seed 1."""
        if "one" not in self._runs:
            apply(self.case.method, out=self.place("one"), seed=1, **self.given())
            self._runs["one"] = self.place("one")
        return self._runs["one"]

    def in_memory(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What objects in memory held before and after the method was given them."""
        given = self.scene.in_memory()
        before = {k: object_digest(v) for k, v in given.items()}
        apply(self.case.method, out=self.place("in-memory"), seed=0, **given)
        return before, {k: object_digest(v) for k, v in given.items()}

    def resumed(self) -> Path:
        """A run that was killed in the middle, and the same run again, which goes on from there."""
        if "resumed" not in self._runs:
            out, lines = self.place("resumed"), []
            interrupted = self.scene.interrupted
            assert interrupted is not None, "the room's fixture says how work is interrupted"
            died = False
            with interrupted():
                try:
                    apply(self.case.method, out=out, seed=0, **self.given())
                except Killed:
                    died = True
            assert died, "the first run was not interrupted: nothing was kept on the way"
            assert not out.exists(), "an interrupted run left something at the output place"
            given = {**self.given(), **self.scene.resumed_with}
            apply(self.case.method, out=out, seed=0, ctx=Ctx(log=lines.append), **given)
            left = [p.name for p in out.parent.iterdir() if p != out and not p.name.endswith(".lock")]
            assert not left, f"finished work left its scratch behind: {left}"
            self.notes["resume log"] = lines
            self._runs["resumed"] = out
        return self._runs["resumed"]


@contextmanager
def quiet_threads() -> Iterator[None]:
    """One thread, as the small matrices here need it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
