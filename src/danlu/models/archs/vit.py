"""ViT: patches and a stack that looks everywhere (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._keys import ACTIVATIONS, Keys
from danlu.models.archs._towers import block_weights, layer_weights, patch_weights, prenorm_stack, read_patches
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.embed import EmbedConfig
from danlu.models.inputs.patches import PatchesConfig
from danlu.models.network import HeadConfig, ModelConfig, TowerConfig
from danlu.models.transform import TransformConfig
from danlu.models.weights import Source

_BLOCK = {
    "mixer.input_norm": ("layernorm_before",),
    "mixer.inner.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "mixer.inner.out": ("attention.output.dense",),
    "feedforward.input_norm": ("layernorm_after",),
    "feedforward.inner.up": ("intermediate.dense",),
    "feedforward.inner.down": ("output.dense",),
}


class ViT(Architecture):
    """Maps ViT checkpoints: ViTForImageClassification, and ViTModel with its pooler as an embedding."""

    model_type = "vit"
    prefix = "vit."

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.harmless("encoder_stride")
        dropout = keys.number("hidden_dropout_prob", 0.0)
        patches = read_patches(keys, 16, dropout=dropout)
        stack = prenorm_stack(
            keys,
            context_length=patches.num_positions,
            epsilon=1e-12,
            attention_dropout="attention_probs_dropout_prob",
            qkv_bias=keys.flag("qkv_bias", True),
            dropout=dropout,
        )
        head = self._head(keys, stack.width)
        keys.done()
        return ModelConfig(tower=TowerConfig(input=patches, stack=stack), head=head)

    def _head(self, keys: Keys, width: int) -> HeadConfig:
        keys.fixed(pooler_output_size=width)
        activation = keys.choice("pooler_act", ACTIVATIONS, "tanh")
        kind = keys.head("ForImageClassification")
        if kind == "ForImageClassification":
            labels = keys.labels()
            return ClassifyConfig(labels=labels, pooling="first", multi_label=keys.has_independent_labels(labels))
        if kind == "Model":
            return EmbedConfig(pooling="first", transform=TransformConfig(activation=activation), normalise=False)
        raise ModelError(f"config.json: a ViT '…{kind}' is not supported.", "Known: ForImageClassification, Model.")

    def fit(self, config: ModelConfig, names: Set[str]) -> ModelConfig:
        """A ViTModel may come without its pooler, which config.json does not say: it then gives hidden states."""
        has_pooler = any(name.endswith("pooler.dense.weight") for name in names)
        return config if has_pooler or isinstance(config.head, ClassifyConfig) else replace(config, head=None)

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """The patch linear is a convolution on disk; class token and positions have dimensions of size one."""
        patches = config.tower.input
        assert isinstance(patches, PatchesConfig)
        names = {
            "embedding.class_token": Source(("vit.embeddings.cls_token",), shape=(1, 1, config.width)),
            "embedding.positions": Source(
                ("vit.embeddings.position_embeddings",), shape=(1, patches.num_positions, config.width)
            ),
            **patch_weights("embedding.projection", "vit.embeddings.patch_embeddings.projection", patches),
            **block_weights("", "vit.encoder.layer", config.stack, _BLOCK),
            **layer_weights("stack.norm", "vit.layernorm"),
        }
        if isinstance(config.head, ClassifyConfig):
            names |= layer_weights("head.linear", "classifier")
        elif isinstance(config.head, EmbedConfig):
            names |= layer_weights("head.transform.dense", "vit.pooler.dense")
        return names


plugin = ViT()
