"""Mistral: Llama with a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from danlu.models.archs._decoder import read_attention, read_decoder, read_feedforward
from danlu.models.archs._keys import Keys
from danlu.models.archs.llama import Llama
from danlu.models.network import ModelConfig

_WINDOW = 4096
"""What a config that does not speak of a window means."""


class Mistral(Llama):
    """Maps Mistral checkpoints onto the core; its GGUF files say llama."""

    model_type = "mistral"

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys({"sliding_window": _WINDOW, **theirs})
        keys.fixed(quantization_config=None)
        window = keys.integer("sliding_window") if keys.has("sliding_window") else None
        attention = read_attention(keys, window=window)
        return read_decoder(keys, [attention] * keys.integer("num_hidden_layers"), read_feedforward(keys))

    def config_from_gguf(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """llama.cpp knows no window in this family."""
        return {**super().config_from_gguf(metadata, tensors), "sliding_window": None}


plugin = Mistral()
