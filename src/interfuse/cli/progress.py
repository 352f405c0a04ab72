"""Progress on stderr: bars with rate and remaining time on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from interfuse.cli.output import clean, console, duration, size
from interfuse.core.ctx import Bar

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY = 30.0  # seconds between two plain lines of one bar
BRIEF = 1.0  # work shorter than this many seconds leaves no line


def on_terminal() -> bool:
    """Whether bars may be drawn: stderr is a terminal and neither ``NO_COLOR`` nor ``CI`` is set."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and not os.environ.get("CI")


def amount(value: float, unit: str) -> str:
    """An amount with its unit: bytes in words, thousands to the last one (``15,150 examples``)."""
    if unit in ("B", "bytes"):
        return size(value)
    return f"{value:,.0f} {unit}".strip() if abs(value) >= 1000 else f"{value:.4g} {unit}".strip()


class Silent:
    """Shows nothing (``--quiet``)."""

    def log(self, line: str) -> None:
        pass

    @contextlib.contextmanager
    def bar(self, label: str, total: float, unit: str) -> Iterator[Bar]:
        yield _Count(label, total, unit, lambda line: None, time.monotonic)


class Lines:
    """Plain lines: at most one per bar and 30 seconds, and one at the end of work that was not brief."""

    def __init__(
        self,
        write: Callable[[str], None] = lambda line: click.echo(line, err=True),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.write, self.clock = write, clock

    def log(self, line: str) -> None:
        self.write(clean(line))

    @contextlib.contextmanager
    def bar(self, label: str, total: float, unit: str) -> Iterator[Bar]:
        count = _Count(clean(label), total, unit, self.write, self.clock)
        yield count
        if not count.brief():
            self.write(count.end())


class _Count:
    """Counts what is done; writes a line when 30 seconds have passed since the last one."""

    def __init__(
        self, label: str, total: float, unit: str, write: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self.label, self.total, self.unit, self.write, self.clock = label, total, unit, write, clock
        self.done = 0.0
        self.began = self.said = clock()

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.done += amount
        now = self.clock()
        if now - self.said >= EVERY:
            self.said = now
            self.write(self.line(now, note))

    def line(self, now: float, note: str) -> str:
        rate = self.done / max(now - self.began, 1e-9)
        text = f"{self.label}: {amount(self.done, self.unit)}"
        if self.total > 0:
            text += f" of {amount(self.total, self.unit)}"
        text += f", {amount(rate, self.unit)}/s"
        if self.total > 0 and rate > 0:
            text += f", {duration(max(self.total - self.done, 0) / rate)} left"
        return text + (f", {clean(note)}" if note else "")

    def brief(self) -> bool:
        return self.clock() - self.began < BRIEF

    def end(self) -> str:
        return f"{self.label}: {amount(self.done, self.unit)} in {duration(self.clock() - self.began)}"


class Terminal:
    """Bars drawn by rich; nested bars stand below each other, and log lines scroll above them."""

    def __init__(self) -> None:
        self.console = console(sys.stderr)
        self.progress: Progress | None = None
        self.open = 0

    def log(self, line: str) -> None:
        self.console.print(clean(line), soft_wrap=True)

    @contextlib.contextmanager
    def bar(self, label: str, total: float, unit: str) -> Iterator[Bar]:
        if self.progress is None:
            self.progress = _progress(self.console)
        progress, count = self.progress, _Count(clean(label), total, unit, lambda line: None, time.monotonic)
        task = progress.add_task(count.label, total=total if total > 0 else None, unit=unit, note="")
        if self.open == 0:
            progress.start()
        self.open += 1
        try:
            yield _Drawn(progress, task, count)
        finally:
            progress.remove_task(task)
            self.open -= 1
            if self.open == 0:
                progress.stop()
        if not count.brief():
            self.log(count.end())


class _Drawn:
    def __init__(self, progress: Progress, task: Any, count: _Count) -> None:
        self.progress, self.task, self.count = progress, task, count

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.count.advance(amount)
        if note:
            self.progress.update(self.task, advance=amount, note=clean(note))
        else:
            self.progress.update(self.task, advance=amount)


def _progress(where: Any) -> Progress:
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Done(ProgressColumn):
        def render(self, task: Task) -> Text:
            unit = task.fields["unit"]
            done = amount(task.completed, "" if unit not in ("B", "bytes") else unit)
            return Text(f"{done}/{amount(task.total, unit)}" if task.total else amount(task.completed, unit))

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{amount(task.speed, task.fields['unit'])}/s" if task.speed else "")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        Done(),
        Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=where,
        transient=True,
    )


def reporter(*, quiet: bool) -> Silent | Lines | Terminal:
    """What shows progress here: nothing, bars, or plain lines."""
    if quiet:
        return Silent()
    return Terminal() if on_terminal() else Lines()
