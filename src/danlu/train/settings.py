"""What every kind of training is told: how long, how much at once, what to keep, and where. Knows no method."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from danlu.core.errors import ConfigError
from danlu.core.events import Events
from danlu.train.findings import Strictness
from danlu.train.method import MethodConfig
from danlu.train.optim import OptimConfig
from danlu.train.parallel import ParallelKind
from danlu.train.remat import RematMode
from danlu.train.world import World

Config = TypeVar("Config", bound="RunConfig")


@dataclass(frozen=True, kw_only=True)
class Usual:
    """What a task does where its config leaves the rate or the length open."""

    steps: int | None = None
    """How long it trains: so many steps, or …"""
    epochs: float | None = None
    """… so many times every row."""
    full_rate: float
    """Peak learning rate of the model's own weights, all of them or some."""
    adapter_rate: float
    """Peak learning rate of an adapter, which wants about ten times that or more (Schulman et al. 2025)."""

    def __str__(self) -> str:
        length = f"{self.steps} steps" if self.steps is not None else f"{self.epochs:g} epochs"
        return f"{length}, learning rate {self.full_rate:g}, with lora {self.adapter_rate:g}"


@dataclass(frozen=True, kw_only=True)
class RunConfig(MethodConfig):
    """What every kind of training has in common."""

    usual: ClassVar[Usual] = Usual(steps=100, full_rate=1e-4, adapter_rate=1e-3)

    steps: int | None = None
    """Optimiser steps. With epochs given too, whichever ends first; with neither, what is usual for the task."""
    epochs: float | None = None
    """How many times every row is seen. With steps given too, whichever ends first."""
    micro_tokens: int | None = None
    """Most tokens that go through the network at once; a step that has more is done in parts. None: all at once."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser."""
    validate_every: int = 40
    """Steps between losses on the validation rows."""
    max_validation_rows: int = 60
    """Validation rows used."""
    save_every: int = 20
    """Steps between checkpoints."""
    patience: int = 0
    """Stop after this many validations without a better loss; 0 for never."""
    keep: Literal["last", "best"] = "last"
    """Which weights to end with: the last ones, or those of the best validation."""
    audit: Strictness = "refuse"
    """What faults in the data do: refuse the run, warn only, or off."""
    parallel: ParallelKind = "ddp"
    """With several processes: each has all weights (ddp), or they are spread over the processes (fsdp)."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number type the network computes in; auto: bf16 where this machine is fast at it. Updates are fp32 always."""
    recompute: RematMode = "none"
    """Activations that are made again going backward instead of kept: none, half of the blocks, or full."""
    int8_base: bool = False
    """Whether an adapter's frozen base is held in 8 bits (QLoRA): a quarter of the memory, a little slower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.int8_base and self.lora is None:
            raise ConfigError("int8_base is given without lora.", "8-bit weights cannot train; give lora.")
        for name in ("steps", "validate_every", "save_every", "micro_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more.")
        if self.epochs is not None and self.epochs <= 0:
            raise ConfigError(f"epochs is {self.epochs}.", "Use a positive number such as 3.")
        for name in ("patience", "max_validation_rows"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use 0 or more.")


def settle(config: Config) -> Config:
    """``config`` with the length and the rate it leaves open filled in; done twice it changes nothing more.

    The one place where they are chosen: what trains decides the rate, the task the length (``usual``).
    """
    if config.optim.learning_rate is None:
        rate = config.usual.full_rate if config.lora is None else config.usual.adapter_rate
        config = replace(config, optim=replace(config.optim, learning_rate=rate))
    if config.steps is None and config.epochs is None:
        config = replace(config, steps=config.usual.steps, epochs=config.usual.epochs)
    return config


def count_steps(config: RunConfig, per_epoch: int) -> int:
    """Steps of a run whose rows last ``per_epoch`` steps: those asked for or those of all epochs, whichever is less."""
    epochs = [] if config.epochs is None else [max(1, round(config.epochs * per_epoch))]
    return min([*epochs, *([] if config.steps is None else [config.steps])])


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where a run does its work."""

    work: Path
    """Keeps checkpoints; the same folder again goes on from the newest."""
    log_path: Path
    """Gets the curve when the run is done."""
    events: Events
    """Progress and messages."""
    seed: int
    """For everything random."""
    world: World = field(default_factory=World)
    """The processes that train together."""
