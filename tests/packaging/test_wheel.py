"""What is shipped works without the source tree: a wheel and an sdist are built, the wheel is installed apart and used."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from interfuse.cli.main import VERBS
from interfuse.core import index

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]


def run(*words: str, cwd: Path, **environment: str) -> str:
    """Runs a program without the project on its path; gives what it printed."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(words, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@dataclass(frozen=True)
class Shipped:
    """The two files, and an environment in which the wheel alone is installed."""

    wheel: Path
    sdist: Path
    bin: Path
    away: Path

    def names(self) -> list[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.namelist()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Builds both (the wheel from the sdist, as installers do) and installs the wheel; nothing is fetched."""
    root = tmp_path_factory.mktemp("packaging")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(root / "dist"), str(ROOT), cwd=root)
    (wheel,), (sdist,) = (root / "dist").glob("*.whl"), (root / "dist").glob("*.tar.gz")
    venv.create(root / "venv", with_pip=False, symlinks=os.name != "nt")
    bin = root / "venv" / ("Scripts" if os.name == "nt" else "bin")
    inside = run(str(bin / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=root).strip()
    # the other packages come from this environment; its own .pth files, that of the source tree too, are not read
    (Path(inside) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", str(bin / "python"), "install", "--no-deps", "--no-index", "--quiet",
        "--disable-pip-version-check", str(wheel), cwd=root)  # fmt: skip
    away = root / "away"
    away.mkdir()
    return Shipped(wheel, sdist, bin, away)


def files(folder: str, *endings: str) -> set[str]:
    """Files below a folder of the project, by their place in it."""
    found = [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {p.relative_to(ROOT / folder).as_posix() for p in found if p.name.endswith(endings)}


def test_the_wheel_holds_every_module_card_template_and_recipe(shipped: Shipped) -> None:
    names = set(shipped.names())
    source = files("src", ".py", ".md", ".jinja", "py.typed", ".html", ".css", ".js", ".svg", ".json")
    assert source == {n for n in names if n.startswith("interfuse/") and "/_shipped/" not in n}
    assert {"interfuse/py.typed", "interfuse/distill/kd.md"} <= names
    for kind, folder in (("recipes", "recipes"), ("maps", "docs/maps")):
        there = {
            n.split("_shipped/")[1].partition("/")[2] for n in names if n.startswith(f"interfuse/_shipped/{kind}/")
        }
        assert files(folder, ".yaml", ".md") <= there
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "docs/", "benchmarks/"))]


def test_the_wheel_says_what_it_needs(shipped: Shipped) -> None:
    with zipfile.ZipFile(shipped.wheel) as archive:
        text = archive.read(f"interfuse-{VERSION}.dist-info/METADATA").decode()
        points = archive.read(f"interfuse-{VERSION}.dist-info/entry_points.txt").decode()
    assert f"\nVersion: {VERSION}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert "\nRequires-Python: >=3.11\n" in text
    assert "interfuse = interfuse.cli.main:main" in points


def test_every_import_is_declared() -> None:
    """A package that a module imports is in the dependencies or in an extra, not there by luck of another package."""
    called = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "sklearn": "scikit-learn",
        "docx": "python-docx",
        "pptx": "python-pptx",
    }
    extras = PROJECT["optional-dependencies"]
    needs = [*PROJECT["dependencies"], *itertools.chain.from_iterable(extras.values())]
    declared = {re.split(r"[<>=\[ ]", need)[0].replace("-", "_") for need in needs}
    missing = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in (n.split(".")[0] for n in found):
                if name not in sys.stdlib_module_names and name != "interfuse":
                    package = called.get(name, name).replace("-", "_")
                    missing += [f"{path.name}: {name}"] if package not in declared else []
    assert not missing


def test_extras_are_documented_and_those_that_messages_name_exist() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    table = (ROOT / "docs" / "index.md").read_text().split("| extra |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == extras - {"docs", "test", "dev"}
    named = {m for p in (ROOT / "src").rglob("*.py") for m in re.findall(r"'interfuse\[(\w+)\]'", p.read_text())}
    assert named <= extras


def test_constraints_pin_everything_that_is_declared() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    needs = [need for group in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()] for need in group]
    for need in needs:
        name = re.sub(r"[-_.]+", "-", re.split(r"[<>=\[ ]", need)[0]).lower()
        assert name in pinned | {"interfuse"}, f"constraints.txt does not pin {name}"
    assert not [name for name in pinned if name.startswith(("nvidia", "torchvision", "triton"))]


def test_the_sdist_can_be_built_from_again(shipped: Shipped) -> None:
    with tarfile.open(shipped.sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert {
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        "mkdocs.yml",
    } <= names
    assert {f"src/{name}" for name in files("src", ".py", ".md", ".jinja")} <= names
    assert {"recipes/local-models.yaml", "docs/generate.py", "tests/conftest.py"} <= names
    assert not [n for n in names if n.startswith((".venv", "runs/", "site/"))]


def test_the_command_lists_methods_and_recipes_from_the_wheel(shipped: Shipped) -> None:
    program = str(shipped.bin / "interfuse")
    rows = {row["id"]: row for row in json.loads(run(program, "list", "--json", cwd=shipped.away))}
    here = {entry.id: entry.card.title for entry in index.entries().values()}
    assert {id: row["title"] for id, row in rows.items()} == here
    assert {"recipes/local-models", "distill/kd"} <= set(rows)
    assert run(program, "--version", cwd=shipped.away).strip() == f"interfuse {VERSION}"


@pytest.mark.parametrize("verb", ["", *VERBS, *index.rooms()])
def test_every_verb_answers_help_from_the_wheel(shipped: Shipped, verb: str) -> None:
    said = run(str(shipped.bin / "interfuse"), *([verb] if verb else []), "--help", cwd=shipped.away)
    assert said.startswith(f"Usage: interfuse {verb}".rstrip())


EVERYTHING = """
import interfuse, os, sys
from interfuse.cli.main import app
from interfuse.core import index
from interfuse.core.recipe import load_recipe
def call(*words):
    try:
        app.main(words)
    except SystemExit as end:
        assert end.code == 0, words
assert "_shipped" in str(index.shipped("recipes")) and sys.prefix in interfuse.__file__, interfuse.__file__
for entry in index.entries().values():
    assert entry.card.title
    if entry.kind == "recipe":
        load_recipe(entry.recipe_path)
    if entry.kind == "method":
        call(entry.room, entry.slug, "--help")
call("run", "recipes/quickstart", "--dry-run")
assert not os.listdir(), "a dry run has written something"
"""


@pytest.mark.slow
def test_every_method_and_recipe_works_from_the_wheel(shipped: Shipped) -> None:
    said = run(str(shipped.bin / "python"), "-c", EVERYTHING, cwd=shipped.away)
    methods = [entry for entry in index.entries().values() if entry.kind == "method"]
    assert methods
    assert all(f"Usage: interfuse {e.room} {e.slug} [OPTIONS]" in said for e in methods)
    assert "to do: read" in said
