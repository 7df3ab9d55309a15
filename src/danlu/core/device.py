"""Device, number type, threads and seeds. The one file of core that imports torch; only the torch side imports it."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import torch


def pick_device() -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets the processor names; empty where the system does not tell (macOS), so nothing is assumed."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()[1:])


@functools.cache
def has_fast_bf16(device_type: str) -> bool:
    """Whether bf16 matrix products run in hardware. On a CPU without the instructions bf16 is slower than fp32."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_wide_vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return has_wide_vectors and not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


@functools.cache
def has_vnni() -> bool:
    """Whether the CPU multiplies 8-bit integers without saturating (AVX512-VNNI or AVX-VNNI)."""
    return not cpu_flags().isdisjoint({"avx512_vnni", "avx_vnni"})


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 where it is fast, else fp32."""
    return torch.bfloat16 if has_fast_bf16(device.type) else torch.float32


def seed_everything(seed: int) -> None:
    """Seed Python and torch on every device."""
    random.seed(seed)
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
