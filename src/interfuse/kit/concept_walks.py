"""How relevant one concept is to another in a literature: decayed walks along citations, by windows of time.

From a paper that carries concept ``a`` one follows citations in either direction, each next step with weight ``g``; the relevance
of ``b`` to ``a`` is the discounted chance of standing on a paper that carries ``b``. ``A`` is the undirected paper graph, ``W`` the row-normalised
``A`` (an isolated paper has an empty row), ``M`` [N, C] says which paper has which concept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interfuse.core.errors import InterfuseError

Floats = NDArray[np.float64]
#: concepts whose visits of all papers are held at a time
BLOCK = 256


@dataclass(frozen=True)
class Walks:
    """Discounted visits of every paper, for some concepts.

    Attributes:
        visits: ``(1-g) sum_n g^n (W^n M)[i, b]`` [N, B]. mass: the same of a column of ones, [N]: what of the weights a walk that starts
            there really uses (a truncated sum and dead ends use less than 1).
    """

    visits: Floats
    mass: Floats


def citation_graph(papers: int, edges: Sequence[tuple[int, int]]) -> Any:
    """``W``, sparse [N, N]: the undirected graph of the edges, self-loops and doubles dropped, rows summing to 1 or 0."""
    from scipy.sparse import csr_matrix, diags

    pairs = np.asarray([(a, b) for a, b in edges if a != b], dtype=np.int64).reshape(-1, 2)
    if pairs.size and (pairs.min() < 0 or pairs.max() >= papers):
        raise InterfuseError("input.shape", f"an edge names a paper outside 0 to {papers - 1}")
    rows, columns = np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]])
    a = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(papers, papers))
    a.data[:] = 1.0
    degree = np.asarray(a.sum(axis=1)).ravel()
    return diags(np.divide(1.0, degree, out=np.zeros(papers), where=degree > 0)) @ a


def walks(w: Any, m: Any, *, decay: float = 0.5, steps: int = 4, include_self: bool = False) -> Walks:
    """Visits by walks of at most ``steps`` steps. Never forms a power of ``W``: cost is steps x edges x concepts.

    Args:
        w: of :func:`citation_graph`. m: sparse or dense [N, B]. decay: ``g`` in [0, 1).
        include_self: counts step 0, which is co-occurrence within a paper.

    Raises:
        InterfuseError: ``param.value`` for a decay outside [0, 1) or less than no step.
    """
    return Walks(_visits_of(w, m, decay, steps, include_self), _mass_of(w, decay, steps, include_self))


def _visits_of(w: Any, m: Any, decay: float, steps: int, include_self: bool) -> Floats:
    """The visits of :func:`walks` [N, B]."""
    if not 0 <= decay < 1 or steps < 0:
        raise InterfuseError("param.value", f"a decay of {decay:g} over {steps} steps is no discounted walk")
    from scipy.sparse import issparse

    now = np.asarray(m.todense() if issparse(m) else m, dtype=np.float64)
    visits = np.zeros_like(now) if not include_self else (1 - decay) * now
    for n in range(1, steps + 1):
        now = w @ now
        visits += (1 - decay) * decay**n * now
    return visits


def _mass_of(w: Any, decay: float, steps: int, include_self: bool) -> Floats:
    """What the walks from every paper use of their chance, which is the same for all concepts [N]."""
    one = np.ones(w.shape[0])
    mass = np.zeros(len(one)) if not include_self else (1 - decay) * one
    for n in range(1, steps + 1):
        one = w @ one
        mass += (1 - decay) * decay**n * one
    return mass


def walks_in_full(w: Any, m: Any, *, decay: float = 0.5, include_self: bool = False) -> Walks:
    """The closed form ``(1-g) (I - g W)^-1 M`` of walks without end; for graphs small enough for a sparse solve."""
    from scipy.sparse import identity, issparse
    from scipy.sparse.linalg import spsolve

    dense = np.asarray(m.todense() if issparse(m) else m, dtype=np.float64)
    system = (identity(w.shape[0]) - decay * w).tocsc()
    first = 0.0 if include_self else 1.0
    solved = np.stack([np.asarray(spsolve(system, column)) for column in dense.T], axis=1)
    ones = np.asarray(spsolve(system, np.ones(len(dense))))
    return Walks((1 - decay) * (solved - first * dense), (1 - decay) * (ones - first))


def relevance(start: Any, found: Walks) -> Floats:
    """``R(a -> b)``: the mean visits over the papers that carry ``a``, [A, B].

    Args:
        start: which papers carry which concept, [N, A], papers outside the window all zero.
    """
    from scipy.sparse import csr_matrix

    u = csr_matrix(start, dtype=np.float64)
    counts = np.asarray(u.sum(axis=0)).ravel()
    total = np.asarray(u.T @ found.visits)
    return np.divide(total, counts[:, None], out=np.zeros_like(total), where=counts[:, None] > 0)


@dataclass(frozen=True)
class Lifts:
    """The normalised lift of all concepts, made only where it is asked for, so that no second table of concepts by concepts is held.

    Attributes:
        relevance: ``R`` [A, B] as it is. starts: what makes it the chance given that a walk is somewhere, by row [A].
        found: one over the share of papers that carry the concept, by column [B]; 0 where none does.
    """

    relevance: Floats
    starts: Floats
    found: Floats

    def at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
        """The lift at places, which are broadcast against each other: ``at(rows[:, None], columns)`` is a table."""
        return np.asarray(self.relevance[rows, columns] * self.starts[rows] * self.found[columns])


def relevances(w: Any, m: Any, start: Any, *, decay: float = 0.5, steps: int = 4, include_self: bool = False) -> tuple[Floats, Floats]:  # fmt: skip
    """:func:`relevance` of all concepts [A, B], and what its rows are to be multiplied by to be normalised [A].

    Visits are held for :data:`BLOCK` concepts at a time, and one table of concepts by concepts.

    Args:
        w, m, decay, steps, include_self: of :func:`walks`. start: of :func:`relevance`.
    """
    from scipy.sparse import csc_matrix, csr_matrix

    columns, u = csc_matrix(m, dtype=np.float64), csr_matrix(start, dtype=np.float64)
    counts = np.asarray(u.sum(axis=0)).ravel()
    plain, each = np.zeros((u.shape[1], columns.shape[1])), _mass_of(w, decay, steps, include_self)
    for first in range(0, columns.shape[1], BLOCK):
        part = slice(first, first + BLOCK)
        plain[:, part] = relevance(start, Walks(_visits_of(w, columns[:, part], decay, steps, include_self), each))
    mass = np.asarray(u.T @ each).ravel()
    return plain, np.divide(counts, mass, out=np.zeros_like(mass), where=mass > 0)


def symmetric(r: Floats) -> Floats:
    """``sqrt(R(a -> b) R(b -> a))`` of a square table."""
    return both_ways(r, r.T)


def both_ways(there: Floats, back: Floats) -> Floats:
    """The geometric mean of values one way and the other, of one shape; 0 where their product is negative."""
    return np.sqrt(np.maximum(there * back, 0.0))


def ochiai(m: Any) -> Floats:
    """``C_ab / sqrt(C_aa C_bb)`` with ``C = M^T M``: plain co-occurrence within papers, the baseline."""
    from scipy.sparse import csr_matrix

    x = csr_matrix(m, dtype=np.float64)
    c = np.asarray((x.T @ x).todense())
    scale = np.sqrt(np.outer(np.diag(c), np.diag(c)))
    return np.divide(c, scale, out=np.zeros_like(c), where=scale > 0)


@dataclass(frozen=True)
class Window:
    """A slice of time: papers ``members`` (indices) published from ``start`` to ``end``, both included."""

    name: str
    start: float
    end: float
    members: NDArray[np.int64]


def windows(
    times: ArrayLike, *, years: float | None = None, step: float = 1.0, count: int | None = None
) -> list[Window]:
    """Windows of so many years every ``step``, or of an equal ``count`` of papers (which removes the bias of a growing field).

    Raises:
        InterfuseError: ``param.value`` unless exactly one of ``years`` and ``count`` is given; ``input.nan``; ``input.empty``.
    """
    t = np.asarray(times, dtype=np.float64)
    if (years is None) == (count is None):
        raise InterfuseError("param.value", "a window is so many years or so many papers, one of the two")
    if not np.isfinite(t).all():
        raise InterfuseError("input.nan", "a paper has no year")
    if not len(t):
        raise InterfuseError("input.empty", "there is no paper")
    found: list[Window] = []
    order = np.argsort(t, kind="stable")
    if count is not None:
        for first in range(0, len(order) - count + 1, count):
            members = np.sort(order[first : first + count])
            low, high = float(t[members].min()), float(t[members].max())
            found.append(Window(f"{low:g}-{high:g} ({len(found) + 1})", low, high, members))
        if not found:
            raise InterfuseError("input.empty", f"there are fewer than {count} papers")
        return found
    assert years is not None
    begin = float(t.min())
    while True:
        end = begin + years
        members = np.flatnonzero((t >= begin) & (t < end))
        if len(members):
            found.append(
                Window(f"{begin:g}-{end - step:g}" if years > step else f"{begin:g}", begin, end - step, members)
            )
        if end > t.max():
            return found
        begin += step


@dataclass(frozen=True)
class Force:
    """One window's figures of a technique domain and a science domain.

    Attributes:
        cross, inner: mean symmetric relevance between the domains, and within the science domain. lift: mean symmetric lift
            between them. low, high: interval of ``cross`` by resampling papers. null: mean ``cross`` after rewiring citations.
        new_technique, new_science: concepts seen for the first time. papers: in the window.
    """

    window: str
    end: float
    papers: int
    cross: float
    inner: float
    lift: float
    low: float
    high: float
    null: float
    new_technique: int
    new_science: int

    @property
    def share(self) -> float:
        """``cross / inner``; 0 without inner relevance."""
        return self.cross / self.inner if self.inner > 0 else 0.0


def mean_between(table: Floats, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
    """The mean over pairs of different concepts, 0 without one."""
    if not len(rows) or not len(columns):
        return 0.0
    part, same = table[np.ix_(rows, columns)], rows[:, None] == columns[None, :]
    return float(part[~same].mean()) if (~same).any() else 0.0


def mean_symmetric(r: Floats, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
    """:func:`mean_between` of the symmetric table, of which only what is asked for is made."""
    both = np.concatenate([rows, columns])
    part = symmetric(r[np.ix_(both, both)])
    if not len(rows) or not len(columns):
        return 0.0
    same = rows[:, None] == columns[None, :]
    return float(part[: len(rows), len(rows) :][~same].mean()) if (~same).any() else 0.0


def rewired(edges: Sequence[tuple[int, int]], times: ArrayLike, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Citations with the cited ends exchanged among those of one citing and one cited year: degrees and years stay."""
    t = np.asarray(times, dtype=np.float64)
    groups: dict[tuple[float, float], list[int]] = {}
    for i, (a, b) in enumerate(edges):
        groups.setdefault((float(np.floor(t[a])), float(np.floor(t[b]))), []).append(i)
    made = list(edges)
    for key in sorted(groups):
        places = groups[key]
        for place, other in zip(places, rng.permutation(places), strict=True):
            made[place] = (edges[place][0], edges[int(other)][1])
    return made


def driving_force(
    times: ArrayLike, edges: Sequence[tuple[int, int]], m: Any, technique: Sequence[int], science: Sequence[int],
    slices: Sequence[Window], *, decay: float = 0.5, steps: int = 4, include_self: bool = False, draws: int = 200,
    rng: np.random.Generator, null: bool = True, keep: Callable[[Window, Floats, Lifts], None] | None = None,
) -> list[Force]:  # fmt: skip
    """How strongly a technique domain is tied to a science domain, window by window.

    Walks start from the window's papers and use citations among papers published by its end, so that no future leaks in.

    Args:
        technique, science: columns of ``m``. draws: resamples of a window's papers for the interval; 0: none.
        keep: called with each window, the relevance [C, C] and the normalised lift of all concepts of ``m``.
    """
    from scipy.sparse import csr_matrix, diags

    t, table = np.asarray(times, dtype=np.float64), csr_matrix(m, dtype=np.float64)
    tech, sci = np.asarray(technique, dtype=np.int64), np.asarray(science, dtype=np.int64)
    pairs, seen, forces = list(edges), np.zeros(table.shape[1], dtype=bool), []
    both = np.concatenate([tech, sci])
    for part in slices:
        last = t[part.members].max()
        present = (t <= last).astype(float)
        known = [(a, b) for a, b in pairs if t[a] <= last and t[b] <= last]
        carried = diags(present) @ table
        inside = np.zeros(len(t))
        inside[part.members] = 1
        start = csr_matrix(diags(inside) @ table)
        here = np.asarray(start.sum(axis=0)).ravel() > 0
        fresh, seen = here & ~seen, seen | here
        walk = partial(walks, decay=decay, steps=steps, include_self=include_self)
        w = citation_graph(len(t), known)
        r, starts = relevances(w, carried, start, decay=decay, steps=steps, include_self=include_self)
        share = np.asarray(carried.sum(axis=0)).ravel() / max(present.sum(), 1)
        lifted = Lifts(r, starts, np.divide(1.0, share, out=np.zeros_like(share), where=share > 0))
        live_t, live_s = tech[here[tech]], sci[here[sci]]
        if keep is not None:
            keep(part, r, lifted)
        low = high = chance = 0.0
        own, places = start[:, both], {int(c): i for i, c in enumerate(both)}
        live = [np.array([places[int(c)] for c in side], dtype=np.int64) for side in (live_t, live_s)]
        if draws and len(live_t) and len(live_s):
            visits = walk(w, carried[:, both]).visits[part.members]
            low, high = _resampled(own[part.members], visits, live[0], live[1], draws, rng)
        if null and len(both):
            chance_edges = rewired(known, t, rng)
            if len(live_t) and len(live_s):
                found = walk(citation_graph(len(t), chance_edges), carried[:, both])
                chance = mean_symmetric(relevance(own, found), live[0], live[1])
        forces.append(Force(part.name, part.end, len(part.members), mean_symmetric(r, live_t, live_s), mean_symmetric(r, live_s, live_s),
                            mean_symmetric(lifted.at(both[:, None], both), *live), low, high, chance,
                            int(fresh[tech].sum()), int(fresh[sci].sum())))  # fmt: skip
    return forces


def _resampled(start: Any, visits: Floats, tech: NDArray[np.int64], sci: NDArray[np.int64], draws: int,
               rng: np.random.Generator) -> tuple[float, float]:  # fmt: skip
    """The 95 % interval of the mean symmetric relevance between the domains, over papers drawn with replacement.

    A concept that no drawn paper carries is left out of that draw's mean: it is absent there, not unrelated.

    Args:
        start: which paper of the window carries which concept of the domains. visits: their visits of these papers. tech, sci: places in both.
    """
    from scipy.sparse import csr_matrix

    u, means = csr_matrix(start), []
    for _ in range(draws):
        counts = np.bincount(rng.integers(0, len(visits), len(visits)), minlength=len(visits)).astype(float)
        n = np.asarray(u.T @ counts).ravel()
        total = np.asarray(u.T @ (visits * counts[:, None]))
        r = np.divide(total, n[:, None], out=np.zeros_like(total), where=n[:, None] > 0)
        live_rows, live_columns = tech[n[tech] > 0], sci[n[sci] > 0]
        if len(live_rows) and len(live_columns):
            means.append(mean_between(symmetric(r), live_rows, live_columns))
    if not means:
        return 0.0, 0.0
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def bridges(r: Floats, technique: Sequence[int], science: Sequence[int], most: int = 10) -> list[tuple[int, float]]:
    """The concepts of either domain with the highest mean symmetric relevance to the other one, highest first."""
    tech, sci = np.asarray(technique, dtype=np.int64), np.asarray(science, dtype=np.int64)
    s = both_ways(r[np.ix_(tech, sci)], r[np.ix_(sci, tech)].T)
    rows = [(int(a), float(s[i].mean())) for i, a in enumerate(tech) if len(sci)]
    rows += [(int(b), float(s[:, i].mean())) for i, b in enumerate(sci) if len(tech)]
    return sorted([row for row in rows if row[1] > 0], key=lambda row: -row[1])[:most]
