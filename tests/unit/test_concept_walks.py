"""Concept relevance by hand, against dense algebra, and its windows, changes and lags."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from interfuse.build.astro_kg import strongest
from interfuse.core.errors import InterfuseError
from interfuse.kit import concept_walks
from interfuse.kit.change_points import course, lag
from interfuse.kit.concept_walks import (
    Lifts,
    bridges,
    citation_graph,
    driving_force,
    ochiai,
    relevance,
    relevances,
    rewired,
    symmetric,
    walks,
    walks_in_full,
    windows,
)
from interfuse.kit.keyphrases import concepts, phrases, singular
from tests.oracles.build_harvest_oracle import lift, normalised


def small(seed: int = 0, papers: int = 40, count: int = 5) -> tuple[list[tuple[int, int]], np.ndarray]:
    rng = np.random.default_rng(seed)
    edges = [(int(a), int(b)) for a, b in rng.integers(0, papers, (90, 2))]
    return edges, (rng.random((papers, count)) < 0.25).astype(float)


def test_three_papers_in_a_line() -> None:
    w, m = citation_graph(3, [(0, 1), (1, 2)]), np.array([[1.0, 0], [0, 0], [0, 1]])
    found = walks(w, m, decay=0.5, steps=2)
    assert relevance(m, found)[0, 1] == pytest.approx(0.0625)
    # one step is worth .25 and two .125, and no walk dies here: what was used is .375
    assert normalised(m, found.visits, found.mass)[0, 1] == pytest.approx(0.0625 / 0.375)


def test_truncated_sums_go_to_the_closed_form_and_match_dense_algebra() -> None:
    edges, m = small()
    w = citation_graph(len(m), edges)
    dense = np.asarray(w.todense())
    for own in (False, True):
        by_hand = sum(0.5 * 0.5**n * np.linalg.matrix_power(dense, n) @ m for n in range(0 if own else 1, 4))
        np.testing.assert_allclose(walks(w, m, steps=3, include_self=own).visits, by_hand, atol=1e-12)
        full, cut = walks_in_full(w, m, include_self=own), walks(w, m, steps=40, include_self=own)
        np.testing.assert_allclose(cut.visits, full.visits, atol=1e-8)
        np.testing.assert_allclose(cut.mass, full.mass, atol=1e-8)


def test_one_concept_each_and_no_step_relate_nothing() -> None:
    edges, _ = small()
    m = np.eye(40)
    r = relevance(m, walks(citation_graph(40, edges), m, decay=1e-9, steps=4, include_self=True))
    np.testing.assert_allclose(r, np.eye(40), atol=1e-8)


def test_chance_has_a_lift_of_one_even_where_walks_die() -> None:
    rng = np.random.default_rng(4)
    papers = 3000
    m = (rng.random((papers, 6)) < 0.2).astype(float)
    edges = [(int(a), int(b)) for a, b in rng.integers(0, papers, (3000, 2))]  # a seventh of the papers stand alone
    found = walks(citation_graph(papers, edges), m)
    share = m.mean(0)
    normal = lift(normalised(m, found.visits, found.mass), share)
    off = ~np.eye(6, dtype=bool)
    assert abs(normal[off].mean() - 1) < 0.05
    assert lift(relevance(m, found), share)[off].mean() < 0.5


def test_ochiai_by_hand() -> None:
    m = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], dtype=float)
    got = ochiai(m)
    assert got[0, 1] == pytest.approx(2 / np.sqrt(3 * 2))
    assert got[1, 2] == pytest.approx(1 / np.sqrt(2))


def test_windows_by_years_and_by_count() -> None:
    years = [2000, 2000, 2001, 2003, 2003, 2004, 2004, 2004]
    five = windows(years, years=2, step=1)
    assert [(w.name, list(w.members)) for w in five] == [("2000-2001", [0, 1, 2]), ("2001-2002", [2]), ("2002-2003", [3, 4]),
                                                         ("2003-2004", [3, 4, 5, 6, 7])]  # fmt: skip
    even = windows(years, count=3)
    assert [list(w.members) for w in even] == [[0, 1, 2], [3, 4, 5]]
    for bad in ({}, {"years": 1, "count": 3}):
        with pytest.raises(InterfuseError):
            windows(years, **bad)  # type: ignore[arg-type]
    with pytest.raises(InterfuseError):
        windows([1.0, float("nan")], years=1)


def test_no_future_leaks_into_a_window() -> None:
    rng = np.random.default_rng(1)
    times = np.sort(rng.integers(0, 6, 60)).astype(float)
    m = (rng.random((60, 4)) < 0.4).astype(float)
    past = [(i, int(rng.integers(0, i))) for i in range(1, 60) for _ in range(2)]
    late = times >= 4

    def upto(edges: list[tuple[int, int]], table: np.ndarray) -> list[float]:
        made = driving_force(times, edges, table, [0, 1], [2, 3], windows(times, years=2, step=2), draws=0, null=False,
                             rng=np.random.default_rng(0))  # fmt: skip
        return [f.cross for f in made[:2]]

    changed = m.copy()
    changed[late] = 1 - changed[late]
    fewer = [(a, b) for a, b in past if not late[a]]
    assert upto(past, m) == upto(fewer, changed)


def test_rewiring_keeps_degrees_and_years() -> None:
    rng = np.random.default_rng(2)
    times = rng.integers(0, 4, 50).astype(float)
    edges = [(int(a), int(b)) for a, b in rng.integers(0, 50, (120, 2))]
    made = rewired(edges, times, rng)
    assert made != edges
    assert sorted(a for a, _ in made) == sorted(a for a, _ in edges)
    assert sorted(b for _, b in made) == sorted(b for _, b in edges)
    assert sorted((times[a], times[b]) for a, b in made) == sorted((times[a], times[b]) for a, b in edges)


def test_the_interval_holds_the_figure_and_bridges_are_what_ties() -> None:
    edges, m = small(3, 200, 6)
    times = np.arange(200) // 50
    kept = []
    made = driving_force(times, edges, m, [0, 1], [2, 3, 4], windows(times, years=4), rng=np.random.default_rng(0),
                         keep=lambda w, r, up: kept.append(r))  # fmt: skip
    assert made[0].low < made[0].cross < made[0].high
    assert made[0].null == pytest.approx(made[0].cross, rel=0.5)
    best = bridges(kept[0], [0, 1], [2, 3, 4], most=1)[0]
    s = symmetric(kept[0])
    means = {a: s[a, [2, 3, 4]].mean() for a in (0, 1)} | {b: s[[0, 1], b].mean() for b in (2, 3, 4)}
    assert best == (max(means, key=lambda k: means[k]), pytest.approx(max(means.values())))


def test_concepts_go_in_blocks_with_the_same_figures_and_no_table_of_all_papers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(4)
    papers, count = 3000, 300
    edges = [(i, int(j)) for i in range(1, papers) for j in rng.integers(0, i, 3)]
    m = csr_matrix(
        (np.ones(2 * papers), (np.tile(np.arange(papers), 2), rng.integers(0, count, 2 * papers))), (papers, count)
    )
    times = np.arange(papers) // 1500

    def run(block: int) -> tuple[list[object], list[np.ndarray], int]:
        monkeypatch.setattr(concept_walks, "BLOCK", block)
        tables: list[np.ndarray] = []
        tracemalloc.start()
        made = driving_force(times, edges, m, [0, 1], [2, 3], windows(times, years=1), draws=5, rng=np.random.default_rng(0),
                             keep=lambda w, r, up: tables.extend((r, up.at(np.arange(len(r))[:, None], np.arange(len(r))))))  # fmt: skip
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return list(made), tables, peak

    whole, blocks = run(count), run(16)
    assert whole[0] == blocks[0]
    assert all(np.array_equal(a, b) for a, b in zip(whole[1], blocks[1], strict=True))
    full = 8 * papers * count  # bytes of a table of papers by concepts, of which a walk holds three
    assert whole[2] > 2 * full
    assert blocks[2] < whole[2] - 2 * full


def test_one_table_of_concepts_by_concepts_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concept_walks, "BLOCK", 32)
    monkeypatch.setattr(sys.modules["interfuse.build.astro_kg"], "BLOCK", 32)
    rng = np.random.default_rng(5)
    papers, count = 200, 900
    m = csr_matrix(
        (np.ones(4 * papers), (np.tile(np.arange(papers), 4), rng.integers(0, count, 4 * papers))), (papers, count)
    )
    edges = [(i, int(j)) for i in range(1, papers) for j in rng.integers(0, i, 3)]
    links: list[object] = []
    tracemalloc.start()
    driving_force(np.zeros(papers), edges, m, [0, 1], [2, 3], windows(np.zeros(papers), years=1), draws=0, null=False,
                  rng=np.random.default_rng(0), keep=lambda w, r, up: links.extend(strongest(r, up, 3)))  # fmt: skip
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(links) > count
    assert peak < 2 * 8 * count**2


def test_what_walks_use_is_worked_out_once_for_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    edges, m = small(count=7)
    w, asked, real = citation_graph(len(m), edges), [], concept_walks._mass_of
    whole = relevances(w, m, m)
    monkeypatch.setattr(concept_walks, "_mass_of", lambda *a: asked.append(1) or real(*a))
    monkeypatch.setattr(concept_walks, "BLOCK", 2)
    for one, other in zip(relevances(w, m, m), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    assert asked == [1]


def test_the_lift_of_places_is_that_of_the_normalised_table() -> None:
    edges, m = small(6, 120, 5)
    w, share = citation_graph(120, edges), m.mean(0)
    plain, starts = relevances(w, m, m)
    found = Lifts(plain, starts, 1 / share).at(np.arange(5)[:, None], np.arange(5))
    np.testing.assert_allclose(found, lift(normalised(m, walks(w, m).visits, walks(w, m).mass), share))


def test_breaks_are_found_where_they_are_and_not_where_there_are_none() -> None:
    x = np.arange(30.0)
    rng = np.random.default_rng(0)
    two = np.maximum(x - 8, 0) - np.maximum(x - 19, 0)
    found = course(two + rng.normal(0, 0.2, 30))
    assert len(found.breaks) == 2
    assert abs(found.breaks[0] - 8) <= 1
    assert abs(found.breaks[1] - 19) <= 1
    assert found.slopes[1] == pytest.approx(1, abs=0.1)
    assert course(2 * x + rng.normal(0, 0.5, 30)).breaks == ()
    with pytest.raises(InterfuseError):
        course([1.0, 2.0])


def test_a_series_that_follows_is_known_by_its_lag() -> None:
    rng = np.random.default_rng(0)
    a = np.cumsum(rng.normal(size=40))
    b = np.concatenate([np.zeros(5), a[:-5]])
    assert lag(a, b)[0] == 5
    assert lag(b, a)[0] == -5
    assert lag(np.zeros(10), a[:10]) == (0, 0.0)


def test_phrases_are_runs_of_content_words() -> None:
    assert singular("galaxies") == "galaxy"
    assert singular("masses") == "mass"
    assert singular("analysis") == "analysis"
    assert phrases("The dark matter halos of galaxies.", shortest=2) == {
        "dark matter": "dark matter", "matter halo": "matter halos", "dark matter halo": "dark matter halos"}  # fmt: skip
    texts = ["dark matter halos grow", "the dark matter halo", "in dark matter halos we trust", "an odd thing here"]
    names, rows, written = concepts(texts, least=3, most_share=1.0)
    assert names == ["dark matter halo"]
    assert rows == [[0], [0], [0], []]
    assert written["dark matter halo"].startswith("dark matter halo")
