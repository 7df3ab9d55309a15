"""Gemma 3, text alone: Gemma 2 with normed queries and keys, five windowed layers to one full one, no caps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from danlu.core.errors import ModelError
from danlu.models.archs import _gguf as words
from danlu.models.archs._decoder import read_attention, read_layer_types
from danlu.models.archs._keys import Keys
from danlu.models.archs._rope import read_rope
from danlu.models.archs.gemma2 import Gemma2, gemma_attention, read_gemma
from danlu.models.network import ModelConfig
from danlu.models.positions import RotaryConfig


class Gemma3Text(Gemma2):
    """Maps Gemma 3 text checkpoints onto the core."""

    model_type = "gemma3_text"
    gguf = "gemma3"
    gguf_words: ClassVar[Mapping[str, str]] = {
        **words.SHARED,
        "attention.sliding_window": "sliding_window",
        "final_logit_softcapping": "final_logit_softcapping",
        "rope.freq_base_swa": "rope_local_base_freq",
    }
    large = 62

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        count, window = keys.integer("num_hidden_layers"), keys.integer("sliding_window", 4096)
        period = keys.integer("sliding_window_pattern", keys.get("_sliding_window_pattern", 6))
        regular = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(count)]
        own = {**gemma_attention(keys), "qk_norm": "head"}
        near, full = _rotaries(keys, theirs)
        kinds = {
            True: read_attention(keys, window=window, rotary=near, **own),
            False: read_attention(keys, rotary=full, **own),
        }
        return read_gemma(keys, [kinds[is_near] for is_near in read_layer_types(keys, regular)])


def _rotaries(keys: Keys, theirs: Mapping[str, Any]) -> tuple[RotaryConfig, RotaryConfig]:
    """Positions of windowed layers and of full ones: a kind of their own each; only the full ones are stretched."""
    head_width = keys.integer("head_dim", 256)
    rest = {key: value for key, value in theirs.items() if key not in ("rope_theta", "rope_scaling", "rope_parameters")}
    both = keys.get("rope_parameters")
    old = {"rope_theta": keys.number("rope_theta", 1e6), "rope_scaling": keys.get("rope_scaling")}
    local = {"rope_theta": keys.number("rope_local_base_freq", 1e4)}
    if both is not None:
        if missing := {"sliding_attention", "full_attention"} - set(both):
            raise ModelError(f"config.json: rope_parameters lacks '{min(missing)}'.", "Name both kinds of layers.")
        local, old = ({"rope_parameters": both[kind]} for kind in ("sliding_attention", "full_attention"))
    near, full = (read_rope(Keys({**rest, **own}), head_width) for own in (local, old))
    return near, full


plugin = Gemma3Text()
