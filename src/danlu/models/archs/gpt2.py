"""GPT-2: learnt positions, LayerNorm, a plain feed-forward, linears stored (in, out)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from danlu.models.archs._decoder import Decoder, decoder_head, head_weights
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.heads.tag import TagConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source, rows, turned

_LINEARS = {"mixer.inner.qkv": "attn.c_attn", "mixer.inner.out": "attn.c_proj",
            "feedforward.inner.up": "mlp.c_fc", "feedforward.inner.down": "mlp.c_proj"}  # fmt: skip
_NORMS = {"mixer.input_norm": "ln_1", "feedforward.input_norm": "ln_2"}


class GPT2(Decoder):
    """Maps GPT-2 checkpoints onto the core."""

    model_type = "gpt2"
    prefix = "transformer."
    ignored = (r"(.*\.)?attn\.(bias|masked_bias)",)
    gguf = "gpt2"
    gguf_words: ClassVar[Mapping[str, str]] = {
        "block_count": "n_layer",
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    }

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(quantization_config=None, add_cross_attention=False)
        keys.harmless("n_ctx", "reorder_and_upcast_attn")  # the same as n_positions; how half precision is rounded
        keys.harmless(*(key for key in theirs if key.startswith("summary_")))  # a head that is not supported
        width, places = keys.integer("n_embd"), keys.integer("n_positions")
        dropout = keys.number("resid_pdrop", 0.1)
        stack = StackConfig(
            width=width,
            layers=_layers(keys, width),
            norm=NormConfig(kind="layer", epsilon=keys.number("layer_norm_epsilon", 1e-5), bias=True),
            context_length=places,
            dropout=dropout,
        )
        tokens = TokensConfig(
            vocabulary_size=keys.integer("vocab_size"),
            width=width,
            positions="learned",
            num_positions=places,
            dropout=keys.number("embd_pdrop", 0.1),
        )
        head = decoder_head(keys, tied=True)
        keys.done()
        return ModelConfig(tower=TowerConfig(input=tokens, stack=stack), head=head)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Linears are turned, and queries, keys and values are fused as ours are."""
        names = {
            "embedding.tokens.weight": rows("transformer.wte.weight"),
            "embedding.positions": rows("transformer.wpe.weight"),
            "stack.norm.weight": rows("transformer.ln_f.weight"),
            "stack.norm.bias": rows("transformer.ln_f.bias"),
        }
        for layer in range(config.num_layers):
            ours, theirs = f"stack.blocks.{layer}", f"transformer.h.{layer}"
            for mine, name in _LINEARS.items():
                names[f"{ours}.{mine}.weight"] = turned(f"{theirs}.{name}.weight")
                names[f"{ours}.{mine}.bias"] = rows(f"{theirs}.{name}.bias")
            for mine, name in _NORMS.items():
                names |= {f"{ours}.{mine}.{part}": rows(f"{theirs}.{name}.{part}") for part in ("weight", "bias")}
        return names | head_weights(config, score="classifier" if isinstance(config.head, TagConfig) else "score")

    def weight_from_gguf(self, name: str, weight: Tensor, config: ModelConfig) -> Tensor:
        """GGUF keeps linears as everybody else does."""
        return weight.t() if ".c_" in name and name.endswith(".weight") else weight

    def weight_to_gguf(self, name: str, weight: Tensor, config: ModelConfig) -> Tensor:
        """The inverse is the same."""
        return self.weight_from_gguf(name, weight, config)


def _layers(keys: Keys, width: int) -> tuple[LayerConfig, ...]:
    heads = keys.integer("n_head")
    by_layer = keys.flag("scale_attn_by_inverse_layer_idx", False)
    scale = (width // heads) ** -0.5 if keys.flag("scale_attn_weights", True) else 1.0
    dropout = keys.number("attn_pdrop", 0.1)
    feedforward = FeedForwardConfig(
        width=keys.integer("n_inner", 4 * width),
        activation=keys.choice("activation_function", ACTIVATIONS, "gelu_new"),
        gated=False,
        bias=True,
    )
    layers: dict[float, LayerConfig] = {}
    scales = [scale / (layer + 1) if by_layer else scale for layer in range(keys.integer("n_layer"))]
    for one in dict.fromkeys(scales):
        attention = AttentionConfig(
            num_heads=heads, num_kv_heads=heads, head_width=width // heads, scale=one, bias=True, out_bias=True,
            dropout=dropout,
        )  # fmt: skip
        layers[one] = LayerConfig(mixer=attention, feedforward=feedforward)
    return tuple(layers[one] for one in scales)


plugin = GPT2()
