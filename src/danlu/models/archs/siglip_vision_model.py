"""SigLIP's image tower alone, with its probe: SiglipVisionModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.models.archs import Architecture
from danlu.models.archs._towers import lone_tower_keys
from danlu.models.archs.siglip import vision_model, vision_weights
from danlu.models.network import ModelConfig
from danlu.models.weights import Source


class SigLIPVision(Architecture):
    """Maps the checkpoints of an image tower."""

    model_type = "siglip_vision_model"
    prefix = "vision_model."
    ignored = (r".*\.position_ids",)

    def read_config(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelError on an unknown key, or a value that is not honoured."""
        return vision_model(lone_tower_keys(theirs)[0])

    def weights(self, config: ModelConfig) -> dict[str, Source]:
        """Names of the tower and its probe."""
        return vision_weights("", config)


plugin = SigLIPVision()
