"""A small ResNet under torchvision's names, and what it computes, written with torch.nn.functional."""

import torch
from torch import Tensor, nn

SIZES = (8, 8, 16, 16)
DEPTHS = (2, 1, 2, 1)


def resnet_state(kind: str) -> dict[str, Tensor]:
    """Random weights under torchvision's names, which number blocks within layers."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}

    def conv(name: str, norm: str, into: int, out: int, kernel: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, into, kernel, kernel) / (into * kernel**2) ** 0.5
        state.update({f"{norm}.{part}": 0.5 + torch.rand(out) for part in ("weight", "running_var")})
        state.update({f"{norm}.{part}": 0.3 * torch.randn(out) for part in ("bias", "running_mean")})
        state[f"{norm}.num_batches_tracked"] = torch.tensor(5)

    grow = 4 if kind == "bottleneck" else 1
    conv("conv1", "bn1", 3, 8, 7)
    into = 8
    for stage, (size, depth) in enumerate(zip(SIZES, DEPTHS, strict=True), start=1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            sizes = (into, size, size, size * 4) if kind == "bottleneck" else (into, size, size)
            kernels = (1, 3, 1) if kind == "bottleneck" else (3, 3)
            for i, kernel in enumerate(kernels):
                conv(f"{name}.conv{i + 1}", f"{name}.bn{i + 1}", sizes[i], sizes[i + 1], kernel)
            if into != size * grow or (stage > 1 and block == 0):
                conv(f"{name}.downsample.0", f"{name}.downsample.1", into, size * grow, 1)
            into = size * grow
    return state | {"fc.weight": torch.randn(3, into), "fc.bias": torch.randn(3)}


def resnet_logits(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """ResNet as the paper has it, written with torch.nn.functional over torchvision's names."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        x = nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        parts = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return nn.functional.batch_norm(x, *parts)

    x = nn.functional.max_pool2d(conv(x, "conv1", "bn1", 2).relu(), 3, stride=2, padding=1)
    for stage, depth in enumerate(DEPTHS, start=1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            is_bottleneck = f"{name}.conv3.weight" in state
            strides = (1, stride, 1) if is_bottleneck else (stride, 1)
            y = x
            for i, step in enumerate(strides, start=1):
                y = conv(y, f"{name}.conv{i}", f"{name}.bn{i}", step)
                y = y.relu() if i < len(strides) else y
            if f"{name}.downsample.0.weight" in state:
                x = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = (x + y).relu()
    return nn.functional.linear(x.mean(dim=(2, 3)), state["fc.weight"], state["fc.bias"])
