"""How much of a model trains: all of it, some parts of it, or an adapter. Knows no data, no loss and no optimiser.

trainable = prepare(model, MethodConfig(lora=LoraConfig(rank=8)))   # name in the network → parameter
factors = rates(model.network, config)                              # name → factor on the learning rate (LoRA+)
save_trained(model, config, folder, base="…")                       # an adapter, or a whole model folder
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from danlu.core.errors import ConfigError, ModelError
from danlu.models.grouped import PackedGroupedLinear
from danlu.models.linear import PackedLinear
from danlu.models.model import Model
from danlu.models.save import save_model
from danlu.train.adapter import save_adapter
from danlu.train.grouped_lora import LoraGroupedLinear
from danlu.train.lora import LoraConfig, LoraLinear, add_lora
from danlu.train.names import select


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """Which of the model's own weights train; all others are frozen."""

    train: tuple[str, ...] = ()
    """What trains: whole parts of names, ours or the checkpoint's (head, stack.blocks.3, lm_head, *norm)."""
    last_blocks: int | None = None
    """The last so many blocks of each stack train, with the norm and the head behind them."""
    freeze: tuple[str, ...] = ()
    """What does not train; without train and last_blocks everything else does."""

    def __post_init__(self) -> None:
        if self.last_blocks is not None and self.last_blocks < 1:
            raise ConfigError(f"last_blocks is {self.last_blocks}.", "Use 1 or more, or name what trains in train.")
        if not self.train and not self.freeze and self.last_blocks is None:
            raise ConfigError("parts says nothing.", "Give train, last_blocks or freeze; leave parts out to train all.")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How much of a model trains: everything, unless ``lora`` or ``parts`` is given."""

    lora: LoraConfig | None = None
    """A low-rank adapter on a frozen model."""
    parts: PartsConfig | None = None
    """Some of the model's own weights; all others are frozen."""

    def __post_init__(self) -> None:
        if self.lora is not None and self.parts is not None:
            raise ConfigError("lora and parts are both given.", "Give one; lora.train_also trains weights beside it.")


def prepare(model: Model, config: MethodConfig) -> dict[str, nn.Parameter]:
    """Freeze and wrap in place; returns what trains by the names of ``network.named_parameters()``, tied ones once.

    Number types stay as they are; adapters are fp32. Where adapters start is drawn from torch's generator.
    Raises ConfigError for names that mean nothing, ModelError for weights that cannot train.
    """
    network = model.network
    if any(isinstance(layer, PackedLinear | PackedGroupedLinear) for layer in network.modules()):
        raise ModelError("This model is packed for inference.", "Load it with load_model, which does not pack.")
    if config.lora is not None:
        add_lora(model, config.lora)
    else:
        if model.scheme is not None:
            raise ModelError(
                f"The weights of this model are quantised ({model.scheme}) and cannot train.",
                "Train a LoRA adapter on it, or start from the plain model.",
            )
        chosen = dict(network.named_parameters()) if config.parts is None else _chosen(model, config.parts)
        network.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
    trainable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trainable, "a method that trains nothing"
    return trainable


def _chosen(model: Model, config: PartsConfig) -> dict[str, nn.Parameter]:
    """What ``config`` says trains."""
    chosen = select(model, config.train, "train")
    if config.last_blocks is not None:
        chosen |= _last_blocks(model.network, config.last_blocks)
    elif not config.train:
        chosen = dict(model.network.named_parameters())
    frozen = select(model, config.freeze, "freeze")
    left = {name: parameter for name, parameter in chosen.items() if name not in frozen}
    if not left:
        raise ConfigError("parts leaves nothing to train.", "Take names out of freeze.")
    return left


def _last_blocks(network: nn.Module, count: int) -> dict[str, nn.Parameter]:
    """The last blocks of every stack, and what stands behind a stack: its norm, and the head. A table that the head
    shares with the input belongs to the input."""
    names = [name for name, _ in network.named_parameters()]
    placed = [(name, re.search(r"^(.*\bblocks\.)(\d+)\.", name)) for name in names]
    sizes: dict[str, int] = {}
    for _, found in placed:
        if found is not None:
            sizes[found[1]] = max(sizes.get(found[1], 0), int(found[2]) + 1)
    if not sizes:
        raise ConfigError("last_blocks is given, but this network has no blocks.", "Name what trains in train.")
    if count > max(sizes.values()):
        raise ConfigError(f"last_blocks is {count}; the model has {max(sizes.values())}.", "Use fewer.")
    chosen = dict(network.named_parameters())
    behind = re.compile(r"(^|\.)(head|stack\.norm)\.")
    return {
        name: chosen[name]
        for name, found in placed
        if (found is None and behind.search(name)) or (found is not None and int(found[2]) >= sizes[found[1]] - count)
    }


def rates(network: nn.Module, config: MethodConfig) -> dict[str, float]:
    """Factors on the learning rate by parameter name; what is not in it has 1. LoRA+ lets B learn faster than A."""
    if config.lora is None or config.lora.plus_ratio == 1.0:
        return {}
    return {
        f"{name}.b.{index}": config.lora.plus_ratio
        for name, layer in network.named_modules()
        if isinstance(layer, LoraLinear | LoraGroupedLinear)
        for index in range(len(layer.b))
    }


def save_trained(model: Model, config: MethodConfig, folder: Path, base: str) -> None:
    """Write what was trained: a PEFT adapter on ``base``, or a whole model folder."""
    if config.lora is not None:
        save_adapter(model, folder, config.lora, base)
    else:
        save_model(model, folder)
