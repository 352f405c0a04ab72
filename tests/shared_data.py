"""Small public data that some tests and benchmarks read when it is at hand; they skip, and say so, when it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: the folder of data: named by INTERFUSE_SHARED_DATA, or ``shared/data`` beside the repository
PLACE = Path(os.environ.get("INTERFUSE_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def shared_data(name: str) -> Path:
    """The folder of one data set; skips the test when it is not there."""
    folder = PLACE / name
    if not folder.is_dir():
        pytest.skip(f"the data set {name} is not here (INTERFUSE_SHARED_DATA names the folder that holds it)")
    return folder
