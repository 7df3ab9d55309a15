"""Low-rank adapters as the kernels read them: for each slot and each product two factors, added per token.

Many adapters may be in one pass. Knows no files and no names but those of linears.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from danlu.models.adapters import Factors
from danlu.models.native.structs import FLOATS, MOST_RANK, OUTS, Adapter, Code
from danlu.models.native.writer import Program

_LANES = 16
"""Ranks of a vector; a panel of ranks has up to four."""
_ALIGNED = 64


@dataclass(frozen=True)
class PackedFactors:
    """The factors of one product, as lower.c and product.c read them."""

    rank: int
    is_half: bool
    down: Tensor
    up: Tensor
    panels: Tensor

    def entry(self) -> Adapter:
        """What points to them, as long as this lives."""
        pointers = (tensor.data_ptr() for tensor in (self.down, self.up, self.panels))
        return Adapter(self.rank, int(self.is_half), *pointers)


class Adapters:
    """Slots with an adapter each; an empty slot adds nothing."""

    def __init__(self, program: Program) -> None:
        self._numbers = {name: number for number, name in enumerate(program.products)}
        self._shapes = program.product_shapes
        self._is_half = {op.product: op.kind != FLOATS for op in program.ops if op.code == Code.PRODUCT}
        self._slots: list[dict[int, PackedFactors]] = []
        self._table: ctypes.Array[Adapter] | None = None

    @property
    def pointer(self) -> int | None:
        """Of the table (slots, products); None while every slot is empty."""
        return None if self._table is None else ctypes.addressof(self._table)

    @property
    def num_slots(self) -> int:
        """Slots of the table."""
        return len(self._slots)

    def put(self, slot: int, factors: Factors) -> None:
        """Set what a slot adds, between passes; no factors empty it."""
        assert slot >= 0, slot
        found: dict[int, PackedFactors] = {}
        for name, (down, up) in factors.items():
            assert name in self._numbers, f"no linear is named {name}"
            number = self._numbers[name]
            outputs, inputs = self._shapes[number]
            rank = down.shape[0]
            assert 0 < rank <= MOST_RANK, f"{name}: the rank is {rank}, the most {MOST_RANK}"
            assert down.shape == (rank, inputs), f"{name}: {tuple(down.shape)} is not {(rank, inputs)}"
            assert up.shape == (outputs, rank), f"{name}: {tuple(up.shape)} is not {(outputs, rank)}"
            found[number] = pack_factors(down.detach(), up.detach(), is_half=self._is_half[number])
        self._slots += [{} for _ in range(slot + 1 - len(self._slots))]
        self._slots[slot] = found
        self._table = self._written() if any(self._slots) else None

    def _written(self) -> ctypes.Array[Adapter]:
        count = len(self._numbers)
        table = (Adapter * (len(self._slots) * count))()
        for slot, factors in enumerate(self._slots):
            for number, packed in factors.items():
                table[slot * count + number] = packed.entry()
        return table

    def slots_of(self, adapters: Sequence[int], counts: Sequence[int]) -> Tensor:
        """The slot of each token, -1 where it has none: int32 (N,). Each row has one adapter and so many tokens."""
        assert all(-1 <= slot < len(self._slots) for slot in adapters), f"slots are 0 to {len(self._slots) - 1}"
        return torch.repeat_interleave(torch.tensor(adapters, dtype=torch.int32), torch.tensor(counts))


def pack_factors(down: Tensor, up: Tensor, *, is_half: bool) -> PackedFactors:
    """down: (R, D), up: (O, R). Of a linear of several projections most of ``up`` is zero, and left out."""
    each, dtype = (2, torch.bfloat16) if is_half else (1, torch.float32)
    spare = -down.shape[0] % _LANES
    down = pad(down, (0, -down.shape[1] % (4 * each), 0, spare)).to(dtype)
    up = pad(up, (0, spare, 0, -up.shape[0] % OUTS)).to(dtype)
    downs = [_by_steps(rows, each) for rows in down.split(4 * _LANES)]
    ups: list[Tensor] = []
    panels: list[tuple[int, int, int]] = []
    place = 0
    for panel in up.split(OUTS):
        columns = (panel != 0).any(dim=0).nonzero().squeeze(1).tolist()
        first, last = (columns[0] // each, columns[-1] // each + 1) if columns else (0, 0)
        panels.append((first, last - first, place))
        ups.append(_by_steps(panel[:, first * each : last * each], each))
        place += last - first
    return PackedFactors(
        rank=down.shape[0],
        is_half=is_half,
        down=_aligned(torch.cat(downs)),
        up=_aligned(torch.cat(ups)),
        panels=torch.tensor(panels, dtype=torch.int32),
    )


def _by_steps(rows: Tensor, each: int) -> Tensor:
    """(R, D) → flat: steps of ``each`` numbers, in a step one row after another."""
    return rows.reshape(rows.shape[0], -1, each).transpose(0, 1).reshape(-1)


def _aligned(numbers: Tensor) -> Tensor:
    room = torch.empty(numbers.nbytes + _ALIGNED, dtype=torch.uint8)
    start = -room.data_ptr() % _ALIGNED
    return room[start : start + numbers.nbytes].copy_(numbers.view(torch.uint8))
