"""Draws progress: a live bar on a terminal, a plain line every two seconds elsewhere (core.events.Display)."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_EVERY_S = 2.0
_BYTE_UNITS = ("B", "bytes")


class _Count:
    """One running bar: where it stands and how fast it goes."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.metrics: dict[str, float] = {}
        self.started = time.monotonic()
        self.first: int | None = None

    def update(self, done: int, metrics: dict[str, float]) -> None:
        if self.first is None:  # what an earlier attempt had done is not this one's speed
            self.first = done if time.monotonic() - self.started < 0.01 else 0
        self.done, self.metrics = done, dict(metrics)

    def rate(self) -> float:
        """Items per second of this attempt."""
        seconds = time.monotonic() - self.started
        return (self.done - (self.first or 0)) / seconds if seconds > 0 else 0.0

    def amount(self) -> str:
        done, total = _number(self.done, self.unit), self.total
        return f"{done}/{_number(total, self.unit)} {_unit(self.unit)}" if total else f"{done} {_unit(self.unit)}"

    def speed(self) -> str:
        rate = self.rate()
        return f"{_number(rate, self.unit)} {_unit(self.unit)}/s" if rate > 0 else ""

    def eta(self) -> str:
        rate = self.rate()
        if not self.total or rate <= 0 or self.done >= self.total:
            return ""
        return f"{_clock((self.total - self.done) / rate)} left"

    def numbers(self) -> str:
        return "  ".join(f"{key.replace('_', ' ')} {_metric(value)}" for key, value in self.metrics.items())

    def line(self) -> str:
        share = f"{self.done / self.total:4.0%}" if self.total else ""
        parts = (share, self.amount(), self.speed(), self.eta(), self.numbers())
        return f"{self.title}  " + "  ".join(part for part in parts if part)

    def summary(self, note: str) -> str:
        seconds = _clock(time.monotonic() - self.started)
        parts = (note, self.amount(), f"in {seconds}", self.speed(), self.numbers())
        return f"{self.title}  " + "  ".join(part for part in parts if part)


class PlainDisplay:
    """Lines for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, every_s: float = _EVERY_S) -> None:
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._counts: list[_Count] = []
        self._said = 0.0

    def begin(self, title: str, total: int | None, unit: str) -> None:
        self._counts.append(_Count(title, total, unit))
        self._said = time.monotonic()

    def update(self, done: int, metrics: dict[str, float]) -> None:
        if not self._counts:
            return
        self._counts[-1].update(done, metrics)
        if time.monotonic() - self._said >= self._every_s:
            self._said = time.monotonic()
            self.say(f"    {self._counts[-1].line()}")

    def end(self, note: str) -> None:
        if self._counts:
            self.say(f"    {self._counts.pop().summary(note)}")

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LiveDisplay:
    """A bar that redraws itself; finished bars stay as one dim line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._counts: list[_Count] = []
        self._live: Live | None = None
        self._drawn = 0.0

    def begin(self, title: str, total: int | None, unit: str) -> None:
        self._counts.append(_Count(title, total, unit))
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._draw(force=True)

    def update(self, done: int, metrics: dict[str, float]) -> None:
        if self._counts:
            self._counts[-1].update(done, metrics)
            self._draw()

    def end(self, note: str) -> None:
        if not self._counts:
            return
        text = self._counts.pop().summary(note)
        if not self._counts and self._live is not None:
            self._live.stop()
            self._live = None
        self._console.print(Text(f"    {text}", style="yellow" if note else "dim"))

    def say(self, text: str) -> None:
        style = {"✓": "green", "✗": "red", "▸": "bold"}.get(text[:1], "")
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _draw(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._live is None or (now - self._drawn < 0.1 and not force):
            return
        self._drawn = now
        rows = Table.grid(padding=(0, 1))
        for count in self._counts:
            bar = ProgressBar(total=count.total, completed=count.done, width=24, pulse=count.total is None)
            share = f"{count.done / count.total:4.0%}" if count.total else ""
            rest = "  ".join(part for part in (count.speed(), count.eta(), count.numbers()) if part)
            rows.add_row(Text(f"    {count.title}"), bar, share, count.amount(), Text(rest, style="cyan"))
        self._live.update(rows, refresh=True)


def make_display() -> PlainDisplay | LiveDisplay:
    """A live one on a terminal, a plain one elsewhere. Both write to stderr: stdout is for results."""
    console = Console(stderr=True, highlight=False)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay()


def result_console() -> Console:
    """For results on stdout; in a pipe nothing is wrapped to a narrow page."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def _metric(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"


def _unit(unit: str) -> str:
    return "MB" if unit in _BYTE_UNITS else unit


def _number(value: float, unit: str) -> str:
    if unit in _BYTE_UNITS:
        return f"{value / 1e6:,.1f}"
    if isinstance(value, float) and value < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
