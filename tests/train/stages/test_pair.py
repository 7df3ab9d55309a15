"""Images and texts against the losses of transformers' CLIP and SigLIP."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from danlu.core.errors import ConfigError, ModelError, TrainError
from danlu.core.events import Events, Silent
from danlu.models.images import ImageConfig, ImageProcessor
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.save import save_model
from danlu.models.vision import ImageModel
from danlu.text.chat import ChatFormat
from danlu.text.tokenizer import TextTokenizer
from danlu.train.captioned import encode_rows, pair_network
from danlu.train.settings import Job
from danlu.train.stages.pair import PairTrainConfig, score, summed_loss, train, vectors_of
from danlu.train.texts import TuningOptim
from tests.models.case import Case
from tests.models.cases.vision import CASES
from tests.tiny import make_tokenizer, write_tiny

IMAGES = ImageProcessor(ImageConfig(resize=(12, 12), mean=(0.5,) * 3, std=(0.5,) * 3), {})
COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "navy": (0, 0, 120), "white": (255, 255, 255), "grey": (90,) * 3}
PLAIN = TuningOptim(learning_rate=3e-3, weight_decay=0.0, warmup_steps=0, schedule="constant", clip_norm=None)
CONFIG = PairTrainConfig(steps=10, rows_per_step=5, optim=PLAIN, precision="fp32")


def job(folder: Path) -> Job:
    return Job(work=folder / "work", log_path=folder / "log.jsonl", events=Events(display=Silent()), seed=3)


def make(name: str, folder: Path, pad: str | None = "<|im_start|>") -> tuple[Model, Any]:
    """Ours with a tokenizer, and theirs."""
    case = CASES[name]
    text = {**case.numbers["text_config"], "vocab_size": 420, "bos_token_id": 1, "eos_token_id": 2}
    text["attention_dropout"] = 0.0
    peer = Case(config=case.config, peer=case.peer, numbers={**case.numbers, "text_config": text}).make()
    peer.save_pretrained(folder)
    return load(folder, pad), peer


def load(folder: Path, pad: str | None = "<|im_start|>") -> Model:
    model = load_model(folder, precision="fp32")
    roles = {} if pad is None else {"pad_token": pad}
    model._chat = ChatFormat(TextTokenizer(make_tokenizer(), end_tokens=["<|im_end|>"], roles=roles), None)
    return model


def rows(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (14, 12), colour).save(folder / f"{name}.png")
    return [{"image": f"{name}.png", "text": f"{name} dress"} for name in COLOURS]


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_loss_is_transformers_own(tmp_path: Path, name: str) -> None:
    model, peer = make(name, tmp_path / "model")
    items = encode_rows(rows(tmp_path), model, folder=tmp_path).items
    found = summed_loss(model, *vectors_of(model, items, IMAGES, None), items) / len(items)
    network = pair_network(model)
    pixels = IMAGES([item.image for item in items])
    with torch.no_grad():
        seen = torch.nn.functional.normalize(peer.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        texts = network.embed_texts(
            torch.tensor([i for item in items for i in item.ids]), [len(item.ids) for item in items]
        )
        logits = peer.logit_scale.exp() * texts @ seen.t()
        if name == "siglip":
            logits = logits + peer.logit_bias
            sign = 2 * torch.eye(5) - 1
            expected = -torch.nn.functional.logsigmoid(sign * logits).sum(dim=-1).mean()
        else:
            from transformers.models.clip.modeling_clip import image_text_contrastive_loss

            expected = image_text_contrastive_loss(logits)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_micro_batches_change_neither_loss_nor_gradients(tmp_path: Path, name: str) -> None:
    make(name, tmp_path / "model")
    data = rows(tmp_path)
    states: list[dict[str, torch.Tensor]] = []
    losses: list[float] = []
    for micro_tokens in (None, 20):
        model = load(tmp_path / "model")
        items = encode_rows(data, model, folder=tmp_path).items
        sgd = dataclasses.replace(PLAIN, name="sgd", momentum=0.0, learning_rate=1e-2)
        config = dataclasses.replace(CONFIG, steps=1, micro_tokens=micro_tokens, optim=sgd)
        metrics = train(model, items, [], config, job(tmp_path / str(micro_tokens)), images=IMAGES)
        losses.append(metrics["first_loss"])
        states.append(dict(model.network.state_dict()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for key, tensor in states[0].items():
        torch.testing.assert_close(states[1][key], tensor, atol=2e-6, rtol=0, msg=key)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_images_find_their_texts_and_texts_their_images_after_saving(tmp_path: Path, name: str) -> None:
    model, _ = make(name, tmp_path / "model")
    items = encode_rows(rows(tmp_path), model, folder=tmp_path).items
    metrics = train(model, items, items, dataclasses.replace(CONFIG, steps=80), job(tmp_path / "job"), images=IMAGES)
    assert metrics["validation"]["text_recall_at_1"] == metrics["validation"]["image_recall_at_1"] == 1.0
    save_model(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    asked = ImageModel(again.network, IMAGES, again.chat.tokenizer)
    texts = [f"{colour} dress" for colour in COLOURS]
    found = asked.choose([tmp_path / f"{colour}.png" for colour in COLOURS], texts)
    assert [next(iter(one)) for one in found] == texts


def test_cosines_are_never_multiplied_by_more_than_a_hundred(tmp_path: Path) -> None:
    model, _ = make("clip", tmp_path / "model")
    network = pair_network(model)
    with torch.no_grad():
        network.head.log_factor.fill_(9.0)
    items = encode_rows(rows(tmp_path), model, folder=tmp_path).items
    train(model, items, [], dataclasses.replace(CONFIG, steps=1), job(tmp_path / "job"), images=IMAGES)
    assert float(network.head.log_factor.detach().exp()) == pytest.approx(100.0, rel=1e-4)


def test_an_equal_text_does_not_count_against_an_image(tmp_path: Path) -> None:
    model, _ = make("clip", tmp_path / "model")
    data = [{**row, "text": "dress"} for row in rows(tmp_path)]
    items = encode_rows(data, model, folder=tmp_path).items
    found = score(model, items, CONFIG, IMAGES)
    assert found["loss"] == pytest.approx(0.0, abs=1e-6)
    assert found["image_recall_at_1"] == found["text_recall_at_1"] == 1.0


def test_rows_that_cannot_be_learnt_are_left_out_and_counted(tmp_path: Path) -> None:
    model, _ = make("siglip", tmp_path / "model")
    (row, *_) = rows(tmp_path)
    data = [{"image": "red.png"}, {"text": "a"}, {"text": "a", "image": "none.png"}, {**row, "text": "dress " * 20}]
    found = encode_rows(data, model, folder=tmp_path)
    assert found.left_out == {"no_text": 1, "no_image": 1, "missing_image": 1}
    assert (found.truncated, len(found.items[0].ids)) == (1, 12)
    short = encode_rows([row], model, 3, tmp_path).items[0]
    assert len(short.ids) == 12
    assert set(short.ids[3:]) == {model.chat.tokenizer.pad_id}


def test_models_and_settings_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"This model does not read images and texts\. Use a model such as CLIP"):
        encode_rows([], load_model(write_tiny(tmp_path / "tiny"), precision="fp32"))
    with pytest.raises(ModelError, match=r"The tokenizer has no padding token\. Name its pad_token"):
        encode_rows(rows(tmp_path), make("siglip", tmp_path / "model", pad=None)[0])
    with pytest.raises(ConfigError, match=r"rows_per_step is 1\. A batch needs other rows"):
        PairTrainConfig(rows_per_step=1)
    with pytest.raises(ConfigError, match=r"max_row_tokens is 0\. Use 1 or more"):
        PairTrainConfig(max_row_tokens=0)
