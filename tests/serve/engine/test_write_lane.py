"""Cache, executor and threads of a model that writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from danlu.core.errors import ResourceError
from danlu.models.load import load_model
from danlu.models.native.executor import NativeExecutor
from danlu.models.native.kernels import load_kernels
from danlu.models.paged import bytes_of_page
from danlu.serve.engine import write_lane
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.write_lane import WriteLane, make_write_lane, probed_threads
from tests.tiny import write_tiny

GIB = 2**30
needs_kernels = pytest.mark.skipif(load_kernels() is None, reason="the kernels are not built here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


def lane(folder: Path, room_bytes: int = GIB, *, owns: bool = True, **config: int) -> WriteLane:
    model = load_model(folder, precision="fp32")
    return make_write_lane(model, EngineConfig(**{"threads": 1, **config}), room_bytes, owns_model=owns)  # type: ignore[arg-type]


def test_a_cache_promises_memory_until_its_pages_were_taken(folder: Path) -> None:
    made = lane(folder, cache_tokens=640)
    page = bytes_of_page(load_model(folder, precision="fp32").stack_config, torch.float32)
    assert made.promised_bytes == 10 * page
    pool = made.pools[0][0]
    pages = pool.allocate(4)
    assert pages is not None
    assert made.promised_bytes == 6 * page
    pool.release(pages)
    assert pool.allocate(4) is not None
    assert made.promised_bytes == 6 * page, "pages that were used before are used again"


def test_no_room_for_a_cache_is_told(folder: Path) -> None:
    with pytest.raises(ResourceError, match=r"There is memory for a key/value cache of \d+ tokens, 0 MiB\."):
        lane(folder, 10_000)


@needs_kernels
def test_weights_are_packed_where_nobody_else_uses_the_network(folder: Path) -> None:
    assert lane(folder).is_native
    assert not lane(folder, owns=False).is_native


@needs_kernels
def test_the_number_of_threads_is_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def choose(step: object, shape: str, candidates: tuple[int, ...]) -> int:
        assert callable(step)
        for count in candidates:
            step(count)
            assert isinstance(executor, NativeExecutor)
            used.append(executor.few_threads)
        assert "llama, 2 layers of 32" in shape
        return 2

    model = load_model(folder, precision="fp32")
    executor = make_write_lane(model, EngineConfig(threads=1), GIB, owns_model=True).executor
    assert isinstance(executor, NativeExecutor)
    monkeypatch.setattr(write_lane, "choose_threads", choose)
    monkeypatch.setattr(write_lane, "ALL_THREADS", 2)
    assert probed_threads(executor, model) == 2
    assert used == [1, 2]
