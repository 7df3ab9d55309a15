"""What vision transformers and the towers of image-text pairs have in common: pre-norm blocks, and sizes of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.attention import AttentionConfig
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.inputs.patches import PatchesConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import ModelConfig
from danlu.models.norms import NormConfig
from danlu.models.weights import Source, rows

TOWERS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")
"""Keys of a pair's config.json that ``tower_keys`` reads."""

CLIP_BLOCK = {
    "mixer.input_norm": ("layer_norm1",),
    "mixer.inner.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mixer.inner.out": ("self_attn.out_proj",),
    "feedforward.input_norm": ("layer_norm2",),
    "feedforward.inner.up": ("mlp.fc1",),
    "feedforward.inner.down": ("mlp.fc2",),
}
"""Our layers of a block → theirs in the towers of CLIP and SigLIP."""

_GENERATION = (
    "add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dropout", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "is_decoder", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_scores", "prefix", "remove_invalid_values", "repetition_penalty",
    "suppress_tokens", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "top_k", "top_p",
    "typical_p",
)  # fmt: skip
"""What old files of whole models repeat for each tower though no tower reads it."""


def lone_tower_keys(theirs: Mapping[str, Any]) -> tuple[Keys, int | None]:
    """The config of a tower that stands alone, and the size its projection makes when it has one."""
    keys = Keys(theirs)
    keys.harmless(*_GENERATION)
    keys.fixed(pruned_heads={})
    architecture = str((keys.get("architectures") or [""])[0])
    if architecture.endswith("WithProjection"):
        return keys, keys.integer("projection_dim", 512)
    if keys.head("Model") != "Model":
        raise ModelError(f"config.json: {architecture} is not supported.", "Known: …Model, …ModelWithProjection.")
    return keys, None


def tower_keys(theirs: Mapping[str, Any], name: str) -> Keys:
    """The config of one tower of a pair: ``text_config`` or ``vision_config``, replaced by the older …_config_dict."""
    inner = theirs.get(f"{name}_dict") or theirs.get(name) or {}
    if not isinstance(inner, Mapping):
        raise ModelError(f"config.json: {name} is {inner!r}.", "It must be an object.")
    keys = Keys(inner, where=f"config.json, {name}")
    keys.harmless(*_GENERATION)
    keys.fixed(pruned_heads={})
    return keys


def read_size(keys: Keys, key: str, default: int) -> tuple[int, int]:
    """A number of pixels, or height and width."""
    size = keys.get(key, default)
    whole = [size, size] if isinstance(size, int) else size
    if not isinstance(whole, list | tuple) or len(whole) != 2 or not all(isinstance(side, int) for side in whole):
        raise ModelError(f"config.json: {key} is {size!r}.", "It must be a whole number, or height and width.")
    return whole[0], whole[1]


def prenorm_stack(
    keys: Keys,
    *,
    context_length: int,
    causal: bool = False,
    activation: str = "gelu",
    epsilon: float = 1e-5,
    sizes: tuple[int, int, int, int] = (768, 12, 12, 3072),
    attention_dropout: str = "attention_dropout",
    qkv_bias: bool = True,
    dropout: float = 0.0,
) -> StackConfig:
    """Blocks with norms at their inputs and one at the end; ``sizes`` are the family's own width, layers, heads, F."""
    width, heads = keys.integer("hidden_size", sizes[0]), keys.integer("num_attention_heads", sizes[2])
    if width % heads:
        raise ModelError(
            f"Model config: {heads} heads cannot share a width of {width}.", "The second must be a multiple."
        )
    layer = LayerConfig(
        mixer=AttentionConfig(
            num_heads=heads,
            num_kv_heads=heads,
            head_width=width // heads,
            causal=causal,
            bias=qkv_bias,
            out_bias=True,
            dropout=keys.number(attention_dropout, 0.0),
        ),
        feedforward=FeedForwardConfig(
            width=keys.integer("intermediate_size", sizes[3]),
            activation=keys.choice("hidden_act", ACTIVATIONS, activation),
            gated=False,
            bias=True,
        ),
    )
    return StackConfig(
        width=width,
        layers=(layer,) * keys.integer("num_hidden_layers", sizes[1]),
        norm=NormConfig(kind="layer", epsilon=keys.number("layer_norm_eps", epsilon), bias=True),
        context_length=context_length,
        dropout=dropout,
    )


def block_weights(
    ours: str, theirs: str, stack: StackConfig, block: Mapping[str, tuple[str, ...]] = CLIP_BLOCK
) -> dict[str, Source]:
    """Weights and biases of all blocks; ``theirs`` is what comes before a block's number."""
    mixer = stack.layers[0].mixer if stack.layers else None
    names: dict[str, Source] = {}
    for number in range(stack.num_layers):
        for layer, parts in block.items():
            for kind in ("weight", "bias"):
                if kind == "bias" and layer.endswith("qkv") and isinstance(mixer, AttentionConfig) and not mixer.bias:
                    continue
                sources = (f"{theirs}.{number}.{part}.{kind}" for part in parts)
                names[f"{ours}stack.blocks.{number}.{layer}.{kind}"] = rows(*sources)
    return names


def layer_weights(ours: str, theirs: str) -> dict[str, Source]:
    """Weight and bias of a norm or linear."""
    return {f"{ours}.{kind}": rows(f"{theirs}.{kind}") for kind in ("weight", "bias")}


def patch_weights(ours: str, theirs: str, config: PatchesConfig) -> dict[str, Source]:
    """The linear of a patch, which is a convolution on disk."""
    shape = (config.width, config.channels, *config.patch_size)
    names = {f"{ours}.weight": Source((f"{theirs}.weight",), shape=shape)}
    return names | ({f"{ours}.bias": rows(f"{theirs}.bias")} if config.bias else {})


def image_weights(ours: str, config: ModelConfig) -> dict[str, Source]:
    """Patches, positions, blocks and last norm of an image tower."""
    patches, theirs = config.tower.input, "vision_model."
    assert isinstance(patches, PatchesConfig)
    return {
        f"{ours}embedding.positions": rows(f"{theirs}embeddings.position_embedding.weight"),
        **patch_weights(f"{ours}embedding.projection", f"{theirs}embeddings.patch_embedding", patches),
        **block_weights(ours, f"{theirs}encoder.layers", config.stack),
        **layer_weights(f"{ours}stack.norm", f"{theirs}post_layernorm"),
    }


def read_patches(keys: Keys, patch_size: int, **changes: Any) -> PatchesConfig:
    """The sizes of images and patches; ``patch_size`` is what the family assumes."""
    return PatchesConfig(
        width=keys.integer("hidden_size", 768),
        image_size=read_size(keys, "image_size", 224),
        patch_size=read_size(keys, "patch_size", patch_size),
        channels=keys.integer("num_channels", 3),
        **changes,
    )


def text_input(keys: Keys, *, width: int, vocabulary_size: int, num_positions: int) -> TokensConfig:
    """Tokens with learnt positions."""
    return TokensConfig(
        vocabulary_size=keys.integer("vocab_size", vocabulary_size),
        width=width,
        positions="learned",
        num_positions=keys.integer("max_position_embeddings", num_positions),
    )


def text_weights(ours: str, theirs: str, stack: StackConfig) -> dict[str, Source]:
    """Embeddings, blocks and last norm of a text tower."""
    return {
        f"{ours}embedding.tokens.weight": rows(f"{theirs}embeddings.token_embedding.weight"),
        f"{ours}embedding.positions": rows(f"{theirs}embeddings.position_embedding.weight"),
        **block_weights(ours, f"{theirs}encoder.layers", stack),
        **layer_weights(f"{ours}stack.norm", f"{theirs}final_layer_norm"),
    }
