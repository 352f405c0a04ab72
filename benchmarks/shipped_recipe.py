"""A recipe as it ships but for the lines that a user would change: for tests and benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

from interfuse.core import index


def shipped(name: str, place: Path, changes: dict[str, str]) -> Path:
    """Writes the recipe into a folder; each pattern of ``changes`` must occur in it once, and is replaced."""
    text = (index.shipped("recipes") / name).read_text()
    for pattern, new in changes.items():
        text, count = re.subn(pattern, lambda m, new=new: new, text, flags=re.S)  # type: ignore[misc]
        assert count == 1, pattern
    file = place / name
    file.write_text(text)
    return file
