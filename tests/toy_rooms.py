"""Two rooms that exist only for tests of the spine: ``tie`` makes ropes from strands, ``weigh`` compares them over seeds.

The files are written into a temporary folder, so that a test may change a method and see what follows from it.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import interfuse
from interfuse.core import index

ROOMS = ("tie", "weigh")

ROPE = '''
"""The noun of the toy rooms: some bytes in a file."""
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Source
from interfuse.core.safe import contained


@dataclass(frozen=True)
class Rope:
    path: Path
    name: str = ""
    made_by: str = ""
    parents: tuple[Any, ...] = ()
    key: str = ""

    def fingerprint(self):
        return self.key or hashlib.sha256(self.read()).hexdigest()

    def read(self):
        return (self.path / "rope.bin" if self.path.is_dir() else self.path).read_bytes()


def open_rope(source, ctx):
    if isinstance(source.spec, Rope):
        return source.spec
    spec = source.spec["file"] if isinstance(source.spec, dict) else str(source.spec)
    path = source.folder / spec
    if not path.exists():
        raise InterfuseError("input.missing", "there is no such strand", where=str(path))
    return Rope(path, source.name or path.name)
'''

TIE = """
from interfuse.core.errors import InterfuseError
from interfuse.core.rooms import Cost, Input, Room
from interfuse.tie.rope import Rope, open_rope
from interfuse import toy_log


def run(call, folder):
    toy_log.started(call)
    strands = [r.read() for r in call.inputs["strands"]]
    core = call.inputs["core"]
    chunks = call.method.target(strands, core.read() if core else b"", ctx=call.ctx, **call.params) \\
        if not isinstance(call.method.target, type) else call.method.target(**call.params)(strands, call.ctx)
    (folder / "rope.bin").write_bytes(b"".join(chunks))
    (folder / "parts").mkdir()
    for number, chunk in enumerate(chunks):
        (folder / "parts" / f"{number}.bin").write_bytes(chunk)
    return {"chunks": len(chunks)}


def check(call):
    if any(not r.key and not r.read() for r in call.inputs["strands"]):
        raise InterfuseError("input.empty", "a strand is empty")


def estimate(call):
    return Cost(bytes_read=10 * len(call.inputs["strands"]), bytes_written=100, calls=1, seconds=0.5)


ROOM = Room("tie", "rope", (Input("strands", open_rope, many=True, positional=True, doc="what is tied"),
                            Input("core", open_rope, required=False, doc="the middle")),
            run, lambda call, path: Rope(path, path.name), check, estimate)
"""

BRAID = '''
"""Braids strands with random turns."""
import hashlib
from typing import Annotated, Literal

from pydantic import Field

from interfuse.core.method import method
from interfuse.core.safe import write_atomic


@method(tight=True)
def braid(strands, core, *, ctx, turns: Annotated[int, Field(ge=1, le=1000, description="how many turns")] = 3,
          slack: Annotated[float, Field(ge=0, lt=1, description="share left loose")] = 0.25,
          style: Literal["flat", "round"] = "flat", marks: list[str] | None = None):
    chunks = []
    for turn in range(turns):
        saved = ctx.scratch / f"turn-{turn}" if ctx.scratch else None
        if saved is not None and saved.is_file():
            chunks.append(saved.read_bytes())
            continue
        draw = ctx.rng(f"turn-{turn}").bytes(400)
        seed = hashlib.sha256(b"|".join([*strands, core, repr((slack, style, marks)).encode()])).digest()
        chunks.append(seed + draw)
        if saved is not None:
            write_atomic(saved, chunks[-1])
    return chunks
'''

SPLICE = '''
"""Splices strands end to end."""
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from interfuse.core.method import method


@method()
@dataclass(frozen=True)
class Splice:
    overlap: Annotated[int, Field(ge=0, description="bytes shared")] = 0
    weights: list[float] = field(default_factory=lambda: [1.0])
    name: str = "splice"

    def __call__(self, strands, ctx):
        return [s[self.overlap:] for s in strands]
'''

WEIGH = """
from interfuse.core.rooms import Input, Room
from interfuse.tie.rope import Rope, open_rope
from interfuse import toy_log


def run(call, folder):
    toy_log.started(call)
    weights = [[len(r.read()) for r in replica["ropes"]] for replica in call.replicas]
    text = call.method.target(weights, ctx=call.ctx, **call.params)
    (folder / "rope.bin").write_text(text)
    return {"weights": weights}


ROOM = Room("weigh", "report", (Input("ropes", open_rope, many=True, doc="what is weighed"),), run,
            lambda call, path: Rope(path, path.name), across_seeds=True)
"""

SCALE = '''
"""Weighs ropes."""
from interfuse.core.method import method


@method()
def scale(weights, *, ctx, unit: str = "g"):
    return "".join(f"{w} {unit}\\n" for w in weights)
'''

LOG = '''
"""What was really done, in order, and slow steps when asked for."""
import os
import time


def started(call):
    place = os.environ.get("TOY_LOG")
    if place:
        handle = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        scratch = call.ctx.scratch
        line = f"{scratch.parent.name}/{scratch.name}" if scratch else call.method.id
        os.write(handle, f"{line}\\n".encode())
        os.close(handle)
    time.sleep(float(os.environ.get("TOY_WAIT", "0")))
'''

CARD = "---\ntitle: {title}\nstatus: sketch\nversion: 1\n---\n{title} is a toy.\n"

RECIPE = """\
interfuse: 1
title: Ropes
seeds: [0, 1]
sources:
  red: red.txt
  blue: {file: blue.txt}
steps:
  thin: {use: tie/braid, strands: red, turns: 2}
  thick: {use: tie/braid, strands: [thin, blue], core: red, turns: 4, slack: 0.5}
  joined: {use: splice, strands: [thick, thin], overlap: 1}
  weights: {use: weigh/scale, ropes: [thin, thick, joined], unit: kg}
"""


@dataclass
class Toy:
    """The rooms' folder, a working folder with two strands and ``rope.yaml``, and a switch to reload changed code."""

    rooms: Path
    work: Path
    log: Path
    recipe: Path = field(init=False)

    def __post_init__(self) -> None:
        self.recipe = self.work / "rope.yaml"

    def write(self, text: str = RECIPE, name: str = "rope.yaml") -> Path:
        path = self.work / name
        path.write_text(text)
        return path

    def started(self) -> list[str]:
        """One line per piece of work that was begun: ``step/.scratch-seed-0-KEY``, or the method outside a run."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def change(self, module: str, old: str, new: str) -> None:
        """Edits a file of the rooms and forgets what was imported from it."""
        path = self.rooms / f"{module}.py" if (self.rooms / f"{module}.py").exists() else self.rooms / module
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        self.forget()

    def install(self) -> None:
        """Puts the toy rooms in place of the real ones, for the rest of this process."""
        sys.dont_write_bytecode = True
        interfuse.__path__ = [*interfuse.__path__, str(self.rooms)]
        index.rooms = lambda: ROOMS  # type: ignore[assignment]
        index.entries = toy_entries(self.rooms)  # type: ignore[assignment]
        os.environ["TOY_LOG"] = str(self.log)
        os.chdir(self.work)

    def forget(self) -> None:
        for name in [n for n in sys.modules if n.startswith(("interfuse.tie", "interfuse.weigh", "interfuse.toy_"))]:
            del sys.modules[name]
        for name in ("tie", "weigh", "toy_log"):
            vars(interfuse).pop(name, None)
        index._card.cache_clear()
        importlib.invalidate_caches()


def write_rooms(folder: Path) -> None:
    """The files of both rooms."""
    door = "from interfuse.core.rooms import door\n__getattr__ = door(__name__)\n"
    for name, text in {
        "tie/__init__.py": f'"""Ties."""\n{door}TAKES = "strands"\nMAKES = "a rope"\n',
        "tie/room.py": TIE,
        "tie/rope.py": ROPE,
        "tie/braid.py": BRAID,
        "tie/braid.md": CARD.format(title="Braid"),
        "tie/splice.py": SPLICE,
        "tie/splice.md": CARD.format(title="Splice"),
        "weigh/__init__.py": f'"""Weighs."""\n{door}TAKES = "ropes"\nMAKES = "a report"\n',
        "weigh/room.py": WEIGH,
        "weigh/scale.py": SCALE,
        "weigh/scale.md": CARD.format(title="Scale"),
        "toy_log.py": LOG,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def toy_entries(folder: Path) -> Callable[[], dict[str, index.Entry]]:
    """The index of the toy rooms, by listing their folders."""

    def entries() -> dict[str, index.Entry]:
        found = {}
        for card in sorted(folder.glob("*/*.md")):
            id = f"{card.parent.name}/{card.stem.replace('_', '-')}"
            found[id] = index.Entry(id, "method", card, f"interfuse.{card.parent.name}.{card.stem}")
        return found

    return entries


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a place: syncing a real disk takes most of the time of these tests."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def toy(quick: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """The toy rooms in place of the real ones; the working folder is the current one."""
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    rooms, work = quick / "rooms", quick / "work"
    write_rooms(rooms)
    work.mkdir()
    house = Toy(rooms, work, quick / "log.txt")
    monkeypatch.setattr(interfuse, "__path__", [*interfuse.__path__, str(rooms)])
    monkeypatch.setattr(index, "rooms", lambda: ROOMS)
    monkeypatch.setattr(index, "entries", toy_entries(rooms))
    monkeypatch.setenv("TOY_LOG", str(house.log))
    monkeypatch.chdir(work)
    (work / "red.txt").write_text("red strand")
    (work / "blue.txt").write_text("blue strand")
    house.write()
    house.forget()
    yield house
    house.forget()
    sys.dont_write_bytecode = before


def lean(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test in a process that has loaded nothing but the spine, where a fork costs a few milliseconds.

    The process of pytest may hold PyTorch and more, and copying its memory map hundreds of times is slow.
    """

    @functools.wraps(test)
    def wrapper(**fixtures: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.toy_rooms", "interfuse.core.run", "yaml", "filelock"])
        read, write = context.Pipe(duplex=False)
        child = context.Process(target=_in_child, args=(test.__module__, test.__name__, fixtures, write))
        child.start()
        write.close()
        try:
            said = read.recv()
        except EOFError:
            said = "the process of the test died"
        child.join()
        if said:
            pytest.fail(said, pytrace=False)

    return wrapper


def _in_child(module: str, name: str, fixtures: dict[str, Any], write: Any) -> None:
    try:
        if "toy" in fixtures:
            fixtures["toy"].install()
        getattr(importlib.import_module(module), name).__wrapped__(**fixtures)
        write.send("")
    except BaseException:
        write.send(traceback.format_exc())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks and the journal of times: name -> bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock") and path.name != "journal.jsonl"
    }


def forked(work: Callable[[], Any]) -> int:
    """Starts ``work`` in a forked child and returns the child's number; the child ends with 0, or 1 after an error."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def outcome(pid: int) -> int:
    """The exit status of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
