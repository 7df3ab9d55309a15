"""LoRA (Hu et al. 2021) on the core's linears: a frozen base, plain or 8-bit, and two thin matrices a projection.

Our linears may hold several projections of a checkpoint (queries, keys and values are one). Their A matrices are
stacked and their B matrices stand on a diagonal, so one fused linear costs two extra thin products, not six. With
rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024) and LoRA+ (Hayou et al. 2024). Knows no files: adapter.py does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from danlu.core.errors import ConfigError, ModelError
from danlu.models.grouped import GroupedLinear
from danlu.models.lora import LoraConfig, LoraPart, block_linears, check_names, parts_for
from danlu.models.model import Model, set_layer
from danlu.models.quant import Int8GroupedLinear, Int8Linear
from danlu.train.dora import changed_lengths, row_squares
from danlu.train.grouped_lora import LoraGroupedLinear
from danlu.train.names import select

_Trainable = nn.Linear | Int8Linear | GroupedLinear | Int8GroupedLinear
"""Layers whose input has a gradient; packed ones have none."""


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
    linears = block_linears(model).items()
    found = {name: (linear, theirs) for name, (linear, theirs) in linears if isinstance(linear, _Trainable)}
    if not found:
        raise ModelError("No linear of this model takes an adapter.", "Fine-tune plain weights, not a packed model.")
    check_names(config, found)
    also = select(model, config.train_also, "train_also")
    trainable: list[nn.Parameter] = []
    for name, (linear, theirs) in found.items():
        parts = parts_for(name, linear, theirs, config)
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


def lora_layers(model: Model) -> dict[str, LoraLinear | LoraGroupedLinear]:
    """All adapters by the name of the linear they wrap."""
    return {n: m for n, m in model.network.named_modules() if isinstance(m, LoraLinear | LoraGroupedLinear)}
