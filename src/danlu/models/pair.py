"""Two networks that put what they read into one space, and a head that compares: image and text, for example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.models.heads.pair import PairHeadConfig
from danlu.models.network import ModelConfig, Network


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Two networks whose heads give vectors of one size, and how these are compared."""

    image: ModelConfig
    """Reads images."""
    text: ModelConfig
    """Reads texts."""
    head: PairHeadConfig
    """Compares them."""
    text_length: int | None = None
    """Texts are padded to this many tokens, and padding is read like any token (SigLIP); None for no padding."""

    def make(self) -> PairNetwork:
        """The model, weights not set."""
        return PairNetwork(self)


class PairNetwork(nn.Module):
    """Images and texts in, vectors of length 1 and logits out."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.config = config
        self.image = config.image.make()
        self.text = config.text.make()
        self.head = config.head.make()

    def tie(self) -> None:
        """Make layers that share weights share them (again, after weights were put in)."""
        self.image.tie()
        self.text.tie()

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, C, height, width) → (B, P)."""
        return read_images(self.image, images)

    def embed_texts(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Rows of ``lengths`` laid end to end, ids (N,) → (B, P)."""
        assert self.text.head is not None
        return self.text.head(self.text.rows(ids, lengths), lengths)

    def forward(self, images: Tensor, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Logits of each image with each text: (images, texts)."""
        return self.head(self.embed_images(images), self.embed_texts(ids, lengths))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.image.device


def read_images(network: Network, images: Tensor) -> Tensor:
    """What a network's head makes of images (B, C, height, width): (B, …); without a head hidden states (N, D)."""
    lengths = network.embedding.lengths(images)  # pyright: ignore
    hidden = network.rows(images, lengths)
    return hidden if network.head is None else network.head(hidden, lengths)


def pad_text(ids: list[int], config: PairConfig, pad_id: int | None) -> list[int]:
    """A text as the text tower reads it; raises ModelError when it needs padding and there is none."""
    if config.text_length is None:
        return ids
    if pad_id is None:
        raise ModelError("The tokenizer has no padding token.", "Name its pad_token in tokenizer_config.json.")
    return ids + [pad_id] * (config.text_length - len(ids))
