"""What every kind of training is told: how long, how much at once, what to keep, and where. Knows no method."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from danlu.core.errors import ConfigError
from danlu.core.events import Events
from danlu.train.audit import Strictness
from danlu.train.method import MethodConfig
from danlu.train.optim import OptimConfig
from danlu.train.parallel import ParallelKind
from danlu.train.remat import RematMode
from danlu.train.world import World


@dataclass(frozen=True, kw_only=True)
class RunConfig(MethodConfig):
    """What every kind of training has in common."""

    steps: int = 100
    """Optimiser steps."""
    epochs: float | None = None
    """Instead of steps: how many times every row is seen."""
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
