"""Gemma 2: norms on both sides of each branch, capped scores and logits, a window in every other layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from danlu.models.archs import _gguf as words
from danlu.models.archs._decoder import (
    Decoder,
    decoder_weights,
    read_attention,
    read_decoder,
    read_feedforward,
    read_layer_types,
)
from danlu.models.archs._keys import Keys
from danlu.models.network import ModelConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source

SANDWICH = {
    "mixer.input_norm": "input_layernorm",
    "mixer.output_norm": "post_attention_layernorm",
    "feedforward.input_norm": "pre_feedforward_layernorm",
    "feedforward.output_norm": "post_feedforward_layernorm",
}
"""Norms of a block: ours → theirs."""


class Gemma2(Decoder):
    """Maps Gemma 2 checkpoints onto the core."""

    model_type = "gemma2"
    gguf = "gemma2"
    gguf_words: ClassVar[Mapping[str, str]] = {
        **words.SHARED,
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    }
    large = 46
    """Blocks of the one size whose scores llama.cpp scales by the width, not by the head."""

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys({**_ASSUMED, **theirs})
        count = keys.integer("num_hidden_layers")
        window = keys.integer("sliding_window", 4096)
        keys.fixed(sliding_window_size=window)
        regular = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(count)]
        own = gemma_attention(keys)
        kinds = {near: read_attention(keys, window=window if near else None, **own) for near in (True, False)}
        attentions = [kinds[near] for near in read_layer_types(keys, regular)]
        return read_gemma(keys, attentions)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Four norms a block."""
        return decoder_weights(config, norms=SANDWICH)

    def config_from_gguf(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """How scores are scaled is not in the file: llama.cpp knows it by the size of the model."""
        theirs = super().config_from_gguf(metadata, tensors)
        head_width = theirs.get("head_dim", 256)
        if theirs["num_hidden_layers"] == self.large:
            head_width = theirs["hidden_size"] // theirs["num_attention_heads"]
        return {**theirs, "query_pre_attn_scalar": head_width}


_ASSUMED = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
"""What a config that does not speak of caps means; null is none."""


def gemma_attention(keys: Keys) -> dict[str, Any]:
    """What the attentions of Gemma 2 and 3 have beyond Llama."""
    has_bias = keys.flag("attention_bias", False)
    return {
        "head_width": 256,
        "bias": has_bias,
        "out_bias": has_bias,
        "scale": keys.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "softcap": keys.number("attn_logit_softcapping") if keys.has("attn_logit_softcapping") else None,
    }


def read_gemma(keys: Keys, attentions: list[Any]) -> ModelConfig:
    """The rest of a Gemma: embeddings times √D, norms that stand on both sides, one table of tokens."""
    keys.fixed(quantization_config=None, use_bidirectional_attention=False)
    keys.harmless("hidden_act", "cache_implementation")
    return read_decoder(
        keys,
        attentions,
        read_feedforward(keys, key="hidden_activation", activation="gelu_pytorch_tanh"),
        norm=NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-6), unit_offset=True),
        norm_at=("input", "output"),
        scale=math.sqrt(keys.integer("hidden_size")),
        softcap=keys.number("final_logit_softcapping") if keys.has("final_logit_softcapping") else None,
        tied=True,
    )


plugin = Gemma2()
