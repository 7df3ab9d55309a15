"""Training vocabularies: what is promised of them, on a small shop in two languages."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from danlu.core.errors import ConfigError, DataError
from danlu.core.events import Events
from danlu.text.bpe import BPEConfig, TrainedBPE, measure, pattern, train_bpe
from danlu.text.chat import ChatFormat
from danlu.text.tokenizer import load_tokenizer
from tests.tiny import COLOURS, GARMENTS, MATERIALS, shop_rows

SMALL = BPEConfig(vocabulary_size=500, held_out=0.1)


def documents() -> list[str]:
    generator = random.Random(6)
    colours, things = ("藏青", "白色", "黑色", "米色"), ("连衣裙", "半身裙", "外套", "上衣")
    chinese = [
        f"{generator.choice(colours)}{generator.choice(things)}面料柔软，适合通勤，尺码{generator.randrange(60, 99)}。"
        for _ in range(300)
    ]
    english = [
        f"{generator.choice(COLOURS)} {generator.choice(MATERIALS)} {generator.choice(GARMENTS)} {row['Review Text']}"
        for row in shop_rows(300)
    ]
    return [text for pair in zip(chinese, english, strict=True) for text in pair]


DOCUMENTS = documents()
TRAINED = train_bpe(DOCUMENTS, SMALL)
texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("面料👗 \n\r\t\0é")), max_size=40)


@given(texts)
def test_any_text_comes_back(text: str) -> None:
    assert TRAINED.tokenizer.decode(TRAINED.tokenizer.encode(text)) == text


def test_special_tokens_come_first_then_every_byte_and_the_size_is_exact() -> None:
    tokenizer = TRAINED.tokenizer
    assert tokenizer.special_ids == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert (tokenizer.vocabulary_size, tokenizer.end_ids, tokenizer.pad_id) == (500, {2}, 0)
    assert {len(tokenizer.encode(chr(i))) for i in range(128)} == {1}


def test_the_same_text_gives_the_same_file_in_another_process(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    ours = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    code = (
        "import hashlib, sys; from pathlib import Path; from danlu.text.bpe import BPEConfig, train_bpe\n"
        "import json; texts = json.load(sys.stdin); out = Path(sys.argv[1]); out.mkdir()\n"
        "train_bpe(texts, BPEConfig(vocabulary_size=500, held_out=0.1)).save(out)\n"
        "print(hashlib.sha256((out / 'tokenizer.json').read_bytes()).hexdigest())\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again")],
        input=json.dumps(DOCUMENTS), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == ours


def test_the_folder_loads_here_and_in_transformers_with_equal_ids_and_chats(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    TRAINED.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    ours, theirs = load_tokenizer(tmp_path, config), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*DOCUMENTS[:40], "  two  spaces\n\n\tand 2023's", "naïve 👗 面料ABC面料", "<|im_end", ""]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    messages: Any = [{"role": "user", "content": "面料?"}, {"role": "assistant", "content": "Soft."}]
    expected = theirs.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    rendered = ChatFormat(ours, config["chat_template"]).render(messages, add_generation_prompt=False)
    assert rendered.ids == expected["input_ids"]
    assert [int(flag) for flag in rendered.is_answer] == expected["assistant_masks"]
    assert theirs.pad_token_id == ours.pad_id == 0


def test_the_report_says_what_was_measured_on_text_kept_aside(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    report = json.loads((tmp_path / "tokenizer_report.json").read_text())
    assert report["config"]["vocabulary_size"] == 500
    assert set(report["held_out"]) == {"zh", "en"}
    for language, found in TRAINED.density.items():
        assert found.documents > 10
        assert found.characters / found.tokens == found.characters_per_token > {"zh": 1.2, "en": 2.0}[language]
        assert report["held_out"][language]["characters_per_token"] == round(found.characters_per_token, 4)
        assert found.utf8_bytes > found.characters or language == "en"


def test_text_kept_aside_is_not_trained_on() -> None:
    secret = [f"qzx{'jvk' * 5} number {i}" for i in range(300)]
    trained = train_bpe([*DOCUMENTS, *secret], SMALL)
    aside = sum(found.documents for found in trained.density.values())
    assert aside == sum(found.documents for found in measure_again(trained, [*DOCUMENTS, *secret]).values())


def measure_again(trained: TrainedBPE, every: list[str]) -> dict[str, Any]:
    from danlu.text.bpe import is_held_out

    return measure(trained.tokenizer, [text for text in every if is_held_out(text, trained.config)])


@pytest.mark.parametrize(
    ("digits", "text", "pieces"),
    [
        ("single", "in 2023's", ["in", " ", "2", "0", "2", "3", "'s"]),
        ("threes", "in 2023's", ["in", " ", "202", "3", "'s"]),
        ("single", "用iPhone手机，很好", ["用", "iPhone", "手机", "，很好"]),
        ("single", " 面料 soft\n\n(note) x", [" ", "面料", " soft", "\n\n", "(note", ")", " x"]),
        ("single", "don't 'quoted'", ["don", "'t", " '", "quoted", "'"]),
        ("single", "かな漢字カナ", ["かな", "漢字", "カナ"]),
        ("single", "a  b   \n c", ["a", " ", " b", "   \n", " c"]),
        ("single", "e\u0301te\u0301!", ["e\u0301te\u0301", "!"]),
        ("single", "x=[1]; // ok\r\ny", ["x", "=[", "1", "];", " //", " ok", "\r\n", "y"]),
    ],
)
def test_text_is_cut_so_that_han_and_latin_stay_apart(digits: Any, text: str, pieces: list[str]) -> None:
    found = Split(Regex(pattern(digits)), behavior="isolated").pre_tokenize_str(text)
    assert [piece for piece, _ in found] == pieces


def test_a_budget_and_a_share_of_chinese_are_kept() -> None:
    zh = [text for text in DOCUMENTS if "面料" in text]
    en = [text for text in DOCUMENTS if "面料" not in text]
    config = BPEConfig(vocabulary_size=300, held_out=0.0, max_characters=8_000, chinese_share=0.25)
    trained = train_bpe([*zh, *en], config).trained_characters
    assert trained["zh"] == pytest.approx(2_000, abs=100)
    assert trained["en"] == pytest.approx(6_000, abs=300)
    few = train_bpe([*zh[:20], *en], BPEConfig(vocabulary_size=300, held_out=0.0)).trained_characters
    assert few["zh"] == pytest.approx(4 * sum(map(len, zh[:20])), abs=60)  # read four times, no more
    as_it_is = train_bpe([*zh[:20], *en], BPEConfig(vocabulary_size=300, held_out=0.0, chinese_share=None))
    assert as_it_is.trained_characters["zh"] == sum(map(len, zh[:20]))


def test_an_iterator_is_read_once_and_progress_is_told(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    trained = train_bpe(iter(DOCUMENTS), SMALL, events)
    assert trained.tokenizer.backend.to_str() == TRAINED.tokenizer.backend.to_str()
    lines = [json.loads(line) for line in events.path.read_text().splitlines()] if events.path else []
    assert [line["title"] for line in lines] == ["read corpus", "train tokenizer", "measure tokenizer"]


def test_no_token_is_longer_than_asked() -> None:
    config = BPEConfig(vocabulary_size=400, max_token_bytes=4, held_out=0.0)
    tokenizer = train_bpe(DOCUMENTS, config).tokenizer
    longest = max(len(t) for t, i in tokenizer.backend.get_vocab().items() if i not in tokenizer.special_ids.values())
    assert 3 <= longest <= 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"vocabulary_size": 100}, r"vocabulary_size is 100\. Use 259 to 1000000"),
        ({"special_tokens": ("<a>", "<a>")}, r"special_tokens are <a>, <a>\. Each once, none empty"),
        ({"min_frequency": 0}, r"min_frequency is 0, max_token_bytes 24, max_characters 200000000"),
        ({"chinese_share": 1.5}, r"chinese_share is 1\.5\. Use 0 to 1"),
        ({"held_out": 0.9}, r"held_out is 0\.9\. Use 0 to 0\.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        BPEConfig(**settings)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"There is no text to train on\. Check the files"):
        train_bpe(["", ""])
    with pytest.raises(DataError, match=r"The text gives a vocabulary of \d+, not 32000\. Give more text, a smaller"):
        train_bpe(DOCUMENTS)
