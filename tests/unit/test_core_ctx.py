"""The context: named generators that are independent and the same everywhere; budgets kept before the work."""

import os
import subprocess
import sys

import numpy as np
import pytest

from interfuse.core.ctx import Budget, Ctx
from interfuse.core.errors import InterfuseError

DRAW = """
from interfuse.core.ctx import Ctx
ctx = Ctx(seed=7)
print(ctx.seed_for("init"), ctx.rng("init").integers(2**62), ctx.rng("data").integers(2**62), ctx.rng("é\\0").random())
"""


def test_the_same_in_every_process() -> None:
    seen = set()
    for seed in ("0", "1", "12345", "random"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=True, env=env)
        seen.add(done.stdout)
    ctx = Ctx(seed=7)
    here = (
        ctx.seed_for("init"),
        ctx.rng("init").integers(2**62),
        ctx.rng("data").integers(2**62),
        ctx.rng("é\0").random(),
    )
    assert seen == {" ".join(str(x) for x in here) + "\n"}


def test_frozen_values() -> None:
    """A change of these numbers changes every result ever made: it needs a new major version."""
    assert Ctx(seed=0).seed_for("init") == 7398377047407540960
    assert Ctx(seed=0).rng("init").integers(2**32, size=3).tolist() == [42318693, 2766576991, 2044505480]


def test_asking_twice_gives_the_same_numbers_and_leaves_others_alone() -> None:
    ctx = Ctx(seed=3)
    first = ctx.rng("a").random(10)
    ctx.rng("b").random(1000)
    np.random.default_rng().random()
    assert np.array_equal(first, ctx.rng("a").random(10))


def test_names_and_seeds_are_independent() -> None:
    """1,000 streams: no seed twice, draws uncorrelated, and seed 1 of one name is not seed 0 of another."""
    ctx = [Ctx(seed=s) for s in range(10)]
    seeds = [c.seed_for(f"name-{n}") for c in ctx for n in range(100)]
    assert len(set(seeds)) == 1000
    assert all(0 <= s < 2**63 for s in seeds)
    assert Ctx(seed=1).seed_for("2") != Ctx(seed=12).seed_for("")
    draws = np.stack([c.rng(f"name-{n}").random(2000) for c in ctx for n in range(10)])
    correlation = np.corrcoef(draws) - np.eye(100)
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)  # 4,950 pairs; 5 standard errors


def test_no_global_state() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    Ctx(seed=5).rng("x").normal(size=100)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_budget_is_refused_before_it_is_spent() -> None:
    budget = Budget(calls=3, tokens=100)
    budget.spend(calls=2, tokens=100)
    with pytest.raises(InterfuseError, match="4 calls would be spent, the budget is 3") as caught:
        budget.spend(calls=2)
    assert (caught.value.code, caught.value.exit_code) == ("budget.spent", 4)
    assert budget.spent == {"calls": 2, "tokens": 100}
    budget.spend(calls=1, seconds=1e9)  # no limit on seconds


def test_a_changed_copy_leaves_the_original() -> None:
    ctx = Ctx(seed=1)
    assert (ctx.with_(seed=2).seed, ctx.seed) == (2, 1)
    with ctx.bar("work", 3, "steps") as bar:
        bar.advance()
    ctx.log("nobody listens")
