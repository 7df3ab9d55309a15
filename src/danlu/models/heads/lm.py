"""The language-model head and the decoder it makes with tokens and a stack."""

from __future__ import annotations

from torch import Tensor, nn

from danlu.models.attention import Attend
from danlu.models.block import Stack
from danlu.models.config import CoreConfig
from danlu.models.inputs.tokens import TokenEmbedding


class Decoder(nn.Module):
    """Tokens → stack → next-token logits. A tied head reads the embedding's own weights."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config.vocabulary_size, config.width)
        self.stack = Stack(config)
        self.head = nn.Linear(config.width, config.vocabulary_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """ids, positions: (N,) → hidden states (N, D)."""
        return self.stack(self.embedding(ids), positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) → (M, V). Give it only the positions whose prediction is wanted: the head is the largest product."""
        return self.head(hidden)


plugin = Decoder
