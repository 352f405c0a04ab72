"""Texts of flags as values."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from interfuse.cli.doctor import extra_of
from interfuse.cli.flags import alternatives, default_text, example, flag_of, is_switch, read_value
from interfuse.core import index
from interfuse.core.errors import InterfuseError
from interfuse.core.method import load
from interfuse.core.rooms import load_room


@pytest.mark.parametrize(
    "text, annotation, value",
    [
        ("3", int, 3),
        ("3", float, 3.0),
        ("1e-5", float, 1e-5),
        ("3", str, "3"),
        ("none", str, "none"),
        ("none", str | None, None),
        ("null", int | None, None),
        ("3", int | str, 3),
        ("x", int | str, "x"),
        ("0.5", Annotated[float, Field(gt=0)], 0.5),
        ("2", Literal[1, 2], 2),
        ("2", Literal["1", "2"], "2"),
        ("true", bool | str, True),
        ("a,b", list[str], ["a", "b"]),
        ("a", list[str], ["a"]),
        ("", list[str], []),
        ("1, 2", list[int], [1, 2]),
        ("[1, 2]", list[int], [1, 2]),
        ("1,2", tuple[int, ...], [1, 2]),
        ("1,a", tuple[int, str], [1, "a"]),
        ("0.5", float | list[float], 0.5),
        ("0.5,1", float | list[float], [0.5, 1.0]),
        ('{"a": 1}', dict[str, int], {"a": 1}),
        ("[x", str, "[x"),
        ("7", Any, 7),
        ("seven", Any, "seven"),
        ("a/b", Path, "a/b"),
        ("x", list[Annotated[int, Field(ge=0)]], ["x"]),
    ],
)
def test_reading(text, annotation, value):
    found = read_value(text, annotation)
    assert found == value
    assert type(found) is type(value)


def test_bad_json_is_a_coded_error():
    with pytest.raises(InterfuseError, match=r"param\.value.*JSON"):
        read_value("{1", dict[str, int])
    with pytest.raises(InterfuseError, match=r"param\.value"):
        read_value("[" * 100_000, list[int])


def test_tables_may_stand_in_a_file(tmp_path):
    file = tmp_path / "relations.yaml"
    file.write_text("relations:\n  capital: {seeds: [[France, Paris]]}\n")
    value = {"capital": {"seeds": [["France", "Paris"]]}}
    assert read_value(str(file), dict[str, dict[str, Any]], "relations") == value
    assert read_value(str(file), dict[str, dict[str, Any]], "other") == {"relations": value}
    (tmp_path / "pairs.json").write_text('[["a", "b"]]')
    assert read_value(str(tmp_path / "pairs.json"), list[list[str]]) == [["a", "b"]]
    assert read_value("a.yaml", list[str]) == ["a.yaml"]  # no table: a word like any other
    with pytest.raises(InterfuseError, match=r"input\.missing"):
        read_value("none.yaml", dict[str, int])
    for text in ("capital", "capital:\n  x: 1"):
        with pytest.raises(InterfuseError, match=r"param\.value.*no JSON and no YAML"):
            read_value(text, list[dict[str, Any]] | None, "rules")


def test_switches():
    assert is_switch(bool)
    assert is_switch(Annotated[bool, Field()])
    assert is_switch(bool | None)
    assert not is_switch(bool | str)
    assert alternatives(Annotated[int | None, Field()] | str) == ([int, str], True)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)) | st.none())
def test_a_default_as_shown_reads_back(value):
    annotation = list[float] | None
    text = default_text(value)
    if text != "empty":
        assert TypeAdapter(annotation).validate_python(read_value(text, annotation)) == value


def test_an_example_gives_what_its_method_needs():
    for entry in index.entries().values():
        if entry.kind != "method":
            continue
        room, method = load_room(entry.room), load(entry.id)
        words = shlex.split(example(room, method))
        flags = {flag_of(n) for n in (*method.params, *(i.name for i in room.inputs))}
        assert {w for w in words if w.startswith("--")} <= flags, entry.id
        for need in (n for n in method.traits.get("needs", ()) if entry.room == "build"):
            assert "DOCUMENTS" in words or "A" in words if need == "documents" else f"--{need}" in words, entry.id
        for param in method.params.values():
            assert not param.required or flag_of(param.name) in words, entry.id
            if flag_of(param.name) in words:  # a value that reads back; a file's name stands for a table
                value = words[words.index(flag_of(param.name)) + 1]
                assert value.endswith(".yaml") or read_value(value, param.annotation) is not None, entry.id
        assert words[words.index("-o") - 1][:2] != "--", f"{entry.id}: a flag without a value"
        if "calibrate" in method.traits:
            assert "--calibration" in words, entry.id


def test_a_module_that_is_missing_is_told_with_the_extra_that_brings_it(monkeypatch):
    needs = [
        "torch>=2.8",
        'peft>=0.21; extra == "dev"',
        'peft>=0.21; extra == "lora"',
        "python-docx>=1.1; extra == 'documents'",
        'rapidfuzz>=3.9; extra == "train"',
        'rapidfuzz>=3.9; extra == "graph"',
        'ruff>=0.8; extra == "dev"',
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needs)
    told = {m: extra_of(m) for m in ("peft", "docx.table", "rapidfuzz.fuzz", "ruff", "torch", "nothing_known")}
    assert told == {
        "peft": "lora",
        "docx.table": "documents",
        "rapidfuzz.fuzz": "graph",
        "ruff": "dev",
        "torch": "",
        "nothing_known": "",
    }


def test_a_table_may_be_written_as_recipes_write_it():
    written = "{endpoint: https://example.com/v1, model: NAME, key_env: KEY}"
    assert read_value(written, dict[str, str]) == {
        "endpoint": "https://example.com/v1",
        "model": "NAME",
        "key_env": "KEY",
    }
    assert read_value("[{use: kd}, {use: nd-kd, ce: 0}]", list[dict[str, Any]]) == [
        {"use": "kd"},
        {"use": "nd-kd", "ce": 0},
    ]
    for broken in ("{endpoint", "{a:1}", "{a: 1, a: 2}", "{a: !!python/name:os.system }"):
        with pytest.raises(InterfuseError, match=r"param\.value.*not valid JSON"):
            read_value(broken, dict[str, Any])
