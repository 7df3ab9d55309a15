"""Patches in: an image becomes a grid of squares, each one embedding (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.core.errors import DataError, ModelError
from danlu.models.linear import Linear
from danlu.models.norms import NormConfig


@dataclass(frozen=True, kw_only=True)
class PatchesConfig:
    """How images are cut and embedded."""

    width: int
    """D: size of an embedding."""
    image_size: tuple[int, int]
    """Height and width in pixels that the table of positions was made for."""
    patch_size: tuple[int, int]
    """Height and width of a patch in pixels."""
    channels: int = 3
    """Numbers a pixel has."""
    class_token: bool = True
    """Whether a learnt embedding, which stands for the whole image, comes before the patches."""
    bias: bool = True
    """Whether patch embeddings shift."""
    norm: NormConfig | None = None
    """A norm over the sum of patch and position."""
    dropout: float = 0.0
    """Share dropped in training."""

    def __post_init__(self) -> None:
        for name in ("width", "channels"):
            if getattr(self, name) < 1:
                raise ModelError(
                    f"Model config: {name} is {getattr(self, name)}.", "It must be positive; is config.json whole?"
                )
        if min(self.patch_size) < 1 or min(self.grid) < 1:
            raise ModelError(
                f"Model config: patches of {self.patch_size} pixels do not fit into images of {self.image_size}.",
                "A patch must be at least one pixel and no larger than the image.",
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in an image of ``image_size``."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_positions(self) -> int:
        """Embeddings of an image of ``image_size``."""
        return self.grid[0] * self.grid[1] + self.class_token

    def make(self) -> PatchInput:
        """The module."""
        return PatchInput(self)


class PatchInput(nn.Module):
    """Class token and patches, plus learnt positions. One linear embeds a patch: the same numbers as a convolution."""

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__()
        self.config = config
        height, width = config.patch_size
        self.projection = Linear(config.channels * height * width, config.width, bias=config.bias)
        if config.class_token:
            self.class_token = nn.Parameter(torch.zeros(config.width))
        self.positions = nn.Parameter(torch.zeros(config.num_positions, config.width))
        self.norm = None if config.norm is None else config.norm.make(config.width)

    def lengths(self, images: Tensor) -> list[int]:
        """How many embeddings each image of a batch becomes; raises DataError when it cannot be cut into patches.

        images: (B, C, height, width).
        """
        rows, columns = self._grid(images)
        return [rows * columns + self.config.class_token] * images.shape[0]

    def forward(self, images: Tensor, positions: Tensor) -> Tensor:
        """images: (B, C, height, width) → (N, D), images laid end to end. Positions follow from the size of the images:
        for another than the config's they are interpolated, and pixels that fill no patch are left out."""
        config = self.config
        rows, columns = self._grid(images)
        height, width = config.patch_size
        x = images[:, :, : rows * height, : columns * width].to(self.positions.dtype)
        x = x.reshape(-1, config.channels, rows, height, columns, width)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)  # (B·patches, C·height·width)
        x = self.projection(x).view(images.shape[0], rows * columns, -1)
        if config.class_token:
            x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], dim=1)
        x = (x + self._positions(rows, columns)).flatten(0, 1)  # (N, D)
        if self.norm is not None:
            x = self.norm(x)
        return nn.functional.dropout(x, config.dropout) if config.dropout and self.training else x

    def _grid(self, images: Tensor) -> tuple[int, int]:
        config = self.config
        rows, columns = (size // patch for size, patch in zip(images.shape[-2:], config.patch_size, strict=True))
        if images.dim() != 4 or images.shape[1] != config.channels or not rows or not columns:
            raise DataError(
                f"Images of shape {tuple(images.shape)} cannot be cut into patches.",
                f"Give (images, {config.channels}, height, width), no smaller than {config.patch_size} pixels.",
            )
        return rows, columns

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The table for a grid of another size: bicubic, as vision transformers are moved to other resolutions."""
        config = self.config
        if (rows, columns) == config.grid:
            return self.positions
        first, table = self.positions.tensor_split([int(config.class_token)])
        square = table.view(1, *config.grid, -1).permute(0, 3, 1, 2).float()  # (1, D, rows, columns)
        square = nn.functional.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([first, square.flatten(2).squeeze(0).t().to(first.dtype)])


plugin = PatchesConfig
