"""Phi-3, Phi-3.5 and Phi-4: Llama whose checkpoints keep projections fused; long contexts by longrope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from danlu.models.archs import _gguf as words
from danlu.models.archs._decoder import (
    Decoder,
    decoder_weights,
    read_attention,
    read_decoder,
    read_feedforward,
)
from danlu.models.archs._keys import Keys
from danlu.models.network import ModelConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source


class Phi3(Decoder):
    """Maps Phi-3 checkpoints onto the core."""

    model_type = "phi3"
    gguf = "phi3"
    gguf_words: ClassVar[Mapping[str, str]] = {**words.SHARED, "attention.sliding_window": "sliding_window"}

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(quantization_config=None, attention_bias=False, mlp_bias=False)
        keys.harmless("auto_map", "embd_pdrop")  # code that is never run; a number that theirs never reads
        keys.harmless("original_max_position_embeddings")  # newer ones have it even where nothing is stretched
        window = keys.integer("sliding_window") if keys.has("sliding_window") else None
        return read_decoder(
            keys,
            [read_attention(keys, window=window)] * keys.integer("num_hidden_layers"),
            read_feedforward(keys),
            norm=NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-5)),
            dropout=keys.number("resid_pdrop", 0.0),
        )

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Their projections are fused as ours are."""
        return decoder_weights(config, fused=True)


plugin = Phi3()
