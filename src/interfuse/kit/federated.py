"""Federated distillation without transport: splits of data between clients, and what a server makes of their predictions.

``fuse`` is the whole server of KnFu (Seyedmohammadi et al. 2024): predictions of every client on shared examples go in, targets of
its own for every client come out. It can stand behind any transport.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Weighting = Literal["exp", "inverse"]
Distance = Literal["kl", "symmetric-kl", "js"]
Estimate = Literal["soft", "hard"]
#: probabilities of an estimated distribution are not taken smaller than this
FLOOR = 1e-8


@dataclass(frozen=True)
class Fused:
    """What a server answers.

    Attributes:
        clients: their names, in the order of the arrays. weights: [N, N], row n is what client n takes from whom; rows sum to 1.
        targets: [N, m, C], the personal fused predictions, rows of distributions. estimates: [N, C], the clients' estimated
            distributions of classes.
    """

    clients: tuple[str, ...]
    weights: Array = field(repr=False)
    targets: Array = field(repr=False)
    estimates: Array = field(repr=False)


def fuse(
    predictions: Mapping[str, Array],
    *,
    beta: float = 10.0,
    weighting: Weighting = "exp",
    distance: Distance = "kl",
    estimate: Estimate = "soft",
    neighbours: int | None = None,
    correct_prior: bool = False,
) -> Fused:
    """Effective knowledge fusion: each client is taught by those whose data look like its own.

    ``q_n`` is the mean prediction of client n, ``d = KL(q_n || q_k)``, and the weight of client k for client n falls with d:
    ``exp(-beta d)`` or ``1 / (d + 1/beta)``, normalised over k. ``beta = 0`` is the plain average (FedMD).

    Args:
        predictions: client -> probabilities [m, C] on the same m examples.
        beta: sharpness, >= 0. neighbours: only the nearest so many clients (itself included) count.
        estimate: mean of probabilities, or shares of the most likely classes.
        correct_prior: divides estimates by their mean over clients: what the shared examples' own mix adds is taken out.

    Raises:
        InterfuseError: ``input.empty``, ``input.shape`` for clients that differ in examples or classes, ``input.nan``,
            ``param.value`` for rows that are no distribution, beta < 0 or neighbours < 1.
    """
    names = tuple(predictions)
    if not names:
        raise InterfuseError("input.empty", "no client has sent predictions")
    if beta < 0 or (neighbours is not None and neighbours < 1):
        raise InterfuseError(
            "param.value", "beta must be at least 0 and neighbours at least 1", where=f"{beta}, {neighbours}"
        )
    shapes = {name: np.asarray(p).shape for name, p in predictions.items()}
    first = shapes[names[0]]
    for name, shape in shapes.items():
        if len(shape) != 2 or shape != first:
            raise InterfuseError("input.shape", f"client {name} predicts {shape}, client {names[0]} {first}",
                                 fix="All clients predict the same classes for the same examples, in the same order.")  # fmt: skip
    stacked = np.stack([np.asarray(predictions[n], dtype=np.float64) for n in names])
    if not stacked.size:
        raise InterfuseError("input.empty", "there are no shared examples or no classes")
    if not np.isfinite(stacked).all():
        raise InterfuseError("input.nan", "a prediction is not a number")
    if (stacked < 0).any() or np.abs(stacked.sum(axis=-1) - 1).max() > 1e-3:
        raise InterfuseError("param.value", "predictions are not distributions: rows must be at least 0 and sum to 1")
    estimates = class_estimates(stacked, estimate)
    if correct_prior:
        estimates = estimates / estimates.mean(axis=0, keepdims=True)
        estimates /= estimates.sum(axis=-1, keepdims=True)
    weights = effective_weights(estimates, beta=beta, weighting=weighting, distance=distance, neighbours=neighbours)
    return Fused(names, weights, np.einsum("nk,kmc->nmc", weights, stacked), estimates)


def class_estimates(stacked: Array, estimate: Estimate = "soft") -> Array:
    """Each client's distribution of classes as its predictions show it, floored at :data:`FLOOR`; [N, m, C] -> [N, C]."""
    if estimate == "hard":
        eye = np.eye(stacked.shape[-1])
        q = eye[stacked.argmax(axis=-1)].mean(axis=1)
    else:
        q = stacked.mean(axis=1)
    q = np.maximum(q, FLOOR)
    return np.asarray(q / q.sum(axis=-1, keepdims=True))


def effective_weights(
    estimates: Array,
    *,
    beta: float,
    weighting: Weighting = "exp",
    distance: Distance = "kl",
    neighbours: int | None = None,
) -> Array:
    """Row n: how much client n takes from each client, by the distance of their estimates [N, C]; rows sum to 1."""
    p, q = estimates[:, None, :], estimates[None, :, :]
    forward = (p * np.log(p / q)).sum(axis=-1)
    if distance == "symmetric-kl":
        apart = (forward + forward.T) / 2
    elif distance == "js":
        middle = (p + q) / 2
        half = (p * np.log(p / middle)).sum(axis=-1)
        apart = (half + half.T) / 2
    else:
        apart = forward
    if weighting == "inverse":
        said = np.ones_like(apart) if beta == 0 else 1.0 / (apart + 1.0 / beta)
    else:
        said = np.exp(-beta * (apart - apart.min(axis=1, keepdims=True)))
    if neighbours is not None:
        rank = apart.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        said = np.where(rank < neighbours, said, 0.0)
    return np.asarray(said / said.sum(axis=1, keepdims=True))


def dirichlet_split(
    labels: Ints, clients: int, alpha: float, rng: np.random.Generator, *, size: int | None = None
) -> list[Ints]:
    """Disjoint rows per client whose classes follow mixtures drawn from a Dirichlet distribution.

    Args:
        labels: [m] classes. alpha: concentration; small values give each client few classes.
        size: rows of every client (as far as the classes last); None: each class is shared out whole, so that sizes differ.

    Raises:
        InterfuseError: ``param.value`` when alpha or clients are not positive, ``input.empty`` when rows do not suffice.
    """
    if clients < 1 or not alpha > 0:
        raise InterfuseError("param.value", "clients and alpha must be positive", where=f"{clients}, {alpha}")
    classes = np.unique(labels)
    pools = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    parts: list[list[Ints]] = [[] for _ in range(clients)]
    if size is None:
        for pool in pools:
            shares = rng.dirichlet(np.full(clients, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(pool)).astype(int)
            for part, rows in zip(parts, np.split(pool, cuts), strict=True):
                part.append(rows)
    else:
        if size * clients > len(labels):
            raise InterfuseError(
                "input.empty", f"{clients} clients of {size} examples need {size * clients}, there are {len(labels)}"
            )
        left = np.array([len(p) for p in pools])
        for part in parts:
            mix = rng.dirichlet(np.full(len(classes), alpha))
            for _ in range(size):
                there = np.where(left > 0, mix, 0.0)
                if there.sum() <= 0:  # its classes are used up: it takes what there is
                    there = (left > 0).astype(float)
                chosen = int(rng.choice(len(classes), p=there / there.sum()))
                left[chosen] -= 1
                part.append(pools[chosen][left[chosen]][None])
    return [np.sort(np.concatenate(p)).astype(np.int64) if p else np.zeros(0, dtype=np.int64) for p in parts]


def average_weights(states: Sequence[Mapping[str, Array]], sizes: Sequence[int]) -> dict[str, Array]:
    """FedAvg (McMahan et al. 2017): the mean of the clients' parameters, weighted by their numbers of examples."""
    total = float(sum(sizes))
    if total <= 0:
        raise InterfuseError("input.empty", "no client has examples to average by")
    return {
        name: np.asarray(sum(s[name] * (n / total) for s, n in zip(states, sizes, strict=True))) for name in states[0]
    }
