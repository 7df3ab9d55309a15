"""Tiny encoders of transformers with a WordPiece tokenizer, saved as folders: English and Chinese words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from tests.models.case import Case

_ENGLISH = "the cat dog sat on mat paris ann lee met in ##s ##ing ##ed walk play a b c d e . ,"
WORDS = [*_ENGLISH.split(" "), *"猫狗坐在垫子上海"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXTS = [
    "The cat sat on the mat.",
    "猫坐在垫子上",
    "Ann Lee walked in Paris , playing",
    "dogs",
    "the dog met a cat in Paris.",
]


def save_encoder(
    folder: Path, peer: type[PreTrainedModel], **changes: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A BERT of transformers with random weights and its tokenizer; returns both."""
    numbers: dict[str, Any] = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 24, "pad_token_id": 0, **changes,
    }  # fmt: skip
    model = Case(config=BertConfig, peer=peer, numbers=numbers).make()
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=wordpiece(),
        model_max_length=24,
        mask_token="[MASK]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def wordpiece() -> Tokenizer:
    """As BERT's own."""
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(VOCABULARY[:5])
    return tokenizer


def save_sentence(folder: Path, *, pooling: str = "mean_tokens", normalise: bool = True, **texts: Any) -> None:
    """What sentence-transformers writes beside an encoder."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    chosen = {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **chosen})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 10, "do_lower_case": False, **texts})


def write(path: Path, content: object) -> None:
    """As JSON."""
    path.write_text(json.dumps(content))


def save_roberta(folder: Path, kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A masked RoBERTa with a byte-level or a SentencePiece-like tokenizer, whose mask eats the space before it."""
    tokenizer = _byte_level() if kind == "bytes" else _unigram()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True), *ROBERTA_SPECIALS])
    ids = {name: tokenizer.token_to_id(name) for name in ROBERTA_SPECIALS}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
    )
    numbers = {
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 60, "type_vocab_size": 1, "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"],
    }  # fmt: skip
    model = Case(config=RobertaConfig, peer=RobertaForMaskedLM, numbers=numbers).make()
    model.save_pretrained(folder)
    names = {
        "mask_token": "<mask>",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"], **names,
    )  # fmt: skip
    wrapped.save_pretrained(folder)
    return model, wrapped


ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=list(ROBERTA_SPECIALS), initial_alphabet=alphabet)  # pyright: ignore[reportCallIssue]
    tokenizer.train_from_iterator(TEXTS * 9, trainer)
    return tokenizer


def _unigram() -> Tokenizer:
    pieces = [
        *((name, 0.0) for name in ROBERTA_SPECIALS),
        *((letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz.,"),
    ]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("▁the", -2.0), ("▁cat", -2.0), ("cat", -3.0)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer
