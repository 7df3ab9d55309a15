"""What objectives need to know of a vocabulary, as a flag for each id. Reads a tokenizer's pieces, never a text."""

from __future__ import annotations

import re

import numpy as np

from danlu.core.errors import ConfigError
from danlu.models.model import Model
from danlu.text.tokenizer import TextTokenizer
from danlu.train.objectives.masked import Flags

_JOINED = re.compile(r"[^\W_㐀-䶿一-鿿豈-﫿]|\ufffd")
"""What a piece that goes on a word begins with: a letter or digit that is not Han, or half a character."""
_SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’」』）)\]]*\s*$|\n$")


def is_special(tokenizer: TextTokenizer, vocabulary_size: int) -> Flags:
    """Ids that are no text: special tokens, and what a model has beyond its tokenizer."""
    flags = np.zeros(vocabulary_size, bool)
    flags[tokenizer.vocabulary_size :] = True
    flags[[index for index in tokenizer.special_ids.values() if index < vocabulary_size]] = True
    return flags


def begins_word(tokenizer: TextTokenizer, vocabulary_size: int) -> Flags:
    """Pieces that begin a word. Every Han character does; segmentation into longer Chinese words is not known here."""
    backend = tokenizer.backend
    flags = np.ones(vocabulary_size, bool)
    by_mark = type(backend.model).__name__ == "WordPiece"
    for index in range(min(vocabulary_size, tokenizer.vocabulary_size)):
        piece = backend.id_to_token(index) or ""
        if by_mark:
            flags[index] = not piece.startswith("##")
        elif not piece.startswith(("▁", "Ġ")):
            flags[index] = _JOINED.match(tokenizer.decode([index])) is None
    return flags


def ends_sentence(tokenizer: TextTokenizer, vocabulary_size: int) -> Flags:
    """Pieces after which a sentence is over: full stops of both languages, and line breaks."""
    flags = np.zeros(vocabulary_size, bool)
    for index in range(min(vocabulary_size, tokenizer.vocabulary_size)):
        flags[index] = _SENTENCE_END.search(tokenizer.decode([index])) is not None
    return flags


def sentinels(model: Model) -> tuple[int, ...]:
    """Ids that stand for missing spans, the first span's first.

    Those the tokenizer calls <extra_id_0>, <extra_id_1>, …; without them the ids the model has beyond its tokenizer,
    from the last one down, as T5 numbers them. ConfigError when there are none.
    """
    tokenizer = model.chat.tokenizer
    named = sorted(
        (int(name[10:-1]), index)
        for name, index in tokenizer.special_ids.items()
        if re.fullmatch(r"<extra_id_\d+>", name)
    )
    found = [index for _, index in named]
    spare = range(model.config.vocabulary_size - 1, tokenizer.vocabulary_size - 1, -1)
    if not found and not spare:
        raise ConfigError(
            f"The model has {model.config.vocabulary_size} ids and the tokenizer uses all: none can stand for a span.",
            "Make the model with spare_ids: 100.",
        )
    return tuple(found or spare)
