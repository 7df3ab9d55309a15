"""CLIP: an image tower and a text tower trained on pairs (Radford et al. 2021)."""

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
from danlu.models.heads.embed import EmbedConfig
from danlu.models.heads.pair import PairHeadConfig
from danlu.models.network import ModelConfig, TowerConfig
from danlu.models.pair import PairConfig
from danlu.models.weights import Source, rows


class CLIP(Architecture):
    """Maps CLIPModel. Its towers alone are clip_text_model.py and clip_vision_model.py."""

    model_type = "clip"
    ignored = (r".*\.position_ids",)

    def read_config(self, theirs: Mapping[str, Any]) -> PairConfig:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raises ModelError on an unknown key, or a value that is not honoured."""
        keys = Keys(theirs)
        if (kind := keys.head("Model")) != "Model":
            raise ModelError(f"config.json: a CLIP '…{kind}' is not supported.", "Known: CLIPModel.")
        keys.harmless(*TOWERS, "logit_scale_init_value")
        head = EmbedConfig(pooling="first", projection=keys.integer("projection_dim", 512))
        keys.done()
        vision, text = tower_keys(theirs, "vision_config"), tower_keys(theirs, "text_config")
        return PairConfig(
            image=ModelConfig(tower=vision_tower(vision), head=head),
            text=ModelConfig(tower=text_tower(text), head=replace(head, pooling="last")),
            head=PairHeadConfig(kind="softmax"),
        )

    def weights(self, config: PairConfig) -> dict[str, Source]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The names of both towers and the scale of the head."""
        return {
            **vision_weights("image.", config.image),
            **text_weights("text.", "text_model.", config.text.stack),
            "image.head.projection.weight": rows("visual_projection.weight"),
            "text.head.projection.weight": rows("text_projection.weight"),
            "head.log_factor": rows("logit_scale"),
        }


def vision_tower(keys: Keys) -> TowerConfig:
    """Patches and a class token; a norm before the blocks as well as after."""
    keys.harmless("projection_dim")
    patches = read_patches(keys, 32, bias=False)
    stack = prenorm_stack(keys, context_length=patches.num_positions, activation="quick_gelu")
    keys.done()
    return TowerConfig(input=replace(patches, norm=stack.norm), stack=stack)


def text_tower(keys: Keys) -> TowerConfig:
    """A causal stack. A text is read off at its last token, the end-of-text token: rows are never padded, so neither
    ``eos_token_id`` nor what old configs say in its place (2) is needed to find it."""
    keys.harmless("projection_dim")
    tokens = text_input(keys, width=keys.integer("hidden_size", 512), vocabulary_size=49408, num_positions=77)
    stack = prenorm_stack(
        keys,
        context_length=tokens.num_positions,
        causal=True,
        activation="quick_gelu",
        sizes=(512, 12, 8, 2048),
    )
    keys.done()
    return TowerConfig(input=tokens, stack=stack)


def vision_weights(ours: str, config: ModelConfig) -> dict[str, Source]:
    """Names of an image tower."""
    return {
        **image_weights(ours, config),
        f"{ours}embedding.class_token": rows("vision_model.embeddings.class_embedding"),
        **layer_weights(f"{ours}embedding.norm", "vision_model.pre_layrnorm"),
    }


plugin = CLIP()
