"""Progress: plain lines by the clock, bars on a terminal only."""

from __future__ import annotations

import io
import re
import sys

import pytest

from interfuse.cli import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_most_one_line_in_thirty_seconds():
    now = [0.0]
    lines: list[str] = []
    with progress.Lines(lines.append, lambda: now[0]).bar("reading", 100, "rows") as bar:
        for _ in range(100):
            now[0] += 1.0
            bar.advance(1, note="loss 0.5")
    assert lines == [
        "reading: 30 rows of 100 rows, 1 rows/s, 1 min 10 s left, loss 0.5",
        "reading: 60 rows of 100 rows, 1 rows/s, 40 s left, loss 0.5",
        "reading: 90 rows of 100 rows, 1 rows/s, 10 s left, loss 0.5",
        "reading: 100 rows in 1 min 40 s",
    ]


@pytest.mark.parametrize(
    ("name", "unit", "seconds", "amount", "told"),
    [
        ("copy", "bytes", 40.0, 8e6, ["copy: 8.0 MB, 200.0 kB/s", "copy: 8.0 MB in 40 s"]),
        ("train", "examples", 2.5, 15_151, ["train: 15,151 examples in 2.5 s"]),
    ],
)
def test_unknown_total_bytes_and_thousands_to_the_last_one(name, unit, seconds, amount, told):
    now = [0.0]
    lines: list[str] = []
    with progress.Lines(lines.append, lambda: now[0]).bar(name, 0, unit) as bar:
        now[0] = seconds
        bar.advance(amount)
    assert lines == told


def test_no_end_line_when_the_work_fails_or_was_brief():
    now = [0.0]
    lines: list[str] = []
    shown = progress.Lines(lines.append, lambda: now[0])
    with pytest.raises(ValueError, match="no"), shown.bar("x", 1, ""):  # noqa: PT012
        now[0] += 5
        raise ValueError("no")
    with shown.bar("y", 1, ""):
        now[0] += 0.5
    assert lines == []
    with shown.bar("z", 1, "rows") as bar:
        bar.advance()
        now[0] += 1.5
    assert lines == ["z: 1 rows in 1.5 s"]


@pytest.mark.parametrize("stop", ["", "NO_COLOR", "CI"])
def test_bars_on_a_terminal_only(monkeypatch, stop):
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    if stop:
        monkeypatch.setenv(stop, "1")
    assert isinstance(progress.reporter(quiet=False), progress.Lines if stop else progress.Terminal)
    assert isinstance(progress.reporter(quiet=True), progress.Silent)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(progress.reporter(quiet=False), progress.Lines)


def test_drawn_bars_nest_and_leave_a_line_each(monkeypatch):
    monkeypatch.setattr(progress, "BRIEF", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    shown = progress.Terminal()
    with shown.bar("outer", 2, "seeds") as outer:
        with shown.bar("inner \x1b[2J", 1e6, "bytes") as inner:
            inner.advance(5e5, note="loss 0.1")
            inner.advance(5e5)
            assert shown.progress is not None
            shown.progress.refresh()
        shown.log("a line [bold]between")
        outer.advance(2)
    text = screen.getvalue()
    assert "\x1b[2J" not in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    for words in ("1.0 MB/1.0 MB", "loss 0.1", "inner : 1.0 MB in", "a line [bold]between", "outer: 2 seeds in", "/s"):
        assert words in plain, words
