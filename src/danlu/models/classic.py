"""The blocks of "Attention is all you need" (Vaswani et al. 2017), written to be read: for people who learn.

Rows side by side, (B, T, D), one line of the paper a line of code. Models of danlu are built from block.py, which packs
rows and fuses products; what is computed is the same. Knows nothing of families, files and caches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Fixed positions (section 3.5): sines in even channels, cosines in odd ones, fp32 (T, D).

    With an odd width the last frequency has a sine only.
    """
    places = torch.arange(length).unsqueeze(1)  # (T, 1)
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(places * frequencies)
    table[:, 1::2] = torch.cos(places * frequencies[: width // 2])
    return table


class MultiHeadAttention(nn.Module):
    """softmax(Q Kᵀ / √E) V in several heads (section 3.2.2). Queries, keys and values may come from other places."""

    def __init__(self, width: int, num_heads: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise ModelError(
                f"A width of {width} cannot be cut into {num_heads} heads.",
                "The width must be a multiple of the heads.",
            )
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """query: (B, T, D); key, value: (B, S, D), left out for self-attention → mixed (B, T, D), weights (B, H, T, S).

        ``mask`` is bool, true where a query may look: (T, S) for all rows, or (B, T, S); T may be 1, as for padding. A
        query that may look nowhere mixes zeros. The softmax is taken in fp32, whatever the number type.
        """
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])  # (B, H, T, S)
        if mask is not None:
            scores = scores.masked_fill(~_by_row(mask, key.shape[1]), -math.inf)
        weights = torch.softmax(scores, dim=-1)
        if mask is not None:
            weights = weights.nan_to_num(0.0)  # a row of -inf has no softmax
        weights = weights.to(v.dtype)
        mixed = self.dropout(weights) @ v  # (B, H, T, E)
        return self.out(mixed.transpose(1, 2).flatten(2)), weights

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, H, T, E)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + feedforward(x)): norms after the sums, as in the paper (section 3.1)."""

    def __init__(self, width: int, num_heads: int, feedforward_width: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, num_heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, feedforward_width)
        self.down = nn.Linear(feedforward_width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) → (B, T, D); ``mask`` as in MultiHeadAttention."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask)[0]))
        inner = self.dropout(torch.relu(self.up(x)))
        return self.feedforward_norm(x + self.dropout(self.down(inner)))


class Encoder(nn.Module):
    """Token embeddings · √D + positions, then layers (sections 3.1 and 3.4)."""

    def __init__(
        self,
        vocabulary_size: int,
        width: int,
        *,
        num_layers: int = 6,
        num_heads: int = 8,
        feedforward_width: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        nn.init.normal_(self.tokens.weight, std=width**-0.5)
        inner = 4 * width if feedforward_width is None else feedforward_width
        self.layers = nn.ModuleList(EncoderLayer(width, num_heads, inner, dropout=dropout) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids: (B, T) → hidden states (B, T, D); ``mask`` as in MultiHeadAttention."""
        width = self.tokens.embedding_dim
        x = self.tokens(ids) * math.sqrt(width)
        x = self.dropout(x + sinusoidal_positions(ids.shape[1], width).to(x))
        for layer in self.layers:
            x = layer(x, mask)
        return x


def causal_mask(length: int) -> Tensor:
    """True where a token may look when it must not see what follows it: bool (T, T)."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def _by_row(mask: Tensor, span: int) -> Tensor:
    """A mask with a place for heads: (1 or B, 1, T, S)."""
    if mask.dtype != torch.bool:
        raise ModelError(f"A mask of {mask.dtype} was given.", "Give booleans: true where a query may look.")
    if mask.dim() not in (2, 3) or mask.shape[-1] != span:
        raise ModelError(f"A mask of shape {tuple(mask.shape)} does not fit {span} keys.", "Give (T, S) or (B, T, S).")
    return mask.unsqueeze(-3)
