from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTModel

from danlu.core.errors import ModelError
from danlu.models.archs.vit import plugin as vit
from danlu.models.inputs.patches import PatchesConfig
from danlu.models.load import load_model
from danlu.models.pair import read_images
from tests.models.case import randomised, save_peer
from tests.models.cases.vision import IMAGES

WHOLE: dict[str, Any] = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}


def test_what_a_config_leaves_out_is_the_base_model() -> None:
    config = vit.read_config(WHOLE)
    assert (config.width, config.num_layers, config.context_length) == (768, 12, 14 * 14 + 1)


def test_height_and_width_may_differ() -> None:
    patches = vit.read_config({**WHOLE, "image_size": [32, 64], "patch_size": [8, 16]}).tower.input
    assert isinstance(patches, PatchesConfig)
    assert patches.grid == (4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": "224"}, "config.json: image_size is '224'. It must be a whole number, or height and width."),
        ({"num_attention_heads": 7}, "7 heads cannot share a width of 768. The second must be a multiple."),
        ({"pooler_output_size": 9}, "config.json: pooler_output_size is 9. Only 768 is supported so far."),
        (
            {"architectures": ["ViTForCausalLM"]},
            "a ViT '…ForCausalLM' is not supported. Known: ForImageClassification,",
        ),
        ({"hiden_size": 9}, "config.json has an unknown key 'hiden_size'. Did you mean 'hidden_size'?"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        vit.read_config({**WHOLE, **changes})
    assert message in str(error.value)


def test_a_model_without_its_pooler_gives_hidden_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = randomised(ViTModel(ViTConfig(**IMAGES), add_pooling_layer=False).eval())
    network = load_model(save_peer(peer, tmp_path), precision="fp32").network
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected = peer(images).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(read_images(network, images).detach(), expected, atol=1e-4, rtol=1e-4)
