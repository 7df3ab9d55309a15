"""The kernels that turn logits into tokens, as Python calls them.

models/sampling.py says what is chosen, and its torch functions are the reference. Knows no requests.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from danlu.models.native.kernels import Kernels, load_kernels


class _Rule(ctypes.Structure):
    """Kept equal to sample.c."""

    _fields_ = (
        ("temperature", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("top_k", c_int32),
        ("uniform", c_double),
    )


@dataclass(frozen=True, slots=True)
class Draw:
    """A draw of one row."""

    row: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float
    """The random number, 0 to 1."""


class Sampler:
    """Chooses and notes. Thread-safe."""

    def __init__(self, kernels: Kernels) -> None:
        self._choose = kernels.function(
            "danlu_choose", c_int32, c_void_p, c_int64, c_int32, c_int32, c_void_p, c_void_p
        )  # fmt: skip
        self._note = kernels.function("danlu_note", None, c_void_p, c_int32, c_int32, c_void_p, c_void_p, c_void_p)
        self._forbid = kernels.function("danlu_forbid", None, c_void_p, c_int32, c_void_p, c_int32)

    def forbid(self, logits: Tensor, allowed: NDArray[np.int32]) -> None:
        """Make all other tokens impossible, in place. logits: fp32 (V,) on a CPU; a bit for each token that is allowed,
        the lowest first."""
        _check_row(logits)
        assert allowed.flags.c_contiguous, "in one piece"
        self._forbid(logits.data_ptr(), logits.shape[0], allowed.ctypes.data, 2 * len(allowed))

    def choose(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        """Next token of each row: the likeliest, or for rows in ``draws`` a draw. logits: fp32 (B, V) on a CPU."""
        assert logits.dtype == torch.float32, "fp32"
        assert logits.device.type == "cpu", "on a CPU"
        assert logits.stride(1) == 1, "rows in one piece"
        count, size = logits.shape
        rules, tokens = (_Rule * count)(), (c_int32 * count)()
        for draw in draws:
            rules[draw.row] = _Rule(
                draw.temperature, draw.top_p, draw.min_p, min(draw.top_k, size), draw.uniform
            )  # fmt: skip
        if self._choose(logits.data_ptr(), logits.stride(0), count, size, rules, tokens):
            raise MemoryError(f"no memory to draw one of {size} tokens")
        return list(tokens)

    def note(self, logits: Tensor, num_top: int) -> tuple[float, list[tuple[int, float]]]:
        """What has to be taken from a logit for its log-probability, and the likeliest tokens with their logits, the
        likeliest first. logits: fp32 (V,) on a CPU."""
        _check_row(logits)
        size = logits.shape[0]
        top = min(num_top, size)
        log_sum, places, values = c_float(), (c_int32 * max(1, top))(), (c_float * max(1, top))()
        self._note(logits.data_ptr(), size, top, ctypes.byref(log_sum), places, values)
        return log_sum.value, list(zip(places[:top], values[:top], strict=True))


def _check_row(logits: Tensor) -> None:
    assert logits.dtype == torch.float32, "fp32"
    assert logits.device.type == "cpu", "on a CPU"
    assert logits.stride(0) == 1, "a row in one piece"


@functools.cache
def load_sampler() -> Sampler | None:
    """The kernels that sample, or None where there are none."""
    kernels = load_kernels()
    return None if kernels is None else Sampler(kernels)
