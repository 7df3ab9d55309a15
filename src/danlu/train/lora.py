"""LoRA (Hu et al. 2021) on the core's linears: a frozen base, plain or 8-bit, and two thin matrices a projection.

Our linears may hold several projections of a checkpoint (queries, keys and values are one). Their A matrices are
stacked and their B matrices stand on a diagonal, so one fused linear costs two extra thin products, not six. With
rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024) and LoRA+ (Hayou et al. 2024). Knows no files: adapter.py does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from danlu.core.errors import ConfigError, ModelError
from danlu.models.grouped import GroupedLinear
from danlu.models.linear import rows_of_parts
from danlu.models.model import Model, set_layer
from danlu.models.quant import Int8GroupedLinear, Int8Linear
from danlu.train.dora import changed_lengths, row_squares
from danlu.train.grouped_lora import LoraGroupedLinear
from danlu.train.names import select

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


class LoraLinear(nn.Module):
    """y = x Wᵀ + scaling (x Aᵀ) Bᵀ, W frozen. A starts random, B at zero, so y starts as the base's.

    With DoRA each row of the sum of both weights gets the length ``m``, which starts as that of W's row. A projection
    of rank 0 is left as it is. Parameters are fp32 whatever the base is.
    """

    def __init__(
        self, base: nn.Linear | Int8Linear, parts: Sequence[LoraPart], *, dora: bool = False, dropout: float = 0.0
    ) -> None:  # fmt: skip
        super().__init__()
        self.base = base
        self.parts = tuple(parts)
        self.dropout = dropout
        self._kept = [part for part in parts if part.rank]
        self._ranks = [part.rank for part in self._kept]
        device, width = base.weight.device, base.weight.shape[1]
        bound = 1.0 / math.sqrt(width)  # kaiming_uniform with a = √5, as peft initialises
        self.a = nn.Parameter(torch.empty(sum(self._ranks), width).uniform_(-bound, bound).to(device))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(part.rows, part.rank, device=device)) for part in self._kept)
        self.m: nn.ParameterList | None = None
        self._squares: list[Tensor] = []
        if dora:
            self._squares = [row_squares(base, start, start + part.rows) for start, part in self._starts()]
            self.m = nn.ParameterList(nn.Parameter(squares.sqrt()) for squares in self._squares)

    @property
    def chosen(self) -> tuple[bool, ...]:
        """Which projections have an adapter."""
        return tuple(part.rank > 0 for part in self.parts)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, O); adapters are kept in fp32 and cast to the type of ``x`` for the product."""
        read = nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x
        low = nn.functional.linear(read, self.a.to(x.dtype))  # (N, ranks)
        y, up = self.base(x), self._up()
        if self.m is not None:
            factor = self._factor()
            plain = y if read is x else self.base(read)
            plain = plain if self.base.bias is None else plain - self.base.bias
            y = torch.addcmul(y, plain, (factor - 1.0).to(x.dtype))
            up = up * factor.unsqueeze(1)
        return torch.addmm(y, low, up.to(x.dtype).t())

    def delta(self) -> Tensor:
        """The change of W this adapter makes, fp32 (O, D)."""
        change = self._up().float() @ self.a.float()
        if self.m is None:
            return change
        assert isinstance(self.base, nn.Linear)
        weight = self.base.weight.detach().float()
        return (weight + change) * self._factor().unsqueeze(1) - weight

    def tensors(self) -> list[Mapping[str, Tensor]]:
        """A (r, D), B (rows, r) and with DoRA lengths (rows,) of each projection that has an adapter, as PEFT calls
        them."""
        found: list[Mapping[str, Tensor]] = []
        for i, (a, b) in enumerate(zip(self.a.split(self._ranks), self.b, strict=True)):
            lengths = {} if self.m is None else {"lora_magnitude_vector": self.m[i]}
            found.append({"lora_A.weight": a, "lora_B.weight": b, **lengths})
        return found

    def _up(self) -> Tensor:
        """All B matrices on a diagonal, scaled, no columns for projections without one: (O, ranks)."""
        if len(self.parts) == 1:
            return self.b[0] * self.parts[0].scaling
        waiting = iter(self.b)
        blocks = (next(waiting) * p.scaling if p.rank else self.a.new_empty(p.rows, 0) for p in self.parts)
        return torch.block_diag(*blocks)

    def _factor(self) -> Tensor:
        """What DoRA multiplies each row with, 1 for projections without an adapter: fp32 (O,)."""
        assert self.m is not None
        pieces: list[Tensor] = []
        adapted = zip(self._starts(), self._squares, self.a.split(self._ranks), self.b, self.m, strict=True)
        end = 0
        for (start, part), squares, a, b, m in adapted:
            lengths = changed_lengths(self.base, start, squares, a, b, part.scaling)
            pieces += [torch.ones(start - end, device=m.device), m / lengths]
            end = start + part.rows
        rest = sum(part.rows for part in self.parts) - end
        return torch.cat([*pieces, torch.ones(rest, device=self.a.device)])

    def _starts(self) -> list[tuple[int, LoraPart]]:
        """The first row of each projection that has an adapter."""
        found, start = list[tuple[int, LoraPart]](), 0
        for part in self.parts:
            if part.rank:
                found.append((start, part))
            start += part.rows
        return found


def add_lora(model: Model, config: LoraConfig) -> list[nn.Parameter]:
    """Wrap the target linears of a model in place; returns the trainable parameters (everything else is frozen).

    Raises ConfigError for a name that means nothing, ModelError when no linear of the model takes an adapter.
    """
    model.network.requires_grad_(False)
    found = block_linears(model)
    if not found:
        raise ModelError("No linear of this model takes an adapter.", "Fine-tune plain weights, not a packed model.")
    _check_names(config, found)
    also = select(model, config.train_also, "train_also")
    trainable: list[nn.Parameter] = []
    for name, (linear, theirs) in found.items():
        parts = _parts_for(name, linear, theirs, config)
        if not any(part.rank for part in parts):
            continue
        if f"{name}.weight" in also or f"{name}.bias" in also:
            raise ConfigError(f"train_also means {name}, which has an adapter.", "Put it into exclude too.")
        if isinstance(linear, GroupedLinear | Int8GroupedLinear):
            if config.dora:
                raise ConfigError(f"dora cannot be used on experts ({name}).", "Put them into exclude.")
            wrapped = LoraGroupedLinear(linear, parts, dropout=config.dropout)
        else:
            wrapped = LoraLinear(linear, parts, dora=config.dora, dropout=config.dropout)
        set_layer(model.network, name, wrapped.train(linear.training))
        trainable += [p for n, p in wrapped.named_parameters() if not n.startswith("base.")]
    if not trainable:
        raise ConfigError("No linear is left to adapt.", "Take names out of exclude, or blocks into layers.")
    for parameter in also.values():
        parameter.requires_grad_(True)
    return trainable + list(also.values())


def _parts_for(
    name: str, linear: nn.Module, theirs: Sequence[str], config: LoraConfig
) -> list[LoraPart]:  # fmt: skip
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
    if not isinstance(linear, GroupedLinear | Int8GroupedLinear):
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


def _check_names(config: LoraConfig, found: Mapping[str, tuple[nn.Module, tuple[str, ...]]]) -> None:
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


Adaptable = nn.Linear | Int8Linear | GroupedLinear | Int8GroupedLinear


def block_linears(model: Model) -> dict[str, tuple[Adaptable, tuple[str, ...]]]:
    """Every plain or 8-bit linear of the blocks: our name → the layer and what the checkpoint calls its projections."""
    weights = model.architecture.weights(model.config)
    return {
        name: (module, tuple(n.removesuffix(".weight") for n in weights[f"{name}.weight"].names))
        for name, module in model.network.named_modules()
        if ".blocks." in f".{name}" and isinstance(module, Adaptable)
    }


def lora_layers(model: Model) -> dict[str, LoraLinear | LoraGroupedLinear]:
    """All adapters by the name of the linear they wrap."""
    return {n: m for n, m in model.network.named_modules() if isinstance(m, LoraLinear | LoraGroupedLinear)}
