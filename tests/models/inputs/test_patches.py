import pytest
import torch
from torch import nn

from danlu.core.errors import DataError, ModelError
from danlu.models.inputs.patches import PatchesConfig, PatchInput

CONFIG = PatchesConfig(width=8, image_size=(12, 8), patch_size=(4, 2))


def make(config: PatchesConfig = CONFIG) -> PatchInput:
    torch.manual_seed(0)
    patches = config.make()
    for parameter in patches.parameters():
        nn.init.normal_(parameter)
    return patches.eval()


def test_its_linear_is_a_convolution_with_the_patch_as_kernel_and_stride() -> None:
    patches, images = make(), torch.randn(2, 3, 12, 8)
    weight = patches.projection.weight.view(8, 3, 4, 2)
    grid = nn.functional.conv2d(images, weight, patches.projection.bias, stride=(4, 2))  # (B, D, 3, 4)
    expected = torch.cat([patches.class_token.expand(2, 1, -1), grid.flatten(2).transpose(1, 2)], dim=1)
    expected = (expected + patches.positions).flatten(0, 1)
    torch.testing.assert_close(patches(images, torch.zeros(0)), expected, atol=1e-5, rtol=1e-5)
    assert patches.lengths(images) == [13, 13]


def test_positions_of_another_size_are_interpolated_on_the_grid_of_their_own() -> None:
    patches = make()
    with torch.no_grad():
        rows = torch.arange(3.0).view(3, 1, 1).expand(3, 4, 8)  # positions that say which row
        patches.positions[1:] = rows.flatten(0, 1)
    table = patches._positions(6, 4)
    assert table.shape == (25, 8)
    assert torch.equal(table[0], patches.positions[0])
    middle = table[1:].view(6, 4, 8)
    assert torch.allclose(middle, middle[:, :1, :1].expand_as(middle), atol=1e-5)
    assert (middle[1:, 0, 0] > middle[:-1, 0, 0]).all()


def test_pixels_that_fill_no_patch_are_left_out() -> None:
    patches, images = make(), torch.randn(1, 3, 15, 9)
    assert torch.equal(patches(images, torch.zeros(0)), patches(images[:, :, :12, :8], torch.zeros(0)))


@pytest.mark.parametrize("shape", [(1, 1, 12, 8), (3, 12, 8), (1, 3, 3, 8)])
def test_what_is_no_batch_of_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as error:
        make().lengths(torch.zeros(shape))
    assert str(error.value).startswith(
        f"Images of shape {shape} cannot be cut into patches. Give (images, 3, height, wid"
    )


def test_a_patch_must_fit_into_the_image() -> None:
    with pytest.raises(ModelError, match=r"patches of \(16, 16\) pixels do not fit into images of \(8, 8\)"):
        PatchesConfig(width=8, image_size=(8, 8), patch_size=(16, 16))
    with pytest.raises(ModelError, match=r"width is 0\. It must be positive"):
        PatchesConfig(width=0, image_size=(8, 8), patch_size=(4, 4))
