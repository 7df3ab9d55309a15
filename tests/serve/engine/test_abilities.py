"""What models can be asked for, told by their heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification, BertModel

from danlu.core.files import read_json, write_json
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.serve.engine.abilities import abilities, served_model
from tests.models.case import Case, save_peer
from tests.models.cases.vision import CASES, CONVNETS
from tests.models.encoders import save_encoder, save_sentence
from tests.tiny import TEMPLATE, write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def encoder(folder: Path, peer: Any, **changes: Any) -> Model:
    save_encoder(folder, peer, **changes)
    return load_model(folder, precision="fp32")


@pytest.mark.parametrize(
    ("peer", "changes", "can"),
    [
        (BertModel, {}, {"embed", "score"}),  # by its pooler
        (BertForMaskedLM, {}, set[str]()),
        (BertForSequenceClassification, {"num_labels": 3}, {"classify"}),
        (BertForSequenceClassification, {"num_labels": 2}, {"classify", "score"}),
        (BertForSequenceClassification, {"num_labels": 1}, {"classify", "score"}),
        (BertForTokenClassification, {"num_labels": 3}, {"tag"}),
    ],
)
def test_an_encoder_can_what_its_head_answers(
    tmp_path: Path, peer: Any, changes: dict[str, Any], can: set[str]
) -> None:  # fmt: skip
    assert abilities(encoder(tmp_path, peer, **changes)) == can


@pytest.mark.parametrize(
    ("name", "can"),
    [
        ("vit", {"classify"}), ("resnet", {"classify"}), ("clip-vision", {"embed"}), ("clip", {"embed", "score"}),
        ("siglip", {"embed", "score"}), ("siglip-vision-bare", set[str]()),
    ],
)  # fmt: skip
def test_a_model_of_images_can_what_its_head_answers(tmp_path: Path, name: str, can: set[str]) -> None:
    case: Case = (CASES | CONVNETS)[name]
    model = load_model(save_peer(case.make(), tmp_path), precision="fp32")
    told = served_model(model, "m")
    assert told.abilities == can
    assert told.takes_images
    assert (told.width > 0) == ("embed" in can)


def test_a_sentence_model_tells_its_width_and_limit(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertModel)
    save_sentence(tmp_path)
    told = served_model(load_model(tmp_path, precision="fp32"), "minilm", created=7)
    assert (told.name, told.abilities, told.width) == ("minilm", {"embed", "score"}, 32)
    assert (told.context_length, told.created, told.takes_images) == (10, 7, False)


def test_a_classifier_tells_its_labels(tmp_path: Path) -> None:
    model = encoder(tmp_path, BertForSequenceClassification, id2label={0: "good", 1: "bad", 2: "so-so"})
    told = served_model(model, "m")
    assert told.labels == ("good", "bad", "so-so")
    assert (told.width, told.context_length) == (0, 24)


@pytest.mark.parametrize(
    ("end", "thinks"),
    [("", "no"), ("{# </think> #}", "may"), ("{% if add_generation_prompt %}<think>\n{% endif %}", "at_once")],
)
def test_a_decoder_tells_whether_it_thinks_and_how_it_calls(tmp_path: Path, end: str, thinks: str) -> None:
    folder = write_tiny(tmp_path / "model")
    config = read_json(folder / "tokenizer_config.json")
    template = TEMPLATE + "{% if tools %}<tool_call>{{ tools }}{% endif %}" + end
    write_json(folder / "tokenizer_config.json", {**config, "chat_template": template})
    told = served_model(load_model(folder, precision="fp32"), "m")
    assert (told.thinks, told.tool_format) == (thinks, "hermes")


def test_a_decoder_writes(tiny_folder: Path) -> None:
    told = served_model(load_model(tiny_folder, precision="fp32"), "m")
    assert (told.abilities, told.context_length, told.width) == ({"write"}, 1024, 0)
