"""Qwen2 and Qwen2.5: Llama whose queries, keys and values shift; upper layers may look through a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs._decoder import Decoder, read_attention, read_decoder, read_feedforward, read_layer_types
from danlu.models.archs._keys import Keys
from danlu.models.network import ModelConfig


class Qwen2(Decoder):
    """Maps Qwen2 checkpoints onto the core."""

    model_type = "qwen2"
    gguf = "qwen2"

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(quantization_config=None)
        attentions = [read_attention(keys, bias=True, window=window) for window in read_windows(keys)]
        return read_decoder(keys, attentions, read_feedforward(keys))


def read_windows(keys: Keys) -> list[int | None]:
    """The window of each layer of a Qwen model, where it is switched on at all."""
    count, first = keys.integer("num_hidden_layers"), keys.integer("max_window_layers", 28)
    window = keys.integer("sliding_window", 4096)
    is_used = keys.flag("use_sliding_window", False)
    regular = ["sliding_attention" if is_used and layer >= first else "full_attention" for layer in range(count)]
    return [window if is_used and near else None for near in read_layer_types(keys, regular)]


plugin = Qwen2()
