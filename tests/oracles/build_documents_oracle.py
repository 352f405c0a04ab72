"""Slow, obvious versions of what the document methods of the build room compute."""

from __future__ import annotations

import math
import re

import numpy as np


def section_of(levels: list[int]) -> list[int]:
    """For each element: going back, the first heading whose level is smaller than that of every heading in between (and its own)."""
    found = []
    for i, level in enumerate(levels):
        limit = level if level else 99
        place = -1
        for j in range(i - 1, -1, -1):
            if levels[j] and levels[j] < limit:
                place = j
                break
            if levels[j] and not level:
                limit = min(limit, levels[j] + 1)
        found.append(place)
    return found


def settled_relations(
    claims: list[tuple[str, str, str, float]], symmetric: list[str], delta: float
) -> dict[tuple[str, str], list[str]]:
    """Pair of ends -> the relations (with direction) that stay: all within delta of the best."""
    totals: dict[tuple[str, str, str], float] = {}
    for h, r, t, c in claims:
        key = (min(h, t), r, max(h, t)) if r in symmetric else (h, r, t)
        totals[key] = math.fsum([totals.get(key, 0.0), c])
    pairs = sorted({tuple(sorted((h, t))) for h, _, t in totals})
    made = {}
    for a, b in pairs:
        here = {k: v for k, v in totals.items() if {k[0], k[2]} == {a, b}}
        best = max(here.values())
        winners = [k for k, v in here.items() if best - v < delta]
        top = sorted(here, key=lambda k: (-here[k], k))[0]
        made[a, b] = sorted(f"{h} {r} {t}" for h, r, t in {*winners, top})
    return made


def walk_shares(nodes: int, edges: list[tuple[int, int]], reset: list[float], damping: float) -> np.ndarray:
    """``(I - d P^T)^-1 (1 - d) v`` of the undirected graph; a node without edges goes back to v."""
    v = np.array(reset) / sum(reset)
    step = np.zeros((nodes, nodes))
    for a, b in edges:
        step[a, b] += 1
        step[b, a] += 1
    for i in range(nodes):
        step[i] = step[i] / step[i].sum() if step[i].sum() else v
    return np.linalg.solve(np.eye(nodes) - damping * step.T, (1 - damping) * v)


def mapped_rows(file: str, key: str, mapping: dict[str, object]) -> list[tuple[str, str, str]]:
    """Every fact of a table as (key, relation, value), each once, sorted."""
    with open(file) as lines:
        head, *rows = [line.rstrip("\n").split(",") for line in lines]
    made = []
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        for column, target in mapping.items():
            name = target if isinstance(target, str) else target["relation"]  # type: ignore[index]
            if cells[key] and cells[column] and (cells[key], name, cells[column]) not in made:
                made.append((cells[key], name, cells[column]))
    return sorted((s, r.replace(" ", "-"), o) for s, r, o in made)


def plain_facts(text: str) -> list[tuple[str, str, str]]:
    """What sentences of four forms say, by regular expressions; a sentence with "not" says nothing."""
    found = []
    for sentence in re.findall(r"[^.]+", text):
        if " not " in sentence:
            continue
        parts = re.fullmatch(r"\s*(.+?) (?:is|was) the (\w+) of (.+)", sentence)
        if parts is not None:
            found.append((parts[1], f"{parts[2]} of", parts[3]))
        parts = re.fullmatch(r"\s*(.+?) was (\w+) (by|in) (.+)", sentence)
        if parts is not None:
            found += [(parts[1], f"{parts[2]} {parts[3]}", name) for name in re.split(r", | and ", parts[4])]
    return sorted(found)


def weighted_logistic(rows: np.ndarray, labels: np.ndarray, weight: np.ndarray, c: float) -> tuple[np.ndarray, float]:
    """The minimum of ``|w|^2 / 2 + c sum_i weight_i log(1 + exp(-y_i f_i))`` by Newton's steps, the last column of ``rows`` being 1;
    and the minimum's value."""
    signs = 2.0 * labels - 1
    w = np.zeros(rows.shape[1])
    for _ in range(60):
        f = rows @ w
        p = 1 / (1 + np.exp(signs * f))
        gradient = w - c * rows.T @ (weight * signs * p)
        curvature = np.eye(len(w)) + c * rows.T @ (rows * (weight * p * (1 - p))[:, None])
        w = w - np.linalg.solve(curvature, gradient)
    return w, float(w @ w / 2 + c * np.sum(weight * np.log1p(np.exp(-signs * (rows @ w)))))


def grounded_rows(text: str, rows: list[dict[str, str]]) -> list[tuple[str, str, str, int, int, float]]:
    """The records whose words the text holds: their place and confidence. A quotation is looked for letter by letter, with any white
    space for white space; without one, the first sentence that holds both names counts for less."""
    found = []
    for row in rows:
        if row["subject"].lower() == row["object"].lower():
            continue
        place = None
        if row["quote"]:
            for start in range(len(text)):
                at, ok = start, True
                for word in row["quote"].split():
                    while at > start and at < len(text) and text[at].isspace():
                        at += 1
                    ok = text[at : at + len(word)] == word
                    if not ok:
                        break
                    at += len(word)
                if ok:
                    place = (start, at, 0.9)
                    break
        if place is None:
            begin = 0
            for sentence in text.split(". "):
                if row["subject"].lower() in sentence.lower() and row["object"].lower() in sentence.lower():
                    end = begin + len(sentence) + (not sentence.endswith("."))
                    place = (begin, end, 0.72)
                    break
                begin += len(sentence) + 2
        if place is not None:
            found.append((row["subject"], row["relation"], row["object"], *place))
    return sorted(found)
