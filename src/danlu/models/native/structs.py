"""What Python and the kernels both read: kept equal to danlu.h. Knows only the layout."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

PAGE = 64
"""Tokens of a page."""
OUTS = 64
"""Outputs of a weight's panel."""
GROUP = 64
"""Inputs of an 8-bit product that share a step."""
CHUNK = 512
"""Keys whose softmax is taken at once."""
MOST_RANK = 1024
"""Rows of an adapter's first factor."""
MOST_THREADS = 64
"""Threads of a pool."""


class Code(IntEnum):
    """What an operation does."""

    NORM = 0
    PREPARE = 1
    PRODUCT = 2
    ROTATE = 3
    STORE = 4
    ATTEND = 5
    GATE = 6
    ACTIVATE = 7
    ADD = 8
    SCALE = 9
    SOFTCAP = 10
    GATHER = 11
    ROUTE = 12
    SORT = 13
    SPREAD = 14
    EXPERTS = 15
    COMBINE = 16
    WEIGH = 17


ACTIVATION_KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "quick_gelu": 3, "relu": 4, "relu6": 5, "tanh": 6}
BYTES, HALVES, FLOATS = 0, 1, 2
"""Numbers of a weight: int8, bf16, fp32."""
RMS_NORM, LAYER_NORM = 0, 1


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Op(ctypes.Structure):
    """One operation."""

    _fields_ = (  # pyright: ignore[reportAssignmentType]
        *_fields(c_int32, "code kind source target first count target_first width heads kv_heads layer table"),
        *_fields(c_int32, "adds causal window cross product of_outs"),
        *_fields(c_int32, "experts top_k capacity normalise by_choice reserved"),
        *_fields(c_float, "epsilon scale offset softcap"),
        *_fields(c_void_p, "weight scales bias"),
    )


class Adapter(ctypes.Structure):
    """What an adapter adds to one product; rank 0 for nothing."""

    _fields_ = (  # pyright: ignore[reportAssignmentType]
        *_fields(c_int32, "rank is_half"),
        *_fields(c_void_p, "down up panels"),
    )


class Pass(ctypes.Structure):
    """New tokens and everything that they meet."""

    _fields_ = (  # pyright: ignore[reportAssignmentType]
        *_fields(c_int32, "num_tokens num_ops num_outs num_threads num_products kept num_splits reserved"),
        ("table_width", c_int32 * 2),
        *_fields(c_int64, "bias_stride bias_zero"),
        *_fields(c_void_p, "ops buffers strides positions rows outs"),
        *((name, c_void_p * 2) for name in ("tables", "lengths", "keys", "values", "key_scales", "value_scales")),
        *_fields(c_void_p, "angles bias prepared steps partials adapters"),
        ("slots", c_void_p * 2),
        *_fields(c_void_p, "lowered places shares sorted"),
    )
