from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import danlu
from danlu.core.errors import ConfigError, DataError
from danlu.core.files import read_jsonl
from danlu.flow.run import RunResult
from danlu.flow.stages.corpus import CorpusConfig, clean, text_files


def run(folder: Path, poems: list[dict[str, Any]], *, variants: str = "", more: str = "") -> RunResult:
    (folder / "poems").mkdir()
    (folder / "poems" / "a.json").write_text(json.dumps(poems))
    (folder / "lists").mkdir()
    (folder / "lists" / "characters.txt").write_text(variants or "x\tx\n")
    recipe = folder / "r.yaml"
    recipe.write_text(
        "name: r\nstages:\n"
        f"  - {{name: poems, use: fetch, path: {folder / 'poems'}}}\n"
        f"  - {{name: lists, use: fetch, path: {folder / 'lists'}}}\n"
        "  - {name: texts, use: corpus, form: poems, inputs: {files: poems, variants: lists}" + more + "}\n"
    )
    return danlu.run(recipe, store=folder / "home")


def test_documents_become_rows_without_repeats_or_scraps(tmp_path: Path) -> None:
    poem = {"title": "登樓", "author": "杜甫", "paragraphs": ["花近高樓傷客心，萬方多難此登臨。"]}
    poems = [poem, {**poem, "id": 2}, {"title": "一", "paragraphs": ["短。"]}]
    artifact = run(tmp_path, poems, variants="樓\t楼\n傷\t伤\n萬\t万\n難\t难\n臨\t临\n").artifacts["texts"]
    rows = list(read_jsonl(artifact.path / "rows.jsonl"))
    text = "登楼\n杜甫\n\n花近高楼伤客心，万方多难此登临。"
    assert rows == [{"text": text, "file": "a.json"}]
    assert artifact.manifest.metrics == {
        "documents": 1,
        "characters": len(text),
        "text_bytes": len(text.encode()),
        "dropped": {"repeated": 1, "too_short": 1},
    }


def test_a_corpus_without_documents_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No document is left: 1 have fewer than 20 characters\. Check form, or lower"):
        run(tmp_path, [{"paragraphs": ["短。"]}])


def test_text_is_cleaned_of_what_no_one_sees() -> None:
    assert clean("\r\n\r\n e\u0301 \t\r\n\n\n\nb\r") == "é\n\nb"


def test_a_folder_of_rows_holds_texts(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(DataError, match=r"has no \.txt, \.jsonl or \.parquet file\. Give an artifact of rows"):
        text_files(tmp_path)


def test_documents_of_no_length_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_characters is 0\. Use 1 or more"):
        CorpusConfig(min_characters=0)
