"""Packed weights multiply as they should, and threads come, sleep and go."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from danlu.models.native import kernels as module
from danlu.models.native.adapters import pack_factors
from danlu.models.native.build import NotBuilt
from danlu.models.native.kernels import KINDS, Kernels, Threads, load_kernels
from danlu.models.native.structs import BYTES, GROUP, MOST_RANK, Adapter, Code, Op, Pass
from danlu.models.quant import quantize_rows
from tests.models.native.cases import needs_kernels

pytestmark = [pytest.mark.usefixtures("one_thread")]


def made() -> Kernels:
    """The kernels of this machine."""
    kernels = load_kernels()
    assert kernels is not None
    return kernels


def product(
    x: Tensor, weight: Tensor, scales: Tensor | None = None, adapter: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """x Wᵀ of a pass with nothing else; the adapter belongs to odd tokens."""
    (tokens, inputs), outputs = x.shape, weight.shape[0]
    kernels = made()
    packed, y = kernels.pack(weight), torch.zeros(tokens, outputs)
    prepared, steps = torch.empty(tokens * (inputs + 4) * 4, dtype=torch.uint8), torch.empty(tokens * (inputs + 64))
    numbers = {"count": inputs, "kind": KINDS[weight.dtype], "scales": None if scales is None else scales.data_ptr()}
    ops = (Op * 2)(
        Op(code=Code.PREPARE, **numbers),
        Op(code=Code.PRODUCT, target=1, width=outputs, weight=packed.data_ptr(), **numbers),
    )
    buffers, strides = (ctypes.c_void_p * 2)(x.data_ptr(), y.data_ptr()), (ctypes.c_int32 * 2)(inputs, outputs)
    rows, slots = torch.zeros(tokens, dtype=torch.int32), torch.arange(tokens, dtype=torch.int32) % 2 - 1
    lowered = torch.empty(tokens, MOST_RANK)
    work = Pass(
        num_tokens=tokens, num_ops=2, num_products=1, ops=ctypes.addressof(ops), buffers=ctypes.addressof(buffers),
        strides=ctypes.addressof(strides), rows=rows.data_ptr(), prepared=prepared.data_ptr(), steps=steps.data_ptr(),
    )  # fmt: skip
    if adapter is not None:
        factors = pack_factors(*adapter, is_half=weight.dtype != torch.float32)
        table = (Adapter * 1)(factors.entry())
        work.adapters, work.slots[0], work.lowered = ctypes.addressof(table), slots.data_ptr(), lowered.data_ptr()
    kernels.threads(2).run(work)
    return y


SHAPES = [(1, 64, 64), (5, 33, 70), (13, 129, 1), (40, 200, 300), (7, 1, 65)]


@needs_kernels
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_a_product_of_floats_is_the_product(tokens: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs)
    torch.testing.assert_close(product(x, weight), x @ weight.t(), atol=1e-4, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_a_product_of_halves_rounds_what_it_reads_and_nothing_else(tokens: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs).bfloat16()
    expected = x.bfloat16().double() @ weight.double().t()
    torch.testing.assert_close(product(x, weight).double(), expected, atol=1e-4, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_an_8_bit_product_gives_each_group_of_64_inputs_256_steps(tokens: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(tokens, inputs)
    x[:, 0] *= 80  # what would cost all others their digits if they shared its step
    weight, scales = quantize_rows(torch.randn(outputs, inputs))
    groups = torch.nn.functional.pad(x, (0, -inputs % GROUP)).view(tokens, -1, GROUP)
    low = groups.amin(-1, keepdim=True).clamp_max(0.0)
    step = ((groups.amax(-1, keepdim=True).clamp_min(0.0) - low) * (1 / 255)).clamp_min(1e-12)
    rounded = (((groups - low) * (1 / step)).round() * step + low).view(tokens, -1)[:, :inputs]
    expected = rounded.double() @ (weight.double() * scales.double()).t()
    torch.testing.assert_close(
        product(x, weight, scales.reshape(-1).contiguous()).double(), expected, atol=2e-3, rtol=1e-4
    )


@needs_kernels
def test_the_largest_8_bit_numbers_do_not_overflow() -> None:
    weight = torch.full((3, 4096), -128, dtype=torch.int8)
    found = product(torch.full((2, 4096), 255.0), weight, torch.ones(3))
    torch.testing.assert_close(found, torch.full((2, 3), -128 * 4096 * 255.0))


@needs_kernels
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8])
def test_an_adapter_adds_to_the_tokens_that_use_it(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    x, down, up = torch.randn(6, 70), torch.randn(5, 70), torch.randn(90, 5)
    weight, scales = quantize_rows(torch.randn(90, 70)) if kind == torch.int8 else (torch.randn(90, 70).to(kind), None)
    flat = None if scales is None else scales.reshape(-1).contiguous()
    change = product(x, weight, flat, (down, up)) - product(x, weight, flat)
    assert not change[0::2].any()
    expected = (x @ down.t() @ up.t())[1::2]
    error = float((change[1::2] - expected).norm() / expected.norm())
    assert error < (1e-5 if kind == torch.float32 else 0.01), error


def nothing() -> Pass:
    """A pass of no operations."""
    return Pass(num_tokens=1, num_ops=0)


@needs_kernels
def test_threads_sleep_while_there_is_nothing_to_do() -> None:
    threads = made().threads(4)
    product(torch.randn(8, 64), torch.randn(64, 64))
    threads.run(nothing())
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    threads.close()


def thread_count() -> int:
    """Threads of this process, those of C included."""
    return len(os.listdir("/proc/self/task"))


@needs_kernels
def test_threads_end_with_their_pool() -> None:
    before = thread_count()
    threads = made().threads(5)
    assert thread_count() == before + 4
    threads.close()
    threads.close()
    assert thread_count() == before
    again = made().threads(3)
    assert thread_count() == before + 2
    del again
    gc.collect()
    assert thread_count() == before


@needs_kernels
def test_many_passes_at_once_from_pools_of_their_own_agree() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(30, 100), torch.randn(200, 100)
    expected = product(x, weight)
    wrong: list[int] = []

    def work() -> None:
        for number in range(20):
            if not torch.equal(product(x, weight), expected):
                wrong.append(number)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@needs_kernels
def test_a_forked_process_gets_threads_of_its_own() -> None:
    code = (
        "import os, sys, torch; torch.set_num_threads(1); sys.path.insert(0, '.')\n"
        "from tests.models.native.test_kernels import made, nothing, thread_count\n"
        "threads = made().threads(3); threads.run(nothing())\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    threads.run(nothing()); os._exit(0 if thread_count() == 3 else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "threads.run(nothing()); threads.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_without_kernels_the_log_says_why_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> Path:
        raise NotBuilt("there is no compiler (cc, gcc, clang)")

    monkeypatch.setattr(module, "built_library", missing)
    load_kernels.cache_clear()
    caplog.set_level(logging.WARNING)
    try:
        assert load_kernels() is None
        assert load_kernels() is None
    finally:
        load_kernels.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "the native kernels are not used: there is no compiler (cc, gcc, clang); torch does the work, slower"
    ]


def test_a_library_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(b"not a library")
    with pytest.raises(NotBuilt, match=r"kernels\.so cannot be loaded"):
        Kernels(path)


@needs_kernels
def test_more_threads_than_a_pool_holds_are_refused() -> None:
    with pytest.raises(AssertionError, match="65"):
        made().threads(65)
    assert BYTES == 0
    assert isinstance(made().threads(1), Threads)
