"""Terms weighted, added up and logged together: what each one alone would give."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interfuse.distill.adding_up import Sums, add_up, named
from interfuse.kit.heap import keep_freed

ROWS = {"ce": torch.tensor([1.0, 2.0, 4.0]), "kd": torch.tensor([0.5, 0.25, 0.125])}
TOKENS = torch.tensor([[1.0, 3.0], [5.0, 7.0], [2.0, 2.0]])


def leaves(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone().requires_grad_() for name, value in terms.items()}


CASES: dict[str, tuple[dict[str, Tensor], dict[str, float | Tensor], dict[str, float]]] = {
    "numbers": (ROWS, {"kd": 4.0}, {"ce": 7.0, "kd": 3.5}),
    "one per sample": (ROWS, {"ce": torch.tensor([1.0, 0.0, 2.0]), "kd": 2.0}, {"ce": 9.0, "kd": 1.75}),
    "of unlike shapes": (ROWS | {"tokens": TOKENS}, {"tokens": 0.5}, {"ce": 7.0, "kd": 0.875, "tokens": 10.0}),
    "one per text": ({"tokens": TOKENS}, {"tokens": torch.tensor([1.0, 0.0, 3.0])}, {"tokens": 16.0}),
    "nothing weighs": (ROWS, {"ce": 0.0, "kd": 0.0}, {"ce": 0.0, "kd": 0.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_parts_and_log_are_those_of_every_term_alone(name: str) -> None:
    given, weights, expected = CASES[name]
    terms, sums = leaves(given), Sums()
    for _ in range(2):
        loss, parts = add_up(terms, weights, 8.0, sums)
    assert float(loss.detach()) == pytest.approx(sum(expected.values()) / 8)
    assert {k: 8 * float(v.detach()) for k, v in parts.items()} == pytest.approx(expected)
    together = torch.autograd.grad(loss, list(terms.values()), retain_graph=True)
    alone = torch.autograd.grad(sum(parts.values()), list(terms.values()))
    for mine, other in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, other)
    assert named(sums) == pytest.approx(
        {f"raw/{k}": 2 * float(v.sum()) for k, v in given.items()}
        | {f"weighted/{k}": 2 * v for k, v in expected.items()}
    )


def test_what_is_only_watched_never_reaches_the_loss() -> None:
    """An infinite number times 0 is none."""
    terms, sums = {"seen": torch.tensor([math.inf, 1.0]), "ce": torch.ones(2, requires_grad=True)}, Sums()
    loss, _ = add_up(terms, {"seen": 0.0}, 2.0, sums)
    assert float(loss.detach()) == 1.0
    assert named(sums) == {"raw/ce": 2.0, "weighted/ce": 2.0, "raw/seen": math.inf, "weighted/seen": 0.0}


def test_terms_may_change_from_step_to_step() -> None:
    sums = Sums()
    add_up(leaves(ROWS), {}, 1.0, sums)
    add_up(leaves({"ce": ROWS["ce"]}), {"ce": 2.0}, 1.0, sums)
    assert named(sums) == {"raw/ce": 14.0, "weighted/ce": 21.0, "raw/kd": 0.875, "weighted/kd": 0.875}


def test_a_setting_of_the_user_decides_what_becomes_of_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    anew: Callable[[], bool] = keep_freed.__wrapped__
    assert not anew()
