"""The example of CONTRIBUTING.md, carried out to the letter in a copy of the project, and as a package of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks

PAGE = ROOT / "CONTRIBUTING.md"
METHOD = "distill/confidence-penalty"
#: the checks that are quick; the whole battery runs over every method elsewhere
CHECKS = "runs_for_real or output_finite or artifact_verifies or refuses_unknown or refuses_out or parameters_documented or card_complete"


def parts() -> list[tuple[str, Block]]:
    """The three blocks of the example with the file that the text names above each."""
    text = PAGE.read_text(encoding="utf-8")
    files = re.findall(r"^\*\*\d\. .*?\*\*.*?`([\w/.]+)`", text, re.M)
    found = [block for block in blocks(PAGE) if block.language in ("python", "markdown")]
    assert len(files) == len(found) == 3
    return list(zip(files, found, strict=True))


def call(folder: Path, *words: str, path: Path) -> str:
    """Runs Python in a folder with another search path; gives what it printed."""
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False,
                          env={**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"})  # fmt: skip
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the example's blocks put where the text says."""
    root = tmp_path_factory.mktemp("contributing")
    for name in ("src", "tests", "recipes", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        shutil.copyfile(ROOT / name, root / name)
    for name, block in parts():
        old = (root / name).read_text(encoding="utf-8") if name.endswith("cases.py") else ""
        (root / name).write_text(old + block.text, encoding="utf-8")
    return root


IN_ONE_PROCESS = f"""
import sys
sys.path.insert(0, "docs")
import generate, interfuse
from interfuse.cli.main import app
from interfuse.core.index import find
assert interfuse.__file__.startswith(sys.argv[1]), interfuse.__file__
for command in sys.argv[2:]:
    try:
        app.main(command.split()[1:])
    except SystemExit as end:
        assert end.code == 0, command
    print("=====")
print(generate.method_page(find("{METHOD}")))
"""


def test_the_index_the_flags_and_the_page_know_it(copy: Path) -> None:
    """Every command that the text shows, and the page of the documentation."""
    commands = [line for block in blocks(PAGE) if block.language == "bash" for line in block.text.splitlines()]
    assert len(commands) == 2
    assert all(line.startswith("interfuse ") for line in commands)
    *answers, page = call(copy, "-c", IN_ONE_PROCESS, str(copy), *commands, path=copy / "src").split("=====")
    assert all("beta" in answer for answer in answers)
    assert "`--beta`" in page
    assert "pereyra" in page.lower()


@pytest.mark.slow
def test_the_line_joins_the_battery(copy: Path) -> None:
    said = call(copy, "-m", "pytest", "tests/conformance/test_conformance.py", "-p", "no:cacheprovider", "-k",
                f"confidence-penalty and ({CHECKS} or matches_oracle)", path=copy / "src")  # fmt: skip
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None
    assert int(passed[1]) == CHECKS.count(" or ") + 1, said
    assert "failed" not in said
    assert "1 skipped" in said, "a sketch needs no oracle"


def test_it_follows_the_style_of_the_project(copy: Path) -> None:
    (file,) = [name for name, _ in parts() if name.startswith("src") and name.endswith(".py")]
    call(copy, "-m", "ruff", "check", "--no-cache", file, path=copy / "src")
    call(copy, "-m", "ruff", "format", "--no-cache", "--check", file, path=copy / "src")


def test_a_package_of_its_own_joins_by_its_entry_point(tmp_path: Path) -> None:
    """The same two files in another package: nothing of this one is touched."""
    (points,) = [block for block in blocks(PAGE) if block.language == "toml"]
    group, name, value = re.findall(r'"([\w.]+)"\]\n(\w+) = "(\w+)"', points.text)[0]
    for file, block in parts()[:2]:
        place = tmp_path / value / "distill" / Path(file).name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(block.text, encoding="utf-8")
    (tmp_path / value / "__init__.py").touch()
    info = tmp_path / f"{value}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {value}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    rows = json.loads(call(tmp_path, "-m", "interfuse", "list", "distill", "--json", path=tmp_path))
    assert METHOD in [row["id"] for row in rows]
    assert "beta" in call(tmp_path, "-m", "interfuse", "distill", "confidence-penalty", "--help", path=tmp_path)
