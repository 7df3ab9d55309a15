import json
from pathlib import Path

import pytest
from rich.console import Console

from danlu.cli.inspect import show
from danlu.cli.main import main

LLAMA2 = [
    "vocab_size=32000", "hidden_size=4096", "intermediate_size=11008", "num_hidden_layers=32",
    "num_attention_heads=32", "max_position_embeddings=4096", "tie_word_embeddings=false",
]  # fmt: skip


def test_a_model_is_described_with_what_the_numbers_mean(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_folder)]) == 0
    text = capsys.readouterr().out
    assert "llama, head lm" in text
    assert "32.03 k (32,032)" in text
    assert "BPE, 420 tokens, 3 special, chat template" in text
    assert "FLOPs: 2 a multiply-add of matrix products, mean over a row of 1,024; training 3 × forward." in text
    assert "q_proj" not in text


def test_tensors_are_listed_when_asked_for(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_folder), "--tensors"]) == 0
    text = capsys.readouterr().out
    assert "model.layers.1.self_attn.q_proj.weight" in text
    assert "420 × 32" in text


def test_json_holds_exact_numbers(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_folder), "--json", "--tensors"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["parameters"] == 32_032
    assert sum(tensor["size_bytes"] for tensor in found["tensors"]) == found["stored_bytes"]


def test_a_family_is_counted_from_words_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--family", "llama", *LLAMA2]) == 0
    text = capsys.readouterr().out
    assert "6.738 B (6,738,415,616)" in text
    assert "bf16 524.3 kB a token" in text


def test_changes_are_counted_as_if_they_were_so(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_folder), "num_hidden_layers=4", "--length", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layers"], found["counts"]["length"]) == (4, 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "There is no model to inspect. Name one, or a --family with the KEY=VALUE of its config."),
        (["hidden_size=4"], "There is no model to inspect."),
        (["--family", "llama", "many"], "'many' is not KEY=VALUE. For example num_hidden_layers=12."),
        (["--family", "llama"], "config.json lacks 'hidden_size'."),
        (["--family", "lama"], "Model family 'lama' is not supported. Did you mean 'llama'?"),
        (["--family", "llama", *LLAMA2, "hidden_size=wide"], "config.json: hidden_size is 'wide'. It must be a whole"),
        (["nothing"], "is called 'nothing'"),
    ],
)
def test_what_cannot_be_counted_says_why(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *words]) == 1
    assert message in capsys.readouterr().err


def test_80_columns_lose_nothing(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from danlu.models.inspect import inspect_model

    facts = inspect_model(tiny_folder)
    show(facts, Console(width=80, highlight=False), tensors=True)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    words = "".join(text.split())
    assert all(f"{tensor.name}{'×'.join(map(str, tensor.shape))}F32" in words for tensor in facts.tensors)
    assert "q4_0" in words
