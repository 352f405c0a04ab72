"""Packages that hold facts (countries, cities, elements), for benchmarks that need something known."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path


def package(name: str, version: str) -> Path:
    """The folder of a package of data, fetched into the temporary folder unless it is installed."""
    place = Path(tempfile.gettempdir()) / "interfuse-packages"
    if find_spec(name) is None and str(place) not in sys.path:
        sys.path.append(str(place))
    if find_spec(name) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), f"{name}=={version}"], check=True)  # fmt: skip
        invalidate_caches()
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
