from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from danlu.core.events import Events
from danlu.core.files import read_jsonl


class Recorder:
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def begin(self, title: str, total: int | None, unit: str) -> None:
        self.calls.append(("begin", title, total, unit))

    def update(self, done: int, metrics: dict[str, float]) -> None:
        self.calls.append(("update", done, dict(metrics)))

    def end(self, note: str) -> None:
        self.calls.append(("end", note))

    def say(self, text: str) -> None:
        self.calls.append(("say", text))


def test_an_event_is_one_json_line_with_its_time(tmp_path: Path):
    events = Events(tmp_path / "run" / "events.jsonl")
    before = time.time()
    events.log("loss", step=1, value=0.5)
    events.log("名", text="丹炉")
    first, second = read_jsonl(tmp_path / "run" / "events.jsonl")
    assert before - 0.001 <= first.pop("time") <= time.time() + 0.001
    assert first == {"event": "loss", "step": 1, "value": 0.5}
    assert second["text"] == "丹炉"


def test_without_a_path_and_a_display_nothing_happens():
    events = Events()
    events.log("x")
    events.say("hello")
    with events.bar("work") as bar:
        bar.advance(3)
    assert bar.done == 3


def test_a_display_hears_the_bar_in_order_with_the_latest_metrics():
    display = Recorder()
    with Events(display=display).bar("train", total=4, unit="step") as bar:
        bar.advance(loss=2.0)
        bar.advance(2, rate=7.0)
    assert display.calls == [
        ("begin", "train", 4, "step"),
        ("update", 1, {"loss": 2.0}),
        ("update", 3, {"loss": 2.0, "rate": 7.0}),
        ("end", ""),
    ]


def test_a_resumed_bar_starts_where_it_stood():
    display = Recorder()
    with Events(display=display).bar("train", total=4, done=2) as bar:
        bar.advance()
    assert ("update", 2, {}) in display.calls
    assert bar.done == 3


def test_a_bar_is_logged_with_its_count_and_seconds(tmp_path: Path):
    events = Events(tmp_path / "e.jsonl")
    with events.bar("rows", total=5, unit="row") as bar:
        bar.advance(5)
    (row,) = read_jsonl(tmp_path / "e.jsonl")
    assert (row["event"], row["title"], row["done"], row["total"], row["unit"]) == ("bar", "rows", 5, 5, "row")
    assert (row["note"], row["seconds"] >= 0) == ("", True)


def test_a_bar_that_fails_says_it_was_stopped(tmp_path: Path):
    display = Recorder()
    with pytest.raises(ZeroDivisionError), Events(tmp_path / "e.jsonl", display).bar("rows", total=5) as bar:
        bar.advance(2)
        raise ZeroDivisionError
    assert display.calls[-1] == ("end", "stopped")
    (row,) = read_jsonl(tmp_path / "e.jsonl")
    assert (row["done"], row["note"]) == (2, "stopped")


def test_what_is_said_is_shown_and_kept(tmp_path: Path):
    display = Recorder()
    Events(tmp_path / "e.jsonl", display).say("bf16 is slow here; using fp32")
    assert display.calls == [("say", "bf16 is slow here; using fp32")]
    (row,) = read_jsonl(tmp_path / "e.jsonl")
    assert (row["event"], row["text"]) == ("message", "bf16 is slow here; using fp32")


def test_a_kill_leaves_no_half_line(tmp_path: Path):
    path = tmp_path / "e.jsonl"
    code = (
        "import sys; from pathlib import Path; from danlu.core.events import Events\n"
        "events = Events(Path(sys.argv[1]))\n"
        "while True: events.log('x', text='丹炉' * 50)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
        deadline = time.monotonic() + 20
        while (not path.exists() or path.stat().st_size < 20_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(writer.pid, signal.SIGKILL)
    assert len(list(read_jsonl(path))) > 10
    Events(path).log("after")
    assert list(read_jsonl(path))[-1]["event"] == "after"
