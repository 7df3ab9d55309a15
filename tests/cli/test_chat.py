"""The chat verb: what is read from a terminal or a pipe, and the engine behind it."""

import io
import os
import pty
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from danlu.cli.chat import questions, readable
from danlu.cli.main import main
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.server import Server, reserve_port
from tests.serve.engine.fake_engine import FakeEngine

FAKE = [sys.executable, str(Path(__file__).parents[1] / "serve" / "engine" / "fake_engine.py")]


def given(*lines: str) -> list[str]:
    left = list(lines)
    return list(questions(lambda is_begun: left.pop(0) if left else None))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A model that the engine's process does not read."""
    monkeypatch.setattr("danlu.serve.engine.remote.COMMAND", FAKE)
    (tmp_path / "fake").mkdir()
    return str(tmp_path / "fake")


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_line_is_a_question() -> None:
    assert given("one", "", "two") == ["one", "", "two"]


def test_a_backslash_and_three_quotes_make_one_text_of_several_lines() -> None:
    assert given("a\\", "b\\", "c", "d") == ["a\nb\nc", "d"]
    assert given("a\\") == ["a"]
    assert given('"""a', "b", 'c"""', "d") == ["a\nb\nc", "d"]
    assert given('"""', "  a", '"""') == ["  a"]
    assert given('"""one line"""', "d") == ["one line", "d"]
    assert given('"""never', "ended") == ["never\nended"]


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert readable("丹炉 \udcff") == "丹炉 �"


def test_every_line_of_a_pipe_is_a_question(
    fake: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "go a b\n/tokens\ngo 丹\n/exit\ngo never\n")
    assert main(["chat", fake, "--stats"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "ab\nababgo丹\n", "the second answer is to all that was said"
    assert "last: " in captured.err
    assert "tokens read" in captured.err


def test_all_of_a_pipe_is_one_question_with_once(
    fake: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "go a\nb\n")
    assert main(["chat", fake, "--once"]) == 0
    assert capsys.readouterr().out == "ab\n"


def test_a_question_of_a_pipe_that_fails_is_an_error_of_the_command(
    fake: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "full\ngo a\n")
    assert main(["chat", fake]) == 1
    captured = capsys.readouterr()
    assert captured.out == "a\n"
    assert "error: The queue is full. Later." in captured.err


def test_a_server_is_talked_with_by_its_url(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    urls: queue.SimpleQueue[str] = queue.SimpleQueue()
    server = Server(FakeEngine(), HttpConfig(api_key="SECRET"), urls.put)
    thread = threading.Thread(target=server.run_on, args=(reserve_port("127.0.0.1", 0),))
    thread.start()
    try:
        type_in(monkeypatch, "go 丹炉\n")
        monkeypatch.setenv("DANLU_API_KEY", "SECRET")
        assert main(["chat", urls.get(timeout=10), "--stats"]) == 0
    finally:
        server.ask_to_stop()
        thread.join()
    captured = capsys.readouterr()
    assert captured.out == "丹炉\n"
    assert "[2 tokens read, " in captured.err


def test_settings_of_a_model_are_refused_at_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "http://127.0.0.1:9", "--threads", "2"]) == 1
    assert "--precision, --scheme and --threads are the server's at a URL." in capsys.readouterr().err


def test_a_conversation_that_is_not_there_ends_it(fake: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", fake, "--load", "nowhere.json"]) == 1
    assert "nowhere.json" in capsys.readouterr().err


def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(tmp_path: Path) -> None:
    (tmp_path / "fake").mkdir()
    code = (
        "import fcntl, sys, termios, danlu.serve.engine.remote as remote\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "remote.COMMAND = sys.argv[2:]\n"
        "from danlu.cli.main import main\n"
        "sys.exit(main(['chat', sys.argv[1]]))"
    )
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "fake"), *FAKE], stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    os.close(theirs)
    said = b""

    def until(words: bytes) -> None:
        nonlocal said
        end = time.monotonic() + 20
        while words not in said:
            assert time.monotonic() < end, said
            said += os.read(terminal, 4096)
        said = said.partition(words)[2]

    until(b">>> ")
    os.write(terminal, "go 丹炉\n".encode())
    until("\n丹炉".encode())
    until(b">>> ")
    os.write(terminal, b"/clear\n")
    until(b">>> ")
    os.write(terminal, b"wait\n")
    until(b"wait")
    time.sleep(0.2)
    os.write(terminal, b"\x03")
    until(b"(stopped)")
    until(b">>> ")
    os.write(terminal, b"half a line\x03")
    until(b"(Ctrl-D or /exit leaves)")
    until(b">>> ")
    os.write(terminal, b"\x04")
    assert process.wait(20) == 0
    os.close(terminal)
    history = tmp_path / ".cache" / "danlu" / "chat_history"
    assert "go 丹炉" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
