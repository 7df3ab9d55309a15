from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from danlu.core import device


@pytest.fixture(autouse=True)
def fresh_answers() -> Iterator[None]:
    """The answers about this machine are cached; these tests change the machine."""
    yield
    device.has_fast_bf16.cache_clear()
    device.has_vnni.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, capability: str, *flags: str) -> None:
    device.has_fast_bf16.cache_clear()
    device.has_vnni.cache_clear()
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


def test_processor_flags_are_whole_words(tmp_path: Path):
    (tmp_path / "cpuinfo").write_text(
        "model name\t: avx512_bf16 inside\nflags\t\t: fpu avx2 avx_vnni\n\nFeatures : asimd\n"
    )
    assert device.cpu_flags(tmp_path / "cpuinfo") == {":", "fpu", "avx2", "avx_vnni", "asimd"}


def test_a_system_that_does_not_tell_its_flags_is_assumed_to_have_none(tmp_path: Path):
    assert device.cpu_flags(tmp_path / "no such file") == frozenset()


@pytest.mark.parametrize(
    ("capability", "flags", "is_fast"),
    [
        ("AVX512", ["avx512_bf16"], True),
        ("AVX512", ["amx_bf16"], True),
        ("AVX512", ["avx512f"], False),
        ("AVX2", ["avx512_bf16"], False),
        ("DEFAULT", [], False),
    ],
)
def test_bf16_is_used_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, flags: list[str], is_fast: bool
):
    machine(monkeypatch, capability, *flags)
    assert device.has_fast_bf16("cpu") is is_fast
    assert device.compute_dtype(torch.device("cpu")) == (torch.bfloat16 if is_fast else torch.float32)


@pytest.mark.parametrize(("flag", "has"), [("avx512_vnni", True), ("avx_vnni", True), ("avx512f", False)])
def test_8_bit_products_need_vnni(monkeypatch: pytest.MonkeyPatch, flag: str, has: bool):
    machine(monkeypatch, "AVX512", flag)
    assert device.has_vnni() is has


def test_without_a_gpu_the_device_is_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick_device() == torch.device("cpu")


def test_a_seed_repeats_python_and_torch():
    device.seed_everything(7)
    first = (random.random(), torch.rand(3).tolist())
    device.seed_everything(7)
    assert (random.random(), torch.rand(3).tolist()) == first
