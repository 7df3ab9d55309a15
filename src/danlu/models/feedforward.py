"""Feed-forward layers."""

from __future__ import annotations

from torch import Tensor, nn

from danlu.models.config import CoreConfig


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x)); gate and up are one linear, so x is read once."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.feedforward_width, bias=False)
        self.down = nn.Linear(config.feedforward_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, D)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (N, F) each
        return self.down(nn.functional.silu(gate) * up)
