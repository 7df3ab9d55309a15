"""Tiny tokenizers of every kind, trained or written out here, and SentencePiece files made without its package."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from danlu.text.sentencepiece import build_sentencepiece, parse_sentencepiece
from danlu.text.tokenizer import TextTokenizer
from tests.tiny import SPECIAL, make_tokenizer, shop_rows

TEXTS = [*(str(row["Review Text"]) for row in shop_rows(80)), "面料是纯棉的，柔软透气。", "这件连衣裙的颜色很好看。"]
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
T5_SPECIAL = ("<pad>", "</s>", "<unk>")


def wordpiece() -> TextTokenizer:
    """BERT's kind."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(BERT_SPECIAL), show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return TextTokenizer(backend, end_tokens=[])


def spaced_wordpiece() -> TextTokenizer:
    """A WordPiece model that cuts at spaces alone, so that "[MASK]" reaches it in one piece."""
    tokenizer = wordpiece().backend
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.normalizer = normalizers.NFC()
    return TextTokenizer(tokenizer, end_tokens=[])


def roberta() -> TextTokenizer:
    """RoBERTa's kind: byte-level BPE in a frame."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[AddedToken(name, lstrip=name == "<mask>", special=True) for name in ROBERTA_SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return TextTokenizer(backend, end_tokens=["</s>"], begin_token="<s>")


def byte_level() -> TextTokenizer:
    """A chat model's kind."""
    return TextTokenizer(make_tokenizer(), end_tokens=["<|im_end|>"], begin_token="<|im_start|>")


def llama3_like() -> TextTokenizer:
    """Byte-level BPE that takes whole pieces first, with names of special tokens that reach it uncut."""
    source = make_tokenizer()
    source.model.ignore_merges = True  # pyright: ignore[reportAttributeAccessIssue]
    source.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return TextTokenizer(source, end_tokens=["<|im_end|>"])


def unigram() -> TextTokenizer:
    """T5's kind: a unigram model in which "</s>" is a piece like any other."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=list(T5_SPECIAL), unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([*TEXTS, "</s> <pad>"], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return TextTokenizer(backend, end_tokens=["</s>"])


def sentencepiece_bpe() -> TextTokenizer:
    """Llama 2's kind."""
    backend = build_sentencepiece(parse_sentencepiece(spm_bytes(SPM_BPE, {3: 2, 35: 1}, {4: 0})))
    return TextTokenizer(backend, end_tokens=["</s>"], begin_token="<s>")


KINDS = {
    "byte_level": (byte_level, SPECIAL),
    "llama3_like": (llama3_like, SPECIAL),
    "wordpiece": (wordpiece, BERT_SPECIAL),
    "spaced_wordpiece": (spaced_wordpiece, BERT_SPECIAL),
    "roberta": (roberta, ROBERTA_SPECIAL),
    "unigram": (unigram, T5_SPECIAL),
    "sentencepiece_bpe": (sentencepiece_bpe, ("<s>", "</s>", "<unk>")),
}
"""How to make one of each kind, and what its special tokens are called."""

# ---- SentencePiece files ---------------------------------------------------------------------------------------------

SpmPiece = tuple[str, float, int]
_CONTROL: list[SpmPiece] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
SPM_UNIGRAM: list[SpmPiece] = [
    *_CONTROL,
    *(("▁", -2.5, 1), ("▁navy", -4.0, 1), ("▁dress", -4.5, 1), ("s", -3.0, 1), ("dress", -6.0, 1), ("面料", -5.0, 1)),
    *(("面", -7.0, 1), ("料", -7.5, 1), ("<", -9.0, 1), (">", -9.1, 1), ("/", -9.2, 1), ("a", -5.5, 1)),
    *(("n", -5.6, 1), ("v", -5.7, 1), ("y", -5.8, 1), ("na", -5.0, 1)),
]
_MERGED = ["▁n", "av", "▁nav", "▁navy", "面料", "▁d", "re", "ss", "ress", "▁dress", "dress", "▁▁", "▁面", "</", "s>"]
_MERGED += ["▁▁▁", "▁<"]
SPM_BPE: list[SpmPiece] = [
    *_CONTROL,
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    *((piece, -float(rank), 1) for rank, piece in enumerate(_MERGED)),
    *((letter, -100.0 - rank, 1) for rank, letter in enumerate("▁navydres面料</>")),
]


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def spm_field(number: int, value: int | float | str | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def spm_bytes(
    pieces: Sequence[SpmPiece],
    trainer: Mapping[int, int] | None = None,
    normalizer: Mapping[int, int | bytes] | None = None,
) -> bytes:
    """A SentencePiece model: field 1 pieces, 2 the trainer's settings, 3 the normalizer's."""
    entries = (spm_field(1, text) + spm_field(2, score) + spm_field(3, kind) for text, score, kind in pieces)
    settings = (b"".join(spm_field(n, v) for n, v in (given or {}).items()) for given in (trainer, normalizer))
    parts = [spm_field(1, entry) for entry in entries]
    return b"".join([*parts, *(spm_field(number, data) for number, data in enumerate(settings, start=2))])
