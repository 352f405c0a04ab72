"""The build room: a case's ``inputs`` names the function that furnishes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conformance.cases import Case
from tests.conformance.fixtures import Scene, room
from tests.conformance.scenes import build_documents, build_harvest, build_panel

#: ``inputs`` of a case -> its scene
FURNISHED: dict[str, Callable[[Case, Path], Scene]] = {
    **build_harvest.FURNISHED,
    **build_documents.FURNISHED,
    **build_panel.FURNISHED,
}


@room("build")
def build(case: Case, path: Path) -> Scene:
    """The scene of the case's inputs."""
    return FURNISHED[case.inputs](case, path)
