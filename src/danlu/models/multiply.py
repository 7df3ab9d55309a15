"""x Wᵀ + b on the fastest kernel at hand. Knows two libraries and no layers.

Torch sends fp32 products to MKL, which leaves AVX-512 unused on AMD; oneDNN uses it everywhere and is two to three
times faster there. bf16 goes to oneDNN already, but lays the weight out anew for every product unless it is packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
_FEWEST_PRODUCTS = 1 << 17
"""A kernel is compiled for each new number of rows, about a millisecond; smaller products are not worth it."""


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether ``multiply`` beats torch's own product. x: (…, D), weight: (O, D)."""
    if not _HAS_ONEDNN or x.dtype != torch.float32 or weight.dtype != torch.float32 or x.device.type != "cpu":
        return False
    return x.numel() * weight.shape[0] >= _FEWEST_PRODUCTS


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: (M, D), weight: (O, D), any strides → (M, O). Not differentiable."""
    if _HAS_ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.nn.functional.linear(x, weight, bias)


def can_pack(weight: Tensor) -> bool:
    """Whether a weight (O, D) is read faster when packed."""
    return _HAS_ONEDNN and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)


def pack(weight: Tensor) -> Tensor:
    """(O, D) in the order in which the kernel reads it; ``to_dense`` gives the same numbers back."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


def multiply_packed(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x: (M, D), packed: (O, D) → (M, O). Not differentiable."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
