"""Pictures for reports: matplotlib drawings as inline SVG that take their colours from the page, light or dark.

Every function takes plain numbers and returns a :class:`interfuse.kit.page.Picture`. Drawing happens in points on a canvas
whose y axis runs down. The same numbers give the same bytes. Strings are drawn as text, never as markup or mathematics.
"""

from __future__ import annotations

import html
import io
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interfuse.kit.page import Picture, between, number

#: name of a colour of the page -> its light value, which is what an SVG shows outside the page
PAINT = {
    "ink": "#1d2733", "muted": "#66717f", "rule": "#e2e5e8", "paper": "#fdfdfb", "source": "#b9771f", "result": "#2a6fb0",
    "reference": "#7d6a9e", "baseline": "#5f6c7a", "gained": "#17876d", "lost": "#c4513a", "kept": "#b9c2cb", "never": "#dfe3e7",
}  # fmt: skip
WIDTH = 400.0
SIZE = 9.5


class Canvas:
    """A drawing surface in points, origin at the top left."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self.axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)
        self.axes.axis("off")
        self.figure.patch.set_visible(False)

    def text(self, x: float, y: float, words: str, tone: str = "ink", *, size: float = SIZE, anchor: str = "left",
             bold: bool = False, room: float = 0.0) -> None:  # fmt: skip
        """Text with its middle at height ``y``; cut with an ellipsis when it needs more than ``room`` points."""
        words = plain(words)
        shown = clip(words, room, size, bold) if room else words
        self.axes.text(x, y, shown, color=PAINT[tone], fontsize=size, ha=anchor, va="center_baseline",
                       fontweight="bold" if bold else "normal", parse_math=False)  # fmt: skip

    def bar(
        self, x: float, y: float, width: float, height: float, tone: str, alpha: float = 1.0, *, line: str = ""
    ) -> None:
        """A filled rectangle, with an outline in the colour ``line`` when given."""
        from matplotlib.patches import Rectangle

        edge = PAINT[line] if line else "none"
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=PAINT[tone], alpha=None if line else alpha, edgecolor=edge,
                                      linewidth=0.8 if line else 0))  # fmt: skip

    def line(
        self, x: Sequence[float], y: Sequence[float], tone: str = "rule", width: float = 1.0, *, dash: bool = False
    ) -> None:
        """A line through points."""
        self.axes.plot(x, y, color=PAINT[tone], linewidth=width, linestyle=(0, (3, 3)) if dash else "solid", solid_capstyle="butt")  # fmt: skip

    def dot(self, x: float, y: float, tone: str, size: float = 7.0, *, diamond: bool = False) -> None:
        """A filled mark with a rim in the colour of the page."""
        self.axes.plot([x], [y], marker="D" if diamond else "o", color=PAINT[tone], markersize=size, markeredgecolor=PAINT["paper"],
                       markeredgewidth=1.2)  # fmt: skip

    def curve(self, start: tuple[float, float], end: tuple[float, float], tone: str, width: float) -> None:
        """A smooth connection that leaves and arrives level."""
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        middle = (start[0] + end[0]) / 2
        path = Path(
            [start, (middle, start[1]), (middle, end[1]), end], [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
        )
        self.axes.add_patch(PathPatch(path, facecolor="none", edgecolor=PAINT[tone], linewidth=width))

    def svg(self, name: str, alt: str) -> str:
        """The drawing as an ``<svg>`` element whose identifiers begin with ``name``."""
        import matplotlib

        sink = io.StringIO()
        settings: Any = {"svg.fonttype": "none", "svg.hashsalt": f"interfuse/{name}", "font.family": "sans-serif"}
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # letters its own font lacks are drawn by the reader's
            self.figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})  # fmt: skip
        return _inline(sink.getvalue(), name, alt, self.width)


def _inline(text: str, name: str, alt: str, width: float) -> str:
    def tag(found: re.Match[str]) -> str:
        inside = re.sub(r'\bid="', f'id="{name}-', found[0])
        inside = re.sub(r'(href="#|url\(#)', rf"\1{name}-", inside)
        for tone, value in PAINT.items():
            inside = inside.replace(f": {value}", f": var(--{tone}, {value})")
        return inside

    text = text[text.index("<svg") :].strip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<!--.*?-->", "", text, flags=re.DOTALL)  # matplotlib repeats every string in a comment
    text = re.sub(r"<[^>]*>", tag, text)
    box = re.search(r'viewBox="[^"]*"', text)
    least = f"min-width:{width:.0f}px;" if width > 480 else ""
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""} role="img" '
            f'aria-label="{html.escape(alt)}" style="{least}max-width:{width * 1.45:.0f}px">')  # fmt: skip
    return head + text[text.index(">") + 1 :]


def plain(words: str) -> str:
    """The words without line breaks and control characters."""
    return "".join(" " if c.isspace() else c if c.isprintable() else "\ufffd" for c in words)


def clip(words: str, room: float, size: float = SIZE, bold: bool = False) -> str:
    """The words, cut with an ellipsis to about ``room`` points (letters by rough width classes)."""

    def wide(text: str) -> float:
        units = sum(
            1.0
            if unicodedata.east_asian_width(c) in "WF"
            else 0.34
            if c in "iljtfrI.,:;|'()[]/! "
            else 0.86
            if c in "mwMW@%"
            else 0.61
            for c in text
        )
        return units * size * (1.08 if bold else 1.0)

    words = words[:200]
    if wide(words) <= room:
        return words
    while words and wide(words + "…") > room:
        words = words[:-1]
    return words.rstrip() + "…"


# ---------------------------------------------------------------------------------------------- numbers with intervals


@dataclass(frozen=True)
class Spread:
    """A number with its interval."""

    value: float
    low: float
    high: float


def scores(name: str, title: str, rows: Sequence[tuple[str, str, Spread]], *, caption: str = "", line: tuple[float, str] | None = None,
           csv: str = "", digits: int = 3) -> Picture:  # fmt: skip
    """A dot with its interval per row.

    Args:
        rows: (name, tone, number). line: a value to draw down through all rows, and its name.
    """
    names, left, right, step = 116.0, 124.0, 352.0, 25.0
    top = 22.0
    canvas = Canvas(WIDTH, top + step * len(rows) + 22)
    low, high = min(s.low for *_, s in rows), max(s.high for *_, s in rows)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    bottom = top + step * len(rows)
    for tick in ticks:
        canvas.line([at(tick)] * 2, [top, bottom], "rule", 0.8)
        canvas.text(at(tick), bottom + 11, f"{tick:g}", "muted", size=8, anchor="center")
    if line:
        canvas.line([at(line[0])] * 2, [top - 4, bottom], "source", 1.0, dash=True)
        canvas.text(at(line[0]), top - 12, line[1], "source", size=8, anchor="center" if left + 50 < at(line[0]) < right - 30 else
                    "left" if at(line[0]) <= left + 50 else "right")  # fmt: skip
    for i, (label, tone, spread) in enumerate(rows):
        y = top + step * (i + 0.5)
        canvas.text(0, y, label, tone, room=names)
        canvas.line([at(spread.low), at(spread.high)], [y, y], tone, 2.0)
        canvas.dot(at(spread.value), y, tone)
        canvas.text(WIDTH, y, number(spread.value, digits), anchor="right")
    alt = f"{title}. " + "; ".join(
        f"{n} {number(s.value, digits)} ({number(s.low, digits)} to {number(s.high, digits)})" for n, _, s in rows
    )
    return Picture(name, title, canvas.svg(name, alt), alt, caption, csv)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers around a range."""
    from matplotlib.ticker import MaxNLocator

    pad = 0.02 * (high - low) or 0.01
    return [round(float(v), 10) for v in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low - pad, high + pad)]


@dataclass(frozen=True)
class Change:
    """What one candidate gained and lost against one baseline, in shares of the items (0 to 1)."""

    model: str
    tone: str
    baseline: str
    gained: Spread
    lost: Spread
    kept: float
    never: float
    delta: Spread


def changes(name: str, title: str, rows: Sequence[Change], *, caption: str = "", csv: str = "") -> Picture:
    """Lost to the left, gained to the right, both with intervals; a diamond for the difference. Percent of the items."""
    names, right, step, head = 108.0, 326.0, 26.0, 25.0
    groups = list(dict.fromkeys((r.model, r.tone) for r in rows))
    height = 18 + step * len(rows) + head * len(groups) + 6
    canvas = Canvas(WIDTH, height)
    lost, gained = max(r.lost.high for r in rows), max(r.gained.high for r in rows)
    lost, gained = max(lost, 0.25 * gained, 0.01), max(gained, 0.25 * lost, 0.01)
    left = names + 30
    scale = (right - 28 - left) / (lost + gained)
    zero = left + lost * scale
    canvas.text(zero - 6, 7, "lost", "lost", anchor="right", size=8.5)
    canvas.text(zero + 6, 7, "gained", "gained", size=8.5)
    canvas.text(WIDTH, 7, "difference", "muted", anchor="right", size=8.5)
    y = 16.0
    for model, tone in groups:
        canvas.text(0, y + 14, model, tone, bold=True, room=WIDTH - 20)
        y += head
        begin = y
        for row in (r for r in rows if (r.model, r.tone) == (model, tone)):
            middle = y + step / 2
            canvas.text(0, middle, row.baseline, "muted", room=names)
            canvas.bar(zero - row.lost.value * scale, middle - 6, row.lost.value * scale, 12, "lost", 0.8)
            canvas.bar(zero, middle - 6, row.gained.value * scale, 12, "gained", 0.8)
            for sign, spread, colour in ((-1, row.lost, "lost"), (1, row.gained, "gained")):
                ends = [zero + sign * spread.low * scale, zero + sign * spread.high * scale]
                canvas.line(ends, [middle, middle], "ink", 1.1)
                canvas.text(
                    ends[1] + sign * 4,
                    middle,
                    _percent(spread.value),
                    colour,
                    size=8,
                    anchor="right" if sign < 0 else "left",
                )
            canvas.dot(zero + row.delta.value * scale, middle, "ink", 5.5, diamond=True)
            canvas.text(WIDTH, middle - 5.5, _percent(row.delta.value, signed=True), anchor="right", size=9)
            canvas.text(WIDTH, middle + 5.0, between(100 * row.delta.low, 100 * row.delta.high, 1, signed=True), "muted", anchor="right", size=7.5)  # fmt: skip
            y += step
        canvas.line([zero, zero], [begin, y], "ink", 0.8)
    said = "; ".join(f"{r.model} against {r.baseline}: gained {_percent(r.gained.value)}, kept {_percent(r.kept)}, lost "
                     f"{_percent(r.lost.value)} percent of the items, difference {_percent(r.delta.value, signed=True)}" for r in rows)  # fmt: skip
    return Picture(name, title, canvas.svg(name, f"{title}. {said}"), f"{title}. {said}", caption, csv)


def _percent(share: float, *, signed: bool = False) -> str:
    return number(100 * share, 1, signed=signed)


def composition(name: str, title: str, rows: Sequence[Change], *, caption: str = "", csv: str = "") -> Picture:
    """Every item in one of four parts per row: kept, gained, lost, never."""
    names, step, head, top = 108.0, 26.0, 25.0, 16.0
    groups = list(dict.fromkeys((r.model, r.tone) for r in rows))
    canvas = Canvas(WIDTH, 18 + step * len(rows) + head * len(groups) + 6)
    parts = ("kept", "gained", "lost", "never")
    x = names
    for part, words, gap in zip(parts, ("kept", "gained", "lost", "right in neither"), (42, 54, 38, 0), strict=True):
        canvas.bar(x, 3, 8, 8, part)
        canvas.text(x + 12, 7, words, "muted", size=8.5)
        x += gap + 12
    y = top
    for model, tone in groups:
        canvas.text(0, y + 14, model, tone, bold=True, room=WIDTH - 20)
        y += head
        for row in (r for r in rows if (r.model, r.tone) == (model, tone)):
            canvas.text(0, y + step / 2, row.baseline, "muted", room=names - 6)
            x = names
            for part, share in zip(parts, (row.kept, row.gained.value, row.lost.value, row.never), strict=True):
                width = share * (WIDTH - names)
                canvas.bar(x, y + step / 2 - 8, max(0.0, width - 1), 16, part)
                if width > 24:
                    tone_in = "paper" if part in ("gained", "lost") else "ink"
                    canvas.text(x + width / 2, y + step / 2, f"{100 * share:.0f}", tone_in, size=8, anchor="center")
                x += width
            y += step
    said = "; ".join(f"{r.model} against {r.baseline}: kept {_percent(r.kept)}, gained {_percent(r.gained.value)}, lost "
                     f"{_percent(r.lost.value)}, right in neither {_percent(r.never)} percent" for r in rows)  # fmt: skip
    return Picture(name, title, canvas.svg(name, f"{title}. {said}"), f"{title}. {said}", caption, csv)


# ---------------------------------------------------------------------------------------------- classes, calibration


def heat(name: str, title: str, classes: Sequence[str], rows: Sequence[tuple[str, str, Sequence[float | None]]],
         moves: Sequence[tuple[str, str, Sequence[tuple[float, float] | None]]] = (), *, heads: tuple[str, str] = ("", ""), caption: str = "",
         csv: str = "") -> Picture:  # fmt: skip
    """Shares per class as shaded cells, and below them what was gained and lost per class.

    Args:
        rows: (name, tone, share of every class or None). moves: (name, tone, (gained, lost) shares of every class or None).
        heads: titles of the two parts.
    """
    names, cell, step = 122.0, 44.0, 25.0
    width = max(560.0, names + cell * len(classes))
    cell = (width - names) / max(1, len(classes))
    part = 24 + step * len(moves) * 1.25 if moves else 0.0
    canvas = Canvas(width, 34 + step * len(rows) + part + 8)
    canvas.text(0, 8, heads[0], "muted", size=8.5, room=names + 100)
    for k, label in enumerate(classes):
        canvas.text(names + cell * (k + 0.5), 25, label, "muted", size=8.5, anchor="center", room=cell - 4)
    y = 34.0
    for label, tone, shares in rows:
        canvas.text(0, y + step / 2, label, tone, room=names - 8)
        for k, share in enumerate(shares):
            if share is not None:
                canvas.bar(names + cell * k + 1, y + 1, cell - 2, step - 2, tone, 0.06 + 0.5 * share**2)
            canvas.text(
                names + cell * (k + 0.5),
                y + step / 2,
                "–" if share is None else f"{100 * share:.0f}",
                size=8.5,
                anchor="center",
            )
        y += step
    if moves:
        canvas.text(0, y + 16, heads[1], "muted", size=8.5, room=width)
        y += 26
        most = max([m for _, _, pairs in moves for pair in pairs if pair for m in pair] + [0.01])
        for label, tone, pairs in moves:
            tall = step * 1.2
            canvas.text(0, y + tall / 2, label, tone, room=names - 8)
            for k, pair in enumerate(pairs):
                for half, sign, share in ((0, "gained", pair[0]), (1, "lost", pair[1])) if pair else ():
                    top = y + 1 + half * (tall / 2 - 0.5)
                    canvas.bar(names + cell * k + 1, top, cell - 2, tall / 2 - 1.5, sign, 0.05 + 0.6 * share / most)
                    mark = number(100 * share * (1 if half == 0 else -1), 0, signed=True)
                    canvas.text(names + cell * (k + 0.5), top + tall / 4 - 0.7, mark, size=7.5, anchor="center")
            y += step * 1.25
    said = "; ".join(f"{n}: " + ", ".join(f"{c} {'none' if s is None else f'{100 * s:.0f}'}" for c, s in zip(classes, v, strict=True))
                     for n, _, v in rows)  # fmt: skip
    return Picture(name, title, canvas.svg(name, f"{title}. Percent: {said}"), f"{title}. {said}", caption, csv, width)


def reliability(name: str, title: str, tone: str, error: float, bins: Sequence[tuple[float, float, int]]) -> Picture:
    """Confidence (to the right) against accuracy (upwards) of one model, small, to stand beside others.

    Args:
        error: the expected calibration error. bins: (confidence, accuracy, items) of every bin that is not empty.
    """
    side, left, top = 140.0, 22.0, 6.0
    canvas = Canvas(left + side + 8, top + side + 18)
    canvas.bar(left, top, side, side, "paper", line="rule")
    canvas.line([left, left + side], [top + side, top], "muted", 0.8, dash=True)
    most = max([n for *_, n in bins] + [1])
    for confidence, accuracy, n in bins:
        x, y = left + confidence * side, top + (1 - accuracy) * side
        canvas.line([x, x], [y, top + (1 - confidence) * side], tone, 1.0)
        canvas.dot(x, y, tone, 4 + 6 * (n / most) ** 0.5)
    for tick in (0, 0.5, 1):
        canvas.text(left + tick * side, top + side + 10, f"{tick:g}", "muted", size=8, anchor="center")
        canvas.text(left - 5, top + (1 - tick) * side, f"{tick:g}", "muted", size=8, anchor="right")
    said = "; ".join(f"confidence {number(c, 2)}, accuracy {number(a, 2)}, {n} items" for c, a, n in bins)
    alt = f"Reliability of {title}, expected calibration error {number(error)}. {said}"
    return Picture(name, title, canvas.svg(name, alt), alt, f"ECE {number(error)}", width=canvas.width, tone=tone)


# ---------------------------------------------------------------------------------------------- lineage


def lineage(
    graph: Mapping[str, Any],
    tones: Mapping[str, str] | None = None,
    *,
    title: str = "From data and sources, on the left, to the report",
    csv: str = "plots/lineage.csv",
) -> Picture:
    """The graph of :func:`interfuse.kit.lineage.lineage`, oldest on the left. ``tones`` gives names a colour."""
    nodes, edges = graph["nodes"], graph["edges"]
    depth = 1 + max(n["layer"] for n in nodes)
    layers, links = _layered(nodes, edges, depth)
    _untangle(layers, links)
    wide, tall, row, lane = 112.0, 30.0, 40.0, 11.0
    width = max(500.0, depth * wide + (depth - 1) * (52.0 if depth > 4 else 70.0) + 4)
    gap = (width - 4 - depth * wide) / max(1, depth - 1)
    heights = [sum(row if len(stop) == 1 else lane for stop in layer) for layer in layers]
    canvas = Canvas(width, max(heights) + 8)
    middle: dict[Stop, float] = {}
    for layer, height in zip(layers, heights, strict=True):
        y = (canvas.height - height) / 2
        for stop in layer:
            step = row if len(stop) == 1 else lane
            middle[stop] = y + step / 2
            y += step
    left = {stop: 2 + d * (wide + gap) for d, layer in enumerate(layers) for stop in layer}
    for start, end, light in links:
        tone, thick = ("rule", 1.0) if light else ("kept", 1.4)
        canvas.curve((left[start] + wide, middle[start]), (left[end], middle[end]), tone, thick)
        if len(end) > 1:  # straight on, between the boxes of this layer
            canvas.line([left[end], left[end] + wide], [middle[end]] * 2, tone, thick)
    for i, node in enumerate(nodes):
        x, y = left[(i,)], middle[(i,)] - tall / 2
        tone = (tones or {}).get(node["name"], "") if node["kind"] == "model" else ""
        canvas.bar(x, y, wide, tall, "paper", line="rule")
        canvas.bar(x, y, 3, tall, tone or "kept")
        words = node["made_by"] or {"table": "data", "model": "given", "configuration": "untrained"}.get(
            node["kind"], node["kind"]
        )
        canvas.text(x + 10, y + 10.5, node["name"], tone or "ink", size=8.8, room=wide - 14)
        canvas.text(x + 10, y + 21.5, words, "muted", size=7.4, room=wide - 14)
    said = "; ".join(f"{nodes[a]['name']} to {nodes[b]['name']}" for a, b in edges)
    return Picture("lineage", title, canvas.svg("lineage", f"{title}. {said}"), f"{title}. {said}", "", csv, width)


#: where a connection stops in a layer: (node,) is a box, (node, layer, side) a lane that passes between boxes
Stop = tuple[int, ...]


def _layered(
    nodes: Sequence[Mapping[str, Any]], edges: Sequence[Sequence[int]], depth: int
) -> tuple[list[list[Stop]], list[tuple[Stop, Stop, bool]]]:
    """Boxes and lanes of every layer, and connections from one layer to the next.

    Connections that skip a layer run in a lane through it (as in Sugiyama et al. 1981). Those of one parent share a lane;
    those into a report share one with each other.
    """
    layers: list[list[Stop]] = [[(i,) for i, n in enumerate(nodes) if n["layer"] == d] for d in range(depth)]
    links: dict[tuple[Stop, Stop], bool] = {}
    for parent, child in edges:
        light = nodes[parent]["kind"] == "table" or nodes[child]["kind"] == "report"
        shared = (child, 1) if nodes[child]["kind"] == "report" else (parent, 0)
        here: Stop = (parent,)
        for d in range(nodes[parent]["layer"] + 1, nodes[child]["layer"]):
            lane = (shared[0], d, shared[1])
            if lane not in layers[d]:
                layers[d].append(lane)
            links[here, lane] = light and links.get((here, lane), True)
            here = lane
        links[here, (child,)] = light
    return layers, [(a, b, light) for (a, b), light in links.items()]


def _untangle(layers: list[list[Stop]], links: Sequence[tuple[Stop, Stop, bool]]) -> None:
    """Orders each layer by the mean place of its neighbours, forth and back a few times (barycentre heuristic)."""
    place = {stop: (i + 0.5) / len(layer) for layer in layers for i, stop in enumerate(layer)}
    near: dict[Stop, list[Stop]] = {stop: [] for stop in place}
    for start, end, _ in links:
        near[start].append(end)
        near[end].append(start)
    for turn in range(8):
        for layer in layers if turn % 2 == 0 else layers[::-1]:
            pull = {s: sum(place[n] for n in near[s]) / len(near[s]) if near[s] else place[s] for s in layer}
            layer.sort(key=pull.__getitem__)
            for i, stop in enumerate(layer):
                place[stop] = (i + 0.5) / len(layer)


# ---------------------------------------------------------------------------------------------- numbers over numbers


@dataclass(frozen=True)
class Curve:
    """Points of a line: places, and at each a number with its interval. ``tone``: a colour of :data:`PAINT`."""

    label: str
    tone: str
    x: Sequence[float]
    y: Sequence[Spread]
    dash: bool = False


def curves(name: str, title: str, lines: Sequence[Curve], *, x_label: str, caption: str = "", csv: str = "",
           level: tuple[float, str] | None = None) -> Picture:  # fmt: skip
    """Lines with their intervals over a common axis; places stand at equal distances, as 2, 4, 8 do.

    Args:
        level: a height to draw across, and its name.
    """
    left, right, top, height, step = 40.0, 292.0, 18.0, 150.0, 14.0
    bottom = top + height
    canvas = Canvas(WIDTH, bottom + 34 + (8 if len(lines) * step > height else 0))
    places = sorted({x for line in lines for x in line.x})
    low = min(s.low for line in lines for s in line.y)
    high = max(s.high for line in lines for s in line.y)
    if level:
        low, high = min(low, level[0]), max(high, level[0])
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    gap = (right - left - 24) / max(len(places) - 1, 1)

    def across(x: float, shift: float = 0.0) -> float:
        return left + 12 + places.index(x) * gap + shift

    def down(value: float) -> float:
        return bottom - (value - low) / (high - low) * height

    for tick in ticks:
        canvas.line([left, right], [down(tick)] * 2, "rule", 0.8)
        canvas.text(left - 6, down(tick), f"{tick:g}", "muted", size=8, anchor="right")
    for x in places:
        canvas.text(across(x), bottom + 11, f"{x:g}", "muted", size=8, anchor="center")
    canvas.text((left + right) / 2, bottom + 25, x_label, "muted", size=8, anchor="center")
    if level:
        canvas.line([left, right], [down(level[0])] * 2, "source", 1.0, dash=True)
        canvas.text(right, down(level[0]) - 7, level[1], "source", size=8, anchor="right")
    for number_, line in enumerate(lines):
        shift = (number_ - (len(lines) - 1) / 2) * 3.0
        spots = [across(x, shift) for x in line.x]
        canvas.line(spots, [down(s.value) for s in line.y], line.tone, 1.6, dash=line.dash)
        for spot, spread in zip(spots, line.y, strict=True):
            canvas.line([spot, spot], [down(spread.low), down(spread.high)], line.tone, 0.9)
            canvas.dot(spot, down(spread.value), line.tone, 5.0)
        y = top + step * (number_ + 0.5)
        canvas.line([right + 8, right + 24], [y, y], line.tone, 1.6, dash=line.dash)
        canvas.text(right + 28, y, line.label, room=WIDTH - right - 28)
    alt = f"{title}. " + "; ".join(
        f"{line.label}: " + ", ".join(f"{x:g} {number(s.value)}" for x, s in zip(line.x, line.y, strict=True))
        for line in lines
    )
    return Picture(name, title, canvas.svg(name, alt), alt, caption, csv)
