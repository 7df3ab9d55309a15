"""Qwen3: Qwen2 without shifts, with queries and keys normed head by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs._decoder import Decoder, read_attention, read_decoder, read_feedforward
from danlu.models.archs._keys import Keys
from danlu.models.archs.qwen2 import read_windows
from danlu.models.network import ModelConfig

_HEAD_WIDTH = 128
"""What a config without head_dim means."""


class Qwen3(Decoder):
    """Maps Qwen3 checkpoints onto the core."""

    model_type = "qwen3"
    gguf = "qwen3"

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(quantization_config=None)
        has_bias = keys.flag("attention_bias", False)
        own = {"head_width": _HEAD_WIDTH, "qk_norm": "head", "bias": has_bias, "out_bias": has_bias}
        attentions = [read_attention(keys, window=window, **own) for window in read_windows(keys)]
        return read_decoder(keys, attentions, read_feedforward(keys))


plugin = Qwen3()
