"""Clients of KnFu as plain functions: a linear classifier of digits per client, private examples of its own, predictions on shared ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from interfuse.core.ctx import Ctx
from interfuse.kit.federated import dirichlet_split

Array = NDArray[np.float64]
RATE, LOCAL, TUNE = 0.5, 30, 10


def softmax(z: Array) -> Array:
    """Rows of distributions, [m, C]."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def digits(clients: int, alpha: float = 0.2) -> tuple[Array, list[tuple[Array, Array]], list[tuple[Array, Array]]]:
    """Shared inputs [m, 65], private examples and tests per client (inputs and one-hot labels), the same on every machine."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = np.hstack([x / 16.0, np.ones((len(x), 1))])
    rng = Ctx(seed=0).rng("knfu over a network")
    order = rng.permutation(len(x))
    shared, rest = order[:300], order[300:]
    private, tests = [], []
    for part in dirichlet_split(y[rest], clients, alpha, rng, size=120):
        rows = rng.permutation(rest[part])
        private.append((x[rows[:60]], np.eye(10)[y[rows[:60]]]))
        tests.append((x[rows[60:]], np.eye(10)[y[rows[60:]]]))
    return x[shared], private, tests


def learn(weights: Array, x: Array, targets: Array, steps: int) -> Array:
    """Gradient descent of the cross entropy with ``targets`` (KL up to a constant) from ``weights`` [65, 10]."""
    for _ in range(steps):
        weights = weights - RATE * x.T @ (softmax(x @ weights) - targets) / len(x)
    return weights


def round_of(weights: Array, targets: Array | None, shared: Array, mine: tuple[Array, Array]) -> Array:
    """One round of a client: tune on what the server answered, train on the private examples."""
    if targets is not None:
        weights = learn(weights, shared, targets, TUNE)
    return learn(weights, *mine, LOCAL)
