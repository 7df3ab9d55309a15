"""Answers over 8-bit keys and values do not depend on company, on shared prefixes or on giving way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from danlu.core.records import GenerateOptions
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.paged import bytes_of_page
from danlu.serve.engine.request import WriteRequest
from tests.models.peer import save_llama, some_ids
from tests.serve.engine.hearing import Desk

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(60)]
OPTIONS = GenerateOptions(max_tokens=40, temperature=1.0, seed=5, ignore_eos=True)


@pytest.fixture(params=[True, False], ids=["C", "torch"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    """Run by the kernels in C where there are some, or by torch."""
    save_llama(tmp_path)
    return load_model(tmp_path, precision="fp32", is_packed=request.param)


def prompts() -> list[list[int]]:
    shared = some_ids(70, seed=9)
    return [shared + some_ids(length, seed=length) for length in (5, 1, 30)]


def answers(model: Model, options: GenerateOptions = OPTIONS, **config: Any) -> tuple[list[tuple[int, ...]], Desk]:
    desk = Desk(model, cache_type="int8", **config)
    listeners = []
    for prompt in prompts():
        listeners.append(desk.send(WriteRequest(model="model", prompt=prompt, options=options)))
        desk.step(2)
    desk.run()
    return [one.ids(index) for one in listeners for index in range(options.n)], desk


def test_company_prefixes_and_pieces_change_no_token(model: Model) -> None:
    together, desk = answers(model)
    assert desk.status.cached_tokens > 0
    assert answers(model, max_rows=1, prefix_cache=False)[0] == together
    assert answers(model, max_rows=4, step_tokens=16)[0] == together


def test_samples_of_one_prompt_and_rows_that_gave_way_are_themselves(model: Model) -> None:
    options = GenerateOptions(max_tokens=60, temperature=1.0, seed=5, ignore_eos=True, n=2)
    roomy, _ = answers(model, options)
    tight, desk = answers(model, options, cache_tokens=384)
    assert desk.status.preemptions > 0
    assert tight == roomy


def test_a_cache_of_8_bits_takes_its_own_pages(model: Model) -> None:
    _, desk = answers(model, cache_tokens=640)
    cache = desk.writer._executor.cache
    assert cache.is_rounded
    assert cache.size_bytes() == cache.num_pages * bytes_of_page(model.stack_config, cache.dtype)
