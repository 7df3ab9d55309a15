"""The numbers that define a stack of blocks. Knows no family names: archs/ map theirs onto this."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.core.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """One decoder-style stack: grouped-query attention, rotary positions, RMSNorm, gated feed-forward."""

    vocabulary_size: int
    """V: rows of the token embedding."""
    width: int
    """D: size of the residual stream."""
    num_layers: int
    """Blocks in the stack."""
    num_heads: int
    """H: query heads."""
    num_kv_heads: int
    """K: key/value heads; H must be a multiple."""
    head_width: int
    """E: size of one head."""
    feedforward_width: int
    """F: inner size of the gated feed-forward."""
    context_length: int
    """Most tokens a row may have."""
    norm_epsilon: float = 1e-5
    """Added inside the root of RMSNorm."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies (theta)."""
    tied_head: bool = True
    """Whether the head uses the embedding's weights."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise ModelError(f"Model config: {name} is {value}.", "It must be positive; is config.json whole?")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"Model config: {self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads.",
                "The first must be a multiple of the second.",
            )
        if self.head_width % 2:
            raise ModelError(f"Model config: head width {self.head_width} is odd.", "Rotary positions need it even.")
