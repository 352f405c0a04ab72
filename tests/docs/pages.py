"""The written pages, cut into blocks of code."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block. ``reason``: why it is not run, empty when it is."""

    page: Path
    line: int
    language: str
    text: str
    reason: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found: list[Block] = []
    start, language, reason, body = 0, "", "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        if start and line.strip() == "```":
            found.append(Block(page, start, language, "\n".join(body) + "\n", reason))
            start, reason, body = 0, "", []
        elif start:
            body.append(line)
        elif line.lstrip().startswith("```"):
            start, language = number, line.strip("` ")
        elif line.strip():
            mark = NOT_RUN.fullmatch(line.strip())
            reason = mark[1] if mark else ""
    assert not start, f"{page}:{start}: the block has no end"
    return found


def generator() -> ModuleType:
    """``docs/generate.py``, imported once."""
    if "docs_generate" not in sys.modules:
        spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["docs_generate"] = module
        spec.loader.exec_module(module)
    return sys.modules["docs_generate"]
