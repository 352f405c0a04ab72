"""One call of a method: opened, checked and carried out through a room's contract."""

import importlib
import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import interfuse
from interfuse.core import rooms
from interfuse.core.artifact import verify
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import Cost, Source, apply, key_of, load_room, manifest_of, prepare, split
from tests.toy_rooms import Toy


def code_of(call: Any, *args: Any, **kwargs: Any) -> InterfuseError:
    with pytest.raises(InterfuseError) as caught:
        call(*args, **kwargs)
    return caught.value


def test_apply_makes_an_artifact_and_returns_its_noun(toy: Toy) -> None:
    rope = apply("tie/braid", out="out", strands=["red.txt", "blue.txt"], turns=2, seed=5)
    manifest = verify("out").manifest
    assert verify(rope).manifest == manifest
    assert rope.read() == (Path("out") / "rope.bin").read_bytes()
    assert (manifest["kind"], manifest["method"], manifest["seeds"]) == ("rope", "tie/braid", [5])
    assert manifest["params"] == {"turns": 2, "slack": 0.25, "style": "flat", "marks": None}
    assert manifest["version"] == load("braid").version()
    assert [row["name"] for row in manifest["inputs"][0]["strands"]] == ["red.txt", "blue.txt"]
    assert manifest["facts"] == {"chunks": 2}
    assert "core" not in manifest["inputs"][0]


def test_nothing_in_a_manifest_depends_on_place_or_time(toy: Toy) -> None:
    apply("braid", out="one", strands="red.txt")
    apply("braid", out=toy.work / "deep" / "two", strands="red.txt")
    one, two = Path("one/interfuse.json").read_bytes(), Path("deep/two/interfuse.json").read_bytes()
    assert one == two
    assert str(toy.work).encode() not in one


def test_seed_and_context(toy: Toy) -> None:
    def rope(**kwargs: Any) -> bytes:
        return bytes(apply("braid", strands="red.txt", **kwargs).read())

    assert rope() == rope(seed=0) == rope(ctx=Ctx()) != rope(seed=1)
    assert rope(ctx=Ctx(seed=9), seed=1) == rope(seed=1)


def test_a_dataclass_method(toy: Toy) -> None:
    assert apply("splice", strands=["red.txt", "blue.txt"], overlap=1).read() == b"ed strandlue strand"


def test_a_noun_is_an_input_too(toy: Toy) -> None:
    rope = apply("braid", strands="red.txt")
    assert apply("splice", strands=rope).read() == rope.read()
    assert apply("splice", strands=(rope, "red.txt")).read() == rope.read() + b"red strand"


@pytest.mark.parametrize(
    "given, code, says",
    [
        ({}, "param.missing", "'strands' is not given"),
        ({"strands": []}, "param.missing", "'strands' is not given"),
        ({"strands": None}, "param.missing", "'strands' is not given"),
        ({"strands": ["none.txt"]}, "input.missing", "no such strand"),
        ({"strands": "red.txt", "core": ["red.txt", "blue.txt"]}, "param.value", "takes one source, 2 are given"),
        ({"strands": "red.txt", "turns": 0}, "param.value", "turns = 0"),
        ({"strands": "red.txt", "turn": 1}, "param.unknown", "Did you mean turns"),
        ({"strand": "red.txt"}, "param.unknown", "Did you mean strands"),
        ({"strands": "empty.txt"}, "input.empty", "a strand is empty"),
    ],
)
def test_refused_before_work(toy: Toy, given: dict[str, Any], code: str, says: str) -> None:
    Path("empty.txt").write_bytes(b"")
    error = code_of(apply, "tie/braid", out="out", **given)
    assert error.code == code
    assert says in str(error)
    assert toy.started() == []
    assert not Path("out").exists()


def test_a_taken_place_is_refused_before_inputs_are_read(toy: Toy) -> None:
    Path("out").mkdir()
    Path("out/mine").write_text("x")
    assert code_of(apply, "braid", out="out", strands="none.txt").code == "output.exists"
    apply("braid", out="out", strands="red.txt", force=True)
    assert not Path("out/mine").exists()


def test_no_temporary_folder_is_left_by_a_refused_call(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    code_of(apply, "braid", strands="none.txt")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert apply("braid", strands="red.txt").path.parent.parent == tmp_path / "tmp"


def test_prepare_does_no_work(toy: Toy) -> None:
    room, method = load_room("tie"), load("braid")
    call = prepare(room, method, {"strands": ["red.txt"], "turns": "4"}, Ctx(seed=2))
    assert (call.params["turns"], call.seeds, call.inputs["core"]) == (4, (2,), None)
    assert room.estimate(call) + Cost(calls=2) == Cost(10, 100, 3, 0.5)
    assert manifest_of(room, call, key_of(call))["inputs"][0]["strands"][0]["name"] == "red.txt"
    assert toy.started() == []
    assert sorted(p.name for p in toy.work.iterdir()) == ["blue.txt", "red.txt", "rope.yaml"]


def test_split() -> None:
    @dataclass
    class Input:
        name: str

    @dataclass
    class Room:
        inputs: tuple[Input, ...]

    room: Any = Room((Input("a"), Input("b")))
    assert split(room, {"a": 1, "c": 2}) == ({"a": 1}, {"c": 2})


def test_unknown_room_and_input(toy: Toy) -> None:
    assert "Did you mean tie?" in str(code_of(load_room, "tied"))
    error = code_of(load_room("tie").open_inputs, {"strand": Source("red.txt")}, Ctx(), "line 5")
    assert (error.code, error.where) == ("param.unknown", "line 5")


def test_the_door_gives_functions_again_and_again(toy: Toy) -> None:
    """Importing the module of a method must not put the module in the function's place."""
    tie = importlib.import_module("interfuse.tie")
    first = tie.splice(["red.txt"], overlap=1)
    assert first.read() == b"ed strand"
    assert tie.splice(["red.txt"], overlap=2).read() == b"d strand"
    importlib.import_module("interfuse.tie.braid")
    assert tie.braid(["red.txt"], "blue.txt", turns=1).read()
    assert tie.splice.__name__ == "splice"
    assert "Splice is a toy." in tie.splice.__doc__
    assert tie.room.ROOM.name == "tie"  # modules without a card stay modules
    assert interfuse.tie is tie


def test_functions_of_the_door_say_what_they_take(toy: Toy) -> None:
    tie = importlib.import_module("interfuse.tie")
    assert {"splice", "braid"} <= set(dir(tie))
    shown = inspect.signature(tie.splice)
    assert list(shown.parameters)[:2] == ["strands", "core"]
    assert {"overlap", "out", "ctx", "seed", "force"} <= set(shown.parameters)
    assert "overlap: " in tie.splice.__doc__.split("Parameters:")[1]
    assert repr(tie.splice) == "<interfuse.tie.splice>"


def test_threads_open_their_inputs_one_after_another(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that are loaded then (transformers) are broken where two threads load them at once."""
    inside, most, prepare = [0], [0], rooms.prepare

    def slowly(*args: Any, **kwargs: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1
        return prepare(*args, **kwargs)

    monkeypatch.setattr(rooms, "prepare", slowly)
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda n: interfuse.tie.splice(["red.txt"], overlap=n).read(), [1, 1, 2]))
    assert made == [b"ed strand", b"ed strand", b"d strand"]
    assert most == [1]


def test_the_door_refuses(toy: Toy) -> None:
    tie = importlib.import_module("interfuse.tie")
    with pytest.raises(AttributeError, match="Did you mean splice"):
        _ = tie.splise
    with pytest.raises(AttributeError):
        _ = tie._private
    with pytest.raises(TypeError, match="at most 2 plain arguments: strands, core"):
        tie.splice(1, 2, 3)
