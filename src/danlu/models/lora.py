"""What an adapter is made of (LoRA, Hu et al. 2021): its settings, and the rank of each projection of each linear.

Knows no files (peft.py) and no training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from danlu.core.errors import ConfigError
from danlu.models.grouped import GroupedLinear, PackedGroupedLinear
from danlu.models.linear import PackedLinear, rows_of_parts
from danlu.models.model import Model
from danlu.models.quant import Int8GroupedLinear, Int8Linear

ALL = "all"
"""The target that stands for every linear of every block."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which linears get an adapter, and how large."""

    rank: int = 4
    """Columns of A and B: the adapter's size."""
    alpha: float = 8.0
    """The adapter's output is scaled by alpha / rank."""
    targets: tuple[str, ...] = (ALL,)
    """Linears that get one: all, names of ours (qkv, gate_up, …), or how names of the checkpoint end (q_proj, …)."""
    exclude: tuple[str, ...] = ()
    """Linears that get none although they are targets; named in the same way."""
    layers: tuple[int, ...] | None = None
    """Numbers of the blocks whose linears get one, from 0; null for all."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Another rank for some linears, by how their names end."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Another alpha for some linears, by how their names end."""
    rslora: bool = False
    """Scale by alpha / √rank instead: large ranks then learn as fast as small ones."""
    dora: bool = False
    """Also learn the length of each row of the weight, apart from its direction."""
    dropout: float = 0.0
    """Share of the adapter's input dropped in training."""
    plus_ratio: float = 1.0
    """B learns this many times as fast as A (LoRA+ proposes 16); 1 for equally fast."""
    train_also: tuple[str, ...] = ()
    """Weights that train in full beside the adapter: whole parts of names, ours or the checkpoint's (head, lm_head)."""

    def __post_init__(self) -> None:
        for name, rank in {"rank": self.rank, **{f"ranks.{n}": r for n, r in self.ranks.items()}}.items():
            if rank < 1:
                raise ConfigError(f"{name} is {rank}.", "Use 1 or more.")
        for name, alpha in {"alpha": self.alpha, **{f"alphas.{n}": a for n, a in self.alphas.items()}}.items():
            if alpha <= 0:
                raise ConfigError(f"{name} is {alpha}.", "Use a positive number such as 8.0.")
        if not self.targets:
            raise ConfigError("targets is empty.", "Name at least one linear, or 'all'.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}.", "Use 0 or more, and less than 1.")
        if self.plus_ratio < 1.0:
            raise ConfigError(f"plus_ratio is {self.plus_ratio}.", "Use 1 (off) or more, for example 16.")
        if self.layers is not None and not self.layers:
            raise ConfigError("layers is empty.", "Name at least one block, or leave it out for all.")

    def part(self, rows: int, ours: str, theirs: str) -> LoraPart:
        """The adapter of the projection that we and the checkpoint call so."""
        rank = next((r for name, r in self.ranks.items() if means_linear(name, ours, theirs)), self.rank)
        alpha = next((a for name, a in self.alphas.items() if means_linear(name, ours, theirs)), self.alpha)
        return LoraPart(rows, rank, alpha, alpha / (math.sqrt(rank) if self.rslora else rank))


@dataclass(frozen=True)
class LoraPart:
    """One projection of a linear: its rows, and its adapter's numbers; rank 0 for none."""

    rows: int
    rank: int = 0
    alpha: float = 0.0
    scaling: float = 0.0


Grouped = GroupedLinear | Int8GroupedLinear | PackedGroupedLinear
"""The linears of experts."""
BlockLinear = nn.Linear | Int8Linear | PackedLinear | Grouped


def block_linears(model: Model) -> dict[str, tuple[BlockLinear, tuple[str, ...]]]:
    """Every linear of the blocks: our name → the layer and what the checkpoint calls its projections."""
    weights = model.architecture.weights(model.config)
    return {
        name: (module, tuple(n.removesuffix(".weight") for n in weights[f"{name}.weight"].names))
        for name, module in model.network.named_modules()
        if ".blocks." in f".{name}" and isinstance(module, BlockLinear)
    }


def parts_for(name: str, linear: nn.Module, theirs: Sequence[str], config: LoraConfig) -> list[LoraPart]:
    """The adapter of each projection of one linear."""
    ours, block = name.rpartition(".")[2], _block_of(name)
    wanted = config.layers is None or block in config.layers
    rows = rows_of_parts(linear)
    rows = rows * (len(theirs) // len(rows)) if len(theirs) > 1 else (sum(rows),)

    def part(height: int, their: str) -> LoraPart:
        is_target = any(means_linear(target, ours, their) for target in config.targets)
        is_excluded = any(means_linear(target, ours, their) for target in config.exclude)
        return config.part(height, ours, their) if wanted and is_target and not is_excluded else LoraPart(height)

    parts = [part(height, their) for height, their in zip(rows, theirs, strict=True)]
    if not isinstance(linear, Grouped):
        return parts
    first = parts[: len(linear.parts)]
    if parts != first * (len(parts) // len(first)):
        raise ConfigError(f"The experts of {name} would have different adapters.", "Name them all alike.")
    return first


def _block_of(name: str) -> int:
    """The number of the block that a layer is in."""
    found = re.search(r"\bblocks\.(\d+)\.", name)
    assert found is not None
    return int(found[1])


def means_linear(target: str, ours: str, theirs: str) -> bool:
    """Whether a target means the linear that we and the checkpoint call so: the end of its name is enough."""
    return target in (ALL, ours) or f".{theirs}".endswith(f".{target}")


def check_names(config: LoraConfig, found: Mapping[str, tuple[nn.Module, tuple[str, ...]]]) -> None:
    """Raise ConfigError for a name or block that no linear has."""
    pairs = [(name.rpartition(".")[2], their) for name, (_, theirs) in found.items() for their in theirs]
    for field_name in ("targets", "exclude", "ranks", "alphas"):
        for target in getattr(config, field_name):
            if not any(means_linear(target, ours, their) for ours, their in pairs):
                known = sorted({ALL, *(ours for ours, _ in pairs), *(their.rpartition(".")[2] for _, their in pairs)})
                raise ConfigError(f"{field_name} has {target!r}.", f"Known: {', '.join(known)}.")
    blocks = {_block_of(name) for name in found}
    for block in config.layers or ():
        if block not in blocks:
            raise ConfigError(f"layers has {block}.", f"The model has blocks {min(blocks)} to {max(blocks)}.")
