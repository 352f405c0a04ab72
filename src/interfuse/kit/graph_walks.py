"""From a question's names to the texts that hold its answer: names found in words, walks from them, ranks merged (KAG, Liang et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError
from interfuse.data.graph import Graph
from interfuse.data.statements import SUBCLASS, TYPE, relation_id

#: an entity points to the chunks that name it by the first, a chunk to its entities by the second (the mutual index of ``build/kag``)
SOURCE, MENTIONS = relation_id("source"), relation_id("mentions")


@dataclass(frozen=True)
class Mentioned:
    """An entity of a graph that words name: ``words[start:end]`` is one of its labels or aliases, whatever the case."""

    start: int
    end: int
    entity: str


def linked(graph: Graph, words: str) -> list[Mentioned]:
    """The entities that a text names, such as a question: at every place the longest name, and all entities that are called so.

    Args:
        graph: whose entities point to chunks, as ``build/kag`` makes it.

    Returns:
        in the order of the text; names do not overlap. What the graph does not name is not there.
    """
    named: dict[tuple[str, ...], list[str]] = {}
    for entity in sorted({s.subject for s in graph.statements(p=SOURCE)}):
        for label in graph.labels(entity):
            parts = tuple(re.findall(r"\w+", label.casefold()))
            if parts and entity not in named.setdefault(parts, []):
                named[parts].append(entity)
    longest = max(map(len, named), default=0)
    tokens = list(re.finditer(r"\w+", words))
    found: list[Mentioned] = []
    i = 0
    while i < len(tokens):
        for size in range(min(longest, len(tokens) - i), 0, -1):
            hits = named.get(tuple(t[0].casefold() for t in tokens[i : i + size]), [])
            if hits:
                found += [Mentioned(tokens[i].start(), tokens[i + size - 1].end(), e) for e in hits]
                i += size - 1
                break
        i += 1
    return found


def chunks_near(
    graph: Graph, entities: Sequence[str] | Mapping[str, float], *, damping: float = 0.1
) -> list[tuple[str, float]]:
    """The chunks of a graph by how much of a walk from some entities is spent at them: personalised PageRank over the entities'
    relations and the mutual index.

    Args:
        graph: as ``build/kag`` makes it. entities: where the walk begins again, equally or by weight; those :func:`linked` found.
        damping: the chance of going on along an edge (KAG's store: 0.1; more reaches further).

    Returns:
        (chunk, share) of every chunk the walk comes to, the highest share first, ties by name. A chunk's words are its ``text``.

    Raises:
        InterfuseError: ``input.missing`` for an entity that the graph does not have, or where no entity points to a chunk.
    """
    chunks = {str(s.object) for s in graph.statements(p=SOURCE)}
    if not chunks:
        raise InterfuseError("input.missing", "no entity of the graph points to a chunk", where=graph.name,
                             fix="Build it with build/kag, which keeps the texts beside the facts.")  # fmt: skip
    place: dict[str, int] = {}
    edges: list[tuple[int, int]] = []
    for s in graph.statements():
        if not isinstance(s.object, str) or s.predicate in (TYPE, SUBCLASS, MENTIONS):
            continue  # everything of one class is not near; the index counts once
        if s.subject in chunks and s.object not in chunks:
            continue  # nor is everything of one document
        edges.append((place.setdefault(s.subject, len(place)), place.setdefault(s.object, len(place))))
    weights = dict(entities) if isinstance(entities, Mapping) else dict.fromkeys(entities, 1.0)
    reset = np.zeros(len(place))
    for entity, weight in weights.items():
        name = graph.called(entity)
        if name not in place:
            raise InterfuseError("input.missing", "the graph says nothing of an entity", where=f"{graph.name}: {entity}",
                                 fix="linked(graph, words) finds the entities that words name.")  # fmt: skip
        reset[place[name]] += weight
    if not weights:
        return []
    share = personalised_pagerank(len(place), edges, reset, damping=damping)
    return sorted(
        ((c, float(share[place[c]])) for c in sorted(chunks) if share[place[c]] > 0), key=lambda x: (-x[1], x[0])
    )


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
