"""The two commands of the README: what they would do, and what they say when they cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")


def make(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What make looks at, and an environment whose programs only say what they are asked."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    programs = tmp_path / "env" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "interfuse", "ruff", "mypy", "mkdocs"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        (programs / name).chmod(0o755)
    return tmp_path


def test_an_existing_environment_is_used_and_filled_once(project: Path) -> None:
    first = make("demo", "VENV=env", cwd=project)
    assert first.returncode == 0, first.stderr
    assert "-m pip install" in first.stdout
    assert "-c constraints.txt -e .\n" in first.stdout
    assert first.stdout.rstrip().endswith("interfuse run recipes/quickstart.yaml")
    assert "pip" not in make("demo", "VENV=env", cwd=project).stdout


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_is_noticed_and_a_touched_file_is_not(project: Path, name: str) -> None:
    make("demo", "VENV=env", cwd=project)
    os.utime(project / name, (2**31, 2**31))
    assert "pip" not in make("demo", "VENV=env", cwd=project).stdout
    (project / name).write_text((project / name).read_text() + "\n# more\n")
    assert "-m pip install" in make("demo", "VENV=env", cwd=project).stdout


def test_the_suite_is_linted_and_run_whole_and_pytest_has_the_last_word(project: Path) -> None:
    said = make("test", "VENV=env", cwd=project)
    assert said.returncode == 0, said.stderr
    assert "-e .[dev]" in said.stdout
    for step in ("ruff check .", "ruff format --check .", "mypy"):
        assert step in said.stdout
    assert said.stdout.rstrip().endswith("python -m pytest")
    assert "pip" not in make("demo", "VENV=env", cwd=project).stdout, "what the suite needs is enough for a run"


def test_a_failing_step_stops_the_rest(project: Path) -> None:
    (project / "env/bin/ruff").write_text("#!/bin/sh\nexit 1\n")
    said = make("test", "VENV=env", cwd=project)
    assert said.returncode != 0
    assert "pytest" not in said.stdout


def test_without_a_python_it_says_what_is_needed(project: Path) -> None:
    said = make("demo", "VENV=other", "PYTHON=/nowhere/python3", cwd=project)
    assert said.returncode != 0
    assert "3.11" in said.stderr
    assert "PYTHON=" in said.stderr
    assert not (project / "other").exists()


OLD = "#!/bin/sh\nexit 1\n"
NEW = """#!/bin/sh
case "$1" in
  --version) echo Python 3.12.1 ;;
  -m) mkdir -p "$3/bin" && echo made > "$3/bin/python" ;;
esac
"""


def test_the_first_python_that_is_new_enough_makes_the_environment(project: Path) -> None:
    for name, text in (("old", OLD), ("new", NEW)):
        (project / name).write_text(text)
        (project / name).chmod(0o755)
    said = make("other/bin/python", "VENV=other", "PYTHON=./old ./new", cwd=project)
    assert said.returncode == 0, said.stderr
    assert said.stdout == "making other with Python 3.12.1\n"
    assert (project / "other/bin/python").read_text() == "made\n"


def test_the_machine_runs_what_the_readme_says() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "exec make test </dev/null" in script.read_text()
    readme = (ROOT / "README.md").read_text()
    assert "make demo " in readme
    assert "make test " in readme
