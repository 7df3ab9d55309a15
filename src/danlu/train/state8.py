"""AdamW with moments in 8 bits each: 2.03 bytes of state a value instead of 8. Knows no names and no groups.

Block-wise quantisation (Dettmers et al. 2021): each block of at most 256 values of a row has an fp32 scale, its
largest value, so that an outlier costs precision nowhere else. Differences from the paper, each for a reason:

* The code is spaced evenly in the logarithm, so that it needs arithmetic and no table: every value in its range is
  off by the same share at most. First moment: sign and 127 sizes; second: 256 sizes.
* The second moment has no zero: a zero there, under a first moment that is not, makes a huge update (Li et al. 2023).
* Rounding is dithered. A second moment whose gradients have become small shrinks by 1 - beta2 a step, far less than
  half a step of any 8-bit code: rounded to nearest it would stay, and hold its weight's updates down, for ever. A
  threshold that runs evenly through [0, 1) with the step number keeps the mean right, and needs no random state.
* Blocks lie within rows, so that a matrix sharded by rows has its state sharded by rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from danlu.train.sharded import mine, zeros

BLOCK = 256
"""Most values that share a scale."""
SMALLEST = 4096
"""Parameters with fewer values keep fp32 moments: there is nothing to save."""
_NARROWEST = 32
"""So do matrices with shorter rows: a scale for each would take too much."""
_SIGNED_RANGE = math.log(1e-5)
"""Logarithm of the smallest first moment there is, as a share of its block's largest; smaller ones become zero."""
_UNSIGNED_RANGE = math.log(1e-8)
"""The same of second moments; smaller ones are taken for this one."""
_CHUNK_VALUES = 1 << 18
"""Values worked on at a time: their fp32 moments stay in the cache."""
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def can_be_8bit(shape: Sequence[int]) -> bool:
    """Whether 8-bit moments are worth it for a parameter of this shape: matrices that are neither small nor narrow."""
    return len(shape) >= 2 and math.prod(shape) >= SMALLEST and math.prod(shape[1:]) >= _NARROWEST


def adamw8bit_state(parameter: Tensor) -> dict[str, Tensor]:
    """Codes in the parameter's shape (R, …) and scales (R, blocks of a row); sharded as the parameter is."""
    rows, blocks = parameter.shape[0], _num_blocks(parameter.shape[1:].numel())
    shape = tuple(parameter.shape)
    return {
        "step": torch.zeros(()),  # on the CPU: it is read as a number
        "exp_avg_code": zeros(shape, parameter, torch.int8),
        "exp_avg_scale": zeros((rows, blocks), parameter, torch.float32),
        "exp_avg_sq_code": zeros(shape, parameter, torch.uint8),
        "exp_avg_sq_scale": zeros((rows, blocks), parameter, torch.float32),
    }


def adamw8bit_step(
    parameters: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    *,
    rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """One step of AdamW; moments are unpacked, moved in fp32 and packed again, a few rows at a time."""
    for parameter, state in zip(parameters, states, strict=True):
        assert parameter.grad is not None
        assert mine(parameter).is_contiguous(), "rows are changed in place"
        state["step"] += 1
        step = int(state["step"])
        weights, gradients = mine(parameter).flatten(1), mine(parameter.grad).flatten(1)
        first, second = _Moment(state, "exp_avg"), _Moment(state, "exp_avg_sq")
        corrected = rate / (1.0 - betas[0] ** step)
        root = math.sqrt(1.0 - betas[1] ** step)
        size = max(1, _CHUNK_VALUES // weights.shape[1])
        for rows in (slice(start, start + size) for start in range(0, weights.shape[0], size)):
            gradient = gradients[rows]
            mean = first.read(rows).lerp_(gradient, 1.0 - betas[0])
            square = second.read(rows).mul_(betas[1]).addcmul_(gradient, gradient, value=1.0 - betas[1])
            first.write(rows, mean, step)
            second.write(rows, square, step)
            weights[rows].mul_(1.0 - rate * weight_decay)
            weights[rows].addcdiv_(mean, square.sqrt_().div_(root).add_(epsilon), value=-corrected)


class _Moment:
    """One moment of a parameter, the rows of this process: codes (R, C), scales (R, blocks)."""

    def __init__(self, state: dict[str, Tensor], name: str) -> None:
        self._codes = mine(state[f"{name}_code"]).flatten(1)
        self._scales = mine(state[f"{name}_scale"])

    def read(self, rows: slice) -> Tensor:
        """fp32 (rows, C)."""
        codes, scales = self._codes[rows], self._scales[rows]
        decoded = _decode(_in_blocks(codes, scales.shape[1])).mul_(scales.unsqueeze(-1))
        return decoded.flatten(1)[:, : codes.shape[1]]

    def write(self, rows: slice, values: Tensor, step: int) -> None:
        """Pack fp32 values (rows, C)."""
        codes, scales = self._codes[rows], self._scales[rows]
        blocks = _in_blocks(values, scales.shape[1])
        largest = blocks.abs().amax(-1)
        scales.copy_(largest)
        packed = _encode(blocks / largest.clamp_min(1e-38).unsqueeze(-1), codes.dtype, step)
        codes.copy_(packed.flatten(1)[:, : codes.shape[1]])


def _num_blocks(width: int) -> int:
    return -(-width // BLOCK)


def _in_blocks(values: Tensor, num_blocks: int) -> Tensor:
    """(R, C) → (R, blocks, C / blocks), the last block filled up with zeros."""
    short = -values.shape[1] % num_blocks
    return (nn.functional.pad(values, (0, short)) if short else values).unflatten(1, (num_blocks, -1))


def _encode(shares: Tensor, dtype: torch.dtype, step: int) -> Tensor:
    """Values from -1 (or 0) to 1 as codes: ±(1 + level) and 0 in int8, level in uint8; level · range is a logarithm."""
    levels, span = (126, _SIGNED_RANGE) if dtype == torch.int8 else (255, _UNSIGNED_RANGE)
    places = torch.arange(shares.shape[-1], device=shares.device, dtype=torch.float32)
    dither = (places * (_GOLDEN * _GOLDEN) + (step * _GOLDEN) % 1.0).frac_()
    level = shares.abs().log_().mul_(-levels / span).add_(levels).add_(dither).floor_()  # -inf for zero
    if dtype == torch.uint8:
        return level.clamp_(0, levels).to(dtype)
    return level.add_(1.0).clamp_(0, levels + 1).mul_(shares.sign()).to(dtype)


def _decode(codes: Tensor) -> Tensor:
    """The shares that codes mean, fp32."""
    values = codes.float()
    if codes.dtype == torch.uint8:
        return values.sub_(255.0).mul_(-_UNSIGNED_RANGE / 255.0).exp_()
    sizes = values.abs().sub_(127.0).mul_(-_SIGNED_RANGE / 126.0).exp_()
    return sizes.mul_(codes.sign())
