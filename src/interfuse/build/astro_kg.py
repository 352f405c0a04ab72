"""Astro-KG: a concept graph over slices of time from citations, and how a technique enters a field (Sun et al. 2024)."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from interfuse.build.room import Candidate, Work
from interfuse.core.errors import InterfuseError
from interfuse.core.method import method
from interfuse.core.rooms import Call, Cost
from interfuse.data.lm import LM, Prompt, cached
from interfuse.data.statements import XSD, Evidence, Literal, number
from interfuse.kit.asking import numbered, said_to
from interfuse.kit.change_points import course, lag
from interfuse.kit.concept_walks import BLOCK, Force, Lifts, Window, both_ways, bridges, driving_force, ochiai, windows
from interfuse.kit.kept_steps import kept
from interfuse.kit.keyphrases import concepts
from interfuse.kit.near_duplicates import plain_key

ASK = (
    "List the {count} key concepts of this text as short noun phrases, one per line, numbered.\nText: <<<\n{text}\n>>>"
)


@dataclass(frozen=True)
class Papers:
    """What the table says: ids, years, citations as pairs of places (citing, cited), concept names and which paper has which."""

    ids: tuple[str, ...]
    years: np.ndarray
    edges: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    carried: tuple[tuple[int, ...], ...]


def _cost(call: Call, params: Mapping[str, Any]) -> Cost:
    """A request per text, where the papers' concepts are to be taken from their texts."""
    table = call.inputs["table"]
    if call.inputs["lm"] is None or table is None:
        return Cost()
    if table.rows is not None and "concepts" in table.dataset.column_names:
        return Cost()
    return Cost(calls=len(table), seconds=float(len(table)))


@method(
    per="whole",
    needs=("table",),
    cost=_cost,
    parts=("interfuse.kit.concept_walks", "interfuse.kit.change_points", "interfuse.kit.keyphrases"),
)
def astro_kg(
    work: Work, *,
    window: Annotated[int | None, Field(ge=1, description="years of a window; none: windows of equal count")] = None,
    step: Annotated[int, Field(ge=1, description="years from one window to the next")] = 1,
    count: Annotated[int | None, Field(ge=2, description="papers of a window (removes the bias of a growing field); default: a tenth")] = None,
    decay: Annotated[float, Field(ge=0, lt=1, description="weight g of each further step along a citation")] = 0.5,
    steps: Annotated[int, Field(ge=1, description="steps of a walk at most")] = 4,
    include_self: Annotated[bool, Field(description="count concepts of the same paper too (co-occurrence)")] = False,
    per_concept: Annotated[int, Field(ge=1, description="most relevant concepts kept per concept and window")] = 10,
    least_papers: Annotated[int, Field(ge=1, description="papers that must carry a concept")] = 3,
    most_share: Annotated[float, Field(gt=0, le=1, description="share of the papers beyond which a concept is too general")] = 0.2,
    domains: Annotated[dict[str, list[str]], Field(description="domain -> its concepts")] = {},  # noqa: B006
    technique: Annotated[str, Field(description="domain whose entry is measured")] = "",
    science: Annotated[str, Field(description="domain it enters")] = "",
    draws: Annotated[int, Field(ge=0, description="resamples of a window's papers for intervals")] = 200,
    null: Annotated[bool, Field(description="the same figure after rewiring citations, degrees and years kept")] = True,
) -> Iterator[Candidate]:  # fmt: skip
    """One statement per concept pair and window; with a technique and a science domain, ``driving-force.csv`` and ``two-phases.svg``.

    The table has the columns ``id``, ``year``, ``references`` (ids, a list or separated by semicolons) and ``concepts`` (likewise) or ``text``, from
    which the model or, without one, key phrases are taken.

    Raises:
        InterfuseError: ``input.missing``, ``input.nan`` (a paper without a year), ``input.duplicate`` (an id twice), ``input.empty`` (no
            concept is left), ``param.value``.
    """
    if bool(technique) != bool(science) or any(d not in domains for d in (technique, science) if d):
        raise InterfuseError("param.value", f"technique {technique!r} and science {science!r} are not two of the domains",
                             fix="domains: {a: [concepts], b: [concepts]}, technique: a, science: b")  # fmt: skip
    if window is not None and count is not None:
        raise InterfuseError("param.value", "a window is so many years or so many papers, not both")
    papers = read_papers(work, least_papers, most_share)
    m = _carries(papers)
    size = count or max(len(papers.ids) // 10, 2)
    slices = windows(papers.years, years=window, step=step) if window is not None else windows(papers.years, count=size)
    groups = {
        d: [papers.names.index(_key(c)) for c in members if _key(c) in papers.names] for d, members in domains.items()
    }
    for d, members in domains.items():
        work.count(f"concepts of {d} not found", len(members) - len(groups[d]))
    tech, sci = groups.get(technique, []), groups.get(science, [])
    links: list[tuple[Window, list[tuple[int, int, Sequence[float]]]]] = []
    between: dict[str, list[list[Any]]] = {}
    with work.ctx.bar("windows", len(slices), "windows") as bar:

        def keep(part: Window, r: Any, lifted: Lifts) -> None:
            links.append((part, strongest(r, lifted, per_concept)))
            between[part.name] = [[papers.names[i], v] for i, v in bridges(r, tech, sci, 5)]
            bar.advance()

        forces = driving_force(papers.years, papers.edges, m, tech, sci, slices, decay=decay, steps=steps, include_self=include_self, draws=draws,
                               rng=work.ctx.rng("driving force"), null=null, keep=keep)  # fmt: skip
    yield from _statements(work, papers, links)
    yield from _belongs(work, papers, groups)
    rows = [vars(f) | {"share": f.share} for f in forces]
    if technique:
        work.report("driving force", rows)
        work.report("phases", phases(forces, science))
        work.report("bridges", between)
        work.save("driving-force.csv", _csv(rows))
        work.save("two-phases.svg", picture(forces, technique, science))
    work.report("windows", [{"name": w.name, "papers": len(w.members)} for w in slices])
    work.report("clusters", hierarchy(papers, m, groups, work.ctx.seed_for("clusters") % 2**31))
    late = slices[-1]
    work.report("few citers yet", f"{late.name}: papers of the last window have had little time to be cited")


def read_papers(work: Work, least: int, most_share: float) -> Papers:
    """The table, checked: unknown references and citations to the future are counted and left out, and so are rare and general concepts.

    Raises:
        InterfuseError: as :func:`astro_kg`.
    """
    table = work.table
    columns = table.dataset.column_names
    ids, years = [str(v) for v in table.column("id")], []
    for i, (name, year) in enumerate(zip(ids, table.column("year"), strict=True)):
        found = re.match(r"-?\d{1,4}(?:\.\d+)?", str(year).strip()) if year is not None else None
        if found is None:
            raise InterfuseError("input.nan", f"the paper {name!r} has no year", where=f"{table.name}: row {i}")
        years.append(float(found[0]))
    place: dict[str, int] = {}
    for i, name in enumerate(ids):
        if place.setdefault(name, i) != i:
            raise InterfuseError(
                "input.duplicate", f"the paper {name!r} occurs twice", where=f"{table.name}: rows {place[name]} and {i}"
            )
    edges: dict[tuple[int, int], None] = {}
    for i, refs in enumerate(table.column("references")):
        for ref in _list(refs):
            j = place.get(ref)
            work.count("references")
            if j is None:
                work.count("references to unknown papers")
            elif years[j] > years[i]:
                work.count("references to later papers")
            elif i != j:
                edges[i, j] = None
    if "concepts" in columns:
        own = [list(dict.fromkeys(_key(c) for c in _list(v) if _key(c))) for v in table.column("concepts")]
        counts: dict[str, int] = {}
        for c in itertools.chain(*own):
            counts[c] = counts.get(c, 0) + 1
        names = sorted(c for c, n in counts.items() if least <= n <= max(most_share * len(ids), least))
        work.count("concepts too rare or too general", len(counts) - len(names))
        index = {c: k for k, c in enumerate(names)}
        carried = [tuple(index[c] for c in row if c in index) for row in own]
    elif "text" in columns:
        texts = [str(v or "") for v in table.column("text")]
        names, rows = _from_texts(work, texts, least, most_share)
        carried = [tuple(r) for r in rows]
    else:
        raise InterfuseError(
            "input.missing",
            "the table has neither concepts nor text",
            where=table.name,
            fix="Columns: " + ", ".join(columns),
        )
    if not names:
        raise InterfuseError(
            "input.empty",
            f"no concept is carried by {least} papers and by no more than {most_share:g} of all",
            where=table.name,
            fix="Lower least_papers, or raise most_share: few papers, or few concepts, need both.",
        )
    return Papers(tuple(ids), np.asarray(years), tuple(edges), tuple(names), tuple(carried))


def _from_texts(work: Work, texts: Sequence[str], least: int, most_share: float) -> tuple[list[str], list[list[int]]]:
    """Concepts named by the model, or key phrases."""
    if work.lm is None:
        names, rows, _ = concepts(texts, least=least, most_share=most_share)
        return names, rows
    lm = cached(work.lm, work.ctx)
    own = []
    for i, text in enumerate(texts):
        asked = said_to(work.lm, ASK.format(count=10, text=text[:4000]))
        reply = kept(work.ctx, f"concepts {i}", partial(_reply, lm, asked, work))
        own.append(list(dict.fromkeys(_key(c) for c in numbered(reply) if len(c) <= 60 and _key(c))))
    counts: dict[str, int] = {}
    for c in itertools.chain(*own):
        counts[c] = counts.get(c, 0) + 1
    names = sorted(c for c, n in counts.items() if least <= n <= max(most_share * len(texts), least))
    index = {c: k for k, c in enumerate(names)}
    return names, [[index[c] for c in row if c in index] for row in own]


def _reply(lm: LM, asked: Prompt, work: Work) -> str:
    return lm.generate([asked], max_tokens=200, ctx=work.ctx)[0][0].text


def _list(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [v.strip() for v in re.split(r"[;|]", value) if v.strip()]
    return [str(v).strip() for v in value if v is not None and str(v).strip()]


def _key(name: str) -> str:
    from interfuse.kit.keyphrases import singular

    words = plain_key(name).split()
    return " ".join([*words[:-1], singular(words[-1])]) if words else ""


def _carries(papers: Papers) -> Any:
    from scipy.sparse import csr_matrix

    rows = [i for i, own in enumerate(papers.carried) for _ in own]
    return csr_matrix(
        (np.ones(len(rows)), (rows, list(itertools.chain(*papers.carried)))), shape=(len(papers.ids), len(papers.names))
    )


def strongest(r: np.ndarray, lifted: Lifts, most: int) -> list[tuple[int, int, Sequence[float]]]:
    """The strongest links of each concept: (a, b, [R(a -> b), symmetric relevance, symmetric lift, symmetric relevance over the largest]).

    Args:
        r, lifted: relevance [C, C] and normalised lift of all concepts. most: links per concept.
    """
    found: list[tuple[int, int, list[float]]] = []
    largest = 0.0
    for first in range(0, len(r), BLOCK):
        rows = np.arange(first, min(first + BLOCK, len(r)))
        s = both_ways(r[rows], r[:, rows].T)
        s[np.arange(len(rows)), rows] = 0.0
        largest = max(largest, float(s.max(initial=0.0)))
        for a, line in zip(rows.tolist(), s, strict=True):
            tied = np.flatnonzero(line)
            chosen = tied[np.argsort(-line[tied], kind="stable")][:most]
            here = np.full_like(chosen, a)
            ups = both_ways(lifted.at(here, chosen), lifted.at(chosen, here))
            found += [
                (a, b, [float(r[a, b]), float(line[b]), up])
                for b, up in zip(chosen.tolist(), ups.tolist(), strict=True)
            ]
    return [(a, b, (*values, values[1] / largest)) for a, b, values in found]


def _statements(
    work: Work, papers: Papers, links: Sequence[tuple[Window, Sequence[tuple[int, int, Sequence[float]]]]]
) -> Iterator[Candidate]:
    """The links of every window."""
    proof = Evidence(f"table:{work.table.name}", method="build/astro-kg", score=None)
    for part, rows in links:
        for a, b, (one, both, up, share) in rows:
            work.count("links")
            rest = (("window", Literal(part.name)), ("from year", Literal(f"{part.start:04.0f}", XSD + "gYear")),
                    ("to year", Literal(f"{part.end:04.0f}", XSD + "gYear")), ("relevance", number(one)),
                    ("symmetric relevance", number(both)), ("lift", number(up)))  # fmt: skip
            yield Candidate(papers.names[a], "relevant to", papers.names[b], "Concept", "Concept", rest, confidence=share, kind="relevance",
                            status="inferred", evidence=(proof,))  # fmt: skip


def _belongs(work: Work, papers: Papers, groups: Mapping[str, Sequence[int]]) -> Iterator[Candidate]:
    proof = Evidence("parameter:domains", method="build/astro-kg")
    for domain, members in groups.items():
        for i in members:
            yield Candidate(papers.names[i], "in domain", domain, "Concept", "Domain", evidence=(proof,))


def phases(forces: Sequence[Force], science: str) -> dict[str, Any]:
    """When the technique enters, where the lift between the domains changes its course from then on, which segments are which
    phase, and by how many windows relevance follows new concepts.

    Integration: the lift rises. Exploration: it no longer does, and new concepts of the science domain appear.
    """
    entry = next((i for i, f in enumerate(forces) if f.cross > 0), None)
    if entry is None:
        return {"note": "the domains are never tied"}
    live = forces[entry:]
    if len(live) < 6:
        return {"entry": live[0].window, "note": f"{len(live)} windows from then on are too few to look for phases"}
    values = [f.lift for f in live]
    fit = course(values)
    edges = [0, *fit.breaks, len(values) - 1]
    scale = max(values) - min(values)
    parts = []
    for (start, end), slope in zip(itertools.pairwise(edges), fit.slopes, strict=True):
        rising = slope * (end - start) > 0.2 * scale > 0
        fresh = sum(f.new_science for f in live[start + 1 : end + 1])
        parts.append({"from": live[start].window, "to": live[end].window, "slope": slope, "new concepts": fresh,
                      "phase": "integration" if rising else "exploration" if start and fresh else "neither"})  # fmt: skip
    shift, strength = lag([f.new_technique for f in live], values)
    return {"entry": live[0].window, "breaks": [live[b].window for b in fit.breaks], "segments": parts, "science": science,
            "lag": {"windows": shift, "correlation": strength}}  # fmt: skip


def hierarchy(papers: Papers, m: Any, groups: Mapping[str, Sequence[int]], seed: int) -> dict[str, list[list[str]]]:
    """Clusters of concepts within each domain of 30 or more: spectral clustering of the Ochiai affinity, cut at 0.01."""
    from sklearn.cluster import SpectralClustering

    found = {}
    for domain, members in groups.items():
        if len(members) < 30:
            continue
        affinity = ochiai(m[:, list(members)])
        affinity = np.where(affinity < 0.01, 0.0, affinity) + 1e-6
        k = max(2, min(15, len(members) // 200))
        labels = SpectralClustering(
            k, affinity="precomputed", random_state=seed, assign_labels="cluster_qr"
        ).fit_predict(affinity)
        found[domain] = [[papers.names[i] for i, c in zip(members, labels, strict=True) if c == k_] for k_ in range(k)]
    return found


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def picture(forces: Sequence[Force], technique: str, science: str) -> str:
    """The two phases as SVG: cross relevance with its interval and its null, its lift over chance, new concepts of both domains."""
    from interfuse.kit.time_plots import Series, courses

    x = [f.window for f in forces]
    upper = [Series(f"{technique} to {science}", "result", [f.cross for f in forces], [f.low for f in forces], [f.high for f in forces]),
             Series("citations rewired", "baseline", [f.null for f in forces])]  # fmt: skip
    middle = [
        Series("lift of the relevance", "result", [f.lift for f in forces]),
        Series("chance", "baseline", [1.0] * len(forces)),
    ]
    lower = [Series(f"new concepts of {technique}", "source", [float(f.new_technique) for f in forces]),
             Series(f"new concepts of {science}", "gained", [float(f.new_science) for f in forces])]  # fmt: skip
    return courses(
        "two-phases",
        f"{technique} and {science}",
        x,
        [("mean relevance", upper), ("lift", middle), ("new concepts", lower)],
    ).svg
