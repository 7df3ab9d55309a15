"""What a long job says while it runs: events as JSON lines, and progress with rate and ETA through one small seam.

Knows nothing of terminals; the CLI gives a ``Display`` that draws, everything else may ignore it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class Display(Protocol):
    """Draws progress for a person. ``metrics`` are the numbers worth showing beside the bar (loss, tokens/s)."""

    def begin(self, title: str, total: int | None, unit: str) -> None:
        """A new bar starts; ``total`` None means unknown."""
        ...

    def update(self, done: int, metrics: dict[str, float]) -> None:
        """The current bar stands at ``done``."""
        ...

    def end(self, note: str) -> None:
        """The current bar is finished; ``note`` says how it went."""
        ...

    def say(self, text: str) -> None:
        """One line for the person."""
        ...


class Silent:
    """A display that draws nothing."""

    def begin(self, title: str, total: int | None, unit: str) -> None: ...

    def update(self, done: int, metrics: dict[str, float]) -> None: ...

    def end(self, note: str) -> None: ...

    def say(self, text: str) -> None: ...


class Bar:
    """One running count: ``advance`` it, give it metrics."""

    def __init__(self, display: Display, done: int) -> None:
        self._display = display
        self.done = done
        self._metrics: dict[str, float] = {}

    def advance(self, count: int = 1, **metrics: float) -> None:
        """``count`` more items are done."""
        self.done += count
        self._metrics.update(metrics)
        self._display.update(self.done, self._metrics)


class Events:
    """Events of one job: appended to ``path`` as JSON lines when given, shown through ``display``."""

    def __init__(self, path: Path | None = None, display: Display | None = None) -> None:
        self.path = path
        self.display: Display = display or Silent()

    def log(self, event: str, **values: Any) -> None:
        """Append one event with the time in seconds since 1970."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values}, ensure_ascii=False)
        with open(self.path, "ab", buffering=0) as handle:
            handle.write(f"{line}\n".encode())  # one system call: a kill leaves no half line

    def say(self, text: str) -> None:
        """Tell the person one line, and keep it."""
        self.display.say(text)
        self.log("message", text=text)

    @contextmanager
    def bar(self, title: str, total: int | None = None, unit: str = "it", done: int = 0) -> Generator[Bar]:
        """A progress bar around a block; logs its start, end, count and seconds."""
        started = time.perf_counter()
        bar = Bar(self.display, done)
        self.display.begin(title, total, unit)
        if done:
            self.display.update(done, {})
        note = "stopped"
        try:
            yield bar
            note = ""
        finally:
            seconds = time.perf_counter() - started
            self.display.end(note)
            self.log("bar", title=title, done=bar.done, total=total, unit=unit, seconds=round(seconds, 3), note=note)
