"""OLMo 2: norms at the output of each branch, queries and keys normed over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs._decoder import Decoder, decoder_weights, read_attention, read_decoder, read_feedforward
from danlu.models.archs._keys import Keys
from danlu.models.network import ModelConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source

_NORMS = {"mixer.output_norm": "post_attention_layernorm", "feedforward.output_norm": "post_feedforward_layernorm"}


class Olmo2(Decoder):
    """Maps OLMo 2 checkpoints onto the core."""

    model_type = "olmo2"
    gguf = "olmo2"

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(quantization_config=None)
        has_bias = keys.flag("attention_bias", False)
        attention = read_attention(keys, bias=has_bias, out_bias=has_bias, qk_norm="all")
        return read_decoder(
            keys,
            [attention] * keys.integer("num_hidden_layers"),
            read_feedforward(keys),
            norm=NormConfig(kind="rms", epsilon=keys.number("rms_norm_eps", 1e-5)),
            norm_at=("output",),
        )

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """No norm stands before a branch."""
        return decoder_weights(config, norms=_NORMS)


plugin = Olmo2()
