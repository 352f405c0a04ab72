"""The command line with two fake rooms in place of the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import interfuse
from interfuse.cli.main import app
from interfuse.core import index
from tests.cli.fake_rooms import install


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder with the numbers ``a`` (1) and ``b`` (2), and the fake rooms in the index."""
    monkeypatch.setattr(interfuse, "__path__", [*interfuse.__path__, str(install.HERE)])
    monkeypatch.setattr(index, "rooms", lambda: install.ROOMS)
    monkeypatch.setattr(index, "entries", install.fake_entries)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("1\n")
    (tmp_path / "b").write_text("2\n")
    (tmp_path / "sum.yaml").write_text(RECIPE)
    return tmp_path


RECIPE = """\
interfuse: 1
title: Two sums
seeds: [0, 1]
sources: {one: a, two: b}
steps:
  total: {use: toys/scale, numbers: [one, two], factor: 3}
  again: {use: toys/scale, numbers: [total]}
  found: {use: gauge/look, of: [total, again]}
"""


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Calls the command line in this process: ``cli("list", "--json")``."""

    def call(*args: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in args])

    return call


@pytest.fixture
def cli_json(cli: Callable[..., Result]) -> Callable[..., Any]:
    """As ``cli`` with ``--json``; it must succeed, and stdout must be one JSON value."""

    def call(*args: object) -> Any:
        result = cli(*args, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return call
