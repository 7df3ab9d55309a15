from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import danlu
from danlu.core.errors import ConfigError, DataError
from danlu.data.shard_writer import ShardWriter
from danlu.data.shards import TokenShards
from danlu.flow.run import RunResult
from danlu.flow.stages.tokenize import TokenizeConfig
from danlu.text.bpe import BPEConfig, is_held_out
from danlu.text.tokenizer import load_tokenizer

TEXTS = [f"Report {number}: the river rose {number * 7} times, 水位上涨 {number} 次。" for number in range(300)]


def run(folder: Path, *overrides: str, texts: list[str] = TEXTS) -> RunResult:
    half = len(texts) // 2
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:half]))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[half:]))
    recipe = folder / "r.yaml"
    recipe.write_text(
        "name: r\nstages:\n"
        f"  - {{name: a, use: fetch, path: {folder / 'a.jsonl'}}}\n"
        f"  - {{name: b, use: fetch, path: {folder / 'b.jsonl'}}}\n"
        "  - {name: words, use: train_tokenizer, inputs: {rows: a, more: b}, bpe: {vocabulary_size: 290}}\n"
        "  - {name: tokens, use: tokenize, inputs: {rows: a, more: b, tokenizer: words}, validation_share: 0.1}\n"
    )
    return danlu.run(recipe, *overrides, store=folder / "home")


def test_rows_become_shards_split_by_document(tmp_path: Path) -> None:
    result = run(tmp_path)
    words, tokens = result.artifacts["words"], result.artifacts["tokens"]
    tokenizer = load_tokenizer(words.path, json.loads((words.path / "tokenizer_config.json").read_text()))
    held_out = BPEConfig(held_out=0.1)
    for split in ("train", "validation"):
        shards = TokenShards(tokens.path / split)
        shards.verify()
        expected = [text for text in TEXTS if is_held_out(text, held_out) == (split == "validation")]
        documents = [document.tolist() for document in shards.documents()]
        assert [tokenizer.decode(document) for document in documents] == expected
        assert {document[-1] for document in documents} == {tokenizer.special_ids["<|endoftext|>"]}
        metrics = tokens.manifest.metrics[split]
        assert metrics["documents"] == len(expected) > 10
        assert metrics["text_bytes"] == shards.index.text_bytes == sum(len(text.encode()) for text in expected)
        assert metrics["characters_per_token"] == round(sum(map(len, expected)) / shards.num_tokens, 4)
        assert shards.vocabulary_size == 290
        hashed = hashlib.sha256((words.path / "tokenizer.json").read_bytes()).hexdigest()
        assert shards.index.tokenizer_sha256 == hashed
    assert run(tmp_path).reused == set(result.artifacts)


def test_a_tokenizer_says_how_dense_it_is(tmp_path: Path) -> None:
    metrics = run(tmp_path).artifacts["words"].manifest.metrics
    assert metrics["vocabulary_size"] == 290
    assert metrics["characters_per_token"]["en"] > 1


def test_a_run_that_was_cut_off_goes_on_to_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    small = "tokens.shards={shard_tokens: 2000}"
    whole = run(tmp_path / "whole", small).artifacts["tokens"]
    add, added, stops_at = ShardWriter.add, list[int](), 200

    def counted(self: ShardWriter, number: int, ids: list[int], **options: int) -> None:
        if number == stops_at:
            raise KeyboardInterrupt
        added.append(number)
        add(self, number, ids, **options)

    monkeypatch.setattr(ShardWriter, "add", counted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", small)
    added.clear()
    stops_at = -1
    again = run(tmp_path / "cut", small).artifacts["tokens"]
    assert again.manifest.files == whole.manifest.files
    assert len(added) < 200, "what was safe is not tokenized again"


def test_another_separator_can_be_chosen(tmp_path: Path) -> None:
    shards = TokenShards(run(tmp_path, "tokens.separator=<|im_end|>").artifacts["tokens"].path / "train")
    assert {document[-1] for document in shards.documents()} == {2}
    with pytest.raises(ConfigError, match=r"no special token '<eos>' to put between documents\. Set separator"):
        run(tmp_path, "tokens.separator=<eos>")


def test_empty_documents_are_counted_and_nothing_else_is_an_error(tmp_path: Path) -> None:
    assert run(tmp_path, texts=[*TEXTS, "", ""]).artifacts["tokens"].manifest.metrics["empty_documents"] == 2
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match=r"No text to train on: 1 documents are empty\. Check the rows"):
        _only(tmp_path, empty)


def _only(folder: Path, rows: Path) -> None:
    recipe = folder / "r.yaml"
    recipe.write_text(
        "name: r\nstages:\n"
        f"  - {{name: a, use: fetch, path: {folder / 'a.jsonl'}}}\n"
        f"  - {{name: b, use: fetch, path: {folder / 'b.jsonl'}}}\n"
        f"  - {{name: empty, use: fetch, path: {rows}}}\n"
        "  - {name: words, use: train_tokenizer, inputs: {rows: a, more: b}, bpe: {vocabulary_size: 290}}\n"
        "  - {name: tokens, use: tokenize, inputs: {rows: empty, tokenizer: words}}\n"
    )
    danlu.run(recipe, store=folder / "home")


def test_more_than_half_cannot_be_held_out() -> None:
    with pytest.raises(ConfigError, match=r"validation_share is 0\.6\. Use 0 to 0\.5"):
        TokenizeConfig(validation_share=0.6)
