"""Finding reports in artifact and run folders, and printing them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interfuse.cli.output import as_json, cell, say, table
from interfuse.core.artifact import MANIFEST
from interfuse.core.errors import InterfuseError
from interfuse.core.safe import read_text

JSON, HTML, RUN = "report.json", "report.html", "run.json"
LIMIT = 2**28


def artifacts_of(path: Path) -> list[Path]:
    """The artifact a folder is, or those of the run it holds, in the order of the run's plan.

    Raises:
        InterfuseError: ``input.missing`` when it is neither.
    """
    if (path / MANIFEST).is_file():
        return [path]
    if (path / RUN).is_file():
        mark = run_mark(path)
        steps = list(dict.fromkeys(str(row["step"]) for row in mark["steps"]))
        return [folder for step in steps for folder in sorted((path / "steps" / step).glob("[!.]*"))
                if (folder / MANIFEST).is_file()]  # fmt: skip
    raise InterfuseError("input.missing", "there is no artifact and no run", where=str(path),
                         fix=f"Name a folder that holds {MANIFEST} or {RUN}.")  # fmt: skip


def run_mark(path: Path) -> dict[str, Any]:
    """What ``run.json`` of a run's folder says.

    Raises:
        InterfuseError: ``input.format`` when it is damaged.
    """
    return _read(path / RUN, "steps", list)


def read_report(path: Path) -> dict[str, Any] | None:
    """The report in an artifact's folder; None when it has none.

    Raises:
        InterfuseError: ``input.format`` when it is damaged.
    """
    if not (path / JSON).is_file():
        return None
    report = _read(path / JSON)
    shown = report.get("table")
    if shown is not None and not (
        isinstance(shown, dict) and isinstance(shown.get("columns"), list) and isinstance(shown.get("rows"), list)
        and all(isinstance(row, list) for row in shown["rows"])
    ):  # fmt: skip
        raise InterfuseError("input.format", "the report's table has no columns and rows", where=str(path / JSON))
    return report


def _read(file: Path, key: str = "", kind: type = dict) -> dict[str, Any]:
    try:
        value = json.loads(read_text(file, limit=LIMIT))
    except (ValueError, RecursionError) as error:
        raise InterfuseError("input.format", "the file is not valid JSON", where=str(file)) from error
    if not isinstance(value, dict) or (key and not isinstance(value.get(key), kind)):
        raise InterfuseError("input.format", "the file is not what its name says", where=str(file))
    return value


def html_of(path: Path) -> Path | None:
    """The report's page, when there is one."""
    return path / HTML if (path / HTML).is_file() else None


def report_rows(paths: Sequence[Path], *, whole: bool = False) -> list[dict[str, Any]]:
    """What ``--json`` says of the reports among some artifacts: table, notes and page, or the whole report."""
    found = []
    for path in paths:
        report = read_report(path)
        if report is not None:
            page = html_of(path)
            row = {"path": str(path), "html": str(page) if page else None}
            found.append({**row, "report": report} if whole
                         else {**row, "table": report.get("table"), "notes": report.get("notes", [])})  # fmt: skip
    return found


def facts_of(path: Path) -> dict[str, Any]:
    """What made an artifact, and what was found worth noting: the way to look at one that is no report.

    Raises:
        InterfuseError: ``input.format`` when the manifest is damaged.
    """
    manifest = _read(path / MANIFEST)
    facts = manifest.get("facts")
    return {"path": str(path), "method": str(manifest.get("method", "")), "kind": str(manifest.get("kind", "")),
            "facts": facts if isinstance(facts, dict) else {}}  # fmt: skip


def print_facts(path: Path) -> None:
    """Prints :func:`facts_of`: a line per fact, a table per list of rows."""
    found = facts_of(path)
    say(f"{found['kind']} made by {found['method']}")
    _print_facts(found["facts"], "")


def _print_facts(facts: dict[str, Any], before: str) -> None:
    for key, value in facts.items():
        rows = value if isinstance(value, list) and value and all(isinstance(v, dict) for v in value) else None
        if rows:
            columns = list(dict.fromkeys(k for row in rows for k in row))
            table(columns, [[row.get(c) for c in columns] for row in rows], title=f"{before}{key}")
        elif isinstance(value, dict):
            _print_facts(value, f"{before}{key}: ")
        elif value not in (None, [], ""):
            say(f"{before}{key}: {cell(value)}")


def print_report(path: Path) -> bool:
    """Prints table, notes and the place of the page; False when the artifact holds no report."""
    report = read_report(path)
    if report is None or as_json():
        return report is not None
    shown = report.get("table")
    if shown:
        table([str(c) for c in shown["columns"]], shown["rows"], title=str(report.get("title", "")))
    for note in report.get("notes", []):
        say(f"- {note}")
    page = html_of(path)
    if page:
        say(f"report: {page}")
    return True
