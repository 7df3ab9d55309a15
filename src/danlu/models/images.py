"""Images become tensors as a model wants them: read, turned upright, made RGB, resized, cropped, scaled, normalised.

The settings are those of the model's own preprocessor_config.json, and so are the pixels: Pillow resizes bytes, as the
reference does. Opens files and bytes, never addresses. Knows no models.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from danlu.core.errors import DataError, ModelError, nearest
from danlu.core.files import read_json, write_json

AnyImage = str | Path | bytes | Image.Image | np.ndarray
"""A file, the bytes of one, a Pillow image, or uint8 pixels (height, width), (height, width, 1 | 3 | 4)."""

MAX_PIXELS = 50_000_000
"""A larger image is refused before its pixels are unpacked: a small file can hold a very large one."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is opened; formats that run another program (EPS) are not among them."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What is done to an image, in this order."""

    resize: tuple[int, int] | int | None
    """Height and width, or the length of the shorter side with the other in proportion; None for as it is."""
    resample: Image.Resampling = Image.Resampling.BILINEAR
    """How pixels between pixels are made."""
    crop: tuple[int, int] | None = None
    """Height and width of the middle that is kept, black around it where the image is smaller."""
    scale: float | None = 1 / 255
    """Bytes are multiplied by this."""
    mean: tuple[float, ...] | None = None
    """Taken off each channel."""
    std: tuple[float, ...] | None = None
    """Each channel is then divided by this."""


class ImageProcessor:
    """Images in, one batch out."""

    def __init__(self, config: ImageConfig, theirs: Mapping[str, Any]) -> None:
        self.config = config
        self.theirs = dict(theirs)
        """preprocessor_config.json as it was found; written beside the model when it is saved."""

    @classmethod
    def of_folder(cls, folder: Path) -> ImageProcessor:
        """Read a model folder; raises ModelError when it has no settings, or settings that are not honoured."""
        path = folder / "preprocessor_config.json"
        theirs: Any = read_json(path) if path.is_file() else None
        if theirs is None and (folder / "processor_config.json").is_file():  # image and text settings in one file
            path = folder / "processor_config.json"
            theirs = read_json(path).get("image_processor")
        if not isinstance(theirs, dict):
            raise ModelError(
                f"{folder} has no preprocessor_config.json.", "Copy the model's own: it says how images are prepared."
            )
        return cls(read_image_config(theirs, path.name), theirs)

    def __call__(self, images: Sequence[AnyImage]) -> Tensor:
        """→ (B, 3, height, width) in fp32; raises DataError for what is no image, or when sizes then differ."""
        pixels = [self._prepare(read_image(image)) for image in images]
        if len({array.shape for array in pixels}) > 1:
            sizes = sorted({array.shape[:2] for array in pixels})
            raise DataError(
                f"Images of one batch have different sizes: {sizes}.", "This model does not resize: give one."
            )
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json."""
        write_json(folder / "preprocessor_config.json", self.theirs)

    def _prepare(self, image: Image.Image) -> np.ndarray:
        """fp32 (height, width, 3). Arithmetic as in the reference: scaled in fp64, normalised in fp32."""
        config = self.config
        if config.resize is not None:
            height, width = _target(image, config.resize)
            if height * width > MAX_PIXELS:  # one pixel wide, and its shorter side is stretched
                raise _too_large(f"{image.width} × {image.height} resized", f"{width} × {height} pixels", MAX_PIXELS)
            image = image.resize((width, height), config.resample)
        pixels = np.asarray(image)
        if config.crop is not None:
            pixels = _middle(pixels, *config.crop)
        pixels = pixels.astype(np.float32) if config.scale is None else (pixels * config.scale).astype(np.float32)
        if config.mean is not None:
            pixels = pixels - np.asarray(config.mean, np.float32)
        return pixels if config.std is None else pixels / np.asarray(config.std, np.float32)


def read_image(image: AnyImage) -> Image.Image:
    """Upright RGB: turned as the camera says, see-through parts white, 16-bit greys as 8. Raises DataError."""
    if isinstance(image, np.ndarray):
        opened = _of_array(image)
    elif isinstance(image, Image.Image):
        opened = image
    else:
        opened = open_image(image)
    try:
        return _rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for files that end early or lie
        raise DataError(f"The image cannot be read: {error}.", "The file may be damaged.") from error


def open_image(
    image: str | Path | bytes, *, formats: tuple[str, ...] = _FORMATS, max_pixels: int | None = None
) -> Image.Image:
    """An image whose pixels are not unpacked yet; raises DataError when it is none of ``formats``, or too large.

    ``max_pixels`` is MAX_PIXELS when it is not given.
    """
    max_pixels = max_pixels or MAX_PIXELS
    name = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
    if isinstance(image, str) and image.startswith(("http://", "https://", "ftp://", "data:")):
        raise DataError(f"'{image[:80]}' is an address.", "Images are never fetched: give a file or its bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=formats)
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error), max_pixels) from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image.", f"Known: {', '.join(formats)}.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{name} cannot be read as an image: {error}.", "Give a file that exists and is whole."
        ) from error
    if opened.width * opened.height > max_pixels:
        raise _too_large(name, f"{opened.width} × {opened.height} pixels", max_pixels)
    return opened


def _too_large(name: str, what: str, max_pixels: int) -> DataError:
    return DataError(f"{name} is too large an image: {what}.", f"Shrink it to {max_pixels:,} pixels or fewer.")


def _of_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise DataError(
            f"An array of {pixels.dtype} {pixels.shape} is not an image.",
            "Give uint8 (height, width) or (height, width, 1, 3 or 4).",
        )
    if not pixels.size:
        raise DataError(f"An array of shape {pixels.shape} has no pixels.", "Give at least one.")
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise DataError("Greys of 32 bits have no agreed white.", "Give the image with 8 or 16 bits.")
        image = Image.fromarray((values // 257).astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _target(image: Image.Image, size: tuple[int, int] | int) -> tuple[int, int]:
    """Height and width after resizing."""
    if isinstance(size, tuple):
        return size
    short, long = sorted(image.size)
    other = size * long // short
    return (size, other) if image.height <= image.width else (other, size)


def _middle(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, C) → (height, width, C)."""
    have = pixels.shape[:2]
    around = [
        (max(0, want - side + 1) // 2, max(0, want - side) // 2)
        for side, want in zip(have, (height, width), strict=True)
    ]
    pixels = np.pad(pixels, (*around, (0, 0)))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


# settings


@dataclass(frozen=True)
class _Family:
    """What a kind of processor does when its file does not say."""

    size: Any
    crop: bool
    resample: Image.Resampling
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    square: bool = False
    """Whether a size that is one number means a square, else the shorter side."""


_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BILINEAR, _BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
_FAMILIES = {
    "ViT": _Family({"height": 224, "width": 224}, False, _BILINEAR, square=True),
    "CLIP": _Family({"shortest_edge": 224}, True, _BICUBIC, _CLIP_MEAN, _CLIP_STD),
    "Siglip": _Family({"height": 224, "width": 224}, False, _BICUBIC),
    "MobileNetV2": _Family({"shortest_edge": 256}, True, _BILINEAR),
    "ConvNext": _Family({"shortest_edge": 384}, False, _BICUBIC),
}
"""Families by the first part of ``image_processor_type``; ResNets come with ConvNext's."""

_HARMLESS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "return_tensors", "device",
    "data_format", "input_data_format", "disable_grouping", "default_to_square", "do_reduce_labels",
    "image_seq_length", "auto_map", "_valid_processor_keys",
}  # fmt: skip
_READ = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "crop_pct", "do_pad", "pad_size",
}  # fmt: skip


def read_image_config(theirs: Mapping[str, Any], where: str = "preprocessor_config.json") -> ImageConfig:
    """Their settings as ours; raises ModelError for a key that is not known, or a value that is not honoured."""
    for key, value in theirs.items():
        if key not in _HARMLESS | _READ and value is not None:
            raise ModelError(f"{where} has an unknown key '{key}'.", nearest(key, _READ))
    if theirs.get("do_pad"):
        raise ModelError(f"{where}: do_pad is True.", "Padded images are not supported so far.")
    kind = str(theirs.get("image_processor_type") or theirs.get("feature_extractor_type") or "(none)")
    name = kind.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if name not in _FAMILIES:
        raise ModelError(f"{where}: image_processor_type is '{kind}'.", nearest(name, _FAMILIES))
    family = _FAMILIES[name]

    def get(key: str, default: Any) -> Any:
        value = theirs.get(key)
        return default if value is None else value

    resize: tuple[int, int] | int | None = None
    if get("do_resize", True):
        resize = _read_size(get("size", family.size), "size", where, square=family.square)
    crop: tuple[int, int] | None = None
    if get("do_center_crop", family.crop):
        whole = _read_size(get("crop_size", {"height": 224, "width": 224}), "crop_size", where, square=True)
        crop = (whole, whole) if isinstance(whole, int) else whole
    if name == "ConvNext" and isinstance(resize, int):
        if crop is not None:
            raise ModelError(f"{where}: do_center_crop is True.", "Of ConvNext images crop_pct says what is kept.")
        if resize < 384:  # small images are cut out of larger ones, large ones warped
            crop, resize = (resize, resize), int(resize / get("crop_pct", 224 / 256))
        else:
            resize = (resize, resize)
    normalises = get("do_normalize", True)
    return ImageConfig(
        resize=resize,
        resample=_resampling(get("resample", family.resample), where),
        crop=crop,
        scale=float(get("rescale_factor", 1 / 255)) if get("do_rescale", True) else None,
        mean=_channels(get("image_mean", family.mean), "image_mean", where) if normalises else None,
        std=_channels(get("image_std", family.std), "image_std", where) if normalises else None,
    )


def _resampling(value: Any, where: str) -> Image.Resampling:
    try:
        return Image.Resampling(value)
    except ValueError as error:
        raise ModelError(f"{where}: resample is {value!r}.", "Known: 0 to 5, as Pillow counts.") from error


def _channels(values: Any, key: str, where: str) -> tuple[float, ...]:
    numbers = values if isinstance(values, list | tuple) else [values] * 3
    if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
        raise ModelError(f"{where}: {key} is {values!r}.", "Give one number for each of 3 channels, or one for all.")
    return tuple(float(number) for number in numbers)


def _read_size(size: Any, key: str, where: str, *, square: bool) -> tuple[int, int] | int:
    """A pair of numbers, or one: the shorter side."""
    if isinstance(size, int):
        return (size, size) if square else size
    if isinstance(size, Sequence) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, Mapping):
        wanted = {name: value for name, value in size.items() if value is not None}
        if wanted.keys() == {"height", "width"}:
            return int(wanted["height"]), int(wanted["width"])
        if wanted.keys() == {"shortest_edge"}:
            return int(wanted["shortest_edge"])
    raise ModelError(f"{where}: {key} is {size!r}.", "Known: height and width, or shortest_edge.")
