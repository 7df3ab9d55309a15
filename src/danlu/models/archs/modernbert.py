"""ModernBERT (Warner et al. 2024): pre-norm, rotary positions, GeGLU, and most layers look only at their neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._encoder import classes, encoder_kind, layer_weights, masked_lm, plain_attention
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.archs._rope import rope_of
from danlu.models.block import LayerConfig, StackConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.lm import LMHeadConfig
from danlu.models.heads.tag import TagConfig
from danlu.models.inputs.tokens import TokensConfig
from danlu.models.network import HeadConfig, ModelConfig, TowerConfig
from danlu.models.norms import NormConfig
from danlu.models.positions import RotaryConfig
from danlu.models.transform import TransformConfig
from danlu.models.weights import Source, rows

_FULL, _LOCAL = "full_attention", "sliding_attention"
_OLD_BASES = {_FULL: ("global_rope_theta", 160_000.0), _LOCAL: ("local_rope_theta", 10_000.0)}
"""Kind of layer → the older key of its rotary base, and its default."""


class ModernBert(Architecture):
    """Maps ModernBERT checkpoints onto the core."""

    model_type = "modernbert"
    prefix = "model."
    unused = (r"head\..+", r"decoder\.(weight|bias)", r"classifier\.(weight|bias)")

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on a missing key, an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.fixed(quantization_config=None, sparse_prediction=False, position_embedding_type="absolute")
        keys.harmless("initializer_cutoff_factor", "deterministic_flash_attn", "reference_compile")
        keys.harmless("sparse_pred_ignore_index", "repad_logits_with_grad")
        epsilon = keys.number("norm_eps", 1e-5)
        keys.fixed(layer_norm_eps=epsilon)  # an older name that files repeat
        norm = NormConfig(kind="layer", epsilon=epsilon, bias=keys.flag("norm_bias", False))
        width = keys.integer("hidden_size")
        tokens = TokensConfig(
            vocabulary_size=keys.integer("vocab_size"), width=width, norm=norm,
            dropout=keys.number("embedding_dropout", 0.0),
        )  # fmt: skip
        stack = StackConfig(
            width=width, layers=self._layers(keys, width), norm=norm,
            context_length=keys.integer("max_position_embeddings", 8192),
        )  # fmt: skip
        head = self._head(keys, norm)
        keys.done()
        return ModelConfig(tower=TowerConfig(input=tokens, stack=stack), head=head)

    def _layers(self, keys: Keys, width: int) -> tuple[LayerConfig, ...]:
        count, heads = keys.integer("num_hidden_layers"), keys.integer("num_attention_heads")
        every = keys.integer("global_attn_every_n_layers", 3)
        kinds = keys.get("layer_types", [_LOCAL if number % every else _FULL for number in range(count)])
        if not isinstance(kinds, list) or len(kinds) != count or set(kinds) - {_FULL, _LOCAL}:
            raise ModelError(f"config.json: layer_types is {kinds!r}.", f"It must be {count} of {_FULL}, {_LOCAL}.")
        dropout, has_bias = keys.number("attention_dropout", 0.0), keys.flag("attention_bias", False)
        attention = replace(plain_attention(width, heads, dropout), bias=has_bias, out_bias=has_bias)
        window = keys.integer("local_attention", 128) // 2 + 1  # theirs counts both sides, ours one side and the token
        mixers = {
            _FULL: replace(attention, rotary=self._rotary(keys, _FULL, width // heads)),
            _LOCAL: replace(attention, rotary=self._rotary(keys, _LOCAL, width // heads), window=window),
        }
        feedforward = FeedForwardConfig(
            width=keys.integer("intermediate_size"),
            activation=keys.choice("hidden_activation", ACTIVATIONS, "gelu"),
            bias=keys.flag("mlp_bias", False),
            dropout=keys.number("mlp_dropout", 0.0),
        )
        made = {
            kind: LayerConfig(mixer=mixer, feedforward=feedforward, mixer_dropout=dropout)
            for kind, mixer in mixers.items()
        }
        first = replace(made[kinds[0]], mixer_norm_at=())  # the embeddings are normed already
        return (first, *(made[kind] for kind in kinds[1:]))

    def _rotary(self, keys: Keys, kind: str, head_width: int) -> RotaryConfig:
        old_name, default = _OLD_BASES[kind]
        base = keys.number(old_name, default)
        theirs = {**(keys.get("rope_scaling") or {}), **((keys.get("rope_parameters") or {}).get(kind) or {})}
        return rope_of(theirs, head_width, float(theirs.get("rope_theta", base)), 1.0, keys)

    def _head(self, keys: Keys, norm: NormConfig) -> HeadConfig | None:
        transform = TransformConfig(
            activation=keys.choice("classifier_activation", ACTIVATIONS, "gelu"),
            norm=norm,
            bias=keys.flag("classifier_bias", False),
        )
        pooling = keys.choice("classifier_pooling", {"cls": "first", "mean": "mean"}, "cls")
        dropout, decoder_bias = keys.number("classifier_dropout", 0.0), keys.flag("decoder_bias", True)
        kind = encoder_kind(keys)
        if kind == "ForMaskedLM":
            return masked_lm(keys, transform, bias=decoder_bias)
        keys.harmless("tie_word_embeddings")
        if kind == "ForSequenceClassification":
            return classes(keys, transform, dropout=dropout, pooling=pooling)
        if kind == "ForTokenClassification":
            return TagConfig(labels=keys.labels(), transform=transform, dropout=dropout)
        return None

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Their linears are fused as ours are."""
        shifts = config.stack.norm.bias
        names = {"embedding.tokens.weight": rows("model.embeddings.tok_embeddings.weight")}
        names |= layer_weights("embedding.norm", "model.embeddings.norm", bias=shifts)
        for number, layer in enumerate(config.stack.layers):
            names |= _block_weights(f"stack.blocks.{number}", f"model.layers.{number}", layer, shifts)
        names |= layer_weights("stack.norm", "model.final_norm", bias=shifts)
        head = config.head
        if isinstance(head, LMHeadConfig | ClassifyConfig | TagConfig):
            assert head.transform is not None
            names |= layer_weights("head.transform.dense", "head.dense", bias=head.transform.bias)
            names |= layer_weights("head.transform.norm", "head.norm", bias=shifts)
        if isinstance(head, LMHeadConfig) and head.bias:
            names["head.linear.bias"] = rows("decoder.bias")
        if isinstance(head, ClassifyConfig | TagConfig):
            names |= layer_weights("head.linear", "classifier")
        return names

    def copies(self, config: ModelConfig) -> Mapping[str, str]:
        """Checkpoints may store the tied head again."""
        return {"decoder.weight": "model.embeddings.tok_embeddings.weight"} if config.is_tied else {}


def _block_weights(ours: str, theirs: str, layer: LayerConfig, shifts: bool) -> dict[str, Source]:
    attention, feedforward = layer.mixer, layer.feedforward
    assert isinstance(feedforward, FeedForwardConfig)
    has_bias = getattr(attention, "bias", False)
    names = layer_weights(f"{ours}.mixer.inner.qkv", f"{theirs}.attn.Wqkv", bias=has_bias)
    names |= layer_weights(f"{ours}.mixer.inner.out", f"{theirs}.attn.Wo", bias=has_bias)
    if layer.mixer_norm_at != ():
        names |= layer_weights(f"{ours}.mixer.input_norm", f"{theirs}.attn_norm", bias=shifts)
    names |= layer_weights(f"{ours}.feedforward.inner.gate_up", f"{theirs}.mlp.Wi", bias=feedforward.bias)
    names |= layer_weights(f"{ours}.feedforward.inner.down", f"{theirs}.mlp.Wo", bias=feedforward.bias)
    return names | layer_weights(f"{ours}.feedforward.input_norm", f"{theirs}.mlp_norm", bias=shifts)


plugin = ModernBert()
