"""Adapters that are served: low-rank factors beside the linears of one model, so that many share one base.

What an adapter adds to a linear is up · down · x. Knows no requests and no training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from danlu.core.errors import ModelError
from danlu.models.linear import PackedLinear
from danlu.models.lora import BlockLinear, Grouped, LoraPart, block_linears, check_names, parts_for
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder
from danlu.models.peft import PeftFolder, check_fits, peft_name

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Name of a linear → down (R, D) and up (O, R), fp32, scaling included in ``up``. A linear of several projections has
one pair: the downs of its projections below each other, the ups on a diagonal."""
_NUMBERS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in memory."""

    factors: Factors
    rank: int
    """The largest of its projections."""
    base: str
    """What its makers called the model that it was trained on."""

    def size_bytes(self) -> int:
        """Memory of the factors."""
        return sum(down.nbytes + up.nbytes for down, up in self.factors.values())


def check_adaptable(model: Model) -> None:
    """Raise ModelError for a model whose requests cannot have adapters of their own."""
    if isinstance(model.network, EncoderDecoder):
        raise ModelError(
            "Adapters of encoder-decoders are not served beside their base.", "Merge the adapter into the model."
        )


def read_adapter(model: Model, folder: Path, *, max_rank: int = 256) -> LoadedAdapter:
    """Read a PEFT adapter for use beside the weights of ``model``, which stay as they are, packed or 8-bit.

    Raises ModelError, ConfigError and DataError for one that is not for this model, has more columns than ``max_rank``
    or does more than add to the linears of the blocks. Nothing is read before all shapes are known to fit.
    """
    check_adaptable(model)
    found = PeftFolder(folder)
    if found.config.dora:
        raise _only_merged("It is a DoRA adapter, which scales the base's weights too.")
    linears = block_linears(model)
    check_names(found.config, linears)
    wanted: dict[str, tuple[BlockLinear, Sequence[str], list[LoraPart]]] = {}
    expected: dict[str, tuple[int, ...]] = {}
    rank = 0
    for name, (linear, theirs) in linears.items():
        parts = parts_for(name, linear, theirs, found.config)
        if not any(part.rank for part in parts):
            continue
        if isinstance(linear, Grouped):
            raise _only_merged(f"It adapts experts ({name}).")
        rank = max(rank, *(part.rank for part in parts))
        stems = [peft_name(model, their) for their in theirs]
        wanted[name] = linear, stems, parts
        for stem, part in zip(stems, parts, strict=True):
            if part.rank:
                expected[f"{stem}.lora_A.weight"] = part.rank, _num_inputs(linear)
                expected[f"{stem}.lora_B.weight"] = part.rows, part.rank
    if rank > max_rank:
        raise ModelError(f"{folder} has rank {rank}; at most {max_rank} is served.", "Raise max_adapter_rank.")
    _check_tensors(found, expected)
    factors = {name: _factors(found, *some) for name, some in wanted.items()}
    for name, (down, up) in factors.items():
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ModelError(f"{folder} has numbers for {name} that are not finite.", "Train or copy it again.")
    return LoadedAdapter(factors, rank, found.base)


def _check_tensors(found: PeftFolder, expected: Mapping[str, tuple[int, ...]]) -> None:
    names = found.tensors.names()
    whole = sorted(name for name in names if ".lora_" not in name)
    if whole:
        raise _only_merged(f"It has {len(whole)} weights trained in full ({', '.join(whole[:3])}).")
    check_fits(expected, {name: found.tensors.shape(name) for name in names})
    wrong = next((name for name in sorted(names) if found.tensors.dtype(name) not in _NUMBERS), None)
    if wrong is not None:
        raise ModelError(f"The adapter holds {wrong} as {found.tensors.dtype(wrong)}.", f"Use {', '.join(_NUMBERS)}.")


def _only_merged(what: str) -> ModelError:
    return ModelError(f"{what} Such an adapter cannot be served beside its base.", "Merge it into the model.")


def _num_inputs(linear: BlockLinear) -> int:
    if isinstance(linear, PackedLinear):
        return linear.in_features
    return linear.weight.shape[-1]


def _factors(
    found: PeftFolder, linear: BlockLinear, stems: Sequence[str], parts: Sequence[LoraPart]
) -> tuple[Tensor, Tensor]:  # fmt: skip
    down = torch.zeros(sum(part.rank for part in parts), _num_inputs(linear))
    up = torch.zeros(sum(part.rows for part in parts), down.shape[0])
    row = column = 0
    for stem, part in zip(stems, parts, strict=True):
        if part.rank:
            end = column + part.rank
            down[column:end] = found.tensors.read(f"{stem}.lora_A.weight")
            up[row : row + part.rows, column:end] = found.tensors.read(f"{stem}.lora_B.weight").float() * part.scaling
            column = end
        row += part.rows
    return down, up
