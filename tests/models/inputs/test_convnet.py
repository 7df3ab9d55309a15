from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from danlu.core.errors import DataError
from danlu.models.inputs.convnet import ConvBlockConfig, ConvConfig, ConvInput, ConvNetConfig

CONFIG = ConvNetConfig(
    blocks=(
        ConvBlockConfig(layers=(ConvConfig(channels=6, kernel=7, stride=2),), pool=True),
        ConvBlockConfig(
            layers=(ConvConfig(channels=4, kernel=1), ConvConfig(channels=8, stride=2, activation=None)),
            shortcut="projection",
            activation="relu",
        ),
        ConvBlockConfig(layers=(ConvConfig(channels=8, depthwise=True, activation="relu6"),), shortcut="identity"),
    )
)


def make(config: ConvNetConfig = CONFIG) -> ConvInput:
    torch.manual_seed(0)
    net = config.make()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var, module.bias, module.running_mean):
                nn.init.uniform_(tensor, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
    return net.eval()


def run(net: ConvInput, images: Tensor) -> Tensor:
    return net(images, torch.zeros(0))


def some_images() -> Tensor:
    return torch.randn(2, 3, 33, 46, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("padding", ["centred", "same"])
def test_it_says_beforehand_how_many_embeddings_an_image_becomes(padding: str) -> None:
    net = make(replace(CONFIG, padding=padding))  # pyright: ignore[reportArgumentType]
    for height, width in ((33, 46), (1, 1), (8, 17), (16, 16)):
        images = torch.randn(3, 3, height, width)
        assert sum(net.lengths(images)) == len(run(net, images))


def test_embeddings_are_the_pixels_of_the_last_grid_row_by_row() -> None:
    net, images = make(), some_images()
    grid = images
    for block in net.blocks:
        grid = block(grid)
    torch.testing.assert_close(run(net, images)[7], grid[0, :, 1, 1])  # a grid of 5 × 6
    assert len(run(net, images)) == 2 * 5 * 6


def test_folded_norms_change_nothing() -> None:
    net, images = make(), some_images()
    with torch.no_grad():
        folded = run(net, images)
    torch.testing.assert_close(folded, run(net, images), atol=1e-5, rtol=1e-5)
    assert set(net.state_dict()) == {name for name, _ in [*net.named_parameters(), *net.named_buffers()]}


@pytest.mark.parametrize("how", ["in place", "replaced", "statistics", "moved"])
def test_folded_norms_follow_every_change_of_a_weight(how: str) -> None:
    net, images = make(), some_images()
    layer = net.blocks[0].layers[0]  # pyright: ignore
    with torch.no_grad():
        before = run(net, images)
        if how == "in place":
            layer.convolution.weight.mul_(2.0)
        elif how == "replaced":
            layer.norm.bias = nn.Parameter(layer.norm.bias + 1.0)
        elif how == "statistics":
            layer.norm.running_mean.add_(1.0)
        else:
            net.bfloat16()
        after = run(net, images).float()
    assert not torch.equal(before, after)
    tolerance = 0.2 if how == "moved" else 1e-5
    torch.testing.assert_close(after, run(net, images).float(), atol=tolerance, rtol=tolerance)


def test_training_normalises_by_the_batch_and_remembers_it() -> None:
    net, images = make().train(), some_images()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    run(net, images).square().mean().backward()
    assert all(not torch.equal(before[name], buffer) for name, buffer in net.named_buffers())
    assert all(parameter.grad is not None for parameter in net.parameters())
    with torch.no_grad():
        trained = run(net.eval(), images)
    torch.testing.assert_close(trained, run(net, images), atol=1e-5, rtol=1e-5)


def test_statistics_stay_in_fp32_when_weights_are_bf16() -> None:
    net = make()
    exact = run(net, some_images())
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.bfloat16()
    with torch.no_grad():
        folded = run(net, some_images())
    plain = run(net, some_images())
    assert folded.dtype == plain.dtype == torch.bfloat16
    for found in (folded, plain):
        assert (found.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (0, 3, 8, 8)])
def test_what_is_no_batch_of_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as error:
        make().lengths(torch.zeros(shape))
    assert str(error.value) == f"Images of shape {shape} do not fit the model. Give (images, 3, height, width)."
