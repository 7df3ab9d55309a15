"""One of two processes that train with rows spread over both (FSDP2's DTensors, gloo): the same numbers as in one?"""

from __future__ import annotations

import datetime

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from danlu.train import muon
from danlu.train.average import WeightAverage
from danlu.train.clip import clip_by_norm
from danlu.train.optim import NamedOptimizer, OptimConfig, make_optimizer
from danlu.train.sharded import like, whole

SHAPES = {"table": (65, 64), "qkv": (95, 64), "experts": (3, 64, 40), "norm": (9,), "scale": (), "one": (1, 64)}
"""Rows that two processes cannot halve, and one row: the second process has none of it."""
CONFIGS = {
    name: OptimConfig(name=name, learning_rate=0.01, weight_decay=0.1)  # pyright: ignore[reportArgumentType]
    for name in ("adamw", "muon", "sgd", "adamw8bit")
}


def numbers(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def made(config: OptimConfig, model: dict[str, Tensor] | None) -> tuple[dict[str, nn.Parameter], NamedOptimizer]:
    """Parameters, spread as ``model`` is, and their optimiser."""
    values = {name: value if model is None else like(value, model[name]) for name, value in numbers(0).items()}
    parameters = {name: nn.Parameter(value) for name, value in values.items()}
    optimizer = make_optimizer(
        parameters, config, hidden={"qkv", "experts"}, embeddings={"table"}, parts={"qkv": (64, 15, 16)}
    )
    return parameters, optimizer


def trained(config: OptimConfig, model: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Weights, state, averages and norms after three clipped steps, resumed before the last one, all whole."""
    parameters, optimizer = made(config, model)
    average = WeightAverage(parameters, 0.5)
    results: dict[str, Tensor] = {}
    for step in range(1, 4):
        for name, gradient in numbers(step).items():
            parameters[name].grad = gradient if model is None else like(gradient, model[name])
        gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        results[f"norm.{step}"] = torch.tensor(clip_by_norm(gradients, 5.0))
        optimizer.step()
        average.update()
        if step == 2:
            kept = {name: whole(tensor).clone() for name, tensor in optimizer.state_tensors().items()}
            averages = {name: whole(tensor).clone() for name, tensor in average.state_tensors().items()}
            weights = {name: whole(parameter.detach()).clone() for name, parameter in parameters.items()}
            parameters, optimizer = made(config, model)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(like(weights[name], parameter.detach()))
            average = WeightAverage(parameters, 0.5)
            optimizer.load_state_tensors(kept)
            average.load_state_tensors(averages)
    with average.swapped():
        results |= {f"average.{name}": whole(parameter.detach()).clone() for name, parameter in parameters.items()}
    results |= {name: whole(parameter.detach()) for name, parameter in parameters.items()}
    return results | {name: whole(tensor) for name, tensor in optimizer.state_tensors().items()}


def work() -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    muon.compute_dtype = lambda device: torch.float32  # so that nothing hides behind rounding
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    mesh = init_device_mesh("cpu", (2,))
    model = {
        name: distribute_tensor(value, mesh, [Shard(0)]) if value.ndim else value for name, value in numbers(0).items()
    }
    for name, config in CONFIGS.items():
        alone, together = trained(config, None), trained(config, model)
        assert alone.keys() == together.keys()
        for key, expected in alone.items():
            assert torch.allclose(together[key], expected, rtol=1e-6, atol=1e-6), f"{name}: {key}"
    dist.destroy_process_group()
    print("equal")


if __name__ == "__main__":
    work()
