"""Tokens in: ids become embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenEmbedding(nn.Module):
    """A row of weights for each token id."""

    def __init__(self, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary_size, width))

    def forward(self, ids: Tensor) -> Tensor:
        """(N,) → (N, D)."""
        return nn.functional.embedding(ids, self.weight)


plugin = TokenEmbedding
