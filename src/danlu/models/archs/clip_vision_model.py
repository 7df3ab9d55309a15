"""CLIP's image tower alone: CLIPVisionModel (what it reads off) and CLIPVisionModelWithProjection (the embedding)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs import Architecture
from danlu.models.archs._towers import lone_tower_keys
from danlu.models.archs.clip import vision_tower, vision_weights
from danlu.models.heads.embed import EmbedConfig
from danlu.models.network import ModelConfig
from danlu.models.weights import Source, rows


class CLIPVision(Architecture):
    """Maps the checkpoints of an image tower."""

    model_type = "clip_vision_model"
    prefix = "vision_model."
    ignored = (r".*\.position_ids",)

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on an unknown key, or a value that is not honoured."""
        keys, projection = lone_tower_keys(theirs)
        return ModelConfig(
            tower=vision_tower(keys), head=EmbedConfig(pooling="first", projection=projection, normalise=False)
        )

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Names of the tower, and of the projection where there is one."""
        names = vision_weights("", config)
        if isinstance(config.head, EmbedConfig) and config.head.projection is not None:
            names["head.projection.weight"] = rows("visual_projection.weight")
        return names


plugin = CLIPVision()
