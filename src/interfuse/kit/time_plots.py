"""Pictures of series over windows of time, one panel above the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interfuse.kit.page import Picture, number
from interfuse.kit.plots import PAINT, WIDTH, Canvas, _ticks


@dataclass(frozen=True)
class Series:
    """One line: its name, the colour's name, a value per window, and an interval per window where there is one."""

    name: str
    tone: str
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def courses(
    name: str,
    title: str,
    windows: Sequence[str],
    panels: Sequence[tuple[str, Sequence[Series]]],
    *,
    caption: str = "",
    csv: str = "",
) -> Picture:
    """Lines over the same windows in panels that share the axis of time.

    Args:
        panels: (what is measured, its lines), top to bottom.
    """
    left, right, tall, gap = 44.0, WIDTH - 8.0, 110.0, 44.0
    canvas = Canvas(WIDTH, len(panels) * (tall + gap) + 24)
    span = max(len(windows) - 1, 1)

    def across(i: int) -> float:
        return left + i / span * (right - left)

    for p, (what, lines) in enumerate(panels):
        top = p * (tall + gap) + 30.0
        flat = [v for s in lines for part in (s.values, s.low or (), s.high or ()) for v in part]
        ticks = _ticks(min([0.0, *flat]), max([*flat, 0.0]))
        low, high = ticks[0], ticks[-1]

        def up(value: float, top: float = top, low: float = low, high: float = high) -> float:
            return top + tall - (value - low) / (high - low) * tall

        canvas.text(0, top - 22, what, bold=True)
        for tick in ticks:
            canvas.line([left, right], [up(tick)] * 2, "rule", 0.8)
            canvas.text(left - 4, up(tick), f"{tick:g}", "muted", size=8, anchor="right")
        at = left
        for s in lines:
            if s.low is not None and s.high is not None:
                x = [across(i) for i in range(len(s.low))]
                canvas.axes.fill_between(
                    x, [up(v) for v in s.low], [up(v) for v in s.high], color=PAINT[s.tone], alpha=0.2, linewidth=0
                )
            canvas.line([across(i) for i in range(len(s.values))], [up(v) for v in s.values], s.tone, 1.8)
            canvas.line([at, at + 12], [top - 8] * 2, s.tone, 2.0)
            canvas.text(at + 16, top - 8, s.name, "muted", size=8)
            at += 24 + 4.6 * len(s.name)
    bottom = len(panels) * (tall + gap) + 2
    shown = sorted({0, len(windows) // 2, len(windows) - 1})
    for i, place in zip(shown, ("left", "center", "right"), strict=False):
        canvas.text(across(i), bottom, windows[i], "muted", size=8, anchor=place)
    said = "; ".join(
        f"{s.name} from {number(s.values[0], 3)} to {number(s.values[-1], 3)}" for _, lines in panels for s in lines
    )
    return Picture(name, title, canvas.svg(name, f"{title}. {said}"), f"{title}. {said}", caption, csv)
