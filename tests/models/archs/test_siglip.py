from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SiglipConfig, SiglipForImageClassification

from danlu.core.errors import ModelError
from danlu.models.archs.siglip import plugin as siglip
from danlu.models.load import load_model
from danlu.models.pair import PairConfig
from tests.models.case import Case, save_peer
from tests.models.cases.vision import IMAGES, TEXTS, Images

WHOLE: dict[str, Any] = {
    "model_type": "siglip", "architectures": ["SiglipModel"], "text_config": TEXTS, "vision_config": IMAGES
}  # fmt: skip


def test_texts_are_padded_to_the_length_they_were_trained_with() -> None:
    config = siglip.read_config(WHOLE)
    assert isinstance(config, PairConfig)
    assert config.text_length == 12
    assert not config.text.stack.is_causal


def test_a_classifier_reads_the_mean_of_all_patches(tmp_path: Path) -> None:
    numbers = {"text_config": TEXTS, "vision_config": IMAGES, "num_labels": 4}
    case = Case(config=SiglipConfig, peer=SiglipForImageClassification, numbers=numbers, compare=Images())
    peer = case.make()
    model = load_model(save_peer(peer, tmp_path), precision="fp32")
    rows = case.compare.rows(case)
    theirs = case.compare.theirs(case, peer, rows, "right")
    torch.testing.assert_close(case.compare.ours(model, rows), theirs, atol=1e-4, rtol=1e-4)
    assert all(name.startswith("vision_model.head.") for name in model.unused)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["SiglipForCausalLM"]}, "a SigLIP '…ForCausalLM' is not supported. Known: Model, ForImage"),
        ({"vision_config": {**IMAGES, "vision_use_head": False}}, "vision_use_head is False. A SigLIP pair compares"),
        ({"text_config": {**TEXTS, "heads": 1}}, "config.json, text_config has an unknown key 'heads'."),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        siglip.read_config({**WHOLE, **changes})
    assert message in str(error.value)
