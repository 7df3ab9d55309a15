"""Tokenizers of model folders without tokenizer.json, rebuilt from the files that older libraries wrote.

SentencePiece models in the layouts of T5, XLM-RoBERTa, Llama and Gemma, Marian's pair of them, WordPiece's vocab.txt,
and byte-level BPE as vocab.json with merges.txt. Knows which extra ids each family's own tokenizer class adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from danlu.core.errors import ModelError
from danlu.core.files import read_json
from danlu.text.sentencepiece import (
    CONTROL,
    SPACE,
    UNKNOWN,
    Piece,
    Pieces,
    build_sentencepiece,
    normalizer_for,
    read_sentencepiece,
)

_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_T5_EXTRA_IDS = 100
_BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
_ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}

Built = tuple[Tokenizer, dict[str, str]]
"""A tokenizer and the names of its special tokens by role (bos_token, eos_token, pad_token, …)."""


def build_from_files(folder: Path, config: Mapping[str, Any]) -> Built | None:
    """Whatever vocabulary the folder has; None when it has none. ``config`` is its tokenizer_config.json."""
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    for name in _SENTENCEPIECE_FILES:
        if (folder / name).is_file():
            return _sentencepiece(read_sentencepiece(folder / name), name, kind, config)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _byte_level(folder, kind, config)
    if (folder / "vocab.txt").is_file():
        return _wordpiece(folder / "vocab.txt", config)
    return None


def token_name(config: Mapping[str, Any], role: str) -> str | None:
    """The special token for a role: a text, or an object with its ``content``."""
    token = config.get(role)
    if isinstance(token, Mapping):
        token = cast("Mapping[str, Any]", token).get("content")
    return token if isinstance(token, str) and token else None


def _names(config: Mapping[str, Any], defaults: Mapping[str, str]) -> dict[str, str]:
    named = {role: token_name(config, role) or default for role, default in defaults.items()}
    for role in ("bos_token", "eos_token"):
        if role not in named and (name := token_name(config, role)):
            named[role] = name
    return named


# ---- SentencePiece ---------------------------------------------------------------------------------------------------


def _sentencepiece(model: Pieces, file: str, kind: str, config: Mapping[str, Any]) -> Built:
    if kind == "XLMRobertaTokenizer" or (not kind and file == "sentencepiece.bpe.model"):
        backend, names = _fairseq(model, config)
    elif kind in ("T5Tokenizer", "MT5Tokenizer"):
        backend, names = _t5(model, config)
    elif kind in ("", "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizer"):
        backend, names = _llama(model, config)
    else:
        raise ModelError(
            f"{file} belongs to a {kind}, whose ids differ from the file's.",
            "Save its tokenizer.json with the library it came from, and put it beside the weights.",
        )
    _add_listed(backend, config)
    return backend, names


def _fairseq(model: Pieces, config: Mapping[str, Any]) -> Built:
    """XLM-RoBERTa counts <s> <pad> </s> <unk>, then the pieces from the third on, and ends with <mask>."""
    names = _names(config, _ROBERTA)
    first = [names["bos_token"], names["pad_token"], names["eos_token"]]
    pieces = (
        *(Piece(text=name, kind=CONTROL) for name in first),
        Piece(text=names["unk_token"], kind=UNKNOWN),
        *model.pieces[3:],
    )
    backend = build_sentencepiece(replace(model, pieces=pieces, unk_id=3))
    backend.add_special_tokens([AddedToken(names["mask_token"], lstrip=True, normalized=False, special=True)])
    _frame(backend, "{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}", cls=first[0], sep=first[2])
    return backend, names


def _t5(model: Pieces, config: Mapping[str, Any]) -> Built:
    """T5 counts its sentinels down behind the pieces."""
    names = _names(config, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"})
    backend = build_sentencepiece(model)
    extra = config.get("extra_ids", _T5_EXTRA_IDS)
    if not isinstance(extra, int) or not 0 <= extra <= 100_000:
        raise ModelError(f"extra_ids is {extra!r}.", "Copy the model's own tokenizer_config.json.")
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra))]
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in sentinels])
    _frame(backend, "$A {sep}", "$A {sep} $B {sep}", sep=names["eos_token"])
    return backend, names


def _llama(model: Pieces, config: Mapping[str, Any]) -> Built:
    """The pieces as they are; a begin token in front unless the config says no."""
    control = {piece.text for piece in model.pieces if piece.kind == CONTROL}
    defaults = {"bos_token": next((n for n in ("<s>", "<bos>") if n in control), None),
                "eos_token": next((n for n in ("</s>", "<eos>") if n in control), None)}  # fmt: skip
    names = _names(config, {role: name for role, name in defaults.items() if name is not None})
    names["unk_token"] = model.pieces[model.unk_id].text
    if pad := token_name(config, "pad_token"):
        names["pad_token"] = pad
    backend = build_sentencepiece(model)
    if config.get("legacy") is False and model.add_dummy_prefix:  # a space before the first text only
        backend.normalizer = normalizer_for(replace(model, add_dummy_prefix=False))  # pyright: ignore[reportAttributeAccessIssue]
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)  # pyright: ignore[reportAttributeAccessIssue]
    begin = "{bos} " if config.get("add_bos_token", True) and "bos_token" in names else ""
    end = " {eos}" if config.get("add_eos_token", False) and "eos_token" in names else ""
    if begin or end:
        tokens = {"bos": names.get("bos_token", ""), "eos": names.get("eos_token", "")}
        _frame(backend, f"{begin}$A{end}", f"{begin}$A{end} {begin}$B{end}", **tokens)
    return backend, names


def _frame(backend: Tokenizer, single: str, pair: str, **tokens: str) -> None:
    """How special tokens stand around one text and around two; ``{name}`` stands for a token, all of type 0."""
    special: list[tuple[str, int]] = []
    for name, token in tokens.items():
        index = backend.token_to_id(token) if token else None
        if f"{{{name}}}" in single + pair:
            if index is None:
                raise ModelError(f"The tokenizer has no token {token!r}.", "Is the tokenizer from the same model?")
            special.append((name, index))
    strip = str.maketrans("", "", "{}")
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=single.translate(strip), pair=pair.translate(strip).replace("$B", "$B:0"), special_tokens=special
    )


def _add_listed(backend: Tokenizer, config: Mapping[str, Any]) -> None:
    """Tokens of ``added_tokens_decoder`` (id to token) behind the pieces; an id out of turn is refused."""
    listed: Any = config.get("added_tokens_decoder") or {}
    try:
        entries = sorted((int(index), entry["content"], bool(entry.get("special"))) for index, entry in listed.items())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            "added_tokens_decoder cannot be read.", "Copy the model's own tokenizer_config.json."
        ) from error
    for index, content, is_special in entries:
        token = AddedToken(content, special=is_special, normalized=False)
        (backend.add_special_tokens if is_special else backend.add_tokens)([token])
        found = backend.token_to_id(content)
        if found != index:
            raise ModelError(
                f"added_tokens_decoder gives {content!r} the id {index}, the vocabulary {found}.",
                "Are all files of one model?",
            )


# ---- Marian ----------------------------------------------------------------------------------------------------------


def has_marian(folder: Path) -> bool:
    """Whether the folder has one SentencePiece model per side and shared ids."""
    return all((folder / name).is_file() for name in ("source.spm", "target.spm", "vocab.json"))


Side = tuple[Tokenizer, frozenset[str]]
"""A tokenizer and those of its pieces that its side of the translation never writes."""


def build_marian(folder: Path, config: Mapping[str, Any]) -> tuple[Side, Side, dict[str, str]]:
    """The source side, the target side (each cuts with its own model, both share ids), and special tokens by role."""
    names = _names(config, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"})
    ids = _vocabulary(folder / "vocab.json")
    missing = sorted(set(names.values()) - ids.keys())
    if missing:
        raise ModelError(f"vocab.json has no {', '.join(missing)}.", "Are all files of one model?")
    by_id = sorted(ids, key=lambda token: ids[token])
    sides = (read_sentencepiece(folder / f"{side}.spm") for side in ("source", "target"))
    source, target = (_marian_side(model, by_id, names) for model in sides)
    return source, target, names


def _marian_side(model: Pieces, by_id: Sequence[str], names: Mapping[str, str]) -> Side:
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind not in (CONTROL, UNKNOWN)}
    special = {names["eos_token"], names["pad_token"]}
    lowest = min(scores.values(), default=0.0)
    pieces = tuple(
        Piece(
            text=text,
            score=scores.get(text, lowest),
            kind=UNKNOWN if text == names["unk_token"] else CONTROL if text in special else 1,
        )
        for text in by_id
    )
    backend = build_sentencepiece(replace(model, pieces=pieces, unk_id=by_id.index(names["unk_token"])))
    languages = [text for text in by_id if text.startswith(">>") and text.endswith("<<")]
    backend.add_tokens([AddedToken(text, normalized=False, rstrip=True) for text in languages])
    _frame(backend, "$A {eos}", "$A $B {eos}", eos=names["eos_token"])
    return backend, frozenset(by_id) - scores.keys() - set(languages)


# ---- vocab.json, merges.txt, vocab.txt -------------------------------------------------------------------------------


def _vocabulary(path: Path) -> dict[str, int]:
    """Token to id; ids must be 0, 1, 2, … without gaps."""
    ids = read_json(path)
    is_right = isinstance(ids, dict) and all(type(index) is int for index in ids.values())
    if not is_right or not ids or sorted(ids.values()) != list(range(len(ids))):
        raise ModelError(f"{path} does not give each token an id from 0 on.", "It may be damaged; fetch it again.")
    return ids


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8.", "It may be damaged; fetch it again.") from error


def _byte_level(folder: Path, kind: str, config: Mapping[str, Any]) -> Built:
    """GPT-2's layout, and RoBERTa's and BART's on top of it."""
    if kind == "CLIPTokenizer":
        raise ModelError("The folder has CLIP's vocabulary without tokenizer.json.", "Save its tokenizer.json first.")
    ids = _vocabulary(folder / "vocab.json")
    lines = _text(folder / "merges.txt").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(merge) != 2 for merge in merges):
        raise ModelError(
            f"{folder / 'merges.txt'} has a line that is not two pieces.", "It may be damaged; fetch it again."
        )
    backend = _guarded(lambda: models.BPE(ids, cast("list[tuple[str, str]]", merges)), folder / "merges.txt")
    space = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    if kind.startswith(("Roberta", "Bart")) or (not kind and {"<s>", "</s>", "<mask>"} <= ids.keys()):
        names = _names(config, _ROBERTA)
        _add_special(backend, names)
        sep, cls = ((names[role], ids.get(names[role], 0)) for role in ("sep_token", "cls_token"))
        backend.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=space)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        end = "<|endoftext|>"
        names = _names(config, dict.fromkeys(("bos_token", "eos_token", "unk_token"), end))
        _add_special(backend, names)
        backend.post_processor = processors.ByteLevel(trim_offsets=False)  # pyright: ignore[reportAttributeAccessIssue]
    _add_listed(backend, config)
    return backend, names


def _wordpiece(path: Path, config: Mapping[str, Any]) -> Built:
    """BERT's vocab.txt: one token a line, its number is its id."""
    tokens = _text(path).split("\n")
    while tokens and not tokens[-1]:
        tokens.pop()
    tokens = [token.removesuffix("\r") for token in tokens]
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise ModelError(f"{path} has the same token twice.", "It may be damaged; fetch it again.")
    names = _names(config, _BERT)
    backend = _guarded(lambda: models.WordPiece(ids, unk_token=names["unk_token"]), path)
    lower = bool(config.get("do_lower_case", True))
    backend.normalizer = normalizers.BertNormalizer(  # pyright: ignore[reportAttributeAccessIssue]
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=lower,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]
    _add_special(backend, names)
    if backend.get_vocab_size() != len(ids):
        missing = sorted(set(names.values()) - ids.keys())
        raise ModelError(f"{path} has no {', '.join(missing)}.", "Is it a BERT vocabulary, from the same model?")
    cls, sep = names["cls_token"], names["sep_token"]
    backend.post_processor = processors.BertProcessing((sep, ids[sep]), (cls, ids[cls]))  # pyright: ignore[reportAttributeAccessIssue]
    return backend, names


def _guarded(make: Callable[[], models.Model], path: Path) -> Tokenizer:
    try:
        return Tokenizer(make())
    except Exception as error:  # the library raises bare Exception for whatever it does not like
        raise ModelError(f"{path} cannot be used: {error}", "It may be damaged; fetch it again.") from error


def _add_special(backend: Tokenizer, names: Mapping[str, str]) -> None:
    backend.add_special_tokens(
        [
            AddedToken(name, special=True, normalized=False, lstrip=role == "mask_token" and name == "<mask>")
            for role, name in sorted(names.items())
        ]
    )
