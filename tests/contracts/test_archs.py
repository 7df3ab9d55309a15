"""What every family in models/archs promises, whoever wrote it."""

import itertools
import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from danlu.core import plugins
from danlu.core.errors import ModelError
from danlu.models.archs import Architecture
from danlu.models.config import CoreConfig
from danlu.models.heads.lm import Decoder
from danlu.models.load import part_rows


@pytest.fixture(params=plugins.names("models.archs"))
def family(request: pytest.FixtureRequest) -> Architecture:
    family = plugins.load("models.archs", request.param)
    assert family.model_type == request.param
    return family


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def config(request: pytest.FixtureRequest) -> CoreConfig:
    return CoreConfig(
        vocabulary_size=50, width=24, num_layers=11, num_heads=6, num_kv_heads=2, head_width=4, feedforward_width=20,
        context_length=32, norm_epsilon=2e-6, rope_base=5e4, tied_head=request.param,
    )  # fmt: skip


def decoder(config: CoreConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


def test_what_it_writes_it_reads_again(family: Architecture, config: CoreConfig) -> None:
    theirs = family.write_config(config)
    assert theirs["model_type"] == family.model_type
    assert family.read_config(theirs) == config


def test_transformers_reads_its_config_without_a_change(family: Architecture, config: CoreConfig) -> None:
    theirs = AutoConfig.for_model(**family.write_config(config))
    assert family.read_config(json.loads(theirs.to_json_string())) == config  # as save_pretrained writes it


def test_its_names_cover_the_whole_state_once(family: Architecture, config: CoreConfig) -> None:
    names = family.weight_names(config)
    state = set(decoder(config).state_dict()) - ({"head.weight"} if config.tied_head else set())
    assert set(names) == state
    theirs = list(itertools.chain.from_iterable(names.values()))
    assert len(set(theirs)) == len(theirs)


def test_its_names_and_shapes_are_those_of_transformers(family: Architecture, config: CoreConfig) -> None:
    with torch.device("meta"):
        peer = AutoModelForCausalLM.from_config(AutoConfig.for_model(**family.write_config(config)))
    shapes = {name: tuple(weight.shape) for name, weight in peer.named_parameters()}
    state = decoder(config).state_dict()
    found: dict[str, tuple[int, ...]] = {}
    for ours, theirs in family.weight_names(config).items():
        rows = part_rows(ours, config)
        parts = [state[ours]] if rows == (-1,) else state[ours].split(list(rows))
        found |= {name: tuple(part.shape) for name, part in zip(theirs, parts, strict=True)}
    assert found == shapes


def test_its_gguf_names_are_all_different(family: Architecture, config: CoreConfig) -> None:
    theirs = list(itertools.chain.from_iterable(family.weight_names(config).values()))
    names = [family.gguf_name(name) for name in theirs]
    assert len(set(names)) == len(names)
    assert not any(name.startswith("model.") for name in names)


def test_reading_a_gguf_tensor_only_turns_its_rows_around(family: Architecture, config: CoreConfig) -> None:
    state = decoder(config).state_dict()
    for ours, theirs in family.weight_names(config).items():
        rows = part_rows(ours, config)
        parts = [state[ours]] if rows == (-1,) else state[ours].split(list(rows))
        for name, part in zip(theirs, parts, strict=True):
            weight = torch.arange(part.numel(), dtype=torch.float32).reshape(part.shape)
            turned = family.weight_from_gguf(name, weight, config)
            assert turned.shape == weight.shape
            assert sorted(map(tuple, turned.reshape(turned.shape[0], -1).tolist())) == list(
                map(tuple, weight.reshape(weight.shape[0], -1).tolist())
            )


def test_a_key_it_does_not_know_is_refused(family: Architecture, config: CoreConfig) -> None:
    with pytest.raises(ModelError, match=r"config\.json has an unknown key 'surprise'"):
        family.read_config({**family.write_config(config), "surprise": 1})


@pytest.mark.parametrize("drop", ["hidden_size", "vocab_size", "num_hidden_layers"])
def test_a_number_that_is_missing_is_named(family: Architecture, config: CoreConfig, drop: str) -> None:
    theirs: dict[str, Any] = family.write_config(config)
    del theirs[drop]
    with pytest.raises(ModelError, match=f"lacks '{drop}'"):
        family.read_config(theirs)
