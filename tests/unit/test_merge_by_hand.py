"""Numbers of merges worked by hand, on paper: those of the papers' cards, and one small example for every method that has none there.

Methods that look at models at work have theirs beside their limit cases, in ``test_merge_methods``.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from interfuse.core.errors import InterfuseError
from interfuse.core.method import load, read_params
from interfuse.data.weights import Weights
from interfuse.merge.room import Part, Whole, passes_of
from tests.conformance.cases import CASES
from tests.unit.test_merge_methods import run

HALF = math.sqrt(0.5)


THREE = [[0.4, -0.2, 0.1, 0.3], [0.2, 0.3, -0.1, -0.1], [-0.1, 0.1, 0.2, 0.2]]


@pytest.mark.parametrize("size", [1.0, 1e-5])
@pytest.mark.parametrize("tau, scope, expected", [
    (0.5, "deltas", [0.321212, 0.273333, 0, 0]), (1.0, "deltas", [1 / 3, 0.22, 0.125, 0.275]),
    (0.5, "weights", [0.321212, 0.273333, 0.109091, 0.290909]),
])  # fmt: skip
def test_sce_of_three(tau, scope, expected, size):
    """Variances .042222, .042222, .015556, .028889; energies .571429, .371429, .057143 at half, .545455, .272727, .181818 at all. Of a
    hundred-thousandth of the changes the hundred-thousandth comes."""
    changes = [[size * v for v in row] for row in THREE]
    ours = run("sce", changes, [0.0] * 4, select_topk=tau, select_scope=scope)
    np.testing.assert_allclose(ours.double().numpy() / size, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_varm_of_two(size):
    """Mean squares .015 and .03: a third and two thirds."""
    changes = [[size * v for v in row] for row in ([0.1, -0.1, 0.2, 0.0], [0.3, 0.1, -0.1, 0.1])]
    ours = run("varm", changes, [0.0] * 4)
    np.testing.assert_allclose(ours.double().numpy() / size, [0.233333, 0.033333, 0, 0.066667], rtol=1e-5, atol=1e-6)


def test_ties_of_three():
    """Half kept: [.4, 0, .3, 0], [-.2, .3, 0, 0], [0, 0, -.4, .3]; signs + + - +."""
    changes = [[0.4, -0.1, 0.3, 0.05], [-0.2, 0.3, 0.1, -0.05], [0.1, 0.2, -0.4, 0.3]]
    ours = run("ties", changes, [0.0] * 4, density=0.5)
    np.testing.assert_allclose(ours.numpy(), [0.4, 0.3, -0.4, 0.3], rtol=1e-6)
    models = [[1.0 + v for v in row] for row in changes]
    half = run("ties", models, [1.0] * 4, density=0.5, scale=0.5)
    np.testing.assert_allclose(half.numpy(), [1.2, 1.15, 0.8, 1.15], rtol=1e-6)


def test_averaging_is_adding_a_share_of_every_change():
    base, models = [0.5, -1.0, 2.0], [[1.0, 0.0, 2.0], [0.0, -1.0, 5.0], [0.5, 1.0, -1.0]]
    mean = run("linear", models)
    np.testing.assert_allclose(mean.numpy(), [0.5, 0.0, 2.0], atol=1e-6)
    added = run("task-arithmetic", models, base, weight=1.0, scale=1 / 3)
    np.testing.assert_allclose(added.numpy(), mean.numpy(), atol=1e-6)


def test_dropping_at_random_expects_the_plain_sum():
    """Mean of 200 masks within three standard errors of the merge that drops nothing, element by element and in all."""
    base = torch.zeros(40)
    models = [torch.linspace(0.1, 2, 40), torch.linspace(-1, 1, 40)]
    method, labels, sources = load("merge/dare-linear"), ["a", "b"], [(0, "w"), (1, "w")]
    own = {n: p.default for n, p in read_params(method.target).items()}
    own |= {"density": 0.4, "weight": [0.5, 1.0], "rescale": "inverse"}
    flats = [Weights.from_state_dict({"w": m}).source("w") for m in (*models, base)]
    draws = []
    for seed in range(200):
        facts = method.traits["prepare"](Whole("w", (40,), flats[:2], flats[2], seed, labels, sources), **own)
        part = Part("w", (40,), 0, [m.clone() for m in models], base.clone(), facts, seed, labels, sources)
        draws.append(method.target(part, **own).double())
    seen = torch.stack(draws)
    expected = 0.5 * models[0] + models[1]
    error = seen.std(0) / math.sqrt(len(seen))
    off = (seen.mean(0) - expected).abs() / error
    assert float((off < 3).double().mean()) >= 0.95
    assert abs(float((seen.mean(0) - expected).sum())) < 3 * float(error.square().sum().sqrt())


@pytest.mark.parametrize(("slug", "models", "base", "given", "expected"), [
    ("linear", [[1.0, 2.0], [3.0, 6.0]], None, {"weight": [1.0, 3.0]}, [2.5, 5.0]),
    ("linear", [[1.0, 2.0], [3.0, 6.0]], None, {"weight": [1.0, 3.0], "normalize": False}, [10.0, 20.0]),
    ("slerp", [[2.0, 0.0], [0.0, 2.0]], None, {"t": 0.5}, [2 * HALF, 2 * HALF]),
    ("slerp", [[1.0, 0.0], [0.0, 1.0]], None, {"t": 1 / 3}, [math.cos(math.pi / 6), 0.5]),  # 30 of 90 degrees
    ("nuslerp", [[2.0, 0.0], [0.0, 2.0]], [1.0, 1.0], {"weight": [1.0, 1.0]}, [1.0, 1.0]),  # changes (1,-1) and (-1,1) are opposite
    ("nuslerp", [[[2.0, 0.0], [0.0, 4.0]], [[0.0, 2.0], [4.0, 0.0]]], None, {"along": "row"}, [[2 * HALF] * 2, [4 * HALF] * 2]),
    ("multislerp", [[1.0, 0.0], [0.0, 1.0]], None, {}, [HALF, HALF]),
    ("karcher", [[3.0, 0.0], [0.0, 1.0]], None, {}, [2 * HALF, 2 * HALF]),  # the middle of the arc, of mean length
    ("geometric-median", [[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]], None, {}, [0.0, 0.0]),  # an outlier does not drag it
    ("geometric-median", [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]], None, {}, [2.0, 2.0]),
    ("passthrough", [[1.0, -2.0]], None, {"scale": 0.5}, [0.5, -1.0]),
    ("task-arithmetic", [[2.0, 0.0], [0.0, 3.0]], [1.0, 1.0], {"weight": [0.5, -1.0], "scale": 2.0}, [4.0, -4.0]),
    ("breadcrumbs", [[0.1, -0.2, 0.3, -0.4]], [0.0] * 4, {"density": 0.5, "gamma": 0.25}, [0, -0.2, 0.3, 0]),
    ("della", [[0.1, -0.2], [0.3, 0.4]], [0.0] * 2, {"density": 1.0, "epsilon": 0.0}, [0.2, 0.4]),  # second: -.2 has the minority's sign
    ("model-stock", [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], {}, [0.0, 0.0]),  # cosine 0: back to the base
    ("model-stock", [[2.0, 0.0], [1.0, math.sqrt(3)]], [0.0, 0.0], {}, [1.0, math.sqrt(3) / 3]),  # cosine 1/2: two thirds of the mean
    ("nearswap", [[0.0, 0.0, 0.0], [0.5, -0.5, 0.005]], None, {"t": 0.01}, [0.01, -0.01, 0.005]),
    # shared, the first's own (half of its changes: lambda 1 + .5 x 1), nobody's, the second's own
    ("ram", [[1.0, 2.0, 0.001, 0.0], [3.0, 0.0, -0.001, -4.0]], [0.0] * 4, {"epsilon": 0.01, "r": 0.5, "alpha": 2.0}, [2.0, 3.0, 0.0, -6.0]),
    ("ram", [[1.0, 2.0, 0.001, 0.0], [3.0, 0.0, -0.001, -4.0]], [0.0] * 4, {"epsilon": 0.0}, [2.0, 2.0, 0.0, -4.0]),
    ("iso-c", [[[3.0, 0.0], [0.0, -1.0]]], [[0.0, 0.0], [0.0, 0.0]], {}, [[2.0, 0.0], [0.0, -2.0]]),
    ("tsv", [[[3.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.0, 2.0]]], [[0.0, 0.0], [0.0, 0.0]], {}, [[3.0, 0.0], [0.0, 2.0]]),
    ("twin", [[[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]], None, {"density": 0.5}, [[2.0, 0.0], [0.0, 1.0]]),
    ("twin", [[[3.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 2.0]]], None, {"density": 0.5, "exclusive_weight": [1.0, 0.0]}, [[3.0, 0.0], [0.0, 2.0]]),
    ("lore", [[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], None, {"mu": 1.0, "steps": 1}, [[2.0, 0.0], [0.0, 0.0]]),
])  # fmt: skip
def test_one_small_example_of_each(slug, models, base, given, expected):
    np.testing.assert_allclose(run(slug, models, base, **given).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("r", "alpha"), [(0.0, 0.2), (0.1, 0.0), (0.1, 0.2)])
def test_ram_promises_the_passes_it_makes(r, alpha):
    read, method = [], load("merge/ram")
    held = Weights.from_state_dict({"w": torch.tensor([1.0, 0.0]), "v": torch.tensor([1.0, 2.0]), "b": torch.zeros(2)})

    class Noted:
        shape = (2,)

        def __init__(self, name):
            self.under = held.source(name)

        def read(self, start, stop, out=None):
            read.append((start, stop))
            return self.under.read(start, stop, out)

    flats = [Noted("w"), Noted("v")]
    own = {"epsilon": 1e-5, "r": r, "alpha": alpha}
    method.traits["prepare"](Whole("w", (2,), flats, held.source("b"), 0, ["a", "b"], [(0, "w"), (1, "w")]), **own)
    assert passes_of(method, own) == 1 + bool(read)


def test_what_stands_out_is_taken():
    """Seven of eight changes are small: the eighth, whose importance is far above the quartiles, comes from the second model."""
    a = torch.zeros(2, 4)
    b = torch.tensor([[0.01, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    ours = run("arcee-fusion", [a, b])
    assert ours[1, 0] == 2.0
    assert ours[:, 1:].count_nonzero() == 0


@pytest.mark.parametrize("svd", ["exact", "gram"])
def test_lore_descends(svd):
    """Its objective never rises; without a price the changes are whole, under a heavy one there are none."""
    g = torch.Generator().manual_seed(3)
    models = [torch.randn(9, 6, generator=g) for _ in range(3)]
    mean = torch.stack(models).double().mean(0)
    mu = 0.2
    largest = max(float(torch.linalg.matrix_norm(m.double() - mean, 2)) for m in models)

    def objective(steps):
        """By the method's own sums: combine = sum, scale = 0 gives the base, each model's task follows from it."""
        z = run("lore", models, mu=mu, steps=steps, scale=0.0, svd=svd).double() if steps else mean
        total = 0.0
        for m in models:
            u, s, v = torch.linalg.svd(m.double() - z, full_matrices=False)
            d = (u * (s - mu * largest / 2).clamp(min=0)) @ v
            total += float((z + d - m.double()).square().sum() + mu * largest * torch.linalg.matrix_norm(d, "nuc"))
        return total

    values = [objective(steps) for steps in range(6)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(values))
    assert values[-1] < values[0]
    torch.testing.assert_close(run("lore", models, mu=0.0, svd=svd), mean.float())  # Z + mean of (theta - Z)
    heavy = run("lore", models, mu=3.0, scale=7.0, combine="sum", svd=svd)
    torch.testing.assert_close(heavy, mean.float())  # nothing is above half of three times the largest


def bounds(annotation):
    """Every bound a parameter states, as the first number beyond it."""
    from typing import get_args

    found = []
    for part in get_args(annotation):
        for limit in getattr(part, "metadata", ()):
            for kind, beyond in (("ge", -1e-3), ("gt", 0.0), ("le", 1e-3), ("lt", 0.0)):
                value = getattr(limit, kind, None)
                if value is not None:
                    whole = isinstance(value, int) and abs(beyond) and int in get_args(annotation)[:1]
                    found.append(value + (math.copysign(1, beyond) if whole else beyond))
        found += bounds(part)
    return found


RANGED = [(slug, name, beyond) for slug in dict.fromkeys(c.slug for c in CASES if c.room == "merge")
          for name, param in read_params(load(f"merge/{slug}").target).items() for beyond in dict.fromkeys(bounds(param.annotation))]  # fmt: skip


@pytest.mark.parametrize(("slug", "name", "beyond"), RANGED)
def test_numbers_out_of_range_are_named(slug, name, beyond):
    with pytest.raises(InterfuseError) as caught:
        load(f"merge/{slug}").check({name: beyond})
    assert caught.value.code == "param.value"
    assert name in str(caught.value)


def test_most_methods_state_ranges():
    assert len({slug for slug, _, _ in RANGED}) >= 15
