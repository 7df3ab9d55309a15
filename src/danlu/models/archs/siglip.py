"""SigLIP: an image tower with a probe and a text tower, compared by sigmoids (Zhai et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.archs._keys import Keys
from danlu.models.archs._towers import (
    TOWERS,
    image_weights,
    layer_weights,
    prenorm_stack,
    read_patches,
    text_input,
    text_weights,
    tower_keys,
)
from danlu.models.attention import AttentionConfig
from danlu.models.feedforward import FeedForwardConfig
from danlu.models.heads.classify import ClassifyConfig
from danlu.models.heads.embed import EmbedConfig
from danlu.models.heads.pair import PairHeadConfig
from danlu.models.heads.probe import ProbeConfig
from danlu.models.network import ModelConfig, TowerConfig
from danlu.models.pair import PairConfig
from danlu.models.weights import Source, rows


class SigLIP(Architecture):
    """Maps SiglipModel and SiglipForImageClassification. Its image tower alone is siglip_vision_model.py."""

    model_type = "siglip"
    ignored = (r".*\.position_ids",)
    unused = (r"vision_model\.head\..*",)  # a classifier reads the patches themselves

    def read_config(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, theirs: Mapping[str, Any]
    ) -> ModelConfig | PairConfig:
        """Raises ModelError on an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        keys.harmless(*TOWERS)
        kind, labels = keys.head("Model"), keys.labels()
        independent = keys.has_independent_labels(labels)
        keys.done()
        image = vision_model(tower_keys(theirs, "vision_config"))
        if kind == "ForImageClassification":
            return replace(image, head=ClassifyConfig(labels=labels, pooling="mean", multi_label=independent))
        if kind != "Model":
            raise ModelError(
                f"config.json: a SigLIP '…{kind}' is not supported.", "Known: Model, ForImageClassification."
            )
        if not isinstance(image.head, ProbeConfig):
            raise ModelError("config.json: vision_use_head is False.", "A SigLIP pair compares what that head makes.")
        text, size = _text_tower(tower_keys(theirs, "text_config"))
        return PairConfig(
            image=replace(image, head=replace(image.head, normalise=True)),
            text=ModelConfig(tower=text, head=EmbedConfig(pooling="last", projection=size, projection_bias=True)),
            head=PairHeadConfig(kind="sigmoid"),
            text_length=text.stack.context_length,
        )

    def weights(self, config: ModelConfig | PairConfig) -> dict[str, Source]:
        """Scale and bias of the head are vectors of one number on disk."""
        if isinstance(config, ModelConfig):
            return vision_weights("", config) | layer_weights("head.linear", "classifier")
        return {
            **vision_weights("image.", config.image),
            **text_weights("text.", "text_model.", config.text.stack),
            **layer_weights("text.head.projection", "text_model.head"),
            "head.log_factor": Source(("logit_scale",), shape=(1,)),
            "head.bias": Source(("logit_bias",), shape=(1,)),
        }


def vision_model(keys: Keys) -> ModelConfig:
    """Patches without a class token, and the probe unless ``vision_use_head`` is false."""
    patches = read_patches(keys, 16, class_token=False)
    stack = prenorm_stack(keys, context_length=patches.num_positions, activation="gelu_pytorch_tanh", epsilon=1e-6)
    head: ProbeConfig | None = None
    if keys.flag("vision_use_head", True):
        mixer, inner = stack.layers[0].mixer, stack.layers[0].feedforward
        assert isinstance(mixer, AttentionConfig)
        assert isinstance(inner, FeedForwardConfig)
        head = ProbeConfig(
            num_heads=mixer.num_heads,
            feedforward_width=inner.width,
            activation=inner.activation,
            norm=stack.norm,
            normalise=False,
        )
    keys.done()
    return ModelConfig(tower=TowerConfig(input=patches, stack=stack), head=head)


def _text_tower(keys: Keys) -> tuple[TowerConfig, int]:
    """A stack that looks everywhere, padding included, and the size of its embedding."""
    width = keys.integer("hidden_size", 768)
    tokens = text_input(keys, width=width, vocabulary_size=32000, num_positions=64)
    stack = prenorm_stack(keys, context_length=tokens.num_positions, activation="gelu_pytorch_tanh", epsilon=1e-6)
    size = keys.integer("projection_size", width)
    keys.done()
    return TowerConfig(input=tokens, stack=stack), size


def vision_weights(ours: str, config: ModelConfig) -> dict[str, Source]:
    """Names of an image tower and its probe."""
    names = image_weights(ours, config)
    if not isinstance(config.head, ProbeConfig):
        return names
    head, probe = f"{ours}head", "vision_model.head"
    return names | {
        f"{head}.probe": Source((f"{probe}.probe",), shape=(1, 1, config.width)),
        f"{head}.qkv.weight": rows(f"{probe}.attention.in_proj_weight"),
        f"{head}.qkv.bias": rows(f"{probe}.attention.in_proj_bias"),
        **layer_weights(f"{head}.out", f"{probe}.attention.out_proj"),
        **layer_weights(f"{head}.norm", f"{probe}.layernorm"),
        **layer_weights(f"{head}.up", f"{probe}.mlp.fc1"),
        **layer_weights(f"{head}.down", f"{probe}.mlp.fc2"),
    }


plugin = SigLIP()
