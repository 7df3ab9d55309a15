from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from scripts import docs_numbers
from scripts.docs_numbers import CHINESE, ENGLISH, fill


def model(scale: float) -> dict[str, Any]:
    entry = {"value": 0.5 * scale, "low": 0.4 * scale, "high": 0.6 * scale}
    return {
        "bleu4": {"value": 20 * scale, "low": 18 * scale, "high": 22 * scale},
        "chrf": {"value": 40 * scale, "low": 38 * scale, "high": 42 * scale},
        "coverage": entry,
        "invention": entry,
        "items_per_s": 12.34 * scale,
        "size_bytes": int(269e6 * scale),
    }


RESULT: dict[str, Any] = {
    "machine": {"cpu": "Fictional CPU", "num_cores": 2},
    "versions": {"danlu": "0.1.0", "torch": "2.13.0"},
    "runs": [],
    "summary": {
        "rows_in": 23486,
        "rows_kept": 20000,
        "dropped": {"empty": 845, "duplicate": 2641},
        "trainable_share": 0.0072,
        "train_tokens_per_s": 2345.6,
        "base": model(0.5),
        "tuned": model(1.0),
        "int8": model(0.99),
        "p_bleu4": 0.0002,
        "p_coverage": 0.0321,
        "size_ratio": 0.262,
        "speedup_vs_transformers": 6.04,
        "seconds": {"fetch": 10.0, "train": 290.0},
        "peak_rss_bytes": 2_500_000_000,
    },
}
DOCUMENT = "# Title\n<!-- numbers:quickstart -->\nold\n<!-- /numbers -->\nafter\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "quickstart.json").write_text(json.dumps(RESULT), encoding="utf-8")
    return tmp_path


def test_the_committed_documents_hold_what_the_results_say():
    for path in docs_numbers.documents():
        text = path.read_text(encoding="utf-8")
        assert text == fill(text, docs_numbers.language(path)), f"{path.name} is stale: run make docs"


def test_both_readmes_have_a_place_for_the_quickstart_numbers():
    for name in ("README.md", "README.zh-CN.md"):
        assert "<!-- numbers:quickstart -->" in (docs_numbers.ROOT / name).read_text(encoding="utf-8")


def test_a_block_without_results_says_so(tmp_path: Path):
    assert fill(DOCUMENT, ENGLISH, tmp_path) == DOCUMENT.replace("old", "Not measured yet.")
    assert "尚未测量。" in fill(DOCUMENT, CHINESE, tmp_path)


def test_filling_twice_changes_nothing(results: Path):
    once = fill(DOCUMENT, ENGLISH, results)
    assert fill(once, ENGLISH, results) == once
    assert once.startswith("# Title\n<!-- numbers:quickstart -->\n|")
    assert once.endswith("\n<!-- /numbers -->\nafter\n")


def test_every_number_is_shown_with_its_unit(results: Path):
    text = fill(DOCUMENT, ENGLISH, results)
    for expected in (
        "| BLEU-4 | 10.0 [9.0, 11.0] | 20.0 [18.0, 22.0] | 19.8 [17.8, 21.8] |",
        "| attributes mentioned | 25.0 % [20.0, 30.0] | 50.0 % [40.0, 60.0] |",
        "| items/s | 6.2 | 12.3 | 12.2 |",
        "| weights | 134 MB | 269 MB | 266 MB |",
        "p < 0.001 (BLEU-4), p = 0.032 (attributes mentioned)",
        "23,486 reviews in, 20,000 kept; dropped: empty 845, duplicate 2,641.",
        "Trained 0.72 % of the parameters at 2,346 tokens/s.",
        "int8 has 26.2 % of the fp32 size. Batched, the fine-tuned model gives 6.0× the items/s",
        "5.0 min in all (fetch 10 s, train 290 s), peak memory 2.50 GB.",
        "Measured on Fictional CPU, 2 cores; danlu 0.1.0, torch 2.13.0.",
    ):
        assert expected in text


def test_both_languages_show_the_same_numbers(results: Path):
    english, chinese = fill(DOCUMENT, ENGLISH, results), fill(DOCUMENT, CHINESE, results)
    assert ENGLISH.keys() == CHINESE.keys()
    for row in (
        "10.0 [9.0, 11.0] | 20.0 [18.0, 22.0]",
        "25.0 % [20.0, 30.0]",
        "134 MB",
        "26.2 %",
        "p = 0.032",
        "p < 0.001",
    ):
        assert row in english
        assert row in chinese


def test_what_a_command_printed_is_shown_as_it_was(tmp_path: Path):
    (tmp_path / "quickstart-output.txt").write_text("$ make quickstart\n\u2713 done\n\n", encoding="utf-8")
    text = fill("<!-- numbers:quickstart-output -->\n<!-- /numbers -->\n", ENGLISH, tmp_path)
    assert (
        text == "<!-- numbers:quickstart-output -->\n```text\n$ make quickstart\n\u2713 done\n```\n<!-- /numbers -->\n"
    )


def test_a_result_that_lacks_a_number_is_not_papered_over(tmp_path: Path):
    broken = copy.deepcopy(RESULT)
    del broken["summary"]["int8"]["chrf"]
    (tmp_path / "quickstart.json").write_text(json.dumps(broken))
    with pytest.raises(KeyError, match="chrf"):
        fill(DOCUMENT, ENGLISH, tmp_path)


def test_models_from_scratch_stand_beside_their_rivals(tmp_path: Path):
    def run(bits: float) -> dict[str, Any]:
        scores = {"model": bits, "xz": 1.5, "kneser_ney_of_order": {"5": 1.75, "6": 1.625}, "parameters": 5_049_088}
        scores |= {"train_bytes": 42_900_080, "held_out_bytes": 423_268}
        summary = {"scores": scores, "seconds": {"base": 540.0}}
        samples = [{"prompt": "It\n", "text": "was *a\n\nday"}]
        return {"wall_s": 780.0, "tokens_read": 5_734_400, "summary": summary, "samples": samples}

    result = {**RESULT, "runs": {"en": run(1.4321), "zh": run(2.0)}}
    (tmp_path / "pretrain_recipes.json").write_text(json.dumps(result))
    text = fill("<!-- numbers:pretrain-recipes -->\n<!-- /numbers -->\n", ENGLISH, tmp_path)
    for expected in (
        "| from scratch on two cores | English | Chinese |",
        "| **bits per byte, our model** | **1.432** | **2.000** |",
        "| Kneser-Ney, 6 bytes | 1.625 | 1.625 |",
        "| tokens read | 5.7 M | 5.7 M |",
        "| minutes in all (of them training) | 13.0 (9.0) | 13.0 (9.0) |",
        r"The English model goes on from *It*: was \*a / day",
    ):
        assert expected in text
    assert fill(text, CHINESE, tmp_path).count("中文模型续写") == 1


def test_classifiers_stand_beside_tf_idf_with_the_range_of_their_seeds(tmp_path: Path):
    def run(judge: str, theirs: float, *ours: float) -> dict[str, Any]:
        seeds = {str(seed): {"test": {judge: value}} for seed, value in enumerate(ours)}
        return {"judge": judge, "ours": seeds, "tfidf": {"test": {judge: theirs}}}

    result = {**RESULT, "runs": {"zh": run("accuracy", 0.856, 0.88, 0.884), "en": run("macro_f1", 0.667, 0.7004)}}
    (tmp_path / "sentiment.json").write_text(json.dumps(result))
    text = fill("<!-- numbers:sentiment -->\n<!-- /numbers -->\n", ENGLISH, tmp_path)
    assert "| Chinese, two labels: accuracy | 85.6 | **88.2** (88.0–88.4) |" in text
    assert "| English, three labels: macro-F1 | 66.7 | **70.0** |" in text
    assert "| 中文，两类：准确率 | 85.6 |" in fill(text, CHINESE, tmp_path)


def test_what_was_served_is_shown_by_system_and_clients() -> None:
    def system(rate: float) -> dict[str, Any]:
        return {"runs": [{"output_throughput": rate * part, "p95_ttft_ms": 40.0 * part} for part in (0.5, 1, 2)]}

    decode = {level: {"systems": {"ours_int8": system(rate), "llama_cpp_q8_0": system(rate / 3)}} for level, rate in
              (("1", 240.0), ("8", 900.0), ("32", 1500.0))}  # fmt: skip
    quality = {"num_chunks": 3, "ours_int8": {"kl_to_fp32": 0.01234, "same_top_share": 0.912, "perplexity": 54.321}}
    runs = {"decode": decode, "quality": quality}
    machine = {"cpu": "Some CPU", "num_cores": 2}
    result = {"machine": machine, "versions": {"danlu": "1"}, "runs": runs, "ratios": {"decode1_vs_llamacpp": 3.0}}
    english, chinese = docs_numbers.serve(result, ENGLISH), docs_numbers.serve(result, CHINESE)
    assert "| **danlu**, int8 | 240 | 900 | 1,500 | 40 ms |" in english
    assert "| llama.cpp built on this machine, Q8_0 | 80 | 300 | 500 | 40 ms |" in english
    assert "| 1 client, against the faster llama.cpp | 3.00 |" in english
    assert "| **danlu**, int8 | 0.0123 | 91.2 % | 54.32 |" in english
    assert "medians of 3 rounds" in english
    assert "| **danlu**，int8 | 240 | 900 | 1,500 | 40 ms |" in chinese
