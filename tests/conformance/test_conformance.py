"""The battery: every method of every room against every check."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from interfuse.core import index
from tests.conformance.cases import CASES, Case
from tests.conformance.checks import CHECKS
from tests.conformance.fixtures import SCENES
from tests.conformance.workspace import Shared, Workspace, quiet_threads

APART = "same_bytes_in_another_process"
BY_METHOD = {case.method: case for case in CASES}


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Inputs on disk, and a second process that runs the cases that will be asked for, meanwhile."""
    items = [item for item in request.session.items if getattr(item, "originalname", "") == "test_method"]
    asked = dict.fromkeys(item.callspec.params["method"] for item in items)
    elsewhere = any(item.callspec.params["name"] == APART for item in items)
    with quiet_threads():
        held = Shared(tmp_path_factory.mktemp("conformance"), [BY_METHOD[m] for m in asked])
        if elsewhere:
            held.start_other_process()
        yield held
        held.close()


@pytest.fixture(scope="module")
def workspaces(shared: Shared) -> dict[str, Workspace]:
    """One folder per case, used by all its checks."""
    return {m: Workspace(case, shared, shared.root / m) for m, case in BY_METHOD.items()}


#: what the other process makes is looked at last, so that nobody waits for it
PAIRS = sorted(((m, name) for m in BY_METHOD for name in CHECKS), key=lambda pair: pair[1] == APART)


@pytest.mark.parametrize(("method", "name"), [pytest.param(m, name, id=f"{m}-{name}") for m, name in PAIRS])
def test_method(workspaces: dict[str, Workspace], method: str, name: str) -> None:
    workspace = workspaces[method]
    reason = {**workspace.scene.not_applicable, **workspace.case.na}.get(name)
    if reason:
        pytest.skip(f"does not apply: {reason}")
    if name == "matches_oracle" and not workspace.case.oracle and index.find(method).card.status == "sketch":
        pytest.skip("a sketch claims no oracle: its status says so")
    CHECKS[name](workspace)


def test_every_method_has_its_line() -> None:
    methods = {entry.id for entry in index.entries().values() if entry.kind == "method"}
    missing, idle = sorted(methods - set(BY_METHOD)), sorted(set(BY_METHOD) - methods)
    assert not missing, f"no line in tests/conformance/cases.py: {', '.join(missing)}"
    assert not idle, f"a line in tests/conformance/cases.py without a method: {', '.join(idle)}"
    assert len(CASES) == len(BY_METHOD), "a method has two lines"


def test_every_room_has_its_fixture() -> None:
    assert {case.room for case in CASES} <= set(SCENES)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.method)
def test_exceptions_name_a_check_and_a_reason(case: Case) -> None:
    for name, reason in case.na.items():
        assert name in CHECKS, f"{name} is no check"
        assert len(reason.split()) >= 4, f"{case.method}: why does {name} not apply?"
