"""Other people's clients, unmodified, in their own environments, against a real server: they hear what the model says.

``make clients`` sets the environments up.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import danlu
from danlu.core.records import GenerateOptions, Message
from danlu.models.loaded import LoadedModel
from scripts.set_up_clients import folder_of
from tests.serving import Served

HERE = Path(__file__).parent
MAIN, LLAMA_INDEX = folder_of(HERE / "a.txt"), folder_of(HERE / "b.txt")
HELLO: list[Message] = [{"role": "user", "content": "Say hello"}]
GREEDY = GenerateOptions(max_tokens=24, temperature=0.0)
WINDOW = 256


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Path]) -> LoadedModel:
    loaded = danlu.load(tiny_models["chat"], precision="fp32")
    assert isinstance(loaded, LoadedModel)
    return loaded


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    """What a program of another environment prints."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI", "VIRTUAL"))}
    environment = {**own, "HOME": str(folder), "HF_HOME": str(folder), "LANGSMITH_TRACING": "false", **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent.parent, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_langchain_chats_streams_calls_tools_fills_schemas_and_embeds(
    served: Served, model: LoadedModel, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    told = json.loads(run(MAIN / "bin/python", HERE / "ask_langchain.py", served.url, folder=tmp_path))
    (expected,) = model.generate([HELLO], GREEDY)
    assert told["whole"] == expected.text
    assert "".join(told["pieces"]) == expected.text
    assert len(told["pieces"]) > 10
    assert told["batch"] == [expected.text] * 3
    assert told["usage"]["input_tokens"] == expected.usage.prompt_tokens
    assert told["usage"]["output_tokens"] == expected.usage.completion_tokens
    assert set(told["dress"]) == {"colour", "pockets"}
    (call,) = told["calls"]
    assert call["name"] == "weather"
    assert call["args"]["city"] in ("Paris", "Rome")
    reader = danlu.load(tiny_models["sentences"], precision="fp32")
    assert isinstance(reader, LoadedModel)
    for vector, known in zip(told["vectors"], reader.embed(["the cat", "dogs"]).tolist(), strict=True):
        assert vector == pytest.approx(known, abs=1e-5)


def test_llama_index_chats_and_completes(served: Served, model: LoadedModel, tmp_path: Path) -> None:
    told = json.loads(run(LLAMA_INDEX / "bin/python", HERE / "ask_llama_index.py", served.url, folder=tmp_path))
    (chat,) = model.generate([HELLO], GREEDY)
    (text,) = model.generate(["The dress has"], GREEDY)
    assert told["whole"] == chat.text
    assert "".join(told["pieces"]) == chat.text
    assert told["text"] == text.text
    assert "".join(told["text_pieces"]) == text.text


@pytest.mark.parametrize("mode", [[], ["--no-stream"]], ids=["stream", "whole"])
def test_llm_prints_the_answer(served: Served, model: LoadedModel, tmp_path: Path, mode: list[str]) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- {{model_id: tiny, model_name: chat, api_base: '{served.url}/v1'}}\n"
    )
    options = ["-m", "tiny", "-o", "temperature", "0", "-o", "max_tokens", "24", "--key", "unused", "--no-log"]
    program = MAIN / "bin/llm"
    said = run(program, *options, *mode, "Say hello", folder=tmp_path, LLM_USER_PATH=str(tmp_path))
    assert said == model.generate([HELLO], GREEDY)[0].text + "\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_lines_that_the_server_prints_work_as_they_stand(served: Served, model: LoadedModel) -> None:
    curl, python = (line.strip() for line in served.lines if line.startswith("  "))
    script = python.replace("python -c", f"{sys.executable} -c", 1)
    said = [subprocess.run(line, shell=True, capture_output=True, text=True) for line in (curl, script)]
    assert [done.returncode for done in said] == [0, 0], said
    assert json.loads(said[0].stdout)["usage"]["completion_tokens"] > 0


def test_curl_reads_a_stream(served: Served, model: LoadedModel) -> None:
    body = json.dumps({"model": "chat", "messages": HELLO, "max_tokens": 24, "temperature": 0, "stream": True})
    command = ["curl", "-sN", f"{served.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == model.generate([HELLO], GREEDY)[0].text


def test_lm_eval_gets_the_numbers_that_the_model_itself_gives(
    served: Served, model: LoadedModel, tmp_path: Path
) -> None:
    names = ["danlu_choice", "danlu_write", "danlu_rolling"]
    told = f"model=chat,base_url={served.url}/v1/completions,max_length={WINDOW},num_concurrent=2"
    run(
        MAIN / "bin/lm_eval", "run", "--model", "local-completions", "--model_args", told, "--tasks", *names,
        "--include_path", HERE / "tasks", "--output_path", tmp_path, "--log_samples", "--batch_size", "2",
        folder=tmp_path, HF_DATASETS_OFFLINE="1",
    )  # fmt: skip
    samples = {name: _rows(next(tmp_path.glob(f"chat/samples_{name}_*.jsonl"))) for name in names}
    results = json.loads(next(tmp_path.glob("chat/results_*.json")).read_text())["results"]

    hits = 0
    for sample in samples["danlu_choice"]:
        doc = sample["doc"]
        scores = model.score([doc["question"]] * len(doc["choices"]), [f" {choice}" for choice in doc["choices"]])
        for (logprob, is_greedy), score in zip(sample["filtered_resps"], scores, strict=True):
            assert float(logprob) == pytest.approx(score.logprob, abs=1e-3)
            assert str(is_greedy) == str(score.is_greedy)
        hits += max(range(len(scores)), key=lambda i: scores[i].logprob) == doc["answer"]
    assert results["danlu_choice"]["acc,none"] == pytest.approx(hits / 5)

    options = GenerateOptions(max_tokens=16, temperature=0.0, stop=(".", "<|im_end|>"))
    for sample in samples["danlu_write"]:
        (known,) = model.generate([sample["doc"]["question"]], options)
        assert sample["resps"][0][0] == known.text

    texts = [sample["doc"]["text"] for sample in samples["danlu_rolling"]]
    bits = -sum(_rolling_logprob(model, text) for text in texts) / math.log(2)
    assert results["danlu_rolling"]["bits_per_byte,none"] == pytest.approx(
        bits / sum(len(text.encode()) for text in texts), abs=1e-3
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _rolling_logprob(model: LoadedModel, text: str) -> float:
    """Of every token of a text, each told once: windows as long as they may be, the last one reaching back."""
    tokenizer = model.model.chat.tokenizer
    ids = tokenizer.encode(text)
    begin = tokenizer.special_ids["<|im_start|>"]
    longest = WINDOW - 2  # the harness leaves room for the prefix and for one more
    total = 0.0
    for first in range(0, len(ids), longest):
        following = ids[first : first + longest]
        before = ([begin, *ids])[max(0, first + len(following) - longest) : first + 1]
        given = before + following[:-1]
        row = model.logits(torch.tensor([given]))[0].log_softmax(-1)
        total += sum(row[len(before) - 1 + k, token].item() for k, token in enumerate(following))
    return total
