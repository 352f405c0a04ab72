"""Pictures of a training: distributions that move, points in a plane, curves, rows of images. As in :mod:`interfuse.kit.plots`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from interfuse.kit.page import Picture, number
from interfuse.kit.plots import WIDTH, Canvas, _ticks


def histograms(
    name: str, title: str, rows: Sequence[tuple[str, Sequence[tuple[str, str, Sequence[float]]]]], *, bins: int = 20, caption: str = "", csv: str = ""
) -> Picture:  # fmt: skip
    """Histograms of numbers in [0, 1] below each other, groups of one row drawn over each other as shares of their own group.

    Args:
        rows: (label, groups); a group is (name, tone, numbers). The groups of the first row name the legend.
    """
    names, left, right, tall, head = 84.0, 90.0, WIDTH - 6, 52.0, 18.0
    canvas = Canvas(WIDTH, head + tall * len(rows) + 18)
    x = left
    for label, tone, _ in rows[0][1] if rows else ():
        canvas.bar(x, 3, 8, 8, tone, 0.75)
        canvas.text(x + 12, 7, label, "muted", size=8.5)
        x += 24 + 5.2 * len(label)
    edges = np.linspace(0, 1, bins + 1)
    said = []
    for i, (label, groups) in enumerate(rows):
        top = head + tall * i
        canvas.text(0, top + tall - 10, label, room=names)
        shares = [np.histogram(np.asarray(values), edges)[0] / max(len(values), 1) for _, _, values in groups]
        most = max([float(s.max()) for s in shares] + [1e-9])
        for (_, tone, _), share in zip(groups, shares, strict=True):
            for k, value in enumerate(share):
                height = value / most * (tall - 10)
                canvas.bar(
                    left + k / bins * (right - left),
                    top + tall - 2 - height,
                    (right - left) / bins - 0.8,
                    height,
                    tone,
                    0.55,
                )
        canvas.line([left, right], [top + tall - 2] * 2, "rule", 0.8)
        means = ", ".join(f"{n} {number(float(np.mean(v)), 2) if len(v) else 'none'}" for n, _, v in groups)
        said.append(f"{label}: mean {means}")
    for tick in (0, 0.25, 0.5, 0.75, 1):
        canvas.text(left + tick * (right - left), canvas.height - 8, f"{tick:g}", "muted", size=8, anchor="center")
    alt = f"{title}. " + "; ".join(said)
    return Picture(name, title, canvas.svg(name, alt), alt, caption, csv)


def scatter(
    name: str, title: str, points: Sequence[tuple[str, str, float, float]], *, axes: tuple[str, str] = ("", ""), caption: str = "", csv: str = ""
) -> Picture:  # fmt: skip
    """Points in a plane.

    Args:
        points: (name or empty, tone, x, y); a named point carries its name. axes: what runs to the right, and upwards.
    """
    left, top, wide, tall = 44.0, 16.0, WIDTH - 60.0, 230.0
    canvas = Canvas(WIDTH, top + tall + 34)
    places = ([p[2] for p in points], [p[3] for p in points])
    ticks = [_ticks(min(values), max(values)) for values in places]
    (x0, x1), (y0, y1) = ((t[0], t[-1]) for t in ticks)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / (x1 - x0) * wide, top + (1 - (y - y0) / (y1 - y0)) * tall

    for tick in ticks[0]:
        x, _ = at(tick, y0)
        canvas.line([x, x], [top, top + tall], "rule", 0.6)
        canvas.text(x, top + tall + 10, f"{tick:g}", "muted", size=8, anchor="center")
    for tick in ticks[1]:
        _, y = at(x0, tick)
        canvas.line([left, left + wide], [y, y], "rule", 0.6)
        canvas.text(left - 5, y, f"{tick:g}", "muted", size=8, anchor="right")
    for label, tone, x, y in points:
        canvas.dot(*at(x, y), tone, 5.5)
        if label:
            canvas.text(at(x, y)[0] + 5, at(x, y)[1] - 6, label, size=8, room=90)
    canvas.text(left + wide / 2, top + tall + 24, axes[0], "muted", size=8.5, anchor="center")
    canvas.text(0, 6, axes[1], "muted", size=8.5)
    alt = f"{title}. {len(points)} points, {axes[0]} from {number(min(p[2] for p in points))} to {number(max(p[2] for p in points))}, " \
          f"{axes[1]} from {number(min(p[3] for p in points))} to {number(max(p[3] for p in points))}"  # fmt: skip
    return Picture(name, title, canvas.svg(name, alt), alt, caption, csv)


def curves(
    name: str, title: str, lines: Sequence[tuple[str, str, Sequence[float]]], *, marks: Sequence[int] = (), axis: str = "step", caption: str = "", csv: str = ""
) -> Picture:  # fmt: skip
    """Curves over steps 1, 2, ... with thin upright marks.

    Args:
        lines: (name, tone, one number per step). marks: steps to mark.
    """
    left, top, wide, tall = 44.0, 22.0, WIDTH - 56.0, 150.0
    canvas = Canvas(WIDTH, top + tall + 30)
    every = [v for _, _, values in lines for v in values]
    ticks = _ticks(min([*every, 0.0]), max([*every, 1e-9]))
    steps = max((len(values) for _, _, values in lines), default=1)

    def height(value: float) -> float:
        return top + (1 - (value - ticks[0]) / (ticks[-1] - ticks[0])) * tall

    def place(step: int) -> float:
        return left + (step - 1) / max(steps - 1, 1) * wide

    for mark in marks:
        canvas.line([place(mark)] * 2, [top, top + tall], "rule", 0.8)
    for tick in ticks:
        canvas.text(left - 5, height(tick), f"{tick:g}", "muted", size=8, anchor="right")
    x = left
    for label, tone, values in lines:
        canvas.line([place(i + 1) for i in range(len(values))], [height(v) for v in values], tone, 1.3)
        canvas.bar(x, 4, 8, 3, tone)
        canvas.text(x + 12, 6, label, "muted", size=8.5)
        x += 26 + 5.2 * len(label)
    canvas.line([left, left + wide], [top + tall] * 2, "rule", 0.8)
    canvas.text(left, top + tall + 10, "1", "muted", size=8, anchor="center")
    canvas.text(left + wide, top + tall + 10, str(steps), "muted", size=8, anchor="center")
    canvas.text(left + wide / 2, top + tall + 20, axis, "muted", size=8.5, anchor="center")
    ends = "; ".join(f"{n} from {number(v[0])} to {number(v[-1])}" for n, _, v in lines if len(v))
    alt = f"{title}. {ends}"
    return Picture(name, title, canvas.svg(name, alt), alt, caption, csv)


def images(
    name: str, title: str, rows: Sequence[tuple[str, NDArray[np.float32]]], *, caption: str = "", csv: str = "", side: float = 34.0
) -> Picture:  # fmt: skip
    """Rows of small images.

    Args:
        rows: (label, images [n, C, H, W] with numbers in [0, 1]; three channels are colours, others are averaged).
        side: points an image takes.
    """
    names, gap = 84.0, 3.0
    count = max((len(pictures) for _, pictures in rows), default=0)
    width = max(WIDTH, names + count * (side + gap))
    canvas = Canvas(width, len(rows) * (side + gap) + 6)
    for i, (label, pictures) in enumerate(rows):
        top = 2 + i * (side + gap)
        canvas.text(0, top + side / 2, label, room=names - 6)
        for k, picture in enumerate(np.clip(pictures, 0, 1)):
            shown = picture.transpose(1, 2, 0) if picture.shape[0] == 3 else picture.mean(axis=0)
            x = names + k * (side + gap)
            canvas.axes.imshow(
                shown, extent=(x, x + side, top + side, top), cmap="gray", vmin=0, vmax=1, interpolation="none"
            )
    canvas.axes.set_xlim(0, width)
    canvas.axes.set_ylim(canvas.height, 0)
    canvas.axes.set_aspect("auto")
    import matplotlib

    alt = f"{title}. " + "; ".join(f"{label}: {len(pictures)} images" for label, pictures in rows)
    with matplotlib.rc_context(
        {"image.composite_image": False}
    ):  # each picture with its own pixels, not one blurred sheet
        drawn = canvas.svg(name, alt)
    return Picture(name, title, drawn, alt, caption, csv, width=width)
