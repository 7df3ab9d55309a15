import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from danlu.core.errors import DataError, ModelError
from danlu.models import images as images_module
from danlu.models.images import ImageConfig, ImageProcessor, read_image, read_image_config

PROCESSORS: dict[str, Any] = {
    "vit": ViTImageProcessorPil(size={"height": 20, "width": 24}),
    "vit-plain": ViTImageProcessorPil(size=16, do_rescale=False, do_normalize=False),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 22}, crop_size={"height": 20, "width": 18}),
    "clip-padded": CLIPImageProcessorPil(size={"shortest_edge": 13}, crop_size={"height": 20, "width": 17}),
    "clip-whole": CLIPImageProcessorPil(
        do_resize=False, crop_size={"height": 9, "width": 12}, rescale_factor=1 / 127.5
    ),
    "siglip": SiglipImageProcessorPil(size={"height": 20, "width": 20}, resample=2),
    "mobilenet": MobileNetV2ImageProcessorPil(size={"shortest_edge": 25}, crop_size={"height": 22, "width": 22}),
    "convnext-cut": ConvNextImageProcessorPil(size={"shortest_edge": 20}, crop_pct=0.8),
    "convnext-warped": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
}


def some_images(seed: int = 0) -> list[Image.Image]:
    """Smooth and rough ones of odd sizes, smaller and larger than what models want."""
    generator = np.random.default_rng(seed)
    made: list[Image.Image] = []
    for height, width in ((17, 31), (64, 37), (20, 24), (9, 12), (101, 90)):
        rough = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        smooth = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height), 3)
        made += [rough, smooth]
    return made


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = PROCESSORS[name]
    theirs.save_pretrained(tmp_path)
    ours = ImageProcessor.of_folder(tmp_path)
    for image in some_images():
        expected = torch.from_numpy(np.stack(theirs(image)["pixel_values"])).float()
        assert torch.equal(ours([image]), expected)


def test_settings_are_saved_as_they_were_found(tmp_path: Path) -> None:
    PROCESSORS["clip"].save_pretrained(tmp_path / "one")
    first = ImageProcessor.of_folder(tmp_path / "one")
    (tmp_path / "two").mkdir()
    first.save(tmp_path / "two")
    again = ImageProcessor.of_folder(tmp_path / "two")
    assert (again.config, again.theirs) == (first.config, first.theirs)


def test_settings_are_found_beside_those_of_texts(tmp_path: Path) -> None:
    inner = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 8, "width": 9}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert ImageProcessor.of_folder(tmp_path).config.resize == (8, 9)


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 30}, ((30, 30), None)),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 30, "crop_size": 20}, (30, (20, 20))),
        ({"image_processor_type": "CLIPImageProcessorFast"}, (224, (224, 224))),
        (
            {"image_processor_type": "ViTImageProcessor", "size": [10, 12], "do_center_crop": True},
            ((10, 12), (224, 224)),
        ),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, (None, None)),
    ],
)
def test_old_and_short_settings_mean_what_they_meant(theirs: dict[str, Any], expected: tuple[Any, Any]) -> None:
    config = read_image_config(theirs)
    assert (config.resize, config.crop) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_solarize": True}, "preprocessor_config.json has an unknown key 'do_solarize'. Did you mean 'do_resize'?"),
        ({"do_pad": True}, "do_pad is True. Padded images are not supported so far."),
        ({"image_processor_type": "OddImageProcessor"}, "image_processor_type is 'OddImageProcessor'."),
        ({"size": {"longest_edge": 9}}, "size is {'longest_edge': 9}. Known: height and width, or shortest_edge."),
        ({"resample": 9}, "resample is 9. Known: 0 to 5, as Pillow counts."),
        ({"image_mean": [0.5]}, "image_mean is [0.5]. Give one number for each of 3 channels, or one for all."),
        (
            {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True},
            "do_center_crop is True. Of ConvNext images crop_pct says what is kept.",
        ),
    ],
)
def test_settings_that_would_give_other_pixels_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        read_image_config({"image_processor_type": "ViTImageProcessor", **changes})
    assert message in str(error.value)


def test_a_folder_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json\. Copy the model's own"):
        ImageProcessor.of_folder(tmp_path)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Any) -> list[Any]:
    return np.asarray(read_image(image)).tolist()


def test_an_image_is_the_same_from_a_file_its_bytes_pillow_and_pixels(tmp_path: Path) -> None:
    image = some_images()[0]
    path = tmp_path / "image.png"
    path.write_bytes(encoded(image))
    for form in (path, str(path), path.read_bytes(), image, np.asarray(image)):
        assert pixels(form) == np.asarray(image).tolist()


def test_greys_palettes_and_transparency_become_rgb() -> None:
    grey = np.array([[0, 128, 255]], np.uint8)
    same = np.repeat(grey[:, :, None], 3, axis=2).tolist()
    assert pixels(grey) == pixels(grey[:, :, None]) == pixels(encoded(Image.fromarray(grey))) == same
    palette = Image.fromarray(grey).convert("P")
    assert pixels(encoded(palette)) == same
    assert pixels(np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)) == [[[10, 20, 30], [255, 255, 255]]]
    assert pixels(encoded(Image.fromarray(grey), transparency=128)) == [[[0] * 3, [255] * 3, [255] * 3]]
    assert pixels(Image.fromarray(grey > 100)) == [[[0] * 3, [255] * 3, [255] * 3]]


def test_sixteen_bit_greys_keep_their_shades() -> None:
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    assert pixels(encoded(deep)) == pixels(deep) == [[[0] * 3, [100] * 3, [255] * 3]]


def test_a_photo_is_turned_as_its_camera_was_held() -> None:
    upright = some_images()[1]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned right: the file holds the scene turned left
    held = upright.transpose(Image.Transpose.ROTATE_90)
    assert pixels(encoded(held, "PNG", exif=exif)) == np.asarray(upright).tolist()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("https://example.org/cat.png", "'https://example.org/cat.png' is an address. Images are never fetched"),
        ("data:image/png;base64,AAAA", "is an address. Images are never fetched: give a file or its bytes."),
        ("no/such/file.png", "no/such/file.png cannot be read as an image"),
        (b"hello", "5 bytes is not an image. Known: BMP, GIF, JPEG, PNG, TIFF, WEBP."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (encoded(some_images()[1])[:900], "The image cannot be read"),
        (np.zeros((2, 2)), "An array of float64 (2, 2) is not an image. Give uint8 (height, width) or"),
        (np.zeros((3, 9, 9), np.uint8), "An array of uint8 (3, 9, 9) is not an image."),
        (np.zeros((0, 9, 3), np.uint8), "An array of shape (0, 9, 3) has no pixels."),
        (Image.new("F", (2, 2)), "Greys of 32 bits have no agreed white."),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_image(image)
    assert message in str(error.value)


def test_a_small_file_that_holds_a_huge_image_is_refused_unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "MAX_PIXELS", 10_000)
    with pytest.raises(DataError, match=r"is too large an image: 200 × 100 pixels\. Shrink it to 10,000 pixels"):
        read_image(encoded(Image.new("RGB", (200, 100))))
    huge = encoded(Image.new("1", (20_000, 20_000)))
    monkeypatch.undo()
    assert len(huge) < 100_000
    with pytest.raises(DataError, match="is too large an image"):
        read_image(huge)


def test_a_batch_of_different_sizes_is_refused() -> None:
    processor = ImageProcessor(ImageConfig(resize=None), {})
    with pytest.raises(DataError, match=r"Images of one batch have different sizes: \[\(17, 31\), \(64, 37\)\]\."):
        processor([some_images()[0], some_images()[2]])


def test_a_batch_is_its_images_one_by_one() -> None:
    processor = ImageProcessor(ImageConfig(resize=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3), {})
    batch = processor(some_images())
    assert batch.shape == (10, 3, 8, 8)
    assert torch.equal(batch, torch.cat([processor([image]) for image in some_images()]))
