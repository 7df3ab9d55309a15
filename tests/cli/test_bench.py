import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.cli.main import main
from tests.client.script import Script, event, stream_of

USAGE = {"prompt_tokens": 5, "completion_tokens": 2}
ANSWER = stream_of(
    event(choices=[{"text": "a"}]), event(choices=[{"text": "b", "finish_reason": "length"}]),
    event(choices=[], usage=USAGE) + b"data: [DONE]\n\n",
)  # fmt: skip
NO_ROUTE = (404, {}, {"error": {"message": "no such route"}})
FULL = (429, {}, {"error": {"message": "The queue is full."}})


@pytest.fixture
def script() -> Iterator[Script]:
    with Script() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_table_and_the_file_say_what_was_measured(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.replies = [NO_ROUTE, NO_ROUTE, ANSWER, ANSWER, FULL, ANSWER, ANSWER]
    save = tmp_path / "new" / "result.json"
    command = ["bench", "serve", script.url, "--models", "m", "--num-requests", "2", "--concurrency", "1", "2"]
    assert main([*command, "--save", str(save), "--details", "--goodput", "e2el:10000"]) == 0
    shown = capsys.readouterr()
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[0] == ["concurrency", "1", "concurrency", "2"]
    assert ["Successful", "requests", "1", "2"] in lines
    assert ["Total", "generated", "tokens", "2", "4"] in lines
    assert any(line[:2] == ["P99", "TTFT"] and len(line) == 5 for line in lines)
    assert "failed with 429: The queue is full." in shown.err
    saved = json.loads(save.read_text())
    assert [run["max_concurrency"] for run in saved["runs"]] == [1, 2]
    assert [run["completed"] for run in saved["runs"]] == [1, 2]
    assert saved["runs"][1]["generated_texts"] == ["ab", "ab"]
    assert saved["config"]["models"] == ["m"]


def test_the_key_of_the_environment_is_sent_unless_another_is_given(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANLU_API_KEY", "of-the-environment")
    script.replies = [NO_ROUTE, NO_ROUTE, ANSWER, ANSWER] * 2
    command = ["bench", "serve", script.url, "--models", "m", "--num-requests", "1"]
    assert main(command) == 0
    assert main([*command, "--api-key", "given"]) == 0
    sent = [headers["authorization"] for path, headers, _ in script.requests if path == "/v1/completions"]
    assert sent == ["Bearer of-the-environment"] * 2 + ["Bearer given"] * 2


def test_a_server_that_is_not_there_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "http://127.0.0.1:9"]) == 1
    assert "No server answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_only_servers_are_measured() -> None:
    assert main(["bench", "everything"]) == 2
