"""The serve verb: names of models, adapters, keys, and vLLM instead of our own engine."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from danlu.cli.main import main
from danlu.cli.serve import named, own_name
from danlu.core.errors import ConfigError
from danlu.core.events import Events
from danlu.serve.engine.request import AdapterRequest
from danlu.serve.engine.spec import EngineSpec, ModelSpec
from danlu.serve.http.config import HttpConfig

FAKE = [sys.executable, str(Path(__file__).parents[1] / "serve" / "engine" / "fake_engine.py")]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EngineSpec, HttpConfig, bool]]:
    """What would be served."""
    found: list[tuple[EngineSpec, HttpConfig, bool]] = []

    def serve_models(spec: EngineSpec, http: HttpConfig, events: Events, *, is_in_process: bool) -> None:
        found.append((spec, http, is_in_process))

    monkeypatch.setattr("danlu.flow.serving.serve_models", serve_models)
    return found


def test_a_model_is_called_what_its_folder_file_or_hub_id_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Qwen2.5-0.5B").mkdir()
    monkeypatch.chdir(tmp_path / "Qwen2.5-0.5B")
    assert own_name(".") == own_name(str(tmp_path / "Qwen2.5-0.5B")) == "Qwen2.5-0.5B"
    assert own_name("models/tiny.Q4_1.gguf") == "tiny.Q4_1"
    assert own_name("HuggingFaceTB/SmolLM2@main") == "SmolLM2"
    assert own_name("product-copy") == "product-copy"


def test_names_are_given_with_the_model_or_in_turn(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    words = ["chat=x/llama", "y/minilm", str(odd)]
    assert named(words, ()) == [("chat", "x/llama"), ("minilm", "y/minilm"), ("a=b", str(odd))]
    assert named(words, ("first", "second")) == [("first", "x/llama"), ("second", "y/minilm"), ("a=b", str(odd))]
    with pytest.raises(ConfigError, match=r"2 names are given for 1 models. Give at most one for each."):
        named(["x"], ("a", "b"))


def test_everything_that_is_said_reaches_the_engine(
    tmp_path: Path, served: list[tuple[EngineSpec, HttpConfig, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "adapter"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DANLU_API_KEY", "from-the-environment")
    words = ["serve", "one", "b=two", "--model-name", "a", "--lora", "l@b=adapter", "--scheme", "int8", "--precision"]
    words += ["bf16", "--threads", "2", "--engine.max-rows", "8", "--port", "0", "--in-process"]
    assert main(words) == 0
    ((spec, http, is_in_process),) = served
    form = {"precision": "bf16", "scheme": "int8"}
    assert spec.models == (ModelSpec(name="a", path="one", **form), ModelSpec(name="b", path="two", **form))
    folder = str(tmp_path / "adapter")
    assert spec.adapters == (AdapterRequest(action="load", name="l", folder=folder, model="b"),)
    assert (spec.config.max_rows, spec.config.threads) == (8, 2)
    assert (http.port, http.api_key, is_in_process) == (0, "from-the-environment", True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "No model is given. For example: danlu serve product-copy"),
        (["MODEL", "--lora", "x"], "--lora is 'x'. Write NAME=FOLDER, or NAME@MODEL=FOLDER."),
        (["MODEL", "--vllm-arg=--x"], "--vllm-arg is given without --engine vllm. Give both, or neither."),
        (["a=MODEL", "a=MODEL"], "Two models or adapters are called 'a'. Give one of them another name: NAME=PATH."),
        (["MODEL", "--engine.max-rows", "0"], "max_rows is 0. Use 1 or more."),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *(word.replace("MODEL", str(tmp_path)) for word in words)]) == 1
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_server_answers_the_printed_line_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    """With the engine's process, though without a model in it."""
    code = (
        "import sys, danlu.serve.engine.remote as remote\n"
        "remote.COMMAND = sys.argv[2:]\n"
        "from danlu.cli.main import main\n"
        "status = main(['serve', 'mine=' + sys.argv[1], '--port', '0'])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(status)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *FAKE], stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stderr is not None
    try:
        lines = [next(process.stderr).rstrip() for _ in range(4)]
        assert lines[0] == "Loading mine"
        (url,) = re.findall(r"Serving mine at (http://127\.0\.0\.1:\d+) ", lines[1])
        words = shlex.split(lines[2])
        assert words[:2] == ["curl", f"{url}/v1/chat/completions"]
        body = json.loads(words[-1])
        assert body["messages"][0]["content"].startswith("Write product copy.")
        request = urllib.request.Request(words[1], words[-1].encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            assert json.loads(response.read())["model"] == "mine"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert (process.wait(20), rest) == (0, "")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


# vLLM


def run_vllm(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`danlu serve … --engine vllm` with a program vllm on PATH that shows what it was given."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "vllm"
    program.write_text('#!/bin/sh\necho "key=$VLLM_API_KEY"\nfor word in "$@"; do echo "$word"; done\nexit 7\n')
    program.chmod(0o755)
    (tmp_path / "model").mkdir(exist_ok=True)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "danlu.cli.main", "serve", str(tmp_path / "model"), "--engine", "vllm", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_vllm_is_started_in_its_own_words_and_its_exit_status_is_ours(tmp_path: Path) -> None:
    done = run_vllm(tmp_path, "--api-key", "SECRET", "--port", "9", "--vllm-arg=--max-model-len=64")
    assert done.stdout.split() == [
        "key=SECRET", "serve", str(tmp_path / "model"), "--served-model-name", "model", "--host", "127.0.0.1",
        "--port", "9", "--max-model-len=64",
    ]  # fmt: skip
    assert done.returncode == 7
    assert "SECRET" not in done.stderr
    assert "Limits, routes and drain are vLLM's from here on." in done.stderr


def test_what_vllm_does_not_have_is_refused_before_it_starts(tmp_path: Path) -> None:
    done = run_vllm(tmp_path, "--max-prompts", "3")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: max_prompts cannot be set with --engine vllm. Leave it out")
