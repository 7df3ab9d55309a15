"""Rows of an image and a text as a file and ids: {image, text}. Knows no training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.core.errors import ModelError, TrainError
from danlu.models.model import Model
from danlu.models.pair import PairNetwork
from danlu.train.texts import Encoded


@dataclass(frozen=True)
class Captioned:
    """One row to learn."""

    image: Path
    """A file."""
    ids: tuple[int, ...]
    """Its text, padded where the model wants that."""


def encode_rows(
    rows: Iterable[Mapping[str, Any]], model: Model, max_row_tokens: int | None = None, folder: Path = Path()
) -> Encoded[Captioned]:
    """Rows as files and ids; images are named from ``folder``.

    Left out: rows without a text (``no_text``), without an image (``no_image``), or whose image is no file
    (``missing_image``). Raises TrainError when no row is left, ModelError when texts cannot be padded.
    """
    config, encoded = pair_network(model).config, Encoded[Captioned]()
    tokenizer, context = model.chat.tokenizer, config.text.context_length
    limit = min(max_row_tokens or context, config.text_length or context, context)
    pad = tokenizer.pad_id
    if config.text_length is not None and pad is None:
        raise ModelError("The tokenizer has no padding token.", "Name its pad_token in tokenizer_config.json.")
    for row in rows:
        text, image = row.get("text"), row.get("image")
        if not isinstance(text, str) or not text.strip():
            encoded.left_out["no_text"] += 1
        elif not isinstance(image, str) or not image:
            encoded.left_out["no_image"] += 1
        elif not (folder / image).is_file():
            encoded.left_out["missing_image"] += 1
        else:
            ids, _ = tokenizer.encode_with_specials(text)
            if len(ids) > limit:
                encoded.truncated += 1
                ids, _ = tokenizer.encode_with_specials(text, max_tokens=limit)
            padding = [] if config.text_length is None else [pad or 0] * (config.text_length - len(ids))
            encoded.items.append(Captioned(folder / image, (*ids, *padding)))
    return encoded.refuse_none("image (a file) and text")


def pair_network(model: Model) -> PairNetwork:
    """The model's network; raises TrainError when it is of another kind."""
    network: Any = model.network
    if not isinstance(network, PairNetwork):
        raise TrainError("This model does not read images and texts.", "Use a model such as CLIP or SigLIP.")
    return network


def same_rows(items: Sequence[Captioned]) -> Tensor:
    """(B, B) bool: other rows with the same text, or the same image."""
    texts = [item.ids for item in items]
    files = [item.image for item in items]
    same = [[a == b or c == d for b, d in zip(texts, files, strict=True)] for a, c in zip(texts, files, strict=True)]
    return torch.tensor(same) & ~torch.eye(len(items), dtype=torch.bool)
