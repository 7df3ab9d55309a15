"""Folders without tokenizer.json: the same ids as transformers' own classes give for the same vocabularies."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import ModelError
from danlu.text.tokenizer import TextTokenizer, load_tokenizer
from tests.text.tokenizers import SPM_BPE, SPM_UNIGRAM, SpmPiece, roberta, spm_bytes, wordpiece

PLAIN = ["navy dress", "面料 navy", "", "ny  av", " v </x", "soft 👗", "naïve café", "Two words\nthree"]


def plain(number: int = 200) -> list[str]:
    generator = random.Random(5)
    letters = ["navy", "dress", " ", "  ", "面料", "a", "n", "👗", "é", "\n", "Navy", "12", ","]
    return PLAIN + ["".join(generator.choice(letters) for _ in range(generator.randrange(8))) for _ in range(number)]


def same(ours: TextTokenizer, theirs: Any, texts: list[str], *, types: bool = False) -> None:
    for one, other in zip(texts, (text or "navy" for text in reversed(texts)), strict=True):
        assert ours.encode(one) == theirs(one, add_special_tokens=False)["input_ids"], one
        assert ours.encode_with_specials(one)[0] == theirs(one)["input_ids"], one
        ids, kinds = ours.encode_with_specials(one, other)
        expected = theirs(one, other, return_token_type_ids=True)
        assert ids == expected["input_ids"], (one, other)
        if types:
            assert kinds == expected["token_type_ids"]


def vocabulary(tokenizer: TextTokenizer) -> dict[str, int]:
    return dict(sorted(tokenizer.backend.get_vocab().items(), key=lambda item: item[1]))


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"tokenize_chinese_chars": False}])
def test_bert_from_vocab_txt(config: dict[str, Any], tmp_path: Path) -> None:
    from transformers import BertTokenizer

    ids = vocabulary(wordpiece())
    (tmp_path / "vocab.txt").write_text("\n".join(ids) + "\n")
    ours = load_tokenizer(tmp_path, config)
    same(ours, BertTokenizer(vocab=ids, **config), plain(), types=True)
    assert (ours.pad_id, ours.mask_id, ours.unk_id) == (0, 4, 1)
    assert ours.encode_with_specials("soft dress", "navy", max_tokens=6)[0][0] == 2
    assert len(ours.encode_with_specials("soft navy dress " * 9, "navy", max_tokens=9)[0]) == 9


def test_roberta_from_vocab_json_and_merges(tmp_path: Path) -> None:
    from transformers import RobertaTokenizer

    made = roberta()
    ids = vocabulary(made)
    merges = [tuple(pair) for pair in json.loads(made.backend.to_str())["model"]["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    theirs = RobertaTokenizer(vocab=ids, merges=merges)
    for config in ({}, {"tokenizer_class": "RobertaTokenizer"}):
        ours = load_tokenizer(tmp_path, config)
        same(ours, theirs, plain())
        assert (ours.pad_id, ours.mask_id, ours.unk_id, ours.begin_id, ours.end_ids) == (1, 4, 3, 0, {2})


def test_gpt2_from_vocab_json_and_merges(tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    made = roberta()
    ids = {name.replace("<s>", "<|endoftext|>"): index for name, index in vocabulary(made).items()}
    merges = [tuple(pair) for pair in json.loads(made.backend.to_str())["model"]["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in merges))
    ours = load_tokenizer(tmp_path, {"tokenizer_class": "GPT2Tokenizer"})
    same(ours, GPT2Tokenizer(vocab=ids, merges=merges), plain())
    assert (ours.begin_id, ours.end_ids) == (0, {0})


T5_PIECES: list[SpmPiece] = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), *SPM_UNIGRAM[3:]]


def test_t5_from_spiece_model(tmp_path: Path) -> None:
    from transformers import T5Tokenizer

    (tmp_path / "spiece.model").write_bytes(spm_bytes(T5_PIECES, {3: 1}))
    ours = load_tokenizer(tmp_path, {"tokenizer_class": "T5Tokenizer", "extra_ids": 10})
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(10))]
    vocab = [*((text, score) for text, score, _ in T5_PIECES), *sentinels]
    same(ours, T5Tokenizer(vocab=vocab, extra_ids=10), [t for t in plain() if "</" not in t and "\n" not in t])
    last = len(T5_PIECES) + 9
    assert (ours.special_ids["<extra_id_0>"], ours.vocabulary_size) == (last, last + 1)
    assert (ours.pad_id, ours.unk_id, ours.end_ids) == (0, 2, {1})
    assert last not in ours.encode("<extra_id_0>")


@pytest.mark.parametrize("config", [{}, {"tokenizer_class": "XLMRobertaTokenizerFast"}])
def test_xlm_roberta_from_sentencepiece_bpe_model(config: dict[str, Any], tmp_path: Path) -> None:
    from transformers import XLMRobertaTokenizer

    (tmp_path / "sentencepiece.bpe.model").write_bytes(spm_bytes(SPM_UNIGRAM, {3: 1}))
    ours = load_tokenizer(tmp_path, config)
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(text, score) for text, score, _ in SPM_UNIGRAM[3:]]
    theirs = XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)])
    same(ours, theirs, [t for t in plain() if "</" not in t and "\n" not in t])
    assert (ours.pad_id, ours.unk_id, ours.mask_id, ours.begin_id) == (1, 3, len(vocab), 0)


def test_llama_from_tokenizer_model(tmp_path: Path) -> None:
    from transformers import LlamaTokenizer

    (tmp_path / "tokenizer.model").write_bytes(spm_bytes(SPM_BPE, {3: 2, 35: 1}, {4: 0}))
    added = {str(len(SPM_BPE)): {"content": "<|user|>", "special": True}}
    ours = load_tokenizer(tmp_path, {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added})
    model = json.loads(ours.backend.to_str())["model"]
    theirs = LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    for text in plain():
        if not text.startswith(" "):  # theirs loses one of several spaces in front; the sentencepiece package does not
            assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode_with_specials("navy")[0] == [1, *ours.encode("navy")]
    assert ours.special_ids["<|user|>"] == len(SPM_BPE)
    assert (ours.begin_id, ours.end_ids, ours.unk_id) == (1, {2}, 0)
    later = load_tokenizer(tmp_path, {"legacy": False})
    assert (ours.prefix, later.prefix) == ("always", "first")
    assert later.encode("navy dress") == ours.encode("navy dress")


def write_marian(folder: Path) -> None:
    target: list[SpmPiece] = [*SPM_UNIGRAM[:3], ("▁Kleid", -3.0, 1), ("▁", -2.0, 1), ("面", -4.0, 1), ("K", -5.0, 1)]
    (folder / "source.spm").write_bytes(spm_bytes(SPM_UNIGRAM, {3: 1}))
    (folder / "target.spm").write_bytes(spm_bytes(target, {3: 1}))
    names = ["</s>", "<unk>", ">>deu<<"]
    names += [*sorted({text for text, _, kind in [*SPM_UNIGRAM, *target] if kind == 1}), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))


def test_marian_has_one_vocabulary_and_a_model_for_each_side(tmp_path: Path) -> None:
    write_marian(tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    ours = load_tokenizer(tmp_path, {"source_lang": "en", "target_lang": "de"})
    assert ours.encode_with_specials("navy dress")[0] == [ids["▁navy"], ids["▁dress"], ids["</s>"]]
    assert ours.encode(">>deu<< navy") == [ids[">>deu<<"], ids["▁navy"]]
    assert ours.target.encode("Kleid 面") == [ids["▁Kleid"], ids["▁"], ids["面"]]
    assert ids["▁Kleid"] not in ours.encode("Kleid")
    assert ours.decode([ids["▁Kleid"], ids["▁navy"], ids["</s>"]]) == "Kleid navy"
    assert (ours.pad_id, ours.unk_id, ours.end_ids) == (ids["<pad>"], ids["<unk>"], {ids["</s>"]})
    assert not {ids["</s>"], ids["<pad>"]} & set(ours.encode("</s> <pad>"))


def test_special_tokens_map_and_generation_config_fill_what_the_config_leaves_out(tmp_path: Path) -> None:
    roberta().save(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "</s>", "pad_token": {"content": "<s>"}})
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3, 77, 9999]}))
    ours = load_tokenizer(tmp_path, {})
    assert (ours.end_tokens, ours.pad_id) == (("</s>", "<unk>"), 0)


@pytest.mark.parametrize(
    ("files", "config", "text"),
    [
        ({}, {}, r"has no tokenizer\.json\. Copy it from the model's own repository"),
        ({"vocab.txt": "[UNK]\na\na"}, {}, "vocab.txt has the same token twice"),
        ({"vocab.txt": "[UNK]\na"}, {}, r"vocab.txt has no \[CLS\], \[MASK\], \[PAD\], \[SEP\]\. Is it a BERT"),
        ({"vocab.txt": b"\xff"}, {}, "vocab.txt is not UTF-8"),
        ({"vocab.json": '{"a": 0, "b": 2}', "merges.txt": ""}, {}, "does not give each token an id from 0 on"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b c"}, {}, "merges.txt has a line that is not two pieces"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b"}, {}, "merges.txt cannot be used: .*It may be damaged"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, {"tokenizer_class": "CLIPTokenizer"}, "has CLIP's vocabulary"),
        (
            {"spiece.model": spm_bytes(SPM_UNIGRAM)},
            {"tokenizer_class": "AlbertTokenizer"},
            "spiece.model belongs to a AlbertTokenizer, whose ids differ from the file's. Save its tokenizer.json",
        ),
        (
            {"spiece.model": spm_bytes(T5_PIECES)},
            {"tokenizer_class": "T5Tokenizer", "extra_ids": "x"},
            "extra_ids is 'x'. Copy the model's own tokenizer_config.json",
        ),
        (
            {"tokenizer.model": spm_bytes(SPM_UNIGRAM)},
            {"added_tokens_decoder": {"99": {"content": "<x>"}}},
            "added_tokens_decoder gives '<x>' the id 99, the vocabulary 19. Are all files of one model",
        ),
        ({"tokenizer.model": spm_bytes(SPM_UNIGRAM)}, {"added_tokens_decoder": {"x": 3}}, "decoder cannot be read"),
        (
            {"tokenizer.model": spm_bytes(SPM_UNIGRAM)},
            {"bos_token": "<begin>"},
            r"The tokenizer has no token '<begin>'\. Is the tokenizer from the same model",
        ),
        (
            {"source.spm": b"", "target.spm": b"", "vocab.json": '{"a": 0}'},
            {},
            "vocab.json has no </s>, <pad>, <unk>. Are all files of one model",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(
    files: dict[str, str | bytes], config: dict[str, Any], text: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=text):
        load_tokenizer(tmp_path, config)
