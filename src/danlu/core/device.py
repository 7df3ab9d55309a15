"""Device, number type, threads and seeds. The one file of core that imports torch; only the torch side imports it."""

from __future__ import annotations

import functools
import random

import torch


def pick_device() -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def has_fast_bf16(device_type: str) -> bool:
    """Whether bf16 matrix products run in hardware. On a CPU without the instructions bf16 is slower than fp32."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.backends.cpu.get_cpu_capability()
    with open("/proc/cpuinfo", encoding="utf-8") as handle:
        flags = handle.read()
    return capabilities.startswith("AVX512") and ("avx512_bf16" in flags or "amx_bf16" in flags)


@functools.cache
def has_vnni() -> bool:
    """Whether the CPU multiplies 8-bit integers without saturating (AVX512-VNNI or AVX-VNNI)."""
    with open("/proc/cpuinfo", encoding="utf-8") as handle:
        flags = handle.read()
    return "avx512_vnni" in flags or "avx_vnni" in flags


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 where it is fast, else fp32."""
    return torch.bfloat16 if has_fast_bf16(device.type) else torch.float32


def seed_everything(seed: int) -> None:
    """Seed Python and torch on every device."""
    random.seed(seed)
    torch.manual_seed(seed)
