"""Walks on graphs of integers: personalised PageRank, by power iteration on an undirected graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def personalised_pagerank(nodes: int, edges: Sequence[tuple[int, int]] | NDArray[np.int64], reset: Sequence[float] | NDArray[np.float64], *,
                          damping: float = 0.1, tolerance: float = 1e-12, limit: int = 1000) -> NDArray[np.float64]:  # fmt: skip
    """The share of time a walk spends at each node, [nodes]; it sums to 1.

    Args:
        edges: pairs, read in both directions; several between two nodes count as several. reset: weights [nodes] of the nodes where the
            walk begins again; they are normalised. damping: the chance of going on along an edge (KAG's store: 0.1). A node without
            edges begins again.

    Raises:
        ValueError: when no node is reset to, or the damping is not in [0, 1).
    """
    from scipy.sparse import csr_matrix

    start = np.asarray(reset, np.float64)
    if not 0 <= damping < 1 or start.shape != (nodes,) or start.sum() <= 0 or (start < 0).any():
        raise ValueError("personalised PageRank needs a damping in [0, 1) and weights of which one is positive")
    start = start / start.sum()
    pairs = np.asarray(edges, np.int64).reshape(-1, 2)
    rows, columns = np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]])
    away = csr_matrix((np.ones(len(rows)), (columns, rows)), shape=(nodes, nodes))
    degree = np.asarray(away.sum(axis=0)).ravel()
    share = np.divide(1.0, degree, out=np.zeros(nodes), where=degree > 0)
    rank = start.copy()
    for _ in range(limit):
        lost = rank[degree == 0].sum()
        following = damping * (away @ (rank * share) + lost * start) + (1 - damping) * start
        if np.abs(following - rank).sum() < tolerance:
            return np.asarray(following)
        rank = following
    return rank


def reciprocal_merge(lists: Sequence[Sequence[str]], k: float = 0.0) -> dict[str, float]:
    """Ranked lists as one score per item: the sum of ``1 / (k + rank)``, ranks from 1; the highest first, ties by name."""
    scores: dict[str, float] = {}
    for ranked in lists:
        for rank, item in enumerate(dict.fromkeys(ranked), 1):
            scores[item] = scores.get(item, 0.0) + 1.0 / (k + rank)
    return dict(sorted(scores.items(), key=lambda x: (-x[1], x[0])))
