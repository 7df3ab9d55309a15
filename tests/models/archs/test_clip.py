from typing import Any

import pytest

from danlu.core.errors import ModelError
from danlu.models.archs.clip import plugin as clip
from danlu.models.archs.clip_text_model import plugin as clip_text
from danlu.models.attention import AttentionConfig
from tests.models.cases.vision import IMAGES, TEXTS

WHOLE: dict[str, Any] = {
    "model_type": "clip", "architectures": ["CLIPModel"], "text_config": TEXTS, "vision_config": IMAGES
}  # fmt: skip


def test_the_text_tower_reads_forward_and_the_image_tower_all_at_once() -> None:
    config = clip.read_config(WHOLE)
    text, image = config.text.stack.layers[0].mixer, config.image.stack.layers[0].mixer
    assert isinstance(text, AttentionConfig)
    assert isinstance(image, AttentionConfig)
    assert (text.causal, image.causal) == (True, False)


def test_old_files_repeat_their_towers_and_the_repetition_counts() -> None:
    old = {**WHOLE, "text_config": {"hidden_size": 99}, "text_config_dict": {**TEXTS, "num_beams": 1, "top_k": 50}}
    assert clip.read_config(old) == clip.read_config(WHOLE)
    assert clip.read_config({**WHOLE, "vision_config_dict": None}) == clip.read_config(WHOLE)


def test_towers_that_are_left_out_are_those_of_the_first_model() -> None:
    config = clip.read_config({"model_type": "clip"})
    assert (config.image.width, config.text.width, config.text.context_length) == (768, 512, 77)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["CLIPForImageClassification"]}, "a CLIP '…ForImageClassification' is not supported."),
        ({"text_config": {**TEXTS, "heads": 1}}, "config.json, text_config has an unknown key 'heads'."),
        ({"vision_config": {**IMAGES, "pruned_heads": {"0": [1]}}}, "config.json, vision_config: pruned_heads is {'0'"),
        ({"vision_config": "large"}, "config.json: vision_config is 'large'. It must be an object."),
        ({"surprise": 1}, "config.json has an unknown key 'surprise'."),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        clip.read_config({**WHOLE, **changes})
    assert message in str(error.value)


def test_a_tower_with_another_head_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"CLIPTextForTokenClassification is not supported\. Known: …Model, …ModelWith"
    ):
        clip_text.read_config({**TEXTS, "architectures": ["CLIPTextForTokenClassification"]})
