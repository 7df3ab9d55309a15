"""The engine, which batches as requests come and go, writes what the reference writes: for every family that writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from danlu.core.records import GenerateOptions
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.serve.engine.request import WriteRequest
from tests.models.case import change_config, save_peer
from tests.models.families import FAMILIES, families
from tests.models.peer import some_ids
from tests.serve.engine.hearing import Desk

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(60)]

SHORT = ("llama-dynamic",)
"""Contexts too short for these prompts."""
NAMES = [name for name in families(lambda case: case.writes) if name not in SHORT]
SEVERAL = ["llama", "gemma3", "mixtral", "mamba2", "qwen3-next", "t5", "bart", "marian", "marian-two-vocabularies"]
"""Families of different kinds: for what does not depend on more than the kind."""
RECURRENT = ("mamba2", "mamba2-tied", "qwen3-next", "qwen3-next-some-plain", "qwen3-next-plain")


def made(name: str, folder: Path, **config: Any) -> Model:
    save_peer(FAMILIES[name].make(), folder)
    if name.startswith("switch"):
        config["decoder_start_token_id"] = 0
    if config:
        change_config(folder, **config)
    return load_model(folder, precision="fp32", with_tokenizer=False)


def prompts(name: str) -> list[list[int]]:
    vocabulary = FAMILIES[name].vocabulary
    return [some_ids(length, seed=length, vocabulary=vocabulary) for length in (5, 3, 14, 12, 9)]


def check(model: Model, name: str, options: GenerateOptions, **config: Any) -> Desk:
    """Two waves of requests, so that some join while others are being written."""
    expected = LoadedModel(model).generate(prompts(name), options)
    desk = Desk(model, **config)
    listeners = []
    for prompt in prompts(name):
        listeners.append(desk.send(WriteRequest(model="model", prompt=prompt, options=options)))
        desk.step(2)
    desk.run()
    found = [(one.ids(index), one.reason(index)) for one in listeners for index in range(options.n)]
    assert found == [(answer.token_ids, answer.finish_reason) for answer in expected]
    return desk


@pytest.mark.parametrize("name", NAMES)
def test_it_writes_what_the_reference_writes(name: str, tmp_path: Path) -> None:
    model = made(name, tmp_path)
    options = GenerateOptions(max_tokens=10, ignore_eos=True)
    check(model, name, options)
    check(model, name, options, max_rows=2, step_tokens=4)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_samples_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    options = GenerateOptions(max_tokens=10, temperature=1.0, n=3, seed=4, ignore_eos=True)
    check(made(name, tmp_path), name, options, max_rows=7, step_tokens=8)


@pytest.mark.parametrize("name", SEVERAL)
def test_beams_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    options = GenerateOptions(max_tokens=12, num_beams=4, n=2, length_penalty=0.8)
    check(made(name, tmp_path), name, options, max_rows=9, step_tokens=12)


@pytest.mark.parametrize("config", [{"forced_bos_token_id": 7}, {"forced_bos_token_id": 7, "forced_eos_token_id": 2}])
def test_beams_that_must_begin_with_one_token_part_after_it(config: dict[str, int], tmp_path: Path) -> None:
    options = GenerateOptions(max_tokens=9, num_beams=4, n=4)
    desk = check(made("bart", tmp_path, **config), "bart", options)
    assert desk.status.generated_tokens > 0


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "mixtral", *RECURRENT])
def test_rows_that_had_to_give_way_write_what_they_would_have_written(name: str, tmp_path: Path) -> None:
    model = made(name, tmp_path)
    limit = min(model.config.context_length, 100) - 20
    options = GenerateOptions(max_tokens=limit, temperature=1.0, seed=3, ignore_eos=True)
    desk = check(model, name, options, cache_tokens=192)
    has_pages = any(layer.mixer.state_shapes == {} for layer in model.stack_config.layers)
    assert (desk.status.preemptions > 0) == (has_pages and limit > 50)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_share_no_prefixes(name: str, tmp_path: Path) -> None:
    model = made(name, tmp_path)
    desk = Desk(model)
    prompt = some_ids(min(model.config.context_length - 8, 70), seed=1, vocabulary=FAMILIES[name].vocabulary)
    options = GenerateOptions(max_tokens=5, ignore_eos=True)
    (expected,) = LoadedModel(model).generate([prompt], options)
    for _ in range(2):
        listener = desk.send(WriteRequest(model="model", prompt=prompt, options=options))
        desk.run()
        assert listener.ids() == expected.token_ids
        assert listener.usage().cached_tokens == 0
