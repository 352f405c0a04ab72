"""Laws of the spine: YAML, JSON, paths, plans and artifacts, on whatever hypothesis thinks of."""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from interfuse.core.artifact import open_artifact, save_artifact, verify
from interfuse.core.ctx import Ctx
from interfuse.core.errors import InterfuseError
from interfuse.core.recipe import load_recipe
from interfuse.core.run import make_plan
from interfuse.core.safe import canonical_json, contained, fingerprint, jsonable, load_yaml, read_text
from tests.toy_rooms import Toy

# text that YAML can hold: no surrogates, and no control characters but tab and line break
words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\u2028\u2029\x85"), max_size=20
)
scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(words, inner, max_size=5),
    max_leaves=25,
)
finite = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(words, inner, max_size=5),
    max_leaves=25,
)


def quoted(value: Any) -> str:
    """A value as JSON that YAML reads too: libyaml refuses JSON's escapes in two halves."""
    return json.dumps(value, ensure_ascii=False)


def same(a: Any, b: Any) -> bool:
    """Equal in value and in type, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return bool(a == b)


@given(values, st.sampled_from([None, True, False]), st.booleans())
def test_yaml_reads_what_pyyaml_writes(value: Any, flow: bool | None, wide: bool) -> None:
    text = yaml.safe_dump(value, allow_unicode=wide, default_flow_style=flow, sort_keys=False)
    found, _ = load_yaml(text)
    assert same(found, value)
    assert same(found, yaml.safe_load(text))


@given(finite, st.sampled_from([None, 2]))
def test_yaml_reads_json(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    assert same(load_yaml(text)[0], json.loads(text))


@given(st.dictionaries(words, st.integers(), max_size=6))
def test_every_value_has_its_line(value: dict[str, int]) -> None:
    rows = [quoted(k) + ": " + str(v) for k, v in value.items()]
    _, lines = load_yaml("\n".join(rows))
    assert [lines[(k,)] for k in value] == list(range(1, len(value) + 1))


soup = st.lists(
    st.sampled_from(["a", "b: ", "- ", "  ", "\n", "&x ", "*x", "!!str ", "!t", "[", "]", "{", "}", ", ", ": ", "? ", "|", ">", "---\n",
                     "...\n", "'", '"', "#", "%", "<<: ", "\t", "1e5", "0x", "~", "\\", "\0", "\ud800", "é", "\ufeff", "@", "`"]),
    max_size=40,
).map("".join)  # fmt: skip


@given(st.text(max_size=200) | soup | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
@settings(max_examples=400)
@example("%YAML 1.2\n--- !!binary x")
@example("? ? ? a")
@example("*x")
@example("a: &x\nb: *x")
@example("&0: &0")
def test_arbitrary_text_is_read_or_refused(text: str) -> None:
    """Nothing but plain data or one coded error; and what is read, PyYAML reads too (its own types aside)."""
    try:
        found, _ = load_yaml(text)
    except InterfuseError as error:
        assert error.code == "recipe.syntax"  # noqa: PT017
        return
    canonical_json(jsonable(found))
    yaml.compose(text, Loader=yaml.CSafeLoader)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_recipe_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_bytes(data)
        with pytest.raises(InterfuseError) as caught:
            load_recipe(path)
    assert caught.value.code in ("recipe.syntax", "recipe.key", "input.format")


lines_of_recipe = st.lists(
    st.sampled_from(["interfuse: 1", "seeds: [0]", "seeds: 0", "sources:", "steps:", "  a: {use: tie/braid}", "  b: {use: x, y: a}",
                     "  c: {use: x, y: [b, c]}", "  d: {from: e}", "  e: {from: d}", "  f: []", "  g: 1", "title: [", "sources: {a: a}",
                     "description: &q {a: {use: b}}", "steps: *q", "    use: k", "  h:"]),
    max_size=12,
).map("\n".join)  # fmt: skip


@given(lines_of_recipe)
@settings(max_examples=200)
def test_recipes_from_loose_lines_are_read_or_refused_with_a_line(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(text)
        try:
            found = load_recipe(path)
        except InterfuseError as error:
            assert error.code in ("recipe.syntax", "recipe.key", "recipe.cycle")  # noqa: PT017
            line = int(error.where.removeprefix(f"{path}:"))
            assert 1 <= line <= text.count("\n") + 2
            return
    assert found.steps
    done: list[str] = []
    for step in found.steps:  # needs come first
        needs = [v for value in step.given.values() for v in (value if isinstance(value, list) else [value])]
        assert all(n in done for n in needs if n in {s.name for s in found.steps})
        done.append(step.name)


@given(st.dictionaries(words, scalars, min_size=1, max_size=6), st.data())
def test_a_key_twice_is_always_refused(value: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(value)))
    rows = list(value.items())
    rows.insert(data.draw(st.integers(0, len(rows))), (key, data.draw(scalars)))
    body = [quoted(k) + ": " + quoted(v) for k, v in rows]
    for text in (
        "\n".join(body),
        "{" + ", ".join(body) + "}",
        "deep:\n- - x:\n" + "\n".join("      " + b for b in body),
    ):
        with pytest.raises(InterfuseError, match="occurs twice"):
            load_yaml(text)


@given(
    values,
    st.sampled_from(["!x ", "!!str ", "!!python/name:os.system ", "! ", "!<tag:x> ", "!!map ", "!!seq "]),
    st.data(),
)
def test_a_tag_anywhere_is_always_refused(value: Any, tag: str, data: st.DataObject) -> None:
    """The tag is put before any one value of a document, however deep."""

    def count(v: Any) -> int:
        parts = v.values() if isinstance(v, dict) else v if isinstance(v, list) else []
        return 1 + sum(map(count, parts))

    spot = data.draw(st.integers(0, count(value) - 1))
    seen = iter(range(10**9))

    def flow(v: Any) -> str:
        mark = tag if next(seen) == spot else ""
        if isinstance(v, dict):
            return mark + "{" + ", ".join(f"{quoted(k)}: {flow(x)}" for k, x in v.items()) + "}"
        if isinstance(v, list):
            return mark + "[" + ", ".join(map(flow, v)) + "]"
        return mark + quoted(str(v))

    with pytest.raises(InterfuseError, match="tags"):
        load_yaml(flow(value))


@given(finite)
def test_canonical_json_round_trip(value: Any) -> None:
    text = canonical_json(value)
    assert same_but_order(json.loads(text), value)
    assert canonical_json(json.loads(text)) == text


def same_but_order(a: Any, b: Any) -> bool:
    return canonical_json(a) == canonical_json(b) and a == b


@given(st.dictionaries(words, finite, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, Any], rng: random.Random) -> None:
    rows = list(value.items())
    rng.shuffle(rows)
    assert fingerprint(dict(rows)) == fingerprint(value)


@given(st.recursive(
    scalars | st.floats() | st.binary(max_size=5) | st.text(max_size=5) | st.frozensets(st.integers(), max_size=4) | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.integers() | words, inner, max_size=4),
    max_leaves=15,
))  # fmt: skip
def test_anything_becomes_json_and_stays_it(value: Any) -> None:
    once = jsonable(value)
    canonical_json(once)
    assert jsonable(once) == once


NASTY = [
    *["", ".", "..", "../x", "x/..", "x/../..", "x/../../y", "./..", "./../x", "a/./../../b", "..\\x", "x\\..\\..\\y", "x/..\\..", "\\..\\x"],
    *["/", "/etc/passwd", "//server/share/x", "///x", "\\", "\\x", "\\\\server\\share\\x", "\\\\?\\C:\\x", "\\\\.\\PhysicalDrive0", "/./x"],
    *["~", "~/x", "~root", "~root/.ssh", "~\\x"],
    *["a\0b", "\0", "a/\0", "../\0", "a\0/../.."],
    *["C:", "C:x", "C:\\x", "C:/x", "c:x", "C:..\\x", "Z:/", "é:x", "a:b", "a/b:c", "file.txt:stream", "file.txt::$DATA", "x:", ":x"],
    *[".. ", "..  ", ".. /x", "x/.. /y", "...", "....", "x/...", ". .", ".. .", "x/. ", " ..", ". ", "../ ", "..  /.. "],
    *[f"{d}{e}" for d in ("con", "CON", "Prn", "aux", "NUL", "com1", "COM9", "lpt1", "LPT9", "conin$", "CONOUT$", "com¹", "lpt³")
      for e in ("", ".txt", " ", " .tar.gz", ".", "/x", ".x.y")],
    *[f"x/{d}" for d in ("nul", "nul.json", "aux.safetensors", "COM3 .x")],
    *["x" * 256, "x" * 300, "é" * 150, "a/" + "y" * 300, "/".join(["d" * 200] * 6), "x/" * 600 + "y", "😀" * 64, "\ud800" * 100],
    *["link/x", "link", "sub/link2/x", "sub/link2", "loop", "loop/x", "loop2/x", "up/x", "up/../x"],
    *[f"{a}{b}{c}" for a in ("x/", "./", "x\\") for b in ("..", ".. ", "..\\..", "../..") for c in ("", "/y", "\\y")],
]  # fmt: skip


def test_two_hundred_nasty_paths_stay_inside(tmp_path: Path) -> None:
    """Every one is refused; the links are real."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "sub" / "link2").symlink_to("../../outside")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "loop2").symlink_to("loop3")
    (root / "loop3").symlink_to("loop2")
    assert len(set(NASTY)) >= 200
    assert [name for name in NASTY if code_of_path(root, name) != "unsafe.path"] == []
    (root / "fine").symlink_to("sub")
    assert contained(root, "fine/x") == root / "fine" / "x"


def code_of_path(root: Path, name: str) -> str:
    try:
        contained(root, name)
    except InterfuseError as error:
        return error.code
    return ""


part = (
    st.sampled_from(
        ["..", ".", "a", "b", "link", "up", "~", "C:", "nul", "con.x", " ", "", "\0", "...", ".. ", "é", "x" * 300]
    )
    | words
)


@given(st.lists(part, max_size=6), st.lists(st.sampled_from(["/", "\\", "//"]), min_size=6, max_size=6), st.booleans())
@settings(max_examples=300)
def test_a_path_that_is_let_in_is_inside(parts: list[str], gaps: list[str], rooted: bool) -> None:
    name = ("/" if rooted else "") + "".join(p + g for p, g in zip(parts, gaps, strict=False))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "root"
        root.mkdir()
        (root / "link").symlink_to(folder)
        (root / "up").symlink_to("..")
        if code_of_path(root, name):
            return
        assert (root / name).resolve().is_relative_to(root)
        pieces = name.replace("\\", "/").split("/")
        assert ".." not in [p.strip(" ") for p in pieces if p.strip(" .") == ""]
        assert ":" not in name


STEPS = {
    "thin": "{use: tie/braid, strands: red, turns: 2}",
    "thick": "{use: tie/braid, strands: [thin, blue], core: red, slack: 0.5}",
    "joined": "{use: splice, strands: [thick, thin], overlap: 1}",
    "other": "{use: splice, strands: [blue, red]}",
    "weights": "{use: weigh/scale, ropes: [thin, joined]}",
}


@given(st.permutations(sorted(STEPS)), st.permutations(["red: red.txt", "blue: blue.txt"]), st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plans_do_not_depend_on_the_order_of_the_page(
    toy: Toy, steps: list[str], sources: list[str], data: st.DataObject
) -> None:
    def body(name: str) -> str:
        pairs = STEPS[name][1:-1].replace("[thin, blue]", "[thin; blue]").replace("[thick, thin]", "[thick; thin]")
        pairs = pairs.replace("[blue, red]", "[blue; red]").replace("[thin, joined]", "[thin; joined]")
        shuffled = data.draw(st.permutations(pairs.split(", ")))
        return "{" + ", ".join(shuffled).replace(";", ",") + "}"

    text = (
        "interfuse: 1\nsources: {" + ", ".join(sources) + "}\nsteps:\n" + "".join(f"  {s}: {body(s)}\n" for s in steps)
    )
    plain = "interfuse: 1\nsources: {red: red.txt, blue: blue.txt}\nsteps:\n" + "".join(
        f"  {s}: {b}\n" for s, b in STEPS.items()
    )
    ours, base = (make_plan(load_recipe(toy.write(t)), Path("out"), Ctx()) for t in (text, plain))
    assert {i.label: i.key for i in ours.work} == {i.label: i.key for i in base.work}
    place = {item.step.name: n for n, item in enumerate(ours.work)}
    for before, after in (("thin", "thick"), ("thick", "joined"), ("thin", "joined"), ("joined", "weights")):
        assert place[before] < place[after]


file_names = st.text(st.characters(min_codepoint=33, exclude_categories=["Cs", "Cc", "Cn", "Zs", "Zl", "Zp", "Cf", "Co"],
                                   exclude_characters='/\\:~.'), min_size=1, max_size=20)  # fmt: skip
folders_of_files = st.dictionaries(
    st.lists(file_names, min_size=1, max_size=3).map("/".join), st.binary(max_size=200), max_size=6
)


@given(folders_of_files, finite, st.data())
@settings(max_examples=60)
def test_save_open_verify_round_trip_and_any_change_is_found(
    files: dict[str, bytes], facts: Any, data: st.DataObject
) -> None:
    chosen: dict[str, bytes] = {}
    for name, content in files.items():  # a name cannot be both a file and a folder, nor a device
        clash = any(name == n or n.startswith(f"{name}/") or name.startswith(f"{n}/") for n in chosen)
        if not clash and code_of_path(Path("/tmp"), name) == "" and name != "interfuse":
            chosen[name] = content

    def write(folder: Path) -> dict[str, Any]:
        for name, content in chosen.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return {"facts": facts}

    folder = Path(tempfile.mkdtemp())
    try:
        saved = save_artifact(folder / "out", write, {"kind": "any", "params": {"x": facts}})
        opened = verify(folder / "out")
        assert opened == saved == open_artifact(folder / "out")
        assert opened.manifest["facts"]["facts"] == opened.manifest["params"]["x"] == facts
        assert {n: (opened.path / n).read_bytes() for n in opened.manifest["files"]} == chosen
        assert json.loads(read_text(folder / "out" / "interfuse.json")) == opened.manifest
        spots = [
            (n, i)
            for n, c in [*chosen.items(), ("interfuse.json", (opened.path / "interfuse.json").read_bytes())]
            for i in range(len(c))
        ]
        name, index = data.draw(st.sampled_from(spots))
        content = bytearray((opened.path / name).read_bytes())
        content[index] ^= 1 << data.draw(st.integers(0, 7))
        (opened.path / name).write_bytes(content)
        with pytest.raises(InterfuseError) as caught:
            verify(opened.path)
        assert caught.value.code in ("artifact.damaged", "unsafe.path")
    finally:
        shutil.rmtree(folder)
