"""The block and the stack. No task and no family name appears here."""

from __future__ import annotations

from torch import Tensor, nn

from danlu.models.attention import Attend, Attention
from danlu.models.config import CoreConfig
from danlu.models.feedforward import GatedFeedForward
from danlu.models.norms import RMSNorm
from danlu.models.positions import Rotary


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    def __init__(self, config: CoreConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config, layer)
        self.feedforward_norm = RMSNorm(config.width, config.norm_epsilon)
        self.feedforward = GatedFeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """(N, D) → (N, D)."""
        x = x + self.attention(self.attention_norm(x), cos, sin, attend)
        return x + self.feedforward(self.feedforward_norm(x))


class Stack(nn.Module):
    """Blocks in a row and the final norm: embeddings in, hidden states out."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__()
        self.rotary = Rotary(config.head_width, config.context_length, config.rope_base)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """x: (N, D), positions: (N,) → (N, D)."""
        cos, sin = self.rotary(positions, x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin, attend)
        return self.norm(x)
