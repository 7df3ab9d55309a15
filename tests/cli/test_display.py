import io
import time

from rich.console import Console

from danlu.cli.display import LiveDisplay, PlainDisplay, make_display
from danlu.core.events import Events


def test_elsewhere_than_a_terminal_lines_come_at_most_every_so_often() -> None:
    stream = io.StringIO()
    events = Events(display=PlainDisplay(stream, every_s=0.05))
    with events.bar("train", total=100, unit="step") as bar:
        for _ in range(100):
            time.sleep(0.001)
            bar.advance(loss=1.25)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 6
    assert "loss 1.25" in lines[0]
    assert "left" in lines[0]
    assert "step/s" in lines[0]
    assert lines[-1].startswith("    train  100/100 step  in ")


def test_bytes_are_shown_as_megabytes() -> None:
    stream = io.StringIO()
    with Events(display=PlainDisplay(stream)).bar("fetch", total=3_000_000, unit="B") as bar:
        bar.advance(3_000_000)
    assert "3.0/3.0 MB" in stream.getvalue()


def test_what_an_earlier_attempt_did_is_not_counted_as_speed() -> None:
    stream = io.StringIO()
    with Events(display=PlainDisplay(stream)).bar("train", total=1000, unit="step", done=990) as bar:
        time.sleep(0.1)
        bar.advance(10)
    rate = float(stream.getvalue().split(" step/s")[0].split()[-1])
    assert 50 < rate < 105


def test_a_block_that_fails_is_marked_stopped() -> None:
    stream = io.StringIO()
    try:
        with Events(display=PlainDisplay(stream)).bar("train", total=10) as bar:
            bar.advance(3)
            raise ValueError
    except ValueError:
        pass
    assert "train  stopped  3/10 it" in stream.getvalue()


def test_a_live_bar_leaves_one_line_behind_and_says_lines_above_it() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, no_color=True, highlight=False)
    events = Events(display=LiveDisplay(console))
    with events.bar("train", total=10, unit="step") as bar:
        with events.bar("inner") as inner:
            inner.advance()
            events.say("✓ a line")
        bar.advance(10, loss=2.0)
    events.say("after")
    text = stream.getvalue()
    assert "✓ a line" in text
    assert "train  10/10 step  in" in text
    assert text.rstrip().endswith("after")


def test_what_is_said_is_not_read_as_markup() -> None:
    stream = io.StringIO()
    LiveDisplay(Console(file=stream, width=120)).say("[bold]x[/] [1/3] train")
    assert stream.getvalue() == "[bold]x[/] [1/3] train\n"


def test_a_pipe_gets_the_plain_display() -> None:
    assert isinstance(make_display(), PlainDisplay)
