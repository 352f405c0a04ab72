"""Tests of the battery itself: every check must catch the faults planted for it, and complain of nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.broken import FAULTS, SOUND, Fault
from tests.conformance.cases import Case
from tests.conformance.checks import CHECKS
from tests.conformance.workspace import Shared, Workspace, quiet_threads

APART = "same_bytes_in_another_process"


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Inputs, made before anything is broken, and a second process for the faults that show only there."""
    asked = {item.callspec.params["fault"].name for item in request.session.items if "fault" in _params(item)}
    apart = [f.name for f in FAULTS if f.check == APART and f.name in asked]
    with quiet_threads():
        held = Shared(tmp_path_factory.mktemp("broken"), faults=[*apart, SOUND.name] if apart else [])
        for teachers in (1, ["resnet"]):
            held.scene(Case("distill/kd", given={"teachers": teachers}))
        if apart:
            held.start_other_process()
        yield held
        held.close()


def _params(item: pytest.Item) -> dict[str, object]:
    spec = getattr(item, "callspec", None)
    return spec.params if spec is not None else {}


def test_every_check_has_a_planted_fault() -> None:
    assert set(CHECKS) == {fault.check for fault in FAULTS}
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", sorted(FAULTS, key=lambda f: f.check == APART), ids=lambda f: f"{f.check}: {f.name}")
def test_fault_is_caught(fault: Fault, shared: Shared, tmp_path: Path) -> None:
    with fault.plant() as case, pytest.raises(BaseException) as caught:
        CHECKS[fault.check](Workspace(case, shared, tmp_path, fault.name))
    assert re.search(fault.says, str(caught.value)), f"caught for another reason: {caught.value}"


@pytest.fixture(scope="module")
def sound(shared: Shared) -> Iterator[Workspace]:
    with SOUND.plant() as case:
        yield Workspace(case, shared, shared.root / "sound", SOUND.name)


@pytest.mark.parametrize("name", CHECKS)
def test_sound_method_passes(name: str, sound: Workspace) -> None:
    """Without a fault the planted method passes, so it is the fault that is caught above."""
    CHECKS[name](sound)


@pytest.mark.parametrize("inputs", ["texts", "tokens"])
def test_every_kind_of_tiny_input_is_sound(inputs: str, shared: Shared, tmp_path: Path) -> None:
    """Methods on texts find their inputs ready, whether or not there is a line that uses them today."""
    workspace = Workspace(Case("distill/kd", inputs=inputs, given={"teachers": 1}), shared, tmp_path)
    for name, check in CHECKS.items():
        if name not in (APART, "matches_oracle", "card_complete"):  # these need a line of their own
            check(workspace)
