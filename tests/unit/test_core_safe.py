"""Plain YAML, contained paths, JSON in one form, atomic files."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interfuse.core.errors import InterfuseError
from interfuse.core.safe import (
    canonical_json,
    contained,
    fingerprint,
    jsonable,
    load_yaml,
    read_text,
    sweep,
    write_atomic,
    writing_errors,
)


@pytest.mark.parametrize(
    "text, value",
    [
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1e-5", 1e-5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("+.INF", float("inf")),
        ("010", 10),  # not octal
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),  # not base 60
        ("2001-01-01", "2001-01-01"),  # not a date
        ("1e999", "1e999"),
        ("9" * 300, int("9" * 300)),
        ("9" * 5000, "9" * 5000),
        ("'5'", "5"),
        ('"true"', "true"),
        ("|\n  5\n", "5\n"),
        ("١٢", "١٢"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    found, _ = load_yaml(f"k: {text}")
    assert found == {"k": value}
    assert type(found["k"]) is type(value)


def test_nan_is_a_float() -> None:
    found = load_yaml("k: .NaN")[0]["k"]
    assert found != found


def test_lines_of_every_value() -> None:
    text = "a: 1\n\nb:\n  - x\n  - {c: 2,\n     d: 3}\n"
    value, lines = load_yaml(text)
    assert value == {"a": 1, "b": ["x", {"c": 2, "d": 3}]}
    assert {path: line for path, line in lines.items() if path} == {
        ("a",): 1, ("b",): 3, ("b", 0): 4, ("b", 1): 5, ("b", 1, "c"): 5, ("b", 1, "d"): 6
    }  # fmt: skip


def test_aliases_are_shared_values() -> None:
    assert load_yaml("a: &x [1, 2]\nb: *x\n")[0] == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    "text, line, says",
    [
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "tags"),
        ("a: !x 1", 1, "tags"),
        ("a: ! 1", 1, "tags"),
        ("!!str a: 1", 1, "plain words"),
        ("a: !!str 1", 1, "tags"),
        ("a: 1\nb: 2\na: 3\n", 3, "'a' occurs twice"),
        ("x:\n  a: 1\n  'a': 3\n", 3, "'a' occurs twice"),
        ("? [a]\n: 1\n", 1, "plain words"),
        ("a: &x k\n*x : 1\n", 2, "plain words"),
        ("a: *nowhere\n", 1, "nowhere|anchor"),
        ("a: &x [*x]\n", 1, "x"),
        ("a: 1\n---\nb: 2\n", 2, "more than one document"),
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("a: b: c\n", 1, "not valid YAML"),
        ("\ta: 1\n", 1, "not valid YAML"),
        ("[" * 102 + "]" * 102, 1, "deeper than 100"),
        ("a: \0", None, "not valid YAML"),
        ("a: \ud800", None, "surrogate"),
        ("%YAML 3.0\n---\na: 1\n", None, "not valid YAML"),
        ("\ufeffa: {\n", None, "not valid YAML"),
    ],
)
def test_anything_but_plain_data_is_refused_with_its_line(text: str, line: int | None, says: str) -> None:
    with pytest.raises(InterfuseError, match=says) as caught:
        load_yaml(text, where="r.yaml")
    assert caught.value.code == "recipe.syntax"
    assert caught.value.where == (f"r.yaml:{line}" if line else caught.value.where)


def test_depth_of_a_hundred_is_fine() -> None:
    value, _ = load_yaml("[" * 101 + "]" * 101)
    for _ in range(100):
        (value,) = value
    assert value == []


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffhé\n".encode())
    assert read_text(path) == "hé\n"
    assert read_text(path, limit=len("\ufeffhé\n".encode())) == "hé\n"
    with pytest.raises(InterfuseError, match="larger than 4") as caught:
        read_text(path, limit=4)
    assert caught.value.code == "input.limit"
    path.write_bytes(b"ab\xff")
    with pytest.raises(InterfuseError, match="byte 2") as caught:
        read_text(path)
    assert caught.value.code == "input.format"
    os.mkfifo(tmp_path / "pipe")
    odd = [tmp_path, tmp_path / "none", path / "below", tmp_path / ("x" * 300), Path("a\0b"), tmp_path / "pipe"]
    for place in [*odd, Path("/dev/zero")]:
        with pytest.raises(InterfuseError) as caught:
            read_text(place)
        assert caught.value.code == "input.missing"


def test_one_form_of_json() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "é", None]}) == canonical_json({"a": [1.5, "é", None], "b": 1})
    assert canonical_json({}) == b"{}\n"
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.0})
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


def test_jsonable() -> None:
    given = {
        1: (1, 2.5), "n": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "a": np.arange(3), "nan": float("nan"),
        "inf": [float("-inf")], "set": {"b", "a", "c"}, "path": Path("x/y"), "none": None, "half": "a\ud800", "flag": True,
    }  # fmt: skip
    found = jsonable(given)
    assert found == {
        "1": [1, 2.5], "n": 0.5, "i": 3, "b": True, "a": [0, 1, 2], "nan": "nan", "inf": ["-inf"],
        "set": ["a", "b", "c"], "path": "x/y", "none": None, "half": "a?", "flag": True,
    }  # fmt: skip
    assert found["b"] is True
    canonical_json(found)


def test_contained_lets_ordinary_names_in(tmp_path: Path) -> None:
    for name in (
        "a",
        "a/b.txt",
        "./a",
        "a b/ü",
        ".hidden",
        "model-00001-of-00002.safetensors",
        "a..b",
        "...x",
        "console",
    ):
        assert contained(tmp_path, name) == tmp_path / name


def test_write_atomic(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_sweep_takes_only_its_own_leftovers(tmp_path: Path) -> None:
    for name in ("a.json", ".a.json.tmp-1", ".b.json.tmp-1", ".a.json.lock", ".a[1].tmp-x", ".aX.tmp-1"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".a.json.tmp-2").mkdir()
    (tmp_path / ".a.json.tmp-2" / "f").write_text("x")
    sweep(tmp_path / "a.json")
    sweep(tmp_path / "a[1]")  # no pattern
    sweep(tmp_path / "none" / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.json.lock", ".aX.tmp-1", ".b.json.tmp-1", "a.json"]


@pytest.mark.parametrize(
    "number, code",
    [(errno.ENOSPC, "output.space"), (errno.EDQUOT, "output.space"), (errno.EFBIG, "output.space"),
     (errno.EACCES, "output.write"), (errno.EIO, "output.write"), (errno.EROFS, "output.write")],
)  # fmt: skip
def test_errors_of_the_system_get_codes(number: int, code: str) -> None:
    with pytest.raises(InterfuseError) as caught, writing_errors(Path("x")):
        raise OSError(number, os.strerror(number), "some/file")
    assert (caught.value.code, caught.value.where) == (code, "x")
    with pytest.raises(InterfuseError, match="just words") as caught, writing_errors(Path("x")):
        raise OSError("just words")
