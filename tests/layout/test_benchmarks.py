"""``make bench``: every figure the pages name is kept, and a script of the folder writes it."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "src").rglob("*.md"))]
#: letters that must stand in a name put together by a script, so that a pattern does not fit everything
LEAST = 5


def written(tree: ast.AST) -> Iterator[str]:
    """Patterns of the names that a script may give its results: its strings, and those it puts together."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.escape(node.value.removesuffix(".json"))
        elif isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else None for v in node.values]
            if sum(len(str(p)) for p in parts if p is not None) >= LEAST:
                yield "".join("[a-z0-9_-]*" if p is None else re.escape(str(p)) for p in parts)


def test_every_result_that_a_page_names_is_kept() -> None:
    kept = {p.name for p in RESULTS}
    named = [(n, p) for p in PAGES for n in re.findall(r"benchmarks/results/([\w-]+\.json)", p.read_text("utf-8"))]
    assert named
    assert not [f"{page.relative_to(ROOT)}: {name}" for name, page in named if name not in kept]


@pytest.mark.parametrize("result", RESULTS, ids=lambda p: p.stem)
def test_every_result_is_written_by_a_script(result: Path, patterns: list[str]) -> None:
    assert any(re.fullmatch(p, result.stem) for p in patterns), "no script of benchmarks/ writes this file"


@pytest.fixture(scope="module")
def patterns() -> list[str]:
    return sorted({p for s in SCRIPTS for p in written(ast.parse(s.read_text("utf-8")))})


def asked(node: ast.AST) -> bool:
    return isinstance(node, ast.If | ast.IfExp) and "sys.argv" in ast.unparse(node.test)


def unasked(node: ast.AST) -> Iterator[int]:
    """Lines that take one word of ``sys.argv`` outside of everything that looks whether there is one."""
    if asked(node):
        return
    if (
        isinstance(node, ast.Subscript)
        and ast.unparse(node.value) == "sys.argv"
        and not isinstance(node.slice, ast.Slice)
    ):
        yield node.lineno
    for child in ast.iter_child_nodes(node):
        yield from unasked(child)


def test_every_script_begins_without_arguments() -> None:
    """``make bench`` gives none."""
    bare = [f"{s.name}: line {n}" for s in SCRIPTS for n in unasked(ast.parse(s.read_text("utf-8")))]
    assert not bare
    assert list(unasked(ast.parse("a = sys.argv[1]\nb = sys.argv[2] if len(sys.argv) > 2 else 3"))) == [1]


#: imports every script, and what its functions import of this repository when they run
BEGIN = """
import ast, importlib, sys
from pathlib import Path
ours = {Path(f).stem for f in sys.argv[1:]} | {"interfuse", "benchmarks", "tests"}
for file in sys.argv[1:]:
    importlib.import_module(Path(file).stem)
    for node in ast.walk(ast.parse(Path(file).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ours:
            module = importlib.import_module(node.module)
            for name in node.names:
                if name.name not in vars(module):
                    importlib.import_module(f"{node.module}.{name.name}")
    print(file)
"""


def test_every_script_begins_and_finds_what_it_imports() -> None:
    """In a process of its own, as ``make bench`` sets it up."""
    places = os.pathsep.join(map(str, (ROOT / "benchmarks", ROOT, ROOT / "src")))
    done = subprocess.run([sys.executable, "-c", BEGIN, *map(str, SCRIPTS)], env={**os.environ, "PYTHONPATH": places, "HF_HUB_OFFLINE": "1"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(SCRIPTS)


def test_without_its_data_a_script_ends_well_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("INTERFUSE_SHARED_DATA", str(tmp_path))
    record = importlib.import_module("record")
    (tmp_path / "there").mkdir()
    assert record.shared("there") == tmp_path
    with pytest.raises(SystemExit) as ended:
        record.shared("there", "gone")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("skipped: gone ")


def test_the_page_of_speed_holds_the_kept_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables are those of the results, and a race is counted only where both programs are shown to write the same numbers."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    speed = importlib.import_module("merge_speed")
    found = json.loads((ROOT / "benchmarks" / "results" / "merge-speed.json").read_text("utf-8"))
    assert speed.page(found).rstrip() in (ROOT / "docs" / "speed.md").read_text("utf-8")
    row = {"mergekit over ours": 99.0, "ours over copy": 3.0, "beside mergekit in float32": {"equal": 0.99}}
    rows = {"ties": row, "linear": {**row, "ours over copy": 1.5, "beside mergekit in float32": {"equal": 1.0}}}
    known = speed.shown_equal({"speed": {"9 GB, warm": rows}}, "9 GB")
    assert known == ["linear"]
    assert speed.goals(rows, known).startswith("All 2 goals of this table hold. Not counted")
    accounted = {"speed": {"9 GB, warm": rows}, "equality in float32": {"9 GB": {"ties": {"unexplained": 0}}}}
    assert speed.shown_equal(accounted, "9 GB") == ["linear", "ties"]
