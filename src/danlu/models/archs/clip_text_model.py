"""CLIP's text tower alone: CLIPTextModel (what it reads off) and CLIPTextModelWithProjection (the embedding)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs import Architecture
from danlu.models.archs._towers import lone_tower_keys, text_weights
from danlu.models.archs.clip import text_tower
from danlu.models.heads.embed import EmbedConfig
from danlu.models.network import ModelConfig
from danlu.models.weights import Source, rows


class CLIPText(Architecture):
    """Maps the checkpoints of a text tower."""

    model_type = "clip_text_model"
    prefix = "text_model."
    ignored = (r".*\.position_ids",)

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on an unknown key, or a value that is not honoured."""
        keys, projection = lone_tower_keys(theirs)
        return ModelConfig(
            tower=text_tower(keys), head=EmbedConfig(pooling="last", projection=projection, normalise=False)
        )

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Names of the tower, and of the projection where there is one."""
        names = text_weights("", "text_model.", config.stack)
        if isinstance(config.head, EmbedConfig) and config.head.projection is not None:
            names["head.projection.weight"] = rows("text_projection.weight")
        return names


plugin = CLIPText()
